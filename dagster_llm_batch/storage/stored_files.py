"""Stored files: each carries a digest of its other bytes, by which a reader recognizes a whole file.

    a stream   its digest is in a frame at its end, which every reader of zstd and of lz4 skips.
    a table    its digest is in its metadata, computed over the file with zeros in the digest's place.

Digests guard against accidents, not against forgers. Files of older versions carry no digest.

A file is staged, under a name that readers ignore, until it is whole. An error of the disk meanwhile is raised as a
PayloadError with the next step.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from dagster_llm_batch.core.memory import release_all_memory, release_memory
from dagster_llm_batch.errors import PayloadError

if sys.platform != "win32":
    import fcntl

__all__ = [
    "DIGESTS",
    "FRAME_HEAD",
    "XXH3",
    "CheckedFile",
    "DamagedError",
    "FileVersion",
    "HashedFile",
    "LostError",
    "PayloadWriter",
    "PlainFile",
    "StagedFile",
    "TableWriter",
    "UnreadableFileError",
    "carries_digest",
    "framed_digest",
    "is_own_name",
    "is_staged_name",
    "is_whole_stream",
    "is_whole_table",
    "make_private",
    "open_table",
    "own_name",
    "payload_errors",
    "reading_errors",
    "remove_left_behind",
    "staged_name",
    "sync_path",
    "temporary_errors",
    "write_table_digest",
]

_NAME_CHARS = 16
_HASH_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 17

# A frame that every reader of zstd and of lz4 skips: its magic number, the size of its content, our name, the digest.
FRAME_HEAD = (0x184D2A5D).to_bytes(4, "little") + (20).to_bytes(4, "little") + b"dlb1"
_FRAME_BYTES = len(FRAME_HEAD) + 16

# The key of the digest in a table's metadata, in hex. It is computed over the file with zeros in the digest's place.
_DIGEST_MARK = b"dagster_llm_batch/xxh3"
_NO_DIGEST = b"0" * 32
# Thrift's compact form has this prefix between a name and a text of 32 bytes.
_TEXT_OF_32 = b"\x18\x20"
_TABLE_END = b"PAR1"


class DamagedError(PayloadError, OSError):
    """The bytes of a stored file differ from those that were written. Other files can still be read."""

    def __init__(self, path: str, harm: str = "its bytes are not those that were written") -> None:
        super().__init__(
            f"The payload {path} is damaged: {harm}. Restore it from a backup, or run again, which recreates it if "
            "possible."
        )


class LostError(PayloadError, FileNotFoundError):
    """A stored file is missing."""


class UnreadableFileError(PayloadError, OSError):
    """A stored file cannot be read, but may exist."""


@contextmanager
def reading_errors(path: str, *, verb: Literal["read", "removed"] = "read") -> Iterator[None]:
    """Raise PayloadError with the next step if a disk or store fails to read or remove a file."""
    try:
        yield
    except PayloadError:
        raise
    except FileNotFoundError as error:
        lost = LostError(
            f"The payload {path} is lost: the store has no such file. Restore it from a backup, or materialize the "
            "asset that submits these rows again, which recreates it if possible."
        )
        lost.errno = error.errno
        raise lost from error
    except OSError as error:
        unreadable = UnreadableFileError(
            f"The payload {path} cannot be {verb}: {error.strerror or error}. Nothing was given up. Let it be {verb}, "
            "then run again."
        )
        unreadable.errno = error.errno
        raise unreadable from error


class PlainFile(io.RawIOBase):
    """The unpacked bytes of a stored stream. Raises DamagedError for bytes that cannot be unpacked."""

    def __init__(self, source: pa.NativeFile, path: str) -> None:
        self._source = source
        self._path = path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._source.read(len(buffer))
        except PayloadError:
            raise
        # Raised by the decompressor: the store delivered the bytes.
        except (OSError, pa.ArrowException) as error:
            raise DamagedError(self._path, f"it is truncated, or cannot be unpacked ({error})") from error
        buffer[: len(data)] = data
        return len(data)


class FileVersion(NamedTuple):
    """One version of a stored file; other bytes are another version. `tag` is an inode and a time, or the store's tag.

    If the store reports nothing that changes with each write, every call gives a new version.
    """

    path: str
    bytes: int
    tag: str


_blake2b = partial(hashlib.blake2b, digest_size=16)
XXH3 = "xxh3"
DIGESTS: dict[str, Callable[[], Any]] = {XXH3: xxhash.xxh3_128, "stored": _blake2b, "": _blake2b}
"""Functions that compute digests, by the kind that a digest starts with.

New digests are `xxh3`, of the stored bytes. It guards against accidents, not against forgers, and runs at the
speed of memory. Older ledgers have `stored` (of the stored bytes) and no kind (of the uncompressed bytes).
"""


class HashedFile(io.RawIOBase):
    """A file whose bytes are digested as they pass."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.hash = xxhash.xxh3_128()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return int(self._file.write(data))


class PayloadWriter:
    """A payload being written. `bytes` counts the bytes written so far; `digest` is final after the block."""

    def __init__(self, sink: pa.NativeFile, stored: HashedFile) -> None:
        self._sink = sink
        self._stored = stored
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self.bytes = 0

    @property
    def digest(self) -> str:
        """The digest of the stored file without the frame that carries it: see `PayloadStore.checked`."""
        return f"{XXH3}:{self._stored.hash.hexdigest()}"

    def write(self, data: bytes) -> None:
        """Append bytes. Small pieces are compressed together."""
        self._pieces.append(data)
        self._held_bytes += len(data)
        self.bytes += len(data)
        if self._held_bytes >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Compress the buffered pieces."""
        data = b"".join(self._pieces)
        self._pieces, self._held_bytes = [], 0
        if data:
            self._sink.write(data)


class TableWriter(pq.ParquetWriter):  # type: ignore[misc]  # Arrow has no types
    """A table being written, with a place in its metadata for the digest: see `write_table_digest`."""

    def write_table(self, *args: Any, **kwargs: Any) -> None:
        super().write_table(*args, **kwargs)
        # Costs 0.3 us a row while planning, and saves 8 to 12 MB.
        release_memory()

    def close(self) -> None:
        try:
            if self.is_open:  # type: ignore[has-type]  # of Arrow
                self.add_key_value_metadata({_DIGEST_MARK: _NO_DIGEST})
            super().close()
        finally:
            # If closing fails on a full disk, garbage collection would try to close it again.
            self.is_open = False
        release_all_memory()


class CheckedFile(io.RawIOBase):
    """The bytes of a stored stream without its digest, which is compared before the last bytes are returned."""

    def __init__(self, file: BinaryIO, path: str) -> None:
        self._file = file
        self._path = path
        self._hash = xxhash.xxh3_128()
        self._expected, self._left = framed_digest(file)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with reading_errors(self._path):
            data = self._file.read(self._left if size < 0 else min(size, self._left))
        self._left -= len(data)
        if self._expected is not None:
            self._hash.update(data)
            if not self._left and self._hash.digest() != self._expected:
                raise DamagedError(self._path)
        return data


def framed_digest(file: BinaryIO) -> tuple[bytes | None, int]:
    """Return the digest at the end of a stored stream, if any, and the number of bytes before it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _FRAME_BYTES))
    frame = file.read(_FRAME_BYTES)
    file.seek(0)
    is_framed = len(frame) == _FRAME_BYTES and frame.startswith(FRAME_HEAD)
    return (frame[len(FRAME_HEAD) :], size - _FRAME_BYTES) if is_framed else (None, size)


def _digest_of(file: BinaryIO, size: int) -> xxhash.xxh3_128:
    """Read this many bytes, and return their hash, which can be updated."""
    digest = xxhash.xxh3_128()
    while size and (data := file.read(min(size, _HASH_BYTES))):
        digest.update(data)
        size -= len(data)
    return digest


def own_name(folder: str, start: str | None = None) -> str:
    """Return a name of 32 hex digits that this package alone makes for a file in this folder of a store.

    The second half is a digest of the first half and the folder, so a file without a record is recognized as ours.
    `start` is the first 16 digits, random by default.
    """
    start = start or uuid.uuid4().hex[:_NAME_CHARS]
    content = f"dagster_llm_batch\0{start}\0{folder}".encode()
    return start + hashlib.blake2b(content, digest_size=_NAME_CHARS // 2).hexdigest()


def is_own_name(name: str, folder: str) -> bool:
    """Return whether `own_name` made this name for a file in this folder."""
    return own_name(folder, name[:_NAME_CHARS]) == name


def carries_digest(file: BinaryIO, *, is_table: bool) -> bool:
    """Return whether a stored file has the digest that this package writes into it, right or wrong."""
    return _find_digest(file) is not None if is_table else framed_digest(file)[0] is not None


def is_whole_stream(file: BinaryIO, codec: str) -> bool:
    """Return whether a stream matches its digest; without one, as in older versions, whether it can be unpacked."""
    expected, size = framed_digest(file)
    if expected is not None:
        return _digest_of(file, size).digest() == expected
    # Even an empty stream has a frame.
    if not size:
        return False
    try:
        with pa.CompressedInputStream(file, codec) as source:
            while source.read(_BUFFER_BYTES):
                pass
    except (OSError, pa.ArrowException):
        return False
    return True


def _find_digest(file: BinaryIO) -> int | None:
    """Return the position of a table's digest; None if it has no digest or is not a table."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 8))
    end = file.read(8)
    length = int.from_bytes(end[:4], "little")
    if end[4:] != _TABLE_END or length > size - 8:
        return None
    file.seek(size - 8 - length)
    found = file.read(length).find(_DIGEST_MARK + _TEXT_OF_32)
    return None if found < 0 else size - 8 - length + found + len(_DIGEST_MARK) + len(_TEXT_OF_32)


def _has_right_digest(file: BinaryIO) -> bool:
    """Return whether a table matches its digest; True without a digest. Leaves the file at its start."""
    place = _find_digest(file)
    file.seek(0)
    if place is None:
        return True
    digest = _digest_of(file, place)
    expected = file.read(len(_NO_DIGEST))
    digest.update(_NO_DIGEST)
    while data := file.read(_HASH_BYTES):
        digest.update(data)
    file.seek(0)
    return digest.hexdigest().encode() == expected


def write_table_digest(staged: str, digest: str) -> None:
    """Write the digest into its place in a table's metadata."""
    with Path(staged).open("r+b") as file:
        place = _find_digest(file)
        # A table that was not written to its end has no such place; its writer removes it.
        if place is not None:
            file.seek(place)
            file.write(digest.encode())


def is_whole_table(file: Any) -> bool:
    """Return whether a table matches its digest; without one, as in older versions, whether it can be read."""
    has_digest = _find_digest(file) is not None
    if not _has_right_digest(file):
        return False
    try:
        with open_table(file) as parquet:
            # If the metadata is damaged, the digest may not be found.
            batches = () if has_digest else parquet.iter_batches(use_threads=False)
            for _ in batches:
                pass
    except (OSError, pa.ArrowException, ValueError):
        return False
    file.seek(0)
    return True


def open_table(file: Any) -> pq.ParquetFile:
    """Open a stored table."""
    return pq.ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)


# The errors of a full disk, a quota or a limit on file sizes.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_STAGED_NAME = re.compile(r"\.([0-9a-f]{32})\.tmp")
_LEFT_BEHIND_AFTER_SECONDS = 86_400


def staged_name(folder: str) -> str:
    """Return a name for a file in this folder of a store while it is being written."""
    return f".{own_name(folder)}.tmp"


def is_staged_name(name: str, folder: str) -> bool:
    """Return whether `staged_name` made this name for a file in this folder."""
    found = _STAGED_NAME.fullmatch(name)
    return found is not None and is_own_name(found[1], folder)


class StagedFile(io.FileIO):
    """The file of a payload that is being written. `full` is its final path, None if that is not on a local disk.

    Errors of the disk are raised as PayloadError. An open file is locked, for `remove_left_behind`.
    """

    def __init__(self, path: Path, full: str | None) -> None:
        super().__init__(path, "xb", opener=lambda path, flags: os.open(path, flags, 0o600))
        self._full = full
        if full is not None:
            # On a disk without locks, `remove_left_behind` removes nothing.
            with suppress(OSError):
                _lock(self)

    def write(self, data: Any) -> int:
        with payload_errors(self._full) if self._full is not None else temporary_errors():
            return super().write(data)


def _lock(file: io.IOBase) -> None:
    """Lock a file until it is closed or its process dies. Raises OSError if it is locked or the disk has no locks."""
    # Windows does not remove an open file.
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_left_behind(folder: Path, names: Iterable[str]) -> None:
    """Remove the half-written files that killed processes left in a folder.

    A file is removed if three things are true. `own_name` made its name: files of others stay. By the disk's clock, its
    last byte was written more than a day before the folder's last change. Its lock is free: a writer holds the lock
    until it ends or dies. Most shared disks show the locks of other machines. On a disk that does not, a process that
    has not written for a day may lose its file: it then fails, and the stored payloads stay.
    """
    staged = [folder / name for name in names if is_staged_name(name, "")]
    before = folder.stat().st_mtime - _LEFT_BEHIND_AFTER_SECONDS if staged else 0.0
    for path in staged:
        # A file that cannot be opened or locked belongs to another process.
        with suppress(OSError), path.open("r+b") as file:
            if os.fstat(file.fileno()).st_mtime < before:
                _lock(file)
                path.unlink()


@contextmanager
def temporary_errors() -> Iterator[None]:
    """Raise PayloadError if the temporary folder is full: it is not the payload store that is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise PayloadError(
            f"The temporary folder {tempfile.gettempdir()} has no room: {os.strerror(error.errno or 0)}. Files "
            "stored before are unchanged. Make room there, or name another folder in the environment variable TMPDIR, "
            "then run again."
        ) from error


@contextmanager
def payload_errors(full: str | Path) -> Iterator[None]:
    """Raise PayloadError with the next step for an OSError of the block, such as a full disk or a missing right."""
    try:
        yield
    except OSError as error:
        folder, _, name = str(full).rpartition("/")
        raise PayloadError(
            f"Could not write {name} in {folder}: {error.strerror or error}. Files stored before are unchanged. Make "
            "room there, or let it be written, then run again."
        ) from error


def make_private(directory: Path) -> None:
    """Create a directory, and its parents, that only their owner can read."""
    if not directory.exists():
        make_private(directory.parent)
        directory.mkdir(mode=0o700, exist_ok=True)


def sync_path(path: Path) -> None:
    """Return when a file's bytes, or the names in a directory, are on disk."""
    # On Windows a directory cannot be opened.
    if (is_file := path.is_file()) or os.name == "posix":
        descriptor = os.open(path, os.O_RDWR if is_file else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
