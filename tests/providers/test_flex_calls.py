"""The tier "flex" at each vendor that has it, by its SDK: asked in its own way, and read as the answer names it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from bedrock_emulator import SPECS, over
from google_emulator import gemini, vertex

from dagster_llm_batch.errors import ConfigError, TransientError
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.capabilities import flex_of
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, FlexScript, Reply, WireFault
from dagster_llm_batch.types import Endpoint, Outcome, Request, RequestSpec, Result

TIER_FIELDS = ("service_tier", "serviceTier", "trafficType")
NOWHERE = "http://127.0.0.1:9"


def openai(emulator: Emulator, **changes: Any) -> OpenAIProvider:
    return OpenAIProvider(**{"api_key": DEFAULT_KEY, "base_url": emulator.openai_base_url, **changes})


@dataclass(frozen=True)
class Vendor:
    """The access to a vendor. `standard` is its word for the usual tier."""

    make: Callable[..., Any]
    spec: RequestSpec
    standard: str


GEMINI = RequestSpec("gemini-3.8-flash-tts")
VENDORS = {
    "openai": Vendor(openai, RequestSpec("gpt-5-nano"), "default"),
    "openai-responses": Vendor(openai, RequestSpec("gpt-5-nano", endpoint=Endpoint.RESPONSES), "default"),
    "gemini": Vendor(gemini, GEMINI, "standard"),
    "vertex": Vendor(lambda at, **more: vertex(at, NOWHERE, location="global", **more), GEMINI, "ON_DEMAND"),
    "bedrock-converse": Vendor(lambda at, **more: over(at, NOWHERE, **more), SPECS["converse"], "default"),
    "bedrock-invoke": Vendor(lambda at, **more: over(at, NOWHERE, **more), SPECS["chat"], "default"),
}


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as made:
        yield made


@pytest.fixture(params=VENDORS)
def vendor(request: pytest.FixtureRequest) -> Vendor:
    return VENDORS[request.param]


def ask(vendor: Vendor, emulator: Emulator, **changes: Any) -> Result:
    provider = vendor.make(emulator, **changes)
    codec = provider.codec(vendor.spec)
    line = codec.encode(Request("r", None, "a text"), "n-0")
    try:
        answer = flex_of(provider, vendor.spec.model, vendor.spec.endpoint).respond_flex(line)
    except TransientError as error:
        answer = error.answer or b""
    result: Result = codec.decode(answer)
    assert result.custom_id == "n-0"
    return result


def tier(result: Result) -> tuple[str, str] | None:
    assert result.usage is not None
    return None if result.usage.extra is None else result.usage.extra.tier


def test_an_answer_in_flex_names_flex(vendor: Vendor, emulator: Emulator) -> None:
    result = ask(vendor, emulator)
    assert (result.outcome, tier(result)) == (Outcome.SUCCEEDED, ("service_tier", "flex"))
    assert emulator.flex.calls == 1


def test_an_answer_of_another_tier_is_read_as_it_names_itself(vendor: Vendor, emulator: Emulator) -> None:
    for named, read in ((vendor.standard, None), (None, None), ("turbo", ("service_tier", "turbo"))):
        emulator.flex.script = FlexScript(named=named)
        result = ask(vendor, emulator)
        assert (result.outcome, tier(result)) == (Outcome.SUCCEEDED, read)


@pytest.mark.parametrize("odd", [7, True, ["flex"], {"type": 7}, "FLEX ", "x" * 5_000, "\ud800"])
def test_an_answer_with_an_odd_tier_is_kept_and_is_neither_flex_nor_standard(
    vendor: Vendor, emulator: Emulator, odd: Any
) -> None:
    provider = vendor.make(emulator)
    codec = provider.codec(vendor.spec)
    line = provider.respond_flex(codec.encode(Request("r", None, "a text"), "n-0"))
    result = codec.decode(json.dumps(with_tier(json.loads(line), odd)).encode() + b"\n")
    named = tier(result)
    assert (result.outcome, named is not None, named == ("service_tier", "flex")) == (Outcome.SUCCEEDED, True, False)


def with_tier(value: Any, odd: Any) -> Any:
    """Return an answer with another tier, wherever it names one."""
    if isinstance(value, dict):
        return {key: odd if key in TIER_FIELDS else with_tier(each, odd) for key, each in value.items()}
    return [with_tier(each, odd) for each in value] if isinstance(value, list) else value


def test_a_call_that_is_turned_away_can_be_made_again_and_costs_nothing(vendor: Vendor, emulator: Emulator) -> None:
    emulator.flex.script = FlexScript(turned_away=1)
    result = ask(vendor, emulator)
    assert (result.outcome, result.retryable, result.usage) == (Outcome.ERRORED, True, None)
    assert emulator.books.executions == []


def test_a_call_without_flex_does_not_ask_for_it(vendor: Vendor, emulator: Emulator) -> None:
    provider = vendor.make(emulator)
    codec = provider.codec(vendor.spec)
    result = codec.decode(provider.respond(codec.encode(Request("r", None, "a text"), "n-0")))
    assert (result.outcome, tier(result), emulator.flex.calls) == (Outcome.SUCCEEDED, None, 0)


def test_an_answer_in_flex_may_take_longer_than_other_calls(vendor: Vendor) -> None:
    def slowly(*_: Any) -> Reply:
        time.sleep(1.5)
        return Reply(text="late")

    with Emulator(answer=slowly) as emulator:
        assert ask(vendor, emulator, timeout_seconds=0.5).text == "late"


def test_a_struck_call_in_flex_is_an_answer(vendor: Vendor, emulator: Emulator) -> None:
    emulator.inject(WireFault(kind="status", route="POST *", status=500))
    result = ask(vendor, emulator)
    assert (result.outcome, result.retryable) == (Outcome.ERRORED, True)


@pytest.mark.parametrize(
    ("provider", "spec", "words"),
    [
        (lambda: AnthropicProvider(DEFAULT_KEY), RequestSpec("claude-haiku-4-5"), "The provider 'anthropic' has none"),
        (lambda: OpenAIProvider(DEFAULT_KEY), RequestSpec("gpt-4.1"), "no price of 'gpt-4.1' in this tier"),
        (
            lambda: OpenAIProvider(DEFAULT_KEY),
            RequestSpec("text-embedding-3-small", endpoint=Endpoint.EMBEDDINGS),
            "for chat and responses",
        ),
    ],
)
def test_a_provider_or_model_without_flex_is_refused(
    provider: Callable[[], Any], spec: RequestSpec, words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"{words}.*OpenAI, the Gemini API, Vertex AI"):
        flex_of(provider(), spec.model, spec.endpoint)


@pytest.mark.parametrize(
    ("location", "model", "words"),
    [
        ("us-central1", "gemini-2.5-flash", "at location='global' alone, not at 'us-central1'"),
        ("global", "publishers/anthropic/models/claude-haiku-4-5", "not for Claude"),
    ],
)
def test_vertex_has_flex_for_gemini_at_its_global_endpoint_alone(
    emulator: Emulator, location: str, model: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        flex_of(vertex(emulator, NOWHERE, location=location), model, Endpoint.CHAT)
