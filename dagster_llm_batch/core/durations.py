"""When something will have ended, by how long the like of it took before: submissions, or single batches.

- **What still runs counts.** It has taken longer than its age, and how much longer is not known: it is censored. The
  shares that have ended by each time are those of Kaplan and Meier (1958). Only those that have ended would tell of the
  quick ones: with a true p90 of 7.3 hours they say 4.3, and Kaplan and Meier 7.2.
- **A share of the next one, not of those before.** Of n that are known the k-th has a share of k/(n + 1) below it, so
  that for a p90 at least nine must be known.
- **The level learns.** Each one is forecast from what was known when it began, and the level moves with each that was
  later, or earlier, than was said (adaptive conformal inference, Gibbs and Candès 2021): a vendor that became slower is
  followed within some days. Where the level then asks for more than was ever seen there is no figure.
- **The last of several** single batches: as if they were independent, which is late rather than early where a slow hour
  of the vendor makes all of them slow.

`tests/core/test_durations.py` holds the estimate to `scipy.stats.ecdf`, which is not used itself: scipy is an optional
dependency, and a plan is made without it. `docs/truth.md` has the simulations.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt

from dagster_llm_batch.types import Span

__all__ = ["FEWEST", "Durations", "EndForecast", "forecast_end"]

FEWEST = 10
"""Of fewer that have ended nothing is said."""

# The newest ones that say something of the next, and how many are forecast to learn the levels.
_REMEMBERED = 40

# By how much each level moves with one that lay outside.
_LEVELS = (0.5, 0.9, 0.95)
_STEPS = (0.05, 0.03, 0.02)

# Of floating point: as many decimals as products of some hundred factors keep.
_TINY = 1e-9

_Numbers = npt.NDArray[np.float64]
_Booleans = npt.NDArray[np.bool_]


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
    """

    p50: timedelta | None = None
    p90: timedelta | None = None
    p95: timedelta | None = None
    basis: Literal["submissions", "batches", "none"] = "none"
    ended: int = 0
    running: int = 0


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
        past = past[-2 * _REMEMBERED :]
        began = np.array([span.began.timestamp() for span in past])
        # A vendor's clock may say that a batch ended before ours says that it was sent.
        until = np.maximum(np.array([(span.until or now).timestamp() for span in past]), began)
        has_ended = np.array([span.has_ended for span in past], np.bool_)
        self._took, self._is_end = (until - began)[-_REMEMBERED:], has_ended[-_REMEMBERED:]
        self.ended = int(self._is_end.sum())
        self.running = len(self._took) - self.ended
        self._levels = _levels_now(began, until, has_ended, now.timestamp()) if self.are_enough else []

    @property
    def are_enough(self) -> bool:
        """Whether FEWEST have ended."""
        return self.ended >= FEWEST

    def forecast_end(
        self,
        *,
        basis: Literal["submissions", "batches"] = "submissions",
        batches: int = 1,
        age: timedelta = timedelta(0),
    ) -> EndForecast:
        """Return how long the next one takes; no figures where not enough have ended.

        Args:
            basis: What the spans are of.
            batches: The last of so many such things is asked about.
            age: So long it has run already. What is returned counts from when it began, all the same.
        """
        if not self.are_enough:
            return EndForecast(ended=self.ended, running=self.running)
        # What has run for so long is compared with those alone that took longer.
        is_longer = (self._took > age.total_seconds()) | (age <= timedelta(0))
        shares = [level ** (1 / batches) for level in self._levels]
        seconds = _quantiles(self._took[is_longer], self._is_end[is_longer], shares)
        # Each level moves by itself, and a lower one may pass a higher one.
        for place in range(1, len(seconds)):
            before, said = seconds[place - 1], seconds[place]
            seconds[place] = None if before is None or said is None else max(before, said)
        p50, p90, p95 = map(_delta, seconds)
        return EndForecast(p50, p90, p95, basis, self.ended, self.running)


def _levels_now(began: _Numbers, until: _Numbers, ended: _Booleans, now: float) -> list[float]:
    """Return at which levels the next one is forecast, after what became of the forecasts of those before."""
    levels = list(_LEVELS)
    # What became of a forecast changes the levels of those that began after it was known, and of no others.
    pending: list[tuple[float, int, bool]] = []
    for at, moment in enumerate(began):
        _settle(pending, moment, levels)
        first = max(0, at - _REMEMBERED)
        # As it was known then: what had not ended by that time was running.
        was_over = until[first:at] <= moment
        had_ended = ended[first:at] & was_over
        if had_ended.sum() < FEWEST:
            continue
        took = np.minimum(until[first:at], moment) - began[first:at]
        for place, said in enumerate(_quantiles(took, had_ended, levels)):
            if said is None:
                # No more was said than that it is not known: nothing can be later than that.
                insort(pending, (until[at] if ended[at] else now, place, False))
            elif until[at] - moment > said:
                insort(pending, (moment + said, place, True))
            elif ended[at]:
                insort(pending, (until[at], place, False))
    _settle(pending, now, levels)
    return levels


def _settle(pending: list[tuple[float, int, bool]], moment: float, levels: list[float]) -> None:
    """Move the levels by what is known at a moment of forecasts that were told before, and forget these."""
    while pending and pending[0][0] <= moment:
        _, place, was_late = pending.pop(0)
        level = levels[place] + _STEPS[place] * (was_late - (1 - _LEVELS[place]))
        levels[place] = min(max(level, 0.05), 1.0)


def _quantiles(took: _Numbers, is_end: _Booleans, levels: Sequence[float]) -> list[float | None]:
    """Return in which time these shares of the next ones have ended; None where what is known does not reach so far."""
    count = len(took)
    if not count:
        return [None] * len(levels)
    # Of equal times those that ended come first: what was last seen at that time ran still.
    order = np.lexsort((~is_end, took))
    left = 1 - is_end[order] / np.arange(count, 0, -1)
    ended = 1 - np.cumprod(left)
    places = np.searchsorted(ended, np.array(levels) * (count + 1) / count - _TINY)
    return [None if place >= count else float(took[order][place]) for place in places]


def _delta(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
