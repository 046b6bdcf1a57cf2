"""Memory that is freed given back to the system, which the allocators of Arrow and C do not do by themselves.

What they keep is tens of MB, several times what is in use: a run that labels many partitions would grow with each.
"""

from __future__ import annotations

import ctypes
import os

import pyarrow as pa

__all__ = ["release_all_memory", "release_memory"]

# Only glibc has it: no allocator of macOS or musl can be asked.
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None


def release_memory() -> None:
    """Give back what Arrow keeps."""
    pa.default_memory_pool().release_unused()


def release_all_memory() -> None:
    """Give back what Arrow and C keep. C's share grows from shard to shard, and takes longer to look through."""
    release_memory()
    if _trim is not None:
        _trim(0)
