"""Plain Python: a pool of two processes; the parent writes results when they arrive."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import work


def one(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
    labels = work.label_and_log([row["id"] for row in batch], [row["text"] for row in batch])
    return [{"id": row["id"], "label": label} for row, label in zip(batch, labels, strict=True)]


def job(pool: ProcessPoolExecutor, source: str, target: str) -> None:
    rows = work.read(source)
    batches = [rows[at : at + work.BATCH] for at in range(0, len(rows), work.BATCH)]
    Path(target).mkdir(parents=True, exist_ok=True)
    with Path(target, "part-0.json").open("w", encoding="utf-8", buffering=1) as out:
        for labeled in pool.map(one, batches):
            out.writelines(json.dumps(row) + "\n" for row in labeled)


def main() -> None:
    source, small, target, latency = work.places()
    with ProcessPoolExecutor(work.WORKERS) as pool:
        work.say(phase="up")
        job(pool, source, target)
        work.say(phase="done")
        if latency:
            work.timed(lambda number: job(pool, small, f"{target}-small-{number}"))


if __name__ == "__main__":
    main()
