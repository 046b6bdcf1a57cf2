"""Every figure against an independent computation: by hand, by formula, by scikit-learn, by drawing rows."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics import Target, compare, confusion, evaluate, join, per_class
from dagster_llm_batch.metrics.bootstrap import Cells, bootstrap_intervals, kappa, macro_f1


def joined(gold, predicted, target="t", **columns):
    """Rows in order; None in `predicted` is a row without a value."""
    kind = pa.array([*gold, *predicted]).type
    keys = range(len(gold))
    truth = pa.table({"id": pa.array(keys, pa.int64()), "t": pa.array(gold, kind)})
    candidate = pa.table({"id": pa.array(keys, pa.int64()), "t": pa.array(predicted, kind), **columns})
    return join(truth, candidate, key="id", target=target, candidate_name="c")


# By hand. gold a: 2 right, 1 said b, 1 unlabeled; gold b: 1 right, 1 said c; c is never gold.
#              said a  b  c
#     gold a:      2   1  0      precision a 1, b 1/2, c 0      recall a 2/3, b 1/2, c -
#     gold b:      0   1  1      f1 a 4/5, b 1/2, c 0
HAND = joined(["a", "a", "a", "a", "b", "b"], ["a", "a", "b", None, "b", "c"])


def test_figures_of_a_small_example_are_those_computed_by_hand():
    got = evaluate(HAND)
    assert (got.n_gold, got.n_labeled, got.n_correct, got.n_classes) == (6, 5, 3, 3)
    assert got.coverage == pytest.approx(5 / 6)
    assert got.accuracy == pytest.approx(3 / 5)
    assert got.accuracy_all == pytest.approx(3 / 6)
    assert (got.baseline_class, got.baseline_accuracy) == ("a", pytest.approx(4 / 6))
    assert got.macro_precision == pytest.approx((1 + 1 / 2 + 0) / 3)
    assert got.macro_recall == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert got.macro_f1 == pytest.approx((4 / 5 + 1 / 2 + 0) / 3)
    by_chance = Fraction(3, 5) * Fraction(2, 5) + Fraction(2, 5) * Fraction(2, 5)
    assert got.kappa == pytest.approx(float((Fraction(3, 5) - by_chance) / (1 - by_chance)))
    assert (got.mae, got.rmse, got.pearson, got.spearman) == (None,) * 4


def test_the_wilson_interval_follows_its_formula():
    got = evaluate(HAND)
    p, n, z = 3 / 5, 5, 1.959963984540054
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (got.accuracy_low, got.accuracy_high) == (pytest.approx(middle - half), pytest.approx(middle + half))


def test_the_table_of_classes_is_that_computed_by_hand():
    fields = ("class", "n_gold", "support", "predicted", "correct", "precision", "recall", "f1")
    rows = [tuple(row[name] for name in fields) for row in per_class(HAND).to_pylist()]
    assert rows == [
        ("a", 4, 3, 2, 2, 1.0, pytest.approx(2 / 3), pytest.approx(0.8)),
        ("b", 2, 2, 2, 1, 0.5, 0.5, 0.5),
        ("c", 0, 0, 1, 0, 0.0, None, 0.0),
    ]


def test_confusion_has_gold_down_and_predictions_across():
    got = confusion(HAND)
    assert got.classes == ("a", "b", "c")
    assert got.counts == ((2, 1, 0), (0, 1, 1), (0, 0, 0))


def test_a_class_whose_rows_all_lack_labels_stays_visible():
    got = joined(["a", "b"], ["a", None])
    assert confusion(got).classes == ("a", "b")
    row = per_class(got).to_pylist()[1]
    assert (row["n_gold"], row["support"], row["precision"], row["recall"], row["f1"]) == (1, 0, None, None, None)
    assert evaluate(got).macro_f1 == 1.0  # over classes that occur among labeled rows


def test_integer_classes_are_in_the_order_of_numbers():
    assert confusion(joined([10, 9, 2], [10, 2, 9])).classes == (2, 9, 10)


def test_booleans_are_classes():
    got = joined([True, False, True], [True, True, None])
    assert confusion(got).classes == (False, True)
    assert evaluate(got).baseline_class == "true"


def test_a_tie_for_the_majority_goes_to_the_first_class():
    assert evaluate(joined(["b", "a"], ["b", "b"])).baseline_class == "a"


def test_weighted_kappa_counts_disagreement_by_distance():
    gold, said = [1, 1, 2, 3, 5, 5], [1, 2, 2, 5, 5, 1]
    for weights in ("linear", "quadratic"):
        got = evaluate(joined(gold, said, Target("t", kappa_weights=weights)))
        # all five steps as labels: scikit-learn measures distance in positions, and no step 4 occurs here
        assert got.kappa == pytest.approx(sk.cohen_kappa_score(gold, said, labels=[1, 2, 3, 4, 5], weights=weights))
        assert got.kappa_weights == weights
    near = evaluate(joined([1, 1, 5, 5], [1, 2, 5, 5], Target("t", kappa_weights="quadratic")))
    far = evaluate(joined([1, 1, 5, 5], [1, 5, 5, 5], Target("t", kappa_weights="quadratic")))
    assert near.kappa > far.kappa


@pytest.mark.parametrize("values", [["a", "b"], [True, False]])
def test_weights_need_integers(values):
    with pytest.raises(ConfigError, match="needs integer classes"):
        evaluate(joined(values, values, Target("t", kappa_weights="linear")))


def test_cost_per_correct_label_divides_all_cost_by_correct_labels():
    cost = pa.array([Decimal("0.01")] * 4, pa.decimal128(12, 6))
    got = evaluate(joined(["a", "a", "b", "b"], ["a", "b", "b", None], llm_cost_usd=cost))
    assert got.cost_usd == Decimal("0.04")
    assert got.cost_per_correct_usd == Decimal("0.02")


def test_cost_per_correct_label_is_unknown_if_any_cost_is_or_nothing_is_correct():
    partly = evaluate(joined(["a", "b"], ["a", "b"], llm_cost_usd=pa.array([0.5, None])))
    assert (partly.cost_usd, partly.n_cost_unknown, partly.cost_per_correct_usd) == (Decimal("0.5"), 1, None)
    wrong = evaluate(joined(["a"], ["b"], llm_cost_usd=pa.array([0.5])))
    assert (wrong.cost_usd, wrong.cost_per_correct_usd) == (Decimal("0.5"), None)


def test_numeric_targets_are_measured_by_distance():
    gold, said = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 3.0, 8.0]
    got = evaluate(joined(gold, said, Target("t", kind="numeric")))
    assert got.mae == pytest.approx(5 / 4)
    assert got.rmse == pytest.approx(math.sqrt(17 / 4))
    # deviations from the means 2.5 and 3.75
    xy = sum((x - 2.5) * (y - 3.75) for x, y in zip(gold, said, strict=True))
    assert got.pearson == pytest.approx(xy / math.sqrt(5 * sum((y - 3.75) ** 2 for y in said)))
    # ranks 1 2 3 4 and 1 2.5 2.5 4: covariance 4.5, variances 5 and 4.5
    assert got.spearman == pytest.approx(4.5 / math.sqrt(5 * 4.5))
    assert (got.accuracy, got.n_correct, got.kappa, got.macro_f1, got.baseline_class) == (None,) * 5


def test_a_constant_has_no_correlation():
    got = evaluate(joined([1.0, 2.0, 3.0], [0.1, 0.1, 0.1], Target("t", kind="numeric")))
    assert (got.pearson, got.spearman) == (None, None)
    assert got.mae == pytest.approx(1.9)


def test_numbers_have_no_classes():
    numbers = joined([0.5], [0.5], Target("t", kind="numeric"))
    for count in (confusion, per_class):
        with pytest.raises(ConfigError, match="it has no classes"):
            count(numbers)


def test_free_text_is_no_class():
    texts = [f"text {i}" for i in range(1001)]
    with pytest.raises(ConfigError, match="1001 distinct values; at most 1000"):
        evaluate(joined(texts, texts))


@pytest.mark.parametrize("kind", ["categorical", "numeric"])
@pytest.mark.parametrize(("n", "covered"), [(0, 0.0), (3, 0.0)])
def test_without_labels_there_is_coverage_0_and_no_figure(kind, n, covered):
    got = evaluate(joined([1] * n, [None] * n, Target("t", kind=kind)))
    assert (got.n_gold, got.n_labeled, got.coverage) == (n, 0, covered)
    measured = ("accuracy", "accuracy_low", "accuracy_high", "macro_precision", "macro_recall", "macro_f1", "kappa")
    assert {getattr(got, name) for name in (*measured, "macro_f1_low", "kappa_low", "mae", "rmse", "pearson")} == {None}
    if kind == "categorical":
        assert got.accuracy_all == (0.0 if n else None)
        assert got.baseline_accuracy == (1.0 if n else None)


def test_one_row_has_a_point_and_no_bootstrap():
    got = evaluate(joined(["a"], ["a"]))
    assert (got.accuracy, got.accuracy_high, got.macro_f1) == (1.0, 1.0, 1.0)
    assert got.accuracy_low == pytest.approx(1 / (1 + 1.959963984540054**2))  # Wilson for 1 of 1
    assert (got.macro_f1_low, got.macro_f1_high, got.kappa, got.kappa_low) == (None,) * 4


def test_one_class_has_no_kappa():
    got = evaluate(joined(["a"] * 5, ["a"] * 5))
    assert (got.accuracy, got.kappa, got.kappa_low, got.kappa_high) == (1.0, None, None, None)


# --- bootstrap ---


def cells_of(gold, said, n_classes):
    return Cells.of(np.array(gold), np.array(said), n_classes)


def test_statistics_of_many_resamples_equal_those_of_scikit_learn_on_each():
    rng = np.random.default_rng(1)
    gold, said = rng.integers(0, 4, 40), rng.integers(0, 4, 40)
    cells = cells_of(gold, said, 4)
    draws = [rng.integers(0, 40, 40) for _ in range(30)]
    index = {cell: at for at, cell in enumerate(zip(cells.gold.tolist(), cells.predicted.tolist(), strict=True))}
    counts = np.zeros((30, len(cells.counts)), dtype=np.int64)
    for row, draw in enumerate(draws):
        for i in draw:
            counts[row, index[gold[i], said[i]]] += 1
    f1 = [sk.f1_score(gold[d], said[d], average="macro") for d in draws]
    assert macro_f1(cells, counts) == pytest.approx(np.array(f1))
    for weights in (None, "linear", "quadratic"):
        expected = [sk.cohen_kappa_score(gold[d], said[d], labels=range(4), weights=weights) for d in draws]
        assert kappa(cells, counts, values=range(4), weights=weights) == pytest.approx(np.array(expected))


def test_intervals_agree_with_a_bootstrap_that_draws_rows():
    rng = np.random.default_rng(2)
    n = 100
    gold = rng.integers(0, 3, n)
    said = np.where(rng.random(n) < 0.7, gold, rng.integers(0, 3, n))
    values = []
    for _ in range(10_000):
        draw = rng.integers(0, n, n)
        table = np.bincount(gold[draw] * 3 + said[draw], minlength=9).reshape(3, 3)
        values.append(np.mean(2 * np.diag(table) / (table.sum(0) + table.sum(1))))
    (interval,) = bootstrap_intervals(cells_of(gold, said, 3), [macro_f1], n_resamples=10_000, seed=0)
    assert interval == pytest.approx(np.quantile(values, [0.025, 0.975]), abs=0.005)
    assert interval != pytest.approx(np.quantile(values, [0.05, 0.95]), abs=0.005)


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    rng = np.random.default_rng(3)
    gold, said = rng.choice(list("abc"), 80).tolist(), rng.choice(list("abc"), 80).tolist()
    first, again, other = (evaluate(joined(gold, said), seed=seed) for seed in (7, 7, 8))
    assert first == again
    assert (first.macro_f1_low, first.kappa_low) != (other.macro_f1_low, other.kappa_low)
    assert dataclasses.replace(
        first, macro_f1_low=0, macro_f1_high=0, kappa_low=0, kappa_high=0
    ) == dataclasses.replace(other, macro_f1_low=0, macro_f1_high=0, kappa_low=0, kappa_high=0)


def test_evaluating_leaves_global_randomness_alone():
    np.random.seed(5)  # noqa: NPY002  # the global state is what this is about
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    evaluate(HAND)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_no_resamples_means_no_bootstrap_intervals():
    got = evaluate(HAND, n_resamples=0)
    assert (got.macro_f1_low, got.macro_f1_high, got.kappa_low, got.kappa_high) == (None,) * 4
    assert got.macro_f1 == evaluate(HAND).macro_f1


def test_more_cells_than_fit_in_one_chunk_are_drawn_in_several():
    codes = np.arange(9000)  # 9000 different cells: 444 resamples a chunk
    (interval,) = bootstrap_intervals(Cells.of(codes, codes, 9000), [macro_f1], n_resamples=450, seed=0)
    assert interval == (1.0, 1.0)


# --- properties ---

classes = st.sampled_from(["a", "b", "c", "d"])
rows = st.lists(st.tuples(classes, st.none() | classes), min_size=1, max_size=60)


@given(rows)
@settings(max_examples=60)
def test_counts_and_shares_are_consistent(pairs):
    one = joined(*zip(*pairs, strict=True))
    got = evaluate(one, n_resamples=50)
    counts = confusion(one).counts
    assert sum(map(sum, counts)) == got.n_labeled
    assert sum(row[i] for i, row in enumerate(counts)) == got.n_correct
    assert got.n_gold == got.n_labeled + got.n_absent + got.n_rejected + got.n_empty == len(pairs)
    assert got.coverage * got.n_gold == pytest.approx(got.n_labeled)
    assert got.accuracy_all == pytest.approx(got.coverage * (got.accuracy or 0))
    assert sum(per_class(one)["n_gold"].to_pylist()) == got.n_gold
    assert not [value for value in dataclasses.astuple(got) if isinstance(value, float) and not math.isfinite(value)]
    if got.accuracy is not None:
        assert 0 <= got.accuracy_low <= got.accuracy <= got.accuracy_high <= 1


@given(rows.filter(lambda pairs: any(said for _, said in pairs)))
@settings(max_examples=60)
def test_figures_equal_those_of_scikit_learn(pairs):
    got = evaluate(joined(*zip(*pairs, strict=True)), n_resamples=0)
    gold, said = zip(*[pair for pair in pairs if pair[1]], strict=True)
    assert got.accuracy == pytest.approx(sk.accuracy_score(gold, said))
    labels = sorted({*gold, *said})
    arguments = {"labels": labels, "average": "macro", "zero_division": 0}
    assert got.macro_precision == pytest.approx(sk.precision_score(gold, said, **arguments))
    assert got.macro_recall == pytest.approx(sk.recall_score(gold, said, **arguments))
    assert got.macro_f1 == pytest.approx(sk.f1_score(gold, said, **arguments))
    if len(labels) == 1:
        assert got.kappa is None
    else:
        assert got.kappa == pytest.approx(sk.cohen_kappa_score(gold, said), abs=1e-12)


@given(st.lists(classes, min_size=1, max_size=40))
@settings(max_examples=40)
def test_perfect_predictions_have_perfect_figures(gold):
    got = evaluate(joined(gold, gold), n_resamples=20)
    assert (got.coverage, got.accuracy, got.accuracy_all, got.macro_f1, got.accuracy_high) == (1, 1, 1, 1, 1)
    assert got.kappa == (1.0 if len(set(gold)) > 1 else None)
    assert got.baseline_accuracy <= got.accuracy


@given(rows, st.randoms(use_true_random=False))
@settings(max_examples=30)
def test_the_order_of_rows_changes_nothing(pairs, random):
    n = len(pairs)
    gold = pa.table({"id": range(n), "t": pa.array([g for g, _ in pairs])})
    said = pa.table({"id": range(n), "t": pa.array([s for _, s in pairs], pa.string()), "llm_cost_usd": [0.1] * n})
    ours, theirs = random.sample(range(n), n), random.sample(range(n), n)
    straight = compare(gold, {"c": said}, key="id", targets=["t"], n_resamples=20)
    shuffled = compare(gold.take(ours), {"c": said.take(theirs)}, key="id", targets=["t"], n_resamples=20)
    assert straight.evaluations == shuffled.evaluations
    assert straight.confusions == shuffled.confusions
    assert straight.per_class.equals(shuffled.per_class)


finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=30))
@settings(max_examples=60)
def test_numeric_figures_keep_their_bounds(pairs):
    got = evaluate(joined(*zip(*pairs, strict=True), Target("t", kind="numeric")))
    assert 0 <= got.mae <= got.rmse * (1 + 1e-9)
    for r in (got.pearson, got.spearman):
        assert r is None or -1 <= r <= 1


@given(st.lists(st.integers(1, 5), min_size=2, max_size=30).filter(lambda values: len(set(values)) > 1))
@settings(max_examples=40)
def test_any_increasing_scale_has_the_same_order(values):
    got = evaluate(joined(values, [v**3 for v in values], Target("t", kind="numeric")))
    assert got.spearman == pytest.approx(1)
    assert got.pearson <= 1


def test_compare_keeps_targets_and_candidates_in_order():
    gold = pa.table({"id": [1, 2], "x": ["a", "b"], "y": [0.5, 1.0]})
    got = compare(gold, {"second": gold, "first": gold}, key="id", targets=["x", Target("y", kind="numeric")])
    assert [(e.target, e.candidate) for e in got.evaluations] == [
        ("x", "second"),
        ("x", "first"),
        ("y", "second"),
        ("y", "first"),
    ]
    assert [(c.target, c.candidate) for c in got.confusions] == [("x", "second"), ("x", "first")]
    assert set(got.per_class["target"].to_pylist()) == {"x"}
    assert [(a.a, a.b, a.target) for a in got.agreements] == [("second", "first", "x")]


def test_compare_refuses_to_compare_nothing():
    gold = pa.table({"id": [1], "x": ["a"]})
    for candidates, targets in (({}, ["x"]), ({"c": gold}, [])):
        with pytest.raises(ConfigError, match="Nothing to evaluate"):
            compare(gold, candidates, key="id", targets=targets)


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ({"id": [7, 8], "t": ["a", "b"]}, "n_absent"),
        ({"id": [1, 2], "t": ["a", "b"], "llm_outcome": ["invalid", "invalid"]}, "n_rejected"),
        ({"id": [1, 2], "t": pa.nulls(2)}, "n_empty"),
    ],
)
def test_a_candidate_without_one_label_for_gold_is_measured_all_the_same(candidate, reason):
    gold = pa.table({"id": [1, 2], "t": ["a", "b"]})
    (got,) = compare(gold, {"c": pa.table(candidate)}, key="id", targets=["t"]).evaluations
    assert (got.n_gold, got.coverage, got.accuracy, got.accuracy_all) == (2, 0.0, None, 0.0)
    assert getattr(got, reason) == 2
