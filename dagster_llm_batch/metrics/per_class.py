"""Counts of gold classes by predicted class, the basis of the figures of a categorical target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.clusters import Units
from dagster_llm_batch.metrics.crosstab import Crosstab
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
    "effective_rows",
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
        **{
            name: kind
            for figure in ("precision", "recall", "f1")
            for name, kind in (
                (figure, pa.float64()),
                (f"{figure}_low", pa.float64()),
                (f"{figure}_high", pa.float64()),
                (f"{figure}_interval", pa.string()),
            )
        },
    }
)
"""`n_gold` counts all gold rows of the class, `support` the labeled ones. A null figure would divide by zero. Intervals
are 95 %, by the unit (see `clusters`); `…_interval` is their method, or the reason for a missing one.
"""


@dataclass(frozen=True)
class Confusion:
    """`counts[i][j]` labeled rows have gold class `classes[i]` and were labeled `classes[j]`.

    The classes are all values of gold and predictions, sorted; a gold class without a labeled row is a row of zeros.
    `unlabeled[i]` gold rows of the class have no label.

    `effective` has the rows of `counts`, and `unlabeled` as last column, by the weights of gold: they are numbers of
    rows of a simple random sample with the same shares, and the weighted rows have at least their information. None if
    each row counts once.
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
    classes, table = coded(counted)
    counts = [[0] * len(classes) for _ in classes]
    for gold, predicted, n in zip(table.gold.tolist(), table.predicted.tolist(), table.counts.tolist(), strict=True):
        counts[gold][predicted] += int(n)
    missing = _of_class(counted.gold.select(["gold", "n"]), classes) - table.marginals()[0]
    unlabeled = tuple(map(int, missing.tolist()))
    effective = None
    if counted.is_weighted:
        rows = effective_rows(counted, on_all=True)
        weighted = [[0.0] * (len(classes) + 1) for _ in classes]
        for gold, predicted, n in zip(rows.gold.tolist(), rows.predicted.tolist(), rows.counts.tolist(), strict=True):
            weighted[gold][predicted] += n
        effective = tuple(map(tuple, weighted))
    return Confusion(counted.candidate, counted.target.name, classes, tuple(map(tuple, counts)), unlabeled, effective)


def per_class(joined: Joined | Tally) -> pa.Table:
    """Return one row for each class, in order, in PER_CLASS_SCHEMA. Raises ConfigError for a numeric target."""
    counted = tally(joined)
    matrix, table = confusion(counted), effective_rows(counted)
    rows = []
    for at, value in enumerate(matrix.classes):
        support, predicted, correct = _margins(matrix.counts, at)
        # As shares of all rows, if gold has weights; the counts remain counts of rows.
        has_gold, labeled_as, right = _margins(matrix.effective or matrix.counts, at)
        figures = {
            "precision": right / labeled_as if labeled_as else None,
            "recall": right / has_gold if has_gold else None,
            "f1": 2 * right / (has_gold + labeled_as) if has_gold + labeled_as else None,
        }
        intervals = dict(zip(figures, table.class_shares(at), strict=True))
        rows.append(
            {
                "candidate": matrix.candidate,
                "target": matrix.target,
                "class": class_name(value),
                "n_gold": support + matrix.unlabeled[at],
                "support": support,
                "predicted": predicted,
                "correct": correct,
                **figures,
                **{f"{figure}_low": interval.low for figure, interval in intervals.items()},
                **{f"{figure}_high": interval.high for figure, interval in intervals.items()},
                **{f"{figure}_interval": interval.method for figure, interval in intervals.items()},
            }
        )
    return pa.Table.from_pylist(rows, schema=PER_CLASS_SCHEMA)


def _margins(matrix: Sequence[Sequence[float]], at: int) -> tuple[float, float, float]:
    """Return the rows of each class in gold, in the predictions, and in both."""
    return sum(matrix[at][: len(matrix)]), sum(row[at] for row in matrix), matrix[at][at]


def class_name(value: Class) -> str:
    """Return a class as text; booleans in the form of JSON."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def coded(counted: Tally) -> tuple[tuple[Class, ...], Crosstab]:
    """Return the classes, and the labeled rows by the positions of their gold and predicted class among them."""
    if counted.target.kind == "numeric":
        raise ConfigError(f"Target '{counted.target.name}' is numeric: it has no classes to count.")
    classes = counted.classes()
    gold, predicted = (positions(counted.cells[name], classes) for name in ("gold", "predicted"))
    units = Units.of(counted.cells["n"], counted.cells["cluster"])
    return classes, Crosstab.of(gold, predicted, len(classes), units)


def with_unlabeled(counted: Tally, classes: Sequence[Class]) -> Crosstab:
    """Return all gold rows, weighted: rows without a label count as predictions of a separate class, the last one. A
    row that is missing from the candidate is its own unit; for weighted gold, every row is.
    """
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    n, cells, unlabeled = len(classes), counted.cells, counted.unlabeled
    gold, predicted = (positions(cells[name], classes) for name in ("gold", "predicted"))
    if counted.is_weighted:
        labeled = stands_for(cells)
        # Rounding may leave less than nothing.
        without = (_of_class(counted.gold, classes) - np.bincount(gold, labeled, n)).clip(min=0)
        counts, codes = np.concatenate([labeled, without]), np.concatenate([gold, np.arange(n)])
        units = Units(counts, np.full(len(counts), -1))
    else:
        absent = _of_class(counted.gold, classes) - np.bincount(gold, cells["n"].to_numpy(), n)
        absent -= _of_class(unlabeled, classes)
        without_row = {
            "gold": pa.array(classes, unlabeled.schema.field("gold").type),
            "cluster": pa.nulls(n, pa.large_string()),
            "n": pa.array(absent.astype(np.int64)),
        }
        rows = pa.concat_tables([cells.select(["gold", "cluster", "n"]), unlabeled, pa.table(without_row)])
        codes, units = positions(rows["gold"], classes), Units.of(rows["n"], rows["cluster"])
    return Crosstab.of(codes, np.concatenate([predicted, np.full(len(codes) - len(predicted), n)]), n + 1, units)


def effective_rows(counted: Tally, *, on_all: bool = False) -> Crosstab:
    """Return the labeled rows, or all (`on_all`, see `with_unlabeled`). For weighted gold, return numbers of rows of a
    simple random sample with the same shares; the weighted rows have at least their information.
    """
    classes, table = coded(counted)
    if counted.is_weighted:
        _, sampled = sampled_rows(counted)
        # Rows without a label count as much as labeled ones.
        scale = float(sampled.n_least / sampled.weight.sum()) if len(sampled.weight) else 0.0
        return with_unlabeled(counted, classes).scaled(scale, None if on_all else len(classes))
    return with_unlabeled(counted, classes) if on_all else table


def _of_class(table: pa.Table, classes: Sequence[Class]) -> NDArray[np.float64]:
    """Count the rows of each gold class, or sum their weights."""
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    return np.bincount(positions(table["gold"], classes), stands_for(table), len(classes)).astype(np.float64)


def surveyed(counted: Tally) -> Survey:
    """Return the labeled rows of weighted gold, by the positions of their classes as in `coded`."""
    classes = counted.classes()
    gold, predicted = (positions(counted.cells[name], classes) for name in ("gold", "predicted"))
    cell, sampled = sampled_rows(counted)
    return Survey(gold[cell], predicted[cell], sampled, len(classes))


def positions(values: pa.Array | pa.ChunkedArray, classes: Sequence[Class]) -> NDArray[np.int64]:
    """Return the position of each value among `classes`, which hold them all."""
    with evaluation_extra("Evaluating labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    return np.asarray(pc.index_in(values, value_set=pa.array(classes, type=values.type)), dtype=np.int64)
