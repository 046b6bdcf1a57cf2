"""Macro F1 and Cohen's kappa over many confusion matrices at once, and their bootstrap intervals.

Drawing n labeled rows with replacement and counting them is drawing once from a multinomial over the cells of the
confusion matrix: the same distribution, no row is touched, and the order of the rows cannot matter.
Shapes: `counts` is (resamples, cells); a marginal is (classes, resamples); a statistic is (resamples,).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal

from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Cells", "bootstrap_intervals", "interval", "kappa", "macro_f1", "resamples"]

CONFIDENCE = 0.95
_CHUNK_CELLS = 4_000_000
"""Drawn counts held at a time: 32 MB of int64."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The non-empty cells of a confusion matrix, as class codes `0 … n_classes - 1` and counts of rows."""

    gold: NDArray[np.int64]
    predicted: NDArray[np.int64]
    counts: NDArray[np.int64]
    n_classes: int

    @classmethod
    def of(
        cls,
        gold: NDArray[np.int64],
        predicted: NDArray[np.int64],
        n_classes: int,
        counts: NDArray[np.int64] | None = None,
    ) -> Cells:
        """Count rows with these classes, each of them `counts` times, or once."""
        with evaluation_extra("Evaluating labels"):
            import numpy as np  # noqa: PLC0415  # optional dependency
        cell, at = np.unique(gold * n_classes + predicted, return_inverse=True)
        # Sums of float64 weights are exact below 2**53.
        added = np.bincount(at, counts, len(cell)).astype(np.int64)
        return cls(cell // n_classes, cell % n_classes, added, n_classes)

    @property
    def n(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def _marginals(self) -> tuple[Any, Any, Any]:
        """Sparse (classes, cells) matrices that sum the cells of a gold class, a predicted class, the diagonal."""
        with evaluation_extra("Evaluating labels"):
            import numpy as np  # noqa: PLC0415  # optional dependency
            from scipy.sparse import csr_array  # noqa: PLC0415  # optional dependency
        at, shape = np.arange(len(self.counts)), (self.n_classes, len(self.counts))
        hit = (self.gold == self.predicted).astype(np.int64)
        ones = np.ones_like(hit)
        return (
            csr_array((ones, (self.gold, at)), shape=shape),
            csr_array((ones, (self.predicted, at)), shape=shape),
            csr_array((hit, (self.gold, at)), shape=shape),
        )

    def marginals(self, counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Sum cells to (support, predicted, correct), each (classes, resamples)."""
        by_gold, by_predicted, by_hit = self._marginals
        return by_gold @ counts.T, by_predicted @ counts.T, by_hit @ counts.T


def macro_f1(cells: Cells, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Compute the mean F1 of the classes that occur, in gold or predicted, in that resample."""
    support, predicted, correct = cells.marginals(counts)
    occurrences = support + predicted
    f1 = 2 * correct / occurrences.clip(min=1)
    mean: NDArray[np.float64] = f1.sum(axis=0) / (occurrences > 0).sum(axis=0)
    return mean


def kappa(
    cells: Cells,
    counts: NDArray[np.int64],
    *,
    values: Sequence[int] = (),
    weights: Literal["linear", "quadratic"] | None = None,
) -> NDArray[np.float64]:
    """Compute kappa, 1 - observed / expected disagreement; NaN where chance cannot disagree (one class only).

    With `weights`, a disagreement counts by the distance of the two class `values` (linear), or its square. A class
    more than there are `values` is that of rows without a label: as far from each class as the farthest one.
    """
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    n = counts.sum(axis=1).astype(np.float64)
    support, predicted, correct = cells.marginals(counts)
    if weights is None:
        observed = n - correct.sum(axis=0)
        expected = n**2 - (support * predicted).sum(axis=0)
    else:
        value = np.array(values, dtype=np.float64)
        distance = np.abs(value[:, None] - value[None, :]) ** (1 if weights == "linear" else 2)
        if cells.n_classes > len(value):
            farthest = distance.max(axis=1)
            distance = np.block([[distance, farthest[:, None]], [farthest[None, :], np.zeros((1, 1))]])
        observed = counts @ distance[cells.gold, cells.predicted]
        expected = (support * (distance @ predicted)).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        result: NDArray[np.float64] = 1 - n * observed / expected
    return result


Statistic = Callable[["Cells", "NDArray[np.int64]"], "NDArray[np.float64]"]


def bootstrap_intervals(
    cells: Cells, statistics: Sequence[Statistic | partial[NDArray[np.float64]]], *, n_resamples: int, seed: int
) -> list[tuple[float, float] | None]:
    """Compute percentile intervals (95 %) over `n_resamples` resamples of the labeled rows; the same seed, the same
    intervals.

    Resamples in which a statistic is undefined are left out of its interval. None where nothing is left, for fewer than
    two rows, and for `n_resamples=0`. Known limit of the method: where no row is wrong, none is wrong in any resample,
    and the interval has no width; for few rows the interval is too narrow.
    """
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    if cells.n < 2 or n_resamples == 0:  # noqa: PLR2004  # one row has no spread
        return [None] * len(statistics)
    drawn = [
        [statistic(cells, counts) for statistic in statistics] for counts in resamples(cells.counts, n_resamples, seed)
    ]
    return [interval(np.concatenate(chunks)) for chunks in zip(*drawn, strict=True)]


def interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Return what the middle 95 % of the values that are defined span; None where none is."""
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    tail, values = (1 - CONFIDENCE) / 2, values[np.isfinite(values)]
    if not len(values):
        return None
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def resamples(counts: NDArray[np.int64], n_resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Yield as many rows as `counts` has, drawn again with replacement and counted alike: chunks of (resamples,
    cells).
    """
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    rng, n = np.random.default_rng(seed), int(counts.sum())
    chunk = max(1, _CHUNK_CELLS // len(counts))
    # One multinomial draw over the cells is a resample of the rows: no row is touched, however many there are.
    for start in range(0, n_resamples, chunk):
        yield rng.multinomial(n, counts / n, size=min(chunk, n_resamples - start))
