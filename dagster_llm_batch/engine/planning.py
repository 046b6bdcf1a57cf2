"""From rows to stored shards: render, dedupe, encode, split, count. Writes payload files; sends nothing.

    rows ─▶ Draft.add ─▶ request files (a shard each) + manifest (row -> request) ─▶ Draft.finish

One pass over the rows, in constant memory but for one digest and one key a row. A draft that is refused, or turns
out to be known already, is discarded without a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pyarrow as pa

from dagster_llm_batch.core.identity import RowsDigest, custom_id, shard_nonce
from dagster_llm_batch.core.labeling import manifest_schema
from dagster_llm_batch.core.pricing import Estimate
from dagster_llm_batch.core.prompt import ImageLoader, Renderer
from dagster_llm_batch.core.rows import KeyGuard
from dagster_llm_batch.core.sharding import ShardFill
from dagster_llm_batch.engine.definition import Labeling
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.storage.payloads import PayloadStore, PayloadWriter
from dagster_llm_batch.storage.records import Shard
from dagster_llm_batch.types import Limits, Request

__all__ = ["RAW", "RESULTS", "Draft", "Plan", "ShardFiles", "beside"]

REQUESTS, RAW, RESULTS = ".requests.jsonl.zst", ".raw.jsonl.zst", ".results.parquet"
"""What a shard's files end with; they differ in nothing else."""

_TOKENS_PER_IMAGE = 1_000  # providers count an image as some hundred to some thousand tokens, whatever its bytes


def beside(shard: Shard, ending: str) -> str:
    """Another file of the same shard."""
    return shard.path.removesuffix(REQUESTS) + ending


class ShardFiles:
    """Writes lines into request files, a new one whenever the current is full. `shards` holds what was closed."""

    def __init__(
        self, payloads: PayloadStore, limits: Limits, submission_id: str, wave: int, path_of: Callable[[str], str]
    ) -> None:
        self.shards: list[Shard] = []
        self._payloads = payloads
        self._fill = ShardFill(limits)
        self._submission_id = submission_id
        self._wave = wave
        self._path_of = path_of
        self._stack = ExitStack()
        self._writer: PayloadWriter | None = None
        self._cost_usd: Decimal | None = Decimal(0)

    def add(self, line_for: Callable[[str], bytes], key: object, cost_of: Callable[[int], Decimal | None]) -> None:
        """Write one request. `line_for` makes its line from a shard's nonce; all nonces are of one length."""
        line = line_for(self._nonce)
        if self._fill.starts_new(len(line), key):
            if self._writer is not None:
                self._close()
                line = line_for(self._nonce)
            self._cost_usd = Decimal(0)
            self._writer = self._stack.enter_context(self._payloads.writer(self._request_path))
        assert self._writer is not None
        self._writer.write(line)
        cost = cost_of(len(line))
        self._cost_usd = None if cost is None or self._cost_usd is None else self._cost_usd + cost

    @property
    def _nonce(self) -> str:
        return shard_nonce(self._submission_id, self._wave, len(self.shards))

    @property
    def _request_path(self) -> str:
        return self._path_of(f"wave-{self._wave}-{len(self.shards):04d}{REQUESTS}")

    def _close(self) -> None:
        writer, path, nonce = self._writer, self._request_path, self._nonce
        assert writer is not None
        self._stack.close()
        self._writer = None
        self.shards.append(
            Shard(
                shard_id=nonce[1:],
                submission_id=self._submission_id,
                wave=self._wave,
                number=len(self.shards),
                nonce=nonce,
                requests=writer.lines,
                bytes=writer.bytes,
                path=path,
                digest=writer.digest,
                estimated_usd=self._cost_usd,
            )
        )

    def close(self) -> list[Shard]:
        """End the last file and return all shards."""
        if self._writer is not None:
            self._close()
        return self.shards

    def discard(self) -> None:
        """Remove what was written."""
        with ExitStack() as last_first:
            for shard in self.shards:
                last_first.callback(self._payloads.delete, shard.path)
            if self._writer is not None:
                last_first.callback(self._payloads.delete, self._request_path)
            last_first.callback(self._stack.close)
        self.shards = []


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
        files: ShardFiles,
        estimate: Estimate,
        answered: Collection[str],
        manifest_path: str,
        load_image: ImageLoader | None,
    ) -> None:
        self.estimate = estimate
        self._labeling = labeling
        self._codec = codec
        self._payloads = payloads
        self._files = files
        self._answered = answered
        self._manifest_path = manifest_path
        self._load_image = load_image
        self._keys = KeyGuard(labeling.key)
        self._digest = RowsDigest()
        self._known: set[str] = set()
        self._reused = 0
        self._stack = ExitStack()
        self._manifest: Any = None
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
        read = batch.select(list(self._renderer.columns)) if self._renderer.columns else None
        rows = [{}] * len(keys) if read is None else read.to_pylist()
        request_ids = []
        for key, row in zip(keys, rows, strict=True):
            request = self._renderer.render(row, key)
            self._digest.add(key, request.request_id)
            request_ids.append(request.request_id)
            if request.request_id not in self._known:
                self._known.add(request.request_id)
                self._write(request, key)
        own = [batch.column(name) for name in self._schema.names[:-1]]
        self._manifest.write_table(self._manifest_table(own, request_ids))

    @property
    def _needed(self) -> set[str]:
        assert self._schema is not None
        assert self._renderer is not None
        return {*self._schema.names[:-1], *self._renderer.columns}

    def _start(self, rows: pa.Schema) -> None:
        labeling = self._labeling
        lacking = sorted(set(labeling.keep) - set(rows.names))
        if lacking:
            msg = f"keep names {lacking}, which the rows do not have. Columns of the rows: {', '.join(rows.names)}."
            raise InputError(msg)
        self._renderer = labeling.prompt.renderer(rows.names, self._load_image)
        self._schema = manifest_schema(rows, labeling.key, labeling.keep)
        self._manifest = self._stack.enter_context(self._payloads.table_writer(self._manifest_path, self._schema))

    def _manifest_table(self, own: list[pa.Array], request_ids: list[str]) -> pa.Table:
        assert self._schema is not None
        try:
            columns = [column.cast(field.type) for column, field in zip(own, self._schema, strict=False)]
        except pa.ArrowException as error:
            msg = f"A later batch of rows has other column types than the first, and cannot be converted: {error}"
            raise InputError(msg) from error
        return pa.table([*columns, pa.array(request_ids, pa.string())], schema=self._schema)

    def _write(self, request: Request, key: object) -> None:
        if request.request_id in self._answered:
            self._reused += 1
            return

        def line_for(nonce: str) -> bytes:
            return self._codec.encode(request, custom_id(nonce, request.request_id))

        def cost_of(line_bytes: int) -> Decimal | None:
            in_base64 = sum((len(image.data) + 2) // 3 * 4 for image in request.images if image.data is not None)
            return self.estimate.add(line_bytes - in_base64, extra_tokens=len(request.images) * _TOKENS_PER_IMAGE)

        self._files.add(line_for, key, cost_of)

    def finish(self, configuration: str) -> Plan:
        """Close all files. The draft can still be discarded."""
        if self._manifest is None:  # not even a schema came
            self._start(pa.schema([(name, pa.string()) for name in self._columns_of_nothing()]))
        shards = self._files.close()
        self._stack.close()
        return Plan(
            shards=shards,
            rows=self._digest.rows,
            requests=len(self._known),
            reused=self._reused,
            fingerprint=self._digest.fingerprint(configuration),
        )

    def _columns_of_nothing(self) -> Iterator[str]:
        labeling = self._labeling
        yield from dict.fromkeys([labeling.key, *labeling.keep, *sorted(labeling.prompt.columns() or ())])

    def only_rows(self, plan: Plan) -> Plan:
        """The plan without anything to send: all of its requests have their outcome already."""
        self._files.discard()
        return replace(plan, shards=[], reused=plan.requests)

    def replace_manifest(self, path: str) -> None:
        """Put this draft's manifest in the place of an older one of the same keys and requests."""
        assert self._schema is not None
        with self._payloads.table_writer(path, self._schema) as out:
            for batch in self._payloads.iter_batches(self._manifest_path):
                out.write_batch(batch)

    def discard(self) -> None:
        """Remove every file of this draft."""
        self._files.discard()
        self._stack.close()
        self._payloads.delete(self._manifest_path)
