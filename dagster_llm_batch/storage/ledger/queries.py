"""The parts of the ledger's transactions that need no ledger: lookups, refusals and sums over rows.

Statements that every submission runs are made once, here and where they are run: to make one, and to see that it is
known, takes SQLAlchemy longer than all the rest.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple

import sqlalchemy as sa

from dagster_llm_batch.errors import IllegalMoveError, LedgerError
from dagster_llm_batch.states import ENDED, MOVES, Move, ShardState
from dagster_llm_batch.storage.ledger.records import Progress, Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.schema import SHARD, SUBMISSION, from_row, to_row
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Lane

__all__ = [
    "OF_PARTITION",
    "OLDEST_FIRST",
    "StoredFile",
    "add_to_progress",
    "check_open",
    "committed_usd",
    "get_attempt",
    "get_shards",
    "get_submission",
    "get_submissions",
    "illegal_move",
    "insert_once",
    "insert_or_nothing",
    "looked_after",
    "remove",
    "stored_files",
    "unknown_shard",
]

_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")  # as the file systems of fsspec say it


class StoredFile(NamedTuple):
    """One file. `path` is relative to the store's root; `modified_at` is None where the store does not say."""

    path: str
    bytes: int
    modified_at: datetime | None


def stored_files(store: PayloadStore, folder: str) -> Iterator[StoredFile]:
    """Every file below a folder; also what a killed process left of one on a local disk (`.….tmp`)."""
    root = store._root  # noqa: SLF001 - two halves of one thing
    base = root.path.rstrip("/")
    for name, info in sorted(root.fs.find(f"{base}/{folder}", detail=True).items()):
        yield StoredFile(name.partition(f"{base}/")[2], int(info.get("size") or 0), _modified_at(info))


def remove(store: PayloadStore, file: StoredFile) -> None:
    """Remove a file that `stored_files` gave. Where it is gone already, do nothing."""
    root = store._root  # noqa: SLF001 - as above
    try:
        root.fs.rm_file(f"{root.path.rstrip('/')}/{file.path}")
    except FileNotFoundError:
        return


def _modified_at(info: Mapping[str, Any]) -> datetime | None:
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
    return None


_OVER = {*ENDED, ShardState.COLLECTED}
_ATTEMPT = ("namespace", "asset", "partition", "fingerprint", "attempt")

OLDEST_FIRST = (SUBMISSION.c.created_at, SUBMISSION.c.submission_id)

OF_PARTITION = sa.and_(*(SUBMISSION.c[name] == sa.bindparam(name) for name in ("namespace", "asset", "partition")))
"""The submissions of one partition of one asset."""

_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_SUBMISSIONS = sa.select(SUBMISSION).where(SUBMISSION.c.submission_id.in_(_IDS)).order_by(SUBMISSION.c.submission_id)
_LOCKED_SUBMISSIONS = _SUBMISSIONS.with_for_update()
_LOCKED_SHARDS = sa.select(SHARD).where(SHARD.c.shard_id.in_(_IDS)).order_by(SHARD.c.shard_id).with_for_update()


def insert_or_nothing(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any], *once: str) -> bool:
    """Insert the row where no other has the same values in `once`, a unique key; say whether it was inserted."""
    return connection.execute(_insert_or_nothing(table, once), row).rowcount > 0


@cache  # as text, which SQLite and PostgreSQL both take: SQLAlchemy compiles its own constructs for this each time
def _insert_or_nothing(table: sa.Table, once: tuple[str, ...]) -> sa.TextClause:
    names = [column.name for column in table.c]
    fields, values, key = (", ".join(some) for some in (names, [f":{name}" for name in names], once))
    text = f"INSERT INTO {table.name} ({fields}) VALUES ({values}) ON CONFLICT ({key}) DO NOTHING"  # noqa: S608  # ours
    return sa.text(text).bindparams(*(sa.bindparam(column.name, type_=column.type) for column in table.c))


def insert_once(connection: sa.Connection, submission: Submission) -> bool:
    """Insert it where its attempt is not stored yet; say whether it was inserted."""
    return insert_or_nothing(connection, SUBMISSION, to_row(submission), *_ATTEMPT)


def get_attempt(connection: sa.Connection, submission: Submission) -> Submission:
    """The one that is stored of the same attempt."""
    same = (SUBMISSION.c[name] == getattr(submission, name) for name in _ATTEMPT)
    return from_row(Submission, connection.execute(sa.select(SUBMISSION).where(*same)).mappings().one())


def looked_after(since: datetime) -> sa.ColumnElement[bool]:
    """The condition for shards that somebody was seen to look after since then; whoever plans one does."""
    return sa.func.coalesce(SHARD.c.polled_at, SHARD.c.planned_at) >= since


def get_submission(connection: sa.Connection, submission_id: str, *, lock: bool = False) -> Submission:
    """Raises LedgerError where there is none. With `lock`, nobody else changes it before the transaction ends."""
    return get_submissions(connection, [submission_id], lock=lock)[0]


def get_submissions(connection: sa.Connection, ids: Sequence[str], *, lock: bool = False) -> list[Submission]:
    """The same for several, by id."""
    query = _LOCKED_SUBMISSIONS if lock else _SUBMISSIONS
    rows = connection.execute(query, {"ids": ids}).mappings().all()
    if missing := set(ids) - {row["submission_id"] for row in rows}:
        raise LedgerError(f"The ledger has no submission {min(missing)}. `dagster-llm-batch list` names them.")
    return [from_row(Submission, row) for row in rows]


def get_shards(connection: sa.Connection, ids: Collection[str]) -> dict[str, Shard]:
    """These by id; nobody else changes them before the transaction ends. Raises LedgerError where there is none."""
    rows = connection.execute(_LOCKED_SHARDS, {"ids": list(ids)}).mappings()
    found = {row["shard_id"]: from_row(Shard, row) for row in rows}
    if missing := set(ids) - found.keys():
        raise unknown_shard(min(missing))
    return found


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
    """What one shard takes from a budget; see Ledger.spent_usd."""
    if cost_usd is not None:
        return cost_usd
    was_taken = batch_id is not None or (lane is Lane.REALTIME and sent_at is not None)
    return Decimal(0) if state in _OVER and not was_taken else estimated_usd or Decimal(0)
