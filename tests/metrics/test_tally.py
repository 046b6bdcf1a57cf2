"""Figures of a table in parts equal the figures of the whole table, to the last digit, for any parts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics import Target, compare, join, report_of, tally, total

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
STARS = Target("stars", kappa_weights="quadratic", confidence_column="sure")
TARGETS = [STARS, Target("price", kind="numeric")]

row = st.fixed_dictionaries(
    {
        "stars": st.none() | st.integers(1, 5),
        "price": st.none() | st.floats(-1e3, 1e3, allow_subnormal=False),
        "sure": st.none() | st.floats(0, 1),
        "llm_outcome": st.sampled_from(["succeeded", "succeeded", "errored", "invalid"]),
        "llm_cost_usd": st.none() | st.decimals(0, 1, places=6),
        "llm_model": st.sampled_from(["a", "b"]),
        "wait": st.integers(-5, 90_000_000),
    }
)
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "stars": pa.int64(),
        "price": pa.float64(),
        "sure": pa.float64(),
        "llm_outcome": pa.string(),
        "llm_cost_usd": pa.decimal128(12, 6),
        "llm_model": pa.string(),
        "llm_submitted_at": pa.timestamp("us", "UTC"),
        "llm_completed_at": pa.timestamp("us", "UTC"),
    }
)


def table(rows):
    """Return rows whose ids are their positions; ids from 30 have no gold."""
    times = [{"llm_submitted_at": BEGAN, "llm_completed_at": BEGAN + timedelta(microseconds=r["wait"])} for r in rows]
    filled = [{"id": n, **r, **t} for n, (r, t) in enumerate(zip(rows, times, strict=True))]
    return pa.Table.from_pylist(filled, schema=SCHEMA)


def gold(rows):
    return pa.Table.from_pylist([{"id": n, **r} for n, r in enumerate(rows)], schema=pa.schema([*SCHEMA][:3]))


truths = st.lists(
    st.fixed_dictionaries(
        {"stars": st.none() | st.integers(1, 5), "price": st.none() | st.floats(-1e3, 1e3, allow_subnormal=False)}
    ),
    max_size=30,
)


@given(truths, st.lists(row, max_size=40), st.lists(st.integers(0, 3), min_size=40, max_size=40))
@settings(max_examples=80, deadline=None)
def test_any_parts_have_the_figures_of_the_whole(truth, rows, part_of):
    whole, known = table(rows), gold(truth)
    report = compare(known, {"c": whole}, key="id", targets=TARGETS)
    parts = [
        whole.filter(pa.array([part_of[n] == number for n in range(len(whole))], pa.bool_())) for number in range(4)
    ]
    tallies = [
        total([tally(join(known, part, key="id", target=one, candidate_name="c")) for part in reversed(parts)])
        for one in TARGETS
    ]
    again = report_of(tallies)
    assert again.evaluations == report.evaluations
    assert again.confusions == report.confusions
    assert again.calibrations == report.calibrations
    assert again.per_class.equals(report.per_class)


def test_parts_beside_different_gold_do_not_add_up():
    said = table([])
    one, other = (
        tally(join(gold(truth), said, key="id", target="stars", candidate_name="c"))
        for truth in ([{"stars": 1, "price": 1.0}], [{"stars": 2, "price": 1.0}])
    )
    with pytest.raises(InputError, match="joined with different gold"):
        total([one, other])


def test_costs_of_parts_add_up_and_unknown_ones_are_counted():
    known = gold([{"stars": 1, "price": None}] * 4)
    usual = {"stars": 1, "price": None, "sure": None, "llm_outcome": "succeeded", "llm_model": "a", "wait": 0}
    costs = [Decimal("0.25"), None, Decimal("0.5"), None]
    whole = table([{**usual, "llm_cost_usd": cost} for cost in costs])
    parts = [tally(join(known, whole.slice(n, 1), key="id", target="stars", candidate_name="c")) for n in range(4)]
    added = total(parts)
    assert (added.cost_usd, added.n_cost_unknown) == (Decimal("0.75"), 2)
    assert (added.n_labeled, added.n_absent) == (4, 0)
    assert total(parts[1:2]).cost_usd is None
