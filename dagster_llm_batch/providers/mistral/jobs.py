"""Mistral's batch jobs, read as OpenAI's batches: files and rows are OpenAI's, jobs are not.

    POST /v1/batch/jobs {"input_files":[…],"endpoint":…,"model":…,"metadata":{…},"timeout_hours":24}
    GET  /v1/batch/jobs?page=0&page_size=100&order_by=-created, GET /v1/batch/jobs/{id}, POST /v1/batch/jobs/{id}/cancel

`completed_requests` are all processed requests, including failed ones. A job that succeeded may still have failed rows,
which are in its files.

API: https://docs.mistral.ai/studio-api/batch-processing and mistralai 3.7.0 (Python SDK), 2026-11
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from dagster_llm_batch.providers.openai_api.batches import window_of
from dagster_llm_batch.providers.openai_api.calls import Batch, OwnCalls, Page, Reply

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


class Jobs(OwnCalls):
    """The calls about jobs."""

    def create(
        self, *, model: str, input_file_id: str, endpoint: str, completion_window: str, metadata: Mapping[str, str]
    ) -> Reply:
        """Create a job. It names the model once more."""
        window = window_of(completion_window)
        body = {
            "input_files": [input_file_id],
            "endpoint": endpoint,
            "model": model,
            "metadata": metadata,
            **({} if window is None else {"timeout_hours": window // timedelta(hours=1)}),
        }
        return self._call("post", _JOBS, body=body)

    def retrieve(self, batch_id: str) -> Reply:
        """Read a job."""
        return self._call("get", f"{_JOBS}/{batch_id}")

    def cancel(self, batch_id: str) -> Reply:
        """Ask for a job to be stopped."""
        return self._call("post", f"{_JOBS}/{batch_id}/cancel")

    def list(self, *, limit: int, page: int = 0) -> Reply:
        """List jobs, newest first, by numbered pages."""

        def read(data: Mapping[str, Any]) -> Page:
            found, total = data.get("data"), data.get("total")
            has_more = bool(found) and isinstance(total, int) and (page + 1) * limit < total
            jobs = [self._batch(job) for job in found] if isinstance(found, list) else found
            return Page(jobs, (lambda: self.list(limit=limit, page=page + 1)) if has_more else None)

        query = {"page": page, "page_size": limit, "order_by": "-created"}
        return self._call("get", _JOBS, params=query, read=read)

    def _batch(self, data: Mapping[str, Any]) -> Batch:
        word = data.get("status")
        files = data.get("input_files")
        counts = {"total": "total_requests", "completed": "succeeded_requests", "failed": "failed_requests"}
        told = data.get("errors") if word == "FAILED" else None
        messages = [one.get("message") for one in told if isinstance(one, dict)] if isinstance(told, list) else []
        return Batch(
            id=data.get("id"),
            status=_STATUSES.get(word, word) if isinstance(word, str) else word,
            metadata=data.get("metadata"),
            created_at=data.get("created_at"),
            model=data.get("model"),
            completed_at=data.get("completed_at"),
            input_file_id=files[0] if isinstance(files, list) and files else None,
            output_file_id=data.get("output_file"),
            error_file_id=data.get("error_file"),
            request_counts=SimpleNamespace(**{name: data.get(field) for name, field in counts.items()}),
            errors=SimpleNamespace(data=[SimpleNamespace(code=None, message=one, line=None) for one in messages]),
        )
