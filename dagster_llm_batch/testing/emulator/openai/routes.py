"""OpenAI's routes: files, uploads, batches, and the four real-time endpoints. `azure` bends those below `/openai/`.

https://platform.openai.com/docs/api-reference
Reads report and never move a batch. For another account's objects, the answer is "not found".
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, ClassVar

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse

from dagster_llm_batch.testing.emulator.blobs import Blob, scratch
from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.calls import account_by_key, json_object, page_of, serve_calls
from dagster_llm_batch.testing.emulator.lifecycle import IllegalTransitionError
from dagster_llm_batch.testing.emulator.openai import azure
from dagster_llm_batch.testing.emulator.openai.batches import LIFECYCLE, Hooks, OpenAIBatch
from dagster_llm_batch.testing.emulator.openai.files import Files, StoredFile, Upload, expiry_seconds
from dagster_llm_batch.testing.emulator.openai.requests import Request, respond
from dagster_llm_batch.testing.emulator.openai.wire import (
    CHAT,
    EMBEDDINGS,
    MODERATIONS,
    RESPONSES,
    ApiError,
    Body,
    error_body,
)
from dagster_llm_batch.testing.emulator.shared_state import SharedState
from dagster_llm_batch.testing.emulator.vendors import VendorRoutes
from dagster_llm_batch.testing.emulator.wire import App

ENDPOINTS = (CHAT, RESPONSES, EMBEDDINGS, MODERATIONS)
_METADATA_PAIRS, _METADATA_KEY, _METADATA_VALUE = 16, 64, 512
_MOST_BATCHES, _MOST_FILES = 100, 10_000

Handler = Callable[[HttpRequest, str], Awaitable[Response]]


class FileBatchRoutes(VendorRoutes):
    """The routes of a vendor with OpenAI's files and request lines, below the vendor's own path.

    `batches_path`, `read_create` and `show_batch` are for batches whose path and shape are not OpenAI's.
    """

    batches_path: ClassVar[str] = "/batches"
    """The path of batches, below the path of the address."""
    lifecycle = LIFECYCLE

    def __init__(self, shared: SharedState) -> None:
        super().__init__(shared)
        self._files = Files(shared)
        self._batches: dict[str, OpenAIBatch] = {}

    def apps(self) -> Mapping[str, App]:
        """See VendorRoutes."""
        return {self.base_path: self._app()}

    def error_body(self, status: int, message: str | None, *, code: str | None) -> Body:
        """See VendorRoutes."""
        return error_body(status, message, code=code)

    def read_create(self, body: Body) -> Body:
        """Return the body of a create call with OpenAI's names."""
        return body

    def show_batch(self, batch: Body) -> Body:
        """Return a batch as this vendor shows it, from one with OpenAI's names."""
        return batch

    def _app(self) -> Starlette:
        files, uploads = f"{self.base_path}/files", f"{self.base_path}/uploads"
        batches = f"{self.base_path}{self.batches_path}"
        table: tuple[tuple[str, str, Handler], ...] = (
            ("POST", files, self._create_file),
            ("GET", files, self._list_files),
            ("GET", f"{files}/{{id}}", self._get_file),
            ("DELETE", f"{files}/{{id}}", self._delete_file),
            ("GET", f"{files}/{{id}}/content", self._file_content),
            ("POST", uploads, self._create_upload),
            ("POST", f"{uploads}/{{id}}/parts", self._add_part),
            ("POST", f"{uploads}/{{id}}/complete", self._complete_upload),
            ("POST", f"{uploads}/{{id}}/cancel", self._cancel_upload),
            ("POST", batches, self._create_batch),
            ("GET", batches, self._list_batches),
            ("GET", f"{batches}/{{id}}", self._get_batch),
            ("POST", f"{batches}/{{id}}/cancel", self._cancel_batch),
            *(("POST", self.base_path + endpoint.removeprefix("/v1"), self._real_time) for endpoint in ENDPOINTS),
        )
        return serve_calls(
            table,
            account_by_key(self._shared, _refuse_key),
            _refuse_path,
            new_call_id=partial(self._shared.new_id, "req_"),
            id_header="x-request-id",
        )

    def close(self) -> None:
        """Release the results of unfinished batches."""
        for batch in self._batches.values():
            batch.close()

    # https://platform.openai.com/docs/api-reference/files
    async def _create_file(self, request: HttpRequest, account: str) -> Response:
        form = await request.form()
        upload, purpose = form.get("file"), form.get("purpose")
        if not isinstance(upload, UploadFile):
            raise ApiError(400, "'file' is a required property", param="file")
        if not isinstance(purpose, str) or not purpose:
            raise ApiError(400, "'purpose' is a required property", param="purpose")
        seconds = expiry_seconds(
            {"anchor": form.get("expires_after[anchor]"), "seconds": form.get("expires_after[seconds]")}
            if "expires_after[seconds]" in form or "expires_after[anchor]" in form
            else None,
            allowed=azure.EXPIRY_SECONDS if azure.is_azure(request) else None,
        )
        if purpose == "batch" and azure.is_azure(request):
            files = [one for one in self._files.of(account) if one.purpose == purpose]
            azure.check_quota(sum(not one.was_told for one in files), len(files), expires=seconds is not None)
        blob, name = Blob(upload.file), upload.filename or "upload"
        stored = self._files.store(account, blob, name, purpose, seconds, lasts=azure.is_azure(request))
        return JSONResponse(stored.as_json())

    async def _list_files(self, request: HttpRequest, account: str) -> Response:
        purpose = request.query_params.get("purpose")
        mine = [one for one in self._files.of(account) if purpose in (None, one.purpose)]
        ordered = mine if request.query_params.get("order") == "asc" else mine[::-1]
        return _page(request, [one.as_json() for one in ordered], most=_MOST_FILES, default=_MOST_FILES)

    async def _get_file(self, request: HttpRequest, account: str) -> Response:
        return JSONResponse(self._file(request, account).as_json())

    async def _delete_file(self, request: HttpRequest, account: str) -> Response:
        stored = self._file(request, account)
        self._files.delete(stored.id)
        return JSONResponse({"id": stored.id, "object": "file", "deleted": True})

    async def _file_content(self, request: HttpRequest, account: str) -> Response:
        stored = self._file(request, account)
        headers = {
            "content-length": str(stored.blob.bytes),
            "content-disposition": f'attachment; filename="{stored.filename}"',
        }
        # read on the threadpool piece by piece: the event loop stays free, and one piece is in memory at a time
        return StreamingResponse(stored.blob.chunks(), headers=headers, media_type="application/octet-stream")

    def _file(self, request: HttpRequest, account: str) -> StoredFile:
        file_id = request.path_params["id"]
        stored = self._files.get(account, file_id)
        if stored is None:
            raise ApiError(404, f"No such File object: {file_id}", param="id")
        return stored

    # https://platform.openai.com/docs/api-reference/uploads
    async def _create_upload(self, request: HttpRequest, account: str) -> Response:
        body = await _json(request)
        for name, kind in (("bytes", int), ("filename", str), ("mime_type", str), ("purpose", str)):
            if not isinstance(body.get(name), kind):
                raise ApiError(400, f"Missing required parameter: '{name}'.", param=name)
        seconds = expiry_seconds(body.get("expires_after"))
        return JSONResponse(self._files.begin(account, body, seconds).as_json())

    async def _add_part(self, request: HttpRequest, account: str) -> Response:
        upload = self._upload(request, account)
        data = (await request.form()).get("data")
        if not isinstance(data, UploadFile):
            raise ApiError(400, "'data' is a required property", param="data")
        part_id = self._files.add_part(upload, Blob(data.file))
        created = int(self._shared.clock())
        return JSONResponse({"id": part_id, "object": "upload.part", "created_at": created, "upload_id": upload.id})

    async def _complete_upload(self, request: HttpRequest, account: str) -> Response:
        upload, body = self._upload(request, account), await _json(request)
        part_ids = body.get("part_ids")
        if not isinstance(part_ids, list) or any(part_id not in upload.parts for part_id in part_ids):
            raise ApiError(400, "'part_ids' must list parts of this upload.", param="part_ids")
        total = sum(upload.parts[part_id].bytes for part_id in part_ids)
        if total != upload.bytes:
            raise ApiError(400, f"Upload has {total} bytes, but {upload.bytes} were announced.", param="part_ids")
        whole = await run_in_threadpool(_joined, [upload.parts[part_id] for part_id in part_ids])
        upload.file = self._files.store(account, whole, upload.filename, upload.purpose, upload.expires_after)
        upload.status = "completed"
        return JSONResponse(upload.as_json())

    async def _cancel_upload(self, request: HttpRequest, account: str) -> Response:
        upload = self._upload(request, account)
        upload.status = "cancelled"
        return JSONResponse(upload.as_json())

    def _upload(self, request: HttpRequest, account: str) -> Upload:
        upload = self._files.upload(account, request.path_params["id"])
        if upload is None:
            raise ApiError(404, f"No such Upload object: {request.path_params['id']}", param="id")
        if upload.status != "pending":
            raise ApiError(400, f"This Upload is already {upload.status}.")
        return upload

    # https://platform.openai.com/docs/api-reference/batch
    async def _create_batch(self, request: HttpRequest, account: str) -> Response:
        body = self.read_create(await _json(request))
        for name in ("input_file_id", "endpoint", "completion_window"):
            if not isinstance(body.get(name), str):
                raise ApiError(400, f"Missing required parameter: '{name}'.", param=name)
        is_azure = azure.is_azure(request)
        if is_azure:
            body["endpoint"] = azure.endpoint_of(body["endpoint"])
        if body["endpoint"] not in ENDPOINTS:
            allowed = ", ".join(ENDPOINTS)
            raise ApiError(400, f"Invalid value: '{body['endpoint']}'. Emulated: {allowed}.", param="endpoint")
        if body["completion_window"] != "24h":
            raise ApiError(400, "Invalid value for 'completion_window': only '24h'.", param="completion_window")
        results_seconds = expiry_seconds(
            body.get("output_expires_after"),
            param="output_expires_after",
            allowed=azure.EXPIRY_SECONDS if is_azure else None,
        )
        record = BatchRecord(
            id=self._shared.new_id("batch_"),
            ordinal=len(self._batches),
            account=account,
            endpoint=body["endpoint"],
            input_file_id=body["input_file_id"],
            metadata=_metadata(body.get("metadata")),
            created_at=int(self._shared.clock()),
        )
        # the present file: deleting it later does not stop the batch
        stored = self._files.get(account, record.input_file_id)
        hooks = Hooks(
            input_file=lambda: None if stored is None else (stored.blob, stored.purpose),
            write_file=lambda blob, name: self._files.store(account, blob, name, "batch_output", results_seconds).id,
            enqueued_tokens=partial(self._enqueued_tokens, account),
            bend_row=azure.row_of if is_azure else None,
        )
        batch = OpenAIBatch(self._shared, hooks, record, completion_window=body["completion_window"])
        if self._shared.limits.fails_fast and (error := await asyncio.to_thread(batch.over_limit)) is not None:
            raise ApiError(400, error["message"], code=error["code"])
        self._batches[record.id] = batch
        self._shared.books.write(record)
        reply = batch.as_json()  # before the mover can see it: a create always answers `validating`
        self._shared.mover.add(batch)
        return self._shown(request, reply)

    async def _list_batches(self, request: HttpRequest, account: str) -> Response:
        own = [one.as_json() for one in reversed(list(self._batches.values())) if one.record.account == account]
        mine = [azure.batch_object(one) if azure.is_azure(request) else self.show_batch(one) for one in own]
        return _page(request, mine, most=_MOST_BATCHES, default=20)

    async def _get_batch(self, request: HttpRequest, account: str) -> Response:
        return self._shown(request, self._batch(request, account).as_json())

    async def _cancel_batch(self, request: HttpRequest, account: str) -> Response:
        batch = self._batch(request, account)
        if batch.life.state != "cancelling":
            try:
                batch.life.move("cancel", self._shared.clock())
            except IllegalTransitionError:
                text = f"Cannot cancel a batch with status '{batch.life.state}'."
                raise ApiError(409, text) from None
        return self._shown(request, batch.as_json())

    def _shown(self, request: HttpRequest, batch: Body) -> Response:
        return JSONResponse(azure.batch_object(batch) if azure.is_azure(request) else self.show_batch(batch))

    def _batch(self, request: HttpRequest, account: str) -> OpenAIBatch:
        batch = self._batches.get(request.path_params["id"])
        if batch is None or batch.record.account != account:
            raise ApiError(404, f"No batch found with id '{request.path_params['id']}'.")
        return batch

    def _enqueued_tokens(self, account: str, model: str) -> int:
        return sum(
            batch.enqueued_tokens
            for batch in list(self._batches.values())
            if batch.record.account == account and batch.model == model and not batch.life.ended
        )

    async def _real_time(self, request: HttpRequest, account: str) -> Response:
        body = await _json(request)
        if body.get("stream"):
            raise ApiError(400, "The emulator does not stream; send stream=false.", param="stream")
        endpoint = f"/v1{request.url.path.removeprefix(self.base_path)}"
        flex = self._shared.flex if body.get("service_tier") == "flex" else None
        if flex is not None:
            _check_flex(str(body.get("model")), has_room=flex.has_room())
        one = Request(account=account, endpoint=endpoint, body=body, knows_fields=True)
        status, answer = await asyncio.to_thread(respond, self._shared, one)
        if flex is not None and status == HTTPStatus.OK:
            answer["service_tier"] = flex.name("flex")
        return JSONResponse(answer, status)


def _check_flex(model: str, *, has_room: bool) -> None:
    """Refuse a call for flex. https://developers.openai.com/api/docs/guides/flex-processing"""
    if model.startswith(("gpt-4", "gpt-3")):
        raise ApiError(400, f"Flex is not available for this model: {model}.", param="service_tier")
    if not has_room:
        text = "Resource Unavailable: flex processing has no capacity now. Try again later, or use the default tier."
        raise ApiError(429, text, code="resource_unavailable")


class OpenAIRoutes(FileBatchRoutes):
    """The routes of OpenAI, and of Azure, which take all paths that other vendors do not have."""

    title = "OpenAI"
    base_path = "/v1"

    def __init__(self, shared: SharedState) -> None:
        super().__init__(shared)
        shared.documents["openai"] = self._files.document

    def apps(self) -> Mapping[str, App]:
        """See VendorRoutes."""
        return {"": self._app()}

    def exports(self, url: str, key: str) -> Mapping[str, str]:
        """See VendorRoutes."""
        return {"OPENAI_BASE_URL": f"{url}{self.base_path}", "OPENAI_API_KEY": key}

    def remark(self, url: str) -> str:
        """See VendorRoutes."""
        return f" (Azure v1 form: {url}/openai/v1/)"


def _refuse_key(key: str | None) -> ApiError:
    shown = f"{key[:3]}****{key[-2:]}" if key else "(none)"
    return ApiError(401, f"Incorrect API key provided: {shown}.")


def _refuse_path(request: HttpRequest, status: int) -> ApiError:
    return ApiError(status, f"Invalid URL ({request.method} {request.url.path})")


async def _json(request: HttpRequest) -> Body:
    text = "We could not parse the JSON body of your request. It must be a JSON object."
    return json_object(await request.body(), ApiError(400, text))


def _metadata(given: Any) -> dict[str, str]:
    metadata = {} if given is None else given
    if not isinstance(metadata, dict) or len(metadata) > _METADATA_PAIRS:
        raise ApiError(400, f"Invalid 'metadata': at most {_METADATA_PAIRS} pairs of strings.", param="metadata")
    for key, value in metadata.items():
        if not isinstance(value, str) or len(key) > _METADATA_KEY or len(value) > _METADATA_VALUE:
            text = f"Invalid 'metadata.{key}': keys up to {_METADATA_KEY}, values up to {_METADATA_VALUE} characters."
            raise ApiError(400, text, param="metadata")
    return metadata


def _page(request: HttpRequest, items: list[Body], *, most: int, default: int) -> Response:
    """Return a page of a list: https://platform.openai.com/docs/api-reference/batch/list"""
    given, after = request.query_params.get("limit", str(default)), request.query_params.get("after")
    if not given.isdigit() or not 1 <= int(given) <= most:
        raise ApiError(400, f"Invalid 'limit': expected an integer from 1 to {most}, got '{given}'.", param="limit")
    start = 0
    if after is not None:
        ids = [item["id"] for item in items]
        if after not in ids:
            raise ApiError(400, f"Invalid 'after': no item with id '{after}'.", param="after")
        start = ids.index(after) + 1
    return JSONResponse({"object": "list", **page_of(items, start, start + int(given))})


def _joined(parts: Iterable[Blob]) -> Blob:
    whole = scratch()
    for part in parts:
        for piece in part.chunks():
            whole.write(piece)
    return Blob(whole)
