"""Every documented result line of Anthropic is read as exactly one Result, priced to the cent, and nothing raises."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.providers.anthropic.replies import read_line
from dagster_llm_batch.types import Outcome, PriceBasis, Result, Usage

LINES = Path(__file__).with_name("wire").joinpath("anthropic.jsonl").read_text(encoding="ascii")
BOM = b"\xef\xbb\xbf"  # a line that starts with it is never read in one go
WIRE = [json.loads(line) for line in LINES.splitlines()]
REPLY = next(wire["line"] for wire in WIRE if wire["name"] == "success")
AT = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.mark.parametrize("wire", WIRE, ids=[wire["name"] for wire in WIRE])
def test_a_documented_line_reads_as_its_result(wire):
    wanted = {**wire["result"], "outcome": Outcome(wire["result"]["outcome"])}
    if wanted.get("usage") is not None:
        wanted["usage"] = Usage(**wanted["usage"])
    assert read_line(wire["line"].encode()) == Result(**wanted)


@pytest.mark.parametrize("wire", [w for w in WIRE if "cost_usd" in w], ids=lambda wire: wire["name"])
def test_a_documented_reply_costs_what_the_price_table_says(wire):
    """claude-haiku-4-5 in a batch, USD a million tokens: 0.50 in, 2.50 out; reads x 0.1, 5-minute writes x 1.25, 1-hour
    writes x 2."""
    price = tariff("anthropic", "claude-haiku-4-5", AT).price(read_line(wire["line"].encode()).usage)
    assert (price.cost_usd, price.basis) == (Decimal(wire["cost_usd"]), PriceBasis.BATCH)
    assert price.realtime_usd == 2 * Decimal(wire["cost_usd"])


def test_every_fixture_names_its_source_and_is_unique():
    assert all(wire["source"] for wire in WIRE)
    assert len({wire["name"] for wire in WIRE}) == len(WIRE)


def test_bytes_that_are_no_utf8_do_not_lose_a_paid_reply():
    result = read_line(REPLY.encode().replace(b'"text":"1"', b'"text":"Hel\xff."'))
    assert (result.custom_id, result.outcome, result.text) == ("ok-1", Outcome.SUCCEEDED, "Hel\ufffd.")


def test_a_long_reason_is_cut():
    error = {"type": "api_error", "message": "y" * 9_000}
    line = json.dumps({"custom_id": "r", "result": {"type": "errored", "error": {"error": error}}}).encode()
    assert len(read_line(line).reason or "") == 1_000


@given(st.binary(max_size=200))
def test_reading_never_raises_on_any_bytes(line):
    assert read_line(line).outcome is not Outcome.SUCCEEDED


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def bent_lines(draw):
    """A documented line with one value anywhere in it replaced."""
    value = json.loads(draw(st.sampled_from([w["line"] for w in WIRE if w["line"].startswith('{"custom_id"')])))
    node = value
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
            node[key] = draw(json_values)
            return json.dumps(value).encode()
        node = node[key]


@given(bent_lines())
def test_a_bent_line_has_one_outcome_and_a_reason_where_it_is_not_a_reply(line):
    result = read_line(line)
    if result.outcome is Outcome.SUCCEEDED:
        assert result.text is not None
    else:
        assert result.reason


@pytest.mark.parametrize("wire", WIRE, ids=[wire["name"] for wire in WIRE])
def test_a_line_read_in_one_go_says_what_it_says_when_taken_apart(wire):
    line = wire["line"].encode()
    assert read_line(line) == read_line(BOM + line.removeprefix(BOM))


@given(bent_lines())
def test_so_does_a_bent_one(line):
    assert read_line(line) == read_line(BOM + line.removeprefix(BOM))
