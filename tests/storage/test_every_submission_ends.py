"""For any actions of a vendor, a clock and people: every submission ends, or a person gets an instruction.

A request is never billed twice, unless a person asked again.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from labelings import LABELS

from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.engine.condition_facts import find_undecided
from dagster_llm_batch.errors import LeaseError, LLMBatchError, TransientError
from dagster_llm_batch.providers.capabilities import pass_on_capabilities
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, WireFault
from dagster_llm_batch.types import RequestSpec

pytestmark = pytest.mark.slow

ROWS = [{"id": str(n), "text": f"Ticket {n}"} for n in range(6)]
FAULTS = {
    "batches are unknown": WireFault(kind="status", status=404, route="GET /v1/batches/*", times=None),
    "results are gone": WireFault(kind="status", status=404, route="GET /v1/files/*/content", times=None),
    "nobody answers": WireFault(kind="status", status=503, route="*", times=None),
    "credentials are refused": WireFault(kind="status", status=401, route="*", times=None),
}
WORDS = [
    *FAULTS,
    "all is well",
    "batches end",
    "a day passes",
    "a run",
    "somebody at the console",
    "cancel",
    "give up",
    "files are lost",
    "a clock ahead",
    "a freeze",
    "a backup",
    "a restoring",
]
STORED = (".results.parquet", ".raw.jsonl.zst")
AGAIN = "again"


class Place:
    """One deployment with two batches in flight, and the events that can happen to it."""

    def __init__(self, emulator: Emulator, ledger_url: str, copy: Callable[[str], str], folder: str) -> None:
        self.emulator = emulator
        self.skipped = timedelta()
        self.provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url, timeout_seconds=5.0)
        self.url, self.copy = ledger_url, copy
        self.ledger = Ledger(ledger_url, self.now)
        self.folder = Path(folder, "payloads")
        self.engine = self.engine_with(self.provider)
        self.faults = 0
        self.send(again=False)
        self.back_up()

    def engine_with(self, provider: Any) -> Engine:
        deployment = Deployment(
            {"openai": provider}, self.ledger, PayloadStore(str(self.folder)), "n", self.now, sleep=lambda _: None
        )
        return Engine(deployment)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skipped

    def send(self, *, again: bool) -> None:
        submission = self.engine.plan(LABELS, ROWS, again=again)
        self.engine.submit(LABELS, submission.submission_id)

    def happen(self, word: str, number: int) -> None:
        """Let one event happen; `number` chooses a batch."""
        if word in FAULTS:
            self.faults += 1
            self.emulator.inject(FAULTS[word])
        elif word == "all is well":
            self.faults = 0
            self.emulator.clear_faults()
        elif word == "batches end":
            self.emulator.settle()
        elif word == "a day passes":
            self.skipped += timedelta(days=1)
        elif word == "a run":
            self.run()
        elif word == "files are lost":
            for file in self.folder.rglob(f"*{STORED[number]}"):
                file.unlink()
        elif word == "a clock ahead":
            self.skipped += timedelta(days=365)
            self.run()
            self.skipped -= timedelta(days=365)
        elif word == "a freeze":
            self.freeze()
        elif word == "a backup":
            self.back_up()
        elif word == "a restoring":
            self.restore()
        else:
            with suppress(LLMBatchError):
                self.decide(word, number)

    def decide(self, word: str, number: int) -> None:
        """Take one action of a person."""
        newest = self.ledger.submissions.of_partition("n", "labels")[0]
        shards = [shard for shard in self.ledger.shards.of_submission(newest.submission_id) if shard.batch.batch_id]
        if word == AGAIN:
            self.send(again=True)
        elif word == "cancel":
            self.engine.cancel(newest.submission_id)
        elif shards and word == "give up":
            self.engine.give_up(shards[number % len(shards)].shard_id)
        elif shards:
            self.provider.cancel(shards[number % len(shards)].batch.batch_id or "")

    def freeze(self) -> None:
        """Send another partition by a process that is frozen in its create call for longer than its lease."""
        # While the vendor is unreachable, the batch sent at the same time cannot be canceled either.
        if self.faults:
            return
        partition = str(len(self.ledger.submissions.list_all("n")))
        rows = [{"id": "frozen", "text": f"Ticket of {partition}"}]
        submission = self.engine.plan(LABELS, rows, partition=partition)
        with suppress(LeaseError):
            self.engine_with(Frozen(self)).submit(LABELS, submission.submission_id)

    def back_up(self) -> None:
        self.ledger.close()
        self.backup = self.copy(self.url)

    def restore(self) -> None:
        """Restore the ledger from the last backup, and call `recovery.recover_all`, as a person would."""
        self.ledger.close()
        self.url = self.backup
        self.ledger = Ledger(self.url, self.now)
        self.engine = self.engine_with(self.provider)
        self.engine.recovery.recover_all()
        # The restored ledger is the new backup, and can be restored again.
        self.back_up()

    def run(self) -> dict[str, LLMBatchError]:
        """Act as the sensor and its runs do; return the errors of failed runs by submission."""
        failures = {}
        for progress in self.ledger.submissions.progress("n"):
            try:
                self.engine.advance(LABELS, progress.submission.submission_id)
            except TransientError:
                continue
            except LLMBatchError as error:
                failures[progress.submission.submission_id] = error
        self.engine.poll_awaited(["labels"], self.now() - timedelta(hours=1))
        return failures


class Frozen:
    """The provider of a process that is frozen in its SDK while other processes run."""

    def __init__(self, place: Place) -> None:
        self._place = place
        pass_on_capabilities(place.provider, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._place.provider, name)

    def submit(self, lines: BinaryIO, spec: RequestSpec, tag: str) -> str:
        for _ in range(3):
            self._place.skipped += timedelta(minutes=10)
            self._place.run()
        return self._place.provider.submit(lines, spec, tag)


# Failing examples are short already; shrinking them would take minutes. The examples are the same in each run, so that
# a failure comes from a change; DLB_EXPLORE=200 tries that many others.
@settings(
    max_examples=int(os.environ.get("DLB_EXPLORE", "6")),
    derandomize="DLB_EXPLORE" not in os.environ,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(words=st.lists(st.tuples(st.sampled_from([*WORDS, AGAIN]), st.integers(0, 1)), max_size=9))
@example(words=[("a backup", 0), ("a freeze", 0), ("batches end", 0), ("a run", 0), ("a restoring", 0), ("a run", 0)])
@example(words=[("results are gone", 0), ("batches end", 0), ("a clock ahead", 0), ("a day passes", 0)])
@example(words=[("batches are unknown", 0), ("a clock ahead", 0), ("a day passes", 0)])
def test_every_submission_ends_or_a_person_is_told(
    new_ledger_url: Callable[[], str], copy_ledger: Callable[[str], str], words: list[tuple[str, int]]
) -> None:
    with Emulator() as emulator, TemporaryDirectory() as folder:
        place = Place(emulator, new_ledger_url(), copy_ledger, folder)
        for word, number in words:
            place.happen(word, number)
        told: dict[str, Any] = {}
        for _ in range(8):
            told = place.run()
            place.skipped += timedelta(hours=6)
        shown = {condition.submission.submission_id for condition, _ in find_undecided(place.engine)}
        emulator.clear_faults()
        for submission in place.ledger.submissions.list_all("n"):
            # A submission that waits for the answers of another one is reported with it.
            own = {submission.submission_id, *submission.reused_from}
            assert submission.is_settled or own & (shown | told.keys())
            if submission.is_settled:
                assert sum(submission.outcomes.values()) == submission.requests
                labeled = place.engine.labels(LABELS, submission.submission_id)
                assert labeled.labels.num_rows + labeled.rejects.num_rows == submission.rows
        if AGAIN not in [word for word, _ in words]:
            assert emulator.books.billed_twice() == {}
        place.ledger.close()
