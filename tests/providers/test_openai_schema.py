"""Strict mode takes every schema that comes out, and each reply that it allows has the shape of the caller's schema."""

from __future__ import annotations

from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from dagster_llm_batch.errors import ResponseSchemaError
from dagster_llm_batch.providers.json_schema import lower_schema
from dagster_llm_batch.providers.openai_api.schema import STRICT_RULES


class Urgency(StrEnum):
    LOW = "low"
    HIGH = "high"


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"]


class Ticket(BaseModel):
    topic: Literal["billing", "bug"]
    urgency: Annotated[int, Field(ge=1, le=5)]
    level: Urgency = Field(default=Urgency.LOW, description="How bad it is.")
    note: str | None = None
    pets: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = []
    amount: Decimal = Decimal(0)


class Node(BaseModel):
    name: str
    children: list[Node] = Field(default=[], description="Below it.")


def assert_strict(node: Any) -> None:
    """Check the vendor's rules: closed objects, all properties required, only words of the subset."""
    allowed = {
        "type", "description", "enum", "const", "anyOf", "properties", "required", "additionalProperties", "items",
        "$ref", "$defs", "pattern", "format", "multipleOf", "minimum", "maximum", "exclusiveMinimum",
        "exclusiveMaximum", "minItems", "maxItems",
    }  # fmt: skip
    assert set(node) <= allowed
    if "$ref" in node:
        assert set(node) == {"$ref"}
    if "properties" in node:
        assert node["additionalProperties"] is False
        assert node["required"] == list(node["properties"])
    below = [*node.get("properties", {}).values(), *node.get("$defs", {}).values(), *node.get("anyOf", [])]
    for child in [*below, *([node["items"]] if "items" in node else [])]:
        assert_strict(child)


def test_a_pydantic_model_becomes_strict_with_its_fields_in_order():
    lowered = lower_schema(Ticket.model_json_schema(), STRICT_RULES)
    assert_strict(lowered)
    assert lowered["required"] == ["topic", "urgency", "level", "note", "pets", "amount"]
    properties = lowered["properties"]
    assert properties["urgency"] == {"type": "integer", "minimum": 1, "maximum": 5}
    assert properties["level"] == {"type": "string", "enum": ["low", "high"], "description": "How bad it is."}
    assert properties["note"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert properties["pets"]["items"] == {"anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}
    assert properties["amount"] == {"anyOf": [{"type": "number"}, {"type": "string"}]}
    assert lowered["$defs"]["Cat"]["properties"]["kind"] == {"type": "string", "const": "cat"}
    assert lowered["$defs"]["Cat"]["required"] == ["kind", "lives"]


def test_a_recursive_model_keeps_its_reference_and_has_an_object_at_the_root():
    lowered = lower_schema(Node.model_json_schema(), STRICT_RULES)
    assert_strict(lowered)
    assert lowered["type"] == "object"
    assert lowered["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}
    assert lowered["$defs"]["Node"]["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}


def test_an_optional_property_is_required_and_not_made_nullable():
    lowered = lower_schema(
        obj({"a": {"type": "string", "default": None}, "b": {"type": ["integer", "null"]}}), STRICT_RULES
    )
    assert lowered["required"] == ["a", "b"]
    assert lowered["properties"] == {"a": {"type": "string"}, "b": {"type": ["integer", "null"]}}


def test_annotations_and_inexpressible_constraints_are_left_out():
    name = {"title": "N", "type": "string", "minLength": 2, "maxLength": 9, "examples": ["x"], "default": "y", "x-a": 1}
    lowered = lower_schema({**obj({"name": name}), "title": "T", "$schema": "http://json-schema.org/x"}, STRICT_RULES)
    assert lowered["properties"]["name"] == {"type": "string"}
    assert set(lowered) == {"type", "properties", "required", "additionalProperties"}


def test_a_single_all_of_is_merged_and_definitions_are_renamed():
    schema = obj({"a": {"allOf": [{"$ref": "#/definitions/A"}]}}, definitions={"A": obj({"x": {"const": 3}})})
    lowered = lower_schema(schema, STRICT_RULES)
    assert lowered["properties"]["a"] == {"$ref": "#/$defs/A"}
    assert lowered["$defs"]["A"]["properties"]["x"] == {"type": "integer", "const": 3}


def test_a_type_beside_any_of_belongs_to_each_alternative():
    lowered = lower_schema(
        obj({"a": {"type": "string", "anyOf": [{"pattern": "a+"}, {"format": "date"}]}}), STRICT_RULES
    )
    wanted = [{"type": "string", "pattern": "a+"}, {"type": "string", "format": "date"}]
    assert lowered["properties"]["a"] == {"anyOf": wanted}


def obj(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, **more}


def nested(levels: int) -> dict[str, Any]:
    node: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        node = obj({"a": node})
    return node


REFUSED = [
    ({"$ref": "#"}, "$", "type None"),
    (obj({"a": {"type": "string", "format": "uri"}}), "$.properties.a", "'uri'"),
    (obj({"a": {"enum": [{"b": 1}]}}), "$.properties.a", "{'b': 1}"),
    (obj({"a": {"anyOf": [{"type": "string"}], "enum": ["x"]}}), "$.properties.a", "beside 'enum'"),
    (obj({"a": {"$ref": "#/$defs/A"}}, **{"$defs": {"A": {"type": "object"}}}), "$.$defs.A", "without 'properties'"),
    (nested(11), "$" + ".properties.a" * 10, "nested 11 deep"),
    (obj({f"p{i}": {"type": "string"} for i in range(5_001)}), "$", "5001 properties"),
    (obj({"a": {"enum": list(range(1_001))}}), "$", "1001 enum values"),
    (obj({"a": {"enum": [f"{i:0100}" for i in range(251)]}}), "$.properties.a", "251 values"),
    (obj({"x" * 120_001: {"type": "string"}}), "$", "characters in names"),
]


@pytest.mark.parametrize(("schema", "path", "construct"), REFUSED, ids=[f"{p[-30:]} {c}" for _, p, c in REFUSED])
def test_what_strict_mode_lacks_is_refused_with_construct_and_path(schema, path, construct):
    with pytest.raises(ResponseSchemaError) as caught:
        lower_schema(schema, STRICT_RULES)
    assert construct in str(caught.value)
    assert f" at {path};" in str(caught.value)


def test_ten_levels_are_allowed():
    assert_strict(lower_schema(nested(10), STRICT_RULES))


leaves = st.one_of(
    st.just({"type": "string"}),
    st.just({"type": ["integer", "null"]}),
    st.builds(lambda values: {"enum": values}, st.lists(st.text(), min_size=1, max_size=3, unique=True)),
    st.builds(lambda low: {"type": "integer", "minimum": low, "title": "t"}, st.integers(-5, 5)),
)
nodes = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(lambda items: {"type": "array", "items": items}, inner),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
        st.builds(obj, st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), nodes, min_size=1, max_size=3))
def test_lowering_gives_strict_schemas_and_is_idempotent(properties):
    lowered = lower_schema(obj(properties), STRICT_RULES)
    assert_strict(lowered)
    jsonschema.Draft202012Validator.check_schema(lowered)
    assert lower_schema(lowered, STRICT_RULES) == lowered
