"""Parameters: emulators accept all that a codec takes without a warning, and certain refusals come before sending."""

from __future__ import annotations

import io
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any

import pytest
from bedrock_emulator import SPECS as BEDROCK_SPECS
from bedrock_emulator import over
from google_emulator import gemini, vertex_in_tables

from dagster_llm_batch import Moderation, preset
from dagster_llm_batch.errors import ConfigError, RefusedError, ResponseSchemaError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers import parameters
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.providers.parameters import Form, check_parameters
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.types import Endpoint, Outcome, Request, RequestSpec, ResponseFormat, ResponseKind, Result

VECTOR = ResponseFormat(ResponseKind.EMBEDDING)
FORMS = [
    *(value for value in vars(parameters).values() if isinstance(value, Form)),
    *(form for server in SERVERS.values() for form in (server.forms or {}).values()),
]
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
CLOSED = {**SCHEMA, "additionalProperties": False}
FORM = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}

# Names that the tables lack: some from bodies without a table, and some that are wrong everywhere.
OTHER_NAMES = [
    "maxTokens",
    "max_gen_len",
    "inferenceConfig",
    "additionalModelRequestFields",
    "tempreature",
    "logit_biaz",
]
VALUES: dict[str, list[Any]] = {
    "temperature": [0, 0.7, 1.2, 1.9, 2.5, -1, "hot"],
    "top_p": [0.5, 1.5],
    "top_k": [5, -1, 0.5],
    "stop": [["x"]],
    "stop_sequences": [["x"]],
    "max_tokens": [1, 4_000, 200_000, 300_001, 0, -5],
    "response_format": [
        {"type": "json_object"},
        {"type": "json_schema"},
        FORM,
        {"type": "json_schema", "json_schema": {"name": "x", "schema": CLOSED, "strict": True}},
    ],
    "text": [{"verbosity": "low"}, {"format": {"type": "json_schema", "schema": CLOSED, "strict": True}}],
    "output_config": [
        {"effort": "low"},
        {"format": "json"},
        {"format": {"type": "json_schema", "schema": SCHEMA}},
        {"format": {"type": "json_schema", "schema": CLOSED}},
    ],
    "outputConfig": [{"textFormat": {"type": "json_schema"}}],
    "response_schema": [{"type": "OBJECT", "patternProperties": {}}, {"type": "STRING"}],
    "responseSchema": [{"type": "OBJECT", "properties": {"a": {"type": "STRING"}}}],
    "inferenceConfig": [{"maxTokens": 5}],
    "stream": [False, True],
    "tools": [[]],
    "include": [[]],
    "metadata": [{"user_id": "u"}],
    "thinking": [{"type": "enabled", "budget_tokens": 1_024}],
}
# The requests at each: provider, model and response, and required parameters.
CASES: dict[str, tuple[Callable[[Emulator], Provider], RequestSpec]] = {
    "openai chat": (lambda one: OpenAIProvider(DEFAULT_KEY, one.openai_base_url), RequestSpec("gpt-x")),
    "openai responses": (
        lambda one: OpenAIProvider(DEFAULT_KEY, one.openai_base_url),
        RequestSpec("gpt-x", endpoint=Endpoint.RESPONSES),
    ),
    "openai embeddings": (
        lambda one: OpenAIProvider(DEFAULT_KEY, one.openai_base_url),
        RequestSpec("embed-x", VECTOR, Endpoint.EMBEDDINGS),
    ),
    "openai moderations": (
        lambda one: OpenAIProvider(DEFAULT_KEY, one.openai_base_url),
        RequestSpec("omni-x", Moderation().format, Endpoint.MODERATIONS),
    ),
    "azure chat": (
        lambda one: OpenAIProvider(DEFAULT_KEY, one.azure_base_url, server=SERVERS["azure"]),
        RequestSpec("gpt-x"),
    ),
    "openrouter": (
        lambda one: preset("openrouter", api_key=DEFAULT_KEY, base_url=one.openrouter_base_url).provider(),
        RequestSpec("m"),
    ),
    "mistral": (
        lambda one: preset("mistral", api_key=DEFAULT_KEY, base_url=one.mistral_base_url).provider(),
        RequestSpec("mistral-small-latest"),
    ),
    "anthropic": (
        lambda one: AnthropicProvider(DEFAULT_KEY, one.anthropic_base_url),
        RequestSpec("claude-x", params={"max_tokens": 9}),
    ),
    "anthropic 2023": (
        lambda one: AnthropicProvider(DEFAULT_KEY, one.anthropic_base_url, anthropic_version="2023-06-01"),
        RequestSpec("claude-x", params={"max_tokens": 9}),
    ),
    "gemini": (gemini, RequestSpec("gemini-2.5-flash")),
    "gemini embeddings": (gemini, RequestSpec("gemini-embedding-001", VECTOR, Endpoint.EMBEDDINGS)),
    "vertex": (vertex_in_tables, RequestSpec("gemini-2.5-flash")),
    "vertex claude": (
        lambda one: vertex_in_tables(one, location="us-east5"),
        RequestSpec("claude-x", params={"max_tokens": 9}),
    ),
    **{
        f"bedrock {family}": (lambda one: over(one, "http://127.0.0.1:1"), spec)
        for family, spec in BEDROCK_SPECS.items()
    },
}


def values_of(name: str) -> list[Any]:
    return VALUES.get(name, [1, "a-word", {"type": "x"}])


def drawn(spec: RequestSpec, singles: list[tuple[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Yield each parameter alone, then some together."""
    chance = random.Random(35)
    yield spec.params
    for name, value in singles:
        yield {**spec.params, name: value}
    for _ in range(200):
        yield {**spec.params, **dict(chance.sample(singles, chance.randint(2, 4)))}


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.mark.parametrize("case", CASES)
def test_what_is_taken_without_a_warning_is_refused_by_no_emulator(emulator, case):
    make, spec = CASES[case]
    provider = make(emulator)
    names = sorted({*OTHER_NAMES, *VALUES, *(name for form in FORMS for name in form.names)})
    approved, lines = [], []
    for params in drawn(spec, [(name, value) for name in names for value in values_of(name)]):
        changed = RequestSpec(spec.model, spec.response, spec.endpoint, params=params)
        try:
            codec = provider.codec(changed)
            warnings = codec.check_parameters()
        except (ConfigError, ResponseSchemaError):
            continue
        if not warnings:
            lines.append(codec.encode(Request(f"r{len(lines)}", None, "a text"), f"n-{len(lines)}"))
            approved.append((params, codec))
    assert approved
    if case == "mistral":
        batch = provider.submit(io.BytesIO(b"".join(lines)), spec, "dlb-mistral")
        emulator.settle()
        answers = {approved[0][1].decode(line).custom_id: line for line in provider.fetch(batch)}
        results = [codec.decode(answers[f"n-{at}"]) for at, (_, codec) in enumerate(approved)]
    else:
        results = []
        for line, (_, codec) in zip(lines, approved, strict=True):
            try:
                results.append(codec.decode(provider.respond(line)))
            except RefusedError as error:
                # boto3's own check, only in real time: the request never left.
                assert "Parameter validation failed" in str(error)  # noqa: PT017
                results.append(Result("", Outcome.SUCCEEDED))
    refused = [
        f"{params}: {result.reason}"
        for result, (params, _) in zip(results, approved, strict=True)
        if result.outcome is Outcome.ERRORED
    ]
    assert not refused, "\n".join(refused[:20])


@pytest.mark.sample
@pytest.mark.parametrize(
    ("case", "params", "said"),
    [
        ("anthropic", {"max_tokens": 9, "max_completion_tokens": 9}, "it is called 'max_tokens' there"),
        ("anthropic", {"max_tokens": 9, "maxTokens": 9}, "it is called 'max_tokens' there"),
        ("anthropic", {"max_tokens": 9, "stop": ["x"]}, "it is called 'stop_sequences' there"),
        ("anthropic", {"max_tokens": 9, "seed": 1}, "it is one of OpenAI's chat completions"),
        ("anthropic", {"max_tokens": 128_001}, "at most 128,000 tokens"),
        ("anthropic 2023", {"max_tokens": 9, "temperature": 1.5}, "must be a number from 0 to 1; got 1.5"),
        ("openai chat", {"max_output_tokens": 9}, "it is called 'max_completion_tokens' there"),
        ("azure chat", {"top_k": 5}, "it is one of Anthropic's messages"),
        ("openai responses", {"max_completion_tokens": 9}, "it is called 'max_output_tokens' there"),
        ("mistral", {"seed": 1}, "it is called 'random_seed' there"),
        ("mistral", {"temperature": 1.9}, "must be a number from 0 to 1.5"),
        ("gemini", {"stop": ["x"]}, "it is called 'stop_sequences' there"),
        ("gemini", {"audio_timestamp": True}, "it is one of Gemini's requests on Vertex AI"),
        ("vertex", {"store": True}, "it is one of the Gemini API's requests"),
        ("vertex", {"serviceTier": "flex"}, "it is one of the Gemini API's requests"),
        ("vertex", {"max_gen_len": 9}, "it is called 'max_output_tokens' there"),
        ("vertex claude", {"max_tokens": 9, "max_output_tokens": 9}, "it is called 'max_tokens' there"),
        ("bedrock claude", {"max_tokens": 9, "max_completion_tokens": 9}, "it is called 'max_tokens' there"),
        ("bedrock chat", {"max_output_tokens": 9}, "it is called 'max_completion_tokens' there"),
    ],
)
def test_another_vendors_parameter_is_refused_with_the_right_name(emulator, case, params, said):
    make, spec = CASES[case]
    # It also reads the results of requests that were sent before the parameter was refused.
    codec = make(emulator).codec(RequestSpec(spec.model, spec.response, spec.endpoint, params=params))
    with pytest.raises(ConfigError, match=said) as caught:
        codec.check_parameters()
    assert "Nothing was sent" in str(caught.value) or "All parameters but" in str(caught.value)


@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("bedrock") or case == "bedrock claude"])
def test_a_parameter_that_no_type_has_gets_a_warning_and_is_sent(emulator, case):
    make, spec = CASES[case]
    codec = make(emulator).codec(
        RequestSpec(spec.model, spec.response, spec.endpoint, params={**spec.params, "brand_new": 1})
    )
    assert any("'brand_new' is in no type" in warning for warning in codec.check_parameters())
    line = codec.encode(Request("r", None, "a text"), "n-0").replace(b"brandNew", b"brand_new")
    assert b'"brand_new":1' in line


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("response", [None, ResponseFormat(ResponseKind.JSON, json_schema=CLOSED)])
def test_a_codec_that_goes_to_a_worker_writes_the_same_lines_there(emulator, case, response):
    make, spec = CASES[case]
    # Nova has no structured outputs.
    takes_a_schema = spec.response.kind is ResponseKind.TEXT and case != "bedrock nova"
    if response is not None and takes_a_schema:
        spec = RequestSpec(spec.model, response, spec.endpoint, params=spec.params)
    codec = make(emulator).codec(spec)
    request = Request("r", None, "a text")
    assert pickle.loads(pickle.dumps(codec)).encode(request, "n-0") == codec.encode(request, "n-0")


def test_a_server_of_the_users_own_may_take_more_but_not_a_maximum_that_it_does_not_read():
    assert (
        preset("vllm", base_url="http://127.0.0.1:1/v1")
        .provider()
        .codec(RequestSpec("m", params={"top_k": 5}))
        .check_parameters()
    )
    with pytest.raises(ConfigError, match="it is called"):
        preset("vllm", base_url="http://127.0.0.1:1/v1").provider().codec(
            RequestSpec("m", params={"max_output_tokens": 5})
        ).check_parameters()


@pytest.mark.parametrize("form", [form for form in FORMS if form.types], ids=lambda form: form.title)
def test_the_tables_have_every_name_of_the_installed_sdk(form):
    module, _, attribute = form.types.partition(":")
    if module.startswith("mistralai"):
        pytest.importorskip("mistralai")
    found = getattr(import_module(module), attribute)
    names = set(getattr(found, "model_fields", None) or found.__annotations__)
    # A header, a speed that batches lack, and settings of the SDK's own client.
    not_in_requests = {"workspace_id", "speed", "http_options", "mime_type"}
    assert names - form.names - form.lacks <= not_in_requests
    assert not form.names & form.lacks


@pytest.mark.parametrize("form", [parameters.GEMINI, parameters.VERTEX], ids=lambda form: form.title)
def test_a_name_that_a_vendors_own_sdk_has_is_never_another_vendors(form):
    refusals = []
    for name in import_module("google.genai.types").GenerateContentConfig.model_fields:
        try:
            check_parameters(form, {name: None})
        except ConfigError as error:
            refusals.append(str(error))
    assert refusals
    assert all("it is one of the Gemini API's" in said or "one of Gemini's requests" in said for said in refusals)


def test_gemini_takes_store_beside_the_contents(emulator):
    make, spec = CASES["gemini"]
    codec = make(emulator).codec(RequestSpec(spec.model, params={"store": False, "max_output_tokens": 9}))
    assert codec.check_parameters() == ()
    line = codec.encode(Request("r", None, "a text"), "n-0")
    assert b'"request":{"store":false,"generationConfig":{"maxOutputTokens":9}' in line


def test_a_name_that_only_a_newer_sdk_has_is_taken():
    older = parameters.ANTHROPIC._replace(names=parameters.ANTHROPIC.names - {"inference_geo"})
    assert check_parameters(older, {"inference_geo": "us"}) == ()
    with pytest.raises(ConfigError):
        check_parameters(older._replace(types=None), {"inference_geo": "us"})
