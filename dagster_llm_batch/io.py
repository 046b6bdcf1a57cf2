"""Tables as Parquet in the layout of Hive, which Spark, Polars, DuckDB and others can read as one table.

    <root>/<asset>/<column>=<partition key>/table.parquet

A partition replaces its own files alone. Written by Arrow, in constant memory where the value is a stream.

1. A partition is one file, always with the same name, which a new table replaces in one step: a rename on a disk, an
   upload in an object store. So at each moment a reader that then lists the folder finds one whole table, the old or
   the new. This holds while two runs store the partition at once (the later one to end is kept), and when a run is
   killed.
2. Other Parquet files in the folder, as Spark and older versions write them, are removed when the new table is there.
   Until then, or if the run is killed in between, other readers see both; `load_input` reads only the new one.
3. Spark's own writing of a DataFrame is not one step. Nothing here can keep it from meeting another run's.
4. `load_input` reads a table again that was replaced while it was read. Other readers continue with their open files.
   A reader that listed the folder before and opens files after, such as a DataFrame of Spark, must list it again.
5. On a disk, a file that a run is writing, or a killed run has half-written, is hidden. The next store of the partition
   removes it when it is a day old. While it exists, Polars refuses the folder, but takes `folder/**/*.parquet`.
6. A key is escaped as by Spark: special ASCII of a path, such as %3A. Other characters stay unchanged, since Spark
   would read each escaped byte as a character. Version 0.1.0 escaped them: such a folder is read until the
   partition is stored.
7. A column with the name of the partition column, and the key in all rows, is left out of the file: readers take one
   or the other, or refuse both. One with other values is stored with a warning, since rows may have cost
   money; `load_input` refuses it. Files by Spark have all its columns.
8. Some keys are refused before their partition is paid for (`check_partition`). Such a key is too long for a folder's
   name, is null to readers, or is the same as an earlier one to the disk.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from dagster_llm_batch._dagster_private import stored_partitions
from dagster_llm_batch.config import CheckedIOManager
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import InputError, PayloadError
from dagster_llm_batch.storage.names import check_place, fold_of
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.stored_files import DamagedError, FileVersion

__all__ = ["URI_KEY", "HiveParquetIOManager", "storage_uri"]

URI_KEY = "dagster/uri"
"""Dagster's metadata key for the place of a table."""

_TABLE = "table.parquet"

# Readers of Hive's layout take this for null.
_NULL = "__HIVE_DEFAULT_PARTITION__"

# File names cannot start with this.
_NO_FILE = "/"

_ASCII = re.compile(r"[\x00-\x7f]+")

# Number of times that a table is read again because it was replaced meanwhile.
_MOST_READS = 5

# Of BATCH_ROWS each. Smaller row groups take longer to write and read; larger ones, and long rows, take more memory.
_BATCHES_A_GROUP = 2
_GROUP_BYTES = 1 << 23

# Setting zstd up for a column takes longer than writing all of such a table, which is as small without it.
_SMALL_BYTES = 1 << 16


def storage_uri(path: str) -> str:
    """Return a path or an address as a URI."""
    return path if "://" in path else Path(path).absolute().as_uri()


def _escape(key: str) -> str:
    """Return a partition's key as Spark writes and reads it in a path."""
    return _ASCII.sub(lambda found: quote(found[0], safe=" "), key)


def _without_key(
    batches: Iterator[pa.RecordBatch], column: str, key: str, *, repeats: bool | None, warn: Callable[[], None]
) -> Iterator[pa.RecordBatch]:
    """Yield batches without the partition column if it repeats the partition's key, else unchanged.

    `repeats` is None if the first batch with rows decides. Raises InputError if that batch repeats the key and a later
    one does not.
    """
    empty: pa.RecordBatch | None = None
    for batch in batches:
        # An empty batch does not decide, and is not needed next to others.
        if repeats is None and not len(batch):
            empty = batch
            continue
        empty = None
        if column in batch.schema.names:
            is_key = _are_all(batch.column(column), key)
            if repeats is None and not is_key:
                warn()
            if repeats and not is_key:
                raise InputError(
                    f"The column '{column}' repeats the key of the partition, '{key}', in the first rows, and has "
                    "other values in later ones. The table was not stored: rows can be read only once, and the first "
                    "ones were written without the column. Rename the column, or give the keys another name: "
                    "HiveParquetIOManager(root=…, partition_column=…)."
                )
            repeats = is_key if repeats is None else repeats
        yield _without(batch, column) if repeats else batch
        # Otherwise it would stay in memory while the next one is read.
        del batch
    if empty is not None:
        yield _without(empty, column)


def _without(batch: pa.RecordBatch, column: str) -> pa.RecordBatch:
    # A file without columns would have no rows either.
    is_beside_others = column in batch.schema.names and len(batch.schema) > 1
    return batch.drop_columns([column]) if is_beside_others else batch


def _are_all(values: pa.Array | pa.ChunkedArray, key: str) -> bool:
    """Return whether each value is this text."""
    if not len(values):
        return True
    try:
        are_all = pc.all(pc.equal(values.cast(pa.string()), key), skip_nulls=False)
    except pa.ArrowException:
        return False
    return are_all.as_py() is True


def _groups(batches: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Yield batches in lists that make one row group each."""
    group: list[pa.RecordBatch] = []
    for batch in batches:
        group.append(batch)
        if len(group) == _BATCHES_A_GROUP or sum(each.nbytes for each in group) >= _GROUP_BYTES:
            yield group
            group = []
        del batch
    if group:
        yield group


def _read_files(store: PayloadStore) -> pa.Table | None:
    """Return the table in a folder, read again if it was replaced meanwhile; None if it is missing."""
    failed: list[FileVersion] | None = []
    for left in reversed(range(_MOST_READS)):
        found: list[FileVersion] | None = None
        names = _names(store)
        try:
            found = [store.version(name) for name in names]
            return pa.concat_tables([store.read_table(name) for name in names]) if names else None
        except OSError:
            if not left or found == failed:
                raise
        failed = found
    return None


def _names(store: PayloadStore) -> list[str]:
    """Return the names of the files that are the table."""
    names = store.parquet_files()
    return [_TABLE] if _TABLE in names else names


def _is_too_long(error: Exception) -> bool:
    """Return whether a name is too long for the disk."""
    return isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG


def _named(asset: dg.AssetKey, partition: str | None) -> str:
    return asset.to_user_string() + ("" if partition is None else f", partition {partition}")


class HiveParquetIOManager(CheckedIOManager):
    """Stores frames of all kinds, and Spark's, as Parquet that Spark reads; loads Arrow tables."""

    root: str = Field(description="Folder of all tables: a path, s3://…, gs://….")
    partition_column: str = Field(default="partition", description="The column that a partition's key becomes.")

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Replace the table in the folder. A Spark DataFrame is written by Spark."""
        if obj is None:
            return
        partition = self._partition_of(context)
        folder = self.folder(context.asset_key, partition)
        context.add_output_metadata({"path": dg.MetadataValue.path(folder), URI_KEY: storage_uri(folder)})
        if hasattr(obj, "mapInArrow"):
            obj.write.mode("overwrite").parquet(folder)
        else:
            self._write(PayloadStore(folder), obj, context, partition)
        for place in self._older(context.asset_key, partition):
            try:
                PayloadStore(place).keep_only(_NO_FILE)
            # Spark can store where this package has no file system or no rights; the errors may be of any type.
            except Exception as error:  # noqa: BLE001 -- the table is stored
                if not _is_too_long(error):
                    context.log.warning(
                        f"The table of {_named(context.asset_key, partition)} is stored in {folder}. Cannot check "
                        f"whether version 0.1.0 left an older table in {place}: {type(error).__name__}: {error}. If it "
                        "did, remove that folder; otherwise readers of all partitions get the rows of both tables."
                    )

    def _partition_of(self, context: dg.OutputContext) -> str | None:
        """Return the partition of the table; None for an asset without partitions, also in a run of one.

        Raises InputError in a run over several partitions: which of them a row belongs to is not known.
        """
        keys = stored_partitions(context)
        if len(keys) > 1:
            raise InputError(
                f"{context.asset_key.to_user_string()} cannot be stored: its run is over {len(keys):,} partitions, and "
                "gave one table for all of them. Nothing was stored. Run each partition separately: "
                "backfill_policy=dg.BackfillPolicy.multi_run(max_partitions_per_run=1)."
            )
        return keys[0] if keys else None

    def check_partition(self, asset: dg.AssetKey, key: str, others: Iterable[str] = ()) -> None:
        """Raise InputError for a key whose partition cannot be stored here, or would not be read back as it is.

        `others`: keys of the asset that take precedence if they are the same to the disk.
        """
        what = f"The table of {_named(asset, key)}"
        if key in ("", _NULL):
            raise InputError(
                f"{what} cannot be stored: all that read the folders of Hive's layout take the key {key!r} for null. "
                "Nothing was sent. Give the partition another key."
            )
        folder = self.folder(asset, key)
        check_place(folder, what)
        if (fold := fold_of(folder)) is None:
            return
        for other in others:
            if other != key and fold(self.folder(asset, other)) == fold(folder):
                raise InputError(
                    f"{what} cannot be stored: the disk of {self.root} takes its folder for the one of the partition "
                    f"'{other}', which it would replace. Nothing was sent. Give it a key that differs in more than "
                    "case or Unicode form, or store on a disk that distinguishes them."
                )

    def _write(self, store: PayloadStore, obj: Any, context: dg.OutputContext, partition: str | None) -> None:
        asset, batches = context.asset_key, record_batches(obj)
        if partition is not None:
            batches = self._of_partition(batches, obj, context, partition)
        groups = _groups(batches)
        group = next(groups, [])
        if not group:
            raise InputError(
                f"{asset.to_user_string()} cannot be stored: it has no rows and names no columns, as an empty list "
                "does. Return a frame that has its columns, whether or not it has rows."
            )
        is_small = sum(batch.nbytes for batch in group) < _SMALL_BYTES
        with store.table_writer(_TABLE, group[0].schema, compression="snappy" if is_small else "zstd") as out:
            while group:
                # Each column of a row group takes its time, with rows or without.
                if any(map(len, group)):
                    out.write_table(pa.Table.from_batches(group))
                # Otherwise it would stay in memory while the next one is read.
                group = []
                group = next(groups, [])
        store.keep_only(_TABLE)
        store.remove_left_behind()

    def _of_partition(
        self, batches: Iterator[pa.RecordBatch], obj: Any, context: dg.OutputContext, key: str
    ) -> Iterator[pa.RecordBatch]:
        """Yield the batches of a partition's file; warn of a column that has the name of the partition column."""
        column = self.partition_column

        def warn() -> None:
            context.log.warning(
                f"The table of {_named(context.asset_key, key)} has a column '{column}' with other values than the "
                "key. Readers of all partitions expect the key in the column of that name. The table is stored "
                "unchanged. DuckDB, and Polars and Spark with Hive's partitions, show the key instead of the values. "
                "PyArrow and pandas mostly refuse the table, and assets cannot load it. Rename the column, or give the "
                "keys another name, HiveParquetIOManager(root=…, partition_column=…), and store the partitions again."
            )

        repeats: bool | None = None
        # A table in memory can be checked as a whole before anything is written.
        if isinstance(obj, pa.Table) and len(obj) and column in obj.column_names:
            repeats = all(_are_all(batch.column(0), key) for batch in record_batches(obj.select([column])))
            if not repeats:
                warn()
        return _without_key(batches, column, key, repeats=repeats, warn=warn)

    def load_input(self, context: dg.InputContext) -> pa.Table:
        """Return the asset, or its requested partitions, with their column. Raises FileNotFoundError if missing."""
        keys = list(context.asset_partition_keys) if context.has_asset_partitions else [None]
        return pa.concat_tables([self._read(context.asset_key, key) for key in keys], promote_options="permissive")

    def _read(self, asset: dg.AssetKey, partition: str | None) -> pa.Table:
        folder, older = self.folder(asset, partition), self._older(asset, partition)
        # The first place again at the end: the table may have been stored there meanwhile.
        for place in (folder, *older, *([folder] if older else [])):
            try:
                table = _read_files(PayloadStore(place))
            except DamagedError as error:
                # Not an InputError, which would mean that the table is missing.
                raise PayloadError(
                    f"The table of {_named(asset, partition)} is damaged: the bytes in {place} are not those that were "
                    "written. Restore them from a backup, or materialize it again."
                ) from error
            except OSError as error:
                if place == folder or not _is_too_long(error):
                    raise
                continue
            if table is not None:
                break
        else:
            raise FileNotFoundError(folder)
        if partition is None:
            return table
        keys = pa.repeat(pa.scalar(partition, pa.string()), len(table))
        # Spark stores it, as version 0.1.0 did.
        if self.partition_column in table.column_names:
            if not _are_all(table[self.partition_column], partition):
                raise InputError(
                    f"The table of {_named(asset, partition)} has a column '{self.partition_column}' with other values "
                    "than the key, but a loaded table has the key in the column of this name. Read the files in "
                    f"{place} themselves; or give the keys another name, HiveParquetIOManager(root=…, "
                    "partition_column=…), or rename the column, and materialize it again."
                )
            if table.num_columns == 1:
                return pa.table({self.partition_column: keys})
            table = table.drop_columns([self.partition_column])
        return table.append_column(self.partition_column, keys)

    def folder(self, asset: dg.AssetKey, partition: str | None = None) -> str:
        """Return the folder of an asset, or of a partition of it."""
        return self._place(asset, None if partition is None else _escape(partition))

    def _older(self, asset: dg.AssetKey, partition: str | None) -> list[str]:
        """Return where version 0.1.0 stored a partition, if elsewhere. Folders of a derived class are unknown."""
        if partition is None or type(self).folder is not HiveParquetIOManager.folder:
            return []
        escaped = quote(partition, safe=" ")
        return [] if escaped == _escape(partition) else [self._place(asset, escaped)]

    def _place(self, asset: dg.AssetKey, escaped: str | None) -> str:
        folder = "/".join([self.root.rstrip("/"), *asset.path])
        return folder if escaped is None else f"{folder}/{self.partition_column}={escaped}"
