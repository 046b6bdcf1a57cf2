"""From a JSON Schema property to an Arrow column. What has no exact Arrow type becomes text that holds JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from dagster_llm_batch.core.identity import canonical_json

__all__ = ["Column", "columns", "columns_of", "field_for", "resolve"]

_AS_JSON = {b"as_json": b"1"}
_MAX_DEPTH = 12
_SCALARS = {
    "string": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "null": pa.null(),
}


class Column(NamedTuple):
    """Values of one column, and why a value is null though one was given."""

    values: pa.Array
    reasons: list[str | None]


def field_for(name: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> pa.Field:
    """The Arrow field of a property. `root` holds the `$defs` that references point to."""
    arrow_type = _type(schema, root, 0)
    if arrow_type is None or pa.types.is_null(arrow_type):
        return pa.field(name, pa.string(), metadata=_AS_JSON)
    return pa.field(name, arrow_type)


def _type(schema: Any, root: Mapping[str, Any], depth: int) -> pa.DataType | None:
    if depth > _MAX_DEPTH or not isinstance(schema, Mapping):  # it refers to itself, or is `true`: anything goes
        return None
    if "$ref" in schema:
        found = resolve(schema["$ref"], root)
        return None if found is None else _type(found, root, depth + 1)
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return _common(_type(option, root, depth + 1) for option in schema[word])
    if "const" in schema:
        return _of_values([schema["const"]])
    if "enum" in schema:
        return _of_values(schema["enum"])
    kind = schema.get("type")
    if isinstance(kind, list):
        return _common(_type({**schema, "type": one}, root, depth + 1) for one in kind)
    if kind == "string" and schema.get("format") == "date":
        return pa.date32()
    if kind == "array" and isinstance(schema.get("items"), Mapping):
        item = _type(schema["items"], root, depth + 1)
        return None if item is None else pa.list_(item)
    if kind == "object" and schema.get("properties"):
        fields = {name: _type(sub, root, depth + 1) for name, sub in schema["properties"].items()}
        return None if None in fields.values() else pa.struct(list(fields.items()))
    return _SCALARS.get(kind) if isinstance(kind, str) else None


def resolve(reference: str, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What a reference into the schema `root` points to; None where there is no such thing."""
    found: Any = root
    for step in reference.removeprefix("#/").split("/"):
        found = found.get(step) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else None


def _of_values(values: Sequence[Any]) -> pa.DataType | None:
    return _common(
        pa.bool_()
        if isinstance(v, bool)
        else _SCALARS.get({str: "string", int: "integer", float: "number", type(None): "null"}.get(type(v), ""))
        for v in values
    )


def _common(types: Any) -> pa.DataType | None:
    distinct = [t for t in dict.fromkeys(types) if t is None or not pa.types.is_null(t)]
    if not distinct:
        return pa.null()
    if set(distinct) == {pa.int64(), pa.float64()}:
        return pa.float64()
    return distinct[0] if len(distinct) == 1 else None


def columns(fields: Sequence[pa.Field], rows: Sequence[Mapping[str, Any] | None]) -> list[Column]:
    """The values of each field in the rows. A row that is None has none."""
    if not any(map(_is_json, fields)):
        try:
            whole = pa.array(rows, pa.struct([(field.name, _as_written(field.type)) for field in fields])).flatten()
            reasons: list[str | None] = [None] * len(rows)
            return [Column(values.cast(field.type), reasons) for field, values in zip(fields, whole, strict=True)]
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            pass  # which value does not fit, and why, is found out below
    names = [field.name for field in fields]
    return columns_of(fields, [[None if row is None else row.get(name) for row in rows] for name in names])


def columns_of(fields: Sequence[pa.Field], values: Iterable[Sequence[Any]]) -> list[Column]:
    """The same where the values of each field are at hand."""
    return [_column(field, some) for field, some in zip(fields, values, strict=True)]


def _is_json(field: pa.Field) -> bool:
    return bool(field.metadata and b"as_json" in field.metadata)


def _column(field: pa.Field, values: Sequence[Any]) -> Column:
    """The values as one Arrow column; one that does not fit its type is null, with the reason."""
    if _is_json(field):
        return Column(
            pa.array([None if v is None else canonical_json(v) for v in values], pa.string()), [None] * len(values)
        )
    try:
        return Column(_array(values, field.type), [None] * len(values))
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return _one_by_one(field, values)


def _array(values: Sequence[Any], arrow_type: pa.DataType) -> pa.Array:
    written = _as_written(arrow_type)
    array = pa.array(values, written)
    return array if written == arrow_type else array.cast(arrow_type)


def _as_written(arrow_type: pa.DataType) -> pa.DataType:
    """The type as JSON has it: dates are text, at any depth."""
    if pa.types.is_date(arrow_type):
        return pa.string()
    if pa.types.is_list(arrow_type):
        return pa.list_(_as_written(arrow_type.value_type))
    if pa.types.is_struct(arrow_type):
        return pa.struct([(field.name, _as_written(field.type)) for field in arrow_type])
    return arrow_type


def _one_by_one(field: pa.Field, values: Sequence[Any]) -> Column:
    kept: list[pa.Array] = []
    reasons: list[str | None] = []
    for value in values:
        try:
            kept.append(_array([value], field.type))
            reasons.append(None)
        except (pa.ArrowException, OverflowError, ValueError, TypeError) as error:
            kept.append(pa.nulls(1, field.type))
            reasons.append(f"{field.name}: does not fit a column of type {field.type}: {str(error)[:200]}")
    return Column(pa.concat_arrays(kept), reasons)
