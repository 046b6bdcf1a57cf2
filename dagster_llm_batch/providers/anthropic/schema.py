"""A JSON Schema, lowered to the subset that Anthropic's structured outputs take. Pure.

Objects are closed; a property is required where the caller's schema says so. What the subset cannot express
(`minimum`, `maxLength`, `pattern`, …) is told to the LLM in the description, as the vendor's SDK does, and checked when
the reply is read. A construct that would change the *shape* of the reply is refused with its path: maps with free keys,
tuples, recursion, `allOf` of several, `not`, `if`, and the like.

The subset: https://platform.claude.com/docs/en/build-with-claude/structured-outputs#json-schema-limitations
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import unquote

from dagster_llm_batch.errors import ResponseSchemaError

__all__ = ["claude_schema"]

_FORMATS = frozenset({"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"})
_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
_PRIMITIVES = (str, int, float, bool, type(None))
_REFERENCE = re.compile(r"#/(?:\$defs|definitions)/([^/]+)")
_MIN_ITEMS = frozenset({0, 1})

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
_TOLD = (
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern",
    "format", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties",
)  # fmt: skip
_ROOT = "$"


def claude_schema(json_schema: Mapping[str, Any]) -> dict[str, Any]:
    """`json_schema` in the form Anthropic takes. Raises ResponseSchemaError, naming construct and path, if none is."""
    return _Lowering(json_schema).root()


class _Lowering:
    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._source = schema
        self._definitions = {**schema.get("definitions", {}), **schema.get("$defs", {})}
        self._defs: dict[str, Any] = {}
        self._open: list[str] = []  # definitions that are being lowered: coming back to one is recursion

    def root(self) -> dict[str, Any]:
        node = self._flat(self._source, _ROOT)
        seen: list[str] = []
        while "$ref" in node:
            name, target = self._target(node.pop("$ref"), _ROOT)
            if name in seen:
                _refuse(_ROOT, f"the recursive definition {name!r}", "say how deep it can go, one level each")
            seen.append(name)
            node = self._flat({**target, **node}, _ROOT)
        for word in ("anyOf", "oneOf"):
            if word in node:
                _refuse(_ROOT, f"'{word}'", "the root must be one object; put the alternatives into a property of it")
        if node.get("type", "object") != "object" or not node.get("properties"):
            got = f"type {node.get('type')!r}" if node.get("type") != "object" else "an object without properties"
            _refuse(_ROOT, got, "the root must be an object with named properties")
        self._open.extend(seen)
        lowered = self._node(node, _ROOT)
        if self._defs:
            lowered["$defs"] = self._defs
        return lowered

    def _node(self, raw: Any, path: str) -> dict[str, Any]:
        node = self._flat(raw, path)
        if "$ref" in node:
            return self._reference(node, path)
        if "anyOf" in node:
            return self._union(node, path)
        if "enum" in node or "const" in node:
            return _described(self._values(node, path), node, ())
        types = self._types(node, path)
        if len(types) > 1:
            parts = [{**node, "type": word} for word in types]
            return {"anyOf": [self._typed(part, part["type"], f"{path}.anyOf[{i}]") for i, part in enumerate(parts)]}
        return self._typed(node, types[0], path)

    def _typed(self, node: Mapping[str, Any], kind: str, path: str) -> dict[str, Any]:
        lowered: dict[str, Any] = {"type": kind}
        kept: list[str] = []
        if kind == "string" and node.get("format") in _FORMATS:
            lowered["format"] = node["format"]
            kept.append("format")
        elif kind == "array":
            if "items" not in node:
                _refuse(path, "an array without 'items'", "say what its items are")
            lowered["items"] = self._node(node["items"], f"{path}.items")
            if node.get("minItems") in _MIN_ITEMS:
                lowered["minItems"] = node["minItems"]
                kept.append("minItems")
        elif kind == "object":
            lowered.update(self._object(node, path))
        return _described(lowered, {} if kind == "null" else node, kept)

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
                _refuse(path, f"'{word}'", f"structured outputs know no such thing as {what}")
        if "oneOf" in node:
            if "anyOf" in node:
                _refuse(path, "'oneOf' beside 'anyOf'", "use one of them")
            node["anyOf"] = node.pop("oneOf")
        return node

    def _union(self, node: dict[str, Any], path: str) -> dict[str, Any]:
        beside = [word for word in ("properties", "items", "enum", "const") if word in node]
        if beside or not isinstance(node["anyOf"], list) or not node["anyOf"]:
            what = f"'anyOf' beside '{beside[0]}'" if beside else "an empty 'anyOf'"
            _refuse(path, what, "write each alternative as one whole schema")
        shared = {"type": node["type"]} if "type" in node else {}
        parts = [
            {**shared, **part} if isinstance(part, Mapping) and "$ref" not in part else part for part in node["anyOf"]
        ]
        union = {"anyOf": [self._node(part, f"{path}.anyOf[{i}]") for i, part in enumerate(parts)]}
        return _described(union, node, ())

    def _reference(self, node: dict[str, Any], path: str) -> dict[str, Any]:
        name, target = self._target(node["$ref"], path)
        if name in self._open:
            _refuse(path, f"the recursive definition {name!r}", "say how deep it can go, one level each")
        self._open.append(name)
        try:
            if "description" in node:  # nothing may stand beside a reference, and the description steers: inline it
                return self._node({**target, "description": node["description"]}, path)
            if name not in self._defs:
                self._defs[name] = self._node(target, f"{_ROOT}.$defs.{name}")
        finally:
            self._open.remove(name)
        return {"$ref": "#/$defs/" + name.replace("~", "~0").replace("/", "~1")}

    def _target(self, ref: Any, path: str) -> tuple[str, Mapping[str, Any]]:
        if ref == "#":
            _refuse(path, "the recursive reference '#'", "say how deep it can go, one level each")
        match = _REFERENCE.fullmatch(ref) if isinstance(ref, str) else None
        name = unquote(match[1]).replace("~1", "/").replace("~0", "~") if match else ""
        target = self._definitions.get(name)
        if not isinstance(target, Mapping):
            _refuse(path, f"the reference {ref!r}", "references can be '#/$defs/NAME', and NAME must be defined")
        return name, target

    def _types(self, node: Mapping[str, Any], path: str) -> list[str]:
        types = node.get("type")
        if types is None:
            types = ["object"] if "properties" in node else ["array"] if "items" in node else []
        types = [types] if isinstance(types, str) else list(types)
        if not types:
            _refuse(path, "a value of any type", "give it a 'type'")
        for word in types:
            if word not in _TYPES:
                _refuse(path, f"the type {word!r}", "it is no JSON Schema type")
        return types

    def _values(self, node: Mapping[str, Any], path: str) -> dict[str, Any]:
        word = "const" if "const" in node else "enum"
        values = [node["const"]] if word == "const" else list(node["enum"])
        for value in values:
            if not isinstance(value, _PRIMITIVES):
                _refuse(path, f"the {word} value {value!r}", "values can be strings, numbers, booleans and null")
        if not values:
            _refuse(path, "an empty enum", "name at least one value")
        return {word: node[word]}

    def _object(self, node: Mapping[str, Any], path: str) -> dict[str, Any]:
        extra = node.get("additionalProperties", "properties" not in node)
        if extra is not False or node.get("unevaluatedProperties", False) is not False:
            what = "'additionalProperties'" if "additionalProperties" in node else "an object without 'properties'"
            _refuse(path, f"{what}, a map with free keys", "use a list of objects with a key and a value property")
        properties = node.get("properties", {})
        for name in node.get("required", ()):
            if name not in properties:
                _refuse(path, f"the required property {name!r}", "it is not among the properties")
        lowered = {
            "properties": {name: self._node(sub, f"{path}.properties.{name}") for name, sub in properties.items()},
            "additionalProperties": False,
        }
        return {**lowered, "required": list(node["required"])} if node.get("required") else lowered


def _described(lowered: dict[str, Any], node: Mapping[str, Any], kept: Any) -> dict[str, Any]:
    """With the description, and in it the constraints that the subset cannot express."""
    told = [f"{word}: {json.dumps(node[word], ensure_ascii=False)}" for word in _TOLD if word in node]
    told = [text for text in told if text.partition(":")[0] not in kept]
    texts = [str(node["description"])] if node.get("description") else []
    texts += [f"({', '.join(told)})"] if told else []
    return {**lowered, "description": " ".join(texts)} if texts else lowered


def _refuse(path: str, what: str, instead: str) -> NoReturn:
    raise ResponseSchemaError(f"Anthropic cannot take this response schema: {what} at {path}; {instead}.")
