"""The rows, the definition and the engine of the benchmark; and what a worker does with some partitions.

A worker may be killed anywhere: another one takes the same partitions, and goes on from what the ledger says.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import sqlalchemy as sa

from benchmarks.package import MODELS, PROMPT, labeling
from dagster_llm_batch.engine import Deployment, Engine, Labeling, Limits
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = ["MODELS", "PROMPT", "Setup", "Taken", "work"]

NAMESPACE = "scale"
SETTLE_SECONDS = 5.0
"""A batch of which nobody knows is looked for at least so long; 300 at a vendor. The mock lists what it has at once."""

_WORDS = "late cable broke after two weeks but the replacement arrived quick and the new cover fits the old box".split()
_UNSENT = (ShardState.PLANNED, ShardState.SUBMITTING)


@dataclass(frozen=True)
class Setup:
    """Where everything is, and how large. Travels to workers."""

    url: str
    ledger_url: str
    folder: str
    partitions: int
    shards: int  # of a partition
    rows: int  # of a shard

    @property
    def busy(self) -> Path:
        """A file for each worker that is at work: its name is the worker's process id."""
        return Path(self.folder) / "busy"

    @property
    def tables(self) -> Path:
        """Labels, a file for each partition."""
        return Path(self.folder) / "tables"

    @property
    def payloads(self) -> Path:
        return Path(self.folder) / "payloads"

    def key(self, partition: int) -> str:
        return f"p{partition:05d}"

    def input(self, partition: int) -> pa.Table:
        """The rows of a partition: some 100 bytes of text each. Always the same."""
        dice, count = random.Random(partition), self.shards * self.rows
        numbers = range(partition * count, (partition + 1) * count)
        texts = [" ".join(dice.choices(_WORDS, k=20)) for _ in numbers]
        return pa.table({"id": [f"r{n:08d}" for n in numbers], "row": list(numbers), "text": texts})

    def labeling(self) -> Labeling:
        return labeling("openai", limits=Limits(max_requests_per_batch=self.rows))

    def engine(self) -> Engine:
        provider = OpenAIProvider("sk-mock", base_url=f"{self.url}/v1", settle_seconds=SETTLE_SECONDS)
        return Engine(
            Deployment(
                {"openai": provider},
                Ledger(self.ledger_url),
                PayloadStore(self.payloads),
                NAMESPACE,
                lease_wait_seconds=60.0,
            )
        )


@dataclass(frozen=True)
class Taken:
    """What a process took: CPU seconds, and statements and transactions on the ledger."""

    cpu_s: float = 0.0
    reads: int = 0
    writes: int = 0
    written: int = 0  # rows of the ledger
    transactions: int = 0

    def __add__(self, other: Taken) -> Taken:
        return Taken(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def __sub__(self, other: Taken) -> Taken:
        return Taken(*(a - b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[Any, ...]:
        return (self.cpu_s, self.reads, self.writes, self.written, self.transactions)


class _Statements:
    """Counts what this process does to any database."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        sa.event.listen(sa.Engine, "after_cursor_execute", self._count)
        sa.event.listen(sa.Engine, "commit", lambda _: self.counts.update(["transactions"]))

    def _count(self, _connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().upper().startswith(("INSERT", "UPDATE", "DELETE")):
            self.counts.update(writes=1, written=max(cursor.rowcount, 0))
        else:
            self.counts.update(reads=1)

    def taken(self) -> Taken:
        names = ("reads", "writes", "written", "transactions")
        return Taken(time.process_time(), *(self.counts[name] for name in names))


@cache
def statements() -> _Statements:
    """The counts of this process, from the first call on."""
    return _Statements()


@cache
def _engine(setup: Setup) -> Engine:
    return setup.engine()


def work(setup: Setup, step: str, partitions: tuple[int, ...]) -> Taken:
    """Do a step for some partitions, "send" or "land"; say what it took."""
    counts = statements()
    note = setup.busy / str(os.getpid())
    note.touch()
    before = counts.taken()
    for partition in partitions:
        {"send": _send, "land": _land}[step](_engine(setup), setup, partition)
    note.unlink()
    return counts.taken() - before


def _send(engine: Engine, setup: Setup, partition: int) -> None:
    definition = setup.labeling()
    submission = engine.plan(definition, setup.input(partition), partition=setup.key(partition))
    status = engine.submit(definition, submission.submission_id)
    # What one that was killed was sending is looked for, and sent again only once it certainly was not.
    while any(shard.state in _UNSENT for shard in status.shards):
        time.sleep(0.5)
        status = engine.submit(definition, submission.submission_id)


def _land(engine: Engine, setup: Setup, partition: int) -> None:
    definition = setup.labeling()
    submission = engine.latest(definition.asset, setup.key(partition))
    assert submission is not None
    while not engine.advance(definition, submission.submission_id).is_settled:
        time.sleep(0.5)
    labeled = engine.labels(definition, submission.submission_id)
    rejects = labeled.rejects.select(["id", "llm_outcome"])
    rejects = rejects.add_column(1, "row", pa.nulls(len(rejects), pa.int64()))
    table = pa.concat_tables([labeled.labels.select(["id", "row", "llm_outcome"]), rejects])
    part = setup.tables / f"{setup.key(partition)}.part"
    pq.write_table(table, part)
    part.replace(part.with_suffix(".parquet"))
    engine.ledger.submissions.mark_delivered(submission.submission_id)
