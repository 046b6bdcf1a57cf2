"""A partition that the labels' IO manager cannot store is refused before sending; the other partitions continue."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import dagster as dg
import duckdb
import polars as pl
import pyarrow as pa
import pytest
from code_location import DAYS, LABELS, failure, labeled
from dagster_deltalake import DeltaLakePyarrowIOManager, LocalConfig
from dagster_deltalake_polars import DeltaLakePolarsIOManager
from dagster_duckdb_pandas import DuckDBPandasIOManager

from dagster_llm_batch import HiveParquetIOManager, drift_assets
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.storage import names
from dagster_llm_batch.storage.names import check_place, fold_case, fold_form, fold_of

PARTS = dg.StaticPartitionsDefinition(["a", "b"])
LONG, NULL = "k" * 300, "__HIVE_DEFAULT_PARTITION__"


def failed(result: dg.ExecuteInProcessResult) -> str:
    [event] = [event for event in result.all_node_events if event.is_step_failure]
    return str(event.step_failure_data.user_failure_data or event.step_failure_data.error.message)


@pytest.mark.parametrize("key", [LONG, NULL], ids=["300 characters", "null"])
def test_a_partition_that_the_sink_cannot_hold_is_refused_unsent_and_others_go_on(make, tmp_path, key):
    parts = dg.StaticPartitionsDefinition(["a", key, "z"])
    io = HiveParquetIOManager(root=str(tmp_path / "tables"))
    location = make(*labeled(partitions_def=parts), resources={"io_manager": io})
    result = location.submit(span=("a", "z"))
    assert not result.success
    assert "cannot be stored" in failed(result)
    assert "Nothing was sent" in failed(result)
    location.emulator.settle()
    sent = {execution.custom_id for execution in location.emulator.books.executions}
    assert len(sent) == 6
    for partition in ("a", "z"):
        assert location.collect(partition=partition).success
    assert {one.name for one in (tmp_path / "tables" / "ticket_labels").iterdir()} == {"partition=a", "partition=z"}


def test_dagsters_own_io_manager_is_asked_too(make, tmp_path):
    io = dg.FilesystemIOManager(base_dir=str(tmp_path))
    location = make(*labeled(partitions_def=dg.StaticPartitionsDefinition([LONG])), resources={"io_manager": io})
    result = location.submit(partition=LONG)
    assert "cannot be stored" in failed(result)
    assert not location.emulator.books.batches


def test_days_are_stored_as_before(make, tmp_path):
    io = HiveParquetIOManager(root=str(tmp_path))
    location = make(*labeled(partitions_def=DAILY), resources={"io_manager": io})
    assert location.land(partition=DAYS[0]).success


@pytest.mark.parametrize(
    ("fold", "one", "other", "are_one"),
    [
        (fold_case, "US", "us", True),
        (fold_case, "Gr\u00f6\u00dfe", "GRO\u0308SSE", True),
        (fold_case, "a", "b", False),
        (fold_form, "\u00e9", "e\u0301", True),
        (fold_form, "US", "us", False),
    ],
)
def test_keys_that_a_disk_takes_for_one_are_refused_but_for_the_first(tmp_path, monkeypatch, fold, one, other, are_one):
    # A disk that folds names is not available on every machine, but the result of the probe is.
    monkeypatch.setattr(names, "_probed", lambda _: fold)
    io, asset = HiveParquetIOManager(root=str(tmp_path)), dg.AssetKey("labels")
    io.check_partition(asset, one, [])
    if not are_one:
        io.check_partition(asset, other, [one])
        return
    with pytest.raises(InputError, match="takes its folder for the one of the partition") as caught:
        io.check_partition(asset, other, [one])
    assert "Nothing was sent" in str(caught.value)


def test_the_disk_is_asked_what_it_does_with_names(tmp_path):
    (tmp_path / "a").touch()
    fold: Any = fold_of(str(tmp_path / "not" / "there" / "yet"))
    assert (fold is fold_case) == (tmp_path / "A").exists()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a"]
    assert fold_of("s3://bucket/folder") is None


def test_an_object_store_has_a_limit_of_its_own():
    check_place(f"s3://bucket/{LONG}", "The table")
    with pytest.raises(InputError, match="an object store takes 1,024"):
        check_place(f"s3://bucket/{'/'.join([LONG] * 4)}", "The table")


PANDAS = {"frame": "pandas", "key_prefix": "mart"}
DAILY = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-31")
BOTH = dg.MultiPartitionsDefinition({"day": DAILY, "land": dg.StaticPartitionsDefinition(["de"])})


TABLES = ("mart/ticket_labels_batch", "mart/ticket_labels", "mart/ticket_labels_rejects")


@pytest.fixture
def on_duckdb(make, tmp_path):
    """Return a function that makes a code location with these assets, and with tables in DuckDB."""

    def with_assets(*assets: Any) -> Any:
        return make(*assets, resources={"io_manager": DuckDBPandasIOManager(database=f"{tmp_path}/db")})

    return with_assets


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"frame": "arrow"}, 'stores pandas.DataFrame, and frame="arrow" gives it pyarrow.Table. Give frame="pandas".'),
        ({"metadata": {}}, 'metadata={"partition_expr": "…"}, which is missing. Give one of ticket_id, or an'),
        ({"metadata": {"partition_expr": "subject"}}, "'subject', which does not identify the partition"),
        ({"partitions_def": BOTH, "metadata": {"partition_expr": {"day": "ticket_id"}}}, '{"land": "…", …}'),
    ],
    ids=["frame", "no column", "another column", "a dimension without one"],
)
def test_what_a_database_cannot_store_is_refused_unsent(on_duckdb, changes, word):
    given = {"partitions_def": PARTS, "metadata": {"partition_expr": "ticket_id"}, **PANDAS, **changes}
    location = on_duckdb(*labeled(**given))
    partition = "a" if given["partitions_def"] is PARTS else dg.MultiPartitionKey({"day": "2026-01-01", "land": "de"})
    assert word in failed(location.run(*TABLES, partition=partition))
    assert not location.emulator.books.batches


def test_a_database_without_partitions_wants_no_column_of_them(on_duckdb):
    assert on_duckdb(*labeled(**PANDAS)).run("mart/ticket_labels_batch").success


@pytest.mark.parametrize("expr", ["TICKET_ID", "left(ticket_id, 1)"])
def test_a_column_in_other_letters_and_an_expression_of_one_tell_the_partition(on_duckdb, expr):
    location = on_duckdb(*labeled(partitions_def=PARTS, metadata={"partition_expr": expr}, **PANDAS))
    assert location.run(*TABLES, partition="a").success


def test_metadata_that_a_project_adds_to_finished_assets_counts(on_duckdb):
    def with_expr(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec.merge_attributes(metadata={"partition_expr": "left(ticket_id, 1)"})

    location = on_duckdb(*dg.map_asset_specs(with_expr, labeled(partitions_def=PARTS, **PANDAS)))
    assert location.run(*TABLES, partition="a").success


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"partitions_def": PARTS, "frame": "arrow"}, 'frame="arrow" gives it pyarrow.Table'),
        ({"partitions_def": PARTS}, 'which is missing. Its column partition has the key as text. Give "partition".'),
        ({"partitions_def": DAILY, "metadata": {"partition_expr": "partition"}}, "a database finds no time in it"),
    ],
    ids=["frame", "no column", "text for a day"],
)
def test_an_evaluation_that_a_database_cannot_store_is_refused_before_it_reads(on_duckdb, given, word):
    labels = dg.AssetSpec("labels", partitions_def=given["partitions_def"])
    changes = {"frame": "pandas", **given}
    measured = drift_assets(name="measured", candidates=labels, target="topic", reference=1, **changes)
    key = given["partitions_def"].get_partition_keys()[0]
    assert word in failure(on_duckdb(labels, *measured).run("measured", partition=key))


def test_a_column_without_a_value_and_small_costs_take_what_the_next_partition_has(on_duckdb, tmp_path):
    def rows(context: Any) -> pa.Table:
        has = context.partition_key == "b"
        ids = [f"{context.partition_key}-{n}" for n in range(2)]
        columns = {
            "note": pa.array(["noted" if has else None] * 2, pa.string()),
            "tags": pa.array([["noted"] if has else None] * 2, pa.list_(pa.string())),
            "amount": pa.array([Decimal("12.5") if has else Decimal("0.25")] * 2, pa.decimal128(20, 12)),
            "counts": pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int64())),
        }
        return pa.table({"ticket_id": ids, "subject": ids, "body": ids, **columns})

    keep = ["note", "tags", "amount", "counts"]
    expr = {"partition_expr": "left(ticket_id, 1)"}
    location = on_duckdb(*labeled(rows=rows, keep=keep, partitions_def=PARTS, metadata=expr, **PANDAS))
    for partition in PARTS.get_partition_keys():
        assert location.run("mart/ticket_labels_batch", partition=partition).success
        location.emulator.settle()
        assert location.run("mart/ticket_labels", "mart/ticket_labels_rejects", partition=partition).success
    with duckdb.connect(f"{tmp_path}/db") as connection:
        kept = connection.sql("select note, tags, amount, counts from mart.ticket_labels order by ticket_id").fetchall()
    assert [list(row) for row in kept[::2]] == [
        [None, None, Decimal("0.25"), {"a": 1}],
        ["noted", ["noted"], Decimal("12.5"), {"a": 1}],
    ]


@pytest.mark.parametrize("frame", ["polars", "arrow", "batches"])
@pytest.mark.parametrize(("partitions_def", "column"), [(PARTS, "ticket_id"), (DAILY, "note")], ids=["keys", "days"])
def test_columns_without_a_type_of_a_partition_without_rows_can_be_read_back(
    make, tmp_path, frame, partitions_def, column
):
    def rows(context: Any) -> pa.Table:
        return pa.table({name: pa.nulls(0) for name in ("ticket_id", "subject", "body", "note")})

    def with_expr(spec: dg.AssetSpec) -> dg.AssetSpec:
        return spec.merge_attributes(metadata={"partition_expr": column})

    kind = DeltaLakePolarsIOManager if frame == "polars" else DeltaLakePyarrowIOManager
    io = kind(root_uri=str(tmp_path), storage_options=LocalConfig())
    labels = labeled(rows=rows, keep=["note"], partitions_def=partitions_def, frame=frame)
    location = make(*dg.map_asset_specs(with_expr, labels), resources={"io_manager": io})
    key = partitions_def.get_partition_keys()[0]
    assert location.land(partition=key).success
    kept = location.repository.load_asset_value(
        dg.AssetKey(LABELS),
        python_type=pl.DataFrame if frame == "polars" else pa.Table,
        instance=location.instance,
        partition_key=key,
    )
    assert len(kept) == 0
