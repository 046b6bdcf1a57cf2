"""Tables leave through the user's own IO manager, one call for each partition.

A run over several partitions would otherwise hand the IO manager all of them as one object, which many refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from functools import lru_cache, partial
from itertools import chain
from typing import Any, Self, TypeVar

import dagster as dg
import pyarrow as pa

from dagster_llm_batch._dagster_private import asset_graph, database_of, io_manager_surroundings, output_context
from dagster_llm_batch.assets.sink import Frame, time_columns
from dagster_llm_batch.errors import MissingExtraError
from dagster_llm_batch.io import URI_KEY, HiveParquetIOManager, storage_uri
from dagster_llm_batch.loop.deployment import Threads

__all__ = ["Frame", "OutputWriter", "stored_by", "write_output"]

_Rows = TypeVar("_Rows", pa.Table, pa.RecordBatchReader)

# Delta's IO manager finds partitions of time in no other type.
_TIME = pa.timestamp("us", "UTC")


def stored_by(io_manager_key: str, *specs: dg.AssetSpec) -> list[dg.AssetSpec]:
    """Return the specs with the key of their IO manager, so that assets downstream load them through it."""
    return [spec.with_io_manager_key(io_manager_key) for spec in specs]


def _to_frame(table: pa.Table | pa.RecordBatchReader, frame: Frame, *, exact: bool = False) -> Any:
    """Convert the whole table, for `batches` too: an IO manager that keeps it in memory has it read more than once.

    With `exact`, columns of a pandas frame keep the types that plain pandas does not have.
    """
    whole = table.read_all() if isinstance(table, pa.RecordBatchReader) else table
    try:
        if frame == "polars":
            import polars as pl  # noqa: PLC0415 - optional

            return pl.from_arrow(_in_named_zones(whole))
        return whole.to_pandas(types_mapper=_exact_type if exact else None) if frame == "pandas" else whole
    except ImportError as error:
        raise MissingExtraError(frame, f"frame='{frame}'") from error


def _exact_type(kind: pa.DataType) -> Any:
    """Return the type of a column in a pandas frame for DuckDB, which guesses the types of plain objects.

    A column without values would get no type there, and a column of amounts below a dollar a type too small for others.
    DuckDB could then not store the next partition.
    """
    import pandas as pd  # noqa: PLC0415 - optional

    is_plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_timestamp(kind)
    return None if is_plain else pd.ArrowDtype(kind)


def _in_named_zones(table: pa.Table) -> pa.Table:
    """Convert to the same moments in UTC, where a column has an offset such as +05:30 for its zone: polars takes names
    alone.
    """
    for at, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and (field.type.tz or "")[:1] in ("+", "-"):
            named = field.with_type(pa.timestamp(field.type.unit, "UTC"))
            table = table.set_column(at, named, table.column(at).cast(named.type))
    return table


def _with_types(table: _Rows, times: Collection[str]) -> _Rows:
    """Give a type to each column without one, as a frame without rows may have: databases cannot read such columns.

    The columns in `times` become times, all others text.
    """
    fields = [
        field.with_type(_TIME if field.name in times else pa.string()) if pa.types.is_null(field.type) else field
        for field in table.schema
    ]
    typed: _Rows = table.cast(pa.schema(fields, table.schema.metadata))
    return typed


class _Stream(Iterator[pa.RecordBatch]):
    """The batches behind a RecordBatchReader. Has one batch at least, be it without rows: polars and others take the
    columns from a batch.
    """

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        first = next(reader, pa.RecordBatch.from_pylist([], reader.schema))
        self._schema = reader.schema
        self._rest: Iterator[pa.RecordBatch] = chain([first], reader)

    def __next__(self) -> pa.RecordBatch:
        return next(self._rest)

    def reader(self) -> pa.RecordBatchReader:
        """Return the reader that an IO manager is given."""
        return pa.RecordBatchReader.from_batches(self._schema, self)

    def outlive_source(self) -> None:
        """Take what was not read yet into memory: the files behind a stream are gone once its table has landed."""
        self._rest = iter(list(self._rest))


@lru_cache
def _dagster_type(kind: type) -> dg.DagsterType:
    return dg.PythonObjectDagsterType(kind)


# Few, since they mostly wait for the disk, and each takes time from the thread that tells Dagster.
_THREADS = 4

# So many tables at most are begun before Dagster is told of the first of them.
_MOST_AHEAD = 64

# A larger table is stored by the step's own thread: to write it takes longer than to wait for the disk. So some 16 MB
# of tables are in memory at most.
_AHEAD_BYTES = 1 << 18


class OutputWriter:
    """Gives the tables of a step to its IO manager, until the end of `with`.

    The package's own IO manager, which mostly waits for the disk, stores small tables in other threads, while tables of
    further partitions are made and Dagster is told of earlier ones. Any other is called by the step's own thread alone.
    """

    def __init__(self, context: dg.AssetExecutionContext, io_manager_key: str, frame: Frame) -> None:
        self._context = context
        self._frame = frame
        self._manager = getattr(context.resources, io_manager_key)
        self._around = io_manager_surroundings(context, io_manager_key)
        self._store = partial(_store, context.instance, self._manager)
        # A derived class may do what is not safe in several threads.
        self._is_own = type(self._manager) is HiveParquetIOManager
        self._pool = Threads(_THREADS, "dagster-llm-batch store")
        self._ahead: set[Future[Mapping[str, Any]]] = set()
        self._was_begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.__exit__(*error)

    @property
    def partitions_at_once(self) -> int:
        """How many partitions, with two tables each, are begun at most before Dagster is told of the first."""
        return _MOST_AHEAD // 2 if self._is_own else 1

    def may_begin(self) -> bool:
        """Return whether another partition may be begun before Dagster is told of those that were."""
        return self._was_begun and len(self._ahead) < _MOST_AHEAD

    def begin(
        self, spec: dg.AssetSpec, partition: str | None, table: pa.Table | pa.RecordBatchReader
    ) -> Callable[[], Mapping[str, Any]]:
        """Begin to store one partition's table; return a function that ends when it is stored, and returns what `write`
        does.

        What cannot be stored in another thread is stored by that function.
        """
        self._was_begun = self._is_own and isinstance(table, pa.Table) and table.nbytes <= _AHEAD_BYTES
        if not self._was_begun:
            return partial(self.write, spec, partition, table)
        value = _to_frame(table, self._frame)
        future = self._pool.submit(self._store, self._output(spec, partition, value), value)
        self._ahead.add(future)

        def wait() -> Mapping[str, Any]:
            self._ahead.discard(future)
            return future.result()

        return wait

    def write(
        self, spec: dg.AssetSpec, partition: str | None, table: pa.Table | pa.RecordBatchReader
    ) -> Mapping[str, Any]:
        """Give one partition's table to the IO manager; return the metadata that it logs, with the table's URI."""
        database = database_of(self._manager)
        if database is not None:
            table = _with_types(table, time_columns(asset_graph(self._context).get(spec.key)))
        if self._frame != "batches" or isinstance(self._manager, dg.InMemoryIOManager):
            value = _to_frame(table, self._frame, exact=database is not None and database.is_duckdb)
            return self._store(self._output(spec, partition, value), value)
        stream = _Stream(table.to_reader() if isinstance(table, pa.Table) else table)
        value = stream.reader()
        logged = self._store(self._output(spec, partition, value), value)
        stream.outlive_source()
        return logged

    def _output(self, spec: dg.AssetSpec, partition: str | None, value: Any) -> dg.OutputContext:
        kind = _dagster_type(type(value))  # type: ignore[arg-type]  # a class is hashable
        return output_context(self._context, spec.key, partition, kind, self._around)


def write_output(
    context: dg.AssetExecutionContext,
    spec: dg.AssetSpec,
    io_manager_key: str,
    partition: str | None,
    table: pa.Table | pa.RecordBatchReader,
    frame: Frame,
) -> Mapping[str, Any]:
    """Give one table of a step to its IO manager; see OutputWriter.write."""
    with OutputWriter(context, io_manager_key, frame) as writer:
        return writer.write(spec, partition, table)


def _store(instance: dg.DagsterInstance, manager: Any, output: dg.OutputContext, value: Any) -> Mapping[str, Any]:
    # An IO manager is called here, once a partition, and not by Dagster at the end of the step: it would be given all
    # partitions as one object. Those of databases look for the dynamic partitions of a dimension without an instance.
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        reported = manager.handle_output(output, value)
        for metadata in reported if isinstance(reported, Iterator) else filter(None, [reported]):
            _tell(output, metadata)
    logged = output.get_logged_metadata()
    # Those of databases tell `dagster/table_name` themselves; those of files tell a path.
    path = logged.get("path")
    if URI_KEY not in logged and isinstance(path, dg.PathMetadataValue) and path.value:
        return {URI_KEY: storage_uri(path.value), **logged}
    if URI_KEY in logged and not {"path", "uri"} & logged.keys():
        # dagster-openlineage reads the place of a table under these two names alone.
        return {**logged, "uri": logged[URI_KEY]}
    return logged


def _tell(output: dg.OutputContext, reported: Any) -> None:
    """Dagster lets an IO manager yield or return metadata and materializations of other assets."""
    if isinstance(reported, dg.AssetMaterialization):
        output.log_event(reported)
    else:
        output.add_output_metadata(reported)
