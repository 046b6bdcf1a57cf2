"""Constant memory: many things are taken some at a time, and what allocators keep of freed memory is given back.

What they keep is tens of MB, several times what is in use.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

import pyarrow as pa

__all__ = ["chunks", "release_all_memory", "release_memory"]

_T = TypeVar("_T")


def chunks(values: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """The values in lists of `size`, the last one shorter. As `itertools.batched`, which came with Python 3.12."""
    rest = iter(values)
    return iter(lambda: list(islice(rest, size)), [])


_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None  # glibc's alone has it


def release_memory() -> None:
    """What Arrow keeps."""
    pa.default_memory_pool().release_unused()


def release_all_memory() -> None:
    """What Arrow and C keep. The latter grows from shard to shard, and takes longer to look through."""
    release_memory()
    if _trim is not None:
        _trim(0)
