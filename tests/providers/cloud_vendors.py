"""The vendors behind an API, each with the facts that all tests need: its provider, spec and routes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cached_property
from typing import Any

from bedrock_emulator import BUCKET, SECRET
from bedrock_emulator import SPEC as BEDROCK_SPEC
from bedrock_emulator import over as bedrock_over
from google.oauth2.credentials import Credentials
from google_emulator import gemini, vertex_in_tables

from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openrouter.provider import OpenRouterProvider
from dagster_llm_batch.testing.contracts import ProviderUnderTest
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.types import RequestSpec

__all__ = ["VENDORS", "EmulatedVendor", "Vendor"]

_FOLDERS = itertools.count()


@dataclass(frozen=True)
class Vendor:
    """The access to a vendor. Routes are the emulator's; `answer` is the route of a request in real time.

    `download` is the route of a results file, `framings` how it can be cut; `file_options` make a provider use files.
    `with_key` gives the options for another key, and `other_key` is one that a message of the vendor may hold.
    """

    make: Callable[..., Provider]
    spec: RequestSpec
    create: str
    listing: str
    single: str
    answer: str
    with_key: Callable[[str], Mapping[str, Any]]
    other_key: str
    download: str = ""
    framings: tuple[str, ...] = ()
    file_options: Callable[[Emulator], Mapping[str, Any]] = field(default=lambda _: {})
    silent_statuses: tuple[int, ...] = ()  # in addition to every vendor's: the effect of the call stays unknown


def _bedrock(emulator: Emulator, s3_url: str, **options: Any) -> Provider:
    # every emulator gives the same ids, so each provider has a separate folder in the common bucket
    usual = {"s3_uri": f"s3://{BUCKET}/folder-{next(_FOLDERS)}", "s3_endpoint_url": s3_url}
    return bedrock_over(emulator, s3_url, **{**usual, **options})


VENDORS = {
    "openai": Vendor(
        lambda emulator, _, **options: OpenAIProvider(
            **{"api_key": DEFAULT_KEY, "base_url": emulator.openai_base_url, **options}
        ),
        RequestSpec("m"),
        create="POST /v1/batches",
        listing="GET /v1/batches",
        single="GET /v1/batches/*",
        answer="POST /v1/chat/*",
        with_key=lambda key: {"api_key": key},
        other_key="sk-wr***********cdef",
        download="GET /v1/files/*/content",
        framings=("length", "chunked", "close"),
    ),
    "anthropic": Vendor(
        lambda emulator, _, **options: AnthropicProvider(
            **{"api_key": DEFAULT_KEY, "base_url": emulator.anthropic_base_url, **options}
        ),
        RequestSpec("claude-x", params={"max_tokens": 50}),
        create="POST /v1/messages/batches",
        listing="GET /v1/messages/batches",
        single="GET /v1/messages/batches/*",
        answer="POST /v1/messages",
        with_key=lambda key: {"api_key": key},
        other_key="sk-ant-wr**cdef",
        download="GET /v1/messages/batches/*/results",
        framings=("length", "chunked", "close"),
        silent_statuses=(529,),
    ),
    "gemini": Vendor(
        lambda emulator, _, **options: gemini(emulator, **options),
        RequestSpec("gemini-2.5-flash"),
        create="POST /gemini/*:batchGenerateContent",
        listing="GET /gemini/*/batches",
        single="GET /gemini/*/batches/*",
        answer="POST /gemini/*:generateContent",
        with_key=lambda key: {"api_key": key},
        other_key="AIzaSyA-0123456789",
        download="GET *:download",
        framings=("length", "chunked"),
        file_options=lambda _: {"inline_bytes": 0},
        silent_statuses=(499,),
    ),
    "vertex": Vendor(
        lambda emulator, _, **options: vertex_in_tables(emulator, **options),
        RequestSpec("gemini-2.5-flash"),
        create="POST /vertex/*/batchPredictionJobs",
        listing="GET /vertex/*/batchPredictionJobs",
        single="GET /vertex/*/batchPredictionJobs/*",
        answer="POST /vertex/*:generateContent",
        with_key=lambda key: {"credentials": Credentials(token=key)},
        other_key="ya29.a0123456789",
        silent_statuses=(499,),
    ),
    "bedrock": Vendor(
        _bedrock,
        BEDROCK_SPEC,
        create="POST /bedrock/model-invocation-job",
        listing="GET /bedrock/model-invocation-jobs",
        single="GET /bedrock/model-invocation-job/*",
        answer="POST /bedrock/model/*",
        with_key=lambda key: {"session_options": {"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": key}},
        other_key="ASIAQQQQWWWWEEEE",
        download="GET /s3/*.jsonl.out",
        framings=("length", "chunked", "close"),
        file_options=lambda emulator: {"s3_endpoint_url": emulator.s3_relay_url},
    ),
    "openrouter": Vendor(
        lambda emulator, _, **options: OpenRouterProvider(
            **{"api_key": DEFAULT_KEY, "base_url": emulator.openrouter_base_url, **options}
        ),
        RequestSpec("openai/gpt-x"),
        create="POST /api/v1/batches",
        listing="GET /api/v1/batches",
        single="GET /api/v1/batches/*",
        answer="POST /api/v1/chat/*",
        with_key=lambda key: {"api_key": key},
        other_key="sk-or-v1-wr*****cdef",
    ),
}


@dataclass(frozen=True)
class EmulatedVendor:
    """One vendor, emulated, and its provider."""

    vendor: Vendor
    emulator: Emulator
    s3_url: str

    def provider_with(self, **options: Any) -> ProviderUnderTest:
        """Return a provider with other options."""
        provider = self.vendor.make(self.emulator, self.s3_url, **options)
        return ProviderUnderTest(provider, self.vendor.spec, self.emulator.settle, [DEFAULT_KEY, SECRET])

    @cached_property
    def subject(self) -> ProviderUnderTest:
        """The provider with its usual options."""
        return self.provider_with()

    @cached_property
    def file_subject(self) -> ProviderUnderTest:
        """The provider with results in a file that the emulator serves."""
        return self.provider_with(**self.vendor.file_options(self.emulator))

    def calls_to(self, route: str) -> int:
        """Count the calls to this route."""
        return sum(fnmatch(f"{call.method} {call.path}", route) for call in self.emulator.books.calls)

    def gets(self) -> int:
        """Count the calls that read."""
        return sum(call.method == "GET" for call in self.emulator.books.calls)
