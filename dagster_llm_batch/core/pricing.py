"""Cost of requests, in Decimal USD, from the usage in their results. Price book: `genai-prices`, bundled, offline.

Priced per request, never per batch: prices have tiers. Every price has a basis. Where the book has no batch price it
silently gives the standard one. Here the provider's documented rule of half the standard price applies instead; for a
provider without such a rule the price is unknown. An unknown price is None, never zero.

Rates turn tokens into money: exactly for one request, and for many at once by columns. Parts of a reply other than
plain tokens (`types.Extra`: a service tier, a place, searches, audio) are billed by the rules of `price_book`. If a
part has an unknown price, the cost is None, and the basis names the part.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import lru_cache, partial, reduce
from math import ceil
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.arguments import checked, nearest_name
from dagster_llm_batch.core.rates import PICODOLLAR, PerToken, Rate, UnpricedError
from dagster_llm_batch.core.token_counts import InputCounts, OutputTokens
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.text import plain_words
from dagster_llm_batch.types import Extra, Lane, Price, PriceBasis, Usage

if TYPE_CHECKING:
    from dagster_llm_batch.core.forecast import Learned
    from dagster_llm_batch.core.price_book import Terms

__all__ = [
    "FREE",
    "MONEY",
    "MONEY_TOTAL",
    "UNKNOWN",
    "Costs",
    "Estimate",
    "Tariff",
    "TokenPrice",
    "context_tokens",
    "costs",
    "dollars",
    "sum_costs",
    "tariff",
]

MONEY = pa.decimal128(20, 12)
"""US dollars of one row, in tables: up to 100 million."""

# Sums are wider, as Arrow makes them: `pc.sum` of MONEY is of this type. Tables of users hold both, so neither may take
# the other's width.
MONEY_TOTAL = pa.decimal128(38, MONEY.scale)
"""US dollars of many rows, in tables of evaluations and costs."""


def costs(rate: Rate, tokens: Sequence[pa.Array]) -> pa.Array:
    """Return the cost of requests, as MONEY. `tokens`: an array for each field of Usage. Null where tokens are null."""
    prices = rate.in_picodollars() if isinstance(rate, PerToken) else None
    if prices is None:
        usages = zip(*(column.to_pylist() for column in tokens), strict=True)
        amounts = [None if None in usage else rate(Usage(*usage)).quantize(PICODOLLAR) for usage in usages]
        return pa.array(amounts, MONEY)
    fresh, output, read, write, write_1h = prices
    # Cached tokens are counted among the input tokens, too, so only the difference in price is added for them.
    apiece = (fresh, output, read - fresh, write - fresh, write_1h - write)
    terms = [pc.multiply_checked(column, price) for column, price in zip(tokens, apiece, strict=False)]
    return reduce(pc.add_checked, terms).cast(pa.decimal128(MONEY.precision, 0)).view(MONEY)


_MILLION = Decimal(1_000_000)


def sum_costs(costs: Iterable[Decimal | None]) -> Decimal | None:
    """Return the sum; None if one of the costs is not known."""
    total = Decimal(0)
    for cost in costs:
        if cost is None:
            return None
        total += cost
    return total


def dollars(name: str, given: Decimal | float | str) -> Decimal:
    """Return an amount of US dollars, exactly as written. Raises ConfigError, with `name`, for other text."""
    try:
        amount = Decimal(str(given))
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or amount < 0:
        msg = f"{name}={given!r} is no amount of US dollars; it is a number from 0 on, as in 0.25."
        raise ConfigError(msg)
    return amount


@checked
@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Your own price, in US dollars per million tokens: for models that the price book lacks, or a negotiated rate.

    It holds for every token, in every tier and place. It does not price units billed apiece, such as a web search: the
    cost of a reply with one is unknown.

    Args:
        input_usd: Price of input in a batch.
        output_usd: Price of output in a batch.
        realtime_input_usd: Price of input in real time. Default: twice as much as in a batch.
        realtime_output_usd: Price of output in real time. Default: twice as much as in a batch.
        cache_read_usd: Price of input that is read from the provider's cache, in a batch. Default: input_usd.
        cache_write_usd: Price of input that is written to it for five minutes, or the vendor's usual time, in a
            batch. Default: input_usd.
        cache_write_1h_usd: Price of input that is written to it for an hour, in a batch. Default: cache_write_usd.

    In real time, cached input costs as many times more than in a batch as other input does.
    """

    input_usd: Decimal
    output_usd: Decimal
    realtime_input_usd: Decimal | None = None
    realtime_output_usd: Decimal | None = None
    cache_read_usd: Decimal | None = None
    cache_write_usd: Decimal | None = None
    cache_write_1h_usd: Decimal | None = None

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self)):
            given: Decimal | float | str | None = getattr(self, name)  # YAML and people give floats and text too
            object.__setattr__(self, name, None if given is None else dollars(name, given))


_FLEX = ("service_tier", "flex")


@dataclass(frozen=True, slots=True)
class Tariff:
    """The prices of one model of one provider at one time, in one lane."""

    basis: PriceBasis
    _batch: Rate | None = None
    _realtime: Rate | None = None
    # Billing terms of a reply with an extra in a lane; None for a tariff without bills. Raises UnpricedError.
    _terms: Callable[[Lane, Extra], Terms] | None = None
    _lane: Lane = Lane.BATCH

    def price(self, usage: Usage | None) -> Price:
        """Return the cost of a request with this usage. A request without usage was not billed."""
        if self.basis is PriceBasis.UNKNOWN or self._batch is None or self._realtime is None:
            return Price(None, None, self.basis)
        if usage is None:
            return Price(Decimal(0), Decimal(0), self.basis)
        if usage.extra is None or self._terms is None:
            return Price(self._batch(usage), self._realtime(usage), self.basis)
        try:
            billed = self._terms(self._lane, usage.extra)
            standard = self._terms(Lane.REALTIME, usage.extra._replace(tier=None))
            return Price(billed.cost(usage), standard.cost(usage), billed.basis)
        except UnpricedError:
            return Price(None, None, PriceBasis.UNKNOWN)

    def mean_usd(self, input_tokens: float, output_tokens: float) -> Decimal | None:
        """Return the average cost of requests with so many tokens on average; None: unknown."""
        whole = Usage(input_tokens=int(input_tokens), output_tokens=int(output_tokens))
        cost = self.price(whole).cost_usd
        more_input = self.price(whole._replace(input_tokens=whole.input_tokens + 1)).cost_usd
        more_output = self.price(whole._replace(output_tokens=whole.output_tokens + 1)).cost_usd
        if cost is None or more_input is None or more_output is None:
            return None
        parts = ((more_input, input_tokens % 1), (more_output, output_tokens % 1))
        return cost + sum(((more - cost) * _factor(part) for more, part in parts), Decimal(0))

    def of(self, lane: Lane) -> Tariff:
        """Return the prices in this lane."""
        if lane is Lane.BATCH or self.basis in (PriceBasis.UNKNOWN, PriceBasis.FREE):
            return self
        return Tariff(PriceBasis.REALTIME, self._realtime, self._realtime, self._terms, lane)

    def in_flex(self) -> Tariff:
        """Return the prices of answers in the tier "flex"; UNKNOWN if the price book lacks them."""
        if self._terms is None:
            return self
        try:
            terms = self._terms(Lane.REALTIME, Extra(tier=_FLEX))
        except UnpricedError:
            return UNKNOWN
        return Tariff(terms.basis, terms.rate, terms.rate, self._terms, Lane.REALTIME)

    def costs(
        self, tokens: Sequence[pa.Array], extras: Sequence[Extra | None] = ()
    ) -> tuple[pa.Array, pa.Array, Sequence[str] | None]:
        """Return the cost of many requests, as MONEY: by this tariff and in real time. See `costs`.

        The third is the basis of each, in words; None if it is this tariff's for all.
        """
        if self.basis is PriceBasis.UNKNOWN or self._batch is None or self._realtime is None:
            unknown = pa.nulls(len(tokens[0]), MONEY)
            return unknown, unknown, None
        cost, realtime = costs(self._batch, tokens), costs(self._realtime, tokens)
        # Mostly there is nothing but plain tokens.
        if self._terms is None or extras.count(None) == len(extras):
            return cost, realtime, None
        places: dict[Extra, list[int]] = {}
        for place, extra in enumerate(extras):
            if extra is not None:
                places.setdefault(extra._replace(reported_usd=None), []).append(place)
        bases = [self.basis.value] * len(cost)
        for extra, at in places.items():
            mask = np.zeros(len(cost), dtype=bool)
            mask[at] = True
            own_cost, own_realtime, basis = self._beside(extra, [column.take(pa.array(at)) for column in tokens])
            cost, realtime = (
                pc.replace_with_mask(plain, pa.array(mask), own)
                for plain, own in ((cost, own_cost), (realtime, own_realtime))
            )
            for place in at:
                bases[place] = basis
        return cost, realtime, bases

    def _beside(self, extra: Extra, tokens: Sequence[pa.Array]) -> tuple[pa.Array, pa.Array, str]:
        """Return the cost of requests with the same extra, and its basis. See `costs`."""
        assert self._terms is not None
        try:
            billed = self._terms(self._lane, extra)
            standard = self._terms(Lane.REALTIME, extra._replace(tier=None))
            if extra.units:
                usages = [
                    None if None in usage else Usage(*usage)._replace(extra=extra)
                    for usage in zip(*(column.to_pylist() for column in tokens), strict=True)
                ]
                own, plain = (
                    pa.array([None if u is None else terms.cost(u).quantize(PICODOLLAR) for u in usages], MONEY)
                    for terms in (billed, standard)
                )
            else:
                own, plain = costs(billed.rate, tokens), costs(standard.rate, tokens)
        except UnpricedError as error:
            unknown = pa.nulls(len(tokens[0]), MONEY)
            # It names words of the answer, and is stored with each row.
            return unknown, unknown, f"{PriceBasis.UNKNOWN.value}: {plain_words(error)}"
        named = ", ".join(filter(None, [extra.tier[1] if extra.tier else None, extra.geo]))
        return own, plain, f"{billed.basis.value}: {named}" if named else billed.basis.value


_NOTHING = PerToken(*[Decimal(0)] * 5)
FREE = Tariff(PriceBasis.FREE, _NOTHING, _NOTHING)
UNKNOWN = Tariff(PriceBasis.UNKNOWN)

# Free models of a vendor, by name. Their replies have no usage, so a price per token would give no cost.
# OPENAI_MODERATIONS of `core/price_sources.py`.
_FREE_MODELS = {"openai": re.compile(r"^(omni|text)-moderation-")}


def context_tokens(provider: str, model: str) -> int | None:
    """Return the model's context in tokens, or None if it is missing from the price book."""
    from dagster_llm_batch.core.price_book import context_of  # noqa: PLC0415 - the book takes a while to load

    return context_of(provider, _name_in_book(provider, model))


def _name_in_book(provider: str, model: str) -> str:
    # As in "publishers/google/models/…".
    return model.rpartition("models/")[2] if provider.startswith("google") else model


def tariff(provider: str, model: str, at: datetime, own: TokenPrice | None = None) -> Tariff:
    """Return the prices of `model`, or UNKNOWN. `provider`: the price book's id ("openai"); `own` has precedence."""
    if own is not None:
        return _own_tariff(own)
    if provider in _FREE_MODELS and _FREE_MODELS[provider].match(model):
        return FREE
    from dagster_llm_batch.core.price_book import Book  # noqa: PLC0415 - the book takes a while to load

    book = Book(provider, _name_in_book(provider, model), at)
    try:
        batch, standard = book.terms(Lane.BATCH), book.terms(Lane.REALTIME)
    except UnpricedError:
        return UNKNOWN
    return Tariff(batch.basis, batch.rate, standard.rate, book.terms)


def price_gap(provider: str, model: str, at: datetime) -> str:
    """Return a sentence on why no price is known of a model, with the name in the price book that is most like it."""
    from dagster_llm_batch.core.price_book import BATCH_SUFFIXES, models_of, price_list_of  # noqa: PLC0415 - as above

    name = _name_in_book(provider, model)
    if (suffix := BATCH_SUFFIXES.get(provider)) is not None:
        return _listing_gap(name, suffix, [each for each in models_of(provider) if each.endswith(suffix)])
    prices = price_list_of(provider, name, at)
    if prices is not None and not prices.has_tokens:
        return f"The price book has no price of tokens for '{name}': it is billed by pages or hours, or by nothing yet."
    if prices is not None:
        return f"The price book has no batch price of '{name}'."
    near = nearest_name(name, models_of(provider))
    return f"The price book has no '{name}'" + ("." if near is None else f"; did you mean '{near}'?")


def flex_price_gap(provider: str, model: str) -> str | None:
    """Return a sentence on a model that the price book has without prices for flex; None for any other model."""
    from dagster_llm_batch.core.price_book import models_of, name_of  # noqa: PLC0415 - the book takes a while to load

    with_flex, listed = models_of(provider, _FLEX), name_of(provider, _name_in_book(provider, model))
    if listed is None or listed in with_flex:
        return None
    return f"The price book has no price of '{model}' in this tier; it has those of {', '.join(sorted(with_flex))}."


def price_dispute(provider: str, model: str, at: datetime) -> str | None:
    """Return a sentence on two price tables that differ on a model by more than 5 %; None if they agree."""
    from dagster_llm_batch.core.price_book import dispute_of  # noqa: PLC0415 - the book takes a while to load

    dispute = dispute_of(provider, _name_in_book(provider, model), at)
    return None if dispute is None else f"{dispute} Your own price goes before both: Spend(price=TokenPrice(...))."


def _listing_gap(model: str, suffix: str, listed: Sequence[str]) -> str:
    """Return why no price is known of a model whose batches would be `listed` as models of their own."""
    plain, names = model.removesuffix(suffix), [each.removesuffix(suffix) for each in listed]
    is_listed = plain in names
    near = plain if is_listed else nearest_name(plain, names)
    gap = f"A model is named without '{suffix}'" if is_listed else f"The price book has no '{plain}{suffix}'"
    guess = "." if near is None else f"; did you mean '{near}'?"
    return (
        f"{gap}{guess} This vendor lists the batches of a model as a model of its own, and refuses batches of one that "
        "it does not list. Where its page lists it, a newer book may have it: `dagster-llm-batch prices --fetch`."
    )


def _own_tariff(own: TokenPrice) -> Tariff:
    written = own.input_usd if own.cache_write_usd is None else own.cache_write_usd
    batch = PerToken(
        fresh=own.input_usd,
        output=own.output_usd,
        read=own.input_usd if own.cache_read_usd is None else own.cache_read_usd,
        write=written,
        write_1h=written if own.cache_write_1h_usd is None else own.cache_write_1h_usd,
    )
    fresh = own.input_usd * 2 if own.realtime_input_usd is None else own.realtime_input_usd
    output = own.output_usd * 2 if own.realtime_output_usd is None else own.realtime_output_usd
    dearer = fresh / own.input_usd if own.input_usd else Decimal(1)
    realtime = replace(batch.times(dearer), fresh=fresh, output=output)
    million = 1 / _MILLION
    rates = {Lane.BATCH: batch.times(million), Lane.REALTIME: realtime.times(million)}
    return Tariff(PriceBasis.BATCH, rates[Lane.BATCH], rates[Lane.REALTIME], partial(_own_terms, rates))


def _own_terms(rates: Mapping[Lane, PerToken], lane: Lane, extra: Extra) -> Terms:
    from dagster_llm_batch.core.price_book import OwnPrices, Terms  # noqa: PLC0415 - the book takes a while to load

    if extra.unpriced is not None:
        raise UnpricedError(extra.unpriced)
    return Terms(PriceBasis.BATCH if lane is Lane.BATCH else PriceBasis.REALTIME, OwnPrices(rates[lane]))


# For 19 of 20 kinds of text, the actual input tokens were below so many times the estimate: tests/core.
_INPUT_P95 = Decimal("1.3")

# Bounds are rounded up to a multiple of this: then few of a labeling's requests have one that was not priced yet.
_BOUND_STEP = 16


def _factor(number: float) -> Decimal:
    return Decimal(f"{number:.6f}")


class Costs(NamedTuple):
    """Cost of requests together: expected, and the highest possible. None: unknown."""

    expected_usd: Decimal | None
    bound_usd: Decimal | None


@dataclass
class Estimate:
    """Cost of a submission, estimated while its requests are written.

    Args:
        tariff: The prices of the model.
        output: The output tokens of each request.
        writes_cache: Whether the requests ask the vendor to keep their prefix, which costs more if it is new.
        learned: Figures from earlier submissions, if there are any. The bound does not depend on them.

    `cost_usd` is expected. Of 20 submissions 19 cost more than `p05_usd`, and 19 less than `p95_usd`. A submission that
    sends each request once costs at most `bound_usd`, and each request at most `row_bound_usd`, as long as the vendor
    keeps its documented maxima and the price book's prices hold. None: unknown; `p05_usd` is also None without
    `learned`.
    """

    tariff: Tariff
    output: OutputTokens
    writes_cache: bool = False
    learned: Learned | None = None
    input_tokens: int = 0
    requests: int = 0
    input_bound: int | None = 0
    row_bound_usd: Decimal | None = Decimal(0)
    _is_surcharge_open: bool = False
    _cost_usd: Decimal = Decimal(0)
    _p95_usd: Decimal = Decimal(0)
    _bound_usd: Decimal = Decimal(0)

    def __post_init__(self) -> None:
        # Requests of one labeling have similar lengths, so most costs are computed before.
        self._costs_of = lru_cache(maxsize=4096)(self._costs_of_request)
        self._bound_of = lru_cache(maxsize=4096)(self._bound_of_request)

    def _price(self, usage: Usage, lane: Lane) -> Decimal | None:
        price = self.tariff.price(usage)
        return price.cost_usd if lane is Lane.BATCH else price.realtime_usd

    def _costs_of_request(self, tokens: int, lane: Lane) -> tuple[Decimal | None, Decimal | None]:
        learned, ratio = self.learned, Decimal(1)
        expected = self._price(Usage(input_tokens=tokens, output_tokens=self.output.expected), lane)
        if learned is not None:
            ratio = _factor(learned.input_ratio)
            output = self.output.expected if learned.output_tokens is None else learned.output_tokens
            mean = self.tariff.of(lane).mean_usd(tokens * learned.input_ratio, output)
            expected = None if mean is None else mean * _factor(learned.times)
        p95 = Usage(input_tokens=ceil(tokens * ratio * _INPUT_P95), output_tokens=self.output.p95)
        return expected, self._price(p95, lane)

    def expected_usd(self, tokens: int, lane: Lane = Lane.BATCH) -> Decimal | None:
        """Return the expected cost of one request with so many input tokens by the calibrated rates."""
        return self._costs_of(tokens, lane)[0]

    @property
    def expected_input(self) -> int:
        """The input tokens of all requests, as far as that is learned."""
        return self.input_tokens if self.learned is None else round(self.input_tokens * self.learned.input_ratio)

    @property
    def expected_output(self) -> int:
        """The output tokens of all requests, as far as that is learned."""
        learned = None if self.learned is None else self.learned.output_tokens
        return round(self.requests * (self.output.expected if learned is None else learned))

    def _bound_of_request(self, tokens: int, lane: Lane) -> Decimal | None:
        most = Usage(input_tokens=tokens, output_tokens=self.output.bound or 0)
        costs = [self._price(most, lane)]
        if self.writes_cache:
            costs += [
                self._price(most._replace(cache_write_tokens=tokens, cache_write_1h_tokens=for_an_hour), lane)
                for for_an_hour in (0, tokens)
            ]
        return max((cost for cost in costs if cost is not None), default=None)

    def add(self, tokens: InputCounts, lane: Lane = Lane.BATCH) -> Costs:
        """Count requests with so many input tokens; return their cost."""
        return Costs(self._add_expected(tokens.expected, lane), self._add_bounds(tokens.bounds, lane))

    def _add_expected(self, tokens: Sequence[int], lane: Lane) -> Decimal | None:
        self.requests += len(tokens)
        self.input_tokens += sum(tokens)
        cost = Decimal(0)
        for each, count in Counter(tokens).items():
            expected, p95 = self._costs_of(each, lane)
            if expected is None or p95 is None:
                return None
            cost += expected * count
            self._p95_usd += p95 * count
        self._cost_usd += cost
        return cost

    def _add_bounds(self, bounds: Sequence[int | None], lane: Lane) -> Decimal | None:
        cost = Decimal(0)
        if None in bounds:
            self.input_bound = None
            row = self.most_usd(None, lane)
        else:
            known = [bound for bound in bounds if bound is not None]
            row = self.most_usd(max(known, default=0), lane)
            self.input_bound = None if self.input_bound is None else self.input_bound + sum(known)
            for steps, count in Counter(-(-bound // _BOUND_STEP) for bound in known).items():
                cost += (self._bound_of(steps * _BOUND_STEP, lane) or 0) * count
            self._bound_usd += cost
        self.row_bound_usd = None if row is None or self.row_bound_usd is None else max(row, self.row_bound_usd)
        is_open = None in bounds or (self.output.bound is None and len(bounds) > 0)
        return None if is_open and not self._is_free else self._known(cost)

    def most_usd(self, tokens: int | None, lane: Lane = Lane.BATCH) -> Decimal | None:
        """Return the highest cost of one request with at most so many input tokens; None: unknown."""
        if self._is_free:
            return Decimal(0)
        if tokens is None or self.output.bound is None:
            return None
        return self._bound_of(-(-tokens // _BOUND_STEP) * _BOUND_STEP, lane)

    def add_surcharge(self, surcharge: Costs) -> None:
        """Count payments in addition to the requests, such as padding with copies of them, or a second model."""
        self._is_surcharge_open = self._is_surcharge_open or surcharge.bound_usd is None
        expected, bound = surcharge.expected_usd or Decimal(0), surcharge.bound_usd or Decimal(0)
        if self._cost_usd:
            self._p95_usd += expected * self._p95_usd / self._cost_usd
        self._cost_usd += expected
        self._bound_usd += bound

    @property
    def _is_free(self) -> bool:
        return self.tariff.basis is PriceBasis.FREE

    def _known(self, amount: Decimal) -> Decimal | None:
        return None if self.tariff.basis is PriceBasis.UNKNOWN else amount

    @property
    def cost_usd(self) -> Decimal | None:
        return self._known(self._cost_usd)

    @property
    def p05_usd(self) -> Decimal | None:
        if self.learned is None or self.learned.low is None:
            return None
        return self._known(self._cost_usd * _factor(self.learned.low))

    @property
    def p95_usd(self) -> Decimal | None:
        if self.learned is not None and self.learned.high is not None:
            return self._known(self._cost_usd * _factor(self.learned.high))
        # The sum may exceed a bound at which each single request is cut off.
        bound, p95 = self.bound_usd, max(self._p95_usd, self._cost_usd)
        return self._known(p95 if bound is None or self.learned is not None else min(p95, bound))

    @property
    def bound_usd(self) -> Decimal | None:
        is_open = self.input_bound is None or (self.output.bound is None and self.requests > 0)
        is_unknown = self._is_surcharge_open or (is_open and not self._is_free)
        return None if is_unknown else self._known(self._bound_usd)
