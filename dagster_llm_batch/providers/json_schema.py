"""Lower a JSON Schema to the dialect that a vendor takes: one walker, and each vendor's rules as data. Pure.

A vendor's folder has its `SchemaRules` in schema.py, with the address of the vendor's own document; `lower_schema`
applies them. For every vendor:

- The result never asks for a value that the caller's own schema forbids. Objects are closed.
- A constraint that the dialect lacks (`minLength`, `uniqueItems`, …) is left out, or moves into the description if the
  rules list it: every reply is read with the caller's own schema anyway.
- A construct that would change the *shape* of a reply is rejected with its name and its path: maps with free keys,
  tuples, `allOf` of several, `not`, `if`, and the like. A row that cannot be read afterwards is still billed.

The same schema gives the same bytes, with keys in the same order: a planned request file that was not yet sent is
packed again and compared with its digest. So a rule changes the order of keys only if a vendor requires it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import unquote

from dagster_llm_batch.core.json_schema import references
from dagster_llm_batch.errors import ConfigError, ResponseSchemaError

__all__ = [
    "ARRAY",
    "CLAUDE_RULES",
    "INTEGER",
    "JSON_TYPES",
    "NUMBER",
    "OBJECT",
    "STRING",
    "SchemaRules",
    "SizeLimits",
    "given_format_warnings",
    "given_schema_warnings",
    "lower_schema",
    "schema_name",
]

JSON_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "object", "array"})
STRING, INTEGER, NUMBER, ARRAY, OBJECT = (
    frozenset({name}) for name in ("string", "integer", "number", "array", "object")
)

# bool precedes int: in Python, True is an int too
_TYPE_NAMES: tuple[tuple[type, str], ...] = (
    (bool, "boolean"),
    (str, "string"),
    (int, "integer"),
    (float, "number"),
    (type(None), "null"),
)
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
_NULLS: tuple[Mapping[str, Any], ...] = ({"type": "null"}, {"const": None})
# An exclusive bound as an inclusive one: the step from the bound to the first or last allowed value
_INCLUSIVE = {"exclusiveMinimum": ("minimum", 1), "exclusiveMaximum": ("maximum", -1)}
_DEFINITION = re.compile(r"#/(?:\$defs|definitions)/([^/]+)")
_ROOT = "$"
_EMPTY_ENUM = ("an empty enum", "name at least one value")
_ALWAYS_NULL = "a value that is always null"
_NO_RECURSION = "write out as many levels as you need"


@dataclass(frozen=True)
class SizeLimits:
    """Limits on the size of a whole schema. None: the vendor names no limit.

    `large_enum` is (values, characters): an enum with more values than this may hold at most this many characters in
    total.
    """

    depth: int | None = None  # objects within objects
    properties: int | None = None
    enum_values: int | None = None
    # names of properties and definitions, values of enum and const, together
    name_chars: int | None = None
    large_enum: tuple[int, int] | None = None


@dataclass(frozen=True)
class SchemaRules:
    """The part of JSON Schema that one vendor takes, and the form that it wants.

    Attributes:
        vendor: The vendor's name, as subject of messages.
        dialect: The subject of "knows no such thing" in messages.
        keywords: The keywords that are written, in this order, each with the types that it is written for. `items`,
            `properties`, `required`, `additionalProperties` and `propertyOrdering` are made, others copied.
        formats: The values of `format` that are written.
        refuses_formats: Another format is refused; else it is left out.
        accepts: Whether a keyword's value is written; else the keyword is left out. Named functions, since codecs hold
            rules and are pickled to workers.
        described: Keywords that move into the description for the LLM if they are not written.
        inclusive_bounds: Exclusive bounds of whole numbers are written as the first and last number that is allowed.
        format_hints: Text for the description about a format that is not written.
        description_first: Places where the description is right after the types ("type"), or before alternatives
            ("anyOf"); elsewhere it is the last key.
        expands_references: A definition replaces every reference to it; else `$defs` are kept.
        recursive: A definition may refer to itself.
        type_lists: A value of several types has them in a list; else it becomes alternatives.
        upper_types: Types are written in capitals.
        nullable: A value that may be null has the keyword `nullable`; else null is an ordinary type.
        bare_values: `enum` and `const` have no type next to them; else they have.
        enum_strings_only: An enum is of strings and there is no `const`. Whole numbers without a gap become bounds,
            booleans their type; other values are refused.
        open_keywords: Keywords that open an object to other properties, and are rejected.
        empty_objects: An object without properties is allowed, if it is closed.
        beside_any_of: Keywords that may not be next to alternatives.
        all_required: All properties are required, even if the caller's schema has optional ones.
        limits: The allowed size of a schema.
    """

    vendor: str
    dialect: str
    keywords: Mapping[str, frozenset[str]]
    formats: Collection[str] = ()
    refuses_formats: bool = False
    accepts: Mapping[str, Callable[[Any], bool]] = field(default_factory=dict)
    described: Collection[str] = ()
    inclusive_bounds: bool = False
    format_hints: Mapping[str, str] = field(default_factory=dict)
    description_first: Collection[str] = ()
    expands_references: bool = False
    recursive: bool = False
    type_lists: bool = False
    upper_types: bool = False
    nullable: bool = False
    bare_values: bool = False
    enum_strings_only: bool = False
    open_keywords: Collection[str] = ("additionalProperties", "unevaluatedProperties")
    empty_objects: bool = True
    beside_any_of: Collection[str] = ("properties", "items", "enum", "const")
    all_required: bool = False
    limits: SizeLimits = SizeLimits()


def _is_at_most_one(count: Any) -> bool:
    return count in (0, 1)


# Anthropic and Bedrock document the same subset, each on a separate page.
CLAUDE_RULES = SchemaRules(
    vendor="Claude",
    dialect="structured outputs know",
    keywords={
        "format": STRING,
        "items": ARRAY,
        "minItems": ARRAY,
        "properties": OBJECT,
        "additionalProperties": OBJECT,
        "required": OBJECT,
    },
    formats=frozenset(
        {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
    ),
    accepts={"minItems": _is_at_most_one},
    described=(
        "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minLength", "maxLength", "pattern",
        "format", "minItems", "maxItems", "uniqueItems", "minProperties", "maxProperties",
    ),
    bare_values=True,
)  # fmt: skip


def lower_schema(json_schema: Mapping[str, Any], rules: SchemaRules) -> dict[str, Any]:
    """Return the schema in the vendor's dialect. Raises ResponseSchemaError, naming the part that the dialect lacks."""
    return _Walker(json_schema, rules).lower_root()


def given_schema_warnings(schema: Any, rules: SchemaRules, where: str) -> tuple[str, ...]:
    """Return a warning of a schema that is given in a parameter, unless it is as it would be written of a response."""
    try:
        is_known = isinstance(schema, Mapping) and lower_schema(schema, rules) == schema
    # It may be anything.
    except (ResponseSchemaError, TypeError, ValueError, AttributeError):
        is_known = False
    if is_known:
        return ()
    warning = (
        f"The schema in the parameter '{where}' is sent as it is, and each row may be refused. Give it as the "
        f"dataset's response instead, which is written as {rules.vendor} takes it."
    )
    return (warning,)


def given_format_warnings(params: Mapping[str, Any], rules: SchemaRules) -> tuple[str, ...]:
    """Return warnings of the format in Claude's `output_config`. Raises ConfigError if it is not a format."""
    config = params.get("output_config")
    form = config.get("format") if isinstance(config, Mapping) else None
    if form is None:
        return ()
    if (
        not isinstance(form, Mapping)
        or form.get("type") != "json_schema"
        or not isinstance(form.get("schema"), Mapping)
    ):
        raise ConfigError(
            "The parameter 'output_config' has a format that each row would be refused for: it must have the type "
            f"'json_schema' and a schema; got {form!r}. Nothing was sent. Give the schema as the dataset's response."
        )
    return given_schema_warnings(form["schema"], rules, "output_config")


def schema_name(name: str) -> str:
    """Write the name of a response as vendors take the name of a schema or tool: 64 letters, digits, `_` and `-`."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "response"


class _Walker:
    """One walk over one schema. A path is written as in `$.properties.topic.items`."""

    def __init__(self, source: Mapping[str, Any], rules: SchemaRules) -> None:
        self._source = source
        self._rules = rules
        self._definitions = {**source.get("definitions", {}), **source.get("$defs", {})}
        self._defs: dict[str, Any] = {}
        # the definitions that this place is in: coming back to one is recursion
        self._entered: list[str] = []
        self._properties = 0
        self._enum_values = 0
        self._name_chars = 0

    def lower_root(self) -> dict[str, Any]:
        # every vendor wants an object at the root, and a recursive pydantic model is a bare reference there
        node = self._flat(self._source, _ROOT, expands=True)
        if "anyOf" in node:
            self._refuse(_ROOT, "'anyOf'", "the root must be one object; put the alternatives into a property of it")
        if node.get("type", "object") != "object" or not node.get("properties"):
            got = f"type {node.get('type')!r}" if node.get("type") != "object" else "an object without properties"
            self._refuse(_ROOT, got, "the root must be an object with named properties")
        lowered = self._lower(node, _ROOT, 0)
        if self._defs:
            lowered["$defs"] = self._defs
        self._check_sizes()
        return lowered

    def _lower(self, raw: Any, path: str, depth: int) -> dict[str, Any]:
        """Lower one schema, within `depth` objects."""
        with self._within():
            node = self._flat(raw, path, expands=self._rules.expands_references)
            if "$ref" in node:
                return self._reference(node, path, depth)
            if "anyOf" in node:
                return self._union(node, path, depth)
            if self._rules.bare_values and ("enum" in node or "const" in node):
                return self._described({}, self._values(node, path), node, "type")
            return self._typed(node, path, depth)

    def _flat(self, raw: Any, path: str, *, expands: bool) -> dict[str, Any]:
        """Return the node with a single `allOf` merged and `oneOf` as `anyOf`. Rejects constructs that vendors lack.

        If references are expanded, the definition is merged below the keys next to the reference, and is entered.
        """
        if isinstance(raw, list):
            self._refuse(path, "a tuple", "use an object with named properties")
        if not isinstance(raw, Mapping):
            self._refuse(path, f"the schema {raw!r}", "say what the value is")
        node = dict(raw)
        while "allOf" in node or (expands and "$ref" in node):
            if expands and "$ref" in node:
                name, target = self._target(node.pop("$ref"), path)
                # a reference from the root to itself has no content
                if name and not (self._rules.recursive and name in self._entered):
                    self._enter(name, path)
                    node = {**target, **node}
                continue
            parts = node.pop("allOf")
            if not isinstance(parts, list) or len(parts) != 1 or not isinstance(parts[0], Mapping):
                self._refuse(path, "'allOf' of several schemas", "write them as one object")
            node = {**parts[0], **node}
        for word, what in _REFUSED.items():
            if word in node:
                self._refuse(path, f"'{word}'", f"{self._rules.dialect} no such thing as {what}")
        if "oneOf" in node:
            if "anyOf" in node:
                self._refuse(path, "'oneOf' beside 'anyOf'", "use one of them")
            node["anyOf"] = node.pop("oneOf")
        return node

    def _reference(self, node: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        name, target = self._target(node["$ref"], path)
        if not name:
            return {"$ref": "#"}
        self._enter(name, path)
        if "description" in node and not (self._rules.recursive and self._is_recursive(name)):
            # a reference allows no keys next to it, and the description of a field steers the LLM: write the definition
            # out here
            return self._lower({**target, "description": node["description"]}, path, depth)
        if name not in self._defs:
            if self._rules.recursive:
                # holds the place: a recursive definition comes back here
                self._defs[name] = None
            self._name_chars += len(name)
            self._defs[name] = self._lower(target, f"{_ROOT}.$defs.{name}", 0)
        return {"$ref": "#/$defs/" + name.replace("~", "~0").replace("/", "~1")}

    def _target(self, reference: Any, path: str) -> tuple[str, Mapping[str, Any]]:
        """Name and schema of a definition. The name of the root, where the vendor takes recursion, is empty."""
        if reference == "#":
            if not self._rules.recursive:
                self._refuse(path, "the recursive reference '#'", _NO_RECURSION)
            return "", self._source
        match = _DEFINITION.fullmatch(reference) if isinstance(reference, str) else None
        name = unquote(match[1]).replace("~1", "/").replace("~0", "~") if match else ""
        target = self._definitions.get(name)
        if not isinstance(target, Mapping):
            forms = "'#' or '#/$defs/NAME'" if self._rules.recursive else "'#/$defs/NAME'"
            self._refuse(path, f"the reference {reference!r}", f"references can be {forms}, and NAME must be defined")
        return name, target

    def _enter(self, name: str, path: str) -> None:
        if name in self._entered and not self._rules.recursive:
            self._refuse(path, f"the recursive definition {name!r}", _NO_RECURSION)
        self._entered.append(name)

    @contextmanager
    def _within(self) -> Iterator[None]:
        """Leave, at the end of the block, the definitions that were entered in it."""
        count = len(self._entered)
        try:
            yield
        finally:
            del self._entered[count:]

    def _is_recursive(self, name: str) -> bool:
        """Return whether a definition refers to itself, be it by way of others."""
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            for reference in references(self._definitions.get(waiting.pop())):
                target, _ = self._target(reference, _ROOT)
                if target in (name, ""):
                    return True
                if target not in seen:
                    seen.add(target)
                    waiting.append(target)
        return False

    def _union(self, node: Mapping[str, Any], path: str, depth: int, *, is_nullable: bool = False) -> dict[str, Any]:
        parts = node["anyOf"]
        beside = [word for word in self._rules.beside_any_of if word in node]
        if beside or not isinstance(parts, list) or not parts:
            what = f"'anyOf' beside '{beside[0]}'" if beside else "an empty 'anyOf'"
            self._refuse(path, what, "write each alternative as one whole schema")
        types = _listed(node.get("type"))
        if self._rules.nullable:
            is_nullable = is_nullable or "null" in types or any(part in _NULLS for part in parts)
            types = [name for name in types if name != "null"]
            parts = [part for part in parts if part not in _NULLS]
            if not parts:
                self._refuse(path, _ALWAYS_NULL, "leave it out")
        # A type next to alternatives applies to each of them.
        if types:
            shared = {"type": types[0] if len(types) == 1 else types}
            parts = [{**shared, **part} if isinstance(part, Mapping) and "$ref" not in part else part for part in parts]
        if self._rules.nullable and len(parts) == 1:
            text = {"description": node["description"]} if node.get("description") else {}
            lowered = {**self._lower(parts[0], path, depth), **text}
        else:
            alternatives = [self._lower(part, f"{path}.anyOf[{i}]", depth) for i, part in enumerate(parts)]
            lowered = self._described({}, {"anyOf": alternatives}, node, "anyOf")
        return {**lowered, "nullable": True} if is_nullable else lowered

    def _typed(self, node: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        types, is_nullable = self._split_types(node, path)
        if len(types) > 1 and not self._rules.type_lists:
            parts = [{**node, "type": name} for name in types]
            return self._union({"anyOf": parts}, path, depth, is_nullable=is_nullable)
        written = [name.upper() for name in types] if self._rules.upper_types else types
        head: dict[str, Any] = {"type": written[0] if len(written) == 1 else written}
        if is_nullable:
            head["nullable"] = True
        if types == ["null"] and self._rules.described:
            # as an alternative to a complete type, it would repeat the description and the keywords in it
            return head
        if "enum" in node or "const" in node:
            return self._described(head, self._values(node, path), node, "type")
        if "array" in types and "items" not in node:
            self._refuse(path, "an array without 'items'", "say what its items are")
        if "object" in types:
            self._check_object(node, path, depth + 1)
        rest: dict[str, Any] = {}
        for word, kinds in self._rules.keywords.items():
            if not kinds.isdisjoint(types):
                rest.update(self._keyword(word, node, path, depth))
        is_hinted = "string" in types and "format" not in rest
        hint = self._rules.format_hints.get(node.get("format", ""), "") if is_hinted else ""
        return self._described(head, rest, node, "type", hint)

    def _split_types(self, node: Mapping[str, Any], path: str) -> tuple[list[str], bool]:
        """Return the types as they are written, and whether null is allowed, if null has its own keyword."""
        types = _types_of(node)
        for name in types:
            if name not in JSON_TYPES:
                self._refuse(path, f"the type {name!r}", "it is no JSON Schema type")
        is_nullable = self._rules.nullable and "null" in types
        if is_nullable:
            types = [name for name in types if name != "null"]
        if not types and is_nullable:
            self._refuse(path, _ALWAYS_NULL, "leave it out")
        if not types and "enum" in node:
            self._refuse(path, *_EMPTY_ENUM)
        if not types:
            self._refuse(path, "a value of any type", "give it a 'type'")
        return types, is_nullable

    def _keyword(self, word: str, node: Mapping[str, Any], path: str, depth: int) -> dict[str, Any]:
        """Return the written form of one keyword; empty if it is left out."""
        properties = node.get("properties") or {}
        match word:
            case "items":
                return {word: self._lower(node[word], f"{path}.{word}", depth)}
            case "properties":
                lowered = {
                    name: self._lower(part, f"{path}.{word}.{name}", depth + 1) for name, part in properties.items()
                }
                return {word: lowered}
            case "required":
                names = list(properties if self._rules.all_required else node.get(word, ()))
                return {word: names} if names or self._rules.all_required else {}
            case "additionalProperties":
                return {word: False}
            case "propertyOrdering":
                return {word: list(properties)}
        if word not in node:
            return {}
        value = node[word]
        if word == "format" and value not in self._rules.formats:
            if self._rules.refuses_formats:
                allowed = ", ".join(sorted(self._rules.formats))
                what, instead = f"the string format {value!r}", f"allowed are {allowed}; use a plain string instead"
                self._refuse(path, what, instead)
            return {}
        if word in self._rules.accepts and not self._rules.accepts[word](value):
            return {}
        if word in _INCLUSIVE and self._rules.inclusive_bounds:
            bound, step = _INCLUSIVE[word]
            return {bound: value + step} if isinstance(value, int) else {}
        return {word: value}

    def _check_object(self, node: Mapping[str, Any], path: str, depth: int) -> None:
        opened = next((word for word in self._rules.open_keywords if node.get(word, False) is not False), "")
        is_empty = "properties" in node or node.get("additionalProperties") is False
        if opened or not (node.get("properties") or (is_empty and self._rules.empty_objects)):
            what = f"'{opened}'" if opened else "an object without 'properties'"
            self._refuse(path, f"{what}, a map with free keys", "use a list of objects with a key and a value property")
        most = self._rules.limits.depth
        if most is not None and depth > most:
            self._refuse(path, f"objects nested {depth} deep", f"{most} levels are allowed")
        properties = node.get("properties") or {}
        for name in node.get("required", ()):
            if name not in properties:
                self._refuse(path, f"the required property {name!r}", "it is not among the properties")
        self._properties += len(properties)
        self._name_chars += sum(map(len, properties))

    def _values(self, node: Mapping[str, Any], path: str) -> dict[str, Any]:
        word = "const" if "const" in node else "enum"
        values = [node["const"]] if word == "const" else list(node["enum"])
        if not values:
            self._refuse(path, *_EMPTY_ENUM)
        if self._rules.enum_strings_only:
            return self._string_values(values, path)
        for value in values:
            if _type_of(value) is None:
                self._refuse(path, f"the {word} value {value!r}", "values can be strings, numbers, booleans and null")
        chars = sum(len(value) for value in values if isinstance(value, str))
        if limit := self._rules.limits.large_enum:
            most, most_chars = limit
            if len(values) > most and chars > most_chars:
                what = f"an enum of {len(values)} values with {chars} characters"
                self._refuse(path, what, f"above {most} values, {most_chars} characters are allowed")
        self._name_chars += chars
        self._enum_values += len(values) if word == "enum" else 0
        return {word: node[word]}

    def _string_values(self, values: list[Any], path: str) -> dict[str, Any]:
        known = [value for value in values if value is not None]
        nullable = {"nullable": True} if len(known) < len(values) else {}
        types = {_type_of(value) for value in known}
        if types == {"string"}:
            return {"enum": known, **nullable}
        if types == {"boolean"}:
            # the dialect cannot restrict it to one of both; the reply is checked with the caller's schema
            return nullable
        if types == {"integer"} and len(set(known)) == max(known) - min(known) + 1:
            return {"minimum": min(known), "maximum": max(known), **nullable}
        what = "values can be strings, booleans, or whole numbers without a gap"
        return self._refuse(path, f"the values {values!r}", what)

    def _described(
        self, head: dict[str, Any], rest: dict[str, Any], node: Mapping[str, Any], form: str, hint: str = ""
    ) -> dict[str, Any]:
        """Return head and rest with the description between or after them; it includes keywords the dialect lacks."""
        texts = [str(text) for text in (node.get("description"), hint) if text]
        unsaid = [word for word in self._rules.described if word in node and word not in rest]
        words = ", ".join(f"{word}: {json.dumps(node[word], ensure_ascii=False)}" for word in unsaid)
        text = " ".join(part for part in ("; ".join(texts), f"({words})" if words else "") if part)
        if not text:
            return {**head, **rest}
        if form in self._rules.description_first:
            return {**head, "description": text, **rest}
        return {**head, **rest, "description": text}

    def _check_sizes(self) -> None:
        limits = self._rules.limits
        for count, limit, what in (
            (self._properties, limits.properties, "properties"),
            (self._enum_values, limits.enum_values, "enum values"),
            (self._name_chars, limits.name_chars, "characters in names and enum values"),
        ):
            if limit is not None and count > limit:
                self._refuse(_ROOT, f"a schema of {count} {what}", f"{limit} are allowed")

    def _refuse(self, path: str, what: str, instead: str) -> NoReturn:
        raise ResponseSchemaError(
            f"{self._rules.vendor} cannot take this response schema: {what} at {path}; {instead}."
        )


def _types_of(node: Mapping[str, Any]) -> list[str]:
    """Return the types that a node names, else the types of its values, else the type that its other keywords imply."""
    if node.get("type") is not None:
        return _listed(node["type"])
    values = [node["const"]] if "const" in node else node.get("enum") or []
    types = list(dict.fromkeys(_type_of(value) or "object" for value in values))
    return types or (["object"] if "properties" in node else ["array"] if "items" in node else [])


def _type_of(value: Any) -> str | None:
    """Return the JSON type of a single value; None for lists, objects and values outside of JSON."""
    return next((name for kind, name in _TYPE_NAMES if isinstance(value, kind)), None)


def _listed(types: Any) -> list[str]:
    return [types] if isinstance(types, str) else list(types or ())
