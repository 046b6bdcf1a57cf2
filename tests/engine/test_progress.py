"""The pace of a submission, and the forecast of its end, if there is one."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from dagster_llm_batch.core.durations import EndForecast
from dagster_llm_batch.core.price_book import newest_price_change
from dagster_llm_batch.loop.progress import pace
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import Progress, Submission

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def submission(**changes) -> Submission:
    usual = {
        **dict.fromkeys(("submission_id", "namespace", "asset", "fingerprint", "config_fingerprint"), "x"),
        **dict.fromkeys(("provider", "account", "model"), "x"),
        "rows": 100,
        "requests": 100,
        "created_at": NOON,
    }
    return Submission(**{**usual, **changes})


def progress(done=0, since=NOON - HOUR) -> Progress:
    states = {ShardState.SUBMITTED: 1}
    counts = {"total": 100, "done": done, "failed": 1, "asked": 100}
    return Progress(submission=submission(), states=states, **counts, oldest_submitted_at=since)


def took(p50, p90=None):
    return EndForecast(p50, p90, basis="submissions", ended=12)


def test_the_rate_so_far_says_the_end():
    found = pace(progress(done=25), NOON, took(10 * HOUR, 12 * HOUR))
    assert (found.done, found.total, found.failed, found.percent) == (25, 100, 1, 25)
    assert (found.age, found.per_minute) == (HOUR, pytest.approx(25 / 60))
    assert abs(found.expected_end_at - (NOON + 3 * HOUR)) < timedelta(seconds=1)


def test_without_a_rate_what_earlier_ones_took_says_it():
    found = pace(progress(), NOON, took(5 * HOUR, 9 * HOUR))
    assert (found.expected_end_at, found.p90_end_at) == (NOON + 5 * HOUR, NOON + 9 * HOUR)
    assert pace(progress(), NOON).expected_end_at is None


def test_without_enough_days_there_is_no_forecast_and_the_pace_shows_why():
    found = pace(progress(), NOON, EndForecast(ended=40, days=2))
    assert (found.expected_end_at, found.p90_end_at, found.has_too_few_days) == (None, None, True)
    assert not pace(progress(), NOON, took(HOUR)).has_too_few_days
    assert not pace(progress(since=None), NOON, EndForecast()).has_too_few_days


def test_an_end_that_should_have_come_is_not_expected_at_any_time():
    found = pace(progress(), NOON + HOUR, took(timedelta(minutes=30), 2 * HOUR))
    assert (found.expected_end_at, found.p90_end_at) == (None, NOON + 2 * HOUR)


def test_without_a_batch_in_flight_there_is_neither_age_nor_end():
    found = pace(progress(done=50, since=None), NOON, took(HOUR, 2 * HOUR))
    assert (found.age, found.per_minute, found.expected_end_at) == (None, None, None)


def test_nothing_to_ask_is_all_done():
    empty = replace(progress(since=None), total=0)
    assert pace(empty, NOON).percent == 100


def test_the_newest_price_change_is_a_day_up_to_today_and_none_before_the_book_began():
    today = date(2026, 6, 1)
    assert newest_price_change(today) <= today
    assert newest_price_change(date(1999, 1, 1)) is None
