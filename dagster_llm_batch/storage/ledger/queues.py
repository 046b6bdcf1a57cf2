"""Queues of providers, and the shards that wait for space there. Uses sums: 10,000 batches may be in flight."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from dagster_llm_batch.states import IN_FLIGHT, Reason, ShardState
from dagster_llm_batch.storage.ledger.apart import OnUnreadable, read_apart
from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import (
    Queued,
    QueueHolder,
    QueueOccupancy,
    QueuePlace,
    Shard,
    SubmissionState,
)
from dagster_llm_batch.storage.ledger.schema import IS_FIRST, MAY_QUEUE, SHARD, SHARDS, SUBMISSION, from_row, in_state
from dagster_llm_batch.storage.ledger.shard_rows import LACKS_MONEY, is_due, looked_after, set_waits, update_shards
from dagster_llm_batch.types import Lane

__all__ = ["QueueLines", "Queues"]

_IS_OPEN = SUBMISSION.c.state == SubmissionState.OPEN

# A batch has the place of its oldest shard. With another shard's place, two batches could each wait for a part of the
# other, and sending would stop for ever.
_PLACE = (SHARD.c.planned_at, SHARD.c.shard_id)

# A batch is counted by its first shard: counting distinct ids takes the database three times as long.
_COUNTED = (sa.case((IS_FIRST, 1), else_=0), SHARD.c.requests, SHARD.c.tokens)

_SENT_AT = sa.func.coalesce(SHARD.c.submitted_at, SHARD.c.sent_at, SHARD.c.planned_at)

# Messages name this many shards of a queue's holder.
_NAMED = 3


class Queues(Member):
    """Queues of providers, and the shards that wait for space there. Uses sums: 10,000 batches may be in flight."""

    def keep_places(self, namespace: str, assets: Sequence[str], *, now: datetime, unless_since: datetime) -> None:
        """Record that a living process looks after planned shards of these assets: they keep their places in queues.

        A planned shard that is not looked after, for example of a removed asset, must not block those behind it. Writes
        only if the last record is older than `unless_since`, so that most ticks of a sensor only read.
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
        """Record that planned shards exceed a spending limit.

        Until `take_places_back`, they do not block other shards in their queue. They wait without a time. Idempotent.
        """
        with self._database.write() as connection:
            set_waits(connection, shard_ids, None, Reason.LACKS_MONEY, LACKS_MONEY)

    def take_places_back(self, shard_ids: Sequence[str]) -> None:
        """Give planned shards their places back. Shards that wait for another reason are unchanged. Idempotent."""
        with self._database.write() as connection:
            set_waits(connection, shard_ids, None, None, None, where=Reason.LACKS_MONEY)

    def count_ahead(
        self,
        namespace: str,
        batch: Sequence[Shard],
        *,
        occupancy: QueueOccupancy,
        longest_pause: timedelta,
        model: str | None = None,
    ) -> Queued:
        """Count the batches before this one: in its provider's and account's queue, and waiting in this namespace.

        `model` restricts it to one model. `occupancy` decides which sent shards count, in all namespaces of the
        ledger. A waiting shard counts if it is looked after (`keep_places`), its pause is over, and it does not lack
        money. A pause lasts `longest_pause` at most.
        """
        first, now = batch[0], occupancy.now
        ids = [each.shard_id for each in batch]
        waits = _is_planned(namespace) & _is_older(ids) & _holds_place(occupancy)
        query = (
            sa.select(*(sa.func.coalesce(sa.func.sum(column), 0) for column in _COUNTED))
            .where(*_of_queue(first, model), _is_in_queue(occupancy) | waits, is_due(now, longest_pause))
            .where(SHARD.c.shard_id.not_in(ids))
        )
        with self._database.read() as connection:
            row = connection.execute(query).one()
        return Queued(*map(int, row))

    def places_before(
        self,
        namespace: str,
        shard: Shard,
        *,
        occupancy: QueueOccupancy,
        longest_pause: timedelta,
        model: str | None = None,
    ) -> list[QueuePlace]:
        """Return the shards that `count_ahead` counts before this planned one, by submission; those in flight first."""
        waits = _is_planned(namespace) & _is_older([shard.shard_id]) & _holds_place(occupancy)
        is_planned = in_state(ShardState.PLANNED)
        of = (SUBMISSION.c.submission_id, SUBMISSION.c.namespace, SUBMISSION.c.asset, SUBMISSION.c.partition)
        query = (
            sa.select(*of, is_planned.label("is_planned"), sa.func.sum(SHARD.c.requests).label("requests"))
            .join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
            .where(*_of_queue(shard, model), _is_in_queue(occupancy) | waits, is_due(occupancy.now, longest_pause))
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
        self,
        namespace: str,
        shard: Shard,
        *,
        occupancy: QueueOccupancy,
        longest_pause: timedelta,
        model: str | None = None,
    ) -> dict[str, Queued]:
        """Return the result of `count_ahead` for each planned shard of this namespace in `shard`'s queue, by shard_id.

        In the order of the line. Takes two statements, however many shards wait.
        """
        due = is_due(occupancy.now, longest_pause)
        inside = sa.select(*(sa.func.coalesce(sa.func.sum(column), 0) for column in _COUNTED)).where(
            *_of_queue(shard, model), _is_in_queue(occupancy), due
        )
        waiting = (
            sa.select(SHARD.c.shard_id, *_COUNTED, (_holds_place(occupancy) & due).label("holds_place"))
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
        """Return the one of these planned shards of one submission that comes first in its queue.

        The order does not follow from ids and rounds alone: a shard recovered from its receipt may have another place.
        """
        query = sa.select(SHARD.c.shard_id).where(
            SHARD.c.submission_id == shards[0].submission_id, in_state(ShardState.PLANNED)
        )
        by_id = {shard.shard_id: shard for shard in shards}
        with self._database.read() as connection:
            ids = connection.execute(query.order_by(SHARD.c.planned_at, SHARD.c.shard_id)).scalars()
            # If all were sent meanwhile, they do not wait for each other.
            return next((by_id[shard_id] for shard_id in ids if shard_id in by_id), shards[0])

    def waited_for(self, namespace: str) -> list[Shard]:
        """Return one of the shards that wait to be sent in a batch for each of their providers, accounts and models."""
        same = (SHARD.c.provider, SHARD.c.account, SHARD.c.model)
        join = SUBMISSION.c.submission_id == SHARD.c.submission_id
        first = sa.select(sa.func.min(SHARD.c.shard_id)).join(SUBMISSION, join)
        first = first.where(_may_go(namespace), SHARD.c.lane == Lane.BATCH).group_by(*same)
        with self._database.read() as connection:
            rows = connection.execute(SHARDS.where(SHARD.c.shard_id.in_(first)).order_by(*same)).mappings()
            return [from_row(Shard, row) for row in rows]

    def find_holders(
        self, namespace: str, shard: Shard, occupancy: QueueOccupancy, model: str | None
    ) -> list[QueueHolder]:
        """Return neglected batches of other namespaces in the queue of this shard's provider and account.

        `model` restricts it to one model. By namespace; the one with the oldest batches comes first.
        """
        asked_at = sa.func.coalesce(SHARD.c.polled_at, _SENT_AT).label("asked_at")
        query = (
            sa.select(SUBMISSION.c.namespace, SHARD.c.shard_id, _SENT_AT.label("sent_at"), asked_at)
            .join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
            .where(SHARD.c.provider == shard.provider, SHARD.c.account == shard.account, SHARD.c.lane == Lane.BATCH)
            .where(_is_in_queue(occupancy), IS_FIRST, SUBMISSION.c.namespace != namespace)
            .order_by(_SENT_AT, SHARD.c.shard_id)
        )
        with self._database.read() as connection:
            rows = connection.execute(query if model is None else query.where(SHARD.c.model == model)).all()
        held: dict[str, list[Any]] = {}
        for row in rows:
            # A place that was kept for a planned shard does not count after its sending.
            if max(row.sent_at, row.asked_at) < occupancy.seen_since:
                held.setdefault(row.namespace, []).append(row)
        return [
            QueueHolder(
                namespace=name,
                batches=len(own),
                shard_ids=[row.shard_id for row in own[:_NAMED]],
                sent_at=own[0].sent_at,
                leaves_at=occupancy.leaves_at(own[-1].sent_at),
            )
            for name, own in held.items()
        ]

    def tokens_beside(
        self, shards: Sequence[Shard], occupancy: QueueOccupancy, *, since: datetime | None = None
    ) -> int:
        """Return the estimated input tokens in flight besides these shards of one model, in all namespaces.

        `occupancy` decides which shards count. With `since`, add those in flight at any time since then.
        """
        flying = _is_in_queue(occupancy)
        if since is not None:
            flying |= (SHARD.c.ended_at >= since) & SHARD.c.batch_id.is_not(None)
        query = sa.select(sa.func.coalesce(sa.func.sum(SHARD.c.tokens), 0))
        query = query.where(*_of_model(shards[0]), flying, SHARD.c.shard_id.not_in([each.shard_id for each in shards]))
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def waiting_for_room(self, namespace: str, unreadable: OnUnreadable | None = None) -> list[Shard]:
        """Return the planned shards of open submissions that found their provider's queue full.

        Those that have waited longest come first. An unreadable row goes to `unreadable`, if given.
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

    def without_room(self, namespace: str, shard: Shard, occupancy: QueueOccupancy) -> list[Shard]:
        """Return the unfinished shards of this one's model that found the provider's queue full.

        Those that are in flight now are from all namespaces. Planned ones are from this namespace, if they are looked
        after (see `count_ahead`).
        """
        query = SHARDS.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        waits = _may_go(namespace) & looked_after(occupancy.seen_since, occupancy.now)
        query = query.where(*_of_model(shard), SHARD.c.no_room_at.is_not(None))
        with self._database.read() as connection:
            rows = connection.execute(query.where(in_state(*IN_FLIGHT) | waits)).mappings()
            return [from_row(Shard, row) for row in rows]


class QueueLines:
    """The waiting shards of queues at one moment. Each queue is read once, to show many submissions without sending.

    Gives the same results as Queues, for the time at which a queue was read.
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
        occupancy: QueueOccupancy,
        longest_pause: timedelta,
        model: str | None = None,
    ) -> Queued:
        """See Queues.count_ahead. Queries again for a batch of several shards, or one that was planned since."""
        asked: Any = {"occupancy": occupancy, "longest_pause": longest_pause, "model": model}
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
    # Not a join: with the sent shards, it would read all submissions that ever existed.
    going = sa.select(SUBMISSION.c.submission_id).where(_IS_OPEN, SUBMISSION.c.namespace == namespace)
    return in_state(ShardState.PLANNED) & SHARD.c.submission_id.in_(going)


def _holds_place(occupancy: QueueOccupancy) -> sa.ColumnElement[bool]:
    """Return the condition for planned shards that block others: they are looked after and do not lack money."""
    return SHARD.c.reason_kind.is_distinct_from(Reason.LACKS_MONEY) & looked_after(occupancy.seen_since, occupancy.now)


def _is_in_queue(occupancy: QueueOccupancy) -> sa.ColumnElement[bool]:
    """Return the condition for shards in flight that hold a place in their provider's queue."""
    is_asked_about = SHARD.c.polled_at.is_not(None) & looked_after(occupancy.seen_since, occupancy.now)
    return in_state(*IN_FLIGHT) & (is_asked_about | (occupancy.sent_since <= _SENT_AT))


def _of_model(shard: Shard) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions for shards that share this one's queue, by provider, account and model."""
    same = tuple(SHARD.c[name] == getattr(shard, name) for name in ("provider", "account", "model"))
    return (*same, SHARD.c.lane == Lane.BATCH)


def _may_go(namespace: str) -> sa.ColumnElement[bool]:
    """Return the condition for planned shards that are yet to be sent, in a query that joins their submissions."""
    return in_state(ShardState.PLANNED) & _IS_OPEN & (SUBMISSION.c.namespace == namespace)
