"""A small project for evaluations: assets of tables by day, and a real instance with its tables and metadata."""

from __future__ import annotations

from decimal import Decimal

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa

DAYS = dg.StaticPartitionsDefinition(["mon", "tue", "wed"])
ROWS = {"mon": ["m1", "m2", "m3"], "tue": ["t1", "t2"], "wed": ["w1", "w2"]}
TRUTH = {"m1": "bug", "m2": "how", "m3": "bug", "t1": "bug", "t2": "how", "w1": "how", "w2": "bug"}
FRAMES = {"arrow": lambda t: t, "polars": pl.from_arrow, "pandas": lambda t: t.to_pandas()}


def table(labels, ids, column="topic", **more):
    columns = {"id": pa.array(ids, pa.string()), column: pa.array([labels[one] for one in ids], pa.string())}
    return pa.table({**columns, **{name: pa.array(values) for name, values in more.items()}})


def source(name, labels, *, partitions_def=DAYS, frame="arrow", column="topic", costs=True):
    """Return a real asset that stores one table a partition; without partitions, all rows."""

    @dg.asset(name=name, partitions_def=partitions_def)
    def produced(context):
        ids = ROWS[context.partition_key] if partitions_def is not None else list(TRUTH)
        more = {"llm_cost_usd": [Decimal("0.01")] * len(ids), "llm_model": ["tiny"] * len(ids)} if costs else {}
        return FRAMES[frame](table(labels, ids, column, **more))

    return produced


class EvaluationProject:
    """An instance and a place for tables."""

    def __init__(self, tmp_path):
        self.instance = dg.DagsterInstance.ephemeral()
        self.resources = {"io_manager": dg.FilesystemIOManager(base_dir=str(tmp_path))}

    def run(self, assets, *, select=None, partition=None, between=None, config=None, succeeds=True):
        self.assets = assets = list(assets)
        tags = {}
        if between:
            tags = {"dagster/asset_partition_range_start": between[0], "dagster/asset_partition_range_end": between[1]}
        result = dg.materialize(
            assets,
            instance=self.instance,
            resources=self.resources,
            selection=select and [key for asset in select for key in asset.keys],
            partition_key=partition,
            tags=tags,
            run_config=config or {},
            raise_on_error=False,
        )
        assert result.success is succeeds
        return result

    def fill(self, assets, *partitions):
        for partition in partitions or (None,):
            self.run(assets, partition=partition)

    def failure(self, assets, select, **run):
        """Return the message of the only failed step."""
        result = self.run(assets, select=select, succeeds=False, **run)
        [failed] = [event for event in result.all_node_events if event.is_step_failure]
        return failed.step_failure_data.user_failure_data.description

    def stored(self, key, partition=None):
        """Load a table as the IO manager stored it."""
        defs = dg.Definitions(assets=self.assets, resources=self.resources)
        return defs.load_asset_value(key, instance=self.instance, partition_key=partition)

    def metadata(self, key, partition=None):
        wanted = dg.AssetRecordsFilter(dg.AssetKey(key), asset_partitions=[partition] if partition else None)
        [record] = self.instance.fetch_materializations(wanted, limit=1).records
        return record.asset_materialization.metadata

    def partitions(self, key):
        return self.instance.get_materialized_partitions(dg.AssetKey(key))


def rows(stored):
    """Return rows by candidate, from any kind of frame."""
    frame = pl.from_pandas(stored) if isinstance(stored, pd.DataFrame) else pl.from_arrow(pa.table(stored))
    return {row["candidate"]: row for row in frame.to_dicts()}
