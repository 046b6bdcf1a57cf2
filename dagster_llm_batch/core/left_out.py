"""Requests that no result line names: their outcome and its reason, by the end of their batch."""

from __future__ import annotations

from collections.abc import Mapping

from dagster_llm_batch.types import BatchStatus, Cause, Outcome

__all__ = ["ASK_AGAIN", "LEFT_OUT", "MAY_HAVE_RUN", "NEVER_RAN", "waiting_reason"]

LEFT_OUT: Mapping[BatchStatus, tuple[Outcome, str]] = {
    BatchStatus.ENDED: (Outcome.MISSING, "the batch ended and no result names this request"),
    BatchStatus.EXPIRED: (Outcome.EXPIRED, "the batch expired before this request ran"),
    BatchStatus.CANCELED: (Outcome.CANCELED, "the batch was canceled before this request ran"),
    BatchStatus.FAILED: (Outcome.ERRORED, "the batch failed as a whole"),
}
"""Outcome and reason by the status in which the batch ended."""

NEVER_RAN = (Outcome.EXPIRED, Outcome.CANCELED)
"""Outcomes of requests that the vendor did not run."""
MAY_HAVE_RUN = "the batch {}, and its results lack rows that it counts or should name: this one may have run"
_WAITING_FOR: Mapping[Cause, str] = {
    Cause.CANCELED: "the batch was canceled at the provider, and not by this package",
    Cause.GONE: "the provider no longer has the batch or its results",
    Cause.GIVEN_UP: "the batch had not ended, and was abandoned",
    Cause.ADOPTED: "the batch was sent elsewhere and adopted, and has no answer to this request",
    Cause.NOT_TAKEN: "the provider rejected the batch each time: its queue was full, or the batch failed",
}
_UNREAD = "the results of the batch could not be read, and were abandoned"
ASK_AGAIN = "`dagster-llm-batch retry` asks again, and shows the price first"


def waiting_reason(cause: Cause, *, has_ended: bool) -> str:
    """Return the reason why requests of a batch with this cause wait for a person.

    `has_ended`: the batch ended before it was abandoned; otherwise it was still running.
    """
    return _UNREAD if cause is Cause.GIVEN_UP and has_ended else _WAITING_FOR[cause]
