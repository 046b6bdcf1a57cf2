"""The parts of the ledger's transactions that need no ledger: lookups, refusals and sums over rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dagster_llm_batch.errors import IllegalMoveError, LedgerError
from dagster_llm_batch.states import ENDED, MOVES, Move, ShardState
from dagster_llm_batch.storage.records import Progress, Submission, SubmissionState
from dagster_llm_batch.storage.tables import SHARD, SUBMISSION, from_row, to_row
from dagster_llm_batch.types import Lane

__all__ = [
    "OLDEST_FIRST",
    "add_to_progress",
    "check_open",
    "committed_usd",
    "get_submission",
    "get_submissions",
    "illegal_move",
    "insert_once",
    "insert_or_nothing",
    "looked_after",
    "of_partition",
    "unknown_shard",
]

_OVER = {*ENDED, ShardState.COLLECTED}

OLDEST_FIRST = (SUBMISSION.c.created_at, SUBMISSION.c.submission_id)


def insert_or_nothing(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any], once: Sequence[str]) -> bool:
    """Insert the row where no other has the same values in `once`, a unique key; say whether it was inserted."""
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    statement = insert(table).values(**row).on_conflict_do_nothing(index_elements=list(once))
    return connection.execute(statement).rowcount > 0


def insert_once(connection: sa.Connection, submission: Submission) -> bool:
    """Insert it where its attempt is not stored yet; say whether it was inserted."""
    once = ("namespace", "asset", "partition", "fingerprint", "attempt")
    return insert_or_nothing(connection, SUBMISSION, to_row(submission), once)


def of_partition(namespace: str, asset: str, partition: str) -> sa.ColumnElement[bool]:
    """The condition for the submissions of one partition of one asset."""
    columns = SUBMISSION.c
    return (columns.namespace == namespace) & (columns.asset == asset) & (columns.partition == partition)


def looked_after(since: datetime) -> sa.ColumnElement[bool]:
    """The condition for shards that somebody was seen to look after since then; whoever plans one does."""
    return sa.func.coalesce(SHARD.c.polled_at, SHARD.c.planned_at) >= since


def get_submission(connection: sa.Connection, submission_id: str, *, lock: bool = False) -> Submission:
    """Raises LedgerError where there is none. With `lock`, nobody else changes it before the transaction ends."""
    return get_submissions(connection, [submission_id], lock=lock)[0]


def get_submissions(connection: sa.Connection, ids: Sequence[str], *, lock: bool = False) -> list[Submission]:
    """The same for several, by id."""
    query = sa.select(SUBMISSION).where(SUBMISSION.c.submission_id.in_(ids)).order_by(SUBMISSION.c.submission_id)
    rows = connection.execute(query.with_for_update() if lock else query).mappings().all()
    if missing := set(ids) - {row["submission_id"] for row in rows}:
        raise LedgerError(f"The ledger has no submission {min(missing)}. `dagster-llm-batch list` names them.")
    return [from_row(Submission, row) for row in rows]


def check_open(submission: Submission, wish: str) -> None:
    """Raises LedgerError where the submission is not open."""
    if submission.state is not SubmissionState.OPEN:
        raise LedgerError(
            f"Submission {submission.submission_id} is '{submission.state.value}' and cannot {wish}; only an open one "
            "can. Nothing was changed. Open a new attempt instead."
        )


def unknown_shard(shard_id: str) -> LedgerError:
    """The error for a shard id that the ledger does not have."""
    return LedgerError(
        f"The ledger has no shard {shard_id}. Nothing was changed. `dagster-llm-batch show` names those that there are."
    )


def illegal_move(shard_id: str, state: ShardState, move: Move) -> IllegalMoveError:
    """The error for a move that the table does not have."""
    allowed = ", ".join(sorted(source.value for source in MOVES[move][0]))
    return IllegalMoveError(
        f"Shard {shard_id} is '{state.value}' and cannot take the move '{move.value}', allowed from: {allowed}. "
        "Nothing was changed. Read the shard again: another process may have moved it."
    )


def add_to_progress(known: Progress | None, row: Mapping[Any, Any]) -> Progress:
    """`known` with one row more: the counts of one submission's shards in one state."""
    if known is None:
        submission = from_row(Submission, row)
        known = Progress(submission=submission, states={}, total=0, done=0, failed=0, oldest_submitted_at=None)
    state: ShardState | None = row["shard_state"]
    if state is None:  # a submission without shards
        return known
    return replace(
        known,
        states={**known.states, state: int(row["shards"])},
        total=known.total + int(row["total"] or 0),
        done=known.done + int(row["total" if state in _OVER else "done"] or 0),
        failed=known.failed + int(row["failed"] or 0),
        oldest_submitted_at=row["oldest_submitted_at"] if state is ShardState.SUBMITTED else known.oldest_submitted_at,
    )


def committed_usd(
    state: ShardState,
    lane: Lane,
    batch_id: str | None,
    sent_at: datetime | None,
    estimated_usd: Decimal | None,
    cost_usd: Decimal | None,
) -> Decimal:
    """What one shard takes from a budget; see Ledger.spent."""
    if cost_usd is not None:
        return cost_usd
    is_over = state in ENDED or state is ShardState.COLLECTED
    was_taken = batch_id is not None or (lane is Lane.REALTIME and sent_at is not None)
    return Decimal(0) if is_over and not was_taken else estimated_usd or Decimal(0)
