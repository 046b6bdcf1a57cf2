"""A batch operation of the Gemini API, read as a BatchReport. Pure.

The state is in the operation's metadata; why a batch failed is in the operation's own `error`, which the SDK's typed
methods drop. States are read with either of their prefixes; one never seen is RUNNING.

Format: https://ai.google.dev/api/batch-api
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster_llm_batch.providers.answers import id_of
from dagster_llm_batch.providers.google.clients import count, time_of
from dagster_llm_batch.text import is_id, plain_words
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = ["display_name", "inlined_results", "is_operation", "read_operation", "requests_file", "responses_file"]

# google.rpc.Code: resources exhausted, internal, unavailable
_EXHAUSTED = 8
_RETRYABLE_CODES = frozenset({_EXHAUSTED, 13, 14})
_STATUSES = {
    "PENDING": BatchStatus.PENDING,
    "RUNNING": BatchStatus.RUNNING,
    "SUCCEEDED": BatchStatus.ENDED,
    "PARTIALLY_SUCCEEDED": BatchStatus.ENDED,
    "FAILED": BatchStatus.FAILED,
    "CANCELLED": BatchStatus.CANCELED,
    "EXPIRED": BatchStatus.EXPIRED,
}


def read_operation(batch_id: str, operation: Mapping[str, Any]) -> BatchReport:
    """Return the report of an operation as the API gives it."""
    batch = _batch(operation)
    given = plain_words(batch.get("state", ""))
    status = _STATUSES.get(given.removeprefix("BATCH_STATE_").removeprefix("JOB_STATE_"))
    error = operation.get("error")
    code, reason = None, None
    if isinstance(error, Mapping) and error:
        code = count(error.get("code"))
        reason = f"{plain_words(error.get('message') or 'no message')} (code {code})"
    # a new state that is an end: the operation's `done` shows it
    if status is None and operation.get("done") is True:
        status = BatchStatus.FAILED if reason else BatchStatus.ENDED
    if status is None:
        reason = f"The provider reports the unknown state '{given}'."
    elif status is BatchStatus.FAILED and reason is None:
        reason = "The provider gives no reason."
    stats = batch.get("batchStats")
    stats = stats if isinstance(stats, Mapping) else {}
    total, good, bad = (
        count(stats.get(name)) for name in ("requestCount", "successfulRequestCount", "failedRequestCount")
    )
    return BatchReport(
        batch_id=batch_id,
        status=status or BatchStatus.RUNNING,
        total=total or None,
        done=(good or 0) + (bad or 0) if total else None,
        failed=(bad or 0) if total else None,
        reason=reason and plain_words(reason),
        retryable=status is BatchStatus.FAILED and code in _RETRYABLE_CODES,
        smaller_helps=None if status is BatchStatus.FAILED and code == _EXHAUSTED else False,
        created_at=time_of(batch.get("createTime")),
        ended_at=time_of(batch.get("endTime")),
        model=id_of(batch.get("model")),
    )


def is_operation(value: Mapping[str, Any]) -> bool:
    """Return whether this is an operation: it has a name, and a state (even an unknown one) or an end."""
    return is_id(value.get("name")) and (isinstance(_batch(value).get("state"), str) or value.get("done") is True)


def display_name(operation: Mapping[str, Any]) -> str | None:
    """Return the name that its creator gave the batch."""
    name = _batch(operation).get("displayName")
    return name if isinstance(name, str) else None


def requests_file(operation: Mapping[str, Any]) -> str | None:
    """Return the file of the requests, if they are in a file, and the API names it."""
    source = _batch(operation).get("inputConfig")
    name = (source.get("fileName") or source.get("file_name")) if isinstance(source, Mapping) else None
    return name if is_id(name) else None


def responses_file(operation: Mapping[str, Any]) -> str | None:
    """Return the file of the results, if they are in one."""
    return next(
        (out["responsesFile"] for out in _outputs(operation) if isinstance(out.get("responsesFile"), str)), None
    )


def inlined_results(operation: Mapping[str, Any]) -> list[Any]:
    """Return the results that are in the operation itself."""
    for out in _outputs(operation):
        inlined = out.get("inlinedResponses") or out.get("inlinedEmbedContentResponses")
        rows = inlined.get("inlinedResponses") if isinstance(inlined, Mapping) else None
        if isinstance(rows, list):
            return rows
    return []


def _batch(operation: Mapping[str, Any]) -> Mapping[str, Any]:
    batch = operation.get("metadata")
    return batch if isinstance(batch, Mapping) else {}


def _outputs(operation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Tell where results are named: in the metadata's output, and in the response of an operation that is done."""
    response = operation.get("response")
    places = [_batch(operation).get("output"), response]
    if isinstance(response, Mapping):
        places.append(response.get("output"))
    return [place for place in places if isinstance(place, Mapping)]
