"""The rows behind the figures: each gold row that a candidate labeled wrong, or left without a label, with its input.

One row for each target and gold row that at least one candidate has wrong. Columns, in this order:

    <key>                   of the row
    <kept columns>          columns that the candidates keep of their input, so that a person can judge
    target, gold            the compared target, and the right value, as text
    <candidate>_label       its label as text; null without one. Right if it equals `gold`
    <candidate>_confidence  its own confidence, 0 to 1, if a target names that column
    <candidate>_reason      the reason for a missing label; null for a label
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.metrics.joining import Joined

__all__ = ["find_mistakes", "kept_name", "kept_values", "mistakes_schema", "reasons_of", "text_of_values"]

_TAKEN = ("target", "gold")
_TEXT = pa.large_string()


def kept_name(name: str) -> str:
    """Return the column of the mistakes that a kept column becomes: its own name, unless the table has that already."""
    return f"row_{name}" if name in _TAKEN else name


def mistakes_schema(
    key: pa.Field, kept: Mapping[str, pa.DataType], candidates: Sequence[str], *, confidence: bool
) -> pa.Schema:
    """Return the columns of the module's docstring. `confidence`: whether any target names such a column."""
    fields = [key, *(pa.field(kept_name(name), kind) for name, kind in kept.items())]
    fields += [pa.field(name, _TEXT) for name in _TAKEN]
    for name in candidates:
        fields.append(pa.field(f"{name}_label", _TEXT))
        if confidence:
            fields.append(pa.field(f"{name}_confidence", pa.float64()))
        fields.append(pa.field(f"{name}_reason", _TEXT))
    return pa.schema(fields)


def find_mistakes(
    joined: Sequence[Joined], candidates: Mapping[str, pa.Table], *, key: str, keep: Sequence[str] = ()
) -> pa.Table:
    """Collect the mistakes of candidates.

    Args:
        joined: Every candidate joined with every target, of one gold table, in any order.
        candidates: The tables that were joined, by candidate.
        key: Column that names a row.
        keep: Further columns of the candidates to show; one that a candidate lacks is taken from the others.

    Returns:
        Rows by target in the order given, then by key; of a numeric target by distance from gold, the farthest first.
    """
    confidence = any(labels.target.confidence_column for labels in joined)
    parts = []
    for target in dict.fromkeys(labels.target for labels in joined):
        of_target = [labels for labels in joined if labels.target == target]
        parts.append(_of_target(of_target, candidates, key=key, keep=keep, confidence=confidence))
    return pa.concat_tables(parts, promote_options="permissive").combine_chunks()


def _of_target(
    joined: Sequence[Joined],
    candidates: Mapping[str, pa.Table],
    *,
    key: str,
    keep: Sequence[str],
    confidence: bool,
) -> pa.Table:
    # of one gold table and one target, all have the same keys and gold, in the same order
    first = joined[0]
    kept = {name: kept_values(name, joined, candidates) for name in keep}
    columns: list[pa.Array] = [first.keys, *kept.values()]
    columns += [pa.repeat(pa.scalar(first.target.name, _TEXT), first.n_gold), text_of_values(first.gold)]
    for labels in joined:
        columns.append(text_of_values(labels.predicted))
        if confidence:
            columns.append(pa.nulls(first.n_gold, pa.float64()) if labels.confidence is None else labels.confidence)
        columns.append(reasons_of(labels, candidates[labels.candidate]))
    schema = mistakes_schema(
        pa.field(key, first.keys.type),
        {name: values.type for name, values in kept.items()},
        [labels.candidate for labels in joined],
        confidence=confidence,
    )
    table = pa.Table.from_arrays([_whole(column) for column in columns], schema=schema)
    rows = pc.indices_nonzero(reduce(pc.or_, map(_is_wrong, joined)))
    if first.target.kind == "numeric":
        distance = reduce(pc.max_element_wise, (_distance(labels) for labels in joined)).take(rows)
        rows = rows.take(pc.sort_indices(distance, sort_keys=[("", "descending")]))
    return table.take(rows)


def _is_wrong(joined: Joined) -> pa.Array:
    """Return one boolean a gold row. A row without a label is wrong, too."""
    return pc.fill_null(pc.not_equal(joined.gold, joined.predicted), fill_value=True)


def _distance(joined: Joined) -> pa.Array:
    """Return the distance of each label from gold; infinite for a missing one."""
    return pc.fill_null(pc.abs(pc.subtract(joined.gold, joined.predicted)), float("inf"))


def kept_values(name: str, joined: Sequence[Joined], candidates: Mapping[str, pa.Table]) -> pa.Array:
    """Return a kept column by gold row, from the first candidate that has the row."""
    there = [
        _whole(candidates[labels.candidate][name]).take(labels.position)
        for labels in joined
        if name in candidates[labels.candidate].column_names
    ]
    if not there:
        return pa.nulls(joined[0].n_gold, _TEXT)
    if len({values.type for values in there}) > 1:
        there = [text_of_values(values) for values in there]
    return reduce(pc.coalesce, there)


def reasons_of(joined: Joined, candidate: pa.Table) -> pa.Array:
    """Return why a row has no label: the outcome with the provider's or the parser's words; null for a labeled row."""
    outcome, words = (
        _whole(candidate[name]).cast(_TEXT).take(joined.position)
        if name in candidate.column_names
        else pa.nulls(joined.n_gold, _TEXT)
        for name in ("llm_outcome", "llm_reason")
    )
    rejected = pc.coalesce(pc.binary_join_element_wise(outcome, words, pa.scalar(": ", _TEXT)), outcome)
    reasons = pc.if_else(pc.equal(outcome, "succeeded"), pa.scalar(None, _TEXT), rejected)
    absent = pc.if_else(
        joined.has_row, pa.scalar("the label is empty", _TEXT), pa.scalar("the candidate has no such row", _TEXT)
    )
    return pc.if_else(joined.predicted.is_valid(), pa.scalar(None, _TEXT), pc.coalesce(reasons, absent))


def text_of_values(values: pa.Array) -> pa.Array:
    """Return the values as text, in the form of the table of mistakes."""
    try:
        return values.cast(_TEXT)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        # Arrow has no text for nested values.
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], _TEXT)


def _whole(values: pa.Array | pa.ChunkedArray) -> pa.Array:
    return values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
