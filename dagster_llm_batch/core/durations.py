"""When something will have ended, by how long the like of it took before: submissions, or single batches.

- **What still runs counts.** It has taken longer than its age, and how much longer is not known: it is censored. The
  shares that have ended by each time are those of Kaplan and Meier (1958). Only those that have ended would tell of the
  quick ones: with a true p90 of 7.3 hours they say 4.3, and Kaplan and Meier 7.2.
- **Days count.** Submissions of one day share their vendor's hours, so that forty of one afternoon are hardly more
  evidence than one. Each day has the weight 1, and each of its submissions an equal part (Lee, Barber and Willett 2023,
  hierarchical conformal prediction). As independent ones, forty a day ended by their p90 in 57 of 100 cases.
- **A share of the next day, not of those before.** Of n days that are known the k-th has a share of k/(n + 1) below it,
  so that for a p90 at least nine must be known.
- **The level learns.** Each day is forecast from what was known when it began, and the level moves with the share of it
  that was later, or earlier, than was said (adaptive conformal inference, Gibbs and Candès 2021): a vendor that became
  slower is followed within some days. Where the level then asks for more than was ever seen there is no figure.
- **The last of several** single batches: as if they were independent, which is late rather than early where a slow hour
  of the vendor makes all of them slow.

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

# The newest days that a forecast rests on, and how many are forecast to learn the levels.
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
"""When it was known what became of a forecast, which level that moves, and by how much."""


@dataclass(frozen=True)
class EndForecast:
    """How long the next one takes, from when it begins.

    Attributes:
        p50, p90, p95: So long at most, of 2, 10 and 20 such ones 1, 9 and 19. None: not known, since too few have
            ended, or what is known does not reach so far.
        basis: What it rests on: earlier "submissions" of the dataset, or single "batches" of the model. "none": neither
            has enough.
        ended: How many of these have ended.
        running: How many have not.
        days: On how many days those that ended had begun.
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
    """How long the like of something took, or takes.

    Args:
        spans: In any order. One that was stopped before its end counts as censored.
        now: When it is asked, aware.
    """

    def __init__(self, spans: Sequence[Span], now: datetime) -> None:
        # A time that lies ahead was told by a clock that was wrong: how long that took, nobody knows.
        seen = (span for span in spans if span.began <= now and (span.until is None or span.until <= now))
        past = sorted(seen, key=lambda span: span.began)
        began = np.array([span.began.timestamp() for span in past])
        # A vendor's clock may say that a batch ended before ours says that it was sent.
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
        """Whether some that ended had begun on FEWEST days."""
        return self.days >= FEWEST

    def days_for_p95(self, batches: int = 1) -> int | None:
        """Return on how many days some must have ended for a p95 of the last of so many; None where no number will do,
        since the latest ones were late too often.
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
        """Return how long the next one takes; no figures where there are too few days.

        Args:
            basis: What the spans are of.
            batches: The last of so many such things is asked about.
            age: So long it has run already. What is returned counts from when it began, all the same.
        """
        if not self.are_enough:
            return EndForecast(ended=self.ended, running=self.running, days=self.days)
        # What has run for so long is compared with those alone that took longer.
        is_longer = (self._took > age.total_seconds()) | (age <= timedelta(0))
        shares = [level ** (1 / batches) for level in self._levels]
        weights = _weigh_days(self._day)[is_longer]
        seconds = _quantiles(self._took[is_longer], self._is_end[is_longer], weights, self._day[is_longer], shares)
        # Each level moves by itself, and a lower one may pass a higher one.
        for place in range(1, len(seconds)):
            before, said = seconds[place - 1], seconds[place]
            seconds[place] = None if before is None or said is None else max(before, said)
        p50, p90, p95 = map(_delta, seconds)
        return EndForecast(p50, p90, p95, basis, self.ended, self.running, self.days)


def _weigh_days(day: _Integers) -> _Numbers:
    """Return the weights of these days' submissions: each day has 1, in equal parts."""
    return np.asarray(1 / np.bincount(day)[day])


def _count_days(day: _Integers) -> int:
    """Return how many days these are, in order."""
    return int(np.count_nonzero(np.diff(day, prepend=-1)))


def _levels_now(began: _Numbers, until: _Numbers, ended: _Booleans, day: _Integers, now: float) -> list[float]:
    """Return at which levels the next one is forecast, after what became of the forecasts of those before."""
    levels = list(_LEVELS)
    # What became of a forecast changes the levels of the days that began after it was known, and of no others.
    pending: list[_Known] = []
    starts = np.append(np.searchsorted(day, np.unique(day)), len(day))
    for place, (first, last) in enumerate(pairwise(starts.tolist())):
        moment = float(began[first])
        pending = _settle(pending, moment, levels)
        past = slice(starts[max(0, place - _REMEMBERED)], first)
        # As it was known then: what had not ended by that time was running.
        had_ended = ended[past] & (until[past] <= moment)
        if _count_days(day[past][had_ended]) < FEWEST:
            continue
        took = np.minimum(until[past], moment) - began[past]
        said = _quantiles(took, had_ended, _weigh_days(day[past]), day[past], levels)
        of_day = slice(first, last)
        for which, seconds in enumerate(said):
            # No more was said than that it is not known: nothing can be later than that.
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
    """Move the levels by what is known at a moment of forecasts that were told before, and return the others."""
    for _, which, by in sorted(known for known in pending if known[0] <= moment):
        levels[which] = min(max(levels[which] + by, 0.05), 1.0)
    return [known for known in pending if known[0] > moment]


def _quantiles(
    took: _Numbers, is_end: _Booleans, weights: _Numbers, day: _Integers, levels: Sequence[float]
) -> list[float | None]:
    """Return in which time these shares of the next ones have ended; None where what is known does not reach so far."""
    count = len(took)
    if not count:
        return [None] * len(levels)
    # Of equal times those that ended come first: what was last seen at that time ran still.
    order = np.lexsort((~is_end, took))
    weight = weights[order]
    at_risk = np.cumsum(weight[::-1])[::-1]
    ended = 1 - np.cumprod(1 - is_end[order] * weight / at_risk)
    days = _count_days(day)
    places = np.searchsorted(ended, np.array(levels) * (days + 1) / days - _TINY)
    return [None if place >= count else float(took[order][place]) for place in places]


def _delta(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
