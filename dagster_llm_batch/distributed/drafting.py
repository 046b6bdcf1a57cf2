"""A draft whose rows are rendered and whose request files are written by workers. The driver sees no line.

The driver goes through the parts in their order, as `Draft` goes through rows: keys, duplicates, answered requests,
lanes, shards and estimates are decided by the same code, from the lines' sizes. So the files have the same lines in the
same order. It keeps 48 bytes a row, as `Draft` does, and 4 bytes a request.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from dagster_llm_batch.core.rows import BATCH_ROWS
from dagster_llm_batch.distributed.parts import LINE, SIZES, FileTask, Part, PartMaker, spare_line, write_files
from dagster_llm_batch.engine.planning import Draft, Plan, Spare
from dagster_llm_batch.engine.rendering import Rendering
from dagster_llm_batch.engine.shards import ShardFiles
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.protocols import Codec, Workers
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Lane

__all__ = ["SpreadDraft", "UnwrittenFiles"]

_ID = "llm_request_id"
_LINES_AT_ONCE = 20_000  # small files are written some at once


class _Line:
    """A line that is in a part."""

    __slots__ = ("_bytes", "part", "row")

    def __init__(self, line_bytes: int, part: int, row: int) -> None:
        self._bytes = line_bytes
        self.part = part
        self.row = row

    def __len__(self) -> int:
        return self._bytes


class _Rendered(NamedTuple):
    """What is known here of a request that was encoded elsewhere. In the place of a Request."""

    request_id: str
    image_bytes: int
    image_tokens: int
    part: int
    row: int
    line_bytes: Sequence[int]  # for the labeling's model and each fallback


class _Elsewhere:
    """In the place of a codec that encodes: the length of the line that the real one encoded."""

    def __init__(self, codec: Codec, number: int) -> None:
        self.limits = codec.limits
        self.decode = codec.decode
        self._number = number

    def encode(self, request: Any, custom_id: str) -> Any:  # noqa: ARG002 - it has another nonce in the part
        return _Line(request.line_bytes[self._number], request.part, request.row)


class _Unwritten:
    """A file that is written later. It has lines of parts."""

    digest = ""

    def __init__(self) -> None:
        self.bytes = 0
        self.rows: dict[int, array[int]] = {}  # by the number of the part

    def write(self, line: _Line) -> None:
        if line.part not in self.rows:
            self.rows[line.part] = array("I")
        self.rows[line.part].append(line.row)
        self.bytes += len(line)


class UnwrittenFiles(PayloadStore):
    """A payload store that remembers, until `is_written`, what its files shall hold."""

    def __init__(self, store: PayloadStore) -> None:
        self._root = store._root  # noqa: SLF001 - the same place
        self.store = store
        self.files: dict[str, _Unwritten] = {}
        self.is_written = False

    @contextmanager
    def writer(self, path: str) -> Iterator[Any]:
        """A file in memory, of numbers alone."""
        if self.is_written:
            with super().writer(path) as real:
                yield real
        else:
            yield self.files.setdefault(path, _Unwritten())


class SpreadDraft(Draft):
    """One submission being planned, by workers. `folder` holds the parts meanwhile."""

    def __init__(
        self,
        workers: Workers,
        folder: str,
        *,
        payloads: UnwrittenFiles,
        files: Mapping[Lane, ShardFiles],
        spares: Sequence[Spare],
        **rest: Any,
    ) -> None:
        codec: Codec = rest.pop("codec")
        elsewhere = [replace(one, codec=_Elsewhere(one.codec, number)) for number, one in enumerate(spares, start=1)]
        super().__init__(codec=_Elsewhere(codec, 0), payloads=payloads, files=files, spares=elsewhere, **rest)
        self._workers = workers
        self._unwritten = payloads
        self._maker = PartMaker(self._labeling, codec, spares, payloads.store, folder, self._load_image)
        self._parts: list[Part] = []

    @staticmethod
    def _images_of(request: Any) -> tuple[int, int]:
        return request.image_bytes, request.image_tokens

    def add_rows(self, rows: Any) -> None:
        """Take all rows. Raises InputError or ConfigError; then `discard`."""
        reports = [report for report in self._workers.map_rows(rows, self._maker) if report is not None]
        self._parts = [report for report in reports if isinstance(report, Part)]
        for report in reports:
            if isinstance(report, LLMBatchError):
                raise report
        if not self._parts:
            super().add_rows(rows)  # they have columns all the same
        for number, part in enumerate(self._parts):
            if self._rendering is None:
                self._start(Rendering(self._labeling, part.rows, self._load_image))
            self._digest.merge(part.digest)
            self._merge(number, part)

    def _merge(self, number: int, part: Part) -> None:
        assert self._rendering is not None
        own = [name for name in self._rendering.manifest_schema.names if name in part.rows.names]
        spares = [f"{spare_line(one)}_bytes" for one in range(len(self._spares))]
        start = 0
        for batch in self._payloads.iter_batches(part.path, BATCH_ROWS, [*own, _ID, *SIZES, *spares]):
            keys = self._keys.check(batch)
            ids = batch.column(_ID).to_pylist()
            facts = zip(*(batch.column(name).to_pylist() for name in (*SIZES, *spares)), strict=True)
            for row, (request_id, key, is_new, fact) in enumerate(
                zip(ids, keys, self._seen.new(ids), facts, strict=True), start=start
            ):
                if is_new:
                    line_bytes, image_bytes, image_tokens, is_urgent, *others = fact
                    sizes = (line_bytes, *others)
                    rendered: Any = _Rendered(request_id, image_bytes, image_tokens, number, row, sizes)
                    self._write(rendered, key, Lane.REALTIME if is_urgent else Lane.BATCH)
            start += batch.num_rows
            self._manifest.write_table(self._rendering.manifest(batch, ids))

    def finish(self, configuration: str) -> Plan:
        """Have all files written. The draft can still be discarded."""
        for files in self._files.values():
            files.end()
        tasks = [*self._shard_tasks(), *self._spare_tasks()]
        written = {
            one.path: one
            for some in self._workers.map(partial(write_files, self._unwritten.store), list(_some_at_once(tasks)))
            for one in some
        }
        for files in self._files.values():
            files.shards = [replace(shard, digest=written[shard.path].digest) for shard in files.shards]
            for shard in files.shards:
                assert written[shard.path].bytes == shard.bytes  # what was planned from sizes is what came out
        self._unwritten.is_written = True
        plan = super().finish(configuration)
        self._discard_parts()
        return plan

    def _shard_tasks(self) -> Iterator[FileTask]:
        for files in self._files.values():
            for shard in files.shards:
                yield FileTask(shard.path, LINE, shard.nonce, self._sources(shard.path))

    def _spare_tasks(self) -> Iterator[FileTask]:
        if self._rendering is not None:
            for number, spare in enumerate(self._spares):
                yield FileTask(spare.path, spare_line(number), None, self._sources(spare.path))

    def _sources(self, path: str) -> list[tuple[str, Sequence[int]]]:
        return [(self._parts[number].path, rows) for number, rows in self._unwritten.files[path].rows.items()]

    def discard(self) -> None:
        """Remove every file of this draft."""
        super().discard()
        self._discard_parts()

    def _discard_parts(self) -> None:
        for part in self._parts:
            self._payloads.delete(part.path)
        self._parts = []


def _some_at_once(tasks: Sequence[FileTask]) -> Iterator[list[FileTask]]:
    some: list[FileTask] = []
    lines = 0
    for task in tasks:
        some.append(task)
        lines += sum(len(rows) for _, rows in task.sources)
        if lines >= _LINES_AT_ONCE:
            yield some
            some, lines = [], 0
    if some:
        yield some
