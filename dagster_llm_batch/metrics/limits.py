"""Does a figure keep its limit, as far as its rows can say? Bounds and tests for gates on accuracy, kappa and ECE.

A lower bound is surely reached: with a confidence of 0.95 it is above the true value in at most one of twenty samples.
Few rows give low bounds, so that luck passes no gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from dagster_llm_batch.metrics.bootstrap import Cells, kappa
from dagster_llm_batch.metrics.calibration import Calibration
from dagster_llm_batch.metrics.per_class import Confusion
from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["kappa_lower_bound", "miscalibration_p", "share_lower_bound", "share_p_below"]

_DRAWS = 4_000
_TESTS = 100_000
"""Simulated candidates: enough for the smallest p-value that a look can need (see `looks`)."""
_DENSE_CLASSES = 40
"""Up to here each pair of classes that was never mixed up may be mixed up in the next row."""


def share_lower_bound(successes: float, n: float, confidence: float) -> float:
    """Compute the exact one-sided lower bound of a share (Clopper and Pearson); 0 without a row. Of effective rows, the
    counts need not be whole.
    """
    if successes == 0:
        return 0.0
    with evaluation_extra("The bound of a share"):
        from scipy.stats import beta  # noqa: PLC0415  # optional dependency
    return float(beta.ppf(1 - confidence, successes, n - successes + 1))


def share_p_below(successes: int, n: int, limit: float) -> float:
    """Return how often a share that is `limit` would show so few successes, or fewer (exact)."""
    with evaluation_extra("Testing a share"):
        from scipy.stats import binom  # noqa: PLC0415  # optional dependency
    return float(binom.cdf(successes, n, limit))


def kappa_lower_bound(
    matrix: Confusion,
    confidence: float,
    *,
    unlabeled: bool,
    weights: Literal["linear", "quadratic"] | None = None,
    seed: int = 0,
) -> float | None:
    """Compute the one-sided lower bound of kappa, over all gold rows (`unlabeled`) or the labeled ones; None without
    any.

    From the Dirichlet posterior of the confusion matrix. Before any row it holds one mistake, in no matter which cell:
    of the accuracy that is the bound of Clopper and Pearson, and no mistake seen is not proof that there is none.
    """
    with evaluation_extra("The bound of kappa"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    counts = np.array(matrix.effective or matrix.counts, dtype=np.float64).reshape(len(matrix.classes), -1)
    if matrix.effective is None:
        counts = np.column_stack([counts, matrix.unlabeled])
    if not unlabeled:
        counts = counts[:, :-1]
    if not counts.sum():
        return None
    wrong = ~np.eye(*counts.shape, dtype=bool)
    if len(counts) > _DENSE_CLASSES and (seen := wrong & (counts > 0)).any():
        wrong = seen
    if wrong.any():
        counts[wrong] += 1 / wrong.sum()
    gold, predicted = counts.nonzero()
    # Weights of cells, not rows: the formulas of `kappa` take them alike.
    shape: Any = counts[gold, predicted]
    cells = Cells(gold, predicted, shape, max(counts.shape))
    drawn: Any = np.random.default_rng(seed).standard_gamma(shape, (_DRAWS, len(shape)))
    values = [int(value) for value in matrix.classes] if weights else []
    found = kappa(cells, drawn, values=values, weights=weights)
    return float(np.nanquantile(found, 1 - confidence)) if np.isfinite(found).any() else None


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
    drawn = np.random.default_rng(seed).binomial(n, truth, (_TESTS, len(n)))
    errors = (share * np.abs(stated - drawn / n)).sum(axis=1)
    # An error that differs by rounding alone is as large.
    return float((1 + (errors >= calibration.ece - 1e-12).sum()) / (1 + _TESTS))
