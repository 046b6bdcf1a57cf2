"""What a reply must look like, and its reading into typed columns. A misfit is a reason, never an exception.

response=Model       a pydantic model      one column a field
response={…}         a JSON Schema object  one column a property
response=None        free text             one column `text`
response=Embedding() a vector              one column `embedding`
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import pyarrow as pa
from msgspec.structs import asdict, astuple
from pydantic import BaseModel, Json, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic.json_schema import JsonSchemaMode

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.columns import Column, columns, columns_of, field_for, resolve
from dagster_llm_batch.core.plain_replies import plain_decoder
from dagster_llm_batch.errors import ConfigError, ResponseSchemaError
from dagster_llm_batch.types import ResponseFormat, ResponseKind

__all__ = ["Embedding", "Reader", "Reading", "response_format", "storable"]

_Parsed = tuple[dict[str, Any] | None, str | None]
_TEXT = pa.field("text", pa.string())
_MAX_REASON = 500
_AT_ONCE = 32  # replies given to pydantic in one call; one that does not fit makes all of them be read one by one


@checked
@dataclass(frozen=True)
class Embedding:
    """Ask for a vector instead of a reply. `dimensions`: its length, where the LLM lets one choose."""

    dimensions: int | None = None

    def __post_init__(self) -> None:
        """Refuses a vector without a length."""
        if self.dimensions is not None and self.dimensions < 1:
            raise ConfigError(f"dimensions={self.dimensions!r} cannot be; it is at least 1, or left out.")


@dataclass(frozen=True)
class Reading:
    """Replies, read. `columns` align with the replies and are null where `reasons` says why one does not fit."""

    columns: pa.Table
    reasons: list[str | None]


def response_format(response: Any) -> ResponseFormat:
    """What a provider is told of the response. Raises ConfigError or ResponseSchemaError for what cannot be one."""
    if response is None or response is str:
        return ResponseFormat(ResponseKind.TEXT)
    if isinstance(response, Embedding):
        return ResponseFormat(ResponseKind.EMBEDDING, dimensions=response.dimensions)
    if isinstance(response, type) and issubclass(response, BaseModel):
        return ResponseFormat(ResponseKind.JSON, response.__name__, _schema_of(response, "validation"))
    if isinstance(response, Mapping):
        from dagster_llm_batch.core.json_schema import check_json_schema  # noqa: PLC0415 - only where it is needed

        check_json_schema(response)
        return ResponseFormat(ResponseKind.JSON, str(response.get("title", "response")), dict(response))
    msg = (
        f"response={response!r} is no response format. It can be a pydantic model class, a JSON Schema as a dict, "
        "Embedding(), or None for free text."
    )
    raise ConfigError(msg)


def _schema_of(model: type[BaseModel], mode: JsonSchemaMode) -> dict[str, Any]:
    try:
        return model.model_json_schema(mode=mode)
    except PydanticUserError as error:  # a field that JSON cannot hold, a name that is not defined
        msg = f"The pydantic model {model.__name__} has no JSON Schema: {error.message}"
        raise ResponseSchemaError(msg) from error


class Reader:
    """Reads replies of one response format. `fields` are the columns it gives, in order."""

    def __init__(self, response: Any) -> None:
        self.format = response_format(response)
        self._model: TypeAdapter[Any] | None = None
        self._replies: TypeAdapter[list[Any]]
        self._models: TypeAdapter[list[Any]]
        self._plain: Callable[[str], msgspec.Struct] | None = None
        self._fit: Any = None
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
                from dagster_llm_batch.core.json_schema import Fit  # noqa: PLC0415 - as above

                self._fit = Fit(schema)
            if "properties" not in schema and "$ref" in schema:  # a model that holds itself
                schema = {**schema, **(resolve(schema["$ref"], schema) or {})}
            self.fields = [field_for(name, sub, schema) for name, sub in schema.get("properties", {}).items()]
            if not self.fields:
                msg = f"The response schema '{self.format.name}' has no fields; each field becomes a column."
                raise ResponseSchemaError(msg)
            if self._model is not None:
                self._plain = plain_decoder(response, [field.name for field in self.fields])

    @property
    def schema(self) -> pa.Schema:
        return pa.schema(self.fields)

    def read(self, texts: Sequence[str | None], embeddings: Sequence[Sequence[float] | None]) -> Reading:
        """Read replies; a null reply reads as nulls without a reason."""
        if self.format.kind is ResponseKind.TEXT:
            return self._read_texts(texts)
        if self.format.kind is ResponseKind.EMBEDDING:
            return self._read_embeddings(embeddings)
        if (found := self._read_plain(texts)) is not None:
            return self._reading(found, [None] * len(texts))
        given = [text for text in texts if text is not None]
        read = chain.from_iterable(self._parse_all(given[at : at + _AT_ONCE]) for at in range(0, len(given), _AT_ONCE))
        parsed: list[_Parsed] = [(None, None) if text is None else next(read) for text in texts]
        rows = [row for row, _ in parsed]
        reasons = [reason for _, reason in parsed]
        return self._reading(columns(self.fields, rows), reasons)

    def _reading(self, found: Sequence[Column], reasons: list[str | None]) -> Reading:
        values = pa.table([one.values for one in found], schema=self.schema)
        return Reading(values, _first(reasons, *(one.reasons for one in found)))

    def _read_plain(self, texts: Sequence[str | None]) -> list[Column] | None:
        """All of them in one go, as mostly; None where one does not fit, or the model is not plain."""
        if self._plain is None or not texts:
            return None
        nothing, decode = (None,) * len(self.fields), self._plain
        try:
            rows = [nothing if text is None else astuple(decode(text)) for text in texts]
        except Exception:  # noqa: BLE001  # which one, and why, is found out by the others
            return None
        return columns_of(self.fields, zip(*rows, strict=True))

    def _read_texts(self, texts: Sequence[str | None]) -> Reading:
        kept = [text if text is None or text == storable(text) else None for text in texts]
        lost = "the reply holds half a surrogate pair, which is no text"
        reasons = [None if text == fit else lost for text, fit in zip(texts, kept, strict=True)]
        return Reading(pa.table([pa.array(kept, pa.string())], schema=self.schema), reasons)

    def _parse_all(self, texts: list[str]) -> list[_Parsed]:
        if self._plain is not None:
            try:
                return [(asdict(row), None) for row in map(self._plain, texts)]
            except Exception:  # noqa: BLE001, S110  # which one, and why, is found out below
                pass
        if self._model is not None and not any(map(_has_no_number, texts)):
            try:
                values = self._replies.validate_python(texts)
                rows = self._models.dump_python(values, mode="json", by_alias=True, warnings=False)
                return [(row, None) for row in rows]
            except Exception:  # noqa: BLE001, S110  # whichever it is, and why, is found out below
                pass
        return [self._parse(text) for text in texts]

    def _parse(self, text: str) -> _Parsed:
        """The values of a reply by field, or why it does not fit."""
        try:
            if self._model is None:
                value = msgspec.json.decode(text)
                misfit = self._fit.misfit(value)
                return (value, None) if misfit is None else (None, _shortened(misfit))
            if _has_no_number(text):
                msgspec.json.decode(text)
            value = self._model.validate_json(text)
            return self._model.dump_python(value, mode="json", by_alias=True, warnings=False), None
        except ValidationError as error:
            return None, _shortened(_pydantic_reason(error))
        except (msgspec.DecodeError, UnicodeEncodeError) as error:
            return None, _shortened(f"not JSON: {error}")
        except Exception as error:  # noqa: BLE001  # depth, and whatever the user's own validators raise
            return None, _shortened(f"it cannot be read: {type(error).__name__}: {error}")

    def _read_embeddings(self, embeddings: Sequence[Sequence[float] | None]) -> Reading:
        wanted = self.format.dimensions
        kept: list[Sequence[float] | None] = []
        reasons: list[str | None] = []
        for vector in embeddings:
            wrong = vector is not None and wanted is not None and len(vector) != wanted
            reasons.append(f"embedding of {len(vector or ())} dimensions, asked for {wanted}" if wrong else None)
            kept.append(None if wrong else vector)
        return Reading(pa.table([pa.array(kept, pa.list_(pa.float32()))], schema=self.schema), reasons)


def _has_no_number(text: str) -> bool:
    """Whether it may hold the bare words that pydantic takes for numbers, and JSON does not have."""
    return "NaN" in text or "Infinity" in text


def storable(text: str) -> str:
    """The text with U+FFFD for half surrogates, which UTF-8 cannot hold."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


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
    text = storable(text)
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 1] + "…"
