"""The request files of a batch as one file, which unpacks them as it is read: their lines are never copied.

shard, shard, …, padding ─▶ digests compared ─▶ a stream that can seek and knows its size
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, BinaryIO, cast

from dagster_llm_batch.core.identity import custom_id, padding_id
from dagster_llm_batch.engine.request_files import renamed, requests_of
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = ["outgoing"]

_BUFFER_BYTES = 1 << 16  # what the SDKs read at once, who then get it without a copy more


@contextmanager
def outgoing(payloads: PayloadStore, shards: Sequence[Shard], padding: int) -> Iterator[BinaryIO]:
    """The lines of the shards, and of so many copies of a request, under ids that belong to no row.

    Raises LLMBatchError, before anything can be read, where a request file is not the one that was planned.
    """
    with ExitStack() as stack:
        files = [_planned(stack, payloads, shard) for shard in shards]
        copies = _copies(payloads, shards[0], padding)

        def streams() -> Iterator[BinaryIO]:
            for file in files:
                with file() as stream:
                    yield stream
            yield from map(io.BytesIO, copies())

        size = sum(shard.bytes for shard in shards) + sum(map(len, copies()))
        yield stack.enter_context(io.BufferedReader(_Joined(streams, size), _BUFFER_BYTES))


def _planned(stack: ExitStack, payloads: PayloadStore, shard: Shard) -> Callable[[], BinaryIO]:
    try:
        return stack.enter_context(payloads.checked(shard.path, shard.digest))
    except OSError as error:
        msg = (
            f"The request file {shard.path} cannot be read as it was planned, so nothing was sent: {error} "
            "Restore it in the payload store, or cancel the submission and plan it again."
        )
        raise LLMBatchError(msg) from error


def _copies(payloads: PayloadStore, shard: Shard, padding: int) -> Callable[[], Iterator[bytes]]:
    """Copies of the shard's shortest request."""
    if not padding:
        return lambda: iter(())
    requests = requests_of(payloads, shard.path, shard.nonce)
    request_id, line = min(requests, key=lambda request: len(request[1]))
    own = custom_id(shard.nonce, request_id)
    return lambda: (renamed(line, own, padding_id(number), shard.nonce) for number in range(padding))


class _Joined(io.RawIOBase):
    """Streams one after another. `streams` gives them anew, each from its start; they have `size` bytes in all."""

    def __init__(self, streams: Callable[[], Iterator[BinaryIO]], size: int) -> None:
        self._make = streams
        self._size = size
        self._at = 0
        self._restart()

    def _restart(self) -> None:
        self._streams = self._make()
        self._stream = next(self._streams, None)
        self._passed = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Costs nothing until more is read."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._passed > self._at:
            self._restart()
        while self._passed < self._at:
            if not self._fill(bytearray(min(_BUFFER_BYTES, self._at - self._passed))):
                return 0
        count = self._fill(buffer)
        self._at += count
        return count

    def _fill(self, buffer: Any) -> int:
        while self._stream is not None:
            if count := cast("Any", self._stream).readinto(buffer):
                self._passed += count
                return int(count)
            self._stream = next(self._streams, None)
        return 0
