"""Rows that count as one unit: identical requests, or the user's column, in joins, agreement and parts."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics import Labels, Target, join, tally, total
from dagster_llm_batch.metrics.clusters import cluster_ids, number_units

GOLD = pa.table({"id": [1, 2, 3, 4], "topic": ["a", "b", "a", "b"], "customer": [7, 7, 8, None]})
LABELS = pa.table({"id": [4, 3, 2, 1], "topic": ["a", "b", "a", "b"], "llm_request_id": ["x", "y", "x", None]})


def together(numbers):
    """Return the groups of rows that are one unit, whatever its number."""
    return {frozenset(i for i, n in enumerate(numbers.tolist()) if n == number) for number in numbers.tolist()}


def test_rows_of_one_request_are_one_unit_and_rows_without_one_are_units_of_their_own():
    joined = join(GOLD, LABELS, key="id", target="topic", candidate_name="c")
    assert joined.cluster.to_pylist() == [None, "x", "y", "x"]
    assert together(number_units(joined.cluster)) == {frozenset({0}), frozenset({1, 3}), frozenset({2})}
    plain = join(GOLD, LABELS.drop_columns(["llm_request_id"]), key="id", target="topic", candidate_name="c")
    assert len(set(number_units(plain.cluster).tolist())) == 4


def test_a_named_cluster_is_that_of_gold_or_else_of_the_candidate():
    joined = join(GOLD, LABELS, key="id", target="topic", candidate_name="c", cluster="customer")
    assert joined.cluster.to_pylist() == ["7", "7", "8", None]
    kept = LABELS.append_column("document", pa.array(["p", "q", "q", "q"]))
    theirs = join(GOLD, kept, key="id", target="topic", candidate_name="c", cluster="document")
    assert theirs.cluster.to_pylist() == ["q", "q", "q", "p"]
    with pytest.raises(ConfigError, match="cluster='document' is no column of gold, and none of candidate 'c'"):
        join(GOLD, LABELS, key="id", target="topic", candidate_name="c", cluster="document")
    with pytest.raises(ConfigError, match="cluster='parts' of gold is list"):
        cluster_ids(pa.table({"parts": [[1], [2]]}), "parts", "gold")


def test_rows_that_any_of_two_candidates_answered_once_are_one_unit():
    a = pa.array(["x", "x", "y", "z", None])
    b = pa.array(["1", "2", "2", "3", "4"])
    assert together(number_units(a, b)) == {frozenset({0, 1, 2}), frozenset({3}), frozenset({4})}
    assert number_units(pa.array([], pa.string())).tolist() == []


def test_units_of_parts_are_those_of_the_whole():
    whole = tally(join(GOLD, LABELS, key="id", target="topic", candidate_name="c"))
    parts = [tally(join(GOLD, LABELS.slice(n, 1), key="id", target="topic", candidate_name="c")) for n in range(4)]
    assert total(parts).cells.equals(whole.cells)
    assert whole.cells.to_pylist()[-1] == {"gold": "b", "predicted": "a", "cluster": "x", "n": 2}


def test_rows_without_a_label_keep_their_unit():
    rejected = LABELS.append_column("llm_outcome", pa.array(["errored", "succeeded", "errored", "succeeded"]))
    counted = tally(join(GOLD, rejected, key="id", target="topic", candidate_name="c"))
    assert counted.unlabeled.to_pylist() == [{"gold": "b", "cluster": "x", "n": 2}]


def test_labelers_are_compared_on_the_units_of_all_of_them():
    keys = pa.array([1, 2, 3])
    labels = pa.array(["a", "b", "a"])
    ids = [(keys, pa.array(["x", "x", "y"])), (pa.array([3, 2, 1]), pa.array(["1", None, "2"]))]
    among = Labels.of(Target("topic"), {"p": (keys, labels), "q": (keys, labels)}, clusters=ids)
    assert together(among.units) == {frozenset({0, 1}), frozenset({2})}
    assert among.only(["q"]).units.tolist() == among.units.tolist()
