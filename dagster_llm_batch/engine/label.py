"""What a settled submission says: the outcome of each of its requests, its costs, its labels. Sends nothing.

A submission speaks through its own shards and those of the submissions whose answers it reuses.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from itertools import accumulate, chain, groupby, repeat
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.label_join import Labeled, label
from dagster_llm_batch.core.memory import release_all_memory, release_memory
from dagster_llm_batch.core.results import SHARED
from dagster_llm_batch.engine.collect import Collector
from dagster_llm_batch.engine.labeling import Labeling
from dagster_llm_batch.engine.scattering import ROWS_AT_ONCE, part_names, read_part, scatter
from dagster_llm_batch.engine.status import sum_costs
from dagster_llm_batch.storage.ledger.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Outcome, PriceBasis

__all__ = ["Landing"]

_ID, _OUTCOME, _REALTIME = "llm_request_id", "llm_outcome", "llm_realtime_usd"
_SHARD = pa.field("llm_shard", pa.int32())  # the number of a result's shard among those of all waves


@dataclass(frozen=True)
class Landing:
    """Lands one submission of one labeling."""

    labeling: Labeling
    submission: Submission
    shards: Sequence[Shard]  # its own
    ledger: Ledger
    payloads: PayloadStore
    collector: Collector

    def settle(self) -> Submission:
        """Tell the ledger what it adds up to. Costs are those of its own batches, not of reused answers."""
        realtime = [self._sum(shard, _REALTIME) for shard in self.shards if shard.results_path]
        return self.ledger.settle(
            self.submission.submission_id,
            outcomes=self._outcomes(),
            cost_usd=sum_costs(self.shards),
            realtime_usd=None if None in realtime else sum(filter(None, realtime), Decimal(0)),
            price_basis=self.submission.price_basis or PriceBasis.UNKNOWN,
        )

    def _sum(self, shard: Shard, column: str) -> Decimal | None:
        """The sum of a column of the shard's results; None where a value is not known."""
        table = self.payloads.read_table(_path(shard), [column])
        total: Decimal = pc.sum(table[column], min_count=0).as_py()
        return None if table[column].null_count else total

    def _outcomes(self) -> dict[str, int]:
        """How many requests ended how: by their newest success, else their newest word."""
        if not self.waves:
            return {}
        counts: Counter[str] = Counter()
        if len(self.waves) == 1 and not self.submission.reused_from:  # every request has spoken once
            for shard in self.waves[0]:
                said = self.payloads.read_table(_path(shard), [_OUTCOME])[_OUTCOME]
                counts.update({one["values"]: one["counts"] for one in pc.value_counts(said).to_pylist()})
            return dict(counts)
        asked, said = (_chosen(self.collector.schema, names) for names in ([_ID], [_ID, _OUTCOME]))
        for manifest, results in self._parts(asked, said):
            requests = pc.unique(manifest[_ID])
            newest = pa.concat_tables(reversed([*results]))
            good = newest.filter(pc.equal(newest[_OUTCOME], Outcome.SUCCEEDED.value))
            words = pa.concat_tables([good, newest])
            last = words[_OUTCOME].take(pc.index_in(requests, words[_ID].combine_chunks()))
            counts.update(last.to_pylist())
        return dict(counts)

    def labels(self, *, run_id: str, reread: bool) -> Labeled:
        """All labeled rows and rejects, in the order of the rows.

        Results that were read for other columns are read again, and all of them with `reread`.
        """
        self.read_again(reread=reread)
        tables = (self.payloads.read_table(_path(s)) for wave in self.waves for s in wave)
        return self._label(self.payloads.read_table(self.manifest_path), tables, run_id)

    def batches(self, *, run_id: str, reread: bool) -> Generator[Labeled, None, None]:
        """`labels` in constant memory, part by part. The rows of a large table come in no particular order."""
        self.read_again(reread=reread)
        shared, schema = self._shared(), self.collector.schema
        own = _chosen(schema, [name for name in schema.names if name not in SHARED])
        for manifest, results in self._parts(self.payloads.table_schema(self.manifest_path), own):
            yield self._label(manifest, (_with(shared, table).select(schema.names) for table in results), run_id)
            del manifest  # before the next is read
            release_memory()

    def _label(self, manifest: pa.Table, results: Iterable[pa.Table], run_id: str) -> Labeled:
        version = self.labeling.prompt_version
        return label(manifest, results, self.labeling.reader.schema, prompt_version=version, run_id=run_id)

    def _shared(self) -> pa.Table:
        """What all results of a shard share: a row for each, in their order."""
        schema = _chosen(self.collector.schema, SHARED)
        nothing = pa.RecordBatch.from_pylist([{}], schema)  # of a shard without results, which `label` refuses
        results = (self.payloads.iter_batches(_path(shard), 1, SHARED) for shard in chain.from_iterable(self.waves))
        return pa.Table.from_batches([next(batches, nothing) for batches in results], schema).combine_chunks()

    def _parts(self, asked: pa.Schema, said: pa.Schema) -> Iterator[tuple[pa.Table, Iterator[pa.Table]]]:
        """The manifest and the results of each wave, oldest first; large ones in parts that belong together."""
        names = self.part_names()
        starts = accumulate(map(len, self.waves), initial=0)
        sources = [(asked, self.payloads.iter_batches(self.manifest_path, ROWS_AT_ONCE, asked.names))]
        numbered = said.append(_SHARD)
        sources += [
            (numbered, self._results(wave, numbered, start)) for wave, start in zip(self.waves, starts, strict=False)
        ]
        if len(names) == 1:
            first, *rest = (pa.Table.from_batches(batches, schema) for schema, batches in sources)
            yield first, iter(rest)
            return
        with tempfile.TemporaryDirectory() as root:
            folders = [Path(root) / str(number) for number in range(len(sources))]
            for (schema, batches), folder in zip(sources, folders, strict=True):
                scatter(batches, schema, _ID, names, folder)
                release_all_memory()
            for name in names:
                yield read_part(folders[0], name), map(read_part, folders[1:], repeat(name))

    def part_names(self) -> list[str]:
        """Of the parts in which the manifest and the largest wave fit into memory."""
        waves = (sum(shard.requests for shard in wave) for wave in self.waves)
        return part_names(max(self.submission.rows, *waves, 0))

    def read_again(self, *, reread: bool) -> None:
        for shard in chain.from_iterable(self.waves):
            if reread or not self.payloads.table_schema(_path(shard)).equals(self.collector.schema):
                self.collector.read(shard)

    def _results(self, shards: Sequence[Shard], said: pa.Schema, start: int) -> Iterator[pa.RecordBatch]:
        """What they say, shard by shard, some rows at once; the last column counts the shards from `start`."""
        for number, shard in enumerate(shards, start):
            for batch in self.payloads.iter_batches(_path(shard), ROWS_AT_ONCE, said.names[:-1]):
                numbers = pa.repeat(pa.scalar(number, _SHARD.type), len(batch))
                yield pa.record_batch([*batch.columns, numbers], schema=said)
                del batch
            release_memory()

    @cached_property
    def waves(self) -> list[list[Shard]]:
        """The collected shards that hold this submission's answers, oldest first. A wave answers a request once.

        Of what was never sent again, the word before it is the last.
        """
        others = [shard for one in reversed(self.submission.reused_from) for shard in self.ledger.shards(one)]
        collected = [shard for shard in (*others, *self.shards) if shard.results_path]
        shards = [shard for shard in collected if shard.wave == 1 or shard.sent_at is not None]
        return [list(wave) for _, wave in groupby(shards, key=lambda shard: (shard.submission_id, shard.wave))]

    @property
    def manifest_path(self) -> str:
        assert self.submission.manifest_path is not None  # every plan writes one
        return self.submission.manifest_path


def _chosen(schema: pa.Schema, columns: Sequence[str]) -> pa.Schema:
    return pa.schema([schema.field(name) for name in columns])


def _with(shared: pa.Table, results: pa.Table) -> pa.Table:
    """The results, and what those of a shard share."""
    told = shared.take(results[_SHARD.name].combine_chunks())
    return pa.table([*results.columns, *told.columns], names=[*results.column_names, *told.column_names])


def _path(shard: Shard) -> str:
    assert shard.results_path is not None  # it is collected
    return shard.results_path
