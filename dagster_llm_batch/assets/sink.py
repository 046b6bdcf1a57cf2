"""The frames that IO managers take, and the tables that a database can store: checked before anything is paid for."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import dagster as dg
import pyarrow as pa

from dagster_llm_batch._dagster_private import Database, database_of
from dagster_llm_batch.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
    from dagster._core.definitions.assets.graph.base_asset_graph import BaseAssetNode

__all__ = ["Frame", "check_database", "time_columns"]

Frame = Literal["arrow", "polars", "pandas", "batches"]
"""The type that an IO manager gets. `batches` is a `pyarrow.RecordBatchReader`: a stream that can be read once."""

_FRAMES: Mapping[Frame, str] = {
    "arrow": "pyarrow.Table",
    "polars": "polars.DataFrame",
    "pandas": "pandas.DataFrame",
    "batches": "pyarrow.RecordBatchReader",
}
_AS_TEXT = '"partition"'
_AS_TIME = '"CAST(partition AS TIMESTAMP)" in DuckDB'


def check_database(
    specs: Iterable[dg.AssetSpec],
    graph: AssetGraph,
    manager: object,
    frame: Frame,
    columns: Collection[str] | None = None,
) -> None:
    """Raise ConfigError if one of Dagster's IO managers for databases cannot store these tables.

    Such an IO manager only takes some kinds of frames. It keeps all partitions in one table and finds them by a column.

    Args:
        specs: The tables.
        graph: The assets as the code location has them, since specs may change after their creation. An in-process job
            may have only its own assets; the partitions of others are not checked.
        manager: The IO manager. Other kinds of IO managers pass.
        frame: The kind of frame for it.
        columns: The columns that can identify a row's partition. None: the tables have a column `partition`.
    """
    if (database := database_of(manager)) is None:
        return
    for spec in specs:
        table = spec.key.to_user_string()
        _check_frame(table, database, frame)
        if not database.wants_partition_expr or not graph.has(spec.key):
            continue
        known = graph.get(spec.key)
        if known.partitions_def is not None:
            for dimension, keys, expr in _dimensions(known.partitions_def, known.metadata.get("partition_expr")):
                _check_partition_expr(table, dimension, keys, expr, columns)


def time_columns(table: BaseAssetNode) -> list[str]:
    """Return the `partition_expr` of each dimension whose partitions are times, from the code location's table."""
    if table.partitions_def is None:
        return []
    dimensions = _dimensions(table.partitions_def, table.metadata.get("partition_expr"))
    return [expr for _, keys, expr in dimensions if isinstance(keys, dg.TimeWindowPartitionsDefinition)]


def _check_frame(table: str, database: Database, frame: Frame) -> None:
    if not issubclass(_class_of(frame), database.types):
        names = [f"{one.__module__.partition('.')[0]}.{one.__qualname__}" for one in database.types]
        fitting = [f'frame="{one}"' for one, name in _FRAMES.items() if name in names]
        then = f"Give {' or '.join(fitting)}." if fitting else "Give another IO manager."
        stores = f"The IO manager of {table} stores {', '.join(names)}"
        raise ConfigError(f'{stores}, and frame="{frame}" gives it {_FRAMES[frame]}. {then}')


def _class_of(frame: Frame) -> type:
    found: type = pa.Table if frame == "arrow" else pa.RecordBatchReader
    try:
        if frame == "polars":
            import polars as pl  # noqa: PLC0415 - optional

            found = pl.DataFrame
        if frame == "pandas":
            import pandas as pd  # noqa: PLC0415 - optional

            found = pd.DataFrame
    except ImportError as error:
        raise MissingExtraError(frame, f"frame='{frame}'") from error
    return found


def _dimensions(
    partitions_def: dg.PartitionsDefinition[Any], given: Any
) -> Iterable[tuple[str, dg.PartitionsDefinition[Any], Any]]:
    """Return each dimension's name, partitions and `partition_expr`. The name of an only dimension is ""."""
    if not isinstance(partitions_def, dg.MultiPartitionsDefinition):
        return [("", partitions_def, given)]
    by_name = given if isinstance(given, Mapping) else {}
    return [(one.name, one.partitions_def, by_name.get(one.name)) for one in partitions_def.partitions_defs]


def _check_partition_expr(
    table: str, dimension: str, keys: dg.PartitionsDefinition[Any], expr: Any, columns: Collection[str] | None
) -> None:
    is_time = isinstance(keys, dg.TimeWindowPartitionsDefinition)
    if columns is not None:
        fitting = f"Give one of {', '.join(sorted(columns))}, or an expression of it."
    elif dimension:
        fitting = "Its column partition has the key of all dimensions, as text. Give an expression of it."
    else:
        fitting = f"Its column partition has the key as text. Give {_AS_TIME if is_time else _AS_TEXT}."
    form = f'{{"{dimension}": "…", …}}' if dimension else '"…"'
    if not isinstance(expr, str) or not expr:
        raise ConfigError(
            f"{table} has partitions, which its IO manager keeps in one table of a database. It finds them by "
            f'metadata={{"partition_expr": {form}}}, which is missing. {fitting}'
        )
    if columns is not None and not _words(expr) & {one.casefold() for one in columns}:
        raise ConfigError(f"partition_expr of {table} is '{expr}', which does not identify the partition. {fitting}")
    if columns is None and is_time and expr.casefold() == "partition":
        raise ConfigError(
            f"partition_expr of {table} is '{expr}', which is text: a database finds no time in it. {fitting}"
        )


def _words(expr: str) -> set[str]:
    # Databases ignore the case of names without quotes.
    return {one.casefold() for one in re.findall(r"\w+", expr)}
