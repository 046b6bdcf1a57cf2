"""Shifts of label shares: sizes and p-values by hand, what counts as drift, and what the online detector sees."""

from __future__ import annotations

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
from dagster_llm_batch.metrics.looks import look_level

CALM = [{"a": 50, "b": 50}, {"a": 57, "b": 43}, {"a": 43, "b": 57}] * 10
"""Earlier partitions, which vary as chance does."""


def compared(here, reference, *, max_psi=0.25, level=0.01, earlier=CALM):
    return drift_between(
        here,
        reference if isinstance(reference, list) else [reference],
        partition="tue",
        candidate="c",
        target="t",
        against="mon",
        max_psi=max_psi,
        level=level,
        earlier=earlier,
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
    large_but_few = compared({"a": 4, "b": 1}, {"a": 500, "b": 500})
    sure_but_small = compared({"a": 54_000, "b": 46_000}, {"a": 50_000, "b": 50_000})
    assert (large_and_sure.psi > 0.25, large_and_sure.p_value < 0.01, large_and_sure.drifted) == (True, True, True)
    assert (large_but_few.psi > 0.25, large_but_few.p_value < 0.01, large_but_few.drifted) == (True, False, False)
    assert (sure_but_small.psi > 0.25, sure_but_small.p_chance < 0.01, sure_but_small.drifted) == (False, True, False)
    assert compared({"a": 900, "b": 100}, {"a": 500, "b": 500}, max_psi=9).drifted is False


def test_a_class_that_is_new_or_gone_is_a_shift_of_finite_size():
    new = compared({"a": 50, "b": 50}, {"a": 100})
    gone = compared({"a": 100}, {"a": 50, "b": 50})
    assert new.drifted
    assert gone.drifted
    assert new.psi == pytest.approx(gone.psi)
    assert compared({"a": 5}, {"b": 5}).js_distance == pytest.approx(1)


def test_classes_of_few_rows_are_tested_too():
    # Half of the classes are gone, and of no class are there five rows to expect: all of it was once "too few rows".
    ten, fifty = (
        compared(
            dict.fromkeys(range(n // 2), 8),
            dict.fromkeys(range(n), 28),
            earlier=[{at: 3 + (at + day) % 3 for at in range(n)} for day in range(7)],
        )
        for n in (10, 50)
    )
    assert (ten.p_chance < 0.001, fifty.p_chance < 0.0001) == (True, True)
    assert (ten.drifted, fifty.drifted) == (True, True)
    assert compared({"a": 30}, {"a": 20}).p_chance is None  # one class has nothing to shift to


def test_by_chance_means_the_share_of_permutations():
    # Of the 4 labels, 2 are "a": of 6 ways to choose a partition of two, 2 are as far apart as these.
    assert compared({"a": 2}, {"b": 2}).p_chance == pytest.approx(2 / 6, abs=0.03)


def test_a_partition_is_held_against_what_earlier_ones_were_off():
    here, reference = {"a": 80, "b": 20}, {"a": 350, "b": 350}
    wild = [{"a": 90, "b": 10}, {"a": 10, "b": 90}] * 4
    assert compared(here, reference).drifted
    usual = compared(here, reference, earlier=wild)
    assert (usual.p_chance < 1e-6, usual.p_variation > 0.1, usual.drifted) == (True, True, False)
    few = compared(here, reference, earlier=[*wild[:6], {}])
    assert (few.n_earlier, few.p_variation, few.p_value, few.drifted) == (6, None, None, False)


@pytest.mark.simulation
def test_days_that_vary_by_themselves_raise_few_alarms_and_a_shift_raises_one():
    rng = np.random.default_rng(4)

    def life(days, shift_at=None):
        days_counts, alarms = [], []
        for day in range(days):
            share = rng.dirichlet([12, 9, 6, 3])
            if day == shift_at:
                share = np.array([0.02, 0.05, 0.13, 0.8])
            days_counts.append(rng.multinomial(300, share))
            earlier = [dict(enumerate(counts.tolist())) for counts in days_counts[max(0, day - 57) : -1]]
            here = dict(enumerate(days_counts[-1].tolist()))
            got = compared(here, earlier[-7:], level=look_level(day), earlier=earlier)
            alarms += [day] if got.drifted else []
        return alarms

    # By chance alone, as it was judged before, a third of such lives has an alarm within a month.
    assert sum(bool(life(60)) for _ in range(40)) <= 5
    assert sum(40 in life(41, shift_at=40) for _ in range(20)) >= 12


def test_a_day_of_more_rows_or_of_fewer_is_held_to_the_same_variation():
    rng = np.random.default_rng(7)
    # Each day has shares of its own. Held to what 300 rows are off, a day of 3,000 was always drift.
    for rows in (30, 3_000):
        explained = []
        for _ in range(100):
            drawn = rng.multinomial([300] * 28 + [rows], rng.dirichlet([12, 9, 6, 3], 29))
            *earlier, here = (dict(enumerate(counts)) for counts in drawn.tolist())
            explained.append(compared(here, earlier[-7:], earlier=earlier).p_variation)
        assert sum(p < 0.01 for p in explained) <= 4


def test_what_a_day_before_was_off_by_is_nothing_new():
    rng = np.random.default_rng(9)
    calm = [dict(enumerate(counts)) for counts in rng.multinomial(300, [0.4, 0.3, 0.2, 0.1], 40).tolist()]
    wild, again = {0: 30, 1: 60, 2: 90, 3: 120}, {0: 33, 1: 62, 2: 88, 3: 117}
    first = compared(wild, calm[-7:], earlier=calm, level=0.0005)
    second = compared(again, calm[-7:], earlier=[*calm[:20], wild, *calm[20:]], level=0.0005)
    assert (first.drifted, second.drifted) == (True, False)
    assert second.p_variation >= 1 / 42


def test_a_day_of_the_week_that_was_seen_before_is_no_drift():
    rng = np.random.default_rng(8)
    alarms = 0
    for _ in range(10):
        shares = np.tile([0.4, 0.3, 0.2, 0.1], (56, 1))
        shares[6::7] = [0.15, 0.2, 0.3, 0.35]
        days = [dict(enumerate(counts)) for counts in rng.multinomial(300, shares).tolist()]
        found = [
            compared(days[at], days[max(0, at - 7) : at], level=look_level(at), earlier=days[:at])
            for at in range(1, 56)
        ]
        assert max(one.psi for one in found) > 0.25
        alarms += sum(one.drifted for one in found)
    assert alarms <= 1


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

    def test_a_slow_change_is_seen_though_each_partition_is_like_the_one_before(self):
        days = {str(day): {"a": 500 + 10 * day, "b": 500 - 10 * day} for day in range(40)}
        pairs = list(days.values())
        assert not any(compared(x, y).drifted for x, y in zip(pairs[1:], pairs, strict=False))
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
    """Rows that share a request were counted as independent."""
    said = pa.chunked_array([["a", "a", "a"], ["b", "a", "a", None, None]])
    ids = pa.array(["x", "x", "x", "x", None, None, "y", None], pa.large_string())
    assert class_counts(said, "t", "labels", ids) == {"a": 3, "b": 1}
    nothing_said = pa.chunked_array([pa.nulls(2)])
    assert class_counts(nothing_said, "t", "labels", pa.array(["x", "x"])) == {}


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
