"""HiveParquetIOManager stores one partitioned table for Spark and other readers."""

from __future__ import annotations

import logging
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from code_location import DAILY, LABELS, labeled

from dagster_llm_batch import HiveParquetIOManager
from dagster_llm_batch.errors import InputError, PayloadError

DAYS = dg.StaticPartitionsDefinition(["2026-01-01", "a/b: c=d"])


def assets(rows: dict[str, Any]) -> list[dg.AssetsDefinition]:
    @dg.asset(partitions_def=DAYS)
    def labels(context):
        return rows[context.partition_key]

    @dg.asset(ins={"labels": dg.AssetIn(partition_mapping=dg.AllPartitionMapping())})
    def total(labels):
        return labels.group_by(["on"]).aggregate([("key", "count")])

    return [labels, total]


def test_a_partition_replaces_its_own_files_alone_and_all_of_them_are_one_table(tmp_path: Any) -> None:
    io = HiveParquetIOManager(root=str(tmp_path), partition_column="on")
    table = pa.table({"key": [1, 2, 3]})
    rows = {"2026-01-01": table, "a/b: c=d": pl.DataFrame({"key": [4]})}
    for expected in (3, 1):
        rows["2026-01-01"] = table.slice(0, expected)
        for partition in ["2026-01-01", "a/b: c=d"] if expected == 3 else ["2026-01-01"]:
            assert dg.materialize(
                assets(rows), partition_key=partition, selection="labels", resources={"io_manager": io}
            ).success
        found = ds.dataset(tmp_path / "labels", partitioning="hive").to_table()
        assert sorted(found["on"].to_pylist()) == ["2026-01-01"] * expected + ["a/b: c=d"]
    result = dg.materialize(assets(rows), selection="total", resources={"io_manager": io})
    assert sorted(result.output_for_node("total").to_pylist(), key=str) == [
        {"on": "2026-01-01", "key_count": 1},
        {"on": "a/b: c=d", "key_count": 1},
    ]


def test_row_groups_hold_many_rows(tmp_path: Any) -> None:
    @dg.asset
    def labels():
        return pa.table({"key": range(20_000)})

    assert dg.materialize([labels], resources={"io_manager": HiveParquetIOManager(root=str(tmp_path))}).success
    [file] = (tmp_path / "labels").glob("*.parquet")
    found = pq.ParquetFile(file)
    assert [found.metadata.row_group(n).num_rows for n in range(found.num_row_groups)] == [8_192, 8_192, 3_616]
    assert found.read()["key"].to_pylist() == list(range(20_000))


@pytest.mark.parametrize(("rows", "groups", "compression"), [(0, 0, None), (3, 1, "SNAPPY"), (10_000, 2, "ZSTD")])
def test_a_table_is_written_as_its_size_asks_for_and_read_as_it_was(
    tmp_path: Any, rows: int, groups: int, compression: str | None
) -> None:
    table = pa.table({"key": pa.array(range(rows), pa.int64()), "text": pa.array(["a"] * rows, pa.string())})

    @dg.asset
    def labels():
        return table

    io = HiveParquetIOManager(root=str(tmp_path))
    assert dg.materialize([labels], resources={"io_manager": io}).success
    [path] = (tmp_path / "labels").glob("*.parquet")
    metadata = pq.ParquetFile(path).metadata
    assert metadata.num_row_groups == groups
    if compression is not None:
        assert metadata.row_group(0).column(0).compression == compression
    assert io.load_input(dg.build_input_context(asset_key=labels.key)).equals(table)
    assert pl.read_parquet(path).to_arrow().num_rows == rows


def test_what_is_not_there_is_a_file_that_is_not_found(tmp_path: Any) -> None:
    io = HiveParquetIOManager(root=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="labels"):
        io.load_input(dg.build_input_context(asset_key=dg.AssetKey("labels")))


KEY = dg.AssetKey("labels")


def run(io: HiveParquetIOManager, table: Any, key: str) -> list[str]:
    """Store a partition of labels in a run of Dagster; return its warnings."""

    @dg.asset(partitions_def=dg.StaticPartitionsDefinition([key]))
    def labels():
        return table() if callable(table) else table

    instance = dg.DagsterInstance.ephemeral()
    result = dg.materialize([labels], partition_key=key, resources={"io_manager": io}, instance=instance)
    assert result.success
    return [said.user_message for said in instance.all_logs(result.run_id) if said.level == logging.WARNING]


def store(io: HiveParquetIOManager, table: Any, key: str | None = None) -> dg.InputContext:
    """Store a table of labels; return the context in which it is loaded."""
    of = {} if key is None else {"partition_key": key}
    with dg.build_output_context(asset_key=KEY, **of) as context:
        io.handle_output(context, table)
    return loading(key)


def loading(key: str | None) -> dg.InputContext:
    """Return the context in which labels, or a partition of them, are loaded."""
    if key is None:
        return dg.build_input_context(asset_key=KEY)
    return dg.build_input_context(
        asset_key=KEY, partition_key=key, asset_partitions_def=dg.StaticPartitionsDefinition([key])
    )


@pytest.mark.parametrize("frame", [[], iter([])])
def test_a_list_that_names_no_columns_is_refused_by_name_and_what_was_stored_stays(tmp_path: Any, frame: Any) -> None:
    io = HiveParquetIOManager(root=str(tmp_path))
    stored = store(io, pa.table({"key": [1]}))
    with pytest.raises(InputError, match=r"labels cannot be stored: .* names no columns"):
        store(io, frame)
    assert io.load_input(stored).to_pydict() == {"key": [1]}


KEYS = [
    "a/b",
    "50%",
    "%2F",
    "c=d",
    "two words",
    " lead",
    "..",
    ".",
    "x:y",
    "#h&q?",
    "*?[z]",
    "a\\b",
    "día ☀",
    "日本",
    "Ā%C4",
]


@pytest.mark.parametrize("key", KEYS)
def test_every_reader_finds_the_key_of_a_partition_whatever_its_characters(tmp_path: Any, key: str) -> None:
    io = HiveParquetIOManager(root=str(tmp_path))
    table = pa.table({"key": [1, 2]})
    assert io.load_input(store(io, table, key))["partition"].to_pylist() == [key] * 2
    folder = tmp_path / "labels"
    # Spark decodes it: each escape is one character.
    [place] = folder.iterdir()
    assert "%" not in place.name or all(byte < "8" for byte in place.name.split("%")[1:])
    schema = {"partition": pl.String}
    found = [
        ds.dataset(folder, partitioning="hive").to_table(),
        pl.read_parquet(f"{folder}/**/*.parquet", hive_partitioning=True, hive_schema=schema).to_arrow(),
        duckdb.sql(f"FROM read_parquet('{folder}/**/*.parquet', hive_types_autocast = false)").to_arrow_table(),
        pa.table(pd.read_parquet(folder)),
    ]
    assert [table["partition"].to_pylist() for table in found] == [[key] * 2] * 4


def test_a_partition_that_an_older_version_stored_is_read_until_it_is_stored_and_gone_then(tmp_path: Any) -> None:
    io, key = HiveParquetIOManager(root=str(tmp_path)), "día ☀"
    older = tmp_path / "labels" / f"partition={quote(key, safe=' ')}"
    older.mkdir(parents=True)
    pq.write_table(pa.table({"key": [1]}), older / "table.parquet")
    context = loading(key)
    assert io.load_input(context).to_pydict() == {"key": [1], "partition": [key]}
    assert io.load_input(store(io, pa.table({"key": [2]}), key)).to_pydict() == {"key": [2], "partition": [key]}
    assert [path.parent.name for path in Path(tmp_path).rglob("*.parquet")] == [f"partition={key}"]


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.date32()])
def test_a_column_that_repeats_the_key_of_the_partition_is_there_once_for_every_reader(
    tmp_path: Any, kind: pa.DataType
) -> None:
    io, key = HiveParquetIOManager(root=str(tmp_path)), "2026-01-01"
    days = pa.array([key] * 2).cast(kind) if kind != pa.date32() else pa.array([date(2026, 1, 1)] * 2)
    context = store(io, pa.table({"partition": days, "key": [1, 2]}), key)
    expected = {"key": [1, 2], "partition": [key] * 2}
    assert io.load_input(context).to_pydict() == expected
    assert pq.read_table(tmp_path / "labels").to_pydict() == expected
    # As version 0.1.0 stored it, and as Spark does.
    [path] = (tmp_path / "labels").rglob("*.parquet")
    pq.write_table(pa.table({"partition": days, "key": [1, 2]}), path)
    assert io.load_input(context).to_pydict() == expected


OTHERWISE: list[list[Any]] = [
    ["other", "2026-01-01"],
    ["2026-01-01", None],
    [1, 2],
    [[1], [2]],
    [date(2026, 1, 1), date(2026, 1, 2)],
]


@pytest.mark.parametrize("kind", ["table", "rows", "batches"])
@pytest.mark.parametrize("values", OTHERWISE)
def test_a_column_that_says_otherwise_than_the_key_of_the_partition_is_stored_with_a_warning_and_not_loaded(
    tmp_path: Any, values: list[Any], kind: str
) -> None:
    io, key = HiveParquetIOManager(root=str(tmp_path)), "2026-01-01"
    table = pa.table({"partition": values, "key": [1, 2]})
    frame = {"table": table, "rows": table.to_pylist(), "batches": lambda: batches(table.slice(0, 0), table)}[kind]
    [warning] = run(io, frame, key)
    assert "labels, partition 2026-01-01 has a column 'partition' with other values" in warning
    assert "partition_column=" in warning
    [path] = tmp_path.rglob("*.parquet")
    assert pq.ParquetFile(path).read().to_pydict() == table.to_pydict()
    named = rf"^The table of labels, partition {key} has a column 'partition' .* in {path.parent} .*partition_column="
    with pytest.raises(InputError, match=named):
        io.load_input(loading(key))
    # As DuckDB and Polars show it.
    shown = duckdb.sql(f"FROM read_parquet('{tmp_path}/labels/**/*.parquet', hive_types_autocast = false)")
    assert shown.to_arrow_table()["partition"].to_pylist() == [key] * 2
    schema = {"partition": pl.String}
    found = pl.read_parquet(f"{tmp_path}/labels/**/*.parquet", hive_partitioning=True, hive_schema=schema)
    assert found["partition"].to_list() == [key] * 2
    other = HiveParquetIOManager(root=str(tmp_path), partition_column="on")
    assert run(other, frame, key) == []
    assert other.load_input(loading(key)).to_pydict() == {**table.to_pydict(), "on": [key] * 2}


def batches(*tables: pa.Table) -> pa.RecordBatchReader:
    """Return the tables as a stream, which is read once."""
    parts = [part for table in tables for part in table.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]]
    return pa.RecordBatchReader.from_batches(tables[0].schema, iter(parts))


def test_a_table_is_looked_at_to_its_end_and_a_stream_that_changes_its_mind_is_refused(tmp_path: Any) -> None:
    io, key = HiveParquetIOManager(root=str(tmp_path)), "2026-01-01"
    week = pa.table({"partition": [date(2026, 1, 1)] * 5_000 + [date(2026, 1, 2)] * 5_000, "key": range(10_000)})
    assert len(run(io, week, key)) == 1
    [path] = tmp_path.rglob("*.parquet")
    assert pq.ParquetFile(path).read().equals(week)
    with pytest.raises(InputError, match=r"column 'partition' repeats the key.*in the first rows.*partition_column="):
        store(io, batches(week), key)
    # The stored table is unchanged.
    assert pq.ParquetFile(path).read().equals(week)
    # In the reverse order, the first rows differ from the key: the table is stored, with a warning.
    back = week.sort_by([("key", "descending")])
    assert len(run(io, lambda: batches(back), key)) == 1
    assert pq.ParquetFile(path).read().equals(back)


@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.list_(pa.int64())])
@pytest.mark.parametrize("is_stream", [False, True])
def test_a_table_without_rows_says_nothing_of_the_key_and_is_loaded(
    tmp_path: Any, kind: pa.DataType, is_stream: bool
) -> None:
    io, key = HiveParquetIOManager(root=str(tmp_path)), "2026-01-01"
    table = pa.table({"partition": pa.array([], kind), "key": pa.array([], pa.int64())})
    assert run(io, (lambda: batches(table, table)) if is_stream else table, key) == []
    assert io.load_input(loading(key)).schema == pa.schema({"key": pa.int64(), "partition": pa.string()})
    # As version 0.1.0 stored it.
    [path] = tmp_path.rglob("*.parquet")
    pq.write_table(table, path)
    assert io.load_input(loading(key)).schema == pa.schema({"key": pa.int64(), "partition": pa.string()})


def test_a_table_of_nothing_but_the_key_keeps_its_rows(tmp_path: Any) -> None:
    io, key = HiveParquetIOManager(root=str(tmp_path)), "2026-01-01"
    assert io.load_input(store(io, pa.table({"partition": [key] * 3}), key)).to_pydict() == {"partition": [key] * 3}
    [path] = tmp_path.rglob("*.parquet")
    assert pq.ParquetFile(path).read().to_pydict() == {"partition": [key] * 3}


def test_labels_with_a_column_named_as_the_partitions_land_and_the_run_warns(make: Any, tmp_path: Any) -> None:
    io = HiveParquetIOManager(root=str(tmp_path / "tables"), partition_column="ticket_id")
    location = make(*labeled(partitions_def=DAILY, frame="arrow"), resources={"io_manager": io})
    result = location.land(partition="2026-01-02")
    assert result.success
    [path] = (tmp_path / "tables" / LABELS).rglob("*.parquet")
    stored = pq.ParquetFile(path).read()["ticket_id"].to_pylist()
    assert sorted(stored) == [f"2026-01-02-{n}" for n in range(3)]
    said = [entry.user_message for entry in location.instance.all_logs(result.run_id) if entry.level == logging.WARNING]
    assert any(f"The table of {LABELS}, partition 2026-01-02 has a column 'ticket_id'" in text for text in said)


class SparkFrame:
    """A Spark table, which Spark itself writes, also where other file systems cannot."""

    def __init__(self) -> None:
        self.stored: list[str] = []

    mapInArrow = None  # noqa: N815 -- as Spark names it

    @property
    def write(self) -> SparkFrame:
        return self

    def mode(self, kind: str) -> SparkFrame:
        assert kind == "overwrite"
        return self

    def parquet(self, folder: str) -> None:
        self.stored.append(folder)


@pytest.mark.filterwarnings("ignore:UPath .dbfs:UserWarning")
@pytest.mark.parametrize("root", ["hdfs://nowhere/lake", "viewfs://lake", "wasbs://lake@nowhere/a", "dbfs:/lake"])
def test_what_spark_stored_where_nothing_else_can_is_stored_and_the_run_warns_of_an_older_table(root: str) -> None:
    frame = SparkFrame()
    [warning] = run(HiveParquetIOManager(root=root), frame, "日本")
    assert frame.stored == [f"{root}/labels/partition=日本"]
    assert f"an older table in {root}/labels/partition={quote('日本')}: " in warning
    # Older versions gave this partition the same name.
    assert run(HiveParquetIOManager(root=root), frame, "a/b") == []


def test_a_key_whose_older_name_was_too_long_is_stored_and_loaded_and_nothing_is_said(tmp_path: Any) -> None:
    io, key = HiveParquetIOManager(root=str(tmp_path)), "日" * 60
    with pytest.raises(FileNotFoundError, match=key):
        io.load_input(loading(key))
    assert run(io, pa.table({"key": [1]}), key) == []
    assert io.load_input(loading(key)).to_pydict() == {"key": [1], "partition": [key]}


def test_a_damaged_table_of_an_older_version_is_told_of(tmp_path: Any) -> None:
    io, key = HiveParquetIOManager(root=str(tmp_path)), "día ☀"
    store(io, pa.table({"key": [1]}), key)
    older = Path(io.folder(KEY, key)).rename(tmp_path / "labels" / f"partition={quote(key, safe=' ')}")
    table = older / "table.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(PayloadError, match=rf"^The table of labels, partition {key} is damaged: the bytes in {older} "):
        io.load_input(loading(key))


class Flat(HiveParquetIOManager):
    """Names folders in a different way."""

    def folder(self, asset: dg.AssetKey, partition: str | None = None) -> str:
        return f"{self.root}/flat/{asset.path[-1]}-{partition}"


def test_a_derived_class_says_where_a_table_is_and_no_folder_of_another_is_touched(tmp_path: Any) -> None:
    io, key = Flat(root=str(tmp_path)), "día"
    beside = tmp_path / "labels" / f"partition={quote(key)}" / "table.parquet"
    beside.parent.mkdir(parents=True)
    pq.write_table(pa.table({"key": [0]}), beside)
    with pytest.raises(FileNotFoundError, match=f"flat/labels-{key}"):
        io.load_input(loading(key))
    assert run(io, pa.table({"key": [1]}), key) == []
    assert {*tmp_path.rglob("*.parquet")} == {beside, tmp_path / "flat" / f"labels-{key}" / "table.parquet"}
    assert io.load_input(loading(key)).to_pydict() == {"key": [1], "partition": [key]}


@pytest.mark.parametrize("partition", ["2026-01-01", None])
def test_a_damaged_table_is_named_with_its_asset(tmp_path: Any, partition: str | None) -> None:
    io = HiveParquetIOManager(root=str(tmp_path))
    folder = Path(io.folder(dg.AssetKey(["lake", "labels"]), partition))
    where: dict[str, Any] = {"asset_key": dg.AssetKey(["lake", "labels"]), "partition_key": partition}
    io.handle_output(dg.build_output_context(**where), pa.table({"key": [1, 2, 3]}))
    [table] = folder.iterdir()
    table.write_bytes(table.read_bytes()[:-20])
    of_partition = f", partition {partition}" if partition else ""
    named = rf"^The table of lake/labels{of_partition} is damaged: the bytes in {folder} are .* materialize it again\.$"
    with pytest.raises(PayloadError, match=named):
        io.load_input(dg.build_input_context(**where))


def test_an_asset_without_partitions_is_stored_as_one_table_in_a_run_of_a_partition(tmp_path):
    days = dg.StaticPartitionsDefinition(["a", "b"])

    @dg.asset
    def gold():
        return pa.table({"id": [1, 2]})

    @dg.asset(partitions_def=days)
    def beside(gold: pa.Table):
        return gold

    io = {"io_manager": HiveParquetIOManager(root=str(tmp_path))}
    with dg.DagsterInstance.ephemeral() as instance:
        for key in ("a", "b"):
            assert dg.materialize([gold, beside], partition_key=key, resources=io, instance=instance).success
    assert [file.parent.name for file in (tmp_path / "gold").rglob("*.parquet")] == ["gold"]


def test_one_table_for_several_partitions_is_refused(tmp_path):
    @dg.asset(partitions_def=dg.StaticPartitionsDefinition(["a", "b"]), backfill_policy=dg.BackfillPolicy.single_run())
    def both():
        return pa.table({"id": [1, 2]})

    result = dg.materialize(
        [both],
        tags={"dagster/asset_partition_range_start": "a", "dagster/asset_partition_range_end": "b"},
        resources={"io_manager": HiveParquetIOManager(root=str(tmp_path))},
        raise_on_error=False,
    )
    [error] = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    assert error.cause is not None
    assert "gave one table for all of them" in error.cause.message
    assert list(tmp_path.rglob("*.parquet")) == []
