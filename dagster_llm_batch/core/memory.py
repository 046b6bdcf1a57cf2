"""Keep memory constant in the number of rows: take streams some values at a time, and return freed memory.

The allocators of Arrow and C do not return memory to the system on their own. They keep tens of MB, several times the
used memory: a run that labels many partitions would grow with each.
"""

from __future__ import annotations

import ctypes
import gc
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

import pyarrow as pa

__all__ = ["chunks", "release_all_memory", "release_memory", "uncollected"]

_T = TypeVar("_T")

# Only glibc has it: no allocator of macOS or musl can be asked.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def release_memory() -> None:
    """Give back the memory that Arrow keeps."""
    pa.default_memory_pool().release_unused()


def release_all_memory() -> None:
    """Give back the memory that Arrow and C keep. C's share grows from shard to shard, and takes longer to search."""
    release_memory()
    if _trim is not None:
        _trim(0)


@contextmanager
def uncollected() -> Iterator[None]:
    """Keep Python's garbage collector from running in the block, in which many objects are made and freed again.

    Use it only for blocks of some milliseconds: it applies to the other threads, too.
    """
    if not gc.isenabled():
        # Another thread keeps it from running, and might let it run again before it could be disabled here: for good.
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# itertools.batched does this from Python 3.12 on; the package runs on 3.11, too.
def chunks(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yield the values in lists of `size`, the last one shorter."""
    rest = iter(values)
    return iter(lambda: list(islice(rest, size)), [])
