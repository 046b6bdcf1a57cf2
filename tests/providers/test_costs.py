"""The cost of documented replies at each provider, to the last digit: cache reads and writes, thinking, cached tokens.

The unit prices come from the vendors' batch price lists, in USD per million tokens, and the sums are made here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.providers.anthropic.replies import read_line as read_anthropic
from dagster_llm_batch.providers.bedrock.replies import read_line as read_bedrock
from dagster_llm_batch.providers.google.replies import read_google_line
from dagster_llm_batch.providers.google.vertex import VERTEX_LIMITS
from dagster_llm_batch.providers.google.vertex_claude import VertexClaudeLines
from dagster_llm_batch.providers.openai_api.replies import read_line
from dagster_llm_batch.types import Endpoint, PriceBasis, RequestSpec, Result
from tests.tables import table

AT = datetime(2026, 11, 24, tzinfo=UTC)
WIRE = {
    (path.stem, one["name"]): one["line"]
    for path in Path(__file__).with_name("wire").glob("*.jsonl")
    for one in map(json.loads, path.read_text(encoding="ascii").splitlines())
}
VERTEX = WIRE["google", "vertex usage with thoughts and cache"]
CLAUDE_ON_BEDROCK = "anthropic.claude-haiku-4-5-20251001-v1:0"
read_vertex_claude = VertexClaudeLines(RequestSpec("claude-haiku-4-5", params={"max_tokens": 9}), VERTEX_LIMITS).decode


def read_chat(line: bytes) -> Result:
    return read_line(line, Endpoint.CHAT)


def read_responses(line: bytes) -> Result:
    return read_line(line, Endpoint.RESPONSES)


@table(
    ("read", "line", "book", "parts", "basis"),
    [
        pytest.param(
            read_anthropic,
            WIRE["anthropic", "success with reads and writes of both kinds"],
            ("anthropic", "claude-haiku-4-5"),
            # fresh, read, written for 5 minutes, written for an hour, out
            [(1_000, "0.50"), (3_000, "0.05"), (1_500, "0.625"), (500, "1.00"), (100, "2.50")],
            PriceBasis.BATCH,
            id="anthropic-caches",
        ),
        pytest.param(
            read_anthropic,
            WIRE["anthropic", "success with reads and writes of both kinds"],
            ("anthropic", "claude-3-haiku-20240307"),
            [(1_000, "0.125"), (3_000, "0.015"), (1_500, "0.15"), (500, "0.25"), (100, "0.625")],
            PriceBasis.HALF,
            id="anthropic-retired-caches",
        ),
        pytest.param(
            read_anthropic,
            WIRE["anthropic", "success with thinking"],
            ("anthropic", "claude-haiku-4-5"),
            [(16, "0.50"), (300, "2.50")],  # 280 of these were thought, and are not billed twice
            PriceBasis.BATCH,
            id="anthropic-thinking",
        ),
        pytest.param(
            read_chat,
            WIRE["openai", "chat with cached and reasoning tokens"],
            ("openai", "gpt-5-nano"),
            [(176, "0.025"), (1_024, "0.0025"), (80, "0.20")],
            PriceBasis.BATCH,
            id="openai-cached-and-reasoning",
        ),
        pytest.param(
            read_responses,
            WIRE["openai", "responses success"],
            ("openai", "gpt-5-nano"),
            [(24, "0.025"), (4, "0.0025"), (8, "0.025"), (87, "0.20")],
            PriceBasis.BATCH,
            id="openai-responses-cache-write",
        ),
        pytest.param(
            read_chat,
            WIRE["openai", "chat with cached and reasoning tokens"],
            ("azure", "gpt-4o"),
            [(1_200, "1.25"), (80, "5.00")],  # cached tokens cost half in real time, and no less in a batch
            PriceBasis.BATCH,
            id="azure-cached",
        ),
        pytest.param(
            read_bedrock,
            WIRE["bedrock", "claude with cache reads and writes"],
            ("aws", CLAUDE_ON_BEDROCK),
            [(1_000, "0.55"), (4_000, "0.055"), (500, "0.6875"), (1_500, "1.10"), (100, "2.75")],
            PriceBasis.HALF,
            id="bedrock-claude-caches",
        ),
        pytest.param(
            read_bedrock,
            WIRE["bedrock", "claude with thinking"],
            ("aws", CLAUDE_ON_BEDROCK),
            [(10, "0.55"), (300, "2.75")],
            PriceBasis.HALF,
            id="bedrock-claude-thinking",
        ),
        pytest.param(
            read_bedrock,
            WIRE["bedrock", "converse with cache"],
            ("aws", CLAUDE_ON_BEDROCK),
            [(100, "0.55"), (600, "0.055"), (300, "0.6875"), (10, "2.75")],
            PriceBasis.HALF,
            id="bedrock-converse-caches",
        ),
        pytest.param(
            read_bedrock,
            WIRE["bedrock", "gpt-oss success with its thoughts"],
            ("aws", "openai.gpt-oss-20b-1:0"),
            [(1_000, "0.035"), (100, "0.15")],
            PriceBasis.HALF,
            id="bedrock-gpt-oss-thoughts",
        ),
        pytest.param(
            read_google_line,
            VERTEX,
            ("google", "publishers/google/models/gemini-2.5-flash"),
            [(600, "0.15"), (400, "0.03"), (1_000, "1.25")],  # 900 of the last were thought
            PriceBasis.BATCH,
            id="vertex-thoughts-and-cached",
        ),
        pytest.param(
            read_google_line,
            VERTEX.replace('"custom_id"', '"key"'),
            ("google", "models/gemini-2.5-flash"),
            [(600, "0.15"), (400, "0.03"), (1_000, "1.25")],
            PriceBasis.BATCH,
            id="gemini-thoughts-and-cached",
        ),
        pytest.param(
            read_vertex_claude,
            WIRE["google", "claude success with cache"],
            ("google", "claude-haiku-4-5@20251001"),
            [(1_000, "0.50"), (1_000, "0.05"), (600, "0.625"), (400, "1.00"), (10, "2.50")],
            PriceBasis.HALF,
            id="vertex-claude-caches",
        ),
    ],
)
def test_a_reply_costs_the_sum_of_its_parts(
    read, line: str, book: tuple[str, str], parts: Sequence[tuple[int, str]], basis: PriceBasis
) -> None:
    result = read(line.encode())
    assert result.custom_id
    price = tariff(*book, AT).price(result.usage)
    assert price.cost_usd == sum(tokens * Decimal(usd) for tokens, usd in parts) / 1_000_000
    assert price.basis is basis
