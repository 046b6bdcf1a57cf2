"""Queues of providers, and what waits for room there. Sums, since ten thousand batches may be in flight."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.states import IN_FLIGHT, Reason, ShardState
from dagster_llm_batch.storage.ledger.apart import OnUnreadable, read_apart
from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import Presence, Queued, QueueHolder, QueuePlace, Shard, SubmissionState
from dagster_llm_batch.storage.ledger.schema import IS_FIRST, MAY_QUEUE, SHARD, SHARDS, SUBMISSION, from_row, in_state
from dagster_llm_batch.storage.ledger.shard_rows import LACKS_MONEY, is_due, looked_after, set_waits, update_shards
from dagster_llm_batch.types import Lane

__all__ = ["QueueLines", "Queues"]

_IS_OPEN = SUBMISSION.c.state == SubmissionState.OPEN

# A batch has the place of its oldest shard. With the place of any other, two batches could each wait for a part
# of the other, and nothing would be sent any more.
_PLACE = (SHARD.c.planned_at, SHARD.c.shard_id)

# A batch is counted by its first shard. To count different ids takes the database three times as long.
_COUNTED = (sa.case((IS_FIRST, 1), else_=0), SHARD.c.requests, SHARD.c.tokens)

_SENT_AT = sa.func.coalesce(SHARD.c.submitted_at, SHARD.c.sent_at, SHARD.c.planned_at)

# Of a queue's holders so many shards are named to a person.
_NAMED = 3


class Queues(Member):
    """Queues of providers, and what waits for room there. Sums, since ten thousand batches may be in flight."""

    def keep_places(self, namespace: str, assets: Sequence[str], *, now: datetime, unless_since: datetime) -> None:
        """Record that a living process looks after planned shards of these assets: they keep their places in queues.

        A planned shard that nobody looks after, as one of an asset that was removed, must not hold up those behind it.
        Nothing is written where this was recorded since `unless_since`, so that most ticks of a sensor only read.
        """
        submission_ids = sa.select(SUBMISSION.c.submission_id).where(
            SUBMISSION.c.namespace == namespace,
            SUBMISSION.c.asset.in_(assets),
            SUBMISSION.c.state == SubmissionState.OPEN,
        )
        is_planned = in_state(ShardState.PLANNED) & ~looked_after(unless_since, now)
        is_due = is_planned & SHARD.c.submission_id.in_(submission_ids)
        with self._database.read() as connection:
            if connection.execute(sa.select(SHARD.c.shard_id).where(is_due).limit(1)).first() is None:
                return
        with self._database.write() as connection:
            update_shards(connection, is_due, looked_at=now)

    def give_up_places(self, shard_ids: Sequence[str]) -> None:
        """Record that no limit of money has room for planned shards: in their queue they are before nothing, until
        `take_places_back`. They wait for no time. Idempotent.
        """
        with self._database.write() as connection:
            set_waits(connection, shard_ids, None, Reason.LACKS_MONEY, LACKS_MONEY)

    def take_places_back(self, shard_ids: Sequence[str]) -> None:
        """Give planned shards the places that they gave up. What waits for another reason stays so. Idempotent."""
        with self._database.write() as connection:
            set_waits(connection, shard_ids, None, None, None, where=Reason.LACKS_MONEY)

    def count_ahead(
        self,
        namespace: str,
        batch: Sequence[Shard],
        *,
        presence: Presence,
        longest_pause: timedelta,
        model: str | None = None,
    ) -> Queued:
        """Sum what is in the queue of this batch's provider and account, and in this namespace waits before it.

        Only of `model`, or of all. Of what was sent, from any namespace of this ledger, `presence` says what counts;
        what waits counts while somebody looks after it (`keep_places`), its pause is over, and it does not lack
        money. No pause is longer than `longest_pause`.
        """
        first, now = batch[0], presence.now
        ids = [each.shard_id for each in batch]
        waits = _is_planned(namespace) & _is_older(ids) & _holds_place(presence)
        query = (
            sa.select(*(sa.func.coalesce(sa.func.sum(column), 0) for column in _COUNTED))
            .where(*_of_queue(first, model), _is_in_queue(presence) | waits, is_due(now, longest_pause))
            .where(SHARD.c.shard_id.not_in(ids))
        )
        with self._database.read() as connection:
            row = connection.execute(query).one()
        return Queued(*map(int, row))

    def places_before(
        self, namespace: str, shard: Shard, *, presence: Presence, longest_pause: timedelta, model: str | None = None
    ) -> list[QueuePlace]:
        """Return by submission what `count_ahead` counts before this planned shard: what is in flight comes first."""
        waits = _is_planned(namespace) & _is_older([shard.shard_id]) & _holds_place(presence)
        is_planned = in_state(ShardState.PLANNED)
        of = (SUBMISSION.c.submission_id, SUBMISSION.c.namespace, SUBMISSION.c.asset, SUBMISSION.c.partition)
        query = (
            sa.select(*of, is_planned.label("is_planned"), sa.func.sum(SHARD.c.requests).label("requests"))
            .join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
            .where(*_of_queue(shard, model), _is_in_queue(presence) | waits, is_due(presence.now, longest_pause))
            .where(SHARD.c.shard_id != shard.shard_id)
            .group_by(*of, is_planned)
            .order_by(is_planned, sa.func.min(SHARD.c.planned_at), SUBMISSION.c.submission_id)
        )
        with self._database.read() as connection:
            return [
                QueuePlace(submission_id, namespace, asset, partition, bool(planned), int(requests))
                for submission_id, namespace, asset, partition, planned, requests in connection.execute(query)
            ]

    def read_line(
        self, namespace: str, shard: Shard, *, presence: Presence, longest_pause: timedelta, model: str | None = None
    ) -> dict[str, Queued]:
        """Return what `count_ahead` says of each planned shard of this namespace in the queue of `shard`, by shard_id.

        In the order of the line. Takes two statements, however many wait.
        """
        due = is_due(presence.now, longest_pause)
        inside = sa.select(*(sa.func.coalesce(sa.func.sum(column), 0) for column in _COUNTED)).where(
            *_of_queue(shard, model), _is_in_queue(presence), due
        )
        waiting = (
            sa.select(SHARD.c.shard_id, *_COUNTED, (_holds_place(presence) & due).label("holds_place"))
            .where(*_of_queue(shard, model), _is_planned(namespace))
            .order_by(*_PLACE)
        )
        line: dict[str, Queued] = {}
        with self._database.read() as connection:
            ahead = Queued(*map(int, connection.execute(inside).one()))
            for shard_id, *counts, holds_place in connection.execute(waiting):
                line[shard_id] = ahead
                if holds_place:
                    ahead = Queued(*map(sum, zip(ahead, counts, strict=True)))
        return line

    def first_of(self, shards: Sequence[Shard]) -> Shard:
        """Return which of these planned shards of one submission comes before the others in its queue.

        That is no matter of their ids and waves alone: what was recovered by its receipt may have another place.
        """
        query = sa.select(SHARD.c.shard_id).where(
            SHARD.c.submission_id == shards[0].submission_id, in_state(ShardState.PLANNED)
        )
        by_id = {shard.shard_id: shard for shard in shards}
        with self._database.read() as connection:
            ids = connection.execute(query.order_by(SHARD.c.planned_at, SHARD.c.shard_id)).scalars()
            # Where all were sent meanwhile, none of them waits for another.
            return next((by_id[shard_id] for shard_id in ids if shard_id in by_id), shards[0])

    def waited_for(self, namespace: str) -> list[Shard]:
        """Return one of the shards that wait to be sent in a batch for each provider, account and model of theirs."""
        same = (SHARD.c.provider, SHARD.c.account, SHARD.c.model)
        join = SUBMISSION.c.submission_id == SHARD.c.submission_id
        first = sa.select(sa.func.min(SHARD.c.shard_id)).join(SUBMISSION, join)
        first = first.where(_may_go(namespace), SHARD.c.lane == Lane.BATCH).group_by(*same)
        with self._database.read() as connection:
            rows = connection.execute(SHARDS.where(SHARD.c.shard_id.in_(first)).order_by(*same)).mappings()
            return [from_row(Shard, row) for row in rows]

    def find_holders(self, namespace: str, shard: Shard, presence: Presence, model: str | None) -> list[QueueHolder]:
        """Return what of other namespaces is in the queue of this shard's provider and account, and not looked after.

        Only of `model`, or of all. By namespace; whose batches have been there longest comes first.
        """
        asked_at = sa.func.coalesce(SHARD.c.polled_at, _SENT_AT).label("asked_at")
        query = (
            sa.select(SUBMISSION.c.namespace, SHARD.c.shard_id, _SENT_AT.label("sent_at"), asked_at)
            .join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
            .where(SHARD.c.provider == shard.provider, SHARD.c.account == shard.account, SHARD.c.lane == Lane.BATCH)
            .where(_is_in_queue(presence), IS_FIRST, SUBMISSION.c.namespace != namespace)
            .order_by(_SENT_AT, SHARD.c.shard_id)
        )
        with self._database.read() as connection:
            rows = connection.execute(query if model is None else query.where(SHARD.c.model == model)).all()
        held: dict[str, list[Any]] = {}
        for row in rows:
            # A place that was kept for it while it was planned says nothing of the time since.
            if max(row.sent_at, row.asked_at) < presence.seen_since:
                held.setdefault(row.namespace, []).append(row)
        return [
            QueueHolder(
                namespace=name,
                batches=len(own),
                shard_ids=[row.shard_id for row in own[:_NAMED]],
                sent_at=own[0].sent_at,
                leaves_at=presence.leaves_at(own[-1].sent_at),
            )
            for name, own in held.items()
        ]

    def tokens_beside(self, shards: Sequence[Shard], presence: Presence, *, since: datetime | None = None) -> int:
        """Return the input tokens, by estimate, in flight beside these shards of one model, from any namespace.

        `presence` says what counts. With `since`, what was in flight at any time since then.
        """
        flying = _is_in_queue(presence)
        if since is not None:
            flying |= (SHARD.c.ended_at >= since) & SHARD.c.batch_id.is_not(None)
        query = sa.select(sa.func.coalesce(sa.func.sum(SHARD.c.tokens), 0))
        query = query.where(*_of_model(shards[0]), flying, SHARD.c.shard_id.not_in([each.shard_id for each in shards]))
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def waiting_for_room(self, namespace: str, unreadable: OnUnreadable | None = None) -> list[Shard]:
        """Return the planned shards of open submissions that their provider's queue had no room for.

        Those that have waited longest come first. A row that cannot be read goes to `unreadable`, if that is given.
        """

        def choose(query: sa.Select[Any]) -> sa.Select[Any]:
            query = query.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
            query = query.where(_may_go(namespace), SHARD.c.no_room_at.is_not(None))
            return query.order_by(SHARD.c.no_room_at, SHARD.c.shard_id)

        def read(ids: Sequence[str] | None) -> list[Shard]:
            query = choose(SHARDS) if ids is None else choose(SHARDS).where(SHARD.c.shard_id.in_(ids))
            with self._database.read() as connection:
                return [from_row(Shard, row) for row in connection.execute(query).mappings()]

        return read_apart(self._database, read, choose(sa.select(SHARD.c.shard_id)), unreadable)

    def without_room(self, namespace: str, shard: Shard, presence: Presence) -> list[Shard]:
        """Return the unfinished shards of this one's model that the provider's queue had no room for.

        In flight again, of any namespace; planned, of this one, while somebody looks after them (see `count_ahead`).
        """
        query = SHARDS.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        waits = _may_go(namespace) & looked_after(presence.seen_since, presence.now)
        query = query.where(*_of_model(shard), SHARD.c.no_room_at.is_not(None))
        with self._database.read() as connection:
            rows = connection.execute(query.where(in_state(*IN_FLIGHT) | waits)).mappings()
            return [from_row(Shard, row) for row in rows]


class QueueLines:
    """What waits for queues at one moment: each queue is read once, for a look at many submissions that sends nothing.

    Answers as Queues do, of what was there when a queue was read.
    """

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        # By provider, account and model.
        self._lines: dict[tuple[str, str, str | None], dict[str, Queued]] = {}

    def count_ahead(
        self,
        namespace: str,
        batch: Sequence[Shard],
        *,
        presence: Presence,
        longest_pause: timedelta,
        model: str | None = None,
    ) -> Queued:
        """See Queues.count_ahead. A batch of several shards, or one that was planned since, is asked about."""
        asked: Any = {"presence": presence, "longest_pause": longest_pause, "model": model}
        first, queue = batch[0], (batch[0].provider, batch[0].account, model)
        if queue not in self._lines:
            self._lines[queue] = self._queues.read_line(namespace, first, **asked)
        ahead = self._lines[queue].get(first.shard_id) if len(batch) == 1 else None
        return self._queues.count_ahead(namespace, batch, **asked) if ahead is None else ahead


def _of_queue(shard: Shard, model: str | None) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions for shards in the queue of this one's provider and account, of one model or of all."""
    same = (SHARD.c.provider == shard.provider, SHARD.c.account == shard.account, SHARD.c.lane == Lane.BATCH)
    of = (*same, MAY_QUEUE)
    return of if model is None else (*of, SHARD.c.model == model)


def _is_older(shard_ids: Sequence[str]) -> sa.ColumnElement[bool]:
    """Return the condition for shards whose place is before the first of these."""
    of_first = (
        sa.select(column).where(SHARD.c.shard_id.in_(shard_ids)).order_by(*_PLACE).limit(1) for column in _PLACE
    )
    return sa.tuple_(*_PLACE) < sa.tuple_(*(column.scalar_subquery() for column in of_first))


def _is_planned(namespace: str) -> sa.ColumnElement[bool]:
    """Return the condition for planned shards of open submissions of a namespace."""
    # No join: with what was sent, all submissions that there ever were would be read.
    going = sa.select(SUBMISSION.c.submission_id).where(_IS_OPEN, SUBMISSION.c.namespace == namespace)
    return in_state(ShardState.PLANNED) & SHARD.c.submission_id.in_(going)


def _holds_place(presence: Presence) -> sa.ColumnElement[bool]:
    """Return the condition for planned shards that others wait behind: looked after, and not without money."""
    return SHARD.c.reason_kind.is_distinct_from(Reason.LACKS_MONEY) & looked_after(presence.seen_since, presence.now)


def _is_in_queue(presence: Presence) -> sa.ColumnElement[bool]:
    """Return the condition for shards in flight that hold a place in their provider's queue."""
    is_asked_about = SHARD.c.polled_at.is_not(None) & looked_after(presence.seen_since, presence.now)
    return in_state(*IN_FLIGHT) & (is_asked_about | (presence.sent_since <= _SENT_AT))


def _of_model(shard: Shard) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions for shards that share this one's queue: of its provider, account and model."""
    same = tuple(SHARD.c[name] == getattr(shard, name) for name in ("provider", "account", "model"))
    return (*same, SHARD.c.lane == Lane.BATCH)


def _may_go(namespace: str) -> sa.ColumnElement[bool]:
    """Return the condition for planned shards that are still to be sent, of a query that joins their submissions."""
    return in_state(ShardState.PLANNED) & _IS_OPEN & (SUBMISSION.c.namespace == namespace)
