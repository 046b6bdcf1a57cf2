"""The contract, held by every provider: OpenAI's over its SDK and a socket, the command with real processes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from inspect import getattr_static
from pathlib import Path

import pytest
from sample_batches import labeler, until

from dagster_llm_batch import Moderation, preset
from dagster_llm_batch.errors import ConfigError, ProviderError
from dagster_llm_batch.protocols import CAPABILITIES, Provider
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.capabilities import pass_on_capabilities
from dagster_llm_batch.providers.mistral import jobs as mistral
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openai_api.calls import Batch
from dagster_llm_batch.providers.openai_api.servers import SERVERS, Fact
from dagster_llm_batch.providers.registry import PROVIDERS, SERVER_FOLDERS, provider_class
from dagster_llm_batch.telemetry import TracedProvider
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


CHAT_ALONE = Fact((Endpoint.CHAT,), "nobody's")


class TestOpenAI(ProviderContract):
    @pytest.fixture(params=SPECS)
    def subject(self, request) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
            yield ProviderUnderTest.at_emulator(emulator, provider, SPECS[request.param], [DEFAULT_KEY])


class TestAzure(ProviderContract):
    @pytest.fixture(params=["chat", "responses"])
    def subject(self, request) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = OpenAIProvider(DEFAULT_KEY, emulator.azure_base_url, server=SERVERS["azure"])
            yield ProviderUnderTest.at_emulator(emulator, provider, SPECS[request.param], [DEFAULT_KEY])


class TestOwnServer(ProviderContract):
    """A gateway before vLLM, documented with OpenAI's wire, without a key."""

    @pytest.fixture
    def subject(self) -> Iterator[ProviderUnderTest]:
        with Emulator(keys=None) as emulator:
            provider = preset("vllm", base_url=emulator.openai_base_url).provider()
            yield ProviderUnderTest.at_emulator(emulator, provider, SPECS["chat"])


OWN_PATHS = [
    (name, endpoint.value) for name in SERVER_FOLDERS for endpoint in (SERVERS[name].endpoints or CHAT_ALONE).value
]


# Fields of a batch that a vendor with a folder lacks (ProviderUnderTest).
UNREPORTED: dict[str, list[str]] = {}


class TestServersWithFolders(ProviderContract):
    """OpenAI's lines over a vendor's own paths: each at the vendor's emulator, by each API that answers batches."""

    @pytest.fixture(params=OWN_PATHS, ids="-".join)
    def subject(self, request) -> Iterator[ProviderUnderTest]:
        name, endpoint = request.param
        with Emulator() as emulator:
            provider = preset(name, api_key=DEFAULT_KEY, base_url=emulator.base_url(name)).provider()
            yield ProviderUnderTest.at_emulator(
                emulator, provider, SPECS[endpoint], [DEFAULT_KEY], unreported=UNREPORTED.get(name, ())
            )


class TestAnthropic(ProviderContract):
    @pytest.fixture
    def subject(self) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = AnthropicProvider(DEFAULT_KEY, emulator.anthropic_base_url)
            spec = RequestSpec("claude-x", params={"max_tokens": 100})
            yield ProviderUnderTest.at_emulator(emulator, provider, spec, [DEFAULT_KEY], without=["reject_batch"])


class TestOpenRouter(ProviderContract):
    @pytest.fixture(params=["chat", "responses", "embeddings"])
    def subject(self, request) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = preset("openrouter", api_key=DEFAULT_KEY, base_url=emulator.openrouter_base_url).provider()
            yield ProviderUnderTest.at_emulator(emulator, provider, SPECS[request.param], [DEFAULT_KEY])


def command(folder: Path) -> ProviderUnderTest:
    provider = labeler(folder, env={"TOKEN": "secret-token"})

    def finish() -> None:
        ids = [path.name for path in folder.iterdir()]
        until(lambda: all(report.status.is_terminal for report in provider.poll(ids).values()))

    return ProviderUnderTest(provider, RequestSpec("m"), finish, ["secret-token"], unreported=["failed"])


class TestCommand(ProviderContract):
    @pytest.fixture
    def subject(self, tmp_path) -> ProviderUnderTest:
        return command(tmp_path)


CLAUDE = RequestSpec("claude-x", params={"max_tokens": 100})
# A provider with each set of verbs.
TRACED: dict[str, Callable[[Emulator], tuple[Provider, RequestSpec]]] = {
    "openai": lambda emulator: (OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url), SPECS["chat"]),
    "anthropic": lambda emulator: (AnthropicProvider(DEFAULT_KEY, emulator.anthropic_base_url), CLAUDE),
    "openrouter": lambda emulator: (
        preset("openrouter", api_key=DEFAULT_KEY, base_url=emulator.openrouter_base_url).provider(),
        SPECS["chat"],
    ),
}


class TestTraced(ProviderContract):
    """With a span for each call, a provider still holds the contract."""

    @pytest.fixture(params=[*TRACED, "command"])
    def subject(self, request, tmp_path) -> Iterator[ProviderUnderTest]:
        if request.param == "command":
            plain = command(tmp_path)
            yield replace(plain, provider=TracedProvider(plain.provider))
            return
        with Emulator() as emulator:
            provider, spec = TRACED[request.param](emulator)
            # A batch of Anthropic's does not fail as a whole.
            without = ["reject_batch"] if request.param == "anthropic" else []
            yield ProviderUnderTest.at_emulator(
                emulator, TracedProvider(provider), spec, [DEFAULT_KEY], without=without
            )


# A field that a vendor's own calls leave out, and the case that fails then.
LEFT_OUT = {
    "id": ProviderContract.test_poll_a_batch_is_reported_until_it_ends,
    "status": ProviderContract.test_poll_a_batch_is_reported_until_it_ends,
    "metadata": ProviderContract.test_find_a_batch_that_was_never_created_is_absent,
    "created_at": ProviderContract.test_poll_2_an_ended_batch_reports_its_counts_and_times,
    "completed_at": ProviderContract.test_poll_2_an_ended_batch_reports_its_counts_and_times,
    "request_counts": ProviderContract.test_poll_2_an_ended_batch_reports_its_counts_and_times,
    "errors": ProviderContract.test_poll_3_a_rejected_batch_has_failed_for_the_vendors_reason,
    "output_file_id": ProviderContract.test_fetch_every_request_has_one_line_and_one_outcome,
    "error_file_id": ProviderContract.test_fetch_2_a_refused_request_has_one_line_with_its_error,
}


# A status without translation, and the case that fails then.
STATUSES = {
    "SUCCESS": ProviderContract.test_poll_a_batch_is_reported_until_it_ends,
    "FAILED": ProviderContract.test_poll_3_a_rejected_batch_has_failed_for_the_vendors_reason,
    "TIMEOUT_EXCEEDED": ProviderContract.test_poll_4_a_batch_that_expired_ends_and_keeps_its_answers,
    "CANCELLED": ProviderContract.test_cancel_leads_to_an_end_that_accounts_for_what_finished,
}


def hold_jobs_to(duty: Callable[[ProviderContract, ProviderUnderTest], None], calls: str) -> None:
    """Hold Mistral's server to a duty, with these calls about batches."""
    server = replace(SERVERS["mistral"], calls=Fact(calls, "nobody's"))
    with Emulator() as emulator:
        provider = OpenAIProvider(DEFAULT_KEY, emulator.base_url("mistral"), server=server)
        duty(ProviderContract(), ProviderUnderTest.at_emulator(emulator, provider, SPECS["chat"]))


@pytest.mark.parametrize("name", LEFT_OUT)
def test_the_contract_sees_calls_that_leave_out_a_field_of_a_batch(name, monkeypatch):
    class Jobs(mistral.Jobs):
        def _batch(self, data):
            batch = super()._batch(data)
            return Batch(**{**vars(batch), name: None})

    hold_jobs_to(LEFT_OUT[name], SERVERS["mistral"].calls.value)
    monkeypatch.setattr(sys.modules[__name__], "Jobs", Jobs, raising=False)
    with pytest.raises((AssertionError, ProviderError)):
        hold_jobs_to(LEFT_OUT[name], f"{__name__}:Jobs")


@pytest.mark.parametrize(("word", "duty"), STATUSES.items())
def test_the_contract_sees_calls_that_do_not_translate_a_status(word, duty, monkeypatch):
    hold_jobs_to(duty, SERVERS["mistral"].calls.value)
    monkeypatch.setitem(mistral._STATUSES, word, "a word of the vendor's")
    with pytest.raises(AssertionError):
        hold_jobs_to(duty, SERVERS["mistral"].calls.value)


@pytest.mark.parametrize("name", [*TRACED, "command"])
def test_a_traced_provider_shows_the_verbs_of_the_one_that_it_wraps_and_no_other(name, tmp_path):
    with Emulator() as emulator:
        provider = command(tmp_path).provider if name == "command" else TRACED[name](emulator)[0]
        shown = {verb for verb in CAPABILITIES if hasattr(TracedProvider(provider), verb)}
        assert shown == {verb for verb in CAPABILITIES if hasattr(provider, verb)}


class Wrapper:
    """Acts like the other provider, but a batch is canceled here."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        pass_on_capabilities(provider, self)

    def __getattr__(self, name: str) -> object:
        return getattr(self._provider, name)

    def cancel(self, batch_id: str) -> None:
        raise NotImplementedError


def test_a_wrapper_shows_the_verbs_of_the_one_that_it_wraps_on_every_python_and_keeps_its_own():
    provider = OpenAIProvider(DEFAULT_KEY, "http://127.0.0.1:9/v1")
    wrapper = Wrapper(provider)
    shown = {verb for verb in CAPABILITIES if getattr_static(wrapper, verb, None) is not None}
    assert shown == {verb for verb in CAPABILITIES if hasattr(provider, verb)}
    with pytest.raises(NotImplementedError):
        wrapper.cancel("batch_1")


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_registered_provider_has_all_verbs(name):
    verbs = {verb for verb in vars(Provider) if not verb.startswith("_")}
    assert {"submit", "find"} <= verbs <= set(dir(provider_class(name)))


@pytest.mark.parametrize("name", PROVIDERS)
def test_every_registered_provider_cancels_deletes_and_answers_in_real_time(name):
    assert {"cancel", "delete", "respond"} <= set(dir(provider_class(name)))


def test_all_that_upload_a_request_file_to_the_vendor_can_delete_it():
    able = {name for name in PROVIDERS if hasattr(provider_class(name), "delete_request_file")}
    assert able == {"openai", "gemini", "vertex", "bedrock"}


def test_an_unknown_provider_names_the_known_ones():
    with pytest.raises(ConfigError, match=f"The providers are: {', '.join(sorted(PROVIDERS))}"):
        provider_class("brand_new")
