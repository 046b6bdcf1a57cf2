"""Thresholds from earlier partitions, and the audit that says whether they still hold. Pure.

A partition of `Rolling` takes its threshold from the last rows of earlier partitions that the oracle has answered. That
rests on an assumption, that a score means now what it meant then, so a constant share of all rows is audited: each row
by itself, by a digest of its key, before anybody has seen its score. No audited row helps to set the threshold of its
own partition, so of its labels the audit is a fair sample, whatever has changed. Two figures come from it:

    window      the share of labels of the last 20 partitions that may disagree: Clopper and Pearson's upper bound. It
                assumes nothing: the audited share of each partition is the same, so that together they are a sample of
                all of their rows, drawn by strata, of which the bound is a little too wide.
    evidence    that more labels disagree than was promised: an e-detector. Each of some larger shares of disagreement
                bets on every partition, with one more unit put in before each, so that a change may begin with any:

                    M <- (1 + M) (p / p0)^wrong ((1 - p) / (1 - p0))^(rows - wrong)

                As long as no more disagree than was promised, the mean of M over these shares reaches 365 once in 365
                partitions, as a mean, or less often. That is the alarm.

Rows of one request have one answer, so that they are right or wrong together: of a table in which many rows share few
requests chance alone makes more wrong. So both the earlier rows and those of the partition count as so many that are
independent, n squared over the sum of the squares of the sizes of requests. As rows, thresholds would break the promise
in up to 24 % of partitions; counted so, in at most 5. Window and evidence need none of that: for them chance is which
rows are audited, each by itself.

An alarm ends what earlier partitions say: the rows up to and with that partition set no threshold any more, and the
evidence begins anew. Which partitions are earlier is said by their keys alone, in the order of text, never by when they
were labeled: a backfill in any order learns nothing of what comes later. Simulated in `benchmarks.truth`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dagster_llm_batch.core.cascade import Place, count_allowed_before, digest_requests, find_threshold

__all__ = [
    "ALARM",
    "WINDOW",
    "Audit",
    "Audited",
    "Point",
    "Track",
    "bound_share",
    "calibrate_points",
    "count_independent",
    "evidence_after",
    "find_alarm",
    "track",
]

Counts = npt.NDArray[np.int64]
Evidence = npt.NDArray[np.float64]

WINDOW = 20
"""So many of the last partitions are in one figure of agreement."""

ALARM = 365
"""Evidence that is an alarm: without cause it comes once in so many partitions, as a mean, or less often."""

_TIMES = (1.3, 1.6, 2, 3, 5)
"""How many times more labels disagree than was promised: each bets for itself."""

# To a share of one in a million million.
_HALVINGS = 40


class Point(NamedTuple):
    """A row that the oracle has answered: the model's score, the digest that orders equal scores, whether the model's
    label is another than the oracle's, and a digest of its request that is the same in each partition. None: it was
    stored by code that kept none.
    """

    score: float
    digest: int
    is_wrong: bool
    request: int | None = None


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The audit of one partition, and which earlier ones set its threshold. A part of `Levels`, and stored with them.

    Attributes:
        share: The share of rows that is audited.
        requests: The request of each audited row.
        history_id: A digest of all that partitions must have in common so that one says something of the other.
        earlier: The first and the last of the partitions whose rows set the threshold; None: a sample of its own does.
        calibrated_on: How many rows of these there were.
        why_not: Why it has a sample of its own, in words.
        points: What later partitions may take a threshold from; None until the oracle has answered.
        rows: How many rows were audited, those counted that were erased since.
        wrong: How many of them have a label that disagrees, and would have been taken; None until then.
    """

    share: float
    requests: list[str]
    history_id: str
    earlier: tuple[str, str] | None = None
    calibrated_on: int = 0
    why_not: str | None = None
    points: list[Point] | None = None
    rows: int = 0
    wrong: int | None = None

    @classmethod
    def of_json(cls, content: Mapping[str, Any] | None) -> Audit | None:
        """Return what was stored."""
        if content is None:
            return None
        earlier, points = content["earlier"], content["points"]
        return cls(
            **{
                **content,
                "earlier": None if earlier is None else (earlier[0], earlier[1]),
                "points": None if points is None else [Point(*point) for point in points],
            }
        )

    @property
    def counts(self) -> dict[str, Any] | None:
        """What the ledger keeps of it, for the audits of later partitions; None until the oracle has answered."""
        if self.wrong is None or self.points is None:
            return None
        counts = {"rows": self.rows, "wrong": self.wrong, "points": len(self.points)}
        return {"history": self.history_id, **counts}

    def keep(self, keep: Collection[str], seed: str) -> Audit:
        """Return the same without rows of other requests than these, as of rows that were erased.

        What was counted stays.
        """
        kept = set(digest_requests(sorted(keep), seed).tolist())
        return replace(
            self,
            requests=[request_id for request_id in self.requests if request_id in keep],
            points=self.points and [point for point in self.points if point.digest in kept],
        )


@dataclass(frozen=True)
class Calibration:
    """What rows of earlier partitions say of the threshold of one.

    Attributes:
        earlier: The first and the last of these partitions.
        rows: How many rows that the oracle has answered.
        wrong: How many of them have a label of the model that is not the oracle's.
        allowed: How many may be wrong above the threshold.
        bound: The share of disagreement that is exceeded only as improbably as was promised.
        threshold: Accepted is above it.
    """

    earlier: tuple[str, str]
    rows: int
    wrong: int
    allowed: int
    bound: float
    threshold: Place


class Audited(NamedTuple):
    """What the audit of one partition has found: `wrong` of its `rows` have a label that was not the oracle's and would
    have been taken.
    """

    partition: str
    rows: int
    wrong: int


@dataclass(frozen=True)
class Track:
    """What the audits of a partition and those before it say together.

    Attributes:
        window: The partitions whose rows are in the bounds, oldest first: 20, or as many as there are.
        rows: How many of their rows were audited.
        wrong: How many of these have a label that disagrees, and was taken, or would have been.
        low, high: Where the share of such labels is, of all their rows. Each side is missed with the probability
            `1 - confidence` at most.
        evidence: That more disagree than was promised, after this partition.
        alarm: The last partition at which the evidence was an alarm, this one or an earlier one; None: at none.
    """

    window: tuple[str, ...]
    rows: int
    wrong: int
    low: float
    high: float
    evidence: float
    alarm: str | None


def track(audits: Sequence[Audited], agreement: float, confidence: float) -> Track:
    """Return what audits say, in the order of their partitions; the last one is the partition in question."""
    recent = audits[-WINDOW:]
    rows, wrong = sum(one.rows for one in recent), sum(one.wrong for one in recent)
    evidence = _evidence(audits, agreement)
    return Track(
        tuple(one.partition for one in recent),
        *(rows, wrong, *bound_share(wrong, rows, confidence)),
        evidence=evidence[-1] if evidence else 0.0,
        alarm=_last_alarm(audits, evidence),
    )


def find_alarm(audits: Sequence[Audited], agreement: float) -> str | None:
    """Return the last partition at which the evidence was an alarm; None: at none."""
    return _last_alarm(audits, _evidence(audits, agreement))


def _evidence(audits: Sequence[Audited], agreement: float) -> list[float]:
    counts = np.array([(one.rows, one.wrong) for one in audits], np.int64).reshape(-1, 2)
    evidence: list[float] = evidence_after(counts[:, 0], counts[:, 1], agreement).tolist()
    return evidence


def _last_alarm(audits: Sequence[Audited], evidence: Sequence[float]) -> str | None:
    alarms = [one.partition for one, found in zip(audits, evidence, strict=True) if found >= ALARM]
    return alarms[-1] if alarms else None


def bound_share(wrong: int, rows: int, confidence: float) -> tuple[float, float]:
    """Return between which shares that of all rows is, of which `wrong` of `rows` drawn ones are (Clopper, Pearson).

    Each side is missed with the probability `1 - confidence` at most.
    """
    risk = 1 - confidence
    low = 0.0 if not wrong else _share_at(wrong - 1, rows, 1 - risk)
    return low, 1.0 if wrong >= rows else _share_at(wrong, rows, risk)


def _share_at(most: int, rows: int, probability: float) -> float:
    """Return the share at which as few as `most` of the rows are wrong with this probability."""
    counts = np.arange(most + 1)
    # Of the ways in which so many rows are wrong: the logarithm of each number of ways, from the one before.
    ways = np.concatenate([[0.0], np.log((rows - counts[:-1]) / (counts[:-1] + 1))]).cumsum()
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        chance = np.exp(ways + counts * np.log(middle) + (rows - counts) * np.log1p(-middle)).sum()
        low, high = (middle, high) if chance > probability else (low, middle)
    return high


def evidence_after(rows: Counts, wrong: Counts, agreement: float) -> Evidence:
    """Return the evidence after each partition that more labels disagree than was promised; it begins anew after an
    alarm.

    Args:
        rows, wrong: What was audited and what disagrees, of the partitions of one life, or of many: lives, partitions.
        agreement: What was promised.
    """
    promised = 1 - agreement
    # Nothing is five times a promise of half of the labels.
    larger = np.minimum(np.array(_TIMES) * promised, (1 + promised) / 2)
    by_wrong, by_right = np.log(larger / promised), np.log((1 - larger) / (1 - promised))
    found: Evidence = np.zeros(rows.shape)
    # In logarithms, since a year of evidence leaves the range of floats.
    logs = np.full((*rows.shape[:-1], len(larger)), -np.inf)
    for at in range(rows.shape[-1]):
        if at:
            logs[found[..., at - 1] >= ALARM] = -np.inf
        bad, good = wrong[..., at, None], (rows - wrong)[..., at, None]
        after = np.logaddexp(0, logs) + bad * by_wrong + good * by_right
        # Who has audited nothing has put nothing in.
        logs = np.where(bad + good > 0, after, logs)
        # More than that needs no figure.
        found[..., at] = np.exp(np.minimum(logs, 700)).mean(axis=-1)
    return found


def count_independent(sizes: npt.NDArray[np.int64]) -> int:
    """Return how many independent rows a table counts as. `sizes`: how many of its rows each request has."""
    total = int(sizes.sum())
    return total * total // int((sizes.astype(np.int64) ** 2).sum()) if total else 0


def calibrate_points(
    points: Sequence[Point], earlier: tuple[str, str], rows: int, agreement: float, confidence: float
) -> Calibration:
    """Return the threshold that rows of earlier partitions give to one of so many independent `rows`; `earlier` are the
    first and the last of these partitions. Points of one `request` count together.
    """
    scores = np.array([point.score for point in points], np.float64)
    digests = np.array([point.digest for point in points], np.uint64)
    wrong = np.array([point.is_wrong for point in points], np.bool_)
    requests = [point.digest if point.request is None else point.request for point in points]
    independent = count_independent(np.unique(np.array(requests, np.uint64), return_counts=True)[1])
    allowed, bound = count_allowed_before(independent, rows, agreement, confidence)
    if allowed > 0:
        # Each stands for as many rows as there are of one that is independent.
        allowed = allowed * len(points) // independent
    return Calibration(
        earlier,
        len(points),
        wrong=int(wrong.sum()),
        allowed=allowed,
        bound=bound,
        threshold=find_threshold(scores, digests, wrong, allowed),
    )
