"""The forecast cost of a month: the interval has its stated coverage, and too few days give no forecast."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from dagster_llm_batch.advice.cost_forecast import MonthForecast, forecast_month
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import ShardCost
from dagster_llm_batch.types import Lane

MONTH = date(2026, 11, 1)
OF_ALL: dict[str, Any] = dict.fromkeys(ShardCost._fields)


def sent(day: date, usd: float | Decimal, **changes: Any) -> ShardCost:
    """Return one collected batch of a day."""
    cost = Decimal(str(usd))
    known = {"cost_usd": cost, "known_usd": cost, "unpriced": 0, "requests": 10, "padding": 0, "batch_id": "b"}
    at = datetime(day.year, day.month, day.day, 9, tzinfo=UTC)
    state = {"state": ShardState.COLLECTED, "lane": Lane.BATCH, "wave": 1, "sent_at": at, "planned_at": at}
    return ShardCost(**{**OF_ALL, **known, **state, **changes})


def at_noon(day: int) -> datetime:
    return datetime(2026, 11, day, 12, tzinfo=UTC)


def forecast(daily: Any, now: datetime, *more: ShardCost) -> MonthForecast:
    """Forecast the month from `daily`, the spending of each day before today, the last one yesterday."""
    first = now.date() - timedelta(days=len(daily))
    return forecast_month([*(sent(first + timedelta(days=n), usd) for n, usd in enumerate(daily)), *more], MONTH, now)


# patterns of daily spending: each function returns amounts of many days
def alike(random: np.random.Generator, days: int) -> Any:
    return np.exp(0.5 * random.normal(size=days))


def with_weekends(random: np.random.Generator, days: int) -> Any:
    return alike(random, days) * np.where(np.arange(days) % 7 < 5, 1.0, 0.1)


def on_one_day_a_week(random: np.random.Generator, days: int) -> Any:
    return alike(random, days) * (np.arange(days) % 7 == 3)


def like_the_day_before(random: np.random.Generator, days: int) -> Any:
    noise = random.normal(size=days)
    for day in range(1, days):
        noise[day] = noise[day - 1] / 2 + noise[day] * 0.75**0.5
    return np.exp(0.4 * noise)


def on_some_days(random: np.random.Generator, days: int) -> Any:
    return alike(random, days) * (random.random(days) < 0.4)


@pytest.mark.parametrize("days", [alike, with_weekends, on_one_day_a_week, like_the_day_before, on_some_days])
@pytest.mark.parametrize(("today", "history"), [(28, 28), (20, 28), (8, 28), (15, 16)])
def test_at_least_86_of_100_months_are_within_the_interval_of_90_percent(days: Any, today: int, history: int) -> None:
    random = np.random.default_rng(today)
    times, within, above = 250, 0, 0
    now, left = at_noon(today), 31 - today
    for _ in range(times):
        amounts = days(random, history + left)
        told = forecast(amounts[:history], now)
        if told.expected_usd is None:  # the first days had no spending
            times -= 1
            continue
        whole = float(sum(amounts[max(history - today + 1, 0) :]))
        within += float(told.low_usd or 0) - 1e-4 <= whole <= float(told.high_usd or 0) + 1e-4
        above += whole > float(told.high_usd or 0) + 1e-4
    assert times > 150
    # Two standard deviations of a share in so many months.
    allowance = 2 * (0.9 * 0.1 / times) ** 0.5
    assert within / times >= 0.9 - allowance - 0.01
    assert above / times <= 0.1 + allowance


def test_a_job_of_tuesdays_is_expected_on_tuesdays() -> None:
    # The 24th of November 2026 is a Tuesday; four of them cost 7, 9, 7, 9.
    tuesdays = {date(2026, 10, 27): 7, date(2026, 11, 3): 9, date(2026, 11, 10): 7, date(2026, 11, 17): 9}
    costs = [sent(day, usd) for day, usd in tuesdays.items()]
    before = forecast_month(costs, MONTH, at_noon(23))
    assert (before.so_far_usd, before.expected_usd) == (25, 33)
    # By hand: variance 4/3, one day and the error of a mean of four, 3 degrees of freedom, 27 - 6 days of history.
    half = Decimal(str(2.353 * (4 / 3 * (1 + 1 / 4)) ** 0.5))
    assert before.low_usd is not None
    assert before.high_usd is not None
    assert before.high_usd - 33 == 33 - before.low_usd
    assert half <= before.high_usd - 33 < half * 2
    after = forecast_month([*costs, sent(date(2026, 11, 24), 8)], MONTH, at_noon(25))
    assert (after.so_far_usd, after.expected_usd, after.low_usd, after.high_usd) == (33, 33, 33, 33)


@pytest.mark.parametrize("days", [0, 1, 13])
def test_too_few_days_give_no_figure(days: int) -> None:
    told = forecast([1.0] * days, at_noon(20))
    assert (told.expected_usd, told.low_usd, told.high_usd, told.so_far_usd) == (None, None, None, days)
    assert f"no forecast: {days} complete days are too few, 14 are needed" in str(told)


def test_what_is_in_flight_is_expected_and_adds_the_error_of_its_estimate() -> None:
    now = at_noon(30)
    usual = [2.0] * 28
    estimate = {"state": ShardState.SUBMITTED, "cost_usd": None, "known_usd": None, "unpriced": None}
    whole = {"expected_usd": Decimal(100), "p05_usd": Decimal(80), "p95_usd": Decimal(150)}
    flying = sent(now.date(), 0, **estimate, estimated_usd=Decimal(10), **whole)
    # Today's batch in flight costs more than a usual day, so further spending is not expected.
    told = forecast(usual, now, flying)
    assert (told.so_far_usd, told.expected_usd) == (66, 66)
    assert (told.low_usd, told.high_usd) == (64, 71)
    unpriced = forecast(usual, now, sent(now.date(), 0, **estimate, estimated_usd=None))
    assert (unpriced.requests_unknown, unpriced.so_far_usd) == (10, 56)
    assert "10 requests of unknown cost are not in it" in str(unpriced)


def test_what_was_given_up_stays_expected_and_what_has_ended_unsent_costs_nothing() -> None:
    lost = sent(date(2026, 10, 7), 0.25, cost_usd=None, unpriced=4, estimated_usd=Decimal(1))
    dropped = sent(date(2026, 10, 8), 0, state=ShardState.CANCELED, batch_id=None, estimated_usd=Decimal(50))
    told = forecast_month([lost, dropped], date(2026, 10, 1), at_noon(2))
    assert (told.expected_usd, told.low_usd, told.high_usd) == (Decimal("0.65"),) * 3
    assert "the month is over" in str(told)
    assert forecast_month([], date(2026, 12, 1), at_noon(2)).reason == "the month has not begun"
