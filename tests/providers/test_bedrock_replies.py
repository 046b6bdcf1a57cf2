"""Every documented result line of Bedrock is read as exactly one Result, at its price, and nothing raises."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core.pricing import tariff
from dagster_llm_batch.providers.bedrock.replies import read_line
from dagster_llm_batch.types import Outcome, PriceBasis, Result, Usage

BOM = b"\xef\xbb\xbf"  # a line that starts with it is never read in one go
LINES = Path(__file__).with_name("wire").joinpath("bedrock.jsonl").read_text(encoding="ascii")
WIRE = [json.loads(line) for line in LINES.splitlines()]


def wanted(wire) -> Result:
    result = {**wire["result"], "outcome": Outcome(wire["result"]["outcome"])}
    if result.get("usage") is not None:
        result["usage"] = Usage(**result["usage"])
    return Result(**result)


@pytest.mark.parametrize("wire", WIRE, ids=[wire["name"] for wire in WIRE])
def test_a_documented_line_reads_as_its_result(wire):
    assert read_line(wire["line"].encode()) == wanted(wire)


@pytest.mark.parametrize("wire", [w for w in WIRE if "cost_usd" in w], ids=lambda wire: wire["name"])
def test_a_documented_reply_costs_half_of_the_price_table(wire):
    price = tariff("aws", wire["model"], datetime.now(UTC)).price(read_line(wire["line"].encode()).usage)
    assert (price.cost_usd, price.basis) == (Decimal(wire["cost_usd"]), PriceBasis.HALF)
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


def test_every_fixture_names_its_source_and_is_unique():
    assert all(wire["source"] for wire in WIRE)
    assert len({wire["name"] for wire in WIRE}) == len(WIRE)


def test_bytes_that_are_no_utf8_do_not_lose_a_paid_reply():
    line = next(wire["line"] for wire in WIRE if wire["name"] == "claude success")
    result = read_line(line.encode().replace(b"Hello.", b"Hel\xff."))
    assert (result.outcome, result.text) == (Outcome.SUCCEEDED, "Hel\ufffd.")


@given(line=st.binary(max_size=200))
def test_reading_never_raises_on_any_bytes(line):
    assert read_line(line).outcome is not Outcome.SUCCEEDED


FIELDS = ["output", "choices", "generation", "outputs", "embedding", "embeddingsByType", "content", "usage", "type"]
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["message", "content", "text", "embedding", *FIELDS]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(output=st.dictionaries(st.sampled_from(FIELDS), values, max_size=4), error=st.none() | values)
def test_reading_never_raises_on_bent_lines_and_keeps_the_id(output, error):
    line = {"recordId": "r", "modelOutput": output, "error": error}
    assert read_line(json.dumps(line).encode()).custom_id == "r"


@pytest.mark.parametrize("wire", WIRE, ids=[wire["name"] for wire in WIRE])
def test_a_line_read_in_one_go_says_what_it_says_when_taken_apart(wire):
    line = wire["line"].encode()
    assert read_line(line) == read_line(BOM + line.removeprefix(BOM))


@st.composite
def bent_lines(draw):
    """A documented line with one value anywhere in it replaced."""
    value = json.loads(draw(st.sampled_from([wire["line"] for wire in WIRE if wire["line"].startswith("{")])))
    node = value
    while True:
        key = draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or not node[key] or draw(st.booleans()):
            node[key] = draw(values | st.floats(allow_nan=False) | st.sampled_from([1 << 63, 1 << 64, -(1 << 64)]))
            return json.dumps(value).encode()
        node = node[key]


@given(bent_lines())
def test_so_does_a_bent_one(line):
    assert read_line(line) == read_line(BOM + line)
