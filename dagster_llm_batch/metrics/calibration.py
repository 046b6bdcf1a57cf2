"""Is a candidate's confidence justified? Compares it with the share of its labels that are correct.

All figures are over the labeled rows that have a confidence. A confidence is the probability, 0 to 1, that the label is
correct; divide one given out of 100, or on a scale of 5, first. For gold with the weights of a sample, counts are of
rows, and all else is estimated for all rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.clusters import Units
from dagster_llm_batch.metrics.joining import Joined
from dagster_llm_batch.metrics.schemas import evaluation_extra
from dagster_llm_batch.metrics.tally import Tally, stands_for, tally

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["CALIBRATION_SCHEMA", "Calibration", "CalibrationBin", "calibration_of", "calibrations_to_arrow"]

N_BINS = 10

CALIBRATION_SCHEMA = pa.schema(
    {
        "candidate": pa.string(),
        "target": pa.string(),
        "confidence_from": pa.float64(),
        "confidence_to": pa.float64(),
        "n": pa.int64(),
        "n_correct": pa.int64(),
        "mean_confidence": pa.float64(),
        "accuracy": pa.float64(),
    }
)
"""One row for each bin, empty ones included: their figures are null."""


@dataclass(frozen=True)
class CalibrationBin:
    """Labels whose confidence is over `confidence_from` (0 itself is in the first bin), at most `confidence_to`.

    `share`: of all labels with a confidence. `rows`: the number of independent labels of equal weight with the same
    information. It is `n`, except for weighted gold, and for labels of one unit (see `clusters`), which count as one.
    """

    confidence_from: float
    confidence_to: float
    n: int
    n_correct: int
    mean_confidence: float | None
    accuracy: float | None
    share: float
    rows: int


@dataclass(frozen=True)
class Calibration:
    """One candidate on one target. All figures are None where `n`, the labels with a confidence, is 0.

    - `ece`: expected calibration error, the mean distance of confidence and accuracy over `bins` of equal width,
      weighted by their labels. 0 is perfect. With few labels it is biased upward.
    - `brier`: mean squared distance of the confidence from the result, 1 for correct and 0 for wrong. It falls with
      better labels too, not only with honest confidence.
    """

    candidate: str
    target: str
    n: int
    mean_confidence: float | None
    accuracy: float | None
    ece: float | None
    brier: float | None
    bins: tuple[CalibrationBin, ...]


def calibration_of(joined: Joined | Tally, *, n_bins: int = N_BINS) -> Calibration | None:
    """None where the candidate gives no confidence. Raises ConfigError for a numeric target."""
    counted = tally(joined)
    if "confidence" not in counted.cells.column_names:
        return None
    if counted.target.kind == "numeric":
        raise ConfigError(
            f"Target '{counted.target.name}' is numeric: its values are near or far, not correct or wrong."
        )
    with evaluation_extra("Calibration"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    cells = counted.cells.filter(counted.cells["confidence"].is_valid())
    confidence, times, weighted = cells["confidence"].to_numpy(), cells["n"].to_numpy(), stands_for(cells)
    correct = np.asarray(pc.equal(cells["predicted"], cells["gold"]), dtype=bool)
    edges = np.linspace(0, 1, n_bins + 1)
    at = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)
    n, n_correct, size, right, total = (
        np.bincount(at, weights=counts, minlength=n_bins)
        for counts in (times, times * correct, weighted, weighted * correct, weighted * confidence)
    )
    squares = _squares(at, weighted, Units.of(cells["n"], cells["cluster"]), n_bins)
    bins = tuple(
        CalibrationBin(
            confidence_from=float(edges[i]),
            confidence_to=float(edges[i + 1]),
            n=int(n[i]),
            n_correct=int(n_correct[i]),
            mean_confidence=float(total[i] / size[i]) if n[i] else None,
            accuracy=float(right[i] / size[i]) if n[i] else None,
            share=float(size[i] / size.sum()) if n[i] else 0.0,
            rows=round(size[i] ** 2 / squares[i]) if n[i] else 0,
        )
        for i in range(n_bins)
    )
    rows, whole = int(times.sum()), weighted.sum()
    return Calibration(
        candidate=counted.candidate,
        target=counted.target.name,
        n=rows,
        mean_confidence=float(total.sum() / whole) if rows else None,
        accuracy=float(right.sum() / whole) if rows else None,
        ece=float(np.abs(total - right).sum() / whole) if rows else None,
        brier=float((weighted * (confidence - correct) ** 2).sum() / whole) if rows else None,
        bins=bins,
    )


def _squares(at: NDArray[np.int64], weighted: NDArray[np.float64], units: Units, n_bins: int) -> NDArray[np.float64]:
    """Sum, in each bin, the squares of the weights of its units."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    shared = units.number >= 0
    of_rows = np.bincount(at[~shared], (weighted**2 / units.counts)[~shared], n_bins)
    many = int(units.number.max(initial=-1)) + 1
    by_unit = np.bincount((at * many + units.number)[shared], weighted[shared], n_bins * many)
    squares: NDArray[np.float64] = of_rows + (by_unit**2).reshape(n_bins, -1).sum(axis=1)
    return squares


def calibrations_to_arrow(calibrations: Iterable[Calibration]) -> pa.Table:
    """Return all bins, in CALIBRATION_SCHEMA."""
    rows = [
        {"candidate": calibration.candidate, "target": calibration.target, **asdict(bin_)}
        for calibration in calibrations
        for bin_ in calibration.bins
    ]
    return pa.Table.from_pylist(rows, schema=CALIBRATION_SCHEMA)
