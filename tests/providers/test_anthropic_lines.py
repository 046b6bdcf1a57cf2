"""Request lines of Anthropic: their content, refusals before sending, and row data as mere data."""

from __future__ import annotations

import json
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.errors import ConfigError, InputError, ResponseSchemaError
from dagster_llm_batch.providers.anthropic.requests import AnthropicLines
from dagster_llm_batch.types import Endpoint, Image, Request, RequestSpec, ResponseFormat, ResponseKind, Turn
from tests.tables import table

SCHEMA = {"type": "object", "properties": {"topic": {"type": "string"}}, "required": ["topic"]}
JSON = ResponseFormat(ResponseKind.JSON, "Label", SCHEMA)
HOUR = {"type": "ephemeral", "ttl": "1h"}
TURNS = (Turn("user", "2+2?"), Turn("assistant", "4"))
PNG = Image("image/png", b"\x89PNG\r\n")


def spec(response: ResponseFormat | None = None, params: dict | None = None, **more) -> RequestSpec:
    return RequestSpec("claude-x", response or ResponseFormat(), params={"max_tokens": 16, **(params or {})}, **more)


def sent(request: Request, of: RequestSpec, **more):
    return json.loads(AnthropicLines(of, **more).encode(request, "n-1"))


def test_a_line_holds_system_turns_and_user_in_order_and_the_parameters():
    assert sent(Request("r", "Be brief.", "3+3?"), spec(params={"brand_new": {"b": [1]}}, turns=TURNS)) == {
        "custom_id": "n-1",
        "params": {
            "model": "claude-x",
            "brand_new": {"b": [1]},
            "max_tokens": 16,
            "system": "Be brief.",
            "messages": [
                {"role": "user", "content": "2+2?"},
                {"role": "assistant", "content": "4"},
                {"role": "user", "content": "3+3?"},
            ],
        },
    }


def test_a_response_schema_becomes_the_output_format_beside_the_users_effort():
    params = sent(Request("r", None, "u"), spec(JSON, {"output_config": {"effort": "low"}}))["params"]
    schema = {**SCHEMA, "additionalProperties": False}
    assert params["output_config"] == {"effort": "low", "format": {"type": "json_schema", "schema": schema}}


def test_a_cached_prefix_ends_with_the_system_text_for_an_hour():
    params = sent(Request("r", "Be brief.", "u"), spec(cache_prefix=True))["params"]
    assert params["system"] == [{"type": "text", "text": "Be brief.", "cache_control": HOUR}]
    assert params["messages"] == [{"role": "user", "content": "u"}]


def test_a_cached_prefix_ends_with_the_last_turn_where_there_are_turns():
    params = sent(Request("r", "Be brief.", "u"), spec(turns=TURNS, cache_prefix=True))["params"]
    assert params["system"] == "Be brief."
    assert params["messages"][:2] == [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": [{"type": "text", "text": "4", "cache_control": HOUR}]},
    ]


def test_images_come_as_data_or_address_before_the_text():
    request = Request("r", None, "What is it?", (PNG, Image(url="https://example.com/a.png")))
    data, url, text = sent(request, spec())["params"]["messages"][0]["content"]
    assert (data["source"]["type"], data["source"]["media_type"]) == ("base64", "image/png")
    assert b64decode(data["source"]["data"]) == PNG.data
    assert url == {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
    assert text == {"type": "text", "text": "What is it?"}


@pytest.mark.parametrize(
    ("image", "message"), [(Image(), "neither a URL nor data"), (Image("image/tiff", b"x"), "tiff")]
)
def test_an_image_that_cannot_be_taken_is_an_input_error(image, message):
    with pytest.raises(InputError, match=message):
        AnthropicLines(spec()).encode(Request("r", None, "u", (image,)), "n-1")


REFUSED = [
    ({"model": "other"}, None),
    ({"messages": []}, None),
    ({"system": "x"}, None),
    ({"stream": True}, None),
    ({"speed": "fast"}, None),
    ({"store": True}, None),
    ({"previous_thread_event_id": "x"}, None),
    ({"cache_hint": "x"}, None),
    ({"context_hint": "x"}, None),
    ({"research_preview_2026_02": "active"}, None),
    ({"output_format": {}}, None),
    ({"logprobs": True}, None),
    ({"top_logprobs": 5}, None),
    ({"output_config": {"format": {}}}, JSON),
]


@table(("params", "response"), REFUSED)
def test_a_parameter_that_no_batch_takes_is_refused_by_name(params, response):
    with pytest.raises(ConfigError, match=f"The parameter '{next(iter(params))}' cannot be set here"):
        AnthropicLines(spec(response, params))


@pytest.mark.parametrize("name", ["temperature", "top_p", "top_k"])
def test_sampling_is_refused_under_the_present_version_and_taken_under_the_first(name):
    of = spec(params={name: 1})
    with pytest.raises(ConfigError, match=f"2026-10-21 refuses the parameter '{name}'.*2023-06-01"):
        AnthropicLines(of).check_parameters()
    assert sent(Request("r", None, "u"), of, version="2023-06-01")["params"][name] == 1


@pytest.mark.parametrize("most", [0, -1, "100", True, 1.5])
def test_max_tokens_must_be_a_number_of_tokens(most):
    with pytest.raises(ConfigError, match="'max_tokens' must be a number of tokens"):
        AnthropicLines(spec(params={"max_tokens": most}))


def test_max_tokens_must_be_given_and_the_message_says_how():
    with pytest.raises(ConfigError, match=r'params=\{"max_tokens": 1024\}'):
        AnthropicLines(RequestSpec("claude-x"))


@pytest.mark.parametrize("endpoint", [Endpoint.RESPONSES, Endpoint.EMBEDDINGS])
def test_an_endpoint_that_anthropic_does_not_have_is_refused(endpoint):
    with pytest.raises(ConfigError, match="not supported here at Anthropic; supported is 'chat'"):
        AnthropicLines(spec(endpoint=endpoint))


def test_a_schema_that_cannot_be_taken_is_refused_when_the_codec_is_built():
    free = {"type": "object", "properties": {"m": {"type": "object"}}}
    with pytest.raises(ResponseSchemaError, match=r"\$\.properties\.m"):
        AnthropicLines(spec(ResponseFormat(ResponseKind.JSON, "m", free)))


def test_the_system_text_of_one_request_does_not_stay_for_the_next():
    codec = AnthropicLines(spec())
    lines = [codec.encode(Request("r", system, "u"), "n-1") for system in ("a", None, "b", "a", "")]
    assert [json.loads(line)["params"].get("system") for line in lines] == ["a", None, "b", "a", None]


awkward = st.text(st.characters() | st.sampled_from('"\\\u2028\u2029\x00\x1f\x7f\n\r{}\U0001f600'))


def whole(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


@given(user=awkward, system=awkward, custom_id=awkward, turn=awkward, cached=st.booleans())
def test_any_text_survives_as_data_in_one_ascii_line(user, system, custom_id, turn, cached):
    codec = AnthropicLines(spec(turns=(Turn("assistant", turn),), cache_prefix=cached))
    line = codec.encode(Request("r", system, user), custom_id)
    assert line.isascii()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    value = json.loads(line)
    assert set(value) == {"custom_id", "params"}
    assert value["custom_id"] == whole(custom_id)
    assert value["params"].get("system", "") == whole(system)
    first, last = (message["content"] for message in value["params"]["messages"])
    assert (first[0]["text"] if cached else first) == whole(turn)
    assert last == whole(user)
