"""From rows to stored shards: render, dedupe, encode, split, count. Writes payload files; sends nothing.

    rows ─▶ Draft.add ─▶ request files (a shard each) + manifest (row -> request) ─▶ Draft.finish

One pass over the rows, in constant memory but for one digest and one key a row. A draft that is refused, or turns
out to be known already, is discarded without a trace.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any

import pyarrow as pa

from dagster_llm_batch.core.identity import RowsDigest, custom_id, request_digest
from dagster_llm_batch.core.labeling import manifest_schema
from dagster_llm_batch.core.pricing import Estimate, Weight
from dagster_llm_batch.core.prompt import ImageLoader, Renderer
from dagster_llm_batch.core.rows import KeyGuard
from dagster_llm_batch.core.seen import Seen
from dagster_llm_batch.core.sharding import ShardFill
from dagster_llm_batch.engine.definition import Labeling
from dagster_llm_batch.engine.shards import ShardFiles
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.storage.payloads import PayloadStore, PayloadWriter
from dagster_llm_batch.storage.records import Shard
from dagster_llm_batch.types import Lane, Request

__all__ = ["Draft", "Plan", "Spare"]

_ROWS_AT_ONCE = 256
_TOKENS_PER_IMAGE = 1_000  # providers count an image as some hundred to some thousand tokens, whatever its bytes


@dataclass(frozen=True)
class Spare:
    """Where the requests are written once more for a fallback model, should it be asked."""

    codec: Codec
    path: str
    nonce: str


@dataclass(frozen=True)
class Plan:
    """A finished draft."""

    shards: list[Shard]
    rows: int
    requests: int
    reused: int
    fingerprint: str


class Draft:
    """One submission being planned."""

    def __init__(
        self,
        labeling: Labeling,
        codec: Codec,
        payloads: PayloadStore,
        files: Mapping[Lane, ShardFiles],
        spares: Sequence[Spare],
        estimate: Estimate,
        known: Mapping[str, bool],
        manifest_path: str,
        load_image: ImageLoader | None,
    ) -> None:
        self.estimate = estimate
        self._labeling = labeling
        self._codec = codec
        self._payloads = payloads
        self._files = files
        self._spares = spares
        self._not_asked = known  # request_id -> whether it is answered; else it is on its way
        self._manifest_path = manifest_path
        self._load_image = load_image
        self._keys = KeyGuard(labeling.key)
        self._digest = RowsDigest()
        self._seen = Seen(request_digest)
        self._reused = 0
        self._stack = ExitStack()
        self._manifest: Any = None
        self._spare_files: list[PayloadWriter] = []
        self._schema: pa.Schema | None = None
        self._renderer: Renderer | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Take more rows. Raises InputError or ConfigError; then `discard`."""
        keys = self._keys.check(batch)
        if self._schema is not None and (lost := sorted(self._needed - set(batch.schema.names))):
            msg = f"A later batch of rows lacks the columns {lost}, which the first one has."
            raise InputError(msg)
        if self._renderer is None or self._schema is None:
            self._start(batch.schema)
        assert self._renderer is not None
        assert self._schema is not None
        render, request_ids = self._renderer.render, []
        lanes = iter(self._lanes(batch))
        for start, rows in _rows(batch, self._renderer.columns):
            these = keys[start : start + len(rows)]
            requests = [render(row, key) for row, key in zip(rows, these, strict=True)]
            ids = [request.request_id for request in requests]
            for request, key, lane, is_new in zip(requests, these, lanes, self._seen.new(ids), strict=False):
                self._digest.add(key, request.request_id)
                if is_new:
                    self._write(request, key, lane)
            request_ids += ids
        own = [batch.column(name) for name in self._schema.names[:-1]]
        self._manifest.write_table(self._manifest_table(own, request_ids))

    @property
    def _needed(self) -> set[str]:
        assert self._schema is not None
        assert self._renderer is not None
        urgent = self._labeling.urgent
        return {*self._schema.names[:-1], *self._renderer.columns, *([] if urgent is None else [urgent])}

    def _lanes(self, batch: pa.RecordBatch) -> Iterable[Lane]:
        urgent = self._labeling.urgent
        if urgent is None:
            return repeat(Lane.BATCH, batch.num_rows)
        column = batch.column(urgent)
        if not pa.types.is_boolean(column.type) and not pa.types.is_null(column.type):
            msg = f"urgent names the column {urgent!r} of type {column.type}; it takes one of true and false."
            raise InputError(msg)
        return [Lane.REALTIME if flag else Lane.BATCH for flag in column.to_pylist()]

    def _start(self, rows: pa.Schema) -> None:
        labeling = self._labeling
        for argument, wanted in (("keep", labeling.keep), ("urgent", [labeling.urgent] if labeling.urgent else [])):
            if lacking := sorted(set(wanted) - set(rows.names)):
                columns = ", ".join(rows.names)
                msg = f"{argument} names {lacking}, which the rows do not have. Columns of the rows: {columns}."
                raise InputError(msg)
        self._renderer = labeling.prompt.renderer(rows.names, self._load_image)
        self._schema = manifest_schema(rows, labeling.key, labeling.keep)
        self._manifest = self._stack.enter_context(self._payloads.table_writer(self._manifest_path, self._schema))
        self._spare_files = [self._stack.enter_context(self._payloads.writer(one.path)) for one in self._spares]

    def _manifest_table(self, own: list[pa.Array], request_ids: list[str]) -> pa.Table:
        assert self._schema is not None
        try:
            columns = [column.cast(field.type) for column, field in zip(own, self._schema, strict=False)]
        except pa.ArrowException as error:
            msg = f"A later batch of rows has other column types than the first, and cannot be converted: {error}"
            raise InputError(msg) from error
        return pa.table([*columns, pa.array(request_ids, pa.string())], schema=self._schema)

    def _write(self, request: Request, key: object, lane: Lane) -> None:
        if request.request_id in self._not_asked:
            self._reused += 1
            if not self._not_asked[request.request_id]:  # the answer may be none
                self._write_spares(request, key)
            return

        def line_for(nonce: str) -> bytes:
            return self._codec.encode(request, custom_id(nonce, request.request_id))

        def weigh(line_bytes: int) -> Weight:
            if not request.images:
                return self.estimate.add(line_bytes, lane=lane)
            in_base64 = sum((len(image.data) + 2) // 3 * 4 for image in request.images if image.data is not None)
            images = len(request.images) * _TOKENS_PER_IMAGE
            return self.estimate.add(line_bytes - in_base64, extra_tokens=images, lane=lane)

        self._files[lane].add(line_for, key, weigh)
        self._write_spares(request, key)

    def _write_spares(self, request: Request, key: object) -> None:
        for spare, file in zip(self._spares, self._spare_files, strict=True):
            line = spare.codec.encode(request, custom_id(spare.nonce, request.request_id))
            ShardFill(spare.codec.limits).starts_new(len(line), key)  # refuses what that provider cannot take
            file.write(line)

    def finish(self, configuration: str) -> Plan:
        """Close all files. The draft can still be discarded."""
        if self._manifest is None:  # not even a schema came
            self._start(pa.schema([(name, pa.string()) for name in self._columns_of_nothing()]))
        shards = [shard for files in self._files.values() for shard in files.close()]
        for files in self._files.values():
            self.estimate.add_surcharge(files.surcharge_usd)
        self._stack.close()
        return Plan(
            shards=shards,
            rows=self._digest.rows,
            requests=self._seen.count,
            reused=self._reused,
            fingerprint=self._digest.fingerprint(configuration),
        )

    def _columns_of_nothing(self) -> Iterator[str]:
        labeling = self._labeling
        yield from dict.fromkeys([labeling.key, *labeling.keep, *sorted(labeling.prompt.columns() or ())])

    def only_rows(self, plan: Plan) -> Plan:
        """The plan without anything to send: all of its requests have their outcome already."""
        self._discard_requests()
        return replace(plan, shards=[], reused=plan.requests)

    def _discard_requests(self) -> None:
        for files in self._files.values():
            files.discard()
        for spare in self._spares:
            self._payloads.delete(spare.path)

    def replace_manifest(self, path: str) -> None:
        """Put this draft's manifest in the place of an older one of the same keys and requests."""
        assert self._schema is not None
        with self._payloads.table_writer(path, self._schema) as out:
            for batch in self._payloads.iter_batches(self._manifest_path):
                out.write_batch(batch)

    def discard(self) -> None:
        """Remove every file of this draft."""
        self._stack.close()
        self._discard_requests()
        self._payloads.delete(self._manifest_path)


def _rows(batch: pa.RecordBatch, columns: Sequence[str]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Slices of the rows as dicts of these columns, each with its start: many live objects keep Python's GC busy."""
    read = batch.select(list(columns))
    for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
        some = read.slice(start, _ROWS_AT_ONCE)
        yield start, some.to_pylist() if columns else [{}] * min(_ROWS_AT_ONCE, batch.num_rows - start)
