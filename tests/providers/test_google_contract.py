"""The contract, held by both providers of Google over their SDKs, sockets and a real Cloud Storage server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from google_emulator import BUCKET, gemini, vertex, vertex_in_tables

from dagster_llm_batch.testing.contracts import ProviderContract, ProviderUnderTest
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, local_gcs
from dagster_llm_batch.types import Endpoint, RequestSpec, ResponseFormat, ResponseKind

pytestmark = pytest.mark.sample()

VERTEX_SPECS = {
    "gemini": RequestSpec("gemini-2.5-flash"),
    "claude": RequestSpec("claude-sonnet-4-5", params={"max_tokens": 100}),
    "embeddings": RequestSpec("gemini-embedding-001", ResponseFormat(ResponseKind.EMBEDDING), Endpoint.EMBEDDINGS),
}


@pytest.fixture(scope="module")
def storage_url() -> Iterator[str]:
    with local_gcs(BUCKET) as url:
        yield url


class TestVertex(ProviderContract):
    @pytest.fixture(params=VERTEX_SPECS)
    def subject(self, request, storage_url, tmp_path) -> Iterator[ProviderUnderTest]:
        with Emulator(gcs_url=storage_url) as emulator:
            provider = vertex(emulator, storage_url, prefix=tmp_path.name + request.param)
            yield ProviderUnderTest.at_emulator(
                emulator, provider, VERTEX_SPECS[request.param], [DEFAULT_KEY], unreported=["total"]
            )


class TestVertexInTables(ProviderContract):
    @pytest.fixture(params=["gemini", "claude"])
    def subject(self, request) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            yield ProviderUnderTest.at_emulator(
                emulator, vertex_in_tables(emulator), VERTEX_SPECS[request.param], [DEFAULT_KEY], unreported=["total"]
            )


# The emulator keeps no answer of a batch that expired.
NO_ANSWERS = ("expire_batch",)


class TestGemini(ProviderContract):
    @pytest.fixture(params=[0, 1_000_000], ids=["file", "inline"])
    def subject(self, request) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = gemini(emulator, inline_bytes=request.param)
            yield ProviderUnderTest.at_emulator(
                emulator, provider, RequestSpec("gemini-2.5-flash"), [DEFAULT_KEY], without=NO_ANSWERS
            )


class TestGeminiEmbeddings(ProviderContract):
    @pytest.fixture
    def subject(self) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            spec = replace(VERTEX_SPECS["embeddings"], response=ResponseFormat(ResponseKind.EMBEDDING, dimensions=6))
            yield ProviderUnderTest.at_emulator(emulator, gemini(emulator), spec, [DEFAULT_KEY], without=NO_ANSWERS)
