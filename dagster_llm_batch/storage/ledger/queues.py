"""What is in providers' queues, and what waits for room there. Sums, since ten thousand batches may be in flight."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import sqlalchemy as sa

from dagster_llm_batch.states import IN_FLIGHT, ShardState
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.records import Queued, Shard, SubmissionState
from dagster_llm_batch.storage.ledger.schema import SHARD, SUBMISSION, from_row
from dagster_llm_batch.storage.ledger.shards import is_due, looked_after
from dagster_llm_batch.types import Lane

__all__ = ["QueueQueries", "may_go"]

_IS_OPEN = SUBMISSION.c.state == SubmissionState.OPEN


class QueueQueries:
    """What a Ledger can be asked about queues."""

    _database: Database

    def queue_ahead(
        self,
        namespace: str,
        batch: Sequence[Shard],
        *,
        seen: tuple[datetime, datetime],
        longest_pause: timedelta,
        model: str | None = None,
    ) -> Queued:
        """Sum what is in the queue of this batch's provider and account, and in this namespace waits before it.

        Only of `model`, or of all. Whatever was sent counts, from any namespace of this ledger; what waits counts while
        somebody looks after it: did so between the two times of `seen` (`Ledger.keep_places`), and its pause is over.
        No pause is longer than `longest_pause`.
        """
        first, (_, now) = batch[0], seen
        planned_at = sa.select(SHARD.c.planned_at).where(SHARD.c.shard_id == first.shard_id).scalar_subquery()
        older = sa.tuple_(SHARD.c.planned_at, SHARD.c.shard_id) < sa.tuple_(planned_at, first.shard_id)
        # No join: with what was sent, all submissions that there ever were would be read.
        going = sa.select(SUBMISSION.c.submission_id).where(_IS_OPEN, SUBMISSION.c.namespace == namespace)
        waits = (SHARD.c.state == ShardState.PLANNED) & SHARD.c.submission_id.in_(going) & older & looked_after(*seen)
        # A batch is counted by its carrier. To count different ids takes the database three times as long.
        counted = (sa.case((SHARD.c.carrier.is_(None), 1), else_=0), SHARD.c.requests, SHARD.c.tokens)
        query = (
            sa.select(*(sa.func.coalesce(sa.func.sum(column), 0) for column in counted))
            .where(SHARD.c.provider == first.provider, SHARD.c.account == first.account, SHARD.c.lane == Lane.BATCH)
            .where(SHARD.c.state.in_(sorted(IN_FLIGHT)) | waits, is_due(now, longest_pause))
            .where(SHARD.c.shard_id.not_in([each.shard_id for each in batch]))
        )
        with self._database.read() as connection:
            row = connection.execute(query if model is None else query.where(SHARD.c.model == model)).one()
        return Queued(*map(int, row))

    def first_in_queue(self, shards: Sequence[Shard]) -> Shard:
        """Return which of these planned shards of one submission comes before the others in its queue.

        That is no matter of their ids and waves alone: what was recovered by its receipt may have another place.
        """
        query = sa.select(SHARD.c.shard_id).where(
            SHARD.c.submission_id == shards[0].submission_id, SHARD.c.state == ShardState.PLANNED
        )
        by_id = {shard.shard_id: shard for shard in shards}
        with self._database.read() as connection:
            ids = connection.execute(query.order_by(SHARD.c.planned_at, SHARD.c.shard_id)).scalars()
            # Where all were sent meanwhile, none of them waits for another.
            return next((by_id[shard_id] for shard_id in ids if shard_id in by_id), shards[0])

    def tokens_beside(self, shards: Sequence[Shard], *, since: datetime | None = None) -> int:
        """Return the input tokens, by estimate, in flight beside these shards of one model, from any namespace.

        With `since`, what was in flight at any time since then.
        """
        flying: sa.ColumnElement[bool] = SHARD.c.state.in_(sorted(IN_FLIGHT))
        if since is not None:
            flying |= (SHARD.c.ended_at >= since) & SHARD.c.batch_id.is_not(None)
        query = sa.select(sa.func.coalesce(sa.func.sum(SHARD.c.tokens), 0))
        query = query.where(*_of_model(shards[0]), flying, SHARD.c.shard_id.not_in([each.shard_id for each in shards]))
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def shards_without_room(self, namespace: str, shard: Shard, *, seen: tuple[datetime, datetime]) -> list[Shard]:
        """Return the unfinished shards of this one's model that the provider's queue had no room for.

        In flight again, of any namespace; planned, of this one, while somebody looks after them (see `queue_ahead`).
        """
        query = sa.select(SHARD).join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        waits = may_go(namespace) & looked_after(*seen)
        query = query.where(*_of_model(shard), SHARD.c.no_room_at.is_not(None))
        with self._database.read() as connection:
            rows = connection.execute(query.where(SHARD.c.state.in_(sorted(IN_FLIGHT)) | waits)).mappings()
            return [from_row(Shard, row) for row in rows]


def _of_model(shard: Shard) -> tuple[sa.ColumnElement[bool], ...]:
    """Return the conditions for shards that share this one's queue: of its provider, account and model."""
    same = tuple(SHARD.c[name] == getattr(shard, name) for name in ("provider", "account", "model"))
    return (*same, SHARD.c.lane == Lane.BATCH)


def may_go(namespace: str) -> sa.ColumnElement[bool]:
    """Return the condition for planned shards that are still to be sent, of a query that joins their submissions."""
    return (SHARD.c.state == ShardState.PLANNED) & _IS_OPEN & (SUBMISSION.c.namespace == namespace)
