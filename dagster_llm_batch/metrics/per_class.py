"""Which classes were taken for which: the counts behind the figures of a categorical target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.bootstrap import Cells
from dagster_llm_batch.metrics.joining import Class, Joined
from dagster_llm_batch.metrics.schemas import evaluation_extra
from dagster_llm_batch.metrics.tally import Tally, tally

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
    """

    candidate: str
    target: str
    classes: tuple[Class, ...]
    counts: tuple[tuple[int, ...], ...]
    unlabeled: tuple[int, ...]


def confusion(joined: Joined | Tally) -> Confusion:
    """Count the confusion matrix of a candidate. Raises ConfigError for a numeric target."""
    counted = tally(joined)
    classes, cells = coded(counted)
    counts = [[0] * len(classes) for _ in classes]
    for gold, predicted, n in zip(cells.gold.tolist(), cells.predicted.tolist(), cells.counts.tolist(), strict=True):
        counts[gold][predicted] = n
    unlabeled = tuple(_unlabeled(counted, classes, cells).tolist())
    return Confusion(counted.candidate, counted.target.name, classes, tuple(map(tuple, counts)), unlabeled)


def per_class(joined: Joined | Tally) -> pa.Table:
    """Return one row for each class, in order, in PER_CLASS_SCHEMA. Raises ConfigError for a numeric target."""
    counted = tally(joined)
    matrix = confusion(counted)
    rows = []
    for at, value in enumerate(matrix.classes):
        support, predicted = sum(matrix.counts[at]), sum(row[at] for row in matrix.counts)
        correct = matrix.counts[at][at]
        rows.append(
            {
                "candidate": matrix.candidate,
                "target": matrix.target,
                "class": class_name(value),
                "n_gold": support + matrix.unlabeled[at],
                "support": support,
                "predicted": predicted,
                "correct": correct,
                "precision": correct / predicted if predicted else None,
                "recall": correct / support if support else None,
                "f1": 2 * correct / (support + predicted) if support + predicted else None,
            }
        )
    return pa.Table.from_pylist(rows, schema=PER_CLASS_SCHEMA)


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
    """Return the cells of all gold rows: those without a label are predicted as a class of their own, the last one."""
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    n = len(classes)
    return Cells(
        np.concatenate([cells.gold, np.arange(n)]),
        np.concatenate([cells.predicted, np.full(n, n)]),
        np.concatenate([cells.counts, _unlabeled(counted, classes, cells)]),
        n + 1,
    )


def _unlabeled(counted: Tally, classes: Sequence[Class], cells: Cells) -> NDArray[np.int64]:
    """Count the gold rows of each class that have no label."""
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    at, n = positions(counted.gold["gold"], classes), len(classes)
    of_class = np.bincount(at, counted.gold["n"].to_numpy(), n) - np.bincount(cells.gold, cells.counts, n)
    return of_class.astype(np.int64)


def positions(values: pa.Array | pa.ChunkedArray, classes: Sequence[Class]) -> NDArray[np.int64]:
    """Return where each value stands among `classes`, which hold them all."""
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    return np.asarray(pc.index_in(values, value_set=pa.array(classes, type=values.type)), dtype=np.int64)
