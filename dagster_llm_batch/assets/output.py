"""Tables leave through the user's own IO manager, one call for each partition.

A run over several partitions would otherwise hand the IO manager all of them as one object, which many refuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Literal

import dagster as dg
import pyarrow as pa

from dagster_llm_batch._dagster_private import output_context
from dagster_llm_batch.errors import MissingExtraError
from dagster_llm_batch.io import URI_KEY, storage_uri

__all__ = ["Frame", "stored_by", "write_output"]

Frame = Literal["arrow", "polars", "pandas", "batches"]
"""What an IO manager is given. `batches` is a `pyarrow.RecordBatchReader`, to be read once: no table is held whole."""


def stored_by(io_manager_key: str, *specs: dg.AssetSpec) -> list[dg.AssetSpec]:
    """Return the specs with the key of their IO manager, so that assets downstream load them through it."""
    return [spec.with_io_manager_key(io_manager_key) for spec in specs]


def _to_frame(table: pa.Table | pa.RecordBatchReader, frame: Frame) -> Any:
    """Convert the whole table, for `batches` too: an IO manager that keeps it in memory has it read more than once."""
    whole = table.read_all() if isinstance(table, pa.RecordBatchReader) else table
    try:
        if frame == "polars":
            import polars as pl  # noqa: PLC0415 - optional

            return pl.from_arrow(_in_named_zones(whole))
        return whole.to_pandas() if frame == "pandas" else whole
    except ImportError as error:
        raise MissingExtraError(frame, f"frame='{frame}'") from error


def _in_named_zones(table: pa.Table) -> pa.Table:
    """Convert to the same moments in UTC, where a column has an offset such as +05:30 for its zone: polars takes names
    alone.
    """
    for at, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type) and (field.type.tz or "")[:1] in ("+", "-"):
            named = field.with_type(pa.timestamp(field.type.unit, "UTC"))
            table = table.set_column(at, named, table.column(at).cast(named.type))
    return table


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


def write_output(
    context: dg.AssetExecutionContext,
    spec: dg.AssetSpec,
    io_manager_key: str,
    partition: str | None,
    table: pa.Table | pa.RecordBatchReader,
    frame: Frame,
) -> Mapping[str, Any]:
    """Give one partition's table to the IO manager; returns the metadata that it logs, and where the table is by its
    URI.
    """
    manager = getattr(context.resources, io_manager_key)
    stream = None
    if frame == "batches" and not isinstance(manager, dg.InMemoryIOManager):
        stream = _Stream(table.to_reader() if isinstance(table, pa.Table) else table)
        value: Any = stream.reader()
    else:
        value = _to_frame(table, frame)
    kind = dg.PythonObjectDagsterType(type(value))
    output = output_context(context, spec.key, io_manager_key, partition, kind)
    # An IO manager is called here, once a partition, and not by Dagster at the end of the step: it would be given all
    # partitions as one object.
    reported = manager.handle_output(output, value)
    for metadata in reported if isinstance(reported, Iterator) else filter(None, [reported]):
        _tell(output, metadata)
    if stream is not None:
        stream.outlive_source()
    logged = output.get_logged_metadata()
    # Those of databases tell `dagster/table_name` themselves; those of files tell a path.
    path = logged.get("path")
    uri = {URI_KEY: storage_uri(path.value)} if isinstance(path, dg.PathMetadataValue) and path.value else {}
    return {**uri, **logged}


def _tell(output: dg.OutputContext, reported: Any) -> None:
    """Dagster lets an IO manager yield or return metadata and materializations of other assets."""
    if isinstance(reported, dg.AssetMaterialization):
        output.log_event(reported)
    else:
        output.add_output_metadata(reported)
