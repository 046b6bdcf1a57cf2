"""Batches as their providers count them.

Shards of several submissions can share one batch. A shard has no batch that its provider counts before it is sent,
after it is refused, and in real time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import sqlalchemy as sa

from dagster_llm_batch.states import IN_FLIGHT, ShardState
from dagster_llm_batch.storage.ledger.member import Member
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.ledger.schema import SHARD, SUBMISSION, in_state
from dagster_llm_batch.types import Lane

__all__ = [
    "BATCHES",
    "UNBATCHED",
    "Batches",
    "count_batches",
    "count_batches_by_state",
    "count_refused",
    "count_unbatched_by_state",
    "has_batch",
]

# A shard whose create call has begun may have a batch already.
_HAS_BATCH = (SHARD.c.lane == Lane.BATCH) & (SHARD.c.batch_id.is_not(None) | in_state(ShardState.SUBMITTING))

BATCHES = sa.func.count(sa.distinct(sa.case((_HAS_BATCH, SHARD.c.batch_key))))
"""The number of batches that carry the shards of a group."""

UNBATCHED = sa.func.sum(sa.case((_HAS_BATCH, 0), else_=1))
"""The number of shards of a group without a batch."""


def has_batch(shard: Shard) -> bool:
    """Return whether a batch carries a shard, or may carry it already since its create call has begun."""
    return shard.lane is Lane.BATCH and (shard.batch.batch_id is not None or shard.state is ShardState.SUBMITTING)


def count_batches(shards: Iterable[Shard]) -> int:
    """Return how many batches carry these shards. Several shards of one batch count once."""
    return len({shard.batch.batch_key for shard in shards if has_batch(shard)})


def count_batches_by_state(shards: Collection[Shard]) -> dict[ShardState, int]:
    """Return how many batches carry the shards in each state; states without a batch are left out."""
    counts = {
        state: count_batches(shard for shard in shards if shard.state is state)
        for state in {shard.state for shard in shards}
    }
    return {state: count for state, count in counts.items() if count}


def count_unbatched_by_state(shards: Iterable[Shard]) -> dict[ShardState, int]:
    """Return how many shards in each state have no batch; states without such a shard are left out."""
    counts: dict[ShardState, int] = {}
    for shard in shards:
        if not has_batch(shard):
            counts[shard.state] = counts.get(shard.state, 0) + 1
    return counts


def count_refused(shards: Iterable[Shard]) -> int:
    """Return how many batches with these shards their provider refused, or failed as a whole."""
    return len({shard.batch.batch_key for shard in shards if shard.state is ShardState.FAILED})


class Batches(Member):
    """Batches as their providers count them."""

    def count_in_flight(self, namespace: str, submission_ids: Collection[str]) -> int:
        """Return how many batches in flight carry shards of these submissions. Takes one query for any number."""
        query = sa.select(SHARD.c.submission_id, SHARD.c.batch_key)
        query = query.join(SUBMISSION, SUBMISSION.c.submission_id == SHARD.c.submission_id)
        query = query.where(SUBMISSION.c.namespace == namespace, in_state(*IN_FLIGHT), _HAS_BATCH)
        wanted = frozenset(submission_ids)
        with self._database.read() as connection:
            return len({key for of, key in connection.execute(query) if of in wanted})

    def count_submissions_beside(self, submission_id: str) -> int:
        """Return how many other submissions have shards in the batches of this one."""
        own = sa.select(SHARD.c.batch_key).where(SHARD.c.submission_id == submission_id, _HAS_BATCH)
        query = sa.select(sa.func.count(sa.distinct(SHARD.c.submission_id))).where(SHARD.c.batch_key.in_(own))
        query = query.where(SHARD.c.submission_id != submission_id)
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())
