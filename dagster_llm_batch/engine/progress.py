"""The pace of a submission, from the ledger's records: counts, rate, age and expected end. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from statistics import median

from dagster_llm_batch.storage.ledger.records import Progress, Submission

__all__ = ["Pace", "pace", "usual_duration"]


@dataclass(frozen=True)
class Pace:
    """The requests of a submission as the providers last reported them. None: not known."""

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
    """Return the pace of an undelivered submission.

    Args:
        progress: What the ledger has of it.
        now: Aware.
        usual: How long earlier submissions took: the estimate where no request is done yet.

    There is no expected end where the estimate lies in the past already.
    """
    since = progress.oldest_submitted_at
    age = None if since is None else max(now - since, timedelta())
    # What earlier waves have done is older than the batches that the age is of.
    done = progress.asked - (progress.total - progress.done)
    per_minute = done / (age / timedelta(minutes=1)) if age and done > 0 else None
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
    """Return the median time from plan to settled of these submissions; None of none."""
    seconds = [(each.settled_at - each.created_at).total_seconds() for each in settled if each.settled_at is not None]
    return timedelta(seconds=median(seconds)) if seconds else None
