"""A JSON Schema, lowered to the Schema object that Gemini takes, and the lint of what Vertex AI can import. Pure.

References are put in place of their name, optional values become `nullable`, unions `anyOf`, and every keyword that
starts with `$` is gone. Constraints that the Schema object lacks (`pattern`, `uniqueItems`, most formats, …) are left
out, since every reply is read with the caller's own schema anyway. What would change the *shape* of a reply is refused
with its path: recursion, maps with free keys, tuples, `allOf` of several, `not`, `if`, and the like.

Vertex AI loads request files as BigQuery does, with one inferred type for each JSON key of the whole file; a single
offence fails all rows before any is run, hours later. `import_problem` finds it beforehand.

Schema: https://ai.google.dev/api/caching#Schema
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

from dagster_llm_batch.errors import ResponseSchemaError

__all__ = ["google_schema", "import_problem"]

_ROOT = "$"
_MAX_IMPORT_DEPTH = 15
_IMPORT_KEY = re.compile(r"[^\W\d]\w*")
_REFERENCE = re.compile(r"#/(?:\$defs|definitions)/([^/]+)")
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
_JSON_TYPES = frozenset({"string", "number", "integer", "boolean", "object", "array"})
_HINTS = {
    "date": "a date such as 2026-01-31",
    "time": "a time such as 13:45:00",
    "uuid": "a UUID",
    "email": "an e-mail",
}

_REFUSED = {
    "patternProperties": "a map with free keys",
    "propertyNames": "a map with free keys",
    "prefixItems": "a tuple",
    "additionalItems": "a tuple",
    "contains": "an array with a special item",
    "not": "a negation",
    "if": "a condition",
    "then": "a condition",
    "else": "a condition",
    "dependentRequired": "a dependency between properties",
    "dependentSchemas": "a dependency between properties",
    "dependencies": "a dependency between properties",
    "$dynamicRef": "a dynamic reference",
}


def google_schema(json_schema: Mapping[str, Any]) -> dict[str, Any]:
    """`json_schema` as Google's Schema object. Raises ResponseSchemaError, naming construct and path."""
    lowered = _Lowering(json_schema).node(json_schema, _ROOT, ())
    if lowered.get("type") != "OBJECT" or lowered.get("nullable"):
        got = "a value that may be null" if lowered.get("nullable") else f"{lowered.get('type', 'a union')}"
        _refuse(_ROOT, f"{got} as the root", "the root must be one object with named properties")
    return lowered


class _Lowering:
    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}

    def node(self, raw: Any, path: str, inside: tuple[str, ...]) -> dict[str, Any]:
        """One schema; `inside` names the definitions that this place is in."""
        node, inside = self._flat(raw, path, inside)
        types = self._types(node, path)
        nullable = "null" in types
        types = [word for word in types if word != "null"]
        if "anyOf" in node:
            return self._union(node, path, inside, nullable=nullable)
        if len(types) != 1:
            if not types:
                _refuse(path, "a value that is always null" if nullable else "a value of any type", "give it a 'type'")
            parts = [{**node, "type": word} for word in types]
            return self._union({"anyOf": parts}, path, inside, nullable=nullable)
        lowered: dict[str, Any] = {"type": types[0].upper()}
        if nullable:
            lowered["nullable"] = True
        if isinstance(node.get("description"), str) and node["description"]:
            lowered["description"] = node["description"]
        if "enum" in node or "const" in node:
            return {**lowered, **_values(node, path)}
        if types[0] == "object":
            lowered.update(self._object(node, path, inside))
        elif types[0] == "array":
            if "items" not in node:
                _refuse(path, "an array without 'items'", "say what its items are")
            lowered["items"] = self.node(node["items"], f"{path}.items", inside)
            lowered.update({word: node[word] for word in ("minItems", "maxItems") if word in node})
        elif types[0] in ("integer", "number"):
            lowered.update(_bounds(node, whole=types[0] == "integer"))
        elif types[0] == "string":
            lowered.update(_format(node))
        return lowered

    def _flat(self, raw: Any, path: str, inside: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """The node with its reference and a single `allOf` put in place, and `oneOf` as `anyOf`."""
        if not isinstance(raw, Mapping):
            _refuse(path, "a tuple" if isinstance(raw, list) else f"the schema {raw!r}", "say what the value is")
        node = dict(raw)
        while "$ref" in node or "allOf" in node:
            if "$ref" in node:
                name, target = self._target(node.pop("$ref"), path)
                if name in inside:
                    _refuse(path, f"the recursive reference to {name!r}", "write out as many levels as you need")
                inside = (*inside, name)
                node = {**target, **node}
                continue
            parts = node.pop("allOf")
            if not isinstance(parts, list) or len(parts) != 1 or not isinstance(parts[0], Mapping):
                _refuse(path, "'allOf' of several schemas", "write them as one object")
            node = {**parts[0], **node}
        for word, what in _REFUSED.items():
            if word in node:
                _refuse(path, f"'{word}'", f"Gemini knows no such thing as {what}")
        if "oneOf" in node:
            if "anyOf" in node:
                _refuse(path, "'oneOf' beside 'anyOf'", "use one of them")
            node["anyOf"] = node.pop("oneOf")
        return node, inside

    def _target(self, ref: Any, path: str) -> tuple[str, Mapping[str, Any]]:
        match = _REFERENCE.fullmatch(ref) if isinstance(ref, str) else None
        if ref == "#":
            _refuse(path, "the recursive reference '#'", "write out as many levels as you need")
        name = unquote(match[1]).replace("~1", "/").replace("~0", "~") if match else ""
        target = self._definitions.get(name)
        if not isinstance(target, Mapping):
            _refuse(path, f"the reference {ref!r}", "references can be '#/$defs/NAME', and NAME must be defined")
        return name, target

    def _types(self, node: Mapping[str, Any], path: str) -> list[str]:
        given = node.get("type")
        if given is None:
            values = [node["const"]] if "const" in node else node.get("enum") or []
            names = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
            guessed = ["object"] if "properties" in node else ["array"] if "items" in node else []
            return list(dict.fromkeys(names.get(type(value), "object") for value in values)) or guessed
        types = [given] if isinstance(given, str) else list(given)
        for word in types:
            if word not in _JSON_TYPES and word != "null":
                _refuse(path, f"the type {word!r}", "it is no JSON Schema type")
        return types

    def _union(self, node: dict[str, Any], path: str, inside: tuple[str, ...], *, nullable: bool) -> dict[str, Any]:
        parts = node["anyOf"]
        if not isinstance(parts, list) or not parts or "properties" in node or "items" in node:
            _refuse(path, "an empty 'anyOf' or one beside other schemas", "write each alternative as one whole schema")
        some = [part for part in parts if part not in ({"type": "null"}, {"const": None})]
        nullable = nullable or len(some) < len(parts)
        described = {"description": node["description"]} if isinstance(node.get("description"), str) else {}
        if len(some) == 1:
            lowered = {**self.node(some[0], path, inside), **described}
        elif not some:
            _refuse(path, "a value that is always null", "leave it out")
        else:
            at = [f"{path}.anyOf[{i}]" for i in range(len(some))]
            alternatives = [self.node(part, where, inside) for part, where in zip(some, at, strict=True)]
            lowered = {"anyOf": alternatives, **described}
        return {**lowered, "nullable": True} if nullable else lowered

    def _object(self, node: Mapping[str, Any], path: str, inside: tuple[str, ...]) -> dict[str, Any]:
        properties = node.get("properties") or {}
        extra = node.get("additionalProperties", False)
        if not properties or extra is not False:
            what = "an object without 'properties'" if not properties else "'additionalProperties'"
            _refuse(path, f"{what}, a map with free keys", "use a list of objects with a key and a value property")
        for name in node.get("required", ()):
            if name not in properties:
                _refuse(path, f"the required property {name!r}", "it is not among the properties")
        lowered: dict[str, Any] = {
            "properties": {
                name: self.node(part, f"{path}.properties.{name}", inside) for name, part in properties.items()
            },
            "propertyOrdering": list(properties),
        }
        if node.get("required"):
            lowered["required"] = list(node["required"])
        return lowered


def _values(node: Mapping[str, Any], path: str) -> dict[str, Any]:
    values = [node["const"]] if "const" in node else list(node["enum"])
    some = [value for value in values if value is not None]
    nullable = {"nullable": True} if len(some) < len(values) else {}
    if some and all(isinstance(value, str) for value in some):
        return {"enum": some, **nullable}
    if some and all(isinstance(value, bool) for value in some):
        return nullable  # the Schema object can only say "boolean"; the reader knows which
    if some and all(type(value) is int for value in some):
        low, high = min(some), max(some)
        if len(set(some)) == high - low + 1:
            return {"minimum": low, "maximum": high, **nullable}
    return _refuse(path, f"the values {values!r}", "values can be strings, booleans, or whole numbers without a gap")


def _bounds(node: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    found = {word: node[word] for word in ("minimum", "maximum") if word in node}
    for word, bound, step in (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1)):
        if isinstance(node.get(word), int) and whole:
            found[bound] = node[word] + step
    return found


def _format(node: Mapping[str, Any]) -> dict[str, Any]:
    form = node.get("format")
    if form == "date-time":
        return {"format": form}
    if form in _HINTS:  # not in the Schema object, so the LLM is told in words
        return {"description": "; ".join(word for word in (node.get("description"), _HINTS[form]) if word)}
    return {}


def import_problem(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """What would fail the import of a file of rows like this one, as (what, path); None where nothing would."""
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
    """Every value with its path, in which items of an array share one place, and what is wrong with it by itself."""
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


def _refuse(path: str, what: str, instead: str) -> NoReturn:
    raise ResponseSchemaError(f"Gemini cannot take this response schema: {what} at {path}; {instead}.")
