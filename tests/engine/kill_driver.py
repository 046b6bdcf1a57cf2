"""A process that labels rows over the emulator, and is killed on the way: `kill_driver.py BASE_URL FOLDER WHERE`.

WHERE names the point: at `blocked` (by a scripted fault of the emulator) the parent kills it; at the others it kills
itself, with SIGKILL, the moment the engine asks for the time there or the rows reach it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from house import labeling, tickets

from dagster_llm_batch.engine import Engine
from dagster_llm_batch.providers.openai import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY

ROWS = 9


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(base_url: str, folder: Path, where: str) -> None:
    definition = labeling(max_requests_per_batch=3)

    ledger = Ledger(folder / "ledger.sqlite")

    def shard_states() -> list[str]:
        known = ledger.submissions("test")
        return [shard.state.value for one in known for shard in ledger.shards(one.submission_id)]

    def clock() -> datetime:
        if where == "accepted, not recorded" and "submitting" in shard_states():
            die()
        if where == "about to send" and "planned" in shard_states():
            die()
        if where == "read, not recorded" and any(folder.rglob("*.results.parquet")):
            die()
        return datetime.now(UTC)

    def rows() -> Iterator[pa.RecordBatch]:
        [batch] = tickets(ROWS).to_arrow().to_batches()
        yield batch.slice(0, 5)
        if where == "planning":
            die()
        yield batch.slice(5)

    provider = OpenAIProvider(DEFAULT_KEY, base_url, timeout_seconds=60)
    engine = Engine(
        {"openai": provider},
        ledger,
        PayloadStore(str(folder / "payloads")),
        "test",
        clock=clock,
    )
    submission = engine.plan(definition, rows())
    engine.submit(definition, submission.submission_id)
    sys.stdout.write("submitted\n")
    sys.stdout.flush()
    sys.stdin.readline()  # the parent lets the batches end
    engine.advance(definition, submission.submission_id)
    sys.stdout.write("done\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
