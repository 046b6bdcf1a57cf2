"""Intervals of weighted means of values with known ends, by empirical likelihood.

A mean is accepted unless the drawn rows contradict it too clearly. Each row may get another share of the whole, and so
may an unseen row, at the farther end of the possible values. So if all seen rows are alike the interval still has a
width, about three unseen rows of n (the rule of three). If many rows differ it is as narrow as the variance allows. The
width never rests on seen rows alone.

    max over λ of  sum of log(1 + λ weight (value - mean))  ≤  limit

The possible values of an unseen row bound λ. The limit is half of Student's t squared, times the part of the variance
of a simple random sample that the design leaves (`SampledRows.spread`). It is larger while few rows are on the side in
question (as for few events of a Poisson count, mid-P). Rows of one unit are one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dagster_llm_batch.metrics.gold_weights import SampledRows
from dagster_llm_batch.metrics.intervals import CONFIDENCE
from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["LIKELIHOOD", "RULE_OF_THREE", "likelihood_interval"]

LIKELIHOOD = "design-based (empirical likelihood)"
"""Name of the method."""

RULE_OF_THREE = 3.0
"""If the share of events is this many n-ths, 95 % of samples of n rows show an event."""

_FEW, _FADES = 1.08, 1.2
"""The addition to the limit without any row on a side, and the speed at which it fades with such rows: with these, a
count of 0, 1, 2, … has the upper end of the mid-P interval.
"""

_STEPS = 60
_NEARLY = 1 - 1e-9
_WIDTH_ERROR = 1e-5
_TINY, _ROUNDING = 1e-300, 1e-12


def likelihood_interval(
    values: NDArray[np.float64],
    rows: SampledRows,
    lowest: NDArray[np.float64] | float,
    highest: NDArray[np.float64] | float,
) -> tuple[float, float]:
    """Compute the interval of 95 % of the weighted mean of values.

    Args:
        values: One a row.
        rows: Their weights. Rows that were certain to be drawn are known, and only shift the interval.
        lowest: The least possible value of a row: one number, or the value of an unseen row like each one.
        highest: The largest possible value.
    """
    with evaluation_extra("An interval of weighted rows"):
        import numpy as np  # noqa: PLC0415  # optional dependency
        from scipy.special import stdtrit  # noqa: PLC0415  # optional dependency
    drawn = rows.spread > 0
    if not drawn.all():
        mean, part = float(rows.weight @ values / rows.weight.sum()), rows.weight[drawn].sum() / rows.weight.sum()
        if not part:
            return mean, mean
        (low, high), some = (np.broadcast_to(end, len(values))[drawn] for end in (lowest, highest)), rows.among(drawn)
        ends, of_some = likelihood_interval(values[drawn], some, low, high), some.weight @ values[drawn]
        below, above = (float(part * (end - of_some / some.weight.sum())) for end in ends)
        return mean + below, mean + above
    low, high = np.minimum(lowest, values), np.maximum(highest, values)
    sides = _Sums.of(rows, values, high), _Sums.of(rows, -values, -low)
    mean = float(rows.weight @ values / rows.weight.sum())
    # One row more than there are degrees of freedom of the t.
    t = float(stdtrit(max(rows.n_eff - 1, 1.0), (1 + CONFIDENCE) / 2))
    design = _part_of_variance(values - mean, rows)
    up, down = (side.reach(sign * mean, t**2 / 2, design) for side, sign in zip(sides, (1, -1), strict=True))
    return -down, up


def _part_of_variance(residuals: NDArray[np.float64], rows: SampledRows) -> float:
    """Return the variance by the design, as a part of the variance of rows drawn alike, with replacement."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    by_design, alike = (
        float((np.bincount(rows.unit, weights=each * residuals) ** 2).sum()) for each in (rows.spread**0.5, rows.weight)
    )
    if alike <= 0:
        by_design, alike = float(rows.spread.sum()), float((rows.weight**2).sum())
    return by_design / alike


@dataclass(frozen=True, eq=False)
class _Sums:
    """Sums by unit: of weights, of weighted values, and the weighted values of an unseen unit like it."""

    weights: NDArray[np.float64]
    values: NDArray[np.float64]
    most: NDArray[np.float64]

    @classmethod
    def of(cls, rows: SampledRows, values: NDArray[np.float64], most: NDArray[np.float64]) -> _Sums:
        import numpy as np  # noqa: PLC0415  # its caller has it

        by_unit = (np.bincount(rows.unit, weights=rows.weight * each) for each in (np.ones(len(values)), values, most))
        weights, sums, ends = (each.astype(np.float64) for each in by_unit)
        there = weights > 0
        return cls(weights[there], sums[there], ends[there])

    def reach(self, mean: float, limit: float, design: float) -> float:
        """Return the largest mean that the rows do not contradict."""
        import numpy as np  # noqa: PLC0415  # its caller has it

        farthest = float((self.most / self.weights).max())
        span = farthest - mean
        most = float((self.most - mean * self.weights).max())
        # rounding leaves a little of nothing
        if span <= _ROUNDING * max(abs(farthest), abs(mean)) or most <= 0 or design <= 0:
            return mean
        seen = float(np.maximum(self.values - mean * self.weights, 0).sum()) / most
        limit = limit * design + _FEW / (1 + seen) ** _FADES

        def beyond(theta: float) -> float:
            """Return the rows' contradiction of a mean beyond the limit; its roots are nearly straight lines."""
            return math.sqrt(self._against(theta)) - math.sqrt(limit)

        low, high = mean, mean + span * (1 - _WIDTH_ERROR)
        return high if beyond(high) <= 0 else _root(beyond, low, high, -math.sqrt(limit), span * _WIDTH_ERROR)

    def _against(self, theta: float) -> float:
        """Return the logarithm of the likelihood ratio of a mean that is larger than the observed one."""
        import numpy as np  # noqa: PLC0415  # its caller has it

        # so that λ goes from 0 to 1
        off = theta * self.weights - self.values
        off *= _NEARLY / max(float((self.most - theta * self.weights).max()), _TINY)

        def slope_at(at: float) -> tuple[float, float]:
            part = off / (1 + at * off)
            return float(part.sum()), float(part @ part)

        low, high, at = 0.0, 1.0, 1.0
        slope, curve = slope_at(at)
        if slope < 0:
            # The sum is concave in λ: Newton's steps, where they stay inside, else halves.
            at = min(float(off.sum()) / float(off @ off), 0.5)
            for _ in range(_STEPS):
                slope, curve = slope_at(at)
                low, high = (at, high) if slope > 0 else (low, at)
                before, at = at, at + slope / curve
                if not low < at < high:
                    at = (low + high) / 2
                if abs(at - before) <= _WIDTH_ERROR * at:
                    break
        return max(0.0, float(np.log1p(at * off).sum()))


def _root(of: Callable[[float], float], low: float, high: float, at_low: float, error: float) -> float:
    """Find the root of a growing function by the Illinois method."""
    at_high, side = of(high), 0
    for _ in range(_STEPS):
        middle = (low * at_high - high * at_low) / (at_high - at_low)
        value = of(middle)
        if high - low <= error or abs(value) <= _WIDTH_ERROR:
            return middle
        if value > 0:
            high, at_high = middle, value
            at_low, side = (at_low / 2 if side > 0 else at_low), 1
        else:
            low, at_low = middle, value
            at_high, side = (at_high / 2 if side < 0 else at_high), -1
    return (low + high) / 2
