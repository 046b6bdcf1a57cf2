"""Responses by JSON Schema: whether it can be one, and whether a value fits it. `jsonschema` loads slowly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jsonschema
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from dagster_llm_batch.errors import ResponseSchemaError

__all__ = ["Fit", "check_json_schema"]

_NO_OTHERS: Registry[Any] = Registry()  # no schema but the user's own, and none from the network


def check_json_schema(schema: Mapping[str, Any]) -> None:
    """Raises ResponseSchemaError for what is no JSON Schema of an object, or refers to others."""
    try:
        jsonschema.Draft202012Validator.check_schema(dict(schema), jsonschema.Draft202012Validator.FORMAT_CHECKER)
    except jsonschema.SchemaError as error:
        msg = f"The response schema is no valid JSON Schema, at {error.json_path}: {error.message}"
        raise ResponseSchemaError(msg) from error
    if schema.get("type") != "object" or not schema.get("properties"):
        msg = (
            f"The response schema must be of type object with properties, since each becomes a column; got type "
            f"{schema.get('type')!r} with properties {list(schema.get('properties', {}))}."
        )
        raise ResponseSchemaError(msg)
    if strangers := [name for name in schema.get("required", ()) if name not in schema["properties"]]:
        raise ResponseSchemaError(
            f"The response schema requires {strangers}, which its properties lack: {list(schema['properties'])}."
        )
    resolver = _NO_OTHERS.resolver_with_root(DRAFT202012.create_resource(dict(schema)))
    for reference in _references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            msg = f"The response schema's reference {reference!r} cannot be resolved; it must point into the schema."
            raise ResponseSchemaError(msg) from error


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for part in node.values():
            yield from _references(part)
    elif isinstance(node, list):
        for part in node:
            yield from _references(part)


class Fit:
    """Says why a value does not fit a schema, or None where it does."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._validator = jsonschema.Draft202012Validator(dict(schema), registry=_NO_OTHERS)

    def misfit(self, value: Any) -> str | None:
        error = jsonschema.exceptions.best_match(self._validator.iter_errors(value))
        return None if error is None else f"{error.json_path}: {error.message}"
