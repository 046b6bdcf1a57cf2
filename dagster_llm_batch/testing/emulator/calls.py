"""Calls in the form that every vendor takes: the caller, the refusal of a call, its JSON, a page of a list.

The text of a refusal and the place of a call's id differ between vendors.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from dagster_llm_batch.testing.emulator.shared_state import SharedState

Caller = TypeVar("Caller")
Body = dict[str, Any]


class CallError(Exception):
    """A call ends in this HTTP status and error body."""

    def __init__(self, status: int, message: str, body: Body, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = body
        self.headers = headers

    def response(self, call_id: str) -> Response:
        """Return the answer. `call_id` is for a vendor whose error bodies hold it."""
        del call_id
        return JSONResponse(self.body, self.status, headers=self.headers)


def serve_calls(
    table: Iterable[tuple[str, str, Callable[[HttpRequest, Caller], Awaitable[Response]]]],
    caller: Callable[[HttpRequest], Caller],
    no_route: Callable[[HttpRequest, int], CallError],
    *,
    new_call_id: Callable[[], str] = str,
    id_header: str | None = None,
) -> Starlette:
    """Return the routes (method, path, handler) as an ASGI app.

    Args:
        table: A handler gets the caller, and answers or raises CallError.
        caller: Returns the caller, or raises CallError.
        no_route: Returns the answer to an unknown path or method, by the request and its status.
        new_call_id: Makes the id of a call.
        id_header: The header of every answer that holds the id; None: answers lack it.
    """

    def guarded(
        handler: Callable[[HttpRequest, Caller], Awaitable[Response]],
    ) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def answer(request: HttpRequest) -> Response:
            call_id = new_call_id()
            try:
                response = await handler(request, caller(request))
            except CallError as error:
                response = error.response(call_id)
            if id_header is not None:
                response.headers[id_header] = call_id
            return response

        return answer

    async def refuse(request: HttpRequest, error: Exception) -> Response:
        return no_route(request, error.status_code if isinstance(error, HTTPException) else 404).response("")

    routes = [Route(path, guarded(handler), methods=[method]) for method, path, handler in table]
    return Starlette(routes=routes, exception_handlers={HTTPException: refuse})


def account_by_key(shared: SharedState, refusal: Callable[[str | None], CallError]) -> Callable[[HttpRequest], str]:
    """Return a function that finds the account of a call by its key, and refuses an unknown key."""

    def account_of(request: HttpRequest) -> str:
        key = api_key(request.scope)
        account = shared.account(key)
        if account is None:
            raise refusal(key)
        return account

    return account_of


def api_key(scope: MutableMapping[str, Any]) -> str | None:
    """Return the key in `Authorization: Bearer`, `api-key`, `x-api-key`, `x-goog-api-key`, or an AWS access key."""
    headers: dict[bytes, str] = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
    if headers.get(b"x-api-key"):  # Anthropic's, and of two headers the one that it goes by
        return headers[b"x-api-key"]
    bearer = headers.get(b"authorization", "")
    if bearer.lower().startswith("bearer "):
        return bearer[len("bearer ") :].strip() or None
    if bearer.startswith("AWS4-HMAC-SHA256 "):
        return bearer.partition("Credential=")[2].partition("/")[0] or None
    names = (b"api-key", b"x-goog-api-key")
    return next((headers[name] for name in names if headers.get(name)), None)


def json_object(raw: bytes, refusal: CallError) -> Body:
    """Return the JSON object that a call holds, an empty one where it holds nothing."""
    try:
        body = json.loads(raw or b"{}")
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise refusal
    return body


def page_of(items: Sequence[Body], start: int, end: int) -> Body:
    """Return a page of a list, in the form of vendors whose next page begins after an id."""
    page = list(items[start:end])
    return {
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": end < len(items),
    }
