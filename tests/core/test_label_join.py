"""Labeling is total: for any result lines, every row is in exactly one table, and the costs add up."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.core.fixed_responses import Embedding
from dagster_llm_batch.core.identity import custom_id, make_request, packed, padding_id
from dagster_llm_batch.core.label_join import PROVENANCE, REJECT_COLUMNS, check_columns, label, manifest_schema
from dagster_llm_batch.core.pricing import TokenPrice, tariff
from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.core.result_schema import RESULT_SCHEMA
from dagster_llm_batch.core.results import Reconciler, ShardFacts
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.types import BatchLimits, BatchStatus, Outcome, Request, Result, Usage

NONCE = "r0123"
TARIFF = tariff("any", "any", datetime(2026, 1, 1, tzinfo=UTC), TokenPrice(Decimal(1), Decimal(2)))
SCHEMA = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
ENDED = [BatchStatus.ENDED, BatchStatus.EXPIRED, BatchStatus.CANCELED, BatchStatus.FAILED]


class PlainCodec:
    """A codec of the simplest kind: a line is the JSON list [custom_id, outcome, text, tokens]."""

    limits = BatchLimits(10, 1_000)
    enforces_format = False

    def encode(self, request: Request, custom_id: str) -> bytes:
        return msgspec.json.encode([custom_id, request.user]) + b"\n"

    def decode(self, line: bytes) -> Result:
        try:
            name, outcome, text, tokens = msgspec.json.decode(line)
            usage = None if tokens is None else Usage(tokens, tokens)
            return Result(name, Outcome(outcome), text, reason=None, retryable=outcome == "errored", usage=usage)
        except (ValueError, TypeError):
            return Result(None, Outcome.ERRORED, reason="unreadable")


def line(request_id: str, outcome: str = "succeeded", text: str | None = '{"x": 1}', tokens: int | None = 10) -> bytes:
    return msgspec.json.encode([custom_id(NONCE, request_id), outcome, text, tokens]) + b"\n"


def reconciled(lines: list[bytes], expected: list[str], status: BatchStatus, **facts: Any) -> tuple[pa.Table, Any]:
    shard = ShardFacts(NONCE, status, "any", "batch_1", 1, None, **facts)
    reconciler = Reconciler(PlainCodec(), Reader(SCHEMA), TARIFF, shard, packed(expected))
    tables = list(reconciler.tables(lines))
    schema = pa.schema([*RESULT_SCHEMA, *Reader(SCHEMA).fields])
    return pa.concat_tables([*tables, schema.empty_table()]), reconciler.totals


REQUESTS = [make_request(None, str(number)).request_id for number in range(6)]
A, B, C = REQUESTS[:3]
NOISE = st.sampled_from(
    [
        b"not JSON\n",
        b"\xff\xfe\n",
        b"\n",
        b"  \n",
        b"{}",
        b"[1]\n",
        msgspec.json.encode([custom_id("rother", REQUESTS[0]), "succeeded", '{"x": 1}', 5]),
        msgspec.json.encode([custom_id(NONCE, "f" * 40), "succeeded", '{"x": 1}', 5]),
        msgspec.json.encode([NONCE, "succeeded", '{"x": 1}', 5]),
        msgspec.json.encode([None, "errored", None, None]),
    ]
)
ANSWERS = st.tuples(
    st.sampled_from(["succeeded", "errored", "expired", "canceled", "invalid"]),
    st.sampled_from(['{"x": 1}', '{"x": "no"}', "no JSON", "", "half \ufffd", None]),
    st.integers(0, 1_000),
)


@settings(max_examples=200, deadline=None)
@given(
    answers=st.lists(st.tuples(st.sampled_from(REQUESTS), ANSWERS), max_size=14),
    noise=st.lists(NOISE, max_size=5),
    waves=st.lists(st.sampled_from(ENDED), min_size=1, max_size=3),
    rows=st.lists(st.sampled_from(REQUESTS), max_size=12),
    shuffle=st.randoms(use_true_random=False),
)
def test_every_row_lands_once_whatever_lines_come(
    answers: list[Any], noise: list[bytes], waves: list[BatchStatus], rows: list[str], shuffle: random.Random
) -> None:
    lines = [line(request_id, *answer) for request_id, answer in answers] + noise
    expected = sorted(set(rows))
    tables, costs = [], []
    for status in waves:
        shuffle.shuffle(lines)
        table, tally = reconciled(lines, expected, status)
        assert sorted(table["llm_request_id"].to_pylist()) == expected  # exactly one outcome each
        assert set(table["llm_outcome"].to_pylist()) <= {outcome.value for outcome in Outcome}
        assert added(table["llm_cost_usd"].to_pylist()) == tally.cost_usd
        named = sum(1 for one in lines if one.strip())
        answered = len({r for r, _ in answers} & set(expected))
        assert answered + tally.unreadable + tally.foreign + tally.duplicates == named
        tables.append(table)
        costs.append(tally.cost_usd)
    manifest = pa.table({"id": range(len(rows)), "llm_request_id": pa.array(rows, pa.string())})
    labeled = label(manifest, tables, Reader(SCHEMA).schema, prompt_version="v", run_id="run")
    keys = labeled.labels["id"].to_pylist() + labeled.rejects["id"].to_pylist()
    assert sorted(keys) == list(range(len(rows)))
    assert set(labeled.labels["llm_outcome"].to_pylist()) <= {"succeeded"}
    assert "succeeded" not in labeled.rejects["llm_outcome"].to_pylist()
    assert labeled.labels["x"].null_count == 0
    assert labeled.labels.column_names == ["id", "x", *PROVENANCE]
    assert labeled.rejects.column_names == ["id", *REJECT_COLUMNS]
    spread = added(labeled.labels["llm_cost_usd"].to_pylist() + labeled.rejects["llm_cost_usd"].to_pylist())
    if spread is None:  # without a line for a request, it is unknown whether it was billed
        assert None in costs
    elif None not in costs:
        assert abs(spread - added(costs)) < Decimal("1e-9")


def added(costs: list[Decimal | None]) -> Decimal | None:
    """Return the sum, or None if a cost is unknown."""
    return None if None in costs else sum((cost for cost in costs if cost is not None), Decimal(0))


@pytest.mark.parametrize(
    ("status", "outcome", "retryable"),
    [
        (BatchStatus.ENDED, "missing", True),
        (BatchStatus.EXPIRED, "expired", True),
        (BatchStatus.CANCELED, "canceled", True),
        (BatchStatus.FAILED, "errored", False),
        (BatchStatus.RUNNING, "missing", True),  # reported for a batch that had ended, late, and recorded
    ],
)
def test_the_end_of_the_batch_explains_what_no_line_names(status: BatchStatus, outcome: str, retryable: bool) -> None:
    table, _ = reconciled([line(A)], [A, B], status)
    assert table["llm_outcome"].to_pylist() == ["succeeded", outcome]
    assert table["llm_retryable"].to_pylist() == [False, retryable]
    # Requests that did not run, by the vendor's report, cost zero; the cost of lost ones is unknown.
    assert table["llm_cost_usd"].to_pylist()[1] == (None if outcome == "missing" else 0)
    assert table["llm_reason"].to_pylist()[1]
    told, _ = reconciled([], [A], status, reason="the queue is full", retryable=True)
    assert told["llm_reason"].to_pylist() == ["the queue is full"]
    assert told["llm_retryable"].to_pylist() == [True]


def test_the_first_of_two_lines_on_a_request_counts() -> None:
    table, tally = reconciled([line(A), line(A, "errored", None)], [A], BatchStatus.ENDED)
    assert table["llm_outcome"].to_pylist() == ["succeeded"]
    assert tally.unexpected == {"duplicates": 1}


def test_an_empty_or_missing_reply_is_no_label() -> None:
    table, _ = reconciled([line(A, text=""), line(B, text=None)], [A, B], BatchStatus.ENDED)
    assert table["llm_outcome"].to_pylist() == ["invalid", "invalid"]


def test_half_surrogates_in_a_reply_are_stored_as_replacements() -> None:
    class Broken(PlainCodec):
        def decode(self, line: bytes) -> Result:
            return Result(
                line.decode(), Outcome.ERRORED, "x\ud800", reason="y\udfff", finish_reason="\ud800", model="\ud800"
            )

    shard = ShardFacts(NONCE, BatchStatus.ENDED, "any", "b", 1, None)
    reconciler = Reconciler(Broken(), Reader(None), TARIFF, shard, packed([A]))
    [table] = reconciler.tables([custom_id(NONCE, A).encode()])
    assert table["llm_reply"].to_pylist() == ["x\ufffd"]
    assert table["llm_reason"].to_pylist() == ["y\ufffd"]


@pytest.mark.parametrize(
    "usage", [Usage(-1), Usage(2**63), Usage(10**30), Usage(10, 10**12), Usage(10, 1, 11), Usage(10, 1, 6, 6)]
)
def test_tokens_that_cannot_be_are_a_cost_that_nobody_knows_and_lose_no_reply(usage: Usage) -> None:
    class Strange(PlainCodec):
        def decode(self, line: bytes) -> Result:
            read = super().decode(line)
            return read._replace(usage=usage) if read.custom_id == custom_id(NONCE, B) else read

    shard = ShardFacts(NONCE, BatchStatus.ENDED, "any", "b", 1, None)
    reconciler = Reconciler(Strange(), Reader(SCHEMA), TARIFF, shard, packed([A, B, C]))
    [table] = reconciler.tables([line(A), line(B), line(C, "errored", None, None)])
    assert table["llm_outcome"].to_pylist() == ["succeeded", "succeeded", "errored"]
    assert table["llm_input_tokens"].to_pylist() == [10, None, None]
    assert table["llm_cost_usd"].to_pylist() == [Decimal("0.00003"), None, Decimal(0)]
    assert reconciler.totals.cost_usd is None


def test_vectors_come_in_tables_of_bounded_size_and_none_is_lost() -> None:
    vector = [0.5] * 4_096

    class Vectors(PlainCodec):
        def decode(self, line: bytes) -> Result:
            name, given = msgspec.json.decode(line)
            return Result(name, Outcome.SUCCEEDED, embedding=given)

    ids = [f"{number:040x}" for number in range(3_000)]
    shard = ShardFacts(NONCE, BatchStatus.ENDED, "any", "b", 1, None)
    reconciler = Reconciler(Vectors(), Reader(Embedding()), TARIFF, shard, packed(ids))
    seen, largest = [], 0
    for table in reconciler.tables(msgspec.json.encode([custom_id(NONCE, one), vector]) for one in ids):
        assert table["embedding"][0].as_py() == vector
        seen += table["llm_request_id"].to_pylist()
        largest = max(largest, table.nbytes)
    assert seen == ids
    assert largest < 1 << 24


def test_padding_that_took_what_cannot_be_has_an_unknown_cost() -> None:
    _, tally = reconciled([line(A), line(padding_id(0), tokens=-5)], [A], BatchStatus.ENDED)
    assert tally.cost_usd is None


def test_a_bill_is_told_in_parts_whose_sums_are_those_of_the_rows() -> None:
    copies = [line(padding_id(number), tokens=tokens) for number, tokens in enumerate([7, None])]
    lines = [line(A), line(B, text="no JSON", tokens=100), line(C, "errored", None, None), *copies]
    table, tally = reconciled(lines, REQUESTS[:4], BatchStatus.ENDED, padding=3)
    # By hand, at 1 USD a million tokens of input and 2 of output: 10 and 10, 100 and 100, nothing, 7 and 7.
    assert (tally.replies, tally.input_tokens, tally.output_tokens, tally.cache_read_tokens) == (3, 117, 117, 0)
    assert tally.known_usd == Decimal("0.000351")
    assert (tally.unlabeled_usd, tally.padding_usd) == (Decimal("0.0003"), Decimal("0.000021"))
    assert tally.realtime_usd == 2 * (tally.known_usd - tally.padding_usd)
    # The request without a result, the copy without a usage and the one without a line may all have been billed.
    assert (tally.unpriced, tally.cost_usd) == (3, None)
    assert tally.known_usd - tally.padding_usd == sum(filter(None, table["llm_cost_usd"].to_pylist()))


def test_a_shared_request_splits_its_cost_over_its_rows_and_waves_add_up() -> None:
    first, _ = reconciled([line(A, "invalid", "?", 100)], [A], BatchStatus.ENDED)
    second, _ = reconciled([line(A, tokens=200)], [A], BatchStatus.ENDED)
    manifest = pa.table({"id": [1, 2, 3], "llm_request_id": [A] * 3})
    labels = label(manifest, [first, second], Reader(SCHEMA).schema, prompt_version="v", run_id="").labels
    assert labels["llm_cost_usd"].to_pylist() == [Decimal("0.0003")] * 3  # (100 + 200) * (1 + 2) / 1e6 / 3
    assert labels["llm_realtime_usd"].to_pylist() == [Decimal("0.0006")] * 3


def test_a_success_counts_even_where_a_newer_word_is_a_failure() -> None:
    good, _ = reconciled([line(A)], [A], BatchStatus.ENDED)
    bad, _ = reconciled([], [A], BatchStatus.EXPIRED)
    manifest = pa.table({"id": [1], "llm_request_id": [A]})
    assert len(label(manifest, [good, bad], Reader(SCHEMA).schema, prompt_version="v", run_id="").labels) == 1


def test_an_unknown_cost_of_one_wave_makes_the_rows_cost_unknown() -> None:
    known, _ = reconciled([line(A, "errored", None)], [A], BatchStatus.ENDED)
    unknown, tally = reconciled([line(A, tokens=None)], [A], BatchStatus.ENDED)
    assert tally.cost_usd is None
    manifest = pa.table({"id": [1, 2], "llm_request_id": [A, A]})
    labels = label(manifest, [known, unknown], Reader(SCHEMA).schema, prompt_version="v", run_id="").labels
    assert labels["llm_cost_usd"].to_pylist() == [None, None]


def test_a_row_whose_request_has_no_result_any_more_is_missing_and_says_why() -> None:
    table, _ = reconciled([line(A)], [A], BatchStatus.ENDED)
    manifest = pa.table({"id": [1, 2, 3, 4], "llm_request_id": [B, A, None, B]})
    labeled = label(manifest, [table], Reader(SCHEMA).schema, prompt_version="v", run_id="")
    assert labeled.labels["id"].to_pylist() == [2]
    assert labeled.rejects["id"].to_pylist() == [1, 3, 4]
    assert labeled.rejects["llm_outcome"].to_pylist() == ["missing", "skipped", "missing"]
    assert "retry" in labeled.rejects["llm_reason"][0].as_py()


def test_labels_out_of_fences_are_counted_whatever_words_their_results_store() -> None:
    table, _ = reconciled([line(A), line(B, text='```json\n{"x": 1}\n```')], [A, B], BatchStatus.ENDED)
    bad, _ = reconciled([], [A], BatchStatus.EXPIRED)
    assert bad["llm_reason"].null_count == 0
    assert [bool(reason) for reason in table["llm_reason"].to_pylist()] == [False, True]
    other = pc.if_else(pc.is_valid(table["llm_reason"]), "read in other words", None)
    place = table.schema.get_field_index("llm_reason")
    reworded = table.set_column(place, table.schema.field(place), other.cast(pa.string()))
    manifest = pa.table({"id": [1, 2, 3], "llm_request_id": [A, B, B]})
    for tables in ([table], [reworded], [reworded, bad]):
        assert label(manifest, tables, Reader(SCHEMA).schema, prompt_version="v", run_id="").fenced == 2
    assert label(manifest[:1], [bad], Reader(SCHEMA).schema, prompt_version="v", run_id="").fenced == 0


def test_two_sources_cannot_claim_a_column() -> None:
    check_columns("id", ["a", "b"], ["c"])
    for key, keep, response in (("id", ["id"], []), ("id", ["a", "a"], []), ("id", ["a"], ["a"])):
        with pytest.raises(ConfigError, match="twice"):
            check_columns(key, keep, response)
    for key, keep, response in (("llm_x", [], []), ("id", ["llm_x"], []), ("id", [], ["llm_outcome"])):
        with pytest.raises(ConfigError, match="provenance"):
            check_columns(key, keep, response)
    rows = pa.schema([("id", pa.int32()), ("a", pa.float64()), ("b", pa.string())])
    assert manifest_schema(rows, "id", ["b"]).names == ["id", "b", "llm_request_id"]
