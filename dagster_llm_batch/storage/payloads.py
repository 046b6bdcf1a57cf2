"""The payload store: request and result files. (Signatures; the bodies follow.)"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

__all__ = ["PayloadStore", "PayloadWriter", "payload_path"]


def payload_path(namespace: str, asset: str, partition: str, submission_id: str, name: str) -> str: ...


class PayloadWriter:
    bytes: int
    digest: str
    lines: int

    def write(self, data: bytes) -> None: ...


class PayloadStore:
    def __init__(self, root: str | UPath, **storage_options: Any) -> None: ...
    def writer(self, path: str) -> AbstractContextManager[PayloadWriter]: ...
    def reader(self, path: str) -> AbstractContextManager[BinaryIO]: ...
    def lines(self, path: str) -> Iterator[bytes]: ...
    def table_writer(self, path: str, schema: pa.Schema) -> AbstractContextManager[pq.ParquetWriter]: ...
    def read_table(self, path: str, columns: Sequence[str] | None = None) -> pa.Table: ...
    def iter_batches(
        self, path: str, batch_rows: int = 65_536, columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]: ...
    def exists(self, path: str) -> bool: ...
    def delete(self, path: str) -> None: ...
