"""Requests that workers render and write. The process that drives them sees sizes and ids, but no line.

    workers: rows ─▶ part files      driver: sizes, ids ─▶ shards      workers: part files ─▶ request files

A part file is a table with the rows of one part in their order: the columns that the manifest keeps, their request_ids,
and the lines of the requests that are new in the part, in the encoding of each codec.

The driver goes through the parts in their order, just as it goes through rows in one process: the same Draft decides on
keys, duplicates, answered requests, lanes, shards and estimates from the lines' sizes. So the request files have the
same lines in the same order. The driver keeps 4 bytes a request.

`Workers` (protocols.py) come with the labeling. The engine does not depend on their cluster.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from dagster_llm_batch.core.dedupe import Seen
from dagster_llm_batch.core.identity import RowBlocks, RowsDigest, custom_id, packed, shard_nonce
from dagster_llm_batch.core.keys import ErasedKeys, keys_of
from dagster_llm_batch.core.label_join import UNSENT, UNSENT_FIELD
from dagster_llm_batch.core.row_files import RowFiles
from dagster_llm_batch.core.rows import BATCH_ROWS, record_batches
from dagster_llm_batch.core.token_counts import InputCounter, InputCounts
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.files.document_files import DocumentFiles
from dagster_llm_batch.files.request_files import PART, renamed
from dagster_llm_batch.files.request_source import RenderedBatch, RequestSource, Spare
from dagster_llm_batch.files.request_writer import rendered_chunk
from dagster_llm_batch.files.row_renderer import RowRenderer, reasons_of
from dagster_llm_batch.protocols import Codec, Workers
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.payloads import PayloadStore, unnamed_file
from dagster_llm_batch.storage.stored_files import own_name
from dagster_llm_batch.types import Lane, Request

__all__ = ["Part", "PartMaker", "WorkerSource"]

_ID = "llm_request_id"
_LINE = "llm_line"

# The facts about a line that the driver needs. check_columns refuses keys and kept columns with such names.
_SIZES = ("llm_line_bytes", "llm_tokens", "llm_most_tokens", "llm_is_urgent")

# Stands in a part's lines until the driver has decided which shard takes them. All nonces have the same length, so that
# the sizes of the lines are right already.
_PLACEHOLDER = shard_nonce("", 0, 0)

_HELD_BYTES = 8 << 20

# Small files share a task, up to about this many lines.
_TASK_LINES = 20_000


def _spare_line(number: int) -> str:
    """Return the column with the lines for the fallback of this number."""
    return f"llm_spare_{number}"


@dataclass(frozen=True)
class Part:
    """A part file. `rows` is the schema that the rows came with, `erased_rows` how many were left out as erased, and
    `masked` the number of masked values by kind.
    """

    path: str
    rows: pa.Schema
    digest: RowsDigest
    erased_rows: int
    masked: Mapping[str, int]


@dataclass(frozen=True)
class PartMaker:
    """Make part files below `folder`. Called by a worker, it takes the rows of one part."""

    labeling: Labeling
    codec: Codec
    spares: Sequence[Spare]
    counter: InputCounter
    payloads: PayloadStore
    folder: str
    row_files: RowFiles
    erased: ErasedKeys
    documents: DocumentFiles | None = None

    def __call__(self, rows: Iterator[pa.RecordBatch]) -> Part | LLMBatchError | None:
        """Write the part file of these rows; return None without rows.

        Returns an error in the rows instead of raising it: Spark and Ray run a task again that raises.
        """
        try:
            columns, masked = self.labeling.columns_read, Counter[str]()
            batches: Iterator[pa.RecordBatch] = (batch for table in rows for batch in record_batches(table, columns))
            if self.labeling.mask is not None:
                batches = self.labeling.mask.stream(batches, masked)
            return self._part(batches, masked)
        except LLMBatchError as error:
            return error

    def _part(self, batches: Iterator[pa.RecordBatch], masked: Mapping[str, int]) -> Part | None:
        came = 0

        def kept() -> Iterator[pa.RecordBatch]:
            nonlocal came
            for batch in batches:
                came += batch.num_rows
                yield self.erased.without(batch, self.labeling.key)

        remaining = kept()
        first = next(remaining, None)
        if first is None:
            return None
        keys = keys_of(first, self.labeling.key)
        renderer = RowRenderer(self.labeling, first.schema, self.row_files)
        path = f"{self.folder}/{PART}{own_name(self.folder)}.parquet"
        schema, digest = first.schema, RowsDigest()
        with (
            ExitStack() as files,
            self.payloads.table_writer(path, self._schema(renderer), repeating=_SIZES) as out,
        ):
            seen = Seen(packed, lambda: files.enter_context(unnamed_file()))
            while first is not None:
                renderer.check(first)
                for table in self._tables(first, keys, renderer, seen, digest):
                    out.write_table(table)
                first = next(remaining, None)
                keys = [] if first is None else keys_of(first, self.labeling.key)
        return Part(path, schema, digest, came - digest.rows, masked)

    def _schema(self, renderer: RowRenderer) -> pa.Schema:
        sizes = [(name, pa.int64()) for name in _SIZES]
        spares = [(_spare_line(number), pa.large_binary()) for number in range(len(self.spares))]
        spare_sizes = [(f"{name}_bytes", pa.int64()) for name, _ in spares]
        more = pa.schema([*sizes, *spare_sizes, (_LINE, pa.large_binary()), *spares])
        return pa.schema([*renderer.manifest_schema, *([UNSENT_FIELD] if self._has_files else []), *more])

    @property
    def _has_files(self) -> bool:
        return bool(self.labeling.prompt.files)

    def _tables(
        self, batch: pa.RecordBatch, keys: list[Any], renderer: RowRenderer, seen: Seen, digest: RowsDigest
    ) -> Iterator[pa.Table]:
        """Yield the batch with its lines, in tables that fit into memory with all their files."""
        lanes = iter(renderer.lanes(batch))
        held: list[tuple[Any, ...]] = []
        ids: list[str | None] = []
        unsent: dict[int, str] = {}
        start = held_bytes = 0
        for chunk_keys, requests in renderer.requests(batch, keys):
            chunk_ids = [request.request_id if isinstance(request, Request) else None for request in requests]
            digest.add(chunk_keys, chunk_ids)
            unsent.update((len(ids) + at, reason) for at, reason in reasons_of(requests).items())
            ids += chunk_ids
            asked = [request for request in requests if isinstance(request, Request)]
            are_new = seen.new([request.request_id for request in asked])
            counts = self.counter.count([request for request, is_new in zip(asked, are_new, strict=True) if is_new])
            places, tokens = iter(are_new), zip(counts.expected, counts.bounds, strict=True)
            for request, lane in zip(requests, lanes, strict=False):
                is_new = isinstance(request, Request) and next(places)
                held.append(
                    self._encoded(request, next(tokens), lane)
                    if isinstance(request, Request) and is_new
                    else self._nothing
                )
                held_bytes += held[-1][0]
            if held_bytes >= _HELD_BYTES:
                yield self._table(batch.slice(start, len(ids)), ids, unsent, held, renderer)
                start, held, ids, unsent, held_bytes = start + len(ids), [], [], {}, 0
        if ids or not batch.num_rows:
            yield self._table(batch.slice(start), ids, unsent, held, renderer)

    @property
    def _nothing(self) -> tuple[Any, ...]:
        spares = len(self.spares)
        return (0, 0, 0, 0, *[0] * spares, None, *[None] * spares)

    def _encoded(self, request: Request, tokens: tuple[int, int | None], lane: Lane) -> tuple[Any, ...]:
        if self.documents is not None:
            self.documents.keep(request.documents)
        line = self.codec.encode(request, custom_id(_PLACEHOLDER, request.request_id))
        spares = [spare.codec.encode(request, custom_id(spare.nonce, request.request_id)) for spare in self.spares]
        sizes = (len(line), *tokens, int(lane is Lane.REALTIME))
        return (*sizes, *map(len, spares), line, *spares)

    def _table(
        self,
        batch: pa.RecordBatch,
        ids: list[str | None],
        unsent: Mapping[int, str],
        held: list[tuple[Any, ...]],
        renderer: RowRenderer,
    ) -> pa.Table:
        table = renderer.manifest(batch, ids, unsent if self._has_files else None)
        schema = self._schema(renderer)
        more = list(schema)[table.num_columns :]
        columns = zip(*held, strict=True) if held else [()] * len(more)
        lines = [pa.array(values, field.type) for field, values in zip(more, columns, strict=True)]
        return pa.table([*table.columns, *lines], schema=schema)


@dataclass(frozen=True)
class _PartLines:
    """Lines in a part file. Their nonce is set by the worker that writes them into a request file."""

    part: int
    rows: Sequence[int]
    request_ids: Sequence[str]
    sizes: Sequence[int]

    def slice(self, start: int, end: int) -> _PartLines:
        """See Lines.slice."""
        return _PartLines(self.part, self.rows[start:end], self.request_ids[start:end], self.sizes[start:end])

    def with_nonce(self, nonce: str) -> _PartLines:  # noqa: ARG002 - a FileTask has it
        """See Lines.with_nonce."""
        return self


@dataclass(frozen=True)
class _PartRequests:
    """Requests in a part file. `sizes` has the bytes of their lines for the labeling's model and each fallback."""

    part: int
    rows: Sequence[int]
    request_ids: Sequence[str]
    tokens: InputCounts
    sizes: Sequence[Sequence[int]]

    def take(self, places: Sequence[int]) -> _PartRequests:
        """See RenderedRequests.take."""
        return _PartRequests(
            self.part,
            [self.rows[at] for at in places],
            [self.request_ids[at] for at in places],
            self.tokens.take(places),
            [[sizes[at] for at in places] for sizes in self.sizes],
        )

    def lines(self, model: int, nonce: str) -> _PartLines:  # noqa: ARG002 - see _PartLines.with_nonce
        """See RenderedRequests.lines."""
        return _PartLines(self.part, self.rows, self.request_ids, self.sizes[model])


class _PlannedFile:
    """A request file that workers write later: its rows in the part files, by the number of the part."""

    digest = ""

    def __init__(self) -> None:
        self.rows: dict[int, array[int]] = {}

    def write(self, lines: _PartLines) -> None:
        self.rows.setdefault(lines.part, array("I")).extend(lines.rows)


class WorkerSource:
    """A RequestSource whose rows are rendered and whose request files are written by workers.

    Args:
        workers: The workers that render and write.
        maker: The function that makes a part file of each part of the rows.
        empty: Renders an empty table of rows: its columns are still planned with.
    """

    def __init__(self, workers: Workers, maker: PartMaker, empty: RequestSource) -> None:
        self.digest = RowsDigest()
        self.blocks = RowBlocks()
        self.erased_rows = 0
        self.masked: Counter[str] = Counter()
        self._workers = workers
        self._maker = maker
        self._empty = empty
        self._payloads = maker.payloads
        self._parts: list[Part] = []
        self._files: dict[str, _PlannedFile] = {}

    def batches(self, rows: Any) -> Iterator[RenderedBatch]:
        """See RequestSource.batches."""
        reports = [report for report in self._workers.map_rows(rows, self._maker) if report is not None]
        # Before an error is raised, so that `close` removes the parts of the other workers.
        self._parts = [report for report in reports if isinstance(report, Part)]
        for report in reports:
            if isinstance(report, LLMBatchError):
                raise report
        if not self._parts:
            yield from self._empty.batches(rows)
            return
        renderer = RowRenderer(self._maker.labeling, self._parts[0].rows, self._maker.row_files)
        for number, part in enumerate(self._parts):
            self.digest.merge(part.digest)
            self.erased_rows += part.erased_rows
            self.masked.update(part.masked)
            yield from self._part_batches(number, part, renderer)

    def _part_batches(self, number: int, part: Part, renderer: RowRenderer) -> Iterator[RenderedBatch]:
        kept = [name for name in renderer.manifest_schema.names if name in part.rows.names]
        kept += [UNSENT] if self._maker.labeling.prompt.files else []
        spares = [f"{_spare_line(spare)}_bytes" for spare in range(len(self._maker.spares))]
        start = 0
        for batch in self._payloads.iter_batches(part.path, BATCH_ROWS, [*kept, _ID, *_SIZES, *spares]):
            keys = keys_of(batch, self._maker.labeling.key)
            ids, line_bytes, tokens, most_tokens, is_urgent, *spare_bytes = (
                batch.column(name).to_pylist() for name in (_ID, *_SIZES, *spares)
            )
            places = range(start, start + batch.num_rows)
            counts = InputCounts(tokens, most_tokens)
            requests = _PartRequests(number, places, ids, counts, [line_bytes, *spare_bytes])
            lanes = [Lane.REALTIME if urgent else Lane.BATCH for urgent in is_urgent]
            if None in ids:
                requests = requests.take([at for at, row_id in enumerate(ids) if row_id is not None])
            unsent = {}
            if UNSENT in kept:
                reasons = enumerate(batch.column(UNSENT).to_pylist())
                unsent = {at: reason for at, reason in reasons if reason is not None}
            yield RenderedBatch(renderer, batch, keys, iter([rendered_chunk(ids, requests, keys, lanes, unsent)]))
            start += batch.num_rows

    @contextmanager
    def writer(self, path: str) -> Iterator[_PlannedFile]:
        """See RequestSource.writer: note which lines the file shall have."""
        yield self._files.setdefault(path, _PlannedFile())

    def write_files(self, shards: Sequence[Shard], spares: Sequence[Spare]) -> Mapping[str, str]:
        """See RequestSource.write_files."""
        tasks = [
            *(_FileTask(shard.path, _LINE, shard.nonce, self._sources(shard.path)) for shard in shards),
            *(
                _FileTask(spare.path, _spare_line(at), None, self._sources(spare.path))
                for at, spare in enumerate(spares)
            ),
        ]
        written = {
            file.path: file
            for files in self._workers.map(partial(_write_files, self._payloads), list(_grouped(tasks)))
            for file in files
        }
        for shard in shards:
            # The shards were cut by the sizes in the parts: another size here would break a provider's limit.
            assert written[shard.path].bytes == shard.bytes
        return {path: file.digest for path, file in written.items()}

    def _sources(self, path: str) -> list[tuple[str, Sequence[int]]]:
        return [(self._parts[number].path, rows) for number, rows in self._files[path].rows.items()]

    def close(self) -> None:
        """See RequestSource.close: remove the part files."""
        for part in self._parts:
            self._payloads.delete(part.path)
        self._parts = []


@dataclass(frozen=True)
class _FileTask:
    """A request file for a worker to write.

    Attributes:
        path: The path of the file.
        column: The column of the part files that has its lines.
        nonce: The replacement for the placeholder in their custom_ids; None if the lines have theirs.
        sources: The part files, each with the numbers of its rows.
    """

    path: str
    column: str
    nonce: str | None
    sources: Sequence[tuple[str, Sequence[int]]]


@dataclass(frozen=True)
class _WrittenFile:
    """A request file that a worker wrote."""

    path: str
    bytes: int
    digest: str


def _write_files(payloads: PayloadStore, tasks: Sequence[_FileTask]) -> list[_WrittenFile]:
    return [_write_file(payloads, task) for task in tasks]


def _write_file(payloads: PayloadStore, task: _FileTask) -> _WrittenFile:
    with payloads.writer(task.path) as out:
        for part, rows in task.sources:
            for table in payloads.take(part, rows, [_ID, task.column]):
                for request_id, line in zip(*(column.to_pylist() for column in table.columns), strict=True):
                    old = custom_id(_PLACEHOLDER, request_id)
                    out.write(line if task.nonce is None else renamed(line, old, request_id, task.nonce))
    return _WrittenFile(task.path, out.bytes, out.digest)


def _grouped(tasks: Sequence[_FileTask]) -> Iterator[list[_FileTask]]:
    group: list[_FileTask] = []
    lines = 0
    for task in tasks:
        group.append(task)
        lines += sum(len(rows) for _, rows in task.sources)
        if lines >= _TASK_LINES:
            yield group
            group, lines = [], 0
    if group:
        yield group
