"""Checks whether a disk or an object store can hold a name, before the contents are paid for.

check_place("/data/labels/partition=2026-01-01", "the partition '2026-01-01' of labels")
fold_of("/data")    the function that maps names to those of the disk; None if it keeps all names apart
"""

from __future__ import annotations

import os
import tempfile
import unicodedata
from collections.abc import Callable
from functools import cache
from pathlib import Path

from dagster_llm_batch.errors import InputError

__all__ = ["check_place", "fold_case", "fold_form", "fold_of"]

# Most file systems limit a name, in bytes; S3, GCS and Azure limit the whole name of an object.
_MOST_NAME, _MOST_OBJECT = 255, 1_024
# Bytes to add to a partition's folder: the longest file name of this package, and a writer's suffix.
_ROOM = 64


def check_place(path: str, what: str) -> None:
    """Raise InputError if a name in a path is too long for its disk or object store. Writes nothing."""
    if not _is_local(path):
        size = len(path.partition("://")[2].partition("/")[2].encode("utf-8", "surrogatepass")) + _ROOM
        if size > _MOST_OBJECT:
            raise InputError(
                f"{what} cannot be stored: its place would have {size:,} bytes with a file's name, and an object store "
                f"takes {_MOST_OBJECT:,}. Nothing was sent. Give it a shorter key."
            )
        return
    folder = _existing(path)
    most = _limit(folder, "PC_NAME_MAX") or _MOST_NAME
    for name in path.removeprefix("file://").split("/"):
        size = len(name.encode("utf-8", "surrogatepass"))
        if size > most:
            raise InputError(
                f"{what} cannot be stored: '{name[:40]}…' has {size:,} bytes, and a name on the disk of {folder} has "
                f"at most {most:,}. Nothing was sent. Give it a shorter key."
            )
    whole, longest = len(path.encode("utf-8", "surrogatepass")) + _ROOM, _limit(folder, "PC_PATH_MAX")
    if longest is not None and whole > longest:
        raise InputError(
            f"{what} cannot be stored: its path would have {whole:,} bytes, and the disk of {folder} takes "
            f"{longest:,}. Nothing was sent. Give it a shorter key, or store it in another folder."
        )


def fold_of(path: str) -> Callable[[str], str] | None:
    """Return the function that maps a name to the disk's form of it. Names with the same form are one file there.

    None if all names are kept apart, as in an object store.
    """
    return _probed(str(_existing(path))) if _is_local(path) else None


def fold_case(name: str) -> str:
    """Return a name as a disk stores it that ignores case and Unicode forms."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def fold_form(name: str) -> str:
    """Return a name as a disk stores it that ignores Unicode forms."""
    return unicodedata.normalize("NFC", name)


def _is_local(path: str) -> bool:
    return "://" not in path or path.startswith("file://")


@cache
def _probed(folder: str) -> Callable[[str], str] | None:
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".probe-") as probe:
            Path(probe, "a\u00e9").touch()
            if Path(probe, "A\u00e9").exists():
                return fold_case
            return fold_form if Path(probe, "ae\u0301").exists() else None
    # A folder that cannot be written to fails later, at the first write.
    except OSError:
        return None


def _existing(path: str) -> Path:
    """Return the path itself if it is an existing folder, else the nearest existing folder above it."""
    place = Path(path.removeprefix("file://")).absolute()
    for folder in (place, *place.parents):
        # A name may be too long even for this question.
        try:
            if folder.is_dir():
                return folder
        except OSError:
            continue
    return Path("/")


def _limit(folder: Path, name: str) -> int | None:
    try:
        return os.pathconf(folder, name)
    # Windows has no such function, and a file system may have no limit to report.
    except (AttributeError, OSError, ValueError):
        return None
