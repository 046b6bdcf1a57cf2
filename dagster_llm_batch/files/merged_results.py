"""Merged copies: the results of many small shards in one file, so that a table that grows each day opens few files.

    shards whose answers are reused, oldest first:   1 … 8 | 9 … 16 | … | 57 … 64 | 65 … 72 | 73 74
                                                     └──────── one copy ─────────┘ └ a copy ┘ as they are

1. A copy is a cache. Its name is a digest of its sources: the paths of the shards' results, a version of each of these
   files, and their columns. If any of them was made again, erased or lost, the copy has another name, so it is not
   found. The results themselves are then read, restored or requested, as if there were no copies. A digest of its
   folder follows in the name, by which `ownership.py` recognizes it as ours.
2. A process that reads all of these results anyway, to count or to materialize them, makes the copy. It needs no lease:
   two processes could differ only in the name. A process that is killed meanwhile leaves a half-written file.
3. A process that erases or prunes results then removes all copies of the partition (`drop_merged`), including
   half-written ones. A process that writes a copy checks, once the file exists, whether the results are still its
   sources. A file that existed when copies were dropped cannot get its name any more; a later one is seen to have lost
   its sources. So no copy stays, even if a process is killed. An object store shows an upload under its name at once:
   there the writer checks once more, and removes the copy; a process that is killed before that leaves one.
4. Within a copy the newest shard comes first. `label` looks for the answer that counts in this order.
5. A failed read or write here is not an error: copies are optional.

Large shards are not copied: opening their files takes little time compared with their rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import pyarrow as pa

from dagster_llm_batch.core.result_schema import REPEATING
from dagster_llm_batch.errors import PayloadError
from dagster_llm_batch.files.ownership import MERGED, copy_path, owned_copies, remove
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.stored_files import FileVersion

__all__ = ["FEWEST_MERGED", "MERGED", "MERGED_WAVE", "MergedResults", "drop_merged"]

FEWEST_MERGED = 8
"""Number of shards that make a copy, and of copies that make a larger one."""

MERGED_WAVE = 0
"""The wave number of a shard that stands for the shards of a copy. Other shards never have it."""

# Opening a file takes as long as reading some hundred rows. Copies are in memory while they are made.
_MOST_ROWS = 1 << 15
_MOST_BYTES = 1 << 23


@dataclass(frozen=True)
class _Copy:
    """A copy of these shards, oldest first, whether it is there or not."""

    path: str
    shards: Sequence[Shard]
    versions: Sequence[FileVersion]

    @property
    def as_shard(self) -> Shard:
        """The copy in the place of its shards."""
        requests = count_requests(self.shards)
        return replace(self.shards[-1], results_path=self.path, requests=requests, wave=MERGED_WAVE)


@dataclass(frozen=True)
class MergedResults:
    """The merged copies of shards' results. `schema` is the schema of the results; other results are not merged."""

    payloads: PayloadStore
    schema: pa.Schema
    most_rows: int = _MOST_ROWS
    most_bytes: int = _MOST_BYTES

    def merge(self, shards: Sequence[Shard]) -> list[Shard]:
        """Return the shards, oldest first, each run of them as one whose results are a copy; make missing copies."""
        copies = {copy.shards[0].shard_id: copy for copy in self._copies(shards, makes=True)}
        merged, at = [], 0
        while at < len(shards):
            copy = copies.get(shards[at].shard_id)
            merged.append(shards[at] if copy is None else copy.as_shard)
            at += 1 if copy is None else len(copy.shards)
        return merged

    def find(self, shards: Sequence[Shard]) -> list[tuple[Shard, Sequence[Shard]]]:
        """Return the copies that are there, each with the shards that it is of. Writes nothing."""
        return [(copy.as_shard, copy.shards) for copy in self._copies(shards, makes=False)]

    def _copies(self, shards: Sequence[Shard], *, makes: bool) -> list[_Copy]:
        if len(shards) < FEWEST_MERGED:
            return []
        with suppress(OSError, pa.ArrowException, PayloadError):
            versions = self._versions(shards)
            # A store that cannot detect changes of a file returns another version each time.
            if versions[:1] == self._versions(shards[:1]):
                runs = _Runs(self, shards, versions, makes)
                return [copy for start, end in _spans(len(shards)) for copy in runs.copies(start, end)]
        return []

    def _versions(self, shards: Sequence[Shard]) -> list[FileVersion | None]:
        """Return a version of each shard's results, which changes with them; None if they are gone."""
        versions: list[FileVersion | None] = []
        for shard in shards:
            try:
                versions.append(self.payloads.version(shard.results_path or ""))
            except FileNotFoundError:
                versions.append(None)
        return versions

    def copy_of(self, shards: Sequence[Shard], versions: Sequence[FileVersion | None]) -> _Copy | None:
        """Return the copy of these shards; None where they are too large, or one of them is gone."""
        known = [version for version in versions if version is not None]
        if len(known) < len(versions) or count_requests(shards) > self.most_rows:
            return None
        if sum(version.bytes for version in known) > self.most_bytes:
            return None
        named = repr((str(self.schema), [shard.results_path for shard in shards], known))
        digest = hashlib.blake2b(named.encode(), digest_size=8).hexdigest()
        partition = (shards[0].results_path or "").rsplit("/", 2)[0]
        return _Copy(copy_path(partition, digest), shards, known)

    def write(self, copy: _Copy, tables: Iterable[pa.Table]) -> None:
        """Write a copy of these tables, oldest first.

        Raises PayloadError if the copy cannot be kept: the results have other columns, or have changed since they were
        read, or another process has removed the half-written file.
        """
        read = list(tables)
        if not all(table.schema.equals(self.schema) for table in read):
            raise PayloadError(
                "The merged copy was not written: its results have other columns than the response has now."
            )
        whole = pa.concat_tables(reversed(read)).combine_chunks()
        with self.payloads.table_writer(copy.path, self.schema, repeating=REPEATING) as out:
            out.write_table(whole)
            # While the file is there and has no name yet: see 3. above.
            self._refuse_changed(copy)
        # For an object store, which shows the file only now: see 3. above.
        try:
            self._refuse_changed(copy)
        except PayloadError:
            self.payloads.delete(copy.path)
            raise

    def _refuse_changed(self, copy: _Copy) -> None:
        if self._versions(copy.shards) != list(copy.versions):
            raise PayloadError("The merged copy was not written: its results have changed since they were read.")


@dataclass(frozen=True)
class _Runs:
    """Shards, oldest first, with the versions of their results; with `makes`, missing copies are made."""

    merged: MergedResults
    shards: Sequence[Shard]
    versions: Sequence[FileVersion | None]
    makes: bool

    def copies(self, start: int, end: int) -> list[_Copy]:
        """Return the copies of a run: one, or without it the copies of its parts."""
        copy = self._copy(start, end)
        if copy is not None and (self._is_there(copy) or (self.makes and self._write(copy, start, end))):
            return [copy]
        return [part for at, to in _parts(start, end) for part in self.copies(at, to)]

    def _copy(self, start: int, end: int) -> _Copy | None:
        return self.merged.copy_of(self.shards[start:end], self.versions[start:end])

    def _is_there(self, copy: _Copy) -> bool:
        """Return whether a copy exists and is complete."""
        return self.merged.payloads.is_whole(copy.path)

    def _write(self, copy: _Copy, start: int, end: int) -> bool:
        with suppress(OSError, pa.ArrowException, PayloadError):
            self.merged.write(copy, self._tables(start, end))
            return True
        return False

    def _tables(self, start: int, end: int) -> Iterator[pa.Table]:
        """Yield the results of a run, from copies of its parts where these are there."""
        for at, to in _parts(start, end):
            part = self._copy(at, to)
            if part is not None and self._is_there(part):
                yield self.merged.payloads.read_table(part.path)
            else:
                yield from self._tables(at, to)
        if end - start == FEWEST_MERGED:
            for shard in self.shards[start:end]:
                yield self.merged.payloads.read_table(shard.results_path or "")


def _spans(count: int) -> Iterator[tuple[int, int]]:
    """Yield the largest runs of shards, each as long as a power of FEWEST_MERGED and at a multiple of it."""
    size = FEWEST_MERGED
    while size * FEWEST_MERGED <= count:
        size *= FEWEST_MERGED
    start = 0
    while size >= FEWEST_MERGED:
        while start + size <= count:
            yield start, start + size
            start += size
        size //= FEWEST_MERGED


def _parts(start: int, end: int) -> list[tuple[int, int]]:
    """Return the runs that make up a run; empty for a run of shards."""
    size = (end - start) // FEWEST_MERGED
    return [(at, at + size) for at in range(start, end, size)] if size >= FEWEST_MERGED else []


def drop_merged(payloads: PayloadStore, folders: Collection[str]) -> None:
    """Remove all merged copies in the partitions of submissions with these folders, after results were changed."""
    # Twice: a half-written one may get its name after the names were read, and before it is removed.
    for _ in range(2):
        remove(payloads, owned_copies(payloads, folders))
