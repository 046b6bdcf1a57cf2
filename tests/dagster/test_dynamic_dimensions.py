"""Partitions with a dynamic dimension in databases, whose IO managers ask Dagster for the existing partitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pytest
from code_location import BATCH, LANDING, labeled, tickets
from dagster_deltalake import LocalConfig
from dagster_deltalake_polars import DeltaLakePolarsIOManager
from dagster_duckdb_pandas import DuckDBPandasIOManager

from dagster_llm_batch import evaluation_assets

REGIONS = ("eu", "us")
BY_CUSTOMER = dg.MultiPartitionsDefinition(
    {
        "customer": dg.DynamicPartitionsDefinition(name="customers"),
        "region": dg.StaticPartitionsDefinition(list(REGIONS)),
    }
)
DATABASES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "duckdb": ("pandas", lambda place: DuckDBPandasIOManager(database=f"{place}.duckdb")),
    "delta": ("polars", lambda place: DeltaLakePolarsIOManager(root_uri=place, storage_options=LocalConfig())),
}


def rows(context: Any) -> Any:
    customer, region = context.partition_key.split("|")
    return tickets(3, context.partition_key).with_columns(pl.lit(customer).alias("c"), pl.lit(region).alias("r"))


@pytest.mark.parametrize("database", DATABASES)
def test_labels_that_were_paid_for_land_and_evaluations_read_them(make, instance, tmp_path, database):
    frame, store = DATABASES[database]
    instance.add_dynamic_partitions("customers", ["c1"])
    labels = labeled(
        rows=rows,
        partitions_def=BY_CUSTOMER,
        frame=frame,
        keep=["c", "r"],
        metadata={"partition_expr": {"customer": "c", "region": "r"}},
    )

    def gold():
        made = {"ticket_id": [f"c1|{region}-0" for region in REGIONS], "topic": ["bug"] * 2}
        return pd.DataFrame(made) if frame == "pandas" else pl.DataFrame(made)

    gold.__annotations__["return"] = pd.DataFrame if frame == "pandas" else pl.DataFrame
    golden = dg.asset(name="gold")(gold)
    of = {"candidates": [labels], "key": "ticket_id", "target": "topic", "frame": frame}
    measured = evaluation_assets(name="quality", gold=golden, **of)
    location = make(golden, *labels, *measured, resources={"io_manager": store(str(tmp_path / "tables"))})
    for region in REGIONS:
        assert location.run(BATCH, partition=f"c1|{region}").success
    location.emulator.settle()
    for region in REGIONS:
        assert location.run(*LANDING, partition=f"c1|{region}").success
    assert location.run("gold").success
    assert location.run("quality").success
