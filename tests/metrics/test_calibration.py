"""Confidence against correctness: figures by hand and by scikit-learn, and properties for any labels."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics import (
    CALIBRATION_SCHEMA,
    Target,
    calibration_of,
    calibrations_to_arrow,
    compare,
    evaluate,
    join,
)

SURE = Target("t", confidence_column="sure")


def joined(rows, target=SURE):
    """Join rows of (gold, label, confidence)."""
    gold, said, sure = zip(*rows, strict=True) if rows else ((), (), ())
    ids = pa.array(range(len(rows)), pa.int64())
    truth = pa.table({"id": ids, "t": pa.array(gold, pa.string())})
    table = {"id": ids, "t": pa.array(said, pa.string()), "sure": pa.array(sure, pa.float64())}
    return join(truth, pa.table(table), key="id", target=target, candidate_name="c")


def test_figures_are_those_worked_out_by_hand():
    got = calibration_of(joined([("a", "a", 0.95), ("a", "b", 0.95), ("a", "a", 0.62), ("a", "b", 0.05)]))
    assert (got.n, got.accuracy) == (4, 0.5)
    assert got.mean_confidence == pytest.approx(2.57 / 4)
    # by bin: |0.95 - 0.5| twice, |0.62 - 1| once, |0.05 - 0| once
    assert got.ece == pytest.approx((2 * 0.45 + 0.38 + 0.05) / 4)
    assert got.brier == pytest.approx((0.05**2 + 0.95**2 + 0.38**2 + 0.05**2) / 4)
    assert [bin_.n for bin_ in got.bins] == [1, 0, 0, 0, 0, 0, 1, 0, 0, 2]
    last = got.bins[-1]
    assert (last.n_correct, last.accuracy, last.mean_confidence) == (1, 0.5, pytest.approx(0.95))
    assert (got.bins[1].accuracy, got.bins[1].mean_confidence) == (None, None)


@pytest.mark.parametrize(("sure", "at"), [(0.0, 0), (0.1, 0), (0.3, 2), (0.6, 5), (0.7, 6), (0.70001, 7), (1.0, 9)])
def test_a_confidence_on_an_edge_is_in_the_bin_below(sure, at):
    got = calibration_of(joined([("a", "a", sure)]))
    assert [i for i, bin_ in enumerate(got.bins) if bin_.n] == [at]


def test_honest_confidence_has_no_error_and_flat_certainty_errs_by_what_is_wrong():
    honest = [("a", "a", 0.75)] * 3 + [("a", "b", 0.75)]
    assert calibration_of(joined(honest)).ece == pytest.approx(0)
    certain = [("a", "a", 1.0)] * 3 + [("a", "b", 1.0)]
    assert calibration_of(joined(certain)).ece == calibration_of(joined(certain)).brier == 0.25


def test_only_labels_with_a_confidence_count():
    got = calibration_of(joined([("a", "a", 0.5), ("a", None, 0.5), ("a", "a", None), ("a", "a", float("nan"))]))
    assert (got.n, got.accuracy) == (1, 1)
    empty = calibration_of(joined([("a", None, 0.5)]))
    assert (empty.n, empty.ece, empty.brier, empty.mean_confidence) == (0, None, None, None)


def test_without_the_column_there_is_nothing_to_calibrate():
    rows = [("a", "a", 0.5)]
    assert calibration_of(joined(rows, Target("t"))) is None
    assert calibration_of(joined(rows, Target("t", confidence_column="other"))) is None
    assert evaluate(joined(rows, Target("t"))).ece is None


def test_an_evaluation_carries_the_figures_and_a_report_the_bins():
    one = joined([("a", "a", 0.95), ("a", "b", 0.65)])
    found, evaluation = calibration_of(one), evaluate(one)
    assert (evaluation.n_confident, evaluation.mean_confidence) == (2, found.mean_confidence)
    assert (evaluation.ece, evaluation.brier) == (found.ece, found.brier)
    gold = pa.table({"id": [1], "t": ["a"]})
    report = compare(gold, {"c": gold.append_column("sure", pa.array([0.5])), "d": gold}, key="id", targets=[SURE])
    assert [one.candidate for one in report.calibrations] == ["c"]


def test_bins_become_rows_empty_ones_too():
    table = calibrations_to_arrow([calibration_of(joined([("a", "a", 0.95)]))])
    assert table.schema == CALIBRATION_SCHEMA
    assert table["n"].to_pylist() == [0] * 9 + [1]
    assert table["accuracy"].to_pylist() == [None] * 9 + [1.0]
    assert calibrations_to_arrow([]).schema == CALIBRATION_SCHEMA


@pytest.mark.parametrize("sure", [85.0, -0.1, 1.01])
def test_a_confidence_out_of_range_says_the_range_and_what_to_do(sure):
    with pytest.raises(InputError, match=r"'sure' of candidate 'c' goes from .* Divide it by the end of its scale"):
        joined([("a", "a", sure)])


def test_words_are_no_confidence_and_numbers_are_not_correct_or_wrong():
    gold = pa.table({"id": [1], "t": ["a"]})
    table = gold.append_column("sure", pa.array(["high"]))
    with pytest.raises(ConfigError, match="must be a number from 0 to 1"):
        join(gold, table, key="id", target=SURE, candidate_name="c")
    with pytest.raises(ConfigError, match="Remove confidence_column"):
        Target("t", kind="numeric", confidence_column="sure")


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1)), min_size=1, max_size=60))
@settings(max_examples=60)
def test_for_any_labels_counts_add_up_and_errors_are_bounded(rows):
    from sklearn.metrics import brier_score_loss

    got = calibration_of(joined([("a", "a" if right else "b", sure) for right, sure in rows]))
    assert got.n == len(rows) == sum(bin_.n for bin_ in got.bins)
    assert sum(bin_.n_correct for bin_ in got.bins) == sum(right for right, _ in rows)
    assert abs(got.mean_confidence - got.accuracy) - 1e-9 <= got.ece <= 1
    for bin_ in got.bins:
        if bin_.n:
            assert bin_.confidence_from - 1e-9 <= bin_.mean_confidence <= bin_.confidence_to + 1e-9
    right, sure = zip(*rows, strict=True)
    if len(set(right)) == 2:
        assert got.brier == pytest.approx(brier_score_loss(right, sure))
