"""The requests that a measured limit releases: the bill exceeds it no more often than stated."""

from __future__ import annotations

import numpy as np
import pytest

from dagster_llm_batch.core.spend_limit import MISSES, count_releasable, count_steps, find_reserve, is_too_few

COSTS = {
    "all alike": lambda draw, n: draw.uniform(0.018, 0.022, n),
    "a few at the maximum": lambda _, n: np.concatenate([np.ones(12), np.full(n - 12, 0.001)]),
    "half at the maximum": lambda _, n: (np.arange(n) % 2).astype(float),
    "a heavy tail": lambda draw, n: np.minimum(draw.pareto(1.1, n) * 0.02, 1.0),
}


@pytest.mark.simulation
@pytest.mark.parametrize("kind", COSTS)
def test_limits_are_exceeded_no_more_often_than_is_said(kind: str) -> None:
    """Draw 300 times at 20 %; one in a thousand would need far more draws. Rows are shuffled each time."""
    draw, exceeded, rows, allowed = np.random.default_rng(7), 0, 300, 0.2
    for _ in range(300):
        costs = draw.permutation(COSTS[kind](draw, rows))
        limit = 0.97 * costs.sum()
        sent = 0
        while sent < rows:
            covered = sent + int(limit - costs[:sent].sum())
            more = min(rows, max(covered, count_releasable(costs[:sent], rows, limit, allowed / MISSES))) - sent
            if is_too_few(more, rows - sent):
                break
            sent += more
        exceeded += costs[:sent].sum() > limit
    assert exceeded <= 300 * allowed


def test_more_is_let_out_by_a_larger_sample_and_a_larger_limit() -> None:
    counts = [count_releasable(np.full(n, 0.02), 10_000, 400.0, 0.25) for n in (0, 50, 200, 500, 900)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    assert counts[-1] == 10_000
    by_limit = [count_releasable(np.full(200, 0.02), 10_000, limit, 0.25) for limit in (5.0, 50.0, 100.0, 400.0)]
    assert by_limit == sorted(by_limit)
    assert by_limit[0] < 250


def test_what_costs_more_than_is_possible_lets_out_nothing() -> None:
    assert count_releasable(np.array([0.1, 1.5]), 10, 1_000.0, 1.0) == 0
    assert count_releasable(np.array([0.9] * 20), 1_000, 18.0, 1.0) == 0


def test_what_is_reserved_is_enough_for_what_is_let_out_and_no_more_than_the_limit() -> None:
    costs = np.full(900, 0.02)
    reserve = find_reserve(costs, 10_000, 400.0, 0.25)
    assert 200 < reserve < 400
    assert count_releasable(costs, 10_000, reserve, 0.25) == 10_000
    assert count_releasable(costs, 10_000, reserve * 0.99, 0.25) < 10_000


def test_steps_are_told_before_anything_is_sent() -> None:
    assert count_steps("hard", 1_000, 1.0, 5.0, 5_000.0) == 1
    assert count_steps("hard", 1_000, 1.0, 40.0, 2_000.0) == 28
    assert count_steps("measured", 1_000, 1.0, 40.0, 2_000.0) == 4
    assert count_steps("measured", 10_000, 1.0, 40.0, 20_000.0) == 2
    assert count_steps("hard", 1_000, 1.0, 40.0, 900.0) is None
