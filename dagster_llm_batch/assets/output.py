"""Tables are stored by the user's own IO manager, one call for each partition.

Otherwise a run over several partitions would pass all of them as one object, which many IO managers refuse.
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

# Delta's IO manager finds partitions of time only in this type.
_TIME = pa.timestamp("us", "UTC")


def stored_by(io_manager_key: str, *specs: dg.AssetSpec) -> list[dg.AssetSpec]:
    """Return the specs with the key of their IO manager, so that assets downstream load them through it."""
    return [spec.with_io_manager_key(io_manager_key) for spec in specs]


def _to_frame(table: pa.Table | pa.RecordBatchReader, frame: Frame, *, exact: bool = False) -> Any:
    """Convert the whole table, even for `batches`: a table that an IO manager keeps in memory is read more than once.

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

    DuckDB would leave a column without values untyped, and give a column of amounts below a dollar a type that is too
    small for others. It could then not store the next partition.
    """
    import pandas as pd  # noqa: PLC0415 - optional

    is_plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_timestamp(kind)
    return None if is_plain else pd.ArrowDtype(kind)


def _in_named_zones(table: pa.Table) -> pa.Table:
    """Convert columns whose time zone is an offset such as +05:30 to UTC: polars only takes named zones."""
    for at, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and (field.type.tz or "")[:1] in ("+", "-"):
            named = field.with_type(pa.timestamp(field.type.unit, "UTC"))
            table = table.set_column(at, named, table.column(at).cast(named.type))
    return table


def _with_types(table: _Rows, times: Collection[str]) -> _Rows:
    """Set a type for each column without one, which an empty frame may have. Databases cannot read such columns.

    The columns in `times` become times, all others text.
    """
    fields = [
        field.with_type(_TIME if field.name in times else pa.string()) if pa.types.is_null(field.type) else field
        for field in table.schema
    ]
    typed: _Rows = table.cast(pa.schema(fields, table.schema.metadata))
    return typed


class _Stream(Iterator[pa.RecordBatch]):
    """The batches behind a RecordBatchReader. There is at least one, perhaps without rows, since polars and others take
    the columns from a batch.
    """

    def __init__(self, reader: pa.RecordBatchReader) -> None:
        first = next(reader, pa.RecordBatch.from_pylist([], reader.schema))
        self._schema = reader.schema
        self._rest: Iterator[pa.RecordBatch] = chain([first], reader)

    def __next__(self) -> pa.RecordBatch:
        return next(self._rest)

    def reader(self) -> pa.RecordBatchReader:
        """Return the reader for an IO manager."""
        return pa.RecordBatchReader.from_batches(self._schema, self)

    def outlive_source(self) -> None:
        """Load the unread batches into memory: the files of a stream are deleted once its table is materialized."""
        self._rest = iter(list(self._rest))


@lru_cache
def _dagster_type(kind: type) -> dg.DagsterType:
    return dg.PythonObjectDagsterType(kind)


# A few are enough: they mostly wait for the disk, and each takes time from the thread that reports to Dagster.
_THREADS = 4

# At most this many tables are begun before the first of them is reported to Dagster.
_MOST_AHEAD = 64

# The step's own thread stores a larger table, since writing it takes longer than waiting for the disk. So at most some
# 16 MB of tables are in memory.
_AHEAD_BYTES = 1 << 18


class OutputWriter:
    """Passes the tables of a step to its IO manager, until the end of `with`.

    The package's own IO manager mostly waits for the disk. It stores small tables in other threads, while the step
    makes the tables of further partitions and reports earlier ones to Dagster. Any other IO manager is called only by
    the step's own thread.
    """

    def __init__(self, context: dg.AssetExecutionContext, io_manager_key: str, frame: Frame) -> None:
        self._context = context
        self._frame = frame
        self._manager = getattr(context.resources, io_manager_key)
        self._around = io_manager_surroundings(context, io_manager_key)
        self._store = partial(_store, context.instance, self._manager)
        # A derived class may not be safe in several threads.
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
        """The maximum number of partitions, with two tables each, that are begun before the first is reported."""
        return _MOST_AHEAD // 2 if self._is_own else 1

    def may_begin(self) -> bool:
        """Return whether another partition may be begun before the earlier ones are reported to Dagster."""
        return self._was_begun and len(self._ahead) < _MOST_AHEAD

    def begin(
        self, spec: dg.AssetSpec, partition: str | None, table: pa.Table | pa.RecordBatchReader
    ) -> Callable[[], Mapping[str, Any]]:
        """Begin to store one partition's table; return a function that waits until it is stored.

        The function returns the same as `write`. It also stores tables that cannot be stored in another thread.
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
        """Pass one partition's table to the IO manager; return the metadata that it logs, with the table's URI."""
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
    """Pass one table of a step to its IO manager; see OutputWriter.write."""
    with OutputWriter(context, io_manager_key, frame) as writer:
        return writer.write(spec, partition, table)


def _store(instance: dg.DagsterInstance, manager: Any, output: dg.OutputContext, value: Any) -> Mapping[str, Any]:
    # The IO manager is called here, once a partition. At the end of the step, Dagster would pass all partitions as one
    # object. The loading context is for IO managers of databases, which look up dynamic partitions without an instance.
    with dg.partition_loading_context(dynamic_partitions_store=instance):
        reported = manager.handle_output(output, value)
        for metadata in reported if isinstance(reported, Iterator) else filter(None, [reported]):
            _tell(output, metadata)
    logged = output.get_logged_metadata()
    # IO managers of databases log `dagster/table_name` themselves; IO managers of files log a path.
    path = logged.get("path")
    if URI_KEY not in logged and isinstance(path, dg.PathMetadataValue) and path.value:
        return {URI_KEY: storage_uri(path.value), **logged}
    if URI_KEY in logged and not {"path", "uri"} & logged.keys():
        # dagster-openlineage reads a table's location only from these two names.
        return {**logged, "uri": logged[URI_KEY]}
    return logged


def _tell(output: dg.OutputContext, reported: Any) -> None:
    """Log one event of an IO manager, which may yield or return metadata and materializations of other assets."""
    if isinstance(reported, dg.AssetMaterialization):
        output.log_event(reported)
    else:
        output.add_output_metadata(reported)
