"""One tick of the sensor over many batches in flight, each of a partition of its own: seconds, calls, run requests.

python -m benchmarks.sensor openai|anthropic batches folder '{"url": …}'
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import dagster as dg

from benchmarks.measure import Work, child, mock
from dagster_llm_batch import (
    AnthropicBatchResource,
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    build_llm_batch_sensor,
    llm_batch_assets,
)
from dagster_llm_batch.engine import Engine
from dagster_llm_batch.states import Move
from dagster_llm_batch.storage.ledger import utc_now
from dagster_llm_batch.storage.records import Shard, Submission

_MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}


def main(service: str, batches: str, folder: str, addresses: str) -> None:
    """Fill a ledger, then tick: all running, nothing due, all ended."""
    url, count = json.loads(addresses)["url"], int(batches)
    keys = [f"p{number:05d}" for number in range(count)]
    assets = llm_batch_assets(
        name="labels",
        rows=lambda _context: [],
        key="id",
        prompt=Prompt(user="{{ text }}"),
        model=f"{service}/{_MODELS[service]}",
        params={"max_tokens": 10},
        partitions_def=dg.StaticPartitionsDefinition(keys),
    )
    resource = LLMBatchResource(
        openai=OpenAIBatchResource(api_key="sk-mock", base_url=f"{url}/v1"),
        anthropic=AnthropicBatchResource(api_key="sk-mock", base_url=url),
    )
    with dg.DagsterInstance.local_temp(folder) as instance:
        resources = {"llm_batch": resource}
        defs = dg.Definitions(assets=assets, sensors=[build_llm_batch_sensor()], resources=resources)
        repository = defs.get_repository_def()

        def tick() -> dict[str, Any]:
            before, began = _calls(url), time.perf_counter()
            with dg.build_sensor_context(
                instance=instance,
                instance_ref=instance.get_ref(),
                repository_def=repository,
                resources=resources,
                sensor_name="llm_batch_sensor",
            ) as context:
                said = repository.get_sensor_def("llm_batch_sensor").evaluate_tick(context)
            took = time.perf_counter() - began
            calls = {name: number - before.get(name, 0) for name, number in _calls(url).items()}
            listed = sum(number for name, number in calls.items() if name.endswith("batches"))
            single = sum(number for name, number in calls.items() if name.endswith("([^/]+)"))
            return {
                "seconds": took,
                "list_calls": listed,
                "single_calls": single,
                "runs": len(said.run_requests or ()),
                "cursor_bytes": len(said.cursor or ""),
            }

        with dg.build_init_resource_context(instance=instance) as context:
            resource.setup_for_execution(context)
        engine = resource.engine()
        _fill(engine, service, keys, _post(url, f"/seed/{service}", {"count": count})["ids"])
        work = Work()
        ticks = [tick(), tick()]
        _post(url, f"/finish/{service}", {})
        with engine.ledger._database.write() as connection:  # noqa: SLF001 - so that all are due again
            connection.exec_driver_sql("UPDATE shard SET polled_at = NULL")
        ticks.append(tick())
        work.report(ticks=ticks)


def _fill(engine: Engine, service: str, keys: Sequence[str], batch_ids: Sequence[str]) -> None:
    """A submission with one shard for each partition, sent an hour ago."""
    provider, model = engine.provider(service), _MODELS[service]
    common = {"provider": service, "account": provider.account, "model": model}
    then = utc_now() - timedelta(hours=1)
    for number, (key, batch_id) in enumerate(zip(keys, batch_ids, strict=True)):
        name = f"{number:032x}"
        submission = Submission(
            submission_id=name,
            namespace=engine.namespace,
            asset="labels",
            partition=key,
            fingerprint=name,
            config_fingerprint="c",
            rows=100,
            requests=100,
            manifest_path="m",
            created_at=then,
            **common,
        )
        shard = Shard(
            shard_id=f"{number:016x}",
            submission_id=name,
            wave=1,
            number=0,
            nonce=f"r{number:016x}",
            requests=100,
            bytes=1,
            path="p",
            digest="d",
            **common,
        )
        engine.ledger.open(submission, [shard])
        engine.ledger.move(shard.shard_id, Move.SEND, sent_at=then)
        engine.ledger.move(shard.shard_id, Move.ACCEPTED, batch_id=batch_id, submitted_at=then)


def _calls(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/calls") as reply:
        return dict(json.load(reply))


def _post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return dict(json.load(reply))


def table(services: Sequence[str], sizes: Sequence[int]) -> str:
    """As Markdown."""
    lines = [
        "| Service | In flight | Tick | Seconds | List calls | Single calls | Runs asked for | Cursor bytes |",
        "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for service in services:
        for size in sizes:
            with mock() as addresses, tempfile.TemporaryDirectory() as folder:
                cost = child("benchmarks.sensor", service, size, folder, json.dumps(addresses))
            for name, one in zip(("all are due", "none is due", "all have ended"), cost.said["ticks"], strict=True):
                lines.append(
                    f"| {service} | {size:,} | {name} | {one['seconds']:.1f} | {one['list_calls']} | "
                    f"{one['single_calls']} | {one['runs']} | {one['cursor_bytes']} |"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
