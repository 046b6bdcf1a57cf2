"""A worker process: labels one table from rows to a delivered file, like a run, and dies at its crash point.

It keeps no state. A killed worker leaves its traces in the ledger, the payload store and the provider's books.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.upkeep.stored_documents import DocumentRemover
from tests.crash.clouds import Cloud, Place
from tests.crash.interceptor import Interceptor, Point, When, install, intercept_verbs
from tests.crash.scenarios import DEADLINE, Scenario

NAMESPACE = "crash"
SECONDS_A_RUN = 180.0
_PAUSE_SECONDS = 0.01
_UNTIL_REMOVED = timedelta(days=2)


class Reached(NamedTuple):
    """The process is at its point: it kills itself now, or is about to make a call that the emulator holds."""

    is_held: bool


@dataclass(frozen=True)
class Job:
    """The arguments of a worker process."""

    cloud: Cloud
    scenario: Scenario
    place: Place
    ledger_url: str
    point: Point | None
    ends_by: signal.Signals = signal.SIGKILL  # SIGSTOP: it freezes there

    @property
    def table(self) -> Path:
        return Path(self.place.folder) / "labels.parquet"

    @property
    def clock(self) -> Skipped:
        return Skipped(Path(self.place.folder) / "skipped-seconds")

    def open_ledger(self) -> Ledger:
        return Ledger(self.ledger_url, clock=self.clock.now)


def work(job: Job, parent: Connection) -> None:
    """Run the whole journey. Sends the parent the arrows that were crossed."""
    log = os.open(f"{job.place.folder}/worker.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(log, 2)
    faulthandler.dump_traceback_later(SECONDS_A_RUN - 5, exit=True)

    def tell(is_held: bool) -> None:
        parent.send(Reached(is_held))
        if is_held:
            parent.recv()

    interceptor = Interceptor(job.point, tell, job.ends_by)
    cloud = job.cloud
    install(interceptor, cloud.create, cloud.download, job.place.port)
    provider = intercept_verbs(interceptor, cloud.provider(job.place, job.scenario.command_options))
    scenario = job.scenario
    skipped = job.clock
    engine = Engine(
        Deployment(
            {cloud.name: provider},
            job.open_ledger(),
            PayloadStore(f"{job.place.folder}/payloads"),
            NAMESPACE,
            clock=skipped.now,
            sleep=lambda _: time.sleep(_PAUSE_SECONDS),
            queue_limits={cloud.name: scenario.queue_limit} if scenario.queue_limit else {},
            transfers_at_once=scenario.at_once,
        )
    )
    labeling = scenario.labeling(cloud)
    numbers = list(range(scenario.partitions))
    before = _label_before(engine, scenario, cloud, numbers, skipped) if scenario.changes_model else []
    ids: list[str] = []
    for together in [[number] for number in numbers] if scenario.in_turn else [numbers]:
        planned = [_planned(engine, scenario, labeling, number) for number in together]
        _send_together(engine, labeling, planned)
        _settle(engine, scenario, labeling, planned, skipped)
        ids += planned
    labeled = [engine.labels(labeling, one) for one in ids]
    tables = [
        table.select(["ticket_id", "llm_outcome", "llm_request_id"])
        for one in labeled
        for table in (one.labels, one.rejects)
    ]
    _materialize(interceptor, pa.concat_tables(tables), job.table)
    for one in (*before, *ids):
        engine.ledger.submissions.mark_delivered(one)
    if scenario.documents:
        skipped.to(skipped.now() + _UNTIL_REMOVED)
        remover = DocumentRemover(engine.deployment)
        remover.remove_files(remover.due())
    parent.send(sorted({arrow for arrow, _, _ in interceptor.crossed}))


def _label_before(engine: Engine, scenario: Scenario, cloud: Cloud, numbers: list[int], skipped: Skipped) -> list[str]:
    """Let the older model label all partitions, and return its submissions. A plan after the change would undo it."""
    older, ids = scenario.older_labeling(cloud), list[str]()
    for number in numbers:
        known = engine.ledger.submissions.of_partition(NAMESPACE, older.asset, str(number))
        if known and known[-1].is_settled:
            ids.append(known[-1].submission_id)
            continue
        ids.append(_planned(engine, scenario, older, number))
        _send_together(engine, older, ids[-1:])
        _settle(engine, scenario, older, ids[-1:], skipped)
    return ids


def _settle(engine: Engine, scenario: Scenario, labeling: Labeling, ids: list[str], skipped: Skipped) -> None:
    if scenario.is_late:
        skipped.to(skipped.now() + DEADLINE)
    while open_ids := [one for one in ids if not engine.status(one).is_settled]:
        if len(open_ids) > 1 and not scenario.is_canceled:
            # Like a run over several partitions. An error of a single partition is raised when the partition is
            # advanced alone.
            engine.collect_together(labeling, open_ids)
        for one in open_ids:
            if scenario.is_canceled:
                engine.cancel(one)
            with suppress(TransientError):  # the provider does not answer now
                engine.advance(labeling, one)
            for unread in engine.ledger.unread.find(NAMESPACE) if scenario.is_given_up else ():
                engine.give_up(unread.shard.shard_id)
            for shard in engine.status(one).shards:
                if shard.state is ShardState.PLANNED and shard.waits_until is not None:
                    skipped.to(shard.waits_until)
        time.sleep(_PAUSE_SECONDS)


def _send_together(engine: Engine, labeling: Labeling, ids: list[str]) -> None:
    """Submit like the sensor and its runs: a partition is sent with the others once it is certainly unsent."""
    while True:
        engine.submit_together(labeling, ids)
        if not any(shard.state is ShardState.SUBMITTING for one in ids for shard in engine.status(one).shards):
            return
        time.sleep(_PAUSE_SECONDS)


class Skipped:
    """A clock on which time can be skipped, for waits of minutes. A skip in one process counts in all."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def now(self) -> datetime:
        skipped = float(self._file.read_text() or 0) if self._file.exists() else 0.0
        return datetime.now(UTC) + timedelta(seconds=skipped)

    def to(self, moment: datetime) -> None:
        """Skip to that moment."""
        missing = (moment - self.now()).total_seconds()
        if missing > 0:
            skipped = float(self._file.read_text()) if self._file.exists() else 0.0
            whole = self._file.with_suffix(".new")
            whole.write_text(str(skipped + missing))
            whole.replace(self._file)


def _planned(engine: Engine, scenario: Scenario, labeling: Labeling, number: int) -> str:
    """Return the submission of a partition. For a canceled one, return the last: a plan would follow it up."""
    partition = str(number)
    known = engine.latest(labeling.asset, partition) if scenario.is_canceled else None
    return (known or engine.plan(labeling, scenario.tickets(number), partition=partition)).submission_id


def _materialize(interceptor: Interceptor, rows: pa.Table, path: Path) -> None:
    """Write the table like an IO manager: all of it or nothing."""
    interceptor.cross("table: labels", When.BEFORE)
    part = path.with_suffix(".part")
    pq.write_table(rows, part)
    interceptor.cross("table: labels", When.UNSEEN)
    part.replace(path)
    interceptor.cross("table: labels", When.AFTER)
