"""A quicker reader of replies, for response models that are plain: fields of text, numbers, flags, choices and lists.

It is strict, so it takes less than pydantic does: a reply that it takes has the values that pydantic would give; any
other is pydantic's to read, and to explain. What it does not look at are fields that the model does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NotRequired, TypedDict

import msgspec
from pydantic import BaseModel
from pydantic.errors import PydanticUserError

__all__ = ["plain_decoder"]

_SCALARS: Mapping[str, Any] = {"str": str, "int": int, "float": float, "bool": bool}


class _NotPlain(Exception):  # noqa: N818  # the answer, not an error
    pass


def plain_decoder(model: type[BaseModel]) -> Callable[[str], dict[str, Any]] | None:
    """Reads a reply as the values of the model's fields, or raises; None where the model is not plain.

    A field that has a default and is not there is left out; only the default None counts as plain, which it reads as.
    """
    try:
        fields = {name: _field(one) for name, one in _fields(model.__pydantic_core_schema__).items()}
        return msgspec.json.Decoder(TypedDict("Reply", fields)).decode  # type: ignore[operator]
    except (_NotPlain, TypeError, PydanticUserError):
        return None


def _fields(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A validator, serializer, setting or computed field of the model's own may change what comes out."""
    own_ways = schema.get("custom_init") or schema.get("root_model") or "post_init" in schema
    settings = schema.get("config", {}).keys() - {"title"}
    inner = schema.get("schema", {})
    if schema["type"] != "model" or own_ways or settings or "serialization" in schema or "strict" in schema:
        raise _NotPlain
    if inner.get("type") != "model-fields" or inner.keys() - {"type", "fields", "model_name", "computed_fields"}:
        raise _NotPlain
    if inner.get("computed_fields"):
        raise _NotPlain
    fields: Mapping[str, Any] = inner["fields"]
    return fields


def _field(field: Mapping[str, Any]) -> Any:
    if field.keys() - {"type", "schema", "metadata"}:  # an alias, for one
        raise _NotPlain
    schema = field["schema"]
    if schema["type"] != "default":
        return _type(schema)
    if schema.keys() - {"type", "schema", "default", "metadata"} or schema.get("default", ...) is not None:
        raise _NotPlain
    return NotRequired[_type(schema["schema"])]


def _type(schema: Mapping[str, Any]) -> Any:
    match schema["type"], schema.keys() - {"type", "metadata"}:
        case kind, keys if kind in _SCALARS and not keys:
            return _SCALARS[kind]
        case "literal", keys if keys == {"expected"} and all(type(value) is str for value in schema["expected"]):
            return Literal[tuple(schema["expected"])]
        case "list", keys if keys == {"items_schema"}:
            return list[_type(schema["items_schema"])]  # type: ignore[misc]
        case "nullable", keys if keys == {"schema"}:
            return _type(schema["schema"]) | None
    raise _NotPlain
