"""Accepted against current: exact p-values by hand, the counted rows, and the decision that a version is worse."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics import (
    REGRESSION_SCHEMA,
    Target,
    join,
    regression_between,
    regressions_to_arrow,
)


def joined(said, *, gold=None, target="t", version="v1", ids=None):
    gold = gold if gold is not None else ["x"] * len(said)
    truth = pa.table({"id": pa.array(range(len(gold)), pa.int64()), "t": pa.array(gold)})
    ids = range(len(said)) if ids is None else ids
    table = pa.table(
        {
            "id": pa.array(ids, pa.int64()),
            "t": pa.array(said, truth["t"].type),
            "llm_prompt_version": pa.array([version] * len(said), pa.string()),
        }
    )
    return join(truth, table, key="id", target=target, candidate_name="c")


def versions(fixed, broken, same_right=0, same_wrong=0):
    """Return two versions with these counts; gold is "x", wrong is "y"."""
    before = "y" * fixed + "x" * broken + "x" * same_right + "y" * same_wrong
    after = "x" * fixed + "y" * broken + "x" * same_right + "y" * same_wrong
    return joined(list(before)), joined(list(after), version="v2")


def at_least(k, n):
    """Return the chance of k or more heads in n tosses."""
    return sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n


def test_the_p_value_is_the_exact_one_sided_mcnemar():
    got = regression_between(*versions(fixed=2, broken=9, same_right=20, same_wrong=3))
    assert (got.n_both, got.n_fixed, got.n_broken) == (34, 2, 9)
    assert got.p_worse == pytest.approx(at_least(9, 11))
    assert (got.accepted, got.current) == (29 / 34, 22 / 34)
    assert got.change == pytest.approx(-7 / 34)
    # In a two-sided test, 2 of 11 may be chance, so zero is within the interval.
    assert got.change_low < got.change < 0 < got.change_high < 0.01
    assert (got.accepted_versions, got.current_versions) == (("v1",), ("v2",))


def test_better_is_not_worse_and_the_same_is_neither():
    assert regression_between(*versions(fixed=9, broken=2)).p_worse == pytest.approx(at_least(2, 11))
    same = regression_between(*versions(fixed=0, broken=0, same_right=5, same_wrong=5))
    assert (same.p_worse, same.change) == (1.0, 0)
    # Ten unchanged rows do not prove that a change is impossible; the bootstrap's interval was a point.
    assert same.change_low == pytest.approx(-same.change_high)
    assert 0.1 < same.change_high < 0.4


@pytest.mark.simulation
@pytest.mark.parametrize(("rows", "broken"), [(20, 0.12), (100, 0.02), (300, 0.1)])
def test_the_interval_of_a_change_covers_where_few_rows_change(rows, broken):
    """Cover rare changes: the bootstrap missed in 13 % with 20 rows, if 12 % change, nearly all for the worse."""
    random, missed = np.random.default_rng(5), 0
    for _ in range(150):
        after = np.where(random.random(rows) < broken, "y", "x").tolist()
        got = regression_between(joined(["x"] * rows, gold=["x"] * rows), joined(after, gold=["x"] * rows))
        missed += not got.change_low <= -broken <= got.change_high
    assert missed <= 150 * 0.07 + 2 * (150 * 0.07) ** 0.5


def test_failing_on_rows_is_being_wrong_on_them():
    accepted, current = joined(["x"] * 8), joined([None] * 6 + ["x"] * 2)
    got = regression_between(accepted, current)
    assert (got.n_both, got.n_broken, got.current) == (8, 6, 0.25)
    assert got.p_worse == pytest.approx(1 / 64)


def test_rows_that_one_version_was_not_asked_about_do_not_count():
    gold = ["x"] * 6
    accepted = joined(["y", "x", "x"], gold=gold, ids=[0, 1, 2])
    current = joined(["x", "x", "y"], gold=gold, ids=[1, 2, 3])
    got = regression_between(accepted, current)
    assert (got.n_both, got.n_fixed, got.n_broken) == (2, 0, 0)
    nothing = regression_between(joined([], gold=gold), current)
    assert (nothing.n_both, nothing.p_worse, nothing.accepted, nothing.change_low) == (0, None, None, None)


def test_rows_of_one_request_are_one_difference():
    gold = ["x"] * 12
    truth = pa.table({"id": range(12), "t": gold})

    def version(said, requests):
        table = pa.table({"id": range(12), "t": said, "llm_request_id": requests})
        return join(truth, table, key="id", target="t", candidate_name="c")

    requests = [f"r{at // 4}" for at in range(12)]
    got = regression_between(version(gold, requests), version(["y"] * 8 + ["x"] * 4, requests))
    assert (got.n_both, got.n_broken, got.n_units, got.p_worse) == (12, 8, 3, 0.25)  # two of three answers, not 8 rows


def test_rows_of_a_sample_count_by_what_they_stand_for():
    truth = pa.table({"id": range(4), "t": ["x"] * 4, "sample_weight": [10.0, 1.0, 1.0, 1.0]})

    def version(said):
        return join(truth, pa.table({"id": range(4), "t": list(said)}), key="id", target="t", candidate_name="c")

    got = regression_between(version("xyyy"), version("yxxx"))
    assert (got.accepted, got.current) == (pytest.approx(10 / 13), pytest.approx(3 / 13))
    assert (got.n_fixed, got.n_broken) == (3, 1)
    assert got.p_worse == pytest.approx(0.5, abs=0.03)  # the heavy row's sign decides


def test_numbers_are_worse_where_their_errors_grow():
    target = Target("t", kind="numeric")
    gold = [float(i) for i in range(30)]
    near, far = [x + 0.1 for x in gold], [x + 1.0 for x in gold]
    got = regression_between(joined(near, gold=gold, target=target), joined(far, gold=gold, target=target))
    assert (got.accepted, got.current) == (pytest.approx(0.1), pytest.approx(1.0))
    assert (got.n_fixed, got.n_broken, got.change) == (0, 30, pytest.approx(0.9))
    assert got.p_worse == pytest.approx(2**-30)
    back = regression_between(joined(far, gold=gold, target=target), joined(near, gold=gold, target=target))
    assert back.p_worse == 1.0


def compared(before, after):
    target, gold = Target("t", kind="numeric"), [0.0] * len(before)
    both = (joined(list(said), gold=gold, target=target) for said in (before, after))
    return regression_between(*both)


@pytest.mark.parametrize("unit", [1e-150, 1.0, 1e150])
def test_the_interval_of_a_change_of_numbers_does_not_depend_on_their_unit(unit):
    random = np.random.default_rng(3)
    got = compared(random.standard_normal(50) * unit, random.standard_normal(50) * unit * 2)
    assert got.change_interval == "Student, corrected for skewness (Hall)"
    assert (got.change_low / unit, got.change_high / unit) == pytest.approx((0.49, 1.36), abs=0.1)
    assert got.change_low < got.change < got.change_high


@pytest.mark.simulation
@pytest.mark.parametrize("rows", [1, 2, 10, 30])
@pytest.mark.parametrize("error", ["normal", "skewed", "mostly the same"])
def test_equal_versions_are_seldom_called_worse_at_any_number_of_rows(error, rows):
    random = np.random.default_rng(7)
    draw = {
        "normal": lambda: random.standard_normal((2, rows)),
        "skewed": lambda: random.lognormal(0, 1.5, (2, rows)),
        "mostly the same": lambda: random.standard_normal((2, rows)) * (random.random(rows) < 0.2),
    }[error]
    found = [compared(*draw()) for _ in range(200)]
    # The level is 5 %, and 200 draws may show 9 %. The bootstrap had .48 with one row, .23 with two, .08 with ten.
    assert sum(one.p_worse < 0.05 for one in found) / len(found) < 0.09


@pytest.mark.simulation
def test_a_shift_of_the_errors_is_found():
    random = np.random.default_rng(7)
    found = [compared(random.standard_normal(100), random.standard_normal(100) * 1.6) for _ in range(50)]
    assert sum(one.p_worse < 0.05 for one in found) > 40


def test_other_gold_is_refused():
    with pytest.raises(InputError, match="different gold rows"):
        regression_between(joined(["x"]), joined(["x"], gold=["y"]))


def test_regressions_become_rows():
    table = regressions_to_arrow([regression_between(*versions(1, 2))])
    assert table.schema == REGRESSION_SCHEMA
    assert table.to_pylist()[0]["current_versions"] == "v2"
    assert regressions_to_arrow([]).schema == REGRESSION_SCHEMA


label = st.sampled_from(["x", "y", None])


@pytest.mark.slow
@given(st.lists(st.tuples(label, label), min_size=1, max_size=40))
@settings(max_examples=60)
def test_for_any_labels_changes_add_up_and_turning_them_around_turns_the_sign(rows):
    before, after = ([one[i] for one in rows] for i in (0, 1))
    got = regression_between(joined(before), joined(after))
    turned = regression_between(joined(after), joined(before))
    assert got.change == pytest.approx((got.n_fixed - got.n_broken) / len(rows))
    assert (got.n_fixed, got.n_broken, got.change) == (turned.n_broken, turned.n_fixed, -turned.change)
    assert got.change_low - 1e-9 <= got.change_high
    assert 0 < got.p_worse <= 1
    assert got == regression_between(joined(before), joined(after))
