"""Has a candidate become worse than its last accepted version? On the same gold rows, pair by pair.

Only rows that both versions were asked about count: a gold row that is missing from either is left out. For classes, a
row without a label is wrong, so that a version that fails on the hard rows is not better for it. For numbers, the rows
that both have labeled count, by their absolute errors. Rows of one unit (see `clusters`) count together, in either
version, and rows of a sample by their weights (`gold_weights`).

The test is exact at any number of rows: if both versions are equally good, swapping them in a unit changes nothing, so
that worse is as likely as better there (one-sided; if each unit is a row of a class it is McNemar's).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics.clusters import Units, number_units
from dagster_llm_batch.metrics.columns import Kind
from dagster_llm_batch.metrics.intervals import Interval, mean_interval, unbounded_interval
from dagster_llm_batch.metrics.joining import Joined
from dagster_llm_batch.metrics.schemas import UNSTORED, evaluation_extra, schema_of, table_of
from dagster_llm_batch.metrics.sequential_tests import log_payoffs, sign_flip_p
from dagster_llm_batch.metrics.tables import figure, percent, rows_markdown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "REGRESSION_SCHEMA",
    "Regression",
    "regression_between",
    "regressions_markdown",
    "regressions_to_arrow",
]


@dataclass(frozen=True)
class Regression:
    """The current labels of a candidate against the accepted ones.

    - `accepted` and `current` are accuracies over the `n_both` rows (categorical), or mean absolute errors (numeric);
      `change` is current minus accepted, with its 95 % interval by the unit (see `intervals`); `change_interval` is its
      method, or the reason for a missing one. None without a row.
    - `n_fixed`: rows that only the current version has right (nearer, of numbers); `n_broken`: only the accepted one.
    - `n_units`: units of the `n_both` rows, which are the rows themselves unless several share a request.
    - `p_worse`: how often a current version that is no worse would look this bad, or worse, in this look alone; None
      without a row.
    - `log_payoffs`: the payoffs of bets on "worse" (see `sequential_tests`); not stored in the table.
    """

    candidate: str
    target: str
    kind: Kind
    accepted_versions: tuple[str, ...]
    current_versions: tuple[str, ...]
    n_both: int
    n_fixed: int
    n_broken: int
    accepted: float | None
    current: float | None
    change: float | None
    change_low: float | None
    change_high: float | None
    change_interval: str | None
    p_worse: float | None
    n_units: int
    log_payoffs: tuple[float, ...] = field(default=(), metadata=UNSTORED)


REGRESSION_SCHEMA = schema_of(Regression)
"""The fields of `Regression`, in order; the versions are one text each, joined by commas."""


def regression_between(accepted: Joined, current: Joined, *, seed: int = 0) -> Regression:
    """Compare two versions of the same labels. Raises InputError where the two were joined with different gold. The
    same input gives the same figures.
    """
    if not (accepted.keys.equals(current.keys) and accepted.gold.equals(current.gold)):
        raise InputError(f"The versions of candidate '{current.candidate}' were joined with different gold rows.")
    with evaluation_extra("Comparing versions"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    numeric = current.target.kind == "numeric"
    before, after, both = (_errors if numeric else _mistakes)(accepted, current)
    n = len(before)
    worse_by, bounds = np.zeros(0), Interval(None, None, "none: no row in common")
    counted = np.ones(n)
    if n and current.weight is not None:
        counted = current.weight.filter(both).to_numpy()
        # Only a row's weight relative to the others counts.
        counted = counted * (n / counted.sum())
    if n:
        units = number_units(accepted.cluster.filter(both), current.cluster.filter(both))
        worse_by = np.bincount(units, (after - before) * counted).astype(np.float64)
        weighed = Units(counted, units)
        # For classes, `change` is a change of accuracy: from all rows broken to all rows fixed.
        bounds = (
            unbounded_interval(after - before, weighed, of="changes")
            if numeric
            else mean_interval(before - after, weighed, lowest=-1, highest=1)
        )
    # For classes, accuracy: the share that is not wrong.
    sums = [float((counted * (side if numeric else 1 - side)).sum()) for side in (before, after)]
    then, now = (total / n if n else None for total in sums)
    return Regression(
        candidate=current.candidate,
        target=current.target.name,
        kind=current.target.kind,
        accepted_versions=accepted.prompt_versions,
        current_versions=current.prompt_versions,
        n_both=n,
        n_fixed=int((after < before).sum()),
        n_broken=int((after > before).sum()),
        accepted=then,
        current=now,
        change=None if then is None or now is None else now - then,
        change_low=bounds.low,
        change_high=bounds.high,
        change_interval=bounds.method if n else None,
        p_worse=sign_flip_p(worse_by, seed=seed) if n else None,
        n_units=len(worse_by),
        log_payoffs=log_payoffs(worse_by),
    )


def regressions_to_arrow(regressions: Iterable[Regression]) -> pa.Table:
    """Return one row for each candidate and target, in REGRESSION_SCHEMA."""
    return table_of(regressions, Regression)


_Compared = tuple["NDArray[np.float64]", "NDArray[np.float64]", pa.Array]


def _mistakes(accepted: Joined, current: Joined) -> _Compared:
    """Return 1 for each row that is wrong, by the accepted version and by the current one, and which rows they are."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    both = pc.and_(accepted.has_row, current.has_row)
    before, after = (
        np.asarray(
            pc.invert(pc.fill_null(pc.equal(labels.predicted, labels.gold), fill_value=False)).filter(both),
            dtype=np.float64,
        )
        for labels in (accepted, current)
    )
    return before, after, both


def _errors(accepted: Joined, current: Joined) -> _Compared:
    """Return the absolute error of each row, likewise."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    both = pc.and_(accepted.predicted.is_valid(), current.predicted.is_valid())
    before, after = (
        np.abs(np.asarray(pc.subtract(labels.predicted, labels.gold).filter(both), dtype=np.float64))
        for labels in (accepted, current)
    )
    return before, after, both


def regressions_markdown(regressions: Sequence[Regression]) -> str:
    """Return each candidate and target: the accepted figure, the current one, and whether it is worse."""
    return rows_markdown(
        [
            {
                "candidate": regression.candidate,
                "target": regression.target,
                "accepted": ", ".join(regression.accepted_versions) or "-",
                "current": ", ".join(regression.current_versions) or "-",
                "rows": f"{regression.n_both:,}",
                **_change(regression),
                "fixed": f"{regression.n_fixed:,}",
                "broken": f"{regression.n_broken:,}",
                "p (worse)": "-" if regression.p_worse is None else f"{regression.p_worse:.2g}",
            }
            for regression in regressions
        ]
    )


def _change(regression: Regression) -> dict[str, str]:
    if regression.kind == "numeric":
        return {
            "then": f"{figure(regression.accepted)} MAE",
            "now": f"{figure(regression.current)} MAE",
            "change (95 %)": figure(regression.change, regression.change_low, regression.change_high),
        }
    return {
        "then": percent(regression.accepted),
        "now": percent(regression.current),
        "change (95 %)": percent(regression.change, regression.change_low, regression.change_high),
    }
