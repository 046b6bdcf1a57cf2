"""A table that grows each day and is labeled each day: earlier rows reuse the answers of earlier submissions.

python -m benchmarks.chains folder '{"url": …}' first-day last-day rows-a-day
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from benchmarks import package
from benchmarks.measure import Cost, Work, child, mock
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.storage.ledger.shard_rows import count_requests

_SERVICE = "openai"


def main(folder: str, addresses: str, first: str, last: str, a_day: str) -> None:
    """Label the table of each of these days, and report the CPU seconds of each step over all of them."""
    engine = package.engine(_SERVICE, Path(folder), json.loads(addresses))
    definition = Labeling(
        asset="labels", model=package.MODELS[_SERVICE], key="id", prompt=Prompt(user="#ROW:{{ row.row }}#\n{{ text }}")
    )
    work, took = Work(), {"plan": 0.0, "advance": 0.0, "labels": 0.0}
    for day in range(int(first), int(last) + 1):
        rows = day * int(a_day)
        times = [work.cpu_s()]
        submission_id = engine.plan(definition, _rows(rows)).submission_id
        times.append(work.cpu_s())
        while not (status := engine.advance(definition, submission_id)).is_settled:
            pass
        times.append(work.cpu_s())
        count = sum(len(part.labels) for part in engine.label_batches(definition, submission_id, run_id="benchmark"))
        times.append(work.cpu_s())
        if count != rows or count_requests(status.shards) != int(a_day):
            raise RuntimeError(f"day {day}: {count} labels of {rows} rows, and {status.submission.reused} reused")
        for name, before, after in zip(took, times, times[1:], strict=False):
            took[name] += after - before
    work.report(took=took)


def _rows(count: int) -> pa.Table:
    numbers = range(count)
    texts = [f"ticket {number} says that something is as it should not be" for number in numbers]
    return pa.table({"id": [f"r{number}" for number in numbers], "row": numbers, "text": texts})


def table(days: Sequence[int], a_day: int, runs: int) -> str:
    """Return the table as Markdown. Each day runs in a separate process; the row shows the cheapest of the runs."""
    best: dict[int, Cost] = {}
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as folder, mock() as addresses:
            done = 0
            for day in days:
                if day > done + 1:
                    child("benchmarks.chains", folder, json.dumps(addresses), done + 1, day - 1, a_day)
                cost = child("benchmarks.chains", folder, json.dumps(addresses), day, day, a_day)
                best[day] = min(best.get(day, cost), cost, key=lambda one: one.work_cpu_s)
                done = day
    first = best[days[0]]
    lines = [
        "| Day | Rows | Plan, ms | Send and collect, ms | Labels, ms | All, ms | For each earlier day, ms | Peak MB |",
        "| ---: |" + " ---: |" * 7,
    ]
    for day in days:
        cost = best[day]
        each = f"{(cost.work_cpu_s - first.work_cpu_s) / (day - days[0]) * 1e3:.2f}" if day > days[0] else ""
        steps = " | ".join(f"{seconds * 1e3:.0f}" for seconds in cost.said["took"].values())
        lines.append(
            f"| {day} | {day * a_day:,} | {steps} | {cost.work_cpu_s * 1e3:.0f} | {each} | {cost.peak_mb:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
