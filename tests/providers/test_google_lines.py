"""Google's lines: their content, and refusals before sending."""

from __future__ import annotations

import io
import json
import re
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from dagster_llm_batch import GeminiBatchResource
from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.errors import ConfigError, InputError, RefusedError, ResponseSchemaError
from dagster_llm_batch.providers.google.requests import GoogleLines, model_head
from dagster_llm_batch.providers.google.schema import GOOGLE_RULES, import_problem
from dagster_llm_batch.providers.google.vertex import VertexProvider
from dagster_llm_batch.providers.google.vertex_claude import VertexClaudeLines
from dagster_llm_batch.providers.json_schema import lower_schema
from dagster_llm_batch.providers.jsonlines import cut_heads
from dagster_llm_batch.types import (
    BatchLimits,
    Endpoint,
    Image,
    PriceBasis,
    Request,
    RequestSpec,
    ResponseFormat,
    ResponseKind,
    Turn,
    Usage,
)
from tests.faults.test_origins import Server

LIMITS = BatchLimits(10, 10_000)
CLAUDE = VertexClaudeLines(RequestSpec("claude-x", params={"max_tokens": 9}), LIMITS)


def codec(imported: bool = True, **spec: Any) -> GoogleLines:
    return GoogleLines(RequestSpec("gemini-x", **spec), LIMITS, "custom_id" if imported else "key", imported=imported)


def as_json(schema: dict[str, Any]) -> ResponseFormat:
    return ResponseFormat(ResponseKind.JSON, "Label", schema)


@pytest.mark.parametrize(
    ("model", "usage", "cost", "basis"),
    [
        # 600 fresh at 0.15, 400 cached at 0.03, 1,000 out (900 of them thought) at 1.25, in USD per million tokens
        ("gemini-2.5-flash", Usage(1000, 1000, 400, reasoning_tokens=900), "0.001352", PriceBasis.BATCH),
        # 1,000 fresh at 3, 1,000 written at 3.75, 1,000 read at 0.30, half of it
        ("claude-sonnet-4-5", Usage(3000, 0, 1000, 1000), "0.003525", PriceBasis.HALF),
    ],
)
def test_thoughts_and_cached_tokens_cost_what_the_book_says(model, usage, cost, basis):
    price = tariff("google", model, datetime(2026, 11, 24, tzinfo=UTC)).price(usage)
    assert (round(price.cost_usd, 6), price.basis) == (Decimal(cost), basis)


def test_a_line_holds_the_constant_part_the_system_the_turns_and_the_user():
    lines = codec(
        params={"max_output_tokens": 9, "temperature": 0, "safetySettings": [{"category": "C", "threshold": "T"}]},
        turns=(Turn("user", "2+2?"), Turn("assistant", "4")),
    )
    assert json.loads(lines.encode(Request("r", "Be brief.", "3+3?"), "n-1")) == {
        "model": "gemini-x",
        "custom_id": "n-1",
        "request": {
            "safetySettings": [{"category": "C", "threshold": "T"}],
            "generationConfig": {"maxOutputTokens": 9, "temperature": 0},
            "systemInstruction": {"parts": [{"text": "Be brief."}]},
            "contents": [
                {"role": "user", "parts": [{"text": "2+2?"}]},
                {"role": "model", "parts": [{"text": "4"}]},
                {"role": "user", "parts": [{"text": "3+3?"}]},
            ],
        },
    }


def test_images_are_inline_data_or_addresses_with_a_media_type():
    images = (Image("image/png", b"\x89PNG"), Image(url="gs://b/a.jpg"))
    [content] = json.loads(codec().encode(Request("r", None, "What?", images), "n-1"))["request"]["contents"]
    assert content["parts"][1:] == [
        {"inlineData": {"mimeType": "image/png", "data": "iVBORw=="}},
        {"fileData": {"mimeType": "image/jpeg", "fileUri": "gs://b/a.jpg"}},
    ]
    with pytest.raises(InputError, match="needs a media type"):
        codec().encode(Request("r", None, "What?", (Image(url="https://h/a"),)), "n-1")


@given(text=st.text(st.characters(codec=None)), custom_id=st.from_regex(r"[A-Za-z][\w-]{0,20}", fullmatch=True))
def test_any_text_stays_one_string_of_one_ascii_line(text, custom_id):
    for lines in (codec(), codec(imported=False), CLAUDE):
        line = lines.encode(Request("r", text, text), custom_id)
        assert line.isascii()
        assert line.count(b"\n") == 1
        [sent] = cut_heads(io.BytesIO(line), model_head("claude-x" if lines is CLAUDE else "gemini-x"))
        row = json.loads(sent)
        assert set(row) in ({"custom_id", "request"}, {"key", "request"})
        assert custom_id in row.values()
        assert "\ud800" not in json.dumps(row, ensure_ascii=False)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"max_tokens": 5}, "is called 'max_output_tokens' here"),
        ({"contents": []}, "comes from the prompt"),
        ({"stream": True}, "is not possible in a batch"),
        ({"candidate_count": 2}, "'candidateCount' must be 1"),
        ({"temperature": float("nan")}, "is not JSON"),
    ],
)
def test_a_parameter_that_cannot_work_is_refused_by_name(params, said):
    with pytest.raises(ConfigError, match=said):
        codec(imported=False, params=params)


def test_other_endpoints_are_refused():
    for spec in ({"endpoint": Endpoint.RESPONSES}, {"endpoint": Endpoint.EMBEDDINGS}):
        with pytest.raises(ConfigError, match="not supported here at Google with this model; supported is 'chat'"):
            codec(**spec)


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"tools": [{"googleSearch": {}}]}, "an empty object at request.tools"),
        ({"labels": {"team": None}}, "a null at request.labels.team"),
        ({"labels": {"a b": "x"}}, "the name 'a b'"),
        ({"stopSequences": ["x", 1]}, "values of two types, string and number"),
        ({"stopSequences": ["007"]}, "would be read as a number"),
    ],
)
def test_what_the_importer_would_fail_hours_later_is_refused_for_vertex_and_taken_by_gemini(params, said):
    with pytest.raises(ConfigError, match=said):
        codec(params=params)
    codec(imported=False, params=params)


class Item(BaseModel):
    sku: str
    when: datetime


class Label(BaseModel):
    """With a reference, an optional, an enum, a nested list, a union and a date."""

    topic: Literal["billing", "bug"]
    item: Item
    items: list[list[Item]]
    note: str | None = None
    value: int | str
    stars: Literal[1, 2, 3]


def test_references_optionals_enums_nested_lists_unions_and_dates_are_lowered():
    item = {
        "type": "OBJECT",
        "properties": {"sku": {"type": "STRING"}, "when": {"type": "STRING", "format": "date-time"}},
        "propertyOrdering": ["sku", "when"],
        "required": ["sku", "when"],
    }
    lowered = lower_schema(Label.model_json_schema(), GOOGLE_RULES)
    assert lowered.pop("description").startswith("With a reference")
    assert lowered == {
        "type": "OBJECT",
        "properties": {
            "topic": {"type": "STRING", "enum": ["billing", "bug"]},
            "item": item,
            "items": {"type": "ARRAY", "items": {"type": "ARRAY", "items": item}},
            "note": {"type": "STRING", "nullable": True},
            "value": {"anyOf": [{"type": "INTEGER"}, {"type": "STRING"}]},
            "stars": {"type": "INTEGER", "minimum": 1, "maximum": 3},
        },
        "propertyOrdering": ["topic", "item", "items", "note", "value", "stars"],
        "required": ["topic", "item", "items", "value", "stars"],
    }
    assert import_problem({"request": {"generationConfig": {"responseSchema": lowered}}}) is None


def test_lists_of_types_become_nullable_or_a_union_and_no_dollar_sign_is_left():
    lowered = lower_schema(
        {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "type": "object",
            "properties": {"a": {"type": ["string", "null"]}, "b": {"type": ["string", "number", "null"]}},
        },
        GOOGLE_RULES,
    )
    assert lowered["properties"] == {
        "a": {"type": "STRING", "nullable": True},
        "b": {"anyOf": [{"type": "STRING"}, {"type": "NUMBER"}], "nullable": True},
    }
    assert "$" not in json.dumps(lowered)


def of(part: Any, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": part}, **more}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (of({"enum": [1, 5]}), "whole numbers without a gap"),
        (of({"type": "null"}), "a value that is always null"),
        (of({"type": "object", "additionalProperties": False}), "an object without 'properties'"),
    ],
)
def test_a_construct_that_gemini_cannot_take_is_refused_with_its_path(schema, said):
    for imported in (True, False):
        with pytest.raises(ResponseSchemaError, match=said):
            codec(imported=imported, response=as_json(schema))


def deep(levels: int) -> dict[str, Any]:
    return {"type": "object", "properties": {"x": deep(levels - 1) if levels > 1 else {"type": "string"}}}


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "object", "properties": {"due date": {"type": "string"}}}, "the name 'due date'"),
        (deep(8), "nested more than 15 deep"),
        (of({"enum": ["007", "12"]}), "the text '007', which would be read as a number"),
    ],
)
def test_a_schema_that_only_the_importer_cannot_take_is_refused_for_vertex_alone(schema, said):
    with pytest.raises(ResponseSchemaError, match=said):
        codec(response=as_json(schema))
    codec(imported=False, response=as_json(schema))


def test_claude_answers_a_schema_by_the_one_tool():
    spec = RequestSpec("claude-x", as_json(Label.model_json_schema()), params={"max_tokens": 9})
    request = json.loads(VertexClaudeLines(spec, LIMITS).encode(Request("r", "S", "U"), "n-1"))["request"]
    assert request["tool_choice"] == {"type": "tool", "name": "Label"}
    schema = request["tools"][0]["input_schema"]
    assert schema["properties"]["note"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    assert schema["additionalProperties"] is False
    assert request["system"] == [{"type": "text", "text": "S"}]
    for params, said in (({}, "needs params="), ({"max_tokens": 9, "thinking": {"type": "enabled"}}, "cannot think")):
        with pytest.raises(ConfigError, match=said):
            VertexClaudeLines(RequestSpec("claude-x", spec.response, params=params), LIMITS)


@pytest.mark.parametrize(
    "model",
    [
        "publishers/meta/models/llama-3.3-70b-instruct-maas",
        "projects/p/locations/l/publishers/qwen/models/qwen3-235b-a22b-instruct-2507-maas",
        "deepseek-v3.1-maas",
        "openai/gpt-oss-120b-maas",
        "gpt-oss-20b",
    ],
)
def test_an_open_model_on_vertex_is_refused_before_anything_is_sent(model):
    with pytest.raises(ConfigError, match=rf"'{re.escape(model)}' is not one of Google's or Claude.*Nothing was sent"):
        VertexProvider("p", "us-central1", "b").codec(RequestSpec(model))


@pytest.mark.parametrize("model", ["kimi-k2", "glm-4.6", "mistral-large", "grok-4", "gemma-3-27b-it", "minimax-m2"])
def test_a_short_name_that_is_not_googles_is_an_open_model(model):
    with pytest.raises(
        ConfigError, match=rf"'{model}' is not one of Google's or Claude.*'publishers/google/models/NAME'"
    ):
        VertexProvider("p", "us-central1", "b").codec(RequestSpec(model))


@pytest.mark.parametrize(
    "model",
    [
        "gemini-2.5-flash",
        "publishers/google/models/gemini-2.5-flash",
        "publishers/google/models/next",
        "projects/p/locations/l/models/123",
    ],
)
def test_a_model_of_google_or_of_ones_own_is_not(model):
    VertexProvider("p", "us-central1", "b").codec(RequestSpec(model))


SCHEMA_OF_V1 = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("spec", "request_", "lacking"),
    [
        (RequestSpec("gemini-2.5-flash"), Request("r", "Be brief.", "text"), "a system part"),
        (
            RequestSpec("gemini-2.5-flash", response=ResponseFormat(ResponseKind.JSON, SCHEMA_OF_V1)),
            Request("r", None, "text"),
            "responses by a schema",
        ),
        (RequestSpec("gemini-2.5-flash", params={"tools": []}), Request("r", None, "text"), "the field 'tools'"),
        (
            RequestSpec("gemini-2.5-flash", params={"thinking_config": {"thinkingBudget": 0}}),
            Request("r", None, "text"),
            "the field 'thinkingConfig'",
        ),
        (
            RequestSpec("gemini-2.5-flash"),
            Request("r", None, "text", (Image(url="https://a/b.png"),)),
            "images by URL",
        ),
        (RequestSpec("gemini-flash-latest"), Request("r", None, "text"), "the alias 'gemini-flash-latest'"),
    ],
)
def test_gemini_by_v1_refuses_what_that_version_lacks_and_v1beta_takes_it(spec, request_, lacking):
    def line(version):
        codec = GeminiBatchResource(api_key="k", api_version=version).provider().codec(spec)
        codec.check_parameters()
        return codec.encode(request_, "c-1")

    with pytest.raises(ConfigError, match=re.escape(lacking) + ".*Nothing was sent. Leave api_version out"):
        line("v1")
    assert line("v1beta")


def test_gemini_by_v1_takes_what_that_version_has():
    params = {"temperature": 0, "max_output_tokens": 8, "top_k": 1, "safety_settings": []}
    provider = GeminiBatchResource(api_key="k", api_version="v1").provider()
    assert provider.codec(RequestSpec("gemini-2.5-flash", params=params)).encode(Request("r", None, "text"), "c-1")


def test_gemini_is_called_by_v1beta_or_by_the_version_that_is_set():
    said = 'Invalid JSON payload received. Unknown name "systemInstruction": Cannot find field.'
    body = json.dumps({"error": {"code": 400, "message": said, "status": "INVALID_ARGUMENT"}}).encode()
    with Server(lambda _asked: (400, {"content-type": "application/json"}, body)) as server:
        for changes, version in (({}, "v1beta"), ({"api_version": "v1"}, "v1")):
            resource = GeminiBatchResource(api_key="k", base_url=server.url, **changes)
            with pytest.raises(RefusedError, match=r"systemInstruction.*Set api_version of the provider: 'v1beta'"):
                resource.provider().poll(["batches/b"])
            assert server.asked[-1].path == f"/{version}/batches/b"
    with pytest.raises(ConfigError, match="api_version is '1'; the Gemini API has 'v1beta' and 'v1'"):
        GeminiBatchResource(api_key="k", api_version="1").provider()
