"""One submission of twelve rows through the engine while a fault holds, and its effect on rows and money.

The emulator's books and the final table are the evidence. Each step is taken by a new engine, like in a new process.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel

from dagster_llm_batch.checks import Checks
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.definition.rules import Budget, QueueLimit
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.engine.condition_facts import find_undecided
from dagster_llm_batch.engine.conditions import ConditionKind
from dagster_llm_batch.errors import LLMBatchError, TransientError
from dagster_llm_batch.loop.status import advise_on_recovered
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.holds import recovered_of
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import Emulator, VendorLimits, WireFault, local_gcs, local_s3
from tests.crash.postgres import copy_database
from tests.faults.vendors import BUCKET, Vendor

ROWS, STRUCK = 12, 4
MARK = "[struck]"
"""The mark in the text of four rows, which faults of rows strike."""

MOST_STEPS = 20
_STEP_SECONDS = 600.0


class Label(BaseModel):
    topic: Literal["billing", "bug", "how_to"]


@dataclass(frozen=True)
class Servers:
    """The storage servers that all workspaces share."""

    s3_url: str
    gcs_url: str


@contextmanager
def servers() -> Iterator[Servers]:
    with local_s3(BUCKET) as s3_url, local_gcs(BUCKET) as gcs_url:
        yield Servers(s3_url, gcs_url)


@dataclass
class Ending:
    """The ending of a submission.

    `errors` are the steps' exceptions. `twice` counts requests billed in two batches. `stopped` is the reason why
    nothing more was sent. `cost_usd` is None if the cost is unknown.
    """

    rows: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    reasons: set[str] = field(default_factory=set)
    tiers: Counter[str] = field(default_factory=Counter)  # succeeded rows by the basis of their price
    lost: int = 0
    twice: int = 0
    waves: int = 0
    batches: int = 0
    steps: int = 0
    stopped: str | None = None
    cost_usd: Decimal | None = None
    errors: list[LLMBatchError] = field(default_factory=list)
    unstruck: list[WireFault] = field(default_factory=list)
    told_hours: float | None = None  # hours from the start, or the strike of a trouble, until an alert
    said: str | None = None
    in_order: bool = False  # whether the raw lines of the first batch are in the order of its requests
    left: int = 0  # documents left in the vendor's storage after their removal
    others_left: bool = True  # whether another program's document is still there


class VendorWorkspace:
    """One vendor, with its emulator, a ledger and payloads in `folder`."""

    def __init__(
        self,
        vendor: Vendor,
        servers: Servers,
        folder: Path,
        timeout_seconds: float,
        ledger_url: str | None = None,
        **limits: Any,
    ) -> None:
        self.vendor = vendor
        self.folder = folder
        self.ledger_url = ledger_url or f"sqlite:///{folder}/ledger.sqlite"
        self.failed: LLMBatchError | None = None  # the error of the last run
        self.ahead_seconds = 0.0  # lead of this machine's clock over the vendor's
        self._backup: str | None = None
        self._skipped_seconds = 0.0
        self.budgets: Sequence[Budget] = ()
        self.queue_limits: Mapping[str, QueueLimit] = {}
        self.overdue_after: timedelta | None = None
        vendor_limits = VendorLimits(bedrock_min_records=1, **limits)
        files = {"bedrock": {"s3_url": servers.s3_url}, "vertex": {"gcs_url": servers.gcs_url}}.get(vendor.name, {})
        self.emulator = Emulator(clock=self._now, limits=vendor_limits, **files).start()
        self.provider = vendor.provider(self.emulator, folder, timeout_seconds)
        self.definition = Labeling(
            asset="labels",
            model=f"{vendor.name}/{vendor.model}",
            key="id",
            prompt=Prompt(user="{{ text }}"),
            response=Label,
            params=vendor.params,
            spend=vendor.spend,
        )

    def close(self) -> None:
        # A hanging command continues and ends, so that all processes end with their test.
        (self.folder / "go-on").touch()
        self.emulator.close()

    def _now(self) -> float:
        """Return the time of both engine and vendor. It moves only between steps."""
        return time.time() + self._skipped_seconds

    def now(self) -> float:
        """Return the vendor's time, in seconds."""
        return self._now()

    def _clock(self) -> datetime:
        return datetime.fromtimestamp(self._now() + self.ahead_seconds, UTC)

    def engine(self, provider: Any = None) -> Engine:
        """Return a new engine, like a new process."""
        return Engine(
            Deployment(
                {self.vendor.name: provider or self.provider},
                Ledger(self.ledger_url, clock=self._clock),
                PayloadStore(str(self.folder / "payloads")),
                "faults",
                clock=self._clock,
                sleep=lambda _: None,
                budgets=self.budgets,
                queue_limits=self.queue_limits,
                overdue_after=self.overdue_after,
            )
        )

    def rows(self) -> pl.DataFrame:
        """Return the rows of a submission."""
        return rows()

    def run(self, faults: Sequence[Any], *, lasts: int | None = None) -> Ending:
        """Run from rows to a complete submission, or to the last step. Faults end alone, or after `lasts` steps."""
        ending = Ending()
        self.inject(faults)
        engine = self.engine()
        began = self._now()
        submission = engine.plan(self.definition, self.rows())
        for ending.steps in range(1, MOST_STEPS + 1):
            if ending.steps - 1 == lasts:
                self.clear()
            engine = self.engine()
            try:
                status = engine.advance(self.definition, submission.submission_id)
            except LLMBatchError as error:
                ending.errors.append(error)
                if not isinstance(error, TransientError):
                    ending.told_hours = ending.told_hours or self._hours_since(began)
            else:
                if status.is_settled:
                    break
            finally:
                engine.ledger.close()
            self._let_time_pass()
        if lasts is None:
            wires = [fault for fault in faults if isinstance(fault, WireFault)]
            ending.unstruck = [fault for fault in wires if not self.emulator.struck(fault)]
        self.told(ending, submission.submission_id)
        if ending.outcomes["succeeded"] < Checks().min_coverage * ROWS:
            ending.told_hours = ending.told_hours or self._hours_since(began)
        return ending

    def _hours_since(self, seconds: float) -> float:
        return (self._now() - seconds) / 3600

    def land(self, submission_id: str) -> tuple[bool, str | None]:
        """Do the work of a run and a tick. Return whether the submission is complete, and the alert, if any.

        Failed runs, error ticks and failed checks are alerts. An unavailable provider is only logged.
        """
        engine = self.engine()
        told: list[str] = [] if self.failed is None else [str(self.failed)]
        self.failed = None
        is_settled = False
        try:
            is_settled = engine.advance(self.definition, submission_id).is_settled
            if is_settled:
                labeled = engine.labels(self.definition, submission_id)
                if labeled.rejects.num_rows > (1 - Checks().min_coverage) * ROWS:
                    told.append(f"coverage: {labeled.rejects['llm_reason'][0]}")
        except TransientError:
            pass
        except LLMBatchError as error:
            told.append(str(error))
        told += [str(one.advice) for one, _ in find_undecided(engine) if one.kind is ConditionKind.OVERDUE]
        if (recovered := engine.recovery.newest_hold(engine.ledger.submissions.get(submission_id))) is not None:
            told.append(str(advise_on_recovered(recovered_of(recovered))))
        engine.ledger.close()
        return is_settled, told[0] if told else None

    def back_up(self) -> None:
        """Copy the ledger."""
        self.engine().ledger.submissions.list_all("faults")
        self._backup = copy_ledger(self.ledger_url)

    def restore(self) -> None:
        """Continue with the copy, hours later."""
        assert self._backup is not None
        self.ledger_url = self._backup
        self.pass_time(_STEP_SECONDS)

    def inject(self, faults: Sequence[Any]) -> None:
        """Inject these faults; for the command, write its words."""
        if self.vendor.name == "command":
            (self.folder / "faults").write_text(" ".join(faults))
        else:
            self.emulator.inject(*faults)

    def clear(self) -> None:
        """End the faults."""
        (self.folder / "faults").write_text("")
        self.emulator.clear_faults()

    def pass_time(self, seconds: float) -> None:
        """Let time pass for engine and vendor, while all batches stand still."""
        self._skipped_seconds += seconds

    def _let_time_pass(self) -> None:
        self.settle()
        self.pass_time(_STEP_SECONDS)

    def settle(self) -> None:
        """Let the vendor finish its work."""
        self.emulator.settle()
        if self.vendor.name == "command":
            jobs = [path.name for path in (self.folder / "jobs").iterdir()]
            while not all(report.status.is_terminal for report in self.provider.poll(jobs).values()):
                pass

    def told(self, ending: Ending, submission_id: str) -> Ending:
        """Add the content of the ledger, the tables and the books to `ending`."""
        engine = self.engine()
        status = engine.status(submission_id)
        ending.waves, ending.batches = status.submission.waves, len(set(status.batch_ids))
        ending.stopped, ending.cost_usd = engine.unsent(submission_id).stopped, status.submission.cost_usd
        if status.is_settled:
            labeled = engine.labels(self.definition, submission_id)
            tables = (labeled.labels, labeled.rejects)
            keys = [key for table in tables for key in table["id"].to_pylist()]
            ending.rows = len(keys)
            ending.outcomes = Counter(outcome for table in tables for outcome in table["llm_outcome"].to_pylist())
            ending.tiers = Counter(
                "unknown" if basis.startswith("unknown") else basis
                for basis in labeled.labels["llm_price_basis"].to_pylist()
            )
            ending.reasons = set(labeled.rejects["llm_reason"].to_pylist())
            ending.lost = ROWS - len(set(keys)) + len(keys) - len(set(keys))
        else:
            ending.lost = ROWS
        ending.twice = billed_twice(self.answered())
        ending.in_order = self._in_order(engine, submission_id)
        engine.ledger.close()
        return ending

    def answered(self) -> Iterable[tuple[str, str]]:
        """Return the batch and request of each billed answer."""
        if self.vendor.name == "command":
            file = self.folder / "answered.jsonl"
            return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
        return [(one.batch_id or "", one.body_digest) for one in self.emulator.books.executions if one.billed]

    def _in_order(self, engine: Engine, submission_id: str) -> bool:
        first = engine.ledger.shards.of_submission(submission_id)[0]
        if not first.raw_path or not engine.payloads.is_whole(first.raw_path):
            return False
        names = [codec_id(self, line) for line in engine.payloads.lines(first.raw_path)]
        asked = [name for name in (codec_id(self, line) for line in engine.payloads.lines(first.path)) if name]
        return names == asked


def copy_ledger(url: str) -> str:
    """Copy a ledger without connections, and return the URL of the copy."""
    if not url.startswith("sqlite"):
        return copy_database(url)
    file = url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(f"{file}.backup")) as copy:
        source.backup(copy)
    return f"{url}.backup"


def codec_id(workspace: VendorWorkspace, line: bytes) -> str | None:
    """Return the id in a request line or a result line, or None if the line has none."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return next((value[name] for name in ("custom_id", "key", "recordId") if name in value), None)


def rows() -> pl.DataFrame:
    texts = [f"Where is my invoice number {n}? {MARK if n % 3 == 0 else ''}" for n in range(ROWS)]
    return pl.DataFrame({"id": [f"t{n}" for n in range(ROWS)], "text": texts})


def billed_twice(answered: Iterable[tuple[str, str]]) -> int:
    """Count the requests that were answered and billed in more than one batch."""
    batches: dict[str, set[str]] = {}
    for batch_id, body in answered:
        batches.setdefault(body, set()).add(batch_id)
    return sum(len(ids) > 1 for ids in batches.values())
