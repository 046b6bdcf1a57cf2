"""`frame="batches"`: labels and rejects reach the IO manager as streams, with the same metadata."""

from pathlib import Path
from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from code_location import DAILY, LABELS, LANDING, REJECTS, CodeLocation, labeled, tickets

from dagster_llm_batch import Checks, HiveParquetIOManager, Prompt
from dagster_llm_batch.assets.labeled_tables import spool
from dagster_llm_batch.core.label_join import REJECT_COLUMNS, Labeled
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.label_stats import LabelStats
from dagster_llm_batch.loop.deployment import PART_ROWS
from dagster_llm_batch.testing.emulator import RowFault

ROWS = PART_ROWS + 500  # in two parts
OF_A_RUN = {"llm_run_id", "llm_batch_id", "llm_submitted_at", "llm_completed_at"}


def stored(root: Path, name: str) -> pa.Table:
    [path] = (root / name).rglob("*.parquet")
    table = pq.read_table(path).sort_by("ticket_id")
    return table.drop_columns([column for column in table.column_names if column in OF_A_RUN])


def told(location: CodeLocation, name: str) -> dict[str, Any]:
    """Return metadata without a run's own values, and without the first rows, whose order is undefined."""
    of_a_run = ("path", "uri", "preview", "submission_id", "batch_ids", "console")
    return {key: value for key, value in location.metadata(name).items() if not key.endswith(of_a_run)}


@pytest.mark.slow
@pytest.mark.parametrize("rejected", ["one", "all", "none"])
def test_streams_land_and_tell_the_same_as_tables(make, emulator, tmp_path, rejected):
    if rejected != "none":
        emulator.inject(RowFault(containing="invoice t-7?" if rejected == "one" else "invoice", status_code=400))
    seen = []
    for frame in ("arrow", "batches"):
        root = tmp_path / frame
        location = make(
            *labeled(
                rows=lambda context: tickets(ROWS),
                frame=frame,
                name=f"{frame}_labels",
                checks=Checks(blocking=False),
            ),
            resources={"io_manager": HiveParquetIOManager(root=str(root))},
        )
        names = [f"{frame}_labels", f"{frame}_labels_rejects"]
        assert location.run(f"{frame}_labels_batch").success
        emulator.settle()
        result = location.run(*names)
        assert result.success
        seen.append(
            {
                "tables": [stored(root, name) for name in names],
                "told": [told(location, name) for name in names],
                "checks": location.checks(result),
                "first": [len(location.metadata(name)["llm_batch/preview"].records) for name in names],
            }
        )
    whole, streamed = seen
    assert streamed == whole
    labels, rejects = streamed["tables"]
    assert (len(labels), len(rejects)) == {"one": (ROWS - 1, 1), "all": (0, ROWS), "none": (ROWS, 0)}[rejected]


class PolarsInMemory(dg.IOManager):
    """Reads its input as polars does, and keeps it."""

    def __init__(self) -> None:
        self.frames: dict[str, pl.DataFrame] = {}

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        if obj is not None:
            self.frames[context.asset_key.path[-1]] = pl.from_arrow(obj)

    def load_input(self, context: dg.InputContext) -> pl.DataFrame:
        return self.frames[context.asset_key.path[-1]]


def test_a_stream_without_rows_has_its_columns(make):
    store = PolarsInMemory()
    location = make(*labeled(frame="batches"), resources={"io_manager": store})
    assert location.land().success
    assert store.frames[LABELS].height == 3
    assert store.frames[REJECTS].height == 0
    assert "llm_reason" in store.frames[REJECTS].columns


def test_a_part_in_many_pieces_is_one_batch_of_its_stream(tmp_path):
    labeling = Labeling(asset=LABELS, model="openai/gpt-4o", key="ticket_id", prompt=Prompt(user="{{ body }}"))
    rows = {name: ["x"] * 50 for name in ("ticket_id", "text", *REJECT_COLUMNS)}
    tokens = {name: [1] * 50 for name in rows if name.endswith("_tokens")}
    table = pa.table(rows | tokens)
    pieces = pa.concat_tables([table.slice(at, 1) for at in range(50)])
    paths = [str(tmp_path / name) for name in LANDING]
    spool([Labeled(pieces, pieces)] * 3, paths, LabelStats(labeling))
    for path in paths:
        with pa.OSFile(path) as file:
            assert [len(batch) for batch in pa.ipc.open_stream(file)] == [50, 50, 50]


def test_each_partition_of_a_range_is_a_stream_of_its_own_and_materialized_again_has_the_same_version(make, tmp_path):
    location = make(
        *labeled(partitions_def=DAILY, frame="batches"),
        resources={"io_manager": HiveParquetIOManager(root=str(tmp_path))},
    )
    span = ("2026-01-02", "2026-01-04")
    assert location.land(span=span).success
    versions = {day: one.tags["dagster/data_version"] for day, one in location.materializations().items()}
    assert len(set(versions.values())) == 3
    assert [pq.read_table(path).num_rows for path in (tmp_path / LABELS).rglob("*.parquet")] == [3, 3, 3]
    assert [pq.read_table(path).num_rows for path in (tmp_path / REJECTS).rglob("*.parquet")] == [0, 0, 0]
    assert location.collect(span=span).success
    assert {day: one.tags["dagster/data_version"] for day, one in location.materializations().items()} == versions
