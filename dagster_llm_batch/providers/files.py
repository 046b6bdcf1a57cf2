r"""Small files that several processes read while one writes them, and the ends of logs.

A file written by `write_json` is complete or absent, even after a power cut.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from dagster_llm_batch.providers import answers
from dagster_llm_batch.text import last_words

__all__ = ["count_lines", "lines_of", "log_tail", "read_json", "time_of", "write_json"]

_CHUNK_BYTES = 1 << 20
_LOG_TAIL_BYTES = 4_096


def read_json(path: Path) -> dict[str, Any] | None:
    """Read the JSON object in the file; None if the file is missing or has other content."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: object) -> None:
    """Write the value to disk under a temporary name, then rename it: readers see the whole of it or nothing."""
    temporary = path.with_name(path.name + ".part")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def time_of(value: Mapping[str, Any] | None, name: str) -> datetime | None:
    """Read the time that `name` holds, in seconds since the epoch."""
    seconds = (value or {}).get(name)
    return answers.time_of(seconds) if isinstance(seconds, int | float) else None


def count_lines(path: Path) -> int | None:
    r"""Count the `\n` of the file; None if it is missing."""
    try:
        with path.open("rb") as file:
            return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""))
    except FileNotFoundError:
        return None


def lines_of(path: Path) -> Iterator[bytes]:
    r"""Read the lines of a file that may not be there, each with its `\n`, split at that alone."""
    with suppress(FileNotFoundError), path.open("rb") as file:
        # A binary file ends lines at b"\n" only.
        for line in file:
            yield line if line.endswith(b"\n") else line + b"\n"


def log_tail(path: Path) -> str:
    """Read the last printed lines, as plain words; empty if nothing was printed."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return last_words(text)
