"""TensorFlow itself reads exported files: `python3 -m tests tensorflow`."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from dagster_llm_batch.exports import write_table

ROWS = 10_000
TABLE = pa.table(
    {
        "id": [f"{n} é" for n in range(ROWS)],
        "urgency": pa.array([n % 5 for n in range(ROWS)], pa.int64()),
        "score": [n / 4 for n in range(ROWS)],
        "vector": pa.array([[n, n / 2, -n] for n in range(ROWS)], pa.list_(pa.float32())),
        "topic": pa.array(["bug" if n % 2 else None for n in range(ROWS)]),
        "llm_cost_usd": pa.array([Decimal(n).scaleb(-12) for n in range(ROWS)], pa.decimal128(38, 12)),
        "llm_submitted_at": pa.array([datetime(2026, 1, 2, tzinfo=UTC)] * ROWS, pa.timestamp("us", "UTC")),
    }
)


def write(by: str, path: Path) -> None:
    """Write with TensorFlow, or with the small library in a process without TensorFlow."""
    if by == "tensorflow":
        assert write_table(TABLE, path) == ROWS
        return
    pq.write_table(TABLE, path.with_suffix(".parquet"))
    script = "import sys, pyarrow.parquet as pq; from dagster_llm_batch.exports import tables; "
    script += "tables.find_spec = lambda name: None; tables.write_table(pq.read_table(sys.argv[1]), sys.argv[2]); "
    script += "assert 'tensorflow' not in sys.modules and 'tfrecord' in sys.modules"
    subprocess.run([sys.executable, "-c", script, str(path.with_suffix(".parquet")), str(path)], check=True)


@pytest.mark.parametrize("by", ["tensorflow", "tfrecord"])
def test_a_dataset_of_records_gives_every_row_with_its_values(tmp_path, by):
    write(by, tmp_path / "labels.tfrecord")
    asked = {
        "id": tf.io.FixedLenFeature([], tf.string),
        "urgency": tf.io.FixedLenFeature([], tf.int64),
        "score": tf.io.FixedLenFeature([], tf.float32),
        "vector": tf.io.FixedLenFeature([3], tf.float32),
        "topic": tf.io.FixedLenFeature([], tf.string, default_value=""),
        "llm_cost_usd": tf.io.FixedLenFeature([], tf.string),
        "llm_submitted_at": tf.io.FixedLenFeature([], tf.string),
    }
    records = tf.data.TFRecordDataset(str(tmp_path / "labels.tfrecord"))
    read = [
        row for batch in records.batch(1_000).map(lambda one: tf.io.parse_example(one, asked)) for row in rows(batch)
    ]
    assert len(read) == ROWS
    for got, given in zip(read, TABLE.to_pylist(), strict=True):
        assert got["id"].decode() == given["id"]
        assert (got["urgency"], got["score"]) == (given["urgency"], given["score"])
        assert list(got["vector"]) == given["vector"]
        assert got["topic"].decode() == (given["topic"] or "")
        assert Decimal(got["llm_cost_usd"].decode()) == given["llm_cost_usd"]
        assert datetime.fromisoformat(got["llm_submitted_at"].decode()) == given["llm_submitted_at"]


def rows(batch):
    columns = {name: tensor.numpy() for name, tensor in batch.items()}
    return [{name: column[n] for name, column in columns.items()} for n in range(len(columns["id"]))]
