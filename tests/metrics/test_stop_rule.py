"""Rounds of labeling share the error rate of an interval, and forecasts reach the required width."""

from __future__ import annotations

import pytest

from dagster_llm_batch.metrics.intervals import CONFIDENCE
from dagster_llm_batch.metrics.stop_rule import more_rows, next_size, round_level, widening


def test_all_rounds_together_have_what_one_look_may_miss():
    assert sum(round_level(number) for number in range(1, 60)) == pytest.approx(1 - CONFIDENCE)
    assert max(range(1, 10), key=round_level) == 2
    assert all(widening(number) > 1 for number in range(1, 60))


def test_what_is_forecast_is_as_narrow_as_is_wanted_in_its_round():
    n, half = 100, 0.08
    more = more_rows(n, 1_000_000, half, 0.02, 2, 100)
    reached = half * (n / (n + more)) ** 0.5 * widening(2)
    assert 0.9 * 0.02 < reached < 0.02


def test_what_no_row_has_shown_falls_faster():
    alike, unseen = (more_rows(100, 1_000_000, 0.08, 0.02, 2, 100, part) for part in (0.0, 0.005))
    assert unseen < alike


def test_no_more_are_forecast_than_there_are_and_of_a_small_pilot_no_more_than_ten_times_it():
    assert more_rows(100, 150, 0.3, 0.01, 2, 100) == 50
    assert more_rows(150, 150, 0.3, 0.01, 2, 100) == 0
    assert more_rows(0, 5_000, None, 0.01, 1, 100) == 100
    assert next_size(20, 100_000) == 200
    assert next_size(0, 100) == 100
