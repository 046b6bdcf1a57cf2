"""Forecast of a calendar month's cost: the cost so far, and the days to come by the days before.

The method; `tests/engine/test_cost_forecast.py` tests its coverage by simulation:

- A day's cost is the cost of the requests that were sent on it (UTC): billed or, until that is known, expected.
- Today and each day to come cost the mean of their weekday in the last 14 to 28 complete days, so that a job of Mondays
  is expected on Mondays. A figure needs 14 days: two days of each weekday.
- The 90 % interval is Student's, of a sum of days: the weekdays' own variances, with Welch and Satterthwaite's degrees
  of freedom, widened if days correlate with the day before. Requests in flight add the error of their estimate.

It holds as long as the days to come are like those days. It does not include growth and future backfills.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from math import sqrt
from statistics import fmean, variance

from dagster_llm_batch.advice.costs import bill_of_shard
from dagster_llm_batch.storage.ledger.records import ShardCost
from dagster_llm_batch.text import money_text

__all__ = ["HISTORY", "MonthForecast", "forecast_month", "month_of", "next_month"]

HISTORY = timedelta(days=28)
"""So much of the past is looked at: each weekday four times."""

_LEAST_DAYS = 14
_DAY = timedelta(days=1)

# Student's 95 % quantiles, for 1 degree of freedom and more.
_T95 = (
    6.314, 2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812, 1.796, 1.782, 1.771, 1.761, 1.753,
    1.746, 1.740, 1.734, 1.729, 1.725, 1.721, 1.717, 1.714, 1.711, 1.708, 1.706, 1.703, 1.701, 1.699, 1.697,
)  # fmt: skip

# A higher correlation with the day before is indistinguishable from growth.
_MOST_ALIKE = 0.8

_MICRODOLLAR = Decimal("1e-6")


@dataclass(frozen=True)
class MonthForecast:
    """A month's forecast cost in USD. Without enough days there is only a `reason`.

    Attributes:
        month: The first day of the month.
        so_far_usd: The cost of the requests so far: billed or, until that is known, expected.
        expected_usd: The expected cost of the whole month.
        low_usd, high_usd: The bounds of 18 in 20 such months; one is below, and one above.
        days: The number of complete days in the data.
        requests_unknown: The number of requests of the month without a known or expected cost, left out of all amounts.
        reason: The reason for a missing figure; None with a figure.
    """

    month: date
    so_far_usd: Decimal
    expected_usd: Decimal | None = None
    low_usd: Decimal | None = None
    high_usd: Decimal | None = None
    days: int = 0
    requests_unknown: int = 0
    reason: str | None = None

    def __str__(self) -> str:
        unknown = f"; {self.requests_unknown:,} requests of unknown cost are not in it" if self.requests_unknown else ""
        if self.expected_usd is None or self.low_usd is None or self.high_usd is None:
            return f"{money_text(self.so_far_usd)} so far; no forecast: {self.reason}{unknown}"
        rests = f"by the last {self.days} days" if self.days else "the month is over"
        return (
            f"{money_text(self.expected_usd)} expected, with 90 % between {money_text(self.low_usd)} and "
            f"{money_text(self.high_usd)} ({rests}); {money_text(self.so_far_usd)} so far{unknown}"
        )


def month_of(day: date) -> date:
    """Return the first day of a day's month."""
    return day.replace(day=1)


def next_month(month: date) -> date:
    """Return the first day of the month after."""
    return (month.replace(day=1) + timedelta(days=31)).replace(day=1)


@dataclass
class _Day:
    """The committed cost of a day, and the errors of its part in flight, below and above."""

    usd: Decimal = Decimal(0)
    below_usd: float = 0.0
    above_usd: float = 0.0


def forecast_month(costs: Iterable[ShardCost], month: date, now: datetime) -> MonthForecast:
    """Return the forecast of a month. `costs` starts at its first day, or `HISTORY` before `now` if that is earlier."""
    days: defaultdict[date, _Day] = defaultdict(_Day)
    unknown = 0
    end = next_month(month)
    for cost in costs:
        bill = bill_of_shard(cost)
        day = days[cost.day]
        day.usd += bill.usd
        day.below_usd += bill.below_usd
        day.above_usd += bill.above_usd
        if month <= cost.day < end:
            unknown += bill.unexpected
    today = now.date()
    committed = sum((day.usd for at, day in days.items() if month <= at < end), Decimal(0))
    if month > today:
        return MonthForecast(month, committed, requests_unknown=unknown, reason="the month has not begun")
    below = sum(day.below_usd for at, day in days.items() if month <= at < end)
    above = sum(day.above_usd for at, day in days.items() if month <= at < end)
    expected, half, known = committed, 0.0, 0
    if today < end:
        history = _history({at: float(day.usd) for at, day in days.items()}, today)
        if (known := len(history)) < _LEAST_DAYS:
            reason = f"{known} complete days are too few, {_LEAST_DAYS} are needed"
            return MonthForecast(month, committed, days=known, requests_unknown=unknown, reason=reason)
        to_come = [today + _DAY * number for number in range((end - today).days)]
        total, half = _sum_of_days(history, to_come)
        # Today's requests so far are a part of today's expected cost.
        expected += max(Decimal(total) - days[today].usd, Decimal(0))
    least = committed - Decimal(below)
    low = max(expected - Decimal(sqrt(half**2 + below**2)), least)
    high = expected + Decimal(sqrt(half**2 + above**2))
    expected, low, high = (amount.quantize(_MICRODOLLAR) for amount in (expected, low, high))
    return MonthForecast(month, committed, expected, low, high, known, unknown)


def _history(daily: Mapping[date, float], today: date) -> dict[date, float]:
    """Return the last complete days, from the first day with a request on."""
    first = min((day for day in daily if day >= today - HISTORY), default=today)
    return {day: daily.get(day, 0.0) for day in (first + _DAY * number for number in range((today - first).days))}


def _sum_of_days(history: Mapping[date, float], to_come: Iterable[date]) -> tuple[float, float]:
    """Return the expected cost of these days together, and half of its 90 % interval."""
    by_weekday: defaultdict[int, list[float]] = defaultdict(list)
    for day, usd in history.items():
        by_weekday[day.weekday()].append(usd)
    counts: defaultdict[int, int] = defaultdict(int)
    for day in to_come:
        counts[day.weekday()] += 1
    total = spread = freedom = 0.0
    for weekday, count in counts.items():
        seen = by_weekday[weekday]
        total += count * fmean(seen)
        # The variance of the days themselves, and of the mean for them.
        part = variance(seen) * (count + count**2 / len(seen))
        spread += part
        freedom += part**2 / (len(seen) - 1)
    if not spread:
        return total, 0.0
    degrees = max(int(spread**2 / freedom), 1)
    half = _T95[min(degrees, len(_T95)) - 1] * sqrt(spread)
    if sum(counts.values()) > 1:
        alike = _likeness([usd - fmean(by_weekday[day.weekday()]) for day, usd in history.items()])
        half *= sqrt((1 + alike) / (1 - alike))
    return total, half


def _likeness(rests: list[float]) -> float:
    """Return the correlation of a day with the day before, corrected for the subtracted means."""
    whole = sum(rest**2 for rest in rests)
    if not whole:
        return 0.0
    found = sum(one * other for one, other in pairwise(rests)) / whole
    return min(max(found + 2 / len(rests), 0.0), _MOST_ALIKE)
