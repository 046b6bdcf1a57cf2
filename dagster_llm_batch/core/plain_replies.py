"""A quicker reader of replies, for response models that are plain: fields of text, numbers, flags, choices and lists.

Bounds of numbers and of lengths are plain, too; patterns are not, since two libraries read them differently.

It is strict, so it takes less than pydantic does: a reply that it takes has the values that pydantic would give; any
other is pydantic's to read, and to explain. What it does not look at are fields that the model does not have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from pydantic import BaseModel
from pydantic.errors import PydanticUserError

__all__ = ["plain_decoder"]

_LENGTHS = {"min_length": (int,), "max_length": (int,)}
_BOUNDS = ("ge", "gt", "le", "lt")
_SCALARS: Mapping[str, tuple[Any, Mapping[str, tuple[type, ...]]]] = {
    "str": (str, _LENGTHS),
    "int": (int, dict.fromkeys(_BOUNDS, (int,))),
    "float": (float, dict.fromkeys(_BOUNDS, (int, float))),
    "bool": (bool, {}),
}
"""What pydantic calls a type, and the types of its bounds."""


class _NotPlain(Exception):  # noqa: N818  # the answer, not an error
    pass


def plain_decoder(model: type[BaseModel], names: Sequence[str]) -> Callable[[str], msgspec.Struct] | None:
    """Reads a reply as the values of these fields in their order, or raises; None where the model is not plain.

    A field that has a default and is not there is None; no other default counts as plain.
    """
    try:
        found = _fields(model.__pydantic_core_schema__)
        if found.keys() != set(names):  # its JSON Schema was changed by hand
            return None
        fields = [(name, *_field(found[name])) for name in names]
        return msgspec.json.Decoder(msgspec.defstruct("Reply", fields, kw_only=True, gc=False)).decode
    except (_NotPlain, TypeError, ValueError, PydanticUserError):  # of msgspec: bounds that it does not have
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


def _field(field: Mapping[str, Any]) -> tuple[Any, ...]:
    """Its type, and its default if it has one."""
    if field.keys() - {"type", "schema", "metadata"}:  # an alias, for one
        raise _NotPlain
    schema = field["schema"]
    if schema["type"] != "default":
        return (_type(schema),)
    if schema.keys() - {"type", "schema", "default", "metadata"} or schema.get("default", ...) is not None:
        raise _NotPlain
    return _type(schema["schema"]), None


def _type(schema: Mapping[str, Any]) -> Any:
    kind, more = schema["type"], {name: value for name, value in schema.items() if name not in ("type", "metadata")}
    if kind in _SCALARS:
        return _bounded(*_SCALARS[kind], more)
    if kind == "literal":
        return _choice(more.pop("expected"), more)
    if kind == "enum" and more.pop("sub_type", None) == "str":
        del more["cls"], more["ref"]
        return _choice([member.value for member in more.pop("members")], more)
    if kind == "list" and "items_schema" in more:
        return _bounded(list[_type(more.pop("items_schema"))], _LENGTHS, more)  # type: ignore[misc]
    if kind == "nullable" and more.keys() == {"schema"}:
        return _type(more["schema"]) | None
    raise _NotPlain


def _bounded(found: Any, bounds: Mapping[str, tuple[type, ...]], given: Mapping[str, Any]) -> Any:
    if any(type(value) not in bounds.get(name, ()) for name, value in given.items()):
        raise _NotPlain
    return Annotated[found, msgspec.Meta(**given)] if given else found


def _choice(values: Sequence[Any], more: Mapping[str, Any]) -> Any:
    if more or any(type(value) not in (str, int) for value in values):
        raise _NotPlain
    return Literal[tuple(values)]
