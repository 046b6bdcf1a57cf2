"""The package phase by phase, over slow connections: wall and CPU seconds of each.

python -m benchmarks.phases openai rows.parquet folder '{"url": …}' downloads-at-once requests-a-shard

Connections have the speed of the internet, since a loopback is too fast for any waiting.
"""

from __future__ import annotations

import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks import package  # isort: skip - before what it keeps Dagster away from
from benchmarks.cores import THREADS
from benchmarks.inputs import read_rows
from benchmarks.loading import load_package
from benchmarks.measure import Work
from dagster_llm_batch.engine import Deployment, Engine, Limits
from dagster_llm_batch.loop.collect import Collector
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore

_BYTES_A_SECOND = 10_000_000
_CALL_SECONDS = 0.2


def main(service: str, rows: str, folder: str, addresses: str, at_once: str, a_shard: str) -> None:
    """Label the rows, phase by phase."""
    load_package(service)
    where, home = json.loads(addresses), Path(folder)
    engine = Engine(
        Deployment(
            {service: package.provider(service, where)},
            Ledger(home / "ledger.sqlite"),
            PayloadStore(home / "payloads"),
            "benchmark",
            transfers_at_once=int(at_once),
        )
    )
    definition = package.labeling(service, limits=Limits(max_requests_per_batch=int(a_shard)))
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
    shards = engine.ledger.shards.of_submission(submission_id)
    reader = Collector(definition, engine.deployment)  # the package itself does not read raw results by threads
    for threads in THREADS:
        with phase(f"read by {threads}"), ThreadPoolExecutor(threads) as pool:
            list(pool.map(reader.read, shards))
    work.report(rows=count, took=took)


if __name__ == "__main__":
    main(*sys.argv[1:])
