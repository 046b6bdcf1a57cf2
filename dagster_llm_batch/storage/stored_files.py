"""Stored files, as they are written and as they are told whole: each carries a digest of its other bytes.

    a stream   its digest is in a frame at its end, which every reader of zstd and of lz4 skips
    a table    its digest is in its metadata, of the file with zeros in the digest's place

They guard against accidents, not against forgers. Files of older versions have none.

A file is staged, under a name that no reader looks for, until it is whole. What the disk refuses meanwhile is a
PayloadError, which says what to do.
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

# A frame that every reader of zstd and of lz4 skips: its magic number, the size of what follows, our name, the digest.
FRAME_HEAD = (0x184D2A5D).to_bytes(4, "little") + (20).to_bytes(4, "little") + b"dlb1"
_FRAME_BYTES = len(FRAME_HEAD) + 16

# The name under which a table's metadata has the digest, in hex. It is of the file with zeros in the digest's place.
_DIGEST_MARK = b"dagster_llm_batch/xxh3"
_NO_DIGEST = b"0" * 32
# How the metadata, in Thrift's compact form, goes on behind a name: a text of 32 bytes.
_TEXT_OF_32 = b"\x18\x20"
_TABLE_END = b"PAR1"


class DamagedError(PayloadError, OSError):
    """A stored file is not what was written. What else is stored can be read as before."""

    def __init__(self, path: str, harm: str = "its bytes are not those that were written") -> None:
        super().__init__(
            f"The payload {path} is damaged: {harm}. Restore it from a backup, or run again: what can be made anew is."
        )


class LostError(PayloadError, FileNotFoundError):
    """A stored file is not there."""


class UnreadableFileError(PayloadError, OSError):
    """A stored file may be there, and cannot be read."""


@contextmanager
def reading_errors(path: str, *, verb: Literal["read", "removed"] = "read") -> Iterator[None]:
    """Raise PayloadError with the next step for an error of a disk or a store while a file is read, or removed."""
    try:
        yield
    except PayloadError:
        raise
    except FileNotFoundError as error:
        lost = LostError(
            f"The payload {path} is lost: the store has no such file. Restore it from a backup, or materialize the "
            "asset that submits these rows again: what can be made anew is."
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
    """The unpacked bytes of a stored stream. Bytes that cannot be unpacked are a DamagedError."""

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
        # Of what unpacks them: the bytes came.
        except (OSError, pa.ArrowException) as error:
            raise DamagedError(self._path, f"it is truncated, or cannot be unpacked ({error})") from error
        buffer[: len(data)] = data
        return len(data)


class FileVersion(NamedTuple):
    """One version of a stored file: with other bytes it is another. `tag` is an inode and a time, or what a store says.

    Where a store says nothing that changes with each write, no two are the same.
    """

    path: str
    bytes: int
    tag: str


_blake2b = partial(hashlib.blake2b, digest_size=16)
XXH3 = "xxh3"
DIGESTS: dict[str, Callable[[], Any]] = {XXH3: xxhash.xxh3_128, "stored": _blake2b, "": _blake2b}
"""How to compute a digest, by the kind that it starts with.

`xxh3` is what is written today, of the stored bytes. It guards against accidents, not against forgers, and runs at the
speed of memory. `stored` (of the stored bytes) and no kind (of the uncompressed ones) are those of older ledgers.
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
    """A payload being written. `bytes` is what was written so far, `digest` is known after the block."""

    def __init__(self, sink: pa.NativeFile, stored: HashedFile) -> None:
        self._sink = sink
        self._stored = stored
        self._pieces: list[bytes] = []
        self._held_bytes = 0
        self.bytes = 0

    @property
    def digest(self) -> str:
        """The digest of the stored file, but for the frame that carries it: see `PayloadStore.checked`."""
        return f"{XXH3}:{self._stored.hash.hexdigest()}"

    def write(self, data: bytes) -> None:
        """Append bytes. Small pieces are compressed together."""
        self._pieces.append(data)
        self._held_bytes += len(data)
        self.bytes += len(data)
        if self._held_bytes >= _BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        """Compress what is held back."""
        data = b"".join(self._pieces)
        self._pieces, self._held_bytes = [], 0
        if data:
            self._sink.write(data)


class TableWriter(pq.ParquetWriter):  # type: ignore[misc]  # Arrow has no types
    """A table being written, with room in its metadata for the digest: see `write_table_digest`."""

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
            # What could not be closed, on a full disk, would be closed once more when it is collected.
            self.is_open = False
        release_all_memory()


class CheckedFile(io.RawIOBase):
    """The bytes of a stored stream without its digest, which is compared before the last of them are given out."""

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
    """Return the digest at the end of a stored stream, if it has one, and how many bytes are before it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _FRAME_BYTES))
    frame = file.read(_FRAME_BYTES)
    file.seek(0)
    is_framed = len(frame) == _FRAME_BYTES and frame.startswith(FRAME_HEAD)
    return (frame[len(FRAME_HEAD) :], size - _FRAME_BYTES) if is_framed else (None, size)


def _digest_of(file: BinaryIO, size: int) -> xxhash.xxh3_128:
    """Read this many bytes, and return the hash of them, which can be updated."""
    digest = xxhash.xxh3_128()
    while size and (data := file.read(min(size, _HASH_BYTES))):
        digest.update(data)
        size -= len(data)
    return digest


def own_name(folder: str, start: str | None = None) -> str:
    """Return a name of 32 hex digits that this package alone makes for a file in this folder of a store.

    The second half is a digest of the first one and the folder: by it a file without a record is known as ours.
    `start` has the first 16 digits, by default random ones.
    """
    start = start or uuid.uuid4().hex[:_NAME_CHARS]
    content = f"dagster_llm_batch\0{start}\0{folder}".encode()
    return start + hashlib.blake2b(content, digest_size=_NAME_CHARS // 2).hexdigest()


def is_own_name(name: str, folder: str) -> bool:
    """Return whether `own_name` made this name for a file in this folder."""
    return own_name(folder, name[:_NAME_CHARS]) == name


def carries_digest(file: BinaryIO, *, is_table: bool) -> bool:
    """Return whether a stored file has the digest that this package writes into it, be it right or not."""
    return _find_digest(file) is not None if is_table else framed_digest(file)[0] is not None


def is_whole_stream(file: BinaryIO, codec: str) -> bool:
    """Return whether a stream is what was written, or of an older version, as good as it can be unpacked."""
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
    """Return where a table has its digest; None where it has none, or is no table."""
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
    """Return whether a table is what was written; True of one without a digest. Leaves the file at its start."""
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
    """Write the digest into the place that a table has for it."""
    with Path(staged).open("r+b") as file:
        place = _find_digest(file)
        # A table that could not be written to its end has none; it is no table, and whoever wrote it removes it.
        if place is not None:
            file.seek(place)
            file.write(digest.encode())


def is_whole_table(file: Any) -> bool:
    """Return whether a table is what was written, or of an older version, as good as it can be read."""
    has_digest = _find_digest(file) is not None
    if not _has_right_digest(file):
        return False
    try:
        with open_table(file) as parquet:
            # Where its metadata is damaged, the digest may not be found.
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


# What a disk, a quota or a limit on a file's size says.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_STAGED_NAME = re.compile(r"\.([0-9a-f]{32})\.tmp")
_LEFT_BEHIND_AFTER_SECONDS = 86_400


def staged_name(folder: str) -> str:
    """Return the name of a file in this folder of a store while it is written."""
    return f".{own_name(folder)}.tmp"


def is_staged_name(name: str, folder: str) -> bool:
    """Return whether `staged_name` made this name for a file in this folder."""
    found = _STAGED_NAME.fullmatch(name)
    return found is not None and is_own_name(found[1], folder)


class StagedFile(io.FileIO):
    """The file of a payload that is being written: `full` is where it will be, None where that is no local disk.

    What the disk refuses is a PayloadError. While it is open it is locked, as `remove_left_behind` asks.
    """

    def __init__(self, path: Path, full: str | None) -> None:
        super().__init__(path, "xb", opener=lambda path, flags: os.open(path, flags, 0o600))
        self._full = full
        if full is not None:
            # Where a disk knows no locks, none is removed.
            with suppress(OSError):
                _lock(self)

    def write(self, data: Any) -> int:
        with payload_errors(self._full) if self._full is not None else temporary_errors():
            return super().write(data)


def _lock(file: io.IOBase) -> None:
    """Lock a file until it is closed, or its process dies. Raises OSError where another has, or there are no locks."""
    # Windows removes no file that is open.
    if sys.platform != "win32":
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_left_behind(folder: Path, names: Iterable[str]) -> None:
    """Remove those of these files in a folder that killed processes left half-written.

    By three signs: `own_name` made the name, so that others' files stay; the last byte was written more than a day
    before the folder's last change, both by the clock of the disk; and nobody holds the lock, which a writer has until
    it ends or dies. Disks that machines share mostly tell each of the other's locks. Where they do not, a process that
    has written nothing for a day may lose its file: it then fails, and what was stored stays.
    """
    staged = [folder / name for name in names if is_staged_name(name, "")]
    before = folder.stat().st_mtime - _LEFT_BEHIND_AFTER_SECONDS if staged else 0.0
    for path in staged:
        # What cannot be opened or locked is another's.
        with suppress(OSError), path.open("r+b") as file:
            if os.fstat(file.fileno()).st_mtime < before:
                _lock(file)
                path.unlink()


@contextmanager
def temporary_errors() -> Iterator[None]:
    """Raise PayloadError where the temporary folder has no room: it is not the payload store that is full."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise PayloadError(
            f"The temporary folder {tempfile.gettempdir()} has no room: {os.strerror(error.errno or 0)}. What was "
            "stored before is as it was. Make room there, or name another folder in the environment variable TMPDIR, "
            "then run again."
        ) from error


@contextmanager
def payload_errors(full: str | Path) -> Iterator[None]:
    """Raise PayloadError, which says what to do, for an OSError of the block: a full disk, say, or a missing right."""
    try:
        yield
    except OSError as error:
        folder, _, name = str(full).rpartition("/")
        raise PayloadError(
            f"Could not write {name} in {folder}: {error.strerror or error}. What was stored before is as it was. Make "
            "room there, or let it be written, then run again."
        ) from error


def make_private(directory: Path) -> None:
    """Make a directory, and those above it, that only their owner can read."""
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
