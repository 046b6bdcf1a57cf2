"""Entries: the functions of the package that a piece of work enters, in the order of their first calls.

Python's profiler counts them, in this thread and in threads that start meanwhile.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import dagster_llm_batch

__all__ = ["record_entries"]

PACKAGE = Path(dagster_llm_batch.__file__).parent


@contextmanager
def record_entries() -> Iterator[list[tuple[str, str]]]:
    """Yield a list that gets the module, without the package's name, and the qualified name of each function."""
    entered: list[tuple[str, str]] = []
    seen: set[Any] = set()

    def record(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in seen:
            return
        seen.add(code)
        path = Path(code.co_filename)
        # Functions without a name (comprehensions, lambdas, class bodies) belong to the function around them.
        if path.is_relative_to(PACKAGE) and not code.co_name.startswith("<"):
            module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
            entered.append((module, code.co_qualname))

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        yield entered
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
