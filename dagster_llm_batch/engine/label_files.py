"""Labels of tables that are larger than memory, written as files, by workers or here.

    manifest, results of each shard ─▶ TakeApart ─▶ the same, with the rows of a part side by side
                                      each part of all ─▶ LabelPart ─▶ a file of labels, a file of rejects

1. Until all parts are written, they have temporary names, and readers find the older files. If the run fails, they are
   removed. If it is killed, the next run that writes there removes them a day later.
2. Then they get their names, one after the other, and the older files are removed. Meanwhile readers find files of
   both. If the run is killed in this step, this lasts until the next run.
3. If several runs write to a folder at once, all files of one of them stay. Each run has a number above all that it
   finds, and removes files with a lower number than the highest whole table. This needs a store that lists new files at
   once, like disks, S3 and Cloud Storage; NFS may list them late.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import accumulate
from typing import TYPE_CHECKING

import pyarrow as pa

from dagster_llm_batch.core.result_schema import REPEATING
from dagster_llm_batch.files.request_files import APART
from dagster_llm_batch.loop.label import ROWS_AT_ONCE, LabelAssembler, label_results, read_part, scatter
from dagster_llm_batch.storage.payloads import PayloadStore, StoredFile, temporary_folder
from dagster_llm_batch.storage.stored_files import is_own_name, own_name

if TYPE_CHECKING:
    from dagster_llm_batch.core.levels import Levels
    from dagster_llm_batch.core.quoted_columns import QuotedColumns
    from dagster_llm_batch.core.shares import AuditedAnswers

__all__ = ["WrittenLabels", "write_labels"]

_ID = "llm_request_id"
# Spark and Arrow ignore files with such a prefix, other readers files with such a suffix.
_BEGUN = re.compile(r"_begun-([0-9a-f]{32})-\d{5}\.part")
_WRITTEN = re.compile(r"part-(\d{6})-([0-9a-f]{32})-\d{5}-of-(\d{5})\.parquet")
_LEFT_BEHIND_AFTER = timedelta(days=1)
# More rows than any table has.
_ALL = 1 << 62


@dataclass(frozen=True)
class WrittenLabels:
    """The numbers of rows in the files."""

    labels: int
    rejects: int


@dataclass(frozen=True)
class _Source:
    """A stored table: the manifest (wave 0), or results of a wave."""

    path: str
    wave: int


@dataclass(frozen=True)
class _Apart:
    """A source with the rows of each part side by side: part `n` has the rows `starts[n]` to `starts[n + 1]`."""

    path: str
    wave: int
    starts: Sequence[int]


@dataclass(frozen=True)
class _TakeApart:
    payloads: PayloadStore
    names: list[str]
    shares: AuditedAnswers | None = None

    def __call__(self, source: _Source) -> _Apart:
        folder = source.path.rpartition("/")[0]
        path = f"{folder}/{APART}{own_name(folder)}.parquet"
        schema = self.payloads.table_schema(source.path)
        shares = None if source.wave else self.shares
        schema = schema if shares is None else shares.extend(schema)
        sizes = []
        with (
            temporary_folder() as root,
            self.payloads.table_writer(path, schema, repeating=REPEATING) as out,
        ):
            parts = root / "parts"
            batches = self.payloads.iter_batches(source.path, ROWS_AT_ONCE)
            batches = batches if shares is None else map(shares.redirect, batches)
            scatter(batches, schema, _ID, self.names, parts)
            for name in self.names:
                table = read_part(parts, name)
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
    levels: Levels | None
    are_oracles: Sequence[bool]
    quoted_columns: QuotedColumns | None
    shares: AuditedAnswers | None

    def __call__(self, number: int) -> WrittenLabels:
        [manifest] = self._part(number, 0)
        if self.shares is not None and "llm_reuse" not in manifest.column_names:
            manifest = self.shares.redirect(manifest)
        results: list[pa.Table] = []
        are_oracles: list[bool] = []
        for wave in sorted({source.wave for source in self.sources} - {0}):
            results += (tables := self._part(number, wave))
            are_oracles += [self.are_oracles[wave - 1]] * len(tables)
        labeled = label_results(
            manifest,
            results,
            self.response,
            self.levels,
            are_oracles,
            self.quoted_columns,
            self.shares,
            version=self.prompt_version,
            run_id=self.run_id,
        )
        for store, table in ((self.labels, labeled.labels), (self.rejects, labeled.rejects)):
            with store.table_writer(_begun(self.name, number), table.schema) as out:
                out.write_table(table)
        return WrittenLabels(len(labeled.labels), len(labeled.rejects))

    def _part(self, number: int, wave: int) -> list[pa.Table]:
        """Return the rows of this part, in one table for each source of the wave."""
        parts = []
        for source in self.sources:
            if source.wave == wave:
                rows = range(source.starts[number], source.starts[number + 1])
                schema = self.payloads.table_schema(source.path)
                tables = self.payloads.take(source.path, rows)
                parts.append(pa.concat_tables([schema.empty_table(), *tables]))
        return parts


def write_labels(assembler: LabelAssembler, labels: PayloadStore, rejects: PayloadStore, run_id: str) -> WrittenLabels:
    """See Engine.write_labels."""
    return assembler.try_merged(lambda those: _write_labels(those, labels, rejects, run_id))


def _write_labels(assembler: LabelAssembler, labels: PayloadStore, rejects: PayloadStore, run_id: str) -> WrittenLabels:
    workers = assembler.labeling.workers
    spread = map if workers is None else workers.map
    sources = [_Source(assembler.submission.manifest, 0)]
    sources += [
        _Source(shard.results_path or "", wave)
        for wave, shards in enumerate(assembler.waves, start=1)
        for shard in shards
    ]
    names = assembler.part_names()
    if len(names) == 1:
        apart, temporary = [_Apart(source.path, source.wave, (0, _ALL)) for source in sources], []
    else:
        apart = temporary = list(spread(_TakeApart(assembler.payloads, names, assembler.shares), sources))
    try:
        label_part = _LabelPart(
            payloads=assembler.payloads,
            labels=labels,
            rejects=rejects,
            name=(name := own_name("")),
            sources=apart,
            response=assembler.labeling.result_schema,
            prompt_version=assembler.labeling.prompt_version,
            run_id=run_id,
            levels=assembler.levels,
            are_oracles=assembler.are_oracles,
            quoted_columns=assembler.labeling.quoted_columns,
            shares=assembler.shares,
        )
        written = list(spread(label_part, range(len(names))))
    except BaseException:
        for store in (labels, rejects):
            for number in range(len(names)):
                with suppress(Exception):
                    store.delete(_begun(name, number))
        raise
    finally:
        for source in temporary:
            assembler.payloads.delete(source.path)
    for store in (labels, rejects):
        _publish(store, name, len(names))
    return WrittenLabels(sum(part.labels for part in written), sum(part.rejects for part in written))


def _begun(name: str, number: int) -> str:
    return f"_begun-{name}-{number:05d}.part"


def _publish(store: PayloadStore, name: str, parts: int) -> None:
    """Give the files of a written table their names, and remove the files of earlier tables."""
    generation = 1 + max((key[0] for key in _tables(store.parquet_files())), default=0)
    for number in range(parts):
        store.move(_begun(name, number), f"part-{generation:06d}-{name}-{number:05d}-of-{parts:05d}.parquet")
    tables = _tables(store.parquet_files())
    newest = max((key for key, files in tables.items() if key[2] == len(files)), default=(0, "", 0))
    for key, files in tables.items():
        if key < newest:
            for file in files:
                store.remove(StoredFile(file, 0, None))
    _remove_left_behind(store)


def _tables(files: Iterable[str]) -> dict[tuple[int, str, int], list[str]]:
    """Return the files of each table, by its number, name and number of files. Other files form one first table."""
    tables: dict[tuple[int, str, int], list[str]] = defaultdict(list)
    for file in files:
        found = _WRITTEN.fullmatch(file)
        tables[(int(found[1]), found[2], int(found[3])) if found else (0, "", 0)].append(file)
    return tables


def _remove_left_behind(store: PayloadStore) -> None:
    """Remove the files that killed runs began, after a day without writes by the store's own clock."""
    begun: dict[str, list[StoredFile]] = defaultdict(list)
    times: list[datetime] = []
    for file in store.files(""):
        times += [file.modified_at] if file.modified_at is not None else []
        if (found := _BEGUN.fullmatch(file.path)) and is_own_name(found[1], ""):
            begun[found[1]].append(file)
    for files in begun.values():
        if all(file.modified_at and file.modified_at < max(times) - _LEFT_BEHIND_AFTER for file in files):
            for file in files:
                store.remove(file)
    store.remove_left_behind()
