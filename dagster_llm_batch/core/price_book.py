"""Price lists by the price book, `genai-prices`: bundled, offline.

A model has one list of standard prices, and one for each context in the book, such as {"processing": "batch"} or
{"service_tier": "flex"}. The bundled book has no date; its age shows in the dates from which its prices hold. A fetched
book (`fetched_book`) has its date.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from functools import cache, cached_property, lru_cache, partial
from importlib.metadata import version
from typing import Any

import genai_prices
from genai_prices.data_snapshot import DataSnapshot, get_snapshot, set_custom_snapshot
from genai_prices.types import ModelInfo, ModelPrice, StartDateConstraint, TieredPrices

from dagster_llm_batch.core.price_disputes import Dispute, base_price, find_dispute, raise_prices, times
from dagster_llm_batch.core.price_sources import (
    ANTHROPIC_BATCH,
    AWS_BATCH,
    AZURE_BATCH,
    GOOGLE_BATCH,
    GROQ_BATCH,
    MISTRAL_BATCH,
    OPENAI_PRICES,
    PriceSource,
)
from dagster_llm_batch.core.price_table import second_prices
from dagster_llm_batch.core.rates import PerToken, Rate, UnpricedError
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.types import TOKENS, Extra, Lane, PriceBasis, Usage

__all__ = [
    "BATCH_SUFFIXES",
    "BOOK_FILE",
    "Book",
    "OwnPrices",
    "PriceList",
    "Terms",
    "book_text",
    "context_of",
    "dispute_of",
    "disputes",
    "fetched_at",
    "fetched_book",
    "models_of",
    "name_of",
    "newest_price_change",
    "price_list_of",
    "use_book",
    "use_stored_book",
]

PLACE = "/"
"""Separator of a provider's id in the price book and the place where it answers, as in "google/regional"."""

BOOK_FILE = "price-book.json"
"""Name in a payload store of the book that was fetched last."""

_MILLION = 1_000_000

_TOKEN_PRICES = ("input_mtok", "output_mtok")

# The larger units of a unit. The library also needs their counts; they give the price for units without their own.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "input_audio_tokens": ("input_tokens",),
    "input_image_tokens": ("input_tokens",),
    "input_video_tokens": ("input_tokens",),
    "cache_audio_read_tokens": ("input_tokens", "cache_read_tokens", "input_audio_tokens"),
    "cache_image_read_tokens": ("input_tokens", "cache_read_tokens", "input_image_tokens"),
    "cache_video_read_tokens": ("input_tokens", "cache_read_tokens", "input_video_tokens"),
    "output_audio_tokens": ("output_tokens",),
    "output_image_tokens": ("output_tokens",),
    "output_video_tokens": ("output_tokens",),
}
_CACHED = {"input_audio_tokens": "cache_audio_read_tokens", "input_image_tokens": "cache_image_read_tokens"}

# Billed apiece, in thousands, and not by tokens: no discount of tokens holds for them.
_APIECE = {"web_searches": "web_searches_kcount", "storage_searches": "storage_searches_kcount"}

# Google's list has one price for all media without a named price (GOOGLE_PRICES). Elsewhere audio, and all output
# except text, always has its own price, so a book without it lacks it.
_NEVER_AS_TEXT = frozenset({"input_audio_tokens", "output_audio_tokens", "output_image_tokens", "output_video_tokens"})
_ONE_PRICE = {"google": _NEVER_AS_TEXT - {"input_audio_tokens"}}


def newest_price_change(today: date) -> date | None:
    """Return the last day up to `today` on which a price in the book changed, or None. The book is at least as new."""
    constraints = (
        conditional.constraint
        for provider in get_snapshot().providers
        for model in provider.models
        if isinstance(model.prices, list)
        for conditional in model.prices
    )
    days = (dated.start_date for dated in constraints if isinstance(dated, StartDateConstraint))
    return max((day for day in days if day <= today), default=None)


def fetched_book(published: bytes, at: datetime) -> bytes:
    """Return the book that genai-prices publishes, with when it was fetched, to be stored. Raises ConfigError."""
    book = json.dumps({"fetched_at": at.isoformat(), "providers": _json_of(published)}).encode()
    _snapshot_of(book)
    return book


def use_book(book: bytes) -> None:
    """Take prices from a fetched book, in this process. Raises ConfigError if it is not a price book."""
    set_custom_snapshot(_snapshot_of(book))


# When this process read which place's book, in seconds of a clock that goes on evenly.
_READ_AT: dict[str, float] = {}
_HOLDS_SECONDS = 3_600.0


def use_stored_book(place: str, read: Callable[[], bytes | None], now_seconds: float) -> None:
    """Take prices from the book that is stored at a place, if there is one. It is read once an hour.

    Raises ConfigError if the stored bytes are not a price book.
    """
    if now_seconds - _READ_AT.get(place, -_HOLDS_SECONDS) < _HOLDS_SECONDS:
        return
    if (book := read()) is not None:
        use_book(book)
    _READ_AT[place] = now_seconds


def fetched_at() -> datetime | None:
    """Return when the book in use was fetched; None for the bundled one."""
    snapshot = get_snapshot()
    return snapshot.timestamp if snapshot.from_auto_update else None


def book_text(today: date) -> str:
    """Name the book in use, and how new it is."""
    at, changed = fetched_at(), newest_price_change(today)
    which = f"genai-prices {version('genai-prices')}" if at is None else f"genai-prices, fetched on {at:%Y-%m-%d}"
    return which if changed is None else f"{which}; its newest price change is from {changed}"


def _json_of(data: bytes) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"This is no price book: {error}. Fetch it again: dagster-llm-batch prices --fetch") from None


def _snapshot_of(book: bytes) -> DataSnapshot:
    # The library offers this only for its own updater, which keeps fetched books in memory.
    from genai_prices.types import _providers_from_raw  # noqa: PLC0415

    read = _json_of(book)
    try:
        providers = _providers_from_raw(read["providers"])
        return DataSnapshot(providers, from_auto_update=True, timestamp=datetime.fromisoformat(read["fetched_at"]))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"This is no price book that genai-prices {version('genai-prices')} can read: {str(error)[:200]} Upgrade "
            "it (pip install --upgrade genai-prices), or do without: the bundled book holds."
        ) from None


def context_of(provider: str, model: str) -> int | None:
    """Return the model's context in tokens, or None if it is missing from the book."""
    info = _found(provider, model)
    return None if info is None else info.context_window


def _found(provider: str, model: str) -> ModelInfo | None:
    try:
        return get_snapshot().find_provider_model(model, None, provider.partition(PLACE)[0], None)[1]
    except LookupError:
        return None


def name_of(provider: str, model: str) -> str | None:
    """Return the id under which the book has a model, such as the name without its date; None if it lacks it."""
    info = _found(provider, model)
    return None if info is None else info.id


def models_of(provider: str, context: tuple[str, str] | None = None) -> list[str]:
    """Return the ids of all models that the book has of a provider, with prices in a context (None: any)."""
    wanted = None if context is None else dict([context])
    return [
        model.id
        for one in get_snapshot().providers
        if one.id == provider.partition(PLACE)[0]
        for model in one.models
        if wanted is None or any(variant.when == wanted for variant in model.price_variants or ())
    ]


def dispute_of(vendor: str, model: str, at: datetime) -> Dispute | None:
    """Return by how much two tables differ on a model; None if they agree, or one of them lacks it."""
    info = _found(vendor, model)
    return None if info is None else find_dispute(vendor.partition(PLACE)[0], model, info, at)


def disputes(at: datetime) -> list[Dispute]:
    """Return all models on which the two tables differ."""
    found = (dispute_of(vendor, model, at) for vendor, model in second_prices())
    return [dispute for dispute in found if dispute is not None]


@dataclass(frozen=True)
class PriceList:
    """The prices of one model in one context. `tokens` prices plain tokens, and `of_units` other units."""

    tokens: Rate
    provider: str
    _prices: tuple[tuple[str, Any], ...]

    def of_units(self, usage: Usage) -> tuple[Decimal, Decimal]:
        """Return how much more than plain tokens a usage's units cost, and the cost of units billed apiece, in USD.

        Raises UnpricedError.
        """
        units = dict(usage.extra.units if usage.extra is not None else ())
        prices = dict(self._prices)
        apiece = Decimal(0)
        for unit in units.keys() & _APIECE.keys():
            if prices.get(_APIECE[unit]) is None:
                raise UnpricedError(f"{unit} (the price book has no price of it)")
            apiece += prices[_APIECE[unit]] * units.pop(unit) / 1_000
        for unit in units:
            if unit not in _PARTS:
                raise UnpricedError(f"{unit} (the price book has no such unit)")
            is_priced = prices.get(f"{unit.removesuffix('_tokens')}_mtok") is not None
            if unit in _ONE_PRICE.get(self.provider, _NEVER_AS_TEXT) and not is_priced:
                raise UnpricedError(f"{unit} (the price book has no price of it)")
            joint = _CACHED.get(unit)
            if usage.cache_read_tokens and joint is not None and is_priced and joint not in units:
                raise UnpricedError(f"{unit} (the reply does not tell how many of them were cached)")
        named = {unit: count for unit, count in units.items() if self._is_own(unit, prices)}
        if not named:
            return Decimal(0), apiece
        if self.is_tiered:
            whole = _by_library(ModelPrice(**prices), usage._replace(extra=None), units)
            return whole - self.tokens(usage), apiece
        return sum((count * _more(self._prices, unit) for unit, count in named.items()), Decimal(0)), apiece

    @property
    def is_tiered(self) -> bool:
        return not isinstance(self.tokens, PerToken)

    @property
    def has_tokens(self) -> bool:
        """Whether tokens have a price. For a model billed by pages or hours the library counts 0 for them."""
        prices = dict(self._prices)
        return any(prices.get(name) is not None for name in _TOKEN_PRICES)

    def lacks_tiers_of(self, standard: PriceList) -> bool:
        """Return whether long prompts are dearer by the standard list, and cheaper by this one than is documented."""
        own, other = dict(self._prices), dict(standard._prices)
        return any(
            isinstance(other.get(name), TieredPrices) and isinstance(price, Decimal) and price < other[name].base
            for name, price in own.items()
        )

    def is_half_of(self, standard: PriceList) -> bool:
        """Return whether short prompts cost half of their standard price."""
        own, other = dict(self._prices), dict(standard._prices)
        return all(base_price(own.get(name)) * 2 == base_price(other.get(name)) for name in _TOKEN_PRICES)

    def _is_own(self, unit: str, prices: Mapping[str, Any]) -> bool:
        """Return whether a unit, or a larger unit that contains it, has its own price."""
        parts = (unit, *(part for part in _PARTS[unit] if part not in TOKENS))
        return any(prices.get(f"{part.removesuffix('_tokens')}_mtok") is not None for part in parts)


def price_list_of(provider: str, model: str, at: datetime, context: tuple[str, str] | None = None) -> PriceList | None:
    """Return the model's price list in a context (None: the standard one), or None if the book lacks it."""
    info = _found(provider, model)
    if info is None:
        return None
    dispute = dispute_of(provider, model, at)
    if context is None:
        return _price_list(provider, info.id, raise_prices(info.get_prices(at), dispute))
    wanted = dict([context])
    variants = (v for v in info.price_variants or () if v.when == wanted)
    if any(v.constraint is None or v.constraint.active(at) for v in variants):
        return _price_list(provider, info.id, raise_prices(info.get_prices(at, wanted), dispute))
    return None


def _price_list(provider: str, model: str, price: ModelPrice) -> PriceList:
    if "claude" in model:
        # Without such a price in the book, the library takes the next cheaper price of input.
        named = {name: times(price.input_mtok, factor) for name, factor in _CLAUDE_WRITES.items()}
        price = ModelPrice(**{**named, **{name: value for name, value in vars(price).items() if value is not None}})
    prices = tuple(vars(price).items())
    if any(isinstance(value, TieredPrices) for value in vars(price).values()):
        return PriceList(lru_cache(maxsize=4096)(partial(_by_library, price)), provider, prices)
    # Equal prices may have different digits (5.5 and 5.50), which the costs keep.
    return PriceList(_linear(prices, tuple(str(amount) for _, amount in prices)), provider, prices)


# Of the price of input, for all models: CLAUDE_CACHES.
_CLAUDE_WRITES = {"cache_write_mtok": Decimal("1.25"), "cache_write_1h_mtok": Decimal(2)}


# Cached by the prices: prices of another day, or of an updated book, have another entry.
@cache
def _linear(prices: tuple[tuple[str, Decimal | None], ...], _digits: tuple[str, ...]) -> PerToken:
    """Return the library's arithmetic as prices per token: without tiers it is linear, and 60 times faster this way."""
    cost = partial(_by_library, ModelPrice(**dict(prices)))
    return PerToken(
        fresh=cost(Usage(input_tokens=_MILLION)),
        output=cost(Usage(output_tokens=_MILLION)),
        read=cost(Usage(input_tokens=_MILLION, cache_read_tokens=_MILLION)),
        write=cost(Usage(input_tokens=_MILLION, cache_write_tokens=_MILLION)),
        write_1h=cost(Usage(input_tokens=_MILLION, cache_write_tokens=_MILLION, cache_write_1h_tokens=_MILLION)),
    ).times(1 / Decimal(_MILLION))


@cache
def _more(prices: tuple[tuple[str, Decimal | None], ...], unit: str) -> Decimal:
    """Return the price of one token of a unit minus the price of the tokens that contain it."""
    parts = _PARTS[unit]
    plain_parts: dict[str, Any] = {part: _MILLION for part in parts if part in TOKENS}
    tokens = Usage(**plain_parts)
    others = {part: _MILLION for part in parts if part not in TOKENS}
    price = ModelPrice(**dict(prices))
    whole = _by_library(price, tokens, {**others, unit: _MILLION})
    plain = _by_library(price, tokens)
    return (whole - plain) / _MILLION - sum((_more(prices, part) for part in others), Decimal(0))


def _by_library(price: ModelPrice, usage: Usage, units: Mapping[str, int] | None = None) -> Decimal:
    return Decimal(price.calc_price(_library_usage(usage, units or {}))["total_price"])


def _library_usage(usage: Usage, units: Mapping[str, int]) -> genai_prices.Usage:
    named = {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cache_read_tokens": usage.cache_read_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
    }
    return genai_prices.Usage(**{name: count for name, count in named.items() if count}, **units)


@dataclass(frozen=True)
class OwnPrices:
    """A user's own prices of tokens, whatever is in them."""

    tokens: Rate

    def of_units(self, usage: Usage) -> tuple[Decimal, Decimal]:
        """See PriceList.of_units. Raises UnpricedError for units billed apiece."""
        for unit, _ in usage.extra.units if usage.extra is not None else ():
            if unit in _APIECE:
                raise UnpricedError(f"{unit} (TokenPrice has no price of it)")
        return Decimal(0), Decimal(0)


_HALF = Decimal("0.5")

# Vendors with half the price for all batches, and their documents. Others give a smaller discount (xAI and DeepInfra
# 20 %), a discount for some models only (Together), or none.
_HALVES: Mapping[str, PriceSource] = {
    "anthropic": ANTHROPIC_BATCH,
    "aws": AWS_BATCH,
    "azure": AZURE_BATCH,
    "google": GOOGLE_BATCH,
    "groq": GROQ_BATCH,
    "mistral": MISTRAL_BATCH,
    "openai": OPENAI_PRICES,
}

# Vendors whose batches are separate models in the book, by the suffix of their names: OPENROUTER_BATCH.
BATCH_SUFFIXES: Mapping[str, str] = {"openrouter": ":batch"}

_TENTH_MORE = Decimal("1.1")

# Surcharges by the place where a reply ran, for all kinds of tokens. By the id in the price book, the place, and the
# first version of each family of models with the surcharge. Earlier models cost the same everywhere.
_DEARER_PLACES: Mapping[tuple[str, str], Mapping[str, tuple[int, int]]] = {
    # CLAUDE_RESIDENCY
    ("anthropic", "us"): {"opus": (4, 6), "sonnet": (4, 6), "haiku": (4, 5), "fable": (0, 0), "mythos": (0, 0)},
    # CLAUDE_ON_VERTEX: endpoints of a region or of several, from Sonnet 4.5 on. The book has the prices of the global
    # endpoint.
    ("google", "regional"): {"opus": (4, 5), "sonnet": (4, 5), "haiku": (4, 5), "fable": (0, 0), "mythos": (0, 0)},
}
_CLAUDE = re.compile(r"claude-(?P<family>[a-z]+)-(?P<major>\d+)(?:-(?P<minor>\d{1,2})(?!\d))?")


def _place_factor(provider: str, model: str, geo: str) -> Decimal | None:
    """Return the factor on the price in this place; None if unknown."""
    firsts = _DEARER_PLACES.get((provider, geo))
    if firsts is None:
        return None
    named = _CLAUDE.search(model)
    if provider == "google" and "claude" not in model:
        return Decimal(1)
    # Models before Claude 4 have their family's name last, as in claude-3-5-sonnet.
    if named is None or named["family"] not in firsts:
        return Decimal(1) if "claude-3" in model or "claude-2" in model else None
    is_dearer = (int(named["major"]), int(named["minor"] or 0)) >= firsts[named["family"]]
    return _TENTH_MORE if is_dearer else Decimal(1)


@dataclass(frozen=True)
class Terms:
    """The price list of tokens, and a factor on its prices. Units billed apiece have no discount."""

    basis: PriceBasis
    prices: PriceList | OwnPrices
    factor: Decimal = Decimal(1)
    is_cached_whole: bool = False

    @cached_property
    def rate(self) -> Rate:
        """Return the rate of plain tokens."""
        tokens, factor = self.prices.tokens, self.factor
        if self.is_cached_whole:
            return _half_but_cached(tokens)
        if factor == 1:
            return tokens
        return tokens.times(factor) if isinstance(tokens, PerToken) else lambda usage: tokens(usage) * factor

    def cost(self, usage: Usage) -> Decimal:
        """Return the cost of a reply with units. Raises UnpricedError."""
        more, apiece = self.prices.of_units(usage)
        if self.is_cached_whole and more and usage.cache_read_tokens:
            raise UnpricedError("cached tokens of media (the price book has no batch price of this model)")
        return self.rate(usage) + more * self.factor + apiece


class Book:
    """The prices of one model in the price book, by all that a reply can name.

    `provider` is the book's id, with the place of all replies behind it where that has a price: "google/regional".
    """

    def __init__(self, provider: str, model: str, at: datetime) -> None:
        self._provider, _, place = provider.partition(PLACE)
        self._place = place or None
        self._model, self._at = model, at
        self._of = cache(self._make_terms)

    def terms(self, lane: Lane, extra: Extra | None = None) -> Terms:
        """Return the terms of replies with this extra, its units aside. Raises UnpricedError."""
        if extra is None or (extra.tier is None and extra.geo is None and extra.unpriced is None):
            return self._of(lane, None, None)
        if extra.unpriced is not None:
            raise UnpricedError(extra.unpriced)
        return self._of(lane, extra.tier, extra.geo)

    def _make_terms(self, lane: Lane, tier: tuple[str, str] | None, geo: str | None) -> Terms:
        terms = self._of_lane(lane) if tier is None else self._of_tier(tier)
        for place in filter(None, (self._place, geo)):
            factor = _place_factor(self._provider, self._model, place)
            if factor is None:
                raise UnpricedError(f"the place '{place}' (no price of it is known)")
            terms = replace(terms, factor=terms.factor * factor)
        return terms

    def _of_tier(self, tier: tuple[str, str]) -> Terms:
        prices = self._list(tier)
        if prices is None:
            raise UnpricedError(f"{tier[0]} '{tier[1]}' (the price book has no price of it)")
        standard = self._list(None)
        if standard is not None and prices.lacks_tiers_of(standard):
            if not prices.is_half_of(standard):
                raise UnpricedError(f"{tier[0]} '{tier[1]}' (the price book has no price of its long prompts)")
            return Terms(PriceBasis.TIER, standard, _HALF)
        return Terms(PriceBasis.TIER, prices)

    def _of_lane(self, lane: Lane) -> Terms:
        standard = self._list(None)
        if standard is None:
            raise UnpricedError("the model (the price book does not have it)")
        if not standard.has_tokens:
            raise UnpricedError("the model (the price book has no price of its tokens)")
        if lane is Lane.REALTIME:
            return Terms(PriceBasis.REALTIME, standard)
        batch = self._list(("processing", "batch"))
        # A list of batch prices without the surcharge of long prompts would be too low for these.
        if batch is not None and not batch.lacks_tiers_of(standard):
            return Terms(PriceBasis.BATCH, batch)
        if (suffix := BATCH_SUFFIXES.get(self._provider)) is not None:
            batch = price_list_of(self._provider, f"{self._model}{suffix}", self._at)
            if batch is not None:
                return Terms(PriceBasis.BATCH, batch)
        if self._provider not in _HALVES:
            raise UnpricedError("the batch (the price book has no price of one, and no rule is known)")
        if self._provider == "google" and "claude" not in self._model:
            return Terms(PriceBasis.HALF_BUT_CACHED, standard, _HALF, is_cached_whole=True)
        return Terms(PriceBasis.HALF, standard, _HALF)

    def _list(self, context: tuple[str, str] | None) -> PriceList | None:
        return price_list_of(self._provider, self._model, self._at, context)


def _half_but_cached(standard: Rate) -> Rate:
    """Return half of the price for all tokens but those read from a cache.

    Use it for models without a list of batch prices. By Vertex AI's documents, the discount for cached tokens takes
    precedence over the batch discount. Up to Gemini 2.5 the Gemini API lists one price of cached tokens for both:
    GOOGLE_BATCH. The lists of five newer models have a lower one (genai-prices 0.2.3), so this is the highest batch
    price.
    """
    if isinstance(standard, PerToken):
        return replace(standard.times(_HALF), read=standard.read)

    def rate(usage: Usage) -> Decimal:
        if not usage.cache_read_tokens:
            return standard(usage) * _HALF
        # All input decides the tier, so the cached part costs the difference of two requests with the same input.
        fresh = standard(Usage(input_tokens=usage.input_tokens, output_tokens=0))
        mixed = Usage(input_tokens=usage.input_tokens, output_tokens=0, cache_read_tokens=usage.cache_read_tokens)
        uncached = fresh * (usage.input_tokens - usage.cache_read_tokens) / usage.input_tokens
        return (standard(usage) + standard(mixed) - uncached) * _HALF

    return rate
