"""Costs as rows of FOCUS 1.0, the FinOps Foundation's table of charges: one row for each collected batch.

    ledger ─ shard_costs ─▶ ShardCost ─ focus_charges ─▶ a table that cost tools import with the clouds' own tables

The specification defines the columns, their order and their nulls (https://focus.finops.org/focus-specification/v1-0/).
Columns that start with `x_` are additions of this package. A charge covers a batch, or the real-time requests of one
submission. The table omits batches that are not collected and replies without a price. `BilledCost` uses our prices and
adds up to `cost_usd` of the command `cost`. `x_ReportedCost` has the cost that the vendor reports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.advice.costs import known_bill
from dagster_llm_batch.core.pricing import MONEY_TOTAL
from dagster_llm_batch.core.rates import PICODOLLAR
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.storage.ledger.records import ShardCost
from dagster_llm_batch.types import Lane

__all__ = ["FOCUS_SCHEMA", "FOCUS_VERSION", "as_text", "focus_charges"]

FOCUS_VERSION = "1.0"


class _Vendor(NamedTuple):
    provider: str
    service: str


# By the kind of a provider. The kind of `openai_eu` is the first part of its name.
_VENDORS: Mapping[str, _Vendor] = {
    **{kind: _Vendor(*entry.sold_as) for kind, entry in PROVIDERS.items() if entry.sold_as is not None},
    "azure": _Vendor("Microsoft", "Azure OpenAI"),
    "mistral": _Vendor("Mistral AI", "Mistral API"),
}

# The maker of a model, by a word in the model's name.
_PUBLISHERS: Mapping[str, str] = {
    "amazon": "AWS",
    "claude": "Anthropic",
    "deepseek": "DeepSeek",
    "gemini": "Google",
    "google": "Google",
    "gpt": "OpenAI",
    "llama": "Meta",
    "meta": "Meta",
    "mistral": "Mistral AI",
    "nova": "AWS",
    "openai": "OpenAI",
    "qwen": "Alibaba Cloud",
}

_TIME = pa.timestamp("s", "UTC")
_TEXTS, _MONEY, _COUNTS, _TIMES = (pa.string(), MONEY_TOTAL, pa.int64(), _TIME)
_KINDS: Mapping[str, pa.DataType] = {
    "AvailabilityZone": _TEXTS,
    "BilledCost": _MONEY,
    "BillingAccountId": _TEXTS,
    "BillingAccountName": _TEXTS,
    "BillingCurrency": _TEXTS,
    "BillingPeriodEnd": _TIMES,
    "BillingPeriodStart": _TIMES,
    "ChargeCategory": _TEXTS,
    "ChargeClass": _TEXTS,
    "ChargeDescription": _TEXTS,
    "ChargeFrequency": _TEXTS,
    "ChargePeriodEnd": _TIMES,
    "ChargePeriodStart": _TIMES,
    "CommitmentDiscountCategory": _TEXTS,
    "CommitmentDiscountId": _TEXTS,
    "CommitmentDiscountName": _TEXTS,
    "CommitmentDiscountStatus": _TEXTS,
    "CommitmentDiscountType": _TEXTS,
    "ConsumedQuantity": _COUNTS,
    "ConsumedUnit": _TEXTS,
    "ContractedCost": _MONEY,
    "ContractedUnitPrice": _MONEY,
    "EffectiveCost": _MONEY,
    "InvoiceIssuerName": _TEXTS,
    "ListCost": _MONEY,
    "ListUnitPrice": _MONEY,
    "PricingCategory": _TEXTS,
    "PricingQuantity": _COUNTS,
    "PricingUnit": _TEXTS,
    "ProviderName": _TEXTS,
    "PublisherName": _TEXTS,
    "RegionId": _TEXTS,
    "RegionName": _TEXTS,
    "ResourceId": _TEXTS,
    "ResourceName": _TEXTS,
    "ResourceType": _TEXTS,
    "ServiceCategory": _TEXTS,
    "ServiceName": _TEXTS,
    "SkuId": _TEXTS,
    "SkuPriceId": _TEXTS,
    "SubAccountId": _TEXTS,
    "SubAccountName": _TEXTS,
    "Tags": _TEXTS,
    "x_Asset": _TEXTS,
    "x_CachedTokens": _COUNTS,
    "x_InputTokens": _COUNTS,
    "x_Namespace": _TEXTS,
    "x_OutputTokens": _COUNTS,
    "x_Partition": _TEXTS,
    "x_RealtimeCost": _MONEY,
    "x_ReportedCost": _MONEY,
    "x_Requests": _COUNTS,
    "x_SubmissionId": _TEXTS,
}
FOCUS_SCHEMA = pa.schema(_KINDS)


def focus_charges(costs: Iterable[ShardCost], namespace: str) -> tuple[pa.Table, int]:
    """Return the charges in the order of their days, and the number of requests with unknown cost, which it omits."""
    rows, unknown = [], 0

    def place(cost: ShardCost) -> tuple[datetime, str, str]:
        return cost.sent_at or cost.planned_at, cost.submission_id, cost.batch_id or ""

    for cost in sorted(costs, key=place):
        if cost.is_open or not cost.was_taken:
            continue
        known, unpriced = known_bill(cost)
        unknown += unpriced
        if unpriced < cost.requests or known:
            rows.append(_charge(cost, namespace, known))
    return pa.Table.from_pylist(rows, schema=FOCUS_SCHEMA), unknown


def _charge(cost: ShardCost, namespace: str, known: Decimal) -> dict[str, Any]:
    day = datetime.combine(cost.day, time(), UTC)
    month = day.replace(day=1)
    tokens = (cost.input_tokens or 0) + (cost.output_tokens or 0) if cost.replies else 0
    # Some vendors count requests instead of tokens.
    quantity, unit = (tokens, "Tokens") if tokens else (cost.requests, "Requests")
    billed = known.quantize(PICODOLLAR)
    price = (known / quantity).quantize(PICODOLLAR)
    is_batch = cost.lane is Lane.BATCH
    vendor = _vendor(cost.provider)
    lane = "batch" if is_batch else "real time"
    own = {"llm_batch/namespace": namespace, "llm_batch/asset": cost.asset, "llm_batch/partition": cost.partition}
    return {
        "BilledCost": billed,
        "BillingAccountId": cost.provider,
        "BillingAccountName": cost.provider,
        "BillingCurrency": "USD",
        "BillingPeriodStart": month,
        "BillingPeriodEnd": (month + timedelta(days=32)).replace(day=1),
        "ChargeCategory": "Usage",
        "ChargeDescription": f"{cost.requests:,} requests to {cost.model}, {lane}",
        "ChargeFrequency": "Usage-Based",
        "ChargePeriodStart": day,
        "ChargePeriodEnd": day + timedelta(days=1),
        "ConsumedQuantity": quantity,
        "ConsumedUnit": unit,
        "ContractedCost": billed,
        "ContractedUnitPrice": price,
        "EffectiveCost": billed,
        "InvoiceIssuerName": vendor.provider,
        "ListCost": billed,
        "ListUnitPrice": price,
        "PricingCategory": "Standard",
        "PricingQuantity": quantity,
        "PricingUnit": unit,
        "ProviderName": vendor.provider,
        "PublisherName": _publisher(cost.model, vendor),
        "ResourceId": cost.batch_id,
        "ResourceName": cost.asset,
        "ResourceType": "Batch" if is_batch else "Real-time requests",
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": vendor.service,
        "SkuId": f"{cost.provider}/{cost.model}",
        "SkuPriceId": f"{cost.provider}/{cost.model} {lane}",
        "SubAccountId": namespace,
        "SubAccountName": namespace,
        # The names come last, so that they replace tags of the same name.
        "Tags": json.dumps({**(cost.tags or {}), **{name: value for name, value in own.items() if value}}),
        "x_Asset": cost.asset,
        "x_CachedTokens": cost.cache_read_tokens,
        "x_InputTokens": cost.input_tokens,
        "x_Namespace": namespace,
        "x_OutputTokens": cost.output_tokens,
        "x_Partition": cost.partition or None,
        "x_RealtimeCost": None if cost.realtime_usd is None else cost.realtime_usd.quantize(PICODOLLAR),
        "x_ReportedCost": None if cost.reported_usd is None else cost.reported_usd.quantize(PICODOLLAR),
        "x_Requests": cost.requests,
        "x_SubmissionId": cost.submission_id,
    }


def _vendor(provider: str) -> _Vendor:
    kind = re.split(r"[_.-]", provider, maxsplit=1)[0]
    return _VENDORS.get(provider) or _VENDORS.get(kind) or _Vendor(provider, provider)


def _publisher(model: str, vendor: _Vendor) -> str:
    return next((name for word, name in _PUBLISHERS.items() if word in model.lower()), vendor.provider)


def as_text(charges: pa.Table) -> pa.Table:
    """Return the charges for a text file, with times like 2026-11-01T00:00:00Z and quantities like 400.0."""
    for number, field in enumerate(charges.schema):
        if field.type == _TIME:
            charges = charges.set_column(number, field.name, pc.strftime(charges[number], "%Y-%m-%dT%H:%M:%SZ"))
        elif field.name.endswith("Quantity"):
            # FOCUS requires decimals, and readers that infer types read 400 as an integer.
            texts = pc.binary_join_element_wise(charges[number].cast(pa.string()), "0", ".")
            charges = charges.set_column(number, field.name, texts)
    return charges
