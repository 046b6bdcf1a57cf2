"""Labels as files, for tables larger than memory: taken apart by request, labeled part by part, by workers or here.

    manifest, results of each shard ─▶ TakeApart ─▶ the same, with the rows of a part side by side
                                  each part of all ─▶ LabelPart ─▶ a file of labels, a file of rejects

New files replace the older ones of their folder when all of them are there.
"""

from __future__ import annotations

import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import pyarrow as pa

from dagster_llm_batch.core.label_join import label
from dagster_llm_batch.core.results import REPEATING
from dagster_llm_batch.engine.label import Landing
from dagster_llm_batch.engine.request_files import APART
from dagster_llm_batch.engine.scattering import ROWS_AT_ONCE, read_part, scatter
from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = ["WrittenLabels", "write_labels"]

_ID = "llm_request_id"
_ALL = 1 << 62  # more rows than there are


@dataclass(frozen=True)
class WrittenLabels:
    """How many rows the files hold."""

    labels: int
    rejects: int


@dataclass(frozen=True)
class _Source:
    """A stored table: the manifest (wave 0), or results of a wave."""

    path: str
    wave: int


@dataclass(frozen=True)
class _Apart:
    """A source, taken apart: part `n` is in the rows `starts[n]` to `starts[n + 1]` of `path`."""

    path: str
    wave: int
    starts: Sequence[int]


@dataclass(frozen=True)
class _TakeApart:
    payloads: PayloadStore
    names: list[str]

    def __call__(self, source: _Source) -> _Apart:
        path = f"{source.path.rpartition('/')[0]}/{APART}{uuid.uuid4().hex}.parquet"
        schema = self.payloads.table_schema(source.path)
        sizes = []
        with (
            tempfile.TemporaryDirectory() as root,
            self.payloads.table_writer(path, schema, repeating=REPEATING) as out,
        ):
            folder = Path(root) / "parts"
            batches = self.payloads.iter_batches(source.path, ROWS_AT_ONCE)
            scatter(batches, schema, _ID, self.names, folder)
            for name in self.names:
                table = read_part(folder, name)
                sizes.append(len(table))
                if len(table):
                    out.write_table(table)
        return _Apart(path, source.wave, [0, *accumulate(sizes)])


@dataclass(frozen=True)
class _LabelPart:
    payloads: PayloadStore
    labels: PayloadStore
    rejects: PayloadStore
    name: str
    sources: Sequence[_Apart]
    response: pa.Schema
    prompt_version: str
    run_id: str

    def __call__(self, number: int) -> WrittenLabels:
        [manifest] = self._part(number, 0)
        waves = sorted({source.wave for source in self.sources} - {0})
        results = [table for wave in waves for table in self._part(number, wave)]
        labeled = label(manifest, results, self.response, prompt_version=self.prompt_version, run_id=self.run_id)
        for store, table in ((self.labels, labeled.labels), (self.rejects, labeled.rejects)):
            with store.table_writer(f"{self.name}-{number:05d}.parquet", table.schema) as out:
                out.write_table(table)
        return WrittenLabels(len(labeled.labels), len(labeled.rejects))

    def _part(self, number: int, wave: int) -> list[pa.Table]:
        """The rows of this part, in one table for each source of the wave."""
        found = []
        for source in self.sources:
            if source.wave == wave:
                rows = range(source.starts[number], source.starts[number + 1])
                schema = self.payloads.table_schema(source.path)
                tables = self.payloads.take(source.path, rows)
                found.append(pa.concat_tables([schema.empty_table(), *tables]))
        return found


def write_labels(landing: Landing, labels: PayloadStore, rejects: PayloadStore, run_id: str) -> WrittenLabels:
    """See Engine.write_labels."""
    workers = landing.labeling.workers
    spread = map if workers is None else workers.map
    sources = [_Source(landing.manifest_path, 0)]
    sources += [
        _Source(shard.results_path or "", wave)
        for wave, shards in enumerate(landing.waves, start=1)
        for shard in shards
    ]
    names = landing.part_names()
    if len(names) == 1:
        apart, passing = [_Apart(one.path, one.wave, (0, _ALL)) for one in sources], []
    else:
        apart = passing = list(spread(_TakeApart(landing.payloads, names), sources))
    try:
        part = _LabelPart(
            payloads=landing.payloads,
            labels=labels,
            rejects=rejects,
            name=f"part-{uuid.uuid4().hex}",
            sources=apart,
            response=landing.labeling.reader.schema,
            prompt_version=landing.labeling.prompt_version,
            run_id=run_id,
        )
        written = list(spread(part, range(len(names))))
    finally:
        for one in passing:
            landing.payloads.delete(one.path)
    for store in (labels, rejects):
        store.keep_only(part.name)
    return WrittenLabels(sum(one.labels for one in written), sum(one.rejects for one in written))
