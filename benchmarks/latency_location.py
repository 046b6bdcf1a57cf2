"""A code location for `benchmarks.latency`: a labeled dataset, its sensor, and empty assets of the same shape.

Environment variables:

- LATENCY_DAYS: the number of days
- LATENCY_TICK: the sensors' interval in seconds
- LATENCY_URL: the address of the emulator
- LATENCY_FLAG: a file; once it exists, the sensor of the empty assets requests their run
- LATENCY_TABLES: the folder of the tables
"""

import datetime as dt
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch import (
    HiveParquetIOManager,
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    build_llm_batch_sensor,
    llm_batch_assets,
)
from dagster_llm_batch._dagster_private import check_target
from dagster_llm_batch.testing.emulator import DEFAULT_KEY

FIRST = dt.date(2025, 1, 1)
ROWS_A_DAY = 5
RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
SENSOR_SECONDS = int(os.environ["LATENCY_TICK"])
DAYS = int(os.environ["LATENCY_DAYS"])
KEYS = [str(FIRST + dt.timedelta(days=number)) for number in range(DAYS)]
_PARTITIONS = dg.DailyPartitionsDefinition(start_date=KEYS[0], end_date=str(FIRST + dt.timedelta(days=DAYS)))
_CHECKS = [
    dg.AssetCheckSpec(name, asset="empty", partitions_def=_PARTITIONS, blocking=name != "spend")
    for name in ("coverage", "parse_rate", "spend")
]


def where(keys: list[str]) -> dict[str, Any]:
    """Return the arguments of a run for these keys: the partition, or the tags of the range."""
    if len(keys) == 1:
        return {"partition_key": keys[0]}
    return {"tags": dict(zip(RANGE, (keys[0], keys[-1]), strict=True))}


def _rows(context: Any) -> pa.Table:
    day, numbers = context.partition_key, range(ROWS_A_DAY)
    return pa.table({"id": [f"{day} {n}" for n in numbers], "text": [f"ticket {n} of {day}" for n in numbers]})


@dg.multi_asset(
    specs=[dg.AssetSpec(name, partitions_def=_PARTITIONS) for name in ("empty", "empty_rejects")],
    check_specs=_CHECKS,
    can_subset=True,
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def empty(context: dg.AssetExecutionContext) -> Iterator[Any]:
    """Report the same events for each partition as `labels`, without any work."""
    for key in context.partition_keys:
        for name in ("empty_rejects", "empty"):
            yield dg.AssetMaterialization(name, partition=key, tags={"dagster/data_version": "1"})
        target = check_target(context.instance, dg.AssetKey("empty"), key)
        for check in _CHECKS:
            yield dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey("empty"),
                check_name=check.name,
                passed=True,
                target_materialization_data=target,
                blocking=check.blocking,
                partition=key,
            )


_empty_job = dg.define_asset_job(
    "empty_job", dg.AssetSelection.assets("empty", "empty_rejects"), executor_def=dg.in_process_executor
)


@dg.sensor(job=_empty_job, minimum_interval_seconds=SENSOR_SECONDS, default_status=dg.DefaultSensorStatus.RUNNING)
def empty_sensor() -> Iterator[dg.RunRequest]:
    """Request the run once the file exists."""
    if Path(os.environ["LATENCY_FLAG"]).exists():
        yield dg.RunRequest(run_key="once", **where(KEYS))


defs = dg.Definitions(
    assets=[
        *llm_batch_assets(
            name="labels",
            rows=_rows,
            key="id",
            prompt=Prompt(user="{{ text }}"),
            model="openai/gpt-4o-mini",
            partitions_def=_PARTITIONS,
        ),
        empty,
    ],
    jobs=[_empty_job],
    sensors=[
        build_llm_batch_sensor(minimum_interval_seconds=SENSOR_SECONDS, max_partitions_per_run=DAYS),
        empty_sensor,
    ],
    resources={
        "llm_batch": LLMBatchResource(
            openai=OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=os.environ["LATENCY_URL"])
        ),
        "io_manager": HiveParquetIOManager(root=os.environ["LATENCY_TABLES"]),
    },
    executor=dg.in_process_executor,
)
