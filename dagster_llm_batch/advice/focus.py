"""Costs as rows of FOCUS 1.0, the FinOps Foundation's table of charges: one row for each collected batch.

    ledger ─ shard_costs ─▶ ShardCost ─ focus_charges ─▶ a table that cost tools import with the clouds' own tables

The specification defines the columns, their order and their nulls (https://focus.finops.org/focus-specification/v1-0/).
Columns that start with `x_` are additions of this package. A charge covers a batch, or the real-time requests of one
shard. Replies that name a tier of the vendor, such as "flex", have a charge of their own. The table omits batches that
are not collected and requests without a known cost. `BilledCost` uses our prices and adds up to `cost_usd` of the
command `cost`. `x_ReportedCost` has the cost that the vendor reports for the whole batch.

Unit prices are averages over the tokens of a charge, because the ledger has one cost for all kinds of tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, time, timedelta
from decimal import Context, Decimal
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.advice.costs import known_bill
from dagster_llm_batch.core.pricing import MONEY_TOTAL
from dagster_llm_batch.core.rates import PICODOLLAR
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.storage.ledger.events import BilledInTier
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
# FOCUS requires that the unit price, times the quantity, is the cost. So an average has more digits than an amount.
_PRICE = pa.decimal128(38, 24)
_EXACT = Context(prec=_PRICE.precision)
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
    "ContractedUnitPrice": _PRICE,
    "EffectiveCost": _MONEY,
    "InvoiceIssuerName": _TEXTS,
    "ListCost": _MONEY,
    "ListUnitPrice": _PRICE,
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


def focus_charges(
    costs: Iterable[ShardCost], namespace: str, tiers: Mapping[str, Sequence[BilledInTier]]
) -> tuple[pa.Table, int]:
    """Return the charges in the order of their days, and the number of requests with unknown cost, which it omits.

    `tiers` are the parts of bills for tiers, by shard id: see Money.tier_bills.
    """
    rows, unknown = [], 0

    def place(cost: ShardCost) -> tuple[datetime, str, str]:
        return cost.sent_at or cost.planned_at, cost.submission_id, cost.batch_id or ""

    for cost in sorted(costs, key=place):
        if cost.is_open or not cost.was_taken:
            continue
        for part, tier in _parts(cost, tiers.get(cost.shard_id, ())):
            known, unpriced = known_bill(part)
            unknown += unpriced
            if unpriced < part.requests or known:
                rows.append(_charge(part, namespace, known, unpriced, tier))
    return pa.Table.from_pylist(rows, schema=FOCUS_SCHEMA), unknown


_COUNTED = ("requests", "unpriced", "input_tokens", "output_tokens", "cache_read_tokens")
_PRICED = ("known_usd", "realtime_usd")


def _parts(cost: ShardCost, tiers: Sequence[BilledInTier]) -> Iterator[tuple[ShardCost, str | None]]:
    """Yield the part of a shard in each tier, and the rest of it without a tier, if there is any."""
    rest = cost
    for bill in tiers:
        amounts: dict[str, Any] = {name: getattr(bill, name) for name in _COUNTED}
        amounts.update({name: Decimal(getattr(bill, name)) for name in _PRICED})
        # Rows that were erased since are not in the shard's number of requests.
        amounts["requests"] = min(bill.requests, rest.requests)
        left = {name: (getattr(rest, name) or 0) - amount for name, amount in amounts.items()}
        rest = rest._replace(**left)
        yield cost._replace(**amounts, reported_usd=None), bill.tier
    if not tiers or rest.requests or rest.known_usd:
        yield rest._replace(reported_usd=None if tiers else cost.reported_usd), None


def _charge(cost: ShardCost, namespace: str, known: Decimal, unpriced: int, tier: str | None) -> dict[str, Any]:
    day = datetime.combine(cost.day, time(), UTC)
    month = day.replace(day=1)
    tokens = (cost.input_tokens or 0) + (cost.output_tokens or 0) if cost.replies else 0
    # Some vendors count requests instead of tokens. The tokens include those of requests without a known cost, so these
    # can only be left out of a number of requests. An erasure may leave none.
    requests = max(cost.requests - unpriced, 1)
    quantity, unit = (tokens, "Tokens") if tokens and not unpriced else (requests, "Requests")
    billed = known.quantize(PICODOLLAR)
    price = _EXACT.quantize(_EXACT.divide(billed, Decimal(quantity)), Decimal(1).scaleb(-_PRICE.scale))
    is_batch = cost.lane is Lane.BATCH
    vendor = _vendor(cost.provider)
    lane = ", ".join(filter(None, ["batch" if is_batch else "real time", tier]))
    per_request = ", per request" if unit == "Requests" else ""
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
        # FOCUS has no name or type of a resource without an id.
        "ResourceName": cost.asset if cost.batch_id else None,
        "ResourceType": "Batch" if cost.batch_id else None,
        "ServiceCategory": "AI and Machine Learning",
        "ServiceName": vendor.service,
        "SkuId": f"{cost.provider}/{cost.model}",
        "SkuPriceId": f"{cost.provider}/{cost.model} {lane}{per_request}",
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
