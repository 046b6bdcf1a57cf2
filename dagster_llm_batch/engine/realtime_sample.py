"""All rows of a labeling asked in real time, by the same requests, as submissions of another asset's name."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dagster_llm_batch.engine.labeling import Labeling
from dagster_llm_batch.engine.status import Status
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.states import ShardState

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["answer_now", "in_real_time", "marked"]

_NOW = "llm_asked_in_real_time"  # no column of rows has such a name


def in_real_time(labeling: Labeling, asset: str, **changes: Any) -> Labeling:
    """The labeling of `asset` whose rows, once they are `marked`, go to no other lane and no other model."""
    return replace(labeling, asset=asset, keep=(), urgent=_NOW, fallback=(), deadline=None, **changes)


def marked(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Rows that are asked now."""
    return rows.append_column(_NOW, pa.repeat(pa.scalar(value=True), rows.num_rows))


def answer_now(engine: Engine, labeling: Labeling, submission_id: str) -> Status:
    """Ask until all is settled. Raises TransientError where it does not settle; what came is kept, and paid once."""
    status = engine.status(submission_id)
    for _ in range(labeling.retry.max_waves + 1):
        if status.is_settled:
            return status
        status = engine.advance(labeling, submission_id)
    if not status.is_settled:
        where = f"{labeling.asset} {status.submission.partition}".strip()
        why = next((f" {one.reason}." for one in status.shards if one.state is ShardState.PLANNED and one.reason), "")
        raise TransientError(f"{where}: not all of it was answered now.{why} What came is kept; start it again.")
    return status
