"""Gather the labels of parts into one row for each source row: `Gather("concat")`. Pure.

    labels and rejects of parts  ─▶  labels (rows whose parts all have a label) | rejects (all other rows)

1. Each source row is in exactly one of the two tables, with the sum of its parts' prices, rejected parts included.
2. `llm_parts` has each part's own provenance, in order.
3. Places of quotes are shifted by `part_start`, so they are places in the whole text.
4. Parts are sorted by row, so the parts of a row are neighbors. Each column is gathered for all rows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.label_join import PROVENANCE
from dagster_llm_batch.core.memory import release_memory
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
_TIMES = {"llm_submitted_at": "min", "llm_completed_at": "max"}
_TYPES = {**{name: pa.string() for name in PROVENANCE}, **{each.name: each.type for each in RESULT_SCHEMA}}
_LABELED, _REASON = "is_labeled", "llm_reason"
_SHOWN = 3

_Ints = np.ndarray[Any, np.dtype[np.int64]]
_Truths = np.ndarray[Any, np.dtype[np.bool_]]
_Columns = dict[str, pa.Array]


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
    columns: Mapping[str, _Way] | None = None
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
        ways = gather.columns or {}
        if unknown := sorted(set(ways) - set(response.names)):
            raise ConfigError(
                f"Gather.columns names {', '.join(unknown)}, which the response does not have. Its columns: "
                f"{', '.join(response.names)}."
            )
        self._key, self._keep, self._response = key, list(keep), response
        self._ways: dict[str, _Gathering] = {}
        for each in response:
            self._ways[each.name] = _way_of(each, ways.get(each.name, gather.way), gather.separator)
        self._places = pa.schema([]) if quoted is None else quoted.schema
        for each in self._places:
            column = max((name for name in response.names if each.name.startswith(f"{name}_")), key=len)
            if not t.is_list(each.type) or ways.get(column, gather.way) != "concat":
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
        both = pa.concat_tables(
            [
                labels.append_column(_LABELED, pa.repeat(pa.scalar(True), len(labels))),  # noqa: FBT003 - a value
                rejects.append_column(_LABELED, pa.repeat(pa.scalar(False), len(rejects))),  # noqa: FBT003
            ],
            promote_options="permissive",
        )
        del labels, rejects
        own, provenance = [both.schema.field(name) for name in (self._key, *self._keep)], _provenance()
        order = pc.sort_indices(both, [(self._key, "ascending"), (PART, "ascending")])
        parts: _Columns = {}
        for name in both.column_names:
            parts[name] = both[name].combine_chunks().take(order)
            # Sorted and unsorted, only one column is in memory.
            both = both.drop_columns([name])
            release_memory()
        rows = _Rows(_ends(parts[self._key]))
        schemas = (
            pa.schema([*own, *self._response, *self._places, *provenance]),
            pa.schema([*own, pa.field(_REASON, pa.string()), *provenance]),
        )
        gathered, left = (
            pa.table([columns[name] for name in schema.names], schema=schema)
            for columns, schema in zip(self._gathered(parts, rows), schemas, strict=True)
        )
        return gathered, left

    def _gathered(self, parts: _Columns, rows: _Rows) -> tuple[_Columns, _Columns]:
        """Return the columns of the labels and of the rejects of the rows."""
        is_labeled, is_skipped = _are(parts[_LABELED], True), _are(parts["llm_outcome"], SKIPPED)  # noqa: FBT003
        # A part of blanks alone is not sent, and has nothing to answer.
        is_failed = ~is_labeled & ~(is_skipped & (rows.count(is_labeled) > 0)[rows.of_part])
        are_labels = (rows.count(is_failed) == 0) & (self._present(parts, rows) == _ints(parts[PARTS])[rows.starts])
        common = {name: parts[name].take(pa.array(rows.starts)) for name in (self._key, *self._keep)}
        common |= _provenance_of(parts, rows)
        labels, rejects = (
            {name: _only(array, chosen) for name, array in common.items()} for chosen in (are_labels, ~are_labels)
        )
        is_answer = is_labeled & are_labels[rows.of_part]
        answered = _Rows(np.cumsum(rows.count(is_labeled)[are_labels]))
        for column in [*self._response, *self._places]:
            values = _as_type(_only(parts[column.name], is_answer), column.type)
            if column.name in self._places.names and column.name.endswith(("_start", "_end")):
                values = _shifted(values, _only(parts[PART_START], is_answer))
            labels[column.name] = self._ways[column.name](values, answered)
        labels["llm_outcome"] = pa.repeat(pa.scalar(Outcome.SUCCEEDED.value), int(are_labels.sum()))
        read = (self._key, PART_KEY, PART, PARTS, "llm_outcome", _REASON)
        found = pa.table({name: _only(parts[name], ~are_labels[rows.of_part]) for name in read})
        faults = list(_faults(found.to_pylist(), is_failed[~are_labels[rows.of_part]].tolist(), self._key))
        rejects |= {
            name: pa.array([fault[number] for fault in faults], pa.string())
            for number, name in enumerate(("llm_outcome", _REASON))
        }
        return labels, rejects

    def _present(self, parts: _Columns, rows: _Rows) -> _Ints:
        """Return the number of each row's parts. Raises InputError if a row has parts of two splits."""
        numbers, counts = _ints(parts[PART]), _ints(parts[PARTS])
        is_other = (numbers[1:] == numbers[:-1]) | (counts[1:] != counts[:-1])
        faults = np.flatnonzero((rows.of_part[1:] == rows.of_part[:-1]) & is_other)
        if len(faults):
            raise InputError(
                f"The row {parts[self._key][int(faults[0])].as_py()!r} has parts of two splits. Materialize the labels "
                "and the rejects of the parts again, in one run."
            )
        return rows.count((numbers >= 1) & (numbers <= counts))


class _Rows:
    """The rows of some parts. The parts of a row are neighbors, and each row has one or more.

    Args:
        ends: The place after the last part of each row.

    Attributes:
        starts: The place of the first part of each row.
        of_part: The number of each part's row, from 0.
    """

    def __init__(self, ends: _Ints) -> None:
        sizes = np.diff(ends, prepend=0)
        self.starts = ends - sizes
        self.of_part = np.repeat(np.arange(len(ends)), sizes)

    def count(self, values: np.ndarray[Any, Any]) -> _Ints:
        """Return the sum of each row's values, which are truths or small counts."""
        return np.bincount(self.of_part, values, len(self.starts)).astype(np.int64)

    def lists(self, values: pa.Array, of_value: _Ints) -> pa.ListArray:
        """Return the list of each row's values. `of_value` is the number of each value's row, in order."""
        sizes = np.bincount(of_value, minlength=len(self.starts))
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values)


_Gathering = Callable[[pa.Array, _Rows], pa.Array]
"""Makes the values of rows of those of their parts."""


def _ends(keys: pa.Array) -> _Ints:
    """Return the place after the last of each run of equal keys."""
    if t.is_dictionary(keys.type):
        keys = keys.cast(keys.type.value_type)
    if not len(keys):
        return np.zeros(0, np.int64)
    is_last = np.asarray(pc.not_equal(keys[1:], keys[:-1]), np.bool_)
    return np.append(np.flatnonzero(is_last) + 1, len(keys)).astype(np.int64)


def _only(values: pa.Array, chosen: _Truths) -> pa.Array:
    """Return the chosen values, without a copy if those are all, or none."""
    if chosen.all() or not chosen.any():
        return values[: int(chosen.sum())]
    return values.filter(pa.array(chosen))


def _ints(values: pa.Array) -> _Ints:
    return np.asarray(values.cast(pa.int64()))


def _are(values: pa.Array, value: object) -> _Truths:
    return np.asarray(pc.fill_null(pc.equal(values, value), fill_value=False))


def _as_type(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """Return values with this type. Stored tables may have another type for the same values."""
    try:
        return values.cast(kind)
    # Not all types have a cast.
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return pa.array(values.to_pylist(), kind)


def _provenance() -> list[pa.Field]:
    part = [(PART_KEY, pa.string()), (PART_START, pa.int64()), *((name, _TYPES[name]) for name in PROVENANCE)]
    names = ["llm_outcome", *_TEXTS, *_SUMS, *_TIMES]
    return [*(pa.field(name, _TYPES[name]) for name in names), pa.field("llm_parts", pa.list_(pa.struct(part)))]


def _provenance_of(parts: _Columns, rows: _Rows) -> _Columns:
    """Return the provenance of each row: sums, and each part's own. A sum with an unknown part is unknown."""
    kind = _provenance()[-1].type
    own = {each.name: _as_type(parts[each.name], each.type) for each in kind.value_type}
    known = pc.ScalarAggregateOptions(skip_nulls=False)
    wanted = [*((name, "sum", known) for name in _SUMS), *((name, how, None) for name, how in _TIMES.items())]
    values = pa.table({"row": rows.of_part, **{name: own[name] for name, *_ in wanted}})
    # With threads, the rows come in any order.
    grouped = values.group_by("row", use_threads=False).aggregate(wanted)
    columns = {name: grouped[f"{name}_{how}"].combine_chunks().cast(_TYPES[name]) for name, how, _ in wanted}
    columns |= {name: _texts(own[name], rows) for name in _TEXTS}
    structs = pa.StructArray.from_arrays([*own.values()], fields=[*kind.value_type])
    return {**columns, "llm_parts": rows.lists(structs, rows.of_part).cast(kind)}


def _texts(values: pa.Array, rows: _Rows) -> pa.Array:
    """Return the different texts of each row's parts, joined by commas; null without any."""
    if len(different := values.unique()) == 1 and different[0].as_py():
        # Nearly all parts are of one model and one prompt.
        return pa.repeat(different[0], len(rows.starts))
    places = np.flatnonzero(pc.fill_null(pc.not_equal(values, ""), fill_value=False).to_numpy(zero_copy_only=False))
    places = places[_firsts(values.take(pa.array(places)), rows.of_part[places])]
    lists = rows.lists(values.take(pa.array(places)), rows.of_part[places])
    return pc.if_else(
        pc.greater(pc.list_value_length(lists), 0), pc.binary_join(lists, ", "), pa.scalar(None, pa.string())
    )


def _faults(parts: Sequence[Mapping[str, Any]], are_failed: Sequence[bool], key: str) -> Iterator[tuple[str, str]]:
    """Yield the outcome and the reason of each row without a label."""
    for _, group in groupby(zip(parts, are_failed, strict=True), key=lambda pair: pair[0][key]):
        pairs = list(group)
        own, failed = [part for part, _ in pairs], [part for part, is_failed in pairs if is_failed]
        absent = sorted({*range(1, own[0][PARTS] + 1)} - {part[PART] for part in own})
        outcome = failed[0]["llm_outcome"] if failed else Outcome.MISSING.value
        yield outcome, _reason(failed, absent, len(own) + len(absent))


def _reason(failed: Sequence[Mapping[str, Any]], absent: Sequence[int], parts: int) -> str:
    reasons = [f"{part[PART_KEY]}: {part[_REASON]}" for part in failed]
    reasons += [f"part {number}: not in the labels or rejects of the parts, for example erased" for number in absent]
    more = f"; and {len(reasons) - _SHOWN} more" if len(reasons) > _SHOWN else ""
    return f"{len(reasons)} of {parts} parts have no label. {'; '.join(reasons[:_SHOWN])}{more}"


def _way_of(column: pa.Field, way: str, separator: str) -> _Gathering:
    kind = column.type
    is_text, is_list = t.is_string(kind) or t.is_large_string(kind), t.is_list(kind)
    if way == "concat" and is_list:
        return _joined
    if way == "concat" and is_text and not is_json(column):
        return lambda values, rows: pc.binary_join(_valid(values, rows), pa.scalar(separator, kind))
    if way == "union" and is_list:
        return _united
    if way == "vote" and (is_text or t.is_boolean(kind)):
        return _voted
    takes = {"concat": "lists and texts", "union": "lists", "vote": "texts, and true and false"}[way]
    other = "concat" if is_list else "vote" if is_text or t.is_boolean(kind) else None
    hint = f"Give it another way, as in Gather({way!r}, columns={{{column.name!r}: {other!r}}})"
    raise ConfigError(
        f"The column {column.name!r} of the response is of type {kind}, and {way!r} takes {takes}. "
        f"{'No way takes it: answer in classes' if other is None else hint}, or ask a second dataset about the parts."
    )


def _valid(values: pa.Array, rows: _Rows) -> pa.ListArray:
    """Return the list of each row's values, without null."""
    return rows.lists(values.drop_null(), rows.of_part[values.is_valid().to_numpy(zero_copy_only=False)])


def _sizes(lists: pa.ListArray) -> _Ints:
    return np.asarray(pc.fill_null(pc.list_value_length(lists), 0), np.int64)


def _joined(values: pa.ListArray, rows: _Rows) -> pa.Array:
    return rows.lists(values.flatten(), np.repeat(rows.of_part, _sizes(values)))


def _united(values: pa.ListArray, rows: _Rows) -> pa.Array:
    ones, of_one = values.flatten(), np.repeat(rows.of_part, _sizes(values))
    firsts = _firsts(ones, of_one)
    return rows.lists(ones.take(pa.array(firsts)), of_one[firsts])


def _voted(values: pa.Array, rows: _Rows) -> pa.Array:
    places = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
    _, firsts, votes = np.unique(
        _numbered(values.take(pa.array(places)), rows.of_part[places]), return_index=True, return_counts=True
    )
    firsts = places[firsts]
    # The winner of each row comes first: it has the most votes, and of equals the first place.
    order = np.lexsort((firsts, -votes, rows.of_part[firsts]))
    voting, winners = np.unique(rows.of_part[firsts][order], return_index=True)
    chosen = np.full(len(rows.starts), -1)
    chosen[voting] = firsts[order][winners]
    return values.take(pa.array(chosen, mask=chosen < 0))


def _firsts(values: pa.Array, of_value: _Ints) -> _Ints:
    """Return the places of those values that are the first of their kind in their row."""
    _, firsts = np.unique(_numbered(values, of_value), return_index=True)
    return np.sort(firsts)


def _numbered(values: pa.Array, of_value: _Ints) -> _Ints:
    """Return a number for each value, which is equal for equal values of one row."""
    kind = values.type
    if not (t.is_string(kind) or t.is_large_string(kind) or t.is_boolean(kind) or t.is_integer(kind)):
        # Values of one Arrow type are equal if their texts are; lists and objects have no hash.
        values = pa.array([repr(one) for one in values.to_pylist()], pa.string())
    encoded = values.dictionary_encode(null_encoding="encode")
    numbers: _Ints = of_value * max(len(encoded.dictionary), 1) + np.asarray(encoded.indices)
    return numbers


def _shifted(places: pa.Array, starts: pa.Array) -> pa.Array:
    """Return places in the parts, or lists of them, as places in the text. `starts` has the start of each part."""
    if not t.is_list(places.type):
        return pc.add(places, starts)
    shifted = _shifted(places.flatten(), starts.take(pc.list_parent_indices(places)))
    offsets = np.concatenate([[0], np.cumsum(_sizes(places))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), shifted, mask=places.is_null())
