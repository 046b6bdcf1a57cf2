"""Ticks of the sensor over the workers' batches: with all in flight, with nothing due, and with all ended.

python -m benchmarks.scale.tick '{fields of Setup}'
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from typing import Any

import dagster as dg
import psycopg2

from benchmarks.labels import Label
from benchmarks.measure import Work
from benchmarks.scale.setup import MODELS, NAMESPACE, PROMPT, Setup, statements
from benchmarks.sensor import evaluate_tick
from dagster_llm_batch import LLMBatchResource, OpenAIBatchResource, build_llm_batch_sensor, llm_batch_assets


def main(fields: str) -> None:
    """Tick until all batches were polled, once more, and until the end of all batches is recorded."""
    setup = Setup(**json.loads(fields))
    keys = [setup.key(number) for number in range(setup.partitions)]
    assets = llm_batch_assets(
        name="labels",
        rows=lambda _context: [],
        key="id",
        prompt=PROMPT,
        response=Label,
        model=MODELS["openai"],
        params={"max_tokens": 200},
        partitions_def=dg.StaticPartitionsDefinition(keys),
    )
    resources = {
        "llm_batch": LLMBatchResource(
            namespace=NAMESPACE,
            ledger_url=setup.ledger_url,
            payload_root=str(setup.payloads),
            openai=OpenAIBatchResource(api_key="sk-mock", base_url=f"{setup.url}/v1"),
        )
    }
    repository = dg.Definitions(
        assets=assets, sensors=[build_llm_batch_sensor()], resources=resources
    ).get_repository_def()
    counts = statements()
    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.local_temp(folder) as instance:

        def tick(name: str) -> dict[str, Any]:
            before, calls, began = counts.taken(), _calls(setup.url), time.perf_counter()
            said = evaluate_tick(instance, repository, resources)
            took, seconds = counts.taken() - before, time.perf_counter() - began
            return {
                "name": name,
                "seconds": seconds,
                "cpu_s": took.cpu_s,
                "reads": took.reads,
                "writes": took.writes,
                "calls": sum(_calls(setup.url).values()) - sum(calls.values()),
                "runs": len(said.run_requests or ()),
                "left": _unasked(setup.ledger_url),
            }

        def until_all_are_asked(name: str) -> list[dict[str, Any]]:
            _set_unasked(setup.ledger_url)
            ticks = [tick(name)]
            while ticks[-1]["left"] and len(ticks) < 50:
                ticks.append(tick("the next"))
            return ticks

        tick("the first of a process")
        work = Work()
        ticks = [*until_all_are_asked("all are due"), tick("none is due")]
        urllib.request.urlopen(urllib.request.Request(f"{setup.url}/finish/openai", b"{}", method="POST")).close()
        ticks += until_all_are_asked("all have ended")
        work.report(ticks=ticks)


def _set_unasked(url: str) -> None:
    """Change the ledger so that all batches were sent an hour ago and not polled since."""
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE batch SET polled_at = NULL, sent_at = sent_at - interval '1 hour', "
            "submitted_at = submitted_at - interval '1 hour' WHERE state = 'running'"
        )
    connection.close()


def _unasked(url: str) -> int:
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM batch WHERE polled_at IS NULL AND state = 'running'")
        (count,) = cursor.fetchone() or (0,)
    connection.close()
    return int(count)


def _calls(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/calls") as reply:
        # The request for the counts is not a call of the sensor.
        return {name: count for name, count in json.load(reply).items() if name != "GET /calls"}


if __name__ == "__main__":
    main(sys.argv[1])
