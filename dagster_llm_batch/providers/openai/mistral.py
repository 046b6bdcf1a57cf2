"""Mistral's batch jobs, with the calls and answers of the SDK's `batches`: files and rows are OpenAI's, jobs are not.

    POST /v1/batch/jobs {"input_files":[…],"endpoint":…,"model":…,"metadata":{…},"timeout_hours":24}
    GET  /v1/batch/jobs?page=0&page_size=100&order_by=-created, GET /v1/batch/jobs/{id}, POST /v1/batch/jobs/{id}/cancel

A job is read as the batch that OpenAI would show, so that one reader reads both. `completed_requests` are those that
were processed, well or badly; a job that went well may tell errors of its rows, which are in its files.

API: https://docs.mistral.ai/studio-api/batch-processing and mistralai 3.7.0 (Python SDK), 2026-11
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from dagster_llm_batch.providers.answers import RAW_ANSWER
from dagster_llm_batch.providers.openai_api.batches import window_of

__all__ = ["Jobs"]

_JOBS = "/batch/jobs"
_STATUSES = {
    "QUEUED": "queued",
    "RUNNING": "in_progress",
    "SUCCESS": "completed",
    "FAILED": "failed",
    "TIMEOUT_EXCEEDED": "expired",
    "CANCELLATION_REQUESTED": "cancelling",
    "CANCELLED": "cancelled",
}


class Jobs:
    """The calls about batches. `client` is the SDK's, whose transport makes them."""

    def __init__(self, client: Any) -> None:
        self._client = client

    @property
    def with_raw_response(self) -> Jobs:
        """These calls: each of them gives a raw answer."""
        return self

    def create(
        self, *, model: str, input_file_id: str, endpoint: str, completion_window: str, metadata: Mapping[str, str]
    ) -> _Reply:
        """Create a job."""
        window = window_of(completion_window)
        body = {
            "input_files": [input_file_id],
            "endpoint": endpoint,
            "model": model,
            "metadata": metadata,
            **({} if window is None else {"timeout_hours": window // timedelta(hours=1)}),
        }
        return self._call("post", _JOBS, body=body)

    def retrieve(self, batch_id: str) -> _Reply:
        """Read a job."""
        return self._call("get", f"{_JOBS}/{batch_id}")

    def cancel(self, batch_id: str) -> _Reply:
        """Ask for a job to be stopped."""
        return self._call("post", f"{_JOBS}/{batch_id}/cancel")

    def list(self, *, limit: int, page: int = 0) -> _Reply:
        """List jobs, newest first."""
        query = {"page": page, "page_size": limit, "order_by": "-created"}
        reply = self._call("get", _JOBS, params=query)
        reply.next = lambda: self.list(limit=limit, page=page + 1)
        reply.seen = (page + 1) * limit
        return reply

    def _call(self, method: str, path: str, params: Mapping[str, Any] | None = None, **more: Any) -> _Reply:
        options = {"headers": RAW_ANSWER, **({} if params is None else {"params": params})}
        return _Reply(getattr(self._client, method)(path, cast_to=object, options=options, **more))


class _Reply:
    """An answer, as the SDK's raw ones: with its headers, and what it says, read when asked for."""

    next: Any = None
    seen = 0

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.http_response = raw.http_response
        self.headers = raw.headers

    def parse(self) -> Any:
        """Return the job as a batch, or the page of them."""
        data = self._raw.parse()
        return _batch(data) if self.next is None else _Page(data, self)


class _Page:
    """A page of the list, as the SDK's."""

    model_fields: Mapping[str, Any] = {}

    def __init__(self, data: Mapping[str, Any], reply: _Reply) -> None:
        found = data.get("data")
        self.data = [_batch(job) for job in found] if isinstance(found, list) else found
        self._reply = reply
        total = data.get("total")
        self.has_more = bool(found) and isinstance(total, int) and reply.seen < total

    def has_next_page(self) -> bool:
        """Return whether more follow."""
        return self.has_more

    def iter_pages(self) -> Iterator[_Page]:
        """Yield this page, and those that follow."""
        page = self
        yield page
        while page.has_more:
            page = page._reply.next().parse()
            yield page


class _Batch(SimpleNamespace):
    """A job, with the names of OpenAI's batch object."""

    model_fields: Mapping[str, Any] = {}


def _batch(job: Mapping[str, Any]) -> _Batch:
    word = job.get("status")
    files = job.get("input_files")
    counts = {"total": "total_requests", "completed": "succeeded_requests", "failed": "failed_requests"}
    told = job.get("errors") if word == "FAILED" else None
    messages = [one.get("message") for one in told if isinstance(one, dict)] if isinstance(told, list) else []
    return _Batch(
        id=job.get("id"),
        status=_STATUSES.get(word, word) if isinstance(word, str) else word,
        metadata=job.get("metadata"),
        created_at=job.get("created_at"),
        model=job.get("model"),
        completed_at=job.get("completed_at"),
        input_file_id=files[0] if isinstance(files, list) and files else None,
        output_file_id=job.get("output_file"),
        error_file_id=job.get("error_file"),
        request_counts=SimpleNamespace(**{name: job.get(field) for name, field in counts.items()}),
        errors=SimpleNamespace(data=[SimpleNamespace(code=None, message=one, line=None) for one in messages]),
    )
