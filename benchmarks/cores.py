"""Several shards at once: wall seconds and share of a core, by phase and by how many batches are downloaded at once.

python -m benchmarks.cores openai rows.parquet folder '{"url": …}' downloads-at-once requests-a-shard

Connections carry so many bytes a second, as over the internet: at the speed of a loopback nothing waits for a network.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import package  # before the package itself
from benchmarks.inputs import read_rows, rows_file
from benchmarks.measure import Work, child, mock
from dagster_llm_batch.engine import Engine
from dagster_llm_batch.engine.collecting import Collector
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore

_BYTES_A_SECOND = 10_000_000
_CALL_SECONDS = 0.2
_SHARDS = 8
_THREADS = (1, 2, 4)
PHASES = ("plan", "submit", "collect", "labels")


def main(service: str, rows: str, folder: str, addresses: str, at_once: str, a_shard: str) -> None:
    """Label the rows, phase by phase."""
    where, house = json.loads(addresses), Path(folder)
    engine = Engine(
        {service: package.provider(service, where)},
        Ledger(house / "ledger.sqlite"),
        PayloadStore(house / "payloads"),
        "benchmark",
        downloads_at_once=int(at_once),
    )
    definition = package.labeling(service, max_requests_per_batch=int(a_shard))
    slow = json.dumps({"seconds": _CALL_SECONDS, "bytes_a_second": _BYTES_A_SECOND}).encode()
    with urllib.request.urlopen(f"{where['url']}/pause", slow):
        work, took = Work(), {}

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        took[name] = (time.perf_counter() - wall, time.process_time() - cpu)

    with phase("plan"):
        submission_id = engine.plan(definition, read_rows(rows)).submission_id
    with phase("submit"):
        engine.submit(definition, submission_id)
    with phase("collect"):
        while not engine.collect(definition, submission_id).is_settled:
            pass
    with phase("labels"):
        count = sum(len(part.labels) for part in engine.label_batches(definition, submission_id, run_id="benchmark"))
    shards = engine.ledger.shards(submission_id)
    reader = Collector(definition, engine._deployment)  # noqa: SLF001 - what no caller does: raw results read by threads
    for threads in _THREADS:
        with phase(f"read by {threads}"), ThreadPoolExecutor(threads) as pool:
            list(pool.map(reader.read, shards))
    work.report(rows=count, took=took)


def table(rows: int, caps: Sequence[int], inputs: Path) -> str:
    """As Markdown."""
    lines = [
        f"| Downloads at once | {' | '.join(f'{name}, s (cores)' for name in PHASES)} | All, s |",
        "| ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cap in caps:
        with mock() as addresses, tempfile.TemporaryDirectory() as folder:
            where = (rows_file(inputs, rows), folder, json.dumps(addresses))
            cost = child("benchmarks.cores", "openai", *where, cap, -(-rows // _SHARDS))
        if cost.said["rows"] != rows:
            raise RuntimeError(f"{cost.said['rows']} of {rows} rows have a label")
        shown = _shown(cost.said["took"])
        seconds = sum(cost.said["took"][name][0] for name in PHASES)
        lines.append(f"| {cap} | {' | '.join(map(shown, PHASES))} | {seconds:.1f} |")
    read = ", ".join(f"{shown(f'read by {threads}')} by {threads}" for threads in _THREADS)
    lines += ["", f"Raw results of all shards, read again by threads, seconds (cores): {read}."]
    return "\n".join(lines)


def _shown(took: dict[str, Any]) -> Callable[[str], str]:
    def of(name: str) -> str:
        wall, cpu = took[name]
        return f"{wall:.1f} ({cpu / wall:.2f})"

    return of


if __name__ == "__main__":
    main(*sys.argv[1:])
