"""Calls end: an answer that arrives too slowly is abandoned, even if every single read is within the read timeout.

The SDKs' timeouts limit one read of the connection. So a server, or a proxy in between, that sends a byte a second
holds a run or a sensor's tick for ever. Here the reads of one answer are counted together, including its headers:

    seconds waited in reads  >  timeout_seconds + bytes / 1,000     the read times out

A call whose own read timeout is longer has that one here, too.

So an answer may take `timeout_seconds` in all, and longer while 1,000 bytes a second arrive: a large download over a
slow line is not cut, and the time that its reader spends between reads does not count.

It works where the SDKs' transports read: `limit_client` for httpx and httpx2, `limit_pools` for urllib3, which requests
and botocore use. Leaves any other transport of the user's unchanged.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, MutableMapping
from time import monotonic
from typing import Any

__all__ = ["limit_client", "limit_pools"]

_LEAST_BYTES_PER_SECOND = 1_000


class _Answer:
    """The reads of one answer. `late` is the exception by which the transport's own reads time out."""

    def __init__(self, timeout_seconds: float, late: Callable[[str], Exception]) -> None:
        self._timeout_seconds = timeout_seconds
        self._late = late
        self._waited = 0.0
        self._bytes = 0

    def begin(self) -> None:
        """Forget the answer before: another one follows on the same connection."""
        self._waited, self._bytes = 0.0, 0

    def count(self, began: float, size: int, timeout_seconds: float | None = None) -> None:
        """Count one read. Raises `late` if the answer has taken too long for its bytes so far.

        `timeout_seconds` is the limit of this call's reads, if the transport knows it: a call may allow more time.
        """
        self._waited += monotonic() - began
        self._bytes += size
        allowed = max(self._timeout_seconds, timeout_seconds or 0.0)
        if size and self._waited > allowed + self._bytes / _LEAST_BYTES_PER_SECOND:
            raise self._late(f"{self._bytes} bytes came in {self._waited:.0f} seconds")


def limit_client(client: Any, timeout_seconds: float) -> None:
    """Give up answers to a client of httpx or httpx2 that are too slow after `timeout_seconds`."""
    for transport in (client._transport, *client._mounts.values()):  # noqa: SLF001 - no argument takes a backend
        pool: Any = getattr(transport, "_pool", None)
        backend = getattr(pool, "_network_backend", None)
        if backend is not None and not isinstance(backend, _Backend):
            late = sys.modules[type(pool).__module__.partition(".")[0]].ReadTimeout
            pool._network_backend = _Backend(backend, timeout_seconds, late)  # noqa: SLF001 - as above


class _Backend:
    """A network backend of httpcore whose streams count their reads."""

    def __init__(self, backend: Any, timeout_seconds: float, late: Callable[[str], Exception]) -> None:
        self._backend = backend
        self._timeout_seconds = timeout_seconds
        self._late = late

    def connect_tcp(self, *args: Any, **named: Any) -> _Stream:
        return _Stream(self._backend.connect_tcp(*args, **named), _Answer(self._timeout_seconds, self._late))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


class _Stream:
    """A network stream of httpcore. Its writes are a request, and the reads after them one answer."""

    def __init__(self, stream: Any, answer: _Answer) -> None:
        self._stream = stream
        self._answer = answer

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        began = monotonic()
        data: bytes = self._stream.read(max_bytes, timeout)
        self._answer.count(began, len(data), timeout)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._answer.begin()
        self._stream.write(buffer, timeout)

    def start_tls(self, *args: Any, **named: Any) -> _Stream:
        return _Stream(self._stream.start_tls(*args, **named), self._answer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def limit_pools(pools: MutableMapping[str, Any], timeout_seconds: float) -> None:
    """Limit the time of answers that connections of urllib3 read, too. `pools` are its classes of pools, by scheme."""
    for scheme, pool in list(pools.items()):
        connection = pool.ConnectionCls
        limited = type(
            connection.__name__, (connection,), {"response_class": _response_class(connection, timeout_seconds)}
        )
        pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": limited})


def _response_class(connection: Any, timeout_seconds: float) -> Any:
    class Response(connection.response_class):  # type: ignore[misc]  # known when it runs
        """A response of http.client, which reads status, headers and body from one file."""

        fp: Any

        def __init__(self, *args: Any, **named: Any) -> None:
            super().__init__(*args, **named)
            self.fp = io.BufferedReader(_File(self.fp.detach(), _Answer(timeout_seconds, TimeoutError)))

    return Response


class _File(io.RawIOBase):
    """The reads of a socket, counted."""

    def __init__(self, file: io.RawIOBase, answer: _Answer) -> None:
        self._file = file
        self._answer = answer

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        began = monotonic()
        size = int(self._file.readinto(buffer) or 0)
        self._answer.count(began, size)
        return size

    def fileno(self) -> int:
        return self._file.fileno()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def close(self) -> None:
        self._file.close()
        super().close()
