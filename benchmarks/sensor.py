"""One tick of the sensor over many batches in flight: seconds, calls, run requests.

Each batch is of a different partition, or many partitions share few batches.

python -m benchmarks.sensor openai|anthropic batches partitions folder '{"url": …}' [ledger URL]

A call takes the vendor 0.2 seconds here. Dagster's time to launch the requested runs is not included: half a second
each, for at most twenty runs.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import dagster as dg
import sqlalchemy as sa

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
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.batch_rows import shard_row, store_batches
from dagster_llm_batch.storage.ledger.database import utc_now
from dagster_llm_batch.storage.ledger.records import Batch, Shard, Submission
from dagster_llm_batch.storage.ledger.schema import BATCH, BILL, EVENT, SHARD, SHARD_ROW, SUBMISSION, to_row

LEDGERS = ("sqlite", "postgresql")
_MODELS = {"openai": "gpt-4o-mini", "anthropic": "claude-haiku-4-5"}
_CALL_SECONDS = 0.2


def main(
    service: str, batches: str, partitions: str, folder: str, addresses: str, ledger_url: str | None = None
) -> None:
    """Fill a ledger, then tick: with all running, with nothing due, and with all ended."""
    url, count = json.loads(addresses)["url"], int(batches)
    keys = [f"p{number:05d}" for number in range(int(partitions))]
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
        ledger_url=ledger_url,
        openai=OpenAIBatchResource(api_key="sk-mock", base_url=f"{url}/v1"),
        anthropic=AnthropicBatchResource(api_key="sk-mock", base_url=url),
    )
    with dg.DagsterInstance.local_temp(folder) as instance:
        resources = {"llm_batch": resource}
        defs = dg.Definitions(assets=assets, sensors=[build_llm_batch_sensor()], resources=resources)
        repository = defs.get_repository_def()
        with dg.build_init_resource_context(instance=instance) as context:
            resource.setup_for_execution(context)
        engine = resource.engine()

        def tick(name: str) -> dict[str, Any]:
            before, began = _calls(url), time.perf_counter()
            said = evaluate_tick(instance, repository, resources)
            took = time.perf_counter() - began
            calls = {name: number - before.get(name, 0) for name, number in _calls(url).items()}
            listed = sum(number for name, number in calls.items() if name.endswith("batches"))
            single = sum(number for name, number in calls.items() if name.endswith("([^/]+)"))
            unseen = SHARD.c.polled_at.is_(None) if name != "none is due" else sa.false()
            with engine.ledger._database.read() as connection:  # noqa: SLF001 - nothing else tells
                left = connection.execute(sa.select(sa.func.count()).select_from(SHARD).where(unseen)).scalar_one()
            return {
                "name": name,
                "seconds": took,
                "list_calls": listed,
                "single_calls": single,
                "left": left,
                "runs": len(said.run_requests or ()),
                "cursor_bytes": len(said.cursor or ""),
            }

        def until_all_are_seen(name: str) -> Iterator[dict[str, Any]]:
            yield (one := tick(name))
            for _ in range(20):
                if not one["left"]:
                    return
                yield (one := tick("the next"))

        _fill(engine, service, keys, _post(url, f"/seed/{service}", {"count": count})["ids"])
        _post(url, "/pause", {"seconds": _CALL_SECONDS})
        work = Work()
        ticks = [*until_all_are_seen("all are due"), tick("none is due")]
        _post(url, f"/finish/{service}", {})
        with engine.ledger._database.write() as connection:  # noqa: SLF001 - so that all are due again
            connection.execute(sa.update(BATCH).values(polled_at=None))
        ticks += until_all_are_seen("all have ended")
        work.report(ticks=ticks)


def evaluate_tick(
    instance: dg.DagsterInstance, repository: dg.RepositoryDefinition, resources: Mapping[str, object]
) -> Any:
    """Tick the batch sensor once, like Dagster's daemon. Return Dagster's record of the tick: its class is private."""
    with dg.build_sensor_context(
        instance=instance,
        instance_ref=instance.get_ref(),
        repository_def=repository,
        resources=resources,
        sensor_name="llm_batch_sensor",
    ) as context:
        return repository.get_sensor_def("llm_batch_sensor").evaluate_tick(context)


def _fill(engine: Engine, service: str, keys: Sequence[str], batch_ids: Sequence[str]) -> None:
    """Write a submission with one shard for each partition, sent an hour ago, directly into the ledger's tables.

    Neighboring partitions share a batch if there are fewer batches than partitions.
    """
    provider, model = engine.provider(service), _MODELS[service]
    then = utc_now() - timedelta(hours=1)
    submissions, shards = [], []
    first, of_batch = 0, -1
    for number, key in enumerate(keys):
        if number * len(batch_ids) // len(keys) > of_batch:
            first, of_batch = number, of_batch + 1
        name, sent_at = f"{number:032x}", then + timedelta(milliseconds=first)
        batch = Batch(
            batch_key=f"{first:016x}-1",
            place=number - first,
            batch_id=batch_ids[of_batch],
            sent_at=sent_at,
            submitted_at=sent_at,
        )
        submissions.append(
            Submission(
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
                provider=service,
                account=provider.account,
                model=model,
            )
        )
        shards.append(
            Shard(
                shard_id=f"{number:016x}",
                submission_id=name,
                wave=1,
                number=0,
                state=ShardState.SUBMITTED,
                nonce=f"r{number:016x}",
                requests=100,
                bytes=1,
                path="p",
                digest="d",
                batch=batch,
                provider=service,
                account=provider.account,
                model=model,
            )
        )
    opened = {"at": then, "kind": "opened", "to_state": "open"}
    with engine.ledger._database.write() as connection:  # noqa: SLF001
        connection.execute(sa.insert(SUBMISSION), [to_row(one) for one in submissions])
        store_batches(connection, shards)
        connection.execute(sa.insert(SHARD_ROW), [{**shard_row(one), "planned_at": then} for one in shards])
        connection.execute(sa.insert(BILL), [{"shard_id": one.shard_id} for one in shards])
        connection.execute(sa.insert(EVENT), [{"submission_id": one.submission_id, **opened} for one in submissions])


def _calls(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/calls") as reply:
        return dict(json.load(reply))


def _post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return dict(json.load(reply))


def table(services: Sequence[str], sizes: Sequence[tuple[int, int]], ledgers: Sequence[str]) -> str:
    """Return the table as Markdown. A size is a number of batches, and a number of partitions that are in them."""
    titles = ("Service", "Ledger", "In flight", "Partitions", "Tick", "Seconds", "List calls", "Single calls")
    lines = [
        f"| {' | '.join(titles)} | Left for the next | Runs asked for | Cursor bytes |",
        "| --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    with ExitStack() as stack:
        databases = None
        if "postgresql" in ledgers:
            from tests.crash.postgres import postgres

            databases = stack.enter_context(postgres(durable=True))
        for service in services:
            for ledger in ledgers:
                for size, partitions in sizes:
                    url = [databases()] if databases is not None and ledger == "postgresql" else []
                    with mock() as addresses, tempfile.TemporaryDirectory() as folder:
                        where = (folder, json.dumps(addresses), *url)
                        cost = child("benchmarks.sensor", service, size, partitions, *where)
                    lines += [
                        f"| {service} | {ledger} | {size:,} | {partitions:,} | {one['name']} | {one['seconds']:.2f} | "
                        f"{one['list_calls']} | {one['single_calls']} | {one['left']:,} | {one['runs']} | "
                        f"{one['cursor_bytes']} |"
                        for one in cost.said["ticks"]
                    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
