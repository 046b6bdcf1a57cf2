"""Two candidates on the same gold: McNemar and kappa against formulas and hand-made counts."""

from __future__ import annotations

import math
from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.metrics import Target, agreement_between, join, pairwise_agreement


def joined(gold, predicted, name, target="t"):
    kind = pa.array([*gold, *predicted]).type
    table = {"id": pa.array(range(len(gold)), pa.int64())}
    truth = pa.table({**table, "t": pa.array(gold, kind)})
    return join(
        truth, pa.table({**table, "t": pa.array(predicted, kind)}), key="id", target=target, candidate_name=name
    )


def pair(both_right, only_a, only_b, both_wrong):
    """Return two candidates with these counts for gold of only "x"; wrong is "y"."""
    a = "x" * both_right + "x" * only_a + "y" * only_b + "y" * both_wrong
    b = "x" * both_right + "y" * only_a + "x" * only_b + "y" * both_wrong
    gold = ["x"] * len(a)
    return joined(gold, list(a), "a"), joined(gold, list(b), "b")


def test_few_discordant_rows_take_the_exact_binomial():
    got = agreement_between(*pair(50, 9, 2, 7))
    assert (got.n_both, got.n_both_correct, got.n_only_a_correct, got.n_only_b_correct, got.n_both_wrong) == (
        68,
        50,
        9,
        2,
        7,
    )
    assert got.accuracy_difference == pytest.approx(7 / 68)
    two_sided = 2 * sum(math.comb(11, k) for k in range(3)) / 2**11
    assert (got.n_units, got.p_value) == (68, pytest.approx(two_sided))


def test_many_discordant_rows_take_it_too():
    two_sided = 2 * sum(math.comb(42, k) for k in range(13)) / 2**42
    assert agreement_between(*pair(10, 30, 12, 3)).p_value == pytest.approx(two_sided)


def test_rows_that_one_of_the_candidates_answered_once_count_once():
    a, b = pair(0, 20, 0, 0)
    once = replace(a, cluster=pa.array([f"r{n // 5}" for n in range(20)], pa.large_string()))
    for one, other in ((once, b), (b, once)):
        got = agreement_between(one, other)
        assert (got.n_both, got.n_units) == (20, 4)
        assert got.p_value == pytest.approx(2 / 2**4)
    assert agreement_between(a, b).p_value == pytest.approx(2 / 2**20)


def test_equal_candidates_do_not_differ():
    assert agreement_between(*pair(5, 0, 0, 5)).p_value == 1
    even = agreement_between(*pair(5, 20, 20, 5))
    assert (even.p_value, even.accuracy_difference) == (1, 0)


def test_only_rows_that_both_labeled_count():
    gold = ["x", "y", "x", "y"]
    got = agreement_between(joined(gold, ["x", "y", None, "x"], "a"), joined(gold, ["x", None, "y", "x"], "b"))
    assert (got.n_both, got.n_same, got.n_both_correct, got.n_both_wrong) == (2, 2, 1, 1)


def test_candidates_without_a_common_row_have_no_figures():
    got = agreement_between(joined(["x", "y"], ["x", None], "a"), joined(["x", "y"], [None, "y"], "b"))
    assert (got.n_both, got.kappa, got.accuracy_difference, got.p_value) == (0, None, None, 1.0)


def test_wrong_in_different_ways_is_not_the_same_label():
    got = agreement_between(joined(["x", "x"], ["y", "x"], "a"), joined(["x", "x"], ["z", "x"], "b"))
    assert (got.n_both_wrong, got.n_same) == (1, 1)


def test_kappa_is_weighted_as_the_target_says():
    from sklearn.metrics import cohen_kappa_score

    target = Target("t", kappa_weights="quadratic")
    gold, a, b = [1, 2, 3, 4], [1, 2, 4, 4], [1, 3, 3, 1]
    got = agreement_between(joined(gold, a, "a", target), joined(gold, b, "b", target))
    assert got.kappa == pytest.approx(cohen_kappa_score(a, b, labels=[1, 2, 3, 4], weights="quadratic"))


def test_another_gold_or_target_is_refused():
    a = joined(["x", "y"], ["x", "y"], "a")
    with pytest.raises(InputError, match="'a' and 'b' were joined with different gold rows"):
        agreement_between(a, joined(["x", "x"], ["x", "y"], "b"))
    number = Target("t", kind="numeric")
    with pytest.raises(ConfigError, match="one categorical target"):
        agreement_between(joined([1], [1], "a", number), joined([1], [1], "b", number))
    with pytest.raises(ConfigError, match="one categorical target"):
        agreement_between(a, joined([1], [1], "b", number))


def test_pairs_are_all_of_one_target():
    three = [joined(["x"], ["x"], name) for name in "abc"]
    numbers = [joined([1], [1], name, Target("t", kind="numeric")) for name in "ab"]
    assert [(one.a, one.b) for one in pairwise_agreement([*three, *numbers])] == [("a", "b"), ("a", "c"), ("b", "c")]


label = st.none() | st.sampled_from("xyz")


@pytest.mark.slow
@given(st.lists(st.tuples(st.sampled_from("xyz"), label, label), min_size=1, max_size=50))
@settings(max_examples=60)
def test_counts_add_up_and_sides_are_exchangeable(rows):
    from sklearn.metrics import cohen_kappa_score

    gold, says_a, says_b = zip(*rows, strict=True)
    a, b = joined(gold, says_a, "a"), joined(gold, says_b, "b")
    got, turned = agreement_between(a, b), agreement_between(b, a)
    common = [row for row in rows if row[1] and row[2]]
    parts = (got.n_both_correct, got.n_only_a_correct, got.n_only_b_correct, got.n_both_wrong)
    assert sum(parts) == got.n_both == len(common)
    assert got.n_same == sum(x == y for _, x, y in common)
    assert (got.p_value, got.n_only_a_correct) == (pytest.approx(turned.p_value), turned.n_only_b_correct)
    assert 0 <= got.p_value <= 1
    if len({said for row in common for said in row[1:]}) > 1:
        expected = cohen_kappa_score([row[1] for row in common], [row[2] for row in common])
        assert got.kappa == pytest.approx(expected, abs=1e-12)
    else:
        assert got.kappa is None
