"""The pipeline inside a Dagster run, in this process, compared with a run of empty assets of the same shape.

python -m benchmarks.dagster_run openai|anthropic rows.parquet|nothing folder '{"url": …}'
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import dagster as dg

import benchmarks.bare  # noqa: F401  # before the first array
from benchmarks import empty_run
from benchmarks.inputs import ASK, read_rows, rows_file
from benchmarks.labels import Label
from benchmarks.loading import load_package
from benchmarks.measure import Cost, Work, child, mock
from dagster_llm_batch import (
    AnthropicBatchResource,
    HiveParquetIOManager,
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    llm_batch_assets,
)

_MODELS = {"openai": "openai/gpt-4o-mini", "anthropic": "anthropic/claude-haiku-4-5"}
_NOTHING = "nothing"
_OFTEN = 100_000


def main(service: str, rows: str, folder: str, addresses: str) -> None:
    """Run it, and report the cost of the run alone."""
    load_package(service)
    url = json.loads(addresses)["url"]
    if service == "openai":
        llm_batch = LLMBatchResource(
            openai=OpenAIBatchResource(api_key="sk-mock", base_url=f"{url}/v1"), poll_seconds=0.01
        )
    else:
        llm_batch = LLMBatchResource(
            anthropic=AnthropicBatchResource(api_key="sk-mock", base_url=url), poll_seconds=0.01
        )
    resources: dict[str, Any] = {
        "llm_batch": llm_batch,
        "io_manager": HiveParquetIOManager(root=f"{folder}/tables"),
    }
    assets = empty_run.assets() if rows == _NOTHING else _labeled(service, rows)
    with dg.DagsterInstance.local_temp(folder) as instance:
        instance.get_runs(limit=1)  # creates its tables
        work = Work()
        done = dg.materialize(assets, instance=instance, resources=resources)
        assert done.success
        work.report(rows=0 if rows == _NOTHING else _landed(Path(folder) / "tables" / "labels"))


def _landed(folder: Path) -> int:
    import pyarrow.parquet as pq

    return sum(pq.ParquetFile(path).metadata.num_rows for path in folder.rglob("*.parquet"))


def _labeled(service: str, rows: str) -> Sequence[dg.AssetsDefinition]:
    return llm_batch_assets(
        name="labels",
        rows=lambda _context: read_rows(rows),
        key="id",
        prompt=Prompt(user="#ROW:{{ row.row }}#\n" + ASK + "{{ text }}"),
        response=Label,
        model=_MODELS[service],
        params={"max_tokens": 200},
        mode="wait",
        frame="batches",
    )


def table(services: Sequence[str], sizes: Sequence[int], runs: int, inputs: Path) -> str:
    """Return the table as Markdown. Floor, empty run and run take turns."""
    titles = ["Service", "Rows", "Run CPU s", "Empty run", "Dagster run, less an empty one", "Floor"]
    titles += ["Run less empty, times the floor", "Run peak MB", "Empty run MB"]
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " ---: |" * (len(titles) - 1)]
    for service in services:
        for size in sizes:
            rows = rows_file(inputs, size)
            costs: dict[str, list[Cost]] = {"run": [], "empty": [], "floor": []}
            for _ in range(runs if size <= _OFTEN else 1):
                with mock() as addresses, tempfile.TemporaryDirectory() as folder:
                    where = json.dumps(addresses)

                    def at(name: str, folder: str = folder) -> Path:
                        (place := Path(folder) / name).mkdir()
                        return place

                    costs["floor"].append(child("benchmarks.floor", service, rows, addresses["url"], at("floor")))
                    costs["empty"].append(child("benchmarks.dagster_run", service, _NOTHING, at("empty"), where))
                    costs["run"].append(child("benchmarks.dagster_run", service, rows, at("run"), where))
                    if costs["run"][-1].said["rows"] != size:
                        raise RuntimeError(f"{costs['run'][-1].said['rows']} of {size} rows landed")
            cpu = {name: median(one.work_cpu_s for one in some) for name, some in costs.items()}
            above = cpu["run"] - cpu["empty"]
            peaks = (f"{median(one.peak_mb for one in costs[name]):.0f}" for name in ("run", "empty"))
            lines.append(
                f"| {service} | {size:,} | {cpu['run']:.2f} | {cpu['empty']:.2f} | {above:.2f} | "
                f"{cpu['floor']:.2f} | {above / cpu['floor']:.1f} | {' | '.join(peaks)} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
