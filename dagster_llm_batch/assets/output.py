"""Tables leave through the user's own IO manager, one call for each partition.

A run over several partitions would otherwise hand the IO manager all of them as one object, which many refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any, Literal

import dagster as dg
import pyarrow as pa

from dagster_llm_batch._dagster_private import io_manager_surroundings
from dagster_llm_batch.errors import MissingExtraError

__all__ = ["Frame", "write_output"]

Frame = Literal["arrow", "polars", "pandas", "batches"]
"""What an IO manager is given. `batches` is a `pyarrow.RecordBatchReader`, to be read once: no table is held whole."""


def _to_frame(table: pa.Table | pa.RecordBatchReader, frame: Frame) -> Any:
    if frame == "batches":
        return _stream(table)
    try:
        if frame == "polars":
            import polars as pl  # noqa: PLC0415 - optional

            return pl.from_arrow(table)
        return table.to_pandas() if frame == "pandas" else table
    except ImportError as error:
        raise MissingExtraError(frame, f"frame='{frame}'") from error


def _stream(table: pa.Table | pa.RecordBatchReader) -> pa.RecordBatchReader:
    """Of one batch at least, be it without rows: polars and others take the columns from a batch."""
    reader = table.to_reader() if isinstance(table, pa.Table) else table
    first = next(reader, pa.RecordBatch.from_pylist([], reader.schema))
    return pa.RecordBatchReader.from_batches(reader.schema, chain([first], reader))


def write_output(
    context: dg.AssetExecutionContext,
    spec: dg.AssetSpec,
    io_manager_key: str,
    partition: str | None,
    table: pa.Table | pa.RecordBatchReader,
    frame: Frame,
) -> Mapping[str, Any]:
    """Give one partition's table to the IO manager; returns the metadata that it logs."""
    value = _to_frame(table, frame)
    output = dg.build_output_context(
        name=spec.key.to_python_identifier(),
        asset_key=spec.key,
        asset_spec=spec,
        definition_metadata=spec.metadata,
        partition_key=partition,
        asset_partitions_def=spec.partitions_def,
        run_id=context.run.run_id,
        dagster_type=dg.PythonObjectDagsterType(type(value)),
        instance=context.instance,
        **io_manager_surroundings(context, io_manager_key),
    )
    getattr(context.resources, io_manager_key).handle_output(output, value)
    return output.get_logged_metadata()
