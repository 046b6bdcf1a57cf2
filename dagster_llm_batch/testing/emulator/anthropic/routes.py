"""Anthropic's routes: message batches and, in real time, messages.

https://platform.claude.com/docs/en/api/creating-message-batches
Reads report and never move a batch. For another account's objects, the answer is "not found".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from dagster_llm_batch.testing.emulator.anthropic.batches import LIFECYCLE, AnthropicBatch
from dagster_llm_batch.testing.emulator.anthropic.requests import Caller, Request, check_batch, respond
from dagster_llm_batch.testing.emulator.anthropic.wire import FILES, MESSAGES, ApiError, Body, error_body, rfc3339
from dagster_llm_batch.testing.emulator.blobs import Blob
from dagster_llm_batch.testing.emulator.books import BatchRecord, FileRecord
from dagster_llm_batch.testing.emulator.calls import api_key, json_object, page_of, serve_calls
from dagster_llm_batch.testing.emulator.lifecycle import IllegalTransitionError
from dagster_llm_batch.testing.emulator.shared_state import SharedState
from dagster_llm_batch.testing.emulator.uploads import StoredDocument
from dagster_llm_batch.testing.emulator.vendors import VendorRoutes
from dagster_llm_batch.testing.emulator.wire import App

_BATCHES = "/v1/messages/batches"
_MOST, _DEFAULT = 1_000, 20
_ASK_AGAIN_SECONDS = "10"
_SHORTEST, _LONGEST, _MOST_FILE_BYTES = 3_600, 7_776_000, 500_000_000

Handler = Callable[[HttpRequest, Caller], Awaitable[Response]]


class AnthropicRoutes(VendorRoutes):
    """The routes of Anthropic, on the state that the emulated vendors share."""

    title = "Anthropic"
    base_path = ""
    lifecycle = LIFECYCLE

    def __init__(self, shared: SharedState) -> None:
        super().__init__(shared)
        self._batches: dict[str, AnthropicBatch] = {}
        self._files: dict[str, StoredDocument] = {}
        shared.documents["anthropic"] = self._document

    def apps(self) -> Mapping[str, App]:
        """See VendorRoutes."""
        app = self._app()
        return {MESSAGES: app, FILES: app}

    def error_body(self, status: int, message: str | None, *, code: str | None) -> Body:
        """See VendorRoutes."""
        return error_body(status, message, code=code)

    def exports(self, url: str, key: str) -> Mapping[str, str]:
        """See VendorRoutes."""
        return {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": key}

    def _app(self) -> Starlette:
        table: tuple[tuple[str, str, Handler], ...] = (
            ("POST", _BATCHES, self._create),
            ("GET", _BATCHES, self._list),
            ("GET", f"{_BATCHES}/{{id}}", self._get),
            ("DELETE", f"{_BATCHES}/{{id}}", self._delete),
            ("POST", f"{_BATCHES}/{{id}}/cancel", self._cancel),
            ("GET", f"{_BATCHES}/{{id}}/results", self._results),
            ("POST", MESSAGES, self._real_time),
            ("POST", FILES, self._upload),
            ("GET", FILES, self._list_files),
            ("GET", f"{FILES}/{{id}}", self._get_file),
            ("DELETE", f"{FILES}/{{id}}", self._delete_file),
        )
        return serve_calls(
            table,
            self._caller,
            lambda _, status: ApiError(status, "Not found"),
            new_call_id=partial(self._shared.new_id, "req_"),
            id_header="request-id",
        )

    def close(self) -> None:
        """Release the results of unfinished batches."""
        for batch in self._batches.values():
            batch.close()

    def _caller(self, request: HttpRequest) -> Caller:
        account = self._shared.account(api_key(request.scope))
        if account is None:
            raise ApiError(401, "API key is invalid.")
        version = request.headers.get("anthropic-version")
        if not version:
            raise ApiError(400, "anthropic-version: header is required")
        betas = frozenset(word.strip() for word in request.headers.get("anthropic-beta", "").split(",") if word.strip())
        return Caller(account, version, betas)

    async def _create(self, request: HttpRequest, caller: Caller) -> Response:
        limits = self._shared.limits
        raw = await request.body()
        if len(raw) > limits.message_batch_bytes:
            raise ApiError(413, "Request exceeds the maximum size")
        requests = await asyncio.to_thread(lambda: check_batch(_object(raw), limits.message_batch_requests))
        record = BatchRecord(
            id=self._shared.new_id("msgbatch_"),
            ordinal=len(self._shared.books.batches),
            account=caller.account,
            endpoint=MESSAGES,
            input_file_id="",
            metadata={},
            created_at=int(self._shared.clock()),
        )
        batch = AnthropicBatch(self._shared, record, caller, requests)
        self._check_queue(batch)
        self._batches[record.id] = batch
        self._shared.books.write(record)
        reply = batch.as_json(_origin(request))
        self._shared.mover.add(batch)
        return JSONResponse(reply)

    def _check_queue(self, batch: AnthropicBatch) -> None:
        """https://platform.claude.com/docs/en/api/rate-limits#message-batches-api"""
        most = self._shared.limits.queued_requests
        mine = [one for one in self._batches.values() if one.record.account == batch.record.account]
        queued = sum(one.size for one in mine if not one.life.ended)
        if most is not None and queued + batch.size > most:
            raise ApiError(
                429, f"This would exceed your organization's {most:,} batch requests in the processing queue."
            )

    async def _list(self, request: HttpRequest, caller: Caller) -> Response:
        """Newest first: https://platform.claude.com/docs/en/api/listing-message-batches"""
        given = request.query_params.get("limit", str(_DEFAULT))
        if not given.isdigit() or not 1 <= int(given) <= _MOST:
            raise ApiError(400, f"limit: Input should be between 1 and {_MOST}")
        mine = [one for one in reversed(list(self._batches.values())) if one.record.account == caller.account]
        ids = [one.record.id for one in mine]
        start, end = 0, len(mine)
        if (after := request.query_params.get("after_id")) is not None:
            start = _place(ids, after, "after_id") + 1
            end = start + int(given)
        elif (before := request.query_params.get("before_id")) is not None:
            end = _place(ids, before, "before_id")
            start = max(end - int(given), 0)
        else:
            end = int(given)
        page = page_of([one.as_json(_origin(request)) for one in mine], start, end)
        if request.query_params.get("before_id") is not None:
            page["has_more"] = start > 0
        return JSONResponse(page)

    async def _get(self, request: HttpRequest, caller: Caller) -> Response:
        batch = self._batch(request, caller)
        headers = {} if batch.life.ended else {"retry-after": _ASK_AGAIN_SECONDS}
        return JSONResponse(batch.as_json(_origin(request)), headers=headers)

    async def _delete(self, request: HttpRequest, caller: Caller) -> Response:
        batch = self._batch(request, caller)
        if not batch.life.ended:
            text = "In progress batches cannot be deleted. Consider canceling the batch instead."
            raise ApiError(400, text)
        del self._batches[batch.record.id]
        return JSONResponse({"id": batch.record.id, "type": "message_batch_deleted"})

    async def _cancel(self, request: HttpRequest, caller: Caller) -> Response:
        batch = self._batch(request, caller)
        if batch.life.state != "canceling":
            try:
                batch.life.move("cancel", self._shared.clock())
            except IllegalTransitionError:
                raise ApiError(400, f"Message Batch {batch.record.id} has already ended.") from None
        return JSONResponse(batch.as_json(_origin(request)))

    async def _results(self, request: HttpRequest, caller: Caller) -> Response:
        batch = self._batch(request, caller)
        blob = batch.results()
        if blob is None:
            raise ApiError(404, f"Message Batch {batch.record.id} has no available results.")
        # read on the threadpool piece by piece: the event loop stays free, and one piece is in memory at a time
        headers = {"content-length": str(blob.bytes)}
        return StreamingResponse(blob.chunks(), headers=headers, media_type="application/x-jsonl")

    async def _real_time(self, request: HttpRequest, caller: Caller) -> Response:
        """https://platform.claude.com/docs/en/api/messages"""
        one = Request(caller, _object(await request.body()))
        status, answer = await asyncio.to_thread(respond, self._shared, one)
        return JSONResponse(answer, status)

    # https://platform.claude.com/docs/en/api/files-create
    async def _upload(self, request: HttpRequest, caller: Caller) -> Response:
        form = await request.form()
        upload, seconds = form.get("file"), form.get("expires_in_seconds")
        if not isinstance(upload, UploadFile):
            raise ApiError(400, "file: Field required")
        if seconds is not None and not (str(seconds).isdigit() and _SHORTEST <= int(str(seconds)) <= _LONGEST):
            raise ApiError(400, f"expires_in_seconds: Input should be between {_SHORTEST} and {_LONGEST}")
        blob = self._shared.keep(Blob(upload.file))
        if blob.bytes > _MOST_FILE_BYTES:
            raise ApiError(413, "File size exceeds the maximum of 500 MB")
        now, name = self._shared.clock(), upload.filename or "unnamed"
        expires_at = None if seconds is None else now + int(str(seconds))
        file_id, kind = self._shared.new_id("file_"), upload.content_type or "application/octet-stream"
        self._files[file_id] = StoredDocument(caller.account, blob, name, kind, now, expires_at)
        self._shared.books.write(FileRecord(file_id, caller.account, "document", name, blob.bytes, int(now)))
        return JSONResponse(self._file_json(file_id))

    async def _list_files(self, request: HttpRequest, caller: Caller) -> Response:
        """Newest first: https://platform.claude.com/docs/en/api/files-list"""
        given, start = request.query_params.get("limit", str(_DEFAULT)), request.query_params.get("page", "page_0")
        if not given.isdigit() or not 1 <= int(given) <= _MOST:
            raise ApiError(400, f"limit: Input should be between 1 and {_MOST}")
        mine = [file_id for file_id in reversed(list(self._files)) if self._document(caller.account, file_id)]
        first = int(start.removeprefix("page_"))
        shown = [self._file_json(file_id) for file_id in mine[first : first + int(given)]]
        more = first + int(given) < len(mine)
        return JSONResponse({"data": shown, "next_page": f"page_{first + int(given)}" if more else None})

    async def _get_file(self, request: HttpRequest, caller: Caller) -> Response:
        return JSONResponse(self._file_json(self._file_id(request, caller)))

    async def _delete_file(self, request: HttpRequest, caller: Caller) -> Response:
        file_id = self._file_id(request, caller)
        del self._files[file_id]
        return JSONResponse({"id": file_id, "type": "file_deleted"})

    def _document(self, account: str, file_id: str) -> StoredDocument | None:
        found = self._files.get(file_id)
        is_there = found is not None and found.account == account and found.lives(self._shared.clock())
        return found if is_there else None

    def _file_id(self, request: HttpRequest, caller: Caller) -> str:
        file_id = str(request.path_params["id"])
        if self._document(caller.account, file_id) is None:
            raise ApiError(404, f"File not found: {file_id}")
        return file_id

    def _file_json(self, file_id: str) -> Body:
        file = self._files[file_id]
        return {
            "id": file_id,
            "type": "file",
            "filename": file.name,
            "mime_type": file.media_type,
            "size_bytes": file.blob.bytes,
            "created_at": rfc3339(file.created_at),
            "downloadable": False,
            "expires_at": rfc3339(file.expires_at),
        }

    def _batch(self, request: HttpRequest, caller: Caller) -> AnthropicBatch:
        batch = self._batches.get(request.path_params["id"])
        if batch is None or batch.record.account != caller.account:
            raise ApiError(404, f"Message Batch {request.path_params['id']} not found.")
        return batch


def _origin(request: HttpRequest) -> str:
    return f"{request.url.scheme}://{request.url.netloc}"


def _object(raw: bytes) -> Body:
    return json_object(raw, ApiError(400, "The request body is not valid JSON: it must be an object."))


def _place(ids: list[str], wanted: str, name: str) -> int:
    if wanted not in ids:
        raise ApiError(400, f"{name}: no Message Batch with id {wanted}")
    return ids.index(wanted)
