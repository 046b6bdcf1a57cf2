"""Flink: a Table program in batch mode, a pandas UDF in two Python workers; it is started again three times."""

from __future__ import annotations

import os
import sys
from typing import Any

import work

os.environ["_python_worker_execution_mode"] = "process"  # noqa: SIM112 - as on a cluster; else threads of this process

from pyflink.table import DataTypes, EnvironmentSettings, TableEnvironment
from pyflink.table.udf import udf


def label(ids: Any, texts: Any) -> Any:
    import pandas as pd

    return pd.Series(work.label_and_log(ids.tolist(), texts.tolist()))


def job(tables: TableEnvironment, source: str, target: str, number: int) -> None:
    where = "with ('connector' = 'filesystem', 'format' = 'json', 'path' = 'file://{}')"
    tables.execute_sql(f"create table source{number} (id bigint, `text` string) {where.format(source)}")
    tables.execute_sql(f"create table target{number} (id bigint, label string) {where.format(target)}")
    tables.execute_sql(f"insert into target{number} select id, labeled(id, `text`) from source{number}").wait()


def main() -> None:
    source, small, target, latency = work.places()
    tables = TableEnvironment.create(EnvironmentSettings.in_batch_mode())
    settings = tables.get_config()
    for name, value in {
        "parallelism.default": str(work.WORKERS),
        "python.executable": sys.executable,
        "python.client.executable": sys.executable,
        "python.files": os.path.abspath(work.__file__),  # noqa: PTH100 - as Flink wants it
        "python.fn-execution.arrow.batch.size": str(work.BATCH),
        "python.fn-execution.bundle.size": str(work.BATCH),
        "restart-strategy.type": "fixed-delay",
        "restart-strategy.fixed-delay.attempts": "3",
        "restart-strategy.fixed-delay.delay": "1 s",
    }.items():
        settings.set(name, value)
    tables.create_temporary_function("labeled", udf(label, result_type=DataTypes.STRING(), func_type="pandas"))
    work.say(phase="up")
    job(tables, source, target, 0)
    work.say(phase="done")
    if latency:
        work.timed(lambda number: job(tables, small, f"{target}-small-{number}", number + 1))


if __name__ == "__main__":
    main()
