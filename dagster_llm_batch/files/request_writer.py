"""From rows to stored shards: render, dedupe, encode, split, count. Writes payload files; sends nothing.

    rows ─▶ RequestSource ─▶ Draft.add_rows ─▶ request files (a shard each) + manifest (row -> request) ─▶ Draft.finish

A draft makes one pass over the rows, in constant memory: many digests of requests and key hashes go to unnamed
temporary files. A draft that is refused, or already known, is discarded and leaves no file behind.

A draft decides the order, the duplicates, the lanes, the shards and the estimate. Its RequestSource decides where the
rows are rendered and the files are written: LocalSource does it in this process, WorkerSource (request_parts.py) has
workers do it. Rendering a batch of rows needs no other batch, so workers can do it anywhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from functools import cached_property, partial
from heapq import nlargest
from itertools import chain, groupby
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

import pyarrow as pa

from dagster_llm_batch.core.dedupe import Seen
from dagster_llm_batch.core.identity import RowBlocks, RowsDigest, custom_id, packed
from dagster_llm_batch.core.keys import ErasedKeys, KeyGuard, keys_of
from dagster_llm_batch.core.label_join import UNSENT, UNSENT_FIELD
from dagster_llm_batch.core.memory import release_memory
from dagster_llm_batch.core.pricing import Estimate
from dagster_llm_batch.core.row_files import RowFiles
from dagster_llm_batch.core.rows import BATCH_ROWS, record_batches
from dagster_llm_batch.core.sharding import ShardFill
from dagster_llm_batch.core.token_counts import InputCounter, InputCounts
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.files.request_files import (
    BLOCKS,
    DEFINITION,
    ShardFiles,
    WrittenLines,
    definition_in,
    facts_in,
)
from dagster_llm_batch.files.request_source import RenderedBatch, RenderedChunk, RenderedRequests, RequestSource, Spare
from dagster_llm_batch.files.row_renderer import RowRenderer, reasons_of
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.payloads import PayloadStore, unnamed_file
from dagster_llm_batch.types import Lane, Request

if TYPE_CHECKING:
    from dagster_llm_batch.files.audited_requests import AuditedRequests
    from dagster_llm_batch.files.document_files import DocumentFiles
    from dagster_llm_batch.files.earlier_rows import EarlierRows

__all__ = [
    "COUNTS",
    "ERASED_ROWS",
    "MASKED",
    "NO_UNREADABLE",
    "SKIPPED",
    "UNREADABLE_ROWS",
    "Draft",
    "Drafted",
    "KnownIds",
    "LocalSource",
    "LongRow",
    "UnreadableRows",
    "rendered_chunk",
]

# Rows of the manifest that are held until more come.
_HELD_BYTES = 1 << 21
SKIPPED, ERASED_ROWS, UNREADABLE_ROWS = "llm_batch.skipped", "llm_batch.erased", "llm_batch.unreadable"
"""Keys in a manifest's metadata for the numbers of empty rows, of rows that it lacks since they were erased, and of
rows with unreadable files; a number of 0 is left out."""

MASKED = "llm_batch.masked"
"""In a manifest's metadata the number of masked values by kind, as JSON; absent without a mask."""

COUNTS = (SKIPPED, ERASED_ROWS, UNREADABLE_ROWS)
"""All of them."""

# This many of the longest requests are reported before they are sent.
_LONGEST = 5


class KnownIds(Protocol):
    """The requests that earlier submissions have asked."""

    def find(self, ids: Sequence[str]) -> Sequence[bool | None]:
        """Return of each request True if it is answered, False if it may still be, and None if it is to be asked."""
        ...


@dataclass(frozen=True)
class Drafted:
    """The result of a finished draft.

    Attributes:
        shards: The shards to send.
        rows: All rows.
        skipped: Rows that are empty, and not sent.
        unreadable: Rows whose images or documents cannot be read, and that are not sent.
        erased_rows: Rows that came, and were left out since they were erased.
        requests: Different requests among the others.
        reused: Requests that need not be sent.
        fingerprint: See core/identity.py.
        longest: The longest requests to be sent, longest first.
        audited: The requests of a labeling with an audit, of which no shard is written yet; None without one.
        uploads: The documents that are uploaded before, by name, with their bytes.
    """

    shards: list[Shard]
    rows: int
    skipped: int
    unreadable: UnreadableRows
    erased_rows: int
    requests: int
    reused: int
    fingerprint: str
    longest: Sequence[LongRow]
    audited: AuditedRequests | None = None
    uploads: Mapping[str, int] = field(default_factory=dict)


class UnreadableRows(NamedTuple):
    """Number of rows that are not sent since their files cannot be read, and the reason of the first of them."""

    rows: int = 0
    reason: str = ""


NO_UNREADABLE = UnreadableRows()


class LongRow(NamedTuple):
    """A row with a long request: its expected tokens, and its key."""

    tokens: int
    key: Any


def rendered_chunk(
    row_ids: Sequence[str | None],
    requests: RenderedRequests,
    keys: Sequence[Any],
    lanes: Sequence[Lane],
    unsent: Mapping[int, str],
) -> RenderedChunk:
    """Return a chunk of the requests of these rows, with the keys and lanes of those that are sent."""
    if None not in row_ids:
        return RenderedChunk(row_ids, requests, keys, lanes)
    places = [at for at, row_id in enumerate(row_ids) if row_id is not None]
    return RenderedChunk(row_ids, requests, [keys[at] for at in places], [lanes[at] for at in places], unsent)


class Draft:
    """One submission during its planning. Discard it if one of its methods raises.

    Args:
        labeling: The questions about each row.
        source: Renders the rows and writes the request files.
        payloads: The store for the manifest, from which files are also removed.
        files: The shards of each lane. They write through `source.writer`.
        spares: Files with all requests for each fallback model.
        estimate: Receives the tokens and the cost of the requests to send.
        known: The requests that are not sent again; None if this is the first submission.
        manifest_path: The path of the manifest.
        few_rows: The most keys and request_ids that are kept in memory; more of them go to files.
        new_file: Makes such a file.
        audited: Takes all requests, instead of `files`; its file is the first of `spares`. None without an audit.
        documents: The documents that are uploaded before the requests are sent; None: they are in the requests.
    """

    def __init__(
        self,
        labeling: Labeling,
        source: RequestSource,
        payloads: PayloadStore,
        files: Mapping[Lane, ShardFiles],
        spares: Sequence[Spare],
        estimate: Estimate,
        known: KnownIds | None,
        manifest_path: str,
        *,
        few_rows: int = 1 << 15,
        new_file: Callable[[], IO[bytes]] = unnamed_file,
        audited: AuditedRequests | None = None,
        documents: DocumentFiles | None = None,
    ) -> None:
        self._documents = documents
        self.estimate = estimate
        self._audited = audited
        self._labeling = labeling
        self._source = source
        self._payloads = payloads
        self._files = files
        self._spares = spares
        self._known = known
        self._manifest_path = manifest_path
        self._unnamed = unnamed = ExitStack()

        # A bound method in its place would make a cycle, and keep the draft's memory until the garbage collector runs.
        def new_unnamed() -> IO[bytes]:
            return unnamed.enter_context(new_file())

        self._keys = KeyGuard(labeling.key, new_unnamed, few=few_rows)
        self._seen = Seen(packed, new_unnamed, few=few_rows)
        self._reused = 0
        self._skipped = 0
        self._unreadable = UnreadableRows()
        self._longest: list[LongRow] = []
        self._stack = ExitStack()
        self._manifest: Any = None
        self._manifest_file = ExitStack()
        self._has_reasons = False
        self._held: list[pa.Table] = []
        self._held_rows = self._held_bytes = 0
        self._spare_files: list[Any] = []
        self._renderer: RowRenderer | None = None

    def add_rows(self, rows: Any) -> None:
        """Plan all rows. Raises InputError or ConfigError."""
        for batch in self._source.batches(rows):
            if self._renderer is None:
                self._start(batch.renderer)
            request_ids: list[str | None] = []
            unsent: dict[int, str] = {}
            for chunk in batch.chunks:
                self._add(chunk.requests, chunk.keys, chunk.lanes)
                self._skipped += len(chunk.row_ids) - len(chunk.keys) - len(chunk.unsent)
                unsent.update((len(request_ids) + at, reason) for at, reason in chunk.unsent.items())
                request_ids += chunk.row_ids
            if unsent:
                reason = self._unreadable.reason or next(iter(unsent.values()))
                self._unreadable = UnreadableRows(self._unreadable.rows + len(unsent), reason)
            if self._audited is not None:
                self._audited.add_rows(batch.rows, request_ids)
            self._write_manifest(batch.rows, batch.keys, request_ids, unsent)
            # The loop's variables would keep these rows in memory while the next ones are read.
            del batch

    def _write_manifest(
        self,
        batch: pa.RecordBatch,
        keys: Sequence[Any],
        request_ids: Sequence[str | None],
        unsent: Mapping[int, str],
    ) -> None:
        assert self._renderer is not None
        rows = self._renderer.manifest(batch, request_ids, unsent or None)
        # The manifest has the first batch's type: a later batch's text may have become a number there.
        own = rows.column(0)
        self._keys.add(keys if own.type == batch.column(self._labeling.key).type else own.to_pylist())
        # A small table must not keep the memory of its batch.
        self._held.append(_copied(rows) if len(rows) < BATCH_ROWS else rows)
        self._held_rows += len(rows)
        self._held_bytes += rows.nbytes
        if self._held_rows >= BATCH_ROWS or self._held_bytes >= _HELD_BYTES:
            self._write_held()
        else:
            # As after each write: release the memory in which a batch was read and rendered.
            release_memory()

    def _write_held(self) -> None:
        """Write the manifest's columns of small batches as one: each write has a fixed size besides its rows."""
        rows, self._held = pa.concat_tables(self._held, promote_options="default"), []
        self._held_rows = self._held_bytes = 0
        if UNSENT in rows.column_names:
            if not self._has_reasons:
                self._add_reasons()
            # A batch without reasons may have come first.
            rows = rows.select(self._own_schema.names)
        elif self._has_reasons:
            rows = rows.append_column(UNSENT_FIELD, pa.nulls(len(rows), UNSENT_FIELD.type))
        try:
            self._manifest.write_table(rows)
        except pa.ArrowInvalid as error:  # a full disk is an OSError
            names = ", ".join(rows.schema.names[:-1])
            msg = f"The columns that are kept ({names}) cannot be stored: {error}. Turn such a column into text."
            raise InputError(msg) from error

    @property
    def _own_schema(self) -> pa.Schema:
        assert self._renderer is not None
        schema = self._renderer.manifest_schema
        return schema.append(UNSENT_FIELD) if self._has_reasons else schema

    def _add_reasons(self) -> None:
        """Write the manifest again, with a column for the reasons of rows that are not sent."""
        self._manifest_file.close()
        self._has_reasons = True
        self._open_manifest()
        for batch in self._payloads.iter_batches(self._manifest_path):
            nothing = pa.nulls(len(batch), UNSENT_FIELD.type)
            self._manifest.write_batch(pa.record_batch([*batch.columns, nothing], schema=self._own_schema))

    def _open_manifest(self) -> None:
        writer = self._payloads.table_writer(self._manifest_path, self._own_schema, repeating=())
        self._manifest = self._manifest_file.enter_context(writer)

    def _start(self, renderer: RowRenderer) -> None:
        self._renderer = renderer
        self._manifest_file = self._stack.enter_context(ExitStack())
        self._open_manifest()
        self._spare_files = [self._stack.enter_context(self._source.writer(spare.path)) for spare in self._spares]

    def _add(self, requests: RenderedRequests, keys: Sequence[Any], lanes: Sequence[Lane]) -> None:
        """Write the requests that are new, in the order of their rows."""
        ids = requests.request_ids
        known = [None] * len(ids) if self._known is None else self._known.find(ids)
        new = [at for at, is_new in enumerate(self._seen.new(ids)) if is_new]
        unknown = [at for at in new if known[at] is None]
        self._reused += len(new) - len(unknown)
        if self._audited is not None:
            self._write_spares(requests, keys, unknown, self._spares[:1], first=0)
            self._write_spares(requests, keys, [at for at in new if not known[at]], self._spares[1:], first=1)
            counts = requests.take(unknown).tokens
            self._audited.add_requests([ids[at] for at in new], counts)
            found = map(LongRow, counts.expected, [keys[at] for at in unknown])
            self._longest = nlargest(_LONGEST, chain(self._longest, found), key=lambda row: row.tokens)
            return
        if self._spares:
            # A request in flight may still come back without an answer, and then a fallback is asked.
            self._write_spares(requests, keys, [at for at in new if not known[at]], self._spares, first=1)
        for lane, places in groupby(unknown, lanes.__getitem__):
            self._write(requests, keys, list(places), lane)

    def _write(self, requests: RenderedRequests, keys: Sequence[Any], places: Sequence[int], lane: Lane) -> None:
        requests, files = requests.take(places), self._files[lane]
        lines = requests.lines(0, files.nonce)
        counts = requests.tokens
        keys = [keys[at] for at in places]
        files.add(lines, keys, counts, partial(self.estimate.add, lane=lane))
        tokens = counts.expected
        if len(self._longest) < _LONGEST or max(tokens, default=0) > self._longest[-1].tokens:
            rows = map(LongRow, tokens, keys)
            self._longest = nlargest(_LONGEST, chain(self._longest, rows), key=lambda row: row.tokens)

    def _write_spares(
        self,
        requests: RenderedRequests,
        keys: Sequence[Any],
        places: Sequence[int],
        spares: Sequence[Spare],
        *,
        first: int,
    ) -> None:
        """Write requests to some spare files, for the models from the place `first` on."""
        for model, spare in enumerate(spares, start=first):
            file = self._spare_files[self._spares.index(spare)]
            lines = requests.take(places).lines(model, spare.nonce)
            ShardFill(spare.codec.limits).check(lines.sizes, [keys[at] for at in places])
            file.write(lines.with_nonce(spare.nonce))

    def finish(self, configuration: str) -> Drafted:
        """Close all files. The draft can still be discarded. Raises InputError for duplicate keys."""
        if self._held:
            self._write_held()
        self._keys.check(self._keys_again)
        if (count := self._unreadable.rows) and not self._seen.count:
            prompt = self._labeling.prompt
            roots = [root for root, names in (("image_root", prompt.images), ("file_root", prompt.documents)) if names]
            msg = (
                f"All rows were left out: {count:,} of {self._source.digest.rows:,} rows have a file that cannot be "
                f"read or sent. The first: {self._unreadable.reason}. Nothing was sent. Correct the column, or "
                f"{' or '.join(f'Prompt({root}=...)' for root in roots)}, or put the files there, and plan again."
            )
            raise InputError(msg)
        self._manifest.add_key_value_metadata(self._facts(self._labeling.definition))
        shards = [shard for files in self._files.values() for shard in files.end()]
        digests = self._source.write_files(shards, self._spares)
        shards = [shard for files in self._files.values() for shard in files.close(digests)]
        for files in self._files.values():
            self.estimate.add_surcharge(files.surcharge)
        self._stack.close()
        self._unnamed.close()
        self._source.close()
        return Drafted(
            shards=shards,
            rows=self._source.digest.rows,
            skipped=self._skipped,
            unreadable=self._unreadable,
            erased_rows=self._source.erased_rows,
            requests=self._seen.count,
            reused=self._reused,
            fingerprint=self._source.digest.fingerprint(configuration),
            longest=self._longest,
            audited=self._audited,
            uploads={} if self._documents is None else self._documents.sizes,
        )

    def _facts(self, definition: Mapping[str, Any]) -> dict[str, str]:
        """Return the facts about all rows for a manifest."""
        facts = {
            SKIPPED: self._skipped,
            ERASED_ROWS: self._source.erased_rows,
            UNREADABLE_ROWS: self._unreadable.rows,
            BLOCKS: self._source.blocks.text,
        }
        masked = {MASKED: json.dumps(dict(sorted(self._source.masked.items())))} if self._labeling.mask else {}
        return {
            DEFINITION: json.dumps(definition),
            **masked,
            **{name: str(fact) for name, fact in facts.items() if fact},
        }

    def _keys_again(self) -> Iterator[list[Any]]:
        self._stack.close()
        for batch in self._payloads.iter_batches(self._manifest_path, columns=[self._labeling.key]):
            yield batch.column(0).to_pylist()

    def discard_requests(self) -> None:
        """Remove the request files, and keep the manifest."""
        for files in self._files.values():
            files.discard()
        for spare in self._spares:
            self._payloads.delete(spare.path)
        if self._documents is not None:
            self._documents.discard()

    def replace_manifest(self, path: str) -> None:
        """Replace an older manifest of the same keys and requests, at `path`, by this draft's, where they differ."""
        facts = self._facts(self._labeling.definition_after(definition_in(self._payloads, path)))
        if BLOCKS in facts and facts == facts_in(self._payloads, path, [DEFINITION, MASKED, *COUNTS, BLOCKS]):
            return
        with self._payloads.table_writer(path, self._own_schema, repeating=()) as out:
            for batch in self._payloads.iter_batches(self._manifest_path):
                out.write_batch(batch)
            out.add_key_value_metadata(facts)

    def discard(self) -> None:
        """Remove every file of this draft, even where closing one of them fails because the disk is full."""
        with ExitStack() as last_first:
            last_first.callback(self._source.close)
            last_first.callback(self._payloads.delete, self._manifest_path)
            last_first.callback(self.discard_requests)
            last_first.callback(self._unnamed.close)
            last_first.callback(self._stack.close)
            if self._audited is not None:
                last_first.callback(self._audited.close)


def _copied(rows: pa.Table) -> pa.Table:
    """Return a copy of the rows in separate memory."""
    return pa.concat_tables([rows, rows.slice(0, 0)]).combine_chunks()


class LocalSource:
    """A RequestSource that renders and writes in this process.

    Args:
        labeling: The questions about each row.
        codecs: The codecs of the labeling's models, in their order.
        counter: Counts input tokens for the labeling's own model.
        payloads: The store for request files.
        row_files: How the images and documents of rows are read.
        erased: Keys of rows that are left out.
        earlier: Rows that were planned before.
        older: The definition by which older labels were made, whose prompt may read other columns; None without it.
        documents: See Draft.
    """

    def __init__(
        self,
        labeling: Labeling,
        codecs: Sequence[Codec],
        counter: InputCounter,
        payloads: PayloadStore,
        row_files: RowFiles,
        erased: ErasedKeys,
        earlier: EarlierRows | None = None,
        older: Labeling | None = None,
        documents: DocumentFiles | None = None,
    ) -> None:
        self.digest = RowsDigest()
        self.blocks = RowBlocks()
        self._documents = documents
        self._earlier = earlier
        self.masked: Counter[str] = Counter()
        self._came = 0
        self._erased = erased
        self._labeling = labeling
        self._codecs = codecs
        self._counter = counter
        self._payloads = payloads
        self._row_files = row_files
        self._columns_read = labeling.columns_read
        if older is not None:
            also = older.columns_read
            self._columns_read = None if self._columns_read is None or also is None else self._columns_read | also

    def batches(self, rows: Any) -> Iterator[RenderedBatch]:
        """See RequestSource.batches."""
        renderer: RowRenderer | None = None
        batches = record_batches(rows, self._columns_read)
        if self._labeling.mask is not None:
            # Before any other code sees the rows: everything stored, sent or logged comes from these.
            batches = self._labeling.mask.stream(batches, self.masked)
        for batch in batches:
            # A pandas frame without rows may come without columns, too.
            if batch.num_columns or batch.num_rows:
                self._came += batch.num_rows
                batch = self._erased.without(batch, self._labeling.key)  # noqa: PLW2901 - the others must not stay
                keys = keys_of(batch, self._labeling.key)
                renderer = renderer or self._renderer(batch.schema)
                renderer.check(batch)
                yield RenderedBatch(renderer, batch, keys, self._requests(renderer, batch, keys))
                del keys
            # The loop's variables would keep these rows in memory while the next ones are read.
            del batch
        if renderer is None:
            columns = self._labeling.columns_of_nothing
            nothing = pa.RecordBatch.from_pylist([], schema=columns)
            yield RenderedBatch(self._renderer(columns), nothing, [], iter(()))

    @property
    def erased_rows(self) -> int:
        """See RequestSource.erased_rows."""
        return self._came - self.digest.rows

    def _renderer(self, columns: pa.Schema) -> RowRenderer:
        return RowRenderer(self._labeling, columns, self._row_files)

    def _requests(self, renderer: RowRenderer, batch: pa.RecordBatch, keys: Sequence[Any]) -> Iterator[RenderedChunk]:
        lanes = renderer.lanes(batch)
        for start in range(0, batch.num_rows, renderer.block_rows):
            block = batch.slice(start, renderer.block_rows)
            end = start + block.num_rows
            digest = renderer.digest(block) if renderer.has_blocks else None
            known = None if digest is None or self._earlier is None else self._earlier.find(digest, block.num_rows)
            if known is None:
                total, chunks = 0, self._rendered(renderer, block, keys[start:end])
            else:
                earlier = known.chunks(renderer, block, keys[start:end], self._of)
                total, chunks = known.total, ((row_ids, asked, {}) for row_ids, asked in earlier)
                self.digest.add_sum(total, block.num_rows)
            for row_ids, asked, unsent in chunks:
                end = start + len(row_ids)
                if known is None:
                    total += self.digest.add(keys[start:end], row_ids)
                if unsent and digest is not None:
                    # Such a block is rendered again, which finds the reasons again.
                    digest = bytes(len(digest))
                yield rendered_chunk(row_ids, asked, keys[start:end], lanes[start:end], unsent)
                start = end  # noqa: PLW2901 - the next block starts where this one ends
            if digest is not None:
                self.blocks.add(digest, block.num_rows, total)

    def _rendered(
        self, renderer: RowRenderer, block: pa.RecordBatch, keys: Sequence[Any]
    ) -> Iterator[tuple[Sequence[str | None], RenderedRequests, Mapping[int, str]]]:
        for _, rendered in renderer.requests(block, keys):
            row_ids = [request.request_id if isinstance(request, Request) else None for request in rendered]
            asked = [request for request in rendered if isinstance(request, Request)]
            # Mostly all are requests.
            yield row_ids, self._of(asked), {} if len(asked) == len(rendered) else reasons_of(rendered)

    def _of(self, requests: Sequence[Request]) -> LocalRequests:
        return LocalRequests(self._codecs, self._counter, requests, self._documents)

    def writer(self, path: str) -> AbstractContextManager[Any]:
        """See RequestSource.writer."""
        return self._payloads.writer(path)

    def write_files(self, shards: Sequence[Shard], spares: Sequence[Spare]) -> Mapping[str, str]:  # noqa: ARG002 - done
        """See RequestSource.write_files: `writer` has written everything."""
        return {}

    def close(self) -> None:
        """See RequestSource.close."""
        if self._earlier is not None:
            self._earlier.close()


@dataclass(frozen=True)
class LocalRequests:
    """Requests that were rendered in this process."""

    codecs: Sequence[Codec]
    counter: InputCounter
    requests: Sequence[Request]
    documents: DocumentFiles | None = None

    @cached_property
    def request_ids(self) -> list[str]:
        """See RenderedRequests.request_ids."""
        return [request.request_id for request in self.requests]

    @cached_property
    def tokens(self) -> InputCounts:
        """See RenderedRequests.tokens."""
        return self.counter.count(self.requests)

    def take(self, places: Sequence[int]) -> LocalRequests:
        """See RenderedRequests.take."""
        return LocalRequests(self.codecs, self.counter, [self.requests[at] for at in places], self.documents)

    def lines(self, model: int, nonce: str) -> WrittenLines:
        """See RenderedRequests.lines."""
        encode = self.codecs[model].encode
        if self.documents is not None:
            for request in self.requests:
                self.documents.keep(request.documents)
        lines = [encode(request, custom_id(nonce, request.request_id)) for request in self.requests]
        return WrittenLines(self.request_ids, lines, nonce)
