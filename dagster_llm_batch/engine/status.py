"""The status of a submission, as the ledger has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from dagster_llm_batch.states import ENDED, ShardState
from dagster_llm_batch.storage.ledger.records import Shard, Submission

__all__ = ["Status", "sum_costs"]


@dataclass(frozen=True)
class Status:
    """A submission and its shards at one moment."""

    submission: Submission
    shards: list[Shard]

    @property
    def is_settled(self) -> bool:
        return self.submission.is_settled

    @property
    def states(self) -> Counter[str]:
        return Counter(shard.state.value for shard in self.shards)

    @property
    def batch_ids(self) -> list[str]:
        return [shard.batch_id for shard in self.shards if shard.batch_id]

    @property
    def done(self) -> int:
        """Requests that providers report as finished."""
        whole = (ShardState.COLLECTED, *ENDED)
        return sum(shard.requests if shard.state in whole else shard.done or 0 for shard in self.shards)

    @property
    def total(self) -> int:
        return sum(shard.requests for shard in self.shards)


def sum_costs(shards: Sequence[Shard]) -> Decimal | None:
    """Return what collected shards cost together; None where the cost of one is not known."""
    costs = [shard.cost_usd for shard in shards]
    return None if any(cost is None for cost in costs) else sum((c for c in costs if c is not None), Decimal(0))
