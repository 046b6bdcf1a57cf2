"""Rows drawn again with replacement, by counting them.

Drawing n rows with replacement and counting them is drawing once from a multinomial over their different values: the
same distribution, no row is touched, and the order of the rows cannot matter.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from dagster_llm_batch.metrics.intervals import CONFIDENCE
from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["interval", "resamples"]

_CHUNK_CELLS = 4_000_000
"""Drawn counts held at a time: 32 MB of int64."""


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
