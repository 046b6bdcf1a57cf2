"""Tables without rows in real stores: some IO managers do not store them, and evaluations read them anyway."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pandas as pd
import polars as pl
import pytest
from code_location import BATCH, LABELS, REJECTS, CodeLocation, labeled, tickets
from dagster_deltalake import LocalConfig
from dagster_deltalake_polars import DeltaLakePolarsIOManager
from dagster_duckdb_pandas import DuckDBPandasIOManager

from dagster_llm_batch import (
    Checks,
    HiveParquetIOManager,
    Resend,
    estimate_assets,
    evaluation_assets,
    gold_sample_assets,
)
from dagster_llm_batch.testing.emulator import RowFault

STORES = {
    "duckdb, pandas": ("pandas", lambda place: DuckDBPandasIOManager(database=f"{place}/tables.duckdb")),
    "delta, polars": (
        "polars",
        lambda place: DeltaLakePolarsIOManager(root_uri=str(place), storage_options=LocalConfig()),
    ),
    "hive, arrow": ("arrow", lambda place: HiveParquetIOManager(root=str(place))),
    "files, polars": ("polars", lambda place: dg.FilesystemIOManager(base_dir=str(place))),
}
EVALUATIONS = ("quality", "totals", "proposals")


def platform(emulator: Any, instance: Any, place: Any, store: str, rows: int) -> CodeLocation:
    frame, make = STORES[store]
    ids = [f"t-{n}" for n in range(3)]
    made = {"ticket_id": ids, "topic": ["bug"] * 3}

    def gold():
        return pd.DataFrame(made) if frame == "pandas" else pl.DataFrame(made)

    gold.__annotations__["return"] = pd.DataFrame if frame == "pandas" else pl.DataFrame
    dataset = labeled(
        rows=lambda _: tickets(rows),
        frame=frame,
        checks=Checks(min_coverage=0, min_parse_rate=0),
        resend=Resend(max_waves=1),
    )
    of = {"candidates": [dataset], "key": "ticket_id", "target": "topic", "frame": frame}
    golden = dg.asset(name="gold")(gold)
    return CodeLocation(
        emulator,
        instance,
        golden,
        *dataset,
        *evaluation_assets(name="quality", gold=golden, **of),
        *estimate_assets(name="totals", gold=golden, **of),
        *gold_sample_assets(name="proposals", gold=golden, **of),
        resources={"io_manager": make(place)},
    )


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("case", ["no rejects", "no labels", "no rows"])
def test_evaluations_read_labels_and_rejects_of_which_there_are_none(emulator, instance, tmp_path, store, case):
    if case == "no labels":
        emulator.inject(RowFault(containing="Subject", status_code=400))
    location = platform(emulator, instance, tmp_path, store, rows=0 if case == "no rows" else 3)
    assert location.run("gold").success
    assert location.run(BATCH).success
    emulator.settle()
    assert location.run(LABELS, REJECTS).success
    for name in EVALUATIONS:
        assert location.run(name).success, name


def test_a_table_with_rows_that_cannot_be_read_is_an_error_and_no_empty_table(emulator, instance, tmp_path):
    location = platform(emulator, instance, tmp_path, "files, polars", rows=3)
    assert location.run("gold").success
    location.land()
    (tmp_path / LABELS).unlink()
    assert not location.run("quality").success
