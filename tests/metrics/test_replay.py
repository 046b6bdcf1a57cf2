"""The expected accepted share of a cascade; a simulation of why the certifying sample must not choose the pair."""

import numpy as np
import pytest

from dagster_llm_batch.core.audit import Point, calibrate_points
from dagster_llm_batch.core.thresholds import are_above, count_allowed, find_threshold
from dagster_llm_batch.metrics.replay import Pool, replay

AGREEMENT, CONFIDENCE = 0.95, 0.95


def population(rows, generator, sharpness=6.0):
    """Draw calibrated scores: the surer, the more often right."""
    scores = generator.beta(sharpness, 1.0, rows)
    return scores, generator.random(rows) > scores


def accepted_by_a_run(scores, wrong, sample, generator):
    """Return the share of these rows that a real cascade accepts."""
    rows = len(scores)
    digests = generator.integers(0, 1 << 63, rows).astype(np.uint64)
    drawn = generator.choice(rows, sample, replace=False)
    allowed = count_allowed(sample, rows, AGREEMENT, CONFIDENCE)
    threshold = find_threshold(scores[drawn], digests[drawn], wrong[drawn], allowed)
    return are_above(scores, digests, threshold).mean()


def test_a_replay_of_earlier_rows_says_what_the_next_run_accepts():
    rows, sample, earlier = 4_000, 208, 600
    generator = np.random.default_rng(11)
    within, shares, told = 0, [], []
    for _ in range(60):
        scores, wrong = population(earlier, generator)
        said = replay(Pool(scores, wrong), sample, rows, AGREEMENT, CONFIDENCE)
        came = accepted_by_a_run(*population(rows, generator), sample, generator)
        within += said.low <= came <= said.high
        shares.append(came)
        told.append(said.share)
    # 9 in 10 are between the ends; of 60 that is 54.
    assert within >= 48
    assert np.mean(told) == pytest.approx(np.mean(shares), abs=0.04)


def test_a_replay_says_what_is_accepted_where_earlier_partitions_set_the_threshold():
    rows, points, generator = 2_000, 400, np.random.default_rng(12)
    shares, told = [], []
    for _ in range(40):
        said = replay(Pool(*population(600, generator)), points, rows, AGREEMENT, CONFIDENCE, is_earlier=True)
        before = (*population(points, generator), generator.integers(0, 1 << 62, points))
        of_before = zip(before[0].tolist(), before[2].tolist(), before[1].tolist(), strict=True)
        found = calibrate_points([Point(*one) for one in of_before], ("1", "2"), rows, AGREEMENT, CONFIDENCE)
        scores, _ = population(rows, generator)
        shares.append(are_above(scores, np.arange(rows, dtype=np.uint64), found.threshold).mean())
        told.append(said.share)
    assert np.mean(told) == pytest.approx(np.mean(shares), abs=0.04)


def test_the_same_rows_give_the_same_figures_and_replies_that_do_not_fit_are_never_accepted():
    scores, wrong = population(300, np.random.default_rng(3))
    scores[:60], wrong[:60] = -np.inf, False
    one, other = (replay(Pool(scores, wrong), 93, 5_000, AGREEMENT, CONFIDENCE) for _ in range(2))
    assert (one.share, one.low, one.high) == (other.share, other.low, other.high)
    assert (one.mask == other.mask).all()
    assert not one.mask[:60].any()
    assert 0 < one.low < one.share < one.high <= 0.8


def test_a_sample_that_is_too_small_accepts_nothing():
    scores, _ = population(300, np.random.default_rng(3))
    told = replay(Pool(scores, np.zeros(300, bool)), 58, 5_000, AGREEMENT, CONFIDENCE)
    assert (told.share, told.high, told.mask.any()) == (0.0, 0.0, False)
    # All rows are right, so one more row in the sample accepts all.
    assert replay(Pool(scores, np.zeros(300, bool)), 59, 5_000, AGREEMENT, CONFIDENCE).low == 1.0


def test_a_pair_that_is_chosen_by_the_sample_that_certifies_it_breaks_its_promise_and_by_earlier_data_not():
    pairs, sample, runs = 10, 124, 4_000
    generator = np.random.default_rng(20_261_128)
    # Ten cheap models with uninformative scores, each wrong a little more often than allowed.
    certifying, earlier = generator.random((2, runs, pairs, sample)) < 0.0505

    def accepted(wrong):
        """Return the share of rows above the first excess error in the sample: the only evidence about such a model."""
        allowed = count_allowed(wrong.shape[-1], 10**6, AGREEMENT, CONFIDENCE)
        return (wrong.cumsum(axis=-1) <= allowed).mean(axis=-1)

    def broken(certificate, evidence):
        """Return how often the pair with the best evidence is certified to accept all, which is too much."""
        return (accepted(certificate) == 1)[np.arange(runs), accepted(evidence).argmax(axis=1)].mean()

    most = 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5
    assert broken(certifying, earlier) <= most
    assert broken(certifying[..., 62:], certifying[..., :62]) <= most
    # The negative control: the sample certifies the pair that it has chosen.
    assert broken(certifying, certifying) >= 0.25
