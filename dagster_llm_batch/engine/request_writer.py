"""From rows to stored shards: render, dedupe, encode, split, count. Writes payload files; sends nothing.

    rows ─▶ Draft.add ─▶ request files (a shard each) + manifest (row -> request) ─▶ Draft.finish

One pass over the rows, in constant memory: the digests of requests, and a hash of each key, wait in unnamed files, once
there are many. A draft that is refused, or turns out to be known already, is discarded without a trace.

Rendering a batch of rows into requests needs no other batch, so that workers can do it wherever they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import groupby
from typing import IO, Any, Protocol

import pyarrow as pa

from dagster_llm_batch.core.dedupe import Seen
from dagster_llm_batch.core.identity import RowsDigest, custom_id, packed
from dagster_llm_batch.core.keys import KeyGuard, is_key_type, keys_of
from dagster_llm_batch.core.label_join import manifest_schema
from dagster_llm_batch.core.pricing import Estimate, estimated_tokens
from dagster_llm_batch.core.prompt import ImageLoader
from dagster_llm_batch.core.rows import check_text, record_batches, values_of
from dagster_llm_batch.core.sharding import ShardFill
from dagster_llm_batch.engine.labeling import Labeling
from dagster_llm_batch.engine.request_files import Lines, ShardFiles, WrittenLines
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.payloads import PayloadStore, unnamed_file
from dagster_llm_batch.types import Lane, Request

__all__ = ["Draft", "Drafted", "Plan", "Rendering", "Spare", "columns_of_nothing", "columns_read", "images_of"]

_ROWS, _ROWS_WITH_IMAGES = 256, 8  # at once: their requests, and the lines of these, are in memory
_TOKENS_PER_IMAGE = 1_000  # providers count an image as some hundred to some thousand tokens, whatever its bytes


class Rendering:
    """Renders batches of rows with these columns. Raises InputError or ConfigError where the labeling names others.

    `manifest_schema` is what is kept of each row.
    """

    def __init__(self, labeling: Labeling, rows: pa.Schema, load_image: ImageLoader | None) -> None:
        urgent = [labeling.urgent] if labeling.urgent else []
        for argument, wanted in (("keep", labeling.keep), ("urgent", urgent)):
            if lacking := sorted(set(wanted) - set(rows.names)):
                columns = ", ".join(rows.names)
                msg = f"{argument} names {lacking}, which the rows do not have. Columns of the rows: {columns}."
                raise InputError(msg)
        self._urgent = labeling.urgent
        self._renderer = labeling.prompt.renderer(rows.names, load_image)
        self._at_once = _ROWS_WITH_IMAGES if labeling.prompt.images else _ROWS
        self.manifest_schema = manifest_schema(rows, labeling.key, labeling.keep)
        if not is_key_type(rows.field(labeling.key).type):  # there are no rows yet, and so no types
            self.manifest_schema = self.manifest_schema.set(0, pa.field(labeling.key, pa.string()))
        self._needed = {*self.manifest_schema.names[:-1], *self._renderer.columns, *urgent}

    def check(self, batch: pa.RecordBatch) -> None:
        """Refuse a batch without the columns that the first one has, or with values that have no stable text."""
        if lost := sorted(self._needed - set(batch.schema.names)):
            msg = f"A later batch of rows lacks the columns {lost}, which the first one has."
            raise InputError(msg)
        for name in self._needed:
            check_text(name, batch.schema.field(name).type)

    def requests(self, batch: pa.RecordBatch, keys: Sequence[Any]) -> Iterator[tuple[Sequence[Any], list[Request]]]:
        """The requests of the rows, some rows at once, with their keys: many live objects keep Python's GC busy."""
        read = batch.select(list(self._renderer.columns))
        for start in range(0, batch.num_rows, self._at_once):
            these = keys[start : start + self._at_once]
            yield these, self._renderer.requests(values_of(read.slice(start, self._at_once)), these)

    def lanes(self, batch: pa.RecordBatch) -> list[Lane]:
        """The lane of each row."""
        if self._urgent is None:
            return [Lane.BATCH] * batch.num_rows
        column = batch.column(self._urgent)
        if batch.num_rows and not pa.types.is_boolean(column.type) and not pa.types.is_null(column.type):
            msg = f"urgent names the column {self._urgent!r} of type {column.type}; it takes one of true and false."
            raise InputError(msg)
        return [Lane.REALTIME if flag else Lane.BATCH for flag in column.to_pylist()]

    def manifest(self, batch: pa.RecordBatch, request_ids: list[str]) -> pa.Table:
        """What is kept of the rows, and their requests."""
        own = [batch.column(name) for name in self.manifest_schema.names[:-1]]
        try:
            columns = [column.cast(field.type) for column, field in zip(own, self.manifest_schema, strict=False)]
        except pa.ArrowException as error:
            msg = f"A later batch of rows has other column types than the first, and cannot be converted: {error}"
            raise InputError(msg) from error
        for field, column in zip(self.manifest_schema, columns, strict=False):
            _check_text_is_text(field.name, column)
        return pa.table([*columns, pa.array(request_ids, pa.string())], schema=self.manifest_schema)


def _check_text_is_text(name: str, column: pa.Array) -> None:
    """Raise InputError for text that is no UTF-8: it would be stored, and stop what reads the labels after paying."""
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        msg = (
            f"The column '{name}' cannot be stored with the labels: {error}. Mend its values, or leave it out of keep."
        )
        raise InputError(msg) from error


def images_of(request: Request) -> tuple[int, int]:
    """Bytes of a request's line that are images, and the tokens that they are estimated to take."""
    if not request.images:
        return 0, 0
    in_base64 = sum((len(image.data) + 2) // 3 * 4 for image in request.images if image.data is not None)
    return in_base64, len(request.images) * _TOKENS_PER_IMAGE


def columns_read(labeling: Labeling) -> set[str] | None:
    """The columns of the rows that planning may read; None where the prompt takes whole rows."""
    names = labeling.prompt.names()
    urgent = [labeling.urgent] if labeling.urgent else []
    return None if names is None else {labeling.key, *labeling.keep, *urgent, *names}


def columns_of_nothing(labeling: Labeling) -> pa.Schema:
    """What rows would have if there were any: not even a schema came."""
    names = dict.fromkeys([labeling.key, *labeling.keep, *sorted(labeling.prompt.columns() or ())])
    return pa.schema([(name, pa.string()) for name in names])


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


class Drafted(Protocol):
    """Requests of some rows, rendered here or elsewhere. All but `at` speak of each, in their order."""

    @property
    def request_ids(self) -> Sequence[str]: ...

    @property
    def images(self) -> Sequence[tuple[int, int]] | None:
        """Bytes of the line that are images, and the tokens that they are estimated to take. None: there are none."""
        ...

    def at(self, places: Sequence[int]) -> Drafted:
        """Those at these places."""
        ...

    def lines(self, model: int, nonce: str) -> Lines:
        """Their lines for one of the labeling's models, by its place among them; `nonce` is what most will be under."""
        ...


class Draft:
    """One submission being planned. `writer` is what writes request files, where that is not the payload store."""

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
        writer: Callable[[str], AbstractContextManager[Any]] | None = None,
    ) -> None:
        self.estimate = estimate
        self._labeling = labeling
        self._codecs = [codec, *(spare.codec for spare in spares)]
        self._payloads = payloads
        self._writer = writer or payloads.writer
        self._files = files
        self._spares = spares
        self._not_asked = known  # request_id -> whether it is answered; else it is on its way
        self._manifest_path = manifest_path
        self._load_image = load_image
        self._unnamed = unnamed = ExitStack()

        def new_file() -> IO[bytes]:  # a method would hold the draft until the garbage collector's next round
            return unnamed.enter_context(unnamed_file())

        self._keys = KeyGuard(labeling.key, new_file)
        self._digest = RowsDigest()
        self._seen = Seen(packed, new_file)
        self._reused = 0
        self._stack = ExitStack()
        self._manifest: Any = None
        self._spare_files: list[Any] = []
        self._rendering: Rendering | None = None

    def add_rows(self, rows: Any) -> None:
        """Take all rows. Raises InputError or ConfigError; then `discard`."""
        for batch in record_batches(rows, columns_read(self._labeling)):
            if batch.num_columns or batch.num_rows:  # else a pandas frame of nothing, not even columns
                self.add(batch)
            del batch  # before the next one is read

    def add(self, batch: pa.RecordBatch) -> None:
        """Take more rows. Raises InputError or ConfigError; then `discard`."""
        keys = keys_of(batch, self._labeling.key)
        if self._rendering is None:
            rendering = Rendering(self._labeling, batch.schema, self._load_image)
            rendering.check(batch)  # before a file is begun with types that Parquet has no word for
            self._start(rendering)
        else:
            self._rendering.check(batch)
        assert self._rendering is not None
        request_ids: list[str] = []
        lanes = self._rendering.lanes(batch)
        for these, requests in self._rendering.requests(batch, keys):
            drafted = _Rendered(self._codecs, requests)
            self._digest.add(these, drafted.request_ids)
            start = len(request_ids)
            self._add(drafted, these, lanes[start : start + len(these)])
            request_ids += drafted.request_ids
        self._write_manifest(batch, keys, request_ids)

    def _write_manifest(self, batch: pa.RecordBatch, keys: Sequence[Any], request_ids: list[str]) -> None:
        assert self._rendering is not None
        rows = self._rendering.manifest(batch, request_ids)
        own = rows.column(0)  # of the first batch's type: a text may have become a number
        self._keys.add(keys if own.type == batch.column(self._labeling.key).type else own.to_pylist())
        try:
            self._manifest.write_table(rows)
        except pa.ArrowInvalid as error:  # a full disk is an OSError
            names = ", ".join(rows.schema.names[:-1])
            msg = f"What is kept of the rows ({names}) cannot be stored: {error}. Turn such a column into text."
            raise InputError(msg) from error

    def _start(self, rendering: Rendering) -> None:
        self._rendering = rendering
        self._manifest = self._stack.enter_context(
            self._payloads.table_writer(self._manifest_path, rendering.manifest_schema, repeating=())
        )
        self._spare_files = [self._stack.enter_context(self._writer(one.path)) for one in self._spares]

    def _add(self, drafted: Drafted, keys: Sequence[Any], lanes: Sequence[Lane]) -> None:
        """Write what of these requests is new, in the order of their rows."""
        ids, asked = drafted.request_ids, self._not_asked
        new = [at for at, is_new in enumerate(self._seen.new(ids)) if is_new]
        if self._spares:
            self._write_spares(drafted, keys, [at for at in new if not asked.get(ids[at])])  # the answer may be none
        unknown = [at for at in new if ids[at] not in asked]
        self._reused += len(new) - len(unknown)
        for lane, places in groupby(unknown, lanes.__getitem__):
            self._write(drafted, keys, list(places), lane)

    def _write(self, drafted: Drafted, keys: Sequence[Any], places: Sequence[int], lane: Lane) -> None:
        some, files = drafted.at(places), self._files[lane]
        lines = some.lines(0, files.nonce)
        if some.images is None:
            tokens = estimated_tokens(lines.sizes)
        else:
            texts = [size - image_bytes for size, (image_bytes, _) in zip(lines.sizes, some.images, strict=True)]
            tokens = [one + more for one, (_, more) in zip(estimated_tokens(texts), some.images, strict=True)]
        files.add(lines, [keys[at] for at in places], tokens, partial(self.estimate.add, lane=lane))

    def _write_spares(self, drafted: Drafted, keys: Sequence[Any], places: Sequence[int]) -> None:
        for model, (spare, file) in enumerate(zip(self._spares, self._spare_files, strict=True), start=1):
            lines = drafted.at(places).lines(model, spare.nonce)
            ShardFill(spare.codec.limits).check(lines.sizes, [keys[at] for at in places])
            file.write(lines.under(spare.nonce))

    def finish(self, configuration: str) -> Plan:
        """Close all files. The draft can still be discarded. Raises InputError for duplicate keys; then `discard`."""
        self._keys.check(self._keys_again)
        self._write_elsewhere()
        if self._manifest is None:  # not even a schema came
            self._start(Rendering(self._labeling, columns_of_nothing(self._labeling), self._load_image))
        shards = [shard for files in self._files.values() for shard in files.close()]
        for files in self._files.values():
            self.estimate.add_surcharge(files.surcharge_usd)
        self._stack.close()
        self._unnamed.close()
        return Plan(
            shards=shards,
            rows=self._digest.rows,
            requests=self._seen.count,
            reused=self._reused,
            fingerprint=self._digest.fingerprint(configuration),
        )

    def _write_elsewhere(self) -> None:
        """Have request files written that `writer` does not write itself, before they are closed."""

    def _keys_again(self) -> Iterator[list[Any]]:
        self._stack.close()
        for batch in self._payloads.iter_batches(self._manifest_path, columns=[self._labeling.key]):
            yield batch.column(0).to_pylist()

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
        with self._payloads.table_writer(path, self._rendering.manifest_schema, repeating=()) as out:
            for batch in self._payloads.iter_batches(self._manifest_path):
                out.write_batch(batch)

    def discard(self) -> None:
        """Remove every file of this draft, also where a full disk does not let one of them be closed."""
        with ExitStack() as last_first:
            last_first.callback(self._payloads.delete, self._manifest_path)
            last_first.callback(self._discard_requests)
            last_first.callback(self._unnamed.close)
            last_first.callback(self._stack.close)


@dataclass(frozen=True)
class _Rendered:
    """Requests that were rendered here."""

    codecs: Sequence[Codec]
    requests: Sequence[Request]

    @cached_property
    def request_ids(self) -> list[str]:
        """See Drafted.request_ids."""
        return [request.request_id for request in self.requests]

    @property
    def images(self) -> list[tuple[int, int]] | None:
        """See Drafted.images."""
        if not any(request.images for request in self.requests):
            return None
        return [images_of(request) for request in self.requests]

    def at(self, places: Sequence[int]) -> _Rendered:
        """See Drafted.at."""
        return _Rendered(self.codecs, [self.requests[at] for at in places])

    def lines(self, model: int, nonce: str) -> WrittenLines:
        """See Drafted.lines."""
        encode = self.codecs[model].encode
        lines = [encode(request, custom_id(nonce, request.request_id)) for request in self.requests]
        return WrittenLines(self.request_ids, lines, nonce)
