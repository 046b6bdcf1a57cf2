"""What is wanted of the labels of a dataset's next rows, and one way to make them, with its cost, end and quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from dagster_llm_batch.advice.track_record import TrackRecord
from dagster_llm_batch.core.cascade import Rolling
from dagster_llm_batch.types import Lane

__all__ = ["GOLD", "Cost", "End", "LabelingPlan", "Quality", "Wanted"]

GOLD = "gold"
"""What `Wanted.against` is where qualities are shares of gold rows that are labeled right."""


@dataclass(frozen=True)
class Wanted:
    """What a plan has to reach.

    Attributes:
        quality: The least share of right labels; `against`: gold, or the model whose label counts as right.
        confidence: How sure that has to be, of all plans together.
        rows: How many rows are to be labeled.
        target, score: The columns that are compared, and of scores (None: there is none).
        by: When all has to have ended; `max_usd`: what it may cost. None: whenever, whatever.
        now: When it is begun.
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
    """A share of right labels. `value` None: it is not known, and `basis` says why; else on what it rests.

    `is_promised`: the run certifies it by its own sample; `low` is what it promises then.
    """

    value: float | None
    low: float | None
    high: float | None
    rows: int
    basis: str
    is_promised: bool = False


class Cost(NamedTuple):
    """What rows cost, in USD: expected, and between which ends 9 in 10 submissions do. None: not known, see `why`."""

    expected: Decimal | None
    low: Decimal | None
    high: Decimal | None
    why: str | None = None

    def times(self, share: float, low: float | None = None, high: float | None = None) -> Cost:
        """Return the cost of a share of the rows, which itself has two ends."""
        shares = (share, share if low is None else low, share if high is None else high)
        expected, least, most = (
            None if amount is None else amount * Decimal(repr(each))
            for amount, each in zip((self.expected, self.low, self.high), shares, strict=True)
        )
        return Cost(expected, least, most, self.why)

    def plus(self, other: Cost) -> Cost:
        """Return the cost of both. The ends are added, as if both went wrong together."""
        pairs = ((self.expected, other.expected), (self.low, other.low), (self.high, other.high))
        expected, low, high = (None if None in pair else sum(filter(None, pair), Decimal(0)) for pair in pairs)
        return Cost(expected, low, high, self.why or other.why)


class End(NamedTuple):
    """How long requests take, from their sending on, in 19 of 20 cases; None: not known, and `basis` says why."""

    p95: timedelta | None
    basis: str


@dataclass(frozen=True)
class LabelingPlan:
    """One way to label the rows.

    Attributes:
        record: Of the model; `oracle`: likewise, of a cascade.
        agreement, sample: What a cascade promises, and how many rows it samples for that.
        within: By which share its labels may be right less often than the oracle's, in the place of `agreement`.
        rolling: What sets the threshold, where rows of earlier partitions do, in the place of a sample.
        deadline: After which time what has no answer yet is asked in real time.
        accepted: The share of rows that is expected to keep the model's own label.
        ends_at: When 19 of 20 have ended.
        broken: What it breaks; `unknown`: what cannot be said. Where neither has anything, it is feasible.
    """

    record: TrackRecord
    lane: Lane
    cost: Cost
    quality: Quality
    end: End
    oracle: TrackRecord | None = None
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
