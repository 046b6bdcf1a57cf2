"""The text of a row is the same in every process; types without such a text are refused by name, before any cost."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import narwhals as nw
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from dagster_llm_batch import Realtime
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.files.row_renderer import RowRenderer
from tests.tables import table

UUID = uuid.UUID(int=7)


class Thing:
    """A class whose text holds an address."""


def labeling(user: str = "{{ x }}", **changes: Any) -> Labeling:
    usual = {"asset": "labels", "model": "openai/gpt-4o", "key": "id", "prompt": Prompt(user=user), "empty": "ask"}
    return Labeling(**{**usual, **changes})


def texts(rows: Any, definition: Labeling | None = None) -> list[str]:
    """Return the texts to send, as planning renders them."""
    asked = definition or labeling()
    found: list[str] = []
    for batch in record_batches(rows, asked.columns_read):
        renderer = RowRenderer(asked, batch.schema, None)
        renderer.check(batch)
        for _, requests in renderer.requests(batch, batch.column("id").to_pylist()):
            found += [request.user for request in requests]
    return found


def one(values: Any, kind: Any = None) -> pa.Table:
    return pa.table({"id": ["a"], "x": values if kind is None else pa.array(values, kind)})


UNSTABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "polars uuid": (lambda: pl.DataFrame({"id": ["a"], "x": [UUID]}), "polars' type Object"),
    "polars path": (lambda: pl.DataFrame({"id": ["a"], "x": [Path("/x")]}), "polars' type Object"),
    "polars set": (lambda: pl.DataFrame({"id": ["a"], "x": pl.Series([{1}], dtype=pl.Object)}), "map_elements(str)"),
    "polars lazy": (lambda: pl.DataFrame({"id": ["a"], "x": [UUID]}).lazy(), "polars' type Object"),
    "polars in narwhals": (lambda: nw.from_native(pl.DataFrame({"id": ["a"], "x": [UUID]})), "polars' type Object"),
    "polars in an iterator": (lambda: iter([pl.DataFrame({"id": ["a"], "x": [UUID]})]), "polars' type Object"),
    "polars int128": (lambda: pl.DataFrame({"id": ["a"], "x": pl.Series([1], dtype=pl.Int128)}), "type Int128"),
    "polars int128 within": (
        lambda: pl.DataFrame({"id": ["a"], "x": pl.Series([[1]], dtype=pl.List(pl.Int128))}),
        "List(Int128)",
    ),
    "pandas mixed": (lambda: pd.DataFrame({"id": ["a", "b"], "x": ["a", 1]}), "type object"),
    "pandas path": (lambda: pd.DataFrame({"id": ["a"], "x": [Path("/x")]}), "as by str(value)"),
    "pandas class": (lambda: pd.DataFrame({"id": ["a"], "x": [Thing()]}), "type object"),
    "pandas set": (lambda: pd.DataFrame({"id": ["a"], "x": [{"b", "c"}]}), "sorted lists"),
    "pandas set within": (lambda: pd.DataFrame({"id": ["a"], "x": [{"of": [{"b", "c"}]}]}), "sorted lists"),
    "pandas complex": (lambda: pd.DataFrame({"id": ["a"], "x": [1j]}), "complex128"),
    "pandas interval": (lambda: pd.DataFrame({"id": ["a"], "x": pd.interval_range(0, 1)}), "Cast it to text"),
    "pandas period": (lambda: pd.DataFrame({"id": ["a"], "x": pd.period_range("2026", periods=1)}), "Cast it to text"),
    "dicts class": (lambda: [{"id": "a", "x": Thing()}], "as by str(value)"),
    "dicts class within": (lambda: [{"id": "a", "x": [{"of": Thing()}]}], "as by str(value)"),
    "dicts path": (lambda: [{"id": "a", "x": Path("/x")}], "as by str(value)"),
    "dicts set": (lambda: [{"id": "a", "x": {"b", "c"}}], "sorted lists"),
    "dicts set within": (lambda: [{"id": "a", "x": {"of": [{"b", "c"}]}}], "sorted lists"),
    "dicts mixed": (lambda: [{"id": "a", "x": 1}, {"id": "b", "x": "t"}], "Give all its values one type"),
    "dicts large integer": (lambda: [{"id": "a", "x": 2**70}], "Give all its values one type"),
    "union": (
        lambda: one(pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1]), pa.array(["a"])])),
        "Cast it to one type",
    ),
    "union within": (
        lambda: one(
            pa.StructArray.from_arrays(
                [pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1]), pa.array(["a"])])], ["u"]
            )
        ),
        "Cast it to one type",
    ),
    "interval": (lambda: one([pa.MonthDayNano([1, 2, 3])], pa.month_day_nano_interval()), "Cast it to a duration"),
    "unknown zone": (lambda: one([1], pa.timestamp("us", "Mars/Base")), "'Mars/Base' is not known here"),
    "unknown zone within": (lambda: one([[1]], pa.list_(pa.timestamp("us", "Mars/Base"))), "Convert it to UTC"),
    "a library's own type": (lambda: one([None], pa.opaque(pa.null(), "thing", "vendor")), "Cast it to text"),
}


@table("name", UNSTABLE)
def test_what_has_no_stable_text_is_refused_with_its_column_and_what_to_do(name: str) -> None:
    make, told = UNSTABLE[name]
    with pytest.raises(InputError) as caught:
        texts(make())
    assert "column 'x'" in str(caught.value)
    assert told in str(caught.value)
    assert "before labeling, or leave the column out" in str(caught.value)


@table("name", UNSTABLE)
def test_a_column_that_nothing_reads_is_no_reason_to_refuse(name: str) -> None:
    make, _ = UNSTABLE[name]
    assert set(texts(make(), labeling("Say yes."))) == {"Say yes."}
    for changes in ({"keep": ["x"]}, {"user": "{{ row }}"}):
        with pytest.raises(InputError, match="column 'x'"):
            texts(make(), labeling(**{"user": "Say yes.", **changes}))


def test_what_has_a_text_of_its_own_is_sent_as_that() -> None:
    day = datetime(2026, 1, 1, tzinfo=UTC)
    kept = {
        str(UUID): [{"id": "a", "x": UUID}],
        "1.10": [{"id": "a", "x": Decimal("1.10")}],
        "": [{"id": "a", "x": float("nan")}],  # as a null is
        "2026-01-01 00:00:00+00:00": [{"id": "a", "x": day}],
        "[1, 2]": [{"id": "a", "x": (1, 2)}],
        "{'b': [1]}": pd.DataFrame({"id": ["a"], "x": [{"b": [1]}]}),
    }
    for text, rows in kept.items():
        assert texts(rows) == [text]
    assert texts(pd.DataFrame({"id": ["a"], "x": pd.Categorical([UUID])})) == [str(UUID)]


def test_a_later_part_of_a_stream_is_looked_at_too() -> None:
    parts = [one(["text"]), one([1], pa.timestamp("us", "Mars/Base"))]
    with pytest.raises(InputError, match="'Mars/Base'"):
        texts(iter(parts))


def test_rows_without_names_are_refused() -> None:
    with pytest.raises(InputError, match="A row has the key 1"):
        texts([{"id": "a", 1: "b"}])


@pytest.mark.parametrize(
    "empty",
    [
        pd.DataFrame,
        lambda: pd.DataFrame({"id": [], "x": [], "is_vip": []}),
        lambda: pd.DataFrame(columns=["id", "x", "is_vip"]),
        lambda: pd.DataFrame({"id": [1.5], "x": ["a"], "is_vip": [0.5]})[:0],
        lambda: pl.DataFrame({"id": [], "x": [], "is_vip": []}),
    ],
)
def test_an_empty_day_is_an_empty_day(empty: Callable[[], Any]) -> None:
    asked = labeling(realtime=Realtime(urgent="is_vip"), keep=["x"])
    for batch in record_batches(empty(), asked.columns_read):
        if batch.num_columns:
            renderer = RowRenderer(asked, batch.schema, None)
            renderer.check(batch)
            assert renderer.lanes(batch) == []
            assert str(renderer.manifest_schema.field("id").type) in {"string", "null"}
            assert renderer.manifest(batch, []).num_rows == 0


_SENT = """
import pandas as pd, sys
sys.path.insert(0, {tests!r})
from test_stable_text import texts
print(texts(pd.DataFrame({{"id": ["a"], "x": [{{"c": 1, "b": [2.5]}}]}})))
print(texts([{{"id": "a", "x": {{"c": 1, "b": None}}}}]))
"""


@pytest.mark.slow
def test_two_processes_with_other_hashes_send_the_same() -> None:
    code = _SENT.format(tests=str(Path(__file__).parent))
    said = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(said) == 1
