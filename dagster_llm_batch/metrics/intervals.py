"""Intervals that cover: 95 %, by the unit, with the name of their method, or the reason for a missing one.

Every figure here is a mean of rows, or nearly one: the contribution of a row to it is known (`influence`). So its
variance is the variance of the sums by unit, for any units (rows, requests, customers) and any weights of rows.

    independent rows, right or wrong     Clopper and Pearson's exact interval
    all else                             the same interval at the effective number of rows (Korn and Graubard): as many
                                         independent rows as have the figure's variance
    means without bounds (errors)        Student's interval, by units, corrected for skewness (Hall), and widened by the
                                         contribution of one more unit like the farthest
    differences between two sets of rows the distances to both intervals' ends, squared and added (Newcombe)

A normal or bootstrapped interval fails where it matters most: with few or no errors the rows show no variance, and the
interval is too narrow or a point. The binomial's tails work without an observed error. They need the possible weight of
an unseen error: as much as a unit with many rows, or, in a mean over classes, as an error in the rarest class. So one
such error is added to the variance.

`python -m benchmarks.truth` shows for which rows they cover, and how wide they are (docs/truth.md).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from dagster_llm_batch.metrics.clusters import Units

__all__ = [
    "CONFIDENCE",
    "EFFECTIVE",
    "EXACT",
    "SKEWED",
    "Interval",
    "difference_ends",
    "effective_interval",
    "mean_interval",
    "share_interval",
    "sign_test",
    "unbounded_interval",
    "without_luck",
]

CONFIDENCE = 0.95

EXACT = "exact (Clopper-Pearson)"
EFFECTIVE = "effective rows (Korn-Graubard)"
SKEWED = "Student, corrected for skewness (Hall)"

_LEAST_UNITS = 30
_LEAST_ALIKE = 20
"""Units below which errors do not show their skewness; if some units have more rows, the number of units of equal size
with the same information counts.
"""

_LEAST_OF_SQUARES = 100
"""Units below which squares of errors have no interval: a few large ones decide, which so few units have by luck."""

_LEAST_OFF = 20
"""Units that are off, below which squares and changes have no interval where most rows have one value, such as 0: the
others alone show how large they are.
"""

_OF_FARTHEST, _MOST_OF_LARGEST = 0.5, 6.0
"""The first is the number of values like the farthest that are assumed missing on either side; for errors, one is
assumed above. The second is the most that are assumed above for squares, where the number is their skewness.
"""

# rounding error around zero
_NOTHING = 1e-12

_HALVINGS = 40


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, by `method`; without an interval both are None, and `method` has the reason."""

    low: float | None
    high: float | None
    method: str

    @property
    def ends(self) -> tuple[float, float] | None:
        """Both ends, where there are any."""
        return None if self.low is None or self.high is None else (self.low, self.high)


def share_interval(hits: NDArray[np.float64], units: Units, *, confidence: float = CONFIDENCE) -> Interval:
    """Compute the interval of the share of rows that are hits.

    Args:
        hits: 1 or 0 for the rows of each entry of `units`, or a part of 1.
        units: Rows and the units that they belong to; at least one.
        confidence: Of both sides together.
    """
    total, found = float(units.counts.sum()), float((hits * units.counts).sum())
    if (units.sizes == 1).all() and ((hits == 0) | (hits == 1)).all() and not (units.counts % 1).any():
        return Interval(*_clopper_pearson(found, total, confidence), EXACT)
    return effective_interval(found / total, hits - found / total, units, confidence=confidence)


def mean_interval(
    values: NDArray[np.float64], units: Units, *, lowest: float, highest: float, confidence: float = CONFIDENCE
) -> Interval:
    """Compute the interval of the mean of values that cannot be below `lowest` or above `highest`.

    `values` are given for the rows of each entry of `units`.
    """
    span = highest - lowest
    scaled = (values - lowest) / span
    mean = float((scaled * units.counts).sum() / units.counts.sum())
    share = effective_interval(mean, scaled - mean, units, confidence=confidence)
    ends = share.ends
    return share if ends is None else Interval(lowest + ends[0] * span, lowest + ends[1] * span, share.method)


def effective_interval(
    share: float,
    influence: NDArray[np.float64],
    units: Units,
    *,
    largest: float = 1.0,
    confidence: float = CONFIDENCE,
) -> Interval:
    """Compute the interval of a figure from 0 to 1 that is a mean of rows, or nearly one.

    Args:
        share: The figure.
        influence: The contribution of a row of each entry of `units` to the figure, times the number of rows: 0 in sum.
        units: Rows and the units that they belong to; at least one.
        largest: The largest contribution of one more wrong row to the figure, times the number of rows.
        confidence: Of both sides together.
    """
    sums, sizes, times = units.sums(influence), units.sizes, units.times
    n, n_units = float((times * sizes).sum()), float(times.sum())
    # Unseen values are at the farther end; if it is near, they count less. A row is in a unit with a probability in
    # proportion to the unit's rows, and takes all of them along.
    reach = largest * max(share, 1 - share) ** 0.5
    unseen = reach**2 * float((times * sizes**3).sum()) / n**2
    variance = n_units / max(1.0, n_units - 1) * float((times * sums**2).sum()) / n + unseen
    spread = max(0.0, share * (1 - share)) + reach / n
    # The rows of a unit are at most all right or all wrong together.
    most = max(1.0, reach) * float((times * sizes**2).sum()) / n
    effect = min(variance / spread, most)
    return Interval(*_clopper_pearson(share * n / effect, n / effect, confidence), EFFECTIVE)


def unbounded_interval(
    values: NDArray[np.float64],
    units: Units,
    *,
    of: Literal["errors", "squares", "changes"] = "errors",
    confidence: float = CONFIDENCE,
) -> Interval:
    """Compute the interval of the mean of values of any size: errors, their squares, or changes of errors. Values are
    given for the rows of each entry of `units`.

    Most errors are small and a few are large, so that Student's interval misses too often above. Hall's transformation
    removes the skewness, and a part of one more unit like the farthest is added on either side. For squares several are
    added above, as these are skewed. Whether there is an interval depends on the number of units, and never on the size
    of errors, unless all are alike. Otherwise rows that look even, as they lack large errors, would have an interval
    that misses. If most rows are right, or unchanged, only the others show the size of large squares and changes: with
    too few of these, there is no interval. Rows that have enough of them by luck have more than the whole does, so the
    end at 0 allows for that.
    """
    with evaluation_extra("An interval"):
        import numpy as np  # noqa: PLC0415  # optional dependency
        from scipy.special import stdtrit  # noqa: PLC0415  # optional dependency
    largest = float(np.abs(values).max(initial=0))
    if not math.isfinite(largest):
        return Interval(None, None, "none: errors are not finite")
    # so that squares stay in the range of floats
    scale = largest or 1.0
    sums, sizes, times = units.sums(values / scale), units.sizes, units.times
    n, n_rows = float(times.sum()), float((times * sizes).sum())
    least = _LEAST_OF_SQUARES if of == "squares" else _LEAST_UNITS
    if n < least:
        return Interval(None, None, f"none: below {least} independent units")
    mean = float((times * sums).sum()) / n_rows
    # contribution of each unit to the mean, times the number of units
    apart = (sums - mean * sizes) * n / n_rows
    deviation = float((times * apart**2).sum() / (n - 1)) ** 0.5
    if deviation <= _NOTHING * abs(mean):
        return Interval(None, None, "none: all errors are alike")
    skewness = float((times * (apart / deviation) ** 3).sum()) / n
    # If some units have many rows, they have the information of fewer units of one size.
    alike = n_rows**2 / float((times * sizes**2).sum())
    if alike < _LEAST_ALIKE:
        return Interval(None, None, f"none: few units with many rows, below {_LEAST_ALIKE} of equal size")
    off = n if of == "errors" else _count_off(values, units)
    if off < _LEAST_OFF:
        return Interval(None, None, f"none: below {_LEAST_OFF} independent units that differ from most")
    half = float(stdtrit(alike - 1, (1 + confidence) / 2)) / n**0.5

    def without_skewness(end: float) -> float:
        """Invert Hall's transformation, x + skewness x²/3 + skewness² x³/27 + skewness/6n, at `end`."""
        if abs(skewness) < _NOTHING:
            return end
        return 3 / skewness * (math.cbrt(1 + skewness * (end - skewness / (6 * n))) - 1)

    low, high = (mean - deviation * without_skewness(end) for end in (half, -half))
    less, more = _OF_FARTHEST, 1.0
    if of == "squares":
        more = min(max(1.0, skewness), _MOST_OF_LARGEST)
    elif of == "changes":
        less = more = _OF_FARTHEST if off == n else 1.0
    low, high = low + less * float(apart.min()) / n, high + more * float(apart.max()) / n
    if off < n:
        part = without_luck(off, _LEAST_OFF, confidence)
        low, high = low * part if low > 0 else low, high * part if high < 0 else high
    return Interval(scale * low, scale * high, SKEWED)


def _count_off(values: NDArray[np.float64], units: Units) -> float:
    """Return the number of units with a row that differs from the most frequent value; all, if most rows differ."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    distinct, at = np.unique(values, return_inverse=True)
    rows = np.bincount(at, weights=units.counts)
    if rows.max() <= rows.sum() / 2:
        return float(units.times.sum())
    is_off = (values != distinct[rows.argmax()]).astype(np.float64)
    return float(units.times[units.sums(is_off) > 0].sum())


def without_luck(count: float, least: float, confidence: float) -> float:
    """Return the factor for the lower end of a Poisson count that is reported only if it is at least `least`."""
    from scipy.special import gammainc, gammaincinv  # noqa: PLC0415  # its caller has it

    tail = (1 - confidence) / 2
    low, high = 0.0, float(gammaincinv(count, tail))
    usual = high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # for this mean, how often a count that is at least `least` is as large as this one
        at_least, as_large = float(gammainc(least, middle)), float(gammainc(count, middle))
        low, high = (low, middle) if as_large > tail * at_least else (middle, high)
    return low / usual


def _clopper_pearson(successes: float, n: float, confidence: float) -> tuple[float, float]:
    """Compute the exact interval of a binomial share; of parts of rows, too."""
    with evaluation_extra("An interval"):
        from scipy.special import betaincinv  # noqa: PLC0415  # optional dependency
    tail, failures = (1 - confidence) / 2, n - successes
    low = 0.0 if successes <= _NOTHING * n else float(betaincinv(successes, failures + 1, tail))
    high = 1.0 if failures <= _NOTHING * n else float(betaincinv(successes + 1, failures, 1 - tail))
    return low, high


def difference_ends(
    now: float, now_ends: tuple[float, float], before: float, before_ends: tuple[float, float]
) -> tuple[float, float]:
    """Return the ends of the interval of `now - before`, two figures of different rows with their intervals' ends.

    The interval has the confidence of both, and is wider than necessary if the rows are the same.
    """
    low = math.hypot(now - now_ends[0], before_ends[1] - before)
    high = math.hypot(now_ends[1] - now, before - before_ends[0])
    return now - before - low, now - before + high


def sign_test(wins: int, losses: int) -> float:
    """Return how often two sides that are equally likely would differ as much or more (exact, two-sided); 1 without
    any.
    """
    if wins + losses == 0:
        return 1.0
    with evaluation_extra("Comparing candidates"):
        from scipy.stats import binomtest  # optional dependency
    return float(binomtest(wins, wins + losses).pvalue)
