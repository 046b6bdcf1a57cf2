"""The contract, held by every provider: OpenAI's over its SDK and a socket, the command with real processes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sample_batches import labeler, until

from dagster_llm_batch import Moderation, preset
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.providers.registry import PROVIDERS, provider_class
from dagster_llm_batch.testing.contracts import ProviderContract, ProviderUnderTest
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.types import Endpoint, RequestSpec, ResponseFormat, ResponseKind

pytestmark = pytest.mark.sample()

SPECS = {
    "chat": RequestSpec("gpt-x"),
    "responses": RequestSpec("gpt-x", endpoint=Endpoint.RESPONSES),
    "embeddings": RequestSpec("embed-x", ResponseFormat(ResponseKind.EMBEDDING), Endpoint.EMBEDDINGS),
    "moderations": RequestSpec("omni-moderation-latest", Moderation().format, Endpoint.MODERATIONS),
}


class TestOpenAI(ProviderContract):
    @pytest.fixture(params=SPECS)
    def subject(self, request) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
            yield ProviderUnderTest(provider, SPECS[request.param], emulator.settle, [DEFAULT_KEY])


class TestAzure(ProviderContract):
    @pytest.fixture(params=["chat", "responses"])
    def subject(self, request) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = OpenAIProvider(DEFAULT_KEY, emulator.azure_base_url, server=SERVERS["azure"])
            yield ProviderUnderTest(provider, SPECS[request.param], emulator.settle, [DEFAULT_KEY])


class TestOwnServer(ProviderContract):
    """A gateway before vLLM, which is documented as OpenAI's wire: without a key of anybody's."""

    @pytest.fixture
    def subject(self) -> Iterator[ProviderUnderTest]:
        with Emulator(keys=None) as emulator:
            provider = preset("vllm", base_url=emulator.openai_base_url).provider()
            yield ProviderUnderTest(provider, SPECS["chat"], emulator.settle)


class TestMistral(ProviderContract):
    @pytest.fixture(params=["chat", "embeddings"])
    def subject(self, request) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = preset("mistral", api_key=DEFAULT_KEY, base_url=emulator.mistral_base_url).provider()
            yield ProviderUnderTest(provider, SPECS[request.param], emulator.settle, [DEFAULT_KEY])


class TestAnthropic(ProviderContract):
    @pytest.fixture
    def subject(self) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = AnthropicProvider(DEFAULT_KEY, emulator.anthropic_base_url)
            spec = RequestSpec("claude-x", params={"max_tokens": 100})
            yield ProviderUnderTest(provider, spec, emulator.settle, [DEFAULT_KEY])


class TestOpenRouter(ProviderContract):
    @pytest.fixture(params=["chat", "responses", "embeddings"])
    def subject(self, request) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = preset("openrouter", api_key=DEFAULT_KEY, base_url=emulator.openrouter_base_url).provider()
            yield ProviderUnderTest(provider, SPECS[request.param], emulator.settle, [DEFAULT_KEY])


class TestCommand(ProviderContract):
    @pytest.fixture
    def subject(self, tmp_path) -> ProviderUnderTest:
        provider = labeler(tmp_path, env={"TOKEN": "secret-token"})

        def finish() -> None:
            ids = [path.name for path in tmp_path.iterdir()]
            until(lambda: all(report.status.is_terminal for report in provider.poll(ids).values()))

        return ProviderUnderTest(provider, RequestSpec("m"), finish, ["secret-token"])


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_registered_provider_has_all_verbs(name):
    verbs = {verb for verb in vars(Provider) if not verb.startswith("_")}
    assert {"submit", "find"} <= verbs <= set(dir(provider_class(name)))


def test_an_unknown_provider_names_the_known_ones():
    with pytest.raises(ConfigError, match=f"The providers are: {', '.join(sorted(PROVIDERS))}"):
        provider_class("brand_new")
