"""Validate JSON Schemas of responses, resolve their references, and check values against them.

Only this module imports `jsonschema` and `referencing`: a schema may come from somebody else, for example in a batch
file. References are never fetched, from the network or from a disk. Each pattern runs in a time that grows with the
text alone, by the engine of pydantic. Patterns with look-around or backreferences need Python's engine, which some
texts keep busy for hours. Simple ones of these run, on short texts; others are refused when a response is declared.

`jsonschema` loads slowly and only a schema that is given as a dict needs it, so it is imported where it is used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

from dagster_llm_batch.errors import ResponseSchemaError

if TYPE_CHECKING:
    from referencing import Registry

__all__ = ["Fit", "check_json_schema", "fits_all_of", "references", "without_notes"]

# Of Python's engine: the time of two repeats grows with the square of the text.
_MOST_REPEATS = 2
_MOST_TEXT = 1_000
_NOTES = frozenset({"title", "description", "examples", "deprecated", "$comment"})
_TYPES = ("array", "boolean", "integer", "null", "number", "object", "string")
# Keywords that hold schemas by names of the user.
_BY_NAME = frozenset({"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"})


def check_json_schema(schema: Mapping[str, Any]) -> None:
    """Raise ResponseSchemaError for a schema that is invalid, is not of an object, or refers to other schemas."""
    import jsonschema  # noqa: PLC0415 - loads slowly
    from referencing.exceptions import Unresolvable  # noqa: PLC0415 - as above
    from referencing.jsonschema import DRAFT202012  # noqa: PLC0415 - as above

    try:
        jsonschema.Draft202012Validator.check_schema(dict(schema), jsonschema.Draft202012Validator.FORMAT_CHECKER)
    except jsonschema.SchemaError as error:
        # For a wrong type the message of jsonschema is only "not valid under any of the given schemas".
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
    for pattern in _patterns(schema):
        _matcher(pattern)
    resolver = _no_others().resolver_with_root(DRAFT202012.create_resource(dict(schema)))
    for reference in references(schema):
        try:
            _refuse_loop(reference, resolver)
        except Unresolvable as error:
            msg = f"The response schema's reference {reference!r} cannot be resolved; it must point into the schema."
            raise ResponseSchemaError(msg) from error


def _refuse_loop(reference: str, resolver: Any) -> None:
    """Raise ResponseSchemaError for a reference that leads back to itself: values could never fit."""
    followed = [reference]
    while isinstance(found := resolver.lookup(followed[-1]).contents, Mapping) and isinstance(found.get("$ref"), str):
        if found["$ref"] in followed:
            raise ResponseSchemaError(
                f"The response schema's reference {reference!r} leads back to itself ({' -> '.join(followed)}), so "
                "that replies could not be checked. Let it point to a schema."
            )
        followed.append(found["$ref"])


def _no_others() -> Registry[Any]:
    """Return an empty registry, so that schemas are not fetched from the network."""
    from referencing import Registry  # noqa: PLC0415 - as above

    return Registry()


def references(node: Any) -> Iterator[str]:
    """Yield every `$ref` in a schema, unchanged."""
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for part in node.values():
            yield from references(part)
    elif isinstance(node, list):
        for part in node:
            yield from references(part)


def without_notes(schema: Any) -> Any:
    """Return a schema without annotations: schemas that differ only in these are fit by the same values."""
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


def fits_all_of(schema: Any, older: Any) -> bool:
    """Return whether each value that fits an older schema certainly fits this one.

    So it is if they differ in annotations alone, or in choices (`enum`) that were added.
    """
    return _extends("", without_notes(schema), without_notes(older))


def _extends(word: str, schema: Any, older: Any) -> bool:
    """Return the same for the parts of two schemas after one keyword."""
    if isinstance(schema, Mapping) and isinstance(older, Mapping):
        # Within a negation, an added choice excludes values.
        if word in ("not", "if"):
            return schema == older
        return schema.keys() == older.keys() and all(_extends(name, schema[name], older[name]) for name in schema)
    if isinstance(schema, list) and isinstance(older, list):
        if word == "enum":
            # To Python, 1 and True are equal.
            return {repr(one) for one in older} <= {repr(one) for one in schema}
        return len(schema) == len(older) and all(map(_extends, [word] * len(schema), schema, older))
    return bool(schema == older)


class Fit:
    """Find out why a value does not fit a schema. A pattern that may run without end is not looked at.

    A reference that leads out of the schema is a ResponseSchemaError when a value meets it.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        from jsonschema.exceptions import best_match  # noqa: PLC0415 - as above

        self._validator = _validator_class()(dict(schema), registry=_no_others())
        self._best_match = best_match

    def misfit(self, value: Any) -> str | None:
        """Return the most telling reason why the value does not fit, with its path; None if it fits."""
        error = self._error(value)
        return None if error is None else f"{error.json_path}: {error.message}"

    def misfit_at(self, value: Any) -> tuple[str, str] | None:
        """Return where the value does not fit, as `name.0`, and why; None if it fits."""
        error = self._error(value)
        return None if error is None else (".".join(map(str, error.absolute_path)), error.message)

    def _error(self, value: Any) -> Any:
        from jsonschema import ValidationError  # noqa: PLC0415 - as above
        from referencing.exceptions import Unresolvable  # noqa: PLC0415 - as above

        try:
            return self._best_match(self._validator.iter_errors(value))
        except RecursionError:
            return ValidationError("it is nested too deeply to be checked")
        except Unresolvable as error:
            msg = f"A reference of the response schema cannot be resolved; it must point into the schema. {error}"
            raise ResponseSchemaError(msg) from error


_VALUES = ("enum", "const", "default", "examples")


def _patterns(node: Any) -> Iterator[str]:
    """Yield every pattern in a schema."""
    if isinstance(node, Mapping):
        if isinstance(node.get("pattern"), str):
            yield node["pattern"]
        if isinstance(node.get("patternProperties"), Mapping):
            yield from map(str, node["patternProperties"])
        # Other keys hold values of the user's, where `pattern` is a name like any other.
        for name, part in node.items():
            if name not in _VALUES:
                yield from _patterns(part)
    elif isinstance(node, list):
        for part in node:
            yield from _patterns(part)


@lru_cache(256)
def _matcher(pattern: str) -> Callable[[str], bool]:
    """Return a search for this pattern that ends soon. Raises ResponseSchemaError if that is not certain."""
    from pydantic_core import SchemaError, SchemaValidator, core_schema  # noqa: PLC0415 - pydantic's own

    try:
        known = SchemaValidator(core_schema.str_schema(pattern=pattern, regex_engine="rust-regex"))
    except SchemaError:
        return _python_matcher(pattern)
    return lambda text: known.isinstance_python(text, strict=True)


def _python_matcher(pattern: str) -> Callable[[str], bool]:
    from re import _parser  # type: ignore[attr-defined]  # noqa: PLC0415 - how Python reads it, which nothing public tells

    try:
        compiled = re.compile(pattern)
        repeats = _repeats(_parser.parse(pattern))
    except (re.error, RecursionError, OverflowError) as error:
        raise ResponseSchemaError(f"The response schema's pattern {pattern[:80]!r} cannot be read: {error}.") from error
    if repeats > _MOST_REPEATS:
        raise ResponseSchemaError(
            f"The response schema's pattern {pattern[:80]!r} has look-around, references back or large repeats, and "
            f"may run without end: with these it may have {_MOST_REPEATS} open repeats (*, +, {{2,}}), none within "
            "another. Leave them out, or check that in your own code."
        )
    # A long text is taken: it was paid for, and that it does not fit would be asked, and paid, again.
    return lambda text: (repeats > 0 and len(text) > _MOST_TEXT) or compiled.search(text) is not None


def _repeats(parsed: Any, *, within: bool = False) -> int:
    """Return the number of open repeats in a pattern; one within another counts as too many."""
    count = 0
    for part in getattr(parsed, "data", parsed):
        if not isinstance(part, tuple):
            # A group, or a list of alternatives.
            count += _repeats(part, within=within) if isinstance(part, list) or hasattr(part, "data") else 0
            continue
        if len(part) != 2:  # noqa: PLR2004 - what it does, and of what
            count += _repeats(part, within=within)
            continue
        is_open = str(part[0]) in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT") and int(part[1][1]) > 1
        count += (_MOST_REPEATS + 1 if within else 1) if is_open else 0
        inner = part[1][2] if "REPEAT" in str(part[0]) else part[1]
        if isinstance(inner, list | tuple) or hasattr(inner, "data"):
            count += _repeats(inner, within=within or is_open)
    return count


@lru_cache(1)
def _validator_class() -> Any:
    """Return the validator, whose patterns are matched by `_matcher`."""
    from jsonschema import Draft202012Validator, ValidationError  # noqa: PLC0415 - as above
    from jsonschema.validators import extend  # noqa: PLC0415 - as above

    usual = Draft202012Validator.VALIDATORS

    def pattern(_validator: Any, wanted: str, value: Any, _schema: Any) -> Iterator[Any]:
        if isinstance(value, str) and not _matches(wanted, value):
            yield ValidationError(f"{value!r} does not match {wanted!r}")

    def pattern_properties(validator: Any, wanted: Mapping[str, Any], value: Any, _schema: Any) -> Iterator[Any]:
        for each, name in product(wanted, value if isinstance(value, dict) else ()):
            if _matches(each, name):
                yield from validator.descend(value[name], wanted[each], path=name, schema_path=each)

    def additional(validator: Any, wanted: Any, value: Any, schema: Mapping[str, Any]) -> Iterator[Any]:
        # For an object without such names, jsonschema's own rule runs without patterns.
        patterns = schema.get("patternProperties", {}) if isinstance(value, dict) else {}
        named = [name for name in value if any(_matches(each, name) for each in patterns)] if patterns else []
        rest = {name: value[name] for name in value if name not in named} if named else value
        others = {word: part for word, part in schema.items() if word != "patternProperties"}
        yield from usual["additionalProperties"](validator, wanted, rest, others)

    own = {"pattern": pattern, "patternProperties": pattern_properties, "additionalProperties": additional}
    return extend(Draft202012Validator, own)


def _matches(pattern: str, text: str) -> bool:
    try:
        return _matcher(pattern)(text)
    except ResponseSchemaError:
        return True
