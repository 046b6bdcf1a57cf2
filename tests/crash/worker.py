"""A worker process: labels one table from rows to a delivered file, as runs do, and dies where it is told to.

It remembers nothing. What a killed one left is in the ledger, the payload store and the provider's books.
"""

from __future__ import annotations

import faulthandler
import os
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dagster_llm_batch.engine import Engine
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from tests.crash.clouds import Cloud, Place
from tests.crash.scenarios import Scenario
from tests.crash.taps import Point, Tap, When, install, tap_verbs

NAMESPACE = "crash"
SECONDS_A_RUN = 60.0
_PAUSE_SECONDS = 0.01


class Reached(NamedTuple):
    """The process is at its point: it kills itself now, or is about to make a call that shall be held."""

    is_held: bool


@dataclass(frozen=True)
class Job:
    """What a worker process is given."""

    cloud: Cloud
    scenario: Scenario
    place: Place
    ledger_url: str
    point: Point | None

    @property
    def table(self) -> Path:
        return Path(self.place.folder) / "labels.parquet"

    def open_ledger(self) -> Ledger:
        return Ledger(self.ledger_url)


def work(job: Job, parent: Connection) -> None:
    """The whole journey. Tells the parent what was crossed on the way."""
    log = os.open(f"{job.place.folder}/worker.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 2)
    faulthandler.dump_traceback_later(SECONDS_A_RUN - 5, exit=True)

    def tell(is_held: bool) -> None:
        parent.send(Reached(is_held))
        if is_held:
            parent.recv()

    tap = Tap(job.point, tell)
    cloud = job.cloud
    install(tap, cloud.create, cloud.download, job.place.port)
    provider = tap_verbs(tap, cloud.provider(job.place, job.scenario.command_options))
    engine = Engine(
        {cloud.name: provider},
        job.open_ledger(),
        PayloadStore(f"{job.place.folder}/payloads"),
        NAMESPACE,
        sleep=lambda _: time.sleep(_PAUSE_SECONDS),
    )
    labeling = job.scenario.labeling(cloud)
    submission = engine.plan(labeling, job.scenario.tickets())
    while not _is_settled(engine, labeling, submission.submission_id):
        time.sleep(_PAUSE_SECONDS)
    labeled = engine.labels(labeling, submission.submission_id)
    rows = pa.concat_tables([one.select(["ticket_id", "llm_outcome"]) for one in (labeled.labels, labeled.rejects)])
    _materialize(tap, rows, job.table)
    engine.ledger.deliver(submission.submission_id)
    parent.send(dict(tap.crossed))


def _is_settled(engine: Engine, labeling: Any, submission_id: str) -> bool:
    try:
        return engine.advance(labeling, submission_id).is_settled
    except TransientError:
        return False  # the provider does not answer now


def _materialize(tap: Tap, rows: pa.Table, path: Path) -> None:
    """Write the table as an IO manager does: as a whole, or not at all."""
    tap.cross("table: labels", When.BEFORE)
    part = path.with_suffix(".part")
    pq.write_table(rows, part)
    tap.cross("table: labels", When.UNSEEN)
    part.replace(path)
    tap.cross("table: labels", When.AFTER)
