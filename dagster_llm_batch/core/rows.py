"""Whatever holds rows, as a stream of Arrow record batches; a source that streams is never held whole."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import narwhals as nw
import pyarrow as pa

from dagster_llm_batch.core.seen import Seen
from dagster_llm_batch.errors import InputError

__all__ = ["BATCH_ROWS", "KeyGuard", "record_batches"]

BATCH_ROWS = 4_096
_TAKEN = (
    "a polars, pandas or arrow frame, a DuckDB relation, a Spark frame, a Ray dataset, anything else that narwhals "
    "reads, a list of dicts, or an iterator of Arrow record batches"
)
_HALF = (
    "A text of the rows holds half a surrogate pair, which is no Unicode text. Replace such characters before "
    "labeling, as in text.encode('utf-8', 'replace').decode()."
)


def record_batches(rows: Any) -> Iterator[pa.RecordBatch]:
    """The rows as record batches of at most BATCH_ROWS. A table without rows is one empty batch: it has a schema.

    Raises InputError for what is no table.
    """
    if isinstance(rows, pa.RecordBatch):
        _check_names(rows.schema)
        yield from _sliced(rows)
    elif hasattr(rows, "__arrow_c_stream__"):  # polars, pandas, arrow, DuckDB and others speak the C stream
        try:
            reader = pa.RecordBatchReader.from_stream(rows)
        except UnicodeEncodeError as error:  # pandas encodes its texts here
            raise InputError(_HALF) from error
        _check_names(reader.schema)
        batch = None
        for batch in reader:
            yield from _sliced(batch)
        if batch is None:
            yield from _sliced(pa.RecordBatch.from_pylist([], schema=reader.schema))
    elif isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows):
        if rows:
            yield from record_batches(_from_dicts(rows))
    elif isinstance(rows, Iterator):
        yield from _from_iterator(rows)
    elif hasattr(rows, "iter_batches") and hasattr(rows, "map_batches"):  # a Ray dataset
        yield from _from_iterator(iter(rows.iter_batches(batch_size=BATCH_ROWS, batch_format="pyarrow")))
    else:
        yield from record_batches(_through_narwhals(rows))


def _check_names(schema: pa.Schema) -> None:
    twice = [name for name, count in Counter(schema.names).items() if count > 1]
    if twice:
        msg = f"The rows have more than one column named '{twice[0]}'. Rename or drop all but one."
        raise InputError(msg)


def _sliced(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    batch = pa.RecordBatch.from_arrays([_plain(column) for column in batch.columns], names=batch.schema.names)
    for start in range(0, max(batch.num_rows, 1), BATCH_ROWS):
        yield batch.slice(start, BATCH_ROWS)


def _plain(column: pa.Array) -> pa.Array:
    """Views and categories, which polars hands over, as the types that all of Arrow's functions know."""
    if pa.types.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(column.indices, _plain(column.dictionary)).dictionary_decode()
    wanted = _without_views(column.type)
    return column if wanted == column.type else column.cast(wanted)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """The same type, with plain texts and bytes in it, however deep."""
    t = pa.types
    if t.is_string_view(kind):
        return pa.string()
    if t.is_binary_view(kind):
        return pa.binary()
    if t.is_large_list(kind):
        return pa.large_list(_field_without_views(kind.value_field))
    if t.is_list(kind):
        return pa.list_(_field_without_views(kind.value_field))
    if t.is_struct(kind):
        return pa.struct([_field_without_views(kind.field(at)) for at in range(kind.num_fields)])
    return kind


def _field_without_views(field: pa.Field) -> pa.Field:
    return field.with_type(_without_views(field.type))


def _from_dicts(rows: list[Mapping[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)  # Arrow looks at the first row alone
    try:
        return pa.table({name: pa.array([row.get(name) for row in rows]) for name in names})
    except (pa.ArrowException, OverflowError) as error:
        msg = f"The list of rows cannot become a table, since a column has values of several types: {error}"
        raise InputError(msg) from error
    except UnicodeEncodeError as error:
        raise InputError(_HALF) from error


def _from_iterator(rows: Iterator[Any]) -> Iterator[pa.RecordBatch]:
    first = next(rows, None)
    if first is None:
        return
    for item in chain([first], rows):
        if not isinstance(item, pa.RecordBatch) and not hasattr(item, "__arrow_c_stream__"):
            msg = f"The iterator of rows gave a {type(item).__name__}. Rows can be {_TAKEN}."
            raise InputError(msg)
        yield from record_batches(item)


def _through_narwhals(rows: Any) -> pa.Table:
    try:
        frame = nw.from_native(rows)
    except TypeError as error:
        msg = f"Rows came as a {type(rows).__name__}. Rows can be {_TAKEN}."
        raise InputError(msg) from error
    return frame.collect("pyarrow").to_native() if isinstance(frame, nw.LazyFrame) else frame.to_arrow()


class KeyGuard:
    """Refuses rows without an identity: a missing key column, null keys, duplicate keys."""

    _SHOWN = 5

    def __init__(self, key: str) -> None:
        self._key = key
        self._seen = Seen(_digests)

    def check(self, batch: pa.RecordBatch) -> list[Any]:
        """The keys of this batch, or InputError."""
        names = batch.schema.names
        if self._key not in names:
            msg = f"The rows have no key column '{self._key}'. Set key= to one of their columns: {', '.join(names)}."
            raise InputError(msg)
        column = batch.column(self._key)
        if not _is_key_type(column.type):
            msg = f"The key column '{self._key}' is of type {column.type}. A key is text, an integer, a date or a time."
            raise InputError(msg)
        keys: list[Any] = column.to_pylist()
        if nulls := keys.count(None):
            msg = (
                f"The key column '{self._key}' is null in {nulls} of {len(keys)} rows of a batch, first at "
                f"its position {keys.index(None)}. Every row needs its own key: fill or filter them before labeling."
            )
            raise InputError(msg)
        new = self._seen.new(keys)
        if not all(new):
            again = list(dict.fromkeys(key for key, is_new in zip(keys, new, strict=True) if not is_new))
            shown = ", ".join(repr(key) for key in again[: self._SHOWN])
            more = " and more" if len(again) > self._SHOWN else ""
            msg = (
                f"The key column '{self._key}' has duplicate values: {shown}{more}. "
                "A key names one row: choose another column, or drop the duplicates before labeling."
            )
            raise InputError(msg)
        return keys


def _digests(keys: Sequence[object]) -> bytes:
    other = [f"{key}|" for key in keys]  # a key is a text, a number or a time
    return array("q", chain.from_iterable(zip(map(hash, keys), map(hash, other), strict=True))).tobytes()


def _is_key_type(arrow_type: pa.DataType) -> bool:
    t = pa.types
    value_type = arrow_type.value_type if t.is_dictionary(arrow_type) else arrow_type
    return any(
        is_(value_type)
        for is_ in (
            t.is_string,
            t.is_large_string,
            t.is_string_view,
            t.is_integer,
            t.is_temporal,
            t.is_null,
            t.is_decimal,
        )
    )
