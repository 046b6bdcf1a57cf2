"""The batch object of OpenAI and its compatible servers, read as a BatchReport. Pure.

Statuses are read in any case and spelling; an unknown one is RUNNING. Counts that a server leaves out, or has not set
yet, are None. Refuses to guess an outcome from counts: they are for people.

Format: https://platform.openai.com/docs/api-reference/batch/object
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Any

from dagster_llm_batch.providers.answers import count_of, id_of, time_of
from dagster_llm_batch.providers.openai_api.sdk import QUEUE_IS_FULL
from dagster_llm_batch.text import is_id, plain_words
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = ["TAG_KEY", "created_at", "is_batch", "read_batch", "window_of"]

TAG_KEY = "dagster_llm_batch"
"""The metadata key that holds the tag, where a server takes metadata."""

# OpenAI has 24h alone; compatible servers have 1h, 7d, 336h, …
_WINDOW = re.compile(r"([0-9]{1,4})(h|d)")

# Compatible servers write "canceled" with one l or two, and in any case of letters.
_STATUSES = {
    "queued": BatchStatus.PENDING,
    # AIBrix's own word, before its machines are there.
    "scheduling": BatchStatus.PENDING,
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
_ENDS = ("completed_at", "expired_at", "cancelled_at", "failed_at")


def read_batch(batch: Any) -> BatchReport:
    """Return the report of a batch as the SDK gives it, whose fields may be absent or of another type."""
    word = plain_words(getattr(batch, "status", None)).lower()
    status = _STATUSES.get(word)
    reason, codes = _errors(batch)
    if status is None:
        reason = f"The provider reports the unknown status '{word}'."
    elif status is BatchStatus.FAILED and reason is None:
        reason = "The provider gives no reason."
    counts = getattr(batch, "request_counts", None)
    total, completed, failed = (count_of(getattr(counts, name, None)) for name in ("total", "completed", "failed"))
    usage = getattr(batch, "usage", None)
    ended_at = next((time for name in _ENDS if (time := time_of(getattr(batch, name, None))) is not None), None)
    # All counts are zero before the file is validated, and in a batch that failed validation.
    known = bool(total)
    # The create call succeeds, and the batch fails minutes later.
    is_full = status is BatchStatus.FAILED and QUEUE_IS_FULL in codes
    return BatchReport(
        batch_id=str(batch.id),
        status=status or BatchStatus.RUNNING,
        total=total if known else None,
        done=(completed or 0) + (failed or 0) if known and (completed, failed) != (None, None) else None,
        failed=failed if known else None,
        reason=reason and plain_words(reason),
        retryable=is_full,
        smaller_helps=is_full,
        created_at=created_at(batch),
        ended_at=ended_at,
        model=id_of(getattr(batch, "model", None)),
        input_tokens=count_of(getattr(usage, "input_tokens", None)),
        output_tokens=count_of(getattr(usage, "output_tokens", None)),
    )


def window_of(word: str) -> timedelta | None:
    """Return how long the window is that this word names, as in 24h or 7d; None for another form."""
    found = _WINDOW.fullmatch(word)
    return found and int(found[1]) * (timedelta(hours=1) if found[2] == "h" else timedelta(days=1))


def is_batch(value: Any) -> bool:
    """Return whether this is a batch: it has an id, and a status, which may be unknown or still missing."""
    return is_id(getattr(value, "id", None)) and isinstance(getattr(value, "status", None), str | None)


def created_at(batch: Any) -> datetime | None:
    """Return when the batch was created, if the server reports it."""
    return time_of(getattr(batch, "created_at", None))


def _errors(batch: Any) -> tuple[str | None, frozenset[str]]:
    errors = getattr(batch, "errors", None)
    entries = getattr(errors, "data", None)
    if not isinstance(entries, list):
        return (str(errors) if isinstance(errors, str) and errors else None), frozenset()
    words, codes = [], set()
    for entry in entries:
        code, message, line = (getattr(entry, name, None) for name in ("code", "message", "line"))
        codes.add(plain_words(code))
        text = ": ".join(plain_words(part) for part in (code, message) if part)
        words.append(f"{text} (line {plain_words(line)})" if line is not None else text)
    return "; ".join(words) or None, frozenset(codes)
