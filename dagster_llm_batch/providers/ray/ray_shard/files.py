"""The folder of one shard on storage that the provider and all workers reach. See the package's docstring.

A file is written under another name and renamed, so it is whole or not there, also on a shared file system.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow.fs

__all__ = ["PLAN", "REQUESTS", "Files", "ended", "started"]

REQUESTS, PLAN, _RESULTS = "requests.jsonl", "plan.json", "results"
_CHUNK_BYTES = 1 << 20


def started(submission_id: str) -> str:
    """Return the file that shows that the job has begun."""
    return f"{submission_id}.started.json"


def ended(submission_id: str) -> str:
    """Return the file that shows that every row has its result line."""
    return f"{submission_id}.ended.json"


class Files:
    """A folder: a path, or a URI of pyarrow's file systems (s3://, gs://, hdfs://). It is made at the first write."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        if "://" in folder:
            self._fs, self._path = pyarrow.fs.FileSystem.from_uri(folder)
        else:
            self._fs, self._path = pyarrow.fs.LocalFileSystem(), str(Path(folder).expanduser().absolute())

    def exists(self, name: str) -> bool:
        """Return whether the file is there."""
        info: pyarrow.fs.FileInfo = self._fs.get_file_info(f"{self._path}/{name}")
        return bool(info.type == pyarrow.fs.FileType.File)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file, or None if the file does not exist."""
        if not self.exists(name):
            return None
        with self._fs.open_input_stream(f"{self._path}/{name}", compression=None) as stream:
            value = json.loads(stream.read())
        return value if isinstance(value, dict) else None

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file."""
        self._write(name, [json.dumps(value).encode()])

    def write_requests(self, lines: BinaryIO) -> int:
        """Store the request file and return how many lines it has."""
        count = 0

        def counted() -> Iterator[bytes]:
            nonlocal count
            while chunk := lines.read(_CHUNK_BYTES):
                count += chunk.count(b"\n")
                yield chunk

        self._write(REQUESTS, counted())
        return count

    def spans(self, rows: int) -> Iterator[tuple[int, int]]:
        """Yield the place of each run of this many lines in the request file: first byte and length."""
        start = end = lines = 0
        for line in self.lines(REQUESTS):
            end += len(line)
            lines += 1
            if lines == rows:
                yield start, end - start
                start, lines = end, 0
        if end > start:
            yield start, end - start

    def requests(self, start: int, length: int) -> list[bytes]:
        """Return the request lines of a span."""
        with self._fs.open_input_file(f"{self._path}/{REQUESTS}") as file:
            file.seek(start)
            return [line for line in bytes(file.read(length)).split(b"\n") if line.strip()]

    def lines(self, name: str) -> Iterator[bytes]:
        r"""Yield the lines of a file, each with its `\n`, in constant memory. They end at `\n` alone."""
        rest = b""
        with self._fs.open_input_stream(f"{self._path}/{name}", compression=None) as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line + b"\n"
        if rest:
            yield rest + b"\n"

    def result_name(self, key: bytes, rows: int) -> str:
        """Return the result file for `key`: the same each time that it is answered."""
        return f"{_RESULTS}/{hashlib.blake2b(key, digest_size=12).hexdigest()}-{rows}.jsonl"

    def write_results(self, name: str, lines: Iterable[bytes]) -> None:
        """Write one result file."""
        self._write(name, lines)

    def results(self) -> list[str]:
        """Return the names of all whole result files, in order."""
        selector = pyarrow.fs.FileSelector(f"{self._path}/{_RESULTS}", allow_not_found=True)
        names = (info.base_name for info in self._fs.get_file_info(selector) if info.type == pyarrow.fs.FileType.File)
        return sorted(f"{_RESULTS}/{name}" for name in names if name.endswith(".jsonl"))

    def rows_done(self) -> int:
        """Tell how many rows the result files have, by their names."""
        counts = (name.removesuffix(".jsonl").rpartition("-")[2] for name in self.results())
        return sum(int(count) for count in counts if count.isdecimal())

    def remove_rows(self) -> None:
        """Remove requests and results, half-written ones, too. The record of the job's end stays."""
        selector = pyarrow.fs.FileSelector(self._path, allow_not_found=True, recursive=True)
        for info in self._fs.get_file_info(selector):
            if info.type == pyarrow.fs.FileType.File and not info.base_name.endswith(".json"):
                self._fs.delete_file(info.path)

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        if self._fs.get_file_info(self._path).type != pyarrow.fs.FileType.NotFound:
            self._fs.delete_dir(self._path)

    def _write(self, name: str, chunks: Iterable[bytes]) -> None:
        path = f"{self._path}/{name}"
        self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        half = f"{path}.{uuid.uuid4().hex}.part"
        with self._fs.open_output_stream(half, compression=None) as stream:
            for chunk in chunks:
                stream.write(chunk)
        self._fs.move(half, path)
