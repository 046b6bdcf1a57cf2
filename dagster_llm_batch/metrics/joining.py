"""Gold and candidate meet by key. Everything that can be wrong with two tables is found here, once.

The result has these properties. `keys`, `gold` and `predicted` have one entry per gold row, sorted by key, so the order
of the rows in either table never matters. `gold` has no nulls. A null in `predicted` means a missing label, for exactly
one of three counted reasons (`n_gold = n_labeled + n_absent + n_rejected + n_empty`).

Values are compared exactly: without case folding, trimming or guesses. There are only three normalisations: dictionary
columns are decoded; whole numbers stored as float or decimal are integers (pandas stores integers next to nulls so; NaN
is null); numbers that differ by rounding alone are equal. Rejected are keys or labels of different types on the two
sides (`1` is not `"1"`, `true` is not `1`), repeated or null keys, and multi-valued targets (lists, structs).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics.clusters import REQUEST, cluster_ids
from dagster_llm_batch.metrics.columns import (
    EXAMPLES,
    Kind,
    column,
    comparable_keys,
    comparable_values,
    finite,
    without_rounding,
)
from dagster_llm_batch.metrics.gold_weights import SAMPLE_COLUMNS, gold_weights
from dagster_llm_batch.types import SKIPPED, UNGROUNDED, Outcome

__all__ = ["CANDIDATE_COLUMNS", "MAX_CLASSES", "Class", "Joined", "Target", "join", "succeeded"]

Class = str | int | bool

CANDIDATE_COLUMNS = (
    REQUEST,
    "llm_outcome",
    "llm_cost_usd",
    "llm_model",
    "llm_prompt_version",
    "llm_submitted_at",
    "llm_completed_at",
)
"""Columns of a candidate that are read if they exist, in addition to key, target and confidence: the columns of a
labeled table's PROVENANCE that an evaluation measures.
"""

MAX_CLASSES = 1000
"""More distinct values than this are free text or measurements, not classes."""

# The square of more is no number any more.
_LARGEST = 1e150


@checked
@dataclass(frozen=True)
class Target:
    """One column to evaluate.

    Raises ConfigError where the settings contradict each other.

    Args:
        name: Column of the candidate tables, and of the gold table unless `gold_column` names another.
        gold_column: Column of the gold table. Default: by the same name.
        kind: "categorical" (texts, integers, booleans) or "numeric" (measured by distance).
        kappa_weights: For integer classes whose distance means something (1 to 5): "linear" or "quadratic". Default:
            every disagreement counts alike.
        confidence_column: Column of the candidate tables with the probability, 0 to 1, that the label is correct.
        minimum: The least that a number or score can be; `estimate_assets` needs it for the mean, unless the response
            declares it.
        maximum: The largest that it can be, likewise.
    """

    name: str
    gold_column: str | None = None
    kind: Kind = "categorical"
    kappa_weights: Literal["linear", "quadratic"] | None = None
    confidence_column: str | None = None
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        ends = [end for end in (self.minimum, self.maximum) if end is not None]
        if ends and self.kind == "categorical" and not self.kappa_weights:
            raise ConfigError(
                f"Target '{self.name}' has minimum= or maximum=, and classes have no ends. Set kind='numeric', or "
                "kappa_weights for scores; or remove them."
            )
        if not all(-_LARGEST <= end <= _LARGEST for end in ends) or ends != sorted(set(ends)):
            raise ConfigError(
                f"Target '{self.name}' goes from minimum={self.minimum!r} to maximum={self.maximum!r}. Both must be "
                f"within ±{_LARGEST:g}, and the minimum below the maximum."
            )
        if self.kind == "numeric" and self.kappa_weights:
            raise ConfigError(f"Target '{self.name}' is numeric: kappa is for classes. Remove kappa_weights.")
        if self.kind == "numeric" and self.confidence_column:
            raise ConfigError(
                f"Target '{self.name}' is numeric: a confidence is the chance of a right class, and values are "
                "near or far instead. Remove confidence_column."
            )


@dataclass(frozen=True, eq=False)
class Joined:
    """One candidate's labels with the gold of one target. The module's docstring lists its properties.

    - `n_absent`: gold keys without a row in the candidate. `n_rejected`: the row's `llm_outcome` is not `succeeded`.
      `n_empty`: the row succeeded, its value is null.
    - `n_gold_null`: gold rows without a gold value, dropped. `n_ignored`: candidate rows whose key has no gold value.
    - `cost_usd`: sum of the known `llm_cost_usd` of the rows that met a gold row, rejected ones included; None if all
      are unknown. `n_cost_unknown`: such rows whose cost is null, or all of them without that column. The cost of rows
      outside of the table is missing here: append the rejects to the candidate to count them.
    - `models`, `prompt_versions`: distinct `llm_model` and `llm_prompt_version` of the labeled rows, sorted.
    - `waits`: microseconds of the labeled rows, from `llm_submitted_at` to `llm_completed_at` of their batch, if both
      are known; in no order.
    - `weight`, `spread`: the weight of each gold row (see `gold_weights`); None if each counts once.
    - `position`: the candidate's row for each gold row, null without one. `confidence`: its confidence, null without
      one; None if the target names no column, or the candidate lacks it.
    - `cluster`: id of the unit that each gold row belongs to, null for a row that is its own unit (see `clusters`).
    """

    candidate: str
    target: Target
    keys: pa.Array
    gold: pa.Array
    predicted: pa.Array
    n_absent: int
    n_rejected: int
    n_empty: int
    n_gold_null: int
    n_ignored: int
    cost_usd: Decimal | None
    n_cost_unknown: int
    models: tuple[str, ...]
    prompt_versions: tuple[str, ...]
    waits: pa.Array
    weight: pa.Array | None
    spread: pa.Array | None
    position: pa.Array
    confidence: pa.Array | None
    cluster: pa.Array

    @property
    def has_row(self) -> pa.Array:
        """One boolean a gold row: whether the candidate has a row for it."""
        return self.position.is_valid()

    @property
    def n_gold(self) -> int:
        return len(self.gold)

    @property
    def n_labeled(self) -> int:
        return len(self.predicted) - int(self.predicted.null_count)


def join(
    gold: pa.Table,
    candidate: pa.Table,
    *,
    key: str,
    target: str | Target,
    candidate_name: str,
    cluster: str | None = None,
) -> Joined:
    """Join the labels of a candidate to the gold of one target.

    `cluster` names a column of gold, or else of the candidate, whose equal values are one unit; default: the request.
    Raises ConfigError for a missing column or a type that cannot be evaluated. Raises InputError for bad keys or
    values, and for gold in which only some rows have the weight of a sample.
    """
    target = Target(target) if isinstance(target, str) else target
    theirs = f"candidate '{candidate_name}'"
    gold_keys, candidate_keys = comparable_keys(column(gold, key, "gold"), column(candidate, key, theirs), key, theirs)
    values, labels = column(gold, target.gold_column or target.name, "gold"), column(candidate, target.name, theirs)
    truth, answer = comparable_values(values, labels, name=target.name, kind=target.kind, theirs=theirs)

    has_gold = truth.is_valid()
    keys, truth = gold_keys.filter(has_gold), truth.filter(has_gold)
    order = pc.sort_indices(keys)
    keys, truth = keys.take(order), truth.take(order)
    weights = gold_weights(_sampled(gold).filter(has_gold).take(order))

    # Null where the candidate has no such row.
    position = pc.index_in(keys, value_set=candidate_keys)
    met = position.drop_null()
    # Null without a row.
    has_succeeded = succeeded(candidate).take(position)
    predicted = pc.if_else(has_succeeded, answer.take(position), pa.scalar(None, answer.type))
    if target.kind == "numeric":
        # Rounding is not an error: many rounding errors would hide that few rows are wrong.
        predicted = without_rounding(predicted, truth, values.type, labels.type)
    n_absent = int(position.null_count)
    n_rejected = int(pc.sum(pc.invert(has_succeeded)).as_py() or 0)
    cost_usd, n_cost_unknown = _cost(candidate, met)
    labeled = position.filter(predicted.is_valid())
    return Joined(
        candidate=candidate_name,
        target=target,
        keys=keys,
        gold=truth,
        predicted=predicted,
        n_absent=n_absent,
        n_rejected=n_rejected,
        n_empty=int(predicted.null_count) - n_absent - n_rejected,
        n_gold_null=len(gold) - len(keys),
        n_ignored=len(candidate) - len(met),
        cost_usd=cost_usd,
        n_cost_unknown=n_cost_unknown,
        models=_distinct(candidate, "llm_model", labeled),
        prompt_versions=_distinct(candidate, "llm_prompt_version", labeled),
        waits=_waits(candidate, labeled),
        weight=None if weights is None else weights.weight,
        spread=None if weights is None else weights.spread,
        position=position,
        confidence=_confidence(candidate, target, position, theirs),
        cluster=(
            cluster_ids(gold, cluster, "gold").filter(has_gold).take(order)
            if cluster in gold.column_names
            else _clusters(candidate, position, cluster, theirs)
        ),
    )


def succeeded(candidate: pa.Table) -> pa.Array:
    """Return one boolean a row. Without an outcome (no column, or null) the label alone decides."""
    if "llm_outcome" not in candidate.column_names:
        return pa.repeat(pa.scalar(value=True), len(candidate))
    outcome = column(candidate, "llm_outcome", "the candidate")
    allowed = [*(known.value for known in Outcome), SKIPPED, UNGROUNDED]
    if unknown := set(pc.unique(outcome).to_pylist()) - {None, *allowed}:
        raise InputError(
            f"Unknown llm_outcome {', '.join(sorted(map(repr, unknown))[:EXAMPLES])}; allowed: {', '.join(allowed)}."
        )
    return pc.fill_null(pc.equal(outcome.cast(pa.large_string()), Outcome.SUCCEEDED.value), fill_value=True)


def _sampled(gold: pa.Table) -> pa.Table:
    """Return the columns that show the draw of gold."""
    return gold.select([name for name in gold.column_names if name in SAMPLE_COLUMNS])


def _cost(candidate: pa.Table, rows: pa.Array) -> tuple[Decimal | None, int]:
    if "llm_cost_usd" not in candidate.column_names:
        return None, len(rows)
    cost = finite(column(candidate, "llm_cost_usd", "the candidate").take(rows))
    known = cost.drop_null()
    if not len(known):
        return None, len(rows)
    if pa.types.is_floating(cost.type):
        # fsum: the same in any order of the rows
        total = Decimal(repr(math.fsum(known.to_pylist())))
    else:
        total = Decimal(pc.sum(known).as_py())
    return total, int(cost.null_count)


def _distinct(candidate: pa.Table, name: str, rows: pa.Array) -> tuple[str, ...]:
    if name not in candidate.column_names:
        return ()
    values = column(candidate, name, "the candidate").take(rows)
    return tuple(sorted(pc.unique(values.drop_null()).to_pylist()))


def _waits(candidate: pa.Table, rows: pa.Array) -> pa.Array:
    none = pa.array([], pa.int64())
    if not {"llm_submitted_at", "llm_completed_at"} <= set(candidate.column_names):
        return none
    start, end = (
        column(candidate, name, "the candidate").take(rows) for name in ("llm_submitted_at", "llm_completed_at")
    )
    if not pa.types.is_timestamp(start.type) or start.type != end.type:
        return none
    # A provider's clock, or its whole seconds, may end a batch before it began here.
    return pc.max_element_wise(pc.microseconds_between(start, end).drop_null(), 0)


def _clusters(candidate: pa.Table, position: pa.Array, cluster: str | None, theirs: str) -> pa.Array:
    """Return the ids of the units of the gold rows, as the candidate has them."""
    if cluster is not None and cluster not in candidate.column_names:
        # A candidate that was not materialized has no columns yet, and no label that could need a unit.
        if not len(candidate):
            return pa.nulls(len(position), pa.large_string())
        raise ConfigError(
            f"cluster='{cluster}' is no column of gold, and none of {theirs}. Add it to gold, or have the candidate "
            f"keep it. Columns of {theirs}: {', '.join(candidate.column_names)}."
        )
    return cluster_ids(candidate, cluster, theirs).take(position)


def _confidence(candidate: pa.Table, target: Target, position: pa.Array, theirs: str) -> pa.Array | None:
    name = target.confidence_column
    if name is None or name not in candidate.column_names:
        return None
    given = column(candidate, name, theirs)
    if not (pa.types.is_floating(given.type) or pa.types.is_integer(given.type) or pa.types.is_decimal(given.type)):
        raise ConfigError(f"Confidence '{name}' of {theirs} is {given.type}; it must be a number from 0 to 1.")
    confidence = finite(given.cast(pa.float64(), safe=False)).take(position)
    bounds = pc.min_max(confidence).as_py()
    if bounds["min"] is not None and not 0 <= bounds["min"] <= bounds["max"] <= 1:
        raise InputError(
            f"Confidence '{name}' of {theirs} goes from {bounds['min']:g} to {bounds['max']:g}; it must be a "
            "probability from 0 to 1. Divide it by the end of its scale first."
        )
    return confidence
