"""How far a submission is, and when it may be done: counts, rate, age, expected end; by what the ledger says. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from dagster_llm_batch.storage.ledger.records import Progress, Submission

__all__ = ["Pace", "pace", "usual_duration"]


@dataclass(frozen=True)
class Pace:
    """Requests of a submission as last reported. None means that nobody can say."""

    done: int
    total: int
    failed: int
    age: timedelta | None  # of the oldest batch in flight
    per_minute: float | None  # requests, on average since then
    expected_end_at: datetime | None

    @property
    def percent(self) -> int:
        return 100 * self.done // self.total if self.total else 100


def pace(progress: Progress, now: datetime, usual: timedelta | None = None) -> Pace:
    """The pace of an undelivered submission; `usual` is how long earlier ones took, for one that has no rate yet.

    An end that should have come already is not expected at any time.
    """
    since = progress.oldest_submitted_at
    age = None if since is None else max(now - since, timedelta())
    per_minute = progress.done / (age / timedelta(minutes=1)) if age and progress.done else None
    end = None
    if per_minute:
        end = now + timedelta(minutes=(progress.total - progress.done) / per_minute)
    elif since is not None and usual is not None:
        end = since + usual
    return Pace(
        done=progress.done,
        total=progress.total,
        failed=progress.failed,
        age=age,
        per_minute=per_minute,
        expected_end_at=end if end is not None and end >= now else None,
    )


def usual_duration(settled: Sequence[Submission]) -> timedelta | None:
    """What these submissions took, from plan to settled: the median."""
    took = [(one.settled_at - one.created_at).total_seconds() for one in settled if one.settled_at is not None]
    return timedelta(seconds=median(took)) if took else None
