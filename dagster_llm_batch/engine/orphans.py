"""Shards whose create call left no record: a batch of theirs may exist, and be paid for, without anybody knowing.

Most are found again by themselves (`Engine.recover`). Those that are not wait for a person's word (`Engine.resolve`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import Shard, Submission

if TYPE_CHECKING:
    from dagster_llm_batch.storage.ledger.ledger import Ledger

__all__ = ["Orphan", "orphans"]


class Orphan(NamedTuple):
    """A shard in `submitting`, and whose it is."""

    submission: Submission
    shard: Shard


def orphans(ledger: Ledger, namespace: str) -> list[Orphan]:
    """Those of a namespace, the longest in doubt first. One that is being sent at this moment is among them."""
    found = [shard for shard in ledger.in_flight(namespace) if shard.state is ShardState.SUBMITTING]
    submissions = {shard.submission_id: ledger.submission(shard.submission_id) for shard in found}
    return sorted(
        (Orphan(submissions[shard.submission_id], shard) for shard in found),
        key=lambda one: (one.shard.sent_at is None, one.shard.sent_at),
    )
