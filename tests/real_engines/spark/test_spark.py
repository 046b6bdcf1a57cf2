"""Spark frames as input, and Spark as workers: the same requests and labels as one process makes."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from comparison import TARGETS, assert_same_plan, assert_same_report, by_key, labeling, stored, tickets, with_gold
from workspace import Workspace

from dagster_llm_batch import HiveParquetIOManager, Realtime, Resend
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.distributed import SparkWorkers, compare_spread
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.metrics import compare

pytestmark = pytest.mark.timeout(900)  # the first one waits for Java


@pytest.fixture(scope="session")
def frame(spark: Any, tmp_path_factory: Any) -> Any:
    """Rows in five partitions, one of them empty. Read from files, so that their order stays the same."""
    folder = tmp_path_factory.mktemp("rows")
    parts = [tickets(800, 0), tickets(900, 800), tickets(1).slice(1), tickets(700, 1_700), tickets(600, 2_400)]
    for number, part in enumerate(parts):
        pq.write_table(part, folder / f"{number}.parquet")
    return reduce(lambda a, b: a.union(b), [spark.read.parquet(str(folder / f"{n}.parquet")) for n in range(5)])


def test_request_files_are_the_same_byte_for_byte_as_those_of_one_process(
    tmp_path: Any, workspace: Workspace, spark: Any, frame: Any
) -> None:
    found = []
    for name, workers in (("here", None), ("there", SparkWorkers(spark))):
        own = Workspace(tmp_path / name, workspace.emulator)
        definition = labeling(
            realtime=Realtime(urgent="urgent"), resend=Resend(fallback=["openai/gpt-4o-mini"]), workers=workers
        )
        found.append(stored(own, own.engine().plan(definition, frame)))
    assert_same_plan(*found)
    assert len([name for name in found[0] if name.startswith("batch ")]) > 20


def test_labels_are_the_same_row_for_row(tmp_path: Any, workspace: Workspace, spark: Any, frame: Any) -> None:
    found = []
    for name, workers in (("here", None), ("there", SparkWorkers(lambda: spark))):
        own = Workspace(tmp_path / name, workspace.emulator)
        definition = labeling(workers=workers)
        status = own.run(definition, frame)
        found.append(own.engine().labels(definition, status.submission.submission_id))
    assert len(found[0].labels) == 3_000
    assert by_key(found[0].labels) == by_key(found[1].labels)


def test_figures_against_gold_are_the_same_to_the_last_digit(
    tmp_path: Any, workspace: Workspace, spark: Any, frame: Any
) -> None:
    definition = labeling(workers=SparkWorkers(spark))
    engine, submission_id = workspace.engine(), workspace.run(definition, frame).submission.submission_id
    gold, said = with_gold(engine.labels(definition, submission_id).labels)
    parts = tmp_path / "parts"
    parts.mkdir()
    for number in range(4):
        pq.write_table(said.slice(number * 750, 750), parts / f"{number}.parquet")
    there = compare_spread(
        SparkWorkers(spark), gold, {"c": spark.read.parquet(str(parts))}, key="ticket_id", targets=TARGETS
    )
    assert_same_report(compare(gold, {"c": said}, key="ticket_id", targets=TARGETS), there)
    assert there.evaluations[0].n_labeled > 1_000
    twice = spark.read.parquet(str(parts / "0.parquet"))
    with pytest.raises(InputError, match="stand in more than one part"):
        compare_spread(SparkWorkers(spark), gold, {"c": twice.union(twice)}, key="ticket_id", targets=TARGETS)


def test_a_worker_that_dies_is_replaced_and_its_rows_are_asked_once(
    tmp_path: Any, workspace: Workspace, spark: Any, frame: Any
) -> None:
    marker = str(tmp_path / "died")

    def die_once(batches: Any) -> Any:
        for number, batch in enumerate(batches):
            if number == 0 and batch.num_rows and not Path(marker).exists():
                Path(marker).touch()
                os._exit(137)
            yield batch

    definition = labeling()
    alone = Workspace(tmp_path / "alone", workspace.emulator)
    here = stored(alone, alone.engine().plan(definition, frame))
    dying = frame.mapInArrow(die_once, frame.schema)
    there = stored(workspace, workspace.engine().plan(replace(definition, workers=SparkWorkers(spark)), dying))
    assert Path(marker).exists()
    assert_same_plan(here, there)


def test_wrong_rows_are_told_as_one_process_tells_them(workspace: Workspace, spark: Any, frame: Any) -> None:
    definition = labeling(workers=SparkWorkers(spark))
    with pytest.raises(InputError, match="duplicate values: 't"):
        workspace.engine().plan(definition, frame.union(frame))
    with pytest.raises(InputError, match="a Spark DataFrame, got a pyarrow"):
        workspace.engine().plan(definition, tickets(10))
    assert workspace.files() == set()


def test_a_frame_without_rows_is_an_empty_dataset(workspace: Workspace, spark: Any, frame: Any) -> None:
    status = workspace.run(labeling(workers=SparkWorkers(spark)), frame.where("false"))
    assert status.submission.rows == 0


def test_a_frame_is_streamed_through_arrow_and_never_held_whole(spark: Any) -> None:
    """Rows of 256 MB pass, though only 64 MB may be collected."""
    frame = spark.range(0, 64_000, 1, 64).selectExpr("id", "repeat(cast(id as string), 4096 / length(id)) as text")
    with pytest.raises(Exception, match="maxResultSize"):
        frame.toArrow()
    rows = largest = total = 0
    for batch in record_batches(frame):
        rows += batch.num_rows
        largest = max(largest, batch.nbytes)
        total += batch.nbytes
    assert rows == 64_000
    assert total > 250_000_000
    assert largest < 20_000_000


def test_written_labels_are_a_partitioned_table_to_spark(
    tmp_path: Path, workspace: Workspace, spark: Any, frame: Any
) -> None:
    definition = labeling(workers=SparkWorkers(spark))
    submission_id = workspace.run(definition, frame).submission.submission_id
    for region, part_rows in (("eu", 1_000), ("us", 5_000), ("us", 5_000)):  # taken apart, whole, and once more
        folders = [f"{tmp_path}/{name}/region={region}" for name in ("labels", "rejects")]
        written = workspace.engine(part_rows=part_rows).write_labels(definition, submission_id, *folders)
        assert (written.labels, written.rejects) == (3_000, 0)
    found = spark.read.parquet(f"{tmp_path}/labels")
    assert {row.region: row["count"] for row in found.groupBy("region").count().collect()} == {"eu": 3_000, "us": 3_000}
    assert found.where("region = 'eu'").select("ticket_id").distinct().count() == 3_000
    assert set(labeling().reader.schema.names) <= set(found.columns)


def test_tables_of_assets_are_read_by_spark_partition_by_partition(tmp_path: Path, spark: Any, frame: Any) -> None:
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["2026-01-01", "2026-01-02"]))
    def labels(context):
        return tickets(100) if context.partition_key.endswith("1") else frame  # by Arrow, and by Spark

    io = HiveParquetIOManager(root=str(tmp_path), partition_column="on")
    for partition in ("2026-01-01", "2026-01-02", "2026-01-01", "2026-01-02"):
        assert dg.materialize([labels], partition_key=partition, resources={"io_manager": io}).success
    found = spark.read.parquet(str(tmp_path / "labels"))
    counts = {str(row.on): row["count"] for row in found.groupBy("on").count().collect()}
    assert counts == {"2026-01-01": 100, "2026-01-02": 3_000}
