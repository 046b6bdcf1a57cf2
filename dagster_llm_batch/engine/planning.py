"""From rows to stored shards: render, dedupe, encode, split, count. Writes payload files; sends nothing.

    rows ─▶ Draft.add ─▶ request files (a shard each) + manifest (row -> request) ─▶ Draft.finish

One pass over the rows, in constant memory but for one digest and one key a row. A draft that is refused, or turns
out to be known already, is discarded without a trace.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from dagster_llm_batch.core.identity import RowsDigest, custom_id, request_digest
from dagster_llm_batch.core.pricing import Estimate, Weight
from dagster_llm_batch.core.prompt import ImageLoader
from dagster_llm_batch.core.rows import KeyGuard, record_batches
from dagster_llm_batch.core.seen import Seen
from dagster_llm_batch.core.sharding import ShardFill
from dagster_llm_batch.engine.definition import Labeling
from dagster_llm_batch.engine.rendering import Rendering, columns_of_nothing, images_of
from dagster_llm_batch.engine.shards import ShardFiles
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.storage.payloads import PayloadStore, PayloadWriter
from dagster_llm_batch.storage.records import Shard
from dagster_llm_batch.types import Lane, Request

__all__ = ["Draft", "Plan", "Spare"]


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

    _images_of = staticmethod(images_of)

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
        self._rendering: Rendering | None = None

    def add_rows(self, rows: Any) -> None:
        """Take all rows. Raises InputError or ConfigError; then `discard`."""
        for batch in record_batches(rows):
            self.add(batch)

    def add(self, batch: pa.RecordBatch) -> None:
        """Take more rows. Raises InputError or ConfigError; then `discard`."""
        keys = self._keys.check(batch)
        if self._rendering is None:
            self._start(Rendering(self._labeling, batch.schema, self._load_image))
        assert self._rendering is not None
        self._rendering.check(batch)
        request_ids: list[str] = []
        lanes = iter(self._rendering.lanes(batch))
        for these, requests in self._rendering.requests(batch, keys):
            ids = [request.request_id for request in requests]
            for request, key, lane, is_new in zip(requests, these, lanes, self._seen.new(ids), strict=False):
                self._digest.add(key, request.request_id)
                if is_new:
                    self._write(request, key, lane)
            request_ids += ids
        self._manifest.write_table(self._rendering.manifest(batch, request_ids))

    def _start(self, rendering: Rendering) -> None:
        self._rendering = rendering
        self._manifest = self._stack.enter_context(
            self._payloads.table_writer(self._manifest_path, rendering.manifest_schema)
        )
        self._spare_files = [self._stack.enter_context(self._payloads.writer(one.path)) for one in self._spares]

    def _write(self, request: Request, key: object, lane: Lane) -> None:
        if request.request_id in self._not_asked:
            self._reused += 1
            if not self._not_asked[request.request_id]:  # the answer may be none
                self._write_spares(request, key)
            return

        def line_for(nonce: str) -> bytes:
            return self._codec.encode(request, custom_id(nonce, request.request_id))

        def weigh(line_bytes: int) -> Weight:
            image_bytes, image_tokens = self._images_of(request)
            return self.estimate.add(line_bytes - image_bytes, extra_tokens=image_tokens, lane=lane)

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
            self._start(Rendering(self._labeling, columns_of_nothing(self._labeling), self._load_image))
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
        assert self._rendering is not None
        with self._payloads.table_writer(path, self._rendering.manifest_schema) as out:
            for batch in self._payloads.iter_batches(self._manifest_path):
                out.write_batch(batch)

    def discard(self) -> None:
        """Remove every file of this draft."""
        self._stack.close()
        self._discard_requests()
        self._payloads.delete(self._manifest_path)
