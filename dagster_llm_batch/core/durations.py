"""When something will have ended, by how long the like of it took before: submissions, or single batches.

- **Running ones count.** They have taken longer than their age, by an unknown time: they are censored. The shares that
  have ended by each time are estimated by Kaplan and Meier (1958). An estimate from ended ones only would favor quick
  ones: with a true p90 of 7.3 hours it gives 4.3, and Kaplan and Meier 7.2.
- **Days count.** Submissions of one day share their vendor's hours, so that forty of one afternoon are hardly more
  evidence than one. Each day has the weight 1, and each of its submissions an equal part (Lee, Barber and Willett 2023,
  hierarchical conformal prediction). If forty submissions a day counted as independent ones, only 57 of 100 would end
  by their p90.
- **A share of the next day, not of past days.** Of n known days the k-th has a share of k/(n + 1) below it, so that a
  p90 needs at least nine known days.
- **The level adapts.** Each day is forecast from the data when it began, and the level moves with the share of it that
  ended later, or earlier, than forecast (adaptive conformal inference, Gibbs and Candès 2021): the forecasts follow a
  slower vendor within some days. If the level then asks for more than was ever observed, there is no figure.
- **The last of several** single batches: as if they were independent, which is late rather than early if a slow hour of
  the vendor makes all of them slow.

`tests/core/test_durations.py` holds the estimate to `scipy.stats.ecdf`, which is not used itself: scipy is an optional
dependency, and a plan is made without it. `docs/truth.md` has the simulations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from math import ceil
from typing import Literal

import numpy as np
import numpy.typing as npt

from dagster_llm_batch.types import Span

__all__ = ["FEWEST", "Durations", "EndForecast", "forecast_end"]

FEWEST = 10
"""Days on which something began that has ended: fewer give no forecast."""

# Number of the newest days behind a forecast, and number of days to forecast for the levels.
_REMEMBERED = 40

# By how much each level moves with one that lay outside.
_LEVELS = (0.5, 0.9, 0.95)
_STEPS = (0.05, 0.03, 0.02)

# Of floating point: as many decimals as products of some hundred factors keep.
_TINY = 1e-9

_Numbers = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int_]
_Booleans = npt.NDArray[np.bool_]

_Known = tuple[float, int, float]
"""The time when the outcome of a forecast became known, the level that it moves, and by how much."""


@dataclass(frozen=True)
class EndForecast:
    """Duration of the next one, from its start.

    Attributes:
        p50, p90, p95: Limits that 1 of 2, 9 of 10 and 19 of 20 such ones stay within. None: unknown, since too few
            have ended, or the data do not reach so far.
        basis: Data behind it: earlier "submissions" of the dataset, or single "batches" of the model. "none": both have
            too few.
        ended: Number of these that have ended.
        running: Number of these that have not.
        days: Number of days on which the ended ones had begun.
    """

    p50: timedelta | None = None
    p90: timedelta | None = None
    p95: timedelta | None = None
    basis: Literal["submissions", "batches", "none"] = "none"
    ended: int = 0
    running: int = 0
    days: int = 0


def forecast_end(
    spans: Sequence[Span],
    now: datetime,
    *,
    basis: Literal["submissions", "batches"] = "submissions",
    batches: int = 1,
    age: timedelta = timedelta(0),
) -> EndForecast:
    """Return how long the next one takes: `Durations(spans, now).forecast_end(...)`."""
    return Durations(spans, now).forecast_end(basis=basis, batches=batches, age=age)


class Durations:
    """Durations of similar submissions or batches, ended or running.

    Args:
        spans: In any order. One that was stopped before its end counts as censored.
        now: When it is asked, aware.
    """

    def __init__(self, spans: Sequence[Span], now: datetime) -> None:
        # A time in the future comes from a wrong clock: such a duration is unknown.
        seen = (span for span in spans if span.began <= now and (span.until is None or span.until <= now))
        past = sorted(seen, key=lambda span: span.began)
        began = np.array([span.began.timestamp() for span in past])
        # By a vendor's clock a batch may have ended before it was sent by ours.
        until = np.maximum(np.array([(span.until or now).timestamp() for span in past]), began)
        has_ended = np.array([span.has_ended for span in past], np.bool_)
        dates = np.array([span.began.astimezone(UTC).toordinal() for span in past], np.int_)
        names, day = np.unique(dates, return_inverse=True)
        recent = day >= len(names) - _REMEMBERED
        self._took, self._is_end, self._day = (until - began)[recent], has_ended[recent], day[recent]
        self.ended = int(self._is_end.sum())
        self.running = len(self._took) - self.ended
        self.days = _count_days(self._day[self._is_end])
        self._levels: list[float] = []
        if self.are_enough:
            seen_by = day >= len(names) - 2 * _REMEMBERED
            of_spans = began[seen_by], until[seen_by], has_ended[seen_by], day[seen_by]
            self._levels = _levels_now(*of_spans, now.timestamp())

    @property
    def are_enough(self) -> bool:
        """Whether ended ones had begun on at least FEWEST days."""
        return self.days >= FEWEST

    def days_for_p95(self, batches: int = 1) -> int | None:
        """Return on how many days some must have ended for a p95 of the last of so many.

        Return None if more days do not help, since the latest ones were late too often.
        """
        share: float = (self._levels or _LEVELS)[-1] ** (1 / batches)
        return None if share >= 1 else ceil(share / (1 - share) - _TINY)

    def forecast_end(
        self,
        *,
        basis: Literal["submissions", "batches"] = "submissions",
        batches: int = 1,
        age: timedelta = timedelta(0),
    ) -> EndForecast:
        """Return how long the next one takes; no figures if there are too few days.

        Args:
            basis: Kind of the spans.
            batches: The forecast is for the last of so many such things.
            age: The time that it has run already. The result still counts from its start.
        """
        if not self.are_enough:
            return EndForecast(ended=self.ended, running=self.running, days=self.days)
        # Compare a running one only with those that took longer.
        is_longer = (self._took > age.total_seconds()) | (age <= timedelta(0))
        shares = [level ** (1 / batches) for level in self._levels]
        weights = _weigh_days(self._day)[is_longer]
        seconds = _quantiles(self._took[is_longer], self._is_end[is_longer], weights, self._day[is_longer], shares)
        # Each level moves separately, and a lower one may pass a higher one.
        for place in range(1, len(seconds)):
            before, said = seconds[place - 1], seconds[place]
            seconds[place] = None if before is None or said is None else max(before, said)
        p50, p90, p95 = map(_delta, seconds)
        return EndForecast(p50, p90, p95, basis, self.ended, self.running, self.days)


def _weigh_days(day: _Integers) -> _Numbers:
    """Return the weights of these days' submissions: each day has 1, in equal parts."""
    return np.asarray(1 / np.bincount(day)[day])


def _count_days(day: _Integers) -> int:
    """Return the number of days in this ordered list."""
    return int(np.count_nonzero(np.diff(day, prepend=-1)))


def _levels_now(began: _Numbers, until: _Numbers, ended: _Booleans, day: _Integers, now: float) -> list[float]:
    """Return the levels at which to forecast the next one, after the known results of earlier forecasts."""
    levels = list(_LEVELS)
    # The result of a forecast changes only the levels of the days that began after it was known.
    pending: list[_Known] = []
    starts = np.append(np.searchsorted(day, np.unique(day)), len(day))
    for place, (first, last) in enumerate(pairwise(starts.tolist())):
        moment = float(began[first])
        pending = _settle(pending, moment, levels)
        past = slice(starts[max(0, place - _REMEMBERED)], first)
        # With the knowledge of that moment: submissions that ended later were running.
        had_ended = ended[past] & (until[past] <= moment)
        if _count_days(day[past][had_ended]) < FEWEST:
            continue
        took = np.minimum(until[past], moment) - began[past]
        said = _quantiles(took, had_ended, _weigh_days(day[past]), day[past], levels)
        of_day = slice(first, last)
        for which, seconds in enumerate(said):
            # A forecast without a figure cannot be late.
            known_at = np.where(ended[of_day], until[of_day], now if seconds is None else np.inf)
            was_late = np.zeros(last - first, np.bool_)
            if seconds is not None:
                was_late = until[of_day] - began[of_day] > seconds
                known_at = np.where(was_late, began[of_day] + seconds, known_at)
            moved = (was_late - (1 - _LEVELS[which])) * _STEPS[which] / (last - first)
            pending += [(at, which, by) for at, by in zip(known_at.tolist(), moved.tolist(), strict=True)]
    _settle(pending, now, levels)
    return levels


def _settle(pending: Sequence[_Known], moment: float, levels: list[float]) -> list[_Known]:
    """Move the levels by the forecast results that are known at a moment, and return the other forecasts."""
    for _, which, by in sorted(known for known in pending if known[0] <= moment):
        levels[which] = min(max(levels[which] + by, 0.05), 1.0)
    return [known for known in pending if known[0] > moment]


def _quantiles(
    took: _Numbers, is_end: _Booleans, weights: _Numbers, day: _Integers, levels: Sequence[float]
) -> list[float | None]:
    """Return the times by which these shares of the next ones have ended; None if the data do not reach so far."""
    count = len(took)
    if not count:
        return [None] * len(levels)
    # Among equal times ended ones come first: the others were still running when last seen.
    order = np.lexsort((~is_end, took))
    weight = weights[order]
    at_risk = np.cumsum(weight[::-1])[::-1]
    ended = 1 - np.cumprod(1 - is_end[order] * weight / at_risk)
    days = _count_days(day)
    places = np.searchsorted(ended, np.array(levels) * (days + 1) / days - _TINY)
    return [None if place >= count else float(took[order][place]) for place in places]


def _delta(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
