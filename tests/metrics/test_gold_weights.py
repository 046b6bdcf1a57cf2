"""Gold drawn with unequal probabilities: figures estimate all rows, and intervals cover them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics import Target, compare, evaluate, join, report_of, tally, total
from dagster_llm_batch.metrics.gold_sample import propose
from dagster_llm_batch.metrics.gold_weights import (
    SAMPLE_COLUMNS,
    SampledRows,
    gold_weights,
    next_round,
    rows_drawn_from,
)
from dagster_llm_batch.metrics.likelihood import likelihood_interval
from dagster_llm_batch.metrics.survey import MIN_ROWS, Survey

TARGETS = [Target("stars", kappa_weights="quadratic", confidence_column="sure"), Target("price", kind="numeric")]


def table(rng, n):
    stars = rng.integers(1, 4, n)
    said = np.where(rng.random(n) < 0.3, rng.integers(1, 4, n), stars)
    price = rng.normal(size=n)
    told = {"stars": said, "price": price + rng.normal(size=n) / 3, "sure": rng.choice([0.3, 0.7, 0.95], n)}
    return {"stars": stars, "price": price}, told


def test_figures_are_those_of_a_table_in_which_each_row_stands_as_often_as_its_weight_says():
    rng, n = np.random.default_rng(0), 40
    truth, said = table(rng, n)
    other = {**said, "stars": table(rng, n)[1]["stars"]}
    times = rng.integers(1, 6, n)
    weighted = pa.table({"id": range(n), **truth, "sample_weight": times.astype(float)})
    rows = {name: pa.table({"id": range(n), **said}) for name, said in (("a", said), ("b", other))}
    got = compare(weighted, rows, key="id", targets=TARGETS)
    at = np.repeat(np.arange(n), times)
    whole = pa.table({"id": range(len(at)), **{name: values[at] for name, values in truth.items()}})
    repeated = {
        name: pa.table({"id": range(len(at)), **{column: values[at] for column, values in said.items()}})
        for name, said in (("a", said), ("b", other))
    }
    expected = compare(whole, repeated, key="id", targets=TARGETS)
    figures = (
        *("coverage", "accuracy", "accuracy_all", "baseline_class", "baseline_accuracy", "macro_precision"),
        *("macro_recall", "macro_f1", "kappa", "mae", "rmse", "pearson", "spearman", "mean_confidence", "ece", "brier"),
    )
    for one, all_rows in zip(got.evaluations, expected.evaluations, strict=True):
        for figure in figures:
            assert getattr(one, figure) == pytest.approx(getattr(all_rows, figure)), figure
        assert one.mae is None or one.mae_low < one.mae < one.mae_high
    for column in ("precision", "recall", "f1"):
        assert got.per_class[column].to_pylist() == pytest.approx(expected.per_class[column].to_pylist())
    assert got.per_class["support"].to_pylist() != expected.per_class["support"].to_pylist()  # counts are not weighted
    [pair], [pair_of_all] = got.agreements, expected.agreements
    assert pair.accuracy_difference == pytest.approx(pair_of_all.accuracy_difference)
    assert pair.kappa == pytest.approx(pair_of_all.kappa)
    assert pair.test == "t"
    for bins, all_bins in zip(got.calibrations, expected.calibrations, strict=True):
        assert [one.accuracy for one in bins.bins] == pytest.approx([one.accuracy for one in all_bins.bins])


@pytest.mark.simulation
def test_a_sample_of_hard_rows_tells_the_accuracy_of_all_rows():
    """Correct the estimate, which was once .715 for .883 and covered in 0 of 300 draws."""
    rng, n = np.random.default_rng(3), 1000
    hard = rng.random(n) < 0.2
    right = rng.random(n) > np.where(hard, 0.4, 0.05)
    strength = np.where(hard, rng.random(n), 0.0)
    labels = pa.table({"id": range(n), "topic": np.where(right, "a", "b")})
    truth = right.mean()
    said, plain, covered, draws = [], [], 0, 300
    for seed in range(draws):
        hard = {"disagreement": strength}
        drawn = propose(pa.array(range(n)), hard, key="id", sample_size=100, random_share=0.3, seed=seed)
        gold = drawn.select(["id", *SAMPLE_COLUMNS]).append_column("topic", pa.array(["a"] * 100))
        got = evaluate(join(gold, labels, key="id", target="topic", candidate_name="c"))
        said.append(got.accuracy)
        plain.append(got.n_correct / 100)
        covered += got.accuracy_low <= truth <= got.accuracy_high
    assert np.mean(plain) < truth - 0.1
    assert np.mean(said) == pytest.approx(truth, abs=0.005)
    assert covered / draws >= 0.927


@pytest.mark.simulation
def test_rounds_that_follow_what_earlier_ones_found_are_combined_without_bias_and_their_variance_is_known():
    """Draw the second round at the mistakes of the first: the truth of a row affects the draw of others."""
    rng, n, totals, variances = np.random.default_rng(1), 60, [], []
    value = np.concatenate([np.ones(12), np.zeros(48)])
    group = np.repeat([0, 1, 2], 20)
    for seed in range(1500):
        first = propose(pa.array(range(n)), {}, key="id", sample_size=12, seed=(seed, int(rng.integers(2**40))))
        found = np.bincount(group[first["id"].to_numpy()], value[first["id"].to_numpy()], minlength=3)
        signal = {"drift": (0.2 + found[group]) / 12}
        second = propose(
            pa.array(range(n)), signal, key="id", sample_size=12, seed=seed, sample_round=2, has_gold=first["id"]
        )
        gold = pa.concat_tables([one.select(["id", *SAMPLE_COLUMNS]) for one in (first, second)])
        sampled = gold_weights(gold)
        y = value[gold["id"].to_numpy()]
        weight, spread = sampled.weight.to_numpy(), sampled.spread.to_numpy()
        totals.append((weight * y).sum())
        mean = (weight * y).sum() / weight.sum()
        variances.append((spread * (y - mean) ** 2).sum())
    five_errors = 5 * np.std(totals) / np.sqrt(len(totals))
    assert np.mean(totals) == pytest.approx(12, abs=five_errors)
    assert 0.9 < np.mean(variances) / np.var(totals) < 1.3


def test_gold_of_one_class_that_is_all_right_has_an_interval_with_a_width():
    codes, rows = np.zeros(60, np.int64), SampledRows(np.tile([2.0, 8.0], 30), np.ones(60), np.arange(60))
    accuracy = Survey(codes, codes, rows, 1).accuracy()
    assert accuracy.low is not None
    assert (0.85 < accuracy.low < 0.99, accuracy.value, accuracy.high) == (True, 1, 1)


@pytest.mark.parametrize("weights", [None, "quadratic"])
def test_intervals_come_from_how_figures_change_with_each_row_and_with_rows_that_were_not_seen(weights):
    rng, n = np.random.default_rng(5), 60
    gold, predicted = rng.integers(0, 3, n), rng.integers(0, 3, n)
    predicted = np.where(rng.random(n) < 0.6, gold, predicted)
    weight, spread = rng.uniform(1, 3, n), rng.uniform(0.5, 2, n)
    rows = SampledRows(weight, spread, np.arange(n))
    figures = {
        "accuracy": Survey.accuracy,
        "kappa": lambda one: one.kappa([0, 1, 2], weights),
        "f1": lambda one: one.macro()[2],
    }
    for name, figure in figures.items():
        got = figure(Survey(gold, predicted, rows, 3))

        def added(code, label, figure=figure, value=got.value):
            """Return the change of the figure by the weight of a further row in this cell."""
            more = (np.append(gold, code), np.append(predicted, label))
            all_rows = SampledRows(np.append(weight, 1e-6), np.append(spread, 0), np.arange(n + 1))
            return (figure(Survey(*more, all_rows, 3)).value - value) / 1e-6 * weight.sum()

        adds = np.array([[added(code, label) for label in range(3)] for code in range(3)])
        low, high = likelihood_interval(adds[gold, predicted], rows, adds.min(axis=1)[gold], adds.max(axis=1)[gold])
        assert (got.low, got.high) == pytest.approx((got.value + low, got.value + high), rel=1e-3), name


def gold_of(**columns):
    return pa.table({"id": range(len(next(iter(columns.values())))), **columns})


class TestWhatRowsStandFor:
    def test_rows_of_one_round_stand_for_one_by_their_probability(self):
        got = gold_weights(gold_of(sample_weight=[1.0, 4.0, 5.0]))
        assert got.weight.to_pylist() == [1, 4, 5]
        assert got.spread.to_pylist() == pytest.approx([0, 16 * 0.75 * 2, 25 * 0.8 * 2])  # a certain row adds zero

    def test_rounds_count_by_their_rows_and_rows_from_before_count_once(self):
        got = gold_weights(gold_of(sample_weight=[1, 6.0, 4.0, 4.0, 4.0], sample_round=[0, 1, 2, 2, 2]))
        assert got.weight.to_pylist() == pytest.approx([1, 6 / 4 + 3 / 4, 3, 3, 3])

    def test_each_partition_has_rounds_of_its_own(self):
        parts = ["a", "a", "b"]
        got = gold_weights(gold_of(sample_weight=[6.0, 4.0, 9.0], sample_round=[1, 2, 1], sample_partition=parts))
        assert got.weight.to_pylist() == pytest.approx([3 + 0.5, 2, 9])

    def test_a_round_from_a_smaller_table_says_nothing_of_the_rows_that_came_since(self):
        got = gold_weights(gold_of(sample_weight=[6.0, 4.0, 5.0], sample_round=[1, 2, 2], sample_rows=[50, 90, 90]))
        assert got.weight.to_pylist() == [1, 4, 5]
        assert got.spread.to_pylist()[0] == 0

    def test_weights_below_1_are_shares_and_no_row_was_certain(self):
        got = gold_weights(gold_of(sample_weight=[0.5, 1.5]))
        assert got.spread.to_pylist() == pytest.approx([2 * 0.25, 2 * 2.25])

    @pytest.mark.parametrize("weights", [[3.0, 3.0], pa.nulls(2, pa.float64())])
    def test_equal_weights_and_none_change_nothing(self, weights):
        assert gold_weights(gold_of(sample_weight=weights)) is None
        assert gold_weights(gold_of(weight=[1.0, 2.0])) is None  # kilograms, maybe

    @pytest.mark.parametrize(
        ("columns", "says"),
        [
            ({"sample_weight": [2.0, None]}, "1 of 2 gold rows have no 'sample_weight'.*give them sample_weight 1 and"),
            ({"sample_weight": [2.0, 0.0]}, "goes from 0 to 2"),
            ({"sample_weight": [2.0, 3.0], "sample_round": [1, None]}, "'sample_round' of gold is null or no whole"),
            ({"sample_weight": [2.0, 3.0], "sample_round": [1, -1]}, "rounds count from 1"),
        ],
    )
    def test_what_cannot_be_is_refused_with_what_to_do(self, columns, says):
        with pytest.raises(InputError, match=says):
            gold_weights(gold_of(**columns))

    def test_the_next_round_is_that_after_the_last_of_its_partition(self):
        gold = gold_of(sample_weight=[2.0, 3.0], sample_round=[1, 2], sample_partition=["a", "b"])
        assert (next_round(gold, "a"), next_round(gold, "b"), next_round(gold, "c")) == (2, 3, 1)
        assert next_round(gold.drop_columns("sample_partition"), None) == 3
        assert next_round(gold_of(topic=["a"]), None) == 1
        assert next_round(gold_of(sample_weight=[2.0, 3.0]), None) == 2

    def test_rows_that_could_be_drawn_are_those_of_the_last_round_of_each_partition(self):
        drawn = {"sample_weight": [2.0, 3.0, 4.0], "sample_rows": [50, 60, 30], "sample_partition": ["a", "a", "b"]}
        assert rows_drawn_from(gold_of(**drawn)) == 90
        assert rows_drawn_from(gold_of(**drawn).drop_columns("sample_partition")) == 60
        assert rows_drawn_from(gold_of(sample_weight=[2.0])) is None

    def test_rows_without_a_label_do_not_count_among_the_rounds(self):
        gold = gold_of(topic=["a", "a", None], sample_weight=[2.0, 3.0, None])
        got = join(gold, gold_of(topic=["a", "b", "b"]), key="id", target="topic", candidate_name="c")
        assert got.weight.to_pylist() == [2, 3]
        assert evaluate(got).accuracy == pytest.approx(0.4)

    def test_too_few_rows_have_no_interval(self):
        n = MIN_ROWS - 1
        gold = gold_of(topic=["a"] * n, sample_weight=[2.0] * (n - 1) + [2.5])
        got = evaluate(join(gold, gold.select(["id", "topic"]), key="id", target="topic", candidate_name="c"))
        assert (got.accuracy, got.accuracy_low) == (1, None)
        assert got.n_eff == pytest.approx(n, abs=0.1)


def test_parts_of_weighted_gold_have_the_figures_of_the_whole():
    rng, n = np.random.default_rng(8), 60
    truth, said = table(rng, n)
    gold = pa.table({"id": range(n), **truth, "sample_weight": rng.integers(1, 6, n).astype(float)})
    labels = pa.table({"id": range(n), **said, "llm_request_id": [f"r{at // 3}" for at in range(n)]})
    whole = compare(gold, {"c": labels}, key="id", targets=TARGETS)
    parts = [labels.filter(pa.array([at % 3 == part for at in range(n)])) for part in range(3)]
    joined = [[join(gold, part, key="id", target=one, candidate_name="c") for part in parts] for one in TARGETS]
    again = report_of([total(list(map(tally, some))) for some in joined])
    assert again.evaluations == whole.evaluations
    assert again.per_class.equals(whole.per_class)
    assert again.calibrations == whole.calibrations
    [stars, _] = whole.evaluations
    assert stars.accuracy_low < stars.accuracy < stars.accuracy_high
    assert stars.accuracy_all_low < stars.accuracy_all < stars.accuracy_all_high
    # Three rows a request are one unit: the rows are worth at most twenty independent ones.
    assert stars.n_eff <= 20
