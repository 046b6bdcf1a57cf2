"""Find models on which two price tables differ: names move on to newer models, and tables follow late.

A name without a date, such as `mistral-large-latest`, is the vendor's to point to another model, and each table has it
where it was when somebody looked. So no rule of names finds the right price: two tables are compared, and the higher
price of each kind of token holds.
"""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any, NamedTuple

from genai_prices.types import ModelInfo, ModelPrice, StartDateConstraint, Tier, TieredPrices

from dagster_llm_batch.core.price_sources import SECOND_TABLE
from dagster_llm_batch.core.price_table import second_prices

__all__ = ["Dispute", "base_price", "find_dispute", "raise_prices", "times"]

_DIFFERENCE = Decimal("0.05")
# USD a million tokens. A quotient of two prices has no end, and one token is to cost a whole number of picodollars.
_EXACT = Decimal("0.00001")


class Dispute(NamedTuple):
    """A model whose standard prices differ by more than 5 % between the price book and the second table.

    Attributes:
        vendor: The vendor's id in the price book.
        model: The requested name of the model.
        entry: The entry of the price book that has this name.
        book: The book's prices of input and output, in USD a million tokens, of the shortest prompts.
        second: The same prices of the second table.
    """

    vendor: str
    model: str
    entry: str
    book: tuple[Decimal, Decimal]
    second: tuple[Decimal, Decimal]

    def __str__(self) -> str:
        found = self.model if self.entry == self.model else f"{self.model}, which is '{self.entry}' there,"
        (book_in, book_out), (second_in, second_out) = self.book, self.second
        return (
            f"Two price tables differ on {found} by more than 5 %: genai-prices has {book_in:f} USD a million tokens "
            f"of input and {book_out:f} of output, {SECOND_TABLE.document.partition(',')[0]} {second_in:f} and "
            f"{second_out:f}. Costs and limits take the higher price of each."
        )

    @property
    def factors(self) -> tuple[Decimal, Decimal]:
        """Factors on the book's prices of input and of output that raise them to the higher price."""
        pairs = zip(self.book, self.second, strict=True)
        dearer_in, dearer_out = (second / book if book < second else Decimal(1) for book, second in pairs)
        return dearer_in, dearer_out


def find_dispute(vendor: str, model: str, info: ModelInfo, at: datetime) -> Dispute | None:
    """Return by how much two tables differ on a model; None if they agree, or the second one lacks it."""
    second = second_prices().get((vendor, model.rpartition("/")[2] if vendor == "aws" else model))
    # The book has a price that has changed since: the second table is older.
    if second is None or _changed_on(info, at) > SECOND_TABLE.read_on:
        return None
    standard = info.get_prices(at)
    book = base_price(standard.input_mtok), base_price(standard.output_mtok)
    # Do not compare a price that one of them lacks.
    (book_in, second_in), (book_out, second_out) = (
        (one or other, other or one) for one, other in zip(book, second, strict=True)
    )
    found = Dispute(vendor, model, info.id, (book_in, book_out), (second_in, second_out))
    pairs = zip(found.book, found.second, strict=True)
    return found if any(max(pair) > (1 + _DIFFERENCE) * min(pair) for pair in pairs) else None


def base_price(price: Decimal | TieredPrices | None) -> Decimal:
    """Return the price of the shortest prompts; 0 without a price."""
    return price.base if isinstance(price, TieredPrices) else price or Decimal(0)


def _changed_on(info: ModelInfo, at: datetime) -> date:
    """Return the day from which the model's price holds; the earliest possible day if it has no date."""
    dated = [each.constraint for each in info.prices] if isinstance(info.prices, list) else []
    days = (each.start_date for each in dated if isinstance(each, StartDateConstraint) and each.active(at))
    return max(days, default=date.min)


def raise_prices(price: ModelPrice, dispute: Dispute | None) -> ModelPrice:
    """Return the prices with the higher ones of two tables, caches and long prompts as many times dearer."""
    if dispute is None:
        return price
    of_input, of_output = dispute.factors
    tokens = {name: value for name, value in vars(price).items() if value is not None and name.endswith("_mtok")}
    factors = {name: of_output if name.startswith("output") else of_input for name in tokens}
    return ModelPrice(
        **{**vars(price), **{name: times(value, factors[name], _EXACT) for name, value in tokens.items()}}
    )


def times(price: Any, factor: Decimal, exact: Decimal | None = None) -> Any:
    """Return a price multiplied by a factor, with all its tiers; `exact`: to a multiple of this."""
    if isinstance(price, TieredPrices):
        tiers = [Tier(tier.start, times(tier.price, factor, exact)) for tier in price.tiers]
        return TieredPrices(base=times(price.base, factor, exact), tiers=tiers)
    return price * factor if exact is None or factor == 1 else (price * factor).quantize(exact)
