"""Request lines: their content, refusals, and row data as mere data."""

from __future__ import annotations

import json
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import ResponseInputImageParam
from pydantic import TypeAdapter

from dagster_llm_batch.core.fixed_responses import Moderation
from dagster_llm_batch.errors import ConfigError, InputError, ResponseSchemaError
from dagster_llm_batch.providers.openai_api.requests import OpenAILines
from dagster_llm_batch.types import (
    BatchLimits,
    Endpoint,
    Image,
    Request,
    RequestSpec,
    ResponseFormat,
    ResponseKind,
    Turn,
)
from tests.tables import table

SCHEMA = {"type": "object", "properties": {"topic": {"type": "string", "title": "Topic"}}}
STRICT = {
    "type": "object",
    "properties": {"topic": {"type": "string"}},
    "required": ["topic"],
    "additionalProperties": False,
}
JSON = ResponseFormat(ResponseKind.JSON, "Ticket label", SCHEMA)
EMBEDDING = ResponseFormat(ResponseKind.EMBEDDING)
PNG = Image("image/png", b"\x89PNG\r\n")


def spec(endpoint: Endpoint = Endpoint.CHAT, response: ResponseFormat | None = None, **more) -> RequestSpec:
    default = EMBEDDING if endpoint is Endpoint.EMBEDDINGS else ResponseFormat()
    return RequestSpec("gpt-x", response or default, endpoint, **more)


def sent(request: Request, of: RequestSpec, custom_id: str = "n-1"):
    return json.loads(OpenAILines(of).encode(request, custom_id))


def test_a_chat_line_holds_system_turns_and_user_in_order_and_the_parameters():
    turns = (Turn("user", "2+2?"), Turn("assistant", "4"))
    of = spec(params={"temperature": 0, "max_tokens": 16, "brand_new": {"b": [1]}}, turns=turns)
    assert sent(Request("r", "Be brief.", "3+3?"), of) == {
        "custom_id": "n-1",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-x",
            "temperature": 0,
            "max_tokens": 16,
            "brand_new": {"b": [1]},
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "2+2?"},
                {"role": "assistant", "content": "4"},
                {"role": "user", "content": "3+3?"},
            ],
        },
    }


def test_a_responses_line_holds_the_same_as_input():
    line = sent(Request("r", "Be brief.", "3+3?"), spec(Endpoint.RESPONSES, params={"max_output_tokens": 16}))
    assert line["url"] == "/v1/responses"
    assert line["body"] == {
        "model": "gpt-x",
        "max_output_tokens": 16,
        "input": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3+3?"}],
    }


def test_an_embeddings_line_asks_for_floats_and_dimensions():
    line = sent(
        Request("r", None, "a text"), spec(Endpoint.EMBEDDINGS, ResponseFormat(ResponseKind.EMBEDDING, dimensions=8))
    )
    assert line["url"] == "/v1/embeddings"
    assert line["body"] == {"model": "gpt-x", "input": "a text", "encoding_format": "float", "dimensions": 8}


def test_a_response_schema_is_strict_in_chat_and_responses():
    wanted = {"name": "Ticket_label", "strict": True, "schema": STRICT}
    chat = sent(Request("r", None, "u"), spec(response=JSON))
    assert chat["body"]["response_format"] == {"type": "json_schema", "json_schema": wanted}
    of = spec(Endpoint.RESPONSES, JSON, params={"text": {"verbosity": "low"}})
    assert sent(Request("r", None, "u"), of)["body"]["text"] == {
        "verbosity": "low",
        "format": {"type": "json_schema", **wanted},
    }


def test_json_without_a_schema_asks_for_any_object():
    free = ResponseFormat(ResponseKind.JSON)
    assert sent(Request("r", None, "u"), spec(response=free))["body"]["response_format"] == {"type": "json_object"}
    responses = sent(Request("r", None, "u"), spec(Endpoint.RESPONSES, free))
    assert responses["body"]["text"] == {"format": {"type": "json_object"}}


def test_images_become_parts_of_the_user_message():
    request = Request("r", None, "What is it?", (PNG, Image(url="https://example.com/a.png")))
    text, data, url = sent(request, spec())["body"]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"}
    prefix, _, encoded = data["image_url"]["url"].partition(",")
    assert (data["type"], prefix, b64decode(encoded)) == ("image_url", "data:image/png;base64", PNG.data)
    assert url == {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    text, data, url = sent(request, spec(Endpoint.RESPONSES))["body"]["input"][0]["content"]
    assert text == {"type": "input_text", "text": "What is it?"}
    assert data == {"type": "input_image", "image_url": f"{prefix},{encoded}", "detail": "auto"}
    assert url == {"type": "input_image", "image_url": "https://example.com/a.png", "detail": "auto"}
    for part in (data, url):
        TypeAdapter(ResponseInputImageParam).validate_python(part, strict=True)  # the SDK's required fields


def test_an_image_without_anything_is_an_input_error():
    with pytest.raises(InputError, match="neither a URL nor data"):
        OpenAILines(spec()).encode(Request("r", None, "u", (Image(),)), "n-1")


CHAT, RESPONSES, EMBEDDINGS = Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.EMBEDDINGS
REFUSED = [
    (CHAT, None, "messages", []),
    (CHAT, None, "model", "other"),
    (CHAT, None, "stream", True),
    (CHAT, None, "n", 2),
    (CHAT, JSON, "response_format", {"type": "text"}),
    (RESPONSES, None, "input", "x"),
    (RESPONSES, None, "instructions", "x"),
    (RESPONSES, None, "stream", True),
    (RESPONSES, JSON, "text", {"format": {}}),
    (EMBEDDINGS, None, "input", "x"),
    (EMBEDDINGS, None, "encoding_format", "base64"),
    (EMBEDDINGS, ResponseFormat(ResponseKind.EMBEDDING, dimensions=4), "dimensions", 8),
]


@table(("endpoint", "response", "name", "value"), REFUSED)
def test_a_parameter_that_would_change_the_request_is_refused_by_name(endpoint, response, name, value):
    with pytest.raises(ConfigError, match=f"The parameter '{name}' cannot be set here") as caught:
        OpenAILines(spec(endpoint, response, params={name: value}))
    assert "All parameters but" in str(caught.value)


def test_a_parameter_that_is_no_json_is_refused():
    for value in (float("nan"), {1, 2}):
        with pytest.raises(ConfigError, match="not JSON"):
            OpenAILines(spec(params={"temperature": value}))


def test_a_response_format_of_the_users_own_passes_through_for_text():
    of = spec(params={"response_format": {"type": "json_object"}, "stream": False})
    assert sent(Request("r", None, "u"), of)["body"]["response_format"] == {"type": "json_object"}


@pytest.mark.parametrize(
    ("endpoint", "response"),
    [
        (CHAT, EMBEDDING),
        (RESPONSES, EMBEDDING),
        (EMBEDDINGS, JSON),
        (EMBEDDINGS, ResponseFormat()),
        (CHAT, Moderation().format),
        (Endpoint.MODERATIONS, JSON),
        (Endpoint.MODERATIONS, EMBEDDING),
    ],
)
def test_an_endpoint_that_cannot_give_the_response_is_refused(endpoint, response):
    with pytest.raises(ConfigError, match="cannot give a response of kind"):
        OpenAILines(spec(endpoint, response))


def test_embeddings_refuse_what_is_not_one_text():
    with pytest.raises(ConfigError, match="few-shot turns"):
        OpenAILines(spec(EMBEDDINGS, turns=(Turn("user", "x"),)))
    codec = OpenAILines(spec(EMBEDDINGS))
    with pytest.raises(ConfigError, match="a system text"):
        codec.encode(Request("r", "s", "u"), "n-1")
    with pytest.raises(ConfigError, match="images"):
        codec.encode(Request("r", None, "u", (PNG,)), "n-1")


MODERATIONS, MODERATION = Endpoint.MODERATIONS, Moderation().format


def test_a_moderation_takes_a_text_or_text_and_images_and_nothing_else():
    of = spec(MODERATIONS, MODERATION)
    assert sent(Request("r", None, "a text"), of) == {
        "custom_id": "n-1",
        "method": "POST",
        "url": "/v1/moderations",
        "body": {"model": "gpt-x", "input": "a text"},
    }
    with_image = sent(Request("r", None, "look", (Image(url="https://x.test/a.png"),)), of)["body"]["input"]
    assert with_image == [
        {"type": "text", "text": "look"},
        {"type": "image_url", "image_url": {"url": "https://x.test/a.png"}},
    ]
    with pytest.raises(ConfigError, match="a system text"):
        OpenAILines(of).encode(Request("r", "s", "u"), "n-1")
    with pytest.raises(ConfigError, match="few-shot turns"):
        OpenAILines(spec(MODERATIONS, MODERATION, turns=(Turn("user", "x"),)))
    with pytest.raises(ConfigError, match="'input' cannot be set here"):
        OpenAILines(spec(MODERATIONS, MODERATION, params={"input": "x"}))


def test_a_category_that_no_moderation_has_is_refused_and_so_are_two_of_one_column():
    with pytest.raises(ConfigError, match="the categories of the columns pii, pii_score"):
        OpenAILines(spec(MODERATIONS, Moderation(["hate", "pii"]).format))
    for wrong in (["self-harm", "self/harm"], ["!"], ["flagged"], ["hate", "hate"]):
        with pytest.raises(ConfigError, match="categories="):
            Moderation(wrong)


def test_a_turn_of_another_role_is_refused():
    with pytest.raises(ConfigError, match="'system'"):
        OpenAILines(spec(turns=(Turn("system", "x"),)))


def test_a_schema_that_strict_mode_cannot_take_is_refused_unless_the_server_can():
    open_map = {"type": "object", "properties": {"m": {"type": "object"}}}
    of = spec(response=ResponseFormat(ResponseKind.JSON, "m", open_map))
    with pytest.raises(ResponseSchemaError):
        OpenAILines(of)
    line = OpenAILines(of, schema_rules=None).encode(Request("r", None, "u"), "n-1")
    assert json.loads(line)["body"]["response_format"]["json_schema"]["schema"] == open_map


def test_limits_count_embedding_inputs_and_keep_what_is_given():
    assert OpenAILines(spec()).limits == BatchLimits(50_000, 200_000_000)
    assert OpenAILines(spec(EMBEDDINGS)).limits == BatchLimits(50_000, 200_000_000, max_inputs=50_000)
    assert OpenAILines(spec(EMBEDDINGS), BatchLimits(9, 99, 5, 3, 2)).limits == BatchLimits(9, 99, 5, 3, 2)


def test_the_system_text_of_one_request_does_not_stay_for_the_next():
    codec = OpenAILines(spec())
    lines = [codec.encode(Request("r", system, "u"), "n-1") for system in ("a", None, "b", "a", "")]
    systems = [json.loads(line)["body"]["messages"][0]["content"] for line in lines]
    assert systems == ["a", "u", "b", "a", "u"]


awkward = st.text(st.characters() | st.sampled_from('"\\\u2028\u2029\x00\x1f\x7f\n\r{}\U0001f600'))
half = st.text(st.characters(categories=["Cs"]) | st.characters(codec="utf-8"))


@given(user=awkward, system=awkward, custom_id=awkward, turn=awkward, endpoint=st.sampled_from([CHAT, RESPONSES]))
def test_any_text_survives_as_data_in_one_ascii_line(user, system, custom_id, turn, endpoint):
    codec = OpenAILines(spec(endpoint, turns=(Turn("user", turn),)))
    line = codec.encode(Request("r", system, user), custom_id)
    assert line.isascii()
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line.decode()) == len(line)
    value = json.loads(line)
    assert value["custom_id"] == custom_id.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    messages = value["body"]["messages" if endpoint is CHAT else "input"]
    assert set(value) == {"custom_id", "method", "url", "body"}
    contents = [m["content"] for m in messages]
    wanted = [*([system] if system else []), turn, user]
    assert contents == [t.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") for t in wanted]


@given(text=half)
def test_half_surrogates_never_reach_the_file(text):
    for of in (spec(), spec(EMBEDDINGS)):
        line = OpenAILines(of).encode(Request("r", None, text), "n-1")
        json.dumps(json.loads(line), ensure_ascii=False).encode()


@given(st.text(), st.text())
def test_equal_arguments_give_equal_bytes_whatever_the_order_of_parameters(user, system):
    one = OpenAILines(spec(params={"a": 1, "b": 2})).encode(Request("r", system, user), "n-1")
    two = OpenAILines(spec(params={"b": 2, "a": 1})).encode(Request("other", system, user), "n-1")
    assert one == two


@given(awkward)
def test_what_is_sent_comes_back_as_the_text_of_the_result(text):
    custom_id = json.loads(OpenAILines(spec()).encode(Request("r", None, text), "n-1"))["custom_id"]
    body = {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
    for ascii_only in (True, False):
        line = json.dumps(
            {"custom_id": custom_id, "response": {"status_code": 200, "body": body}}, ensure_ascii=ascii_only
        ).encode("utf-8", "surrogatepass")
        result = OpenAILines(spec()).decode(line)
        assert result.custom_id == "n-1"
        if "\ufffd" not in (result.text or ""):
            assert result.text == text
