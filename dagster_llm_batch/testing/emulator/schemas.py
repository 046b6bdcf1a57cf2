"""The part of JSON Schema that an emulator needs: the checks of strict mode, and a deterministic instance of a schema.

`instance` is a simulation, not a model: it never understands the text. It refuses nothing; it ignores keywords that it
cannot satisfy (`pattern`, `not`, `if`).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import Any

JSON = Any

# https://platform.openai.com/docs/guides/structured-outputs#supported-schemas
_NOT_PERMITTED = ("allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas")
_FORMATS = {
    "date": "2000-01-01",
    "time": "00:00:00Z",
    "date-time": "2000-01-01T00:00:00Z",
    "email": "simulated@example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/simulated",
}
_DEEPEST = 12


def strict_problem(schema: JSON) -> str | None:
    """Return why OpenAI's strict mode would refuse the schema, in its words; None if it would take it."""
    if not isinstance(schema, dict) or (schema.get("type") != "object" and "$ref" not in schema):
        got = schema.get("type") if isinstance(schema, dict) else None
        return f"schema must be a JSON Schema of 'type: \"object\"', got 'type: \"{got}\"'."
    return next(_problems(schema, ()), None)


def _problems(schema: JSON, path: tuple[str, ...]) -> Iterator[str]:
    if not isinstance(schema, dict):
        return
    for word in _NOT_PERMITTED:
        if word in schema:
            yield f"In context={path}, '{word}' is not permitted."
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is not False:
            yield f"In context={path}, 'additionalProperties' is required to be supplied and to be false."
        required = schema.get("required", [])
        for name in properties:
            if name not in required:
                yield (
                    f"In context={path}, 'required' is required to be supplied and to be an array including every key "
                    f"in properties. Missing '{name}'."
                )
    for word in ("properties", "$defs", "definitions"):
        for name, part in schema.get(word, {}).items():
            yield from _problems(part, (*path, word, name))
    if "items" in schema:
        yield from _problems(schema["items"], (*path, "items"))
    for index, part in enumerate(schema.get("anyOf", ())):
        yield from _problems(part, (*path, "anyOf", str(index)))


def draw(key: str, choices: int) -> int:
    """Return a number below `choices` that depends on the key alone."""
    return zlib.crc32(key.encode()) % max(choices, 1)


def instance(schema: JSON, text: str) -> JSON:
    """Return a value that satisfies the schema, chosen by the text; an enum value that is in the text is preferred."""
    return _Instance(schema, text).of(schema, "$", 0)


class _Instance:
    def __init__(self, root: JSON, text: str) -> None:
        self._root = root
        self._text = text
        self._words = set(re.findall(r"\w+", text.lower()))

    def of(self, schema: JSON, path: str, depth: int) -> JSON:
        if not isinstance(schema, dict) or depth > _DEEPEST:
            return None
        if "$ref" in schema:
            return self.of(self._resolve(schema["$ref"]), path, depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self._choice(schema["enum"], path)
        for word in ("anyOf", "oneOf"):
            if schema.get(word):
                usable = [part for part in schema[word] if part != {"type": "null"}] or [{"type": "null"}]
                return self.of(usable[0], path, depth + 1)
        if schema.get("allOf"):
            merged: dict[str, Any] = {}
            for part in schema["allOf"]:
                merged |= self._resolve(part["$ref"]) if "$ref" in part else part
            return self.of(merged, path, depth + 1)
        return self._typed(schema, path, depth)

    def _typed(self, schema: dict[str, Any], path: str, depth: int) -> JSON:
        kind = schema.get("type")
        if isinstance(kind, list):
            kind = next((name for name in kind if name != "null"), "null")
        if kind == "object" or "properties" in schema:
            parts = schema.get("properties", {})
            return {name: self.of(part, f"{path}.{name}", depth + 1) for name, part in parts.items()}
        if kind == "array":
            count = max(schema.get("minItems", 1), 0)
            return [self.of(schema.get("items", {}), f"{path}[{index}]", depth + 1) for index in range(count)]
        if kind == "boolean":
            return bool(draw(f"{path}:{self._text}", 2))
        if kind in {"integer", "number"}:
            return self._number(schema, path, whole=kind == "integer")
        return None if kind == "null" else self._string(schema)

    def _choice(self, values: list[Any], path: str) -> JSON:
        for value in values:
            if isinstance(value, str) and (
                value.lower() in self._words or value.lower().replace("_", " ") in self._text
            ):
                return value
        return values[draw(f"{path}:{self._text}", len(values))]

    def _number(self, schema: dict[str, Any], path: str, *, whole: bool) -> float:
        step = schema.get("multipleOf", 1 if whole else 0.25)
        low = schema.get("minimum", schema["exclusiveMinimum"] + step if "exclusiveMinimum" in schema else None)
        high = schema.get("maximum", schema["exclusiveMaximum"] - step if "exclusiveMaximum" in schema else None)
        if low is None:
            low = 0 if high is None else high - 10 * step
        if high is None:
            high = low + 10 * step
        first = -(-low // step) * step
        value = first + draw(f"{path}:{self._text}", int((high - first) / step) + 1) * step
        return int(value) if whole else float(min(max(value, low), high))

    def _string(self, schema: dict[str, Any]) -> str:
        if schema.get("format") in _FORMATS:
            return _FORMATS[schema["format"]]
        text = "simulated: " + " ".join(self._text.split())[:40]
        text = text.ljust(schema.get("minLength", 0), ".")
        return text[: schema["maxLength"]] if "maxLength" in schema else text

    def _resolve(self, ref: str) -> JSON:
        part = self._root
        for name in ref.removeprefix("#").strip("/").split("/"):
            part = part[name.replace("~1", "/").replace("~0", "~")] if name else part
        return part
