"""The upstream data that one partition of an asset reads: the partitions that Dagster's mapping selects.

Several partitions are read one after the other: by time, oldest first, or else in Dagster's order. Missing partitions,
and a key in several of them, are refused unless the `AssetDep` allows them by its `metadata`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch._dagster_private import asset_graph, inferred_mapping, load_asset
from dagster_llm_batch.assets.empty_tables import find_empty_table
from dagster_llm_batch.assets.keys import Upstream, upstream_key
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import ConfigError, InputError, NoRowsError
from dagster_llm_batch.text import cell_text

__all__ = [
    "ALLOW_MISSING",
    "REPEATED_KEYS",
    "UpstreamReader",
    "check_deps",
    "check_partitions",
    "known_specs",
    "mapped_partitions",
    "refuse_repeated",
    "stack_tables",
]

ALLOW_MISSING = "allow_missing_partitions"
"""Metadata of an AssetDep, under Dagster's own name: whether to skip partitions that are not materialized."""

REPEATED_KEYS = "repeated_keys"
"""Metadata of an AssetDep: the rule for a key in several partitions. "refuse", or "last": the last partition's row."""

_RULES = ("refuse", "last")
_SHOWN = 5
_MAP = (
    "Give deps=[AssetDep(..., partition_mapping=...)] that maps them, both the same partitions_def, or in the place of "
    "the asset a function that gives rows."
)


def check_deps(deps: Sequence[dg.AssetDep]) -> None:
    """Raise ConfigError if this package's metadata of an AssetDep has a value that is not allowed."""
    for dep in deps:
        for name, allowed in ((ALLOW_MISSING, (True, False)), (REPEATED_KEYS, _RULES)):
            if (value := dep.metadata.get(name, allowed[0])) not in allowed:
                raise ConfigError(
                    f"deps: {name}={value!r} of {dep.asset_key.to_user_string()} is not allowed; it takes "
                    f"{' or '.join(map(repr, allowed))}."
                )


def check_partitions(
    reader: dg.AssetKey,
    partitions_def: dg.PartitionsDefinition[Any] | None,
    upstream: object,
    deps: Sequence[dg.AssetDep] = (),
) -> None:
    """Raise ConfigError if definitions in `upstream` have partitions that cannot be mapped to the reader's."""
    static = dg.StaticPartitionsDefinition
    for spec in known_specs(upstream):
        if spec.partitions_def is None:
            continue
        named = next((dep.partition_mapping for dep in deps if dep.asset_key == spec.key), None)
        mapping = inferred_mapping(named, partitions_def, spec.partitions_def)
        try:
            mapping.validate_partition_mapping(spec.partitions_def, partitions_def)
            # The keys of other, growing partitions are only known in a run.
            if isinstance(partitions_def, static) and isinstance(spec.partitions_def, static):
                for key in partitions_def.get_partition_keys():
                    _mapped(mapping, key, partitions_def, spec.partitions_def, None)
        except Exception as error:
            raise _other_partitions(spec.key, spec.partitions_def, reader, partitions_def, error) from error


def known_specs(upstream: object) -> Iterator[dg.AssetSpec]:
    """Yield the specs of definitions, also in lists and mappings. Assets named by key are only resolved in a run."""
    # AssetSpec and AssetKey are tuples, too; an AssetKey cannot be iterated.
    if isinstance(upstream, dg.AssetSpec):
        yield upstream
    elif isinstance(upstream, dg.AssetKey):
        return
    elif isinstance(upstream, dg.AssetsDefinition):
        yield from upstream.specs
    elif isinstance(upstream, Mapping | list | tuple):
        for one in upstream.values() if isinstance(upstream, Mapping) else upstream:
            yield from known_specs(one)


def mapped_partitions(
    graph: Any, instance: dg.DagsterInstance, reader: dg.AssetKey, upstream: dg.AssetKey, partition: str | None
) -> list[str | None]:
    """Return the partitions of `upstream` that a partition of `reader` reads, in order; [None] if unpartitioned.

    Raises ConfigError if Dagster cannot map them, or maps to a partition that the asset does not have.
    """
    own, node = graph.get(upstream).partitions_def, graph.get(reader)
    if own is None:
        return [None]
    # Dagster would infer the same.
    if own == node.partitions_def and upstream not in node.partition_mappings:
        return [partition]
    mapping = graph.get_partition_mapping(reader, upstream)
    try:
        keys = _mapped(mapping, partition, node.partitions_def, own, instance)
    except Exception as error:
        raise _other_partitions(upstream, own, reader, node.partitions_def, error) from error
    return list(_ordered(own, keys, instance))


def _mapped(
    mapping: dg.PartitionMapping,
    partition: str | None,
    partitions_def: dg.PartitionsDefinition[Any] | None,
    own: dg.PartitionsDefinition[Any],
    instance: dg.DagsterInstance | None,
) -> list[str]:
    subset = None
    if partitions_def is not None and partition is not None:
        # A multi-partition key contains its dimensions; its text does not.
        if isinstance(partitions_def, dg.MultiPartitionsDefinition):
            partition = partitions_def.get_partition_key_from_str(partition)
        subset = partitions_def.empty_subset().with_partition_keys([partition])
    found = mapping.get_upstream_mapped_partitions_result_for_partitions(
        subset, partitions_def, own, dynamic_partitions_store=instance
    )
    if absent := sorted(found.required_but_nonexistent_partition_keys):
        raise ConfigError(f"{partition or 'It'} would read {_listed(absent)}, which it does not have")
    return list(found.partitions_subset.get_partition_keys())


def _other_partitions(
    upstream: dg.AssetKey,
    own: dg.PartitionsDefinition[Any],
    reader: dg.AssetKey,
    partitions_def: dg.PartitionsDefinition[Any] | None,
    error: Exception,
) -> ConfigError:
    reason = str(error)
    if not isinstance(error, ConfigError):
        reason = f"Dagster cannot map one to the other: {cell_text(reason, limit=120)}"
    own_text, text = (str(one).rstrip(".") for one in (own, partitions_def))
    return ConfigError(
        f"{upstream.to_user_string()} has other partitions than {reader.to_user_string()}: {own_text} against {text}. "
        f"{reason.rstrip('.')}. {_MAP}"
    )


def _ordered(own: dg.PartitionsDefinition[Any], keys: Sequence[str], instance: dg.DagsterInstance) -> list[str]:
    """Sort by time if a dimension is one, then in Dagster's order."""
    if len(keys) <= 1:
        return list(keys)
    if not isinstance(own, dg.MultiPartitionsDefinition):
        wanted = set(keys)
        return [key for key in own.get_partition_keys(dynamic_partitions_store=instance) if key in wanted]
    dimensions = sorted(
        own.partitions_defs, key=lambda one: not isinstance(one.partitions_def, dg.TimeWindowPartitionsDefinition)
    )
    places = [
        {key: at for at, key in enumerate(one.partitions_def.get_partition_keys(dynamic_partitions_store=instance))}
        for one in dimensions
    ]
    parts = {key: own.get_partition_key_from_str(key).keys_by_dimension for key in keys}
    return sorted(
        keys,
        key=lambda key: [place[parts[key][one.name]] for one, place in zip(dimensions, places, strict=True)],
    )


@dataclass
class UpstreamReader:
    """Reads for one partition of one asset, and collects metadata and notes on it.

    Attributes:
        graph: Dagster's graph of the assets.
        instance: The instance with the materializations.
        reader: The asset that reads; its mappings apply.
        partition: Its partition, or None.
        deps: The assets that it may read.
        load: Loads an asset, or one partition of it, through its IO manager.
        hint: A text for the message about an asset that is not materialized.
        metadata: After the read: counts of partitions and rows that were read or skipped.
        notes: The same as text for the log.
    """

    graph: Any
    instance: dg.DagsterInstance
    reader: dg.AssetKey
    partition: str | None
    deps: Sequence[dg.AssetDep]
    load: Callable[[dg.AssetKey, str | None], Any]
    hint: str = ""
    metadata: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of_run(
        cls, context: dg.AssetExecutionContext, partition: str | None, deps: Sequence[dg.AssetDep]
    ) -> UpstreamReader:
        """Return the reader for the asset that a run computes."""
        # All assets of a step read the same, by the same mappings.
        reader = min(context.selected_asset_keys)
        return cls(asset_graph(context), context.instance, reader, partition, deps, partial(load_asset, context))

    def table(self, upstream: Upstream) -> pa.Table:
        """Return the table that this partition reads from an asset in deps=. Raises ConfigError and InputError."""
        dep = self._dep(upstream_key(upstream))
        parts = [list(record_batches(value)) for _, value in self._loaded(dep, self._there(dep))]
        tables = [pa.Table.from_batches(batches) for batches in parts if batches]
        return stack_tables(tables or [pa.table({})], dep.asset_key)

    @contextmanager
    def rows(self, asset: dg.AssetKey, key: str, read: Collection[str] | None) -> Iterator[Any]:
        """Yield the rows of an asset: one partition as loaded, several partitions as a stream that can be read once.

        Args:
            asset: The asset.
            key: The column that identifies a row.
            read: The columns to read; None for all.

        Raises ConfigError and InputError. A key in several partitions raises InputError within the block.
        """
        dep = self._dep(asset)
        there = self._there(dep)
        if len(there) == 1:
            yield next(value for _, value in self._loaded(dep, there))
            return
        try:
            yield self._rows(dep, there, key, read)
        except InputError:
            if dep.metadata.get(REPEATED_KEYS) == "last":
                raise
            # The partitions of a repeated key are only known here.
            keys = [(part, _column(record_batches(value, {key}), key)) for part, value in self._loaded(dep, there)]
            take_last = f"deps=[AssetDep({asset.to_user_string()!r}, metadata={{{REPEATED_KEYS!r}: 'last'}})]"
            todo = f"Choose a key that names one row in all of them, or take the row of the last one: {take_last}."
            refuse_repeated(keys, asset, key, todo)
            raise

    def _dep(self, asset: dg.AssetKey) -> dg.AssetDep:
        if found := [dep for dep in self.deps if dep.asset_key == asset]:
            return found[0]
        name = asset.to_user_string()
        raise ConfigError(
            f"{self.reader.to_user_string()} does not name {name} among what it reads. Add deps=[{name!r}]."
        )

    def _there(self, dep: dg.AssetDep) -> list[str | None]:
        """Return the partitions to read. Raises InputError if all are missing, or one that `deps` does not allow."""
        asset, name = dep.asset_key, dep.asset_key.to_user_string()
        wanted = mapped_partitions(self.graph, self.instance, self.reader, asset, self.partition)
        if not wanted:
            raise InputError(f"{self.partition} reads no partition of {name}. {_MAP}")
        # Without any materialization, the data may come from elsewhere, and the IO manager finds the partitions.
        stored = self.instance.get_materialized_partitions(asset) or wanted
        missing = [partition for partition in wanted if partition is not None and partition not in stored]
        there = [partition for partition in wanted if partition not in missing]
        if missing and not (there and dep.metadata.get(ALLOW_MISSING)):
            raise self._missing(dep, missing, len(wanted))
        if len(wanted) > 1:
            self._count("upstream_partitions", len(there))
            self.notes.append(f"{name}: read {_listed(there)}.")
        if missing:
            self._tell_missing(dep, missing)
        return there

    def _missing(self, dep: dg.AssetDep, missing: Sequence[str | None], wanted: int) -> NoRowsError:
        name = dep.asset_key.to_user_string()
        if wanted == 1:
            return self._absent(name, f" for {missing[0]}")
        where = f" in {len(missing)} of the {wanted} partitions that {self.partition or 'it'} reads: {_listed(missing)}"
        allow = f"deps=[AssetDep({name!r}, metadata={{{ALLOW_MISSING!r}: True}})]"
        return self._absent(name, where, "" if len(missing) == wanted else f", or leave them out: {allow}")

    def _absent(self, name: str, where: str, otherwise: str = "") -> NoRowsError:
        hint = f" ({self.hint})" if self.hint else ""
        return NoRowsError(f"The asset {name} is not materialized{where}{hint}. Materialize it first{otherwise}.")

    def _tell_missing(self, dep: dg.AssetDep, missing: Sequence[str | None]) -> None:
        self._count("upstream_partitions_missing", len(missing))
        self.notes.append(f"{dep.asset_key.to_user_string()}: not materialized, and left out: {_listed(missing)}.")

    def _count(self, name: str, count: int) -> None:
        self.metadata[f"llm_batch/{name}"] = self.metadata.get(f"llm_batch/{name}", 0) + count

    def _loaded(self, dep: dg.AssetDep, there: Sequence[str | None]) -> Iterator[tuple[str | None, Any]]:
        """Yield the partitions with the values that their IO manager loads."""
        found = 0
        for at, partition in enumerate(there, start=1):
            try:
                value = self._load(dep.asset_key, partition)
            except FileNotFoundError as error:
                if dep.metadata.get(ALLOW_MISSING) and (found or at < len(there)):
                    self._tell_missing(dep, [partition])
                    continue
                where = "" if partition is None else f" for {partition}"
                raise self._absent(dep.asset_key.to_user_string(), f"{where}: {error}") from error
            found += 1
            yield partition, value
            # Free its memory before the next one is read.
            del value

    def _load(self, key: dg.AssetKey, partition: str | None) -> Any:
        try:
            return self.load(key, partition)
        # Each IO manager raises its own exception for an empty table that it did not store.
        except Exception:
            if (empty := find_empty_table(self.instance, key, partition)) is None:
                raise
            return empty

    def _rows(
        self, dep: dg.AssetDep, there: Sequence[str | None], key: str, read: Collection[str] | None
    ) -> Iterator[pa.RecordBatch]:
        """Yield the rows of all these partitions.

        With `repeated_keys: last`, the last partition comes first, and rows with a key that was seen are skipped. The
        types come from tables with rows, or from an empty one if all are empty.
        """
        is_last, name = dep.metadata.get(REPEATED_KEYS) == "last", dep.asset_key.to_user_string()
        seen, empty = None, None
        is_empty, dropped = True, 0
        for _, value in self._loaded(dep, there[::-1] if is_last else there):
            batches: Iterable[pa.RecordBatch] = record_batches(value, read)
            # Free its memory before the next one is read.
            del value
            if is_last:
                held = list(batches)
                batches, seen = _unseen(held, seen, key, name)
                dropped += sum(map(len, held)) - sum(map(len, batches))
            for batch in batches:
                if batch.num_rows:
                    is_empty = False
                    yield batch
                elif empty is None:
                    empty = batch
                del batch
        if is_empty and empty is not None:
            yield empty
        if dropped:
            self._count("rows_repeated", dropped)
            self.notes.append(f"{name}: left out {dropped:,} rows whose {key} a later partition has.")


def stack_tables(tables: Sequence[pa.Table], key: dg.AssetKey) -> pa.Table:
    """Stack tables of one asset.

    The types come from tables with rows. An empty table only adds the columns that all others lack, such as labels if
    all rows are rejects.
    """
    filled = [table for table in tables if len(table)] or tables[:1]
    try:
        stacked = pa.concat_tables(filled, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(
            f"The partitions of {key.to_user_string()} hold different types in the same column: {error}. "
            "Materialize the older ones again with the newer type."
        ) from error
    for column in (column for table in tables for column in table.schema):
        if column.name not in stacked.column_names:
            stacked = stacked.append_column(column, pa.nulls(len(stacked), column.type))
    return stacked


def _unseen(
    batches: list[pa.RecordBatch], seen: pa.ChunkedArray | None, key: str, name: str
) -> tuple[list[pa.RecordBatch], pa.ChunkedArray | None]:
    """Return the rows whose key was not seen in a later partition, and all keys seen by now."""
    table = pa.Table.from_batches(batches) if batches else pa.table({})
    if key not in table.column_names or not len(table):
        return batches, seen
    keys = table[key]
    if seen is None:
        return batches, keys
    try:
        seen = seen.cast(keys.type)
    except pa.ArrowException as error:
        raise InputError(
            f"The key '{key}' of {name} is of type {keys.type} in one partition and of type {seen.type} in a later "
            f"one: {error}. Give it one type in all of them."
        ) from error
    is_new = pc.invert(pc.is_in(keys, value_set=seen))
    return table.filter(is_new).to_batches(), pa.chunked_array([*seen.chunks, *keys.filter(is_new).chunks])


def refuse_repeated(
    keys: Sequence[tuple[str | None, pa.ChunkedArray]], asset: dg.AssetKey, key: str, todo: str
) -> None:
    """Raise InputError if these partitions have a key more than once. The message names the keys and partitions."""
    tables = [pa.table({key: column.drop_null()}) for _, column in keys if len(column)]
    if not tables:
        return
    try:
        whole = pa.concat_tables(tables, promote_options="permissive")[key]
        counts = pc.value_counts(whole)
    except pa.ArrowException:
        # Types that differ or do not fit a key are refused later, when the tables are combined.
        return
    repeated = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
    if not len(repeated):
        return
    shown = []
    for value in repeated[:_SHOWN]:
        places = [str(part) for part, column in keys if pc.any(pc.equal(column.cast(whole.type), value)).as_py()]
        shown.append(f"{value.as_py()!r} in {', '.join(dict.fromkeys(places))}")
    more = f"; and {len(repeated) - _SHOWN:,} more" if len(repeated) > _SHOWN else ""
    name, examples = asset.to_user_string(), "; ".join(shown)
    raise InputError(f"The key '{key}' of {name} is not unique over its partitions: {examples}{more}. {todo}")


def _column(batches: Iterator[pa.RecordBatch], name: str) -> pa.ChunkedArray:
    chunks = [batch.column(name) for batch in batches if name in batch.schema.names]
    return pa.chunked_array(chunks or [pa.nulls(0)])


def _listed(partitions: Sequence[str | None]) -> str:
    """Return their names; of many, only the first and the last."""
    names = [str(partition) for partition in partitions]
    return ", ".join(names) if len(names) <= _SHOWN + 2 else f"{len(names)} partitions, {names[0]} to {names[-1]}"
