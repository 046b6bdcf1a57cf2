"""Every documented result line is read as exactly one Result, and nothing raises."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.providers.openai.replies import read_line
from dagster_llm_batch.types import Endpoint, Outcome, Result, Usage

LINES = Path(__file__).with_name("wire").joinpath("openai.jsonl").read_text(encoding="ascii")
BOM = b"\xef\xbb\xbf"  # a line that starts with it is never read in one go
WIRE = [json.loads(line) for line in LINES.splitlines()]
REPLY = next(wire["line"] for wire in WIRE if wire["name"] == "chat success")


@pytest.mark.parametrize("wire", WIRE, ids=[wire["name"] for wire in WIRE])
def test_a_documented_line_reads_as_its_result(wire):
    wanted = {**wire["result"], "outcome": Outcome(wire["result"]["outcome"])}
    if wanted.get("usage") is not None:
        wanted["usage"] = Usage(**wanted["usage"])
    assert read_line(wire["line"].encode(), Endpoint(wire["endpoint"])) == Result(**wanted)


def test_every_fixture_names_its_source_and_is_unique():
    assert all(wire["source"] for wire in WIRE)
    assert len({wire["name"] for wire in WIRE}) == len(WIRE)


@pytest.mark.parametrize(
    "bent", ['"x"', "[]", "{}", '{"content":null}', '{"content":[{"token":1}]}', '{"content":[{"token":"Hello."}]}']
)
def test_odd_logprobs_do_not_lose_a_paid_reply(bent):
    result = read_line(REPLY.replace('"logprobs":null', f'"logprobs":{bent}').encode(), Endpoint.CHAT)
    assert (result.outcome, result.text, result.logprobs) == (Outcome.SUCCEEDED, "Hello.", None)


def test_bytes_that_are_no_utf8_do_not_lose_a_paid_reply():
    result = read_line(REPLY.encode().replace(b"Hello.", b"Hel\xff."), Endpoint.CHAT)
    assert (result.custom_id, result.outcome, result.text) == ("request-1", Outcome.SUCCEEDED, "Hel\ufffd.")


def test_a_long_reason_is_cut():
    line = json.dumps({"custom_id": "r", "error": {"code": "x", "message": "y" * 9_000}}).encode()
    reason = read_line(line, Endpoint.CHAT).reason
    assert reason is not None
    assert len(reason) == 1_000


@pytest.mark.parametrize("endpoint", Endpoint)
@given(line=st.binary(max_size=200))
def test_reading_never_raises_on_any_bytes(line, endpoint):
    result = read_line(line, endpoint)
    assert result.outcome is not Outcome.SUCCEEDED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def bent_lines(draw):
    """A documented line with one value anywhere in it replaced."""
    wire = draw(st.sampled_from([w for w in WIRE if w["line"].startswith('{"id"') and w["line"].endswith("}")]))
    value = json.loads(wire["line"])
    node = value
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
            node[key] = draw(json_values)
            return json.dumps(value).encode(), Endpoint(wire["endpoint"])
        node = node[key]


@given(bent_lines())
def test_a_bent_line_has_one_outcome_and_a_reason_where_it_is_not_a_reply(bent):
    result = read_line(*bent)
    if result.outcome is Outcome.SUCCEEDED:
        assert result.text is not None or result.embedding is not None
    else:
        assert result.reason


@given(st.recursive(st.just(b"1"), lambda inner: inner.map(lambda x: b"[" + x + b"]"), max_leaves=3), st.integers(1, 5))
def test_deep_nesting_is_an_unreadable_line(inner, power):
    deep = b'{"custom_id":"a","response":' + b"[" * 10**power + inner + b"]" * 10**power + b"}"
    assert read_line(deep, Endpoint.CHAT).outcome is not Outcome.SUCCEEDED


@pytest.mark.parametrize("wire", WIRE, ids=[wire["name"] for wire in WIRE])
def test_a_line_read_in_one_go_says_what_it_says_when_taken_apart(wire):
    line, endpoint = wire["line"].encode(), Endpoint(wire["endpoint"])
    assert read_line(line, endpoint) == read_line(BOM + line.removeprefix(BOM), endpoint)


@given(bent_lines())
def test_so_does_a_bent_one(bent):
    line, endpoint = bent
    assert read_line(line, endpoint) == read_line(BOM + line.removeprefix(BOM), endpoint)
