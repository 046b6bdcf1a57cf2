"""The Pareto front: candidates beaten on quality and cost together, and candidates that are not judged."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.metrics import Evaluation, Target, compare, cost_per_1000_usd, with_pareto_front


def candidate(name, correct, cost, *, n=100, target="t", unknown=0):
    return Evaluation(
        candidate=name,
        target=target,
        kind="categorical",
        n_gold=n,
        n_labeled=n,
        n_absent=0,
        n_rejected=0,
        n_empty=0,
        n_gold_null=0,
        n_ignored=0,
        coverage=1.0,
        n_correct=correct,
        accuracy_all=correct / n,
        cost_usd=None if cost is None else Decimal(cost),
        n_cost_unknown=unknown,
    )


def front(*candidates):
    return {one.candidate: one.on_pareto_front for one in with_pareto_front(candidates)}


def test_who_is_worse_and_dearer_is_off_the_front():
    best, cheap, beaten = candidate("best", 90, "9"), candidate("cheap", 70, "1"), candidate("beaten", 80, "10")
    assert front(best, cheap, beaten) == {"best": True, "cheap": True, "beaten": False}


def test_equals_are_both_on_it_and_as_good_for_more_is_not():
    assert front(candidate("a", 90, "5"), candidate("b", 90, "5"), candidate("c", 90, "6")) == {
        "a": True,
        "b": True,
        "c": False,
    }


def test_a_cost_that_is_not_known_in_full_is_not_judged_and_beats_nobody():
    got = front(candidate("a", 90, None), candidate("b", 95, "1", unknown=1), candidate("c", 10, "5"))
    assert got == {"a": None, "b": None, "c": True}


def test_targets_are_fronts_of_their_own():
    one, other = candidate("a", 90, "1"), candidate("b", 10, "2", target="other")
    assert front(one, other) == {"a": True, "b": True}


def test_costs_are_compared_for_a_thousand_rows():
    assert cost_per_1000_usd(candidate("a", 1, "0.03", n=20)) == Decimal("1.5")
    assert cost_per_1000_usd(candidate("a", 1, "1", unknown=3)) is None


def test_leaving_the_hard_rows_out_does_not_pay():
    gold = pa.table({"id": [1, 2, 3, 4], "t": ["a", "b", "a", "b"]})
    free = pa.array([Decimal(0)] * 4)
    picky = pa.table({"id": [1, 2, 3, 4], "t": ["a", None, None, None], "llm_cost_usd": free})
    honest = pa.table({"id": [1, 2, 3, 4], "t": ["a", "b", "a", "a"], "llm_cost_usd": free})
    report = compare(gold, {"picky": picky, "honest": honest}, key="id", targets=["t"])
    accuracy = {one.candidate: one.accuracy for one in report.evaluations}
    assert accuracy == {"picky": 1.0, "honest": 0.75}
    assert {one.candidate: one.on_pareto_front for one in report.evaluations} == {"picky": False, "honest": True}


def test_of_numbers_the_smaller_error_wins():
    gold = pa.table({"id": [1, 2], "x": [1.0, 2.0]})
    near = pa.table({"id": [1, 2], "x": [1.1, 2.0], "llm_cost_usd": [Decimal(1)] * 2})
    far = pa.table({"id": [1, 2], "x": [5.0, 9.0], "llm_cost_usd": [Decimal(1)] * 2})
    report = compare(gold, {"near": near, "far": far}, key="id", targets=[Target("x", kind="numeric")])
    assert {one.candidate: one.on_pareto_front for one in report.evaluations} == {"near": True, "far": False}


def test_latency_and_prompt_versions_are_those_of_the_labeled_rows():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    gold = pa.table({"id": [1, 2, 3, 4], "t": ["a", "a", "a", "a"]})
    table = pa.table(
        {
            "id": [1, 2, 3, 4],
            "t": ["a", "b", "a", None],
            "llm_submitted_at": [start] * 4,
            "llm_completed_at": [start + timedelta(seconds=s) for s in (60, 120, 600, 90_000)],
            "llm_prompt_version": ["v2", "v1", "v2", "v0"],
        }
    )
    (got,) = compare(gold, {"c": table}, key="id", targets=["t"]).evaluations
    assert (got.latency_p50_seconds, got.latency_p95_seconds) == (120, pytest.approx(552))
    assert got.prompt_versions == ("v1", "v2")
    (without,) = compare(gold, {"c": table.drop_columns("llm_submitted_at")}, key="id", targets=["t"]).evaluations
    assert without.latency_p50_seconds is None


def test_a_batch_that_ends_before_it_began_took_no_time():
    start = datetime(2026, 1, 1, tzinfo=UTC)
    gold = pa.table({"id": [1], "t": ["a"]})
    times = {"llm_submitted_at": [start], "llm_completed_at": [start - timedelta(seconds=0.8)]}
    (got,) = compare(gold, {"c": pa.table({"id": [1], "t": ["a"], **times})}, key="id", targets=["t"]).evaluations
    assert got.latency_p50_seconds == 0


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
@settings(max_examples=100)
def test_the_front_is_never_empty_and_every_other_one_is_beaten_by_somebody_on_it(points):
    candidates = [candidate(str(i), 10 * correct, str(cost)) for i, (correct, cost) in enumerate(points)]
    on = front(*candidates)
    winners = [points[int(name)] for name, is_on in on.items() if is_on]
    assert winners
    for name, is_on in on.items():
        correct, cost = points[int(name)]
        beaten = any(c >= correct and p <= cost and (c, p) != (correct, cost) for c, p in winners)
        assert is_on is not beaten
