"""Every container of rows gives the same rows; values without an identity are refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import duckdb
import narwhals as nw
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dagster_llm_batch.core.keys import keys_of
from dagster_llm_batch.core.rows import BATCH_ROWS, record_batches
from dagster_llm_batch.errors import InputError
from tests.tables import table

ROWS: list[dict[str, Any]] = [
    {"id": f"k{number}", "n": number, "text": None if number == 2 else f"text {number}"} for number in range(5)
]
TABLE = pa.Table.from_pylist(ROWS)


def stored(table: pa.Table, **options: Any) -> pq.ParquetFile:
    """Return the table as an open file."""
    pq.write_table(table, sink := io.BytesIO(), **options)
    return pq.ParquetFile(sink)


KINDS: dict[str, Any] = {
    "parquet file": stored,
    "polars": pl.from_arrow,
    "polars lazy": lambda t: pl.from_arrow(t).lazy(),
    "pandas": lambda t: t.to_pandas(),
    "pandas with an odd index": lambda t: t.to_pandas().set_axis([9] * len(t), axis=0).reset_index(drop=True),
    "pandas of arrow types": lambda t: t.to_pandas(types_mapper=pd.ArrowDtype),
    "arrow table": lambda t: t,
    "arrow reader": lambda t: t.to_reader(),
    "arrow batch": lambda t: t.combine_chunks().to_batches()[0] if len(t) else pa.RecordBatch.from_pylist([], t.schema),
    "duckdb relation": lambda t: duckdb.connect().from_arrow(t),
    "narwhals eager": lambda t: nw.from_native(pl.from_arrow(t)),
    "narwhals lazy": lambda t: nw.from_native(pl.from_arrow(t).lazy()),
    "narwhals over duckdb": lambda t: nw.from_native(duckdb.connect().from_arrow(t)),
    "list of dicts": lambda t: t.to_pylist(),
    "generator of batches": lambda t: (t.slice(at, 2).combine_chunks().to_batches()[0] for at in range(0, len(t), 2)),
    "iterator of tables": lambda t: iter([t.slice(0, 1), t.slice(1, 3), t.slice(4)]),
    "iterator of polars": lambda t: iter([pl.from_arrow(t.slice(0, 2)), pl.from_arrow(t.slice(2))]),
}
WITHOUT_SCHEMA = {"list of dicts", "generator of batches"}


def rows_of(source: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for batch in record_batches(source):
        assert isinstance(batch, pa.RecordBatch)
        found += batch.to_pylist()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_rows(kind: str) -> None:
    assert sorted(rows_of(KINDS[kind](TABLE)), key=lambda row: row["id"]) == ROWS


@table("kind", KINDS)
def test_a_table_without_rows_still_has_its_columns(kind: str) -> None:
    batches = list(record_batches(KINDS[kind](TABLE.slice(0, 0))))
    assert sum(batch.num_rows for batch in batches) == 0
    if kind not in WITHOUT_SCHEMA:
        assert batches
        assert batches[0].schema.names == ["id", "n", "text"]
        assert keys_of(batches[0], "id") == []


def test_text_comes_as_text_from_every_kind() -> None:
    for kind, made_of in KINDS.items():
        for batch in record_batches(made_of(TABLE)):
            assert batch.schema.field("text").type in {pa.string(), pa.large_string()}, kind


def test_text_and_bytes_inside_of_lists_and_structs_come_plain_too() -> None:
    """Convert views, which polars returns and Arrow functions such as filter do not accept."""
    headers = pl.List(pl.Struct({"name": pl.String, "value": pl.Binary}))
    rows = [[{"name": "a", "value": b"x"}], [], None]
    [batch] = record_batches(pl.DataFrame({"h": rows}, schema={"h": headers}))
    assert "view" not in str(batch.schema)
    assert batch.filter(pa.array([True, False, True])).column("h").to_pylist() == [rows[0], None]


def test_large_sources_come_in_small_batches_and_are_not_read_ahead() -> None:
    table = pa.table({"id": range(10_000)})
    sizes = [batch.num_rows for batch in record_batches(table)]
    assert max(sizes) <= BATCH_ROWS
    assert sum(sizes) == 10_000
    taken: list[int] = []

    def endless() -> Iterator[pa.RecordBatch]:
        number = 0
        while True:
            taken.append(number)
            yield pa.RecordBatch.from_pydict({"id": [number]})
            number += 1

    stream = record_batches(endless())
    assert [next(stream).num_rows for _ in range(3)] == [1, 1, 1]
    assert len(taken) == 3


@pytest.mark.parametrize("as_dictionary", [True, False])
def test_of_a_parquet_file_as_many_rows_are_read_at_once_as_take_little_memory(as_dictionary: bool) -> None:
    texts = [f"{number % 9}" * 20_000 for number in range(3_000)]  # by their dictionary, as short as a number
    file = stored(pa.table({"id": range(3_000), "text": texts}), use_dictionary=as_dictionary)
    batches = list(record_batches(file))
    assert max(batch.nbytes for batch in batches) < 4 << 20
    assert sum(batch.num_rows for batch in batches) == 3_000
    short = stored(pa.table({"id": range(10_000)}))
    assert [batch.num_rows for batch in record_batches(short)] == [BATCH_ROWS, BATCH_ROWS, 10_000 - 2 * BATCH_ROWS]


def test_of_a_parquet_file_only_columns_that_are_needed_are_read_unless_one_is_lacking() -> None:
    nested = pa.table({"id": [1], "a": [{"b": 2}], "a.b": ["x"], "other": [3]})
    [batch] = record_batches(stored(nested), {"id", "a"})
    assert batch.column("a").to_pylist() == [{"b": 2}]
    assert "other" not in batch.schema.names
    [batch] = record_batches(stored(nested), {"id", "lacking"})
    assert batch.schema.names == ["id", "a", "a.b", "other"]
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["id", "id"])
    with pytest.raises(InputError, match="more than one column named 'id'"):
        list(record_batches(stored(twice)))


def test_dicts_of_different_columns_are_one_table() -> None:
    assert rows_of([{"id": 1}, {"id": 2, "x": "late"}]) == [{"id": 1, "x": None}, {"id": 2, "x": "late"}]


@pytest.mark.parametrize("wrong", [42, "text", None, object(), [1, 2], {"id": [1]}, [{"a": 1}, 2]])
def test_what_is_no_table_is_refused_with_what_can_be(wrong: Any) -> None:
    with pytest.raises(InputError, match="polars, pandas or arrow frame"):
        list(record_batches(wrong))


def test_categories_are_texts():
    frame = pl.DataFrame({"k": ["a", "b", None]}, schema={"k": pl.Categorical})
    [batch] = record_batches(frame)
    assert batch.schema.field("k").type == pa.string()
    assert batch.column("k").to_pylist() == ["a", "b", None]


def test_runs_are_the_values_that_they_stand_for():
    """Start from a table in memory, since Parquet files do not hold runs."""
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2, 3], pa.int32()), pa.array(["a", "b"]))
    [batch] = record_batches(pa.table({"k": runs}))
    assert batch.schema.field("k").type == pa.string()
    assert batch.column("k").to_pylist() == ["a", "a", "b"]


@pytest.mark.parametrize("rows", [[{"k": "\ud800"}], pd.DataFrame({"k": ["\ud800"]})], ids=["list", "pandas"])
def test_half_a_surrogate_pair_is_refused_with_what_to_do(rows):
    with pytest.raises(InputError, match="half a surrogate pair"):
        list(record_batches(rows))
