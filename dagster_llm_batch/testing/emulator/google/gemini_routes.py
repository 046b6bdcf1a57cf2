"""The Gemini API's routes: batches, files by resumable upload, and generateContent in real time.

https://ai.google.dev/api/batch-api, https://ai.google.dev/api/files
All rows are looked at when a batch is created: one that is malformed refuses the whole call with 400.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import IO

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from dagster_llm_batch.testing.emulator.blobs import Blob, scratch
from dagster_llm_batch.testing.emulator.books import BatchRecord, FileRecord
from dagster_llm_batch.testing.emulator.calls import api_key
from dagster_llm_batch.testing.emulator.google.gemini_batches import LIFECYCLE, GeminiBatch
from dagster_llm_batch.testing.emulator.google.requests import Request, problem, respond
from dagster_llm_batch.testing.emulator.google.routes import Handler, google_app, json_body, page
from dagster_llm_batch.testing.emulator.google.wire import GEMINI, ApiError, Body, error_body, rfc3339
from dagster_llm_batch.testing.emulator.lifecycle import IllegalTransitionError
from dagster_llm_batch.testing.emulator.shared_state import SharedState
from dagster_llm_batch.testing.emulator.uploads import StoredDocument
from dagster_llm_batch.testing.emulator.vendors import VendorRoutes
from dagster_llm_batch.testing.emulator.wire import App

_ROOT = f"{GEMINI}/{{version}}"
_MOST_FILES = 100  # of a page
_UPLOADS = f"{GEMINI}/upload/{{version}}/files"
_MOST_INLINE_BYTES = 20_000_000
_FILE_SECONDS = 48 * 3_600
_VERSIONS = frozenset({"v1", "v1beta"})


@dataclass
class _Upload:
    """A resumable upload that has begun."""

    account: str
    size: int
    display_name: str
    media_type: str
    handle: IO[bytes]


class GeminiRoutes(VendorRoutes):
    """The routes of the Gemini API, on the state that the emulated vendors share."""

    title = "Gemini"
    base_path = GEMINI
    lifecycle = LIFECYCLE

    def __init__(self, shared: SharedState) -> None:
        super().__init__(shared)
        self._batches: dict[str, GeminiBatch] = {}
        self._files: dict[str, StoredDocument] = {}
        shared.documents["gemini"] = self._document
        self._uploads: dict[str, _Upload] = {}

    def apps(self) -> Mapping[str, App]:
        """See VendorRoutes."""
        return {GEMINI: self._app()}

    def error_body(self, status: int, message: str | None, *, code: str | None) -> Body:
        """See VendorRoutes."""
        return error_body(status, message, code=code)

    def exports(self, url: str, key: str) -> Mapping[str, str]:
        """See VendorRoutes."""
        return {"GOOGLE_GEMINI_BASE_URL": f"{url}{self.base_path}", "GEMINI_API_KEY": key}

    def close(self) -> None:
        """See VendorRoutes. Does nothing, since results are written only when a batch ends."""

    def _app(self) -> Starlette:
        table: tuple[tuple[str, str, Handler], ...] = (
            ("POST", f"{_ROOT}/models/{{model}}:batchGenerateContent", self._create),
            ("POST", f"{_ROOT}/models/{{model}}:generateContent", self._real_time),
            ("POST", f"{_ROOT}/models/{{model}}:asyncBatchEmbedContent", self._create),
            ("POST", f"{_ROOT}/models/{{model}}:batchEmbedContents", self._embed),
            ("GET", f"{_ROOT}/batches", self._list),
            ("POST", f"{_ROOT}/batches/{{id}}:cancel", self._cancel),
            ("GET", f"{_ROOT}/batches/{{id}}", self._get),
            ("DELETE", f"{_ROOT}/batches/{{id}}", self._delete),
            ("POST", _UPLOADS, self._upload),
            ("GET", f"{_ROOT}/files", self._list_files),
            ("GET", f"{_ROOT}/files/{{id}}:download", self._download),
            ("GET", f"{_ROOT}/files/{{id}}", self._get_file),
            ("DELETE", f"{_ROOT}/files/{{id}}", self._delete_file),
        )
        return google_app(table, self._caller)

    def _caller(self, request: HttpRequest) -> str:
        account = self._shared.account(api_key(request.scope))
        begun = self._uploads.get(request.query_params.get("upload_id", ""))
        account = begun.account if account is None and begun is not None else account  # the URL is the key
        if account is None:
            raise ApiError(400, "API key not valid. Please pass a valid API key.", reason="API_KEY_INVALID")
        if request.path_params["version"] not in _VERSIONS:
            raise ApiError(404, "Unknown API version.")
        return account

    async def _create(self, request: HttpRequest, account: str) -> Response:
        given = (await json_body(request)).get("batch")
        if not isinstance(given, dict) or not given.get("displayName"):
            raise ApiError(400, "* BatchGenerateContentRequest.batch.display_name: is required")
        source = given.get("inputConfig") or {}
        model = request.path_params["model"]
        known = self._shared.limits.known_models
        if known is not None and model not in known:
            raise ApiError(404, f"models/{model} is not found for API version v1.")
        inline = "requests" in source
        file_name = source.get("fileName") or source.get("file_name")
        rows = _inline_rows(source) if inline else self._file_rows(file_name, account)
        embeds = request.url.path.endswith(":asyncBatchEmbedContent")
        if any(("content" in row["request"]) != embeds for row in rows):
            raise ApiError(400, "The requests are not those of this method.")
        record = BatchRecord(
            id=f"batches/{self._shared.new_id('', 'batch')}",
            ordinal=len(self._shared.books.batches),
            account=account,
            endpoint="asyncBatchEmbedContent" if embeds else "batchGenerateContent",
            input_file_id="" if inline else str(file_name),
            metadata={"displayName": given["displayName"]},
            created_at=int(self._shared.clock()),
        )

        def keep(blob: Blob) -> str:
            return self._store(account, blob, f"{record.id}.jsonl", f"batch-{self._shared.new_id('')}{'0' * 24}")

        batch = GeminiBatch(self._shared, record, rows, model=model, inline=inline, keep=keep)
        self._check_queue(batch)
        self._batches[record.id] = batch
        self._shared.books.write(record)
        reply = batch.as_json()
        self._shared.mover.add(batch)
        return JSONResponse(reply)

    def _check_queue(self, batch: GeminiBatch) -> None:
        """https://ai.google.dev/gemini-api/docs/rate-limits#batch-mode"""
        most = self._shared.limits.enqueued_tokens
        mine = [one for one in self._batches.values() if one.record.account == batch.record.account]
        queued = sum(one.enqueued_tokens for one in mine if one.model == batch.model and not one.life.ended)
        if most is not None and queued + batch.enqueued_tokens > most:
            raise ApiError(429, "You exceeded your current quota, please check your plan and billing details.")

    def _file_rows(self, name: object, account: str) -> list[Body]:
        blob = self._file(str(name), account)
        return [_checked(raw, number) for number, (_, raw) in enumerate(blob.lines(), start=1) if raw.strip()]

    async def _list(self, request: HttpRequest, account: str) -> Response:
        mine = [batch.as_json() for batch in self._batches.values() if batch.record.account == account]
        return JSONResponse(page(request, mine, "operations"))

    async def _get(self, request: HttpRequest, account: str) -> Response:
        return JSONResponse(self._batch(request, account).as_json())

    async def _cancel(self, request: HttpRequest, account: str) -> Response:
        batch = self._batch(request, account)
        try:
            batch.cancel(self._shared.clock())
        except IllegalTransitionError:
            text = f"Batch is in the state {batch.life.state} and cannot be cancelled."
            raise ApiError(400, text, name="FAILED_PRECONDITION") from None
        return JSONResponse({})

    async def _delete(self, request: HttpRequest, account: str) -> Response:
        del self._batches[self._batch(request, account).record.id]
        return JSONResponse({})

    async def _real_time(self, request: HttpRequest, account: str) -> Response:
        body = await json_body(request)
        # https://ai.google.dev/gemini-api/docs/flex-inference
        flex = self._shared.flex if str(body.get("serviceTier")).lower() == "flex" else None
        if flex is not None and not flex.has_room():
            raise ApiError(503, "This model is currently experiencing high demand. Please try again later.")
        one = Request(account=account, model=request.path_params["model"], body=body)
        status, answer = await asyncio.to_thread(respond, self._shared, one)
        if flex is not None and status == HTTPStatus.OK:
            answer["usageMetadata"]["serviceTier"] = flex.name("flex")
        return JSONResponse(answer, status)

    async def _embed(self, request: HttpRequest, account: str) -> Response:
        """https://ai.google.dev/api/embeddings#method:-models.batchembedcontents"""
        vectors = []
        for body in (await json_body(request)).get("requests") or ():
            one = Request(account=account, model=request.path_params["model"], body=body)
            status, answer = await asyncio.to_thread(respond, self._shared, one)
            if "error" in answer:
                return JSONResponse(answer, status)
            vectors.append(answer["embedding"])
        return JSONResponse({"embeddings": vectors})

    # https://ai.google.dev/api/files#method:-media.upload
    async def _upload(self, request: HttpRequest, account: str) -> Response:
        command = request.headers.get("x-goog-upload-command", "")
        if command == "start":
            return await self._begin(request, account)
        upload = self._uploads.get(request.query_params.get("upload_id", ""))
        if upload is None or request.headers.get("x-goog-upload-offset") != str(upload.handle.tell()):
            raise ApiError(400, "Upload has no such session, or not this offset.")
        async for chunk in request.stream():
            upload.handle.write(chunk)
        if "finalize" not in command:
            return JSONResponse({}, headers={"x-goog-upload-status": "active"})
        if upload.handle.tell() != upload.size:
            raise ApiError(400, f"Upload has {upload.handle.tell()} bytes, but {upload.size} were announced.")
        del self._uploads[request.query_params["upload_id"]]
        name = self._store(
            account, Blob(upload.handle), upload.display_name, self._shared.new_id("")[:12], upload.media_type
        )
        return JSONResponse({"file": self._file_json(request, name)}, headers={"x-goog-upload-status": "final"})

    async def _begin(self, request: HttpRequest, account: str) -> Response:
        size = request.headers.get("x-goog-upload-header-content-length", "")
        if request.headers.get("x-goog-upload-protocol") != "resumable" or not size.isdigit():
            raise ApiError(400, "The upload protocol is 'resumable', with the content length announced.")
        if int(size) > self._shared.limits.gemini_file_bytes:
            raise ApiError(400, "File size is more than 2 GB.")
        file = (await json_body(request)).get("file") or {}
        upload_id = self._shared.new_id("")
        name = file.get("displayName") or file.get("display_name") or "upload"
        kind = request.headers.get("x-goog-upload-header-content-type", "application/octet-stream")
        self._uploads[upload_id] = _Upload(account, int(size), name, kind, scratch())
        url = f"{request.url.scheme}://{request.url.netloc}{request.url.path}?upload_id={upload_id}"
        return JSONResponse({}, headers={"x-goog-upload-url": url, "x-goog-upload-status": "active"})

    def _store(self, account: str, blob: Blob, filename: str, file_id: str, kind: str | None = None) -> str:
        """Keep a file; return its name. One with a media type was uploaded, and expires."""
        at = self._shared.clock()
        expires_at = None if kind is None else at + _FILE_SECONDS
        stored = StoredDocument(account, self._shared.keep(blob), filename, kind or "application/jsonl", at, expires_at)
        self._files[f"files/{file_id}"] = stored
        self._shared.books.write(FileRecord(f"files/{file_id}", account, "batch", filename, blob.bytes, int(at)))
        return f"files/{file_id}"

    def _document(self, account: str, uri: str) -> StoredDocument | None:
        stored = self._files.get(f"files/{uri.rpartition('/')[2]}")
        is_there = stored is not None and stored.account == account and stored.lives(self._shared.clock())
        return stored if is_there else None

    def _file_json(self, request: HttpRequest, name: str) -> Body:
        stored = self._files[name]
        # An upload's address has one more part.
        version = request.path_params["version"]
        uri = f"{request.url.scheme}://{request.url.netloc}{GEMINI}/{version}/{name}"
        expires = {} if stored.expires_at is None else {"expirationTime": rfc3339(stored.expires_at)}
        return {
            "name": name,
            "displayName": stored.name,
            "mimeType": stored.media_type,
            "sizeBytes": str(stored.blob.bytes),
            "createTime": rfc3339(stored.created_at),
            "uri": uri,
            "state": "ACTIVE",
            **expires,
        }

    async def _get_file(self, request: HttpRequest, account: str) -> Response:
        name = f"files/{request.path_params['id']}"
        self._file(name, account)
        return JSONResponse(self._file_json(request, name))

    async def _download(self, request: HttpRequest, account: str) -> Response:
        blob = self._file(f"files/{request.path_params['id']}", account)
        headers = {"content-length": str(blob.bytes)}
        return StreamingResponse(blob.chunks(), headers=headers, media_type="application/octet-stream")

    # https://ai.google.dev/api/files#method:-files.list
    async def _list_files(self, request: HttpRequest, account: str) -> Response:
        mine = [name for name in list(self._files) if self._document(account, name)]
        size = int(request.query_params.get("pageSize", "10"))
        if size > _MOST_FILES:
            raise ApiError(400, f"The page size is at most {_MOST_FILES}.")
        start = int(request.query_params.get("pageToken") or 0)
        files = [self._file_json(request, name) for name in mine[start : start + size]]
        more = {"nextPageToken": str(start + size)} if start + size < len(mine) else {}
        return JSONResponse({**({"files": files} if files else {}), **more})

    async def _delete_file(self, request: HttpRequest, account: str) -> Response:
        name = f"files/{request.path_params['id']}"
        self._file(name, account)
        del self._files[name]
        return JSONResponse({})

    def _file(self, name: str, account: str) -> Blob:
        stored = self._document(account, name)
        if stored is None:
            text = f"You do not have permission to access the File {name} or it may not exist."
            raise ApiError(403, text)
        return stored.blob

    def _batch(self, request: HttpRequest, account: str) -> GeminiBatch:
        batch = self._batches.get(f"batches/{request.path_params['id']}")
        if batch is None or batch.record.account != account:
            raise ApiError(404, f"Requested entity was not found: batches/{request.path_params['id']}.")
        return batch


def _inline_rows(source: Body) -> list[Body]:
    if len(json.dumps(source)) > _MOST_INLINE_BYTES:
        raise ApiError(400, "Request payload size exceeds the limit: 20971520 bytes.")
    rows = (source["requests"] or {}).get("requests")
    if not isinstance(rows, list) or not rows:
        raise ApiError(400, "* BatchGenerateContentRequest.batch.input_config.requests: is empty")
    made = [{"key": (row.get("metadata") or {}).get("key"), "request": row.get("request")} for row in rows]
    return [_checked(json.dumps(row).encode(), number) for number, row in enumerate(made, start=1)]


def _checked(raw: bytes, number: int) -> Body:
    try:
        row = json.loads(raw)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        raise ApiError(400, f"Failed to parse line {number} of the input: it is no JSON object.")
    unknown = sorted(set(row) - {"key", "request"})
    wrong = f'Unknown name "{unknown[0]}": Cannot find field.' if unknown else problem(row.get("request"))
    if wrong is not None:
        raise ApiError(400, f"Line {number} of the input: {wrong}")
    return row
