"""Every documented result line of every vendor is read as exactly one Result, at its price, without an exception."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from math import inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.providers.anthropic.replies import read_line as read_anthropic
from dagster_llm_batch.providers.anthropic.replies import read_lines as read_all_anthropic
from dagster_llm_batch.providers.bedrock.replies import read_claude_lines
from dagster_llm_batch.providers.bedrock.replies import read_line as read_bedrock
from dagster_llm_batch.providers.google.replies import read_google_line, read_google_lines
from dagster_llm_batch.providers.google.vertex_claude import VertexClaudeLines
from dagster_llm_batch.providers.openai_api.replies import read_chat_lines
from dagster_llm_batch.providers.openai_api.replies import read_line as read_openai
from dagster_llm_batch.types import (
    BatchLimits,
    Endpoint,
    Outcome,
    PriceBasis,
    RequestSpec,
    Result,
    ResultColumns,
    TokenLogprob,
    Usage,
)
from tests.tables import table

Read = Callable[[bytes], Result]
ReadAll = Callable[[Sequence[bytes]], ResultColumns]
Wire = Mapping[str, Any]

WIRE: dict[str, list[Wire]] = {
    path.stem: [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    for path in sorted(Path(__file__).with_name("wire").glob("*.jsonl"))
}
LINES = [pytest.param(vendor, wire, id=f"{vendor}: {wire['name']}") for vendor in WIRE for wire in WIRE[vendor]]
BOM = b"\xef\xbb\xbf"  # a line that starts with it is never read in one go

CLAUDE_ON_VERTEX = VertexClaudeLines(RequestSpec("claude-x", params={"max_tokens": 9}), BatchLimits(10, 10_000))
READERS: dict[str, Read] = {
    "anthropic": read_anthropic,
    "bedrock": read_bedrock,
    "gemini": read_google_line,
    "claude": CLAUDE_ON_VERTEX.decode,
    **{endpoint: lambda line, endpoint=endpoint: read_openai(line, endpoint) for endpoint in Endpoint},
}
"""Readers of documented lines, by the line's reader or endpoint, or by its vendor if that has a single reader."""


def reader(vendor: str, wire: Wire) -> Read:
    return READERS[wire.get("reader") or wire.get("endpoint") or vendor]


READERS_OF_MANY: list[tuple[Read, ReadAll]] = [
    (read_anthropic, read_all_anthropic),
    (read_bedrock, read_claude_lines),
    (read_google_line, read_google_lines),
    (READERS["claude"], CLAUDE_ON_VERTEX.decode_all),
    (READERS[Endpoint.CHAT], read_chat_lines),
]


def assert_same_together(read: Read, lines: Sequence[bytes]) -> None:
    """Check that reading many such lines at once gives the same as `read` for each."""
    for of_one, read_all in READERS_OF_MANY:
        if of_one is read:
            columns = read_all(lines)
            assert [columns.result(at) for at in range(len(lines))] == list(map(read, lines))


def named(vendor: str, name: str) -> Wire:
    return next(wire for wire in WIRE[vendor] if wire["name"] == name)


def wanted(wire: Wire) -> Result:
    result = {**wire["result"], "outcome": Outcome(wire["result"]["outcome"])}
    if result.get("usage") is not None:
        result["usage"] = Usage(**result["usage"])
    if "logprobs" in result:
        result["logprobs"] = [TokenLogprob(text.encode(), logprob) for text, logprob in result["logprobs"]]
    return Result(**result)


@table(("vendor", "wire"), LINES)
def test_a_documented_line_reads_as_its_result_in_one_go_and_taken_apart(vendor, wire):
    read, line = reader(vendor, wire), wire["line"].encode()
    assert read(line) == wanted(wire)
    assert read(BOM + line.removeprefix(BOM)) == wanted(wire)


@pytest.mark.parametrize(("read", "read_all"), READERS_OF_MANY)
def test_lines_read_at_once_are_as_each_by_itself(read, read_all):
    lines = [
        line
        for vendor, wires in WIRE.items()
        for wire in wires
        for line in (wire["line"].encode(), BOM + wire["line"].encode(), b"\n")
        if reader(vendor, wire) is read
    ]
    for several in (lines, [BOM + line for line in lines]):
        columns = read_all(several)
        assert [columns.result(at) for at in range(len(several))] == list(map(read, several))


@pytest.mark.parametrize(
    ("vendor", "name"),
    [("anthropic", "success"), ("bedrock", "claude success"), ("google", "claude success with cache")],
)
def test_claude_tells_its_thinking_tokens_wherever_it_runs(vendor, name):
    wire = named(vendor, name)
    line = wire["line"].replace('"usage":{', '"usage":{"output_tokens_details":{"thinking_tokens":7},').encode()
    read = reader(vendor, wire)
    usage = read(line).usage
    assert (usage.reasoning_tokens, usage.extra) == (7, None)
    assert_same_together(read, [line, wire["line"].encode()])


@pytest.mark.parametrize("vendor", WIRE)
def test_every_fixture_names_its_source_and_is_unique(vendor):
    assert all(wire["source"] for wire in WIRE[vendor])
    assert len({wire["name"] for wire in WIRE[vendor]}) == len(WIRE[vendor])


PRICED = [
    *[("anthropic", "claude-haiku-4-5", PriceBasis.BATCH, wire) for wire in WIRE["anthropic"] if "cost_usd" in wire],
    *[("aws", wire["model"], PriceBasis.HALF, wire) for wire in WIRE["bedrock"] if "cost_usd" in wire],
]


@table(("book", "model", "basis", "wire"), PRICED)
def test_a_documented_reply_costs_what_the_price_table_says(book, model, basis, wire):
    """Check all usage that is read against its price.

    claude-haiku-4-5 in a batch, USD a million tokens: 0.50 in, 2.50 out. Reads cost 0.1 times the input price, 5-minute
    writes 1.25 times, and 1-hour writes twice. Bedrock: half of the price table.
    """
    read = read_anthropic if book == "anthropic" else read_bedrock
    price = tariff(book, model, datetime(2026, 11, 1, tzinfo=UTC)).price(read(wire["line"].encode()).usage)
    assert (price.cost_usd, price.basis) == (Decimal(wire["cost_usd"]), basis)
    assert price.realtime_usd == 2 * Decimal(wire["cost_usd"])


@pytest.mark.parametrize(
    ("model", "given_usd", "made_usd"),
    [
        ("anthropic.claude-3-5-sonnet-20240620-v1:0", "1.50", "7.50"),
        ("anthropic.claude-3-haiku-20240307-v1:0", "0.125", "0.625"),
        ("us.amazon.nova-micro-v1:0", "0.0175", "0.07"),
    ],
)
def test_a_bedrock_id_has_its_batch_price(model, given_usd, made_usd):
    million = 1_000_000
    priced = tariff("aws", model, datetime.now(UTC))
    assert priced.price(Usage(million)).cost_usd == Decimal(given_usd)
    assert priced.price(Usage(0, million)).cost_usd == Decimal(made_usd)


REPLIES = [
    ("anthropic", "success"),
    ("bedrock", "claude success"),
    ("google", "vertex success"),
    ("google", "gemini success"),
    ("google", "claude success with cache"),
    ("openai", "chat success"),
    ("openai", "responses success"),
]


@pytest.mark.parametrize(("vendor", "name"), REPLIES)
def test_bytes_that_are_no_utf8_do_not_lose_a_paid_reply(vendor, name):
    wire = named(vendor, name)
    text = json.dumps(wire["result"]["text"]).encode()
    bent = wire["line"].encode().replace(text, text[:2] + b'\xff"')
    result = reader(vendor, wire)(bent)
    assert b"\xff" in bent
    assert (result.custom_id, result.outcome) == (wire["result"]["custom_id"], Outcome.SUCCEEDED)
    assert result.text == wire["result"]["text"][:1] + "\ufffd"


@pytest.mark.parametrize(
    "bent", ['"x"', "[]", "{}", '{"content":null}', '{"content":[{"token":1}]}', '{"content":[{"token":"Hello."}]}']
)
def test_odd_logprobs_do_not_lose_a_paid_reply(bent):
    line = named("openai", "chat success")["line"].replace('"logprobs":null', f'"logprobs":{bent}').encode()
    result = read_openai(line, Endpoint.CHAT)
    assert (result.outcome, result.text, result.logprobs) == (Outcome.SUCCEEDED, "Hello.", None)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "anthropic",
            {"custom_id": "r", "result": {"type": "errored", "error": {"error": {"type": "x", "message": ""}}}},
        ),
        ("bedrock", {"recordId": "r", "error": {"errorCode": 400, "errorMessage": ""}}),
        ("gemini", {"key": "r", "error": {"code": 3, "message": ""}}),
        ("gemini", {"status": "Something odd: ", "request": {}}),
        (Endpoint.CHAT, {"error": {"code": "x", "message": ""}}),
    ],
)
def test_a_long_reason_is_cut(name, said):
    line = json.dumps(said).replace('""', json.dumps("y" * 9_000)).replace("odd: ", "odd: " + "y" * 9_000).encode()
    assert len(READERS[name](line).reason or "") == 1_000


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@given(line=st.binary(max_size=200))
def test_reading_never_raises_on_any_bytes(read, line):
    assert read(line).outcome is not Outcome.SUCCEEDED


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@given(st.recursive(st.just(b"1"), lambda inner: inner.map(lambda x: b"[" + x + b"]"), max_leaves=3), st.integers(1, 5))
def test_deep_nesting_is_an_unreadable_line(read, inner, power):
    nested = b"[" * 10**power + inner + b"]" * 10**power
    for field in (b"response", b"result", b"modelOutput"):
        assert read(b'{"custom_id":"a","' + field + b'":' + nested + b"}").outcome is not Outcome.SUCCEEDED


FIELDS = ["output", "choices", "generation", "outputs", "embedding", "embeddingsByType", "content", "usage", "type"]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from([1 << 63, 1 << 64, -(1 << 64)]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(["message", "text", *FIELDS]), inner, max_size=3)
    ),
    max_leaves=8,
)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


BENDABLE = {vendor: [wire for wire in WIRE[vendor] if _is_object(wire["line"])] for vendor in WIRE}


@st.composite
def bent_lines(draw, vendor):
    """Draw a documented line with one value anywhere in it replaced, and its reader."""
    wire = draw(st.sampled_from(BENDABLE[vendor]))
    value = json.loads(wire["line"])
    node = value
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
            node[key] = draw(json_values | st.just(inf))
            return json.dumps(value).encode(), reader(vendor, wire)
        node = node[key]


@pytest.mark.parametrize("vendor", WIRE)
@given(st.data())
def test_a_bent_line_has_one_outcome_with_its_reason_in_one_go_and_taken_apart(vendor, data):
    line, read = data.draw(bent_lines(vendor))
    result = read(line)
    if result.outcome is Outcome.SUCCEEDED:
        assert result.text is not None or result.embedding is not None
    else:
        assert result.reason
    assert read(BOM + line) == result
    assert_same_together(read, [line, BOM + line, line])


outputs = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=4)


@given(output=outputs, error=st.none() | json_values)
def test_reading_any_output_of_bedrock_keeps_the_id(output, error):
    line = {"recordId": "r", "modelOutput": output, "error": error}
    assert read_bedrock(json.dumps(line).encode()).custom_id == "r"
