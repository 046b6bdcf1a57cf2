"""Rows of the tables `submission` and `event` in a transaction of the ledger: stored once, looked up, locked.

An event is written in the transaction of its change. Otherwise a crash between the two would leave an unexplained
state, or an event of something that never happened.

Statements that every submission runs are built once, when this module is imported. SQLAlchemy takes longer to build
one, and to find its compiled text again, than for all the rest of a transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.errors import LedgerError
from dagster_llm_batch.storage.ledger import events
from dagster_llm_batch.storage.ledger.database import insert_or_nothing
from dagster_llm_batch.storage.ledger.records import Submission, SubmissionState
from dagster_llm_batch.storage.ledger.schema import EVENT, SHARD, SHARDS, SUBMISSION, TOMBSTONE, from_row, to_row

__all__ = [
    "ADOPTED",
    "IDS",
    "NEWEST_FIRST",
    "OF_PARTITION",
    "OLDEST_FIRST",
    "SHARDS_OF",
    "STATUS",
    "UNREADABLE",
    "UPDATE_SUBMISSION",
    "check_open",
    "event_row",
    "get_attempt",
    "get_audits",
    "get_reusing",
    "get_submission",
    "get_submissions",
    "get_waves_beside",
    "group_names",
    "insert_events",
    "insert_once",
    "insert_recovered",
    "rename_submissions",
    "update_submission",
]

STATUS = events.StatusChanged.kind
"""The kind of a shard's event when its batch is reported with another status word than before."""

UNREADABLE = events.Unreadable.kind
"""The kind of a shard's event when its batch has ended and the results cannot be read."""

ADOPTED = events.Adopted.kind
"""The kind of the event of a submission whose batch was sent elsewhere."""

_INSERT_EVENT = sa.insert(EVENT)
_INSERT_SUBMISSION = sa.insert(SUBMISSION)


def event_row(
    submission_id: str,
    data: events.EventData,
    before: str | None = None,
    after: str | None = None,
    shard_id: str | None = None,
) -> dict[str, Any]:
    """Return an event as a row without its time. `before` and `after` are states; an enum is stored as its value."""
    from_state, to_state = (None if state is None else str(state) for state in (before, after))
    states = {"from_state": from_state, "to_state": to_state}
    return {"submission_id": submission_id, "shard_id": shard_id, **events.event_columns(data), **states}


def insert_events(connection: sa.Connection, clock: Callable[[], datetime], *rows: Mapping[str, Any]) -> None:
    """Append events in one statement. Those without a time get the clock's time, the same for all."""
    if rows:
        now = clock()
        connection.execute(_INSERT_EVENT, [{"at": now, **row} for row in rows])


OLDEST_FIRST = (SUBMISSION.c.created_at, SUBMISSION.c.submission_id)
"""The order of submissions wherever several are returned. Ids order those that were created at the same time."""

NEWEST_FIRST = tuple(column.desc() for column in OLDEST_FIRST)
"""The same order reversed."""

OF_PARTITION = sa.and_(*(SUBMISSION.c[name] == sa.bindparam(name) for name in ("namespace", "asset", "partition")))
"""The condition for the submissions of one partition of one asset."""

_HERE = sa.select(SUBMISSION).where(OF_PARTITION).order_by(SUBMISSION.c.submission_id).with_for_update()

UPDATE_SUBMISSION = sa.update(SUBMISSION).where(SUBMISSION.c.submission_id == sa.bindparam("key"))
"""Set columns of the submission whose id is the parameter `key`."""

# The columns of the unique constraint `submission_once`. If several processes plan the same rows at once, one of them
# opens the submission. The others get its row, so nothing is sent, and paid for, twice.
_ATTEMPT = ("namespace", "asset", "partition", "fingerprint", "attempt")

# Locked in the order of ids, always: two transactions that lock the same rows in different orders wait for each other.
IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_SUBMISSIONS = sa.select(SUBMISSION).where(SUBMISSION.c.submission_id.in_(IDS)).order_by(SUBMISSION.c.submission_id)
_LOCKED_SUBMISSIONS = _SUBMISSIONS.with_for_update()


def insert_once(connection: sa.Connection, submission: Submission) -> bool:
    """Insert a submission unless its attempt is stored; return whether it was inserted."""
    return insert_or_nothing(connection, SUBMISSION, to_row(submission), *_ATTEMPT)


def insert_recovered(
    connection: sa.Connection,
    clock: Callable[[], datetime],
    submissions: Collection[Submission],
    complete: Collection[str],
) -> None:
    """Insert the submissions that the ledger lacks.

    The newest submission of a partition is open if its id is in `complete` (all its requests are known), and supersedes
    earlier ones. All others are canceled: their sent requests are collected, and a new submission asks for the rest.
    """
    for submission in sorted(submissions, key=lambda each: (each.created_at, each.submission_id)):
        row = to_row(submission)
        known = {
            each["submission_id"]: from_row(Submission, each) for each in connection.execute(_HERE, row).mappings()
        }
        if submission.submission_id in known:
            continue
        same = [each.attempt for each in known.values() if each.fingerprint == submission.fingerprint]
        is_newest = all(each.created_at < submission.created_at for each in known.values())
        is_open = is_newest and submission.submission_id in complete and known.keys() >= set(submission.reused_from)
        changed = {
            "state": SubmissionState.OPEN if is_open else SubmissionState.CANCELED,
            "attempt": max([submission.attempt, *(attempt + 1 for attempt in same)]),
            "reused_from": tuple(source for source in submission.reused_from if source in known),
            # Tombstones may be lost, too: it is unknown which of the present ones were applied to its files.
            "tombstones": None,
        }
        connection.execute(_INSERT_SUBMISSION, row | changed)
        for older in known.values():
            if is_open and older.state is SubmissionState.OPEN:
                by = events.Superseded(submission.submission_id)
                update_submission(connection, clock, older, by, state=SubmissionState.CANCELED)


def get_attempt(connection: sa.Connection, submission: Submission) -> Submission:
    """Return the stored submission of the same attempt."""
    same = (SUBMISSION.c[name] == getattr(submission, name) for name in _ATTEMPT)
    return from_row(Submission, connection.execute(sa.select(SUBMISSION).where(*same)).mappings().one())


def get_waves_beside(connection: sa.Connection, submission: Submission) -> dict[str, int]:
    """Return the numbers of rounds of the other submissions of a submission's partition, by id."""
    place = {name: getattr(submission, name) for name in ("namespace", "asset", "partition")}
    query = sa.select(SUBMISSION.c.submission_id, SUBMISSION.c.waves).where(OF_PARTITION)
    found: dict[str, int] = {row.submission_id: row.waves for row in connection.execute(query, place)}
    found.pop(submission.submission_id, None)
    return found


def get_audits(connection: sa.Connection, namespace: str, asset: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return the result of the newest audit of each partition of an asset, with its submission's manifest path."""
    columns = (SUBMISSION.c.partition, SUBMISSION.c.manifest_path, SUBMISSION.c.audit)
    query = sa.select(*columns).where(SUBMISSION.c.namespace == namespace, SUBMISSION.c.asset == asset)
    rows = connection.execute(query.where(SUBMISSION.c.audit.is_not(None)).order_by(*OLDEST_FIRST))
    return {row.partition: (row.manifest_path, row.audit) for row in rows}


def get_reusing(connection: sa.Connection, ids: Collection[str]) -> set[str]:
    """Return the ids of the newest submissions in these submissions' partitions, if they reuse answers of these."""
    reusing = set()
    for submission in get_submissions(connection, sorted(ids)):
        place = {name: getattr(submission, name) for name in ("namespace", "asset", "partition")}
        query = sa.select(SUBMISSION).where(OF_PARTITION).order_by(*NEWEST_FIRST)
        newest = from_row(Submission, connection.execute(query.limit(1), place).mappings().one())
        if submission.submission_id in newest.reused_from:
            reusing.add(newest.submission_id)
    return reusing


def get_submission(connection: sa.Connection, submission_id: str, *, lock: bool = False) -> Submission:
    """Return a submission; with `lock`, locked until the transaction ends.

    Raises LedgerError if it is missing.
    """
    return get_submissions(connection, [submission_id], lock=lock)[0]


def get_submissions(connection: sa.Connection, ids: Sequence[str], *, lock: bool = False) -> list[Submission]:
    """Return several submissions, ordered by id. See `get_submission`."""
    query = _LOCKED_SUBMISSIONS if lock else _SUBMISSIONS
    rows = connection.execute(query, {"ids": ids}).mappings().all()
    if missing := set(ids) - {row["submission_id"] for row in rows}:
        raise LedgerError(f"The ledger has no submission {min(missing)}. `dagster-llm-batch list` names them.")
    return [from_row(Submission, row) for row in rows]


def check_open(submission: Submission, wish: str) -> None:
    """Raise LedgerError, which names the `wish`, unless the submission is open."""
    if submission.state is not SubmissionState.OPEN:
        raise LedgerError(
            f"Submission {submission.submission_id} is '{submission.state.value}' and cannot {wish}; only an open one "
            "can. Nothing was changed. Open a new attempt instead."
        )


def update_submission(
    connection: sa.Connection,
    clock: Callable[[], datetime],
    before: Submission,
    data: events.EventData,
    **values: Any,
) -> Submission:
    """Set columns of a locked submission, append its event, and return the changed submission."""
    after = replace(before, **values)
    connection.execute(UPDATE_SUBMISSION, {"key": before.submission_id, **values})
    insert_events(connection, clock, event_row(before.submission_id, data, before.state, after.state))
    return after


def rename_submissions(
    connection: sa.Connection, clock: Callable[[], datetime], namespace: str, old: str, new: str
) -> tuple[list[str], list[str]]:
    """Move submissions from `old` to `new`; return the partitions that were moved, and those that were not.

    Partitions in which `new` has submissions are not moved: see `Submissions.rename_asset`. The newest submission of
    each moved partition becomes undelivered, since its labels are not materialized as `new`.
    """
    own = sa.select(SUBMISSION.c.partition).where(SUBMISSION.c.namespace == namespace, SUBMISSION.c.asset == new)
    is_old = (SUBMISSION.c.namespace == namespace) & (SUBMISSION.c.asset == old)
    query = sa.select(SUBMISSION.c.submission_id, SUBMISSION.c.partition).where(is_old).order_by(*OLDEST_FIRST)
    taken = set(connection.execute(own).scalars())
    places = {row.submission_id: row.partition for row in connection.execute(query)}
    moved = [submission_id for submission_id, partition in places.items() if partition not in taken]
    newest = {partition: submission_id for submission_id, partition in places.items()}
    for submission_id in moved:
        connection.execute(UPDATE_SUBMISSION, {"key": submission_id, "asset": new})
        if newest[places[submission_id]] == submission_id:
            connection.execute(UPDATE_SUBMISSION, {"key": submission_id, "delivered_at": None})
    if moved:
        # A row that was erased from `old` stays erased in `new`.
        columns = [column for column in TOMBSTONE.c if column is not TOMBSTONE.c.tombstone_id]
        renamed = [sa.literal(new) if column is TOMBSTONE.c.asset else column for column in columns]
        stones = sa.select(*renamed).where(TOMBSTONE.c.namespace == namespace, TOMBSTONE.c.asset == old)
        connection.execute(sa.insert(TOMBSTONE).from_select([column.name for column in columns], stones))
    renaming = events.Renamed(old, new)
    insert_events(connection, clock, *(event_row(submission_id, renaming) for submission_id in moved))
    partitions = set(places.values())
    return sorted(partitions - taken), sorted(partitions & taken)


# SQLite accepts some 32,000 parameters.
_IDS_AT_ONCE = 10_000


def group_names(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the names in groups that are small enough for one query."""
    for start in range(0, len(names), _IDS_AT_ONCE):
        yield names[start : start + _IDS_AT_ONCE]


SHARDS_OF = SHARDS.where(SHARD.c.submission_id.in_(IDS)).order_by(SHARD.c.submission_id, SHARD.c.wave, SHARD.c.number)
"""The shards of the submissions `ids`, by wave and number."""
