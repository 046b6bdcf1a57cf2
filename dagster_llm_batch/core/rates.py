"""Rates: the exact cost of one request by its plain tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from decimal import Decimal

from dagster_llm_batch.types import Usage

__all__ = ["PICODOLLAR", "PerToken", "Rate", "UnpricedError"]

PICODOLLAR = Decimal("1e-12")

Rate = Callable[[Usage], Decimal]
"""Returns the cost of a request with this usage, in USD, by its plain tokens only."""


class UnpricedError(LookupError):
    """The cost of a part of a reply is unknown; the message names the part."""


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
        """Return the rate with all prices multiplied."""
        return PerToken(*(price * factor for price in astuple(self)))

    def in_picodollars(self) -> tuple[int, ...] | None:
        """Return the prices as whole numbers of picodollars; None if one is no whole number."""
        whole = [price / PICODOLLAR for price in astuple(self)]
        return tuple(map(int, whole)) if all(price == int(price) for price in whole) else None
