"""Thresholds of earlier partitions, and results of audits; `benchmarks/truth/cascade.py` simulates error rates."""

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
import scipy

from benchmarks.truth.shared import live
from dagster_llm_batch.core.audit import (
    ALARM,
    WINDOW,
    Audit,
    Audited,
    AuditHistory,
    Calibration,
    Point,
    bound_share,
    calibrate_points,
    count_independent,
    evidence_after,
    find_alarm,
    summarize_audits,
)
from dagster_llm_batch.core.cascade import Cascade, Rolling
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.core.thresholds import (
    ALL,
    Place,
    are_above,
    count_allowed,
    count_allowed_before,
    digest_requests,
)
from dagster_llm_batch.errors import ConfigError
from tests.tables import table


def audits_of(counts, rows=20):
    return [Audited(f"{day:03}", rows, wrong) for day, wrong in enumerate(counts)]


@table(("wrong", "rows"), [(0, 100), (3, 400), (13, 400), (399, 400), (6_000, 200_000)])
@table("confidence", [0.9, 0.95, 0.999])
def test_the_bounds_are_clopper_and_pearsons(wrong, rows, confidence):
    low, high = bound_share(wrong, rows, confidence)
    assert high == pytest.approx(scipy.stats.beta.ppf(confidence, wrong + 1, rows - wrong), abs=1e-9)
    assert low == pytest.approx(scipy.stats.beta.ppf(1 - confidence, wrong, rows - wrong + 1) if wrong else 0, abs=1e-9)


def test_of_nothing_nothing_is_known_and_all_wrong_is_bounded_from_below_alone():
    assert bound_share(0, 0, 0.95) == (0.0, 1.0)
    low, high = bound_share(30, 30, 0.95)
    assert low == pytest.approx(0.05 ** (1 / 30))
    assert high == 1


def test_a_window_is_of_the_last_twenty_partitions():
    found = summarize_audits(audits_of([19] * 5 + [1] * WINDOW), 0.95, 0.95)
    assert (found.window[0], found.window[-1], len(found.window)) == ("005", "024", WINDOW)
    assert (found.rows, found.wrong) == (20 * WINDOW, WINDOW)
    assert (found.low, found.high) == bound_share(WINDOW, 20 * WINDOW, 0.95)
    assert summarize_audits([], 0.95, 0.95) == AuditHistory((), 0, 0, 0.0, 1.0, evidence=0.0, alarm=None)


def evidence_by_definition(counts, rows, agreement):
    """Compute the recursion of the specification in plain floats."""
    promised = 1 - agreement
    bets, found = dict.fromkeys((1.3, 1.6, 2, 3, 5), 0.0), []
    for wrong in counts:
        for times, before in bets.items():
            p = times * promised
            bets[times] = (1 + before) * (p / promised) ** wrong * ((1 - p) / (1 - promised)) ** (rows - wrong)
        found.append(sum(bets.values()) / len(bets))
        if found[-1] >= 365:
            bets = dict.fromkeys(bets, 0.0)
    return found


@pytest.mark.parametrize("agreement", [0.9, 0.95, 0.98])
def test_the_evidence_is_that_of_the_specification_and_begins_anew_after_an_alarm(agreement):
    counts = np.random.default_rng(3).binomial(20, 0.09, 90)
    expected = evidence_by_definition(counts, 20, agreement)
    found = evidence_after(np.full(90, 20), counts, agreement)
    assert found == pytest.approx(expected)
    if agreement > 0.9:
        first = int(np.argmax(found >= ALARM))
        assert found[first] >= ALARM > found[first + 1]
        assert find_alarm(audits_of(counts), agreement) == f"{np.flatnonzero(found >= ALARM)[-1]:03}"
    # Several lives computed at once are independent.
    both = evidence_after(np.full((2, 90), 20), np.stack([counts, counts * 0]), agreement)
    assert both[0] == pytest.approx(expected)
    assert both[1].max() < 5


@pytest.mark.parametrize("agreement", [0.05, 0.3, 0.5, 0.999])
def test_evidence_is_a_number_whatever_was_promised_and_however_much_was_audited(agreement):
    rows = np.full(400, 50_000)
    assert np.isfinite(evidence_after(rows, rows, agreement)).all()
    assert np.isfinite(evidence_after(rows, rows * 0, agreement)).all()


def test_partitions_without_an_audited_row_are_no_evidence():
    assert find_alarm(audits_of([0] * 2 * ALARM, rows=0), 0.95) is None
    some = [*audits_of([5, 5], rows=20), *audits_of([0] * 9, rows=0), *audits_of([5], rows=20)]
    counts = np.array([(one.rows, one.wrong) for one in some if one.rows])
    assert summarize_audits(some, 0.95, 0.95).evidence == pytest.approx(evidence_after(*counts.T, 0.95)[-1])


def test_the_threshold_of_earlier_rows_is_that_of_a_sample_of_an_endless_table():
    rng = np.random.default_rng(5)
    scores, wrong = rng.random(400).round(1), rng.random(400) < 0.2
    digests = rng.integers(0, 1 << 63, 400, np.uint64) * np.uint64(2)
    points = [Point(*one) for one in zip(scores.tolist(), digests.tolist(), wrong.tolist(), strict=True)]
    found = calibrate_points(points, ("1", "2"), 10**8, 0.9, 0.95)
    allowed, threshold = found.allowed, found.threshold
    assert (found.earlier, found.rows, found.wrong) == (("1", "2"), 400, int(wrong.sum()))
    assert allowed == count_allowed(400, 10**9, 0.9, 0.95) == int(scipy.stats.binom.ppf(0.05, 400, 0.1)) - 1
    assert found.bound == pytest.approx(scipy.stats.beta.ppf(0.95, allowed + 1, 400 - allowed), abs=1e-6)
    # Exactly the allowed wrong rows are above the threshold, which is the next wrong one: digests keep all their bits.
    assert int((are_above(scores, digests, threshold) & wrong).sum()) == allowed
    assert threshold.digest in digests.tolist()
    assert calibrate_points([Point(0.5, n, False) for n in range(400)], ("1", "2"), 100, 0.9, 0.95).threshold == ALL


@pytest.mark.parametrize("rows", [1, 19, 20, 100, 2_000])
@pytest.mark.parametrize("points", [60, 400])
def test_of_few_rows_fewer_earlier_ones_may_be_wrong(points, rows):
    most = int(Fraction("0.05") * rows)

    def chance(allowed, wrong):
        return scipy.stats.hypergeom.cdf(allowed, points + rows, allowed + wrong + 1, points) if wrong < rows else 0

    allowed, bound = count_allowed_before(points, rows, 0.95, 0.95)
    of_many = count_allowed(points, 10**9, 0.95, 0.95)
    assert allowed == max(k for k in range(-1, of_many + 1) if k < 0 or chance(k, most) <= 0.05)
    fewest = min(wrong for wrong in range(rows + 1) if chance(allowed, wrong) <= 0.05) if allowed >= 0 else 0
    assert bound * rows == pytest.approx(fewest)
    assert fewest <= most


@pytest.mark.parametrize("rows", [20, 50, 200, 1_000])
def test_a_partition_of_few_rows_is_below_what_was_promised_as_seldom_as_one_of_many(rows):
    """Count partitions below the guarantee: with the share of all rows, 7 to 20 % were, as few rows vary by chance."""
    rng, runs, broken = np.random.default_rng(8), 1_000, 0

    def drawn(count):
        scores = rng.random(count)
        return scores, rng.integers(0, 1 << 63, count).astype(np.uint64), rng.random(count) < 0.35 - 0.3 * scores

    for _ in range(runs):
        points = [Point(*one) for one in zip(*(values.tolist() for values in drawn(400)), strict=True)]
        threshold = calibrate_points(points, ("1", "2"), rows, 0.95, 0.95).threshold
        scores, digests, wrong = drawn(rows)
        broken += (are_above(scores, digests, threshold) & wrong).sum() > 0.05 * rows
    assert 0.01 * runs < broken < 0.065 * runs


def test_rows_of_one_request_count_as_one_row_of_their_number():
    assert count_independent(np.ones(2_000, int)) == 2_000
    assert count_independent(np.full(20, 100)) == 20
    assert count_independent(np.array([1_000, *[1] * 1_000])) == 3
    assert count_independent(np.empty(0, int)) == 0
    alike = [Point(1 - n / 1_000, n, n % 10 == 0, n // 4) for n in range(400)]
    found = calibrate_points(alike, ("1", "2"), 2_000, 0.9, 0.95)
    of_each = calibrate_points([point._replace(request=None) for point in alike], ("1", "2"), 2_000, 0.9, 0.95)
    assert 0 < found.allowed < of_each.allowed
    assert found.allowed == count_allowed_before(100, 2_000, 0.9, 0.95)[0] * 4
    assert found.bound == count_allowed_before(100, 2_000, 0.9, 0.95)[1] <= 0.1


@pytest.mark.simulation
@pytest.mark.parametrize("kind", ["all, in hundreds", "few of many rows", "few of many rows, others than before"])
def test_a_partition_whose_rows_share_requests_keeps_the_promise_which_rows_alone_would_not(kind):
    assert live(kind, 200).broken < 0.05
    assert live(kind, 200, as_rows=True).broken > 0.1


def test_an_audit_is_stored_and_counted_and_forgets_who_is_erased():
    audit = Audit(share=0.01, requests=["a", "b", "b"], history_id="h", earlier=("1", "2"), calibrated_on=400)
    assert audit.counts is None
    digests = digest_requests(audit.requests, "seed").tolist()
    points = [Point(float("-inf"), digests[0], False), *(Point(0.5, digest, True) for digest in digests[1:])]
    audit = Audit(**{**audit.__dict__, "points": points, "rows": 3, "wrong": 2})
    assert audit.counts == {"history": "h", "rows": 3, "wrong": 2, "points": 3}
    left = audit.keep({"a"}, "seed")
    assert (left.requests, left.points, left.wrong) == (["a"], points[:1], 2)


def test_an_audited_row_without_an_answer_of_the_oracle_counts_as_wrong_and_one_that_is_not_taken_does_not():
    def results(**of):
        labels = [None if outcome != "succeeded" else topic for outcome, topic, _ in of.values()]
        return pa.table(
            {
                "llm_request_id": list(of),
                "llm_outcome": [outcome for outcome, _, _ in of.values()],
                "confidence": pa.array([score for *_, score in of.values()], pa.float64()),
                "topic": pa.array(labels, pa.string()),
            }
        )

    good = "succeeded"
    cheap = results(
        right=(good, "x", 0.9), wrong=(good, "y", 0.9), refused=(good, "x", 0.8), lost=(good, "x", 0.8),
        unsure=(good, "y", 0.1), no_reply=("invalid", None, None),
    )  # fmt: skip
    oracle = results(
        right=(good, "x", 1), wrong=(good, "x", 1), refused=("errored", None, None), unsure=(good, "x", 1),
        no_reply=(good, "x", 1),
    )  # fmt: skip
    requests = [*cheap["llm_request_id"].to_pylist(), "right"]
    planned = Levels(
        calibration_id="c", oracle="openai/large", score="confidence", target="topic", agreement=0.9, confidence=0.95,
        seed="s", rows=100, sample=0, sampled=[], audit=Audit(share=0.05, requests=requests, history_id="h"),
    )  # fmt: skip
    found = Calibration(("1", "2"), 400, wrong=9, allowed=2, bound=0.1, threshold=Place(0.5, 0))
    levels = Levels.of_json(planned.set_threshold(found).calibrate([cheap], [oracle]).as_json())
    assert (levels.threshold, levels.wrong) == (Place(0.5, 0), 9)
    assert levels.audit.counts == {"history": "h", "rows": 7, "wrong": 3, "points": 7}
    assert [point.is_wrong for point in levels.audit.points] == [False, True, True, True, True, False, False]
    # In a partition with a separate sample, sampled rows are right: the oracle has labeled them.
    own = replace(planned, sampled=["wrong", "right"], sample=2, agreement=0.01, confidence=0.01)
    own = own.calibrate([cheap], [oracle])
    assert own.threshold == ALL
    assert own.audit.counts == {"history": "h", "rows": 7, "wrong": 3, "points": 2}


@pytest.mark.parametrize(
    ("given", "words"),
    [({"audit": 0}, "above 0"), ({"audit": 0.6}, "at most"), ({"audit": float("nan")}, "share"), ({"rows": 58}, "59")],
)
def test_a_rolling_calibration_that_cannot_be_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        Cascade("openai/large", "topic", calibrate=Rolling(**given))
