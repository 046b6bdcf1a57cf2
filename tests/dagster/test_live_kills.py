"""kill -9 in a real Dagster: a run that submits, the daemon, a run that collects. All labels arrive, paid once."""

import os
import re
import signal
from collections import Counter
from pathlib import Path

import pytest
from dagster_dev import DagsterDev, dagster_dev, marked
from test_live import DAYS, Reader

from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, WireFault
from tests.processes import command_lines

ROWS = 4 * len(DAYS)
CREATE, CONTENT = "POST /v1/batches", "GET /v1/files/*/content"
RUN_RETRIES = "run_retries: {enabled: true, max_retries: 3}\n"  # Dagster's own retries of runs that die

EVENTS = """
{ runsOrError(filter: {statuses: [STARTED]}) { ... on Runs { results {
    runId eventConnection(limit: 200) { events { ... on MessageEvent { message } } }
} } } }"""
STATUSES = "{ runsOrError { ... on Runs { results { runId status } } } }"


class Killer:
    """Kills processes of a `dagster dev`, and nothing else."""

    def __init__(self, dev: DagsterDev, emulator: Emulator, mark: str) -> None:
        self.dev = dev
        self.emulator = emulator
        self.mark = mark

    def run_worker(self, what: str) -> str:
        """Wait until a call of a run worker is held, and kill the worker. Return its run, which Dagster marks as
        failed.
        """
        self.dev.until(what, lambda: self.emulator.hanging)
        [run] = self.dev.ask(EVENTS)["runsOrError"]["results"]
        told = " ".join(event.get("message", "") for event in run["eventConnection"]["events"])
        pid = int(re.search(r"Started process for run \(pid: (\d+)\)", told)[1])
        assert pid in marked(self.mark)
        os.kill(pid, signal.SIGKILL)
        self.dev.until("the death to be seen", lambda: self._status(run["runId"]) == "FAILURE")
        return run["runId"]

    def daemon(self) -> None:
        """Kill the daemon; `dagster dev` ends with it."""
        commands = command_lines()
        pids = [pid for pid in marked(self.mark) if re.search(r"dagster[._-]+daemon", commands.get(pid, ("", ""))[0])]
        assert pids
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        self.dev.until("dagster dev to end", lambda: not self.dev.is_up())

    def _status(self, run_id: str) -> str:
        runs = self.dev.ask(STATUSES)["runsOrError"]["results"]
        return next(run["status"] for run in runs if run["runId"] == run_id)


def landed(seen: Reader) -> bool:
    return sorted(seen.materializations("ticket_labels")) == DAYS


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_all_partitions_land_and_are_paid_once_whoever_is_killed_in_a_real_dagster(tmp_path):
    """Start a real Dagster, which takes half a minute, and again after each kill."""
    definitions = Path(__file__).with_name("live_defs.py")
    with Emulator() as emulator:
        env = {"OPENAI_BASE_URL": emulator.openai_base_url, "OPENAI_API_KEY": DEFAULT_KEY}
        emulator.inject(WireFault(kind="hang", route=CREATE, when="after"))
        with dagster_dev(tmp_path, definitions, env, RUN_RETRIES) as dev:
            seen = Reader(dev)
            seen.backfill("ticket_labels_batch", DAYS)
            killed = [Killer(dev, emulator, str(tmp_path)).run_worker("the first create call")]
            assert len(emulator.books.batches) == 1  # our ledger does not contain it
            dev.until("all partitions to be sent", lambda: sorted(seen.materializations("ticket_labels_batch")) == DAYS)
            batches = len(emulator.books.batches)
            Killer(dev, emulator, str(tmp_path)).daemon()
        emulator.inject(WireFault(kind="hang", route=CONTENT))
        with dagster_dev(tmp_path, definitions, env, RUN_RETRIES) as dev:
            emulator.settle()
            killed.append(Killer(dev, emulator, str(tmp_path)).run_worker("the first download"))
            seen = Reader(dev)
            dev.until("all partitions", lambda: landed(seen))
            told = seen.materializations("ticket_labels")
            assert [told[day]["dagster/partition_row_count"] for day in DAYS] == [4] * len(DAYS)
            assert {run["runId"] for run in seen.failed_runs()} == set(killed)
        books = emulator.books
        assert len(books.batches) == batches
        assert Counter(one.billed for one in books.executions) == {True: ROWS}
        assert set(books.billed_counts().values()) == {1}
    assert marked(str(tmp_path)) == []
