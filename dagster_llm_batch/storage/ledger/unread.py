"""Batches that have ended, and whose results could not be read: `Ledger.unread`.

Such a shard has a hold with the first error. `waits_until` is the time of the next try.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from dagster_llm_batch.states import ENDED, HoldReason, ShardState, Transition
from dagster_llm_batch.storage.ledger.apart import OnUnreadable, read_apart
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.events import NotThere, Unreadable
from dagster_llm_batch.storage.ledger.holds import get_holds, hold_shards
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.ledger.schema import EVENT, SHARD, SHARDS, SUBMISSION, UPDATE_SHARD, from_row, in_state
from dagster_llm_batch.storage.ledger.shard_rows import IS_UNREAD, get_shards
from dagster_llm_batch.storage.ledger.submission_rows import event_row, get_submissions, insert_events
from dagster_llm_batch.types import NOT_AWAITED, Cause

__all__ = ["UnreadResults", "UnreadShard"]


class UnreadShard(NamedTuple):
    """A shard whose batch has ended, and whose results could not be read.

    Attributes:
            submission: Its submission.
            shard: It waits until its `waits_until` for the next try.
            since: When its results could not be read for the first time.
            why: The provider's words at that time.
    """

    submission: Submission
    shard: Shard
    since: datetime
    why: str


class UnreadResults:
    """The shards whose results could not be read."""

    def __init__(self, database: Database, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._clock = clock

    def note(self, shard_ids: Collection[str], why: str) -> dict[str, datetime]:
        """Record that the results of ended shards cannot be read; return since when, by shard id.

        Shards in other states are left out.
        """
        now = self._clock()
        with self._database.write() as connection:
            shards = [shard for shard in get_shards(connection, shard_ids).values() if shard.state in ENDED]
            known = self._noted(connection, shards, now)
            if fresh := [shard for shard in shards if shard.shard_id not in known]:
                hold_shards(connection, fresh, HoldReason.UNREADABLE, now, why)
                each = (event_row(s.submission_id, Unreadable(why), shard_id=s.shard_id) for s in fresh)
                insert_events(connection, self._clock, *each)
        return {shard.shard_id: known[shard.shard_id][0] if shard.shard_id in known else now for shard in shards}

    def note_absence(self, shard: Shard, why: str) -> datetime:
        """Record that a provider has no results of a shard, by its own report; return since when."""
        now, reason = self._clock(), HoldReason.NO_RESULTS
        with self._database.write() as connection:
            get_shards(connection, [shard.shard_id])
            known = get_holds(connection, [shard.shard_id], reason).get(shard.shard_id)
            if known is not None and known.since <= now:
                return known.since
            hold_shards(connection, [shard], reason, now, why)
            data = event_row(shard.submission_id, NotThere(why), shard_id=shard.shard_id)
            insert_events(connection, self._clock, data)
        return now

    def wait(self, shard_ids: Collection[str], until: datetime) -> None:
        """Record when to ask for these shards' results next, or when to decide whether to abandon a running one.

        Writes no event, since this happens again and again.
        """
        waiting_in = {*ENDED, ShardState.COLLECTED, ShardState.SUBMITTED}
        with self._database.write() as connection:
            waiting = [shard for shard in get_shards(connection, shard_ids).values() if shard.state in waiting_in]
            if waiting:
                rows: list[dict[str, Any]] = [{"key": shard.shard_id, "waits_until": until} for shard in waiting]
                connection.execute(UPDATE_SHARD, rows)

    def find(
        self, namespace: str, unreadable: OnUnreadable | None = None, submission_id: str | None = None
    ) -> list[UnreadShard]:
        """Return the ended shards of undelivered submissions whose results could not be read, the oldest first.

        A shard with an unreadable row or event goes to `unreadable`, if given. `submission_id` restricts it to one.
        """

        def choose(query: sa.Select[Any]) -> sa.Select[Any]:
            query = query.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
            # Delivered submissions wait for nothing, and this condition has an index.
            query = query.where(SUBMISSION.c.namespace == namespace, SUBMISSION.c.delivered_at.is_(None))
            query = query.where(in_state(*ENDED), SHARD.c.waits_until.is_not(None))
            if submission_id is not None:
                query = query.where(SUBMISSION.c.submission_id == submission_id)
            # The next run collects abandoned shards.
            return query.where(SHARD.c.cause.is_(None) | SHARD.c.cause.not_in(NOT_AWAITED))

        def read(ids: Sequence[str] | None) -> list[UnreadShard]:
            query = choose(SHARDS) if ids is None else choose(SHARDS).where(SHARD.c.shard_id.in_(ids))
            with self._database.read() as connection:
                shards = [from_row(Shard, row) for row in connection.execute(query).mappings()]
                if not shards:
                    return []
                noted = self._noted(connection, shards, self._clock())
                of = sorted({shard.submission_id for shard in shards})
                submissions = {each.submission_id: each for each in get_submissions(connection, of)}
            return [
                UnreadShard(submissions[shard.submission_id], shard, *noted[shard.shard_id])
                for shard in shards
                if shard.shard_id in noted
            ]

        found = read_apart(self._database, read, choose(sa.select(SHARD.c.shard_id)), unreadable)
        return sorted(found, key=lambda unread: (unread.since, unread.shard.shard_id))

    def noted(self, shards: Sequence[Shard]) -> set[str]:
        """Return the ids of the shards whose results could not be read."""
        with self._database.read() as connection:
            return set(self._noted(connection, [shard for shard in shards if shard.state in ENDED], self._clock()))

    def given_up_before(self, shards: Sequence[Shard]) -> set[str]:
        """Return the ids of the shards that were abandoned before, whatever their state is now."""
        given_up = EVENT.c.kind == Transition.GIVEN_UP.value
        with self._database.read() as connection:
            return set(connection.execute(_of(shards, EVENT.c.shard_id).where(given_up)).scalars())

    def given_up(self, namespace: str, ended_since: datetime) -> list[Shard]:
        """Return the shards that were abandoned because their results could not be read, and that may be read yet."""
        query = SHARDS.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, IS_UNREAD, SHARD.c.ended_at >= ended_since)
        # Repeats a condition, so that the index of causes that wait for a person can be used.
        query = query.where(SHARD.c.cause == Cause.GIVEN_UP).order_by(SHARD.c.shard_id)
        with self._database.read() as connection:
            return [from_row(Shard, row) for row in connection.execute(query).mappings()]

    @staticmethod
    def _noted(connection: sa.Connection, shards: Sequence[Shard], now: datetime) -> dict[str, tuple[datetime, str]]:
        """Return since when the results of these shards could not be read, and why, by shard id.

        A wrong clock wrote a time in the future, which is ignored.
        """
        if not shards:
            return {}
        holds = get_holds(connection, [shard.shard_id for shard in shards], HoldReason.UNREADABLE)
        return {key: (hold.since, hold.words or "") for key, hold in holds.items() if hold.since <= now}


def _of(shards: Sequence[Shard], *columns: sa.ColumnElement[Any]) -> sa.Select[Any]:
    """Return the query for events of these shards."""
    return sa.select(*columns).where(
        EVENT.c.submission_id.in_({shard.submission_id for shard in shards}),
        EVENT.c.shard_id.in_([shard.shard_id for shard in shards]),
    )
