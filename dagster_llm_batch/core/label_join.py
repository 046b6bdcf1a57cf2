"""Join results with rows: each row gets the outcome of its request, and is a label or a reject. All rows are kept.

    manifest (row -> request)  +  results of all waves  =  labels | rejects

If several rows share a request, it was sent once; each of its rows has an equal part of its cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.memory import release_memory
from dagster_llm_batch.core.pricing import MONEY
from dagster_llm_batch.core.rates import PICODOLLAR
from dagster_llm_batch.core.result_schema import RESULT_SCHEMA
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.types import SKIPPED, Outcome

__all__ = [
    "EMPTY",
    "PROVENANCE",
    "REJECT_COLUMNS",
    "UNSENT",
    "UNSENT_FIELD",
    "Labeled",
    "Part",
    "check_columns",
    "label",
    "manifest_schema",
    "pair_rows",
    "with_shared",
]

_ID = "llm_request_id"
# With more rows it is worthwhile to give memory back column by column.
_MANY = 65_536
# Stands before a reason in the place of a request_id, which has digits alone.
_REASON = "unsent: "
_COSTS = ("llm_cost_usd", "llm_realtime_usd")

LOST = (
    "the stored list of requests and the stored answers are lost; `dagster-llm-batch retry` asks again, and shows the "
    "price first"
)
"""Reason of a row without an answer if its request has lost its result."""

EMPTY = "empty: nothing but blanks or nulls in the columns that the prompt reads, so the row was not sent"
"""The reason of a row that was skipped."""

UNSENT_FIELD = pa.field("llm_unsent", pa.string())
"""The column of a manifest with the reasons why rows are not sent: their images or documents cannot be read. A manifest
without such rows does not have it.
"""

UNSENT = UNSENT_FIELD.name
"""Its name."""

_NOT_SENT = "; the row was not sent, and cost nothing. Plan the partition again when the file is there or corrected"

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
"""Columns of every labeled row, after its key, the kept columns and the response."""

REJECT_COLUMNS = ("llm_reason", "llm_reply", *PROVENANCE)
"""Columns of every rejected row, after its key and the kept columns."""


@dataclass(frozen=True)
class Labeled:
    """All rows of a submission, each in exactly one of the two tables.

    `fenced` is the number of labels that were read out of Markdown fences, and `quotes` the number of quotes of each
    kind of match.
    """

    labels: pa.Table
    rejects: pa.Table
    fenced: int = 0
    quotes: Counter[str] = field(default_factory=Counter)


def check_columns(key: str, keep: Sequence[str], response: Sequence[str]) -> None:
    """Raise ConfigError if two sources claim the same column of the labeled table."""
    own = [key, *keep]
    taken = sorted({name for name in response if name in own} | {n for n in own if own.count(n) > 1})
    reserved = sorted(name for name in [*own, *response] if name.startswith("llm_"))
    if taken:
        raise ConfigError(
            f"The labeled table would have {', '.join(taken)} twice, as key or kept column and in the response. "
            "Rename one."
        )
    if reserved:
        msg = f"Columns starting with 'llm_' hold the provenance of a label; rename {', '.join(reserved)}."
        raise ConfigError(msg)


def manifest_schema(rows: pa.Schema, key: str, keep: Sequence[str]) -> pa.Schema:
    """Return the schema of a manifest: key, kept columns and the request_id of each row."""
    return pa.schema([rows.field(name) for name in (key, *keep)] + [pa.field(_ID, pa.string())])


def label(
    manifest: pa.Table, waves: Iterable[pa.Table], response: pa.Schema, *, prompt_version: str, run_id: str
) -> Labeled:
    """Give every row of the manifest its outcome.

    Args:
        manifest: One row for each input row: key, kept columns, llm_request_id (null for a row that was not sent), and
            UNSENT_FIELD where an image could not be read.
        waves: Results (RESULT_SCHEMA and the response's columns), oldest first. A request takes its newest success,
            else its newest result. A table has each request once. Tables without other references are freed column by
            column.
        response: The response's columns.
        prompt_version: Kept with every row.
        run_id: The run that made this table; kept with every row.

    Returns:
        Labels: key, kept columns, response, PROVENANCE. Rejects: key, kept columns, REJECT_COLUMNS.
    """
    tables = [*waves]
    manifest, unsent = _with_reasons_as_ids(manifest)
    if unsent:
        tables.append(pa.Table.from_pylist(unsent, schema=pa.schema([*RESULT_SCHEMA, *response])))
    # Usually each row has its result at its own place: then lookups and copies are unnecessary.
    are_pairs = len(tables) == 1 and tables[0][_ID].equals(manifest[_ID])
    results = pa.concat_tables([*reversed(tables)] or [pa.schema([*RESULT_SCHEMA, *response]).empty_table()])
    del tables
    if manifest[_ID].null_count:
        # Arrow finds a null among the ids by a null, so all rows that were not sent share this one.
        skipped = {"llm_outcome": SKIPPED, "llm_reason": EMPTY, **dict.fromkeys(_COSTS, Decimal(0))}
        results = pa.concat_tables([results, pa.Table.from_pylist([skipped], schema=results.schema)])
    places = pa.array(np.arange(len(results))) if are_pairs else _places(manifest[_ID], results)
    if places.null_count:
        # The plan wrote the manifest and the requests from the same rows, so each had a result.
        ids = pc.unique(manifest[_ID].combine_chunks().filter(pc.is_null(places))).to_pylist()
        lost = [{_ID: request_id, "llm_outcome": Outcome.MISSING.value, "llm_reason": LOST} for request_id in ids]
        results = pa.concat_tables([results, pa.Table.from_pylist(lost, schema=results.schema)])
        places = _places(manifest[_ID], results)
    rows = manifest.drop_columns([_ID])
    own = rows.column_names
    for name, text in (("llm_prompt_version", prompt_version), ("llm_run_id", run_id)):
        rows = rows.append_column(name, pa.repeat(pa.scalar(text, pa.string()), len(rows)))
    if not (are_pairs or _is_one_to_one(places, len(results))):
        for name, costs in _row_costs(manifest[_ID], results.select([_ID, *_COSTS])):
            rows = rows.append_column(name, costs)
    results = _without_reasons_as_ids(results) if unsent else results
    fits = _is_good(results).take(places).combine_chunks()
    fenced = _count_fenced(results, places)
    fields = {field.name: field for field in [*results.schema, *rows.schema]}
    halves = [(_columns_of(_only(rows, chosen)), _only(places, chosen)) for chosen in (fits, pc.invert(fits))]
    whole = places if are_pairs else None
    # One column after another, each freed before the next is taken: results and labels are never both whole.
    columns = _columns_of(results)
    del rows, results
    for name in list(columns):
        column = columns.pop(name)
        if len(places) > _MANY:
            release_memory()
        for half, at in halves:
            if name not in half:
                half[name] = column if at is whole else _taken(column, at)
    labels, rejects = (
        pa.table([half[name] for name in names], schema=pa.schema([fields[name] for name in names]))
        for (half, _), names in zip(
            halves, ([*own, *response.names, *PROVENANCE], [*own, *REJECT_COLUMNS]), strict=True
        )
    )
    return Labeled(labels, rejects, fenced)


def _with_reasons_as_ids(manifest: pa.Table) -> tuple[pa.Table, list[dict[str, Any]]]:
    """Return the manifest without UNSENT, but with ids that stand for the reasons in it, and the results of these."""
    if UNSENT not in manifest.column_names:
        return manifest, []
    reasons, ids = manifest[UNSENT], manifest[_ID]
    manifest = manifest.drop_columns([UNSENT])
    if reasons.null_count == len(reasons):
        return manifest, []
    named = pc.binary_join_element_wise(pa.scalar(_REASON), reasons.cast(pa.string()), "")
    manifest = manifest.set_column(manifest.schema.get_field_index(_ID), _ID, pc.coalesce(named, ids))
    costs = dict.fromkeys(_COSTS, Decimal(0))
    results = [
        {
            _ID: _REASON + reason,
            "llm_outcome": Outcome.ERRORED.value,
            "llm_reason": reason + _NOT_SENT,
            **costs,
        }
        for reason in pc.unique(reasons).drop_null().to_pylist()
    ]
    return manifest, results


def _without_reasons_as_ids(results: pa.Table) -> pa.Table:
    are_ids = pc.fill_null(pc.invert(pc.starts_with(results[_ID], _REASON)), fill_value=False)
    place, field = results.schema.get_field_index(_ID), results.schema.field(_ID)
    return results.set_column(place, field, pc.if_else(are_ids, results[_ID], pa.scalar(None, field.type)))


def _columns_of(table: pa.Table) -> dict[str, pa.ChunkedArray]:
    return dict(zip(table.column_names, table.columns, strict=True))


Part = tuple[pa.Table, Iterator[pa.Table]]
"""Rows of the manifest, and each wave's results for them."""


def pair_rows(
    rows: Iterator[pa.RecordBatch], results: Iterator[pa.RecordBatch], by: str
) -> Generator[Part, None, list[Iterator[pa.RecordBatch]]]:
    """Yield rows and their results side by side while results come in the order of the rows; return the rest of both.

    Each request has one row and one result.
    """
    held: list[pa.RecordBatch] = []
    for batch in rows:
        missing = len(batch) - sum(map(len, held))
        while missing > 0 and (more := next(results, None)) is not None:
            held.append(more)
            missing -= len(more)
        if missing > 0 or not held:
            return [chain([batch], rows), chain(held, results)]
        own, read = pa.Table.from_batches([batch]), pa.Table.from_batches(held)
        if not own[by].equals(read[by].slice(0, len(own))):
            return [chain([batch], rows), chain(held, results)]
        held = read.slice(len(own)).to_batches()
        yield own, iter([read.slice(0, len(own))])
        # Or they would be in memory while the next are read.
        del batch, own, read
    return [rows, chain(held, results)]


def with_shared(results: pa.Table, shared: pa.Table | None, by: str) -> pa.Table:
    """Return the results with the columns that all results of a shard share; unchanged without such columns.

    `shared` has a row for each shard, and `results` its number in the column `by`.
    """
    if shared is None:
        return results
    repeated = shared.take(results[by].combine_chunks())
    return pa.table([*results.columns, *repeated.columns], names=[*results.column_names, *repeated.column_names])


def _count_fenced(results: pa.Table, places: pa.Array) -> int:
    """Return the number of rows with labels that were read out of fences: of all labels, only these have a reason."""
    reasons = results["llm_reason"]
    if reasons.null_count == len(reasons):
        return 0
    are_fenced = pc.and_(pc.is_valid(reasons), _is_good(results))
    return int(pc.sum(are_fenced.combine_chunks().take(places), min_count=0).as_py())


def _is_good(results: pa.Table) -> pa.ChunkedArray:
    return pc.equal(results["llm_outcome"], Outcome.SUCCEEDED.value)


def _only(rows: Any, chosen: pa.Array) -> Any:
    """Return the chosen rows, without a copy where those are all."""
    return rows if pc.all(chosen, min_count=0).as_py() else rows.filter(chosen)


def _taken(column: pa.ChunkedArray, at: pa.Array) -> pa.ChunkedArray:
    """Return the values at these places."""
    # Arrow joins the pieces of a column before it takes from it, even if it takes nothing.
    return column.take(at) if len(at) else column.slice(0, 0)


def _places(wanted: pa.ChunkedArray, results: pa.Table) -> pa.Array:
    """Return the place of each wanted request in the results: of its first success, else of its first result.

    Null of a request without a result.
    """
    # As one array: before version 26 pyarrow dies of indices_nonzero of a column without a chunk (apache/arrow#51018).
    good = _is_good(results).combine_chunks()
    by_worth = pa.concat_arrays([pc.indices_nonzero(good), pc.indices_nonzero(pc.invert(good))])
    ids = results[_ID].take(by_worth).combine_chunks()
    return by_worth.take(pc.index_in(wanted, ids).combine_chunks())


def _is_one_to_one(places: pa.Array, results: int) -> bool:
    """Return whether each result belongs to exactly one row."""
    return len(places) == results and bool((np.bincount(places, minlength=1) <= 1).all())


def _row_costs(wanted: pa.ChunkedArray, results: pa.Table) -> Iterator[tuple[pa.Field, pa.Array]]:
    """Yield each row's part of its request's cost in all attempts."""
    rows = pa.table({_ID: wanted}).group_by(_ID).aggregate([(_ID, "count", pc.CountOptions("all"))])
    sums = results.group_by(_ID).aggregate(
        [(name, "sum", pc.ScalarAggregateOptions(skip_nulls=False)) for name in _COSTS]
    )
    shared_by = rows[f"{_ID}_count"].take(pc.index_in(wanted, rows[_ID].combine_chunks()))
    at = pc.index_in(wanted, sums[_ID].combine_chunks())
    for name in _COSTS:
        whole = sums[f"{name}_sum"].take(at)
        # Arrow has no division of decimals that keeps this scale, so Python divides where a request has several rows.
        if pc.max(shared_by).as_py() != 1:
            pairs = zip(whole.to_pylist(), shared_by.to_pylist(), strict=True)
            whole = pa.array([None if cost is None else (cost / n).quantize(PICODOLLAR) for cost, n in pairs])
        yield pa.field(name, MONEY), whole.cast(MONEY)


assert set(PROVENANCE) <= {*RESULT_SCHEMA.names, "llm_prompt_version", "llm_run_id"}
