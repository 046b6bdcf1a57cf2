"""Shifts of label shares: sizes and p-values by hand, the definition of drift, and the online detector."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics import (
    DRIFT_SCHEMA,
    SHARES_SCHEMA,
    adwin_changes,
    class_counts,
    drift_between,
    drifts_to_arrow,
    shares_to_arrow,
)
from dagster_llm_batch.metrics.drift import recent_partitions
from dagster_llm_batch.metrics.sequential_tests import significance_level

CALM = [{"a": 50, "b": 50}, {"a": 57, "b": 43}, {"a": 43, "b": 57}] * 10
"""Earlier partitions with chance variation only."""


def compared(here, reference, *, max_psi=0.25, level=0.01, earlier=CALM, lasts=3, follows=True, visible=False):
    """Compare a partition, the last of `lasts` in a row with the same classes."""
    return drift_between(
        here,
        reference if isinstance(reference, list) else [reference],
        partition="tue",
        candidate="c",
        target="t",
        against="mon",
        max_psi=max_psi,
        level=level,
        earlier=[*earlier, *[here] * (lasts - 1)],
        follows=follows,
        with_visible_change=visible,
    )


def test_figures_are_those_of_their_formulas():
    got = compared({"a": 70, "b": 30}, {"a": 50, "b": 50})
    p, q = [70.5 / 101, 30.5 / 101], [0.5, 0.5]
    assert got.psi == pytest.approx(sum((x - y) * math.log(x / y) for x, y in zip(p, q, strict=True)))
    m = [(x + y) / 2 for x, y in zip([0.7, 0.3], q, strict=True)]
    divergence = sum(
        side * math.log2(side / mid) / 2 for shares in ([0.7, 0.3], q) for side, mid in zip(shares, m, strict=True)
    )
    assert got.js_distance == pytest.approx(math.sqrt(divergence))
    expected = [60, 40]
    chi2 = sum((n - e) ** 2 / e for row in ([70, 30], [50, 50]) for n, e in zip(row, expected, strict=True))
    assert got.chi2 == pytest.approx(chi2)
    assert got.p_chance == pytest.approx(math.erfc(math.sqrt(chi2 / 2)))  # one degree of freedom
    assert (got.most_changed, got.change) == ("a", pytest.approx(0.2))
    assert (got.n, got.n_reference, got.reference) == (100, 100, "mon")


def test_drift_is_large_and_not_chance():
    large_and_sure = compared({"a": 900, "b": 100}, {"a": 500, "b": 500})
    large_but_few = compared({"a": 1}, {"a": 500, "b": 500})
    sure_but_small = compared({"a": 54_000, "b": 46_000}, {"a": 50_000, "b": 50_000})
    assert (large_and_sure.psi > 0.25, large_and_sure.p_value < 0.01, large_and_sure.drifted) == (True, True, True)
    assert (large_but_few.psi > 0.25, large_but_few.p_value < 0.01, large_but_few.drifted) == (True, False, False)
    assert (sure_but_small.psi > 0.25, sure_but_small.p_chance < 0.01, sure_but_small.drifted) == (False, True, False)
    assert compared({"a": 900, "b": 100}, {"a": 500, "b": 500}, max_psi=9).drifted is False


def test_a_class_that_is_new_or_gone_is_a_shift_of_finite_size():
    new = compared({"a": 50, "b": 50}, {"a": 100}, earlier=[{"a": 100}] * 30)
    gone = compared({"a": 100}, {"a": 50, "b": 50}, earlier=[{"a": 50, "b": 50}] * 30)
    assert new.drifted
    assert gone.drifted
    assert new.psi == pytest.approx(gone.psi)
    assert compared({"a": 5}, {"b": 5}).js_distance == pytest.approx(1)


@pytest.mark.slow
def test_classes_of_few_rows_are_tested_too():
    # Half of the classes are gone, and every class has fewer than five expected rows: that was once "too few rows".
    ten, fifty = (
        compared(
            dict.fromkeys(range(n // 2), 8),
            dict.fromkeys(range(n), 28),
            earlier=[{at: 3 + (at + day) % 3 for at in range(n)} for day in range(21)],
        )
        for n in (10, 50)
    )
    assert (ten.p_chance < 0.001, fifty.p_chance < 0.0001) == (True, True)
    assert (ten.drifted, fifty.drifted) == (True, True)
    assert compared({"a": 30}, {"a": 20}).p_chance is None  # with one class, the shares cannot shift


def test_by_chance_means_the_share_of_permutations():
    # Of the 4 labels, 2 are "a": of 6 ways to choose a partition of two, 2 are as far apart as these.
    assert compared({"a": 2}, {"b": 2}).p_chance == pytest.approx(2 / 6, abs=0.03)


def test_a_partition_is_held_against_what_earlier_ones_were_off():
    here, reference = {"a": 80, "b": 20}, {"a": 350, "b": 350}
    wild = [{"a": 90, "b": 10}, {"a": 10, "b": 90}] * 15
    assert compared(here, reference).drifted
    usual = compared(here, reference, earlier=wild)
    assert (usual.p_chance < 1e-6, usual.p_variation > 0.01, usual.drifted) == (True, True, False)


def test_with_too_few_partitions_nothing_is_decided():
    here, reference = {"a": 80, "b": 20}, {"a": 350, "b": 350}
    few = compared(here, reference, earlier=[*CALM[:6], {}], level=0.0005)
    assert (few.n_earlier, few.n_recent, few.p_variation, few.p_value) == (8, None, None, None)
    assert (few.drifted, few.visible_change) == (False, None)
    assert compared(here, reference, earlier=CALM[:12], level=0.001).n_recent == 5


@pytest.mark.parametrize(("n_days", "level", "recent"), [(5, 0.01, None), (16, 3e-4, 6), (59, 1e-4, 3), (93, 2e-5, 3)])
def test_as_many_partitions_are_compared_as_can_show_a_p_value_of_the_level(n_days, level, recent):
    assert recent_partitions(n_days, level) == recent
    if recent is not None:
        assert 2 / math.comb(n_days, recent) <= level


def test_the_p_value_is_the_share_of_all_picks_that_are_as_far_off():
    days = [{"a": 40 + 7 * (day % 4) + day, "b": 50} for day in range(9)]
    got = compared(days[-1], days[4], earlier=days[:-1], lasts=1, level=0.05)
    roots = np.sqrt([[day["a"], day["b"]] for day in days] / np.array([[day["a"] + day["b"]] for day in days]))

    def apart(picked):
        rest = [at for at in range(len(days)) if at not in picked]
        return ((roots[list(picked)].mean(axis=0) - roots[rest].mean(axis=0)) ** 2).sum()

    picks = list(itertools.combinations(range(len(days)), got.n_recent))
    own = apart(tuple(range(len(days) - got.n_recent, len(days))))
    exact = sum(apart(picked) >= own - 1e-12 for picked in picks) / len(picks)
    assert got.p_variation == pytest.approx(exact, abs=0.01)


def test_a_single_partition_is_no_drift_however_far_off_it_is_and_the_third_in_a_row_is():
    here, reference = {"a": 900, "b": 100}, {"a": 500, "b": 500}
    assert [compared(here, reference, lasts=lasts, level=0.0005).drifted for lasts in (1, 2, 3)] == [False, False, True]


def life(rng, shares_of_day, days, rows=300):
    """Return the days with an alarm; each day has separate shares."""
    counts = [dict(enumerate(rng.multinomial(rows, shares_of_day(day)).tolist())) for day in range(days)]
    return [
        day
        for day in range(1, days)
        if compared(
            counts[day],
            counts[max(0, day - 7) : day],
            level=significance_level(day),
            earlier=counts[max(0, day - 90) : day],
            lasts=1,
        ).drifted
    ]


@pytest.mark.simulation
@pytest.mark.parametrize("kind", ["one day in ten is wild", "Student's t", "Dirichlet"])
def test_independent_days_raise_few_alarms_however_wild_they_are(kind):
    """Allow few alarms: one wild day in ten once raised them in a fifth of the years, from a too short tail."""
    rng = np.random.default_rng(4)

    def shares(_day):
        if kind == "Dirichlet":
            return rng.dirichlet([12, 9, 6, 3])
        off = rng.normal(0, rng.random() < 0.1, 4) if kind == "one day in ten is wild" else 0.4 * rng.standard_t(3, 4)
        odds = np.array([0.4, 0.3, 0.2, 0.1]) * np.exp(off)
        return odds / odds.sum()

    # Of 20 years, 5 % are one; 5 or more have a chance of 0.3 %.
    assert sum(bool(life(rng, shares, 365)) for _ in range(20)) <= 4


@pytest.mark.simulation
def test_a_class_that_turns_is_seen_within_three_days():
    rng = np.random.default_rng(5)
    usual, turned = [0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4]
    assert all(set(life(rng, lambda day: usual if day < 60 else turned, 63)) & {60, 61, 62} for _ in range(30))


def test_a_day_of_more_rows_or_of_fewer_is_held_to_the_same_variation():
    rng = np.random.default_rng(7)
    # Each day has separate shares. Compared with the variation of 300 rows, a day of 3,000 rows was always drift.
    for rows in (30, 3_000):
        explained = []
        for _ in range(100):
            drawn = rng.multinomial([300] * 28 + [rows], rng.dirichlet([12, 9, 6, 3], 29))
            *earlier, here = (dict(enumerate(counts)) for counts in drawn.tolist())
            explained.append(compared(here, earlier[-7:], earlier=earlier, lasts=1).p_variation)
        assert sum(p < 0.01 for p in explained) <= 4


def test_what_days_before_were_off_by_is_nothing_new():
    rng = np.random.default_rng(9)
    calm = [dict(enumerate(counts)) for counts in rng.multinomial(300, [0.4, 0.3, 0.2, 0.1], 40).tolist()]
    wild, again = {0: 30, 1: 60, 2: 90, 3: 120}, {0: 33, 1: 62, 2: 88, 3: 117}
    first = compared(wild, calm[-7:], earlier=calm, level=0.0005)
    second = compared(again, calm[-7:], earlier=[*calm[:20], *[wild] * 3, *calm[20:]], level=0.0005)
    assert (first.drifted, second.drifted) == (True, False)


@pytest.mark.slow
def test_a_day_of_the_week_that_was_seen_before_is_no_drift():
    rng = np.random.default_rng(8)
    for weekend in ([6], [5, 6]):

        def shares(day, weekend=weekend):
            return [0.15, 0.2, 0.3, 0.35] if day % 7 in weekend else [0.4, 0.3, 0.2, 0.1]

        assert sum(bool(life(rng, shares, 56)) for _ in range(10)) <= 1


def test_a_fixed_reference_is_compared_with_though_days_have_long_been_otherwise():
    rng = np.random.default_rng(10)
    accepted = [dict(enumerate(counts)) for counts in rng.multinomial(300, [0.4, 0.3, 0.2, 0.1], 7).tolist()]
    since = [dict(enumerate(counts)) for counts in rng.multinomial(300, [0.1, 0.2, 0.3, 0.4], 40).tolist()]
    got = compared(since[-1], accepted, earlier=since[:-1], lasts=1, follows=False, level=0.0005)
    assert got.drifted
    assert not compared(since[-1], since[-8:-1], earlier=since[:-1], lasts=1, level=0.0005).drifted


def test_the_change_that_would_be_seen_grows_with_what_days_vary_by():
    rng = np.random.default_rng(11)

    def seen(strength):
        days = [
            dict(enumerate(rng.multinomial(300, rng.dirichlet(np.multiply([4, 3, 2, 1], strength))))) for _ in range(60)
        ]
        return compared(days[-1], days[-8:-1], earlier=days[:-1], lasts=1, level=0.0005, visible=True).visible_change

    steady, varied = seen(100), seen(5)
    assert 0.05 < steady < varied
    assert seen(0.1) is None or seen(0.1) > varied


@pytest.mark.parametrize(("here", "reference"), [({}, {"a": 3}), ({"a": 3}, {}), ({"a": 0}, {"a": 3})])
def test_without_labels_on_either_side_there_are_no_figures(here, reference):
    got = compared(here, reference)
    assert (got.psi, got.p_chance, got.js_distance, got.most_changed, got.drifted) == (None, None, None, None, False)


shares = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 500), min_size=1)


@given(shares, shares)
@settings(max_examples=100)
def test_for_any_counts_sizes_are_symmetric_bounded_and_zero_for_equals(here, reference):
    got, turned = compared(here, reference), compared(reference, here)
    if got.psi is None:
        assert not (sum(here.values()) and sum(reference.values()))
        return
    assert got.psi == pytest.approx(turned.psi)
    assert got.js_distance == pytest.approx(turned.js_distance)
    assert got.psi >= 0
    assert 0 <= got.js_distance <= 1 + 1e-9
    same = compared(here, here)
    assert (same.psi, same.js_distance, same.change) == (0, pytest.approx(0, abs=1e-6), 0)


class TestOnline:
    def test_nothing_changes_where_nothing_does(self):
        steady = {str(day): {"a": 300, "b": 100} for day in range(20)}
        assert set(adwin_changes(steady).values()) == {()}

    def test_a_sudden_change_is_seen_in_its_partition(self):
        days = {str(day): {"a": 300, "b": 100, "c": 100} for day in range(6)}
        days["6"] = {"a": 100, "b": 300, "c": 100}
        seen = adwin_changes(days)
        assert {day for day, classes in seen.items() if classes} == {"6"}
        assert set(seen["6"]) == {"a", "b"}

    @pytest.mark.slow
    def test_a_slow_change_is_seen_though_each_partition_is_like_the_one_before(self):
        days = {str(day): {"a": 500 + 10 * day, "b": 500 - 10 * day} for day in range(40)}
        pairs = list(days.values())
        found = [
            compared(pairs[at], pairs[at - 1], earlier=pairs[:at], lasts=1, level=significance_level(at))
            for at in range(1, 40)
        ]
        assert found[-1].p_value is not None
        assert not any(one.drifted for one in found)
        assert any(adwin_changes(days).values())

    def test_the_same_counts_give_the_same_answer(self):
        rng = random.Random(3)
        days = {str(day): {one: rng.randrange(300) for one in "abc"} for day in range(12)}
        assert adwin_changes(days) == adwin_changes(days)


def test_classes_are_counted_without_nulls_and_kept_as_they_are():
    assert class_counts(pa.chunked_array([["a", None], ["a", "b"]]), "t", "labels") == {"a": 2, "b": 1}
    assert class_counts(pa.chunked_array([[1, 2, 1]]), "t", "labels") == {1: 2, 2: 1}
    assert class_counts(pa.chunked_array([pa.array([], pa.string())]), "t", "labels") == {}


def test_rows_of_one_unit_are_one_label_of_each_of_their_classes():
    """Count units: rows that share a request were once counted as independent."""
    said = pa.chunked_array([["a", "a", "a"], ["b", "a", "a", None, None]])
    ids = pa.array(["x", "x", "x", "x", None, None, "y", None], pa.large_string())
    assert class_counts(said, "t", "labels", ids) == {"a": 3, "b": 1}
    nothing_said = pa.chunked_array([pa.nulls(2)])
    assert class_counts(nothing_said, "t", "labels", pa.array(["x", "x"])) == {}


def test_labels_that_share_an_answer_count_each_and_are_worth_fewer():
    labels, answers = pa.chunked_array([["a"] * 10 + ["b"] * 10]), pa.array(["x"] * 10 + [*"0123456789"])
    shared, alone = class_counts(labels, "t", "labels", None, answers), class_counts(labels, "t", "labels")
    assert shared == alone == {"a": 10, "b": 10}
    other = {"a": 4, "b": 16}
    drifts = [compared(here, other) for here in (shared, alone)]
    assert drifts[0].psi == drifts[1].psi
    assert drifts[0].n == drifts[1].n == 20
    # Twenty labels with the squares 10 ** 2 + 10 * 1 ** 2 are worth 3.6: two of each class.
    assert drifts[0].chi2 == compared({"a": 2, "b": 2}, other).chi2


@pytest.mark.simulation
def test_shared_answers_make_no_chance_of_their_own():
    """Days of thirty answers for ten rows each, of one distribution: at most 5 % seem to differ by chance."""
    rng = random.Random(1)
    found, as_if_alone = 0, 0
    for _ in range(400):
        days = [[rng.choice("abc") for _ in range(30)] for _ in range(2)]
        labels = [pa.chunked_array([[one for one in day for _ in range(10)]]) for day in days]
        answers = pa.array([str(number) for number in range(30) for _ in range(10)])
        here, there = (class_counts(values, "t", "labels", None, answers) for values in labels)
        found += compared(here, there, earlier=[], lasts=1).p_chance < 0.05
        here, there = (class_counts(values, "t", "labels") for values in labels)
        as_if_alone += compared(here, there, earlier=[], lasts=1).p_chance < 0.05
    assert found / 400 <= 0.08
    assert as_if_alone / 400 > 0.5


def test_what_has_no_classes_is_refused():
    with pytest.raises(ConfigError, match="at most 1000 are classes"):
        class_counts(pa.chunked_array([list(range(1001))]), "t", "labels")
    with pytest.raises(ConfigError, match="multi-valued"):
        class_counts(pa.chunked_array([[["a"]]]), "t", "labels")


def test_drifts_and_shares_become_rows():
    counts = {"mon": {"a": 3, "b": 1}, "tue": {"b": 2}, "wed": {}}
    table = shares_to_arrow("c", "t", counts)
    assert table.schema == SHARES_SCHEMA
    assert table.select(["partition", "class", "n", "share"]).to_pylist()[:3] == [
        {"partition": "mon", "class": "a", "n": 3, "share": 0.75},
        {"partition": "mon", "class": "b", "n": 1, "share": 0.25},
        {"partition": "tue", "class": "a", "n": 0, "share": 0.0},
    ]
    assert table["share"].to_pylist()[-1] is None
    rows = drifts_to_arrow([compared(counts["tue"], counts["mon"])])
    assert rows.schema == DRIFT_SCHEMA
    assert (rows["partition"][0].as_py(), rows["adwin_changed"][0].as_py()) == ("tue", None)
