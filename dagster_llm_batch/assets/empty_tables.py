"""Tables without rows: some IO managers store nothing for them, and fail to load them."""

from __future__ import annotations

import re

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.metadata import COLUMNS_KEY

__all__ = ["find_empty_table"]

_COUNTS = ("dagster/partition_row_count", "dagster/row_count", "row_count")
_SCHEMAS = ("dagster/column_schema", COLUMNS_KEY, "dataframe_columns")
_DECIMAL = re.compile(r"decimal(128|256)\((\d+), (\d+)\)")


def find_empty_table(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> pa.Table | None:
    """Return an empty table if the newest materialization of an asset has 0 rows.

    Returns None if it has rows or lacks a count. The materialization's schema gives the columns. A column of an unknown
    type becomes text.
    """
    wanted = dg.AssetRecordsFilter(key, asset_partitions=None if partition is None else [partition])
    newest = next(iter(instance.fetch_materializations(wanted, limit=1).records), None)
    stored = None if newest is None else newest.asset_materialization
    if stored is None:
        return None
    counts = [stored.metadata[name].value for name in _COUNTS if name in stored.metadata]
    schemas = [stored.metadata[name] for name in _SCHEMAS if name in stored.metadata]
    tables = [one.schema for one in schemas if isinstance(one, dg.TableSchemaMetadataValue)]
    if not counts or counts[0] != 0 or not tables:
        return None
    return pa.schema([pa.field(column.name, _type_of(column.type)) for column in tables[0].columns]).empty_table()


def _type_of(name: str) -> pa.DataType:
    if found := _DECIMAL.fullmatch(name):
        bits, precision, scale = map(int, found.groups())
        return pa.decimal128(precision, scale) if bits == 128 else pa.decimal256(precision, scale)  # noqa: PLR2004
    try:
        return pa.type_for_alias(name)
    except ValueError:
        return pa.string()
