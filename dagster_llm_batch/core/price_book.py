"""Rates by the price book, `genai-prices`: bundled, offline."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from functools import lru_cache

import genai_prices
from genai_prices.types import ModelPrice, TieredPrices

from dagster_llm_batch.core.rates import PerToken, Rate
from dagster_llm_batch.types import Usage

__all__ = ["rates_of"]

_MILLION = Decimal(1_000_000)
_CONTEXT = {"processing": "batch"}


def rates_of(provider: str, model: str, at: datetime) -> tuple[Rate, Rate | None] | None:
    """The standard rate and that of a batch, None where the book has none of a batch; None for an unknown model."""
    try:
        info = genai_prices.calc_price(
            genai_prices.Usage(), model, provider_id=provider, genai_request_timestamp=at
        ).model
    except LookupError:
        return None
    standard = _rate(info.get_prices(at))
    if any(v.when == _CONTEXT and (v.constraint is None or v.constraint.active(at)) for v in info.price_variants or ()):
        return standard, _rate(info.get_prices(at, _CONTEXT))
    return standard, None


def _rate(price: ModelPrice) -> Rate:
    """The library's arithmetic. Without tiers it is linear, so five calls give all of it, 60 times faster."""

    def by_library(usage: Usage) -> Decimal:
        return Decimal(price.calc_price(_library_usage(usage))["total_price"])

    if any(isinstance(value, TieredPrices) for value in vars(price).values()):
        return lru_cache(maxsize=4096)(by_library)
    million = 1_000_000
    return PerToken(
        fresh=by_library(Usage(input_tokens=million)),
        output=by_library(Usage(output_tokens=million)),
        read=by_library(Usage(input_tokens=million, cache_read_tokens=million)),
        write=by_library(Usage(input_tokens=million, cache_write_tokens=million)),
        write_1h=by_library(Usage(input_tokens=million, cache_write_tokens=million, cache_write_1h_tokens=million)),
    ).times(1 / _MILLION)


def _library_usage(usage: Usage) -> genai_prices.Usage:
    named = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
    }
    return genai_prices.Usage(**{name: count for name, count in named.items() if count})
