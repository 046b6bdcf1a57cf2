"""Token counts are compared with real tokenizers, and bounds with the vendors' documents.

`token_counts.json` has texts with the number of tokens of each tokenizer, counted on 2026-11-27 by tiktoken 0.14.0
(o200k_base) and tokenizers 0.23.3 (Claude's of 2023, Gemma 3's, Llama 3.1's). The texts are the Universal Declaration
of Human Rights in many languages, made-up CSV, JSON, URLs, base64, digits and emoji, and texts as hard as possible for
a tokenizer.
"""

from __future__ import annotations

import json
import pickle
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.core.identity import make_request, make_requests
from dagster_llm_batch.core.token_counts import (
    InputCounter,
    OutputTokens,
    expected_text_tokens,
    model_max_output,
    most_text_tokens,
    output_tokens,
    tokenizer_of,
)
from dagster_llm_batch.types import Endpoint, Image, RequestSpec, ResponseFormat, ResponseKind, Turn
from tests.tables import table

TEXTS = json.loads((Path(__file__).parent / "token_counts.json").read_text())
TOKENIZERS = ("o200k", "claude", "gemma", "llama")
# The tokenizers of four vendors' models.
MODELS = {
    "o200k": ("openai", "gpt-5-nano"),
    "claude": ("anthropic", "claude-haiku-4-5"),
    "gemma": ("google", "gemini-2.5-flash"),
    "llama": ("aws", "us.meta.llama4-scout-17b-instruct-v1:0"),
}
ORDINARY = ("English", "Spanish", "Chinese", "Hindi", "Arabic", "Japanese", "Python", "csv", "json", "base64", "digits")


def spec_of(model: str = "gpt-5-nano", **rest: Any) -> RequestSpec:
    return RequestSpec(model=model, **rest)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_no_tokenizer_makes_more_tokens_of_a_text_than_its_bound(tokenizer: str) -> None:
    bounds = most_text_tokens([text["text"] for text in TEXTS], tokenizer).tolist()
    over = [text["name"] for text, bound in zip(TEXTS, bounds, strict=True) if text[tokenizer] > bound]
    assert not over
    # The bytes alone are not enough for Claude, whose tokenizer lengthens a text before it splits it.
    in_bytes = [text["name"] for text in TEXTS if text["claude"] > len(text["text"].encode())]
    assert {"Lao", "Punjabi", "one long ligature"} <= set(in_bytes)


@pytest.mark.parametrize("is_ascii", [True, False])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_line_of_a_request_file_bounds_the_tokens_of_its_text(tokenizer: str, is_ascii: bool) -> None:
    book, model = MODELS[tokenizer]
    counter = InputCounter(book, spec_of(model), None)
    for text in TEXTS:
        line = json.dumps({"body": text["text"]}, ensure_ascii=is_ascii, separators=(",", ":")).encode()
        bound = counter.bound_of_line(line, has_files=False)
        assert bound is not None
        assert bound >= most_text_tokens([text["text"]], tokenizer)[0] >= text[tokenizer]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_expected_tokens_are_near_those_of_the_real_tokenizer(tokenizer: str) -> None:
    texts = [text for text in TEXTS if text["name"] in (*ORDINARY, "emoji")]
    counts = expected_text_tokens([text["text"] for text in texts], tokenizer).tolist()
    ratios = {text["name"]: count / text[tokenizer] for text, count in zip(texts, counts, strict=True)}
    assert len(ratios) == len(ORDINARY) + 1
    assert all(0.8 <= ratio <= 1.25 for ratio in ratios.values()), ratios


@table("name", [*ORDINARY, "emoji"])
def test_a_quarter_of_the_bytes_is_no_count_of_tokens(name: str) -> None:
    """Compare with the earlier estimate, per row: from 0.26 of the tokens (digits) to 4.3 times as many (Hindi)."""
    text = next(text for text in TEXTS if text["name"] == name)
    (count,) = InputCounter("openai", spec_of(), None).count(make_requests(None, [text["text"]] * 1)).expected
    frame = 7
    # The text is one stretch only: over many rows, errors even out.
    assert 0.5 <= (count - frame) / text["o200k"] <= 2


@pytest.mark.parametrize(
    ("name", "tokenizer", "before"),
    [
        *(("emoji", "o200k", 1.6), ("Chinese", "gemma", 2.2), ("Hindi", "o200k", 4.3), ("English", "llama", 1.33)),
        *(("csv", "o200k", 0.44), ("base64", "o200k", 0.39), ("digits", "gemma", 0.26)),
    ],
)
def test_a_quarter_of_the_lines_bytes_was_far_off_where_the_rates_are_near(
    name: str, tokenizer: str, before: float
) -> None:
    """Use `before` with a margin of a fifth, since it was measured on other texts of these kinds."""
    text = next(text for text in TEXTS if text["name"] == name)
    assert len(json.dumps(text["text"])) / 4 / text[tokenizer] == pytest.approx(before, rel=0.2)
    (count,) = expected_text_tokens([text["text"]], tokenizer).tolist()
    assert count / text[tokenizer] == pytest.approx(1, abs=0.15)


def test_what_is_looked_at_stands_for_the_rest() -> None:
    english = next(text["text"] for text in TEXTS if text["name"] == "English")
    rows = [(english * 3)[start : start + 300] for start in range(400)]
    whole = int(expected_text_tokens(rows, "o200k").sum())
    counted = sum(InputCounter("openai", spec_of(), None).count(make_requests(None, rows)).expected) - 7 * len(rows)
    assert counted == pytest.approx(whole, rel=0.05)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(max_size=80), min_size=1, max_size=6), st.sampled_from(TOKENIZERS))
def test_counts_of_any_text(texts: list[str], tokenizer: str) -> None:
    bounds = most_text_tokens(texts, tokenizer).tolist()
    for text, bound in zip(texts, bounds, strict=True):
        assert bound >= len(text.encode("utf-8", "surrogatepass"))
        if tokenizer == "claude":
            assert bound >= len(unicodedata.normalize("NFKC", text).encode("utf-8", "surrogatepass"))
    book, model = MODELS[tokenizer]
    counter = InputCounter(book, spec_of(model), None)
    counts = counter.count(make_requests("Answer.", texts))
    assert all(expected <= (bound or 0) for expected, bound in zip(counts.expected, counts.bounds, strict=True))
    # Other requests in the same call do not change the count.
    alone = [counter.count([request]) for request in make_requests("Answer.", texts)]
    assert [(*one.expected, *one.bounds) for one in alone] == list(zip(counts.expected, counts.bounds, strict=True))


def counted(texts: Sequence[str]) -> list[int]:
    """Count a token for every second character."""
    return [len(text) // 2 for text in texts]


def test_a_tokenizer_that_is_at_hand_tells_how_far_the_rates_are_off() -> None:
    finnish = next(text["text"] for text in TEXTS if text["name"] == "Finnish")
    requests = make_requests("Answer.", [(finnish * 40)[start : start + 300] for start in range(900)])
    rated, exact = (InputCounter("openai", spec_of(), None, tokenizer) for tokenizer in (None, counted))
    chunks = [requests[start : start + 256] for start in range(0, 900, 256)]
    by_rates, by_tokenizer = (
        [each for chunk in chunks for each in counter.count(chunk).expected] for counter in (rated, exact)
    )
    # With the instruction, and the frame of a request.
    assert sum(by_tokenizer) == pytest.approx(900 * (150 + 3 + 11), rel=0.04)
    assert sum(by_rates) != pytest.approx(sum(by_tokenizer), rel=0.2)
    bounds = [counter.count(requests).bounds for counter in (rated, exact)]
    assert bounds[0] == bounds[1]


def test_a_tokenizer_looks_at_some_texts_alone_and_stays_where_it_is() -> None:
    seen = 0

    def looking(texts: Sequence[str]) -> list[int]:
        nonlocal seen
        seen += sum(map(len, texts))
        return counted(texts)

    counter = InputCounter("openai", spec_of(), None, looking)
    for _ in range(5):
        counter.count(make_requests(None, ["word " * 20_000] * 300))
    assert seen < 110_000
    # A worker gets the rates: a pickled tokenizer may load files from the network.
    copy = pickle.loads(pickle.dumps(InputCounter("openai", spec_of(), None, counted)))
    texts = make_requests(None, ["word " * 20])
    assert copy.count(texts) == InputCounter("openai", spec_of(), None).count(texts)


def test_half_surrogates_are_counted() -> None:
    counts = InputCounter("anthropic", spec_of("claude-haiku-4-5"), None).count(make_requests(None, ["\ud800 half"]))
    assert counts.bounds[0] is not None
    assert counts.bounds[0] >= counts.expected[0] > 0


def test_what_frames_a_request_is_counted() -> None:
    user = make_requests(None, ["Which kind?"])
    plain = InputCounter("openai", spec_of(), None).count(user)
    schema = {"type": "object", "properties": {"kind": {"enum": ["a", "b"]}}}
    more = {
        "system": InputCounter("openai", spec_of(), None).count(make_requests("You sort tickets.", ["Which kind?"])),
        "turns": InputCounter("openai", spec_of(turns=(Turn("user", "x" * 50), Turn("assistant", "y"))), None).count(
            user
        ),
        "schema": InputCounter(
            "openai", spec_of(response=ResponseFormat(ResponseKind.JSON, json_schema=schema)), None
        ).count(user),
        "tools": InputCounter(
            "openai", spec_of(params={"tools": [{"type": "function", "function": {"name": "f"}}]}), None
        ).count(user),
    }
    for counts in more.values():
        assert counts.expected[0] > plain.expected[0]
        assert (counts.bounds[0] or 0) > (plain.bounds[0] or 0)
    # Two messages of 50 and 1 bytes, which can be 51 tokens.
    assert (more["turns"].bounds[0] or 0) >= (plain.bounds[0] or 0) + 51


def test_each_request_has_its_own_system_part() -> None:
    counter = InputCounter("openai", spec_of(), None)
    requests = [make_request(system, "text") for system in ("a" * 100, None, "b", "a" * 100)]
    bounds = counter.count(requests).bounds
    assert bounds[0] == bounds[3]
    assert bounds[1] is not None
    assert bounds[0] is not None
    assert bounds[0] >= bounds[1] + 100
    assert [counter.count([request]).bounds[0] for request in (requests[0], requests[2])] == [bounds[0], bounds[2]]


def test_no_request_has_more_input_than_the_model_takes() -> None:
    counter = InputCounter("openai", spec_of(), 1_000)
    assert counter.count(make_requests(None, ["x" * 5_000, "x"])).bounds == [
        1_000,
        counter.count(make_requests(None, ["x"])).bounds[0],
    ]


@pytest.mark.parametrize(
    ("params", "bound"),
    [
        ({"tools": [{"type": "web_search"}]}, None),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, None),
        ({"tools": [{"googleSearch": {}}]}, None),
        ({"mcp_servers": [{"url": "https://a.example"}]}, None),
        ({"cached_content": "cachedContents/1"}, 400_000),
        ({"previous_response_id": "resp_1"}, 400_000),
    ],
)
def test_what_the_vendor_adds_itself_is_no_longer_bounded_by_the_text(
    params: dict[str, Any], bound: int | None
) -> None:
    for requests in (make_requests(None, ["text"]), [make_request(None, "text", (Image("image/png", b""),))]):
        assert InputCounter("openai", spec_of(params=params), 400_000).count(requests).bounds == [bound]


@pytest.mark.parametrize(
    "tools",
    [
        [{"type": "function", "name": "f"}],
        [{"name": "f", "input_schema": {"type": "object"}}],
        [{"type": "custom", "name": "f", "input_schema": {}}],
        [{"functionDeclarations": [{"name": "f"}]}],
    ],
)
def test_tools_that_the_caller_runs_are_bounded(tools: list[Any]) -> None:
    counts = InputCounter("openai", spec_of(params={"tools": tools}), 400_000).count(make_requests(None, ["text"]))
    assert counts.bounds[0] is not None
    assert counts.bounds[0] < 2_000


def test_an_embedding_is_its_text() -> None:
    spec = spec_of(
        "text-embedding-3-small", endpoint=Endpoint.EMBEDDINGS, response=ResponseFormat(ResponseKind.EMBEDDING)
    )
    counts = InputCounter("openai", spec, None).count(make_requests(None, ["a word"]))
    assert counts.expected[0] <= 3
    assert output_tokens(spec, 8_192) == OutputTokens(0, 0, 0)


@pytest.mark.parametrize(
    ("book", "model", "tokenizer"),
    [
        ("openai", "gpt-4o-mini", "o200k"),
        ("openai", "gpt-4.1", "o200k"),
        ("openai", "o3", "o200k"),
        ("openai", "gpt-4-turbo", "llama"),
        ("openai", "text-embedding-3-small", "llama"),
        ("aws", "us.anthropic.claude-haiku-4-5-20251001-v1:0", "claude"),
        ("aws", "openai.gpt-oss-120b-1:0", "o200k"),
        ("google", "claude-haiku-4-5", "claude"),
        ("google", "publishers/google/models/gemini-2.5-flash", "gemma"),
        ("mistral", "mistral-large-latest", "llama"),
        (None, "Qwen/Qwen2.5-7B-Instruct", "llama"),
    ],
)
def test_each_model_has_a_tokenizer(book: str | None, model: str, tokenizer: str) -> None:
    assert tokenizer_of(book, model) == tokenizer


@pytest.mark.parametrize(
    ("model", "params", "bound"),
    [
        ("gpt-4o", {"max_tokens": 50}, 50),
        ("gpt-5-nano", {"max_completion_tokens": 60}, 60),
        ("gpt-5-nano", {"max_output_tokens": 70}, 70),
        ("gemini-2.5-flash", {"maxOutputTokens": 80, "thinking_config": {"thinking_budget": 40}}, 80),
        ("us.amazon.nova-lite-v1:0", {"inferenceConfig": {"maxTokens": 90}}, 90),
        ("us.amazon.nova-lite-v1:0", {"inferenceConfig": {"max_new_tokens": 91}}, 91),
        ("amazon.titan-text-express-v1", {"textGenerationConfig": {"maxTokenCount": 92}}, 92),
        ("meta.llama3-3-70b-instruct-v1:0", {"max_gen_len": 93}, 93),
        # The vendor decides which of the two limits holds.
        ("gpt-4o", {"max_tokens": 50, "max_completion_tokens": 60}, 60),
        # Thinking is within the limit.
        ("claude-opus-4-5", {"max_tokens": 4_000, "thinking": {"type": "enabled", "budget_tokens": 2_000}}, 4_000),
    ],
)
def test_the_callers_maximum_is_the_bound(model: str, params: dict[str, Any], bound: int) -> None:
    assert output_tokens(spec_of(model, params=params), 400_000) == OutputTokens(bound, bound, bound)


@table(
    ("model", "most"),
    [
        ("gpt-4o", 16_384),
        ("gpt-4o-2024-05-13", 4_096),
        ("gpt-4.1-mini", 32_768),
        ("gpt-5-nano", 128_000),
        ("gpt-5-chat-latest", 16_384),
        ("gpt-5-pro-2025-10-06", 272_000),
        ("gpt-6-astra", 128_000),
        ("o3", 100_000),
        ("o4-mini-2025-04-16", 100_000),
        ("claude-haiku-4-5", 64_000),
        ("us.anthropic.claude-opus-4-1-20250805-v1:0", 32_000),
        ("claude-opus-5-5", 128_000),
        ("publishers/google/models/gemini-2.5-flash", 65_536),
        ("gemini-3.5-flash", 65_536),
        ("us.amazon.nova-micro-v1:0", 10_000),
        ("amazon.nova-2-lite-v1:0", 65_536),
        ("meta.llama4-scout-17b-instruct-v1:0", 8_192),
        ("openai.gpt-oss-120b-1:0", 16_384),
        ("a-model-of-next-year", None),
    ],
)
def test_the_models_maximum_is_the_bound_without_the_callers(model: str, most: int | None) -> None:
    assert model_max_output(model) == most
    assert output_tokens(spec_of(model), None).bound == most
    # The model's input limit bounds replies, if the table does not have the model.
    assert output_tokens(spec_of(model), 1_000_000).bound == (most or 1_000_000)


def test_a_reply_is_expected_to_be_as_its_schema_and_its_thinking() -> None:
    schema = {
        "type": "object",
        "properties": {
            "kind": {"$ref": "#/$defs/Kind"},
            "urgent": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
        "$defs": {"Kind": {"enum": ["billing", "bug", "other"]}},
    }
    form = ResponseFormat(ResponseKind.JSON, json_schema=schema)
    plain = output_tokens(spec_of("gpt-4o", response=form), None)
    assert 20 <= plain.expected <= 100
    assert plain.expected < plain.p95 < plain.bound == 16_384  # type: ignore[operator]  # it is known
    thinking = output_tokens(spec_of("gpt-5-nano", response=form), None)
    assert thinking.expected == plain.expected + 1_024
    quiet = spec_of("gpt-5-nano", response=form, params={"reasoning_effort": "minimal"})
    assert output_tokens(quiet, None).expected == plain.expected + 128
    deep = spec_of("gpt-5-nano", response=form, params={"reasoning": {"effort": "high"}})
    assert output_tokens(deep, None).expected == plain.expected + 4_096
    budget = spec_of("gemini-2.5-pro", response=form, params={"thinking_config": {"thinking_budget": 8_000}})
    assert output_tokens(budget, None).expected == plain.expected + 4_000


def test_a_schema_that_contains_itself_has_an_end() -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"next": {"$ref": "#"}, "value": {"type": "string"}}}
    form = ResponseFormat(ResponseKind.JSON, json_schema=schema)
    assert 0 < output_tokens(spec_of("gpt-4o", response=form), None).expected <= 16_384


def test_what_the_user_expects_is_expected() -> None:
    assert output_tokens(spec_of("gpt-5-nano"), None, said=30) == OutputTokens(30, 120, 128_000)
    limited = spec_of("gpt-5-nano", params={"max_completion_tokens": 100})
    assert output_tokens(limited, None, said=30) == OutputTokens(30, 100, 100)
    assert output_tokens(limited, None, said=0) == OutputTokens(0, 0, 100)
    assert output_tokens(limited, None, said=500) == OutputTokens(100, 100, 100)
