"""A JSON Schema, lowered to the subset that OpenAI's strict structured outputs take. Pure.

Nothing the caller's own schema forbids is asked for: every object is closed and every property required, in the order
given. Constraints that strict mode cannot express (`minLength`, `uniqueItems`, patterns with lookaround, …) are left
out, since every reply is read with the caller's own schema anyway. A construct that would change the *shape* of the
reply is refused with its path: maps with free keys, tuples, `allOf` of several, `not`, `if`, and the like.

The subset: https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

from dagster_llm_batch.errors import ResponseSchemaError

__all__ = ["strict_schema"]

_MAX_PROPERTIES = 5_000
_MAX_ENUM_VALUES = 1_000
_MAX_DEPTH = 10  # objects within objects
_MAX_NAME_CHARS = 120_000  # property names, definition names, enum and const values together
_LARGE_ENUM_VALUES, _MAX_LARGE_ENUM_CHARS = 250, 15_000

_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"})
_BOUNDS = ("multipleOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minItems", "maxItems")
_REFERENCE = re.compile(r"#/(?:\$defs|definitions)/([^/]+)")
_LOOKAROUND = re.compile(r"\(\?(?:[=!]|<[=!])")

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
_SHAPES = ("properties", "items", "enum", "const")
_ROOT = "$"


def strict_schema(json_schema: Mapping[str, Any]) -> dict[str, Any]:
    """`json_schema` in strict form. Raises ResponseSchemaError, naming construct and path, where there is none."""
    return _Lowering(json_schema).root()


class _Lowering:
    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._source = schema
        self._definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}
        self._defs: dict[str, Any] = {}
        self._properties = 0
        self._enum_values = 0
        self._name_chars = 0

    def root(self) -> dict[str, Any]:
        node = self._flat(self._source, _ROOT)
        for _ in range(_MAX_DEPTH):  # a recursive pydantic model is a bare reference at its root
            if "$ref" not in node or node["$ref"] == "#":
                break
            rest = {key: value for key, value in node.items() if key != "$ref"}
            node = self._flat({**self._target(node["$ref"], _ROOT)[1], **rest}, _ROOT)
        for word in ("anyOf", "oneOf"):
            if word in node:
                _refuse(_ROOT, f"'{word}'", "the root must be one object; put the alternatives into a property of it")
        if node.get("type", "object") != "object" or "properties" not in node:
            got = f"type {node.get('type')!r}" if node.get("type") != "object" else "an object without properties"
            _refuse(_ROOT, got, "the root must be an object with named properties")
        lowered = self._node(node, _ROOT, 0)
        if self._defs:
            lowered["$defs"] = self._defs
        self._check_sizes()
        return lowered

    def _node(self, raw: Any, path: str, depth: int) -> dict[str, Any]:
        node = self._flat(raw, path)
        if "$ref" in node:
            return self._reference(node, path, depth)
        if "anyOf" in node:
            return self._union(node, path, depth)
        types = self._types(node, path)
        lowered: dict[str, Any] = {"type": types[0] if len(types) == 1 else types}
        if "description" in node:
            lowered["description"] = node["description"]
        if "enum" in node or "const" in node:
            return {**lowered, **self._values(node, path)}
        lowered.update({word: node[word] for word in _BOUNDS if word in node})
        if "string" in types:
            lowered.update(_string(node, path))
        if "array" in types:
            if "items" not in node:
                _refuse(path, "an array without 'items'", "say what its items are")
            lowered["items"] = self._node(node["items"], f"{path}.items", depth)
        if "object" in types:
            lowered.update(self._object(node, path, depth + 1))
        return lowered

    def _flat(self, raw: Any, path: str) -> dict[str, Any]:
        """The node with a single `allOf` merged and `oneOf` as `anyOf`; what can never be taken is refused."""
        if isinstance(raw, list):
            _refuse(path, "a tuple", "use an object with named properties")
        if not isinstance(raw, Mapping):
            _refuse(path, f"the schema {raw!r}", "say what the value is")
        node = dict(raw)
        while "allOf" in node:
            parts = node.pop("allOf")
            if not isinstance(parts, list) or len(parts) != 1 or not isinstance(parts[0], Mapping):
                _refuse(path, "'allOf' of several schemas", "write them as one object")
            node = {**parts[0], **node}
        for word, what in _REFUSED.items():
            if word in node:
                _refuse(path, f"'{word}'", f"strict mode knows no such thing as {what}")
        if "oneOf" in node:
            if "anyOf" in node:
                _refuse(path, "'oneOf' beside 'anyOf'", "use one of them")
            node["anyOf"] = node.pop("oneOf")
        return node

    def _union(self, node: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        shapes = [word for word in _SHAPES if word in node]
        if shapes or not isinstance(node["anyOf"], list) or not node["anyOf"]:
            beside = f"'anyOf' beside '{shapes[0]}'" if shapes else "an empty 'anyOf'"
            _refuse(path, beside, "write each alternative as one whole schema")
        shared = {"type": node["type"]} if "type" in node else {}
        lowered: dict[str, Any] = {}
        if "description" in node:
            lowered["description"] = node["description"]
        lowered["anyOf"] = [
            self._node({**shared, **part} if isinstance(part, Mapping) and "$ref" not in part else part, where, depth)
            for part, where in ((part, f"{path}.anyOf[{i}]") for i, part in enumerate(node["anyOf"]))
        ]
        return lowered

    def _reference(self, node: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        if node["$ref"] == "#":
            return {"$ref": "#"}
        name, target = self._target(node["$ref"], path)
        if "description" in node and not self._recursive(name):
            # Strict mode takes nothing beside a reference, and the description of a field steers the LLM: inline it.
            return self._node({**target, "description": node["description"]}, path, depth)
        if name not in self._defs:
            self._defs[name] = None  # holds the place: a recursive schema comes back here
            self._name_chars += len(name)
            self._defs[name] = self._node(target, f"{_ROOT}.$defs.{name}", 0)
        return {"$ref": "#/$defs/" + name.replace("~", "~0").replace("/", "~1")}

    def _target(self, ref: Any, path: str) -> tuple[str, Mapping[str, Any]]:
        match = _REFERENCE.fullmatch(ref) if isinstance(ref, str) else None
        name = unquote(match[1]).replace("~1", "/").replace("~0", "~") if match else ""
        target = self._definitions.get(name)
        if not isinstance(target, Mapping):
            _refuse(path, f"the reference {ref!r}", "references can be '#' or '#/$defs/NAME', and NAME must be defined")
        return name, target

    def _recursive(self, name: str) -> bool:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            for ref in _references(self._definitions.get(waiting.pop())):
                found = "#" if ref == "#" else self._target(ref, _ROOT)[0]
                if found in (name, "#"):
                    return True
                if found not in seen:
                    seen.add(found)
                    waiting.append(found)
        return False

    def _types(self, node: dict[str, Any], path: str) -> list[str]:
        types = node.get("type")
        if types is None:
            values = [node["const"]] if "const" in node else node.get("enum", [])
            types = list(dict.fromkeys(_TYPES.get(type(value), "object") for value in values))
            types = types or (["object"] if "properties" in node else ["array"] if "items" in node else [])
        types = [types] if isinstance(types, str) else list(types)
        if not types:
            _refuse(path, "a value of any type", "give it a 'type'")
        for word in types:
            if word not in {"string", "number", "integer", "boolean", "null", "object", "array"}:
                _refuse(path, f"the type {word!r}", "it is no JSON Schema type")
        return types

    def _values(self, node: dict[str, Any], path: str) -> dict[str, Any]:
        word = "const" if "const" in node else "enum"
        values = [node["const"]] if word == "const" else list(node["enum"])
        for value in values:
            if type(value) not in _TYPES:
                _refuse(path, f"the {word} value {value!r}", "values can be strings, numbers, booleans and null")
        chars = sum(len(value) for value in values if isinstance(value, str))
        if len(values) > _LARGE_ENUM_VALUES and chars > _MAX_LARGE_ENUM_CHARS:
            what = f"an enum of {len(values)} values with {chars} characters"
            _refuse(path, what, f"above {_LARGE_ENUM_VALUES} values, {_MAX_LARGE_ENUM_CHARS} characters are allowed")
        self._name_chars += chars
        self._enum_values += len(values) if word == "enum" else 0
        return {word: node[word]}

    def _object(self, node: dict[str, Any], path: str, depth: int) -> dict[str, Any]:
        extra = node.get("additionalProperties", "properties" not in node)
        if extra is not False or node.get("unevaluatedProperties", False) is not False:
            what = "'additionalProperties'" if "additionalProperties" in node else "an object without 'properties'"
            _refuse(path, f"{what}, a map with free keys", "use a list of objects with a key and a value property")
        if depth > _MAX_DEPTH:
            _refuse(path, f"objects nested {depth} deep", f"{_MAX_DEPTH} levels are allowed")
        properties = node.get("properties", {})
        for name in node.get("required", ()):
            if name not in properties:
                _refuse(path, f"the required property {name!r}", "it is not among the properties")
        self._properties += len(properties)
        self._name_chars += sum(map(len, properties))
        return {
            "properties": {
                name: self._node(sub, f"{path}.properties.{name}", depth) for name, sub in properties.items()
            },
            "required": list(properties),
            "additionalProperties": False,
        }

    def _check_sizes(self) -> None:
        for count, limit, what in (
            (self._properties, _MAX_PROPERTIES, "properties"),
            (self._enum_values, _MAX_ENUM_VALUES, "enum values"),
            (self._name_chars, _MAX_NAME_CHARS, "characters in names and enum values"),
        ):
            if count > limit:
                _refuse(_ROOT, f"a schema of {count} {what}", f"{limit} are allowed")


def _string(node: Mapping[str, Any], path: str) -> dict[str, Any]:
    lowered: dict[str, Any] = {}
    if "format" in node:
        if node["format"] not in _FORMATS:
            allowed = ", ".join(sorted(_FORMATS))
            _refuse(path, f"the string format {node['format']!r}", f"allowed are {allowed}; use a plain string instead")
        lowered["format"] = node["format"]
    if "pattern" in node and not _LOOKAROUND.search(node["pattern"]):
        lowered["pattern"] = node["pattern"]
    return lowered


def _references(node: Any) -> Iterator[Any]:
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


def _refuse(path: str, what: str, instead: str) -> NoReturn:
    raise ResponseSchemaError(f"OpenAI cannot take this response schema: {what} at {path}; {instead}.")
