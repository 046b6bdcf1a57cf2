"""JSON Schemas whose errors are about a part, not about a whole block, so that `dg check yaml` points at the line.
What is required comes first.

A validator says of `anyOf` no more than that nothing fits. Here it is told first which choice is meant, by the value's
type or by its attribute `type`, and then judges by that one alone. What is valid stays the same.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, create_model

from dagster_llm_batch.components.resolution import Block

__all__ = ["pointed"]

Schema = dict[str, Any]


class _Pointed(Block):
    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> Schema:
        schema = super().model_json_schema(*args, **kwargs)
        required = schema.get("required", ())
        schema["properties"] = dict(sorted(schema["properties"].items(), key=lambda one: one[0] not in required))
        decided: Schema = _decided(schema, schema.get("$defs", {}))
        return decided


def pointed(model: type[BaseModel]) -> type[BaseModel]:
    """The model with such a JSON Schema."""
    return create_model(model.__name__, __base__=(_Pointed, model))


def _decided(node: Any, named: Schema) -> Any:
    """The schema, and all within it, with choices that are made first."""
    if isinstance(node, list):
        return [_decided(one, named) for one in node]
    if not isinstance(node, dict):
        return node
    choices = _choices(node)
    rest = {key: value for key, value in node.items() if key not in ("anyOf", "oneOf", "discriminator")}
    if _can_be_told_apart(choices, named):
        node = rest | _chain(sorted(choices, key=lambda one: _tag(one, named) is None), named)
    return {key: value if key in ("default", "examples") else _decided(value, named) for key, value in node.items()}


def _choices(node: Schema) -> list[Schema]:
    """The choices of a union, and of the unions in it."""
    found: list[Schema] = []
    for one in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        found += _choices(one) or [one]
    return found


def _can_be_told_apart(choices: list[Schema], named: Schema) -> bool:
    """By their types, which must not overlap, or by their tags. Choices of plain values need not be."""
    types = [one for choice in choices if _tag(choice, named) is None for one in _types(choice, named) or {"any"}]
    tagged = any(_tag(choice, named) for choice in choices)
    return (tagged or bool({"object", "array"} & set(types))) and "any" not in types and len(types) == len(set(types))


def _chain(choices: list[Schema], named: Schema) -> Schema:
    """If the first choice is meant, the value must fit it; else, if the second is, that; else its type is wrong."""
    tags = [tag for choice in choices if (tag := _tag(choice, named)) is not None]
    untagged = set[str]().union(*(_types(choice, named) for choice in choices if _tag(choice, named) is None))
    chain: Schema = {"type": sorted(untagged | ({"object"} if tags else set()))}
    if tags and "object" not in untagged:
        chain |= {"properties": {"type": {"enum": tags}}, "required": ["type"]}
    for choice in reversed(choices):
        tag = _tag(choice, named)
        meant: Schema = {"type": sorted(_types(choice, named))}
        if tag is not None:
            meant |= {"properties": {"type": {"const": tag}}, "required": ["type"]}
        chain = {"if": meant, "then": choice, "else": chain}
    return chain


def _target(choice: Schema, named: Schema) -> Schema:
    found: Schema = named[choice["$ref"].removeprefix("#/$defs/")] if "$ref" in choice else choice
    return found


def _types(choice: Schema, named: Schema) -> set[str]:
    """The JSON types of a choice; empty where it may be anything."""
    kind = _target(choice, named).get("type", [])
    return {kind} if isinstance(kind, str) else set(kind)


def _tag(choice: Schema, named: Schema) -> str | None:
    """What the attribute `type` of this choice must be."""
    target = _target(choice, named)
    kind: str | None = target.get("properties", {}).get("type", {}).get("const")
    return kind if "type" in target.get("required", ()) else None
