r"""The payload store: request files, raw results and tables, on a local disk or in an object store.

1. A file is complete or absent. It is first written on the local disk, under another name, and takes its name when
   it is complete. An exception while writing leaves nothing.
2. An existing file survives a crash (local: synced before it takes its name), and only its owner can read it
   (local: files 0600, directories 0700).
3. A file carries a digest of all its other bytes, which is compared when it is read. A stream has it in a frame that
   zstd and lz4 skip, a table in its metadata. A wrong digest is a DamagedError. Files of older versions have no digest.
4. Streams are compressed on disk and plain for the caller, in constant memory. A name that ends in `.lz4` selects lz4,
   which takes more space and half the time; all others are zstd. Lines end at b"\n" only: U+2028 and such are data.

Refuses paths that are not relative chains of plain segments (`check_path`). A file that cannot be read is a
PayloadError, which is an OSError, too: LostError (also a FileNotFoundError), DamagedError or UnreadableFileError. The
digests guard against accidents, not against forgers.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import shutil
import tempfile
import uuid
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

from dagster_llm_batch.core.address_secrets import refuse_credentials
from dagster_llm_batch.core.memory import release_memory
from dagster_llm_batch.errors import MissingExtraError
from dagster_llm_batch.storage.payload_paths import check_path, namespace_folder, payload_path
from dagster_llm_batch.storage.stored_files import (
    DIGESTS,
    FRAME_HEAD,
    XXH3,
    CheckedFile,
    DamagedError,
    FileVersion,
    HashedFile,
    PayloadWriter,
    PlainFile,
    StagedFile,
    TableWriter,
    UnreadableFileError,
    carries_digest,
    framed_digest,
    is_whole_stream,
    is_whole_table,
    make_private,
    open_table,
    payload_errors,
    reading_errors,
    remove_left_behind,
    staged_name,
    sync_path,
    temporary_errors,
    write_table_digest,
)

if TYPE_CHECKING:
    from upath import UPath

__all__ = [
    "LateStore",
    "PayloadStore",
    "PayloadWriter",
    "StoredFile",
    "check_path",
    "namespace_folder",
    "payload_path",
    "temporary_folder",
    "unnamed_file",
]

_BUFFER_BYTES = 1 << 17

# Vectors and long texts reach it with fewer rows.
_BATCH_BYTES = 1 << 24

# Releasing memory takes as long as reading a batch.
_BATCHES_A_RELEASE = 4
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
_MOST_REMEMBERED = 10_000
# A disk is not faster with more at once.
_SYNCS_AT_ONCE = 16


class _Unnamed(io.FileIO):
    """A file without a name in the temporary folder. Raises PayloadError if the folder is full."""

    def __init__(self) -> None:
        with tempfile.TemporaryFile(buffering=0) as file:
            super().__init__(os.dup(file.fileno()), "r+b")

    def write(self, data: Any) -> int:
        with temporary_errors():
            return super().write(data)


def unnamed_file() -> IO[bytes]:
    """Return a file in the temporary folder that disappears when it is closed or the process dies."""
    return io.BufferedRandom(_Unnamed())


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Give a folder within the temporary folder, removed after the block. Raises PayloadError if that is full."""
    with temporary_errors(), tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


class StoredFile(NamedTuple):
    """One file. `path` is relative to the store's root; `modified_at` is None if the store does not report it."""

    path: str
    bytes: int
    modified_at: datetime | None


class PayloadStore:
    """Files below `root`: a local path, or any URL of universal_pathlib (`s3://…`, `gs://…`, `memory://…`)."""

    def __init__(self, root: str | Path | UPath, **storage_options: Any) -> None:
        refuse_credentials(str(root), "address of the store")
        # A local folder needs no universal_pathlib, which takes long to load.
        if isinstance(root, str | Path) and ":" not in str(root) and not storage_options:
            self._root: Any = SimpleNamespace(path=str(Path(root)), protocol="", fs=LocalFileSystem())
        else:
            from upath import UPath  # noqa: PLC0415

            # A cached listing, also of other code in this process, would hide later files of other processes.
            uncached = {"use_listings_cache": False} if "://" in str(root) else {}
            self._root = UPath(root, **{**uncached, **storage_options})
        self._is_local = self._root.protocol in {"", "file", "local"}

    def __repr__(self) -> str:
        # Without the storage options, which may hold secrets.
        return f"PayloadStore({self._root.path!r})"

    @contextmanager
    def writer(self, path: str) -> Iterator[PayloadWriter]:
        """Write a compressed payload. It appears, or replaces an older one, when the block succeeds."""
        with self._staged(path) as file:
            stored = HashedFile(file)
            with pa.CompressedOutputStream(stored, _codec(path)) as sink:
                yield (writer := PayloadWriter(sink, stored))
                writer.flush()
            file.write(FRAME_HEAD + stored.hash.digest())

    @contextmanager
    def reader(self, path: str) -> Iterator[BinaryIO]:
        """Read a payload, uncompressed, as a stream that cannot seek. A truncated file is an OSError.

        The digest is compared before the last bytes are returned: use the data only after reading all of it.
        """
        with self._open(path) as file:
            # Even an empty stream has a frame.
            with reading_errors(path):
                if not file.read(1):
                    raise DamagedError(path, "it is truncated, and empty")
                checked = CheckedFile(file, path)
            with pa.CompressedInputStream(checked, _codec(path)) as source:
                yield cast("BinaryIO", io.BufferedReader(PlainFile(source, path), _BUFFER_BYTES))

    @contextmanager
    def checked(self, path: str, digest: str) -> Iterator[Callable[[], BinaryIO]]:
        """Check a payload's digest; return a function that opens the checked bytes, any number of times.

        Each call of it returns an uncompressed stream that cannot seek, and ends the one before. The stream has exactly
        the checked bytes, even if the payload changes meanwhile. Raises OSError for another digest.
        """
        with self._here(path) as file:

            def plain() -> BinaryIO:
                file.seek(0)
                # The stream closes its source, so it gets a descriptor that only it uses.
                own = io.FileIO(os.dup(file.fileno()))
                return cast("BinaryIO", pa.CompressedInputStream(own, _codec(path)))

            kind, _, expected = digest.rpartition(":")
            if kind not in DIGESTS:
                raise UnreadableFileError(f"The payload {path} has a digest of a kind unknown to this version: {kind}.")
            if kind == XXH3 and (framed := framed_digest(file))[0] is not None:
                # Older digests are of files without a digest inside.
                file.truncate(framed[1])
            with plain() if not kind else nullcontext(file) as source:
                actual = hashlib.file_digest(cast("io.FileIO", source), DIGESTS[kind]).hexdigest()
            if actual != expected:
                raise UnreadableFileError(f"The payload {path} is not the one that was written: its digest differs.")
            yield plain

    def lines(self, path: str) -> Iterator[bytes]:
        r"""Yield the payload's lines, each with its `\n`, which the last line may lack."""
        with self.reader(path) as source:
            yield from source

    @contextmanager
    def table_writer(
        self, path: str, schema: pa.Schema, *, repeating: Sequence[str] | None = None, compression: str = "zstd"
    ) -> Iterator[pq.ParquetWriter]:
        """Write a Parquet table: `write_table` and `write_batch`. It appears when the block succeeds.

        `repeating` names the columns with few distinct values, in a table that only this package reads. Such a table is
        written and read in two thirds of the time, and is twice as large.
        """
        options: dict[str, Any] = {"compression": compression}
        if repeating is not None:
            options = {"compression": "lz4", "use_dictionary": list(repeating), "write_statistics": False}
        with self._staged(path) as staged:
            # Arrow writes pages one by one, and even a small table has many.
            pages = pa.BufferedOutputStream(pa.PythonFile(stored := HashedFile(staged), "w"), _BUFFER_BYTES)
            with pages, TableWriter(pages, schema, **options) as writer:
                yield writer
            staged.flush()
            with payload_errors(self._full(path)) if self._is_local else temporary_errors():
                write_table_digest(staged.raw.name, stored.hash.hexdigest())  # type: ignore[attr-defined]  # of a BufferedWriter

    def table_schema(self, path: str) -> pa.Schema:
        """Return the columns of a table."""
        with self._parquet(path) as parquet:
            return parquet.schema_arrow

    def table_metadata(self, path: str) -> Mapping[bytes, bytes]:
        """Return the metadata that the table's writer added."""
        with self._parquet(path) as parquet:
            return dict(parquet.metadata.metadata or {})

    def row_bytes(self, path: str) -> int:
        """Return about how many bytes a row of a table has before compression, measured on its first rows."""
        with self._parquet(path) as parquet:
            return _row_bytes(parquet)

    def read_table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the whole table, or some of its columns."""
        with self._parquet(path, all_of_it=columns is None) as parquet:
            table = parquet.read(columns=columns, use_threads=False)
        release_memory()
        return table

    def iter_batches(
        self, path: str, batch_rows: int = 65_536, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the table in record batches of at most `batch_rows` rows, fewer of long rows, in constant memory."""
        with self._parquet(path) as parquet:
            batch_rows = max(min(batch_rows, _BATCH_BYTES // _row_bytes(parquet, columns)), 1)
            # Each batch owns its buffers, which are freed with it.
            batches = parquet.iter_batches(batch_rows, columns=columns, use_threads=False)
            for number, batch in enumerate(batches, start=1):
                yield batch
                if number % _BATCHES_A_RELEASE == 0:
                    release_memory()

    def take(self, path: str, rows: Sequence[int], columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield rows of a table by their numbers, in ascending order. Only row groups with such rows are read."""
        with self._parquet(path) as parquet:
            start = 0
            for group in range(parquet.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                wanted = rows[bisect_left(rows, start) : bisect_left(rows, end)]
                if wanted:
                    table = parquet.read_row_group(group, columns=columns, use_threads=False)
                    is_whole = len(wanted) == end - start
                    yield table if is_whole else table.take(pa.array([row - start for row in wanted], pa.int64()))
                start = end

    def exists(self, path: str) -> bool:
        """Return whether a complete file has this name."""
        return bool(self._fs.exists(self._full(path)))

    def carries_digest(self, path: str) -> bool:
        """Return whether a file exists and has the digest that this package writes into it, even a wrong one."""
        try:
            with self._open(path) as file:
                return carries_digest(file, is_table=path.endswith(".parquet"))
        except OSError:
            return False

    def delete(self, path: str) -> None:
        """Remove the file, if it exists."""
        full = self._full(path)
        if self._fs.exists(full):
            # Another process may remove it at the same time.
            with suppress(FileNotFoundError), reading_errors(path, verb="removed"):
                self._fs.rm_file(full)

    def move(self, path: str, to: str) -> None:
        """Rename a file, atomically on a local disk. In an object store, the file has both names for a moment."""
        old, new = self._full(path), self._full(to)
        with payload_errors(new):
            if self._is_local:
                Path(old).replace(new)
                sync_path(Path(new).parent)
            else:
                self._fs.cp_file(old, new)
                self._fs.rm_file(old)

    def files(self, folder: str) -> Iterator[StoredFile]:
        """Yield every file below a folder by name, including half-written ones of killed processes (`.….tmp`)."""
        base = self._root.path.rstrip("/")
        # File systems return absolute paths for a relative folder.
        base = str(Path(base).absolute()) if self._is_local else base
        for name, info in sorted(self._fs.find(f"{base}/{folder}", detail=True).items()):
            yield StoredFile(name.partition(f"{base}/")[2], int(info.get("size") or 0), _modified_at(info))

    def remove(self, file: StoredFile) -> None:
        """Remove a file that `files` gave, whatever its name, if it still exists."""
        with suppress(FileNotFoundError), reading_errors(file.path, verb="removed"):
            self._fs.rm_file(f"{self._root.path.rstrip('/')}/{file.path}")

    def parquet_files(self) -> list[str]:
        """Return the names of the Parquet files in the root itself."""
        # Hidden files are half-written or belong to others.
        return [name for name in self._names() if name.endswith(".parquet") and not name.startswith(".")]

    def keep_only(self, start: str) -> None:
        """Remove the Parquet files in the root itself whose names do not start with `start`."""
        for name in self.parquet_files():
            if not name.startswith(start):
                self.remove(StoredFile(name, 0, None))

    def remove_left_behind(self) -> None:
        """Remove half-written files of killed processes in the root itself, after a day; see stored_files.py."""
        if self._is_local:
            remove_left_behind(Path(self._root.path), self._names())

    def _names(self) -> list[str]:
        """Return the names of the files and folders in the root itself."""
        try:
            paths = self._fs.ls(self._root.path.rstrip("/"), detail=False)
        except FileNotFoundError:
            return []
        return sorted(str(path).rpartition("/")[2] for path in paths)

    @property
    def _fs(self) -> Any:
        """The file system; raises MissingExtraError if its package is not installed."""
        try:
            return self._root.fs
        except ImportError as error:
            extra = _EXTRAS.get(self._root.protocol)
            if extra is None:
                raise
            raise MissingExtraError(extra, f"A payload store at {self._root.protocol}://") from error

    def _full(self, path: str) -> str:
        return f"{self._root.path.rstrip('/')}/{check_path(path)}"

    def _open(self, path: str) -> BinaryIO:
        full = self._full(path)
        with reading_errors(path):
            return cast("BinaryIO", (open if self._is_local else self._fs.open)(full, "rb"))

    @contextmanager
    def _parquet(self, path: str, *, all_of_it: bool = False) -> Iterator[pq.ParquetFile]:
        """Open a table whose digest this process has compared since it was written."""
        with self._compared(path, all_of_it=all_of_it) as file, open_table(file) as parquet:
            yield parquet

    @contextmanager
    def _compared(self, path: str, *, all_of_it: bool = False) -> Iterator[BinaryIO]:
        """Open the file of a table whose digest was compared, like `_parquet`, without reading its schema."""
        with ExitStack() as files:
            file = files.enter_context(self._open(path))
            seen = self.version(path, file)
            # If a file is replaced while it is read, ranges may mix both versions, unnoticed by Cloud Storage's reader.
            if seen not in _compared or (all_of_it and not self._is_local):
                if not self._is_local:
                    # The digest needs all bytes, once. Later reads of this process fetch only their ranges.
                    file = files.enter_context(self._here(path))
                with reading_errors(path):
                    if not is_whole_table(file):
                        raise DamagedError(path)
                _remember(seen)
            yield file

    def version(self, path: str, file: Any = None) -> FileVersion:
        """Return a value that changes whenever the file does; `file`: the open file. Raises LostError if missing."""
        full = self._full(path)
        with reading_errors(path):
            if self._is_local:
                stat = Path(full).stat() if file is None else os.fstat(file.fileno())
                return FileVersion(full, stat.st_size, f"{stat.st_ino} {stat.st_mtime_ns}")
            # The details describe the bytes that an open file reads, even if its name now belongs to another file.
            info = getattr(file, "details", None) or self._fs.info(full)
        tag = next((str(info[name]) for name in (*_TAGS, *_TIMES) if info.get(name)), uuid.uuid4().hex)
        return FileVersion(f"{self._root.protocol}:{full}", int(info.get("size") or 0), tag)

    def is_whole(self, path: str) -> bool:
        """Return whether a file exists and is undamaged. Reads all of it, a table once in a process.

        Raises the store's error if the store cannot be asked: then the answer is unknown.
        """
        try:
            if path.endswith(".parquet"):
                with self._compared(path):
                    return True
            with self._open(path) if self._is_local else self._here(path) as file:
                return is_whole_stream(file, _codec(path))
        except (FileNotFoundError, DamagedError):
            return False

    @contextmanager
    def _here(self, path: str) -> Iterator[io.FileIO]:
        """Open a copy of the stored file, which other processes cannot change while it is read."""
        with self._open(path) as file, _Unnamed() as copy:
            with reading_errors(path):
                shutil.copyfileobj(file, copy, _BUFFER_BYTES)
            copy.seek(0)
            yield copy

    @contextmanager
    def _staged(self, path: str) -> Iterator[BinaryIO]:
        """Open a local file that becomes the payload when the block succeeds, and is removed otherwise."""
        full = self._full(path)
        # A local payload is staged in its own directory: a rename is atomic only within one file system.
        directory = Path(full).parent if self._is_local else Path(tempfile.gettempdir())
        staged = directory / staged_name(path.rpartition("/")[0])
        try:
            with payload_errors(full) if self._is_local else temporary_errors():
                if self._is_local:
                    make_private(directory)
                raw = StagedFile(staged, full if self._is_local else None)
            with io.BufferedWriter(raw) as file:
                yield file
            with payload_errors(full):
                self._publish(staged, full)
        finally:
            # `prune` removes a file that a failing disk keeps.
            with suppress(OSError):
                staged.unlink()

    def _publish(self, staged: Path, full: str) -> None:
        if self._is_local:
            self._place(staged, Path(full))
        else:
            # An object store shows an upload once it is complete.
            self._fs.put_file(str(staged), full)

    def _place(self, staged: Path, full: Path) -> None:
        """Give a written file its name."""
        # First the bytes, then the name, then the directory that holds it. A crash of the machine between two of these
        # steps leaves the old file or the whole new one, never half a file.
        sync_path(staged)
        staged.replace(full)
        sync_path(staged.parent)


class LateStore(PayloadStore):
    """The files of another store. On a local disk, only `sync` syncs the files that are written through this store.

    A sync waits for the disk, and many at once wait hardly longer than one. Until `sync` has returned, a crash of the
    machine (not of the process) can leave a damaged file, which its digest reveals. So do not record anything that
    needs the file before that.

    A file that the disk fails to sync is removed and must be written again. The system reports such an error once and
    drops the unwritten bytes, so a second sync would succeed without them.
    """

    def __init__(self, store: PayloadStore) -> None:
        # The root, already opened with its options.
        self._root, self._is_local = store._root, store._is_local  # noqa: SLF001 - a store of the same kind
        self._written: deque[Path] = deque()
        self._lost: set[Path] = set()

    def _place(self, staged: Path, full: Path) -> None:
        staged.replace(full)
        self._lost.discard(full)
        self._written.append(full)

    def is_whole(self, path: str) -> bool:
        """See PayloadStore. An existing stream may be from a process that was killed before it synced the stream."""
        is_whole = super().is_whole(path)
        # A process that has not recorded a table writes it again.
        if is_whole and self._is_local and not path.endswith(".parquet"):
            self._written.append(Path(self._full(path)))
        return is_whole

    def sync(self) -> None:
        """Return when all files written before are on disk. Raises PayloadError if the disk fails to sync one."""
        written: dict[Path, None] = {}
        # Other threads may write meanwhile.
        while self._written:
            written[self._written.popleft()] = None
        try:
            for paths in (list(written), list({path.parent: None for path in written})):
                with ThreadPoolExecutor(_SYNCS_AT_ONCE, "dagster-llm-batch sync") as pool:
                    spread = pool.map if len(paths) > 1 else map
                    list(spread(self._sync_what_is_left, paths))
        except BaseException:
            # The next call must sync these files again.
            self._written.extend(written)
            raise

    def _sync_what_is_left(self, path: Path) -> None:
        # A file that was removed since is not needed.
        with payload_errors(path), suppress(FileNotFoundError):
            if path in self._lost:
                raise OSError(errno.EIO, "the disk did not take it")
            try:
                sync_path(path)
            except FileNotFoundError:
                raise
            except OSError:
                self._lost.add(path)
                if path.is_file():
                    path.unlink()
                raise


_compared: set[FileVersion] = set()
"""The versions of tables whose digests this process has compared."""


def _remember(seen: FileVersion) -> None:
    if len(_compared) >= _MOST_REMEMBERED:
        _compared.clear()
    _compared.add(seen)


def _row_bytes(parquet: pq.ParquetFile, names: Sequence[str] | None = None) -> int:
    """Return about how many bytes a row has before compression, in all columns or in the named ones."""
    if parquet.num_row_groups == 0:
        return 1
    group = parquet.metadata.row_group(0)
    columns = map(group.column, range(group.num_columns))
    whole = sum(
        column.total_uncompressed_size
        for column in columns
        if names is None or column.path_in_schema.partition(".")[0] in names
    )
    return int(whole // max(group.num_rows, 1)) or 1


# The keys of fsspec's file systems for a value that changes with each write, and for the time of the last write.
_TAGS = ("ETag", "etag", "generation", "md5Hash")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "created")


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


def _codec(path: str) -> str:
    return "lz4" if path.endswith(".lz4") else "zstd"
