"""Charges as FOCUS defines them, for batches of several vendors; test_cost_tables.py compares their sums to `cost`."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from dagster_llm_batch.advice.focus import FOCUS_SCHEMA, as_text, focus_charges
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.events import BilledInTier
from dagster_llm_batch.storage.ledger.records import ShardCost
from dagster_llm_batch.types import Lane
from tests.tables import table

COST = ShardCost(
    **dict.fromkeys(ShardCost._fields),
)._replace(
    asset="mails",
    partition="",
    submission_id="s1",
    shard_id="h1",
    provider="openai",
    model="gpt-5-nano",
    lane=Lane.BATCH,
    wave=1,
    state=ShardState.COLLECTED,
    batch_id="batch_1",
    sent_at=datetime(2026, 12, 31, 23, 59, tzinfo=UTC),
    planned_at=datetime(2026, 12, 31, tzinfo=UTC),
    requests=2,
    padding=0,
    replies=2,
    input_tokens=300,
    output_tokens=100,
    known_usd=Decimal("0.0002"),
    unpriced=0,
)


def charge(**changes: Any) -> dict[str, Any]:
    [row] = charges(COST._replace(**changes))
    return row


def charges(cost: ShardCost, *tiers: BilledInTier) -> list[dict[str, Any]]:
    return focus_charges([cost], "test", {"h1": tiers})[0].to_pylist()


@table(
    "provider, model, seller, publisher",
    [
        ("openai_eu", "gpt-5-nano", "OpenAI", "OpenAI"),
        ("bedrock", "eu.anthropic.claude-haiku-4-5", "AWS", "Anthropic"),
        ("vertex", "gemini-2.5-flash", "Google Cloud", "Google"),
        ("openrouter", "qwen/qwen3-8b", "OpenRouter", "Alibaba Cloud"),
        ("ours", "keywords", "ours", "ours"),
    ],
)
def test_a_vendor_is_named_by_the_kind_of_its_provider_and_a_model_by_who_made_it(provider, model, seller, publisher):
    row = charge(provider=provider, model=model)
    assert (row["ProviderName"], row["InvoiceIssuerName"], row["PublisherName"]) == (seller, seller, publisher)
    assert (row["BillingAccountId"], row["SkuId"]) == (provider, f"{provider}/{model}")


def test_a_charge_lies_in_the_day_and_the_month_of_its_sending():
    row = charge()
    assert (row["ChargePeriodStart"], row["ChargePeriodEnd"]) == (
        datetime(2026, 12, 31, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    )
    assert (row["ChargeDescription"], row["SkuPriceId"]) == (
        "2 requests to gpt-5-nano, batch",
        "openai/gpt-5-nano batch",
    )
    assert charge(lane=Lane.REALTIME)["SkuPriceId"] == "openai/gpt-5-nano real time"
    assert (row["BillingPeriodStart"], row["BillingPeriodEnd"]) == (
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    )


def test_tokens_are_what_is_priced_and_requests_where_none_are_counted():
    row = charge()
    assert (row["PricingQuantity"], row["PricingUnit"], row["ListUnitPrice"]) == (400, "Tokens", Decimal("5e-7"))
    row = charge(input_tokens=None, output_tokens=None)
    assert (row["PricingQuantity"], row["PricingUnit"], row["ListUnitPrice"]) == (2, "Requests", Decimal("0.0001"))
    assert row["SkuPriceId"] == "openai/gpt-5-nano batch, per request"


def test_a_unit_price_times_its_quantity_is_the_cost():
    row = charge(input_tokens=999_999_001, output_tokens=6, known_usd=Decimal("123.456789012345"))
    for price, cost in (("ListUnitPrice", "ListCost"), ("ContractedUnitPrice", "ContractedCost")):
        assert (row[price] * row["PricingQuantity"]).quantize(Decimal("1e-12")) == row[cost]


def test_tokens_of_requests_without_a_known_cost_are_no_quantity_of_a_charge():
    row = charge(requests=3, unpriced=1)
    assert (row["PricingQuantity"], row["PricingUnit"], row["ListUnitPrice"]) == (2, "Requests", Decimal("0.0001"))


def test_a_batch_without_a_row_left_after_an_erasure_keeps_its_cost():
    row = charge(requests=0, input_tokens=None, output_tokens=None)
    assert (row["BilledCost"], row["PricingQuantity"]) == (Decimal("0.0002"), 1)


def test_real_time_is_no_resource_of_the_vendor():
    row = charge(lane=Lane.REALTIME, batch_id=None)
    assert (row["ResourceId"], row["ResourceName"], row["ResourceType"]) == (None, None, None)
    assert row["x_Asset"] == "mails"


FLEX = BilledInTier("flex", 1, 0, "0.00005", "0.0001", 150, 50, 0)


def test_a_tier_has_a_charge_of_its_own_and_the_rest_another():
    cost = COST._replace(lane=Lane.REALTIME, batch_id=None, realtime_usd=Decimal("0.00025"))
    flex, rest = charges(cost, FLEX)
    assert (flex["SkuPriceId"], rest["SkuPriceId"]) == (
        "openai/gpt-5-nano real time, flex",
        "openai/gpt-5-nano real time",
    )
    for name in ("BilledCost", "x_RealtimeCost", "x_InputTokens", "x_OutputTokens", "x_Requests", "PricingQuantity"):
        assert flex[name] + rest[name] == charges(cost)[0][name], name
    assert (flex["BilledCost"], flex["PricingQuantity"], flex["x_Requests"]) == (Decimal("0.00005"), 200, 1)


def test_a_shard_that_one_tier_answered_is_one_charge():
    everything = replace(FLEX, requests=2, input_tokens=300, output_tokens=100, known_usd="0.0002")
    [row] = charges(COST, everything)
    assert (row["SkuPriceId"], row["x_Requests"]) == ("openai/gpt-5-nano batch, flex", 2)


def test_a_tier_of_unknown_price_is_no_charge():
    unknown = replace(FLEX, unpriced=1, known_usd="0")
    table, count = focus_charges([COST._replace(unpriced=1)], "test", {"h1": [unknown]})
    assert (table["SkuPriceId"].to_pylist(), count) == (["openai/gpt-5-nano batch"], 1)
    # The tokens of the tier are not among those of the charge.
    assert table["PricingQuantity"].to_pylist() == [200]


def test_what_is_open_unsent_or_of_unknown_cost_is_no_charge():
    left_out = [
        COST._replace(state=ShardState.SUBMITTED),
        COST._replace(state=ShardState.PLANNED, batch_id=None, sent_at=None),
        COST._replace(known_usd=Decimal(0), unpriced=2),
    ]
    charges, unknown = focus_charges(left_out, "test", {})
    assert (charges.num_rows, charges.schema, unknown) == (0, FOCUS_SCHEMA, 2)
    # The cost of one request is unknown: the charge covers the others.
    charges, unknown = focus_charges([COST._replace(unpriced=1)], "test", {})
    assert (charges["BilledCost"].to_pylist(), unknown) == ([Decimal("0.0002")], 1)


def test_times_and_quantities_are_written_as_the_specification_wants_them_in_text():
    texts = as_text(focus_charges([COST], "test", {})[0])
    assert texts["ChargePeriodStart"].to_pylist() == ["2026-12-31T00:00:00Z"]
    assert texts["PricingQuantity"].to_pylist() == texts["ConsumedQuantity"].to_pylist() == ["400.0"]
