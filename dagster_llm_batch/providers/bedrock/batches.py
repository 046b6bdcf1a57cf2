"""Bedrock's batch jobs: how a tag becomes a job's name and token, and how a job is read as a BatchReport. Pure.

Format: https://docs.aws.amazon.com/bedrock/latest/APIReference/API_GetModelInvocationJob.html
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dagster_llm_batch.providers.answers import check_listed, count_of, id_of, time_of
from dagster_llm_batch.providers.bedrock.errors import is_of_aws
from dagster_llm_batch.text import is_id, plain_words
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = ["COUNTS", "add_counts", "input_of", "is_job_id", "job_id", "job_name", "output_of", "page_jobs", "read_job"]

# The API's patterns for name and token, which exclude underscores. botocore checks lengths only, so this module checks
# the patterns.
_NAME = re.compile(r"[a-zA-Z0-9](?:-*[a-zA-Z0-9]){0,62}")
_NAME_CHARS = 63
_ID = re.compile(r"(?:arn:aws(?:-[^:]+)?:bedrock:[a-z0-9-]{1,20}:[0-9]{12}:model-invocation-job/)?[a-z0-9]{12}")

# PartiallyCompleted: some records were not processed in time. Its output is read like any other job's.
_STATUSES = {
    "submitted": BatchStatus.PENDING,
    "validating": BatchStatus.PENDING,
    "scheduled": BatchStatus.PENDING,
    "inprogress": BatchStatus.RUNNING,
    "completed": BatchStatus.ENDED,
    "partiallycompleted": BatchStatus.ENDED,
    "stopping": BatchStatus.CANCELING,
    "stopped": BatchStatus.CANCELED,
    "expired": BatchStatus.EXPIRED,
    "failed": BatchStatus.FAILED,
}
_FOR_NOW = re.compile(r"internal|throttl|try again|too many|service unavailable|timed? ?out", re.IGNORECASE)
_NO_ROOM = re.compile(r"throttl|too many", re.IGNORECASE)
COUNTS = ("totalRecordCount", "processedRecordCount", "errorRecordCount")
"""The counts of a job, and of `manifest.json.out`, that a report takes."""


def job_name(tag: str) -> str:
    """Return the name of a tag's job, and its clientRequestToken: no underscore, at most 63 characters."""
    if len(tag) <= _NAME_CHARS and _NAME.fullmatch(tag):
        return tag
    digest = hashlib.blake2b(tag.encode(), digest_size=8).hexdigest()
    words = "-".join(re.findall(r"[a-zA-Z0-9]+", tag))[: _NAME_CHARS - len(digest) - 1].strip("-")
    return f"{words}-{digest}" if words else digest


def is_job_id(batch_id: str) -> bool:
    """Return whether the text has the form of a job's ARN or id."""
    return bool(_ID.fullmatch(batch_id)) and len(batch_id) <= 1_011  # noqa: PLR2004 -- the API's limit


def input_of(job: Mapping[str, Any]) -> str | None:
    """Tell where the request file of a job is."""
    uri = ((job.get("inputDataConfig") or {}).get("s3InputDataConfig") or {}).get("s3Uri")
    return uri if isinstance(uri, str) else None


def job_id(arn: str) -> str:
    """Return the 12 characters that name a job's output folder."""
    return arn.rsplit("/", 1)[-1]


def output_of(job: Mapping[str, Any]) -> str | None:
    """Tell where the results of a job are."""
    uri = ((job.get("outputDataConfig") or {}).get("s3OutputDataConfig") or {}).get("s3Uri")
    return uri if is_id(uri) else None


def page_jobs(page: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the jobs on a page of a list. Raises TransientError where it is no list, which is not an empty page."""
    jobs = page.get("invocationJobSummaries", [] if is_of_aws(page) else None)
    return check_listed(jobs, lambda job: isinstance(job, Mapping) and is_id(job.get("jobArn")))


def read_job(job: Mapping[str, Any]) -> BatchReport:
    """Return the report of a job, or of its summary in a list."""
    word = plain_words(job.get("status"))
    status = _STATUSES.get(word.lower())
    reason = plain_words(job["message"]) if job.get("message") else None
    if status is None:
        reason = f"The provider reports the unknown status '{word}'."
    elif reason is None and word.lower() == "partiallycompleted":
        reason = "Not all records could be processed in time."
    elif reason is None and status is BatchStatus.FAILED:
        reason = "The provider gives no reason."
    report = BatchReport(
        batch_id=str(job["jobArn"]),
        status=status or BatchStatus.RUNNING,
        reason=reason and plain_words(reason),
        retryable=status is BatchStatus.FAILED and bool(_FOR_NOW.search(reason or "")),
        smaller_helps=None if status is BatchStatus.FAILED and _NO_ROOM.search(reason or "") else False,
        created_at=time_of(job.get("submitTime")),
        ended_at=time_of(job.get("endTime")),
        model=id_of(job.get("modelId")),
    )
    return add_counts(report, job)


def add_counts(report: BatchReport, counts: Mapping[str, Any]) -> BatchReport:
    """Return the report with the counts of a job or a manifest; missing counts stay unknown."""
    total, done, failed = (count_of(counts.get(name)) for name in COUNTS)
    if done is None:
        return report
    return replace(report, total=total, done=done, failed=failed)
