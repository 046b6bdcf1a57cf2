"""The weight of each gold row, if rows were drawn with unequal probabilities, in one round or in several.

`propose` writes SAMPLE_COLUMNS with each row, and a label must keep them. From one round k, the sum of y over the whole
table is estimated without bias by

    T_k = sum of y over the gold from before the round  +  sum of y / probability over the round's rows

since rows that had gold already could not be drawn again. Over several rounds the estimate is the mean of the T_k, each
weighted by its rows. So a row of round k has the weight a_k / probability + (a_(k+1) + a_(k+2) + …), where the a_k sum
to 1. Later rounds may prefer rows because of labels from earlier ones, but T_k - T has the mean 0 given these labels.
So the errors of the rounds are uncorrelated, and the variance is the sum of a_k^2 Var(T_k) (Horvitz-Thompson, for a
design of fixed size). A round that was drawn from an earlier table has no information on the rows that came since: its
a_k is 0, and its rows count once, as known rows. Rows of round 0 had gold before any draw.

A figure over all rows is a ratio of weighted sums (Hájek), and its variance follows from its change with each row
(linearization): `SampledRows.variance_of_mean`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics.schemas import evaluation_extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "PARTITION",
    "ROUND",
    "ROWS",
    "SAMPLE_COLUMNS",
    "WEIGHT",
    "GoldWeights",
    "SampledRows",
    "gold_weights",
    "next_round",
    "refuse_weights",
    "rows_drawn_from",
]

WEIGHT, ROUND, ROWS, PARTITION = "sample_weight", "sample_round", "sample_rows", "sample_partition"

SAMPLE_COLUMNS = (WEIGHT, ROUND, ROWS, PARTITION)
"""Columns of proposed rows that gold must keep: `1 / probability` of being drawn in its round; the round, from 1; the
number of rows of the table then; and the partition of the draw, null without one. Only the first is required: without
the others, all rows with a weight were drawn in one round from the same rows.
"""


@dataclass(frozen=True, eq=False)
class GoldWeights:
    """One number a gold row. `weight`: the number of rows of the whole table that it stands for. `spread`: the factor
    of the square of its residual in the variance of a weighted sum of residuals; 0 for a row that was certain to be
    drawn.
    """

    weight: pa.Array
    spread: pa.Array


def gold_weights(gold: pa.Table) -> GoldWeights | None:
    """Return the weights of the rows of gold; None if they were drawn alike, so that each counts once.

    Raises:
        ConfigError: A column of SAMPLE_COLUMNS does not hold numbers.
        InputError: Some rows have a weight and others lack one, or a weight or round is impossible.
    """
    if WEIGHT not in gold.column_names or gold[WEIGHT].null_count == len(gold):
        return None
    with evaluation_extra("Weighted gold"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    weight = _numbers(gold, WEIGHT)
    if missing := int(np.isnan(weight).sum()):
        raise InputError(
            f"{missing:,} of {len(weight):,} gold rows have no '{WEIGHT}', and the others have: weighted and "
            "unweighted gold cannot be mixed. Rows that had gold before the first ones were drawn stand for "
            f"themselves: give them {WEIGHT} 1 and {ROUND} 0. Rows that were labeled later without being drawn stand "
            f"for no others: leave them out, or drop '{WEIGHT}' from all to measure these rows only."
        )
    if not (np.isfinite(weight) & (weight > 0)).all():
        raise InputError(
            f"'{WEIGHT}' of gold goes from {weight.min():g} to {weight.max():g}; it must be 1 / the probability with "
            "which the row was drawn, above 0."
        )
    rounds = _whole_numbers(gold, ROUND, 1)
    rows = _whole_numbers(gold, ROWS, 0)
    if (rounds < 0).any():
        raise InputError(f"'{ROUND}' of gold is {rounds.min()}; rounds count from 1, and 0 is before the first.")
    part = np.zeros(len(weight), dtype=np.int64)
    if PARTITION in gold.column_names:
        part = np.asarray(gold[PARTITION].combine_chunks().dictionary_encode().indices.fill_null(-1), dtype=np.int64)
    weight, spread = _combined(weight, rounds, rows, part)
    if math.isclose(weight.min(), weight.max(), rel_tol=1e-9):
        return None
    return GoldWeights(pa.array(weight), pa.array(spread))


def refuse_weights(gold: pa.Table, what: str, instead: str) -> None:
    """Raise InputError for gold with unequal weights, if figures cannot take them into account: `what` the figures are,
    and what to do `instead`, as the beginning of a sentence.
    """
    if gold_weights(gold) is not None:
        raise InputError(
            f"Gold was drawn with unequal probabilities (column '{WEIGHT}'), and {what} would hold for these rows, not "
            f"for all. {instead}, or drop '{WEIGHT}' if only these rows are meant."
        )


def next_round(gold: pa.Table, partition: str | None) -> int:
    """Return the number of the round that comes after the rounds of gold, of one partition."""
    if not {WEIGHT, ROUND} <= set(gold.column_names):
        return 2 if WEIGHT in gold.column_names and gold[WEIGHT].null_count < len(gold) else 1
    if PARTITION in gold.column_names and partition is not None:
        gold = gold.filter(pc.equal(gold[PARTITION].cast(pa.string()), partition))
    return int(pc.max(gold[ROUND]).as_py() or 0) + 1


def rows_drawn_from(gold: pa.Table) -> int | None:
    """Return the number of rows that the last rounds were drawn from, of all partitions; None if gold lacks it."""
    if not {WEIGHT, ROWS} <= set(gold.column_names) or not (most := pc.max(gold[ROWS]).as_py()):
        return None
    if PARTITION not in gold.column_names:
        return int(most)
    by_partition = gold.group_by(PARTITION).aggregate([(ROWS, "max")])
    return int(pc.sum(by_partition[f"{ROWS}_max"]).as_py())


def _combined(
    weight: NDArray[np.float64], rounds: NDArray[np.int64], rows: NDArray[np.int64], part: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weight and spread of each row over all rounds, partition by partition."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    combined, spread = np.ones(len(weight)), np.zeros(len(weight))
    # Weights below 1 are not inverse probabilities: they compare rows, and do not show what part of the table was
    # drawn.
    probability = 1 / weight if weight.min() >= 1 - 1e-9 else np.zeros(len(weight))
    uncertain = 1 - probability
    for stratum in np.unique(part):
        here = part == stratum
        drawn = here & (rounds > 0)
        if not drawn.any():
            continue
        # Rounds that were drawn from as many rows as the last one represent the present table.
        last = rounds[drawn].max()
        size = rows[drawn & (rounds == last)].max()
        counts = {k: int((drawn & (rounds == k)).sum()) for k in np.unique(rounds[drawn & (rows == size)]).tolist()}
        total = sum(counts.values())
        combined[here] = 0.0
        for k, count in counts.items():
            share, own = count / total, here & (rounds == k)
            combined[here & (rounds < k)] += share
            combined[own] += share * weight[own]
            spread[own] = (share * weight[own]) ** 2 * uncertain[own]
    # Residuals are distances from a mean of the same rows, which makes them smaller.
    n = int((spread > 0).sum())
    return combined, spread * (n / (n - 1) if n > 1 else 1.0)


@dataclass(frozen=True, eq=False)
class SampledRows:
    """Gold rows as numbers: `weight` and `spread` (see `GoldWeights`), and the number of the `unit` of each (see
    `clusters`): rows of one unit are right or wrong together.
    """

    weight: NDArray[np.float64]
    spread: NDArray[np.float64]
    unit: NDArray[np.int64]

    def among(self, which: NDArray[np.bool_]) -> SampledRows:
        """Return some of the rows."""
        return SampledRows(self.weight[which], self.spread[which], self.unit[which])

    @cached_property
    def n_eff(self) -> float:
        """The number of independent rows from a simple random sample with the same information (Kish)."""
        return float(self.weight.sum() ** 2 / (self._by_unit(self.weight) ** 2).sum())

    @cached_property
    def n_least(self) -> float:
        """The number of units of the largest weight with the same total: the size of the part that was drawn least."""
        return float(self.weight.sum() / self._by_unit(self.weight).max())

    def variance_of_mean(self, residuals: NDArray[np.float64]) -> float:
        """Return the design-based variance of a weighted mean, or of a figure that changes by `residuals` with the
        weight of each row.
        """
        return float((self._by_unit(self.spread**0.5 * residuals) ** 2).sum() / self.weight.sum() ** 2)

    def _by_unit(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        import numpy as np  # noqa: PLC0415  # whoever made the arrays has it

        return np.bincount(self.unit, weights=values).astype(np.float64)


def _numbers(gold: pa.Table, name: str) -> NDArray[np.float64]:
    import numpy as np  # noqa: PLC0415  # its caller has it

    kind = gold[name].type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        raise ConfigError(f"'{name}' of gold is {kind}; it is a number that `gold_sample_assets` wrote. Cast it.")
    return np.asarray(gold[name].combine_chunks().cast(pa.float64(), safe=False).fill_null(float("nan")))


def _whole_numbers(gold: pa.Table, name: str, default: int) -> NDArray[np.int64]:
    """Return the column; `default` for all rows if it is missing or has only nulls."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    if name not in gold.column_names or pc.all(gold[name].is_null()).as_py():
        return np.full(len(gold), default, dtype=np.int64)
    values = _numbers(gold, name)
    if wrong := int((np.isnan(values) | (values != np.floor(values))).sum()):
        raise InputError(
            f"'{name}' of gold is null or no whole number in {wrong:,} of {len(values):,} rows. Keep it as it was "
            "proposed; for rows that had gold before the first were drawn it is 0."
        )
    return values.astype(np.int64)
