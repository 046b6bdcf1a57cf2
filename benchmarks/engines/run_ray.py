"""Ray Data: two actors of a pool, the usual way to keep a model in memory."""

from __future__ import annotations

import tempfile
from typing import Any

import ray
import work


class Labeler:
    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        labels = work.label_and_log(batch["id"].tolist(), batch["text"].tolist())
        return {"id": batch["id"], "label": labels}


def job(source: str, target: str) -> None:
    pool = ray.data.ActorPoolStrategy(size=work.WORKERS)
    rows = ray.data.read_json(source, file_extensions=["json"])
    rows.map_batches(Labeler, batch_size=work.BATCH, compute=pool, num_cpus=1).write_json(target)


def main() -> None:
    source, small, target, latency = work.places()
    ray.init(
        num_cpus=8,  # logical CPUs; with two, the actors would take both, and reading could not start
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        object_store_memory=200 * 1024 * 1024,
        _temp_dir=tempfile.mkdtemp(prefix="r", dir="/tmp"),
        logging_level="ERROR",
        log_to_driver=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    work.say(phase="up")
    job(source, target)
    work.say(phase="done")
    if latency:
        work.timed(lambda number: job(small, f"{target}-small-{number}"))
    ray.shutdown()


if __name__ == "__main__":
    main()
