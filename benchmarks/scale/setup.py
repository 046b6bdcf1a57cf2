"""The rows, the definition and the engine of the benchmark, and a worker's steps for some partitions.

A worker may be killed at any point. Another worker takes its partitions and continues from the ledger's state.
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
"""Minimum seconds for the search of a batch in doubt; 300 at a vendor. The mock lists new batches immediately."""

_WORDS = "late cable broke after two weeks but the replacement arrived quick and the new cover fits the old box".split()
_UNSENT = (ShardState.PLANNED, ShardState.SUBMITTING)


@dataclass(frozen=True)
class Setup:
    """The places and sizes of the benchmark. It is sent to workers."""

    url: str
    ledger_url: str
    folder: str
    partitions: int
    shards: int  # of a partition
    rows: int  # of a shard

    @property
    def busy(self) -> Path:
        """The folder with a file for each working worker, which is named by the worker's process id."""
        return Path(self.folder) / "busy"

    @property
    def tables(self) -> Path:
        """The folder of the labels, with a file for each partition."""
        return Path(self.folder) / "tables"

    @property
    def payloads(self) -> Path:
        return Path(self.folder) / "payloads"

    def key(self, partition: int) -> str:
        return f"p{partition:05d}"

    def input(self, partition: int) -> pa.Table:
        """Return the rows of a partition, with some 100 bytes of text each. They are the same in each call."""
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
    """The cost of a process: CPU seconds, and statements and transactions on the ledger."""

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
    """Counts this process's statements and transactions on any database."""

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
    """Return the counts of this process, which begin with the first call."""
    return _Statements()


@cache
def _engine(setup: Setup) -> Engine:
    return setup.engine()


def work(setup: Setup, step: str, partitions: tuple[int, ...]) -> Taken:
    """Do a step for some partitions, "send" or "land"; return its cost."""
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
    # If a killed worker was sending a batch, the engine looks for it, and only sends it again if it is surely absent.
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
