"""JSON Schemas of responses: whether one is valid, what it refers to, and whether a value fits it.

`jsonschema` loads slowly and only a schema that is given as a dict needs it, so it is imported where it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dagster_llm_batch.errors import ResponseSchemaError

if TYPE_CHECKING:
    from referencing import Registry

__all__ = ["Fit", "check_json_schema", "references", "without_notes"]

_NOTES = frozenset({"title", "description", "examples", "deprecated", "$comment"})
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
# What holds schemas by names that are the user's.
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


def check_json_schema(schema: Mapping[str, Any]) -> None:
    """Raise ResponseSchemaError for what is no JSON Schema of an object, or refers to other schemas."""
    import jsonschema  # noqa: PLC0415 - loads slowly
    from referencing.exceptions import Unresolvable  # noqa: PLC0415 - as above
    from referencing.jsonschema import DRAFT202012  # noqa: PLC0415 - as above

    try:
        jsonschema.Draft202012Validator.check_schema(dict(schema), jsonschema.Draft202012Validator.FORMAT_CHECKER)
    except jsonschema.SchemaError as error:
        # Of a wrong type jsonschema says only that it is "not valid under any of the given schemas".
        is_type = error.validator == "anyOf" and [*error.path][-1:] == ["type"]
        why = f"there is no type {error.instance!r}. The types are {', '.join(_TYPES)}." if is_type else error.message
        msg = f"The response schema is no valid JSON Schema, at {error.json_path}: {why}"
        raise ResponseSchemaError(msg) from error
    if schema.get("type") != "object" or not schema.get("properties"):
        msg = (
            f"The response schema must be of type object with properties, since each becomes a column; got type "
            f"{schema.get('type')!r} with properties {', '.join(map(str, schema.get('properties', ()))) or 'none'}."
        )
        raise ResponseSchemaError(msg)
    if strangers := [name for name in schema.get("required", ()) if name not in schema["properties"]]:
        raise ResponseSchemaError(
            f"The response schema requires {', '.join(map(str, strangers))}, which its properties lack: "
            f"{', '.join(map(str, schema['properties']))}."
        )
    resolver = _no_others().resolver_with_root(DRAFT202012.create_resource(dict(schema)))
    for reference in references(schema):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            msg = f"The response schema's reference {reference!r} cannot be resolved; it must point into the schema."
            raise ResponseSchemaError(msg) from error


def _no_others() -> Registry[Any]:
    """Return an empty registry, so that no schema is fetched from the network."""
    from referencing import Registry  # noqa: PLC0415 - as above

    return Registry()


def references(node: Any) -> Iterator[str]:
    """Yield every `$ref` in a schema, as it is written."""
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for part in node.values():
            yield from references(part)
    elif isinstance(node, list):
        for part in node:
            yield from references(part)


def without_notes(schema: Any) -> Any:
    """Return a schema without what only explains it: two that differ in that alone are fit by the same values."""
    if isinstance(schema, list):
        return [without_notes(part) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    kept = {word: part for word, part in schema.items() if word not in _NOTES}
    for word, part in kept.items():
        if word in _BY_NAME and isinstance(part, Mapping):
            kept[word] = {name: without_notes(named) for name, named in part.items()}
        # Values are no schemas: one may be an object with a title.
        elif word not in ("const", "enum", "default"):
            kept[word] = without_notes(part)
    return kept


class Fit:
    """Find out why a value does not fit a schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        from jsonschema import Draft202012Validator  # noqa: PLC0415 - as above
        from jsonschema.exceptions import best_match  # noqa: PLC0415 - as above

        self._validator = Draft202012Validator(dict(schema), registry=_no_others())
        self._best_match = best_match

    def misfit(self, value: Any) -> str | None:
        """Return the most telling reason why the value does not fit, with its path; None where it fits."""
        error = self._best_match(self._validator.iter_errors(value))
        return None if error is None else f"{error.json_path}: {error.message}"
