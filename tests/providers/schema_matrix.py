"""Constructs of response schemas, and each provider's reaction: it takes the construct, or names it in a refusal.

One table for the tests and for docs/reference/providers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any, Literal

from google.oauth2.credentials import Credentials
from pydantic import BaseModel, Field

from dagster_llm_batch.core.identity import make_request
from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.bedrock.provider import BedrockProvider
from dagster_llm_batch.providers.google.gemini import GeminiProvider
from dagster_llm_batch.providers.google.vertex import VertexProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openrouter.provider import OpenRouterProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY
from dagster_llm_batch.types import Endpoint, Request, RequestSpec

__all__ = ["CONSTRUCTS", "REQUEST", "TARGETS", "Construct", "Target"]

REQUEST: Request = make_request(None, "Where is my invoice?")


class _Place(BaseModel):
    city: str


class _Twice(BaseModel):
    origin: _Place
    goal: _Place


class _Nullable(BaseModel):
    note: str | None


class _Optional(BaseModel):
    topic: str
    note: str | None = None


class _Topic(StrEnum):
    BILLING = "billing"
    BUG = "bug"


class _Enum(BaseModel):
    topic: _Topic
    other: Literal["a", "b"]
    level: Literal[1, 2, 3]


class _Gaps(BaseModel):
    level: Literal[1, 5, 10]


class _Nested(BaseModel):
    rows: list[list[str]]
    places: list[_Place]


class _Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class _Dog(BaseModel):
    kind: Literal["dog"]
    barks: bool


class _Union(BaseModel):
    value: int | str
    pet: _Cat | _Dog


class _Tagged(BaseModel):
    pet: _Cat | _Dog = Field(discriminator="kind")


class _Dates(BaseModel):
    day: date
    moment: datetime


class _Node(BaseModel):
    name: str
    children: list[_Node]


class _Map(BaseModel):
    counts: dict[str, int]


class _Pair(BaseModel):
    pair: tuple[int, str]


@dataclass(frozen=True)
class Construct:
    """A construct of response schemas.

    `refused` has the name in each target's message, by the target's name or "*" for all. `reply` is a fitting one.
    `in_words` are targets whose schemas cannot express it, so that the description explains it to the LLM.
    """

    name: str
    response: Any
    refused: Mapping[str, str]
    reply: Any = None  # default: the emulator makes one from the schema
    in_words: frozenset[str] = frozenset()

    def refusal(self, target: Target) -> str | None:
        """Return the name in the target's refusal, or None if it takes the construct."""
        if target.unstructured:
            return target.unstructured
        return self.refused.get(target.name, self.refused.get("*"))


_GAP = r"the values \[1, 5, 10\] at \$\.properties\.level"
CONSTRUCTS = (
    Construct("a definition used twice (`$ref`)", _Twice, {}),
    Construct("nullable (`str | None`)", _Nullable, {}),
    Construct("optional (`= None`)", _Optional, {}),
    Construct("enum of strings, whole numbers in a row", _Enum, {}),
    Construct("enum of numbers with gaps", _Gaps, {"vertex": _GAP, "gemini": _GAP, "vertex (Claude)": _GAP}),
    Construct("list of lists, list of objects", _Nested, {}),
    Construct("union of types, of objects", _Union, {}),
    Construct("union with a discriminator field", _Tagged, {}),
    Construct(
        "date, date-time",
        _Dates,
        {},
        {"day": "2026-01-31", "moment": "2026-01-31T13:45:00Z"},
        frozenset({"vertex", "vertex (Claude)", "gemini"}),
    ),
    Construct(
        "recursion",
        _Node,
        {"*": "recursive", "openai": "", "openai (Responses)": "", "openrouter": ""},
        {"name": "a", "children": [{"name": "b", "children": []}]},
    ),
    Construct("map with free keys (`dict[str, int]`)", _Map, {"*": r"a map with free keys at \$\.properties\.counts"}),
    Construct("tuple", _Pair, {"*": r"'prefixItems' at \$\.properties\.pair"}),
)


@dataclass(frozen=True)
class Target:
    """A provider with a kind of model. `unstructured`: the name in its message if it takes no schema."""

    name: str
    model: str
    provider: Callable[[Any], Provider]
    params: Mapping[str, Any]
    endpoint: Endpoint = Endpoint.CHAT
    unstructured: str = ""

    def spec(self, response: Any) -> RequestSpec:
        return RequestSpec(self.model, Reader(response).format, self.endpoint, self.params)


def _bedrock(at: Any) -> Provider:
    return BedrockProvider(
        "us-east-1",
        "arn:aws:iam::123456789012:role/batch",
        "s3://bucket/folder",
        session_options={"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": "x"},
        endpoint_url=at.bedrock_url,
        read_quotas=False,
        families={"amazon.titan-text": "converse"},
    )


def _vertex(at: Any) -> Provider:
    return VertexProvider(
        "p", "us-central1", "bucket", credentials=Credentials(token=DEFAULT_KEY), base_url=at.vertex_base_url
    )


def _openai(at: Any) -> Provider:
    return OpenAIProvider(DEFAULT_KEY, at.openai_base_url)


_MAX = {"max_tokens": 4_000}
_MAX_GOOGLE = {"max_output_tokens": 4_000}
TARGETS = (
    Target("openai", "gpt-4o", _openai, _MAX),
    Target("openai (Responses)", "gpt-4o", _openai, {"max_output_tokens": 4_000}, Endpoint.RESPONSES),
    Target("anthropic", "claude-haiku-4-5", lambda at: AnthropicProvider(DEFAULT_KEY, at.anthropic_base_url), _MAX),
    Target("bedrock (Claude)", "anthropic.claude-haiku-4-5-20251001-v1:0", _bedrock, _MAX),
    Target("bedrock (gpt-oss, …)", "openai.gpt-oss-20b-1:0", _bedrock, _MAX),
    Target("bedrock (Converse)", "abc123", _bedrock, _MAX),
    Target("bedrock (Nova, Llama)", "amazon.nova-lite-v1:0", _bedrock, _MAX, unstructured="no structured outputs"),
    Target("vertex", "gemini-2.5-flash", _vertex, _MAX_GOOGLE),
    Target("vertex (Claude)", "claude-haiku-4-5", _vertex, _MAX),
    Target("openrouter", "openai/gpt-4o", lambda at: OpenRouterProvider(DEFAULT_KEY, at.openrouter_base_url), _MAX),
    Target("gemini", "gemini-2.5-flash", lambda at: GeminiProvider(DEFAULT_KEY, at.gemini_base_url), _MAX_GOOGLE),
)
