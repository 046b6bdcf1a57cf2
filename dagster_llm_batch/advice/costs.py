"""The table of costs: what was spent, saved and wasted, summed from the ledger by asset, model, day, tag and others.

    ledger ─ shard_costs ─▶ ShardCost ─ cost_table ─▶ CostSum of each group, and of all

Money is summed by shard, not by submission: a fallback's cost is that of the fallback, and each wave counts on its own
day. An amount that nobody knows is in no sum. It is counted, and what stands beside it is "at least".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, NamedTuple

from dagster_llm_batch.arguments import unknown_name
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.storage.ledger.records import ShardCost
from dagster_llm_batch.types import Cause

__all__ = ["GROUPS", "CostSum", "CostTable", "ShardBill", "bill_of_shard", "cost_table", "group_names", "known_bill"]

_TAG = "tag:"

GROUPS: Mapping[str, Callable[[ShardCost], str]] = {
    "asset": lambda cost: cost.asset,
    "partition": lambda cost: cost.partition,
    "provider": lambda cost: cost.provider,
    "model": lambda cost: f"{cost.provider}/{cost.model}",
    "day": lambda cost: cost.day.isoformat(),
    "month": lambda cost: f"{cost.day:%Y-%m}",
    "tag": lambda cost: ", ".join(f"{name}={value}" for name, value in sorted((cost.tags or {}).items())),
}
"""What costs are summed by; beside these `tag:NAME`, the value of one tag. Days are those of the sending, in UTC."""

# Nobody knows whether these were billed: the provider cannot be asked any more, or is not.
_LOST = (Cause.GIVEN_UP, Cause.GONE)


@dataclass
class CostSum:
    """Money and tokens of some shards. An amount of which nothing is known is None, never zero.

    Attributes:
        submissions: How many have requests here.
        requests: Those that were sent; one that was sent again counts again.
        requests_again: Part of them: asked again in a later wave.
        requests_escalated: Likewise: asked of a cascade's oracle after its model. They are no waste.
        input_tokens, output_tokens, cached_tokens: As billed, of what is collected; cached ones are part of the input.
        cost_usd: What was billed, by the usage in the replies; at least so much where `requests_unknown` is not 0.
        requests_unknown: Collected requests of which nobody knows what they cost.
        reported_usd: What vendors say, of batches of which they say it.
        reported_of_usd: What the same cost by our prices.
        realtime_usd: What the requests in `cost_usd` would have cost in real time.
        saved_usd: So much less was paid.
        invalid_usd: Part of `cost_usd`: replies that were paid for and gave no label, when first asked for. So are
            answers of a batch that was given up which come when the same has been asked again: that one is the label.
        retries_usd: Likewise, when they were asked for again. A second reply that gives the label is no waste: the
            first one was.
        padding_usd: Part of `cost_usd`: copies that were sent to reach a provider's least number.
        lost_usd: What batches that were given up or are gone were expected to cost, which may have been billed. It is
            in no other amount.
        open_usd: What is expected of requests that are planned, in flight or not collected.
        open_requests: These requests.
        open_unknown: Part of them: nobody knows what they will cost.
    """

    submissions: int = 0
    requests: int = 0
    requests_again: int = 0
    requests_escalated: int = 0
    input_tokens: int | None = 0
    output_tokens: int | None = 0
    cached_tokens: int | None = 0
    cost_usd: Decimal | None = Decimal(0)
    requests_unknown: int = 0
    reported_usd: Decimal | None = None
    reported_of_usd: Decimal | None = None
    realtime_usd: Decimal | None = Decimal(0)
    saved_usd: Decimal | None = Decimal(0)
    invalid_usd: Decimal | None = Decimal(0)
    retries_usd: Decimal | None = Decimal(0)
    padding_usd: Decimal | None = Decimal(0)
    lost_usd: Decimal | None = Decimal(0)
    open_usd: Decimal | None = Decimal(0)
    open_requests: int = 0
    open_unknown: int = 0

    def __post_init__(self) -> None:
        self._submissions: set[str] = set()
        self._known: set[str] = set()

    @property
    def wasted_usd(self) -> Decimal | None:
        """What was paid and gave no label, for whatever reason; None where that is not known of anything."""
        parts = (self.invalid_usd, self.retries_usd, self.padding_usd)
        return None if None in parts else sum((part for part in parts if part is not None), Decimal(0))

    def as_dict(self) -> dict[str, Any]:
        """Return all that is told of the group, by its name."""
        return {**{each.name: getattr(self, each.name) for each in fields(self)}, "wasted_usd": self.wasted_usd}

    def add(self, cost: ShardCost) -> None:
        """Count a shard that is open, or was taken by its provider."""
        self._submissions.add(cost.submission_id)
        self.submissions = len(self._submissions)
        if cost.was_taken:
            self.requests += cost.requests
            self.requests_again += cost.requests if cost.is_again else 0
            self.requests_escalated += cost.requests if cost.is_escalation else 0
        if not cost.is_open:
            self._add_bill(cost)
            return
        self.open_requests += cost.requests
        self.open_unknown += cost.requests if cost.estimated_usd is None else 0
        self._add("open_usd", cost.estimated_usd)

    def _add_bill(self, cost: ShardCost) -> None:
        known, unknown = known_bill(cost)
        self.requests_unknown += unknown
        if cost.cause in _LOST and unknown:
            self._add("lost_usd", _expected(cost, unknown))
        # Tokens may be known where the price is not.
        has_tokens = bool(cost.replies or not unknown)
        self._add("input_tokens", cost.input_tokens if has_tokens else None)
        self._add("output_tokens", cost.output_tokens if has_tokens else None)
        self._add("cached_tokens", cost.cache_read_tokens if has_tokens else None)
        # Of requests of which nothing is known, a zero would look like an amount.
        has_amount = bool(known or not unknown)
        realtime, unlabeled, padding = (
            amount if has_amount else None for amount in (cost.realtime_usd, cost.unlabeled_usd, cost.padding_usd)
        )
        nothing = None if unlabeled is None else Decimal(0)
        self._add("cost_usd", known if has_amount else None)
        self._add("realtime_usd", realtime)
        self._add("saved_usd", None if realtime is None else realtime - known)
        self._add("invalid_usd", nothing if cost.is_again else unlabeled)
        self._add("retries_usd", unlabeled if cost.is_again else nothing)
        self._add("padding_usd", padding)
        if cost.reported_usd is not None:
            self._add("reported_usd", cost.reported_usd)
            self._add("reported_of_usd", known)

    def _add(self, name: str, amount: Decimal | int | None) -> None:
        """Add what is known to a sum. One of nothing that is known is None."""
        if amount is not None:
            setattr(self, name, (getattr(self, name) or 0) + amount)
            self._known.add(name)
        elif name not in self._known:
            setattr(self, name, None)


class ShardBill(NamedTuple):
    """What a shard takes from the money of its day, in USD."""

    usd: Decimal  # billed or, as far as that is not known, expected
    below_usd: float  # so much less it may be, in 19 of 20 cases, where it is not collected
    above_usd: float  # likewise more
    unexpected: int  # requests whose cost nobody knows or expects


def bill_of_shard(cost: ShardCost) -> ShardBill:
    """Return what a shard takes from the money of its day. What was never sent, and never will be, takes nothing."""
    expected = cost.estimated_usd
    if cost.is_open:
        if expected is None:
            return ShardBill(Decimal(0), 0.0, 0.0, cost.requests)
        # By how much the whole submission may be off.
        whole, p95 = float(cost.expected_usd or 0), float(cost.p95_usd or 0)
        ratio = p95 / whole if 0 < whole <= p95 else 1.0
        least = float(cost.p05_usd) / whole if cost.p05_usd is not None and whole else 1 / ratio
        return ShardBill(expected, float(expected) * (1 - min(least, 1.0)), float(expected) * (ratio - 1), 0)
    if not cost.was_taken:
        return ShardBill(Decimal(0), 0.0, 0.0, 0)
    known, unknown = known_bill(cost)
    rest = _expected(cost, unknown)
    return ShardBill(known, 0.0, 0.0, unknown) if rest is None else ShardBill(known + rest, 0.0, 0.0, 0)


def _expected(cost: ShardCost, unknown: int) -> Decimal | None:
    """Return what so many of a shard's requests were expected to cost; None where nobody knows."""
    if cost.estimated_usd is None or not cost.requests:
        return None
    return cost.estimated_usd * min(unknown, cost.requests) / cost.requests


def known_bill(cost: ShardCost) -> tuple[Decimal, int]:
    """Return what is known of a collected shard's bill, and of how many of its requests it is not known."""
    if cost.known_usd is not None and cost.unpriced is not None:
        return cost.known_usd, cost.unpriced
    # Older code has told of all or of none.
    return (Decimal(0), cost.requests) if cost.cost_usd is None else (cost.cost_usd, 0)


@dataclass(frozen=True)
class CostTable:
    """Costs by group, in the order of their names. `by` says what the parts of a group's name are."""

    by: tuple[str, ...]
    groups: Mapping[tuple[str, ...], CostSum]
    total: CostSum

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the groups as rows, with their names by `by`."""
        return [{**dict(zip(self.by, key, strict=True)), **group.as_dict()} for key, group in self.groups.items()]


def group_names(by: Sequence[str]) -> tuple[str, ...]:
    """Return the names of what to sum by. Raises ConfigError for one that is none, or that is given twice."""
    for name in by:
        if name not in GROUPS and not (name.startswith(_TAG) and name != _TAG):
            raise ConfigError(unknown_name("sum", name, [*GROUPS, f"{_TAG}NAME"]))
    if len(set(by)) < len(by):
        raise ConfigError(f"by={','.join(by)} names one thing twice. Name each once.")
    return tuple(by)


def _group(name: str) -> Callable[[ShardCost], str]:
    if name in GROUPS:
        return GROUPS[name]
    tag = name.removeprefix(_TAG)
    return lambda cost: (cost.tags or {}).get(tag, "")


def cost_table(costs: Iterable[ShardCost], by: Sequence[str]) -> CostTable:
    """Sum costs by what `by` names. Raises ConfigError; see `group_names`."""
    names = group_names(by)
    parts = [_group(name) for name in names]
    groups: dict[tuple[str, ...], CostSum] = {}
    total = CostSum()
    for cost in costs:
        # What was never sent, and never will be, cost nothing.
        if not (cost.is_open or cost.was_taken):
            continue
        key = tuple(part(cost) for part in parts)
        groups.setdefault(key, CostSum()).add(cost)
        total.add(cost)
    return CostTable(names, dict(sorted(groups.items())), total)
