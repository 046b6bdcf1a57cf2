"""A journal of an emulator: the calls that changed something there, and the times at which its batches moved on.

Ids of the emulator follow from its seed. So an emulator that gets the calls of a journal has the same batches, in the
same states, as the one that the journal was kept of.
"""

from __future__ import annotations

import http.client
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dagster_llm_batch.testing.emulator import Emulator, ManualClock

_READS = ("GET", "HEAD")
_KEPT_HEADERS = ("authorization", "content-encoding", "content-type")
_BOUNDARY = re.compile(r"multipart/form-data; boundary=(\w+)")
_DAY = re.compile(r"/\d{8}/")


class Journal:
    """Entries of [time, kind, content]: a call's method, path, headers and body, or the number of ticks."""

    def __init__(self, entries: list[Any] | None = None) -> None:
        self.entries: list[Any] = entries or []

    def write(self, path: Path) -> None:
        path.write_text("".join(f"{json.dumps(entry)}\n" for entry in self.entries), encoding="ascii")

    @classmethod
    def read(cls, path: Path) -> Journal:
        return cls([json.loads(line) for line in path.read_text(encoding="ascii").splitlines()])

    def keep(self, emulator: Emulator, clock: Callable[[], float]) -> None:
        """Record each call that arrives from now on. A call that a fault replaces before it arrives changes nothing."""
        emulator.asgi_app._app = _Kept(emulator.asgi_app._app, self.entries, clock)

    def tick(self, emulator: Emulator, clock: Callable[[], float], times: int | None = None) -> None:
        """Let an emulator's batches take so many steps, or all that they can."""
        self.entries.append([clock(), "tick", times])
        _tick(emulator, times)

    def replay(self, emulator: Emulator, clock: ManualClock) -> None:
        """Let another emulator with the same seed, whose clock this is, have all of it again."""
        connection = http.client.HTTPConnection("127.0.0.1", emulator.port, timeout=60)
        for at, kind, content in self.entries:
            clock.advance(at - clock())
            if kind == "tick":
                _tick(emulator, content)
                continue
            method, path, headers, body = content
            connection.request(method, path, body.encode("latin-1"), headers)
            response = connection.getresponse()
            assert response.status < 400, f"{method} {path}: {response.status} {response.read()!r}"
            response.read()
        connection.close()


def _tick(emulator: Emulator, times: int | None) -> None:
    if times is None:
        emulator.settle()
    else:
        emulator.tick(times)


class _Kept:
    """An ASGI app that notes each call that writes, and passes it on."""

    def __init__(self, app: Any, entries: list[Any], clock: Callable[[], float]) -> None:
        self._app = app
        self._entries = entries
        self._clock = clock

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] in _READS:
            await self._app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        names = ((name.decode().lower(), value.decode("latin-1")) for name, value in scope["headers"])
        headers, text = _without_chance({n: v for n, v in names if n in _KEPT_HEADERS}, body.decode("latin-1"))
        query = scope["query_string"].decode()
        path = scope["emulator.raw_path"] + (f"?{query}" if query else "")
        self._entries.append([self._clock(), "call", [scope["method"], path, headers, text]])
        waiting = [{"type": "http.request", "body": body, "more_body": False}]
        await self._app(scope, lambda: _next(waiting, receive), send)


def _without_chance(headers: dict[str, str], body: str) -> tuple[dict[str, str], str]:
    """Remove an SDK's random values, and a signature, since it contains the time: equal calls make equal journals."""
    if found := _BOUNDARY.match(headers.get("content-type", "")):
        headers["content-type"] = headers["content-type"].replace(found[1], "boundary")
        body = body.replace(found[1], "boundary")
    if "authorization" in headers:
        headers["authorization"] = _DAY.sub("/20260102/", headers["authorization"].partition(",")[0])
    return headers, body


async def _next(waiting: list[Any], receive: Any) -> Any:
    return waiting.pop() if waiting else await receive()
