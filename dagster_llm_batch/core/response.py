"""The response: the required form of a reply, and its typed columns. A misfit gives a reason, not an exception.

response=Model       a pydantic model      one column a field
response={…}         a JSON Schema object  one column a property
response=None        free text             one column `text`
response=Embedding() a vector              one column `embedding`
response=Moderation() a moderation         `flagged`, and two columns a category

A property of a JSON Schema becomes an Arrow column. One without an exact Arrow type becomes text that holds JSON.

Most replies fit, so many are read at once by the fastest way: msgspec for plain models, pydantic with several replies a
call otherwise. Only if one of these does not fit, each is read separately, to get the reason.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from string import ascii_letters
from typing import Annotated, Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import astuple
from pydantic import BaseModel, Json, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import JsonSchemaMode

from dagster_llm_batch.core.fixed_responses import Embedding, Moderation, moderation_decoder
from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.json_schema import Fit, check_json_schema
from dagster_llm_batch.core.json_values import as_json
from dagster_llm_batch.core.plain_model import plain_decoder
from dagster_llm_batch.errors import ConfigError, ResponseSchemaError
from dagster_llm_batch.text import replace_halves
from dagster_llm_batch.types import ResponseFormat, ResponseKind

__all__ = [
    "Column",
    "ParsedReplies",
    "Reader",
    "Response",
    "StoredResponse",
    "columns",
    "columns_of",
    "field_for",
    "is_json",
    "reply_text",
    "resolve",
    "response_format",
]

Response = Annotated[Any, "response"]
"""Allowed values of `response`: a pydantic model class, a JSON Schema as a dict, an Embedding, a Moderation, or None
for free text. Types cannot express that; the annotation distinguishes the argument from others that take anything.
"""

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
    """The values of one column, and the reason for each value that is null though one was given."""

    values: pa.Array
    reasons: list[str | None]


def field_for(name: str, schema: Mapping[str, Any], root: Mapping[str, Any]) -> pa.Field:
    """Return the Arrow field of a property. `root` holds the `$defs` that references point to."""
    arrow_type = _type(schema, root, 0)
    if arrow_type is None or pa.types.is_null(arrow_type):
        return pa.field(name, pa.string(), metadata=_AS_JSON)
    return pa.field(name, arrow_type)


def _type(schema: Any, root: Mapping[str, Any], depth: int) -> pa.DataType | None:
    # A schema that refers to itself has no end, and `true` is a schema that anything fits.
    if depth > _MAX_DEPTH or not isinstance(schema, Mapping):
        return None
    if "$ref" in schema:
        target = resolve(schema["$ref"], root)
        return None if target is None else _type(target, root, depth + 1)
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return _common(_type(option, root, depth + 1) for option in schema[word])
    if "const" in schema:
        return _of_values([schema["const"]])
    if "enum" in schema:
        return _of_values(schema["enum"])
    kind = schema.get("type")
    if isinstance(kind, list):
        return _common(_type({**schema, "type": option}, root, depth + 1) for option in kind)
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
    """Return the schema that a reference into `root` points to; None if it does not exist."""
    target: Any = root
    for step in reference.removeprefix("#/").split("/"):
        target = target.get(step) if isinstance(target, Mapping) else None
    return target if isinstance(target, Mapping) else None


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
    """Return the values of each field in the rows. A row that is None has nulls."""
    if not any(map(is_json, fields)):
        try:
            whole = pa.array(rows, pa.struct([(field.name, _as_written(field.type)) for field in fields])).flatten()
            reasons: list[str | None] = [None] * len(rows)
            return [Column(values.cast(field.type), reasons) for field, values in zip(fields, whole, strict=True)]
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            # The code below finds the value that does not fit, and the reason, column by column.
            pass
    names = [field.name for field in fields]
    return columns_of(fields, [[None if row is None else row.get(name) for row in rows] for name in names])


def columns_of(fields: Sequence[pa.Field], values: Iterable[Sequence[Any]]) -> list[Column]:
    """Return the columns of fields whose values are given column by column. See `columns`."""
    return [_column(field, column) for field, column in zip(fields, values, strict=True)]


def is_json(field: pa.Field) -> bool:
    """Return whether the column holds its values as JSON text, having no Arrow type."""
    return bool(field.metadata and b"as_json" in field.metadata)


def reply_text(values: Mapping[str, Any], response: pa.Schema, change: Callable[[Any], Any] | None = None) -> str:
    """Return the labeled columns of a row as the JSON of a reply; with `change`, each value changed by it."""
    decoded = {
        field.name: json.loads(value)
        if is_json(field) and (value := values[field.name]) is not None
        else values[field.name]
        for field in response
    }
    if change is not None:
        decoded = {name: change(value) for name, value in decoded.items()}
    return json.dumps(as_json(decoded), ensure_ascii=False, separators=(",", ":"))


def _may_hold_objects(field: pa.Field) -> bool:
    kind = field.type
    while pa.types.is_list(kind):
        kind = kind.value_type
    return pa.types.is_struct(kind) or is_json(field)


def _column(field: pa.Field, values: Sequence[Any]) -> Column:
    """Return the values as an Arrow column; one that does not fit the type is null, with the reason."""
    if is_json(field):
        texts = [None if value is None else canonical_json(value) for value in values]
        # As a word within a text it is data, so the value is looked at.
        reasons = [
            _TOO_LARGE.format(field.name) if text and _has_no_number(text) and _is_not_finite(value) else None
            for text, value in zip(texts, values, strict=True)
        ]
        kept = [None if reason else text for text, reason in zip(texts, reasons, strict=True)]
        return Column(pa.array(kept, pa.string()), reasons)
    try:
        return Column(_array(values, field.type), [None] * len(values))
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return _one_by_one(field, values)


def _array(values: Sequence[Any], arrow_type: pa.DataType) -> pa.Array:
    written = _as_written(arrow_type)
    array = pa.array(values, written)
    return array if written == arrow_type else array.cast(arrow_type)


def _as_written(arrow_type: pa.DataType) -> pa.DataType:
    """Return the type of the values in JSON, where dates are text, at any depth."""
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


def _finite(field: pa.Field, column: Column) -> Column:
    """Return the column with nulls for infinity: a reply's 1e999 becomes infinity in a float, which JSON does not
    have.
    """
    if _all_finite(column.values):
        return column
    values = column.values.to_pylist()
    reasons = [
        reason or (_TOO_LARGE.format(field.name) if _is_not_finite(value) else None)
        for value, reason in zip(values, column.reasons, strict=True)
    ]
    kept = pc.if_else(pa.array([reason is None for reason in reasons]), column.values, pa.scalar(None, field.type))
    return Column(kept, reasons)


def _all_finite(values: pa.Array) -> bool:
    if pa.types.is_floating(values.type):
        return bool(pc.all(pc.is_finite(values), min_count=0).as_py())
    if pa.types.is_list(values.type):
        return _all_finite(values.flatten())
    if pa.types.is_struct(values.type):
        return all(map(_all_finite, values.flatten()))
    return True


def _is_not_finite(value: Any) -> bool:
    """Return whether a value holds, at any depth, a float that is infinite or NaN."""
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_is_not_finite, value.values()))
    return isinstance(value, list | tuple) and any(map(_is_not_finite, value))


_TOO_LARGE = "{}: the number is too large, or NaN: a column holds numbers up to 1.8e308"
_Parsed = tuple[dict[str, Any] | None, str | None]
_TEXT = pa.field("text", pa.string())
_MAX_REASON = 500
_FENCE = "```"
# Replies given to pydantic in one call. One that does not fit makes all of them be read again, one by one.
_AT_ONCE = 32


@dataclass(frozen=True)
class StoredResponse:
    """A response as it was when requests were sent. Its class may have changed, or be gone, since then.

    Replies are read like replies of a JSON Schema; a missing field gets the schema's default.

    Attributes:
        format: The format given to the provider.
        columns: The JSON Schema of the values that the class made of replies; None if the replies have these values.
    """

    format: ResponseFormat
    columns: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ParsedReplies:
    """Replies as columns. `columns` align with the replies, and are null where `reasons` has the reason of a misfit.

    `fenced` has the places of those that were read out of Markdown fences.
    """

    columns: pa.Table
    reasons: list[str | None]
    fenced: Sequence[int] = ()


def response_format(response: Any) -> ResponseFormat:
    """Return the response as providers take it. Raises ConfigError or ResponseSchemaError if it cannot be one."""
    if response is None or response is str:
        return ResponseFormat(ResponseKind.TEXT)
    if isinstance(response, StoredResponse):
        return response.format
    if isinstance(response, Embedding):
        return ResponseFormat(ResponseKind.EMBEDDING, dimensions=response.dimensions)
    if isinstance(response, Moderation):
        return response.format
    if isinstance(response, type) and issubclass(response, BaseModel):
        return ResponseFormat(ResponseKind.JSON, response.__name__, _schema_of(response, "validation"))
    if isinstance(response, Mapping):
        check_json_schema(response)
        return ResponseFormat(ResponseKind.JSON, str(response.get("title", "response")), dict(response))
    msg = (
        f"response={response!r} is no response format. It can be a pydantic model class, a JSON Schema as a dict, "
        "Embedding(), Moderation(), or None for free text."
    )
    raise ConfigError(msg)


def _schema_of(model: type[BaseModel], mode: JsonSchemaMode) -> dict[str, Any]:
    try:
        return model.model_json_schema(mode=mode)
    # A field that JSON cannot hold, or a name that is not defined.
    except PydanticUserError as error:
        msg = f"The pydantic model {model.__name__} has no JSON Schema: {error.message}"
        raise ResponseSchemaError(msg) from error


class Reader:
    """Parse replies of one response. `fields` are the columns of its results, in order."""

    def __init__(self, response: Any) -> None:
        self.format = response_format(response)
        self._model: TypeAdapter[Any] | None = None
        self._replies: TypeAdapter[list[Any]]
        self._models: TypeAdapter[list[Any]]
        self._plain: Callable[[str], msgspec.Struct] | None = None
        self._fit: Any = None
        # For a stored response: values that its class gave to fields missing from a reply.
        self._defaults: Mapping[str, Any] | None = None
        self.columns_schema: Mapping[str, Any] | None = None
        """The JSON Schema of the columns' values, if it differs from the replies' schema."""
        if self.format.kind is ResponseKind.TEXT:
            self.fields = [_TEXT]
        elif self.format.kind is ResponseKind.EMBEDDING:
            self.fields = [pa.field("embedding", pa.list_(pa.float32()))]
        else:
            schema = dict(self.format.json_schema or {})
            if isinstance(response, type) and issubclass(response, BaseModel):
                self._model, self._models = TypeAdapter(response), TypeAdapter(list[response])
                self._replies = TypeAdapter(list[Json[response]])
                schema = _schema_of(response, "serialization")
            else:
                self._fit = Fit(schema)
            if isinstance(response, StoredResponse):
                properties = schema.get("properties", {})
                self._defaults = {name: sub["default"] for name, sub in properties.items() if "default" in sub}
                schema = dict(response.columns or schema)
            if schema != self.format.json_schema:
                self.columns_schema = schema
            # A model that contains itself is a reference into its own definitions.
            if "properties" not in schema and "$ref" in schema:
                schema = {**schema, **(resolve(schema["$ref"], schema) or {})}
            self.fields = [field_for(name, sub, schema) for name, sub in schema.get("properties", {}).items()]
            if not self.fields:
                msg = f"The response schema '{self.format.name}' has no fields; each field becomes a column."
                raise ResponseSchemaError(msg)
            if self._model is not None:
                self._plain = plain_decoder(response, self.schema.names)
            elif self.format.kind is ResponseKind.MODERATION:
                self._plain = moderation_decoder(self.schema.names)

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(self.fields)

    def read(
        self,
        texts: Sequence[str | None],
        embeddings: Sequence[Sequence[float] | None],
        *,
        may_be_fenced: bool = False,
    ) -> ParsedReplies:
        """Parse replies: texts or, for Embedding, vectors. A null reply gives nulls without a reason.

        With `may_be_fenced`, a JSON reply that is entirely in Markdown fences is read without them. A server that does
        not enforce the format sends many of these, and asking again would cost again.
        """
        if self.format.kind is ResponseKind.TEXT:
            return self._read_texts(texts)
        if self.format.kind is ResponseKind.EMBEDDING:
            return self._read_embeddings(embeddings)
        if may_be_fenced:
            # Most replies are objects.
            bare = [None if text is None or text.startswith("{") else _without_fences(text) for text in texts]
            if any(bare):
                read = self._read_json([inner or text for text, inner in zip(texts, bare, strict=True)])
                fenced = [at for at, inner in enumerate(bare) if inner is not None and read.reasons[at] is None]
                return replace(read, fenced=fenced)
        return self._read_json(texts)

    def _read_json(self, texts: Sequence[str | None]) -> ParsedReplies:
        if self._plain is not None and texts:
            return self._parsed(*self._read_plain(self._plain, texts))
        given = [text for text in texts if text is not None]
        read = chain.from_iterable(self._parse_all(given[at : at + _AT_ONCE]) for at in range(0, len(given), _AT_ONCE))
        parsed: list[_Parsed] = [(None, None) if text is None else next(read) for text in texts]
        rows = [row for row, _ in parsed]
        reasons = [reason for _, reason in parsed]
        return self._parsed(columns(self.fields, rows), reasons)

    def _parsed(self, columns: Sequence[Column], reasons: list[str | None]) -> ParsedReplies:
        columns = list(map(_finite, self.fields, columns))
        values = pa.table([column.values for column in columns], schema=self.schema)
        return ParsedReplies(values, _first(reasons, *(column.reasons for column in columns)))

    def _read_plain(
        self, decode: Callable[[str], msgspec.Struct], texts: Sequence[str | None]
    ) -> tuple[list[Column], list[str | None]]:
        """Return the columns of replies to a plain model, and for each why it does not fit."""
        nothing = (None,) * len(self.fields)
        reasons: list[str | None] = [None] * len(texts)
        rows: list[tuple[Any, ...]] = []
        for at, text in enumerate(texts):
            if text is None:
                rows.append(nothing)
                continue
            try:
                rows.append(astuple(decode(text)))
            except Exception:  # noqa: BLE001 - pydantic may take it all the same, and says why where it does not
                row, reasons[at] = self._parse(text)
                rows.append(nothing if row is None else tuple(row.get(field.name) for field in self.fields))
        by_field = zip(self.fields, zip(*rows, strict=True), strict=True)
        # Arrow makes objects of dicts.
        values = (msgspec.to_builtins(column) if _may_hold_objects(field) else column for field, column in by_field)
        return columns_of(self.fields, values), reasons

    def _read_texts(self, texts: Sequence[str | None]) -> ParsedReplies:
        kept = [text if text is None or text == replace_halves(text) else None for text in texts]
        lost = "the reply holds half a surrogate pair, which is no text"
        reasons = [None if text == fit else lost for text, fit in zip(texts, kept, strict=True)]
        return ParsedReplies(pa.table([pa.array(kept, pa.string())], schema=self.schema), reasons)

    def _parse_all(self, texts: list[str]) -> list[_Parsed]:
        if self._model is not None and not any(map(_has_no_number, texts)):
            try:
                values = self._replies.validate_python(texts)
                rows = self._models.dump_python(values, mode="json", by_alias=True, warnings=False)
                return [(row, None) for row in rows]
            except Exception:  # noqa: BLE001, S110 - which one does not fit, and why, is found out below
                pass
        return [self._parse(text) for text in texts]

    def _parse(self, text: str) -> _Parsed:
        """Return the values of a reply by field, or the reason why it does not fit."""
        try:
            if self._model is None:
                value = msgspec.json.decode(text)
                misfit = self._fit.misfit(value)
                return (self._as_by_class(value), None) if misfit is None else (None, _shortened(misfit))
            # pydantic takes NaN and Infinity for numbers; msgspec raises for them, since JSON does not have them.
            if _has_no_number(text):
                msgspec.json.decode(text)
            value = self._model.validate_json(text)
            return self._model.dump_python(value, mode="json", by_alias=True, warnings=False), None
        except ValidationError as error:
            return None, _shortened(_pydantic_reason(error))
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            return None, _shortened(f"not JSON: {error}")
        except Exception as error:  # noqa: BLE001 - depth, and whatever the user's own validators raise
            return None, _shortened(f"it cannot be read: {type(error).__name__}: {error}")

    def _as_by_class(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return a reply to a stored response, as close as possible to the values of its class."""
        if self._defaults is None:
            return value
        value = {**self._defaults, **value}
        for field in self.fields:
            # A decimal number may come as a JSON number, and is text in its column.
            if type(given := value.get(field.name)) in (int, float) and field.type == pa.string():
                value[field.name] = given if is_json(field) else str(given)
        return value

    def _read_embeddings(self, embeddings: Sequence[Sequence[float] | None]) -> ParsedReplies:
        wanted = self.format.dimensions
        kept: list[Sequence[float] | None] = []
        reasons: list[str | None] = []
        for vector in embeddings:
            is_misfit = vector is not None and wanted is not None and len(vector) != wanted
            reasons.append(f"embedding of {len(vector or ())} dimensions, asked for {wanted}" if is_misfit else None)
            kept.append(None if is_misfit else vector)
        return self._parsed([Column(pa.array(kept, pa.list_(pa.float32())), reasons)], [None] * len(reasons))


def _without_fences(text: str) -> str | None:
    """Return the text inside Markdown fences that enclose the whole text; else None."""
    inner = text.strip() if text[:1].isspace() or text[-1:].isspace() else text
    if not (inner.startswith(_FENCE) and inner.endswith(_FENCE) and len(inner) > 2 * len(_FENCE)):
        return None
    # The name of a language may stand behind the first fence; no JSON that a schema asks for starts with a letter.
    return inner[len(_FENCE) : -len(_FENCE)].lstrip(ascii_letters).strip() or None


def _has_no_number(text: str) -> bool:
    """Return whether the text may hold NaN or Infinity, which are no JSON."""
    return "NaN" in text or "Infinity" in text


def _first(*columns: list[str | None]) -> list[str | None]:
    if not any(map(any, columns)):
        return columns[0]
    return [next((reason for reason in row if reason is not None), None) for row in zip(*columns, strict=True)]


def _pydantic_reason(error: ValidationError) -> str:
    parts = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        where = ".".join(str(step) for step in item["loc"])
        parts.append(f"{where}: {item['msg']}" if where else item["msg"])
    return "; ".join(parts)


def _shortened(text: str) -> str:
    text = replace_halves(text)
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 1] + "…"
