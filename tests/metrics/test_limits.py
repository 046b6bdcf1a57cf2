"""Gates judge as users expect: all rows, bounds that few rows do not reach by luck, and no alarms by chance."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import scipy

from dagster_llm_batch.metrics import Target, compare, evaluate, join, tally
from dagster_llm_batch.metrics.calibration import calibration_of
from dagster_llm_batch.metrics.classification import accuracy_interval, kappa_of
from dagster_llm_batch.metrics.limits import least_miscalibration_p, miscalibration_p, share_p_below


def joined(gold, said, *, confidence=None, **target):
    truth = pa.table({"id": range(len(gold)), "t": gold})
    table = {"id": range(len(said)), "t": pa.array(said, truth["t"].type)}
    if confidence is not None:
        table["sure"] = confidence
        target["confidence_column"] = "sure"
    return join(truth, pa.table(table), key="id", target=Target("t", **target), candidate_name="c")


class TestAllRows:
    def test_five_right_labels_of_a_hundred_rows_are_an_accuracy_of_a_twentieth(self):
        one = evaluate(joined(["a", "b"] * 50, ["a", "b", "a", "b", "a"] + [None] * 95))
        assert (one.accuracy, one.kappa) == (1.0, 1.0)
        assert (one.accuracy_all, one.kappa_all) == (0.05, pytest.approx(0.025, abs=0.003))

    def test_kappa_of_all_rows_has_no_label_as_one_more_answer(self):
        from sklearn.metrics import cohen_kappa_score

        gold, said = ["a", "b", "c", "a", "b", "c"], ["a", "b", None, "b", "b", None]
        one = evaluate(joined(gold, said))
        assert one.kappa_all == pytest.approx(cohen_kappa_score(gold, [value or "none" for value in said]))
        assert evaluate(joined(gold, gold)).kappa_all == 1

    def test_no_label_is_as_far_as_the_farthest_class(self):
        gold, said = [1, 2, 3, 5], [1, 2, 3, None]
        one = evaluate(joined(gold, said, kappa_weights="linear"))
        # Observed: 4 for the last row. By chance: each gold class against 1, 2, 3 and a missing label.
        by_chance = [0 + 1 + 2 + 4, 1 + 0 + 1 + 3, 2 + 1 + 0 + 2, 4 + 3 + 2 + 4]
        assert one.kappa_all == pytest.approx(1 - 4 * 4 / sum(by_chance))

    def test_the_majority_is_that_of_the_same_rows(self):
        one = evaluate(joined(["a"] * 8 + ["b"] * 2, [None] * 7 + ["a", "b", "b"]))
        assert (one.accuracy_all, one.baseline_accuracy) == (0.3, 0.8)
        assert (one.accuracy, one.baseline_accuracy_labeled) == (1.0, pytest.approx(2 / 3))


class TestBounds:
    def test_the_bound_of_a_share_is_exact(self):
        right, wrong = (tally(joined(["a"] * 50, [said] * 50)) for said in "ab")
        assert accuracy_interval(right, confidence=0.9).low == pytest.approx(0.05 ** (1 / 50))
        assert accuracy_interval(wrong, confidence=0.9).low == 0
        assert share_p_below(3, 3, 0.9) == 1
        assert share_p_below(0, 2, 0.9) == pytest.approx(0.01)

    @pytest.mark.simulation
    @pytest.mark.parametrize(
        ("n", "right", "rare"), [(30, 0.95, 0.5), (100, 0.9, 0.3), (100, 0.99, 0.5), (300, 0.8, 0.1)]
    )
    def test_the_bound_of_kappa_is_seldom_over_the_true_one(self, n, right, rare):
        rng = np.random.default_rng(1)
        share = np.array([1 - rare, rare])
        cells = (np.full((2, 2), 1 - right) + np.eye(2) * (2 * right - 1)) * share[:, None]
        expected = share @ cells.sum(axis=0)
        true = (np.trace(cells) - expected) / (1 - expected)
        missed = 0
        for counts in rng.multinomial(n, cells.ravel(), 200):
            gold = np.repeat(["a", "a", "b", "b"], counts).tolist()
            said = np.repeat(["a", "b", "a", "b"], counts).tolist()
            bound = kappa_of(tally(joined(gold, said)), on_all=True, confidence=0.9)[1].low
            missed += bound is not None and bound > true
        assert missed / 200 < 0.09  # 5 % are meant, and 200 draws vary by 1.5 points

    def test_rows_without_a_label_lower_the_bound(self):
        counted = tally(joined(["a", "b"] * 20, ["a", "b"] * 15 + [None] * 10))
        of_all, of_labeled = (kappa_of(counted, on_all=flag, confidence=0.9)[1].low for flag in (True, False))
        assert of_all < 0.65 < of_labeled < 1
        assert kappa_of(tally(joined(["a"], [None])), on_all=True)[1].low is None

    def test_many_classes_that_were_never_mixed_up_have_a_bound(self):
        names = [f"class {at % 60}" for at in range(600)]
        assert 0.98 < kappa_of(tally(joined(names, names)), on_all=True, confidence=0.9)[1].low < 1


class TestCalibration:
    def found(self, n, off, seed):
        rng = np.random.default_rng(seed)
        sure = rng.uniform(0.5, 1, n)
        right = rng.random(n) < np.clip(sure - off, 0, 1)
        said = np.where(right, "a", "b").tolist()
        return calibration_of(joined(["a"] * n, said, confidence=sure))

    def test_a_calibrated_candidate_of_fifty_rows_is_not_blamed_for_what_chance_makes(self):
        drawn = [self.found(50, 0.0, seed) for seed in range(60)]
        assert sum(one.ece > 0.1 for one in drawn) > 20
        assert sum(miscalibration_p(one, 0.1) < 0.05 for one in drawn) <= 1

    @pytest.mark.simulation
    def test_a_candidate_that_is_far_off_is_found(self):
        drawn = [self.found(200, 0.3, seed) for seed in range(40)]
        assert sum(miscalibration_p(one, 0.1) < 0.001 for one in drawn) > 36

    def test_labels_of_one_request_are_one_label_of_the_test(self):
        sure, said = [0.9] * 40, ["a", "a", "b", "b"] * 10
        truth = pa.table({"id": range(40), "t": ["a"] * 40})
        table = pa.table({"id": range(40), "t": said, "sure": sure})
        target = Target("t", confidence_column="sure")
        once = table.append_column("llm_request_id", pa.array([f"r{n % 4}" for n in range(40)]))
        alone, shared = (
            calibration_of(join(truth, labels, key="id", target=target, candidate_name="c")) for labels in (table, once)
        )
        assert alone.ece == shared.ece == pytest.approx(0.4)
        assert [bin_.rows for bin_ in alone.bins if bin_.n] == [40]
        assert [bin_.rows for bin_ in shared.bins if bin_.n] == [4]
        assert miscalibration_p(alone, 0.1) < 0.001
        assert miscalibration_p(shared, 0.1) > 0.05

    def test_the_worst_that_labels_can_show_says_whether_they_are_too_few(self):
        # Two wrong labels with 90 % confidence, by a candidate that may be off by a tenth: 0.2 ** 2.
        few, many = (calibration_of(joined(["a"] * n, ["b"] * n, confidence=[0.9] * n)) for n in (2, 7))
        assert least_miscalibration_p(few, 0.1) == pytest.approx(0.04)
        assert miscalibration_p(few, 0.1) == pytest.approx(0.04, abs=0.005)
        assert least_miscalibration_p(many, 0.1) == pytest.approx(0.2**7)
        # The bound depends on the confidences alone, and not on the labels.
        right = calibration_of(joined(["a"] * 7, ["a"] * 7, confidence=[0.9] * 7))
        assert least_miscalibration_p(right, 0.1) == pytest.approx(0.2**7)

    def test_an_error_within_the_limit_is_within_it(self):
        assert miscalibration_p(self.found(50, 0.0, 1), 0.9) == 1
        empty = calibration_of(joined(["a"], [None], confidence=[0.5]))
        assert miscalibration_p(empty, 0.1) is None


@pytest.mark.parametrize("n", [10, 30, 100, 300])
@pytest.mark.parametrize("limit", [0.9, 0.98])
def test_a_share_that_keeps_its_limit_is_blamed_no_more_often_than_is_meant(n, limit):
    """Sum the chances of all possible samples; the upper end of Wilson's interval gave up to 8.6 %."""
    chance = scipy.stats.binom.pmf(np.arange(n + 1), n, limit)
    blamed = np.array([share_p_below(same, n, limit) < 0.025 for same in range(n + 1)])
    assert chance[blamed].sum() <= 0.025
    assert blamed[: int(n * limit / 2)].all()


def test_a_report_has_what_the_bounds_are_of():
    gold = pa.table({"id": [1, 2, 3], "t": ["a", "b", "b"]})
    report = compare(gold, {"c": pa.table({"id": [1, 2], "t": ["a", "a"]})}, key="id", targets=["t"])
    [matrix] = report.confusions
    assert (matrix.classes, matrix.unlabeled) == (("a", "b"), (0, 1))
    assert report.per_class["n_gold"].to_pylist() == [1, 2]
