"""The table of costs: spent, saved and wasted money, summed from the ledger by asset, model, day, tag and others.

    ledger ─ shard_costs ─▶ ShardCost ─ cost_table ─▶ CostSum of each group, and of all

Money is summed by shard, not by submission: a fallback's cost counts for the fallback, and each wave on its own day.
Unknown amounts are left out of sums. Their number is counted, and the sum next to it reads "at least".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any, NamedTuple

from dagster_llm_batch.arguments import unknown_name
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.storage.ledger.records import ShardCost
from dagster_llm_batch.types import NOT_AWAITED

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
"""Groups to sum costs by, and `tag:NAME`, the value of one tag. Days are days of sending, in UTC."""


@dataclass
class CostSum:
    """Money and tokens of some shards. An unknown amount is None, never zero.

    Attributes:
        submissions: The number of submissions with requests here.
        requests: The number of sent requests; a request that was sent again counts again.
        requests_again: The part of `requests` that was sent again in a later wave.
        requests_escalated: The part of `requests` to a cascade's oracle after its model. They are not waste.
        input_tokens, output_tokens, cached_tokens: The billed tokens of collected requests; the input includes the
            cached ones.
        cost_usd: The billed cost, by the usage in the replies; a lower bound if `requests_unknown` is not 0.
        requests_unknown: The number of collected requests with unknown cost.
        reported_usd: The cost by the vendors' own reports, of batches that have one.
        reported_of_usd: The cost of the same batches by our prices.
        realtime_usd: The cost in real time of the requests in `cost_usd`.
        saved_usd: The difference from `realtime_usd`.
        invalid_usd: The part of `cost_usd` for first replies without a label. It includes late answers of a batch that
            was given up, if another request gave the label in the meantime.
        retries_usd: The part of `cost_usd` for repeated replies without a label. A second reply with the label is not
            waste: the first one was.
        padding_usd: The part of `cost_usd` for copies that were sent to reach a provider's least number.
        lost_usd: The expected cost of batches that were given up or are gone, which may have been billed. Other amounts
            do not include it.
        open_usd: The expected cost of requests that are planned, in flight or not collected.
        open_requests: The number of these requests.
        open_unknown: The part of `open_requests` with unknown cost.
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
        """The cost without a label, for any reason; None if it is unknown for all."""
        parts = (self.invalid_usd, self.retries_usd, self.padding_usd)
        return None if None in parts else sum((part for part in parts if part is not None), Decimal(0))

    def as_dict(self) -> dict[str, Any]:
        """Return all values of the group, by their names."""
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
        if cost.cause in NOT_AWAITED and unknown:
            self._add("lost_usd", _expected(cost, unknown))
        # Tokens may be known without a price.
        has_tokens = bool(cost.replies or not unknown)
        self._add("input_tokens", cost.input_tokens if has_tokens else None)
        self._add("output_tokens", cost.output_tokens if has_tokens else None)
        self._add("cached_tokens", cost.cache_read_tokens if has_tokens else None)
        # For requests without a known cost, a zero would look like an amount.
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
        """Add known amounts to a sum. A sum without a known amount is None."""
        if amount is not None:
            setattr(self, name, (getattr(self, name) or 0) + amount)
            self._known.add(name)
        elif name not in self._known:
            setattr(self, name, None)


class ShardBill(NamedTuple):
    """The share of a shard in the money of its day, in USD."""

    usd: Decimal  # billed, or expected where the bill is unknown
    below_usd: float  # the error below, in 19 of 20 cases, of requests that are not collected
    above_usd: float  # the error above, likewise
    unexpected: int  # requests without a known or expected cost


def bill_of_shard(cost: ShardCost) -> ShardBill:
    """Return a shard's share in the money of its day. A shard that is never sent has no share."""
    expected = cost.estimated_usd
    if cost.is_open:
        if expected is None:
            return ShardBill(Decimal(0), 0.0, 0.0, cost.requests)
        # The possible error of the whole submission.
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
    """Return the expected cost of a number of a shard's requests; None if unknown."""
    if cost.estimated_usd is None or not cost.requests:
        return None
    return cost.estimated_usd * min(unknown, cost.requests) / cost.requests


def known_bill(cost: ShardCost) -> tuple[Decimal, int]:
    """Return the known part of a collected shard's bill, and the number of requests without a known cost."""
    if cost.known_usd is not None and cost.unpriced is not None:
        return cost.known_usd, cost.unpriced
    # Older code recorded either all costs or no cost.
    return (Decimal(0), cost.requests) if cost.cost_usd is None else (cost.cost_usd, 0)


@dataclass(frozen=True)
class CostTable:
    """Costs by group, in the order of their names. `by` names the parts of a group's name."""

    by: tuple[str, ...]
    groups: Mapping[tuple[str, ...], CostSum]
    total: CostSum

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the groups as rows, with their names by `by`."""
        return [{**dict(zip(self.by, key, strict=True)), **group.as_dict()} for key, group in self.groups.items()]


def group_names(by: Sequence[str]) -> tuple[str, ...]:
    """Return the names to sum by. Raises ConfigError for an unknown or repeated name."""
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
    """Sum costs by the names in `by`. Raises ConfigError; see `group_names`."""
    names = group_names(by)
    parts = [_group(name) for name in names]
    groups: dict[tuple[str, ...], CostSum] = {}
    total = CostSum()
    for cost in costs:
        # A shard that is never sent costs nothing.
        if not (cost.is_open or cost.was_taken):
            continue
        key = tuple(part(cost) for part in parts)
        groups.setdefault(key, CostSum()).add(cost)
        total.add(cost)
    return CostTable(names, dict(sorted(groups.items())), total)
