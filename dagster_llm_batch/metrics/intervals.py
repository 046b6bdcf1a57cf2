"""Intervals of a share and of a mean, 95 %."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev

from dagster_llm_batch.metrics.bootstrap import CONFIDENCE
from dagster_llm_batch.metrics.schemas import evaluation_extra

__all__ = ["mean_interval", "sign_test", "wilson"]

_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Compute Wilson's interval of a share; `n` is at least 1.

    `successes` may hold halves (ties): a row that can be a half varies less than one that cannot, so the interval is
    then wider than need be, never narrower.
    """
    p, z2 = successes / n, _Z**2
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * (p * (1 - p) / n + z2 / (4 * n**2)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Compute Student's interval of a mean; None for fewer than two values, which have no spread."""
    n = len(values)
    if n < 2:  # noqa: PLR2004
        return None
    with evaluation_extra("The interval of a mean"):
        from scipy.stats import t  # noqa: PLC0415  # optional dependency
    mean, half = fmean(values), float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * stdev(values) / n**0.5
    return mean - half, mean + half


def sign_test(wins: int, losses: int) -> float:
    """Return how often two sides that are equally likely would differ as much or more (exact, two-sided); 1 without
    any.
    """
    if wins + losses == 0:
        return 1.0
    with evaluation_extra("Comparing candidates"):
        from scipy.stats import binomtest  # noqa: PLC0415  # optional dependency
    return float(binomtest(wins, wins + losses).pvalue)
