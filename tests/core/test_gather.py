"""Each source row gets one outcome and one price of its parts, whatever their tables and order."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from dagster_llm_batch.core.gather import Gather, Gatherer
from dagster_llm_batch.core.label_join import PROVENANCE
from dagster_llm_batch.core.quoted_columns import Evidence, QuotedColumns
from dagster_llm_batch.core.result_schema import RESULT_SCHEMA
from dagster_llm_batch.errors import ConfigError, InputError

OWN = [("doc", pa.string()), ("part_key", pa.string()), ("part", pa.int64())]
OWN += [("parts", pa.int64()), ("part_start", pa.int64())]
TYPES = {each.name: each.type for each in RESULT_SCHEMA}
SCHEMA = pa.schema([*OWN, *((name, TYPES.get(name, pa.string())) for name in PROVENANCE)])
RESPONSE = pa.schema([("kind", pa.string()), ("names", pa.list_(pa.string()))])
EACH = Gather("union", {"kind": "vote"})


def part(doc: str, number: int, parts: int, *, cost: str | None = "0.001", **more: Any) -> dict[str, Any]:
    own = {"doc": doc, "part_key": f"{doc}#{number}", "part": number, "parts": parts, "part_start": 10 * (number - 1)}
    provenance = {
        "llm_outcome": "succeeded",
        "llm_model": "gpt",
        "llm_request_id": f"r-{doc}-{number}",
        "llm_input_tokens": 100,
        "llm_output_tokens": 7,
        "llm_cost_usd": None if cost is None else Decimal(cost),
        "llm_realtime_usd": Decimal(0),
    }
    return {**own, **provenance, **more}


def gathered(
    labels: list[dict[str, Any]], rejects: list[dict[str, Any]] = (), gather: Gather = EACH, response: Any = RESPONSE
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    tables = (
        pa.Table.from_pylist(labels, pa.schema([*SCHEMA, *response])),
        pa.Table.from_pylist(list(rejects), SCHEMA.append(pa.field("llm_reason", pa.string()))),
    )
    done = Gatherer(gather, "doc", [], response, None).gather(*tables)
    return done[0].to_pylist(), done[1].to_pylist()


def test_a_row_has_the_sum_of_its_parts_and_names_them_in_order():
    labels = [
        part("a", 2, 3, cost="0.02", kind="x", names=["q", "p"]),
        part("b", 1, 1, cost="0.5", kind="y", names=None),
        part("a", 3, 3, cost="0.003", kind="y", names=["p"]),
        part("a", 1, 3, cost="0.1", kind="y", names=["p"]),
    ]
    [a, b], rejects = gathered(labels)
    assert rejects == []
    assert (a["doc"], a["kind"], a["names"]) == ("a", "y", ["p", "q"])
    assert (a["llm_cost_usd"], a["llm_input_tokens"], a["llm_output_tokens"]) == (Decimal("0.123"), 300, 21)
    assert [(one["part_key"], one["llm_request_id"]) for one in a["llm_parts"]] == [
        ("a#1", "r-a-1"),
        ("a#2", "r-a-2"),
        ("a#3", "r-a-3"),
    ]
    assert (b["names"], b["llm_cost_usd"]) == ([], Decimal("0.5"))


def test_a_failed_part_makes_its_row_a_reject_with_the_price_of_all_parts():
    labels = [part("a", 1, 2, cost="0.1", kind="x", names=[]), part("b", 1, 1, kind="x", names=[])]
    failed = part("a", 2, 2, cost="0.02", llm_outcome="invalid", llm_reason="not JSON")
    [b], [a] = gathered(labels, [failed])
    assert b["doc"] == "b"
    assert (a["doc"], a["llm_outcome"], a["llm_cost_usd"]) == ("a", "invalid", Decimal("0.12"))
    assert a["llm_reason"] == "1 of 2 parts have no label. a#2: not JSON"
    assert [one["llm_outcome"] for one in a["llm_parts"]] == ["succeeded", "invalid"]


def test_a_part_without_a_known_price_makes_the_price_unknown_and_not_less():
    [a], _ = gathered([part("a", 1, 2, kind="x", names=[]), part("a", 2, 2, cost=None, kind="x", names=[])])
    assert a["llm_cost_usd"] is None


def test_a_part_that_is_in_neither_table_is_named_and_never_passed_over():
    labels, [a] = gathered([part("a", 1, 3, kind="x", names=[]), part("a", 3, 3, kind="x", names=[])])
    assert labels == []
    assert a["llm_outcome"] == "missing"
    assert a["llm_reason"].startswith("1 of 3 parts have no label. part 2: not in the labels or rejects")


def test_a_part_of_blanks_has_nothing_to_answer_unless_the_whole_text_is_blank():
    blank = {"cost": "0", "llm_outcome": "skipped", "llm_reason": "empty"}
    [a], [b] = gathered(
        [part("a", 1, 2, cost="0.1", kind="x", names=["p"])], [part("a", 2, 2, **blank), part("b", 1, 1, **blank)]
    )
    assert (a["kind"], a["names"], a["llm_outcome"], a["llm_cost_usd"]) == ("x", ["p"], "succeeded", Decimal("0.1"))
    assert [one["llm_outcome"] for one in a["llm_parts"]] == ["succeeded", "skipped"]
    assert (b["llm_outcome"], b["llm_reason"]) == ("skipped", "1 of 1 parts have no label. b#1: empty")


@pytest.mark.parametrize("second", [part("a", 1, 2), part("a", 2, 3)])
def test_parts_of_two_splits_are_refused(second):
    with pytest.raises(InputError, match="parts of two splits"):
        gathered([part("a", 1, 2), second])


@pytest.mark.parametrize(
    ("gather", "kind", "names"),
    [
        (Gather("concat"), "y\nx\nx", ["p", "q", "p"]),
        (Gather("concat", {"names": "union"}, separator=" | "), "y | x | x", ["p", "q"]),
        (Gather("union", {"kind": "vote"}), "x", ["p", "q"]),
    ],
)
def test_each_way_gathers_a_column(gather, kind, names):
    values = [("y", ["p", "q"]), ("x", None), ("x", ["p"])]
    labels = [part("a", at, 3, kind=kind, names=names) for at, (kind, names) in enumerate(values, start=1)]
    [a], _ = gathered(labels, gather=gather)
    assert (a["kind"], a["names"]) == (kind, names)


def test_of_equal_votes_the_first_counts_and_null_does_not_vote():
    labels = [part("a", at, 3, kind=kind, names=[]) for at, kind in enumerate([None, "y", "x"], start=1)]
    assert gathered(labels)[0][0]["kind"] == "y"


def test_objects_in_lists_are_united_by_value():
    response = pa.schema([("claims", pa.list_(pa.struct([("who", pa.string()), ("sums", pa.list_(pa.int64()))])))])
    one, other = {"who": "p", "sums": [1, 2]}, {"who": "p", "sums": [2]}
    labels = [part("a", 1, 2, claims=[one]), part("a", 2, 2, claims=[other, one])]
    assert gathered(labels, gather=Gather("union"), response=response)[0][0]["claims"] == [one, other]


@pytest.mark.parametrize(
    ("gather", "kind", "said"),
    [
        (Gather("vote"), pa.int64(), "of type int64, and 'vote' takes texts, and true and false. No way takes it"),
        (Gather("concat"), pa.float64(), "'concat' takes lists and texts"),
        (Gather("union"), pa.string(), "'union' takes lists"),
        (Gather("vote", {"scre": "vote"}), pa.string(), "Gather.columns names scre"),
    ],
)
def test_a_column_that_a_way_cannot_gather_is_refused_by_name(gather, kind, said):
    with pytest.raises(ConfigError, match=said):
        Gatherer(gather, "doc", [], pa.schema([("score", kind)]), None)


def test_places_of_quotes_become_places_in_the_whole_text():
    response = pa.schema([("quotes", pa.list_(pa.string()))])
    quoted = QuotedColumns(Evidence({"quotes": "text"}, min_score=None), "part_key", ["text"], response)
    texts = ["zero one..", "two quote "]
    rows = [part("a", 1, 2, quotes=["one"], text=texts[0]), part("a", 2, 2, quotes=["quote"], text=texts[1])]
    located = quoted.add_to(pa.Table.from_pylist(rows, pa.schema([*SCHEMA, ("text", pa.string()), *response])))
    gatherer = Gatherer(Gather("concat"), "doc", [], response, quoted)
    rejects = pa.Table.from_pylist([], SCHEMA.append(pa.field("llm_reason", pa.string())))
    [row] = gatherer.gather(located.select(gatherer.read), rejects)[0].to_pylist()
    whole = "".join(texts)
    places = zip(row["quotes_start"], row["quotes_end"], strict=True)
    assert [whole[start:end] for start, end in places] == row["quotes"] == ["one", "quote"]
    with pytest.raises(ConfigError, match="can only be gathered by 'concat'"):
        Gatherer(Gather("union"), "doc", [], response, quoted)
