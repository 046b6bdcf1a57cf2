"""Charges as FOCUS defines them, for batches of several vendors; test_cost_tables.py compares their sums to `cost`."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from dagster_llm_batch.advice.focus import FOCUS_SCHEMA, as_text, focus_charges
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import ShardCost
from dagster_llm_batch.types import Lane
from tests.tables import table

COST = ShardCost(
    **dict.fromkeys(ShardCost._fields),
)._replace(
    asset="mails",
    partition="",
    submission_id="s1",
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
    [row] = focus_charges([COST._replace(**changes)], "test")[0].to_pylist()
    return row


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


def test_what_is_open_unsent_or_of_unknown_cost_is_no_charge():
    left_out = [
        COST._replace(state=ShardState.SUBMITTED),
        COST._replace(state=ShardState.PLANNED, batch_id=None, sent_at=None),
        COST._replace(known_usd=Decimal(0), unpriced=2),
    ]
    charges, unknown = focus_charges(left_out, "test")
    assert (charges.num_rows, charges.schema, unknown) == (0, FOCUS_SCHEMA, 2)
    # The cost of one request is unknown: the charge covers the others.
    charges, unknown = focus_charges([COST._replace(unpriced=1)], "test")
    assert (charges["BilledCost"].to_pylist(), unknown) == ([Decimal("0.0002")], 1)


def test_times_and_quantities_are_written_as_the_specification_wants_them_in_text():
    texts = as_text(focus_charges([COST], "test")[0])
    assert texts["ChargePeriodStart"].to_pylist() == ["2026-12-31T00:00:00Z"]
    assert texts["PricingQuantity"].to_pylist() == texts["ConsumedQuantity"].to_pylist() == ["400.0"]
