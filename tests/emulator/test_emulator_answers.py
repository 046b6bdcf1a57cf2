from __future__ import annotations

import random
from enum import Enum
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel, Field

from dagster_llm_batch.testing.emulator import body_digest, simulated_answer
from dagster_llm_batch.testing.emulator.answers import prompt_tokens
from dagster_llm_batch.testing.emulator.schemas import instance, strict_problem


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


class Part(BaseModel):
    name: Annotated[str, Field(max_length=20)]
    share: Annotated[float, Field(gt=0, lt=1)]


class Label(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    urgency: Annotated[int, Field(ge=1, le=5)]
    mood: Mood
    certain: bool
    note: str | None
    parts: Annotated[list[Part], Field(min_length=2, max_length=3)]
    best: Part | None
    step: Annotated[int, Field(multiple_of=5, ge=7)]


@pytest.mark.parametrize("schema", [Label.model_json_schema(), to_strict_json_schema(Label)])
def test_the_simulated_instance_satisfies_the_schema_for_any_text(schema):
    source = random.Random(0)
    for _ in range(200):
        text = "".join(source.choices("abc ümöß\u2028\n", k=source.randrange(60)))
        jsonschema.validate(instance(schema, text), schema)


def test_the_instance_depends_on_the_text_alone_and_prefers_an_enum_that_it_names():
    schema = Label.model_json_schema()
    assert instance(schema, "a bug in it") == instance(schema, "a bug in it")
    assert instance(schema, "a bug in it")["topic"] == "bug"
    assert instance(schema, "the billing is off")["topic"] == "billing"
    assert len({instance(schema, f"text {index}")["urgency"] for index in range(50)}) == 5


def test_strict_mode_takes_what_the_sdk_makes_and_refuses_the_plain_schema():
    assert strict_problem(to_strict_json_schema(Label)) is None
    assert "additionalProperties" in (strict_problem(Label.model_json_schema()) or "")


def strict(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@pytest.mark.parametrize(
    "inner",
    [
        {"type": "object", "properties": {}},
        {"type": "array", "items": {"type": "object"}},
        {"anyOf": [{"type": "null"}, {"type": "object", "properties": {}}]},
        {"oneOf": [{"type": "string"}]},
        {"allOf": [{"type": "string"}]},
    ],
)
def test_strict_mode_looks_into_every_part_of_the_schema(inner):
    assert strict_problem(strict(a={"type": "string"})) is None
    assert "'properties', 'a'" in (strict_problem(strict(a=inner)) or "")


def test_embeddings_have_the_asked_dimensions_and_unit_length():
    reply = simulated_answer({"input": ["a", "b"], "dimensions": 40}, "/v1/embeddings")
    assert reply.embeddings is not None
    assert [len(vector) for vector in reply.embeddings] == [40, 40]
    assert reply.embeddings[0] != reply.embeddings[1]
    assert sum(number * number for number in reply.embeddings[0]) == pytest.approx(1)


def test_a_bodys_digest_ignores_the_order_of_keys_and_nothing_else():
    first = body_digest("/v1/responses", {"model": "m", "input": "x"})
    assert first == body_digest("/v1/responses", {"input": "x", "model": "m"})
    assert len({first, body_digest("/v1/responses", {"model": "n", "input": "x"}), body_digest("/v1/x", {})}) == 3


def test_prompt_tokens_are_a_quarter_of_the_characters_of_every_text_part():
    parts = [{"type": "text", "text": "x" * 40}, {"type": "image_url", "image_url": {"url": "data:," + "y" * 9000}}]
    messages = [{"role": "system", "content": "s" * 40}, {"role": "user", "content": parts}]
    assert prompt_tokens({"messages": messages}) == 20 + 85
