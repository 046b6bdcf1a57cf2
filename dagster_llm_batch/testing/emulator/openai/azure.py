"""Differences of Azure OpenAI's v1 API from OpenAI's: paths that begin with `/openai/` are answered so.

https://learn.microsoft.com/azure/foundry/openai/how-to/batch, 2026-03: limits, and the documented samples of answers.
In these, endpoint, metadata and in_progress_at are null and file ids of a new batch are empty texts.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import HTTPConnection

from dagster_llm_batch.testing.emulator.openai.wire import CHAT, RESPONSES, ApiError, Body

__all__ = ["EXPIRY_SECONDS", "batch_object", "check_quota", "endpoint_of", "is_azure", "row_of"]

EXPIRY_SECONDS = (1_209_600, 2_592_000)
"""Shortest and longest `expires_after`: 14 and 30 days."""

_FILES, _FILES_WITH_EXPIRY = 500, 10_000
_ENDPOINTS = {"/chat/completions": CHAT, CHAT: CHAT, RESPONSES: RESPONSES}
_UNFILTERED = {name: {"filtered": False, "severity": "safe"} for name in ("hate", "self_harm", "sexual", "violence")}


def is_azure(connection: HTTPConnection) -> bool:
    """Return whether a request came by a path of Azure's."""
    return str(connection.scope.get("emulator.raw_path", "")).startswith("/openai/")


def check_quota(files_without_expiry: int, files: int, *, expires: bool) -> None:
    """Raise ApiError where a resource holds as many request files as it may."""
    if (expires and files >= _FILES_WITH_EXPIRY) or (not expires and files_without_expiry >= _FILES):
        raise ApiError(
            400, "The number of batch input files of this resource exceeds its limit.", code="quota_exceeded"
        )


def endpoint_of(given: str) -> str:
    """Return which API is meant. Raises ApiError for one that answers no batches, as embeddings."""
    if given not in _ENDPOINTS:
        raise ApiError(400, f"Invalid value: '{given}'. Supported: {', '.join(_ENDPOINTS)}.", param="endpoint")
    return _ENDPOINTS[given]


def batch_object(batch: Body) -> Body:
    """Return the batch object as Azure answers it."""
    counts: Any = batch["request_counts"]
    if batch["status"] == "failed":
        counts = {**counts, "completed": None, "failed": None}
    is_new = batch["status"] == "validating"
    files = {name: "" if is_new else batch[name] for name in ("output_file_id", "error_file_id")}
    return {**batch, **files, "request_counts": counts, "endpoint": None, "metadata": None, "in_progress_at": None}


def row_of(row: Body) -> Body:
    """Return a line of a results file: it has no id, and includes the findings of the content filter."""
    row = {name: value for name, value in row.items() if name != "id"}
    body = (row["response"] or {}).get("body") or {}
    if isinstance(body.get("choices"), list):
        choices = [{**choice, "content_filter_results": _UNFILTERED} for choice in body["choices"]]
        found = [{"prompt_index": 0, "content_filter_results": _UNFILTERED}]
        body = {**body, "choices": choices, "prompt_filter_results": found}
        row = {**row, "response": {**row["response"], "body": body}}
    return row
