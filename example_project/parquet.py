"""Storage of the example's tables: polars frames, one Parquet file for each partition of each asset.

A stand-in for the IO manager of your own platform (DuckDB, Snowflake, BigQuery, Delta, Iceberg, …).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ParquetIOManager"]


class ParquetIOManager(dg.ConfigurableIOManager):
    """Stores polars frames. In a multi-partition run, the column in metadata `partition_expr` splits the frame."""

    folder: str

    def handle_output(self, context: dg.OutputContext, obj: pl.DataFrame) -> None:
        import polars as pl

        keys = context.asset_partition_keys if context.has_asset_partitions else [None]
        column = (context.definition_metadata or {}).get("partition_expr")
        if column is None and len(keys) > 1:
            raise ValueError(f"{context.asset_key.to_user_string()}: metadata 'partition_expr' must name a column.")
        for key in keys:
            part = obj if column is None or key is None else obj.filter(pl.col(column).cast(pl.String) == key)
            path = self._path(context, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_parquet(path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        # Tools such as `dagster-llm-batch review` find the table by this address: a file, or the partitions' folder.
        path = self._path(context, None) if keys == [None] else self._path(context, keys[0]).parent
        context.add_output_metadata({"dagster/uri": path.as_uri()})

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        import polars as pl

        keys = context.asset_partition_keys if context.has_asset_partitions else [None]
        return pl.concat([pl.read_parquet(self._path(context, key)) for key in keys])

    def _path(self, context: dg.OutputContext | dg.InputContext, key: str | None) -> Path:
        *folders, name = context.asset_key.path
        below = Path(self.folder, *folders)
        return below / f"{name}.parquet" if key is None else below / name / f"{key}.parquet"
