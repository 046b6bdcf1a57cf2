"""What an IO manager can store, as far as it is known before anything is asked or paid for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import dagster as dg

from dagster_llm_batch._dagster_private import types_of_database
from dagster_llm_batch.assets.output import Frame
from dagster_llm_batch.errors import ConfigError

__all__ = ["check_database"]

_FRAMES: Mapping[Frame, str] = {
    "arrow": "pyarrow.Table",
    "polars": "polars.DataFrame",
    "pandas": "pandas.DataFrame",
    "batches": "pyarrow.RecordBatchReader",
}


def check_database(spec: dg.AssetSpec, manager: object, frame: Frame, columns: Collection[str] | None = None) -> None:
    """Raise ConfigError where one of Dagster's IO managers of databases cannot store a table.

    It takes some kinds of tables only, and has all partitions in one table, of which it must know the column.

    Args:
        spec: The table.
        manager: Its IO manager. Others than those of databases are not checked.
        frame: What it is given.
        columns: Columns that the table has for sure and a partition may be in; None where they are not known.
    """
    if (types := types_of_database(manager)) is None:
        return
    table = spec.key.to_user_string()
    names = [_name_of(one) for one in types]
    if _FRAMES[frame] not in names:
        fitting = [f'frame="{one}"' for one, name in _FRAMES.items() if name in names]
        then = f"Give {' or '.join(fitting)}." if fitting else "Give another IO manager."
        raise ConfigError(
            f"The IO manager of {table} stores {', '.join(names)}, "
            f'and frame="{frame}" gives it {_FRAMES[frame]}. {then}'
        )
    if spec.partitions_def is not None:
        for dimension, expr in _partition_exprs(spec.partitions_def, spec.metadata.get("partition_expr")).items():
            _check_partition_expr(table, dimension, expr, columns)


def _partition_exprs(partitions_def: dg.PartitionsDefinition[Any], given: Any) -> Mapping[str, Any]:
    """Return what is given of each dimension; "" stands for partitions of one dimension."""
    if not isinstance(partitions_def, dg.MultiPartitionsDefinition):
        return {"": given}
    return {
        one.name: given.get(one.name) if isinstance(given, Mapping) else None for one in partitions_def.partitions_defs
    }


def _check_partition_expr(table: str, dimension: str, expr: Any, columns: Collection[str] | None) -> None:
    if columns is None:
        fitting = "its column partition has the partition's key as text"
    else:
        fitting = f"it may be the key or a column of keep= ({', '.join(sorted(columns))})"
    if not isinstance(expr, str) or not expr:
        form = f'{{"{dimension}": "…", …}}' if dimension else '"…"'
        raise ConfigError(
            f"{table} has partitions, which its IO manager keeps in one table of a database. It must know the column: "
            f'give metadata={{"partition_expr": {form}}}, a column or an expression of the database; {fitting}.'
        )
    if columns is not None and expr.isidentifier() and expr not in columns:
        raise ConfigError(f"partition_expr of {table} is '{expr}', which is no column of the table: {fitting}.")


def _name_of(kind: type) -> str:
    return f"{kind.__module__.partition('.')[0]}.{kind.__qualname__}"
