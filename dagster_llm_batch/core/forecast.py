"""Forecast the cost of the next submission from earlier ones: the tokens of a request, and additional payments.

For each earlier submission with the same model, parameters, response and prompt, the ledger has the estimate and the
actual figures (`Billed`). Each was forecast from the submissions before it, like the next one now:

- **expected** is a mean in which recent submissions weigh more. How much more depends on past results: a short memory
  follows a step in the rows, a long one evens out chance.
- **the interval** of 9 in 10 comes from the errors of these forecasts. 3 to 19 errors give it by Student's t on
  logarithms. More give it by order statistics of the last 40, whose level moves with each one that lay outside
  (adaptive conformal inference, Gibbs and Candès 2021). With fewer than 3 the calibrated rates of `token_counts` hold.

The bound does not adapt: limits rest on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Billed", "Learned", "Rates", "learn"]

_JUDGED = 40
_FEWEST = 3

# More replies of a submission hardly improve the forecast of the next one: rows then differ less than submissions do.
_MOST_REPLIES = 1_000
_FEWEST_REPLIES = 30

# Weight of a submission, multiplied once for each later one; and the memory of which of these weights did best.
_MEMORIES = (0.6, 0.85, 0.97)
_JUDGMENT, _CLEARLY = 0.8, 1.5

# One in 20 on each side, and how much the level moves with each one that lay outside (gamma). With fewer, such a rank
# does not exist.
_OUTSIDE, _STEP = 0.05, 0.03
_LEAST_RANKED = 19

# The 95th percentile of Student's t by degrees of freedom, from 2 to 18.
_STUDENT = (
    *(2.920, 2.353, 2.132, 2.015, 1.943, 1.895, 1.860, 1.833, 1.812),
    *(1.796, 1.782, 1.771, 1.761, 1.753, 1.746, 1.740, 1.734),
)

_Numbers = npt.NDArray[np.float64]


class Billed(NamedTuple):
    """Figures of a submission's first round, and its total cost.

    Attributes:
        requests: The number of sent requests, without copies that only fill up a batch.
        tokens: Their input tokens, by the calibrated rates.
        replies: Those of them that were billed.
        input_tokens, output_tokens: The vendor's counts for these replies.
        times: The submission's cost, as a multiple of its requests at the price of an average reply's tokens. It
            includes resent requests, fallbacks, discounts for cached input and fees.
    """

    requests: int
    tokens: int
    replies: int
    input_tokens: int
    output_tokens: int
    times: float


class Rates(NamedTuple):
    """Prices of tokens, in any unit: only their ratio matters."""

    input: float
    output: float


@dataclass(frozen=True)
class Learned:
    """The expected figures of the next submission.

    Attributes:
        submissions: The number of earlier ones behind it.
        input_ratio: Input tokens of a request, as a multiple of the calibrated rates.
        output_tokens: Output tokens of a reply; None if the same was not asked before.
        times: See Billed.
        low, high: 9 in 10 cost between these multiples of the expected cost; None: too few came before.
        judged, held: The number of earlier submissions with an interval, and how many cost within it.
    """

    submissions: int
    input_ratio: float
    output_tokens: float | None = None
    times: float = 1.0
    low: float | None = None
    high: float | None = None
    judged: int = 0
    held: int = 0

    @property
    def complete(self) -> int | None:
        """Number of submissions behind it; None if only input tokens are learned."""
        return None if self.output_tokens is None else self.submissions


def learn(earlier: Sequence[Billed], alike: Sequence[Billed], rates: Rates) -> Learned | None:
    """Return the expected figures of the next submission, or None if too little is known.

    Args:
        earlier: Of submissions that asked the same, oldest first.
        alike: Of others that asked the same model about the same dataset's rows.
        rates: The prices of the model.
    """
    if sum(each.replies for each in earlier) < _FEWEST_REPLIES:
        if sum(each.replies for each in alike) < _FEWEST_REPLIES:
            return None
        return Learned(len(alike), float(_Forecasts(alike, rates).next[0]))
    forecasts = _Forecasts(earlier, rates)
    input_ratio, output_tokens, times = map(float, forecasts.next)
    low, high = _interval(forecasts.misses) if len(earlier) >= _FEWEST else (None, None)
    return Learned(len(earlier), input_ratio, output_tokens, times, low, high)


class _Forecasts:
    """Forecasts of each submission from earlier ones. `next` is the forecast of the coming one.

    `misses` are the logarithms of each one's cost over its forecast, from the second on.
    """

    def __init__(self, earlier: Sequence[Billed], rates: Rates) -> None:
        requests, tokens, replies, taken, written, times = np.array(earlier, np.float64).T
        # Per request: the estimated input, the actual input and output, and the multiple that was paid.
        values = np.stack([tokens / requests, taken / replies, written / replies, times])
        weights = np.minimum(replies, _MOST_REPLIES)
        cost = values[3] * (values[1] * rates.input + values[2] * rates.output)
        candidates = []
        for memory in reversed(_MEMORIES):
            estimated, *means = _means_before(values, weights, memory)
            forecast = np.stack([means[0] / np.maximum(estimated, 1e-9), means[1], means[2]])
            ratio, output, beside = forecast[:, 1:-1]
            expected = beside * (ratio * values[0, 1:] * rates.input + output * rates.output)
            misses = np.log(np.maximum(cost[1:], 1e-30) / np.maximum(expected, 1e-30))
            candidates.append((forecast[:, 1:], misses, _errors_before(misses)))
        # A shorter memory has to be clearly better: of rows that stay the same, the longest is.
        forecast, misses, errors = candidates[0]
        for other, other_misses, other_errors in candidates[1:]:
            is_better = other_errors * _CLEARLY < errors
            forecast = np.where(is_better, other, forecast)
            misses = np.where(is_better[:-1], other_misses, misses)
            errors = np.where(is_better, other_errors, errors)
        self.next: _Numbers = forecast[:, -1]
        self.misses: _Numbers = misses


def _means_before(values: _Numbers, weights: _Numbers, memory: float) -> _Numbers:
    """Return the weighted means of each row of `values` before each column, and after the last. Zero before any."""
    count = values.shape[1]
    ages = np.arange(count + 1)[None, :] - 1 - np.arange(count)[:, None]
    shares = np.where(ages >= 0, memory ** np.maximum(ages, 0), 0.0) * weights[:, None]
    means: _Numbers = values @ shares / np.maximum(shares.sum(axis=0), 1e-30)
    return means


def _errors_before(misses: _Numbers) -> _Numbers:
    """Return how much was missed before each of these, recent ones more, and after the last."""
    errors: _Numbers = _means_before(misses[None, :] ** 2, np.ones(len(misses)), _JUDGMENT)[0]
    return errors


def _interval(misses: _Numbers) -> tuple[float, float]:
    """Return the multiples of the forecast between which 9 in 10 lie, from the errors of earlier forecasts."""
    outside = [_OUTSIDE, _OUTSIDE]
    first = max(_LEAST_RANKED, len(misses) - _JUDGED)
    for at in range(first, len(misses)):
        low, high = _quantiles(misses[max(0, at - _JUDGED) : at], *outside)
        for side, is_outside in enumerate((misses[at] < low, misses[at] > high)):
            outside[side] = min(max(outside[side] + _STEP * (_OUTSIDE - is_outside), 0.0), 0.5)
    low, high = _quantiles(misses[-_JUDGED:], *outside)
    return float(np.exp(low)), float(np.exp(high))


def _quantiles(misses: _Numbers, below: float, above: float) -> tuple[float, float]:
    """Return limits with these shares of the next misses outside."""
    count, spread = len(misses), float(np.sqrt(np.mean(misses**2)))
    if count < _LEAST_RANKED:
        width = _STUDENT[count - 2] * spread
        return -width, width
    ranked, farther = np.sort(misses), 2 * spread
    lower, upper = floor(below * (count + 1)), ceil((1 - above) * (count + 1))
    # The level may ask for more than was ever observed.
    low = float(ranked[lower - 1]) if lower >= 1 else min(float(ranked[0]), -farther)
    return low, float(ranked[upper - 1]) if upper <= count else max(float(ranked[-1]), farther)
