"""Does a figure keep its limit, as far as its rows can show? Tests for gates; bounds are ends of `intervals`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster_llm_batch.metrics.calibration import Calibration
from dagster_llm_batch.metrics.schemas import evaluation_extra
from dagster_llm_batch.metrics.sequential_tests import draw_p

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["least_miscalibration_p", "miscalibration_p", "share_lower_bound", "share_p_below"]


def share_p_below(successes: int, n: int, limit: float) -> float:
    """Return how often a share that is `limit` would show so few successes, or fewer (exact)."""
    with evaluation_extra("Testing a share"):
        from scipy.stats import binom  # optional dependency
    return float(binom.cdf(successes, n, limit))


def share_lower_bound(successes: int, n: int, confidence: float) -> float:
    """Return the lower bound of a share, from successes in independent tries (exact)."""
    with evaluation_extra("Testing a share"):
        from scipy.stats import binomtest  # optional dependency
    return float(binomtest(successes, n, alternative="greater").proportion_ci(confidence).low)


def miscalibration_p(calibration: Calibration, limit: float, *, seed: int = 0) -> float | None:
    """Return how often a candidate whose calibration error is `limit` would show one as large; None without a label.

    The error is a sum of distances, which chance alone makes larger the fewer labels there are. So candidates are
    simulated whose bins are off in the same places as this one's, but by `limit` in all.
    """
    if calibration.ece is None:
        return None
    if calibration.ece <= limit:
        return 1.0
    with evaluation_extra("Calibration"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    filled = [bin_ for bin_ in calibration.bins if bin_.n]
    n, share = np.array([bin_.rows for bin_ in filled]), np.array([bin_.share for bin_ in filled])
    stated: NDArray[np.float64] = np.array([bin_.mean_confidence for bin_ in filled], dtype=np.float64)
    right = np.array([bin_.accuracy for bin_ in filled], dtype=np.float64)
    truth = stated + (right - stated) * limit / calibration.ece
    rng, ece = np.random.default_rng(seed), calibration.ece

    def count_as_large(draws: int) -> int:
        drawn = rng.binomial(n, truth, (draws, len(n)))
        # An error that differs by rounding alone is as large.
        return int(((share * np.abs(stated - drawn / n)).sum(axis=1) >= ece - 1e-12).sum())

    return draw_p(count_as_large)


def least_miscalibration_p(calibration: Calibration, limit: float) -> float:
    """Return the smallest p-value that labels of these confidences can have, if each bin is all right or all wrong. If
    even this is no alarm, the labels are too few.
    """
    p_value, filled = 1.0, [bin_ for bin_ in calibration.bins if bin_.n]
    stated = [bin_.mean_confidence or 0.0 for bin_ in filled]
    farthest = sum(bin_.share * max(sure, 1 - sure) for bin_, sure in zip(filled, stated, strict=True))
    for bin_, sure in zip(filled, stated, strict=True):
        # The probability that all labels of a bin are so, for a candidate that is off by `limit` in all.
        end = 0.0 if sure > 1 - sure else 1.0
        truth = sure + (end - sure) * min(1.0, limit / farthest)
        p_value *= (truth if end else 1 - truth) ** bin_.rows
    return p_value
