"""Partitions that share one batch, on both ledgers: the circuit breaker judges all of them together.

Each has few rows, but a failure is the vendor's. Several processes that collect them at once download it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ledger_builders import PROCESSES
from worker_processes import collect_until_settled, definition, engine

from dagster_llm_batch import Limits
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.batches import count_batches_by_state, count_unbatched_by_state
from dagster_llm_batch.storage.ledger.database import utc_now
from dagster_llm_batch.storage.ledger.leases import Lease, Leases
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, FileFault, RowFault, WireFault
from dagster_llm_batch.types import Cause

pytestmark = pytest.mark.slow

LABELING = Labeling(asset="labels", model="openai/gpt-4o", key="id", prompt=Prompt(user="{{ text }}"))
ALTERED = FileFault(kind="renamed", times=None)


class Partitions:
    """Submissions of a few rows each, sent together and collected one after another."""

    def __init__(self, ledger_url: str, emulator: Emulator, folder: Path) -> None:
        self._emulator = emulator
        self._skipped = timedelta()
        provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
        ledger, payloads = Ledger(ledger_url, clock=self._now), PayloadStore(str(folder / "payloads"))
        self.engine = Engine(
            Deployment({"openai": provider}, ledger, payloads, "test", clock=self._now, sleep=lambda _: None)
        )

    def _now(self) -> datetime:
        return datetime.now(UTC) + self._skipped

    def run(self, sizes: list[int]) -> list[Submission]:
        """Take rows to settled submissions, by the steps of the Dagster assets."""
        ids = []
        for number, size in enumerate(sizes):
            names = [f"p{number}-{row}" for row in range(size)]
            rows = pa.table({"id": names, "text": [f"Ticket {name}." for name in names]})
            ids.append(self.engine.plan(LABELING, rows, partition=f"p{number}").submission_id)
        self.engine.submit_together(LABELING, ids)
        while open_ids := [one for one in ids if not self.engine.status(one).is_settled]:
            self._emulator.settle()
            self._skipped += timedelta(hours=1)
            for submission_id in open_ids:
                self.engine.collect(LABELING, submission_id)
            self.engine.submit_together(LABELING, open_ids)
        return [self.engine.ledger.submissions.get(submission_id) for submission_id in ids]

    def billed(self) -> int:
        return sum(execution.billed for execution in self._emulator.books.executions)


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def partitions(ledger_url: str, emulator: Emulator, tmp_path: Path) -> Iterator[Partitions]:
    made = Partitions(ledger_url, emulator, tmp_path)
    yield made
    made.engine.ledger.close()


def test_a_shared_batch_in_which_nothing_fits_is_the_last_that_is_paid(
    partitions: Partitions, emulator: Emulator
) -> None:
    emulator.inject(ALTERED)
    submissions = partitions.run([4] * 5)
    assert (len(emulator.books.batches), partitions.billed()) == (1, 20)
    for submission in submissions:
        assert (submission.outcomes, submission.waves) == ({"missing": 4}, 1)
        reason = partitions.engine.unsent(submission.submission_id).stopped or ""
        assert reason.startswith("20 of 20 requests of a batch that round 1 shares with other partitions got no reply")
        assert f"row '{submission.partition}-" in reason
        assert "results name custom_ids that were not asked, such as 'r" in reason
        assert f"`dagster-llm-batch retry labels --partition {submission.partition}`" in reason


@pytest.mark.parametrize(
    ("sizes", "misfits", "paid_again"),
    [([3] * 3, 9, 9), ([4] * 5, 19, 0), ([4] * 5, 18, 18), ([4, 40], 4, 4)],
    ids=["too few to tell", "one of twenty fits", "two of twenty fit", "the others fit"],
)
def test_what_fits_in_the_other_partitions_decides_as_well(
    partitions: Partitions, emulator: Emulator, sizes: list[int], misfits: int, paid_again: int
) -> None:
    emulator.inject(FileFault(kind="missing", times=misfits))
    submissions = partitions.run(sizes)
    assert partitions.billed() == sum(sizes) + paid_again
    missing = sum(submission.outcomes.get("missing", 0) for submission in submissions)
    assert missing == misfits - paid_again


def test_what_failed_before_in_a_large_partition_does_not_stop_the_one_that_shares_its_second_batch(
    partitions: Partitions, emulator: Emulator
) -> None:
    emulator.inject(
        FileFault(kind="missing", batches=[0], times=12),  # of the first partition
        RowFault(status_code=503, containing="Ticket p1-", times=4),
        FileFault(kind="missing", batches=[1], times=None),
    )
    submissions = partitions.run([40, 4])
    assert [submission.waves for submission in submissions] == [3, 3]
    assert [submission.outcomes for submission in submissions] == [{"succeeded": 40}, {"succeeded": 4}]
    assert len(emulator.books.batches) == 3


def test_the_ledger_counts_batches_as_its_shards_and_the_provider_do(
    partitions: Partitions, emulator: Emulator
) -> None:
    own = partitions.engine
    ids = []
    for number in range(6):
        rows = pa.table({"id": [f"r{number}"], "text": [f"Ticket {number}."]})
        ids.append(own.plan(LABELING, rows, partition=f"p{number}").submission_id)
    for together in (ids[:3], ids[3:5]):
        own.submit_together(LABELING, together)
    assert len(emulator.books.batches) == 2
    for progress in own.ledger.submissions.progress("test"):
        shards = own.ledger.shards.of_submission(progress.submission.submission_id)
        assert progress.batches == count_batches_by_state(shards)
        assert progress.unbatched == count_unbatched_by_state(shards)
    every = [shard for one in ids for shard in own.ledger.shards.of_submission(one)]
    assert count_batches_by_state(every) == {ShardState.SUBMITTED: 2}
    assert count_unbatched_by_state(every) == {ShardState.PLANNED: 1}
    flying = [own.ledger.batches.count_in_flight("test", some) for some in (ids, ids[:3], ids[1:2], ids[2:4], ids[5:])]
    assert flying == [2, 1, 1, 2, 0]
    assert own.ledger.batches.count_in_flight("another", ids) == 0
    assert [own.ledger.batches.count_submissions_beside(one) for one in ids] == [2, 2, 2, 1, 1, 0]


CONTENT = "GET /v1/files/*/content"


def sent_together(engine: Engine, partitions: int) -> list[str]:
    """Send submissions of one row each in one batch; return their ids."""
    tables = (pa.table({"id": [f"r{n}"], "text": [f"Ticket {n}."]}) for n in range(partitions))
    ids = [engine.plan(definition(), rows, partition=f"p{n}").submission_id for n, rows in enumerate(tables)]
    engine.submit_together(replace(definition(), limits=Limits()), ids)
    return ids


def downloads(emulator: Emulator) -> int:
    return sum(call.path.endswith("/content") for call in emulator.books.calls)


@contextmanager
def collecting(given: Sequence[Any], ids: Sequence[str], answers: Any) -> Iterator[list[BaseProcess]]:
    """Start a process for each submission, and release all at the same moment."""
    barrier = PROCESSES.Barrier(len(ids) + 1)
    processes = [
        PROCESSES.Process(target=collect_until_settled, args=(*given, one, barrier, answers), daemon=True)
        for one in ids
    ]
    for process in processes:
        process.start()
    barrier.wait(240)
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.join()


@pytest.mark.slow
def test_eight_processes_that_collect_one_batch_at_once_download_it_once(
    ledger_url: str, emulator: Emulator, tmp_path: Path
) -> None:
    given = (ledger_url, emulator.openai_base_url, tmp_path / "payloads")
    mine, answers = engine(*given), PROCESSES.Queue()
    ids = sent_together(mine, 8)
    assert len(emulator.books.batches) == 1
    emulator.settle()
    # So slow that all others arrive while the first one downloads.
    emulator.inject(WireFault(kind="slow", route=CONTENT, seconds=2.0, times=None))
    with collecting(given, ids, answers):
        assert [answers.get(timeout=240) for _ in ids] == ["settled"] * 8
    assert downloads(emulator) == 1
    assert [mine.ledger.submissions.get(one).outcomes for one in ids] == [{"succeeded": 1}] * 8
    mine.ledger.close()


@pytest.mark.slow
def test_where_the_process_that_downloads_a_batch_is_killed_another_one_does(
    ledger_url: str, emulator: Emulator, tmp_path: Path
) -> None:
    given = (ledger_url, emulator.openai_base_url, tmp_path / "payloads")
    mine, answers = engine(*given), PROCESSES.Queue()
    ids = sent_together(mine, 3)
    emulator.settle()
    endless = WireFault(kind="stall", route=CONTENT, after_bytes=100, times=1)
    emulator.inject(endless)
    with collecting(given, ids[:1], answers) as first:
        give_up_at = time.monotonic() + 240
        while not emulator.hanging:
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        with collecting(given, ids[1:], answers):
            first[0].kill()
            assert [answers.get(timeout=240) for _ in ids[1:]] == ["settled"] * 2
    assert downloads(emulator) == 2
    mine.collect(definition(), ids[0])
    assert downloads(emulator) == 2
    assert [mine.ledger.submissions.get(one).outcomes for one in ids] == [{"succeeded": 1}] * 3
    mine.ledger.close()


def test_who_waits_too_long_for_another_download_does_it_by_itself(
    ledger_url: str, emulator: Emulator, tmp_path: Path
) -> None:
    mine = engine(ledger_url, emulator.openai_base_url, tmp_path / "payloads")
    hasty = Engine(replace(mine.deployment, download_wait_seconds=0.0))
    ids = sent_together(mine, 2)
    emulator.settle()
    carrier = mine.ledger.shards.of_batch(mine.ledger.shards.of_submission(ids[1])[0])[0]
    with mine.ledger.leases.hold(f"download:{carrier.shard_id}"):
        assert hasty.collect(definition(), ids[1]).is_settled
    assert downloads(emulator) == 1
    mine.ledger.close()


class Overtaken(Ledger):
    """Lets another process change the batch while this one waits for the download."""

    meanwhile: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self, url: str, clock: Callable[[], datetime] = utc_now) -> None:
        super().__init__(url, clock)
        self.leases = OvertakenLeases(self, clock)


class OvertakenLeases(Leases):
    def __init__(self, ledger: Overtaken, clock: Callable[[], datetime]) -> None:
        super().__init__(ledger._database, clock)
        self._ledger = ledger

    def hold(self, *names: str, seconds: float = 60, wait_seconds: float = 0) -> AbstractContextManager[Lease]:
        if names[0].startswith("download:"):
            self._ledger.meanwhile()
        return super().hold(*names, seconds=seconds, wait_seconds=wait_seconds)


def test_what_another_process_found_gone_and_collected_meanwhile_ends_likewise(
    ledger_url: str, emulator: Emulator, tmp_path: Path
) -> None:
    skipped = [timedelta()]

    def now() -> datetime:
        return datetime.now(UTC) + skipped[0]

    base = engine(ledger_url, emulator.openai_base_url, tmp_path / "payloads").deployment
    base.ledger.close()
    ledgers = [Ledger(ledger_url, clock=now), Overtaken(ledger_url, clock=now)]
    first, second = (Engine(replace(base, ledger=ledger, clock=now)) for ledger in ledgers)
    ids = sent_together(first, 2)
    emulator.settle()
    emulator.inject(WireFault(kind="status", status=404, route=CONTENT, times=None))
    for one in ids:
        with pytest.raises(TransientError, match="then they count as gone"):
            first.collect(definition(), one)
    skipped[0] = timedelta(hours=2)
    ledgers[1].meanwhile = lambda: first.collect(definition(), ids[0])
    second.collect(definition(), ids[1])
    assert [first.ledger.shards.of_submission(one)[0].cause for one in ids] == [Cause.GONE] * 2
    assert [first.ledger.shards.of_submission(one)[0].state for one in ids] == [ShardState.COLLECTED] * 2
    for ledger in ledgers:
        ledger.close()


@pytest.mark.parametrize("shared", [True, False], ids=["by several submissions", "by none"])
def test_what_another_process_restores_meanwhile_is_not_downloaded_again(
    ledger_url: str, emulator: Emulator, tmp_path: Path, shared: bool
) -> None:
    base = engine(ledger_url, emulator.openai_base_url, tmp_path / "payloads").deployment
    base.ledger.close()
    ledgers = [Ledger(ledger_url), Overtaken(ledger_url)]
    first, second = (Engine(replace(base, ledger=ledger)) for ledger in ledgers)
    ids = sent_together(first, 2 if shared else 1)
    emulator.settle()
    for one in ids:
        first.collect(definition(), one)
        [shard] = first.ledger.shards.of_submission(one)
        assert shard.raw_path
        assert shard.results_path
        for path in (shard.raw_path, shard.results_path):
            first.payloads.delete(path)
    before, waited = downloads(emulator), []

    def restore() -> None:
        waited.append(downloads(emulator))
        assert first.labels(definition(), ids[0]).labels.num_rows == 1

    ledgers[1].meanwhile = restore
    assert second.labels(definition(), ids[-1]).labels.num_rows == 1
    assert waited == [before]
    assert downloads(emulator) == before + 1
    for ledger in ledgers:
        ledger.close()
