"""One deployment with datasets of every lane, its vendor's emulator, and what tells of the end of rows and money.

Each step is taken by a new engine, as by another process.
"""

from __future__ import annotations

import re
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
from pydantic import BaseModel, Field

from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling, Limits, Realtime, Resend
from dagster_llm_batch.engine.condition_facts import find_undecided, read_facts
from dagster_llm_batch.engine.conditions import ConditionKind, find_conditions
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard, SubmissionState
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import Emulator, RowFault, VendorLimits, WireFault
from tests.crash.clouds import CLOUDS
from tests.faults.vendor_workspace import Servers, copy_ledger
from tests.faults.vendors import VENDORS, Vendor
from tests.machine.mortal import Dead, End, Mortal, mortal_ledger, mortal_provider, mortal_store

__all__ = ["DATASETS", "VENDOR_NAMES", "World"]

ROWS, BATCH = 5, 2
HOUR = timedelta(hours=1)
# As long as a lease is, and more.
_LEASE = timedelta(minutes=3)
_MOST_ROUNDS = 40
# A command's batches end by themselves, and its books are a file: the matrices have it.
VENDOR_NAMES = tuple(vendor.name for vendor in VENDORS if vendor.name != "command")
DATASETS = ("plain", "rounds", "fallback", "cascade", "urgent")


class Label(BaseModel):
    """The response."""

    topic: Literal["billing", "bug", "how_to"]
    urgency: Annotated[int, Field(ge=1, le=5)]


def answer(body: Any, _url: str) -> Any:
    """Say what the text asks for, so that a row's label tells whether it is its own."""
    number = int(re.findall(r"number (\d+)", str(body))[-1])
    return {"topic": ("billing", "bug", "how_to")[number % 3], "urgency": 1 + number % 5}


@dataclass
class Rows:
    """The rows of one partition: how many, and how often the text of the first one has changed."""

    count: int = ROWS
    edition: int = 0

    def table(self, dataset: str) -> pa.Table:
        numbers = range(self.count)
        texts = [f"{dataset}: where is number {n}? " + "!" * (self.edition if n == 0 else 0) for n in numbers]
        return pa.table({"id": [f"t{n}" for n in numbers], "text": texts, "now": [n < 2 for n in numbers]})


class World:
    """See the module's docstring."""

    def __init__(
        self, vendor_name: str, servers: Servers, folder: Path, ledger_url: str, datasets: Sequence[str] = DATASETS
    ) -> None:
        self.vendor: Vendor = next(vendor for vendor in VENDORS if vendor.name == vendor_name)
        self.folder, self.ledger_url = folder, ledger_url
        self._skipped = 0.0
        files = {"bedrock": {"s3_url": servers.s3_url}, "vertex": {"gcs_url": servers.gcs_url}}.get(vendor_name, {})
        limits = VendorLimits(bedrock_min_records=1)
        self.emulator = Emulator(answer=answer, clock=self.seconds, limits=limits, **files).start()
        self.provider: Any = self.vendor.provider(self.emulator, folder, 10.0)
        self.definitions = {name: self._definition(name) for name in datasets}
        self.rows = {name: Rows() for name in datasets}
        self.planned: dict[str, str] = {}
        self.arrows: list[str] = []
        # For how many requests of a dataset a person has said, or nobody can prevent, that they are paid again.
        self.may_pay_again: Counter[str] = Counter()
        self.frozen: list[tuple[Mortal, threading.Thread]] = []
        self.backup: str | None = None
        self.told: list[str] = []
        self.erased: defaultdict[str, set[int]] = defaultdict(set)
        (folder / "payloads" / "machine").mkdir(parents=True)
        self.foreign = folder / "payloads" / "machine" / "notes.parquet"
        self.foreign.write_bytes(b"of somebody else")

    def close(self) -> None:
        self.thaw()
        self.emulator.close()

    def seconds(self) -> float:
        """One time for engine and vendor."""
        return time.time() + self._skipped

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds(), UTC)

    def pass_time(self, span: timedelta) -> None:
        self._skipped += span.total_seconds()

    def _definition(self, name: str) -> Labeling:
        oracle = f"{self.vendor.name}/{CLOUDS[self.vendor.name].other_model}"
        changes: dict[str, Any] = {
            "plain": {},
            "rounds": {"resend": Resend(max_waves=3)},
            "fallback": {"resend": Resend(fallback=(oracle,))},
            "cascade": {"cascade": Cascade(oracle, "topic", 0.5, 0.9, "urgency", 4)},
            "urgent": {"realtime": Realtime(urgent="now", concurrency=1)},
        }[name]
        return Labeling(
            asset=name,
            model=f"{self.vendor.name}/{self.vendor.model}",
            key="id",
            prompt=Prompt(user="{{ text }}"),
            response=Label,
            params=self.vendor.params,
            limits=Limits(max_requests_per_batch=BATCH),
            **changes,
        )

    def engine(self, mortal: Mortal | None = None) -> Engine:
        """Return a new engine, as another process makes one."""
        mortal = mortal or Mortal(None)
        return Engine(
            Deployment(
                {self.vendor.name: mortal_provider(self.provider, mortal)},
                mortal_ledger(Ledger(self.ledger_url, clock=self.now), mortal),
                mortal_store(str(self.folder / "payloads"), mortal),
                "machine",
                clock=self.now,
                sleep=lambda _: None,
                lease_wait_seconds=0.0,
                transfers_at_once=1,
            )
        )

    def step(self, act: Callable[[Engine], object], end: End | None = None) -> str:
        """Take one step in a process of its own; return how it ended. What it refuses, it has told a person."""
        mortal, ended = Mortal(end), []

        def run() -> None:
            engine = self.engine(mortal)
            try:
                act(engine)
                ended.append("done")
            except LLMBatchError as error:
                self.told.append(str(error))
                ended.append(f"{type(error).__name__}: {error}")
            except Dead:
                ended.append("died")
            except KeyboardInterrupt:
                ended.append("interrupted")
            except BaseException as error:  # noqa: BLE001 - raised below, in the thread of the test
                ended.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive() and not mortal.frozen.is_set():
            thread.join(0.01)
        if mortal.frozen.is_set():
            self.frozen.append((mortal, thread))
            ended = ["froze"]
        [how] = ended
        if isinstance(how, BaseException):
            raise how
        self.arrows = list(mortal.crossed)
        return str(how)

    def thaw(self) -> None:
        """Let frozen processes go on; they find that others have taken their leases."""
        for mortal, thread in self.frozen:
            mortal.thawed.set()
            thread.join(60)
            assert not thread.is_alive()
        self.frozen.clear()

    # steps ------------------------------------------------------------------------------------------------------------

    def plan(self, name: str, end: End | None = None, *, again: bool = False) -> str:
        def act(engine: Engine) -> None:
            table = self.rows[name].table(name)
            if again:
                self.may_pay_again[name] += engine.preview(self.definitions[name], table, again=True).to_send
            engine.plan(self.definitions[name], table, again=again)

        return self.step(act, end)

    def send(self, name: str, end: End | None = None) -> str:
        how = self.on_latest(name, lambda engine, key: engine.submit(self.definitions[name], key), end)
        return self._allow(name, how)

    def advance(self, name: str, end: End | None = None) -> str:
        def act(engine: Engine, key: str) -> None:
            if engine.advance(self.definitions[name], key).is_settled:
                engine.labels(self.definitions[name], key)
                engine.ledger.mark_delivered(key)

        return self._allow(name, self.on_latest(name, act, end))

    def _allow(self, name: str, how: str) -> str:
        """Allow for what no client can prevent: a call in real time, or one to create a batch that nothing stops."""
        if how in ("died", "froze", "interrupted"):
            if any(arrow.startswith("respond") for arrow in self.arrows):
                self.may_pay_again[name] += 1
            if how == "froze" and self.vendor.name == "openrouter" and "submit: before" in self.arrows:
                self.may_pay_again[name] += BATCH
        return how

    def cancel(self, name: str, end: End | None = None) -> str:
        return self.on_latest(name, lambda engine, key: engine.cancel(key), end)

    def erase(self, name: str, number: int, end: End | None = None) -> str:
        """Erase a row for good, as a person asks; what a dead process left of that, finish() repeats."""
        self.erased[name].add(number)

        def act(engine: Engine) -> None:
            engine.eraser.add_tombstones(name, [f"t{number}"], None)
            engine.eraser.erase(name)
            engine.eraser.erase_at_providers(name)

        return self.step(act, end)

    def on_latest(self, name: str, act: Callable[[Engine, str], object], end: End | None = None) -> str:
        """Take a step with the newest submission of a dataset, where it has one."""

        def chosen(engine: Engine) -> None:
            newest = engine.latest(name)
            if newest is not None:
                act(engine, newest.submission_id)

        return self.step(chosen, end)

    def back_up(self) -> None:
        if not self.frozen:
            self.engine().ledger.submissions("machine")
            self.backup = copy_ledger(self.ledger_url)

    def restore(self) -> None:
        """Go on with a copy of the ledger from before; nobody works meanwhile."""
        if self.backup is not None and not self.frozen:
            self.ledger_url, self.backup = self.backup, None
            self.pass_time(HOUR)

    def inject(self, call: str, status: int) -> None:
        if call in self.vendor.calls:
            self.emulator.inject(WireFault(kind="status", route=self.vendor.calls[call], status=status, times=3))

    def fail_row(self, number: int) -> None:
        self.emulator.inject(RowFault(status_code=500, containing=f"number {number}?", times=1))

    def decide(self) -> None:
        """Do what a person does who was told: look into the vendor's console, and say what is there."""
        engine = self.engine()
        found = find_undecided(engine)
        unreadable = {shard.shard_id for one, shard in found if one.kind is ConditionKind.UNREADABLE}
        for submission in engine.ledger.submissions("machine"):
            for shard in engine.ledger.shards(submission.submission_id):
                if shard.state is ShardState.SUBMITTING:
                    self.step(partial(_resolve, shard_id=shard.shard_id, batch_id=self._batch_of(shard)))
                elif shard.shard_id in unreadable:
                    self.step(partial(_give_up, shard_id=shard.shard_id))

    def _batch_of(self, shard: Shard) -> str | None:
        known = [batch.batch_id for batch in self.emulator.books.batches if shard.nonce in str(batch)]
        return known[-1] if known else None

    # the end ----------------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Let all faults end and go on, as a sensor does, until all is settled; then judge."""
        self.thaw()
        self.emulator.clear_faults()
        self.pass_time(HOUR)
        for name, numbers in self.erased.items():
            for number in sorted(numbers):
                self.erase(name, number)
        log: list[str] = []
        for turn in range(_MOST_ROUNDS):
            settled = []
            for name in self.definitions:
                if turn == 0:
                    log.append(f"plan {name}: {self.plan(name)}")
                log.append(f"advance {name}: {self.advance(name)}")
                newest = self.engine().latest(name)
                settled.append(newest is not None and newest.is_settled)
            if all(settled):
                break
            if turn > _MOST_ROUNDS // 2:
                self._demand_that_a_person_is_told()
                self.decide()
            self.emulator.settle()
            self.pass_time(HOUR)
        else:
            raise AssertionError(f"not settled: {log[-2 * len(self.definitions) :]}")
        self.judge()

    def _demand_that_a_person_is_told(self) -> None:
        """Whatever still waits after so many hours without a fault waits for a person, who is told."""
        engine = self.engine()
        open_ones = [one.submission for one in engine.ledger.progress("machine") if not one.submission.is_settled]
        conditions = find_conditions(read_facts(engine, None, self.definitions))
        told = {condition.submission.submission_id for condition in conditions if condition.is_due(engine.now())}
        untold = [one for one in open_ones if one.submission_id not in told]
        assert not untold, [(one.asset, one.state, engine.ledger.shards(one.submission_id)) for one in untold]

    def judge(self) -> None:
        """Hold what became of rows and money to what is promised."""
        engine = self.engine()
        for name, definition in self.definitions.items():
            newest = engine.latest(name)
            assert newest is not None
            erased = {f"t{number}" for number in self.erased[name]}
            wanted = set(self.rows[name].table(name)["id"].to_pylist()) - erased
            labeled = engine.labels(definition, newest.submission_id)
            found = [*labeled.labels["id"].to_pylist(), *labeled.rejects["id"].to_pylist()]
            if newest.state is SubmissionState.CANCELED:
                assert len(found) == len(set(found))
            else:
                assert sorted(found) == sorted(wanted), (name, found, wanted)
            for row in labeled.labels.to_pylist():
                assert row["topic"] == ("billing", "bug", "how_to")[int(row["id"][1:]) % 3], row
            assert sum(newest.outcomes.values()) == newest.requests, (name, newest.outcomes, newest.requests)
            costs = [cost for table in (labeled.labels, labeled.rejects) for cost in table["llm_cost_usd"].to_pylist()]
            assert sum(map(_money, costs)) == _money(newest.cost_usd), (name, costs, newest.cost_usd)
            for shard in engine.ledger.shards(newest.submission_id):
                assert shard.state in (ShardState.COLLECTED, ShardState.CANCELED), shard
        assert self.paid_again() <= self.may_pay_again.total(), (self.paid_again(), self.may_pay_again)
        assert self.foreign.read_bytes() == b"of somebody else"
        if self.erased:
            kept = self._stored()
            for name, numbers in self.erased.items():
                for number in numbers:
                    assert f"{name}: where is number {number}?" not in kept, (name, number)

    def _stored(self) -> str:
        """Return all that the payload files hold, unpacked."""
        root = self.folder / "payloads"
        payloads, found = PayloadStore(str(root)), []
        for path in root.rglob("*"):
            name = str(path.relative_to(root))
            if path.is_dir() or path == self.foreign:
                continue
            if name.endswith(".parquet"):
                found.append(str(payloads.read_table(name).to_pylist()))
            else:
                with payloads.reader(name) as file:
                    found.append(file.read().decode(errors="replace"))
        return "\n".join(found)

    def paid_again(self) -> int:
        """Return how many answers were billed of requests that had been answered and billed before."""
        billed = Counter(one.body_digest for one in self.emulator.books.executions if one.billed)
        return sum(times - 1 for times in billed.values())


def _money(value: Any) -> Decimal:
    return Decimal(0) if value is None else Decimal(str(value))


def _resolve(engine: Engine, shard_id: str, batch_id: str | None) -> None:
    engine.resolve(shard_id, batch_id)


def _give_up(engine: Engine, shard_id: str) -> None:
    engine.give_up(shard_id)
