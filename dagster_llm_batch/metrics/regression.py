"""Has a candidate become worse than its last accepted version? On the same gold rows, pair by pair.

Only rows that both versions were asked about count: a gold row that either has no row for is left out. Of classes, a
row without a label is wrong, so that a version that fails on the hard rows is not better for it; exact McNemar test,
one-sided, over the rows that only one of the two has right. Of numbers, the rows that both have labeled; bootstrap of
the mean difference of their absolute errors, and no verdict below MIN_NUMERIC_ROWS.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics.bootstrap import interval, resamples
from dagster_llm_batch.metrics.columns import Kind
from dagster_llm_batch.metrics.joining import Joined
from dagster_llm_batch.metrics.schemas import evaluation_extra, schema_of, table_of
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
    "worse",
]

ALPHA = 0.05
"""How often all comparisons together may call something worse that is not."""

MIN_NUMERIC_ROWS = 30
"""Fewer rows of numbers give no verdict, since the bootstrap knows only the rows that it has.

Simulated equal versions were called worse, at one row, two, ten and thirty, in .50, .25, .09 and .05 of the comparisons
where errors are normal, and in .50, .25, .10 and .08 where they are skewed; more rows than thirty change that slowly.
"""


@dataclass(frozen=True)
class Regression:
    """The current labels of a candidate against those that were accepted.

    - `accepted` and `current` are accuracies over the `n_both` rows (categorical), or mean absolute errors (numeric);
      `change` is current minus accepted, with its 95 % interval (bootstrap). None without a row.
    - `n_fixed`: rows that only the current version has right (nearer, of numbers); `n_broken`: only the accepted one.
    - `p_worse`: how often a current version that is no worse would look this bad, or worse; None without a row, and of
      numbers without MIN_NUMERIC_ROWS: then there is no verdict.
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
    p_worse: float | None

    @property
    def rows_wanted(self) -> int:
        """How many rows both versions must have before there is a verdict."""
        return MIN_NUMERIC_ROWS if self.kind == "numeric" else 1


REGRESSION_SCHEMA = schema_of(Regression)
"""The fields of `Regression`, in order; the versions are one text each, joined by commas."""


def regression_between(accepted: Joined, current: Joined, *, n_resamples: int = 2000, seed: int = 0) -> Regression:
    """Compare two versions of the same labels. Raises InputError where the two were joined with different gold. The
    same input gives the same figures.
    """
    if not (accepted.keys.equals(current.keys) and accepted.gold.equals(current.gold)):
        raise InputError(f"The versions of candidate '{current.candidate}' were joined with different gold rows.")
    measure = _numbers if current.target.kind == "numeric" else _classes
    before, after, n_fixed, n_broken, p_worse, change = measure(accepted, current, n_resamples, seed)
    n = len(before)
    low, high = change or (None, None)
    return Regression(
        candidate=current.candidate,
        target=current.target.name,
        kind=current.target.kind,
        accepted_versions=accepted.prompt_versions,
        current_versions=current.prompt_versions,
        n_both=n,
        n_fixed=n_fixed,
        n_broken=n_broken,
        accepted=float(before.mean()) if n else None,
        current=float(after.mean()) if n else None,
        change=float(after.mean() - before.mean()) if n else None,
        change_low=low,
        change_high=high,
        p_worse=p_worse,
    )


def worse(regressions: Sequence[Regression]) -> list[Regression]:
    """Return those that chance does not explain. The comparisons share ALPHA (Bonferroni)."""
    compared = [regression for regression in regressions if regression.p_worse is not None]
    return [
        regression
        for regression in compared
        if regression.p_worse is not None and regression.p_worse < ALPHA / len(compared)
    ]


def regressions_to_arrow(regressions: Iterable[Regression]) -> pa.Table:
    """Return one row for each candidate and target, in REGRESSION_SCHEMA."""
    return table_of(regressions, Regression)


_Measured = tuple["NDArray[np.float64]", "NDArray[np.float64]", int, int, float | None, tuple[float, float] | None]


def _classes(accepted: Joined, current: Joined, n_resamples: int, seed: int) -> _Measured:
    with evaluation_extra("Comparing versions"):
        import numpy as np  # noqa: PLC0415  # optional dependency
        from scipy.stats import binomtest  # noqa: PLC0415  # optional dependency
    both = pc.and_(accepted.has_row, current.has_row)
    before, after = (
        np.asarray(
            pc.fill_null(pc.equal(labels.predicted, labels.gold), fill_value=False).filter(both), dtype=np.float64
        )
        for labels in (accepted, current)
    )
    n, fixed, broken = len(before), int((after > before).sum()), int((after < before).sum())
    if not n:
        return before, after, 0, 0, None, None
    p_worse = float(binomtest(broken, fixed + broken, alternative="greater").pvalue) if fixed + broken else 1.0
    counts = np.array([fixed, broken, n - fixed - broken])
    drawn = [(chunk[:, 0] - chunk[:, 1]) / n for chunk in resamples(counts, n_resamples, seed)]
    return before, after, fixed, broken, p_worse, interval(np.concatenate(drawn)) if drawn else None


def _numbers(accepted: Joined, current: Joined, n_resamples: int, seed: int) -> _Measured:
    with evaluation_extra("Comparing versions"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    both = pc.and_(accepted.predicted.is_valid(), current.predicted.is_valid())
    before, after = (
        np.abs(np.asarray(pc.subtract(labels.predicted, labels.gold).filter(both), dtype=np.float64))
        for labels in (accepted, current)
    )
    n, fixed, broken = len(before), int((after < before).sum()), int((after > before).sum())
    if not n:
        return before, after, 0, 0, None, None
    # Rows that changed alike are drawn together: a resample costs as many draws as there are different changes.
    apart, of_row = np.unique(after - before, return_inverse=True)
    counts = np.bincount(of_row)
    drawn = np.concatenate([chunk @ apart / n for chunk in resamples(counts, n_resamples, seed)])
    p_worse = float((1 + (drawn <= 0).sum()) / (1 + len(drawn))) if n >= MIN_NUMERIC_ROWS else None
    return before, after, fixed, broken, p_worse, interval(drawn)


def regressions_markdown(regressions: Sequence[Regression]) -> str:
    """Return each candidate and target: what was accepted, what is there now, and whether it is worse."""
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
                "p (worse)": _p_value(regression),
            }
            for regression in regressions
        ]
    )


def _p_value(regression: Regression) -> str:
    if regression.p_worse is not None:
        return f"{regression.p_worse:.2g}"
    return f"too few rows: {regression.n_both} of {regression.rows_wanted}" if regression.n_both else "-"


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
