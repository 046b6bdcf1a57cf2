"""Mistral's routes: files, batch jobs, and chat and embeddings in real time.

https://docs.mistral.ai/api/endpoint/batch and https://docs.mistral.ai/api/endpoint/files; live observations are from
OpenRouterTeam/docs, batch-research/mistral, 2026-09. Reads report and never move a job. For another account's objects,
the answer is "not found".
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from dagster_llm_batch.testing.emulator.blobs import Blob
from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.calls import account_by_key, json_object, serve_calls
from dagster_llm_batch.testing.emulator.lifecycle import IllegalTransitionError
from dagster_llm_batch.testing.emulator.mistral.jobs import LIFECYCLE, Asked, MistralJob
from dagster_llm_batch.testing.emulator.mistral.wire import (
    MISTRAL,
    ApiError,
    as_openai,
    error_body,
    file_object,
    model_error,
    new_uuid,
)
from dagster_llm_batch.testing.emulator.openai.files import Files, StoredFile
from dagster_llm_batch.testing.emulator.openai.requests import Request, respond
from dagster_llm_batch.testing.emulator.openai.wire import CHAT, EMBEDDINGS, Body
from dagster_llm_batch.testing.emulator.shared_state import SharedState
from dagster_llm_batch.testing.emulator.vendors import VendorRoutes
from dagster_llm_batch.testing.emulator.wire import App

_JOBS, _FILES = f"{MISTRAL}/batch/jobs", f"{MISTRAL}/files"
_MOST_A_PAGE = 1_000
_LIMITS = {"mistral_requests": 1_000_000, "mistral_file_bytes": 512_000_000}
_LINE_FIELDS = {"custom_id", "body"}
_ASKED = {CHAT: "messages", EMBEDDINGS: "input"}
"""The available endpoints, and the field that their bodies need."""
# https://docs.mistral.ai/api/endpoint/chat
_BODY_FIELDS = frozenset(
    {
        "frequency_penalty", "guardrails", "logprobs", "max_tokens", "messages", "metadata", "min_tokens", "model", "n",
        "parallel_tool_calls", "prediction", "presence_penalty", "prompt_logprobs", "prompt_mode", "random_seed",
        "reasoning_effort", "repetition_penalty", "response_format", "safe_prompt", "stop", "stream", "temperature",
        "tool_choice", "tools", "top_k", "top_logprobs", "top_p", "top_prompt_logprobs",
    }
)  # fmt: skip
_BOUNDS: dict[str, tuple[float, float | None]] = {"temperature": (0, 1.5), "top_p": (0, 1), "max_tokens": (0, None)}

Handler = Callable[[HttpRequest, str], Awaitable[Response]]


class MistralRoutes(VendorRoutes):
    """The routes of Mistral, on the state that the emulated vendors share."""

    title = "Mistral"
    base_path = MISTRAL
    batches_path: ClassVar[str] = _JOBS.removeprefix(MISTRAL)
    """The path of jobs, below the path of the address."""
    lifecycle = LIFECYCLE

    def __init__(self, shared: SharedState) -> None:
        super().__init__(shared)
        self._files = Files(shared, lambda: new_uuid(shared, "mistral-file"))
        # The content of a file, and its number of lines.
        self._samples: dict[str, tuple[str, int]] = {}
        self._jobs: dict[str, MistralJob] = {}

    def apps(self) -> Mapping[str, App]:
        """See VendorRoutes."""
        return {MISTRAL: self._app()}

    def error_body(self, status: int, message: str | None, *, code: str | None) -> Body:
        """See VendorRoutes."""
        return error_body(status, message, code=code)

    def exports(self, url: str, key: str) -> Mapping[str, str]:
        """See VendorRoutes."""
        return {"MISTRAL_BASE_URL": f"{url}{self.base_path}", "MISTRAL_API_KEY": key}

    def _app(self) -> Starlette:
        table: tuple[tuple[str, str, Handler], ...] = (
            ("POST", _FILES, self._create_file),
            ("GET", _FILES, self._list_files),
            ("GET", f"{_FILES}/{{id}}", self._get_file),
            ("DELETE", f"{_FILES}/{{id}}", self._delete_file),
            ("GET", f"{_FILES}/{{id}}/content", self._file_content),
            ("POST", _JOBS, self._create_job),
            ("GET", _JOBS, self._list_jobs),
            ("GET", f"{_JOBS}/{{id}}", self._get_job),
            ("POST", f"{_JOBS}/{{id}}/cancel", self._cancel_job),
            *(("POST", MISTRAL + path.removeprefix("/v1"), self._real_time) for path in _ASKED),
        )
        return serve_calls(
            table,
            account_by_key(self._shared, lambda _: ApiError(401, "Invalid API Key")),
            lambda _, status: ApiError(status, "Not Found"),
        )

    def close(self) -> None:
        """Release the results of unfinished jobs."""
        for job in self._jobs.values():
            job.close()

    async def _create_file(self, request: HttpRequest, account: str) -> Response:
        """Refuse a file with one bad line as a whole."""
        form = await request.form()
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise ApiError(422, "file: Field required")
        if form.get("purpose") != "batch":
            raise ApiError(422, "purpose: the emulator takes files of batches alone")
        blob = Blob(upload.file)
        if blob.bytes > self._limit("mistral_file_bytes"):
            raise ApiError(413, "The file is too large.")
        lines = await asyncio.to_thread(_checked_lines, blob, self._limit("mistral_requests"))
        stored = self._keep(account, blob, upload.filename or "upload.jsonl", "batch_request", lines)
        return JSONResponse(self._shown(stored))

    def _limit(self, name: str) -> int:
        return self._shared.limits.others.get(name, _LIMITS[name])

    def _keep(self, account: str, blob: Blob, name: str, sample_type: str, lines: int) -> StoredFile:
        stored = self._files.store(account, blob, name, "batch", None, lasts=True)
        self._samples[stored.id] = (sample_type, lines)
        return stored

    def _shown(self, stored: StoredFile) -> Body:
        return file_object(stored, *self._samples[stored.id])

    async def _list_files(self, request: HttpRequest, account: str) -> Response:
        return _page(request, [self._shown(one) for one in reversed(self._files.of(account))])

    async def _get_file(self, request: HttpRequest, account: str) -> Response:
        return JSONResponse(self._shown(self._file(account, request.path_params["id"])))

    async def _delete_file(self, request: HttpRequest, account: str) -> Response:
        stored = self._file(account, request.path_params["id"])
        self._files.delete(stored.id)
        return JSONResponse({"id": stored.id, "object": "file", "deleted": True})

    async def _file_content(self, request: HttpRequest, account: str) -> Response:
        blob = self._file(account, request.path_params["id"]).blob
        headers = {"content-length": str(blob.bytes)}
        return StreamingResponse(blob.chunks(), headers=headers, media_type="application/octet-stream")

    def _file(self, account: str, file_id: Any) -> StoredFile:
        stored = self._files.get(account, file_id)
        if stored is None:
            raise ApiError(404, f"No such file: {file_id}")
        return stored

    async def _create_job(self, request: HttpRequest, account: str) -> Response:
        asked = json_object(await request.body(), ApiError(422, "body: JSON decode error"))
        files, model, hours = asked.get("input_files"), asked.get("model"), asked.get("timeout_hours", 24)
        if not isinstance(files, list) or len(files) != 1:
            raise ApiError(422, "input_files: the emulator takes one file")
        endpoint = asked.get("endpoint")
        if endpoint not in _ASKED:
            raise ApiError(422, f"endpoint: Input should be one of {', '.join(_ASKED)}, which the emulator answers")
        known = self._shared.limits.known_models
        if not isinstance(model, str) or not model or (known is not None and model not in known):
            raise ApiError(422, f"model: '{model}' is not a model that answers batches")
        if not isinstance(hours, int) or hours < 1:
            raise ApiError(422, "timeout_hours: Input should be greater than or equal to 1")
        metadata = asked.get("metadata") or {}
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ApiError(422, "metadata: values should be valid strings")
        blob = self._file(account, files[0]).blob
        record = BatchRecord(
            id=new_uuid(self._shared, "mistral-job"),
            ordinal=len(self._jobs),
            account=account,
            endpoint=endpoint,
            input_file_id=files[0],
            metadata=metadata,
            created_at=int(self._shared.clock()),
        )

        def write_file(results: Blob, sample_type: str, count: int) -> str:
            return self._keep(account, results, f"{record.id}_{sample_type}.jsonl", sample_type, count).id

        lines = [raw for _, raw in blob.lines() if raw.strip()]
        if any(_ASKED[endpoint] not in json.loads(raw)["body"] for raw in lines):
            raise ApiError(422, f"body.{_ASKED[endpoint]}: Field required")
        job = MistralJob(self._shared, record, Asked(lines, model, hours, write_file))
        self._jobs[record.id] = job
        self._shared.books.write(record)
        reply = job.as_json(is_new=True)  # before the mover can see it: a create always answers QUEUED
        self._shared.mover.add(job)
        return JSONResponse(reply)

    async def _list_jobs(self, request: HttpRequest, account: str) -> Response:
        query = request.query_params
        mine = [job.as_json() for job in list(self._jobs.values()) if job.record.account == account]
        for name in ("status", "model"):
            if wanted := query.getlist(name):
                mine = [job for job in mine if job[name] in wanted]
        newest_first = query.get("order_by", "-created") == "-created"
        return _page(request, mine[::-1] if newest_first else mine)

    async def _get_job(self, request: HttpRequest, account: str) -> Response:
        return JSONResponse(self._job(request, account).as_json())

    async def _cancel_job(self, request: HttpRequest, account: str) -> Response:
        job = self._job(request, account)
        if job.life.state != "CANCELLATION_REQUESTED":
            try:
                job.life.move("cancel", self._shared.clock())
            except IllegalTransitionError:
                raise ApiError(422, f"A job that is {job.life.state} cannot be cancelled.") from None
        return JSONResponse(job.as_json())

    def _job(self, request: HttpRequest, account: str) -> MistralJob:
        job = self._jobs.get(request.path_params["id"])
        if job is None or job.record.account != account:
            raise ApiError(404, f"No such batch job: {request.path_params['id']}")
        return job

    async def _real_time(self, request: HttpRequest, account: str) -> Response:
        body = json_object(await request.body(), ApiError(422, "body: JSON decode error"))
        if body.get("stream"):
            raise ApiError(422, "The emulator does not stream; send stream=false.")
        endpoint = next(path for path in _ASKED if request.url.path.endswith(path.removeprefix("/v1")))
        if (problem := _body_problem(body)) is not None:
            raise ApiError(422, problem)
        asked = Request(account, endpoint, as_openai(body))
        status, answer = await asyncio.to_thread(respond, self._shared, asked)
        if status != 200:  # noqa: PLR2004 - HTTP
            answer = model_error(status, answer["error"]["message"])
        return JSONResponse(answer, status)


def _checked_lines(blob: Blob, most: int) -> int:
    """Count the requests; raise ApiError for a line that is not a request, as Mistral does when a file is uploaded.

    A `custom_id` may be missing or repeated.
    """
    errors: list[Body] = []
    count = 0
    for number, (_, raw) in enumerate(blob.lines(), start=1):
        if not raw.strip():
            continue
        count += 1
        if (problem := _problem(raw)) is not None:
            errors.append({"line_number": number, "msg": problem})
    if errors or not 1 <= count <= most:
        raise ApiError(422, "Invalid file format.", errors)
    return count


def _problem(raw: bytes) -> str | None:
    try:
        line = json.loads(raw)
    except ValueError:
        return "JSON decode error"
    if not isinstance(line, dict) or not isinstance(body := line.get("body"), dict):
        return "body: Input should be a valid dictionary"
    if unknown := line.keys() - _LINE_FIELDS:
        return f"{min(unknown)}: Extra inputs are not permitted"
    return _body_problem(body)


def _body_problem(body: Body) -> str | None:
    if "input" in body:
        if "dimensions" in body:
            return "body.dimensions: Extra inputs are not permitted"
        return None if body["input"] else "body.input: should have at least 1 item"
    if not isinstance(body.get("messages"), list) or not body["messages"]:
        return "body.messages: Field required"
    if unknown := body.keys() - _BODY_FIELDS:
        return f"body.{min(unknown)}: Extra inputs are not permitted"
    for name, (least, most) in _BOUNDS.items():
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float):
            return f"body.{name}: Input should be a valid number"
        if value < least:
            return f"body.{name}: Input should be greater than or equal to {least}"
        if most is not None and value > most:
            return f"body.{name}: Input should be less than or equal to {most}"
    return None


def _page(request: HttpRequest, items: list[Body]) -> Response:
    """Return a numbered page of a list."""
    page, size = (request.query_params.get(name, usual) for name, usual in (("page", "0"), ("page_size", "100")))
    if not page.isdigit() or not size.isdigit() or not 1 <= int(size) <= _MOST_A_PAGE:
        raise ApiError(422, f"page: from 0; page_size: from 1 to {_MOST_A_PAGE}")
    start = int(page) * int(size)
    return JSONResponse({"object": "list", "data": items[start : start + int(size)], "total": len(items)})
