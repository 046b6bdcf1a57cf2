"""Rows that are planned again, all of which are answered: in a process of its own, beside one that only reads them.

python -m benchmarks.replan rows.parquet [folder '{"url": …}']
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import package
from benchmarks.inputs import read_batches, read_rows, rows_file
from benchmarks.measure import Work, child, mock

_SERVICE = "openai"


def main(rows: str, folder: str | None = None, addresses: str = "{}") -> None:
    """Plan the rows; without a folder read them."""
    engine = None if folder is None else package.engine(_SERVICE, Path(folder), json.loads(addresses))
    work = Work()
    if engine is None:
        count = sum(len(batch) for batch in read_batches(rows))
    else:
        count = engine.plan(package.labeling(_SERVICE), read_rows(rows)).rows
    work.report(rows=count)


def table(sizes: Sequence[int], runs: int, inputs: Path) -> str:
    """As Markdown: the best of the runs."""
    lines = [
        "| Rows | Plan again, CPU s | Read alone, CPU s | Plan again, peak MB | Read alone, peak MB |",
        "| ---: | ---: | ---: | ---: | ---: |",
    ]
    for size in sizes:
        rows = rows_file(inputs, size)
        with tempfile.TemporaryDirectory() as folder, mock() as addresses:
            place = (folder, json.dumps(addresses))
            child("benchmarks.package", _SERVICE, rows, *place)
            again = [child("benchmarks.replan", rows, *place) for _ in range(runs)]
        read = [child("benchmarks.replan", rows) for _ in range(runs)]
        cpu = (min(cost.work_cpu_s for cost in costs) for costs in (again, read))
        peak = (max(cost.peak_mb for cost in costs) for costs in (again, read))
        figures = [*(f"{one:.2f}" for one in cpu), *(f"{one:.0f}" for one in peak)]
        lines.append(f"| {size:,} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
