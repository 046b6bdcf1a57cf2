"""What lies in a payload store, for tidying up: every file below a folder, half-written ones included."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = ["StoredFile", "remove", "stored_files"]

_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")  # as the file systems of fsspec say it


class StoredFile(NamedTuple):
    """One file. `path` is relative to the store's root; `modified_at` is None where the store does not say."""

    path: str
    bytes: int
    modified_at: datetime | None


def stored_files(store: PayloadStore, folder: str) -> Iterator[StoredFile]:
    """Every file below a folder; also what a killed process left of one on a local disk (`.….tmp`)."""
    root = store._root  # noqa: SLF001 - two halves of one thing
    base = root.path.rstrip("/")
    for name, info in sorted(root.fs.find(f"{base}/{folder}", detail=True).items()):
        yield StoredFile(name.partition(f"{base}/")[2], int(info.get("size") or 0), _modified_at(info))


def remove(store: PayloadStore, file: StoredFile) -> None:
    """Remove a file that `stored_files` gave. Where it is gone already, do nothing."""
    root = store._root  # noqa: SLF001 - as above
    try:
        root.fs.rm_file(f"{root.path.rstrip('/')}/{file.path}")
    except FileNotFoundError:
        return


def _modified_at(info: Mapping[str, Any]) -> datetime | None:
    for name in _TIMES:
        value = info.get(name)
        if isinstance(value, int | float):
            return datetime.fromtimestamp(value, UTC)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        if isinstance(value, datetime):
            return value if value.tzinfo else value.replace(tzinfo=UTC)
    return None
