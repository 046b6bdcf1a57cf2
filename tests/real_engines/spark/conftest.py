"""A real Spark on this machine, bound to loopback: `python3 -m tests spark`. It needs a Java, 17 or later."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

TESTS = Path(__file__).parents[2]
sys.path[:0] = [str(TESTS / "engine")]  # its workspace and its comparison
os.environ["PYSPARK_PYTHON"] = sys.executable  # otherwise workers run the python3 of PATH, which has no pyarrow
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS / "engine"), str(TESTS.parent)])  # for the workers' imports
os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"

from dagster_llm_batch.testing.emulator import Emulator  # noqa: E402 - the environment comes first

if TYPE_CHECKING:
    from workspace import Workspace


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    from pyspark.sql import SparkSession

    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "768m",
        "spark.driver.maxResultSize": "64m",
        "spark.driver.extraJavaOptions": "-XX:TieredStopAtLevel=1",  # starts in half the time
        "spark.sql.shuffle.partitions": "2",
    }
    builder = SparkSession.builder.master("local[2,4]").appName("dagster-llm-batch")  # a task is tried four times
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def workspace(tmp_path: Any, emulator: Emulator) -> Workspace:
    from workspace import Workspace

    return Workspace(tmp_path, emulator)
