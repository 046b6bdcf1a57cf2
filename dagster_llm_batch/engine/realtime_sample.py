"""Real-time answers to a sample of rows: the requests of a batch, as submissions under another asset's name.

The other name separates them in the ledger: they neither reuse the batch's answers nor replace its submissions.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dagster_llm_batch.definition.labeling import Labeling, Realtime
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.loop.status import Status
from dagster_llm_batch.states import ShardState

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["answer_now", "in_real_time", "marked"]

# Columns of rows cannot have this name: check_columns refuses it.
_NOW = "llm_asked_in_real_time"


def in_real_time(labeling: Labeling, asset: str, realtime: Realtime | None = None, **changes: Any) -> Labeling:
    """Return the labeling under the name `asset`, which sends `marked` rows to its first model, in real time only.

    `realtime` replaces the settings of the labeling. No columns of the rows are kept, so quotes are not located. What
    the tier "flex" turns away is asked in the standard tier: a batch would not answer it now.
    """
    how = replace(realtime or labeling.realtime, urgent=_NOW, deadline=None, otherwise="standard")
    resend = replace(labeling.resend, fallback=(), reuse=None)
    return replace(labeling, asset=asset, keep=(), evidence=None, realtime=how, resend=resend, **changes)


def marked(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows with the mark that `in_real_time` reads."""
    return rows.append_column(_NOW, pa.repeat(pa.scalar(value=True), rows.num_rows))


def answer_now(engine: Engine, labeling: Labeling, submission_id: str) -> Status:
    """Advance until the submission is settled. Raises TransientError if it does not settle; answers are kept."""
    status = engine.status(submission_id)
    tries = labeling.resend.max_waves + 1
    while tries and not status.is_settled:
        before, status = status, engine.advance(labeling, submission_id)
        # Within its limit, it may need many steps.
        tries -= status.states[ShardState.COLLECTED.value] <= before.states[ShardState.COLLECTED.value]
    if not status.is_settled:
        where = f"{labeling.asset} {status.submission.partition}".strip()
        waiting = [shard for shard in status.shards if shard.state is ShardState.PLANNED]
        reasons = (f" {shard.reason}." for shard in waiting if shard.reason)
        raise TransientError(
            f"{where}: not all of it was answered now.{next(reasons, '')} What came is kept; start it again."
        )
    return status
