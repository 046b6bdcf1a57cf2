"""The parts of JSON Schema that Anthropic's structured outputs refuse.

https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_UNSUPPORTED = {
    "integer": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    "string": ("minLength", "maxLength"),
    "array": ("maxItems", "uniqueItems", "prefixItems", "contains"),
    "object": ("minProperties", "maxProperties", "patternProperties", "propertyNames"),
}
_NOT_PERMITTED = ("oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas")
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid")


def format_problem(output_config: Any) -> str | None:
    """Return why `output_config.format` would be refused; None if it would be accepted, or is missing."""
    form = output_config.get("format") if isinstance(output_config, dict) else None
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema" or not isinstance(form.get("schema"), dict):
        return "output_config.format: Input should be of type 'json_schema' with a schema"
    schema = form["schema"]
    found = next(_problems(schema, schema, ()), None)
    return None if found is None else f"output_config.format.schema: {found}"


def _problems(schema: Any, root: dict[str, Any], within: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(schema, dict):
        yield f"Schema {schema!r} is not supported"
        return
    if "$ref" in schema:
        name = str(schema["$ref"])
        if name in within or name == "#":
            yield "Circular reference detected in schema definitions. Recursive schemas are not supported."
            return
        target = root.get("$defs", {}).get(name.removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~"))
        if target is None:
            yield f"Reference {name} cannot be resolved"
            return
        yield from _problems(target, root, (*within, name))
        return
    yield from _keyword_problems(schema, schema.get("type"))
    parts = [*schema.get("properties", {}).values(), *schema.get("anyOf", ()), *schema.get("allOf", ())]
    parts += [schema["items"]] if "items" in schema else []
    for part in parts:
        yield from _problems(part, root, within)


def _keyword_problems(schema: dict[str, Any], kind: Any) -> Iterator[str]:
    for word in _NOT_PERMITTED:
        if word in schema:
            yield f"Schema keyword '{word}' is not supported"
    for word in _UNSUPPORTED.get(kind, ()) if isinstance(kind, str) else ():
        if word in schema:
            yield f"For '{kind}' type, property '{word}' is not supported"
    if kind == "array" and schema.get("minItems", 0) not in (0, 1):
        yield "For 'array' type, 'minItems' values other than 0 or 1 are not supported"
    if kind == "string" and schema.get("format", "date") not in _FORMATS:
        yield f"For 'string' type, format '{schema['format']}' is not supported"
    if kind == "object" and schema.get("additionalProperties") is not False:
        yield "For 'object' type, 'additionalProperties' must be explicitly set to false"
    if any(isinstance(value, dict | list) for value in schema.get("enum", ())):
        yield "Enum values must be strings, numbers, booleans, or null"
