"""Spark: two cores of one JVM, each with a Python worker that gets Arrow batches; four tries of a task."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import work

os.environ["PYSPARK_PYTHON"] = sys.executable
os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"

from pyspark.sql import SparkSession  # after its environment


def labeled(batches: Iterator[Any]) -> Iterator[Any]:
    import pyarrow as pa

    for batch in batches:
        ids, texts = batch.column("id"), batch.column("text")
        labels = work.label_and_log(ids.to_pylist(), texts.to_pylist())
        yield pa.RecordBatch.from_arrays([ids, pa.array(labels)], ["id", "label"])


def job(spark: SparkSession, source: str, target: str) -> None:
    rows = spark.read.schema("id long, text string").json(source)
    rows.mapInArrow(labeled, "id long, label string").write.json(target)


def main() -> None:
    source, small, target, latency = work.places()
    spark = (
        SparkSession.builder.master(f"local[{work.WORKERS},4]")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.driver.memory", "1g")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", str(work.BATCH))
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    work.say(phase="up")
    job(spark, source, target)
    work.say(phase="done")
    if latency:
        work.timed(lambda number: job(spark, small, f"{target}-small-{number}"))
    spark.stop()


if __name__ == "__main__":
    main()
