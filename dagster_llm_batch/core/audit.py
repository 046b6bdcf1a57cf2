"""Thresholds from earlier partitions, and the audit that tests whether they still hold. Pure.

A partition of `Rolling` takes its threshold from the last rows of earlier partitions that the oracle has answered. This
assumes that a score means now what it meant then, so a constant share of all rows is audited. Each row is drawn
independently, by a digest of its key, before its score exists. Audited rows do not help to set the threshold of their
own partition. So the audit is a fair sample of the partition's labels, whatever has changed. It gives two figures:

    window      the share of labels of the last 20 partitions that may disagree: Clopper and Pearson's upper bound. It
                has no assumption: the audited share of each partition is the same, so that together they are a sample
                of all their rows, drawn by strata, for which the bound is slightly too wide.
    evidence    that more labels disagree than guaranteed: an e-detector. Each of some larger shares of disagreement
                bets on every partition, with one more unit put in before each, so that a change may begin with any:

                    M <- (1 + M) (p / p0)^wrong ((1 - p) / (1 - p0))^(rows - wrong)

                As long as the guarantee holds, the mean of M over these shares reaches 365 at most once in 365
                partitions, on average. That is the alarm.

Rows of one request have one answer, so they are right or wrong together. In a table where many rows share few requests,
chance alone makes more rows wrong. Therefore both the earlier rows and the partition's rows count as an effective
number of independent rows: n squared over the sum of the squares of the sizes of requests. If each row counted,
thresholds would break the guarantee in up to 24 % of partitions; with this count, in at most 5. Window and evidence do
not need it: their chance is in the choice of audited rows, each drawn independently.

An alarm ends the use of earlier partitions: rows up to and including that partition no longer set a threshold, and the
evidence starts again. Keys alone, in the order of text, define the earlier partitions, and not the time of labeling: a
backfill in any order uses nothing that comes later. Simulated in `benchmarks.truth`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dagster_llm_batch.core.thresholds import Place, count_allowed_before, digest_requests, find_threshold

__all__ = [
    "ALARM",
    "WINDOW",
    "Audit",
    "AuditHistory",
    "Audited",
    "Point",
    "bound_share",
    "calibrate_points",
    "count_independent",
    "evidence_after",
    "find_alarm",
    "summarize_audits",
]

Counts = npt.NDArray[np.int64]
Evidence = npt.NDArray[np.float64]

WINDOW = 20
"""So many of the last partitions are in one figure of agreement."""

ALARM = 365
"""Evidence that raises an alarm: without a cause, at most once in so many partitions, on average."""

_TIMES = (1.3, 1.6, 2, 3, 5)
"""Multiples of the allowed disagreement; each bets separately."""

# To a share of one in a million million.
_HALVINGS = 40


class Point(NamedTuple):
    """A row that the oracle has answered.

    It has the model's score, the digest that orders equal scores, whether the model's label differs from the oracle's,
    and a digest of its request that is the same in each partition. None: older code stored it without this digest.
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
        history_id: A digest of all properties that partitions must share so that one is evidence for another.
        earlier: The first and the last of the partitions whose rows set the threshold; None: its own sample sets it.
        calibrated_on: The number of these rows.
        why_not: The reason for its own sample, in words.
        points: Rows from which later partitions may take a threshold; None until the oracle has answered.
        rows: The number of audited rows, including rows erased since.
        wrong: The number of audited rows whose label disagrees and would have been accepted; None until then.
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
        """Return the audit that was stored."""
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
        """Counts for the ledger, for the audits of later partitions; None until the oracle has answered."""
        if self.wrong is None or self.points is None:
            return None
        counts = {"rows": self.rows, "wrong": self.wrong, "points": len(self.points)}
        return {"history": self.history_id, **counts}

    def keep(self, keep: Collection[str], seed: str) -> Audit:
        """Return the same, only with rows of these requests: rows that were erased are left out.

        The counts stay.
        """
        kept = set(digest_requests(sorted(keep), seed).tolist())
        return replace(
            self,
            requests=[request_id for request_id in self.requests if request_id in keep],
            points=self.points and [point for point in self.points if point.digest in kept],
        )


@dataclass(frozen=True)
class Calibration:
    """The threshold of one partition, from rows of earlier partitions.

    Attributes:
        earlier: The first and the last of these partitions.
        rows: The number of rows that the oracle has answered.
        wrong: The number of them where the model's label differs from the oracle's.
        allowed: The number that may be wrong above the threshold.
        bound: The share of disagreement that is exceeded with the guaranteed small probability at most.
        threshold: Scores above it are accepted.
    """

    earlier: tuple[str, str]
    rows: int
    wrong: int
    allowed: int
    bound: float
    threshold: Place


class Audited(NamedTuple):
    """The result of one partition's audit: `wrong` of its `rows` have a label that is not the oracle's and would have
    been accepted.
    """

    partition: str
    rows: int
    wrong: int


@dataclass(frozen=True)
class AuditHistory:
    """The combined result of the audits of a partition and those before it.

    Attributes:
        window: The partitions whose rows are in the bounds, oldest first: 20, or as many as there are.
        rows: The number of audited rows in them.
        wrong: The number of these whose label disagrees, and was accepted or would have been.
        low, high: Bounds of the share of such labels among all their rows. Each side is missed with the probability
            `1 - confidence` at most.
        evidence: Evidence, after this partition, that more labels disagree than guaranteed.
        alarm: The last partition with an alarm, this one or an earlier one; None without an alarm.
    """

    window: tuple[str, ...]
    rows: int
    wrong: int
    low: float
    high: float
    evidence: float
    alarm: str | None


def summarize_audits(audits: Sequence[Audited], agreement: float, confidence: float) -> AuditHistory:
    """Return the result of audits in the order of their partitions; the last one is the partition in question."""
    recent = audits[-WINDOW:]
    rows, wrong = sum(one.rows for one in recent), sum(one.wrong for one in recent)
    evidence = _evidence(audits, agreement)
    return AuditHistory(
        tuple(one.partition for one in recent),
        *(rows, wrong, *bound_share(wrong, rows, confidence)),
        evidence=evidence[-1] if evidence else 0.0,
        alarm=_last_alarm(audits, evidence),
    )


def find_alarm(audits: Sequence[Audited], agreement: float) -> str | None:
    """Return the last partition at which the evidence was an alarm; None without an alarm."""
    return _last_alarm(audits, _evidence(audits, agreement))


def _evidence(audits: Sequence[Audited], agreement: float) -> list[float]:
    counts = np.array([(one.rows, one.wrong) for one in audits], np.int64).reshape(-1, 2)
    evidence: list[float] = evidence_after(counts[:, 0], counts[:, 1], agreement).tolist()
    return evidence


def _last_alarm(audits: Sequence[Audited], evidence: Sequence[float]) -> str | None:
    alarms = [one.partition for one, found in zip(audits, evidence, strict=True) if found >= ALARM]
    return alarms[-1] if alarms else None


def bound_share(wrong: int, rows: int, confidence: float) -> tuple[float, float]:
    """Return bounds of the share in all rows, if `wrong` of `rows` drawn ones have the property (Clopper, Pearson).

    Each side is missed with the probability `1 - confidence` at most.
    """
    risk = 1 - confidence
    low = 0.0 if not wrong else _share_at(wrong - 1, rows, 1 - risk)
    return low, 1.0 if wrong >= rows else _share_at(wrong, rows, risk)


def _share_at(most: int, rows: int, probability: float) -> float:
    """Return the share at which at most `most` of the rows are wrong with this probability."""
    counts = np.arange(most + 1)
    # Logarithms of the numbers of ways in which so many rows are wrong, each from the one before
    ways = np.concatenate([[0.0], np.log((rows - counts[:-1]) / (counts[:-1] + 1))]).cumsum()
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        chance = np.exp(ways + counts * np.log(middle) + (rows - counts) * np.log1p(-middle)).sum()
        low, high = (middle, high) if chance > probability else (low, middle)
    return high


def evidence_after(rows: Counts, wrong: Counts, agreement: float) -> Evidence:
    """Return the evidence, after each partition, that more labels disagree than guaranteed.

    It starts again after an alarm.

    Args:
        rows, wrong: Audited rows, and disagreeing ones, of the partitions of one life, or of many: lives, partitions.
        agreement: The guaranteed share of agreement.
    """
    promised = 1 - agreement
    # If half of the labels may be wrong, five times that share does not exist.
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
        # A partition without audited rows does not change the evidence.
        logs = np.where(bad + good > 0, after, logs)
        # Cut off here: larger figures are not needed.
        found[..., at] = np.exp(np.minimum(logs, 700)).mean(axis=-1)
    return found


def count_independent(sizes: npt.NDArray[np.int64]) -> int:
    """Return the number of independent rows that a table counts as. `sizes`: the number of rows of each request."""
    total = int(sizes.sum())
    return total * total // int((sizes.astype(np.int64) ** 2).sum()) if total else 0


def calibrate_points(
    points: Sequence[Point], earlier: tuple[str, str], rows: int, agreement: float, confidence: float
) -> Calibration:
    """Return the threshold from rows of earlier partitions for a partition of `rows` independent rows.

    `earlier` are the first and the last of these partitions. Points of one `request` count together.
    """
    scores = np.array([point.score for point in points], np.float64)
    digests = np.array([point.digest for point in points], np.uint64)
    wrong = np.array([point.is_wrong for point in points], np.bool_)
    requests = [point.digest if point.request is None else point.request for point in points]
    independent = count_independent(np.unique(np.array(requests, np.uint64), return_counts=True)[1])
    allowed, bound = count_allowed_before(independent, rows, agreement, confidence)
    if allowed > 0:
        # Each point stands for several rows, as many as there are per independent one.
        allowed = allowed * len(points) // independent
    return Calibration(
        earlier,
        len(points),
        wrong=int(wrong.sum()),
        allowed=allowed,
        bound=bound,
        threshold=find_threshold(scores, digests, wrong, allowed),
    )
