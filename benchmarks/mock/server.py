"""The server: routes by method and path, whole bodies, and a count of calls for each route."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

import msgspec

Reply = Any
"""Bytes, or a value for JSON."""

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Request:
    """One call. Header names are in lower case."""

    headers: dict[str, str]
    query: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)


class Mock:
    """An ASGI application; services add their routes. `GET /calls` returns the number of calls of each route.

    `POST /pause` with `seconds` delays every further call by this time; with `bytes_a_second`, it limits the speed of
    each connection.
    """

    def __init__(self) -> None:
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Reply]]] = []
        self._calls: Counter[str] = Counter()
        self._pause_seconds = 0.0
        self._bytes_a_second: float | None = None
        self.route("GET", "/calls", lambda _request: dict(self._calls))
        self.route("POST", "/pause", self._pause)

    def route(self, method: str, path: str, answer: Callable[..., Reply]) -> None:
        """Add a route. `answer` is called with the request and the groups of `path`, a regular expression."""
        self._routes.append((method, re.compile(path), answer))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        pieces, more = [], True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":  # the client was killed in the middle of its call
                return
            pieces.append(message.get("body", b""))
            await self._carry(pieces[-1])
            more = message.get("more_body", False)
        headers = {name.decode().lower(): value.decode() for name, value in scope["headers"]}
        request = Request(headers, dict(parse_qsl(scope["query_string"].decode())), b"".join(pieces))
        del pieces
        await asyncio.sleep(self._pause_seconds)
        status, reply = await asyncio.to_thread(self._answer, scope["method"], scope["path"], request)
        body = reply if isinstance(reply, bytes) else msgspec.json.encode(reply)
        kind = b"application/x-jsonl" if isinstance(reply, bytes) else b"application/json"
        head = [(b"content-type", kind), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": head})
        for start in range(0, len(body), _PIECE_BYTES):
            piece = body[start : start + _PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await self._carry(piece)
        await send({"type": "http.response.body"})

    def _pause(self, request: Request) -> Reply:
        self._pause_seconds = request.json()["seconds"]
        self._bytes_a_second = request.json().get("bytes_a_second")
        return {}

    async def _carry(self, piece: bytes) -> None:
        """Wait for the time that a connection of this speed takes."""
        if self._bytes_a_second is not None:
            await asyncio.sleep(len(piece) / self._bytes_a_second)

    def _answer(self, method: str, path: str, request: Request) -> tuple[int, Reply]:
        for wanted, pattern, answer in self._routes:
            if method == wanted and (found := pattern.fullmatch(path)):
                self._calls[f"{method} {pattern.pattern}"] += 1
                return 200, answer(request, *found.groups())
        return 404, {"error": {"message": f"the mock has no {method} {path}", "type": "invalid_request_error"}}
