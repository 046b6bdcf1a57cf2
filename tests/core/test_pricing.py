"""Prices to the cent, each with its basis; unknown prices are null."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import genai_prices
import pyarrow as pa
import pytest
from genai_prices.data import providers
from genai_prices.data_snapshot import DataSnapshot, set_custom_snapshot
from genai_prices.types import ConditionalPrice, ModelPrice, StartDateConstraint
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.core.price_book import dispute_of, disputes, models_of, price_list_of
from dagster_llm_batch.core.pricing import (
    FREE,
    UNKNOWN,
    Costs,
    Estimate,
    Tariff,
    TokenPrice,
    price_dispute,
    price_gap,
    tariff,
)
from dagster_llm_batch.core.rates import PICODOLLAR
from dagster_llm_batch.core.token_counts import InputCounts, OutputTokens
from dagster_llm_batch.types import TOKENS, Extra, Lane, PriceBasis, Usage
from tests.tables import table

NOW = datetime(2026, 11, 1, tzinfo=UTC)
MILLION = 1_000_000


@pytest.mark.parametrize(
    ("provider", "model", "input_usd", "output_usd", "basis"),
    [
        ("anthropic", "claude-3-5-sonnet-20241022", "1.50", "7.50", PriceBasis.HALF),
        ("anthropic", "claude-3-opus-20240229", "7.50", "37.50", PriceBasis.HALF),
        ("anthropic", "claude-3-haiku-20240307", "0.125", "0.625", PriceBasis.HALF),
        ("openai", "gpt-4o", "1.25", "5.00", PriceBasis.BATCH),
    ],
)
def test_the_table_of_batch_prices(
    provider: str, model: str, input_usd: str, output_usd: str, basis: PriceBasis
) -> None:
    prices = tariff(provider, model, NOW)
    assert prices.basis is basis
    read = prices.price(Usage(input_tokens=MILLION))
    written = prices.price(Usage(output_tokens=MILLION))
    assert (read.cost_usd, written.cost_usd) == (Decimal(input_usd), Decimal(output_usd))
    assert (read.realtime_usd, written.realtime_usd) == (2 * Decimal(input_usd), 2 * Decimal(output_usd))
    assert read.basis is basis


@table(
    ("provider", "model", "input_usd", "output_usd", "basis"),
    [
        ("aws", "anthropic.claude-3-5-sonnet-20241022-v2:0", "1.50", "7.50", PriceBasis.HALF),
        ("aws", "anthropic.claude-3-opus-20240229-v1:0", "7.50", "37.50", PriceBasis.HALF),
        ("aws", "us.anthropic.claude-sonnet-4-5-20250929-v1:0", "1.65", "8.25", PriceBasis.HALF),  # 10 % more, regional
        ("aws", "global.anthropic.claude-sonnet-4-5-20250929-v1:0", "1.50", "7.50", PriceBasis.HALF),
        (
            "aws",
            "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-micro-v1:0",
            "0.0175",
            "0.07",
            PriceBasis.HALF,
        ),
        ("google", "gemini-2.5-flash", "0.15", "1.25", PriceBasis.BATCH),
        ("google", "publishers/google/models/gemini-2.5-flash", "0.15", "1.25", PriceBasis.BATCH),
        ("google", "models/gemini-2.5-flash", "0.15", "1.25", PriceBasis.BATCH),
        ("google", "publishers/anthropic/models/claude-sonnet-4-5@20250929", "1.50", "7.50", PriceBasis.HALF),
        ("google", "claude-3-5-sonnet-v2@20241022", "1.50", "7.50", PriceBasis.HALF),
        ("azure", "gpt-4o", "1.25", "5.00", PriceBasis.BATCH),
        ("openai", "text-embedding-3-small", "0.01", "0", PriceBasis.HALF),
        ("groq", "openai/gpt-oss-120b", "0.075", "0.30", PriceBasis.BATCH),
    ],
)
def test_ids_of_clouds_have_their_batch_price_and_say_on_what_basis(
    provider: str, model: str, input_usd: str, output_usd: str, basis: PriceBasis
) -> None:
    prices = tariff(provider, model, NOW)
    thousand = prices.price(Usage(1_000)).cost_usd, prices.price(Usage(0, 1_000)).cost_usd
    assert thousand == (Decimal(input_usd) / 1_000, Decimal(output_usd) / 1_000)
    assert prices.basis is basis


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("aws", "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc"),  # tells no model
        ("azure", "our-batch-deployment"),
        ("x-ai", "grok-4"),  # 20 % off
        ("together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),  # off for some models only
    ],
)
def test_a_batch_price_that_nobody_documents_is_neither_half_nor_whole(provider: str, model: str) -> None:
    assert tariff(provider, model, NOW).basis is PriceBasis.UNKNOWN


@pytest.mark.parametrize(
    ("provider", "model", "at", "usage", "cost_usd", "basis"),
    [
        # 0.10 fresh, 0.025 cached, 0.40 output: half of 0.75 M fresh and of the output, and all of 0.25 M cached
        ("google", "gemini-2.0-flash", NOW, Usage(1_000_000, 100_000, 250_000), "0.06375", "rule:half-but-cached"),
        (
            "google",
            "publishers/google/models/gemini-2.0-flash",
            NOW,
            Usage(1_000_000, 0),
            "0.05",
            "rule:half-but-cached",
        ),
        # above 200,000 tokens 4.00 fresh, 0.40 cached, 18.00 output; below 2.00, 0.20 and 12.00
        ("google", "gemini-3-pro-preview", NOW, Usage(400_000, 1_000, 300_000), "0.329", "rule:half-but-cached"),
        ("google", "gemini-3-pro-preview", NOW, Usage(100_000, 1_000, 60_000), "0.058", "rule:half-but-cached"),
        # the book's own batch price, in which it is the same
        ("google", "gemini-2.5-flash", NOW, Usage(1_000_000, 0, 1_000_000), "0.03", "batch"),
        # Anthropic's discounts multiply, also on Vertex AI
        ("google", "claude-sonnet-4-5", NOW, Usage(100_000, 0, 100_000), "0.015", "rule:half"),
    ],
)
def test_googles_cached_tokens_are_not_halved_again_in_a_batch(
    provider: str, model: str, at: datetime, usage: Usage, cost_usd: str, basis: str
) -> None:
    prices = tariff(provider, model, at)
    assert prices.price(usage).cost_usd == Decimal(cost_usd)
    assert prices.basis == basis
    one = [pa.array([count], pa.int64()) for count in usage[: len(TOKENS)]]
    assert prices.costs(one)[0].to_pylist() == [Decimal(cost_usd)]


def test_before_the_book_had_batch_prices_the_rule_of_half_gives_the_same() -> None:
    early = tariff("openai", "gpt-4o", datetime(2026, 9, 1, tzinfo=UTC))
    assert early.basis is PriceBasis.HALF
    assert early.price(Usage(MILLION, MILLION)).cost_usd == Decimal("6.25")


def test_prices_of_a_book_that_was_updated_meanwhile_hold_at_once() -> None:
    before = tariff("openai", "gpt-4o", NOW).price(Usage(MILLION))
    openai = next(provider for provider in providers if provider.id == "openai")
    model = next(one for one in openai.models if one.id == "gpt-4o")
    dearer = replace(model, prices=ModelPrice(input_mtok=Decimal(90)), price_variants=None)
    set_custom_snapshot(DataSnapshot([replace(openai, models=[dearer])], from_auto_update=True))
    try:
        updated = tariff("openai", "gpt-4o", NOW).price(Usage(MILLION))
    finally:
        set_custom_snapshot(None)
    assert updated == (Decimal(45), Decimal(90), PriceBasis.HALF)
    assert tariff("openai", "gpt-4o", NOW).price(Usage(MILLION)) == before


@pytest.mark.parametrize(
    ("usage", "realtime_usd"),
    [
        (Usage(3000, cache_read_tokens=1000, cache_write_tokens=1000), "0.00705"),
        (Usage(2000, cache_write_tokens=1000), "0.00675"),
        (Usage(2000, cache_write_tokens=1000, cache_write_1h_tokens=1000), "0.009"),
    ],
)
def test_cache_reads_and_writes_to_the_cent(usage: Usage, realtime_usd: str) -> None:
    price = tariff("anthropic", "claude-sonnet-4-5", NOW).price(usage)
    assert price.realtime_usd == Decimal(realtime_usd)
    assert price.cost_usd == Decimal(realtime_usd) / 2


def test_tiers_are_those_of_each_request_and_not_of_a_sum() -> None:
    prices = tariff("google", "gemini-2.5-pro", NOW)
    small, large = prices.price(Usage(100_000)), prices.price(Usage(MILLION))
    assert small.cost_usd is not None
    assert large.cost_usd is not None
    assert large.cost_usd > 10 * small.cost_usd
    assert small.realtime_usd == Decimal("0.125")
    assert large.realtime_usd == Decimal("2.5")


def test_an_unknown_price_is_null_and_never_zero() -> None:
    for prices in (tariff("openai", "in-house", NOW), tariff("nobody", "gpt-4o", NOW), UNKNOWN):
        assert prices.basis is PriceBasis.UNKNOWN
        assert prices.price(Usage(1, 1)) == (None, None, PriceBasis.UNKNOWN)
        assert prices.price(None) == (None, None, PriceBasis.UNKNOWN)
        estimate = Estimate(prices, OutputTokens(10, 10, 10))
        assert estimate.add(InputCounts([25, 5], [25, 5])) == (None, None)
        assert (estimate.cost_usd, estimate.input_tokens, estimate.requests) == (None, 30, 2)


@pytest.mark.parametrize(
    ("model", "input_usd", "output_usd"),
    [
        # in real time, per million tokens: the higher of the price book's and the second table's
        ("mistral-large-latest", "2", "6"),
        ("mistral-medium", "1.5", "7.5"),
        ("open-mistral-nemo", "0.3", "0.3"),
        ("magistral-small-latest", "0.5", "1.5"),
        ("magistral-medium-latest", "2", "7.5"),
    ],
)
def test_where_two_tables_differ_the_higher_price_holds_and_both_are_told(
    model: str, input_usd: str, output_usd: str
) -> None:
    prices = tariff("mistral", model, NOW)
    read, written = prices.price(Usage(MILLION)), prices.price(Usage(0, MILLION))
    assert (read.realtime_usd, written.realtime_usd) == (Decimal(input_usd), Decimal(output_usd))
    assert (read.cost_usd, written.cost_usd) == (Decimal(input_usd) / 2, Decimal(output_usd) / 2)
    said = price_dispute("mistral", model, NOW)
    assert said is not None
    assert f"Two price tables differ on {model}" in said
    assert "take the higher price" in said


def test_no_price_is_lower_than_in_either_of_two_tables() -> None:
    known = {(one.vendor, one.model) for one in disputes(NOW)}
    assert known
    for vendor, model in known:
        found = dispute_of(vendor, model, NOW)
        prices = price_list_of(vendor, model, NOW)
        assert found is not None
        assert prices is not None
        # A prompt of so few tokens is in no tier.
        read, written = prices.tokens(Usage(1_000)) * 1_000, prices.tokens(Usage(0, 1_000)) * 1_000
        assert read >= max(found.book[0], found.second[0])
        assert written >= max(found.book[1], found.second[1])


def test_tables_that_agree_change_no_price_and_a_newer_price_of_the_book_holds() -> None:
    assert price_dispute("openai", "gpt-4o", NOW) is None
    assert tariff("openai", "gpt-4o", NOW).price(Usage(MILLION)).realtime_usd == Decimal("2.5")
    mistral = next(provider for provider in providers if provider.id == "mistral")
    model = next(one for one in mistral.models if one.id == "mistral-nemo")
    changed = ConditionalPrice(
        constraint=StartDateConstraint(date(2026, 11, 29)), prices=ModelPrice(input_mtok=Decimal("0.1"))
    )
    newer = replace(model, prices=[ConditionalPrice(prices=ModelPrice(input_mtok=Decimal("0.15"))), changed])
    set_custom_snapshot(DataSnapshot([replace(mistral, models=[newer])], from_auto_update=True))
    try:
        later = datetime(2026, 12, 1, tzinfo=UTC)
        assert price_dispute("mistral", "open-mistral-nemo", later) is None
        assert tariff("mistral", "open-mistral-nemo", later).price(Usage(MILLION)).realtime_usd == Decimal("0.1")
        assert tariff("mistral", "open-mistral-nemo", NOW).price(Usage(MILLION)).realtime_usd == Decimal("0.3")
    finally:
        set_custom_snapshot(None)


@pytest.mark.parametrize(
    ("provider", "model"),
    [
        ("mistral", "voxtral-mini-2602"),  # by the hour
        ("mistral", "mistral-ocr-latest"),  # by the page
        ("openai", "whisper-1"),
        ("groq", "whisper-large-v3"),
        ("openrouter", "openai/gpt-oss-20b:free"),  # an entry without any price
    ],
)
def test_a_model_without_a_price_of_tokens_costs_null_and_never_zero(provider: str, model: str) -> None:
    prices = tariff(provider, model, NOW)
    assert prices.basis is PriceBasis.UNKNOWN
    assert prices.price(Usage(MILLION, MILLION)) == (None, None, PriceBasis.UNKNOWN)
    assert prices.of(Lane.REALTIME).price(Usage(MILLION)).cost_usd is None
    one = [pa.array([count], pa.int64()) for count in Usage(MILLION, MILLION)[: len(TOKENS)]]
    assert [column.to_pylist() for column in prices.costs(one)[:2]] == [[None], [None]]
    estimate = Estimate(prices, OutputTokens(10, 10, 10))
    assert estimate.add(InputCounts([25], [25])) == (None, None)
    if provider != "openrouter":
        assert "no price of tokens" in price_gap(provider, model, NOW)


def test_a_list_of_batches_that_leaves_out_the_price_of_long_prompts_is_not_trusted() -> None:
    prices = tariff("openai", "gpt-5.5-pro", NOW)
    long, short = Usage(300_000, 100_000), Usage(100_000, 100_000)
    assert prices.basis is PriceBasis.HALF
    # 60 and 270 USD a million tokens beyond 272,000, half of it in a batch
    assert prices.price(long)[:2] == (Decimal("22.5"), Decimal(45))
    assert prices.price(short)[:2] == (Decimal("10.5"), Decimal(21))
    flex = long._replace(extra=Extra(tier=("service_tier", "flex")))
    assert prices.of(Lane.REALTIME).price(flex)[:2] == (Decimal("22.5"), Decimal(45))


_CACHED = re.compile(r"^\| `(gemini-[^`]+)` \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)


def test_the_page_and_the_bill_agree_on_cached_tokens_in_a_batch_of_gemini() -> None:
    page = (Path(__file__).parents[2] / "docs/design/money.md").read_text()
    told = {name: (Decimal(standard), Decimal(batch)) for name, standard, batch in _CACHED.findall(page)}
    cheaper: dict[str, tuple[Decimal, Decimal]] = {}
    for model in (one for one in models_of("google") if one.startswith("gemini-")):
        prices = tariff("google", model, NOW)
        price = prices.price(Usage(100, 0, 100))
        if prices.basis is PriceBasis.UNKNOWN or not price.realtime_usd or price.cost_usd == price.realtime_usd:
            continue
        listed = price_list_of("google", model, NOW)
        assert listed is not None
        if dict(listed._prices).get("cache_read_mtok") is not None:
            assert price.cost_usd is not None
            cheaper[model] = price.realtime_usd * 10_000, price.cost_usd * 10_000
    assert told == cheaper


def test_free_is_zero_and_says_so() -> None:
    assert FREE.price(Usage(MILLION, MILLION)) == (0, 0, PriceBasis.FREE)
    assert tariff("openai", "gpt-4o", NOW).price(None) == (0, 0, PriceBasis.BATCH)


def test_an_own_price_is_exact_however_it_is_written() -> None:
    for price in (TokenPrice(Decimal("0.1"), Decimal("0.3")), TokenPrice(0.1, 0.3), TokenPrice("0.1", "0.3")):  # type: ignore[arg-type]
        prices = tariff("openai", "gpt-4o", NOW, price)
        assert prices.price(Usage(MILLION, MILLION)) == (Decimal("0.4"), Decimal("0.8"), PriceBasis.BATCH)
    realtime = TokenPrice(Decimal(1), Decimal(1), Decimal(5), Decimal(7))
    assert tariff("x", "y", NOW, realtime).price(Usage(MILLION, MILLION)).realtime_usd == 12


def test_an_own_price_has_rates_for_what_is_cached() -> None:
    usage = Usage(1_000_000, 0, cache_read_tokens=400_000, cache_write_tokens=300_000, cache_write_1h_tokens=100_000)
    plain = tariff("x", "y", NOW, TokenPrice(1, 2)).price(usage)  # type: ignore[arg-type]
    assert (plain.cost_usd, plain.realtime_usd) == (1, 2)
    own = TokenPrice(1, 2, cache_read_usd="0.1", cache_write_usd="1.25", cache_write_1h_usd=2)  # type: ignore[arg-type]
    price = tariff("x", "y", NOW, own).price(usage)
    # 300,000 fresh, 400,000 read, 200,000 for five minutes, 100,000 for an hour
    assert price.cost_usd == Decimal("0.3") + Decimal("0.04") + Decimal("0.25") + Decimal("0.2")
    assert price.realtime_usd == 2 * price.cost_usd
    same_for_an_hour = TokenPrice(1, 2, 4, 8, cache_write_usd=3)  # type: ignore[arg-type]
    price = tariff("x", "y", NOW, same_for_an_hour).price(usage)
    assert price.cost_usd == Decimal("0.7") + Decimal("0.9")
    assert price.realtime_usd == 4 * price.cost_usd


def test_an_own_price_holds_in_all_tiers_and_places_and_for_all_tokens_but_not_for_searches() -> None:
    prices = tariff("openai", "gpt-4o", NOW, TokenPrice(1, 2))  # type: ignore[arg-type]
    extra = Extra(("service_tier", "priority"), "us", (("input_audio_tokens", 100_000),))
    assert prices.price(Usage(MILLION, 0, extra=extra)) == (1, 2, PriceBasis.BATCH)
    assert prices.of(Lane.REALTIME).price(Usage(MILLION, 0, extra=extra)).cost_usd == 2
    for unknown in (Extra(units=(("web_searches", 1),)), Extra(unpriced="usage.frames = 3")):
        assert prices.price(Usage(MILLION, 0, extra=unknown)) == (None, None, PriceBasis.UNKNOWN)
        assert FREE.price(Usage(MILLION, 0, extra=unknown)).cost_usd == 0


def test_of_many_replies_each_has_its_own_price_and_basis() -> None:
    prices = tariff("anthropic", "claude-opus-4-6", NOW)
    extras = [
        None,
        Extra(geo="us"),
        Extra(unpriced="usage.frames = 3"),
        Extra(reported_usd=Decimal(9)),
        None,
        Extra(geo="us"),
    ]
    columns = [pa.array([1_000] * 6, pa.int64()), *[pa.array([0] * 6, pa.int64())] * 5]
    cost, realtime, bases = prices.costs(columns, extras)
    plain, dearer = Decimal("0.0025"), Decimal("0.00275")
    assert cost.to_pylist() == [plain, dearer, None, plain, plain, dearer]
    assert realtime.to_pylist() == [2 * plain, 2 * dearer, None, 2 * plain, 2 * plain, 2 * dearer]
    assert bases == ["batch", "batch: us", "unknown: usage.frames = 3", "batch", "batch", "batch: us"]


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Draw possible usages: the parts are within the whole."""
    fresh, read, write = (draw(st.integers(0, 300_000)) for _ in range(3))
    hour = draw(st.integers(0, write))
    return Usage(fresh + read + write, draw(st.integers(0, 50_000)), read, write, hour)


MODELS = [
    ("openai", "gpt-4o"),
    ("openai", "gpt-5.5"),
    ("openai", "text-embedding-3-small"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-haiku-4-5"),
    ("anthropic", "claude-3-haiku-20240307"),
    ("google", "gemini-2.5-pro"),
    ("google", "gemini-2.5-flash"),
    ("aws", "amazon.nova-micro-v1:0"),
]


@pytest.mark.parametrize(("provider", "model"), MODELS)
@settings(max_examples=60, deadline=None)
@given(usage=usages())
def test_the_shortcut_agrees_with_the_library(provider: str, model: str, usage: Usage) -> None:
    named = {name: count for name in TOKENS if (count := getattr(usage, name)) and name != "reasoning_tokens"}

    def library(context: dict[str, str] | None) -> Decimal:
        return genai_prices.calc_price(
            genai_prices.Usage(**named),
            model,
            provider_id=provider,
            genai_request_timestamp=NOW,
            price_context=context,
        ).total_price

    prices = tariff(provider, model, NOW)
    price = prices.price(usage)
    assert price.realtime_usd == library(None)
    halved = library(None) / 2
    assert price.cost_usd == (library({"processing": "batch"}) if prices.basis is PriceBasis.BATCH else halved)
    assert price.cost_usd is not None
    assert price.cost_usd <= library(None)


@settings(max_examples=30, deadline=None)
@given(each=st.lists(st.none() | usages(), min_size=1, max_size=20))
@pytest.mark.parametrize(
    "prices",
    [
        tariff("anthropic", "claude-haiku-4-5", NOW),
        tariff("anthropic", "claude-3-opus-20240229", NOW),
        tariff("google", "gemini-2.5-pro", NOW),  # has tiers
        tariff("any", "any", NOW, TokenPrice(Decimal("0.123456789"), Decimal("1.5"))),  # fractions of picodollars
        FREE,
        UNKNOWN,
    ],
    ids=lambda prices: prices.basis.value,
)
def test_many_cost_what_each_costs(prices: Tariff, each: list[Usage | None]) -> None:
    empty = (None,) * len(Usage._fields)
    *columns, extras = zip(*(usage or empty for usage in each), strict=True)
    *costs, bases = prices.costs([pa.array(column, pa.int64()) for column in columns], extras)
    assert bases is None
    for at, usage in enumerate(each):
        one = prices.price(usage)
        wanted = (None, None) if usage is None else (one.cost_usd, one.realtime_usd)
        found = tuple(column[at].as_py() for column in costs)
        assert found == tuple(None if amount is None else amount.quantize(PICODOLLAR) for amount in wanted)


def counts(expected: list[int], most: int) -> InputCounts:
    return InputCounts(expected, [most] * len(expected))


def test_an_estimate_adds_up() -> None:
    estimate = Estimate(tariff("openai", "gpt-4o", NOW), OutputTokens(100, 200, 400))
    costs = [
        estimate.add(counts([1_000], 3_200)),
        estimate.add(counts([1_000, 2_000, 1_000], 3_200)),
        estimate.add(counts([1_000], 3_200), Lane.REALTIME),
    ]
    assert [each.expected_usd for each in costs] == [Decimal("0.00175"), Decimal("0.0065"), Decimal("0.0035")]
    of_one = 3_200 * Decimal("1.25e-6") + 400 * Decimal("5e-6")
    assert [each.bound_usd for each in costs] == [of_one, 3 * of_one, 2 * of_one]
    assert [estimate.most_usd(3_200), estimate.most_usd(3_200, Lane.REALTIME)] == [of_one, 2 * of_one]
    assert estimate.cost_usd == Decimal("0.01175")
    assert (estimate.requests, estimate.input_tokens) == (5, 6_000)
    assert estimate.add(counts([], 1)) == (0, 0)
    # 1.3 times the input, and 200 tokens of output for each: 1.25 and 5 USD a million, doubled in real time.
    assert estimate.p95_usd == Decimal("1.3") * (5_000 + 2 * 1_000) * Decimal("1.25e-6") + 6 * 200 * Decimal("5e-6")
    assert estimate.bound_usd == 6 * of_one


def test_a_bound_is_rounded_up() -> None:
    estimate = Estimate(tariff("openai", "gpt-4o", NOW), OutputTokens(0, 0, 0))
    estimate.add(InputCounts([1, 1], [1, 17]))
    assert estimate.input_bound == 18
    assert estimate.bound_usd == (16 + 32) * Decimal("1.25e-6")


def test_what_is_written_to_a_cache_is_inside_of_the_bound() -> None:
    prices, output = tariff("anthropic", "claude-haiku-4-5", NOW), OutputTokens(0, 0, 0)
    plain, marked = Estimate(prices, output), Estimate(prices, output, writes_cache=True)
    for estimate in (plain, marked):
        estimate.add(InputCounts([1_600], [1_600]))
    written = Usage(input_tokens=1_600, cache_write_tokens=1_600, cache_write_1h_tokens=1_600)
    assert marked.bound_usd == prices.price(written).cost_usd == 2 * (plain.bound_usd or 0)
    assert marked.cost_usd == plain.cost_usd


@pytest.mark.parametrize(
    ("output", "bounds"),
    [(OutputTokens(1, 1, None), [5]), (OutputTokens(1, 1, 1), [5, None]), (OutputTokens(1, 1, 1), [None])],
)
def test_a_bound_of_which_a_part_is_unknown_is_unknown(output: OutputTokens, bounds: list[int | None]) -> None:
    estimate = Estimate(tariff("openai", "gpt-4o", NOW), output)
    assert estimate.add(InputCounts([5] * len(bounds), bounds)).bound_usd is None
    estimate.add(InputCounts([5], [5]))
    assert estimate.bound_usd is None
    assert estimate.cost_usd is not None
    assert estimate.p95_usd is not None


def test_what_is_free_has_a_bound_all_the_same() -> None:
    free, unknown = (Estimate(prices, OutputTokens(1, 1, None)) for prices in (FREE, UNKNOWN))
    for estimate in (free, unknown):
        costs = estimate.add(InputCounts([5], [None]))
        assert costs.bound_usd == estimate.bound_usd == estimate.most_usd(None)
    assert (free.cost_usd, free.p95_usd, free.bound_usd) == (0, 0, 0)
    assert (unknown.cost_usd, unknown.p95_usd, unknown.bound_usd) == (None, None, None)


def test_what_is_paid_beside_the_requests_is_in_all_three_numbers() -> None:
    estimate = Estimate(tariff("openai", "gpt-4o", NOW), OutputTokens(100, 200, 400))
    estimate.add(InputCounts([1_000], [3_200]))
    before = (estimate.cost_usd, estimate.p95_usd, estimate.bound_usd)
    # Copies of the request that fill a batch up.
    estimate.add_surcharge(Costs(9 * (estimate.cost_usd or Decimal(0)), 9 * (estimate.bound_usd or Decimal(0))))
    assert (estimate.cost_usd, estimate.p95_usd, estimate.bound_usd) == tuple(10 * (each or 0) for each in before)
    # The maximum cost of the second model is unknown, so both together have no bound.
    estimate.add_surcharge(Costs(Decimal(1), None))
    assert estimate.bound_usd is None
    assert estimate.cost_usd == 10 * (before[0] or 0) + 1


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("openai/gpt-4o:batch", "A model is named without ':batch'; did you mean 'openai/gpt-4o'?"),
        ("openai/gpt-4o-min", "The price book has no 'openai/gpt-4o-min:batch'; did you mean 'openai/gpt-4o-mini'?"),
        ("nobody/of-this-name", "The price book has no 'nobody/of-this-name:batch'. This vendor"),
    ],
)
def test_a_model_of_openrouter_without_batches_in_the_book_says_what_to_do(model: str, said: str) -> None:
    at = datetime(2026, 11, 28, tzinfo=UTC)
    assert tariff("openrouter", model, at).basis is PriceBasis.UNKNOWN
    gap = price_gap("openrouter", model, at)
    assert gap.startswith(said)
    assert "refuses batches of one that it does not list" in gap
    assert "`dagster-llm-batch prices --fetch`" in gap
