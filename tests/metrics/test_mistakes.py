"""The table of mistakes: all rows that a candidate labeled wrong, with their input, and only these."""

from __future__ import annotations

import pyarrow as pa
import pytest

from dagster_llm_batch.metrics import Target, compare

GOLD = pa.table({"id": [1, 2, 3, 4, 5], "topic": ["a", "b", "a", "b", None], "score": [1.0, 2.0, 3.0, 4.0, 5.0]})
SMALL = pa.table(
    {
        "id": [4, 3, 2, 1],
        "text": ["four", "three", "two", "one"],
        "topic": ["b", None, "a", "a"],
        "score": [9.0, 3.0, 2.5, 1.0],
        "sure": [0.9, None, 0.4, 0.8],
        "llm_outcome": ["succeeded", "invalid", "succeeded", "succeeded"],
        "llm_reason": [None, "topic: not allowed", None, None],
    }
)
LARGE = pa.table({"id": [1, 2, 3], "topic": ["a", "b", "a"], "score": [1.0, 2.0, 3.0]})


def mistakes(candidates, *targets, keep=("text",)):
    return compare(GOLD, candidates, key="id", targets=targets, keep=keep).mistakes


def test_a_row_stands_there_once_where_any_candidate_is_wrong_or_gave_no_label():
    found = mistakes({"small": SMALL, "large": LARGE}, "topic")
    assert found.to_pylist() == [
        {
            "id": 2,
            "text": "two",
            "target": "topic",
            "gold": "b",
            "small_label": "a",
            "small_reason": None,
            "large_label": "b",
            "large_reason": None,
        },
        {
            "id": 3,
            "text": "three",
            "target": "topic",
            "gold": "a",
            "small_label": None,
            "small_reason": "invalid: topic: not allowed",
            "large_label": "a",
            "large_reason": None,
        },
        {
            "id": 4,
            "text": "four",
            "target": "topic",
            "gold": "b",
            "small_label": "b",
            "small_reason": None,
            "large_label": None,
            "large_reason": "the candidate has no such row",
        },
    ]


def test_numbers_stand_with_the_farthest_first_and_those_without_a_label_before_them():
    found = mistakes({"small": SMALL}, Target("score", kind="numeric"))
    assert found["id"].to_pylist() == [3, 5, 4, 2]
    assert found["small_label"].to_pylist() == [None, None, "9", "2.5"]


def test_confidence_stands_beside_the_label_where_a_target_names_it():
    found = mistakes({"small": SMALL, "large": LARGE}, Target("topic", confidence_column="sure"))
    assert found["small_confidence"].to_pylist() == [0.4, None, 0.9]
    assert found["large_confidence"].to_pylist() == [None, None, None]


def test_where_all_is_right_the_table_is_empty_and_has_all_its_columns():
    right = pa.table({"id": [1, 2, 3, 4], "topic": ["a", "b", "a", "b"]})
    found = mistakes({"right": right}, "topic", keep=())
    assert found.num_rows == 0
    assert found.column_names == ["id", "target", "gold", "right_label", "right_reason"]


@pytest.mark.parametrize("name", ["target", "gold"])
def test_a_kept_column_that_the_table_has_already_gets_another_name(name):
    found = mistakes(
        {"small": SMALL.rename_columns([name if c == "text" else c for c in SMALL.column_names])}, "topic", keep=(name,)
    )
    assert found[f"row_{name}"].to_pylist() == ["two", "three"]


def test_kept_columns_of_other_types_become_text_and_come_from_who_has_the_row():
    numbered = SMALL.set_column(1, "text", pa.array([4, 3, 2, 1]))
    late = pa.table({"id": [4], "text": ["vier"], "topic": ["a"]})
    found = mistakes({"late": late, "small": numbered}, "topic")
    assert dict(zip(found["id"].to_pylist(), found["text"].to_pylist(), strict=True)) == {
        1: "1",
        2: "2",
        3: "3",
        4: "vier",
    }


def test_labels_of_several_targets_stand_below_each_other():
    found = mistakes({"small": SMALL}, "topic", Target("score", kind="numeric"))
    assert found["target"].to_pylist() == ["topic"] * 2 + ["score"] * 4
