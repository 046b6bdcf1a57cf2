"""Response schemas: what Anthropic takes is lowered, and what would change the reply's shape is refused by name."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from dagster_llm_batch.errors import ResponseSchemaError
from dagster_llm_batch.providers.anthropic.schema import claude_schema


class Topic(StrEnum):
    BILLING = "billing"
    BUG = "bug"


class Part(BaseModel):
    name: str
    score: Annotated[float, Field(ge=0, le=1)]


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]


class Ticket(BaseModel):
    topic: Topic
    again: Annotated[Topic, Field(description="the second topic")]
    note: str | None = None
    parts: list[list[Part]]
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    due: dt.date
    code: Annotated[str, Field(pattern="^[a-z]+$", max_length=3, description="its code")]


class Node(BaseModel):
    children: list[Node] = []


def test_reference_optional_enum_nested_list_union_and_date_are_taken():
    lowered = claude_schema(Ticket.model_json_schema())
    properties = lowered["properties"]
    assert lowered["additionalProperties"] is False
    assert lowered["required"] == ["topic", "again", "parts", "pet", "due", "code"]
    assert properties["topic"] == {"$ref": "#/$defs/Topic"}
    assert properties["again"] == {"enum": ["billing", "bug"], "description": "the second topic"}
    assert properties["note"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert properties["parts"]["items"]["items"] == {"$ref": "#/$defs/Part"}
    assert properties["pet"] == {"anyOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}]}
    assert properties["due"] == {"type": "string", "format": "date"}
    assert properties["code"] == {"type": "string", "description": 'its code (maxLength: 3, pattern: "^[a-z]+$")'}
    assert lowered["$defs"]["Part"]["properties"]["score"] == {
        "type": "number",
        "description": "(minimum: 0, maximum: 1)",
    }


def test_what_the_sdk_would_send_is_taken_too():
    anthropic = pytest.importorskip("anthropic")
    theirs = anthropic.transform_schema(Ticket.model_json_schema())
    lowered = claude_schema(theirs)
    assert set(lowered["properties"]) == set(theirs["properties"])
    assert lowered["required"] == theirs["required"]


def test_several_types_become_alternatives():
    schema = {"type": "object", "properties": {"a": {"type": ["string", "null"], "maxLength": 3}}}
    assert claude_schema(schema)["properties"]["a"] == {
        "anyOf": [{"type": "string", "description": "(maxLength: 3)"}, {"type": "null"}]
    }


def of(property_schema, **more):
    return {"type": "object", "properties": {"a": property_schema}, **more}


REFUSED = [
    (of({"type": "object"}), r"a map with free keys at \$\.properties\.a"),
    (of({"type": "object", "additionalProperties": {"type": "string"}}), "'additionalProperties'"),
    (of({"type": "array", "prefixItems": [{"type": "string"}]}), r"'prefixItems' at \$\.properties\.a"),
    (of({"type": "array"}), "an array without 'items'"),
    (of({"type": "array", "items": {"not": {}}}), r"'not' at \$\.properties\.a\.items"),
    (of({}), "a value of any type"),
    (of(True), "the schema True"),
    (of({"enum": [["x"]]}), "the enum value"),
    (of({"enum": []}), "an empty enum"),
    (of({"allOf": [{"type": "string"}, {"type": "string"}]}), "'allOf' of several"),
    (of({"$ref": "#/$defs/Nothing"}), "the reference"),
    (of({"$ref": "#"}), "recursive"),
    (of({"type": "text"}), "the type 'text'"),
    (of({"type": "string"}, required=["b"]), "the required property 'b'"),
    ({"type": "array", "items": {"type": "string"}}, "the root must be an object"),
    ({"anyOf": [of({"type": "string"})]}, "the root must be one object"),
    (Node.model_json_schema(), "the recursive definition 'Node'"),
    (of({"$ref": "#/$defs/N"}, **{"$defs": {"N": of({"$ref": "#/$defs/N"})}}), "the recursive definition 'N'"),
]


@pytest.mark.parametrize(("schema", "message"), REFUSED)
def test_what_cannot_be_taken_is_refused_with_construct_and_path(schema, message):
    with pytest.raises(ResponseSchemaError, match=message):
        claude_schema(schema)
