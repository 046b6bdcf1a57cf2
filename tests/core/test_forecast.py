"""Forecasts from earlier submissions, compared with simulated submissions with a known true mean.

Seeded: each limit is an observed value, plus a margin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from dagster_llm_batch.core.forecast import Billed, Learned, Rates, learn

RATES = Rates(1.0, 4.0)
# Input tokens of a request, by the calibrated rates.
TOKENS = 120
Level = Callable[[int], float]


def submissions(rng: np.random.Generator, count: int, level: Level, rows: int | None = None) -> Iterator[Billed]:
    """Yield submissions of some hundred rows; replies differ, and their mean differs from day to day.

    `level(n)` is the true mean of the replies of submission `n`. With `rows`, all have so many rows, and one mean.
    """
    for number in range(count):
        size = int(np.clip(np.exp(rng.normal(np.log(300), 1)), 20, 20_000)) if rows is None else rows
        day = 1.0 if rows is not None else np.exp(rng.normal(0, 0.1))
        written = rng.gamma(1.2, level(number) * day / 1.2, min(size, 4_000)).mean() * size
        taken = size * TOKENS * 1.3 * np.exp(rng.normal(0, 0.02))
        yield Billed(size, size * TOKENS, size, round(taken), round(written), 1 + 0.05 * rng.random())


def expected_of(learned: Learned) -> float:
    assert learned.output_tokens is not None
    return learned.times * (learned.input_ratio * TOKENS * RATES.input + learned.output_tokens * RATES.output)


def cost_of(billed: Billed) -> float:
    tokens = billed.input_tokens * RATES.input + billed.output_tokens * RATES.output
    return billed.times * tokens / billed.requests


def true_cost(level: float) -> float:
    return 1.025 * (1.3 * TOKENS * RATES.input + level * RATES.output)


def forecasts(seed: int, count: int, level: Level, rows: int | None = None) -> Iterator[tuple[int, Learned, Billed]]:
    """Yield the forecast of each submission from the earlier ones, and the actual bill."""
    earlier: list[Billed] = []
    for number, came in enumerate(submissions(np.random.default_rng(seed), count, level, rows)):
        if (learned := learn(earlier[-80:], [], RATES)) is not None:
            yield number, learned, came
        earlier.append(came)


def share_held(told: list[tuple[int, Learned, Billed]]) -> float:
    held = [
        learned.low * expected_of(learned) <= cost_of(came) <= learned.high * expected_of(learned)
        for _, learned, came in told
        if learned.low is not None and learned.high is not None
    ]
    assert len(held) > 100
    return sum(held) / len(held)


LEVELS: dict[str, Level] = {
    "steady": lambda _: 60.0,
    "a step": lambda number: 60.0 if number < 60 else 90.0,
    "a slow rise": lambda number: 60.0 * 1.01**number,
    "a weekday": lambda number: 60.0 if number % 7 < 5 else 80.0,
}


@pytest.mark.simulation
@pytest.mark.parametrize("kind", LEVELS)
def test_nine_in_ten_intervals_hold(kind: str) -> None:
    told = [each for seed in range(8) for each in forecasts(seed, 120, LEVELS[kind])]
    assert 0.86 <= share_held(told) <= 0.94


@pytest.mark.simulation
@pytest.mark.parametrize("few", [(3, 19), (19, 45)])
def test_they_hold_from_three_submissions_on(few: tuple[int, int]) -> None:
    told = [each for seed in range(40) for each in forecasts(seed, few[1], LEVELS["steady"]) if few[0] <= each[0]]
    assert 0.86 <= share_held(told) <= 0.95


def test_fewer_than_three_give_no_interval() -> None:
    earlier = list(submissions(np.random.default_rng(1), 2, LEVELS["steady"]))
    learned = learn(earlier, [], RATES)
    assert learned is not None
    assert (learned.submissions, learned.low, learned.high) == (2, None, None)


@pytest.mark.simulation
@pytest.mark.parametrize("rows", [50, 250, 1_000])
def test_from_a_thousand_rows_on_the_expected_cost_is_within_a_tenth(rows: int) -> None:
    """Draw from one distribution, in one submission or in twenty."""
    off = [
        abs(expected_of(learned) / true_cost(60.0) - 1)
        for seed in range(12)
        for number, learned, _ in forecasts(seed, 60, LEVELS["steady"], rows)
        if number * rows >= 1_000
    ]
    assert len(off) > 300
    assert np.mean(np.array(off) <= 0.1) >= 0.99
    assert np.median(off) < 0.03


@pytest.mark.simulation
def test_a_step_is_followed_within_some_submissions() -> None:
    off = np.zeros((20, 120))
    for seed in range(20):
        for number, learned, _ in forecasts(seed, 120, LEVELS["a step"]):
            off[seed, number] = expected_of(learned) / true_cost(LEVELS["a step"](number)) - 1
    assert np.median(np.abs(off[:, 55:60])) < 0.05
    # Replies became longer by half, which is a quarter of the cost.
    assert np.median(off[:, 60]) < -0.2
    assert np.median(np.abs(off[:, 68:])) < 0.06


def test_a_large_submission_of_long_ago_does_not_outweigh_what_came_since() -> None:
    old = Billed(1_000_000, 120_000_000, 1_000_000, 120_000_000, 900_000_000, 1.0)
    new = [Billed(200, 24_000, 200, 24_000, 6_000, 1.0)] * 12
    learned = learn([old, *new], [], RATES)
    assert learned is not None
    assert learned.output_tokens == pytest.approx(30, rel=0.15)


def test_what_was_asked_otherwise_tells_of_the_input_alone() -> None:
    others = list(submissions(np.random.default_rng(2), 10, LEVELS["steady"]))
    learned = learn([], others, RATES)
    assert learned is not None
    assert learned.input_ratio == pytest.approx(1.3, rel=0.05)
    assert (learned.output_tokens, learned.times, learned.low, learned.complete) == (None, 1.0, None, None)


def test_some_replies_tell_nothing() -> None:
    assert learn([], [], RATES) is None
    assert learn([Billed(20, 2_400, 20, 2_400, 600, 1.0)], [], RATES) is None


def test_replies_without_a_word_and_rows_without_a_token_are_no_error() -> None:
    """Accept embeddings, which have no output, and records of older code without a count of tokens."""
    learned = learn([Billed(100, 0, 100, 0, 0, 1.0)] * 25, [], RATES)
    assert learned is not None
    assert (learned.input_ratio, learned.output_tokens) == (0.0, 0.0)
    assert learned.low is not None
