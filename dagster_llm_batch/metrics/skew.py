"""Does an LLM give the same replies in real time as in a batch? Compares the answers of both ways to equal requests.

Replies vary between calls if the LLM samples: two batches would not agree wholly either. With temperature 0 the usual
causes are another version of the LLM, another provider's stack, or a request that was built in another way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.metrics.classification import evaluate
from dagster_llm_batch.metrics.clusters import Units
from dagster_llm_batch.metrics.columns import Kind, column, comparable_keys, comparable_values
from dagster_llm_batch.metrics.intervals import share_interval
from dagster_llm_batch.metrics.joining import Target, join
from dagster_llm_batch.metrics.schemas import evaluation_extra, schema_of, table_of
from dagster_llm_batch.metrics.tables import figure, percent, rows_markdown, share
from dagster_llm_batch.types import Outcome

__all__ = ["SKEW_SCHEMA", "Skew", "side_by_side", "skew_between", "skew_markdown", "skew_to_arrow"]

_ID, _OUTCOME, _MODEL = "llm_request_id", "llm_outcome", "llm_model"


@dataclass(frozen=True)
class Skew:
    """One target, in real time against its batch labels. `n_sampled = n_changed + n_unanswered + n_compared`.

    - `n_changed`: rows that are gone, or make another request now; left out. `n_unanswered`: rows without a good reply
      in real time.
    - `agreement`: share of the compared rows with the same value (two nulls are the same), with its 95 % interval.
      Identical requests have one reply in each way, so only `n_requests` and `n_requests_same` carry information.
    - `kappa`: Cohen's, for classes. `mean_difference` (real time less batch), `mean_absolute_difference`: for numbers.
    - `batch_models`, `realtime_models`: the LLMs that answered, by the provider's names; if these differ, the labels
      may, too.
    """

    target: str
    kind: Kind
    n_sampled: int
    n_changed: int
    n_unanswered: int
    n_compared: int
    n_same: int
    n_requests: int
    n_requests_same: int
    agreement: float | None
    agreement_low: float | None
    agreement_high: float | None
    kappa: float | None
    mean_difference: float | None
    mean_absolute_difference: float | None
    batch_models: tuple[str, ...]
    realtime_models: tuple[str, ...]


SKEW_SCHEMA = schema_of(Skew)
"""The fields of `Skew`, in order; the models are one text each, joined by commas."""


def skew_between(batch: pa.Table, realtime: pa.Table, *, key: str, target: Target) -> Skew:
    """Compare the rows of `batch` (sampled labels) with the rows of `realtime` with the same keys, including rejects.

    Both have key, target, `llm_request_id`, `llm_model`, and `realtime` an `llm_outcome`. Raises the exceptions of
    `join`.
    """
    at, same_request, answered = _met(batch, realtime, key)
    name = target.name
    batch_values, realtime_values = comparable_values(
        column(batch, name, "the batch").filter(answered),
        column(realtime, name, "real time").take(at.filter(answered)),
        name=name,
        kind=target.kind,
        theirs="real time",
    )
    same = _same(batch_values, realtime_values)
    n, n_same = len(same), int(pc.sum(same).as_py() or 0)
    requests = _text(batch, _ID).filter(answered)
    low, high = _interval(same, requests) if n else (None, None)
    keys = column(batch, key, "the batch").filter(answered)
    pair = (pa.table({key: keys, name: values}) for values in (batch_values, realtime_values))
    figures = evaluate(join(*pair, key=key, target=target, candidate_name="real time"))
    difference = pc.mean(pc.subtract(realtime_values, batch_values)).as_py() if target.kind == "numeric" else None
    return Skew(
        target=name,
        kind=target.kind,
        n_sampled=len(batch),
        n_changed=len(batch) - int(pc.sum(same_request).as_py() or 0),
        n_unanswered=int(pc.sum(pc.and_not(same_request, answered)).as_py() or 0),
        n_compared=n,
        n_same=n_same,
        n_requests=pc.count_distinct(requests).as_py(),
        n_requests_same=pc.count_distinct(requests.filter(same)).as_py(),
        agreement=n_same / n if n else None,
        agreement_low=low,
        agreement_high=high,
        kappa=figures.kappa,
        mean_difference=difference,
        mean_absolute_difference=figures.mae,
        batch_models=_names(_text(batch, _MODEL).filter(answered)),
        realtime_models=_names(_text(realtime, _MODEL).take(at.filter(answered))),
    )


def _interval(same: pa.Array, requests: pa.Array) -> tuple[float | None, float | None]:
    with evaluation_extra("The interval of an agreement"):
        import numpy as np  # noqa: PLC0415  # optional dependency
    units = Units.of(pa.array(np.ones(len(same))), requests)
    found = share_interval(np.asarray(same, dtype=np.float64), units)
    return found.low, found.high


def _met(batch: pa.Table, realtime: pa.Table, key: str) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Find each row of the batch in real time: its position, whether it is the same request, and whether it has a
    label.
    """
    ours, theirs = comparable_keys(
        column(batch, key, "the batch"), column(realtime, key, "real time"), key, "real time", ours="the batch"
    )
    at = pc.index_in(ours, value_set=theirs)
    same_request = pc.fill_null(pc.equal(_text(realtime, _ID).take(at), _text(batch, _ID)), fill_value=False)
    outcomes = _text(realtime, _OUTCOME).take(at)
    succeeded = pc.fill_null(pc.equal(outcomes, Outcome.SUCCEEDED.value), fill_value=False)
    return at, same_request, pc.and_(same_request, succeeded)


def _text(table: pa.Table, name: str) -> pa.Array:
    """Return a column that is text also where it holds nulls only."""
    return column(table, name, "the labels").cast(pa.large_string())


def _same(batch: pa.Array, realtime: pa.Array) -> pa.Array:
    both_null = pc.and_(batch.is_null(), realtime.is_null())
    return pc.or_(pc.fill_null(pc.equal(batch, realtime), fill_value=False), both_null)


def _names(models: pa.Array) -> tuple[str, ...]:
    return tuple(sorted(pc.unique(models.drop_null()).to_pylist()))


def side_by_side(batch: pa.Table, realtime: pa.Table, *, key: str, targets: Sequence[str]) -> pa.Table:
    """Return each sampled row, in order of the keys.

    Columns: key, `<target>`, `<target>_realtime`, `llm_same` (null without a comparison), `llm_changed`, and outcome,
    reason, model and cost of the reply in real time.
    """
    batch = batch.sort_by(key)
    at, same_request, answered = _met(batch, realtime, key)
    columns = {key: batch[key]}
    same = pa.repeat(pa.scalar(value=True), len(batch))
    for name in targets:
        ours, theirs = batch[name].combine_chunks(), realtime[name].combine_chunks().take(at)
        if pa.types.is_null(ours.type):
            # Some stores keep no type of a column without values, as of a partition in which every row was rejected.
            ours = ours.cast(theirs.type)
        columns[name], columns[f"{name}_realtime"] = ours, theirs
        same = pc.and_(same, _same(ours, theirs.cast(ours.type)))
    columns["llm_same"] = pc.if_else(answered, same, pa.scalar(None, pa.bool_()))
    columns["llm_changed"] = pc.invert(same_request)
    for name in (_OUTCOME, "llm_reason", _MODEL, "llm_cost_usd"):
        columns[name] = realtime[name].combine_chunks().take(at)
    return pa.table(columns)


def skew_to_arrow(skews: Iterable[Skew]) -> pa.Table:
    """Return one row for each target, in SKEW_SCHEMA."""
    return table_of(skews, Skew)


def skew_markdown(skews: Iterable[Skew]) -> str:
    """Return the agreement of both ways; 95 % intervals."""
    return rows_markdown(
        [
            {
                "target": skew.target,
                "same (95 %)": percent(skew.agreement, skew.agreement_low, skew.agreement_high),
                "rows": share(skew.n_same, skew.n_compared),
                "Cohen's κ": figure(skew.kappa),
                "mean difference": figure(skew.mean_difference),
                "unanswered": f"{skew.n_unanswered:,}",
                "changed since": f"{skew.n_changed:,}",
                "model in batch": ", ".join(skew.batch_models) or "-",
                "in real time": ", ".join(skew.realtime_models) or "-",
            }
            for skew in skews
        ]
    )
