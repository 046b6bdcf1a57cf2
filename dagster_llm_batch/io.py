"""Tables as Parquet in the layout of Hive, which Spark, Polars, DuckDB and others read as one table.

    <root>/<asset>/<column>=<partition key>/table.parquet

A partition replaces its own files alone. Written by Arrow, in constant memory where the value is a stream.

1. A partition is one file, always of the same name, which a new table takes over in one step: a rename on a disk, an
   upload in an object store. So at each moment there is one whole table, the old or the new, for whoever lists the
   folder then: also while two runs store the partition at once, of which the later one to end is kept, and when a run
   is killed.
2. Other Parquet files in the folder, as Spark and older versions write them, are removed when the new table is there.
   Until then, or if the run is killed in between, others see both; `load_input` reads the new one alone.
3. Spark's own writing of a DataFrame is not one step. Nothing here can keep it from meeting another run's.
4. `load_input` reads a table again that was replaced while it was read. Other readers go on with what they have open.
   One that listed the folder before and opens files after, as a DataFrame of Spark does, must list it again.
5. What a run is writing, or a killed one has half-written, on a disk is a hidden file, which the next store of the
   partition removes when it is a day old. While there is one, Polars refuses the folder, but takes
   `folder/**/*.parquet`.
6. A key is escaped as by Spark: ASCII that is special in a path, as %3A. What is no ASCII stays as it is, since Spark
   would read its escaped bytes as a character each. Version 0.1.0 escaped it: such a folder is read until the
   partition is stored.
7. A file has no column of the name that the key becomes, since readers take one or the other, or refuse both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from dagster_llm_batch.config import CheckedIOManager
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.stored_files import DamagedError, FileVersion

__all__ = ["URI_KEY", "HiveParquetIOManager", "storage_uri"]

URI_KEY = "dagster/uri"
"""Where a table is, as Dagster's metadata has it."""

_TABLE = "table.parquet"

# The start of no file's name.
_NO_FILE = "/"

_ASCII = re.compile(r"[\x00-\x7f]+")

# So often a table is read that others replace meanwhile.
_MOST_READS = 5

# Of BATCH_ROWS each: smaller row groups take longer to write and to read, larger ones more memory, as do long rows.
_BATCHES_A_GROUP = 2
_GROUP_BYTES = 1 << 23

# To set zstd up for a column takes longer than to write all of such a table, which is as small without it.
_SMALL_BYTES = 1 << 16


def storage_uri(path: str) -> str:
    """Return a path or an address as a URI."""
    return path if "://" in path else Path(path).absolute().as_uri()


def _escape(key: str) -> str:
    """Return a partition's key as Spark writes and reads it in a path."""
    return _ASCII.sub(lambda found: quote(found[0], safe=" "), key)


def _without_key(batches: Iterator[pa.RecordBatch], column: str, key: str) -> Iterator[pa.RecordBatch]:
    """Yield batches without the column that the partition's key becomes. Raises InputError where it says otherwise."""
    for batch in batches:
        index = batch.schema.get_field_index(column)
        if index < 0:
            yield batch
        elif not _are_all(batch.column(index), key):
            raise InputError(
                f"The table has a column '{column}' with other values than the key of its partition, '{key}', which is "
                f"the column '{column}' of what is stored. Rename the column of the table, or give the keys another "
                "name: HiveParquetIOManager(root=…, partition_column=…)."
            )
        else:
            yield batch.remove_column(index)
        # Or it would be in memory while the next one is read.
        del batch


def _are_all(values: pa.Array, key: str) -> bool:
    """Return whether each value is this text."""
    try:
        are_all = pc.all(pc.equal(values.cast(pa.string()), key), skip_nulls=False, min_count=0)
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
    """Return the table in a folder, read again where it was replaced meanwhile; None where there is none."""
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


class HiveParquetIOManager(CheckedIOManager):
    """Stores frames of all kinds, and Spark's, as Parquet that Spark reads; loads Arrow tables."""

    root: str = Field(description="Folder of all tables: a path, s3://…, gs://….")
    partition_column: str = Field(default="partition", description="The column that a partition's key becomes.")

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Put a table in the place of what its folder holds. A Spark DataFrame is written by Spark."""
        if obj is None:
            return
        partition = context.partition_key if context.has_partition_key else None
        folder, *older = self._folders(context.asset_key, partition)
        context.add_output_metadata({"path": dg.MetadataValue.path(folder), URI_KEY: storage_uri(folder)})
        if hasattr(obj, "mapInArrow"):
            obj.write.mode("overwrite").parquet(folder)
        else:
            self._write(PayloadStore(folder), obj, context.asset_key, partition)
        for each in older:
            PayloadStore(each).keep_only(_NO_FILE)

    def _write(self, store: PayloadStore, obj: Any, asset: dg.AssetKey, partition: str | None) -> None:
        batches = record_batches(obj)
        groups = _groups(batches if partition is None else _without_key(batches, self.partition_column, partition))
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
                # Or it would be in memory while the next one is read.
                group = []
                group = next(groups, [])
        store.keep_only(_TABLE)
        store.remove_left_behind()

    def load_input(self, context: dg.InputContext) -> pa.Table:
        """Return the asset, or its partitions that are asked for, with their column. Raises FileNotFoundError for
        none.
        """
        keys = list(context.asset_partition_keys) if context.has_asset_partitions else [None]
        return pa.concat_tables([self._read(context.asset_key, key) for key in keys], promote_options="permissive")

    def _read(self, asset: dg.AssetKey, partition: str | None) -> pa.Table:
        folder, *older = self._folders(asset, partition)
        # Once more where it was: it may have been stored anew meanwhile.
        for place in (folder, *older, *([folder] if older else [])):
            try:
                table = _read_files(PayloadStore(place))
            except DamagedError as error:
                named = asset.to_user_string() + ("" if partition is None else f", partition {partition}")
                raise InputError(
                    f"The table of {named} is damaged: the bytes in {place} are not those that were written. Restore "
                    "them from a backup, or materialize it again."
                ) from error
            if table is not None:
                break
        else:
            raise FileNotFoundError(folder)
        if partition is None:
            return table
        # Spark stores it, as version 0.1.0 did.
        if self.partition_column in table.column_names:
            table = table.drop_columns([self.partition_column])
        return table.append_column(self.partition_column, pa.repeat(pa.scalar(partition, pa.string()), len(table)))

    def folder(self, asset: dg.AssetKey, partition: str | None = None) -> str:
        """Return where an asset, or a partition of it, is."""
        return self._folders(asset, partition)[0]

    def _folders(self, asset: dg.AssetKey, partition: str | None) -> list[str]:
        """Return where an asset, or a partition of it, is; then where older versions stored it, if elsewhere."""
        folder = "/".join([self.root.rstrip("/"), *asset.path])
        if partition is None:
            return [folder]
        keys = dict.fromkeys([_escape(partition), quote(partition, safe=" ")])
        return [f"{folder}/{self.partition_column}={key}" for key in keys]
