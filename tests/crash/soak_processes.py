"""The soak's processes: vendors, each an emulator with its faults, and workers, each at one partition."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dagster_llm_batch.engine import Deployment, Engine, Limits, Resend
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import Emulator, RowFault, VendorLimits, WireFault, local_gcs, local_s3
from tests.crash.billing import Money, money_of, read_billing
from tests.crash.clouds import BUCKET, CLOUDS, Place
from tests.crash.scenarios import ANSWER, PLAIN

NAMESPACE = "soak"
_PIECE_ROWS = 5_000
_SECONDS_A_STATE = 0.3
_LOOK_SECONDS = 0.5
_MOST_WAVES = 8  # enough that chance leaves no row without an answer

ROW_FAULTS = (RowFault(fraction=0.02, status_code=503),)
CALL_FAULTS = tuple(
    WireFault(times=None, fraction=fraction, **what)
    for fraction, what in (
        (0.002, {"kind": "status", "status": 429, "retry_after": 1}),
        (0.001, {"kind": "status", "status": 429}),
        (0.002, {"kind": "status", "status": 500}),
        (0.001, {"kind": "status", "status": 503}),
        (0.002, {"kind": "status", "status": 500, "when": "after"}),
        (0.001, {"kind": "close", "when": "after"}),
        (0.001, {"kind": "cut"}),
    )
)
"""One call in a hundred: refused for now, failed, done without a reply, or its answer cut off."""


class Billing(NamedTuple):
    """A vendor's final billing."""

    batches: set[str]
    billed_batches: set[str]
    money: Money
    calls: int
    row_faults: int
    call_faults: int


def serve(cloud: str, folder: str, pipe: Connection) -> None:
    """Run a vendor: send its address, serve until the waves of all shards arrive, send its billing, and end."""
    with ExitStack() as servers:
        s3_url = servers.enter_context(local_s3(BUCKET)) if cloud == "bedrock" else None
        gcs_url = servers.enter_context(local_gcs(BUCKET)) if cloud == "vertex" else None
        emulator = servers.enter_context(
            Emulator(
                answer=lambda *_: ANSWER,
                pace=_SECONDS_A_STATE,
                faults=(*ROW_FAULTS, *CALL_FAULTS),
                limits=VendorLimits(bedrock_min_records=1),
                s3_url=s3_url,
                gcs_url=gcs_url,
            )
        )
        pipe.send(Place.of(emulator, Path(folder), s3_url, gcs_url))
        try:
            waves, most = pipe.recv()
        except EOFError:
            return
        batches, answered = read_billing(CLOUDS[cloud], emulator, Path(folder))
        pipe.send(
            Billing(
                batches,
                {one.batch_id for one in answered if one.is_billed and one.batch_id},
                money_of(answered, waves, most),
                len(emulator.books.calls),
                sum(emulator.struck(fault) for fault in ROW_FAULTS),
                sum(emulator.struck(fault) for fault in CALL_FAULTS),
            )
        )


@dataclass(frozen=True, eq=False)
class Task:
    """A partition to label."""

    cloud: str
    number: int
    rows: int
    place: Place
    ledger_url: str

    @property
    def partition(self) -> str:
        return f"{self.number:04d}"

    @property
    def asset(self) -> str:
        return f"labels_{self.cloud}"

    @property
    def table(self) -> Path:
        return Path(self.place.folder) / f"{self.asset}-{self.partition}.parquet"

    def keys(self) -> list[str]:
        return [f"{self.partition}-{n}" for n in range(self.rows)]

    def tickets(self) -> Iterator[Any]:
        for start in range(0, self.rows, _PIECE_ROWS):
            keys = self.keys()[start : start + _PIECE_ROWS]
            bodies = [f"Good morning, where is my invoice number {key}? It should have come last week." for key in keys]
            yield from pa.table({"ticket_id": keys, "subject": ["Invoice"] * len(keys), "body": bodies}).to_batches()


def label(task: Task, batch_rows: int, pipe: Connection) -> None:
    """Run a worker, from rows to a delivered table. It may be killed anywhere, and another one then continues."""
    log = os.open(f"{task.place.folder}/workers.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 2)
    cloud = CLOUDS[task.cloud]
    limits, resend = Limits(max_requests_per_batch=batch_rows), Resend(_MOST_WAVES)
    changes = (("asset", task.asset), ("limits", limits), ("resend", resend))
    labeling = PLAIN.with_changes(*changes).labeling(cloud)
    engine = Engine(
        Deployment(
            {task.cloud: cloud.provider(task.place, ())},
            Ledger(task.ledger_url),
            PayloadStore(f"{task.place.folder}/payloads"),
            NAMESPACE,
            sleep=lambda seconds: time.sleep(min(seconds, 2.0) * random.uniform(0.5, 1)),
            lease_wait_seconds=5.0,
        )
    )
    submission_id = engine.plan(labeling, task.tickets(), partition=task.partition).submission_id
    while not engine.status(submission_id).is_settled:
        with suppress(TransientError):  # the provider does not answer now
            engine.advance(labeling, submission_id)
        time.sleep(_LOOK_SECONDS)
    labeled = engine.labels(labeling, submission_id)
    rows = pa.concat_tables([one.select(["ticket_id", "llm_outcome"]) for one in (labeled.labels, labeled.rejects)])
    part = task.table.with_suffix(".part")
    pq.write_table(rows, part)
    part.replace(task.table)
    engine.ledger.submissions.mark_delivered(submission_id)
    pipe.send("done")
