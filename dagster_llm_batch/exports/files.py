"""Files that take their name when they are complete."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["whole"]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Give a temporary name near `path` to write to; it becomes `path` at the end, or is removed.

    A folder must not exist yet.
    """
    half = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield half
        half.replace(path)
    finally:
        if half.is_dir():
            shutil.rmtree(half, ignore_errors=True)
        else:
            half.unlink(missing_ok=True)
