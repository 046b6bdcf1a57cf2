"""The transport with its faults: an ASGI layer over the routes, and the socket protocol that lets it cut connections.

Every request is entered in the books here, before anything can go wrong with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from email.utils import formatdate
from typing import Any, Protocol, TypeVar

from uvicorn.protocols.http.h11_impl import H11Protocol

from dagster_llm_batch.testing.emulator.books import Call
from dagster_llm_batch.testing.emulator.calls import api_key
from dagster_llm_batch.testing.emulator.faults import WireFault
from dagster_llm_batch.testing.emulator.shared_state import SharedState

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

_Found = TypeVar("_Found")


class ErrorBody(Protocol):
    """Gives the body of an error in a vendor's shape."""

    def __call__(self, status: int, message: str | None, *, code: str | None) -> dict[str, Any]: ...


AZURE = "/openai"
_FILES = "/v1/files"


class Connections:
    """The open sockets by their client's address. Used on the server's event loop only."""

    def __init__(self) -> None:
        self._open: dict[tuple[str, int], asyncio.Transport] = {}

    def protocol(self) -> type[H11Protocol]:
        """Return a protocol class whose connections are in this list."""
        connections = self._open

        class Listed(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                if self.client is not None:
                    connections[self.client] = transport

            def connection_lost(self, exc: Exception | None) -> None:
                if self.client is not None:
                    connections.pop(self.client, None)
                super().connection_lost(exc)

        return Listed

    def of(self, scope: Message) -> asyncio.Transport | None:
        """Return the socket that a request came by; None in process."""
        client = scope.get("client")
        return self._open.get(tuple(client)) if client else None

    def abort(self) -> None:
        """Drop them all."""
        for transport in list(self._open.values()):
            transport.abort()


def by_path(choices: Mapping[str, _Found], path: str) -> _Found:
    """Return the entry of the longest start of the path. The empty start fits every path."""
    return choices[max((start for start in choices if path.startswith(start)), key=len)]


def plain_path(path: str) -> str:
    """Return the path as OpenAI has it: without Azure's prefix, which may or may not carry `/v1`."""
    if path.startswith(f"{AZURE}/"):
        path = path.removeprefix(AZURE)
        return path if path.startswith("/v1/") else f"/v1{path}"
    return path


def _own_path(scope: Message, path: str) -> str:
    """Return the path of a call: OpenAI and Anthropic both have `/v1/files`, and Anthropic's calls name a version."""
    is_shared = path == _FILES or path.startswith(f"{_FILES}/")
    if is_shared and any(name.lower() == b"anthropic-version" for name, _ in scope["headers"]):
        return f"/anthropic{path}"
    return path


def _dated(send: Send, now: float) -> Send:
    """Say the time in the answer, by the emulator's clock."""
    date = formatdate(now, usegmt=True).encode()

    async def dated(message: Message) -> None:
        if message["type"] == "http.response.start":
            others = [header for header in message.get("headers", ()) if header[0].lower() != b"date"]
            message = {**message, "headers": [*others, (b"date", date)]}
        await send(message)

    return dated


class Wire:
    """The ASGI app that clients talk to.

    `apps` and `error_bodies`: the routes of each vendor and the shape of its errors, by the start of their paths.
    """

    def __init__(
        self,
        apps: Mapping[str, App],
        error_bodies: Mapping[str, ErrorBody],
        shared: SharedState,
        connections: Connections,
    ) -> None:
        self._apps = apps
        self._error_bodies = error_bodies
        self._shared = shared
        self._connections = connections
        self.hanging = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request, or the reply that the fault script makes of it."""
        if scope["type"] != "http":
            return
        path = _own_path(scope, plain_path(scope["path"]))
        given_path = scope.get("raw_path", b"").decode("latin-1")
        scope = {**scope, "path": path, "raw_path": path.encode(), "emulator.raw_path": given_path}
        now = self._shared.clock()
        self._shared.books.write(Call(now, scope["method"], path, api_key(scope)))
        send = _dated(send, now)
        replaced: WireFault | None = None
        for fault in self._shared.faults.wire(f"{scope['method']} {path}"):
            if fault.kind == "slow":
                await asyncio.sleep(fault.seconds)
                send = _slowly(send, fault) if fault.chunk_bytes else send
            elif fault.kind == "cut":
                send = _Cut(fault, send, self._connections.of(scope), lambda: self._drop(scope, receive))
            elif fault.kind == "stall":
                send = _Cut(fault, send, self._connections.of(scope), lambda: self._hang(receive))
            else:
                replaced = fault
        if replaced is None:
            await self._serve(scope, receive, send)
            return
        if replaced.when == "after":
            await by_path(self._apps, path)(scope, receive, _nowhere)
        if replaced.kind == "status":
            if replaced.when == "before":
                await _drain(receive)
            await _send_status(send, replaced, by_path(self._error_bodies, path))
        elif replaced.kind == "close":
            await self._drop(scope, receive)
        else:
            await self._hang(receive)

    async def _hang(self, receive: Receive) -> None:
        self.hanging += 1
        try:
            await _wait_for_end(receive)
        finally:
            self.hanging -= 1

    async def _serve(self, scope: Message, receive: Receive, send: Send) -> None:
        with contextlib.suppress(_CutHereError):
            await by_path(self._apps, scope["path"])(scope, receive, send)

    async def _drop(self, scope: Message, receive: Receive) -> None:
        transport = self._connections.of(scope)
        if transport is None:
            raise ConnectionResetError("The connection was closed by a scripted fault.")
        transport.close()
        await _wait_for_end(receive)


class _CutHereError(Exception):
    """The reply ends here; the rest of the route need not run."""


class _Cut:
    """A `send` that passes the beginning of a reply and then ends it."""

    def __init__(
        self, fault: WireFault, send: Send, transport: asyncio.Transport | None, drop: Callable[[], Awaitable[None]]
    ) -> None:
        self._fault = fault
        self._send = send
        self._transport = transport if fault.framing == "close" else None
        self._drop = drop
        self._lines_left = fault.after_lines
        self._bytes_left = fault.after_bytes

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            await self._start(message)
            return
        body: bytes = message.get("body", b"")
        kept = self._keep(body)
        if self._transport is not None:
            self._transport.write(kept)
        elif kept:
            await self._send({**message, "body": kept, "more_body": True})
        if len(kept) < len(body) or not message.get("more_body", False):
            if self._fault.framing == "close" and self._transport is None:  # in process: an early end is all there is
                await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            else:
                await self._drop()
            raise _CutHereError

    async def _start(self, message: Message) -> None:
        headers = list(message.get("headers", []))
        length = next((int(value) for name, value in headers if name.lower() == b"content-length"), 0)
        if self._lines_left is None and self._bytes_left is None:
            self._bytes_left = length // 2
        if self._fault.framing != "length":
            headers = [(name, value) for name, value in headers if name.lower() != b"content-length"]
        if self._transport is None:
            await self._send({**message, "headers": headers})
            return
        # neither Content-Length nor chunks: HTTP servers don't do this to a 1.1 client, so it is written by hand
        lines = [b"HTTP/1.1 %d OK" % message["status"], *(name + b": " + value for name, value in headers)]
        self._transport.write(b"\r\n".join([*lines, b"connection: close", b"", b""]))

    def _keep(self, body: bytes) -> bytes:
        if self._lines_left is not None:
            pieces = body.split(b"\n")
            kept = pieces[: self._lines_left]
            if len(pieces) <= self._lines_left:
                self._lines_left -= len(pieces) - 1
                return body
            self._lines_left = 0
            return b"".join(piece + b"\n" for piece in kept)
        kept_bytes = body[: self._bytes_left]
        self._bytes_left = (self._bytes_left or 0) - len(kept_bytes)
        return kept_bytes


def _slowly(send: Send, fault: WireFault) -> Send:
    async def slow(message: Message) -> None:
        body = message.get("body", b"")
        if message["type"] != "http.response.body" or not body:
            await send(message)
            return
        size = fault.chunk_bytes or len(body)
        for offset in range(0, len(body), size):
            await asyncio.sleep(fault.seconds if offset else 0)
            last = offset + size >= len(body)
            more = not last or message.get("more_body", False)
            await send({**message, "body": body[offset : offset + size], "more_body": more})

    return slow


async def _nowhere(_message: Message) -> None:
    """Lose the reply."""


async def _drain(receive: Receive) -> None:
    # a reply before the end of the upload would be a second fault: the client may see a broken pipe instead of it
    while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
        pass


async def _wait_for_end(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send_status(send: Send, fault: WireFault, shape: ErrorBody) -> None:
    body = (
        json.dumps(shape(fault.status, fault.message, code=fault.code)).encode() if fault.body is None else fault.body
    )
    headers = [(b"content-type", fault.media_type.encode()), (b"content-length", str(len(body)).encode())]
    if fault.retry_after is not None:
        headers.append((b"retry-after", str(fault.retry_after).encode()))
    await send({"type": "http.response.start", "status": fault.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
