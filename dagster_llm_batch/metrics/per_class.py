"""Which classes were taken for which: the counts behind the figures of a categorical target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.bootstrap import Cells
from dagster_llm_batch.metrics.joining import Class, Joined
from dagster_llm_batch.metrics.schemas import evaluation_extra
from dagster_llm_batch.metrics.survey import Survey
from dagster_llm_batch.metrics.tally import Tally, sampled_rows, stands_for, tally

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "PER_CLASS_SCHEMA",
    "Confusion",
    "class_name",
    "coded",
    "confusion",
    "per_class",
    "positions",
    "with_unlabeled",
]

PER_CLASS_SCHEMA = pa.schema(
    {
        "candidate": pa.string(),
        "target": pa.string(),
        "class": pa.string(),
        "n_gold": pa.int64(),
        "support": pa.int64(),
        "predicted": pa.int64(),
        "correct": pa.int64(),
        "precision": pa.float64(),
        "recall": pa.float64(),
        "f1": pa.float64(),
    }
)
"""`n_gold` counts all gold rows of the class, `support` the labeled ones. A null figure has nothing to divide by."""


@dataclass(frozen=True)
class Confusion:
    """`counts[i][j]` labeled rows have gold class `classes[i]` and were labeled `classes[j]`.

    The classes are all values of gold and predictions, sorted; a gold class without a labeled row is a row of zeros.
    `unlabeled[i]` gold rows of the class have no label.

    `effective` are the rows of `counts`, and `unlabeled` as last column, as the weights of gold say: how many rows that
    are drawn alike would show the same shares, and tell no less. None where each row counts once.
    """

    candidate: str
    target: str
    classes: tuple[Class, ...]
    counts: tuple[tuple[int, ...], ...]
    unlabeled: tuple[int, ...]
    effective: tuple[tuple[float, ...], ...] | None = None


def confusion(joined: Joined | Tally) -> Confusion:
    """Count the confusion matrix of a candidate. Raises ConfigError for a numeric target."""
    counted = tally(joined)
    classes, cells = coded(counted)
    counts = [[0] * len(classes) for _ in classes]
    for gold, predicted, n in zip(cells.gold.tolist(), cells.predicted.tolist(), cells.counts.tolist(), strict=True):
        counts[gold][predicted] = n
    unlabeled = tuple(_unlabeled(counted, classes, cells).astype(int).tolist())
    effective = None
    if counted.is_weighted:
        rows = with_unlabeled(counted, classes, cells)
        _, sampled = sampled_rows(counted)
        # Rows without a label tell as much as those with one.
        scale = sampled.n_least / sampled.weight.sum() if len(sampled.weight) else 0.0
        weighted = [[0.0] * (len(classes) + 1) for _ in classes]
        for gold, predicted, n in zip(rows.gold.tolist(), rows.predicted.tolist(), rows.counts.tolist(), strict=True):
            weighted[gold][predicted] += n * scale
        effective = tuple(map(tuple, weighted))
    return Confusion(counted.candidate, counted.target.name, classes, tuple(map(tuple, counts)), unlabeled, effective)


def per_class(joined: Joined | Tally) -> pa.Table:
    """Return one row for each class, in order, in PER_CLASS_SCHEMA. Raises ConfigError for a numeric target."""
    counted = tally(joined)
    matrix = confusion(counted)
    rows = []
    for at, value in enumerate(matrix.classes):
        support, predicted, correct = _margins(matrix.counts, at)
        # As shares of all rows, where gold has weights; the counts stay those of rows.
        has_gold, labeled_as, right = _margins(matrix.effective or matrix.counts, at)
        rows.append(
            {
                "candidate": matrix.candidate,
                "target": matrix.target,
                "class": class_name(value),
                "n_gold": support + matrix.unlabeled[at],
                "support": support,
                "predicted": predicted,
                "correct": correct,
                "precision": right / labeled_as if labeled_as else None,
                "recall": right / has_gold if has_gold else None,
                "f1": 2 * right / (has_gold + labeled_as) if has_gold + labeled_as else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=PER_CLASS_SCHEMA)


def _margins(matrix: Sequence[Sequence[float]], at: int) -> tuple[float, float, float]:
    """Return what gold, the predictions, and both have of a class."""
    return sum(matrix[at][: len(matrix)]), sum(row[at] for row in matrix), matrix[at][at]


def class_name(value: Class) -> str:
    """Return a class as text; booleans as JSON writes them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def coded(counted: Tally) -> tuple[tuple[Class, ...], Cells]:
    """Return the classes, and the labeled rows by the positions of their gold and predicted class among them."""
    if counted.target.kind == "numeric":
        raise ConfigError(f"Target '{counted.target.name}' is numeric: it has no classes to count.")
    classes = counted.classes()
    gold, predicted = (positions(counted.cells[name], classes) for name in ("gold", "predicted"))
    return classes, Cells.of(gold, predicted, len(classes), counted.cells["n"].to_numpy())


def with_unlabeled(counted: Tally, classes: Sequence[Class], cells: Cells) -> Cells:
    """Return the cells of all gold rows, weighted: those without a label are predicted as a last class of their own."""
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    n = len(classes)
    if counted.is_weighted:
        gold, predicted = (positions(counted.cells[name], classes) for name in ("gold", "predicted"))
        # Cells may be repeated, and their counts any numbers: the formulas only add them up.
        stand_for: Any = stands_for(counted.cells)
        cells = Cells(gold, predicted, stand_for, n)
    return Cells(
        np.concatenate([cells.gold, np.arange(n)]),
        np.concatenate([cells.predicted, np.full(n, n)]),
        np.concatenate([cells.counts, _unlabeled(counted, classes, cells, weighted=True)]),
        n + 1,
    )


def _unlabeled(
    counted: Tally, classes: Sequence[Class], cells: Cells, *, weighted: bool = False
) -> NDArray[np.float64]:
    """Count the gold rows of each class that have no label, or what they stand for."""
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    at, n = positions(counted.gold["gold"], classes), len(classes)
    rows = stands_for(counted.gold) if weighted else counted.gold["n"].to_numpy()
    # Rounding may leave less than nothing.
    unlabeled: NDArray[np.float64] = np.maximum(
        0.0, np.bincount(at, rows, n) - np.bincount(cells.gold, cells.counts, n)
    )
    return unlabeled


def surveyed(counted: Tally) -> Survey:
    """Return the labeled rows of weighted gold, by the positions of their classes as in `coded`."""
    classes = counted.classes()
    gold, predicted = (positions(counted.cells[name], classes) for name in ("gold", "predicted"))
    cell, sampled = sampled_rows(counted)
    return Survey(gold[cell], predicted[cell], sampled, len(classes))


def positions(values: pa.Array | pa.ChunkedArray, classes: Sequence[Class]) -> NDArray[np.int64]:
    """Return where each value stands among `classes`, which hold them all."""
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    return np.asarray(pc.index_in(values, value_set=pa.array(classes, type=values.type)), dtype=np.int64)
