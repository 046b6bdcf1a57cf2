"""The labels of a complete submission, with the outcomes and costs of its requests. Sends nothing.

Answers come from the submission's own shards, and from the shards of submissions whose answers it reuses.

Tables larger than memory are split by request, and labeled part by part. A request_id is a digest, so its first digits
spread the rows evenly, and all rows of one request are in the same part. Within a part, rows keep their order. If each
row has one result, and both come in the same order, they are read side by side (`pair_rows`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from itertools import accumulate, chain, groupby, islice, pairwise, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.label_join import Labeled, Part, label, pair_rows, with_shared
from dagster_llm_batch.core.memory import release_all_memory, release_memory
from dagster_llm_batch.core.pricing import sum_costs
from dagster_llm_batch.core.result_schema import RESULT_SCHEMA, SHARED
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import PayloadError
from dagster_llm_batch.files.merged_results import FEWEST_MERGED, MERGED_WAVE, MergedResults
from dagster_llm_batch.files.shard_files import OLDER
from dagster_llm_batch.loop.collect import Collector
from dagster_llm_batch.loop.deployment import PART_ROWS
from dagster_llm_batch.loop.status import advise_on_lost_levels, advise_on_lost_manifest, advise_on_lost_shares
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Settlement, Shard, Submission, SubmissionState
from dagster_llm_batch.storage.payloads import PayloadStore, temporary_folder
from dagster_llm_batch.types import UNGROUNDED, Lane, Outcome, PriceBasis

if TYPE_CHECKING:
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.core.quoted_columns import QuotedColumns
    from dagster_llm_batch.core.shares import AuditedAnswers

__all__ = [
    "ROWS_AT_ONCE",
    "SHARD",
    "Answers",
    "LabelAssembler",
    "label_results",
    "part_names",
    "read_part",
    "scatter",
]

_T = TypeVar("_T")

ROWS_AT_ONCE = 8_192
"""Rows of a batch to scatter. In smaller batches, the slices take longer than their rows."""

# Rows that are read together with their results. With fewer, the overhead of a part exceeds its rows.
_PAIRS_AT_ONCE = 4_096

_DIGITS = 4

# Each part is an open file while rows are scattered, and its number a byte.
_MOST_PARTS = 256

# A part and its sources are in memory several times while it is assembled.
_PART_BYTES = 1 << 23

# A slice of a batch is written as many small pieces.
_BUFFER_BYTES = 1 << 13


def part_names(rows: int, part_rows: int = PART_ROWS) -> list[str]:
    """Return the first digits of the least request_id in each part of a table with so many rows."""
    count = min(max(-(-rows // part_rows), 1), _MOST_PARTS)
    return [f"{(number << 4 * _DIGITS) // count:0{_DIGITS}x}" for number in range(count)]


def scatter(batches: Iterable[pa.RecordBatch], schema: pa.Schema, by: str, names: list[str], folder: Path) -> None:
    """Write each row into the file of its part, in the new `folder`."""
    folder.mkdir()
    least = _firsts(pa.array(names))
    with ExitStack() as files:
        parts = [_part_writer(files, folder / name, schema) for name in names]
        for batch in batches:
            numbers = (np.searchsorted(least, _firsts(batch.column(by)), "right") - 1).astype(np.uint8)
            # numpy sorts bytes by radix, in linear time.
            sorted_batch = batch.take(pa.array(np.argsort(numbers, kind="stable")))
            ends = np.cumsum(np.bincount(numbers, minlength=len(names))).tolist()
            for part, (start, end) in zip(parts, pairwise([0, *ends]), strict=True):
                if start < end:
                    part.write_batch(sorted_batch.slice(start, end - start))
            # Otherwise they would be in memory while the next batch is read.
            del batch, sorted_batch


def _firsts(request_ids: pa.Array) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """Return the first digits of each request_id, as numbers with the same order."""
    # Unsent rows have no request_id; they are in the first part.
    digits = pc.fill_null(pc.utf8_slice_codeunits(request_ids, 0, _DIGITS), "0" * _DIGITS)
    return np.frombuffer(digits.buffers()[2], ">u4", len(digits)).astype(np.uint32)


def _part_writer(files: ExitStack, path: Path, schema: pa.Schema) -> pa.RecordBatchWriter:
    sink = files.enter_context(pa.BufferedOutputStream(files.enter_context(pa.OSFile(str(path), "wb")), _BUFFER_BYTES))
    return files.enter_context(pa.ipc.new_stream(sink, schema))


def read_part(folder: Path, name: str) -> pa.Table:
    """Return all rows of a part."""
    with pa.OSFile(str(folder / name)) as file:
        return pa.ipc.open_stream(file).read_all()


# The id of the shard that stands for older answers that stay.
_KEPT = "older"

_ID, _OUTCOME, _REALTIME = "llm_request_id", "llm_outcome", "llm_realtime_usd"
# The column with the place of each row in its manifest, while labels become rejects.
_PLACE = "llm_place"


def label_results(
    manifest: pa.Table,
    results: Iterable[pa.Table],
    response: pa.Schema,
    levels: Levels | None,
    are_oracles: Iterable[bool],
    quoted_columns: QuotedColumns | None,
    shares: AuditedAnswers | None = None,
    *,
    version: str,
    run_id: str,
) -> Labeled:
    """See `label`. `levels` belongs to a cascade. `are_oracles` is True for each result of its oracle.

    `shares` has redirected the rows of the manifest.
    """
    if shares is not None:
        results = shares.drop_twins(results)
    if levels is not None:
        copies = () if shares is None else (shares.apart, shares.reach, shares.why)
        results = levels.apply(manifest, zip(are_oracles, results, strict=True), *copies)
        response = pa.schema([*response, *levels.columns(response)])
    rejects_missing = quoted_columns is not None and quoted_columns.rejects_missing
    if rejects_missing:
        manifest = manifest.append_column(_PLACE, pa.array(np.arange(len(manifest))))
    labeled = label(manifest, results, response, prompt_version=version, run_id=run_id)
    labeled = labeled if shares is None else shares.arrange(labeled)
    if quoted_columns is None:
        return labeled
    labels = quoted_columns.add_to(labeled.labels)
    labeled = replace(labeled, labels=labels, quotes=quoted_columns.count(labels))
    return _reject_missing(labeled, quoted_columns) if rejects_missing else labeled


def _reject_missing(labeled: Labeled, quoted_columns: QuotedColumns) -> Labeled:
    """Move labels with a missing quote to the rejects, where rows keep their order. Both tables lose _PLACE.

    The request has succeeded, so retry rounds and later submissions do not ask it again.
    """
    reasons = quoted_columns.faults(labeled.labels)
    are_missing = pc.is_valid(reasons)
    labels, rejects = labeled.labels, labeled.rejects
    if moved := pc.sum(are_missing, min_count=0).as_py():
        rows = labels.filter(are_missing)
        own = {
            "llm_outcome": pa.repeat(pa.scalar(UNGROUNDED), moved),
            "llm_reason": reasons.drop_null(),
            "llm_reply": quoted_columns.replies(rows),
        }
        columns = [
            own[field.name].cast(field.type) if field.name in own else rows[field.name] for field in rejects.schema
        ]
        rejects = pa.concat_tables([rejects, pa.table(columns, schema=rejects.schema)]).sort_by(_PLACE)
        labels = labels.filter(pc.invert(are_missing))
    return replace(labeled, labels=labels.drop_columns([_PLACE]), rejects=rejects.drop_columns([_PLACE]))


SHARD = pa.field("llm_shard", pa.int32())
"""The number of a result's shard among the shards of all waves."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The stored answers to one submission's requests.

    `shards` are its own shards, and `part_rows` rows fit into memory. `levels` belongs to a cascade, `shares` to a
    labeling with near copies, or with older labels that may stay.
    """

    submission: Submission
    shards: Sequence[Shard]
    ledger: Ledger
    payloads: PayloadStore
    part_rows: int = PART_ROWS
    levels: Levels | None = None
    shares: AuditedAnswers | None = None

    def _asks_oracle(self, shard: Shard) -> bool:
        # Older labels that stay take precedence over answers of the model, as the oracle's do.
        return self.levels is not None and (shard.shard_id == _KEPT or self.levels.asks_oracle(shard.asked_of))

    @property
    def are_oracles(self) -> list[bool]:
        """For each wave: True if a cascade's oracle has answered it."""
        return [self._asks_oracle(wave[0]) for wave in self.waves]

    @cached_property
    def waves(self) -> list[list[Shard]]:
        """The collected shards with this submission's answers, oldest first. Each wave answers a request once.

        Waves that were planned but never sent are ignored; the previous outcome stands. Many small shards of reused
        answers may be read from one merged file: see `_merge`.
        """
        sources = reversed(self.submission.reused_from)
        of_sources = self.ledger.shards.of_submissions(self.submission.reused_from)
        others = [shard for source in sources for shard in of_sources[source] if shard.has_answers]
        shards = [
            *(self._kept_answers(self.shares) if self.shares is not None else ()),
            *self._merge(others),
            *(shard for shard in self.shards if shard.has_answers),
        ]
        if self.levels is not None:
            # Both models of a cascade may answer a request in one wave. The oracle's answers come last.
            shards.sort(key=lambda shard: self._asks_oracle(shard) and shard.shard_id != _KEPT)
        # Each merged copy is a group.
        of_wave = (
            (shard.submission_id, shard.wave or shard.results_path, self._asks_oracle(shard)) for shard in shards
        )
        pairs = groupby(zip(of_wave, shards, strict=True), key=lambda pair: pair[0])
        return [[shard for _, shard in wave] for _, wave in pairs]

    def _merge(self, shards: Sequence[Shard]) -> Sequence[Shard]:
        """Return these shards, or copies that replace several of them."""
        return shards

    def _kept_answers(self, shares: AuditedAnswers) -> list[Shard]:
        """Return a shard that stands for the older answers that stay after a change of the definition."""
        if not shares.keeps_file:
            return []
        # Like a merged copy, it has results of many shards.
        kept = Shard(
            shard_id=_KEPT,
            submission_id=self.submission.submission_id,
            wave=MERGED_WAVE,
            number=0,
            state=ShardState.COLLECTED,
            nonce="",
            requests=len(shares.copies_of),
            bytes=0,
            path="",
            digest="",
            results_path=f"{self.submission.folder}/{OLDER}",
        )
        return [kept]

    def count_outcomes(self) -> dict[str, int]:
        """Count the requests by outcome: SUCCEEDED if any result succeeded, else the outcome of the newest result."""
        if not self.waves:
            return {}
        counts: Counter[str] = Counter()
        # This path needs no join.
        if self._has_one_result_each:
            for shard in self.waves[0]:
                read = self.payloads.read_table(_path(shard), [_OUTCOME])[_OUTCOME]
                counts.update({count["values"]: count["counts"] for count in pc.value_counts(read).to_pylist()})
            # If lists of requests were lost, there may be fewer results.
            if counts.total() == self.submission.requests:
                return dict(counts)
            counts.clear()
        manifest_columns, result_columns = (_chosen(RESULT_SCHEMA, names) for names in ([_ID], [_ID, _OUTCOME]))
        if self.levels is not None:
            result_columns = self.schema_of(self.levels.read)
        for manifest, results in self.parts(manifest_columns, result_columns):
            requests = pc.unique(manifest[_ID]).drop_null()
            if self.shares is not None:
                results = self.shares.drop_twins(results)  # noqa: PLW2901
            if self.levels is not None:
                results = iter(self.levels.apply(manifest, zip(self.are_oracles, results, strict=True)))  # noqa: PLW2901
            newest = pa.concat_tables(reversed([*results]))
            good = newest.filter(pc.equal(newest[_OUTCOME], Outcome.SUCCEEDED.value))
            by_rank = pa.concat_tables([good, newest])
            outcomes = by_rank[_OUTCOME].take(pc.index_in(requests, by_rank[_ID].combine_chunks()))
            found = [outcome or Outcome.MISSING.value for outcome in outcomes.to_pylist()]
            counts.update(found)
            if self.shares is not None:
                # Requests that were not sent have the outcome of their leader.
                besides = self.shares.outcomes_besides
                for request_id, outcome in zip(requests.to_pylist(), found, strict=True):
                    counts[outcome] += besides.get(request_id, 0)
        return dict(counts)

    @property
    def _has_one_result_each(self) -> bool:
        """True if each request has exactly one result: there is one wave, without reused answers."""
        # If rows were erased, a result may exist only for another submission.
        is_own = not self.submission.reused_from and self.submission.tombstones is None and self.levels is None
        return is_own and (self.shares is None or not len(self.shares.pairs)) and len(self.waves) == 1

    def schema_of(self, columns: Sequence[str]) -> pa.Schema:
        """Return these columns of the stored results."""
        return _chosen(self.payloads.table_schema(_path(self.waves[0][0])), columns)

    def parts(self, manifest: pa.Schema, results: pa.Schema) -> Iterator[Part]:
        """Yield the manifest and the results of each wave, oldest first; large tables in parts.

        `manifest` and `results` are the columns to read.
        """
        names = self.part_names()
        are_pairs = len(names) > 1 and self._has_one_result_each and self.submission.requests == self.submission.rows
        at_once = min(_PAIRS_AT_ONCE if are_pairs else ROWS_AT_ONCE, self._rows_of_part)
        starts = accumulate(map(len, self.waves), initial=0)
        numbered = results.append(SHARD)
        own = self.payloads.iter_batches(self.submission.manifest, at_once, manifest.names)
        sources = [own if self.shares is None else map(self.shares.redirect, own)]
        schemas = [manifest if self.shares is None else self.shares.extend(manifest), *[numbered for _ in self.waves]]
        sources += [
            self._results(wave, numbered, start, at_once) for wave, start in zip(self.waves, starts, strict=False)
        ]
        if len(names) == 1:
            first, *rest = map(pa.Table.from_batches, sources, schemas)
            yield first, iter(rest)
            return
        if are_pairs:
            rows, answers = sources
            rows, answers = yield from pair_rows(rows, answers, _ID)
            if (batch := next(rows, None)) is None:
                return
            sources = [chain([batch], rows), answers]
        with temporary_folder() as root:
            folders = [root / str(number) for number in range(len(sources))]
            for schema, batches, folder in zip(schemas, sources, folders, strict=True):
                scatter(batches, schema, _ID, names, folder)
                release_all_memory()
            for name in names:
                yield read_part(folders[0], name), map(read_part, folders[1:], repeat(name))

    def part_names(self) -> list[str]:
        """Return the names of parts small enough that the manifest and the largest wave fit into memory."""
        waves = (sum(shard.requests for shard in wave) for wave in self.waves)
        return part_names(max(self.submission.rows, *waves, 0), self._rows_of_part)

    @cached_property
    def _rows_of_part(self) -> int:
        """The number of rows that fit into memory with their results: fewer if these are long, such as vectors."""
        row_bytes = self.payloads.row_bytes
        sizes = [(row_bytes(_path(wave[0])), sum(shard.requests for shard in wave)) for wave in self.waves]
        most = max(self.submission.rows, 1, *(requests for _, requests in sizes))
        # A table that grew for long has many waves, and each row has its result in one of them.
        in_all = sum(width * requests for width, requests in sizes) // most
        width = row_bytes(self.submission.manifest) + max(in_all, *(width for width, _ in sizes), 0)
        return max(min(self.part_rows, _PART_BYTES // width), 1)

    def _results(
        self, shards: Sequence[Shard], columns: pa.Schema, start: int, at_once: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield the shards' results in batches. The last column is the number of the shard, counted from `start`."""
        for number, shard in enumerate(shards, start):
            for batch in self.payloads.iter_batches(_path(shard), at_once, columns.names[:-1]):
                numbers = pa.repeat(pa.scalar(number, SHARD.type), len(batch))
                yield pa.record_batch([*batch.columns, numbers], schema=columns)
                del batch
            release_memory()


@dataclass(frozen=True, kw_only=True)
class LabelAssembler(Answers):
    """Assemble the labels of one submission from its answers."""

    labeling: Labeling
    collector: Collector
    merges: bool = True

    def _merge(self, shards: Sequence[Shard]) -> Sequence[Shard]:
        # Results of a cascade are ordered by level, too. A second reading needs the raw lines of each shard.
        if not self.merges or self.levels is not None or len(shards) < FEWEST_MERGED:
            return shards
        return MergedResults(self.payloads, self.collector.schema).merge(shards)

    def restore(self) -> int:
        """Make lost or damaged results again; see Collector.restore.

        Raises PayloadError if the manifest is lost, which only the rows can restore, or the decisions of a cascade.
        """
        if not self.payloads.is_whole(self.submission.manifest):
            meanwhile = "It maps rows to their answers. Nothing was changed"
            raise PayloadError(str(advise_on_lost_manifest(self.submission, meanwhile)))
        is_canceled = self.submission.state is SubmissionState.CANCELED
        if self.labeling.cascade is not None and self.levels is None and not is_canceled:
            # Without the decisions, each row would get the last answer, even an uncertain one.
            raise PayloadError(str(advise_on_lost_levels(self.submission)))
        if self.labeling.audited is not None and self.shares is None and not is_canceled:
            raise PayloadError(str(advise_on_lost_shares(self.submission)))
        return self.collector.restore(chain.from_iterable(self.waves))

    def try_merged(self, read: Callable[[LabelAssembler], _T]) -> _T:
        """Return the result of `read`. If a merged copy is gone meanwhile, read its original results instead."""
        try:
            return read(self)
        except FileNotFoundError:
            if not self.merges:
                raise
            # Another process has erased or pruned, which removes merged copies.
            return read(replace(self, merges=False))

    def count_outcomes(self) -> dict[str, int]:
        """See Answers.count_outcomes."""
        return self.try_merged(Answers.count_outcomes)

    def settlement(self) -> Settlement:
        """Return outcomes and costs. The costs of reused answers are not included."""
        realtime = [self._realtime_usd(shard) for shard in self.shards if shard.results_path]
        return Settlement(
            outcomes=self.count_outcomes(),
            cost_usd=sum_costs(shard.bill.cost_usd for shard in self.shards),
            realtime_usd=None if None in realtime else sum(filter(None, realtime), Decimal(0)),
            price_basis=self.submission.price_basis or PriceBasis.UNKNOWN,
            billed=self._billed(),
            audit=self._audit(),
        )

    def _audit(self) -> dict[str, Any] | None:
        """Return the findings of a cascade's audit; None without an audit, or if a person canceled it halfway."""
        audit = None if self.levels is None else self.levels.audit
        return None if audit is None or self.submission.state is SubmissionState.CANCELED else audit.counts

    def _billed(self) -> dict[str, Any] | None:
        """Return the data for later estimates: the arguments of core/forecast.py's Billed, and the prompt.

        None if there are no billed replies, if older code collected them, or if a person canceled it. Batches that were
        cut short are excluded, because their full cost is unknown.
        """
        if self.submission.state is SubmissionState.CANCELED:
            return None
        sent = [shard for shard in self.shards if shard.batch.sent_at is not None and not shard.waits_for_person]
        own = self._billed_of([shard for shard in sent if not self._asks_oracle(shard)])
        if self.levels is None:
            return own
        # Each model of a cascade has its own data.
        oracle = self._billed_of([shard for shard in sent if self._asks_oracle(shard)], place=1)
        if oracle is None:
            return own
        told = {"model": self.levels.oracle, **oracle}
        return {**(own or {"prompt": self.labeling.prompt_version}), "oracle": told}

    def _billed_of(self, sent: Sequence[Shard], place: int = 0) -> dict[str, Any] | None:
        """Return the same data for the shards of one model, by its place, or for all shards if there is one model."""
        first = [shard for shard in sent if shard.wave == 1 or shard.is_escalation]
        requests, replies = sum(shard.requests for shard in first), sum(shard.bill.replies or 0 for shard in first)
        if not replies:
            return None
        taken, written = (
            sum(getattr(shard.bill, name) or 0 for shard in first) for name in ("input_tokens", "output_tokens")
        )
        prices = {
            lane: self.collector.tariff(lane, place).mean_usd(taken / replies, written / replies) for lane in Lane
        }
        at_price = sum((shard.requests * (prices[shard.lane] or 0) for shard in first), Decimal(0))
        # The next plan counts the copies that pad a batch.
        bills = [shard.bill for shard in sent]
        paid = sum((bill.known_usd - (bill.padding_usd or 0) for bill in bills if bill.known_usd), Decimal(0))
        times = float(paid / at_price) if at_price else sum(bill.replies or 0 for bill in bills) / requests
        return {
            "prompt": self.labeling.prompt_version,
            "requests": requests,
            "tokens": sum(shard.tokens for shard in first),
            "replies": replies,
            "input_tokens": taken,
            "output_tokens": written,
            "times": round(times, 6),
        }

    def _realtime_usd(self, shard: Shard) -> Decimal | None:
        """Return the cost of the shard's requests in real time; None if one of them is unknown."""
        if shard.bill.unpriced is not None:
            return None if shard.bill.unpriced else shard.bill.realtime_usd
        # Older code did not count it.
        column = self.payloads.read_table(_path(shard), [_REALTIME])[_REALTIME]
        total: Decimal = pc.sum(column, min_count=0).as_py()
        return None if column.null_count else total

    def labels(self, *, run_id: str, reread: bool) -> Labeled:
        """Return all labeled rows and rejects, in the order of the rows. See `read_again` for `reread`."""
        return self.try_merged(lambda own: LabelAssembler._labels(own, run_id=run_id, reread=reread))

    def _labels(self, *, run_id: str, reread: bool) -> Labeled:
        tables = (self._read_results(shard, reread=reread) for wave in self.waves for shard in wave)
        are_oracles = (self._asks_oracle(shard) for wave in self.waves for shard in wave)
        manifest = self.payloads.read_table(self.submission.manifest)
        manifest = manifest if self.shares is None else self.shares.redirect(manifest)
        return self._label(manifest, tables, are_oracles, run_id)

    def batches(self, *, run_id: str, reread: bool) -> Generator[Labeled, None, None]:
        """Yield the labels in parts, in constant memory. The rows of a large table are in arbitrary order."""
        # With reused answers, all stored results are read before the first part.
        first, rest = self.try_merged(lambda own: LabelAssembler._begin_batches(own, run_id=run_id, reread=reread))
        while first:
            yield first.pop()
        yield from rest

    def _begin_batches(self, *, run_id: str, reread: bool) -> tuple[list[Labeled], Iterator[Labeled]]:
        rest = self._batches(run_id=run_id, reread=reread)
        return [*islice(rest, 1)], rest

    def _batches(self, *, run_id: str, reread: bool) -> Generator[Labeled, None, None]:
        if len(self.part_names()) == 1:
            # Opening a file takes longer than reading some hundred rows, and a table that grew for long has many files.
            yield self.labels(run_id=run_id, reread=reread)
            return
        self.read_again(reread=reread)
        # The results of a merged copy are from many shards.
        is_merged = any(wave[0].wave == MERGED_WAVE for wave in self.waves)
        shared, schema = None if is_merged else self._shared(), self.collector.schema
        own = _chosen(schema, [name for name in schema.names if is_merged or name not in SHARED])
        for manifest, results in self.parts(self.payloads.table_schema(self.submission.manifest), own):
            whole = (with_shared(table, shared, SHARD.name).select(schema.names) for table in results)
            yield self._label(manifest, whole, self.are_oracles, run_id)
            # Otherwise it would be in memory while the next part is read.
            del manifest
            release_memory()

    def _label(
        self, manifest: pa.Table, results: Iterable[pa.Table], are_oracles: Iterable[bool], run_id: str
    ) -> Labeled:
        version, response = self.labeling.prompt_version, self.labeling.result_schema
        quoted = self.labeling.quoted_columns
        return label_results(
            manifest, results, response, self.levels, are_oracles, quoted, self.shares, version=version, run_id=run_id
        )

    def _shared(self) -> pa.Table:
        """Return the values that all results of a shard share: one row for each shard, in order."""
        schema = _chosen(self.collector.schema, SHARED)
        # The row of a shard without results, which `label` refuses.
        nothing = pa.RecordBatch.from_pylist([{}], schema)
        results = (self.payloads.iter_batches(_path(shard), 1, SHARED) for shard in chain.from_iterable(self.waves))
        return pa.Table.from_batches([next(batches, nothing) for batches in results], schema).combine_chunks()

    def _read_results(self, shard: Shard, *, reread: bool) -> pa.Table:
        """Return all results of a shard. See `read_again`."""
        if not reread and (table := self.payloads.read_table(_path(shard))).schema.equals(self.collector.schema):
            return table
        self._read_again(shard, reread=reread)
        return self.payloads.read_table(_path(shard))

    def read_again(self, *, reread: bool) -> None:
        """Read raw lines again into results with outdated columns, or into all results (`reread`)."""
        for shard in chain.from_iterable(self.waves):
            self._read_again(shard, reread=reread)

    def _read_again(self, shard: Shard, *, reread: bool) -> None:
        has_other_columns = not self.payloads.table_schema(_path(shard)).equals(self.collector.schema)
        if shard.shard_id == _KEPT:
            if has_other_columns:
                from dagster_llm_batch.files.share_files import conform_older  # noqa: PLC0415 - few submissions do

                conform_older(self.payloads, _path(shard), self.collector.schema)
            return
        if reread or has_other_columns:
            self.collector.read_again(shard, needed=has_other_columns)


def _chosen(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in columns])


def _path(shard: Shard) -> str:
    # The waves contain only collected shards.
    assert shard.results_path is not None
    return shard.results_path
