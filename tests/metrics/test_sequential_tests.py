"""Interim looks share 5 %: the share of each look, the evidence, and the rate of false alarms for equal versions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dagster_llm_batch.metrics.sequential_tests import (
    ALPHA,
    BETS,
    LOOKS,
    evidence_by_look,
    life_evidence,
    log_payoffs,
    look_share,
    sign_flip_p,
    significance_level,
)


def test_the_shares_of_a_life_add_up_and_are_renewed():
    shares = [look_share(place) for place in range(LOOKS)]
    assert sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert look_share(LOOKS) == shares[0]
    assert significance_level(0, 2) == pytest.approx(ALPHA * shares[0] / 2)


def test_a_bet_pays_what_a_fair_coin_owes():
    paid = log_payoffs(np.array([1.0, 1.0, -1.0, 0.0]))
    by_hand = [math.exp(bet) ** 2 * math.exp(-bet) / math.cosh(bet) ** 3 for bet in BETS]
    assert np.exp(paid) == pytest.approx(by_hand)
    # Over both signs of each of several sizes, the payoff is 1 on average: the bet is fair, whatever the sizes.
    sizes = np.array([0.1, 2.0, 30.0])
    outcomes = [
        log_payoffs(sizes * np.array(signs)) for signs in np.ndindex(2, 2, 2) for signs in [2 * np.array(signs) - 1]
    ]
    assert np.exp(outcomes).mean(axis=0) == pytest.approx(np.ones(len(BETS)))
    assert log_payoffs(np.zeros(4)) == (0.0,) * len(BETS)


def test_evidence_does_not_depend_on_the_order_and_ends_with_its_life():
    paid = {place: log_payoffs(np.array([1.0] * 20 + [-1.0] * 8)) for place in (3, 4, 9, LOOKS + 1)}
    backwards = dict(reversed(paid.items()))
    assert life_evidence(paid, 9) == pytest.approx(life_evidence(backwards, 9))
    assert life_evidence(paid, 4) < life_evidence(paid, 9)
    assert life_evidence(paid, LOOKS + 1) == pytest.approx(life_evidence({LOOKS + 1: paid[3]}, LOOKS + 1))


@pytest.mark.simulation
@pytest.mark.parametrize("order", ["as they come", "backwards", "any"])
def test_a_year_of_equal_versions_is_seldom_blamed_in_any_order(order):
    rng = np.random.default_rng(5)
    blamed, years = 0, 40
    for _ in range(years):
        changed = rng.binomial(300, 0.15, LOOKS)
        broken = rng.binomial(changed, 0.5)
        paid = [log_payoffs(np.repeat([1.0, -1.0], [b, m - b])) for b, m in zip(broken, changed, strict=True)]
        places = {"as they come": range(LOOKS), "backwards": range(LOOKS)[::-1], "any": rng.permutation(LOOKS)}[order]
        seen = {}
        for place in places:
            seen[int(place)] = paid[place]
            if life_evidence(seen, int(place)) >= 1 / ALPHA:
                blamed += 1
                break
    assert blamed <= 5  # at most 5 %, so that 40 years may show five


@pytest.mark.simulation
@pytest.mark.parametrize("before", [0, 300])
def test_a_fall_of_five_points_is_found_within_ten_looks(before):
    rng = np.random.default_rng(6)
    found, lives = 0, 60
    for _ in range(lives):
        # Of 300 rows, 15 % change; after the fall, 10 % get worse and 5 % better.
        shares = [(0.075, 0.075)] * before + [(0.1, 0.05)] * 10
        drawn = [rng.multinomial(300, [worse, better, 1 - worse - better]) for worse, better in shares]
        paid = {place: log_payoffs(np.repeat([1.0, -1.0], counts[:2])) for place, counts in enumerate(drawn)}
        found += any(life_evidence(paid, place) >= 1 / ALPHA for place in range(before, before + 10))
    assert found / lives > 0.8


def test_the_sign_test_is_exact_where_all_sizes_are_one_and_right_where_they_are_many():
    assert sign_flip_p(np.array([1.0] * 9 + [-1.0] * 2)) == pytest.approx(
        sum(math.comb(11, k) for k in (9, 10, 11)) / 2**11
    )
    assert sign_flip_p(np.zeros(3)) == 1
    assert sign_flip_p(np.array([3.0, 2.0, 1.0])) == pytest.approx(1 / 8, abs=0.02)
    rng = np.random.default_rng(3)
    many = rng.exponential(1, 5_000) * rng.choice([-1, 1], 5_000, p=[0.48, 0.52])
    normal = 0.5 * math.erfc(many.sum() / math.sqrt((many**2).sum()) / math.sqrt(2))
    assert sign_flip_p(many) == pytest.approx(normal, rel=0.2)
    # If the sum is above all draws, its p-value is low enough for any look, even with many comparisons late in a life.
    surely = rng.exponential(1, 200)
    assert sign_flip_p(surely) < significance_level(LOOKS - 1, 50)


def test_the_evidence_of_all_looks_is_that_of_each():
    rng = np.random.default_rng(9)
    places = [0, 1, 5, 40, 41, 300]
    paid = np.array([[log_payoffs(rng.normal(0.1, 1, 30)) for _ in places] for _ in range(3)])
    for life, found in zip(paid, evidence_by_look(paid, places), strict=True):
        looks = dict(zip(places, life, strict=True))
        by_hand = [
            sum(
                look_share(since) * np.exp(sum(looks[at] for at in places if since <= at <= place)).mean()
                for since in places
                if since <= place
            )
            for place in places
        ]
        assert found == pytest.approx(by_hand)
        assert found == pytest.approx([life_evidence(looks, place) for place in places])
