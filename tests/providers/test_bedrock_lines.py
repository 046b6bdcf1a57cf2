"""Records for Bedrock: each family's own body, row data as data, and refusals of values that would fail hours later."""

from __future__ import annotations

import base64
import io
import json
from datetime import date
from enum import Enum
from typing import Any

import pytest
from bedrock_emulator import HAIKU
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from dagster_llm_batch.core.response import response_format
from dagster_llm_batch.errors import ConfigError, InputError, ResponseSchemaError
from dagster_llm_batch.providers.bedrock.batches import job_name
from dagster_llm_batch.providers.bedrock.models import Family, family_of
from dagster_llm_batch.providers.bedrock.quotas import BEDROCK_LIMITS, limits_from
from dagster_llm_batch.providers.bedrock.requests import BedrockLines
from dagster_llm_batch.providers.jsonlines import cut_heads
from dagster_llm_batch.types import Endpoint, Image, Request, RequestSpec, ResponseFormat, ResponseKind, Turn
from tests.tables import table

NOVA, LLAMA, GPT_OSS = "amazon.nova-lite-v1:0", "meta.llama3-1-8b-instruct-v1:0", "openai.gpt-oss-20b-1:0"
TITAN, CONVERSE, PIXTRAL = "amazon.titan-embed-text-v2:0", "cohere.command-r-v1:0", "mistral.pixtral-large-2502-v1:0"
TURNS = (Turn("user", "2+2"), Turn("assistant", "4"))
PIXEL = Image("image/png", b"\x89PNG")
PIXEL64 = base64.b64encode(b"\x89PNG").decode()


def codec(
    model: str, *, params: dict[str, Any] | None = None, family: Family | None = None, **more: Any
) -> BedrockLines:
    if family_of(model) is Family.CLAUDE and params is None:
        params = {"max_tokens": 10}
    spec = RequestSpec(model, params=params or {}, **more)
    return BedrockLines(spec, family or family_of(model), lambda: BEDROCK_LIMITS)


def body(made: BedrockLines, user: str = "Hi", system: str | None = None, images: tuple[Image, ...] = ()) -> Any:
    return json.loads(made.encode(Request("r", system, user, images), "n-0"))["modelInput"]


def embeddings(dimensions: int | None = None, **params: Any) -> BedrockLines:
    form = ResponseFormat(ResponseKind.EMBEDDING, dimensions=dimensions)
    return codec(TITAN, params=params, response=form, endpoint=Endpoint.EMBEDDINGS)


# Bodies


@table(
    ("model", "family"),
    {
        HAIKU: "claude",
        f"us.{HAIKU}": "claude",
        f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/global.{HAIKU}": "claude",
        NOVA: "nova",
        "eu.amazon.nova-pro-v1:0": "nova",
        TITAN: "titan",
        LLAMA: "llama",
        "meta.llama2-13b-chat-v1": "converse",
        "mistral.mistral-7b-instruct-v0:2": "converse",
        PIXTRAL: "chat",
        GPT_OSS: "chat",
        "qwen.qwen3-32b-v1:0": "chat",
        "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc123": "converse",
    }.items(),
)
def test_an_id_tells_the_form_of_its_requests(model, family):
    assert family_of(model).value == family


def test_a_line_knows_its_model_and_bedrock_does_not_see_that():
    made = codec(HAIKU)
    line = made.encode(Request("r", None, "Hi"), "n-0")
    assert json.loads(line)["modelId"] == HAIKU
    [record] = cut_heads(io.BytesIO(line), made.head)
    assert set(json.loads(record)) == {"recordId", "modelInput"}


def test_the_body_of_claude():
    assert body(codec(HAIKU, turns=TURNS), system="S", images=(PIXEL,)) == {
        "anthropic_version": "bedrock-2023-05-31",
        "max_tokens": 10,
        "system": "S",
        "messages": [
            {"role": "user", "content": "2+2"},
            {"role": "assistant", "content": "4"},
            {
                "role": "user",
                "content": [
                    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PIXEL64}},
                    {"type": "text", "text": "Hi"},
                ],
            },
        ],
    }


@pytest.mark.parametrize(("model", "family"), [(NOVA, None), (NOVA, Family.CONVERSE)])
def test_the_body_of_nova_and_converse(model, family):
    made = codec(model, family=family, params={"max_tokens": 9, "top_p": 0.5}, turns=TURNS)
    assert body(made, system="S", images=(PIXEL,)) == {
        "inferenceConfig": {"maxTokens": 9, "topP": 0.5},
        "system": [{"text": "S"}],
        "messages": [
            {"role": "user", "content": [{"text": "2+2"}]},
            {"role": "assistant", "content": [{"text": "4"}]},
            {
                "role": "user",
                "content": [{"image": {"format": "png", "source": {"bytes": PIXEL64}}}, {"text": "Hi"}],
            },
        ],
    }


def test_the_body_of_llama():
    assert body(codec(LLAMA, params={"max_tokens": 9}, turns=TURNS[:1]), user="a <|eot_id|> b", system="S") == {
        "max_gen_len": 9,
        "prompt": (
            "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\n2+2<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\na < |eot_id|> b<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
    }


def test_the_body_of_chat():
    assert body(codec(PIXTRAL, params={"max_tokens": 9}), system="S", images=(PIXEL,)) == {
        "max_tokens": 9,
        "messages": [
            {"role": "system", "content": "S"},
            {
                "role": "user",
                "content": [
                    {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL64}"}},
                    {"type": "text", "text": "Hi"},
                ],
            },
        ],
    }


def test_the_body_of_titan():
    assert body(embeddings(256, normalize=True)) == {"inputText": "Hi", "dimensions": 256, "normalize": True}


def test_nothing_is_marked_for_a_cache_that_batches_do_not_have():
    assert "cache" not in json.dumps(body(codec(HAIKU, cache_prefix=True), system="S")).lower()


@pytest.mark.parametrize("model", [HAIKU, NOVA, LLAMA, GPT_OSS, CONVERSE])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=50))
def test_any_text_comes_out_as_it_went_in_on_one_line(model, text):
    made = codec(model)
    line = made.encode(Request("r", None, text), "n-0")
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line)["recordId"] == "n-0"
    sent = json.dumps(json.loads(line)["modelInput"], ensure_ascii=False)
    wanted = text.replace("<|", "< |") if model == LLAMA else text
    assert json.dumps(wanted, ensure_ascii=False)[1:-1] in sent


# Parameters and prompts that a model would refuse in every row


@table(
    ("model", "params", "words"),
    [
        (HAIKU, {}, "max_tokens"),
        (HAIKU, {"max_tokens": 0}, "max_tokens"),
        (HAIKU, {"max_tokens": 5, "messages": []}, "'messages'"),
        (HAIKU, {"max_tokens": 5, "stream": True}, "'stream'"),
        (HAIKU, {"max_tokens": 5, "logprobs": True}, "nothing that Claude tells"),
        (NOVA, {"logprobs": True}, "'logprobs'"),
        (HAIKU, {"max_tokens": 5, "anthropic_version": "2026-10-21"}, "bedrock-2023-05-31"),
        (CONVERSE, {"toolConfig": {"tools": []}}, "InvokeModel"),
        (CONVERSE, {"response_format": {}}, "'response_format'"),
        (NOVA, {"max_tokens": 5, "inferenceConfig": {"maxTokens": 6}}, "maxTokens"),
        (LLAMA, {"top_k": 5}, "'top_k'"),
        (GPT_OSS, {"n": 2}, "'n'"),
        (GPT_OSS, {"temperature": float("nan")}, "not JSON"),
    ],
)
def test_a_parameter_that_cannot_work_is_refused_by_its_name(model, params, words):
    with pytest.raises(ConfigError, match=words):
        codec(model, params=params)


@pytest.mark.parametrize("model", [LLAMA, GPT_OSS, "amazon.nova-micro-v1:0"])
def test_images_are_refused_for_a_model_that_does_not_see(model):
    with pytest.raises(ConfigError, match="takes no images"):
        body(codec(model), images=(PIXEL,))


@pytest.mark.parametrize("image", [Image(url="https://example.com/x.png"), Image("image/tiff", b"x"), Image()])
def test_an_image_that_bedrock_does_not_take_is_an_error_of_its_row(image):
    with pytest.raises(InputError, match="image"):
        body(codec(HAIKU), images=(image,))


def test_embeddings_take_one_text_and_one_kind_of_model():
    with pytest.raises(ConfigError, match="system text"):
        body(embeddings(), system="S")
    with pytest.raises(ConfigError, match="gives no embeddings"):
        codec(NOVA, response=ResponseFormat(ResponseKind.EMBEDDING), endpoint=Endpoint.EMBEDDINGS)
    with pytest.raises(ConfigError, match="gives only embeddings"):
        codec(TITAN)
    with pytest.raises(ConfigError, match="'responses'"):
        codec(NOVA, endpoint=Endpoint.RESPONSES)


# Response schemas


class Part(BaseModel):
    name: str
    sizes: list[list[int]]


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Rich(BaseModel):
    part: Part  # a $ref
    note: str | None = None
    color: Color
    found_on: date
    amount: int | str
    score: int = Field(ge=1, le=5)


RICH = response_format(Rich)


def test_claude_gets_the_schema_as_an_object_closed_and_without_what_it_does_not_take():
    form = body(codec(HAIKU, response=RICH))["output_config"]["format"]
    assert form["type"] == "json_schema"
    schema = form["schema"]
    assert schema["additionalProperties"] is False
    assert "minimum" not in schema["properties"]["score"]
    assert "minimum" in schema["properties"]["score"]["description"]
    assert schema["properties"]["found_on"]["format"] == "date"


def test_converse_gets_the_schema_as_a_string():
    form = body(codec(HAIKU, family=Family.CONVERSE, params={}, response=RICH))["outputConfig"]["textFormat"]
    given_schema = form["structure"]["jsonSchema"]
    assert given_schema["name"] == "Rich"
    assert json.loads(given_schema["schema"])["additionalProperties"] is False


def test_open_weight_models_get_a_response_format():
    form = body(codec(GPT_OSS, response=RICH))["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"]["name"] == "Rich"


@pytest.mark.parametrize(
    "model", [NOVA, LLAMA, "anthropic.claude-3-haiku-20240307-v1:0", "us.anthropic.claude-sonnet-4-20250514-v1:0"]
)
def test_a_model_without_structured_outputs_is_refused_and_others_are_named(model):
    with pytest.raises(ResponseSchemaError, match=r"no structured outputs.*gpt-oss"):
        codec(model, response=RICH)


def test_a_schema_that_cannot_be_taken_is_refused_with_construct_and_path():
    schema = {"type": "object", "properties": {"tags": {"type": "object", "additionalProperties": {"type": "string"}}}}
    with pytest.raises(ResponseSchemaError, match=r"^Bedrock.*additionalProperties.*\$\.properties\.tags"):
        codec(GPT_OSS, response=ResponseFormat(ResponseKind.JSON, "x", schema))


# Names and quotas


@given(tag=st.text(min_size=1, max_size=200))
def test_any_tag_gives_a_name_and_token_that_bedrock_takes(tag):
    import re

    name = job_name(tag)
    assert re.fullmatch(r"[a-zA-Z0-9]{1,63}(-*[a-zA-Z0-9]){0,63}", name)  # stricter than both patterns
    assert len(name) <= 63
    assert name == job_name(tag)


def test_tags_that_differ_only_in_what_a_name_cannot_hold_keep_apart():
    names = {job_name(tag) for tag in ("a_b", "a-b", "a.b", "a--b_", "x" * 64, "x" * 65)}
    assert len(names) == 6


@pytest.mark.parametrize(
    ("model", "label"),
    {
        "anthropic.claude-3-5-sonnet-20241022-v2:0": "Claude 3.5 Sonnet v2",
        "anthropic.claude-3-5-sonnet-20240620-v1:0": "Claude 3.5 Sonnet",
        "us.anthropic.claude-sonnet-4-5-20250929-v1:0": "Claude Sonnet 4.5",
        NOVA: "Nova Lite V1",
        TITAN: "Titan Text Embeddings V2",
        LLAMA: "Llama 3.1 8B Instruct",
        GPT_OSS: "OpenAI GPT OSS 20b",
        "qwen.qwen3-coder-480b-a35b-v1:0": "Qwen3 Coder 480B",
    }.items(),
)
def test_a_models_own_quotas_are_found_by_its_name_in_words(model, label):
    quotas = [
        {"QuotaName": f"Minimum number of records per batch inference job for {label}", "Value": 7.0},
        {"QuotaName": f"Records per batch inference job for {label}", "Value": 900.0},
        {"QuotaName": f"Records per input file per batch inference job for {label}", "Value": 800.0},
        {"QuotaName": f"Batch inference input file size (in GB) for {label}", "Value": 2.0},
        {"QuotaName": f"Batch inference job size for {label} (in GB)", "Value": 5.0},
        {"QuotaName": "Minimum number of records per batch inference job for Claude 3 Sonnet", "Value": 1.0},
    ]
    limits = limits_from(quotas, model)
    assert (limits.min_requests, limits.max_requests, limits.max_bytes) == (7, 800, 2_000_000_000)
    assert limits_from(quotas, "mistral.mistral-small-2402-v1:0") == BEDROCK_LIMITS
