"""The pace of a submission, from the ledger's records: counts, rate, age and expected end. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from dagster_llm_batch.storage.ledger.records import Progress

if TYPE_CHECKING:
    from dagster_llm_batch.core.durations import EndForecast

__all__ = ["Pace", "pace"]


@dataclass(frozen=True)
class Pace:
    """The requests of a submission, as the providers last reported them. None: unknown."""

    done: int
    total: int
    failed: int
    age: timedelta | None  # of the oldest batch in flight
    per_minute: float | None  # requests, on average since then
    expected_end_at: datetime | None  # by the rate so far, else when 1 of 2 such submissions have ended
    p90_end_at: datetime | None = None  # when 9 of 10 have, of those that took as long as it has already
    has_too_few_days: bool = False  # of earlier submissions and batches, for a forecast of the end

    @property
    def percent(self) -> int:
        return 100 * self.done // self.total if self.total else 100


def pace(progress: Progress, now: datetime, forecast: EndForecast | None = None) -> Pace:
    """Return the pace of an undelivered submission.

    Args:
        progress: The ledger's record of it.
        now: The present time, with its time zone.
        forecast: The time that earlier submissions took from plan to end.

    An expected end in the past is left out.
    """
    since = progress.oldest_submitted_at
    age = None if since is None else max(now - since, timedelta())
    # Requests of earlier waves were done before the oldest batch in flight began.
    done = progress.asked - (progress.total - progress.done)
    per_minute = done / (age / timedelta(minutes=1)) if age and done > 0 else None
    end = p90_end = None
    has_too_few_days = forecast is not None and since is not None and forecast.basis == "none"
    if forecast is not None and since is not None:
        began = progress.submission.created_at
        end, p90_end = (None if took is None else began + took for took in (forecast.p50, forecast.p90))
    if per_minute:
        end = now + timedelta(minutes=(progress.total - progress.done) / per_minute)
    return Pace(
        done=progress.done,
        total=progress.total,
        failed=progress.failed,
        age=age,
        per_minute=per_minute,
        expected_end_at=end if end is not None and end >= now else None,
        p90_end_at=p90_end if p90_end is not None and p90_end >= now else None,
        has_too_few_days=has_too_few_days,
    )
