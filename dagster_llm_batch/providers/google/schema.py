"""The Schema object that Gemini takes, and the check for Vertex AI's import. Pure.

Definitions replace references, values that may be null are `nullable`, and keywords that start with `$` are removed.
Constraints that the Schema object lacks (`pattern`, `uniqueItems`, most formats, …) are left out. Recursion is
rejected.

Vertex AI loads request files like BigQuery, with one inferred type for each JSON key of the whole file. A single
offence fails all rows before the first one runs, hours later. `import_problem` finds it beforehand. For the same reason
a response schema goes out as a Schema object and not as JSON Schema, where a type is a text in one place and a list in
another.

Schema: https://ai.google.dev/api/caching#Schema
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dagster_llm_batch.providers.json_schema import ARRAY, INTEGER, NUMBER, OBJECT, STRING, SchemaRules, lower_schema

__all__ = ["GOOGLE_RULES", "claude_on_vertex_schema", "import_problem"]

# The importer refused these in others' production jobs, each with 0 rows run though the same request works in real
# time: a type that is a text in one place and a list in another, nesting deeper than 15, keys such as `$defs`, names
# with a space, empty objects, nulls.
_MAX_IMPORT_DEPTH = 15
_IMPORT_KEY = re.compile(r"[^\W\d]\w*")
# Of a column that holds nothing but numbers, the importer makes numbers and writes them its own way: "000000" came back
# as "0".
_REWRITTEN_NUMBER = re.compile(r"[+-]?0\d+|[+-]?\d+\.\d*0|[+-]?\d+\.|\+\d+")
_NUMBER = re.compile(r"[+-]?\d+\.?\d*")
_KINDS: dict[type, str] = {
    dict: "struct",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
}

GOOGLE_RULES = SchemaRules(
    vendor="Gemini",
    dialect="Gemini knows",
    keywords={
        "items": ARRAY,
        "minItems": ARRAY,
        "maxItems": ARRAY,
        "minimum": INTEGER | NUMBER,
        "maximum": INTEGER | NUMBER,
        "exclusiveMinimum": INTEGER,
        "exclusiveMaximum": INTEGER,
        "format": STRING,
        "properties": OBJECT,
        "propertyOrdering": OBJECT,
        "required": OBJECT,
    },
    formats=frozenset({"date-time"}),
    inclusive_bounds=True,
    format_hints={
        "date": "a date such as 2026-01-31",
        "time": "a time such as 13:45:00",
        "uuid": "a UUID",
        "email": "an e-mail",
    },
    description_first=("type",),
    expands_references=True,
    upper_types=True,
    nullable=True,
    enum_strings_only=True,
    # the Schema object has no keyword to close an object, so `unevaluatedProperties` next to named properties opens
    # nothing
    open_keywords=("additionalProperties",),
    empty_objects=False,
    beside_any_of=("properties", "items"),
)
_CLAUDE_RULES = replace(GOOGLE_RULES, vendor="Claude on Vertex AI", dialect="Claude on Vertex AI knows")


def claude_on_vertex_schema(json_schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return `json_schema` as the input of a tool. Raises ResponseSchemaError, naming construct and path.

    A request of Claude's passes the same importer as Gemini's, so the same limits on JSON Schema apply: references and
    lists of types are rejected, and each key has one type.
    """
    return _plain(lower_schema(json_schema, _CLAUDE_RULES))


def _plain(lowered: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Schema object written as JSON Schema."""
    node = {name: value for name, value in lowered.items() if name not in ("nullable", "propertyOrdering", "anyOf")}
    if "type" in node:
        node["type"] = node["type"].lower()
    if "properties" in node:
        node["properties"] = {name: _plain(part) for name, part in node["properties"].items()}
        node["additionalProperties"] = False
    if "items" in node:
        node["items"] = _plain(node["items"])
    parts = [_plain(part) for part in lowered.get("anyOf", ())]
    if lowered.get("nullable"):
        return {"anyOf": [*(parts or [node]), {"type": "null"}]}
    return {**node, "anyOf": parts} if parts else node


def import_problem(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Find a fault that would fail the import of a file of such rows, as (fault, path); None without a fault."""
    kinds: dict[str, str] = {}
    strings: dict[str, list[str]] = {}
    for path, problem, value in _walk(row, "", 0):
        if problem:
            return problem, path
        kind = _KINDS.get(type(value), "value")
        if kinds.setdefault(path, kind) != kind:
            return f"values of two types, {kinds[path]} and {kind}", path
        if isinstance(value, str):
            strings.setdefault(path, []).append(value)
    for path, values in strings.items():
        if all(_NUMBER.fullmatch(value) for value in values):
            for value in values:
                if _REWRITTEN_NUMBER.fullmatch(value):
                    return f"the text {value!r}, which would be read as a number and written another way,", path
    return None


def _walk(value: Any, path: str, depth: int) -> Iterator[tuple[str, str, Any]]:
    """Yield every value with its path, in which items of an array share one place, and the value's own fault."""
    if value is None:
        yield path, "a null", value
    elif isinstance(value, Mapping):
        wrong = "an empty object" if not value else ""
        wrong = f"values nested more than {_MAX_IMPORT_DEPTH} deep" if depth > _MAX_IMPORT_DEPTH else wrong
        yield path, wrong, dict(value)
        for name, part in value.items():
            where = f"{path}.{name}" if path else name
            if not _IMPORT_KEY.fullmatch(name):
                yield where, f"the name {name!r}, which is not of letters, digits and underscores,", None
            yield from _walk(part, where, depth + 1)
    elif isinstance(value, list | tuple):
        yield path, "", list(value)
        for part in value:
            yield from _walk(part, f"{path}[]", depth)
    else:
        yield path, "", value
