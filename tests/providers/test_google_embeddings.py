"""Batches of embeddings of Gemini: the documented lines, and refusals of requests with wrong but paid answers.

https://docs.cloud.google.com/vertex-ai/generative-ai/docs/embeddings/batch-prediction-genai-embeddings, 2026-09-15,
google-genai 3.6.1, and the recorded facts, 2026-11
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from google_emulator import gemini, vertex, vertex_in_tables
from sample_batches import batch_file

from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.emulator import Emulator
from dagster_llm_batch.types import (
    Endpoint,
    Image,
    Outcome,
    PriceBasis,
    Request,
    RequestSpec,
    ResponseFormat,
    ResponseKind,
    Turn,
)

NOWHERE = "http://127.0.0.1:9"


def spec(model: str = "gemini-embedding-001", size: int | None = 768, **more: Any) -> RequestSpec:
    return RequestSpec(model, ResponseFormat(ResponseKind.EMBEDDING, dimensions=size), Endpoint.EMBEDDINGS, **more)


@pytest.fixture(scope="module")
def emulator():
    with Emulator() as running:
        yield running


def line(provider: Any, of: RequestSpec, text: str = "title: sample | text: Hello") -> dict[str, Any]:
    return json.loads(provider.codec(of).encode(Request("r", None, text), "id_1"))


def test_a_line_for_vertex_is_the_documented_one_with_the_model_taken_off(emulator) -> None:
    made = line(vertex(emulator, NOWHERE, location="global"), spec("gemini-embedding-2"))
    assert made.pop("model") == "gemini-embedding-2"
    assert made == {
        "key": "id_1",
        "request": {
            "content": {"parts": [{"text": "title: sample | text: Hello"}]},
            "embed_content_config": {"output_dimensionality": 768},
        },
    }


def test_a_line_for_the_gemini_api_has_its_options_in_the_config(emulator) -> None:
    made = line(gemini(emulator), spec(params={"task_type": "RETRIEVAL_DOCUMENT", "title": "t"}))
    assert made["request"] == {
        "model": "models/gemini-embedding-001",
        "content": {"parts": [{"text": "title: sample | text: Hello"}]},
        "embedContentConfig": {"outputDimensionality": 768, "taskType": "RETRIEVAL_DOCUMENT", "title": "t"},
    }
    assert "embedContentConfig" not in line(gemini(emulator), spec(size=None))["request"]


@pytest.mark.parametrize(
    ("response", "tokens"),
    [
        ({"tokenCount": "2", "embedding": {"values": [0.5, -1]}}, 2),
        ({"tokenCount": 2, "embedding": {"values": [0.5, -1]}}, 2),
        ({"embedding": {"values": [0.5, -1]}, "usageMetadata": {"promptTokenCount": 2, "totalTokenCount": 2}}, 2),
        ({"embedding": {"values": [0.5, -1]}}, None),
        ({"embeddings": [{"values": [0.5, -1]}]}, None),
    ],
)
def test_result_lines_are_read_wherever_the_count_stands(emulator, response, tokens) -> None:
    row = {"key": "id_1", "request": {"content": {}}, "status": "", "response": response}
    result = gemini(emulator).codec(spec()).decode(json.dumps(row).encode())
    assert (result.custom_id, result.outcome, result.embedding) == ("id_1", Outcome.SUCCEEDED, [0.5, -1.0])
    assert (result.usage and result.usage.input_tokens) == tokens


@pytest.mark.parametrize(
    ("row", "outcome", "reason"),
    [
        ({"error": {"code": 3, "message": "too long"}}, Outcome.ERRORED, "3: too long"),
        (
            {"status": 'Bad Request: {"error": {"code": 400, "message": "no"}}', "response": {}},
            Outcome.ERRORED,
            "400: no",
        ),
        ({"response": {"embedding": {}}}, Outcome.INVALID, "the reply holds no embedding"),
        ({"response": {"embedding": {"values": [0.1, "x"]}}}, Outcome.INVALID, "unreadable reply"),
        ({"response": {}}, Outcome.ERRORED, "neither a reply nor an error"),
    ],
)
def test_rows_that_failed_say_why(emulator, row, outcome, reason) -> None:
    result = gemini(emulator).codec(spec()).decode(json.dumps({"key": "id_1", **row}).encode())
    assert (result.custom_id, result.outcome) == ("id_1", outcome)
    assert reason in result.reason


def test_the_gemini_api_is_asked_by_its_own_method_and_by_file_however_small() -> None:
    with Emulator() as running:
        provider = gemini(running, inline_bytes=1_000_000)
        provider.submit(batch_file(provider.codec(spec())), spec(), "tag")
        [created] = running.books.batches
    assert created.endpoint == "asyncBatchEmbedContent"
    assert created.input_file_id == running.books.files[0].id


@pytest.mark.parametrize("model", ["text-embedding-004", "text-embedding-005", "text-multilingual-embedding-002"])
def test_a_model_whose_results_name_no_row_is_refused(emulator, model) -> None:
    with pytest.raises(ConfigError, match="rows of the same text could not be told apart"):
        vertex(emulator, NOWHERE).codec(spec(model))


@pytest.mark.parametrize(
    ("provider", "of", "said"),
    [
        (lambda at: vertex(at, NOWHERE), spec("gemini-embedding-2"), "global, us, eu alone"),
        (vertex_in_tables, spec(), "Cloud Storage alone"),
        (lambda at: vertex(at, NOWHERE), spec("gemini-2.5-flash"), "is no model of embeddings"),
        (
            gemini,
            spec("gemini-embedding-2", params={"task_type": "RETRIEVAL_QUERY"}),
            "ignores taskType without an error",
        ),
        (gemini, spec(params={"output_dimensionality": 8}), "Embedding"),
        (gemini, RequestSpec("gemini-embedding-001"), "an embedding model answers 'embeddings'"),
        (gemini, spec(turns=(Turn("user", "x"), Turn("assistant", "y"))), "few-shot turns"),
    ],
)
def test_what_would_be_paid_and_not_be_what_was_asked_is_refused(emulator, provider, of, said) -> None:
    with pytest.raises(ConfigError, match=said):
        provider(emulator).codec(of)


@pytest.mark.parametrize(
    "request_", [Request("r", "be terse", "x"), Request("r", None, "x", (Image(url="https://h/a"),))]
)
def test_embeddings_take_one_text(emulator, request_) -> None:
    with pytest.raises(ConfigError, match="Embeddings take one text"):
        gemini(emulator).codec(spec()).encode(request_, "n-0")


def test_a_batch_of_embeddings_has_a_price() -> None:
    assert tariff("google", "gemini-embedding-001", datetime(2026, 11, 24, tzinfo=UTC)).basis is not PriceBasis.UNKNOWN
