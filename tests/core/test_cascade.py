"""The promise of a cascade, by simulation: seeded, and vectorized so that thousands of runs take seconds."""

import re
from itertools import count, product
from pathlib import Path

import numpy as np
import pytest
import scipy

from benchmarks.truth.cascade import populations
from dagster_llm_batch.core.cascade import Cascade
from dagster_llm_batch.core.thresholds import (
    ALL,
    NOTHING,
    are_above,
    choose_sample,
    count_allowed,
    count_least,
    digest_keys,
    digest_requests,
    expect_accepted,
    find_bound,
    find_threshold,
    look_confidence,
    reach_probability,
    relative_cost,
    smallest,
)
from dagster_llm_batch.errors import ConfigError, InputError
from tests.tables import table

CONFIDENCE = 0.95


@table("agreement", [0.8, 0.9, 0.95, 0.98, 0.99])
@table(("sample", "rows"), [(59, 60), (93, 500), (208, 4000), (208, 1_000_000), (1200, 100_000)])
def test_as_many_may_be_wrong_as_the_exact_test_says(agreement, sample, rows):
    if rows < 20 * sample:
        wrong = round(rows * (1 - agreement) * 1000) // 1000 + 1
        chances = scipy.stats.hypergeom.cdf(np.arange(sample + 1), rows, wrong, sample)
    else:
        chances = scipy.stats.binom.cdf(np.arange(sample + 1), sample, 1 - agreement)
    assert count_allowed(sample, rows, agreement, CONFIDENCE) == int((chances <= 1 - CONFIDENCE).sum()) - 1


def test_the_least_samples_and_the_useful_ones_are_those_of_the_tables():
    assert [count_least(agreement, 0.95) for agreement in (0.9, 0.95, 0.98, 0.99)] == [29, 59, 149, 299]
    for agreement, confidence in product((0.01, 0.25, 0.5, 0.9, 0.999), (0.01, 0.5, 0.75, 0.9999)):
        counted = next(n for n in count(1) if agreement**n <= 1 - confidence)
        assert count_least(agreement, confidence) == counted
    # Fast, although there are three thousand million rows.
    assert count_least(0.999999999, 0.95) == 2_995_732_357
    steps = [n for n in range(1, 210) if count_allowed(n, 10**6, 0.95, 0.95) > count_allowed(n - 1, 10**6, 0.95, 0.95)]
    assert steps == [59, 93, 124, 153, 181, 208]


def test_the_bound_is_what_was_asked_for_or_less_and_known_before_any_answer():
    for sample, rows in ((59, 10**6), (93, 10**6), (208, 3000)):
        allowed = count_allowed(sample, rows, 0.95, 0.95)
        bound = find_bound(allowed, sample, rows, 0.95)
        assert 0.04 < bound <= 0.05
    exact = scipy.stats.beta.ppf(0.95, 2, 92)
    assert find_bound(1, 93, 10**6, 0.95) == pytest.approx(exact, abs=2e-6)
    assert find_bound(-1, 10, 100, 0.95) == 0


@pytest.mark.simulation
@pytest.mark.parametrize("sample", [59, 93, 208])
def test_the_level_is_exact_where_the_errors_are_just_too_many(sample):
    rows, runs, generator = 20_000, 2_000, np.random.default_rng(sample)
    wrong = np.zeros(rows, bool)
    wrong[:1001] = True
    scores = np.ones(rows)
    allowed = count_allowed(sample, rows, 0.95, 0.95)
    failures = 0
    for _ in range(runs):
        digests = generator.integers(0, 1 << 63, rows).astype(np.uint64)
        drawn = generator.choice(rows, sample, replace=False)
        threshold = find_threshold(scores[drawn], digests[drawn], wrong[drawn], allowed)
        failures += int((are_above(scores, digests, threshold) & wrong).sum() > 0.05 * rows)
    # An `allowed` that is off by one fails in 200 to 400 of them, or in 20.
    assert 63 <= failures <= 131


# The lost share of the oracle's rows, compared with an ideal threshold: from the table of the simulations, plus 0.03.
LOST = {(0.95, 100): 0.25, (0.95, 200): 0.21, (0.95, 500): 0.15, (0.9, 200): 0.25, (0.9, 500): 0.21}


@pytest.mark.simulation
@pytest.mark.parametrize(("agreement", "sample"), [(0.95, 60), *LOST])
def test_no_population_breaks_the_promise_more_often_than_allowed_and_the_oracle_is_asked_little(agreement, sample):
    rows, runs = 5_000, 400
    generator = np.random.default_rng(7)
    allowed = count_allowed(sample, rows, agreement, CONFIDENCE)
    asked, ideal, failures = [], [], dict[str, int]()
    for name, scores, wrong in populations(rows, generator):
        digests = generator.integers(0, 1 << 63, rows).astype(np.uint64)
        order = np.lexsort((digests, scores))[::-1]
        may = np.flatnonzero(np.cumsum(wrong[order]) <= (1 - agreement) * rows)
        ideal.append(1 - min(len(may), int(np.isfinite(scores).sum())) / rows)
        failures[name] = 0
        for _ in range(runs):
            drawn = generator.choice(rows, sample, replace=False)
            threshold = find_threshold(scores[drawn], digests[drawn], wrong[drawn], allowed)
            accepted = are_above(scores, digests, threshold)
            failures[name] += int((accepted & wrong).sum() > (1 - agreement) * rows)
            accepted[drawn] = False
            asked.append(1 - accepted.mean())
    assert max(failures.values()) <= 35, failures
    if (agreement, sample) in LOST:
        assert np.mean(asked) <= np.mean(ideal) + LOST[agreement, sample] + 0.03


def share_of_failures(wrong, requests, draw, runs=300, agreement=0.95, lost=None, *, drops_lost=False):
    """Return how often a table breaks the promise; `draw` returns the places of the sampled rows."""
    generator, rows, failures = np.random.default_rng(3), len(wrong), 0
    scores = np.ones(rows)
    for _ in range(runs):
        digests = generator.permutation(int(requests.max()) + 1).astype(np.uint64)[requests]
        drawn = draw(generator)
        is_lost = np.zeros(len(drawn), bool) if lost is None else lost(generator, drawn)
        if drops_lost:
            drawn, is_lost = drawn[~is_lost], is_lost[~is_lost]
        allowed = count_allowed(len(drawn), rows, agreement, CONFIDENCE)
        threshold = find_threshold(scores[drawn], digests[drawn], wrong[drawn] | is_lost, allowed)
        failures += int((are_above(scores, digests, threshold) & wrong).sum() > (1 - agreement) * rows)
    return failures / runs


def test_rows_are_sampled_since_sampled_requests_miss_a_template_that_many_rows_share():
    # A thousand rows of five thousand share one request, whose label is wrong.
    requests = np.concatenate([np.zeros(1000, int), np.arange(1, 4001)])
    wrong = requests == 0
    first_rows = np.flatnonzero(np.concatenate([[True], np.diff(requests) != 0]))
    of_rows = share_of_failures(wrong, requests, lambda g: g.choice(5000, 200, replace=False))
    of_requests = share_of_failures(wrong, requests, lambda g: g.choice(first_rows, 200, replace=False))
    assert of_rows <= 0.05
    # The negative control. Ties are split by request, so half of the other requests may be below the template's.
    assert of_requests > 0.9


def test_a_sampled_row_without_an_answer_counts_as_wrong_since_those_may_be_the_wrong_ones():
    rows = 20_000
    wrong = np.arange(rows) < 0.0505 * rows + 200
    requests = np.arange(rows)

    def lost(generator, drawn):
        # The oracle refuses rows with a wrong label of the model more often than others.
        return generator.random(len(drawn)) < np.where(wrong[drawn], 0.25, 0.01)

    draw = lambda generator: generator.choice(rows, 208, replace=False)  # noqa: E731
    assert share_of_failures(wrong, requests, draw, lost=lost) <= 0.05
    assert share_of_failures(wrong, requests, draw, lost=lost, drops_lost=True) > 0.08


def failures_of(generator, choose, runs=300, rows=4_000, agreement=0.95):
    """Return how often a table breaks the promise; `choose` returns the accepted rows, given scores and errors."""
    failures = 0
    for _ in range(runs):
        hard = generator.beta(1, 4, rows)
        scores, wrong = 1 - hard, generator.random(rows) < hard
        failures += int((choose(scores, wrong) & wrong).sum() > (1 - agreement) * rows)
    return failures / runs


def test_a_threshold_is_set_once_since_one_that_is_looked_at_again_and_again_breaks_the_promise():
    generator, most, digests = np.random.default_rng(4), 200, np.arange(4_000, dtype=np.uint64)

    def accepted(scores, wrong, drawn):
        allowed = count_allowed(len(drawn), len(scores), 0.95, CONFIDENCE)
        return are_above(scores, digests, find_threshold(scores[drawn], digests[drawn], wrong[drawn], allowed))

    def once(scores, wrong):
        return accepted(scores, wrong, generator.choice(len(scores), most, replace=False))

    def peeking(scores, wrong):
        # Look after each ten labels, and keep the largest accepted share.
        drawn = generator.choice(len(scores), most, replace=False)
        looks = (accepted(scores, wrong, drawn[:count]) for count in range(60, most + 1, 10))
        return max(looks, key=np.count_nonzero)

    assert failures_of(generator, once) <= 0.06
    assert failures_of(generator, peeking) > 0.07


def share_broken_by_looks(confidence_of, runs=1_500):
    """Return how often a user who raises the sample until the oracle's share pleases delivers a broken promise.

    The model is wrong for 6 in 100 rows, and its scores are uninformative. If more than 5 of 6 rows are accepted, more
    than 5 % are wrong. The user stops at the first look that accepts 9 of 10.
    """
    sizes, generator, broken = (100, 200, 300, 400, 600, 800), np.random.default_rng(11), 0
    allowed = {n: count_allowed(n, 10**6, 0.95, confidence_of(look)) for look, n in enumerate(sizes, start=1)}
    for _ in range(runs):
        scores, wrong = generator.random(sizes[-1]), generator.random(sizes[-1]) < 0.06
        digests = np.arange(sizes[-1], dtype=np.uint64)
        for n in sizes:
            place = find_threshold(scores[:n], digests[:n], wrong[:n], allowed[n])
            accepted = 1 - min(max(place.score, 0.0), 1.0)
            if accepted >= 0.9:
                break
        broken += 0.06 * accepted > 0.05
    return broken / runs


@pytest.mark.simulation
def test_who_raises_the_sample_until_it_pleases_does_not_break_the_promise_more_often_than_allowed():
    assert share_broken_by_looks(lambda look: look_confidence(CONFIDENCE, look)) <= 0.05 + 3 * (0.0475 / 1_500) ** 0.5
    # The negative control: each look takes all of the 5 %.
    assert share_broken_by_looks(lambda look: CONFIDENCE) > 0.08


def test_all_looks_at_the_same_rows_share_the_risk_and_the_first_one_has_nearly_all_of_it():
    shares = [1 - look_confidence(0.95, look) for look in range(1, 10_000)]
    assert 0.0499 < sum(shares) <= 0.05
    assert shares[0] > 0.046
    assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("score", [np.inf, np.nan])
def test_a_score_of_infinity_is_refused_since_it_would_be_above_any_threshold(score):
    scores, digests = np.array([0.5, score, 0.7]), np.arange(3, dtype=np.uint64)
    with pytest.raises(InputError, match="1 of 3 scores are infinity or NaN"):
        find_threshold(scores, digests, np.array([False, True, False]), 0)
    with pytest.raises(InputError, match="finite number"):
        are_above(scores, digests, NOTHING)


def test_a_threshold_is_of_its_own_partition_since_an_earlier_one_misses_errors_that_are_new():
    generator, digests = np.random.default_rng(6), np.arange(4_000, dtype=np.uint64)
    known = {}

    def new_errors(scores, wrong):
        return wrong | ((scores > 0.9) & (generator.random(len(scores)) < 0.2))

    def threshold_of(scores, wrong):
        drawn = generator.choice(len(scores), 400, replace=False)
        allowed = count_allowed(400, len(scores), 0.95, CONFIDENCE)
        return find_threshold(scores[drawn], digests[drawn], wrong[drawn], allowed)

    def failures(is_old):
        failed = 0
        for _ in range(100):
            hard = generator.beta(1, 4, 4_000)
            scores, wrong = 1 - hard, generator.random(4_000) < hard
            known["old"] = threshold_of(scores, wrong)
            wrong = new_errors(scores, wrong)
            threshold = known["old"] if is_old else threshold_of(scores, wrong)
            failed += int((are_above(scores, digests, threshold) & wrong).sum() > 0.05 * 4_000)
        return failed

    assert failures(is_old=False) <= 8
    assert failures(is_old=True) > 50


def test_an_oracle_that_disagrees_with_itself_takes_its_noise_from_what_is_accepted():
    generator, rows, sample = np.random.default_rng(9), 5_000, 500
    hard = generator.beta(1, 30, rows)
    wrong = generator.random(rows) < hard
    digests = np.arange(rows, dtype=np.uint64)
    allowed = count_allowed(sample, rows, 0.98, CONFIDENCE)
    shares = []
    for noise in (0.0, 0.03):
        accepted = 0
        for _ in range(100):
            drawn = generator.choice(rows, sample, replace=False)
            disagrees = wrong[drawn] ^ (generator.random(sample) < noise)
            threshold = find_threshold(1 - hard[drawn], digests[drawn], disagrees, allowed)
            accepted += np.count_nonzero(are_above(1 - hard, digests, threshold))
        shares.append(1 - accepted / rows / 100)
    assert shares[1] > shares[0] + 0.2, shares


def test_the_sample_grows_with_the_root_of_the_rows_and_lies_on_a_step():
    sizes = {rows: choose_sample(rows, 0.95, 0.95) for rows in (1_000, 5_000, 20_000, 100_000)}
    assert 130 <= sizes[1_000] <= 200
    assert 300 <= sizes[5_000] <= 450
    assert 750 <= sizes[20_000] <= 900
    assert 1_800 <= sizes[100_000] <= 2_000
    for rows, sample in sizes.items():
        before = count_allowed(sample - 1, rows, 0.95, 0.95)
        assert count_allowed(sample, rows, 0.95, 0.95) == before + 1
    assert choose_sample(30, 0.95, 0.95) == 30
    assert choose_sample(1_000, 0.95, 0.95, at_least=300) >= 300


def test_a_row_is_drawn_by_its_key_and_a_seed_alone_and_not_by_what_splits_ties():
    keys = [f"k{number}" for number in range(4000)]
    drawn, again = digest_keys(keys, "a"), digest_keys(reversed(keys), "a")[::-1]
    assert (drawn == again).all()
    assert np.corrcoef(drawn.astype(float), digest_requests(keys, "a").astype(float))[0, 1] == pytest.approx(
        0, abs=0.05
    )
    assert (np.sort(smallest(drawn[:1000], drawn[1000:], 59)) == np.sort(drawn)[:59]).all()
    assert scipy.stats.kstest(drawn / 2.0**64, "uniform").pvalue > 0.001


def test_nothing_or_everything_is_accepted_where_the_sample_says_so():
    scores, digests = np.array([0.5, 0.9, -np.inf]), np.array([1, 2, 3], np.uint64)
    wrong = np.array([False, True, False])
    assert find_threshold(scores, digests, wrong, -1) == NOTHING
    assert find_threshold(scores, digests, wrong, 1) == ALL
    assert are_above(scores, digests, ALL).tolist() == [True, True, False]
    assert are_above(scores, digests, NOTHING).tolist() == [False] * 3
    assert are_above(scores, digests, find_threshold(scores, digests, wrong, 0)).tolist() == [False] * 3


def test_how_probable_it_was_that_the_oracle_answers_a_request():
    assert reach_probability(1, 100, 1000) == pytest.approx(0.1)
    assert reach_probability(2, 100, 1000) == pytest.approx(1 - (900 / 1000) * (899 / 999))
    assert reach_probability(950, 100, 1000) == 1


@pytest.mark.parametrize("agreement", [0.9, 0.95, 0.98])
def test_what_is_expected_to_be_accepted_is_what_the_truth_page_found(agreement):
    rows, page = 5_000, (Path(__file__).parents[2] / "docs/truth.md").read_text()
    # | promised | scores | cascade asks | fails | by eye asks | fails | cheap alone fails | spared | at least |
    lines = (line.strip("| ").split(" | ") for line in page.partition("## Dollars")[2].splitlines() if "|" in line)
    asked = [float(cells[2]) for cells in lines if len(cells) == 9 and cells[0] == str(agreement)]
    assert len(asked) == 7
    sample = choose_sample(rows, agreement, CONFIDENCE)
    accepted = (1 - np.mean(asked)) / (1 - sample / rows)
    assert expect_accepted(agreement) == pytest.approx(accepted, abs=0.01)


def test_a_cascade_does_not_pay_where_the_price_gap_is_small_or_the_sample_is_most_of_the_table():
    usual = {agreement: expect_accepted(agreement) for agreement in (0.9, 0.95, 0.98)}
    assert relative_cost(1, 10, 500, 5_000, usual[0.95]) < 1
    assert relative_cost(1, 5, 500, 5_000, usual[0.98]) < 1
    assert relative_cost(1, 4, 500, 5_000, usual[0.98]) > 1
    assert relative_cost(1, 2, 500, 5_000, usual[0.95]) > 1
    assert relative_cost(1, 100, 900, 1_000, usual[0.95]) > 0.95
    assert relative_cost(1, 10, 500, 5_000, 0.9) < 1
    assert relative_cost(0, 0, 500, 5_000, 0.9) == float("inf")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"agreement": 1.0}, "make it the model"),
        ({"agreement": 1}, "make it the model"),
        ({"agreement": 0.0}, "above 0"),
        ({"confidence": 1.5}, "above 0"),
        ({"sample": 58}, "fewer than 60"),
        ({"score": "topic"}, "two columns"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        Cascade(**{"oracle": "openai/large", "target": "topic", **given})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"within": 0.03}, "within needs Cascade.gold"),
        ({"gold": "ticket_gold"}, "gold needs Cascade.within"),
        ({"gold": "ticket_gold", "within": 0.0}, "above 0"),
        ({"gold": "ticket_gold", "within": 0.03, "agreement": 0.9}, "two guarantees"),
        ({"gold": "ticket_gold", "within": 0.03, "sample": 98}, "fewer than 101 .* at within=0.03"),
    ],
)
def test_a_promise_against_gold_that_cannot_be_kept_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        Cascade(**{"oracle": "openai/large", "target": "topic", **given})


def test_what_within_leaves_is_exact():
    shares = [Cascade("openai/large", "topic", gold="gold", within=share).least_share for share in (0.03, 0.07, 0.1)]
    assert shares == [0.97, 0.93, 0.9]


def test_the_guide_has_the_smallest_sample_of_each_guarantee() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "cascade.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d\d) % \| (\d+) \| (\d+) \|$", guide, re.MULTILINE)
    assert len(rows) == 3
    for agreement, *samples in rows:
        for sample, confidence in zip(samples, (0.9, 0.95), strict=True):
            needed = look_confidence(confidence, 1)
            assert count_allowed(int(sample), 10**6, int(agreement) / 100, needed) == 0
            assert count_allowed(int(sample) - 1, 10**6, int(agreement) / 100, needed) == -1
