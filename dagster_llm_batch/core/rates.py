"""From tokens to money: what one request costs, exactly, and what many cost, in one go."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from decimal import Decimal
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.types import Usage

__all__ = ["MONEY", "PICODOLLAR", "PerToken", "Rate", "costs"]

MONEY = pa.decimal128(20, 12)
"""US dollars in tables."""

PICODOLLAR = Decimal("1e-12")

Rate = Callable[[Usage], Decimal]
"""What a request with this usage costs, in USD."""


@dataclass(frozen=True, slots=True)
class PerToken:
    """A rate without tiers: USD for one token of each kind."""

    fresh: Decimal
    output: Decimal
    read: Decimal
    write: Decimal
    write_1h: Decimal

    def __call__(self, usage: Usage) -> Decimal:
        return (
            usage.input_tokens * self.fresh
            + usage.output_tokens * self.output
            + usage.cache_read_tokens * (self.read - self.fresh)
            + usage.cache_write_tokens * (self.write - self.fresh)
            + usage.cache_write_1h_tokens * (self.write_1h - self.write)
        )

    def times(self, factor: Decimal) -> PerToken:
        """All prices, multiplied."""
        return PerToken(*(price * factor for price in astuple(self)))

    def in_picodollars(self) -> tuple[int, ...] | None:
        """The prices as whole numbers, where they are."""
        whole = [price / PICODOLLAR for price in astuple(self)]
        return tuple(map(int, whole)) if all(price == int(price) for price in whole) else None


def costs(rate: Rate, tokens: Sequence[pa.Array]) -> pa.Array:
    """What requests cost, as MONEY, from their tokens: an array for each field of Usage. Null where tokens are null."""
    prices = rate.in_picodollars() if isinstance(rate, PerToken) else None
    if prices is None:
        usages = zip(*(column.to_pylist() for column in tokens), strict=True)
        amounts = [None if None in usage else rate(Usage(*usage)).quantize(PICODOLLAR) for usage in usages]
        return pa.array(amounts, MONEY)
    fresh, output, read, write, write_1h = prices
    apiece = (fresh, output, read - fresh, write - fresh, write_1h - write)  # cached tokens are input tokens too
    terms = [pc.multiply_checked(column, price) for column, price in zip(tokens, apiece, strict=False)]
    return reduce(pc.add_checked, terms).cast(pa.decimal128(MONEY.precision, 0)).view(MONEY)
