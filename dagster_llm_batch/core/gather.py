"""Gather the labels of parts into one row for each source row: `Gather("concat")`. Pure.

    labels and rejects of parts  ─▶  labels (rows whose parts all have a label) | rejects (all other rows)

1. Each source row is in exactly one of the two tables, with the sum of its parts' prices, rejected parts included.
2. `llm_parts` has each part's own provenance, in order.
3. Places of quotes are shifted by `part_start`, so they are places in the whole text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

import pyarrow as pa
import pyarrow.types as t

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.label_join import PROVENANCE
from dagster_llm_batch.core.quoted_columns import QuotedColumns
from dagster_llm_batch.core.response import is_json
from dagster_llm_batch.core.result_schema import RESULT_SCHEMA
from dagster_llm_batch.core.split import PART, PART_COLUMNS, PART_KEY, PART_START, PARTS
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.types import SKIPPED, Outcome

__all__ = ["Gather", "Gatherer"]

_Way = Literal["concat", "vote", "union"]

_SUMS = ("llm_input_tokens", "llm_output_tokens", "llm_cache_read_tokens", "llm_cost_usd", "llm_realtime_usd")
_TEXTS = ("llm_provider", "llm_model", "llm_prompt_version")
_TYPES = {**{name: pa.string() for name in PROVENANCE}, **{each.name: each.type for each in RESULT_SCHEMA}}
_LABELED, _REASON = "is_labeled", "llm_reason"
_ROWS_AT_ONCE = 1_024
_SHOWN = 3


@checked
@dataclass(frozen=True)
class Gather:
    """The rule that makes the label of a row of the labels of its parts.

    Args:
        way: `concat`: lists, one after the other; texts, joined by `separator`. `union`: lists without equal values,
            in the order of their first. `vote`: the most frequent value, of several the first; null does not vote. It
            takes texts, and true and false. Numbers have no way: ask a second dataset, or answer in classes.
        columns: Another way for single columns of the response, as in {"topic": "vote"}.
        separator: Stands between the texts of `concat`.
    """

    way: _Way
    columns: Mapping[str, _Way] = field(default_factory=dict)
    separator: str = "\n"


class Gatherer:
    """Gathers parts of one dataset.

    Args:
        gather: The way of each column.
        key: The column that identifies a source row.
        keep: Other columns of the source rows, equal in all parts of a row.
        response: The columns of the response.
        quoted: The places of quotes; None without evidence.

    Raises ConfigError for a column that cannot be gathered in its way.
    """

    def __init__(
        self, gather: Gather, key: str, keep: Sequence[str], response: pa.Schema, quoted: QuotedColumns | None
    ) -> None:
        if unknown := sorted(set(gather.columns) - set(response.names)):
            raise ConfigError(
                f"Gather.columns names {', '.join(unknown)}, which the response does not have. Its columns: "
                f"{', '.join(response.names)}."
            )
        self._key, self._keep, self._response = key, list(keep), response
        self._ways: dict[str, Callable[[list[Any]], Any]] = {}
        for each in response:
            self._ways[each.name] = _way_of(each, gather.columns.get(each.name, gather.way), gather.separator)
        self._places = pa.schema([]) if quoted is None else quoted.schema
        for each in self._places:
            column = max((name for name in response.names if each.name.startswith(f"{name}_")), key=len)
            if not t.is_list(each.type) or gather.columns.get(column, gather.way) != "concat":
                raise ConfigError(
                    f"The places of the quotes in {column!r} can only be gathered by 'concat', from a list. Declare "
                    f"quotes as a list, and Gather(columns={{{column!r}: 'concat'}})."
                )
            self._ways[each.name] = _joined

    @property
    def read(self) -> list[str]:
        """The columns of labeled parts to read."""
        return [*self.read_of_rejects, *self._response.names, *self._places.names]

    @property
    def read_of_rejects(self) -> list[str]:
        """The columns of rejected parts to read, without `llm_reason`."""
        return list(dict.fromkeys([self._key, *self._keep, *PART_COLUMNS.names, *PROVENANCE]))

    def gather(self, labels: pa.Table, rejects: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the labels and rejects of the source rows, by key.

        Raises InputError if two parts have one place: the tables of parts are of different times.
        """
        parts = pa.concat_tables(
            [
                labels.append_column(_LABELED, pa.repeat(pa.scalar(True), len(labels))),  # noqa: FBT003 - a value
                rejects.append_column(_LABELED, pa.repeat(pa.scalar(False), len(rejects))),  # noqa: FBT003
            ],
            promote_options="permissive",
        ).sort_by([(self._key, "ascending"), (PART, "ascending")])
        own = [parts.schema.field(name) for name in (self._key, *self._keep)]
        provenance = _provenance()
        schemas = [
            pa.schema([*own, *self._response, *self._places, *provenance]),
            pa.schema([*own, pa.field(_REASON, pa.string()), *provenance]),
        ]
        done: list[list[pa.RecordBatch]] = [[], []]
        held: list[list[Mapping[str, Any]]] = [[], []]
        rows = (row for batch in parts.to_batches(_ROWS_AT_ONCE) for row in batch.to_pylist())
        for key, group in groupby(rows, key=lambda row: row[self._key]):
            gathered = self._row(key, list(group))
            table = int(_REASON in gathered)
            held[table].append(gathered)
            if len(held[table]) >= _ROWS_AT_ONCE:
                done[table].append(pa.RecordBatch.from_pylist(held[table], schemas[table]))
                held[table] = []
        made = zip(done, held, schemas, strict=True)
        tables = [
            pa.Table.from_batches([*batches, pa.RecordBatch.from_pylist(rest, schema)], schema)
            for batches, rest, schema in made
        ]
        return tables[0], tables[1]

    def _row(self, key: object, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        numbers, counts = [part[PART] for part in parts], {part[PARTS] for part in parts}
        if len(set(numbers)) < len(numbers) or len(counts) > 1:
            raise InputError(
                f"The row {key!r} has parts of two splits. Materialize the labels and the rejects of the parts again, "
                "in one run."
            )
        absent = sorted({*range(1, counts.pop() + 1)} - {*numbers})
        answered = [part for part in parts if part[_LABELED]]
        failed = [part for part in parts if not part[_LABELED]]
        if answered:
            # A part of blanks alone is not sent, and has nothing to answer.
            failed = [part for part in failed if part["llm_outcome"] != SKIPPED]
        row = {name: parts[0][name] for name in (self._key, *self._keep)} | _provenance_of(parts)
        if failed or absent:
            outcome = failed[0]["llm_outcome"] if failed else Outcome.MISSING.value
            return {**row, "llm_outcome": outcome, _REASON: _reason(failed, absent, len(parts) + len(absent))}
        for name in self._response.names:
            row[name] = self._ways[name]([part[name] for part in answered])
        for name in self._places.names:
            is_place = name.endswith(("_start", "_end"))
            values = [_shifted(part[name], part[PART_START]) if is_place else part[name] for part in answered]
            row[name] = self._ways[name](values)
        return {**row, "llm_outcome": Outcome.SUCCEEDED.value}


def _provenance() -> list[pa.Field]:
    part = [(PART_KEY, pa.string()), (PART_START, pa.int64()), *((name, _TYPES[name]) for name in PROVENANCE)]
    names = ["llm_outcome", *_TEXTS, *_SUMS, "llm_submitted_at", "llm_completed_at"]
    return [*(pa.field(name, _TYPES[name]) for name in names), pa.field("llm_parts", pa.list_(pa.struct(part)))]


def _provenance_of(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the provenance of a row: sums, and each part's own. A sum with an unknown part is unknown."""
    values: dict[str, Any] = {}
    for name in _SUMS:
        each = [part[name] for part in parts]
        values[name] = None if None in each else sum(each)
    for name in _TEXTS:
        values[name] = ", ".join(dict.fromkeys(part[name] for part in parts if part[name])) or None
    for name, choose in (("llm_submitted_at", min), ("llm_completed_at", max)):
        values[name] = choose((part[name] for part in parts if part[name] is not None), default=None)
    own = (PART_KEY, PART_START, *PROVENANCE)
    return {**values, "llm_parts": [{name: part[name] for name in own} for part in parts]}


def _reason(failed: Sequence[Mapping[str, Any]], absent: Sequence[int], parts: int) -> str:
    reasons = [f"{part[PART_KEY]}: {part[_REASON]}" for part in failed]
    reasons += [f"part {number}: not in the labels or rejects of the parts, for example erased" for number in absent]
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return f"{len(reasons)} of {parts} parts have no label. {'; '.join(reasons[:_SHOWN])}{more}"


def _way_of(column: pa.Field, way: str, separator: str) -> Callable[[list[Any]], Any]:
    kind = column.type
    is_text, is_list = t.is_string(kind) or t.is_large_string(kind), t.is_list(kind)
    if way == "concat" and is_list:
        return _joined
    if way == "concat" and is_text and not is_json(column):
        return lambda values: separator.join(value for value in values if value is not None)
    if way == "union" and is_list:
        return _united
    if way == "vote" and (is_text or t.is_boolean(kind)):
        return _voted
    takes = {"concat": "lists and texts", "union": "lists", "vote": "texts, and true and false"}[way]
    raise ConfigError(
        f"The column {column.name!r} of the response is of type {kind}, and {way!r} takes {takes}. Give it another "
        f"way, as in Gather({way!r}, columns={{{column.name!r}: 'vote'}}), or ask a second dataset about the parts."
    )


def _joined(values: Iterable[Any]) -> list[Any]:
    return [one for value in values for one in value or ()]


def _united(values: Iterable[Any]) -> list[Any]:
    first: dict[str, Any] = {}
    for one in _joined(values):
        # Values of one Arrow type are equal if their texts are; lists and objects have no hash.
        first.setdefault(repr(one), one)
    return list(first.values())


def _voted(values: Iterable[Any]) -> Any:
    # Of equal counts, `most_common` gives the value that came first.
    counts = Counter(value for value in values if value is not None)
    return counts.most_common(1)[0][0] if counts else None


def _shifted(place: Any, start: int) -> Any:
    """Return a place in the part, or each of lists of them, as a place in the text."""
    if isinstance(place, list):
        return [_shifted(each, start) for each in place]
    return None if place is None else place + start
