"""A backfill of daily partitions by Dagster: one run for all, or one for each, in this process with the emulator."""

from __future__ import annotations

import datetime as dt
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch import HiveParquetIOManager, LLMBatchResource, OpenAIBatchResource, Prompt, llm_batch_assets
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

_FIRST = dt.date(2025, 1, 1)
_ROWS_A_DAY = 5
_QUIET = {"loggers": {"console": {"config": {"log_level": "ERROR"}}}}
_RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")


@dataclass(frozen=True)
class Backfill:
    """The effort of a backfill."""

    runs: int
    batches: int
    calls: int
    seconds: float


def backfill(days: int, *, together: bool) -> Backfill:
    """Submit `days` and materialize their labels: in one run each, or in a run each for every day."""
    keys = [str(_FIRST + dt.timedelta(days=number)) for number in range(days)]

    def rows(context: Any) -> pa.Table:
        numbers = range(_ROWS_A_DAY)
        day = context.partition_key
        return pa.table({"id": [f"{day} {n}" for n in numbers], "text": [f"ticket {n} of {day}" for n in numbers]})

    end = str(_FIRST + dt.timedelta(days=days))
    assets = llm_batch_assets(
        name="labels",
        rows=rows,
        key="id",
        prompt=Prompt(user="{{ text }}"),
        model="openai/gpt-4o-mini",
        partitions_def=dg.DailyPartitionsDefinition(start_date=str(_FIRST), end_date=end),
    )
    with Emulator() as emulator, tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.local_temp(folder) as inst:
        resources = {
            "llm_batch": LLMBatchResource(
                openai=OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url)
            ),
            "io_manager": HiveParquetIOManager(root=f"{folder}/tables"),
        }
        defs = dg.Definitions(assets=assets, resources=resources, executor=dg.in_process_executor)
        whole = defs.resolve_implicit_global_asset_job_def()
        runs = 0

        def run(names: Sequence[str], some: Sequence[str]) -> None:
            nonlocal runs
            job = whole.get_subset(asset_selection={dg.AssetKey(name) for name in names})
            where: dict[str, Any] = {"partition_key": some[0]}
            if len(some) > 1:
                where = {"tags": dict(zip(_RANGE, (some[0], some[-1]), strict=True))}
            assert job.execute_in_process(instance=inst, run_config=_QUIET, **where).success
            runs += 1

        began = time.perf_counter()
        for some in [keys] if together else [[key] for key in keys]:
            run(["labels_batch"], some)
            emulator.settle()
            run(["labels", "labels_rejects"], some)
        seconds = time.perf_counter() - began
        assert inst.get_materialized_partitions(dg.AssetKey("labels")) == set(keys)
        assert not emulator.books.billed_twice()
        return Backfill(runs, len(emulator.books.batches), len(emulator.books.calls), seconds)


def table(days: int, runs_of_days: int) -> str:
    """Return the table as Markdown: all days in one run, and the first `runs_of_days` in a run each."""
    lines = ["| Days | | Runs | Batches | API calls | Seconds | A day, ms |", "| ---: | --- |" + " ---: |" * 5]
    for name, count, together in (("one run", days, True), ("a run for each day", min(days, runs_of_days), False)):
        took = backfill(count, together=together)
        each = took.seconds / count * 1e3
        lines.append(
            f"| {count} | {name} | {took.runs} | {took.batches} | {took.calls} | {took.seconds:.0f} | {each:.0f} |"
        )
    return "\n".join(lines)
