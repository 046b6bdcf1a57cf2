"""OpenRouter's routes: inline batches, and the three endpoints in real time.

https://openrouter.ai/docs/api-reference/batches
Reads report and never move a batch. For another account's objects, the answer is "not found". The API cannot cancel.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Mapping

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from dagster_llm_batch.testing.emulator.books import BatchRecord
from dagster_llm_batch.testing.emulator.calls import account_by_key, json_object, page_of, serve_calls
from dagster_llm_batch.testing.emulator.openai.batches import LIFECYCLE
from dagster_llm_batch.testing.emulator.openai.requests import Request, respond
from dagster_llm_batch.testing.emulator.openai.wire import CHAT, EMBEDDINGS, RESPONSES, Body
from dagster_llm_batch.testing.emulator.openrouter.batches import InlineBatch
from dagster_llm_batch.testing.emulator.openrouter.wire import OPENROUTER, ApiError, error_body
from dagster_llm_batch.testing.emulator.shared_state import SharedState
from dagster_llm_batch.testing.emulator.vendors import VendorRoutes
from dagster_llm_batch.testing.emulator.wire import App

_ENDPOINTS = (CHAT, RESPONSES, EMBEDDINGS)
_BATCHES = f"{OPENROUTER}/batches"
_BEFORE_REQUESTS = ("endpoint", "model", "callback_url", "completion_window", "provider")
_NO_OBJECT = "The request body is not valid JSON: it must be an object."
_MOST_BATCHES, _MOST_ROWS, _DEFAULT = 100, 1_000, 20

Handler = Callable[[HttpRequest, str], Awaitable[Response]]


class OpenRouterRoutes(VendorRoutes):
    """The routes of OpenRouter, on the state that the emulated vendors share."""

    title = "OpenRouter"
    base_path = OPENROUTER
    lifecycle = LIFECYCLE

    def __init__(self, shared: SharedState) -> None:
        super().__init__(shared)
        self._batches: dict[str, InlineBatch] = {}
        self._created = 0

    def apps(self) -> Mapping[str, App]:
        """See VendorRoutes."""
        return {OPENROUTER: self._app()}

    def error_body(self, status: int, message: str | None, *, code: str | None) -> Body:
        """See VendorRoutes."""
        return error_body(status, message, code=code)

    def exports(self, url: str, key: str) -> Mapping[str, str]:
        """See VendorRoutes."""
        return {"OPENROUTER_BASE_URL": f"{url}{self.base_path}", "OPENROUTER_API_KEY": key}

    def _app(self) -> Starlette:
        table: tuple[tuple[str, str, Handler], ...] = (
            ("POST", _BATCHES, self._create),
            ("GET", _BATCHES, self._list),
            ("GET", f"{_BATCHES}/{{id}}", self._get),
            ("DELETE", f"{_BATCHES}/{{id}}", self._delete),
            ("GET", f"{_BATCHES}/{{id}}/results", self._results),
            *(("POST", OPENROUTER + path.removeprefix("/v1"), self._real_time) for path in _ENDPOINTS),
        )
        return serve_calls(
            table,
            account_by_key(self._shared, lambda _: ApiError(401, "No auth credentials found")),
            lambda _, status: ApiError(status, "Not found"),
        )

    def close(self) -> None:
        """Release the results of unfinished batches."""
        for batch in self._batches.values():
            batch.close()

    async def _create(self, request: HttpRequest, account: str) -> Response:
        raw = await request.body()
        if len(raw) > self._shared.limits.file_bytes:
            raise ApiError(413, "The request body is too large.")
        told = await asyncio.to_thread(_read_in_order, raw)
        record = BatchRecord(
            id=self._shared.new_id("batch_", "inline"),
            ordinal=self._created,
            account=account,
            endpoint=told["endpoint"],
            input_file_id="",
            metadata={},
            created_at=int(self._shared.clock()),
        )
        self._created += 1
        batch = InlineBatch(self._shared, record, told)
        self._batches[record.id] = batch
        self._shared.books.write(record)
        reply = batch.as_json(with_results=True)  # before the mover can see it: a create always answers `validating`
        self._shared.mover.add(batch)
        return JSONResponse(reply, 202)

    async def _list(self, request: HttpRequest, account: str) -> Response:
        """Newest first."""
        query = request.query_params
        limit = _number(query.get("limit", str(_DEFAULT)), _MOST_BATCHES, "limit")
        mine = [one for one in reversed(list(self._batches.values())) if one.record.account == account]
        told = [one.as_json(with_results=False) for one in mine]
        if wanted := query.getlist("status"):
            told = [one for one in told if one["status"] in wanted]
        start = 0
        if (after := query.get("after")) is not None:
            ids = [one["id"] for one in told]
            if after not in ids:
                raise ApiError(400, f"after: there is no batch '{after}'")
            start = ids.index(after) + 1
        return JSONResponse({"object": "list", **page_of(told, start, start + limit)})

    async def _get(self, request: HttpRequest, account: str) -> Response:
        batch = self._batch(request, account)
        return JSONResponse(batch.as_json(with_results=True), 402 if batch.is_unpaid else 200)

    async def _results(self, request: HttpRequest, account: str) -> Response:
        batch = self._batch(request, account)
        if batch.is_unpaid:
            return JSONResponse(batch.as_json(with_results=True), 402)
        if not batch.life.ended:
            raise ApiError(404, f"Batch {batch.record.id} has no results yet.")
        query = request.query_params
        limit = _number(query.get("limit", str(_MOST_ROWS)), _MOST_ROWS, "limit")
        limit = min(limit, self._shared.limits.results_page)
        start = _place(query["cursor"]) if "cursor" in query else 0
        rows = batch.rows()
        end = start + limit
        return JSONResponse(
            {
                "object": "list",
                "data": rows[start:end],
                "has_more": end < len(rows),
                "next_cursor": _cursor(end) if end < len(rows) else None,
            }
        )

    async def _delete(self, request: HttpRequest, account: str) -> Response:
        batch = self._batch(request, account)
        if not batch.life.ended:
            raise ApiError(409, "Only batches in a terminal state can be deleted.")
        del self._batches[batch.record.id]
        deletion = {"openrouter": "deleted", "upstream": {"provider": "OpenAI", "status": "deleted"}}
        return JSONResponse({"id": batch.record.id, "object": "batch", "deletion": deletion})

    async def _real_time(self, request: HttpRequest, account: str) -> Response:
        body = json_object(await request.body(), ApiError(400, _NO_OBJECT))
        if body.get("stream"):
            raise ApiError(400, "The emulator does not stream; send stream=false.")
        endpoint = f"/v1{request.url.path.removeprefix(OPENROUTER)}"
        status, answer = await asyncio.to_thread(respond, self._shared, Request(account, endpoint, body))
        if status != 200:  # noqa: PLR2004 - HTTP
            answer = error_body(status, answer["error"]["message"])
        return JSONResponse(answer, status)

    def _batch(self, request: HttpRequest, account: str) -> InlineBatch:
        batch = self._batches.get(request.path_params["id"])
        if batch is None or batch.record.account != account:
            raise ApiError(404, f"Batch {request.path_params['id']} not found")
        return batch


def _read_in_order(raw: bytes) -> Body:
    """Return the body of a create call. It is read as it arrives: fields after the requests come too late."""
    told = json_object(raw, ApiError(400, _NO_OBJECT))
    names = list(told)
    if "requests" not in names or not isinstance(told["requests"], list) or not told["requests"]:
        raise ApiError(400, "requests: a list of one request or more is required")
    late = [name for name in names[names.index("requests") + 1 :] if name in _BEFORE_REQUESTS]
    if late:
        raise ApiError(400, f"{late[0]} must come before requests in the request body")
    if unknown := sorted(set(names) - {*_BEFORE_REQUESTS, "requests"}):
        raise ApiError(400, f"Unrecognized key: {unknown[0]}")
    if told.get("endpoint") not in _ENDPOINTS:
        raise ApiError(400, f"endpoint: expected one of {', '.join(_ENDPOINTS)}")
    if not isinstance(told.get("model"), str) or not told["model"]:
        raise ApiError(400, "model: required")
    if told.get("completion_window", "24h") != "24h":
        raise ApiError(400, "completion_window: only 24h is supported")
    return told


def _number(given: str, most: int, name: str) -> int:
    if not given.isdigit() or not 1 <= int(given) <= most:
        raise ApiError(400, f"{name}: expected a number from 1 to {most}")
    return int(given)


def _cursor(place: int) -> str:
    return base64.urlsafe_b64encode(f"row:{place}".encode()).decode()


def _place(cursor: str) -> int:
    try:
        return int(base64.urlsafe_b64decode(cursor).decode().removeprefix("row:"))
    except ValueError:
        raise ApiError(400, "cursor: not valid") from None
