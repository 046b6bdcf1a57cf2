"""Rows, from whatever holds them, as a stream of Arrow record batches. A source that streams is never held whole.

A column without a stable text is refused by name. A value that reads differently in another process, such as an
object's address, would be sent to the model, and asked and paid for again at every run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.errors import InputError

__all__ = ["BATCH_ROWS", "are_empty", "check_stored_text", "check_text", "record_batches", "values_of"]

BATCH_ROWS = 4_096

# Arrow takes several times as much to decode a batch, and keeps much of it. By the first rows of a file it is known how
# long rows are that are stored as numbers of a dictionary.
_BATCH_BYTES = 1 << 21
_FIRST_ROWS = 16
_TAKEN = (
    "a polars, pandas or arrow frame, a DuckDB relation, a Spark frame, a Ray dataset, anything else that narwhals "
    "reads, a list of dicts, a pyarrow.parquet.ParquetFile, or an iterator of Arrow record batches"
)
_HALF = (
    "A text of the rows holds half a surrogate pair, which is no Unicode text. Replace such characters before "
    "labeling, as in text.encode('utf-8', 'replace').decode()."
)


_ONE_TYPE = "Give all its values one type that Arrow has: text, as by str(value), a number, a date or a time"
_SETS = "holds sets, whose order is another one in every process. Turn them into sorted lists"
_CANNOT_BE_READ = (pa.ArrowException, OverflowError, TypeError, ValueError)


def record_batches(rows: Any, read: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the rows as record batches of at most BATCH_ROWS. A table without rows is one empty batch: it has a schema.

    Args:
        rows: A frame, relation, data set, list of dicts or iterator.
        read: The columns that are read, None for all. Others are left out if they cannot be read, such as a polars
            column of Python objects.

    Raises InputError if the rows are not a table, and for a column of `read` whose values have no stable form.
    """
    if isinstance(rows, pa.RecordBatch):
        _check_names(rows.schema)
        yield from _sliced(rows)
    # polars, pandas, arrow, DuckDB and others have the Arrow C stream.
    elif hasattr(rows, "__arrow_c_stream__"):
        reader = _reader(rows, read)
        is_empty = True
        for batch in reader:
            is_empty = False
            yield from _sliced(batch)
            # Or it would be in memory while the next one is read.
            del batch
        if is_empty:
            yield from _sliced(pa.RecordBatch.from_pylist([], schema=reader.schema))
    elif isinstance(rows, list) and all(isinstance(row, Mapping) for row in rows):
        if rows:
            yield from record_batches(_from_dicts(rows, read))
    elif isinstance(rows, Iterator):
        yield from _from_iterator(rows, read)
    elif hasattr(rows, "iter_batches") and hasattr(rows, "schema_arrow"):  # a file of Parquet
        yield from _from_parquet(rows, read)
    elif hasattr(rows, "iter_batches") and hasattr(rows, "map_batches"):  # a Ray dataset
        yield from _from_iterator(iter(rows.iter_batches(batch_size=BATCH_ROWS, batch_format="pyarrow")), read)
    else:
        yield from record_batches(_through_narwhals(rows), read)


def check_text(name: str, kind: pa.DataType) -> None:
    """Raise InputError if values of this type have no text that is the same in every process."""
    if reason := _without_text(kind):
        msg = f"The column '{name}' is of type {kind}, {reason} before labeling, or leave the column out of the prompt."
        raise InputError(msg)


def check_stored_text(name: str, column: pa.Array) -> None:
    """Raise InputError for text that is not UTF-8."""
    # Arrow stores such text without a complaint, and it is only when the paid labels are read that it fails.
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        msg = (
            f"The column '{name}' cannot be stored with the labels: {error}. Mend its values, or leave it out of keep."
        )
        raise InputError(msg) from error


def are_empty(batch: pa.RecordBatch, images: Collection[str] = ()) -> pa.BooleanArray | None:
    """Return for each row whether all its values are null or blank; None if all rows have values.

    An image is a value or null.
    """
    empty: Any = None
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        here = column.is_null() if name in images else _is_blank(column)
        empty = here if empty is None else pc.and_(empty, here)
        # Usually the first column decides.
        if not pc.any(empty, min_count=0).as_py():
            return None
    return empty


def _is_blank(column: pa.Array) -> pa.BooleanArray:
    kind = column.type
    if pa.types.is_floating(kind):
        return column.is_null(nan_is_null=True)
    blank = column.is_null()
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            text = pc.utf8_trim_whitespace(column)
        # Text that is not UTF-8 raises an error later, when it is read.
        except pa.ArrowInvalid:
            return blank
        return pc.or_(blank, pc.fill_null(pc.equal(pc.binary_length(text), 0), fill_value=False))
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return pc.or_(blank, pc.fill_null(pc.equal(pc.binary_length(column), 0), fill_value=False))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pc.or_(blank, pc.fill_null(pc.equal(pc.list_value_length(column), 0), fill_value=False))
    return blank


def values_of(batch: pa.RecordBatch) -> dict[str, list[Any]]:
    """Return the values of each column as Python's own, NaN as None.

    Raises InputError for a value that Python cannot hold.
    """
    return {name: _python_values(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}


def _python_values(name: str, column: pa.Array) -> list[Any]:
    # polars and arrow tell "not a number" from null, pandas does not. To a prompt both are nothing, not the text "nan".
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    try:
        values: list[Any] = column.to_pylist()
    # The error holds the text, which may be personal data.
    except UnicodeDecodeError:
        raise InputError(_not_held(name, column.type, "a text is not UTF-8")) from None
    # For a date after the year 9999.
    except (OverflowError, ValueError) as error:
        raise InputError(_not_held(name, column.type, error)) from error
    return values


def _not_held(name: str, kind: pa.DataType, reason: object) -> str:
    return (
        f"The column '{name}' is of type {kind}, and Python cannot hold one of its values as it is: {reason}. Turn the "
        "column into text before labeling, or leave the column out of the prompt."
    )


@lru_cache(maxsize=1_024)
def _without_text(kind: pa.DataType) -> str | None:
    """Return why values of this type, or within it, have no stable text, and the remedy; None if they have."""
    t = pa.types
    if t.is_union(kind):
        return "which may hold values of several types. Cast it to one type, such as text,"
    if t.is_interval(kind):
        return "a length of time that depends on the calendar. Cast it to a duration, to numbers or to text"
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, (pa.UuidType, pa.JsonType, pa.Bool8Type)):
        return "which only its own library can read. Cast it to text, numbers or dates"
    if t.is_timestamp(kind) and kind.tz is not None:
        try:
            pa.scalar(0, kind).as_py()
        except Exception:  # noqa: BLE001 - by the library of time zones that Arrow finds
            return f"whose time zone {kind.tz!r} is not known here. Convert it to UTC"
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return _without_text(kind.value_type)
    inner = (_without_text(kind.field(at).type) for at in range(kind.num_fields))  # of a struct, list or map
    return next((reason for reason in inner if reason), None)


def _reader(rows: Any, read: Collection[str] | None) -> pa.RecordBatchReader:
    """Return the rows' own stream, without columns that are not in `read` and cannot be in a stream."""
    # A frame of narwhals.
    if hasattr(rows, "to_native"):
        rows = rows.to_native()
    library = type(rows).__module__.partition(".")[0]
    lost = {}
    # polars would hand over the addresses of objects in memory, as bytes.
    if library == "polars":
        reason = "is of polars' type Object, which has no text of its own. Cast it to text, as by map_elements(str)"
        lost = {name: reason for name, kind in rows.schema.items() if str(kind) == "Object"}
    if lost:
        rows = _without(rows, lost, read)
    try:
        reader = pa.RecordBatchReader.from_stream(rows)
    # pandas encodes its texts here.
    except UnicodeEncodeError:
        raise InputError(_HALF) from None
    except _CANNOT_BE_READ as error:
        if library not in ("pandas", "polars") or len(set(rows.columns)) < len(rows.columns):
            raise InputError(f"The rows cannot become an Arrow table: {error}") from error
        if not (lost := _unreadable(rows)):
            raise
        try:
            rows = _without(rows, lost, read)
        except InputError as refused:
            # Arrow's error has one of the values.
            raise refused from None
        reader = pa.RecordBatchReader.from_stream(rows)
    _check_names(reader.schema)
    if library == "pandas" and (lost := _with_sets(rows, reader.schema)):
        reader = pa.RecordBatchReader.from_stream(_without(rows, lost, read))
    return reader


def _unreadable(frame: Any) -> dict[str, str]:
    """Return the columns of a pandas or polars frame that Arrow cannot take, each with the reason."""
    lost = {}
    for name in frame.columns:
        try:
            pa.RecordBatchReader.from_stream(frame[[name]])
        except _CANNOT_BE_READ:
            lost[name] = f"is of type {frame[name].dtype}, and holds {_types_of(frame[name])}. {_ONE_TYPE}"
    return lost


def _types_of(values: Any) -> str:
    """Return the types of the values, and no value: Arrow's own message has one, which may be personal data."""
    return ", ".join(sorted({type(value).__name__ for value in values if value is not None}))


def _with_sets(frame: Any, schema: pa.Schema) -> dict[str, str]:
    """Return the columns of a pandas frame whose values hold sets, which Arrow takes for lists."""
    nested = [field.name for field in schema if pa.types.is_nested(field.type) and field.name in frame.columns]
    return {name: _SETS for name in nested if str(frame[name].dtype) == "object" and _has_set(frame[name])}


def _has_set(values: Any) -> bool:
    """Return whether there is a set among the values, or within one of them."""
    for value in values:
        if isinstance(value, (set, frozenset)):
            return True
        if isinstance(value, Mapping):
            if _has_set(value.values()):
                return True
        elif isinstance(value, (list, tuple)) and _has_set(value):
            return True
    return False


def _without(frame: Any, lost: Mapping[str, str], read: Collection[str] | None) -> Any:
    """Return the frame without these columns. Raises InputError if one of them is read."""
    _refuse(lost, read)
    return frame[[name for name in frame.columns if name not in lost]]


def _refuse(lost: Mapping[str, str], read: Collection[str] | None) -> None:
    for name, reason in lost.items():
        if read is None or name in read:
            raise InputError(f"The column '{name}' {reason} before labeling, or leave the column out.")


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
    """Return views, categories and runs as plain types, which all of Arrow's functions, and Parquet, take."""
    if pa.types.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(column.indices, _plain(column.dictionary)).dictionary_decode()
    if pa.types.is_run_end_encoded(column.type):
        return _plain(pc.run_end_decode(column))
    wanted = _without_views(column.type)
    return column if wanted == column.type else column.cast(wanted)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """Return the type with plain texts and bytes in the place of views, at any depth."""
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


def _from_dicts(rows: list[Mapping[str, Any]], read: Collection[str] | None) -> pa.Table:
    columns, lost = {}, {}
    # Arrow would take the names from the first row alone.
    for name in dict.fromkeys(name for row in rows for name in row):
        if not isinstance(name, str):
            raise InputError(f"A row has the key {name!r}, a {type(name).__name__}. Names of columns are text.")
        values = [row.get(name) for row in rows]
        try:
            # So that NaN, NaT and NA become nulls, like in a frame.
            columns[name] = pa.array(values, from_pandas=True)
        except UnicodeEncodeError:
            raise InputError(_HALF) from None
        except _CANNOT_BE_READ:
            lost[name] = f"cannot be read: it holds {_types_of(values)}. {_ONE_TYPE}"
            continue
        if pa.types.is_nested(columns[name].type) and _has_set(values):
            lost[name] = _SETS
    _refuse(lost, read)
    return pa.table({name: values for name, values in columns.items() if name not in lost})


def _from_iterator(rows: Iterator[Any], read: Collection[str] | None) -> Iterator[pa.RecordBatch]:
    for item in rows:
        if not isinstance(item, pa.RecordBatch) and not hasattr(item, "__arrow_c_stream__"):
            msg = (
                f"The iterator of rows gave {_kind(item)}. Let each of its items be an Arrow record batch or table, or "
                "another frame that Arrow can read, as those of polars and pandas; rows as dicts come as one list."
            )
            raise InputError(msg)
        yield from record_batches(item, read)
        # Or it would be in memory while the next one is read.
        del item


def _from_parquet(file: Any, read: Collection[str] | None) -> Iterator[pa.RecordBatch]:
    """Yield the rows of an open Parquet file, fewer at once for long rows. Read only the needed columns."""
    _check_names(schema := file.schema_arrow)
    # If one is missing, the message names all existing columns.
    if read is None or not set(read).issubset(schema.names):
        read = schema.names
    options = {"columns": [name for name in schema.names if name in read], "use_threads": False}
    rows = _BATCH_BYTES // max(_stored_row_bytes(file.metadata, read), _first_row_bytes(file, options))
    # By powers of two, that a file with some more rows is read in the same batches.
    at_once = min(1 << max(rows.bit_length() - 1, 0), BATCH_ROWS)
    is_empty = True
    for batch in file.iter_batches(at_once, **options):
        is_empty = False
        yield from _sliced(batch)
        # Or it would be in memory while the next one is read.
        del batch
    if is_empty:
        yield from _sliced(pa.RecordBatch.from_pylist([], schema=schema))


def _stored_row_bytes(metadata: Any, names: Collection[str]) -> int:
    """Return the approximate bytes of a row in these columns, before compression, in the group with the longest
    rows.
    """
    longest = 1
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        own = (column for column in columns if column.path_in_schema.partition(".")[0] in names)
        longest = max(longest, sum(column.total_uncompressed_size for column in own) // max(group.num_rows, 1))
    return longest


def _first_row_bytes(file: Any, options: Mapping[str, Any]) -> int:
    """Return the approximate bytes of one of the first rows in memory."""
    first = next(file.iter_batches(_FIRST_ROWS, **options), None)
    return 1 if first is None else max(int(first.nbytes) // max(len(first), 1), 1)


def _through_narwhals(rows: Any) -> Any:
    import narwhals as nw  # noqa: PLC0415  # most rows do without, and every code location would load it

    try:
        frame = nw.from_native(rows)
    except TypeError as error:
        msg = f"Rows came as {_kind(rows)}. Rows can be {_TAKEN}."
        raise InputError(msg) from error
    own = (frame.collect() if isinstance(frame, nw.LazyFrame) else frame).to_native()
    return own if hasattr(own, "__arrow_c_stream__") else frame.to_arrow()


def _kind(value: Any) -> str:
    """Return a description of the object given in place of rows."""
    if isinstance(value, list) and value:
        other = next((item for item in value if not isinstance(item, Mapping)), value[0])
        return f"a list with {_kind(other)} in it"
    return "None" if value is None else f"a {type(value).__name__}"
