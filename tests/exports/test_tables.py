"""Exported tables, read by each format's own reader, contain the exported values."""

from __future__ import annotations

import csv
import json
import struct
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from io import BytesIO

import google_crc32c
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from PIL import Image
from tfrecord import example_pb2, tfrecord_iterator

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.exports import FORMATS, write_table

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
TABLE = pa.table(
    {
        "ticket_id": pa.array(["a", "é\u2028中", None]),
        "urgency": pa.array([1, None, -(2**62)], pa.int64()),
        "sure": pa.array([True, False, None]),
        "score": pa.array([0.5, None, -2.25]),
        "vector": pa.array([[0.5, 1.5], None, []], pa.list_(pa.float32())),
        "tags": pa.array([["x", "y"], None, ["z", None]]),
        "who": pa.array([{"name": "n", "n": 1}, None, None]),
        "picture": pa.array([b"\x00\xff", None, b""]),
        "topic": pa.array(["bug", "bug", None]).dictionary_encode(),
        "llm_cost_usd": pa.array([Decimal("0.000000000123"), None, Decimal(7)], pa.decimal128(38, 12)),
        "llm_submitted_at": pa.array([AT, None, None], pa.timestamp("us", "UTC")),
        "llm_model": pa.array(["openai/gpt-5-nano"] * 3),
    }
)


def test_a_table_comes_back_whole_from_parquet(tmp_path):
    assert write_table(TABLE, tmp_path / "t.parquet") == 3
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").to_pylist() == TABLE.to_pylist()


def test_a_dataset_of_hugging_face_has_every_column_and_value(tmp_path):
    import datasets

    write_table(TABLE, tmp_path / "t", "huggingface")
    back = datasets.load_from_disk(str(tmp_path / "t"))
    assert back.column_names == TABLE.schema.names
    assert back.data.table.to_pylist() == TABLE.to_pylist()
    assert back[0]["llm_cost_usd"] == Decimal("0.000000000123")
    assert not datasets.are_progress_bars_disabled()
    with pytest.raises(ConfigError, match="There is a "):
        write_table(TABLE, tmp_path / "t", "huggingface")


def test_load_dataset_reads_a_folder_of_the_hub_with_nested_values_and_images(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    picture = BytesIO()
    Image.new("RGB", (3, 2)).save(picture, "png")
    found = pa.array([[{"name": "A", "n": 1}], [], None], pa.list_(pa.struct({"name": pa.string(), "n": pa.int64()})))
    table = TABLE.append_column("found", found).append_column("photo", [[picture.getvalue(), None, None]])
    assert write_table(table, tmp_path / "t", "hub") == 3
    read = datasets.load_dataset(str(tmp_path / "t"), split="train", cache_dir=str(tmp_path / "cache"))
    assert read.data.table.to_pylist() == table.to_pylist()
    assert read.cast_column("photo", datasets.Image())[0]["photo"].size == (3, 2)
    with pytest.raises(ConfigError, match="There is a "):
        write_table(table, tmp_path / "t", "hub")


def features(record: bytes) -> dict[str, list]:
    """Return a tf.Example as plain lists."""
    example = example_pb2.Example()
    example.ParseFromString(bytes(record))
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = list(getattr(feature, kind).value)
    return found


def test_an_example_of_tensorflow_has_a_feature_for_each_value_and_none_for_a_null(tmp_path):
    write_table(TABLE, tmp_path / "t.tfrecord")
    first, second, third = [features(record) for record in tfrecord_iterator(str(tmp_path / "t.tfrecord"))]
    assert first == {
        "ticket_id": [b"a"],
        "urgency": [1],
        "sure": [1],
        "score": [0.5],
        "vector": [0.5, 1.5],
        "tags": [b"x", b"y"],
        "who": [b'{"name": "n", "n": 1}'],
        "picture": [b"\x00\xff"],
        "topic": [b"bug"],
        "llm_cost_usd": [b"0.000000000123"],
        "llm_submitted_at": [AT.isoformat().encode()],
        "llm_model": [b"openai/gpt-5-nano"],
    }
    assert second == {
        "ticket_id": ["é\u2028中".encode()], "sure": [0], "topic": [b"bug"], "llm_model": [b"openai/gpt-5-nano"],
    }  # fmt: skip
    assert third["urgency"] == [-(2**62)]
    assert third["vector"] == []
    assert third["tags"] == [b'["z", null]']  # a list of a feature cannot contain a null


def test_the_records_of_tensorflow_are_framed_with_right_checksums(tmp_path):
    write_table(TABLE, tmp_path / "t.tfrecord")
    data, records = (tmp_path / "t.tfrecord").read_bytes(), 0

    def masked(part: bytes) -> bytes:
        crc = google_crc32c.value(part)
        return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert data[8:12] == masked(data[:8])
        assert data[12 + length : 16 + length] == masked(data[12 : 12 + length])
        data, records = data[16 + length :], records + 1
    assert records == 3


def test_lines_and_csv_hold_the_same_values_as_text(tmp_path):
    write_table(TABLE, tmp_path / "t.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "t.jsonl").read_bytes().split(b"\n")[:-1]]
    assert [line["llm_cost_usd"] for line in lines] == ["0.000000000123", None, "7.000000000000"]
    assert [line["who"] for line in lines] == [{"name": "n", "n": 1}, None, None]
    write_table(TABLE.drop_columns("picture"), tmp_path / "t.csv")
    assert ',"0.000000000123",' in (tmp_path / "t.csv").read_text()  # and not 1.23E-10
    read = pyarrow.csv.read_csv(tmp_path / "t.csv")
    assert read["ticket_id"].to_pylist()[:2] == TABLE["ticket_id"].to_pylist()[:2]
    assert read["vector"].to_pylist()[0] == "[0.5, 1.5]"


def test_a_text_that_a_spreadsheet_would_run_has_an_apostrophe_before_it(tmp_path):
    run = ['=HYPERLINK("http://x")', "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\uff1d1+1"]
    plain = ["a = b", "-5", "+4.5", "", "'=1", "1-2", None]
    table = pa.table({"n": range(14), "text": pa.array([*run, *plain]).dictionary_encode(), "score": [-1.5] * 14})
    write_table(table, tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"] for row in rows] == [*(f"'{text}" for text in run), *plain[:-1], ""]
    assert {row["score"] for row in rows} == {"-1.5"}
    write_table(table, tmp_path / "t.jsonl")
    assert [json.loads(line)["text"] for line in (tmp_path / "t.jsonl").open()] == [*run, *plain]


def test_a_number_that_json_does_not_have_is_null_in_lines(tmp_path):
    nan, inf = float("nan"), float("inf")
    table = pa.table({"score": [0.5, nan, -inf], "vector": [[nan, 1.0], [], [inf]], "who": [{"n": nan}] * 3})
    write_table(table, tmp_path / "t.jsonl")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "t.jsonl").open()]
    assert [line["score"] for line in lines] == [0.5, None, None]
    assert [line["vector"] for line in lines] == [[None, 1.0], [], [None]]
    assert lines[0]["who"] == {"n": None}


@pytest.mark.parametrize("form", FORMATS)
def test_any_frame_is_written_in_any_format_and_nothing_else_is_left(form, tmp_path):
    frame = pl.DataFrame({"id": ["a", "b"], "label": [1, 2]})
    assert write_table(frame, tmp_path / "out", form) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert write_table(frame.head(0), tmp_path / "empty", form) == 0


def test_what_is_no_format_or_no_table_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(ConfigError, match="the formats are parquet, csv, jsonl, huggingface, hub, tfrecord"):
        write_table(TABLE, tmp_path / "t", "xml")
    with pytest.raises(ConfigError, match="has an unknown ending"):
        write_table(TABLE, tmp_path / "t.xml")
    with pytest.raises(InputError, match="no rows"):
        write_table([], tmp_path / "t.csv")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_libraries_of_the_extra_are_imported_only_when_they_write():
    script = "import sys, dagster_llm_batch.exports; sys.exit(bool({'datasets', 'tfrecord'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
