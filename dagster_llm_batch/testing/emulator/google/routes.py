"""The common parts of Google's routes: callers and errors at every route, bodies, pages of lists."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from dagster_llm_batch.testing.emulator.calls import account_by_key, json_object, serve_calls
from dagster_llm_batch.testing.emulator.google.wire import ApiError, Body
from dagster_llm_batch.testing.emulator.shared_state import SharedState

_MOST = 100

Caller = Callable[[HttpRequest], str]
"""The account of a request, or an ApiError."""

Handler = Callable[[HttpRequest, str], Awaitable[Response]]
"""Answers a request of an account, or raises ApiError."""


def google_app(table: Iterable[tuple[str, str, Handler]], caller: Caller) -> Starlette:
    """Return the routes (method, path, handler) as an ASGI app."""
    return serve_calls(
        table, caller, lambda request, status: ApiError(status, f"Not found: {request.method} {request.url.path}")
    )


def cloud_caller(shared: SharedState) -> Caller:
    """Return the caller of a service of Google Cloud."""
    return account_by_key(shared, lambda _: ApiError(401, "Request had invalid authentication credentials."))


async def json_body(request: HttpRequest) -> Body:
    """Return the JSON object that the request holds."""
    text = "Invalid JSON payload received. Expected an object."
    return json_object(await request.body(), ApiError(400, text))


def page(request: HttpRequest, items: list[Body], name: str) -> Body:
    """Return a page of a list, newest first: https://google.aip.dev/158"""
    ordered = items[::-1]
    size, token = request.query_params.get("pageSize", str(_MOST)), request.query_params.get("pageToken", "0")
    if not size.isdigit() or not token.isdigit():
        raise ApiError(400, "Invalid page size or token.")
    start, end = int(token), int(token) + min(int(size) or _MOST, _MOST)
    more = {"nextPageToken": str(end)} if end < len(ordered) else {}
    return {**({name: ordered[start:end]} if ordered[start:end] else {}), **more}
