"""Response schemas: each becomes a schema of Anthropic's subset, and the description explains the rest."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, Field

from dagster_llm_batch.providers.anthropic.schema import ANTHROPIC_RULES
from dagster_llm_batch.providers.json_schema import lower_schema


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


def test_reference_optional_enum_nested_list_union_and_date_are_taken():
    lowered = lower_schema(Ticket.model_json_schema(), ANTHROPIC_RULES)
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
    lowered = lower_schema(theirs, ANTHROPIC_RULES)
    assert set(lowered["properties"]) == set(theirs["properties"])
    assert lowered["required"] == theirs["required"]


def test_several_types_become_alternatives():
    schema = {"type": "object", "properties": {"a": {"type": ["string", "null"], "maxLength": 3}}}
    assert lower_schema(schema, ANTHROPIC_RULES)["properties"]["a"] == {
        "anyOf": [{"type": "string", "description": "(maxLength: 3)"}, {"type": "null"}]
    }
