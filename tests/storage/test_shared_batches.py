"""Partitions that share one batch are judged by all of it, on both ledgers: few rows each, but one vendor's failure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, FileFault, RowFault

LABELING = Labeling(asset="labels", model="openai/gpt-4o", key="id", prompt=Prompt(user="{{ text }}"))
ALTERED = FileFault(kind="renamed", times=None)


class Partitions:
    """Submissions of a few rows each, which are sent together, and collected one after another."""

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
        """From rows to settled submissions, by the steps of the assets of Dagster."""
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
        return [self.engine.ledger.submission(submission_id) for submission_id in ids]

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
        assert reason.startswith("20 of 20 requests of a batch that wave 1 shares with other partitions got no reply")
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
