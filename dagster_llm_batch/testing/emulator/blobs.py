"""The bytes of files: written once, then read many times. In memory up to 1 MiB, above that in a temporary file."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from typing import IO, cast

MEMORY_BYTES = 1024 * 1024
CHUNK_BYTES = 256 * 1024


def scratch() -> IO[bytes]:
    """Return an empty file to write into; it becomes a `Blob` when it is whole."""
    return cast("IO[bytes]", tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES))


class Blob:
    """Bytes that no longer change; takes over the handle, and closes it in `close`. Readable from any thread."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle
        self._lock = threading.Lock()
        self.bytes = handle.seek(0, 2)

    def read_at(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`; empty at the end."""
        with self._lock:
            self._handle.seek(offset)
            return self._handle.read(size)

    def chunks(self) -> Iterator[bytes]:
        """Yield all bytes, in pieces."""
        offset = 0
        while piece := self.read_at(offset, CHUNK_BYTES):
            offset += len(piece)
            yield piece

    def lines(self) -> Iterator[tuple[int, bytes]]:
        r"""Yield each line with its offset, split at \n alone and without it."""
        offset, rest = 0, b""
        for piece in self.chunks():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield offset, line
                offset += len(line) + 1
        if rest:
            yield offset, rest

    def close(self) -> None:
        """Give the memory or the temporary file back."""
        with self._lock:
            self._handle.close()
