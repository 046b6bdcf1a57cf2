"""Ray's description of a job, as a BatchReport. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dagster_llm_batch.providers.answers import count_of, time_of
from dagster_llm_batch.text import last_words
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = ["read_job", "status_of"]

_STATUSES = {
    "PENDING": BatchStatus.PENDING,
    "RUNNING": BatchStatus.RUNNING,
    "STOPPED": BatchStatus.CANCELED,
    "SUCCEEDED": BatchStatus.ENDED,
    "FAILED": BatchStatus.FAILED,
}
_FAILS_AGAIN = ("RUNTIME_ENV_SETUP_FAILURE", "JOB_ENTRYPOINT_COMMAND_START_ERROR", "JOB_ENTRYPOINT_COMMAND_ERROR")
# a shell's exit code for a process that was killed is above
_SIGNALED = 128


def status_of(job: Any) -> BatchStatus:
    """Return the status of a job; a word never seen before is RUNNING."""
    return _STATUSES.get(getattr(job.status, "value", job.status), BatchStatus.RUNNING)


def read_job(batch_id: str, job: Any, total: int | None, done: int | None) -> BatchReport:
    """Return the report of a job (`JobDetails` of Ray's SDK), with the counts of its files."""
    status, reason, retryable = status_of(job), None, False
    if status is BatchStatus.FAILED:
        kind, code = getattr(job.error_type, "value", job.error_type), job.driver_exit_code
        reason = last_words(job.message or "") or "The job failed."
        retryable = kind not in _FAILS_AGAIN or (code is not None and (code < 0 or code > _SIGNALED))
    return BatchReport(
        batch_id,
        status,
        total=total,
        done=done,
        reason=reason,
        retryable=retryable,
        created_at=_time(job.start_time),
        ended_at=_time(job.end_time) if status.is_terminal else None,
    )


def _time(milliseconds: Any) -> datetime | None:
    known = count_of(milliseconds)
    return time_of(known / 1000) if known else None
