"""A draft whose rows are rendered and whose request files are written by workers. The driver sees no line.

The driver goes through the parts in their order, as `Draft` goes through rows: keys, duplicates, answered requests,
lanes, shards and estimates are decided by the same code, from the lines' sizes. So the files have the same lines in the
same order. It keeps 4 bytes a request.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dagster_llm_batch.core.keys import keys_of
from dagster_llm_batch.core.rows import BATCH_ROWS
from dagster_llm_batch.distributed.parts import LINE, SIZES, FileTask, Part, PartMaker, spare_line, write_files
from dagster_llm_batch.engine.request_writer import Draft, Plan, Rendering
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.protocols import Workers
from dagster_llm_batch.types import Lane

__all__ = ["SpreadDraft", "UnwrittenFiles"]

_ID = "llm_request_id"
_LINES_AT_ONCE = 20_000  # small files are written some at once


@dataclass(frozen=True)
class _PartLines:
    """Lines that are in a part. Which nonce they get is told to those who write them."""

    part: int
    rows: Sequence[int]
    request_ids: Sequence[str]
    sizes: Sequence[int]

    def some(self, start: int, end: int) -> _PartLines:
        """See Lines.some."""
        return _PartLines(self.part, self.rows[start:end], self.request_ids[start:end], self.sizes[start:end])

    def under(self, nonce: str) -> _PartLines:  # noqa: ARG002 - it has another one in the part
        """See Lines.under."""
        return self


@dataclass(frozen=True)
class _InPart:
    """What is known here of requests that were rendered and encoded elsewhere."""

    part: int
    rows: Sequence[int]
    request_ids: Sequence[str]
    images: Sequence[tuple[int, int]]
    sizes: Sequence[Sequence[int]]  # of their lines, for the labeling's model and each fallback

    def at(self, places: Sequence[int]) -> _InPart:
        """See Drafted.at."""
        return _InPart(
            self.part,
            [self.rows[at] for at in places],
            [self.request_ids[at] for at in places],
            [self.images[at] for at in places],
            [[sizes[at] for at in places] for sizes in self.sizes],
        )

    def lines(self, model: int, nonce: str) -> _PartLines:  # noqa: ARG002 - see _PartLines.under
        """See Drafted.lines."""
        return _PartLines(self.part, self.rows, self.request_ids, self.sizes[model])


class _Unwritten:
    """A file that is written later, with these rows of parts, by the number of the part."""

    digest = ""

    def __init__(self) -> None:
        self.rows: dict[int, array[int]] = {}

    def write(self, lines: _PartLines) -> None:
        self.rows.setdefault(lines.part, array("I")).extend(lines.rows)


class UnwrittenFiles:
    """In the place of files: what workers shall write into them."""

    def __init__(self) -> None:
        self.files: dict[str, _Unwritten] = {}

    @contextmanager
    def writer(self, path: str) -> Iterator[_Unwritten]:
        """A file in memory, of numbers alone."""
        yield self.files.setdefault(path, _Unwritten())


class SpreadDraft(Draft):
    """One submission being planned, by workers. `folder` holds the parts meanwhile."""

    def __init__(self, workers: Workers, folder: str, unwritten: UnwrittenFiles, **rest: Any) -> None:
        super().__init__(**rest, writer=unwritten.writer)
        self._workers = workers
        self._unwritten = unwritten
        codec, *_ = self._codecs
        self._maker = PartMaker(self._labeling, codec, self._spares, self._payloads, folder, self._load_image)
        self._parts: list[Part] = []

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
            keys = keys_of(batch, self._labeling.key)
            ids, line_bytes, image_bytes, image_tokens, is_urgent, *others = (
                batch.column(name).to_pylist() for name in (_ID, *SIZES, *spares)
            )
            rows = range(start, start + batch.num_rows)
            images = list(zip(image_bytes, image_tokens, strict=True))
            drafted = _InPart(number, rows, ids, images, [line_bytes, *others])
            self._add(drafted, keys, [Lane.REALTIME if urgent else Lane.BATCH for urgent in is_urgent])
            start += batch.num_rows
            self._write_manifest(batch, keys, ids)

    def finish(self, configuration: str) -> Plan:
        """See Draft.finish."""
        plan = super().finish(configuration)
        self._discard_parts()
        return plan

    def _write_elsewhere(self) -> None:
        """See Draft."""
        for files in self._files.values():
            files.end()
        tasks = [*self._shard_tasks(), *self._spare_tasks()]
        written = {
            one.path: one
            for some in self._workers.map(partial(write_files, self._payloads), list(_some_at_once(tasks)))
            for one in some
        }
        for files in self._files.values():
            files.shards = [replace(shard, digest=written[shard.path].digest) for shard in files.shards]
            for shard in files.shards:
                assert written[shard.path].bytes == shard.bytes  # what was planned from sizes is what came out

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
