"""The cost of every vendor's replies, by hand: each field that has a price, at the prices of the vendor's own list.

A case is a reply's usage, and its cost, written out. `1000@0.025` are tokens at US dollars a million, and `2x0.01` are
units with a price each. `?` is an unknown cost; its basis must then contain `names`. `doc` is the source of the prices,
with its date.
"""

# ruff: noqa: E501 -- a reply a line: they are a table

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.providers.anthropic.replies import read_line as read_anthropic
from dagster_llm_batch.providers.bedrock.replies import read_line as read_bedrock
from dagster_llm_batch.providers.google.replies import read_google_line
from dagster_llm_batch.providers.google.vertex import VERTEX_LIMITS
from dagster_llm_batch.providers.google.vertex_claude import VertexClaudeLines
from dagster_llm_batch.providers.openai_api.replies import read_line as read_openai
from dagster_llm_batch.providers.usage import CHAT, extra_of
from dagster_llm_batch.types import TOKENS, Endpoint, Lane, Outcome, PriceBasis, RequestSpec, Result
from tests.tables import table

AT = datetime(2026, 11, 27, tzinfo=UTC)

OPENAI = "https://developers.openai.com/api/docs/pricing, 2026-10-14"
OPENAI_TOOLS = "https://developers.openai.com/api/docs/pricing#built-in-tools, 2026-10-12"
OPENROUTER = "https://openrouter.ai/docs/features/batches, 2026-11"
XAI = "https://docs.x.ai/docs/models, 2026-10-14; reasoning beside the output: seen live 2026-09"
CLAUDE = "https://platform.claude.com/docs/en/about-claude/pricing, 2026-10-14"
CLAUDE_CACHE = "https://platform.claude.com/docs/en/build-with-claude/prompt-caching#pricing, 2026-10-14"
CLAUDE_GEO = "https://platform.claude.com/docs/en/about-claude/pricing#data-residency-pricing, 2026-08"
CLAUDE_LONG = "https://platform.claude.com/docs/en/about-claude/pricing#long-context-pricing, 2026-10-14"
CLAUDE_VERTEX = "https://platform.claude.com/docs/en/build-with-claude/claude-on-vertex-ai, 2026-08"
BEDROCK = "https://aws.amazon.com/bedrock/pricing/, 2026-11"
BEDROCK_TIERS = "https://docs.aws.amazon.com/bedrock/latest/userguide/service-tiers-inference.html, 2025-11"
GEMINI = "https://ai.google.dev/gemini-api/docs/pricing, 2026-10-14"
VERTEX = "https://cloud.google.com/vertex-ai/generative-ai/pricing, 2026-10"
NOWHERE = "no document has its price"


@dataclass(frozen=True)
class Case:
    """One reply. `cost` as in the module's docstring; `names` is a part of the basis of an unknown cost."""

    name: str
    model: str
    usage: Mapping[str, Any] | None
    cost: str
    doc: str
    lane: Lane = Lane.BATCH
    names: str = ""
    book: str | None = None
    reply: Mapping[str, Any] = field(default_factory=dict)
    """The fields of the reply other than usage and text."""


REAL = Lane.REALTIME


def chat(case: Case) -> Result:
    message = {"role": "assistant", "content": "hi", "refusal": None, "annotations": case.reply.get("annotations", [])}
    body = {
        "object": "chat.completion",
        "model": case.model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": case.usage,
        **{name: value for name, value in case.reply.items() if name != "annotations"},
    }
    return _openai(body, Endpoint.CHAT)


def responses(case: Case) -> Result:
    message = {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}
    calls = case.reply.get("calls", [])
    rest = {name: value for name, value in case.reply.items() if name != "calls"}
    body = {"object": "response", "model": case.model, "status": "completed", "output": [*calls, message], **rest}
    return _openai({**body, "usage": case.usage}, Endpoint.RESPONSES)


def embeddings(case: Case) -> Result:
    vector = {"object": "embedding", "index": 0, "embedding": [0.5]}
    return _openai({"object": "list", "model": case.model, "data": [vector], "usage": case.usage}, Endpoint.EMBEDDINGS)


def _openai(body: Mapping[str, Any], endpoint: Endpoint) -> Result:
    response = {"status_code": 200, "request_id": "req_1", "body": body}
    return read_openai(_line({"id": "b", "custom_id": "c-1", "response": response, "error": None}), endpoint)


def claude(case: Case) -> Result:
    return read_anthropic(_line({"custom_id": "c-1", "result": {"type": "succeeded", "message": _message(case)}}))


def _message(case: Case) -> dict[str, Any]:
    blocks = [*case.reply.get("blocks", []), {"type": "text", "text": "hi"}]
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": case.model, "content": blocks}
    return {**message, "stop_reason": "end_turn", "stop_sequence": None, "usage": case.usage}


def bedrock_claude(case: Case) -> Result:
    return _bedrock({**_message(case), **{k: v for k, v in case.reply.items() if k != "blocks"}})


def converse(case: Case) -> Result:
    message = {"role": "assistant", "content": [{"text": "hi"}]}
    output = {"output": {"message": message}, "stopReason": "end_turn", "usage": case.usage}
    return _bedrock({**output, "metrics": {"latencyMs": 1}, **case.reply})


def bedrock_chat(case: Case) -> Result:
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    return _bedrock({"model": case.model, "choices": [choice], "usage": case.usage, **case.reply})


def bedrock_other(case: Case) -> Result:
    return _bedrock(dict(case.reply))


def _bedrock(output: Mapping[str, Any]) -> Result:
    return read_bedrock(_line({"recordId": "c-1", "modelInput": {}, "modelOutput": output}))


def gemini(case: Case) -> Result:
    return read_google_line(_line({"key": "c-1", "response": _generated(case)}))


def vertex(case: Case) -> Result:
    times = {"status": "", "processed_time": "2026-11-01T18:13:16.826+00:00"}
    return read_google_line(_line({**times, "custom_id": "c-1", "request": {}, "response": _generated(case)}))


def _generated(case: Case) -> dict[str, Any]:
    content = {"role": "model", "parts": [{"text": "hi"}]}
    candidate = {"content": content, "finishReason": "STOP", **case.reply}
    return {"candidates": [candidate], "modelVersion": case.model, "usageMetadata": case.usage}


def vertex_claude(case: Case) -> Result:
    codec = VertexClaudeLines(RequestSpec(case.model, params={"max_tokens": 9}), VERTEX_LIMITS)
    return codec.decode(_line({"status": "", "custom_id": "c-1", "request": {}, "response": _message(case)}))


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value).encode()


def tokens(before: int, after: int, cached: int = 0, written: int = 0, thought: int = 0, **more: Any) -> dict[str, Any]:
    """Return a chat's usage, as OpenAI writes it; `more` goes into the details of the prompt."""
    return {
        "prompt_tokens": before,
        "completion_tokens": after,
        "total_tokens": before + after,
        "prompt_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written, "audio_tokens": 0, **more},
        "completion_tokens_details": {"reasoning_tokens": thought, "audio_tokens": 0, "rejected_prediction_tokens": 0},
    }


def read_tokens(before: int, after: int, cached: int = 0, written: int = 0, **more: Any) -> dict[str, Any]:
    """Return the usage of a response."""
    details = {"cached_tokens": cached, "cache_write_tokens": written, **more}
    return {
        "input_tokens": before,
        "input_tokens_details": details,
        "output_tokens": after,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": before + after,
    }


def used(fresh: int, after: int, read: int = 0, short: int = 0, hour: int = 0, **more: Any) -> dict[str, Any]:
    """Return Claude's usage: cached tokens and fresh ones are separate."""
    return {
        "input_tokens": fresh,
        "cache_creation_input_tokens": short + hour,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": short, "ephemeral_1h_input_tokens": hour},
        "output_tokens": after,
        **more,
    }


def counted(fresh: int, after: int, read: int = 0, short: int = 0, hour: int = 0) -> dict[str, Any]:
    """Return Converse's usage."""
    details = [{"ttl": ttl, "inputTokens": count} for ttl, count in (("1h", hour), ("5m", short)) if count]
    usage = {"inputTokens": fresh, "outputTokens": after, "totalTokens": fresh + after + read + short + hour}
    return {**usage, "cacheReadInputTokens": read, "cacheWriteInputTokens": short + hour, "cacheDetails": details}


def metered(before: int, after: int, thoughts: int = 0, cached: int = 0, **more: Any) -> dict[str, Any]:
    """Return Gemini's usage; `more` are modalities of the prompt."""
    media = {name.upper(): count for name, count in more.items() if isinstance(count, int)}
    rest = {name: value for name, value in more.items() if not isinstance(value, int)}
    parts = {"TEXT": before - sum(media.values()), **media}
    return {
        "promptTokenCount": before,
        "candidatesTokenCount": after,
        "thoughtsTokenCount": thoughts,
        "cachedContentTokenCount": cached,
        "totalTokenCount": before + after + thoughts,
        "promptTokensDetails": [{"modality": name, "tokenCount": count} for name, count in parts.items()],
        "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": after}],
        **rest,
    }


SEARCH = {"type": "web_search_call", "status": "completed", "action": {"type": "search", "query": "q"}}
OPEN_PAGE = {"type": "web_search_call", "status": "completed", "action": {"type": "open_page", "url": "u"}}
FILES = {"type": "file_search_call", "status": "completed", "queries": ["q"]}
PYTHON = {"type": "code_interpreter_call", "status": "completed"}
WEB = {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}
CODE = {"type": "server_tool_use", "id": "s", "name": "bash_code_execution", "input": {}}
GROUNDED = {"groundingMetadata": {"webSearchQueries": ["a", "b"], "groundingChunks": [{"web": {"uri": "u"}}]}}
MAPS = {"groundingMetadata": {"groundingChunks": [{"maps": {"uri": "u"}}]}}

# fmt: off
OPENAI_CASES: list[tuple[Callable[[Case], Result], Case]] = [
    (chat, Case("plain", "gpt-5-nano", tokens(1000, 100), "1000@0.025 100@0.20", OPENAI)),
    (chat, Case("cached", "gpt-5-nano", tokens(1200, 80, 1024, thought=64), "176@0.025 1024@0.0025 80@0.20", OPENAI)),
    (chat, Case("no-details", "gpt-4o", {"prompt_tokens": 9, "completion_tokens": 7}, "9@1.25 7@5.00", OPENAI)),
    (
        chat,
        Case(
            "tier-default",
            "gpt-5-nano",
            tokens(1000, 100),
            "1000@0.025 100@0.20",
            OPENAI,
            reply={"service_tier": "default"},
        ),
    ),
    (chat, Case("realtime", "gpt-5-nano", tokens(1000, 100), "1000@0.05 100@0.40", OPENAI, REAL)),
    (
        chat,
        Case(
            "flex",
            "gpt-5-nano",
            tokens(1000, 100, 400),
            "600@0.025 400@0.0025 100@0.20",
            OPENAI,
            REAL,
            reply={"service_tier": "flex"},
        ),
    ),
    (
        chat,
        Case(
            "priority",
            "gpt-5.5",
            tokens(1000, 100),
            "1000@12.50 100@75",
            OPENAI,
            REAL,
            reply={"service_tier": "priority"},
        ),
    ),
    (
        responses,
        Case(
            "fast",
            "gpt-5.5",
            read_tokens(1000, 100, 200),
            "800@12.50 200@1.25 100@75",
            OPENAI,
            REAL,
            reply={"service_tier": "fast"},
        ),
    ),
    (
        chat,
        Case(
            "priority-in-a-batch",
            "gpt-5.5",
            tokens(1000, 100),
            "1000@12.50 100@75",
            OPENAI,
            reply={"service_tier": "priority"},
        ),
    ),
    (
        chat,
        Case(
            "flex-that-is-not-sold",
            "gpt-4o",
            tokens(1000, 100),
            "?",
            OPENAI,
            REAL,
            "flex",
            reply={"service_tier": "flex"},
        ),
    ),
    (chat, Case("scale", "gpt-5.5", tokens(1000, 100), "?", NOWHERE, REAL, "scale", reply={"service_tier": "scale"})),
    (chat, Case("long-prompt", "gpt-5.5", tokens(300_000, 1000), "300000@5 1000@22.50", OPENAI)),
    (
        chat,
        Case(
            "long-prompt-flex",
            "gpt-5.5",
            tokens(300_000, 1000, 100_000),
            "200000@5 100000@0.50 1000@22.50",
            OPENAI,
            REAL,
            reply={"service_tier": "flex"},
        ),
    ),
    (
        responses,
        Case(
            "cache-write",
            "gpt-6-luna",
            read_tokens(1000, 100, 300, 200),
            "500@0.05 300@0.005 200@0.0625 100@0.25",
            OPENAI,
        ),
    ),
    (chat, Case("cache-write-chat", "gpt-6-sol", tokens(1000, 100, 0, 400), "600@1 400@1.25 100@5", OPENAI)),
    (
        responses,
        Case(
            "cache-write-12h",
            "gpt-6-luna",
            read_tokens(1000, 100, 0, 200, cache_write_tokens_details={"ttl_30m_tokens": 0, "ttl_12h_tokens": 200}),
            "?",
            NOWHERE,
            names="ttl_12h_tokens",
        ),
    ),
    (
        responses,
        Case(
            "cache-write-30m",
            "gpt-6-luna",
            read_tokens(1000, 100, 0, 200, cache_write_tokens_details={"ttl_30m_tokens": 200, "ttl_12h_tokens": 0}),
            "800@0.05 200@0.0625 100@0.25",
            OPENAI,
        ),
    ),
    (
        responses,
        Case(
            "web-search",
            "gpt-5-nano",
            read_tokens(1000, 100),
            "1000@0.025 100@0.20 2x0.01",
            OPENAI_TOOLS,
            reply={"calls": [SEARCH, OPEN_PAGE, SEARCH]},
        ),
    ),
    (
        responses,
        Case(
            "file-search",
            "gpt-5-nano",
            read_tokens(1000, 100),
            "1000@0.05 100@0.40 1x0.0025",
            OPENAI_TOOLS,
            REAL,
            reply={"calls": [FILES]},
        ),
    ),
    (
        responses,
        Case(
            "search-and-flex",
            "gpt-5-nano",
            read_tokens(1000, 100),
            "1000@0.025 100@0.20 1x0.01",
            OPENAI_TOOLS,
            REAL,
            reply={"calls": [SEARCH], "service_tier": "flex"},
        ),
    ),
    (
        responses,
        Case(
            "code-interpreter",
            "gpt-5-nano",
            read_tokens(1000, 100),
            "?",
            OPENAI_TOOLS,
            names="code_interpreter_call",
            reply={"calls": [PYTHON]},
        ),
    ),
    (
        chat,
        Case(
            "searched-in-chat",
            "gpt-5-search-api",
            tokens(1000, 100),
            "?",
            NOWHERE,
            REAL,
            "annotations",
            reply={"annotations": [{"type": "url_citation"}]},
        ),
    ),
    (chat, Case("audio", "gpt-audio", tokens(1000, 100, audio_tokens=600), "400@2.50 600@32 100@10", OPENAI, REAL)),
    (chat, Case("audio-in-a-batch", "gpt-audio", tokens(1000, 100, audio_tokens=600), "400@1.25 600@16 100@5", OPENAI)),
    (
        chat,
        Case(
            "audio-without-a-price",
            "gpt-4o-audio-preview",
            tokens(1000, 100, audio_tokens=600),
            "?",
            NOWHERE,
            names="input_audio_tokens",
        ),
    ),
    (chat, Case("images", "gpt-5-nano", tokens(1000, 100, image_tokens=700), "1000@0.025 100@0.20", OPENAI)),
    (
        embeddings,
        Case("embedding", "text-embedding-3-small", {"prompt_tokens": 1000, "total_tokens": 1000}, "1000@0.01", OPENAI),
    ),
    (
        embeddings,
        Case(
            "embedding-realtime",
            "text-embedding-3-small",
            {"prompt_tokens": 1000, "total_tokens": 1000},
            "1000@0.02",
            OPENAI,
            REAL,
        ),
    ),
    (
        chat,
        Case(
            "unknown-field",
            "gpt-5-nano",
            {**tokens(1000, 100), "video_frames": 3},
            "?",
            NOWHERE,
            names="usage.video_frames = 3",
        ),
    ),
    (chat, Case("unknown-model", "gpt-unheard-of", tokens(1000, 100), "?", NOWHERE)),
    (chat, Case("took-a-time", "gpt-5-nano", {**tokens(1000, 100), "queue_time": 0.25}, "1000@0.025 100@0.20", OPENAI)),
    (
        chat,
        Case(
            "xai-thinks-beside",
            "grok-4.3",
            {
                "prompt_tokens": 1000,
                "completion_tokens": 100,
                "total_tokens": 1400,
                "completion_tokens_details": {"reasoning_tokens": 300},
                "cost_in_usd_ticks": 18_000_000,
            },
            "1000@1 400@2",
            XAI,
            book="x-ai",
        ),
    ),
    (
        chat,
        Case(
            "openrouter",
            "openai/gpt-4o",
            {
                **tokens(1000, 100, 400),
                "cost": 0.0015,
                "is_byok": False,
                "cost_details": {"upstream_inference_cost": 0.0014},
            },
            "600@1.25 400@0.625 100@5",
            OPENROUTER,
            book="openrouter",
        ),
    ),
    (
        chat,
        Case(
            "azure-cached",
            "gpt-4o",
            tokens(1200, 80, 1024),
            "1200@1.25 80@5",
            "https://azure.microsoft.com/pricing, 2026-03",
            book="azure",
        ),
    ),
]

CLAUDE_CASES = [
    (claude, Case("plain", "claude-haiku-4-5", used(1000, 100, service_tier="batch", inference_geo="not_available"), "1000@0.50 100@2.50", CLAUDE)),
    (claude, Case("caches", "claude-haiku-4-5", used(1000, 100, 3000, 1500, 500), "1000@0.50 3000@0.05 1500@0.625 500@1.00 100@2.50", CLAUDE_CACHE)),
    (claude, Case("realtime-caches", "claude-sonnet-4-6", used(1000, 100, 1000, 1000, 1000, service_tier="standard"), "1000@3 1000@0.30 1000@3.75 1000@6 100@15", CLAUDE_CACHE, REAL)),
    (claude, Case("thinking", "claude-haiku-4-5", used(16, 300, output_tokens_details={"thinking_tokens": 280}), "16@0.50 300@2.50", CLAUDE)),
    (claude, Case("us", "claude-opus-4-6", used(1000, 100, 400, inference_geo="us"), "1000@2.75 400@0.275 100@13.75", CLAUDE_GEO)),
    (claude, Case("us-haiku", "claude-haiku-4-5", used(1000, 100, 0, 200, 300, inference_geo="us"), "1000@0.55 200@0.6875 300@1.10 100@2.75", CLAUDE_GEO)),
    (claude, Case("us-realtime", "claude-sonnet-4-6", used(1000, 100, inference_geo="us"), "1000@3.30 100@16.50", CLAUDE_GEO, REAL)),
    (claude, Case("us-earlier-model", "claude-sonnet-4-5", used(1000, 100, inference_geo="us"), "1000@1.50 100@7.50", CLAUDE_GEO)),
    (claude, Case("global", "claude-opus-4-6", used(1000, 100, inference_geo="global"), "1000@2.50 100@12.50", CLAUDE_GEO)),
    (claude, Case("elsewhere", "claude-opus-4-6", used(1000, 100, inference_geo="eu"), "?", NOWHERE, names="'eu'")),
    (claude, Case("web-search", "claude-haiku-4-5", used(1000, 100, server_tool_use={"web_search_requests": 3, "web_fetch_requests": 1}), "1000@0.50 100@2.50 3x0.01", CLAUDE, reply={"blocks": [WEB]})),
    (claude, Case("web-search-us", "claude-opus-4-6", used(1000, 100, inference_geo="us", server_tool_use={"web_search_requests": 2}), "1000@2.75 100@13.75 2x0.01", CLAUDE_GEO, reply={"blocks": [WEB]})),
    (claude, Case("web-fetch", "claude-haiku-4-5", used(1000, 100, server_tool_use={"web_search_requests": 0, "web_fetch_requests": 2}), "1000@0.50 100@2.50", CLAUDE)),
    (claude, Case("code", "claude-haiku-4-5", used(1000, 100), "?", CLAUDE, names="bash_code_execution", reply={"blocks": [CODE]})),
    (claude, Case("fast", "claude-opus-5-5", used(1000, 100, 500, speed="fast"), "1000@8 500@0.40 100@40", CLAUDE, REAL)),
    (claude, Case("fast-that-is-not-sold", "claude-haiku-4-5", used(1000, 100, speed="fast"), "?", CLAUDE, REAL, "fast")),
    (claude, Case("priority", "claude-haiku-4-5", used(1000, 100, service_tier="priority"), "?", NOWHERE, REAL, "priority")),
    (claude, Case("long-prompt", "claude-haiku-5-5", used(150_000, 100), "150000@0.25 100@1.25", CLAUDE_LONG)),
    (claude, Case("long-prompt-realtime", "claude-haiku-5-5", used(150_000, 100), "150000@0.50 100@2.50", CLAUDE_LONG, REAL)),
    (claude, Case("not-so-long", "claude-haiku-5-5", used(100_000, 100), "100000@0.05 100@0.25", CLAUDE_LONG)),
    (claude, Case("long-by-its-cache", "claude-haiku-5-5", used(10_000, 100, 95_000), "10000@0.25 95000@0.025 100@1.25", CLAUDE_LONG)),
    (claude, Case("long-in-the-us", "claude-haiku-5-5", used(150_000, 100, inference_geo="us"), "150000@0.275 100@1.375", CLAUDE_LONG)),
    (claude, Case("retired", "claude-3-5-sonnet-20241022", used(1000, 100, 400), "1000@1.50 400@0.15 100@7.50", CLAUDE)),
    (claude, Case("unknown-field", "claude-haiku-4-5", used(1000, 100, server_tool_use={"image_requests": 2}), "?", NOWHERE, names="usage.server_tool_use.image_requests = 2")),
    (claude, Case("new-time-to-live", "claude-haiku-4-5", used(1000, 100, cache_creation={"ephemeral_12h_input_tokens": 5}), "?", NOWHERE, names="ephemeral_12h_input_tokens")),
]

HAIKU, GLOBAL_HAIKU = "anthropic.claude-haiku-4-5-20251001-v1:0", "global.anthropic.claude-haiku-4-5-20251001-v1:0"
SONNET = "us.anthropic.claude-sonnet-4-5-20250929-v1:0"
NOVA, OSS = "amazon.nova-pro-v1:0", "openai.gpt-oss-120b-1:0"

BEDROCK_CASES = [
    (bedrock_claude, Case("plain", HAIKU, used(1000, 100), "1000@0.55 100@2.75", BEDROCK)),
    (bedrock_claude, Case("global", GLOBAL_HAIKU, used(1000, 100), "1000@0.50 100@2.50", BEDROCK)),
    (bedrock_claude, Case("across-regions", SONNET, used(1000, 100), "1000@1.65 100@8.25", BEDROCK)),
    (bedrock_claude, Case("realtime", HAIKU, used(1000, 100), "1000@1.10 100@5.50", BEDROCK, REAL)),
    (bedrock_claude, Case("caches", HAIKU, used(1000, 100, 4000, 500, 1500), "1000@0.55 4000@0.055 500@0.6875 1500@1.10 100@2.75", BEDROCK)),
    (bedrock_claude, Case("an-hour-of-a-tiered-model", SONNET, used(1000, 100, 0, 0, 1000), "1000@1.65 1000@3.30 100@8.25", CLAUDE_CACHE)),
    (bedrock_claude, Case("priority", HAIKU, used(1000, 100, service_tier="priority"), "?", BEDROCK_TIERS, REAL, "priority")),
    (bedrock_claude, Case("unknown-field", HAIKU, used(1000, 100, seen_pages=2), "?", NOWHERE, names="usage.seen_pages = 2")),
    (converse, Case("nova", NOVA, counted(1000, 100), "1000@0.40 100@1.60", BEDROCK)),
    (converse, Case("nova-cached", NOVA, counted(1000, 100, 400), "1000@0.40 400@0.10 100@1.60", BEDROCK)),
    (converse, Case("five-minutes", HAIKU, counted(1000, 100, 600, 300), "1000@0.55 600@0.055 300@0.6875 100@2.75", BEDROCK)),
    (converse, Case("an-hour", HAIKU, counted(1000, 100, 0, 0, 300), "1000@0.55 300@1.10 100@2.75", BEDROCK)),
    (converse, Case("both-times", HAIKU, counted(1000, 100, 50, 200, 300), "1000@0.55 50@0.055 200@0.6875 300@1.10 100@2.75", BEDROCK)),
    (converse, Case("an-hour-realtime", GLOBAL_HAIKU, counted(1000, 100, 0, 0, 300), "1000@1 300@2 100@5", BEDROCK, REAL)),
    (converse, Case("tier-default", NOVA, counted(1000, 100), "1000@0.80 100@3.20", BEDROCK, REAL, reply={"serviceTier": {"type": "default"}})),
    (converse, Case("flex", NOVA, counted(1000, 100), "?", BEDROCK_TIERS, REAL, "flex", reply={"serviceTier": {"type": "flex"}})),
    (converse, Case("reserved", NOVA, counted(1000, 100), "?", BEDROCK_TIERS, REAL, "reserved", reply={"serviceTier": {"type": "reserved"}})),
    (converse, Case("optimized", NOVA, counted(1000, 100), "?", BEDROCK, REAL, "optimized", reply={"performanceConfig": {"latency": "optimized"}})),
    (converse, Case("guardrail", NOVA, counted(1000, 100), "?", BEDROCK, REAL, "guardrail", reply={"trace": {"guardrail": {"inputAssessment": {}}}})),
    (converse, Case("unknown-field", NOVA, {**counted(1000, 100), "searchUnits": 1}, "?", NOWHERE, names="usage.searchUnits = 1")),
    (bedrock_other, Case("llama", "meta.llama3-8b-instruct-v1:0", None, "1000@0.15 100@0.30", BEDROCK, reply={"generation": "hi", "prompt_token_count": 1000, "generation_token_count": 100, "stop_reason": "stop"})),
    (bedrock_other, Case("titan", "amazon.titan-embed-text-v2:0", None, "1000@0.01", BEDROCK, reply={"embedding": [0.5], "inputTextTokenCount": 1000})),
    (converse, Case("profile", "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc", counted(1000, 100), "?", NOWHERE)),
]

PLAIN = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}

BEDROCK_CHAT_CASES = [
    (bedrock_chat, Case("plain", OSS, PLAIN, "1000@0.075 100@0.30", BEDROCK)),
    (bedrock_chat, Case("small", "openai.gpt-oss-20b-1:0", PLAIN, "1000@0.035 100@0.15", BEDROCK)),
    (bedrock_chat, Case("realtime", OSS, PLAIN, "1000@0.15 100@0.60", BEDROCK, REAL)),
    (bedrock_chat, Case("thinking", OSS, tokens(1000, 100, thought=64), "1000@0.075 100@0.30", BEDROCK)),
    (bedrock_chat, Case("cached", OSS, tokens(1000, 100, 400), "1000@0.075 100@0.30", BEDROCK)),  # nothing off there
    (bedrock_chat, Case("cache-write", OSS, tokens(1000, 100, 0, 400), "1000@0.075 100@0.30", BEDROCK)),
    (bedrock_chat, Case("tier-default", OSS, PLAIN, "1000@0.15 100@0.60", BEDROCK, REAL, reply={"service_tier": "default"})),
    (bedrock_chat, Case("flex", OSS, PLAIN, "?", BEDROCK_TIERS, REAL, "flex", reply={"service_tier": "flex"})),
    (bedrock_chat, Case("priority", OSS, PLAIN, "?", BEDROCK_TIERS, REAL, "priority", reply={"service_tier": "priority"})),
    (bedrock_chat, Case("audio", OSS, tokens(1000, 100, audio_tokens=5), "?", NOWHERE, names="input_audio_tokens")),
    (bedrock_chat, Case("unknown-field", OSS, {**PLAIN, "searches": 2}, "?", NOWHERE, names="usage.searches = 2")),
    (bedrock_chat, Case("guardrail", OSS, PLAIN, "?", NOWHERE, names="guardrail", reply={"amazon-bedrock-trace": {"guardrail": {"input": {}}}})),
    (bedrock_chat, Case("unknown-model", "openai.gpt-oss-9000b-1:0", PLAIN, "?", NOWHERE)),
]

GOOGLE_CASES = [
    ("plain", "gemini-2.5-flash", metered(1000, 100), "1000@0.15 100@1.25", GEMINI, {}),
    ("thoughts", "gemini-2.5-flash", metered(1000, 100, 900), "1000@0.15 1000@1.25", GEMINI, {}),
    ("cached-at-its-standard-price", "gemini-2.5-flash", metered(1000, 100, 0, 400), "600@0.15 400@0.03 100@1.25", GEMINI, {}),
    ("cached-without-a-batch-price", "gemini-2.0-flash", metered(1000, 100, 0, 400), "600@0.05 400@0.025 100@0.20", GEMINI, {}),
    ("long-prompt", "gemini-2.5-pro", metered(250_000, 100), "250000@1.25 100@7.50", GEMINI, {}),
    ("long-prompt-cached", "gemini-2.5-pro", metered(250_000, 100, 0, 50_000), "200000@1.25 50000@0.25 100@7.50", GEMINI, {}),
    ("realtime", "gemini-2.5-flash", metered(1000, 100, 0, 400), "600@0.30 400@0.03 100@2.50", GEMINI, {"lane": REAL}),
    ("image", "gemini-2.5-flash", metered(1000, 100, image=258), "1000@0.15 100@1.25", GEMINI, {}),
    ("audio", "gemini-2.5-flash", metered(1000, 100, audio=600), "400@0.15 600@0.50 100@1.25", GEMINI, {}),
    ("audio-realtime", "gemini-2.5-flash", metered(1000, 100, audio=600), "400@0.30 600@1.00 100@2.50", GEMINI, {"lane": REAL}),
    ("audio-at-one-price", "gemini-2.5-pro", metered(1000, 100, audio=600), "1000@0.625 100@5", GEMINI, {}),
    ("audio-cached", "gemini-2.5-flash", metered(1000, 100, 0, 500, audio=600, cacheTokensDetails=[{"modality": "AUDIO", "tokenCount": 300}, {"modality": "TEXT", "tokenCount": 200}]), "200@0.15 300@0.50 200@0.03 300@0.10 100@1.25", GEMINI, {}),
    ("audio-cached-text", "gemini-2.5-flash", metered(1000, 100, 0, 200, audio=600, cacheTokensDetails=[{"modality": "TEXT", "tokenCount": 200}]), "200@0.15 600@0.50 200@0.03 100@1.25", GEMINI, {}),
    ("audio-cached-who-knows", "gemini-2.5-flash", metered(1000, 100, 0, 200, audio=600), "?", GEMINI, {"names": "how many of them were cached"}),
    ("tool-results", "gemini-2.5-flash", metered(1000, 100, toolUsePromptTokenCount="250", toolUsePromptTokensDetails=[{"modality": "TEXT", "tokenCount": "250"}]), "1250@0.15 100@1.25", GEMINI, {}),
    ("picture", "gemini-2.5-flash-image", metered(1000, 1290, candidatesTokensDetails=[{"modality": "IMAGE", "tokenCount": 1290}]), "1000@0.15 1290@15", GEMINI, {}),
    ("picture-without-a-price", "gemini-2.5-flash", metered(1000, 1290, candidatesTokensDetails=[{"modality": "IMAGE", "tokenCount": 1290}]), "?", NOWHERE, {"names": "output_image_tokens"}),
    ("grounded-once", "gemini-2.5-flash", metered(1000, 100), "1000@0.30 100@2.50 1x0.035", GEMINI, {"lane": REAL, "reply": GROUNDED}),
    ("grounded-by-queries", "gemini-3-flash-preview", metered(1000, 100), "1000@0.25 100@1.50 2x0.014", GEMINI, {"reply": GROUNDED}),
    ("maps", "gemini-2.5-flash", metered(1000, 100), "?", NOWHERE, {"lane": REAL, "reply": MAPS, "names": "maps"}),
    ("unknown-field", "gemini-2.5-flash", metered(1000, 100, smellTokenCount="7"), "?", NOWHERE, {"names": "usage.smellTokenCount = 7"}),
    ("unknown-model", "gemini-unheard-of", metered(1000, 100), "?", NOWHERE, {}),
]

GEMINI_CASES = [
    *((gemini, Case(name, model, usage, cost, doc, **more)) for name, model, usage, cost, doc, more in GOOGLE_CASES),
    (gemini, Case("flex", "gemini-3.8-flash-tts", metered(1000, 100, serviceTier="flex"), "1000@0.25 100@4.50", GEMINI, REAL)),
    (gemini, Case("priority", "gemini-3.8-flash-tts", metered(1000, 100, serviceTier="PRIORITY"), "1000@0.90 100@16.20", GEMINI, REAL)),
    (gemini, Case("tier-standard", "gemini-2.5-flash", metered(1000, 100, serviceTier="standard"), "1000@0.30 100@2.50", GEMINI, REAL)),
    (gemini, Case("flex-without-a-price", "gemini-2.5-flash", metered(1000, 100, serviceTier="flex"), "?", GEMINI, REAL, "flex")),
]

VERTEX_CASES = [
    *((vertex, Case(name, model, usage, cost, doc, **more)) for name, model, usage, cost, doc, more in GOOGLE_CASES),
    (vertex, Case("on-demand", "gemini-2.5-flash", metered(1000, 100, trafficType="ON_DEMAND"), "1000@0.15 100@1.25", VERTEX)),
    (vertex, Case("flex", "gemini-3.8-flash-tts", metered(1000, 100, trafficType="ON_DEMAND_FLEX"), "1000@0.25 100@4.50", VERTEX, REAL)),
    (vertex, Case("off-peak", "gemini-2.5-flash", metered(1000, 100, trafficType="ON_DEMAND_OFFPEAK"), "?", NOWHERE, REAL, "offpeak")),
    (vertex, Case("provisioned", "gemini-2.5-flash", metered(1000, 100, trafficType="PROVISIONED_THROUGHPUT"), "?", NOWHERE, REAL, "provisioned")),
    (vertex_claude, Case("claude-in-a-region", "claude-haiku-4-5@20251001", used(1000, 10, 1000, 600, 400), "1000@0.55 1000@0.055 600@0.6875 400@1.10 10@2.75", CLAUDE_VERTEX)),
    (vertex_claude, Case("claude-at-large", "claude-haiku-4-5@20251001", used(1000, 10), "1000@0.50 10@2.50", CLAUDE_VERTEX, book="google")),
    (vertex_claude, Case("earlier-claude-in-a-region", "claude-3-5-sonnet-v2@20241022", used(1000, 10), "1000@1.50 10@7.50", CLAUDE_VERTEX)),
    (vertex_claude, Case("earlier-claude-for-an-hour", "claude-3-5-sonnet-v2@20241022", used(1000, 10, 0, 0, 400), "1000@1.50 400@3 10@7.50", CLAUDE_CACHE)),
    (vertex_claude, Case("claude-searches", "claude-haiku-4-5@20251001", used(1000, 10, server_tool_use={"web_search_requests": 1}), "?", NOWHERE, names="web_searches")),
]

# fmt: on
BOOKS = {
    "openai": OPENAI_CASES,
    "anthropic": CLAUDE_CASES,
    "aws": BEDROCK_CASES + BEDROCK_CHAT_CASES,
    "google": GEMINI_CASES,
    "google/regional": VERTEX_CASES,
}
ALL = [
    pytest.param(read, case, case.book or book, id=f"{book}-{read.__name__}-{case.name}")
    for book, cases in BOOKS.items()
    for read, case in cases
]


def by_hand(cost: str) -> Decimal:
    """Return the sum of the parts of a case."""
    total = Decimal(0)
    for part in cost.split():
        count, _, usd = part.partition("@")
        if usd:
            total += int(count) * Decimal(usd) / 1_000_000
        else:
            count, _, usd = part.partition("x")
            total += int(count) * Decimal(usd)
    return total


@table(("read", "case", "book"), ALL)
def test_a_reply_costs_what_the_vendors_list_says_by_hand(
    read: Callable[[Case], Result], case: Case, book: str
) -> None:
    result = read(case)
    assert (result.custom_id, result.outcome) == ("c-1", Outcome.SUCCEEDED), result
    prices = tariff(book, case.model, AT).of(case.lane)
    price = prices.price(result.usage)
    wanted = None if case.cost == "?" else by_hand(case.cost)
    assert price.cost_usd == wanted, result.usage
    assert result.usage is not None
    columns = [pa.array([count], pa.int64()) for count in result.usage[: len(TOKENS)]]
    cost, realtime, bases = prices.costs(columns, [result.usage.extra])
    assert (cost.to_pylist(), realtime.to_pylist()) == ([wanted], [price.realtime_usd])
    if wanted is None:
        assert (price.basis, price.realtime_usd) == (PriceBasis.UNKNOWN, None)
        basis = PriceBasis.UNKNOWN.value if bases is None else bases[0]
        assert basis.startswith(PriceBasis.UNKNOWN.value)
        assert case.names in basis
    else:
        assert case.doc != NOWHERE


@pytest.mark.parametrize("cases", [*BOOKS.values(), BEDROCK_CASES, BEDROCK_CHAT_CASES], ids=len)
def test_each_vendor_has_thirteen_replies_and_more(cases: list[Any]) -> None:
    assert len(cases) >= 13
    assert all("20" in case.doc or case.doc == NOWHERE for _, case in cases)


@pytest.mark.parametrize("count", [float("inf"), float("nan"), -3, 1.5, 10**30])
def test_a_count_that_can_be_none_has_no_price_and_is_named(count: float) -> None:
    extra = extra_of({"prompt_tokens_details": {"audio_tokens": count}, "cost": count}, CHAT)
    assert extra is not None
    assert (extra.units, extra.unpriced) == ((), f"usage.prompt_tokens_details.audio_tokens = {count}")
    assert extra.reported_usd in (None, Decimal("1.5"))


@table("read", [chat, claude, bedrock_claude, converse, gemini, vertex, vertex_claude])
@table("odd", [["flex"], {"is": "flex"}, 7])
def test_what_is_no_word_in_the_place_of_a_tier_is_read(read: Callable[[Case], Result], odd: Any) -> None:
    usage = {"serviceTier": odd, "trafficType": odd, "service_tier": odd, "inference_geo": odd, "speed": odd}
    counts = {"promptTokenCount": 5, "input_tokens": 5, "output_tokens": 1, "inputTokens": 5, "prompt_tokens": 5}
    result = read(Case("odd", "any", counts | usage, "?", NOWHERE, reply={"service_tier": odd, "serviceTier": odd}))
    assert result.outcome is Outcome.SUCCEEDED
