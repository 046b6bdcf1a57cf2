"""What a submission would be: the figures of a plan that is neither stored nor sent."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from dagster_llm_batch.core.pricing import Estimate
from dagster_llm_batch.engine.request_writer import Plan
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.types import PriceBasis, Usage

__all__ = ["Preview", "preview_of"]


@dataclass(frozen=True)
class Preview:
    """A plan's figures. Tokens and money are estimates; None: no price is known."""

    rows: int
    requests: int  # different ones
    reused: int  # of these, answered or on their way already
    shards: tuple[Shard, ...]  # what would be sent
    input_tokens: int
    output_tokens: int
    estimated_usd: Decimal | None
    realtime_usd: Decimal | None  # what the same would cost in real time
    price_basis: PriceBasis
    known: Submission | None = None  # the submission that these rows have already: nothing would be sent
    refused: str | None = None  # why it would not be sent

    @property
    def to_send(self) -> int:
        return sum(shard.requests for shard in self.shards)

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)


def preview_of(plan: Plan, estimate: Estimate, refused: str | None) -> Preview:
    """The figures of a finished draft."""
    requests, each = estimate.requests, estimate.output_tokens_each
    average = Usage(input_tokens=-(-estimate.input_tokens // max(requests, 1)), output_tokens=each)
    realtime = estimate.tariff.price(average).realtime_usd
    return Preview(
        rows=plan.rows,
        requests=plan.requests,
        reused=plan.reused,
        shards=tuple(plan.shards),
        input_tokens=estimate.input_tokens,
        output_tokens=requests * each,
        estimated_usd=estimate.cost_usd,
        realtime_usd=None if realtime is None else realtime * requests,
        price_basis=estimate.tariff.basis,
        refused=refused,
    )
