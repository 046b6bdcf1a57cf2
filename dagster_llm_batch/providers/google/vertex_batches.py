"""A batch prediction job of Vertex AI, read as a BatchReport. Pure.

States are read with or without their prefix; one never seen is RUNNING. A job that ended with some rows unfinished, and
one that expired or was canceled, keeps the rows that finished.

Format: https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.batchPredictionJobs
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster_llm_batch.providers.answers import id_of
from dagster_llm_batch.providers.google.clients import count, time_of
from dagster_llm_batch.text import is_id, plain_words
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = ["RESULTS", "RETRYABLE_JOB_CODES", "inputs_of", "is_job", "job_reason", "output_of", "read_job"]

EXHAUSTED = 8
RETRYABLE_JOB_CODES = frozenset({EXHAUSTED, 13, 14})
"""google.rpc.Code: resources exhausted, internal, unavailable."""

# The SDK's own `job.done` is False for PARTIALLY_SUCCEEDED, for ever: so the words are read here.
_STATUSES = {
    "QUEUED": BatchStatus.PENDING,
    "PENDING": BatchStatus.PENDING,
    "RUNNING": BatchStatus.RUNNING,
    "UPDATING": BatchStatus.RUNNING,
    "PAUSED": BatchStatus.RUNNING,
    "SUCCEEDED": BatchStatus.ENDED,
    "PARTIALLY_SUCCEEDED": BatchStatus.ENDED,
    "FAILED": BatchStatus.FAILED,
    "CANCELLING": BatchStatus.CANCELING,
    "CANCELLED": BatchStatus.CANCELED,
    "EXPIRED": BatchStatus.EXPIRED,
}


def read_job(batch_id: str, job: Mapping[str, Any]) -> BatchReport:
    """Return the report of a job as the API gives it."""
    state = plain_words(job.get("state", ""))
    word = state.removeprefix("JOB_STATE_")
    status = _STATUSES.get(word)
    error = job.get("error")
    reason, code = job_reason(error)
    if status is None:
        reason = f"The provider reports the unknown state '{state}'."
    elif status is BatchStatus.FAILED and reason is None:
        reason = "The provider gives no reason."
    elif reason is None and word in ("PAUSED", "PARTIALLY_SUCCEEDED"):
        reason = f"The provider reports the state '{state}'."
    # counts are int64 as text, absent while a job is pending, and -1 where they are unknown
    stats = job.get("completionStats")
    stats = stats if isinstance(stats, Mapping) else {}
    succeeded, failed, open_rows = (count(stats.get(f"{name}Count")) for name in ("successful", "failed", "incomplete"))
    known = succeeded is not None or failed is not None
    done = (succeeded or 0) + (failed or 0) if known else None
    return BatchReport(
        batch_id=batch_id,
        status=status or BatchStatus.RUNNING,
        total=done + open_rows if done is not None and open_rows is not None else None,
        done=done,
        failed=failed,
        reason=reason and plain_words(reason),
        retryable=status is BatchStatus.FAILED and code in RETRYABLE_JOB_CODES,
        smaller_helps=None if status is BatchStatus.FAILED and code == EXHAUSTED else False,
        created_at=time_of(job.get("createTime")),
        ended_at=time_of(job.get("endTime")),
        model=id_of(job.get("model")),
    )


def is_job(value: Mapping[str, Any]) -> bool:
    """Return whether this is a job: it has a name and a state, even an unknown one."""
    return is_id(value.get("name")) and isinstance(value.get("state"), str)


def job_reason(error: Any) -> tuple[str | None, int | None]:
    """Return the words and code of a job's or operation's error."""
    if not isinstance(error, Mapping) or not error:
        return None, None
    code = count(error.get("code"))
    text = plain_words(error.get("message") or "no message")
    return (text if code is None else f"{text} (code {code})"), code


RESULTS = "results"
"""The folder of a job's results, below one with its own name."""


def inputs_of(job: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """Tell where the requests of a job are: a table (bq://), or objects (gs://)."""
    given = job.get("inputConfig")
    given = given if isinstance(given, Mapping) else {}
    table, files = given.get("bigquerySource"), given.get("gcsSource")
    uri = table.get("inputUri") if isinstance(table, Mapping) else None
    uris = files.get("uris") if isinstance(files, Mapping) else None
    return uri if is_id(uri) else None, [one for one in uris if is_id(one)] if isinstance(uris, list) else []


def output_of(job: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Tell where the results of a job are: a table (bq://), or a folder (gs://)."""

    def place(*path: str) -> str | None:
        value: Any = job
        for name in path:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value if is_id(value) else None

    table = place("outputConfig", "bigqueryDestination", "outputUri")
    folder = place("outputInfo", "gcsOutputDirectory")
    prefix = place("outputConfig", "gcsDestination", "outputUriPrefix")
    # A job that ended early names no folder of its own, but finished rows were exported into the batch's folder. This
    # applies only to jobs that this package sent: another job's folder may hold other jobs' files, and anything else.
    if folder is None and prefix is not None and prefix.endswith(f"/{job.get('displayName')}/{RESULTS}"):
        folder = prefix
    return table, folder
