"""Files on their way to and from Google, in constant memory. No SDK.

A request file is copied to a temporary one on the way: the lines' own `model` is removed, and the uploads need the size
beforehand.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, BinaryIO, cast

from dagster_llm_batch.providers.google.requests import model_head
from dagster_llm_batch.providers.jsonlines import cut_heads

__all__ = ["CHUNK_BYTES", "upload_copy"]

CHUNK_BYTES = 1 << 20
_MEMORY_BYTES = 1 << 20


@contextmanager
def upload_copy(lines: BinaryIO, model: str) -> Iterator[tuple[IO[bytes], int]]:
    """Give the request file as the vendor takes it, at its start, with its size in bytes."""
    # Spooled: a small batch never touches the disk. The uploads of both SDKs need the size before they begin.
    with tempfile.SpooledTemporaryFile(max_size=_MEMORY_BYTES) as copy:
        for block in cut_heads(lines, model_head(model)):
            copy.write(block)
        size = copy.tell()
        copy.seek(0)
        yield cast("IO[bytes]", copy), size
