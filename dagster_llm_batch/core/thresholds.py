"""The threshold of a cascade's score, and the rows that the oracle samples to set it.

The guarantee: **with probability `confidence`, at least the share `agreement` of the delivered labels equals the
oracle's answer.** It assumes nothing about the scores, except that the sample is drawn before they exist.

Rows that the oracle answers agree with it. So only rows above a threshold t can be wrong: if their label is not the
oracle's. Their share falls as t rises. Because it is monotone, one bound holds for the threshold that the sample
chooses, without a correction for the many possible thresholds. With a sample of n rows, uniformly drawn:

    allowed     the most wrong labels k with P(Binomial(n, 1 - agreement) <= k) <= 1 - confidence
    threshold   the place of the wrong sampled row number `allowed + 1`, counted from the surest; accepted is above it

If a table is less than twenty times the sample, the probability is for drawing without replacement. Rows, not requests,
are drawn: a request that a thousand rows share is a thousand labels. A sampled row without an answer of the oracle
counts as wrong: the oracle may fail at the very rows where the model is wrong but sure. Equal scores are split by a
digest of the request, since models answer 0.9 for half of all rows.

**Against gold**, with `within`: a row is wrong if the model is wrong and the oracle right. At most by the share of
these rows, the labels are right less often than the oracle's are, so `1 - within` takes the place of `agreement`.

**Filters**, for a target that is yes or no. Rows with the oracle's label are right here, too. So a threshold changes
only the number of errors, and not the number that it is compared with:

    precision   false yes: the model's yes above the threshold that are the oracle's no, F. All true yes of the model
                are delivered as yes, T: accepted, or confirmed by the oracle. At most the share q = 1 - precision of
                F + T may be false. The model's no are accepted without a threshold, since a lost yes does not count.
    recall      lost yes: the model's no above the threshold that are the oracle's yes. At most the share q = 1 - recall
                of all yes of the oracle, T, may be lost. The model's yes are accepted without a threshold.

*Proof.* Let w be the fewest errors that are too many. T fixes it, so it is the same for each threshold. Take the w
surest errors, and with precision the T true yes, too; with recall, the other yes. Of these rows, more than q are
errors. Given that b of them are in the sample, the number k of errors in it is hypergeometric. The guarantee fails only
if k is at most the allowed number. This number is such that P(Binomial(b, q) <= allowed) <= 1 - confidence. The
hypergeometric probability is less, for each T (Uhlmann, Metrika 10, 1966): for zero errors always, and for c errors of
b rows if (q - c / (b - 1)) b >= 1 - q, which is required. With recall, b is the number of sampled yes. With precision,
b is k plus the number of sampled true yes, a, and the allowed number c of a is the largest with
P(Binomial(a + c, q) <= c) <= 1 - confidence. It grows with a, so k is at most allowed for a = b - k only if
P(Binomial(b, q) <= k) is at most 1 - confidence. In both cases it holds for each b, and so in all.

A sampled row without an answer of the oracle counts as an error, and not as a yes: either makes the threshold stricter.
If the sample has too few yes for any error, nothing is accepted: the oracle answers all rows.

**Looks.** A user who raises the sample until the oracle's share pleases has looked several times at the same rows, and
takes the most flattering look. So the looks at the same rows share `1 - confidence`: the first one has 15 of 16 parts
of it, the n-th one 1 / (n (n - 1)) of the rest, which sums to all of it for infinitely many looks (`look_confidence`).

Pure; simulated in tests/core/test_cascade.py. A threshold that is chosen so that the sample itself shows the wanted
agreement breaks such a promise in 20 to 60 of 100 cases.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable
from fractions import Fraction
from itertools import islice
from math import ceil, exp, floor, inf, isqrt, lgamma, log, log1p
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dagster_llm_batch.errors import InputError

__all__ = [
    "ALL",
    "NOTHING",
    "Digests",
    "Flags",
    "Place",
    "Scores",
    "are_above",
    "are_kept",
    "choose_sample",
    "count_allowed",
    "count_allowed_before",
    "count_allowed_false",
    "count_allowed_lost",
    "count_least",
    "digest_keys",
    "digest_requests",
    "expect_accepted",
    "find_bound",
    "find_interval",
    "find_threshold",
    "look_confidence",
    "reach_probability",
    "relative_cost",
    "smallest",
]

Digests = npt.NDArray[np.uint64]


Scores = npt.NDArray[np.float64]


Flags = npt.NDArray[np.bool_]


# A table with fewer rows for each of the sample is no endless source of rows: drawing uses it up.
_FINITE = 20


# The part of the risk that the first look at rows has; later ones share the rest. Most partitions are looked at once.
_FIRST_LOOK = Fraction(15, 16)


# The sample that costs least in simulations is the root of 40 times the rows: 200 of 1,000, 2,000 of 100,000.
_ROOTS = 40


# The share of rows that is accepted with a sample of that size, of tables of 5,000 rows, as a mean over seven kinds of
# scores. It is the complement of the column "cascade asks" of docs/truth.md, without the sample. For 1,000 rows it is
# .03 to .07 less.
_ACCEPTED = ((0.8, 0.93), (0.9, 0.69), (0.95, 0.47), (0.98, 0.26), (1.0, 0.0))


class Place(NamedTuple):
    """A place in the order of rows from the least sure on: the score, and the digest that orders equal scores."""

    score: float
    digest: int


ALL, NOTHING = Place(-inf, 0), Place(inf, 0)


"""Two thresholds: rows with a score are always above the first, and never above the second."""


def digest_keys(keys: Iterable[Any], seed: str) -> Digests:
    """Return a practically uniform number for each key. The rows with the smallest numbers are drawn."""
    return _digests((str(key).encode("utf-8", "surrogatepass") for key in keys), f"row:{seed}")


def digest_requests(request_ids: Iterable[str], seed: str) -> Digests:
    """Return each request's number, which orders equal scores. It is independent of whether a row was drawn."""
    return _digests((request_id.encode() for request_id in request_ids), f"tie:{seed}")


def _digests(texts: Iterable[bytes], seed: str) -> Digests:
    key = hashlib.blake2b(seed.encode("utf-8", "surrogatepass"), digest_size=32).digest()
    whole = b"".join([hashlib.blake2b(text, key=key, digest_size=8).digest() for text in texts])
    return np.frombuffer(whole, ">u8").astype(np.uint64)


def smallest(digests: Digests, others: Digests, count: int) -> Digests:
    """Return the `count` smallest of both."""
    both = np.concatenate([digests, others])
    return both if len(both) <= count else np.partition(both, count - 1)[:count]


def look_confidence(confidence: float, look: int) -> float:
    """Return the confidence that the n-th look at the same rows needs, from 1 on, so that all of them keep the promise
    together.
    """
    share = _FIRST_LOOK if look <= 1 else (1 - _FIRST_LOOK) / (look * (look - 1))
    return 1 - (1 - confidence) * float(share)


def count_allowed(sample: int, rows: int, agreement: float, confidence: float) -> int:
    """Return how many rows of a sample may be wrong; -1: zero wrong rows are not enough either."""
    risk, wrong = 1 - confidence, _fewest_too_many(rows, agreement)
    allowed, total = -1, 0.0
    for count, probability in enumerate(_probabilities(sample, rows, wrong, 1 - agreement)):
        total += probability
        if total > risk:
            break
        allowed = count
    return allowed


def count_allowed_false(right: int, precision: float, confidence: float) -> int:
    """Return how many yes of the model above a threshold may be false in a sample; -1: zero are not enough either.

    `right` is the number of sampled rows that both call yes, with any score.
    """
    if right < 1:
        return -1
    risk, share = 1 - confidence, _exact_rest(precision)
    false, total = 0, 0.0
    while True:
        # The probability that the true one number `right` comes after so many false ones.
        choices = _log_choose(right - 1 + false, false)
        total += exp(choices + right * log1p(-share) + false * log(share))
        if total > risk or not _is_dominated(false, right + false, share):
            return false - 1
        false += 1


def count_allowed_lost(yes: int, recall: float, confidence: float) -> int:
    """Return how many yes of the oracle may be lost above a threshold in a sample; -1: zero are not enough either.

    `yes` is the number of sampled rows that the oracle calls yes.
    """
    allowed = count_allowed(yes, _FINITE * yes, recall, confidence) if yes else -1
    while allowed > 0 and not _is_dominated(allowed, yes, _exact_rest(recall)):
        allowed -= 1
    return allowed


def _exact_rest(share: float) -> float:
    return float(1 - Fraction(str(share)))


def _is_dominated(errors: int, rows: int, share: float) -> bool:
    """Return whether so few errors are at most as probable without replacement, from a table of any size."""
    return errors == 0 or (share - errors / (rows - 1)) * rows >= 1 - share


def count_allowed_before(points: int, rows: int, agreement: float, confidence: float) -> tuple[int, float]:
    """Return how many of so many earlier rows may be wrong above a threshold, and a bound of the share of the next
    ones.

    The first is -1 if zero wrong rows are not enough either. The bound is a share of `rows` next rows that is exceeded
    with the probability `1 - confidence` at most.

    If scores mean the same in both, chance decides which rows are the earlier ones. Take the first `allowed + most + 1`
    wrong rows. If at most `allowed` of these are earlier ones, more than `most` of the next ones are wrong above the
    wrong earlier row number `allowed + 1`. With so few next rows, more is required: by chance their share is far
    from the share of all.
    """

    def chance(allowed: int, most: int) -> float:
        return sum(islice(_drawn(points, points + rows, allowed + most + 1), allowed + 1))

    risk, most = 1 - confidence, _fewest_too_many(rows, agreement) - 1
    # Never more than of a table without an end: of many partitions of one row as few may be wrong.
    low, high = -1, count_allowed(points, _FINITE * points, agreement, confidence)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if chance(middle, most) <= risk else (low, middle - 1)
    if low < 0:
        return low, 0.0
    fewest = bisect_left(range(most), x=True, key=lambda wrong: chance(low, wrong) <= risk)
    return low, fewest / max(rows, 1)


def find_bound(allowed: int, sample: int, rows: int, confidence: float) -> float:
    """Return the share of disagreement that is exceeded with the probability `1 - confidence` at most.

    `count_allowed` fixes it before any answer exists; it is the requested share or slightly less.
    """
    if allowed < 0:
        return 0.0
    low, high = 0, rows
    while low < high:
        middle = (low + high) // 2
        chances = _probabilities(sample, rows, middle, middle / rows)
        if sum(p for p, _ in zip(chances, range(allowed + 1), strict=False)) <= 1 - confidence:
            high = middle
        else:
            low = middle + 1
    # So many wrong rows, or more, would have been found out.
    return max(low - 1, 0) / rows


def find_interval(wrong: int, sample: int, rows: int, confidence: float) -> tuple[int, int]:
    """Return how many rows of a table are wrong, at least and at most, if so many of a random sample are.

    Each of the two ends holds with this confidence.
    """
    fewest = 0 if not wrong else rows - round(find_bound(sample - wrong, sample, rows, confidence) * rows)
    return fewest, rows if wrong == sample else round(find_bound(wrong, sample, rows, confidence) * rows)


def _fewest_too_many(rows: int, agreement: float) -> int:
    # Exact: 1 - 0.9 is a little less than a tenth in floating point.
    return floor((1 - Fraction(str(agreement))) * rows) + 1


def _probabilities(sample: int, rows: int, wrong: int, share: float) -> Iterable[float]:
    """Yield the probabilities that 0, 1, … of the sample are wrong, for a number, or a share, of wrong rows in all."""
    if rows < _FINITE * sample:
        return _drawn(sample, rows, min(wrong, rows))
    return _independent(sample, share)


def _independent(sample: int, share: float) -> Iterable[float]:
    for count in range(sample + 1):
        if share in (0.0, 1.0):
            yield float(count == sample * share)
            continue
        yield exp(_log_choose(sample, count) + count * log(share) + (sample - count) * log1p(-share))


def _drawn(sample: int, rows: int, wrong: int) -> Iterable[float]:
    whole = _log_choose(rows, sample)
    for count in range(sample + 1):
        if count > wrong or sample - count > rows - wrong:
            yield 0.0
            continue
        yield exp(_log_choose(wrong, count) + _log_choose(rows - wrong, sample - count) - whole)


def _log_choose(of: int, count: int) -> float:
    return lgamma(of + 1) - lgamma(count + 1) - lgamma(of - count + 1)


def count_least(agreement: float, confidence: float) -> int:
    """Return the smallest sample with which any label can be accepted, of a table of any size."""
    agreement, risk = float(agreement), 1 - float(confidence)
    # The logarithms may be off by one at either side, and counting up from 1 takes too long for agreement=0.999999999.
    about = max(1, ceil(log(risk) / log(agreement)))
    return next((n for n in range(max(1, about - 2), about + 3) if agreement**n <= risk), about + 3)


def choose_sample(rows: int, agreement: float, confidence: float, at_least: int = 1, times: float = 1.0) -> int:
    """Return how many rows of a table to sample: `rows` if a sample is useless, since it would be nearly all rows.

    `at_least` is the least that the oracle's provider takes in one batch. The sample is so many `times` the one that
    costs least as a mean over kinds of scores.
    """
    wanted = max(round(times * isqrt(_ROOTS * rows)), at_least)
    if wanted >= rows:
        return rows
    allowed = max(count_allowed(wanted, rows, agreement, confidence), 0)
    # Between two steps of the allowed number, more rows cost more and allow no more wrong ones.
    low, high = at_least, rows
    while low < high:
        middle = (low + high) // 2
        if count_allowed(middle, rows, agreement, confidence) >= allowed:
            high = middle
        else:
            low = middle + 1
    return low


def find_threshold(scores: Scores, digests: Digests, are_wrong: Flags, allowed: int) -> Place:
    """Return the place above which labels are accepted, by the sampled rows.

    A row that has no score, since its reply did not fit, is never accepted: give it -inf, and not as wrong. Raises
    InputError for a score of infinity or NaN.
    """
    _check_scores(scores)
    if allowed < 0:
        return NOTHING
    order = np.lexsort((digests, scores))[::-1]
    places = order[are_wrong[order]]
    if len(places) <= allowed:
        return ALL
    place = places[allowed]
    return Place(float(scores[place]), int(digests[place]))


def _check_scores(scores: Scores) -> None:
    # Such a row would be above any threshold, however often the model is wrong of it.
    if not (scores < inf).all():
        raise InputError(
            f"{int((~(scores < inf)).sum()):,} of {len(scores):,} scores are infinity or NaN. A score is a finite "
            "number; give rows without one -inf, and they are never accepted."
        )


def are_above(scores: Scores, digests: Digests, threshold: Place) -> Flags:
    """Return which rows are accepted. Raises InputError for a score of infinity or NaN."""
    _check_scores(scores)
    score, digest = threshold
    above: Flags = (scores > score) | ((scores == score) & (digests > np.uint64(digest)) & np.isfinite(scores))
    return above


def are_kept(scores: Scores, digests: Digests, threshold: Place, are_free: Flags) -> Flags:
    """Return which rows a filter accepts: those above the threshold, and all free ones.

    Free rows have a label of the model that cannot break the guarantee: no with precision, yes with recall. A row
    without a score, at -inf, is never accepted, and neither is any row if the threshold accepts nothing.
    """
    above = are_above(scores, digests, threshold)
    return above if threshold == NOTHING else above | (are_free & np.isfinite(scores))


def reach_probability(shared_by: int, sample: int, rows: int) -> float:
    """Return the probability that at least one of several rows, which share a request, was in the sample."""
    if shared_by > rows - sample:
        return 1.0
    return 1 - exp(_log_choose(rows - shared_by, sample) - _log_choose(rows, sample))


def expect_accepted(agreement: float) -> float:
    """Return the share of rows that a model's labels are accepted of, as a mean over kinds of scores in simulations."""
    levels, shares = zip(*_ACCEPTED, strict=True)
    return float(np.interp(agreement, levels, shares))


def relative_cost(cheap_usd: float, oracle_usd: float, sample: int, rows: int, accepted: float) -> float:
    """Return the expected cost of a cascade, as a multiple of asking the oracle alone.

    Args:
        cheap_usd, oracle_usd: Cost of a request at each.
        sample: Number of sampled rows.
        rows: Number of all rows.
        accepted: The share of rows that is accepted, from earlier partitions or as expected. Never use the share in
            the sample that sets the threshold: a choice by it would break the guarantee in 30 of 100 cases.
    """
    if oracle_usd <= 0:
        return inf
    return cheap_usd / oracle_usd + (1 - accepted) + accepted * sample / rows
