"""The least and the largest value that a number or score can have, as the response of a candidate declares them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dagster_llm_batch.core.response import Reader, resolve
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation.candidates import Candidate
from dagster_llm_batch.metrics import Target
from dagster_llm_batch.metrics.estimates import missing_ends

__all__ = ["with_ends"]

Ends = tuple[float | None, float | None]

_OPEN: Ends = (None, None)
_MAX_DEPTH = 12


def with_ends(targets: Sequence[Target], candidates: Sequence[Candidate]) -> tuple[Target, ...]:
    """Return the targets with their declared ends, or else the widest ends of the candidates' responses.

    Raises ConfigError for a number, or for scores, without ends: mistakes that the gold rows do not show are then
    unbounded.
    """
    return tuple(_with_ends(target, candidates) for target in targets)


def _with_ends(target: Target, candidates: Sequence[Candidate]) -> Target:
    if target.kind != "numeric" and not target.kappa_weights:
        return target
    found = [_ends_of(one.reader, target.name) for one in candidates if one.reader is not None]
    low, high = _widest([ends for ends in found if ends != _OPEN])
    target = replace(
        target,
        minimum=low if target.minimum is None else target.minimum,
        maximum=high if target.maximum is None else target.maximum,
    )
    if target.minimum is None or target.maximum is None:
        raise ConfigError(missing_ends(target))
    return target


def _ends_of(reader: Reader, name: str) -> Ends:
    schema = reader.columns_schema or reader.format.json_schema or {}
    # A model that contains itself is a reference into its own definitions.
    inner = schema if "properties" in schema else resolve(schema["$ref"], schema) or {} if "$ref" in schema else {}
    return _ends_in(inner.get("properties", {}).get(name, {}), schema, 0)


def _ends_in(schema: Any, root: Mapping[str, Any], depth: int) -> Ends:
    """Return the ends of the numbers that fit a schema."""
    if depth > _MAX_DEPTH or not isinstance(schema, Mapping):
        return _OPEN
    if values := [value for value in _listed(schema) if isinstance(value, int | float) and not isinstance(value, bool)]:
        return min(values), max(values)
    for word in ("anyOf", "oneOf"):
        # A number as text, such as pydantic's form of a Decimal, has the same ends.
        if options := [one for one in schema.get(word, ()) if not _is_of(one, "null", "string")]:
            return _widest([_ends_in(one, root, depth + 1) for one in options])
    parts = [_ends_in(one, root, depth + 1) for one in schema.get("allOf", ())]
    if "$ref" in schema:
        parts.append(_ends_in(resolve(schema["$ref"], root), root, depth + 1))
    lows = [_number(schema.get(word)) for word in ("minimum", "exclusiveMinimum")] + [low for low, _ in parts]
    highs = [_number(schema.get(word)) for word in ("maximum", "exclusiveMaximum")] + [high for _, high in parts]
    return (
        max((low for low in lows if low is not None), default=None),
        min((high for high in highs if high is not None), default=None),
    )


def _listed(schema: Mapping[str, Any]) -> Iterator[Any]:
    yield from schema.get("enum", ())
    if "const" in schema:
        yield schema["const"]


def _is_of(schema: Any, *types: str) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") in types


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _widest(ends: Sequence[Ends]) -> Ends:
    """Return the ends of all together; open where one of them is open."""
    lows, highs = [low for low, _ in ends], [high for _, high in ends]
    return (
        None if None in lows or not lows else min(low for low in lows if low is not None),
        None if None in highs or not highs else max(high for high in highs if high is not None),
    )
