"""From rows to a labeled table, for every kind of partitions, rows and frames."""

import gc

import dagster as dg
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from code_location import BATCH, DAILY, LABELS, LANDING, REJECTS, failure, labeled, tag, tickets
from dagster_duckdb_pandas import DuckDBPandasIOManager
from dagster_duckdb_polars import DuckDBPolarsIOManager

from dagster_llm_batch import Checks
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.emulator import RowFault

STATIC = dg.StaticPartitionsDefinition(["de", "fr", "it"])
DYNAMIC = dg.DynamicPartitionsDefinition(name="customers")
MULTI = dg.MultiPartitionsDefinition({"day": DAILY, "land": STATIC})


@pytest.mark.parametrize(
    ("partitions_def", "partition"),
    [(None, None), (DAILY, "2026-01-02"), (STATIC, "fr"), (DYNAMIC, "acme"), (MULTI, "2026-01-02|it")],
    ids=["unpartitioned", "daily", "static", "dynamic", "multi"],
)
def test_rows_become_labels_that_a_downstream_asset_loads_as_any_other(make, instance, partitions_def, partition):
    @dg.asset(partitions_def=partitions_def, ins={"labels": dg.AssetIn(LABELS)})
    def longest(labels: pl.DataFrame) -> int:
        return labels["topic"].is_in(["billing", "bug", "how_to"]).sum()

    instance.add_dynamic_partitions("customers", ["acme"])
    location = make(*labeled(partitions_def=partitions_def), longest)
    assert location.land(partition=partition).success
    result = location.run("longest", partition=partition)
    assert result.success
    assert result.output_for_node("longest") == 3
    assert location.metadata(LABELS, partition)["dagster/partition_row_count"] == 3
    assert location.metadata(REJECTS, partition)["dagster/partition_row_count"] == 0


@pytest.mark.parametrize("upstream_partitions", [DAILY, None], ids=["partitioned alike", "unpartitioned"])
def test_rows_come_from_an_upstream_asset(make, upstream_partitions):
    @dg.asset(partitions_def=upstream_partitions)
    def inbox(context: dg.AssetExecutionContext) -> pl.DataFrame:
        return tickets(2, context.partition_key if context.has_partition_key else "all")

    where = {"partition": "2026-01-05"}
    location = make(inbox, *labeled(rows=inbox, partitions_def=DAILY))
    assert location.run("inbox", **(where if upstream_partitions else {})).success
    assert location.land(**where).success
    preview = location.metadata(LABELS, "2026-01-05")["llm_batch/preview"]
    expected = "2026-01-05-0" if upstream_partitions else "all-0"
    assert preview.records[0].data["ticket_id"] == expected


@pytest.mark.slow
def test_an_upstream_asset_that_is_not_there_fails_the_submission_with_what_to_do(make, emulator, caplog):
    @dg.asset(partitions_def=DAILY)
    def inbox() -> pl.DataFrame:
        return tickets()

    result = make(inbox, *labeled(rows="inbox", partitions_def=DAILY)).submit(partition="2026-01-05")
    assert not result.success
    assert "inbox is not materialized" in failure(result)
    assert "Materialize it first" in failure(result)
    assert emulator.books.creates_seen == 0
    # The failure has one message and one trace, however it was found.
    [error] = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    assert (error.cause, error.context) == (None, None)
    # Dagster's instances that loading has opened are closed, not left to the garbage collector in any order.
    gc.collect()
    assert "Cannot operate on a closed database" not in caplog.text


def test_a_rows_function_gets_its_partition_and_the_resources_it_asked_for(make):
    class Warehouse(dg.ConfigurableResource):
        size: int

    def rows(context):
        return tickets(context.resources.warehouse.size, context.partition_key)

    location = make(
        *labeled(rows=rows, partitions_def=STATIC, required_resource_keys={"warehouse"}),
        resources={"warehouse": Warehouse(size=4)},
    )
    assert location.land(partition="de").success
    assert location.metadata(BATCH, "de")["llm_batch/rows"] == 4


@pytest.mark.parametrize(("frame", "kind"), [("arrow", pa.Table), ("polars", pl.DataFrame), ("pandas", pd.DataFrame)])
def test_the_io_manager_is_given_the_frame_that_was_asked_for(make, frame, kind):
    @dg.asset
    def after(ticket_labels, ticket_labels_rejects) -> list[str]:
        return [type(ticket_labels).__qualname__, type(ticket_labels_rejects).__qualname__]

    location = make(*labeled(frame=frame), after)
    assert location.land().success
    result = location.run("after")
    assert result.output_for_node("after") == [kind.__qualname__] * 2


@pytest.mark.parametrize(
    ("frame", "io_manager"),
    [("polars", DuckDBPolarsIOManager), ("pandas", DuckDBPandasIOManager)],
    ids=["polars", "pandas"],
)
def test_partitioned_labels_and_rejects_leave_through_duckdb_and_replace_only_their_own_partition(
    make, emulator, tmp_path, frame, io_manager
):
    duckdb = pytest.importorskip("duckdb")

    def rows(context):
        return tickets(3, context.partition_key).with_columns(day=pl.lit(context.partition_key).str.to_date())

    emulator.inject(RowFault(containing="2026-01-03-1", status_code=400))
    database = str(tmp_path / "labels.duckdb")
    location = make(
        *labeled(
            rows=rows,
            keep=["day"],
            partitions_def=DAILY,
            frame=frame,
            metadata={"partition_expr": "day"},
            key_prefix="mart",
            checks=Checks(min_coverage=0),
        ),
        resources={"io_manager": io_manager(database=database)},
    )
    names = [f"mart/{name}" for name in LANDING]
    for _ in range(2):  # the second time replaces the first
        assert location.run("mart/ticket_labels_batch", span=("2026-01-02", "2026-01-04")).success
        emulator.settle()
        assert location.run(*names, span=("2026-01-02", "2026-01-04")).success
    assert location.run(*names, partition="2026-01-03").success
    with duckdb.connect(database) as connection:
        counts = connection.sql("select day::text, count(*) from mart.ticket_labels group by 1 order by 1").fetchall()
        rejects = connection.sql("select ticket_id, llm_outcome from mart.ticket_labels_rejects").fetchall()
        [(cost,)] = connection.sql("select sum(llm_cost_usd) from mart.ticket_labels").fetchall()
    assert counts == [("2026-01-02", 3), ("2026-01-03", 2), ("2026-01-04", 3)]
    assert rejects == [("2026-01-03-1", "errored")]
    assert cost > 0


def test_a_key_prefix_goes_to_all_three_assets_and_to_the_sensor(make, emulator):
    location = make(*labeled(key_prefix=["crm", "eu"]))
    assert location.run("crm/eu/ticket_labels_batch").success
    emulator.settle()
    [request] = location.tick().run_requests
    assert [key.to_user_string() for key in request.asset_selection] == [f"crm/eu/{name}" for name in LANDING]
    assert location.launch(request).success
    assert location.metadata("crm/eu/ticket_labels")["dagster/partition_row_count"] == 3


def test_an_empty_partition_lands_as_two_empty_tables_and_sends_nothing(make, emulator):
    location = make(*labeled(rows=lambda context: tickets(0), partitions_def=DAILY))
    assert location.land(partition="2026-01-02").success
    assert emulator.books.creates_seen == 0
    assert location.metadata(LABELS, "2026-01-02")["dagster/partition_row_count"] == 0


def test_labels_alone_and_rejects_alone_can_be_materialized(make, emulator):
    location = make(*labeled())
    location.submit()
    emulator.settle()
    assert location.run(REJECTS).success
    assert set(location.materializations(LABELS)) == set()
    assert location.run(LABELS).success
    assert tag(location.materializations(LABELS)[None]) is not None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mode": "later"}, "mode='later' is not allowed; it takes 'deferred' or 'wait'"),
        ({"frame": "spark"}, "frame='spark' is not allowed; it takes 'arrow' or 'polars' or 'pandas'"),
        ({"model": "gpt-4o"}, "names no provider"),
    ],
)
def test_a_definition_that_cannot_work_is_refused_when_it_is_declared(wrong, message):
    with pytest.raises(ConfigError, match=message):
        labeled(**wrong)


@pytest.mark.parametrize(
    "where", [{"partition": "2026-01-02"}, {"span": ("2026-01-02", "2026-01-03")}], ids=["a partition", "a range"]
)
def test_a_dataset_without_partitions_is_asked_once_by_runs_that_have_them(make, emulator, where):
    @dg.asset(partitions_def=DAILY, backfill_policy=dg.BackfillPolicy.single_run())
    def beside() -> None:
        """Stand for an asset with partitions in the job of a dataset without partitions."""

    location = make(beside, *labeled())
    assert location.run("beside", BATCH, **where).success
    assert location.run("beside", BATCH, partition="2026-01-04").success
    emulator.settle()
    assert location.run("beside", *LANDING, **where).success
    assert set(location.materializations()) == {None}
    assert sum(one.billed for one in emulator.books.executions) == 3
    engine = location.engine()
    assert [one.partition for one in engine.ledger.submissions.list_all(engine.namespace)] == [""]


@pytest.mark.parametrize("assets", [[BATCH], LANDING, [BATCH, *LANDING]], ids=["batch", "labels", "all"])
def test_a_dataset_with_partitions_is_refused_in_a_run_without_one(make, emulator, assets):
    location = make(*labeled(partitions_def=DAILY))
    result = location.run(*assets)
    assert not result.success
    assert "has partitions, but this run was started without one" in failure(result)
    assert emulator.books.creates_seen == 0
    assert location.engine().ledger.submissions.list_all("default") == []
