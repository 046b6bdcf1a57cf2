"""Forecasts of the end, held to scipy's Kaplan-Meier. That half end by their p50, and nine in ten by their p90, is held
to simulated vendors in `benchmarks.truth`, whose quick part is a test (tests/test_truth.py).
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import CensoredData, ecdf

from dagster_llm_batch.core.durations import FEWEST, EndForecast, _quantiles, forecast_end
from dagster_llm_batch.types import Span

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def spans_at(now: datetime, hours: npt.NDArray[np.float64], gap: timedelta) -> list[Span]:
    """What a ledger has at a time of submissions that begin one after the other and take so many hours."""
    spans = []
    for number, taken in enumerate(hours.tolist()):
        began = START + number * gap
        end = began + taken * HOUR
        if began < now:
            spans.append(Span(began, end if end <= now else None, end <= now, 100))
    return spans


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=60), st.floats(0.05, 0.99))
@settings(max_examples=200, deadline=None)
def test_the_shares_that_have_ended_are_those_of_kaplan_and_meier(known: list[tuple[int, bool]], level: float) -> None:
    took = np.array([float(seconds) for seconds, _ in known])
    is_end = np.array([ended for _, ended in known])
    [said] = _quantiles(took, is_end, [level])
    curve = ecdf(CensoredData(uncensored=took[is_end], right=took[~is_end])).cdf if is_end.any() else None
    wanted = level * (len(known) + 1) / len(known)
    reached = [] if curve is None else curve.quantiles[curve.probabilities >= wanted - 1e-9]
    assert said == (min(reached) if len(reached) else None)


def test_what_still_runs_is_not_left_out() -> None:
    rng = np.random.default_rng(3)
    hours = np.exp(rng.normal(np.log(2), 1, 4_000))
    true_median = 2.0
    with_running, ended_only = [], []
    # Every six minutes one begins, so that about half of the last 40 run still.
    for end in range(400, 4_000, 40):
        now = START + end * HOUR / 10
        spans = spans_at(now, hours[:end], HOUR / 10)[-40:]
        said, naive = (forecast_end(of, now) for of in (spans, [span for span in spans if span.has_ended]))
        assert said.running
        if said.p50 is not None and naive.p50 is not None:
            with_running.append(said.p50 / HOUR)
            ended_only.append(naive.p50 / HOUR)
    assert len(with_running) > 70
    assert np.median(ended_only) < 0.7 * true_median
    assert 0.8 * true_median < np.median(with_running) < 1.25 * true_median


def test_fewer_than_ten_that_have_ended_give_no_figure() -> None:
    now = START + 30 * DAY
    spans = spans_at(now, np.full(FEWEST - 1, 2.0), HOUR)
    running = Span(now - HOUR, None, has_ended=False, requests=1)
    assert forecast_end([*spans, running], now) == EndForecast(ended=FEWEST - 1, running=1)
    assert forecast_end([], now) == EndForecast()
    one_more = forecast_end([*spans, running, Span(START, START + HOUR, has_ended=True, requests=1)], now)
    assert one_more.p50 == 2 * HOUR
    assert one_more.basis == "submissions"


def test_a_vendor_whose_clock_is_behind_ends_nothing_before_it_began() -> None:
    now = START + 100 * DAY
    spans = spans_at(now, np.full(20, -0.1), DAY)
    said = forecast_end(spans, now)
    assert (said.p50, said.p90) == (timedelta(0), timedelta(0))


def test_what_ended_by_a_clock_that_was_a_year_ahead_says_nothing() -> None:
    now = START + 100 * DAY
    spans = spans_at(now, np.full(20, 2.0), DAY)
    ahead = [Span(now - DAY, now + 365 * DAY, has_ended=True, requests=100)] * 10
    assert forecast_end([*spans, *ahead], now) == forecast_end(spans, now)
    assert forecast_end(spans, now).p90 == 2 * HOUR


def test_what_has_run_for_long_is_compared_with_those_that_took_longer() -> None:
    now = START + 100 * DAY
    hours = np.random.default_rng(2).permutation(np.tile(np.arange(1.0, 21.0), 2))
    spans = spans_at(now, hours, DAY)
    fresh, old = (forecast_end(spans, now, age=age) for age in (timedelta(0), 10.5 * HOUR))
    assert fresh.p50 is not None
    assert old.p50 is not None
    assert fresh.p50 < 12 * HOUR < old.p50
    oldest = forecast_end(spans, now, age=21 * HOUR)
    assert (oldest.p50, oldest.p90, oldest.ended) == (None, None, 40)


def test_the_last_of_several_batches_ends_later_than_one() -> None:
    now = START + 400 * DAY
    hours = np.exp(np.random.default_rng(1).normal(np.log(2), 0.8, 40))
    spans = spans_at(now, hours, DAY)
    said = [forecast_end(spans, now, basis="batches", batches=count) for count in (1, 3)]
    assert said[0].p50 is not None
    assert said[1].p50 is not None
    assert said[0].p50 < said[1].p50
    # Of three, nine in ten ask for the 29th of 30: more than forty can tell, but for one that was seen.
    assert forecast_end(spans, now, basis="batches", batches=30).p90 is None
