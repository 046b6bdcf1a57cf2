"""How new the price book is. It carries no date of its own, but the dates from which prices hold."""

from __future__ import annotations

from datetime import date

from genai_prices.data import providers
from genai_prices.types import StartDateConstraint

__all__ = ["newest_price_change"]


def newest_price_change(today: date) -> date | None:
    """The last day, up to today, on which a price in the book changed: the book is at least as new. None: no such."""
    constraints = (
        conditional.constraint
        for provider in providers
        for model in provider.models
        if isinstance(model.prices, list)
        for conditional in model.prices
    )
    days = (one.start_date for one in constraints if isinstance(one, StartDateConstraint))
    return max((day for day in days if day <= today), default=None)
