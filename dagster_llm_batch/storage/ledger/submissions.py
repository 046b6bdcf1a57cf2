"""Rows of the tables `submission` and `event` in a transaction of the ledger: stored once, looked up, locked.

An event is written in the transaction of the change that it tells of. Otherwise a crash between the two would leave a
state that nobody can explain, or an event of something that never happened.

Statements that every submission runs are built once, when this module is imported: to build one, and to find its
compiled text again, takes SQLAlchemy longer than all the rest of a transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cache
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.errors import LedgerError
from dagster_llm_batch.storage.ledger import events
from dagster_llm_batch.storage.ledger.database import Database, insert_or_nothing
from dagster_llm_batch.storage.ledger.records import Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.schema import EVENT, SHARD, SUBMISSION, TOMBSTONE, from_row, to_row
from dagster_llm_batch.types import BatchStatus, Cause, Lane, Span

__all__ = [
    "ADOPTED",
    "NEWEST_FIRST",
    "OF_PARTITION",
    "OLDEST_FIRST",
    "RECOVERED",
    "SHARDS_OF",
    "STATUS",
    "UNREADABLE",
    "UPDATE_SUBMISSION",
    "HistoryQueries",
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
"""The kind of the event of a shard whose batch was reported with another status word than before."""

RECOVERED = events.Recovered.kind
"""The kind of the event of a submission that was recovered, or of which sendings were, from their receipts."""

UNREADABLE = events.Unreadable.kind
"""The kind of the event of a shard whose batch has ended, and whose results cannot be read."""

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
    """Return an event as a row without its time. `before` and `after` are states; of an enum, its value is stored."""
    from_state, to_state = (None if state is None else str(state) for state in (before, after))
    states = {"from_state": from_state, "to_state": to_state}
    return {"submission_id": submission_id, "shard_id": shard_id, **events.event_columns(data), **states}


def insert_events(connection: sa.Connection, clock: Callable[[], datetime], *rows: Mapping[str, Any]) -> None:
    """Append events in one statement, at the clock's time: the same for all of them."""
    if rows:
        now = clock()
        connection.execute(_INSERT_EVENT, [{"at": now, **row} for row in rows])


OLDEST_FIRST = (SUBMISSION.c.created_at, SUBMISSION.c.submission_id)
"""The order of submissions wherever several are returned. The id decides between those of one instant."""

NEWEST_FIRST = tuple(column.desc() for column in OLDEST_FIRST)
"""The same order from its end."""

OF_PARTITION = sa.and_(*(SUBMISSION.c[name] == sa.bindparam(name) for name in ("namespace", "asset", "partition")))
"""The condition for the submissions of one partition of one asset."""

_HERE = sa.select(SUBMISSION).where(OF_PARTITION).order_by(SUBMISSION.c.submission_id).with_for_update()

UPDATE_SUBMISSION = sa.update(SUBMISSION).where(SUBMISSION.c.submission_id == sa.bindparam("key"))
"""Set columns of the submission whose id is the parameter `key`."""

# The columns of the unique constraint `submission_once`. It decides which of several processes that plan the same rows
# at once opens the submission: the others get its row, so nothing is sent, and paid for, twice.
_ATTEMPT = ("namespace", "asset", "partition", "fingerprint", "attempt")

# Locked in the order of ids, always: two transactions that lock the same rows in different orders wait for each other.
_IDS: sa.BindParameter[Any] = sa.bindparam("ids", expanding=True)
_SUBMISSIONS = sa.select(SUBMISSION).where(SUBMISSION.c.submission_id.in_(_IDS)).order_by(SUBMISSION.c.submission_id)
_LOCKED_SUBMISSIONS = _SUBMISSIONS.with_for_update()


def insert_once(connection: sa.Connection, submission: Submission) -> bool:
    """Insert a submission where its attempt is not stored yet; return whether it was inserted."""
    return insert_or_nothing(connection, SUBMISSION, to_row(submission), *_ATTEMPT)


def insert_recovered(
    connection: sa.Connection,
    clock: Callable[[], datetime],
    submissions: Collection[Submission],
    complete: Collection[str],
) -> None:
    """Insert those of these submissions that the ledger lacks.

    The newest of its partition is open where its id is in `complete` (all that it asks for is known), and supersedes
    those before. Any other is canceled: what of it was sent is collected, and a new submission asks for the rest.
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
            # Tombstones may be lost, too: which of the present ones its files were held against, nobody knows.
            "tombstones": None,
        }
        connection.execute(_INSERT_SUBMISSION, row | changed)
        for older in known.values():
            if is_open and older.state is SubmissionState.OPEN:
                by = events.Superseded(submission.submission_id)
                update_submission(connection, clock, older, by, state=SubmissionState.CANCELED)


def get_attempt(connection: sa.Connection, submission: Submission) -> Submission:
    """Return the submission that is stored of the same attempt."""
    same = (SUBMISSION.c[name] == getattr(submission, name) for name in _ATTEMPT)
    return from_row(Submission, connection.execute(sa.select(SUBMISSION).where(*same)).mappings().one())


def get_waves_beside(connection: sa.Connection, submission: Submission) -> dict[str, int]:
    """Return the waves of the other submissions of a submission's partition, by id."""
    place = {name: getattr(submission, name) for name in ("namespace", "asset", "partition")}
    query = sa.select(SUBMISSION.c.submission_id, SUBMISSION.c.waves).where(OF_PARTITION)
    found: dict[str, int] = {row.submission_id: row.waves for row in connection.execute(query, place)}
    found.pop(submission.submission_id, None)
    return found


def get_audits(connection: sa.Connection, namespace: str, asset: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
    """Return what the newest audit of each partition of an asset found, and the path of its submission's manifest."""
    columns = (SUBMISSION.c.partition, SUBMISSION.c.manifest_path, SUBMISSION.c.audit)
    query = sa.select(*columns).where(SUBMISSION.c.namespace == namespace, SUBMISSION.c.asset == asset)
    rows = connection.execute(query.where(SUBMISSION.c.audit.is_not(None)).order_by(*OLDEST_FIRST))
    return {row.partition: (row.manifest_path, row.audit) for row in rows}


def get_reusing(connection: sa.Connection, ids: Collection[str]) -> set[str]:
    """Return the ids of the newest submissions of these submissions' partitions, where they reuse these' answers."""
    reusing = set()
    for submission in get_submissions(connection, sorted(ids)):
        place = {name: getattr(submission, name) for name in ("namespace", "asset", "partition")}
        query = sa.select(SUBMISSION).where(OF_PARTITION).order_by(*NEWEST_FIRST)
        newest = from_row(Submission, connection.execute(query.limit(1), place).mappings().one())
        if submission.submission_id in newest.reused_from:
            reusing.add(newest.submission_id)
    return reusing


def get_submission(connection: sa.Connection, submission_id: str, *, lock: bool = False) -> Submission:
    """Return a submission; with `lock`, nobody else changes it before the transaction ends.

    Raises LedgerError where there is none.
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
    """Raise LedgerError, which names the `wish`, where the submission is not open."""
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
    """Set columns of a locked submission, append its event, and return the submission as it is then."""
    after = replace(before, **values)
    connection.execute(UPDATE_SUBMISSION, {"key": before.submission_id, **values})
    insert_events(connection, clock, event_row(before.submission_id, data, before.state, after.state))
    return after


def rename_submissions(
    connection: sa.Connection, clock: Callable[[], datetime], namespace: str, old: str, new: str
) -> tuple[list[str], list[str]]:
    """Give the submissions of `old` to `new`; return the partitions that were given, and those that were not.

    Those in which `new` has submissions are not: see `Ledger.rename_asset`. The newest submission of each that was
    given is undelivered again, since its labels have not landed as `new`.
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
        # Who was erased as `old` stays so as `new`.
        columns = [column for column in TOMBSTONE.c if column is not TOMBSTONE.c.tombstone_id]
        renamed = [sa.literal(new) if column is TOMBSTONE.c.asset else column for column in columns]
        stones = sa.select(*renamed).where(TOMBSTONE.c.namespace == namespace, TOMBSTONE.c.asset == old)
        connection.execute(sa.insert(TOMBSTONE).from_select([column.name for column in columns], stones))
    renaming = events.Renamed(old, new)
    insert_events(connection, clock, *(event_row(submission_id, renaming) for submission_id in moved))
    partitions = set(places.values())
    return sorted(partitions - taken), sorted(partitions & taken)


# SQLite takes some 32,000 parameters.
_IDS_AT_ONCE = 10_000


def group_names(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the names in groups that one query can name."""
    for start in range(0, len(names), _IDS_AT_ONCE):
        yield names[start : start + _IDS_AT_ONCE]


SHARDS_OF = (
    sa.select(SHARD)
    .where(SHARD.c.submission_id.in_(_IDS))
    .order_by(SHARD.c.submission_id, SHARD.c.wave, SHARD.c.number)
)
"""The shards of the submissions `ids`, by wave and number."""

_OWN = SUBMISSION.alias("own")
_NEWER = sa.select(_OWN.c.submission_id.label("older"), SUBMISSION.c.submission_id).where(
    _OWN.c.submission_id.in_(_IDS),
    *(SUBMISSION.c[name] == _OWN.c[name] for name in ("namespace", "asset", "partition")),
    sa.tuple_(*OLDEST_FIRST) > sa.tuple_(*(_OWN.c[column.name] for column in OLDEST_FIRST)),
)
_HAVING_EVENT = (
    sa.select(EVENT.c.submission_id).where(
        EVENT.c.submission_id.in_(_IDS), EVENT.c.kind.in_(sa.bindparam("kinds", expanding=True))
    )
).distinct()
_PRUNED = sa.select(SUBMISSION.c.submission_id).where(
    SUBMISSION.c.submission_id.in_(_IDS), SUBMISSION.c.pruned_at.is_not(None)
)
_LANDED_OVER = sa.select(SUBMISSION.c.submission_id).where(
    SUBMISSION.c.submission_id.in_(_IDS), SUBMISSION.c.landed_over_at.is_not(None)
)
_UNSETTLED = sa.select(SUBMISSION.c.submission_id).where(
    SUBMISSION.c.submission_id.in_(_IDS), SUBMISSION.c.settled_at.is_(None)
)

_ENDED_BY_ITSELF = sa.and_(
    SHARD.c.ended_at.is_not(None),
    SHARD.c.cause.is_(None) & (SHARD.c.status.is_(None) | (SHARD.c.status != BatchStatus.FAILED)),
)
# What was sent elsewhere began at another time, and what was not taken never did.
_HAS_BEGUN = SHARD.c.sent_at.is_not(None) & (
    SHARD.c.cause.is_(None) | SHARD.c.cause.not_in((Cause.ADOPTED, Cause.NOT_TAKEN))
)
# Built once, since every plan asks these: to build one takes SQLAlchemy longer than to run it.
_BATCH_SPANS = (
    sa.select(SHARD.c.sent_at, SHARD.c.ended_at, _ENDED_BY_ITSELF, SHARD.c.requests)
    .where(*(SHARD.c[name] == sa.bindparam(name) for name in ("provider", "account", "model", "lane")))
    .where(_HAS_BEGUN, SHARD.c.carrier.is_(None))
    .order_by(SHARD.c.sent_at.desc(), SHARD.c.shard_id)
    .limit(sa.bindparam("most_rows"))
)
_BILLED = (
    sa.select(SUBMISSION)
    .where(*(SUBMISSION.c[name] == sa.bindparam(name) for name in ("namespace", "provider", "model")))
    .where(SUBMISSION.c.asset.in_(sa.bindparam("assets", expanding=True)), SUBMISSION.c.billed.is_not(None))
    .order_by(*NEWEST_FIRST)
    .limit(sa.bindparam("most_rows"))
)


@cache
def _submission_spans(*, of_asset: bool, from_deadline: bool) -> sa.Select[Any]:
    """See HistoryQueries.submission_spans. The parameters: `namespace`, `most_rows`, and `asset` where it is of one."""
    began = SUBMISSION.c.deadline_at if from_deadline else SUBMISSION.c.created_at
    of_it = SHARD.c.submission_id == SUBMISSION.c.submission_id
    last_end = sa.select(sa.func.max(SHARD.c.ended_at)).where(of_it).scalar_subquery()
    stops = sa.select(sa.func.max(EVENT.c.at)).where(
        EVENT.c.submission_id == SUBMISSION.c.submission_id, EVENT.c.to_state == SubmissionState.CANCELED.value
    )
    was_stopped = SUBMISSION.c.state == SubmissionState.CANCELED
    is_settled = SUBMISSION.c.settled_at.is_not(None)
    until = sa.case((was_stopped, stops.scalar_subquery()), (is_settled, last_end), else_=sa.null())
    query = sa.select(
        began,
        sa.type_coerce(until, SUBMISSION.c.created_at.type),
        sa.and_(~was_stopped, is_settled),
        SUBMISSION.c.requests - SUBMISSION.c.reused,
        SUBMISSION.c.p50_end_at,
        SUBMISSION.c.p90_end_at,
    ).where(
        SUBMISSION.c.namespace == sa.bindparam("namespace"),
        SUBMISSION.c.requests > SUBMISSION.c.reused,
        began.is_not(None),
    )
    if of_asset:
        query = query.where(SUBMISSION.c.asset == sa.bindparam("asset"))
    return query.order_by(*NEWEST_FIRST).limit(sa.bindparam("most_rows"))


class HistoryQueries:
    """Many submissions at once; and what a dataset's were like: what they cost, how long they and batches took
    (core/durations.py), and what audits found.
    """

    _database: Database

    def shards_of(self, submission_ids: Collection[str]) -> dict[str, list[Shard]]:
        """Return the shards of each of these submissions, by wave and number."""
        shards: dict[str, list[Shard]] = {submission_id: [] for submission_id in submission_ids}
        for row in self._rows_of(SHARDS_OF, submission_ids):
            shards[row["submission_id"]].append(from_row(Shard, row))
        return shards

    def having_event(self, submission_ids: Collection[str], *kinds: str) -> set[str]:
        """Return those of these submissions that have an event of one of these kinds."""
        return {row["submission_id"] for row in self._rows_of(_HAVING_EVENT, submission_ids, kinds=kinds)}

    def pruned(self, submission_ids: Collection[str]) -> set[str]:
        """Return those of these submissions whose files were removed."""
        return {row["submission_id"] for row in self._rows_of(_PRUNED, submission_ids)}

    def landed_over(self, submission_ids: Collection[str]) -> set[str]:
        """Return those of these submissions whose labels older ones may have replaced."""
        return {row["submission_id"] for row in self._rows_of(_LANDED_OVER, submission_ids)}

    def newer_submissions(self, submission_ids: Collection[str]) -> dict[str, set[str]]:
        """Return the ids of the submissions of the same partition that were planned after each of these, if any."""
        newer: defaultdict[str, set[str]] = defaultdict(set)
        for row in self._rows_of(_NEWER, submission_ids):
            newer[row["older"]].add(row["submission_id"])
        return dict(newer)

    def unsettled(self, submission_ids: Collection[str]) -> set[str]:
        """Return those of these submissions that are not settled."""
        return {row["submission_id"] for row in self._rows_of(_UNSETTLED, submission_ids)}

    def _rows_of(
        self, query: sa.Select[Any], submission_ids: Collection[str], **values: Any
    ) -> Iterator[sa.RowMapping]:
        for ids in group_names(sorted(set(submission_ids))):
            with self._database.read() as connection:
                rows = connection.execute(query, {"ids": ids, **values})
                yield from rows.mappings().all()

    def audits(self, namespace: str, asset: str) -> dict[str, tuple[str, Mapping[str, Any]]]:
        """Return what the newest audit of each partition found, and the path of its manifest; see core/audit.py."""
        with self._database.read() as connection:
            return get_audits(connection, namespace, asset)

    def billed_submissions(self, namespace: str, assets: Collection[str], model: str, limit: int) -> list[Submission]:
        """Return submissions of these assets that asked this provider's model and were billed, newest first.

        `model` is the provider, a slash, and its model.
        """
        provider, _, name = model.partition("/")
        wanted = {"namespace": namespace, "assets": list(assets), "provider": provider, "model": name}
        with self._database.read() as connection:
            rows = connection.execute(_BILLED, {**wanted, "most_rows": limit}).mappings()
            return [from_row(Submission, row) for row in rows]

    def submission_spans(
        self, namespace: str, asset: str | None, limit: int, *, from_deadline: bool = False
    ) -> list[Span]:
        """Return how long the newest submissions that sent something took from plan to end, newest first.

        One has ended when it is settled: at the time when the last of its batches ended. One that was canceled was
        stopped. `asset`: None is any. With `from_deadline` those that had one, and each from then on: what had ended by
        then has an end before it.
        """
        query = _submission_spans(of_asset=asset is not None, from_deadline=from_deadline)
        return self._spans(query, namespace=namespace, most_rows=limit, **({} if asset is None else {"asset": asset}))

    def batch_spans(self, provider: str, account: str, model: str, lane: Lane, limit: int) -> list[Span]:
        """Return how long the newest batches of a provider, account and model took from sending to end, newest first.

        Those of any namespace, since the vendor knows none. In real time a shard is what is a batch elsewhere. What did
        not end by itself was stopped: somebody canceled it, or waits for it no longer, or the vendor failed it.
        """
        return self._spans(_BATCH_SPANS, provider=provider, account=account, model=model, lane=lane, most_rows=limit)

    def batch_sizes(
        self, provider: str, account: str, model: str, since: datetime, limit: int
    ) -> list[tuple[datetime, int, bool]]:
        """Return when batches of a model that ended by themselves were sent, their requests, and whether they expired.

        Those of any namespace, newest first, of as many shards as `limit` says.
        """
        ended = (BatchStatus.ENDED, BatchStatus.EXPIRED)
        batch = sa.func.coalesce(SHARD.c.carrier, SHARD.c.shard_id)
        query = sa.select(batch, SHARD.c.sent_at, SHARD.c.requests + SHARD.c.padding, SHARD.c.status)
        query = query.where(SHARD.c.provider == provider, SHARD.c.account == account, SHARD.c.model == model)
        query = query.where(SHARD.c.lane == Lane.BATCH, SHARD.c.sent_at >= since)
        query = query.where(SHARD.c.status.in_(ended), SHARD.c.cause.is_(None))
        batches: dict[str, tuple[datetime, int, bool]] = {}
        with self._database.read() as connection:
            for name, sent_at, requests, status in connection.execute(
                query.order_by(SHARD.c.sent_at.desc(), SHARD.c.shard_id).limit(limit)
            ):
                _, before, has_expired = batches.get(name, (sent_at, 0, False))
                batches[name] = (sent_at, before + requests, has_expired or status == BatchStatus.EXPIRED)
        return list(batches.values())

    def queue_attempts(
        self, provider: str, account: str, model: str, since: datetime, limit: int
    ) -> tuple[list[tuple[datetime, datetime | None, int]], list[tuple[datetime, int]]]:
        """Return what a model's queue took, and what it had no room for: of any namespace, the newest `limit` of each.

        Of each batch that was taken: when it was sent and ended, and its input tokens. Of each refusal: when, and the
        tokens that were in flight then, with the batch that was refused.
        """
        taken = (BatchStatus.RUNNING, BatchStatus.ENDED, BatchStatus.EXPIRED)
        own = (SHARD.c.provider == provider, SHARD.c.account == account, SHARD.c.model == model)
        batch = sa.func.coalesce(SHARD.c.carrier, SHARD.c.shard_id)
        query = sa.select(SHARD.c.sent_at, SHARD.c.ended_at, SHARD.c.tokens, batch).where(*own)
        query = query.where(SHARD.c.lane == Lane.BATCH, SHARD.c.sent_at >= since, SHARD.c.batch_id.is_not(None))
        query = query.where(SHARD.c.status.in_(taken)).order_by(SHARD.c.sent_at.desc(), SHARD.c.shard_id).limit(limit)
        refusals = sa.select(SHARD.c.refused_at, SHARD.c.refused_tokens).distinct()
        refusals = refusals.where(*own, SHARD.c.refused_at >= since).order_by(SHARD.c.refused_at.desc()).limit(limit)
        batches: dict[str, tuple[datetime, datetime | None, int]] = {}
        with self._database.read() as connection:
            for sent_at, ended_at, tokens, name in connection.execute(query):
                batches[name] = (sent_at, ended_at, tokens + (batches[name][2] if name in batches else 0))
            return list(batches.values()), [(row[0], row[1]) for row in connection.execute(refusals)]

    def retries(
        self, namespace: str, asset: str, configuration: str, since: datetime, limit: int
    ) -> list[tuple[str, datetime, int, int, Mapping[str, int] | None, int | None]]:
        """Return what was asked again in settled submissions of a dataset with this configuration, newest first.

        Of each shard: its submission, when that was planned, and how many requests it asked; the wave, and what its
        requests were asked again for; how many of them got a label. The last is None where the batch did not end by
        itself, or older code has collected it.
        """
        by_itself = (SHARD.c.status == BatchStatus.ENDED) & SHARD.c.cause.is_(None)
        answered = sa.case((by_itself, SHARD.c.answered), else_=sa.null())
        query = sa.select(
            SUBMISSION.c.submission_id,
            SUBMISSION.c.created_at,
            SUBMISSION.c.requests - SUBMISSION.c.reused,
            SHARD.c.wave,
            SHARD.c.asked_again,
            answered,
        ).join(SHARD, SHARD.c.submission_id == SUBMISSION.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, SUBMISSION.c.asset == asset, SHARD.c.wave > 1)
        query = query.where(SUBMISSION.c.config_fingerprint == configuration, SUBMISSION.c.created_at >= since)
        query = query.where(SUBMISSION.c.settled_at.is_not(None))
        newest = (*NEWEST_FIRST, SHARD.c.wave, SHARD.c.number)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(*newest).limit(limit))
            return [(row[0], row[1], row[2], row[3], row[4], row[5]) for row in rows]

    def _spans(self, query: sa.Select[Any], **values: Any) -> list[Span]:
        with self._database.read() as connection:
            return [
                Span(began, until, bool(has_ended and until is not None), *rest)
                for began, until, has_ended, *rest in connection.execute(query, values)
            ]
