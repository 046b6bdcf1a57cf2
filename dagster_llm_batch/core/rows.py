"""Whatever holds rows, as a stream of Arrow record batches; a source that streams is never held whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from dagster_llm_batch.errors import InputError

__all__ = ["BATCH_ROWS", "record_batches"]

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
        is_empty = True
        for batch in reader:
            is_empty = False
            yield from _sliced(batch)
            del batch  # before the next one is read
        if is_empty:
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
    for item in rows:
        if not isinstance(item, pa.RecordBatch) and not hasattr(item, "__arrow_c_stream__"):
            msg = (
                f"The iterator of rows gave {_kind(item)}. Let each of its items be an Arrow record batch or table, or "
                "another frame that Arrow can read, as those of polars and pandas; rows as dicts come as one list."
            )
            raise InputError(msg)
        yield from record_batches(item)
        del item  # before the next one is read


def _through_narwhals(rows: Any) -> pa.Table:
    import narwhals as nw  # noqa: PLC0415  # most rows do without, and every code location would load it

    try:
        frame = nw.from_native(rows)
    except TypeError as error:
        msg = f"Rows came as {_kind(rows)}. Rows can be {_TAKEN}."
        raise InputError(msg) from error
    return frame.collect("pyarrow").to_native() if isinstance(frame, nw.LazyFrame) else frame.to_arrow()


def _kind(value: Any) -> str:
    """What was given in place of rows."""
    if isinstance(value, list) and value:
        other = next((item for item in value if not isinstance(item, Mapping)), value[0])
        return f"a list with {_kind(other)} in it"
    return "None" if value is None else f"a {type(value).__name__}"
