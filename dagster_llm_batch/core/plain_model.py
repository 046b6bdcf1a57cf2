"""Plain pydantic models: those whose replies msgspec reads in a fraction of the time, and exactly as pydantic does.

Plain models have fields of text, numbers, choices, objects and lists of these, with bounds; fields may be null or left
out. If a model does anything else, such as a validator by the user, pydantic reads the replies. A decoder may refuse a
reply that pydantic takes, such as "1" for 1, but never takes one that pydantic refuses.
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
"""By pydantic's name of a type: the Python type, and the types of its bounds."""

_MODEL = {"type", "cls", "schema", "custom_init", "root_model", "config", "ref", "metadata", "frozen", "generic_origin"}
_DEFAULTS = (str, int, float, bool, type(None))


class _NotPlain(Exception):  # noqa: N818 - an answer, not an error
    """The model does more than msgspec can do in the same way."""


def plain_decoder(model: type[BaseModel], names: Sequence[str]) -> Callable[[str], msgspec.Struct] | None:
    """Return a decoder that reads a reply exactly as the pydantic model does; None if the model is not plain.

    The decoder raises for a reply that does not fit. `names` are the fields in the order of the reply's.
    """
    try:
        return msgspec.json.Decoder(_Model(model.__pydantic_core_schema__).struct(names)).decode
    # msgspec raises TypeError and ValueError for bounds and unions that it does not have.
    except (_NotPlain, KeyError, TypeError, ValueError, PydanticUserError):
        return None


class _Model:
    """One model, by pydantic's description of it. Each method raises _NotPlain for features that only pydantic has."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._named: dict[str, Mapping[str, Any]] = {}
        # By reference; None while it is made: a model that contains itself has no end.
        self._structs: dict[str, type[msgspec.Struct] | None] = {}
        if schema["type"] == "definitions":
            self._named = {each["ref"]: each for each in schema["definitions"]}
            schema = schema["schema"]
        self._schema = self._resolved(schema)

    def struct(self, names: Sequence[str]) -> type[msgspec.Struct]:
        """Return the model's own type, with its fields in this order."""
        return self._struct(self._schema, names)

    def _resolved(self, schema: Mapping[str, Any]) -> Mapping[str, Any]:
        if schema["type"] != "definition-ref":
            return schema
        if schema.keys() - {"type", "schema_ref", "metadata"}:
            raise _NotPlain
        return self._named[schema["schema_ref"]]

    def _struct(self, schema: Mapping[str, Any], names: Sequence[str] | None = None) -> type[msgspec.Struct]:
        fields = _fields(schema)
        # Its JSON Schema may have been changed by hand.
        if names is not None and fields.keys() != set(names):
            raise _NotPlain
        ref = schema["ref"]
        if ref not in self._structs:
            self._structs[ref] = None
            found = [(name, *self._field(fields[name])) for name in names or fields]
            extras = schema.get("config", {}).get("extra_fields_behavior", "ignore")
            if extras == "allow":
                raise _NotPlain
            forbids = extras == "forbid"
            self._structs[ref] = msgspec.defstruct(
                "Reply", found, kw_only=True, gc=False, forbid_unknown_fields=forbids
            )
        if (made := self._structs[ref]) is None:
            raise _NotPlain
        return made

    def _field(self, field: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return the type of a field, and its default if it has one."""
        # Anything else, such as an alias, changes how the field is read.
        if field.keys() - {"type", "schema", "metadata", "frozen"}:
            raise _NotPlain
        schema = field["schema"]
        if schema["type"] != "default":
            return (self._type(schema),)
        given = schema.keys() - {"type", "schema", "metadata", "default_factory_takes_data"}
        if given == {"default_factory"} and schema["default_factory"] is list:
            return self._type(schema["schema"]), []
        default = schema.get("default")
        is_plain = type(default) in _DEFAULTS or (type(default) is list and not default)
        if given != {"default"} or not is_plain:
            raise _NotPlain
        inner = schema["schema"]
        for name, number in (("int", int), ("float", float)):
            # Pydantic writes the 1 of `score: float = 1` as 1.0, and a truth value as a number.
            if isinstance(default, int) and name in (inner["type"], inner.get("schema", {}).get("type")):
                default = number(default)
        return self._type(inner), default

    def _type(self, schema: Mapping[str, Any]) -> Any:
        schema = self._resolved(schema)
        kind, more = schema["type"], {name: value for name, value in schema.items() if name not in ("type", "metadata")}
        if kind in _SCALARS:
            return _bounded(*_SCALARS[kind], more)
        if kind == "model":
            return self._struct(schema)
        if (choices := _choices(schema)) is not None:
            return Literal[tuple(choices)]
        if kind == "list" and "items_schema" in more:
            return _bounded(list[self._type(more.pop("items_schema"))], _LENGTHS, more)  # type: ignore[misc]
        if kind == "nullable" and more.keys() == {"schema"}:
            return self._type(more["schema"]) | None
        raise _NotPlain


def _fields(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the fields of a plain model. Raises _NotPlain."""
    # A validator, serializer, setting or computed field of the model's own may change the values.
    own_ways = schema.get("custom_init") or schema.get("root_model") or schema.keys() - _MODEL
    settings = schema.get("config", {}).keys() - {"title", "extra_fields_behavior", "frozen"}
    inner = schema.get("schema", {})
    if schema["type"] != "model" or own_ways or settings:
        raise _NotPlain
    if inner.get("type") != "model-fields" or inner.keys() - {"type", "fields", "model_name", "computed_fields"}:
        raise _NotPlain
    if inner.get("computed_fields"):
        raise _NotPlain
    fields: Mapping[str, Any] = inner["fields"]
    return fields


def _bounded(plain_type: Any, bounds: Mapping[str, tuple[type, ...]], given: Mapping[str, Any]) -> Any:
    if any(type(value) not in bounds.get(name, ()) for name, value in given.items()):
        raise _NotPlain
    return Annotated[plain_type, msgspec.Meta(**given)] if given else plain_type


def _choices(schema: Mapping[str, Any]) -> list[Any] | None:
    """Return the values of a choice, or of a union of choices; None if the schema is not a choice."""
    kind, more = schema["type"], {name: value for name, value in schema.items() if name not in ("type", "metadata")}
    if kind == "union" and more.keys() == {"choices"}:
        parts = [None if isinstance(choice, tuple) else _choices(choice) for choice in more["choices"]]
        return None if None in parts else [value for part in parts for value in part or ()]
    if kind == "literal":
        values = more.pop("expected")
    elif kind == "enum" and more.pop("sub_type", None) == "str":
        del more["cls"], more["ref"]
        values = [member.value for member in more.pop("members")]
    else:
        return None
    if more or any(type(value) not in (str, int, type(None)) for value in values):
        raise _NotPlain
    return list(values)
