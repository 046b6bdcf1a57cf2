"""Failures in groups: each with its share, an interval that covers, its typical words, and examples."""

from __future__ import annotations

import random

import pyarrow as pa
import pytest

from dagster_llm_batch.metrics import Target, compare
from dagster_llm_batch.metrics.failures import FAILURE_SCHEMA, failures_to_arrow, find_failures


def found(gold, labels, *targets, keep=("text",)):
    report = compare(gold, {"small": labels}, key="id", targets=targets or ("topic",), keep=keep)
    return find_failures(report.joined, {"small": labels}, keep=keep)


def tickets(n=400, seed=1):
    """Return tickets: bugs with the word "invoice" are labeled as billing, and one reply in ten was cut off."""
    rng = random.Random(seed)
    common = ["please", "help", "the", "app", "again", "today", "since", "update"]
    rows = []
    for number in range(n):
        topic = ("bug", "billing")[number % 2]
        words = rng.sample(common, 4) + ([f"crash{'es' * (number % 3)}"] if topic == "bug" else ["payment"])
        invoice = topic == "bug" and number % 8 == 0
        words += ["invoice", "screen"] if invoice else []
        rows.append(
            {
                "id": number,
                "text": " ".join([*words, f"n{number}"]),
                "gold": topic,
                "topic": None if number % 20 in (3, 6) else "billing" if invoice else topic,
                "llm_outcome": "invalid" if number % 20 in (3, 6) else "succeeded",
                "llm_reason": "cut" if number % 20 in (3, 6) else None,
            }
        )
    table = pa.Table.from_pylist(rows)
    return table.select(["id", "gold"]).rename_columns(["id", "topic"]), table.drop_columns("gold")


def test_groups_are_label_pairs_and_reasons_with_share_words_and_examples():
    pair, cut = found(*tickets())
    assert (pair.gold, pair.label, pair.reason, pair.n, pair.n_gold) == ("bug", "billing", None, 50, 400)
    assert (cut.gold, cut.label, cut.reason, cut.n) == (None, None, "invalid: cut", 40)
    assert pair.share == 0.125
    # Clopper and Pearson's, of 50 in 400.
    assert (pair.share_low, pair.share_high) == pytest.approx((0.0942, 0.1615), abs=1e-4)
    assert pair.examples == ("0", "8", "16", "24", "32")
    assert set(pair.words) == {"invoice", "screen"}
    # Replies were cut off at random.
    assert cut.words == ()


def test_the_word_for_the_class_itself_distinguishes_no_mistake_of_it():
    gold, labels = tickets()
    pair = found(gold, labels)[0]
    assert "payment" not in pair.words
    assert not any(word.startswith("crash") for word in pair.words)


def test_a_text_that_comes_a_hundred_times_is_one():
    rows = [(n, "same words here", "a", "b") for n in range(100)] + [
        (n, f"other {n}", "a", "a") for n in range(100, 150)
    ]
    gold = pa.table({"id": [row[0] for row in rows], "topic": [row[2] for row in rows]})
    labels = pa.table({"id": gold["id"], "text": [row[1] for row in rows], "topic": [row[3] for row in rows]})
    [pair] = found(gold, labels)
    assert (pair.n, pair.words) == (100, ())


def test_rows_of_one_request_are_one_unit_of_the_interval():
    gold, labels = tickets(80)
    independent = found(gold, labels)[0]
    ids = pa.array([str(number // 16) for number in range(80)])
    dependent = found(gold, labels.append_column("llm_request_id", ids))[0]
    assert independent.share == dependent.share
    assert dependent.share_high - dependent.share_low > independent.share_high - independent.share_low


def test_shares_of_weighted_gold_are_those_of_the_table():
    gold, labels = tickets()
    weights = [1.0 if topic == "bug" else 9.0 for topic in gold["topic"].to_pylist()]
    pair = next(one for one in found(gold.append_column("sample_weight", pa.array(weights)), labels) if one.label)
    assert pair.share == pytest.approx(50 / (200 + 1800))
    # the mistakes are in rows that were certain to be drawn: they are known, and others may be missed
    assert pair.share_low == pytest.approx(pair.share)
    assert pair.share_high > pair.share + 0.005


def test_numbers_are_near_or_far_and_only_missing_ones_are_a_group():
    gold = pa.table({"id": [1, 2, 3], "score": [1.0, 2.0, 3.0]})
    labels = pa.table({"id": [1, 2], "score": [5.0, None]})
    groups = found(gold, labels, Target("score", kind="numeric"), keep=())
    assert [(one.reason, one.n) for one in groups] == [("the label is empty", 1), ("the candidate has no such row", 1)]


def test_nothing_wrong_is_no_group_and_the_table_has_its_columns_all_the_same():
    gold = pa.table({"id": [1], "topic": ["a"]})
    assert failures_to_arrow(found(gold, gold, keep=())).schema == FAILURE_SCHEMA


def test_reasons_that_quote_their_reply_do_not_flood_the_table():
    n = 300
    gold = pa.table({"id": range(n), "topic": ["a"] * n})
    told = {"llm_outcome": ["invalid"] * n, "llm_reason": [f"got {number}" for number in range(n)]}
    labels = pa.table({"id": range(n), "topic": pa.nulls(n, pa.string()), **told})
    assert len(found(gold, labels, keep=())) == 100
