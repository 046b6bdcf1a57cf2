"""What Google's houses have in common: callers and errors at every route, bodies, pages of lists."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dagster_llm_batch.testing.emulator.google.wire import ApiError, Body, error_body
from dagster_llm_batch.testing.emulator.wire import api_key
from dagster_llm_batch.testing.emulator.world import World

_MOST = 100

Caller = Callable[[HttpRequest], str]
"""The account of a request, or an ApiError."""

Handler = Callable[[HttpRequest, str], Awaitable[Response]]
"""Answers a request of an account, or raises ApiError."""


def google_app(table: Iterable[tuple[str, str, Handler]], caller: Caller) -> Starlette:
    """Return the routes (method, path, handler) as an ASGI app."""
    routes = [Route(path, _guarded(handler, caller), methods=[method]) for method, path, handler in table]
    return Starlette(routes=routes, exception_handlers={HTTPException: _no_route})


def cloud_caller(world: World) -> Caller:
    """Who calls a service of Google Cloud."""

    def account_of(request: HttpRequest) -> str:
        account = world.account(api_key(request.scope))
        if account is None:
            raise ApiError(401, "Request had invalid authentication credentials.")
        return account

    return account_of


async def json_body(request: HttpRequest) -> Body:
    """Return the JSON object that the request holds."""
    try:
        body = json.loads(await request.body() or b"{}")
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ApiError(400, "Invalid JSON payload received. Expected an object.")
    return body


def page(request: HttpRequest, items: list[Body], name: str) -> Body:
    """Return a page of a list, newest first: https://google.aip.dev/158"""
    ordered = items[::-1]
    size, token = request.query_params.get("pageSize", str(_MOST)), request.query_params.get("pageToken", "0")
    if not size.isdigit() or not token.isdigit():
        raise ApiError(400, "Invalid page size or token.")
    start, end = int(token), int(token) + min(int(size) or _MOST, _MOST)
    more = {"nextPageToken": str(end)} if end < len(ordered) else {}
    return {**({name: ordered[start:end]} if ordered[start:end] else {}), **more}


def _guarded(handler: Handler, caller: Caller) -> Callable[[HttpRequest], Awaitable[Response]]:
    async def guarded(request: HttpRequest) -> Response:
        try:
            return await handler(request, caller(request))
        except ApiError as error:
            return JSONResponse(error.body, error.status)

    return guarded


async def _no_route(request: HttpRequest, error: Exception) -> Response:
    """Answer a path that is none."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    return JSONResponse(error_body(status, f"Not found: {request.method} {request.url.path}"), status)
