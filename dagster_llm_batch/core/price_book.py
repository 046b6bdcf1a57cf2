"""Rates by the price book, `genai-prices`: bundled, offline.

The book carries no date of its own; how new it is shows in the dates from which its prices hold.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from functools import cache, lru_cache, partial

import genai_prices
from genai_prices.data import providers
from genai_prices.data_snapshot import get_snapshot
from genai_prices.types import ModelPrice, StartDateConstraint, TieredPrices

from dagster_llm_batch.core.pricing import PerToken, Rate
from dagster_llm_batch.types import Usage

__all__ = ["context_of", "models_of", "newest_price_change", "rates_of"]


def newest_price_change(today: date) -> date | None:
    """Return the last day up to `today` on which a price in the book changed, or None. The book is at least as new."""
    constraints = (
        conditional.constraint
        for provider in providers
        for model in provider.models
        if isinstance(model.prices, list)
        for conditional in model.prices
    )
    days = (dated.start_date for dated in constraints if isinstance(dated, StartDateConstraint))
    return max((day for day in days if day <= today), default=None)


_MILLION = Decimal(1_000_000)
_CONTEXT = {"processing": "batch"}


def context_of(provider: str, model: str) -> int | None:
    """Return how many tokens the model takes in all, or None where the book does not say."""
    try:
        _, info = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    return info.context_window


def models_of(provider: str) -> list[str]:
    """Return the ids of all models that the book has of a provider."""
    return [model.id for one in get_snapshot().providers if one.id == provider for model in one.models]


def rates_of(provider: str, model: str, at: datetime) -> tuple[Rate, Rate | None] | None:
    """Return the standard rate and the batch rate (None: the book has none); None for an unknown model."""
    try:
        _, info = get_snapshot().find_provider_model(model, None, provider, None)
    except LookupError:
        return None
    standard = _rate(info.get_prices(at))
    if any(v.when == _CONTEXT and (v.constraint is None or v.constraint.active(at)) for v in info.price_variants or ()):
        return standard, _rate(info.get_prices(at, _CONTEXT))
    return standard, None


def _rate(price: ModelPrice) -> Rate:
    prices = vars(price)
    if any(isinstance(value, TieredPrices) for value in prices.values()):
        return lru_cache(maxsize=4096)(partial(_by_library, price))
    return _linear(tuple(prices.items()))


# Cached by the prices themselves: those of another day, or of an updated book, are others.
@cache
def _linear(prices: tuple[tuple[str, Decimal | None], ...]) -> PerToken:
    """Return the library's arithmetic as prices per token: without tiers it is linear, and 60 times faster this way."""
    cost = partial(_by_library, ModelPrice(**dict(prices)))
    million = 1_000_000
    return PerToken(
        fresh=cost(Usage(input_tokens=million)),
        output=cost(Usage(output_tokens=million)),
        read=cost(Usage(input_tokens=million, cache_read_tokens=million)),
        write=cost(Usage(input_tokens=million, cache_write_tokens=million)),
        write_1h=cost(Usage(input_tokens=million, cache_write_tokens=million, cache_write_1h_tokens=million)),
    ).times(1 / _MILLION)


def _by_library(price: ModelPrice, usage: Usage) -> Decimal:
    return Decimal(price.calc_price(_library_usage(usage))["total_price"])


def _library_usage(usage: Usage) -> genai_prices.Usage:
    named = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
    }
    return genai_prices.Usage(**{name: count for name, count in named.items() if count})
