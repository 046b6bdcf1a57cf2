"""What a worker does while rows become requests: part files out of rows, request files out of part files.

A part file is a table with the rows of one part in their order: what the manifest keeps of them, their requests, and
the lines of those that the part has for the first time, as each codec encodes them.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from dagster_llm_batch.core.dedupe import Seen
from dagster_llm_batch.core.identity import RowsDigest, custom_id, packed, shard_nonce
from dagster_llm_batch.core.keys import keys_of
from dagster_llm_batch.core.prompt import ImageLoader
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.engine.labeling import Labeling
from dagster_llm_batch.engine.request_files import PART, renamed
from dagster_llm_batch.engine.request_writer import Rendering, Spare, columns_read, images_of
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.storage.payloads import PayloadStore, unnamed_file
from dagster_llm_batch.types import Lane, Request

__all__ = ["LINE", "SIZES", "FileTask", "Part", "PartMaker", "Written", "spare_line", "write_files"]

_ID = "llm_request_id"
LINE = "llm_line"
SIZES = ("llm_line_bytes", "llm_image_bytes", "llm_image_tokens", "llm_is_urgent")
"""What the driver needs of a line. No column of the rows has such a name."""

_NOBODY = shard_nonce("", 0, 0)  # stands in a part's lines until it is known which shard takes them
_HELD_BYTES = 8 << 20


def spare_line(number: int) -> str:
    """The column with the lines for the fallback of this number."""
    return f"llm_spare_{number}"


@dataclass(frozen=True)
class Part:
    """A part file. `rows` is the schema that the rows came with."""

    path: str
    rows: pa.Schema
    digest: RowsDigest


@dataclass(frozen=True)
class PartMaker:
    """Makes part files below `folder`."""

    labeling: Labeling
    codec: Codec
    spares: Sequence[Spare]
    payloads: PayloadStore
    folder: str
    load_image: ImageLoader | None

    def __call__(self, rows: Iterator[pa.RecordBatch]) -> Part | LLMBatchError | None:
        """The part file of these rows; None where there are none. What is wrong with them is told, not raised:
        a worker that raises is tried again.
        """
        try:
            read = columns_read(self.labeling)
            return self._part(batch for some in rows for batch in record_batches(some, read))
        except LLMBatchError as error:
            return error

    def _part(self, batches: Iterator[pa.RecordBatch]) -> Part | None:
        first = next(batches, None)
        if first is None:
            return None
        keys = keys_of(first, self.labeling.key)
        rendering = Rendering(self.labeling, first.schema, self.load_image)
        path = f"{self.folder}/{PART}{uuid.uuid4().hex}.parquet"
        part = Part(path, first.schema, RowsDigest())
        with (
            ExitStack() as files,
            self.payloads.table_writer(path, self._schema(rendering), repeating=SIZES) as out,
        ):
            seen = Seen(packed, lambda: files.enter_context(unnamed_file()))
            while first is not None:
                rendering.check(first)
                for table in self._tables(first, keys, rendering, seen, part.digest):
                    out.write_table(table)
                first = next(batches, None)
                keys = [] if first is None else keys_of(first, self.labeling.key)
        return part

    def _schema(self, rendering: Rendering) -> pa.Schema:
        sizes = [(name, pa.int64()) for name in SIZES]
        spares = [(spare_line(number), pa.large_binary()) for number in range(len(self.spares))]
        spare_sizes = [(f"{name}_bytes", pa.int64()) for name, _ in spares]
        more = pa.schema([*sizes, *spare_sizes, (LINE, pa.large_binary()), *spares])
        return pa.schema([*rendering.manifest_schema, *more])

    def _tables(
        self, batch: pa.RecordBatch, keys: list[Any], rendering: Rendering, seen: Seen, digest: RowsDigest
    ) -> Iterator[pa.Table]:
        """The batch with its lines, in tables that fit into memory with all their images."""
        lanes = iter(rendering.lanes(batch))
        held: list[tuple[Any, ...]] = []
        ids: list[str] = []
        start = held_bytes = 0
        for these, requests in rendering.requests(batch, keys):
            some = [request.request_id for request in requests]
            digest.add(these, some)
            ids += some
            for request, lane, is_new in zip(requests, lanes, seen.new(some), strict=False):
                held.append(self._encoded(request, lane) if is_new else self._nothing)
                held_bytes += held[-1][0]
            if held_bytes >= _HELD_BYTES:
                yield self._table(batch.slice(start, len(ids)), ids, held, rendering)
                start, held, ids, held_bytes = start + len(ids), [], [], 0
        if ids or not batch.num_rows:
            yield self._table(batch.slice(start), ids, held, rendering)

    @property
    def _nothing(self) -> tuple[Any, ...]:
        spares = len(self.spares)
        return (0, 0, 0, 0, *[0] * spares, None, *[None] * spares)

    def _encoded(self, request: Request, lane: Lane) -> tuple[Any, ...]:
        line = self.codec.encode(request, custom_id(_NOBODY, request.request_id))
        spares = [spare.codec.encode(request, custom_id(spare.nonce, request.request_id)) for spare in self.spares]
        sizes = (len(line), *images_of(request), int(lane is Lane.REALTIME))
        return (*sizes, *map(len, spares), line, *spares)

    def _table(
        self, batch: pa.RecordBatch, ids: list[str], held: list[tuple[Any, ...]], rendering: Rendering
    ) -> pa.Table:
        table = rendering.manifest(batch, ids)
        schema = self._schema(rendering)
        more = list(schema)[table.num_columns :]
        columns = zip(*held, strict=True) if held else [()] * len(more)
        lines = [pa.array(values, field.type) for field, values in zip(more, columns, strict=True)]
        return pa.table([*table.columns, *lines], schema=schema)


@dataclass(frozen=True)
class FileTask:
    """A request file to be written: which lines of which parts, under which nonce (None: that of the lines)."""

    path: str
    column: str
    nonce: str | None
    sources: Sequence[tuple[str, Sequence[int]]]


@dataclass(frozen=True)
class Written:
    """A request file that a worker wrote."""

    path: str
    bytes: int
    digest: str


def write_files(payloads: PayloadStore, tasks: Sequence[FileTask]) -> list[Written]:
    """Write request files."""
    return [_write_file(payloads, task) for task in tasks]


def _write_file(payloads: PayloadStore, task: FileTask) -> Written:
    with payloads.writer(task.path) as out:
        for part, rows in task.sources:
            for table in payloads.take(part, rows, [_ID, task.column]):
                for request_id, line in zip(*(column.to_pylist() for column in table.columns), strict=True):
                    old = custom_id(_NOBODY, request_id)
                    out.write(line if task.nonce is None else renamed(line, old, request_id, task.nonce))
    return Written(task.path, out.bytes, out.digest)
