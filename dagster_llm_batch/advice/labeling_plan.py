"""A way to label a dataset's next rows, with its cost, end and quality, and the targets for these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from dagster_llm_batch.advice.model_history import ModelHistory
from dagster_llm_batch.core.cascade import Rolling
from dagster_llm_batch.types import Lane

__all__ = ["GOLD", "Cost", "End", "LabelingPlan", "Quality", "Wanted"]

GOLD = "gold"
"""Value of `Wanted.against` if qualities are shares of correctly labeled gold rows."""


@dataclass(frozen=True)
class Wanted:
    """The targets of a plan.

    Attributes:
        quality: The least share of right labels; `against`: gold, or the model whose label counts as right.
        confidence: The confidence in it, for all plans together.
        rows: The number of rows to label.
        target, score: The compared column, and the column of scores (None without one).
        by: The latest end; `max_usd`: the highest cost. None without a limit.
        now: The time of the start.
        rolls: Whether partitions are windows of time, so that earlier ones may set a threshold.
    """

    quality: float
    confidence: float
    rows: int
    target: str
    score: str | None
    against: str
    now: datetime
    by: datetime | None = None
    max_usd: Decimal | None = None
    rolls: bool = False


class Quality(NamedTuple):
    """A share of right labels. `basis` is its basis or, if `value` is None, the reason why it is unknown.

    `is_promised`: the run certifies it by its own sample; `low` is then the guaranteed share.
    """

    value: float | None
    low: float | None
    high: float | None
    rows: int
    basis: str
    is_promised: bool = False


class Cost(NamedTuple):
    """The cost of rows in USD: expected, and the bounds of 9 in 10 submissions. None if unknown; see `why`."""

    expected: Decimal | None
    low: Decimal | None
    high: Decimal | None
    why: str | None = None

    def times(self, share: float, low: float | None = None, high: float | None = None) -> Cost:
        """Return the cost of a share of the rows. The share has two bounds, too."""
        shares = (share, share if low is None else low, share if high is None else high)
        expected, least, most = (
            None if amount is None else amount * Decimal(repr(each))
            for amount, each in zip((self.expected, self.low, self.high), shares, strict=True)
        )
        return Cost(expected, least, most, self.why)

    def plus(self, other: Cost) -> Cost:
        """Return the cost of both. The bounds are added, as for two errors in the same direction."""
        pairs = ((self.expected, other.expected), (self.low, other.low), (self.high, other.high))
        expected, low, high = (None if None in pair else sum(filter(None, pair), Decimal(0)) for pair in pairs)
        return Cost(expected, low, high, self.why or other.why)


class End(NamedTuple):
    """The time from sending to end in 19 of 20 cases. If it is None, `basis` is the reason."""

    p95: timedelta | None
    basis: str


@dataclass(frozen=True)
class LabelingPlan:
    """One way to label the rows.

    Attributes:
        record: The history of the model; `oracle`: the history of a cascade's oracle.
        agreement, sample: A cascade's guarantee, and the number of rows that it samples for it.
        within: The guarantee instead of `agreement`: the largest loss of accuracy against the oracle.
        rolling: The rule by which earlier partitions set the threshold, instead of a sample.
        deadline: The time after which unanswered requests are sent in real time.
        accepted: The expected share of rows that keep the model's own label.
        ends_at: The time by which 19 of 20 have ended.
        broken: The missed targets; `unknown`: the targets without data. A plan without both is feasible.
    """

    record: ModelHistory
    lane: Lane
    cost: Cost
    quality: Quality
    end: End
    oracle: ModelHistory | None = None
    agreement: float | None = None
    sample: int | None = None
    within: float | None = None
    rolling: Rolling | None = None
    deadline: timedelta | None = None
    accepted: float | None = None
    ends_at: datetime | None = None
    broken: Sequence[str] = ()
    unknown: Sequence[str] = ()

    @property
    def state(self) -> str:
        return "dropped" if self.broken else "open" if self.unknown else "feasible"

    @property
    def models(self) -> list[str]:
        return [self.record.model, *([] if self.oracle is None else [self.oracle.model])]

    @property
    def order(self) -> tuple[Any, ...]:
        """The cheapest first; of equal ones the one that ends first. After them those that assume more, and then those
        of which people have to label rows, which is in no price.
        """
        cost, p95 = self.cost.expected, self.end.p95
        level = 1 - self.within if self.within is not None else self.agreement or 0
        ending = (p95 is None, p95 or timedelta())
        price = (self.within is not None, self.rolling is not None, cost is None, cost or 0)
        return (*price, *ending, self.models, self.lane, level, self.sample or 0)
