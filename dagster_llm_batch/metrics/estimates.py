"""Figures of a whole table, from few gold rows and the labels that a model gave to all rows: shares of classes, means,
accuracy, and differences of groups (prediction-powered inference).

    naive       the labels alone, as if they were right
    gold only   the gold rows alone, with the weights of their sample
    powered     slope x labels of all rows  +  weighted mean of (gold - slope x label) over the gold rows

The last is right whatever the labels are, since gold corrects their error. With better labels, the remaining error is
smaller, and the interval is narrower than with gold alone. The slope, 0 to 1, minimizes the variance: labels without
information get 0, and cost nothing. Gold rows that were certain to be drawn add no variance; the others stand for the
rest of the rows.

Intervals are by empirical likelihood (`likelihood`): they allow for mistakes that all gold rows miss. Such a row can be
as far off as the ends of the values let it. Classes have the ends 0 and 1; a target declares the ends of numbers and
scores. The total of large mistakes has a tighter bound, since all labels are known: the share of rows that gold may
have missed (the rule of three) has at most the largest labels.

Only the ends bound unseen values. Labels that are right in all gold rows, and never large, look the same whether or not
one row in fifty has the largest possible value. So far ends cost width: with n gold rows, about three n-ths of their
distance. If mistakes could be larger than the differences of the values, gold alone has the narrower interval, and
`powered` equals it, with slope 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics.clusters import number_units
from dagster_llm_batch.metrics.columns import category, column, finite
from dagster_llm_batch.metrics.gold_weights import SampledRows
from dagster_llm_batch.metrics.joining import MAX_CLASSES, Joined, Target, join, succeeded
from dagster_llm_batch.metrics.likelihood import RULE_OF_THREE, likelihood_interval
from dagster_llm_batch.metrics.per_class import class_name
from dagster_llm_batch.metrics.schemas import evaluation_extra, schema_of, table_of
from dagster_llm_batch.metrics.survey import MIN_ROWS, Figure
from dagster_llm_batch.metrics.tables import figure, rows_markdown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "ESTIMATE_SCHEMA",
    "Estimate",
    "estimate",
    "estimates_markdown",
    "estimates_to_arrow",
    "missing_ends",
    "power",
]

MAX_PAIRED_GROUPS = 10
"""Groups that are compared two by two; of more, each is compared with the one before."""


@dataclass(frozen=True)
class Estimate:
    """One figure of the whole table, or of one `group`; with `against`, the difference of the group and another one.

    - `figure`: `share` of the rows whose right value is `label`; `mean`; or `accuracy`, where a row without a label is
      wrong. For a share, missing labels are of no class; for a mean, they count as the mean of the others.
    - `n_rows` of the table, `n_gold` of them with gold, and `n_eff`: the number of rows from a simple random sample
      with the same information, among the rows that were not certain to be drawn; None if all were certain. For a
      difference, `n_rows` is the group's, and the others are of the group that has fewer.
    - `naive`, `gold_only` and `powered`: see the module. 95 % intervals; None below MIN_ROWS effective rows. For
      accuracy, `naive` is the mean confidence; `naive` and `powered` are None if the candidate states none.
    - `slope`: the weight of the labels, 0 to 1. `worth_gold_rows`: the number of gold rows with the same information
      without the labels; None without an interval.
    """

    candidate: str
    target: str
    figure: Literal["share", "mean", "accuracy"]
    label: str | None
    group: str | None
    against: str | None
    n_rows: int
    n_gold: int
    n_eff: float | None
    naive: float | None
    gold_only: float | None
    gold_only_low: float | None
    gold_only_high: float | None
    powered: float | None
    powered_low: float | None
    powered_high: float | None
    slope: float | None
    worth_gold_rows: float | None


ESTIMATE_SCHEMA = schema_of(Estimate)
"""The fields of `Estimate`, in order."""


@dataclass(frozen=True, eq=False)
class _Part:
    """A figure of one group: its value, the contribution of each gold row to its error, and the lengths of its 95 %
    interval down and up.
    """

    value: float
    errors: NDArray[np.float64]
    down: float
    up: float

    def minus(self, other: _Part, unit: NDArray[np.int64]) -> _Part:
        """Return the difference of two groups, which may share units: the parts of both intervals, added with their
        correlation (MOVER).
        """
        import numpy as np  # noqa: PLC0415  # whoever made the arrays has it

        ours, theirs = (np.bincount(unit, weights=one.errors) for one in (self, other))
        both = math.sqrt(float(ours @ ours) * float(theirs @ theirs))
        alike = float(ours @ theirs) / both if both else 0.0

        def added(mine: float, others: float) -> float:
            return math.sqrt(max(0.0, mine**2 + others**2 - 2 * alike * mine * others))

        value, errors = self.value - other.value, self.errors - other.errors
        return _Part(value, errors, added(self.down, other.up), added(self.up, other.down))

    def spread_over(self, which: NDArray[np.bool_]) -> _Part:
        """Return the same with the errors of all gold rows; `which` selects the ones of this group."""
        import numpy as np  # noqa: PLC0415  # whoever made the arrays has it

        errors = np.zeros(len(which))
        errors[which] = self.errors
        return replace(self, errors=errors)

    def figure(self, n_eff: float, bounds: tuple[float, float]) -> Figure:
        """Return the value with its interval; without one below MIN_ROWS."""
        if n_eff < MIN_ROWS:
            return Figure(self.value)
        return Figure(self.value, max(bounds[0], self.value - self.down), min(bounds[1], self.value + self.up))

    @property
    def width(self) -> float:
        return self.down + self.up


@dataclass(frozen=True, eq=False)
class Powered:
    """The mean of a group, from gold alone and with labels. `n_eff`: of the rows that were not certain to be drawn."""

    n_eff: float
    gold_only: _Part
    powered: _Part
    slope: float


def power(
    y: NDArray[np.float64],
    f: NDArray[np.float64],
    labels: NDArray[np.float64],
    rows: SampledRows,
    *,
    ends: tuple[float, float],
) -> Powered:
    """Estimate the mean of y over all rows from the drawn ones.

    Args:
        y: The truth of the gold rows.
        f: The labels of the same rows.
        labels: The labels of all rows.
        rows: The weights of the gold rows.
        ends: The least and the largest that y can be.
    """
    with evaluation_extra("Estimating from gold and labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    n_rows, drawn = len(labels), rows.spread > 0
    if not drawn.any():
        # Every row was certain to be drawn, so the figure is exact.
        exact = _Part(float(np.average(y, weights=rows.weight)), np.zeros(len(y)), 0.0, 0.0)
        return Powered(float("inf"), exact, exact, 0.0)
    # Rows that were certain to be drawn stand for themselves, the others for the rest of the rows.
    left = max(n_rows - float(rows.weight[~drawn].sum()), 1.0)
    scale = left / rows.weight[drawn].sum()
    share = np.where(drawn, scale * rows.weight, rows.weight)
    share /= share.sum()
    error = rows.spread**0.5 * scale / n_rows

    def residuals(values: NDArray[np.float64]) -> NDArray[np.float64]:
        off: NDArray[np.float64] = values - np.average(values[drawn], weights=rows.weight[drawn])
        return off

    off, along = error * residuals(y), error * residuals(f)
    varies = float(along @ along)
    slope = min(1.0, max(0.0, float(off @ along) / varies)) if varies else 0.0
    some = rows.among(drawn)

    def part(value: float, of: NDArray[np.float64], errors: NDArray[np.float64], least: float, most: float) -> _Part:
        if some.n_eff < MIN_ROWS:
            return _Part(value, errors, 0.0, 0.0)
        values = of[drawn]
        low, high = likelihood_interval(values, some, least, most)
        mean = float(np.average(values, weights=some.weight))
        return _Part(value, errors, (mean - low) * left / n_rows, (high - mean) * left / n_rows)

    gold_only = part(float(share @ y), y, off, *ends)
    if not slope:
        return Powered(some.n_eff, gold_only, gold_only, 0.0)
    least, most = _far_labels(labels, RULE_OF_THREE / some.n_least)
    unseen = ends[0] - slope * most, ends[1] - slope * least
    by_both = slope * float(labels.mean()) + float(share @ (y - slope * f))
    powered = part(by_both, y - slope * f, off - slope * along, *unseen)
    if powered.width > gold_only.width:
        return Powered(some.n_eff, gold_only, gold_only, 0.0)
    return Powered(some.n_eff, gold_only, powered, slope)


def _far_labels(labels: NDArray[np.float64], share: float) -> tuple[float, float]:
    """Return the mean of the smallest labels, and of the largest, as many as are this share."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    n = len(labels)
    count = min(n, max(1, math.ceil(share * n)))
    ordered = np.partition(labels, sorted({count - 1, n - count}))
    return float(ordered[:count].mean()), float(ordered[n - count :].mean())


def estimate(
    gold: pa.Table,
    candidate: pa.Table,
    *,
    key: str,
    target: str | Target,
    candidate_name: str,
    group_by: str | None = None,
    cluster: str | None = None,
) -> tuple[Estimate, ...]:
    """Estimate the figures of one target of a whole table: shares and accuracy of classes, or a mean.

    Args:
        gold: Rows with the right value. With SAMPLE_COLUMNS they are weighted, else taken as drawn alike.
        candidate: All rows with the labels of a model, those without a label too.
        key: Column that both share.
        target: The labeled column. Numbers, and classes with `kappa_weights` (scores), have a mean; other classes have
            shares and an accuracy.
        candidate_name: For the table, and for errors.
        group_by: Column of the candidate whose values are groups: each is estimated, and compared with others.
        cluster: See `join`.

    Raises ConfigError and InputError like `join`, and InputError if all gold rows are outside of the table.
    """
    with evaluation_extra("Estimating from gold and labels"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    joined = join(gold, candidate, key=key, target=target, candidate_name=candidate_name, cluster=cluster)
    met = joined.has_row
    n_rows, n = len(candidate), int(pc.sum(met).as_py() or 0)
    if not n:
        raise InputError(f"No gold row has a '{key}' of '{candidate_name}': there is nothing to estimate from.")
    if joined.weight is None or joined.spread is None:
        # Drawn alike: all have the same weight, and a table with gold for every row has no error.
        weight = np.full(n, n_rows / n)
        spread = weight**2 * (1 - n / n_rows) * (n / (n - 1) if n > 1 else 1.0)
    else:
        weight, spread = (values.filter(met).to_numpy() for values in (joined.weight, joined.spread))
    rows = SampledRows(weight, spread, number_units(joined.cluster.filter(met)))
    position = joined.position.filter(met).to_numpy()
    groups = _Groups.of(candidate, group_by, candidate_name, position)
    return tuple(
        one
        for values in _columns(joined, candidate, joined.gold.filter(met), position)
        for one in _estimates(joined, values, rows, groups)
    )


@dataclass(frozen=True, eq=False)
class _Column:
    """The values to average: `y` of the gold rows, `f` of all rows and `f_gold` of the gold rows. `known` is whether a
    row has the source of f. If `known` is false for every row, there are no labels to use.
    """

    figure: Literal["share", "mean", "accuracy"]
    label: str | None
    y: NDArray[np.float64]
    f: NDArray[np.float64]
    f_gold: NDArray[np.float64]
    known: NDArray[np.bool_]
    ends: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, eq=False)
class _Groups:
    """Names of the groups, and the number of the group of each row and of each gold row; -1 without a group."""

    names: tuple[str, ...]
    of_row: NDArray[np.int64]
    of_gold: NDArray[np.int64]

    @classmethod
    def of(cls, candidate: pa.Table, group_by: str | None, name: str, position: NDArray[np.int64]) -> _Groups:
        """Return the groups that the values of a column make; empty without a column."""
        import numpy as np  # noqa: PLC0415  # its caller has it

        if group_by is None:
            none = np.full(len(candidate), -1, dtype=np.int64)
            return cls((), none, none[position])
        values = column(candidate, group_by, f"candidate '{name}'")
        distinct = sorted(pc.unique(values.drop_null()).to_pylist())
        if len(distinct) > MAX_CLASSES:
            raise ConfigError(f"group_by='{group_by}' has {len(distinct)} values; at most {MAX_CLASSES} are groups.")
        code = pc.index_in(values, value_set=pa.array(distinct, values.type)).fill_null(-1).to_numpy().astype(np.int64)
        return cls(tuple(map(str, distinct)), code, code[position])

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield the groups to compare, the later one first."""
        at = range(len(self.names))
        some = combinations(at, 2) if len(at) <= MAX_PAIRED_GROUPS else pairwise(at)
        yield from ((later, earlier) for earlier, later in some)


def _columns(joined: Joined, candidate: pa.Table, truth: pa.Array, position: NDArray[np.int64]) -> Iterator[_Column]:
    import numpy as np  # noqa: PLC0415  # its caller has it

    target, owner = joined.target, f"candidate '{joined.candidate}'"
    has_label, said = succeeded(candidate), column(candidate, target.name, owner)
    if target.kind == "numeric" or target.kappa_weights:
        if not (pa.types.is_integer(truth.type) or pa.types.is_floating(truth.type)):
            raise ConfigError(f"Target '{target.name}' is {truth.type}, and a mean needs numbers. Use 'categorical'.")
        f = finite(pc.if_else(has_label, said.cast(pa.float64(), safe=False), None)).fill_null(float("nan")).to_numpy()
        known = np.isfinite(f)
        f = np.where(known, f, f[known].mean() if known.any() else 0.0)
        y = truth.to_numpy().astype(np.float64)
        yield _Column("mean", None, y, f, f[position], known, _ends(target, y))
        return
    labels = pc.if_else(has_label, category(said, target.name, owner).cast(truth.type), pa.scalar(None, truth.type))
    classes = sorted({*pc.unique(truth).to_pylist(), *pc.unique(labels.drop_null()).to_pylist()})
    if len(classes) > MAX_CLASSES:
        raise ConfigError(
            f"Target '{target.name}' has {len(classes)} distinct values; at most {MAX_CLASSES} are classes."
        )
    value_set = pa.array(classes, truth.type)
    right, code = (pc.index_in(v, value_set=value_set).fill_null(-1).to_numpy() for v in (truth, labels))
    for at, value in enumerate(classes):
        f = (code == at).astype(np.float64)
        yield _Column("share", class_name(value), (right == at).astype(np.float64), f, f[position], code >= 0)
    sure = np.full(len(code), np.nan)
    if target.confidence_column is not None and target.confidence_column in candidate.column_names:
        stated = column(candidate, target.confidence_column, owner).cast(pa.float64(), safe=False)
        sure = np.where(code >= 0, stated.fill_null(float("nan")).to_numpy(), np.nan)
    f = np.nan_to_num(sure)
    yield _Column("accuracy", None, (right == code[position]).astype(np.float64), f, f[position], np.isfinite(sure))


def _ends(target: Target, y: NDArray[np.float64]) -> tuple[float, float]:
    """Return the least and the largest value that there can be."""
    low, high = target.minimum, target.maximum
    if low is None or high is None:
        raise ConfigError(missing_ends(target))
    # A float of 32 bits is not exactly the number that was declared.
    near = 1e-6 * max(abs(low), abs(high))
    if low - near <= y.min() and y.max() <= high + near:
        low, high = min(low, float(y.min())), max(high, float(y.max()))
    else:
        raise InputError(
            f"Gold of '{target.name}' goes from {y.min():g} to {y.max():g}, beyond the ends {low:g} to {high:g} that "
            "are declared. Correct these rows, or declare the ends in minimum= and maximum= of the Target."
        )
    return low, high


def missing_ends(target: Target) -> str:
    """Return why the mean of a number, or of scores, needs both ends, and the setting to declare."""
    given = {"minimum": target.minimum, "maximum": target.maximum}
    found = [f"{name}={end:g}" for name, end in given.items() if end is not None]
    missing = " and ".join(f"{name}=" for name, end in given.items() if end is None)
    scale = f'kappa_weights="{target.kappa_weights}"' if target.kappa_weights else 'kind="numeric"'
    examples = {"minimum": "1", "maximum": "5"} if target.kappa_weights else {"minimum": "0", "maximum": "10_000"}
    ends = ", ".join(f"{name}={examples[name] if end is None else f'{end:g}'}" for name, end in given.items())
    return (
        f"The mean of '{target.name}' has no interval without ends: a rare mistake that no gold row shows could be of "
        f"any size. Found: {' and '.join(found) or 'none'}; missing: {missing}. Declare the least and the largest "
        f'value: Target("{target.name}", {scale}, {ends}). Or give the field `ge` and `le` (JSON Schema: minimum and '
        "maximum, or enum) in the response, and the definitions of llm_batch_assets as candidates. Narrow ends give "
        "narrow intervals."
    )


def _estimates(joined: Joined, values: _Column, rows: SampledRows, groups: _Groups) -> Iterator[Estimate]:
    """Yield the estimate of all rows, of each group, and of the differences of groups."""
    import numpy as np  # noqa: PLC0415  # its caller has it

    n_groups = len(groups.names)
    n_rows, n_known, known_sum = (
        np.bincount(groups.of_row + 1, weights=weights, minlength=n_groups + 1)
        for weights in (None, values.known, values.f * values.known)
    )

    def part(at: int | None) -> tuple[int, int, float | None, Powered | None]:
        of = slice(None) if at is None else slice(at + 1, at + 2)
        size, known = int(n_rows[of].sum()), int(n_known[of].sum())
        mine = np.ones(len(values.y), bool) if at is None else groups.of_gold == at
        naive = float(known_sum[of].sum() / known) if known else None
        if not mine.any():
            return size, 0, naive, None
        labels = values.f if at is None else values.f[groups.of_row == at]
        some = power(values.y[mine], values.f_gold[mine], labels, rows.among(mine), ends=values.ends)
        return (
            size,
            int(mine.sum()),
            naive,
            replace(some, gold_only=some.gold_only.spread_over(mine), powered=some.powered.spread_over(mine)),
        )

    def row(n_rows: int, n_gold: int, naive: float | None, of: Powered | None, **named: str) -> Estimate:
        low, high = values.ends
        bounds = (low - high, high - low) if "against" in named else (low, high)
        gold_only = powered = Figure(None)
        worth = None
        if of is not None:
            gold_only = of.gold_only.figure(of.n_eff, bounds)
        if of is not None and naive is not None:
            powered = of.powered.figure(of.n_eff, bounds)
            before, after = of.gold_only.width, of.powered.width
            worth = n_gold * (before / after) ** 2 if after and powered.low is not None else None
        return Estimate(
            candidate=joined.candidate,
            target=joined.target.name,
            figure=values.figure,
            label=values.label,
            group=named.get("group"),
            against=named.get("against"),
            n_rows=n_rows,
            n_gold=n_gold,
            n_eff=None if of is None or math.isinf(of.n_eff) else of.n_eff,
            naive=naive,
            gold_only=gold_only.value,
            gold_only_low=gold_only.low,
            gold_only_high=gold_only.high,
            powered=powered.value,
            powered_low=powered.low,
            powered_high=powered.high,
            slope=None if of is None or naive is None else of.slope,
            worth_gold_rows=worth,
        )

    yield row(*part(None))
    parts = [part(at) for at in range(n_groups)]
    for name, one in zip(groups.names, parts, strict=True):
        yield row(*one, group=name)
    for at, other in groups.pairs():
        (size, n_gold, naive, later), (_, n_other, naive_other, earlier) = parts[at], parts[other]
        if later is None or earlier is None:
            continue
        both = Powered(
            min(later.n_eff, earlier.n_eff),
            later.gold_only.minus(earlier.gold_only, rows.unit),
            later.powered.minus(earlier.powered, rows.unit),
            min(later.slope, earlier.slope),
        )
        gap = None if naive is None or naive_other is None else naive - naive_other
        yield row(size, min(n_gold, n_other), gap, both, group=groups.names[at], against=groups.names[other])


def estimates_to_arrow(estimates: Iterable[Estimate]) -> pa.Table:
    """Return one row for each estimate, in ESTIMATE_SCHEMA."""
    return table_of(estimates, Estimate)


def estimates_markdown(estimates: Sequence[Estimate]) -> str:
    """Return the estimates from labels alone, gold alone, and both together, with 95 % intervals."""
    return rows_markdown(
        [
            {
                "candidate": one.candidate,
                "figure": f"{one.figure} of {one.label if one.label is not None else one.target}",
                "group": "all" if one.group is None else one.group if one.against is None else _against(one),
                "labels alone": figure(one.naive),
                "gold alone (95 %)": figure(one.gold_only, one.gold_only_low, one.gold_only_high),
                "both (95 %)": figure(one.powered, one.powered_low, one.powered_high),
                "gold rows": f"{one.n_gold:,} of {one.n_rows:,}",
                "interval": _interval_words(one),
            }
            for one in estimates
        ]
    )


def _against(one: Estimate) -> str:
    return f"{one.group} less {one.against}"


def _interval_words(one: Estimate) -> str:
    if one.gold_only is None:
        return "no gold row"
    if one.gold_only_low is None:
        return f"none: the rows tell as much as {one.n_eff or 0:.1f}; {MIN_ROWS} are wanted"
    if one.worth_gold_rows is None:
        return "gold alone" if one.powered is None else "every row is known"
    return f"as of {one.worth_gold_rows:,.0f} gold rows"
