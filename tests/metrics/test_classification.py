"""Every figure against an independent computation: by hand, by formula, by scikit-learn, by drawing rows."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics import Target, compare, confusion, evaluate, join, per_class
from dagster_llm_batch.metrics.clusters import Units
from dagster_llm_batch.metrics.crosstab import Crosstab


def joined(gold, predicted, target="t", **columns):
    """Join rows in order; None in `predicted` is a row without a value."""
    kind = pa.array([*gold, *predicted]).type
    keys = range(len(gold))
    truth = pa.table({"id": pa.array(keys, pa.int64()), "t": pa.array(gold, kind)})
    candidate = pa.table({"id": pa.array(keys, pa.int64()), "t": pa.array(predicted, kind), **columns})
    return join(truth, candidate, key="id", target=target, candidate_name="c")


# By hand. Gold a: 2 right, 1 labeled b, 1 unlabeled. Gold b: 1 right, 1 labeled c. Gold never has c.
#             label a  b  c
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


def test_accuracy_has_the_exact_interval_of_a_binomial():
    got = evaluate(HAND)
    for right, n, low, high in ((3, 5, got.accuracy_low, got.accuracy_high), (3, 6, got.accuracy_all_low, None)):
        expected = scipy.stats.binomtest(right, n).proportion_ci(0.95, method="exact")
        assert low == pytest.approx(expected.low)
        assert high is None or high == pytest.approx(expected.high)
    assert (got.accuracy_interval, got.accuracy_all_interval) == ("exact (Clopper-Pearson)",) * 2
    assert got.n_units == 5


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
    from sklearn import metrics as sk

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


def test_one_row_has_a_point_and_says_next_to_nothing_of_the_others():
    got = evaluate(joined(["a"], ["a"]))
    assert (got.accuracy, got.accuracy_high, got.macro_f1) == (1.0, 1.0, 1.0)
    assert got.accuracy_low == pytest.approx(0.025)
    assert got.macro_f1_interval == "none: all rows are of one class"
    assert (got.macro_f1_low, got.macro_f1_high, got.kappa, got.kappa_low) == (None,) * 4


def test_one_class_has_no_kappa():
    got = evaluate(joined(["a"] * 5, ["a"] * 5))
    assert (got.accuracy, got.kappa, got.kappa_low, got.kappa_high) == (1.0, None, None, None)


# --- intervals ---


def crosstab_of(gold, said, n_classes, cluster=None):
    ids = pa.nulls(len(gold)) if cluster is None else pa.array(cluster)
    return Crosstab.of(np.array(gold), np.array(said), n_classes, Units.of(pa.repeat(1, len(gold)), ids))


def test_figures_of_a_crosstab_equal_those_of_scikit_learn():
    from sklearn import metrics as sk

    rng = np.random.default_rng(1)
    for _ in range(10):
        gold, said = rng.integers(0, 4, 40), rng.integers(0, 4, 40)
        table = crosstab_of(gold, said, 4)
        assert table.macro_f1()[0] == pytest.approx(sk.f1_score(gold, said, average="macro"))
        for weights in (None, "linear", "quadratic"):
            expected = sk.cohen_kappa_score(gold, said, labels=range(4), weights=weights)
            assert table.kappa(values=range(4), weights=weights)[0] == pytest.approx(expected)


def test_intervals_of_many_rows_agree_with_a_bootstrap_that_draws_rows():
    rng = np.random.default_rng(2)
    n, many = 2_000, 4_000
    gold = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    said = np.where(rng.random(n) < 0.7, gold, rng.integers(0, 3, n))
    tables = rng.multinomial(n, np.bincount(gold * 3 + said, minlength=9) / n, size=many).reshape(many, 3, 3)
    diagonal, of_gold, of_said = tables.trace(axis1=1, axis2=2), tables.sum(axis=2), tables.sum(axis=1)
    f1 = (2 * np.einsum("rii->ri", tables) / (of_gold + of_said)).mean(axis=1)
    by_chance = (of_gold * of_said).sum(axis=1) / n**2
    table = crosstab_of(gold, said, 3)
    for drawn, (_, interval) in ((f1, table.macro_f1()), ((diagonal / n - by_chance) / (1 - by_chance), table.kappa())):
        assert interval.ends == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.003)
        assert interval.ends != pytest.approx(np.quantile(drawn, [0.05, 0.95]), abs=0.003)


@pytest.mark.parametrize("wrong", [0, 1])
def test_few_errors_leave_an_interval_of_some_width(wrong):
    gold = ["a", "b", "c"] * 17
    got = evaluate(joined(gold, ["b"] * wrong + gold[wrong:]))
    for low, high in ((got.kappa_low, got.kappa_high), (got.macro_f1_low, got.macro_f1_high)):
        # for a true error rate of 5 %, a quarter of the samples of 51 rows show at most one error
        assert low < 0.94
        assert high >= 1 - wrong / 51


def test_a_class_of_few_rows_leaves_macro_f1_and_kappa_without_an_interval_and_says_so():
    gold = ["a"] * 96 + ["b"] * 4
    got = evaluate(joined(gold, gold))
    assert (got.macro_f1_low, got.kappa_low, got.kappa_high) == (None, None, None)
    assert got.macro_f1_interval == "none: a class has 4 gold rows, needs 5"
    assert got.kappa_interval == "none: too few rows of the rarer classes"
    enough = evaluate(joined(gold + ["b"] * 6, gold + ["b"] * 6))
    assert None not in (enough.macro_f1_low, enough.kappa_low)


def test_rows_of_one_request_are_one_row_of_evidence():
    ten = [f"r{n // 10}" for n in range(100)]
    gold, said = ["a", "b"] * 50, ["a", "b"] * 40 + ["b", "a"] * 10
    alone = evaluate(joined(gold, said))
    together = evaluate(joined(gold, said, llm_request_id=pa.array(ten)))
    assert (together.accuracy, together.kappa) == (alone.accuracy, alone.kappa)
    assert (alone.n_units, together.n_units) == (100, 10)
    # all rows of a request are right or wrong together: 8 of 10
    low, high = scipy.stats.beta.ppf([0.025, 0.975], [8, 9], [3, 2])
    assert (together.accuracy_low, together.accuracy_high) == pytest.approx((low, high), abs=1e-6)
    for figure in ("accuracy_all", "kappa", "macro_f1"):
        widths = [getattr(got, f"{figure}_high") - getattr(got, f"{figure}_low") for got in (alone, together)]
        assert widths[1] > 2 * widths[0]
        assert getattr(together, f"{figure}_interval") == "effective rows (Korn-Graubard)"


def test_rows_of_a_request_without_a_label_are_one_unit_of_the_accuracy_over_all_rows():
    ids = pa.array([None] * 50 + ["r"] * 50)
    outcomes = pa.array(["succeeded"] * 50 + ["invalid"] * 50)
    columns = {"llm_outcome": outcomes, "llm_request_id": ids}
    got = evaluate(joined(["a"] * 100, ["a"] * 100, **columns))
    assert (got.accuracy_all, got.n_units) == (0.5, 50)
    assert got.accuracy_all_high - got.accuracy_all_low > 0.8  # half of the rows are one reply
    plain = evaluate(joined(["a"] * 100, ["a"] * 100, llm_outcome=outcomes))
    assert plain.accuracy_all_high - plain.accuracy_all_low == pytest.approx(0.2, abs=0.01)


def test_classes_have_intervals_by_the_unit():
    [a, b] = per_class(joined(["a"] * 20 + ["b"] * 10, ["a"] * 18 + ["b"] * 12)).to_pylist()
    expected = scipy.stats.binomtest(18, 20).proportion_ci(0.95, method="exact")
    assert (a["recall_low"], a["recall_high"]) == pytest.approx((expected.low, expected.high))
    assert (a["precision_low"], a["precision_high"]) == pytest.approx((0.025 ** (1 / 18), 1.0))
    assert a["f1_low"] < a["f1"] < a["f1_high"] < 1
    assert (b["precision_interval"], b["recall_interval"]) == ("exact (Clopper-Pearson)",) * 2
    never = per_class(HAND).to_pylist()[2]
    assert (never["recall"], never["recall_low"], never["recall_interval"]) == (None, None, "none: no rows")


def test_evaluating_leaves_global_randomness_alone():
    np.random.seed(5)  # noqa: NPY002  # the global state is what this is about
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    evaluate(HAND)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


# --- properties ---

classes = st.sampled_from(["a", "b", "c", "d"])
rows = st.lists(st.tuples(classes, st.none() | classes), min_size=1, max_size=60)


@given(rows)
@settings(max_examples=60)
def test_counts_and_shares_are_consistent(pairs):
    one = joined(*zip(*pairs, strict=True))
    got = evaluate(one)
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
    from sklearn import metrics as sk

    got = evaluate(joined(*zip(*pairs, strict=True)))
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
    got = evaluate(joined(gold, gold))
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
    straight = compare(gold, {"c": said}, key="id", targets=["t"])
    shuffled = compare(gold.take(ours), {"c": said.take(theirs)}, key="id", targets=["t"])
    assert straight.evaluations == shuffled.evaluations
    assert straight.confusions == shuffled.confusions
    assert straight.per_class.equals(shuffled.per_class)


finite = st.floats(-1e6, 1e6, allow_subnormal=False)


@pytest.mark.simulation
@pytest.mark.parametrize("rows", [30, 100])
@pytest.mark.parametrize("together", [1, 5])
def test_intervals_of_errors_cover_by_the_unit(rows, together):
    """Student's interval of squared errors misses in 10 % at 30 rows. By rows, with five alike, it misses in 40 %."""
    random, draws, missed, given_of = np.random.default_rng(2), 300, Counter(), Counter()
    target, truth = Target("t", kind="numeric"), {"mae": math.sqrt(2 / math.pi), "rmse": 1.0}
    ids = np.repeat(np.arange(rows), together).astype(str)
    for _ in range(draws):
        error = np.repeat(random.standard_normal(rows), together)
        got = evaluate(joined(np.zeros(len(error)), error, target, llm_request_id=ids))
        for figure, value in truth.items():
            low, high = getattr(got, f"{figure}_low"), getattr(got, f"{figure}_high")
            assert low is None or low < getattr(got, figure) < high
            missed[figure] += low is not None and not low <= value <= high
            given_of[figure] += low is not None
    assert got.mae_interval == "Student, corrected for skewness (Hall)"
    # the number of units alone decides whether an interval is given
    assert given_of == {"mae": draws, **({"rmse": draws} if rows >= 100 else {"rmse": 0})}
    # The guarantee is 7 %; so many draws have this margin.
    assert max(missed.values(), default=0) <= draws * 0.07 + 2 * (draws * 0.07) ** 0.5


@pytest.mark.simulation
@pytest.mark.parametrize(("rows", "figure"), [(30, "mae"), (100, "mae"), (100, "rmse"), (300, "rmse")])
@pytest.mark.parametrize("shape", ["lognormal", "student 3"])
def test_intervals_of_skewed_errors_are_given_and_hold(rows, figure, shape):
    """Compare with earlier rmse intervals: of 100 rows, given in a tenth of the samples, missed in 57 to 64 %."""
    random, draws, missed = np.random.default_rng(4), 400, 0
    truth = {
        ("lognormal", "mae"): math.exp(0.5),
        ("lognormal", "rmse"): math.e,
        ("student 3", "mae"): 2 * math.sqrt(3) / math.pi,
        ("student 3", "rmse"): math.sqrt(3),
    }[shape, figure]
    for _ in range(draws):
        error = np.exp(random.standard_normal(rows)) if shape == "lognormal" else random.standard_t(3, rows)
        got = evaluate(joined(np.zeros(rows), error, Target("t", kind="numeric")))
        missed += not getattr(got, f"{figure}_low") <= truth <= getattr(got, f"{figure}_high")
    assert missed <= draws * 0.07 + 2 * (draws * 0.07) ** 0.5


def test_errors_that_are_few_or_alike_have_no_interval():
    target = Target("t", kind="numeric")
    few = evaluate(joined([0.0] * 29, [float(at) for at in range(29)], target))
    assert (few.mae_low, few.mae_interval) == (None, "none: below 30 independent units")
    # One error is larger than all others together: another such row would be another mean.
    skewed = evaluate(joined([0.0] * 60, [1.0] * 59 + [100.0], target))
    assert skewed.mae_high > 161 / 61
    assert (skewed.rmse_low, skewed.rmse_interval) == (None, "none: below 100 independent units")
    alike = evaluate(joined([0.0] * 30, [1.0] * 30, target))
    assert (alike.mae, alike.mae_low, alike.mae_interval) == (1.0, None, "none: all errors are alike")


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=30))
@settings(max_examples=60)
def test_numeric_figures_keep_their_bounds(pairs):
    got = evaluate(joined(*zip(*pairs, strict=True), Target("t", kind="numeric")))
    assert 0 <= got.mae <= got.rmse * (1 + 1e-9)
    for low, high in ((got.mae_low, got.mae_high), (got.rmse_low, got.rmse_high)):
        assert low is None or 0 <= low < high
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
