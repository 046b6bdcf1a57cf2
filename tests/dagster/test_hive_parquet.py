"""HiveParquetIOManager: what Spark and others read as one partitioned table."""

from __future__ import annotations

from typing import Any

import dagster as dg
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from dagster_llm_batch import HiveParquetIOManager

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
