"""Tables as Parquet in the layout of Hive, which Spark, Polars, DuckDB and others read as one table.

    <root>/<asset>/<column>=<partition key>/part-….parquet

A partition replaces its own files alone. Written by Arrow, in constant memory where the value is a stream.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
import pyarrow as pa
from pydantic import Field

from dagster_llm_batch.config import CheckedIOManager
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = ["URI_KEY", "HiveParquetIOManager", "storage_uri"]

URI_KEY = "dagster/uri"
"""Where a table is, as Dagster's metadata has it."""

# Of BATCH_ROWS each: smaller row groups take longer to write and to read, larger ones more memory, as do long rows.
_BATCHES_A_GROUP = 2
_GROUP_BYTES = 1 << 23

# To set zstd up for a column takes longer than to write all of such a table, which is as small without it.
_SMALL_BYTES = 1 << 16


def storage_uri(path: str) -> str:
    """Return a path or an address as a URI."""
    return path if "://" in path else Path(path).absolute().as_uri()


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


class HiveParquetIOManager(CheckedIOManager):
    """Stores frames of all kinds, and Spark's, as Parquet that Spark reads; loads Arrow tables."""

    root: str = Field(description="Folder of all tables: a path, s3://…, gs://….")
    partition_column: str = Field(default="partition", description="The column that a partition's key becomes.")

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Put a table in the place of what its folder holds. A Spark DataFrame is written by Spark."""
        if obj is None:
            return
        folder = self.folder(context.asset_key, context.partition_key if context.has_partition_key else None)
        context.add_output_metadata({"path": dg.MetadataValue.path(folder), URI_KEY: storage_uri(folder)})
        if hasattr(obj, "mapInArrow"):
            obj.write.mode("overwrite").parquet(folder)
            return
        groups = _groups(record_batches(obj))
        group = next(groups)
        name, store = f"part-{uuid.uuid4().hex}.parquet", PayloadStore(folder)
        is_small = sum(batch.nbytes for batch in group) < _SMALL_BYTES
        with store.table_writer(name, group[0].schema, compression="snappy" if is_small else "zstd") as out:
            while group:
                # Each column of a row group takes its time, with rows or without.
                if any(map(len, group)):
                    out.write_table(pa.Table.from_batches(group))
                # Or it would be in memory while the next one is read.
                group = []
                group = next(groups, [])
        store.keep_only(name)

    def load_input(self, context: dg.InputContext) -> pa.Table:
        """Return the asset, or its partitions that are asked for, with their column. Raises FileNotFoundError for
        none.
        """
        keys = list(context.asset_partition_keys) if context.has_asset_partitions else [None]
        return pa.concat_tables([self._read(context.asset_key, key) for key in keys], promote_options="permissive")

    def _read(self, asset: dg.AssetKey, partition: str | None) -> pa.Table:
        folder = self.folder(asset, partition)
        store = PayloadStore(folder)
        names = store.parquet_files()
        if not names:
            raise FileNotFoundError(folder)
        table = pa.concat_tables([store.read_table(name) for name in names])
        if partition is None:
            return table
        return table.append_column(self.partition_column, pa.repeat(pa.scalar(partition, pa.string()), len(table)))

    def folder(self, asset: dg.AssetKey, partition: str | None = None) -> str:
        """Return where an asset, or a partition of it, is."""
        parts = [self.root.rstrip("/"), *asset.path]
        if partition is not None:
            # as Spark writes and reads them
            parts.append(f"{self.partition_column}={quote(partition, safe=' ')}")
        return "/".join(parts)
