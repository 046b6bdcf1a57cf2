"""From results back to rows: each row gets the outcome of its request, and is a label or a reject; none is dropped.

    manifest (row -> request)  +  results of all waves  =  labels | rejects

A request that several rows share was sent once; each of its rows bears an equal part of what it cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.rates import MONEY, PICODOLLAR
from dagster_llm_batch.core.results import RESULT_SCHEMA
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.types import Outcome

__all__ = ["PROVENANCE", "REJECT_COLUMNS", "Labeled", "check_columns", "label", "manifest_schema"]

_ID = "llm_request_id"

PROVENANCE = (
    "llm_outcome",
    "llm_provider",
    "llm_model",
    "llm_prompt_version",
    "llm_request_id",
    "llm_batch_id",
    "llm_attempt",
    "llm_lane",
    "llm_finish_reason",
    "llm_input_tokens",
    "llm_output_tokens",
    "llm_cache_read_tokens",
    "llm_cost_usd",
    "llm_realtime_usd",
    "llm_price_basis",
    "llm_submitted_at",
    "llm_completed_at",
    "llm_run_id",
)
"""Columns that every labeled row carries beside its key, the kept columns and the response."""

REJECT_COLUMNS = ("llm_reason", "llm_reply", *PROVENANCE)
"""Columns that every rejected row carries beside its key and the kept columns."""


@dataclass(frozen=True)
class Labeled:
    """All rows of a submission, each in exactly one of the two tables."""

    labels: pa.Table
    rejects: pa.Table


def check_columns(key: str, keep: Sequence[str], response: Sequence[str]) -> None:
    """Raise ConfigError where two sources claim the same column of the labeled table."""
    own = [key, *keep]
    taken = sorted({name for name in response if name in own} | {n for n in own if own.count(n) > 1})
    reserved = sorted(name for name in [*own, *response] if name.startswith("llm_"))
    if taken:
        msg = f"The labeled table would have {taken} twice, as key or kept column and in the response. Rename one."
        raise ConfigError(msg)
    if reserved:
        msg = f"Columns starting with 'llm_' hold the provenance of a label; rename {reserved}."
        raise ConfigError(msg)


def manifest_schema(rows: pa.Schema, key: str, keep: Sequence[str]) -> pa.Schema:
    """Key, kept columns and the request of each row."""
    return pa.schema([rows.field(name) for name in (key, *keep)] + [pa.field(_ID, pa.string())])


def label(
    manifest: pa.Table, waves: Sequence[pa.Table], response: pa.Schema, *, prompt_version: str, run_id: str
) -> Labeled:
    """Give every row of the manifest its outcome.

    Args:
        manifest: One row for each input row: key, kept columns, llm_request_id.
        waves: Results (RESULT_SCHEMA and the response's columns), oldest first. The newest success of a request
            counts, else its newest word.
        response: The response's columns.
        prompt_version: Kept with every row.
        run_id: The run that made this table; kept with every row.

    Returns:
        Labels: key, kept columns, response, PROVENANCE. Rejects: key, kept columns, REJECT_COLUMNS.
    """
    empty = pa.schema([*RESULT_SCHEMA, *response]).empty_table()
    results = _good_first(pa.concat_tables([*reversed(waves), empty]))
    places = _places(manifest[_ID], results[_ID].combine_chunks())
    joined = results.take(places)
    if not _is_one_to_one(places, len(results)):
        joined = _with_row_costs(manifest, results, joined)
    for name, text in (("llm_prompt_version", prompt_version), ("llm_run_id", run_id)):
        joined = joined.append_column(name, pa.repeat(pa.scalar(text, pa.string()), len(joined)))
    own = [name for name in manifest.column_names if name != _ID]
    for name in own:
        joined = joined.append_column(manifest.field(name), manifest[name])
    fits = _is_good(joined)
    return Labeled(
        labels=_only(joined.select([*own, *response.names, *PROVENANCE]), fits),
        rejects=_only(joined.select([*own, *REJECT_COLUMNS]), pc.invert(fits)),
    )


def _is_good(results: pa.Table) -> pa.ChunkedArray:
    return pc.equal(results["llm_outcome"], Outcome.SUCCEEDED.value)


def _good_first(results: pa.Table) -> pa.Table:
    good = _is_good(results)
    return pa.concat_tables([_only(results, good), _only(results, pc.invert(good))])


def _only(table: pa.Table, chosen: pa.ChunkedArray) -> pa.Table:
    """These rows of the table; no copy where it is all of them."""
    return table if pc.all(chosen, min_count=0).as_py() else table.filter(chosen)


def _places(wanted: pa.ChunkedArray, found: pa.Array) -> pa.Array:
    """Where each wanted request is found first."""
    places = pc.index_in(wanted, found).combine_chunks()
    if places.null_count:  # the plan wrote both files from the same rows
        msg = f"{places.null_count} rows have no result; the manifest and the results are not of the same submission."
        raise ValueError(msg)
    return places


def _is_one_to_one(places: pa.Array, results: int) -> bool:
    """Whether each result is of one row: no request was asked twice, nor by two rows, nor by none."""
    return len(places) == results and bool((np.bincount(places, minlength=1) <= 1).all())


def _with_row_costs(manifest: pa.Table, results: pa.Table, joined: pa.Table) -> pa.Table:
    """Each row's part of what its request cost in all attempts."""
    rows = manifest.group_by(_ID).aggregate([(_ID, "count")])
    sums = results.group_by(_ID).aggregate(
        [(name, "sum", pc.ScalarAggregateOptions(skip_nulls=False)) for name in ("llm_cost_usd", "llm_realtime_usd")]
    )
    shared_by = rows[f"{_ID}_count"].take(pc.index_in(manifest[_ID], rows[_ID].combine_chunks()))
    at = pc.index_in(manifest[_ID], sums[_ID].combine_chunks())
    for name in ("llm_cost_usd", "llm_realtime_usd"):
        whole = sums[f"{name}_sum"].take(at)
        if pc.max(shared_by).as_py() != 1:  # Arrow has no division of decimals that keeps this scale
            pairs = zip(whole.to_pylist(), shared_by.to_pylist(), strict=True)
            whole = pa.array([None if cost is None else (cost / n).quantize(PICODOLLAR) for cost, n in pairs])
        joined = joined.set_column(joined.column_names.index(name), pa.field(name, MONEY), whole.cast(MONEY))
    return joined


assert set(PROVENANCE) <= {*RESULT_SCHEMA.names, "llm_prompt_version", "llm_run_id"}
