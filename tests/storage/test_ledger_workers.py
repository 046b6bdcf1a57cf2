"""Several runs and sensors on one ledger at once, and database outages: each request is paid once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa
from ledger_builders import PROCESSES
from pg_cluster import Cluster
from worker_processes import (
    DAYS,
    NAMESPACE,
    ROWS,
    advance_until_settled,
    definition,
    engine,
    run_until_settled,
    watch_until_settled,
)

from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.errors import LedgerError
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.testing.emulator import Emulator, RowFault, WireFault

pytestmark = pytest.mark.slow
SHARDS_A_DAY = 3


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator(pace=0.02) as running:
        yield running


def assert_paid_once(mine: Engine, emulator: Emulator, requests: int) -> None:
    """Check that every request was answered and billed in exactly one batch, and that the ledger has all batches."""
    billed = Counter(execution.body_digest for execution in emulator.books.executions if execution.billed)
    assert len(billed) == requests
    assert set(billed.values()) == {1}
    shards = [
        s
        for submission in mine.ledger.submissions.list_all(NAMESPACE)
        for s in mine.ledger.shards.of_submission(submission.submission_id)
    ]
    assert sorted(s.batch.batch_id for s in shards) == sorted(batch.id for batch in emulator.books.batches)


def test_runs_and_sensors_at_once_never_work_on_the_same_shard(ledger_url, emulator, tmp_path):
    """Wait for the workers: processes that import the package, and run until they have met."""
    # so that each day has a second wave
    emulator.inject(*(RowFault(status_code=503, containing=f"Ticket {day}-3.", times=1) for day in DAYS))
    acts = [run_until_settled] * 3 + [watch_until_settled] * 2
    barrier, answers = PROCESSES.Barrier(len(acts)), PROCESSES.Queue()
    given = (ledger_url, emulator.openai_base_url, tmp_path / "payloads")
    processes = [PROCESSES.Process(target=act, args=(*given, n, barrier, answers)) for n, act in enumerate(acts)]
    for process in processes:
        process.start()
    try:
        for _ in processes:
            word, _ = answers.get(timeout=240)
            assert word == "settled"
    except BaseException:
        for process in processes:
            process.kill()
        raise
    for process in processes:
        process.join()
    mine = engine(*given)
    assert_paid_once(mine, emulator, len(DAYS) * ROWS)
    submissions = mine.ledger.submissions.list_all(NAMESPACE)
    assert sorted(submission.partition for submission in submissions) == DAYS
    assert {submission.waves for submission in submissions} == {2}
    assert all(submission.outcomes == {"succeeded": ROWS} for submission in submissions)
    kinds = Counter(
        event.kind for submission in submissions for event in mine.ledger.events.of_submission(submission.submission_id)
    )
    assert kinds["send"] == kinds["accepted"] == kinds["collected"] == len(DAYS) * (SHARDS_A_DAY + 1)
    mine.ledger.close()


def what_is_known(ledger: Ledger, failures: list[LedgerError]) -> str:
    """Return the waits of a submission that does not end, one on each line."""
    lines = [f"failed: {error}" for error in failures]
    for submission in ledger.submissions.list_all(NAMESPACE):
        lines += [str(shard) for shard in ledger.shards.of_submission(submission.submission_id)]
        lines += [str(event) for event in ledger.events.of_submission(submission.submission_id)]
    return "\n".join(lines)


class Outage:
    """Outages of the database, each for some time: until a worker has noticed it, if one must."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.noticed = threading.Event()

    def connections_killed(self) -> None:
        self._cluster.kill_backends()

    def server_stopped(self) -> None:
        self._cluster.stop()
        try:
            assert self.noticed.wait(120)
        finally:
            self._cluster.start()


MOMENTS = {"create": "POST /v1/batches", "poll": "GET /v1/batches/*", "download": "GET /v1/files/*/content"}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("outage", [Outage.connections_killed, Outage.server_stopped])
def test_a_database_that_goes_away_costs_time_only(
    postgres_cluster: Cluster, emulator: Emulator, tmp_path, moment: str, outage: Callable[[Outage], None]
):
    """Wait for the workers: they wait for PostgreSQL, and then minutes for the leases of dead processes."""
    in_the_middle = WireFault(kind="slow", route=MOMENTS[moment], seconds=0.5)
    emulator.inject(in_the_middle)
    url, skipped = postgres_cluster.new_database(), [timedelta()]

    def now() -> datetime:
        return datetime.now(UTC) + skipped[0]

    made = engine(url, emulator.openai_base_url, tmp_path / "payloads")
    ledger = Ledger(url, now)
    mine = Engine(Deployment(made.providers, ledger, made.payloads, NAMESPACE, clock=now, sleep=lambda _: None))
    failures: list[LedgerError] = []
    gone = Outage(postgres_cluster)

    def wait_out() -> None:
        gone.noticed.set()
        skipped[0] += timedelta(minutes=2)  # a lease that could not be given back passes

    worker = threading.Thread(target=advance_until_settled, args=(mine, failures, wait_out))
    worker.start()
    while not emulator.struck(in_the_middle):
        assert worker.is_alive()
        # The emulator answers in this process: a loop without a pause keeps it from that until leases have passed.
        time.sleep(0.01)
    outage(gone)
    for _ in range(8):
        worker.join(30)
        if worker.is_alive():
            # A failed create call is repeated once the provider would certainly list its batch: five minutes later, by
            # the worker's clock.
            skipped[0] += timedelta(minutes=5)
    assert not worker.is_alive(), what_is_known(ledger, failures)
    assert bool(failures) or outage is Outage.connections_killed
    assert all("could not do this" in str(error) or "lease" in str(error).lower() for error in failures)
    assert_paid_once(mine, emulator, ROWS)
    [submission] = ledger.submissions.list_all(NAMESPACE)
    assert len(mine.labels(definition(), submission.submission_id).labels) == ROWS
    ledger.close()


def test_what_the_ledger_commits_survives_a_server_that_is_set_up_to_forget(postgres_cluster: Cluster):
    url = postgres_cluster.new_database()
    name = url.partition("@/")[2].partition("?")[0]
    postgres_cluster.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    ledger = Ledger(url)
    with ledger._database.write() as connection:
        assert connection.execute(sa.text("SHOW synchronous_commit")).scalar_one() != "off"
    ledger.close()


@pytest.mark.parametrize(("own", "shown"), [(None, "1min"), ("0", "1min"), ("5min", "1min"), ("7s", "7s")])
def test_the_server_ends_a_session_that_is_frozen_in_a_transaction(postgres_cluster: Cluster, own, shown):
    """Check that other sessions do not wait for its locks; a shorter timeout of the database stays."""
    url = postgres_cluster.new_database()
    if own is not None:
        name = url.partition("@/")[2].partition("?")[0]
        postgres_cluster.execute(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = '{own}'")
    ledger = Ledger(url)
    with ledger._database.write() as connection:
        assert connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar_one() == shown
    ledger.close()
