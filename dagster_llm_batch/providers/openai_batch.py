"""The batch object of OpenAI and its compatible servers, read as a BatchReport. Pure.

Statuses are read in any case and spelling; an unknown one is RUNNING. Counts that a server leaves out, or has not set
yet, are None. Refuses to guess an outcome from counts: they are for people.

Format: https://platform.openai.com/docs/api-reference/batch/object
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from dagster_llm_batch.providers.words import plain_words
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = ["created_at", "read_batch"]

_STATUSES = {
    "queued": BatchStatus.PENDING,
    "validating": BatchStatus.PENDING,
    "in_progress": BatchStatus.RUNNING,
    "finalizing": BatchStatus.RUNNING,
    "cancelling": BatchStatus.CANCELING,
    "canceling": BatchStatus.CANCELING,
    "completed": BatchStatus.ENDED,
    "expired": BatchStatus.EXPIRED,
    "cancelled": BatchStatus.CANCELED,
    "canceled": BatchStatus.CANCELED,
    "failed": BatchStatus.FAILED,
}
_QUEUE_IS_FULL = "token_limit_exceeded"
_ENDS = ("completed_at", "expired_at", "cancelled_at", "failed_at")


def read_batch(batch: Any) -> BatchReport:
    """The report of a batch as the SDK gives it, whose fields may be absent or of another type."""
    word = str(getattr(batch, "status", None)).lower()
    status = _STATUSES.get(word)
    reason, codes = _errors(batch)
    if status is None:
        reason = f"The provider reports the unknown status '{word}'."
    elif status is BatchStatus.FAILED and reason is None:
        reason = "The provider gives no reason."
    counts = getattr(batch, "request_counts", None)
    total, completed, failed = (_count(counts, name) for name in ("total", "completed", "failed"))
    ended_at = next((time for name in _ENDS if (time := _time(getattr(batch, name, None))) is not None), None)
    known = bool(total)  # all are zero before the file is validated
    return BatchReport(
        batch_id=str(batch.id),
        status=status or BatchStatus.RUNNING,
        total=total if known else None,
        done=(completed or 0) + (failed or 0) if known else None,
        failed=failed if known else None,
        reason=reason and plain_words(reason),
        retryable=status is BatchStatus.FAILED and _QUEUE_IS_FULL in codes,
        created_at=created_at(batch),
        ended_at=ended_at,
    )


def created_at(batch: Any) -> datetime | None:
    """When the batch was created, if the server says so."""
    return _time(getattr(batch, "created_at", None))


def _errors(batch: Any) -> tuple[str | None, frozenset[str]]:
    errors = getattr(batch, "errors", None)
    entries = getattr(errors, "data", None)
    if not isinstance(entries, list):
        return (str(errors) if isinstance(errors, str) and errors else None), frozenset()
    words, codes = [], set()
    for entry in entries:
        code, message, line = (getattr(entry, name, None) for name in ("code", "message", "line"))
        codes.add(str(code))
        text = ": ".join(str(part) for part in (code, message) if part)
        words.append(f"{text} (line {line})" if line is not None else text)
    return "; ".join(words) or None, frozenset(codes)


def _count(counts: Any, name: str) -> int | None:
    value = getattr(counts, name, None)
    return value if isinstance(value, int) else None


def _time(value: Any) -> datetime | None:
    """Seconds since the epoch, as OpenAI writes times, or ISO 8601, as some compatible servers do."""
    try:
        if isinstance(value, str):
            time = datetime.fromisoformat(value)
            return time if time.tzinfo else time.replace(tzinfo=UTC)
        return None if value is None else datetime.fromtimestamp(value, UTC)
    except (ValueError, TypeError, OverflowError, OSError):
        return None
