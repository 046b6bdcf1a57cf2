"""Forecasts of the end, compared with scipy's Kaplan-Meier.

`benchmarks.truth` checks on simulated vendors that half end by their p50, and nine in ten by their p90; its quick part
is a test (tests/test_truth.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st

from dagster_llm_batch.core.durations import FEWEST, EndForecast, _quantiles, forecast_end
from dagster_llm_batch.types import Span

START = datetime(2026, 1, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def spans_at(now: datetime, hours: npt.NDArray[np.float64], gap: timedelta) -> list[Span]:
    """Return the spans in a ledger at `now`, of submissions that begin one after the other and take so many hours."""
    spans = []
    for number, taken in enumerate(hours.tolist()):
        began = START + number * gap
        end = began + taken * HOUR
        if began < now:
            spans.append(Span(began, end if end <= now else None, end <= now, 100))
    return spans


def spans_of(began: datetime, hours: Sequence[float]) -> list[Span]:
    """Return spans that began together and ended after so many hours each."""
    return [Span(began, began + taken * HOUR, has_ended=True, requests=100) for taken in hours]


Forecast = Callable[[list[Span], datetime], timedelta | None]


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), min_size=1, max_size=60), st.floats(0.05, 0.99))
@settings(max_examples=200, deadline=None)
def test_the_shares_that_have_ended_are_those_of_kaplan_and_meier(known: list[tuple[int, bool]], level: float) -> None:
    took = np.array([float(seconds) for seconds, _ in known])
    is_end = np.array([ended for _, ended in known])
    [said] = _quantiles(took, is_end, np.ones(len(known)), np.arange(len(known)), [level])
    curve = (
        scipy.stats.ecdf(scipy.stats.CensoredData(uncensored=took[is_end], right=took[~is_end])).cdf
        if is_end.any()
        else None
    )
    wanted = level * (len(known) + 1) / len(known)
    reached = [] if curve is None else curve.quantiles[curve.probabilities >= wanted - 1e-9]
    assert said == (min(reached) if len(reached) else None)


def test_what_still_runs_is_not_left_out() -> None:
    rng = np.random.default_rng(3)
    true_median = 20 * 24.0
    hours = np.exp(rng.normal(np.log(true_median), 1, 2_000))
    with_running, ended_only = [], []
    # One begins each day, so about half of the last 40 are still running.
    for end in range(400, 2_000, 20):
        now = START + end * DAY
        spans = spans_at(now, hours[:end], DAY)[-40:]
        said, naive = (forecast_end(of, now) for of in (spans, [span for span in spans if span.has_ended]))
        assert said.running
        if said.p50 is not None and naive.p50 is not None:
            with_running.append(said.p50 / HOUR)
            ended_only.append(naive.p50 / HOUR)
    assert len(with_running) > 70
    assert np.median(ended_only) < 0.7 * true_median
    assert 0.8 * true_median < np.median(with_running) < 1.25 * true_median


def test_fewer_than_ten_days_with_ends_give_no_figure() -> None:
    now = START + 30 * DAY
    # Twenty on each day do not make more days.
    spans = [span for day in range(FEWEST - 1) for span in spans_of(START + day * DAY, [2.0] * 20)]
    running = Span(now - HOUR, None, has_ended=False, requests=1)
    assert forecast_end([*spans, running], now) == EndForecast(ended=180, running=1, days=FEWEST - 1)
    assert forecast_end([], now) == EndForecast()
    one_more = forecast_end([*spans, running, Span(now - DAY, now - 22 * HOUR, has_ended=True, requests=1)], now)
    assert (one_more.p50, one_more.days) == (2 * HOUR, FEWEST)
    assert one_more.basis == "submissions"


def test_each_day_counts_as_one_whatever_was_submitted_on_it() -> None:
    now = START + 400 * DAY
    # Two of eleven days were slow, and one of these had a backfill of two hundred.
    hours = [[8.0] * 200, [9.0], *[[1.0]] * 9]
    spans = [span for day, of_day in enumerate(hours) for span in spans_of(START + day * DAY, of_day)]
    said = forecast_end(spans, now)
    assert (said.p50, said.p90, said.ended, said.days) == (HOUR, 9 * HOUR, 210, 11)


def replay_backfills(forecast: Forecast, a_day: int, lives: int = 40, days: int = 40) -> tuple[float, float]:
    """Return the share of submissions that ended by their p90, and the share of days with a p90, from day twenty on.

    Each vendor's days differ (log sd .8), and `a_day` submissions begin on each.
    """
    rng, held = np.random.default_rng(a_day), []
    asked = range(20, days, 4)
    for _ in range(lives):
        hours = 2 * np.exp(rng.normal(0, 0.8, (days, 1)) + rng.normal(0, 0.3, (days, a_day)))
        spans = [span for day in range(days) for span in spans_of(START + day * DAY, hours[day].tolist())]
        for day in asked:
            p90 = forecast(spans[: day * a_day], START + day * DAY)
            if p90 is not None:
                held.append(float((hours[day] * HOUR <= p90).mean()))
    return float(np.mean(held)), len(held) / (lives * len(asked))


@pytest.mark.simulation
@pytest.mark.parametrize("a_day", [1, 5, 20, 40])
def test_nine_in_ten_of_a_backfill_end_by_their_p90_however_many_share_a_day(a_day: int) -> None:
    held, told = replay_backfills(lambda spans, now: forecast_end(spans, now).p90, a_day)
    # For 200 forecast days, the margin is two standard errors, four points.
    assert 0.85 - 0.04 <= held <= 0.95 + 0.04
    assert told >= 0.98


@pytest.mark.simulation
def test_submissions_taken_as_independent_are_forecast_too_early() -> None:
    def of_the_last_forty(spans: list[Span], now: datetime) -> timedelta:
        return sorted(span.until - span.began for span in spans[-40:] if span.until is not None)[36]

    # The negative control: forty of one day, each counted as evidence.
    assert replay_backfills(of_the_last_forty, 40)[0] < 0.75


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
    # For three batches, the p90 is the 29th of 30 durations. For 30 batches, forty durations are too few.
    assert forecast_end(spans, now, basis="batches", batches=30).p90 is None
