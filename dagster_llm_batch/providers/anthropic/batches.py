r"""Anthropic's batches: stream the body that creates one, and read the object that describes one. Pure.

A request file becomes the body by its bytes alone, in constant memory and with its length known before:

    line\nline\nline\n     ─▶     {"requests":[line,line,line]}

`ended` is the vendor's only end state, and leaves open how the rows ended. If the counts include canceled or expired
rows, the report includes this; outcomes come from the result lines.

Format: https://platform.claude.com/docs/en/api/retrieving-message-batches
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, BinaryIO

from dagster_llm_batch.providers.answers import count_of, time_of
from dagster_llm_batch.text import is_id, plain_words
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = ["CreateBody", "created_at", "is_batch", "read_batch", "total_requests"]

_HEAD, _TAIL = b'{"requests":[', b"]}"
_CHUNK_BYTES = 1 << 16
_STATUSES = {
    "in_progress": BatchStatus.RUNNING,
    "canceling": BatchStatus.CANCELING,
    "ended": BatchStatus.ENDED,
}
# The SDK documents all but `processing` as zero until the batch ends; they were seen to move before. So they are shown
# and decide nothing; their sum never changes.
_COUNTS = ("processing", "succeeded", "errored", "canceled", "expired")


class CreateBody:
    """The body of one create call over a request file of `size` bytes; can be read once.

    `is_sent` is true once its last bytes were handed to the transport: before that, the batch cannot exist.
    """

    def __init__(self, lines: BinaryIO, size: int) -> None:
        self._lines = lines
        # the last line's end has no comma
        self._left = max(size - 1, 0)
        self.bytes = len(_HEAD) + self._left + len(_TAIL)
        self.is_sent = False

    def __iter__(self) -> Iterator[bytes]:
        """Yield the pieces."""
        yield _HEAD
        while self._left and (piece := self._lines.read(min(_CHUNK_BYTES, self._left))):
            self._left -= len(piece)
            yield piece.replace(b"\n", b",")
        self.is_sent = not self._left
        yield _TAIL


def read_batch(batch: Any) -> BatchReport:
    """Return the report of a batch as the SDK gives it, whose fields may be absent or of another type."""
    word = plain_words(getattr(batch, "processing_status", None))
    status = _STATUSES.get(word)
    reason = None if status is not None else f"The provider reports the unknown status '{word}'."
    counts = {name: _count(batch, name) or 0 for name in _COUNTS}
    # "ended" is the only end there is: also of a batch that was canceled or expired
    if status is BatchStatus.ENDED:
        if counts["canceled"] and getattr(batch, "cancel_initiated_at", None) is not None:
            status = BatchStatus.CANCELED
        elif counts["expired"]:
            status = BatchStatus.EXPIRED
    total = sum(counts.values())
    return BatchReport(
        batch_id=str(batch.id),
        status=status or BatchStatus.RUNNING,
        total=total or None,
        done=total - counts["processing"] if total else None,
        failed=total - counts["processing"] - counts["succeeded"] if total else None,
        reason=reason,
        created_at=created_at(batch),
        ended_at=time_of(getattr(batch, "ended_at", None)),
    )


def is_batch(value: Any) -> bool:
    """Return whether the object is a batch: it has an id and a status, even an unknown one."""
    return is_id(getattr(value, "id", None)) and isinstance(getattr(value, "processing_status", None), str)


def total_requests(batch: Any) -> int | None:
    """Return the number of requests in the batch: the sum of its counts, which never changes; None without counts."""
    counts = [count for name in _COUNTS if (count := _count(batch, name)) is not None]
    return sum(counts) if counts else None


def created_at(batch: Any) -> datetime | None:
    """Return when the batch was created, if the server reports it."""
    return time_of(getattr(batch, "created_at", None))


def _count(batch: Any, name: str) -> int | None:
    return count_of(getattr(getattr(batch, "request_counts", None), name, None))
