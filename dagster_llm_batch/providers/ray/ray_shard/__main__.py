"""The job of one shard: Ray Data over runs of its lines; each run's results are one file, written by its worker.

So rows never pass through the driver, and a killed job keeps its finished files. If a worker dies, Ray gives its run to
another worker, which answers it again only if its file is missing. The last file shows that all is done.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import ray
import ray.data

from .answering import answerer
from .files import PLAN, Files, ended, started


class Worker:
    """Answers runs of request lines, one after the other."""

    def __init__(self, folder: str, plan: Mapping[str, Any]) -> None:
        self._files = Files(folder)
        self._answer = answerer(plan)

    def __call__(self, run: Mapping[str, Any]) -> dict[str, Any]:
        start, length = int(run["start"]), int(run["length"])
        lines = self._files.requests(start, length)
        name = self._files.result_name(f"{start}-{length}".encode(), len(lines))
        if not self._files.exists(name):
            self._files.write_results(name, (line + b"\n" for line in self._answer(lines)))
        return {"rows": len(lines)}


def main(folder: str, submission_id: str) -> None:
    """Answer the whole shard."""
    files = Files(folder)
    plan = files.read_json(PLAN)
    if plan is None:
        sys.exit(f"There is no {PLAN} in {folder}. The storage has to be one that all nodes reach.")
    files.write_json(started(submission_id), {"at": time.time()})
    ray.init()
    ray.data.DataContext.get_current().enable_progress_bars = False
    answer, pool = plan["answer"], plan["pool"]
    if answer["kind"] == "vllm":
        from .vllm_processor import finished_runs  # noqa: PLC0415 -- needs vllm

        runs = finished_runs(folder, answer, pool)
    else:
        spans = [{"start": start, "length": length} for start, length in files.spans(pool["rows_per_file"])]
        runs = ray.data.from_items(spans, override_num_blocks=len(spans)).map(
            Worker,
            fn_constructor_args=(folder, answer),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=pool["workers"]),
            num_cpus=pool["num_cpus"],
            num_gpus=pool["num_gpus"],
        )
    rows = sum(run["rows"] for run in runs.iter_rows())
    files.write_json(ended(submission_id), {"rows": rows, "at": time.time()})


if __name__ == "__main__":
    main(*sys.argv[1:])
