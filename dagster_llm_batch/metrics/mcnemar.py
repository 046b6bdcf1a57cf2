"""Two candidates on the same gold: is one better (McNemar), and do they agree (Cohen's kappa)?

Only gold rows that both have labeled count. With many pairs some difference looks significant by chance: each p-value
is for a single test, not adjusted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics.clusters import Units, number_units
from dagster_llm_batch.metrics.crosstab import Crosstab
from dagster_llm_batch.metrics.gold_weights import SampledRows
from dagster_llm_batch.metrics.intervals import sign_test
from dagster_llm_batch.metrics.joining import Joined
from dagster_llm_batch.metrics.per_class import positions
from dagster_llm_batch.metrics.schemas import evaluation_extra
from dagster_llm_batch.metrics.survey import MIN_ROWS, Survey, guard

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Agreement", "agreement_between", "pairwise_agreement"]


@dataclass(frozen=True)
class Agreement:
    """Candidates `a` and `b` on one target. `n_both = n_both_correct + n_only_a_correct + n_only_b_correct +
    n_both_wrong`.

    - `n_same`: rows with the same label, right or wrong; `kappa`: the same, corrected for chance, and None if chance
      cannot disagree (both always answer one and the same class) or `n_both` is 0.
    - `accuracy_difference`: accuracy of `a` minus accuracy of `b` on these rows; None without rows.
    - `n_units`: independent units among the rows, requests or clusters (see `clusters`).
    - McNemar's `p_value` (two-sided): how often two equally good candidates would differ in as many units. A unit of
      several rows counts once, for the candidate that has more of them right. `test` is `exact` (binomial).
    - For gold with the weights of a sample, `kappa` and `accuracy_difference` are for all rows, and `test` is `t`, of
      the weighted difference (`statistic`; None and p_value 1 with too few rows for it).
    """

    target: str
    a: str
    b: str
    n_both: int
    n_same: int
    kappa: float | None
    n_both_correct: int
    n_only_a_correct: int
    n_only_b_correct: int
    n_both_wrong: int
    accuracy_difference: float | None
    n_units: int
    test: Literal["exact", "t"]
    statistic: float | None
    p_value: float


def agreement_between(a: Joined, b: Joined) -> Agreement:
    """Compare two candidates on the rows that both labeled. Raises ConfigError for numeric or different targets,
    InputError where the two were joined with different gold.
    """
    if a.target != b.target or a.target.kind == "numeric":
        raise ConfigError(
            f"Agreement is between two candidates on one categorical target, got '{a.target.name}' ({a.target.kind}) "
            f"and '{b.target.name}' ({b.target.kind})."
        )
    if not (a.keys.equals(b.keys) and a.gold.equals(b.gold)):
        raise InputError(f"Candidates '{a.candidate}' and '{b.candidate}' were joined with different gold rows.")
    both = pc.and_(a.predicted.is_valid(), b.predicted.is_valid())
    gold, says_a, says_b = (values.filter(both) for values in (a.gold, a.predicted, b.predicted))
    a_right, b_right = pc.equal(says_a, gold), pc.equal(says_b, gold)
    both_right, only_a = _count(pc.and_(a_right, b_right)), _count(pc.and_not(a_right, b_right))
    only_b, n = _count(pc.and_not(b_right, a_right)), len(gold)
    test: Literal["exact", "t"] = "exact"
    statistic: float | None = None
    units = number_units(a.cluster.filter(both), b.cluster.filter(both))
    p_value = _mcnemar(a_right, b_right, units)
    difference, rows = (only_a - only_b) / n if n else None, None
    if n and a.weight is not None and a.spread is not None:
        weight, spread = (values.filter(both).to_numpy() for values in (a.weight, a.spread))
        rows = SampledRows(weight, spread, units)
        test, difference, statistic, p_value = _weighted(a_right, b_right, rows)
    return Agreement(
        target=a.target.name,
        a=a.candidate,
        b=b.candidate,
        n_both=n,
        n_same=_count(pc.equal(says_a, says_b)),
        kappa=_kappa(says_a, says_b, a.target.kappa_weights, rows),
        n_both_correct=both_right,
        n_only_a_correct=only_a,
        n_only_b_correct=only_b,
        n_both_wrong=n - both_right - only_a - only_b,
        accuracy_difference=difference,
        n_units=int(units.max(initial=-1)) + 1,
        test=test,
        statistic=statistic,
        p_value=p_value,
    )


def pairwise_agreement(joined: Sequence[Joined]) -> tuple[Agreement, ...]:
    """Return all pairs of candidates that share a categorical target, in the order given."""
    return tuple(
        agreement_between(a, b)
        for a, b in combinations(joined, 2)
        if a.target == b.target and a.target.kind == "categorical"
    )


def _count(flags: pa.Array) -> int:
    return int(pc.sum(flags).as_py() or 0)


def _mcnemar(a_right: pa.Array, b_right: pa.Array, units: NDArray[np.int64]) -> float:
    """Return the p-value of the sign test over the units that differ."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    apart = np.asarray(a_right, dtype=np.float64) - np.asarray(b_right, dtype=np.float64)
    by_unit = np.bincount(units, apart) if len(units) else apart
    return sign_test(int((by_unit > 0).sum()), int((by_unit < 0).sum()))


def _weighted(
    a_right: pa.Array, b_right: pa.Array, rows: SampledRows
) -> tuple[Literal["t"], float, float | None, float]:
    """Return the difference of the accuracies over all rows, and the test of its design-based variance."""
    with evaluation_extra("Comparing candidates"):
        import numpy as np  # noqa: PLC0415  # optional dependency
        from scipy.special import stdtr  # noqa: PLC0415  # optional dependency
    ahead = np.asarray(a_right, dtype=np.float64) - np.asarray(b_right, dtype=np.float64)
    difference = float(np.average(ahead, weights=rows.weight))
    if rows.n_eff < MIN_ROWS:
        return "t", difference, None, 1.0
    variance = rows.variance_of_mean(ahead - difference) + guard(rows.n_least)
    statistic = difference / math.sqrt(variance)
    return "t", difference, statistic, float(2 * stdtr(rows.n_eff - 1, -abs(statistic)))


def _kappa(
    a: pa.Array,
    b: pa.Array,
    weights: Literal["linear", "quadratic"] | None,
    rows: SampledRows | None,
) -> float | None:
    if not len(a):
        return None
    classes = sorted(pc.unique(pa.chunked_array([a, b])).to_pylist())
    if rows is not None:
        return Survey(positions(a, classes), positions(b, classes), rows, len(classes)).kappa(classes, weights).value
    alike = Units.of(pa.repeat(1, len(a)), pa.nulls(len(a)))
    table = Crosstab.of(positions(a, classes), positions(b, classes), len(classes), alike)
    return table.kappa(values=classes, weights=weights)[0]
