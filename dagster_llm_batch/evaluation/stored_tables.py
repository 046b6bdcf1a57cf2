"""Tables as their own IO managers stored them, one partition at a time. Each message names the asset and partition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch._dagster_private import asset_graph, load_asset
from dagster_llm_batch.assets.empty_tables import find_empty_table
from dagster_llm_batch.assets.upstream import mapped_partitions, stack_tables
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import ConfigError, InputError

__all__ = ["StoredTables", "columns_of", "partition_places"]


class StoredTables:
    """Reads assets for one run, each partition of them as one Arrow table."""

    def __init__(self, context: dg.AssetExecutionContext) -> None:
        self._context = context
        self._graph = asset_graph(context)
        # All assets of a step read the same, by the same mappings.
        self._reader = min(context.selected_asset_keys)
        # one answer a run
        self.partitions = cache(self._partitions)

    def partitions_def(self, key: dg.AssetKey) -> dg.PartitionsDefinition[Any] | None:
        return self._graph.get(key).partitions_def

    def _partitions(self, key: dg.AssetKey) -> list[str | None]:
        """Return the readable partitions of an asset, in order: [None] if it is not partitioned. Skip deleted
        partitions.
        """
        instance, node, partitions_def = self._context.instance, self._graph.get(key), self.partitions_def(key)
        if partitions_def is None:
            there = not node.is_materializable or instance.get_latest_materialization_event(key) is not None
            return [None] if there else []
        keys = partitions_def.get_partition_keys(dynamic_partitions_store=instance)
        stored = instance.get_materialized_partitions(key)
        return [partition for partition in keys if partition in stored]

    def in_partition(self, key: dg.AssetKey, partition: str) -> list[str | None]:
        """Return the partitions that Dagster's mapping gives an asset for `partition` of its reader.

        They are the partition itself, the days of a week, or all of an unpartitioned asset. Unmaterialized ones are
        left out. Raises ConfigError if Dagster cannot map them.
        """
        stored = set(self.partitions(key))
        return [part for part in self.mapped(key, partition) if part in stored]

    def mapped(self, key: dg.AssetKey, partition: str) -> list[str | None]:
        """Return the result of `in_partition` if all partitions were materialized."""
        return mapped_partitions(self._graph, self._context.instance, self._reader, key, partition)

    def places(self, key: dg.AssetKey) -> dict[str, int]:
        """Return the place of each partition of an asset among all that it may have."""
        return partition_places(self.partitions_def(key), self._context.instance)

    def before(self, partition: str) -> Iterator[str]:
        """Yield the partitions before this one, of the asset that is computed, the nearest first."""
        partitions_def = self.partitions_def(self._reader)
        keys = (
            []
            if partitions_def is None
            else partitions_def.get_partition_keys(dynamic_partitions_store=self._context.instance)
        )
        yield from reversed(keys[: keys.index(partition)] if partition in keys else [])

    def parts(self, key: dg.AssetKey, partition: str | None) -> list[str | None]:
        """Return the partitions of an asset that correspond to `partition`, or, for None, all readable ones."""
        return self.partitions(key) if partition is None else self.in_partition(key, partition)

    def read(
        self, key: dg.AssetKey, partition: str | None, columns: Sequence[str], *, also: Sequence[str] = (), hint: str
    ) -> pa.Table:
        """Return the data of an asset that one partition of its reader needs, or, for None, all of them.

        Raises ConfigError for partitions that cannot be mapped, InputError if no data exist.
        """
        here = self.parts(key, partition)
        if not here:
            where = "" if partition is None else f" for partition {partition}"
            raise InputError(f"{key.to_user_string()} is not materialized{where}. Materialize it first.")
        return stack_tables([self.load(key, part, columns, also=also, hint=hint) for part in here], key)

    def load(
        self, key: dg.AssetKey, partition: str | None, columns: Sequence[str], *, also: Sequence[str] = (), hint: str
    ) -> pa.Table:
        """Return `columns`, and the existing ones of `also`. Raises ConfigError, with `hint`, or InputError."""
        place = key.to_user_string() + ("" if partition is None else f" ({partition})")
        try:
            value = load_asset(self._context, key, partition)
            batches = list(record_batches(value, {*columns, *also}))
        except Exception as error:
            # an IO manager raises whatever its store does
            if (empty := find_empty_table(self._context.instance, key, partition)) is not None:
                return columns_of(list(record_batches(empty)), place, columns, also=also, hint=hint)
            never = self._context.instance.get_latest_materialization_event(key) is None
            todo = " It was never materialized here: materialize it first." if never else ""
            raise InputError(f"{place} could not be read: {type(error).__name__}: {error}.{todo}") from error
        return columns_of(batches, place, columns, also=also, hint=hint)


def partition_places(
    partitions_def: dg.PartitionsDefinition[Any] | None, instance: dg.DagsterInstance
) -> dict[str, int]:
    """Return the place of each partition among all of them, materialized or not; empty without partitions."""
    keys = [] if partitions_def is None else partitions_def.get_partition_keys(dynamic_partitions_store=instance)
    return {key: place for place, key in enumerate(keys)}


def columns_of(
    batches: Sequence[pa.RecordBatch], place: str, columns: Sequence[str], *, also: Sequence[str] = (), hint: str
) -> pa.Table:
    """Return `columns`, and the existing ones of `also`. Raises ConfigError, with `hint`, for a missing column."""
    table = pa.Table.from_batches(batches) if batches else pa.table({})
    if missing := [name for name in columns if name not in table.column_names]:
        if not table.column_names:
            names = ", ".join(map(repr, columns))
            raise ConfigError(f"{place} is empty, without even columns. It needs {names}, and rows in them.")
        raise ConfigError(
            f"{place} has no column {', '.join(map(repr, missing))}. Its columns: {', '.join(table.column_names)}. "
            f"{hint}"
        )
    wanted = dict.fromkeys([*columns, *(name for name in also if name in table.column_names)])
    return pa.table({name: _plain(table[name]) for name in wanted})


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Cast types that differ between IO managers to one: text, whole numbers and dictionaries of them."""
    t = pa.types
    if t.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if t.is_string(column.type) or t.is_string_view(column.type):
        return column.cast(pa.large_string())
    return column.cast(pa.int64()) if t.is_integer(column.type) and column.type != pa.uint64() else column
