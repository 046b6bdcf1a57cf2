"""One cell of the matrix: a crash, at a provider, over a kind of ledger, with its effect on rows and money.

The emulator's books and the final table are the evidence. The ledger is only asked for the batches it contains.
"""

from __future__ import annotations

import multiprocessing.connection
import multiprocessing.process
import os
import signal
import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path

import pyarrow.parquet as pq

from dagster_llm_batch.errors import LeaseError
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import Emulator, FlexScript, VendorLimits, WireFault, local_gcs, local_s3
from tests.batch_records import broken_records
from tests.crash.billing import money_of, read_billing
from tests.crash.clouds import BUCKET, CLOUDS, Cloud, Place
from tests.crash.copies import judge_cascade_copies, judge_copies
from tests.crash.interceptor import Point, When
from tests.crash.oracle import judge_oracle
from tests.crash.points import ARROWS, Crash
from tests.crash.postgres import end_idle_transactions, postgres
from tests.crash.scenarios import RUNNING
from tests.crash.worker import NAMESPACE, SECONDS_A_RUN, Job, Reached, work
from tests.processes import PROCESSES, state_of

LEDGERS = ("sqlite", "postgresql")
_MOST_RESTARTS = 3
_SECONDS_A_STATE = 0.01
_LONGER_THAN_A_LEASE = timedelta(minutes=3)

_HOLDS = {
    When.ARRIVED: WireFault(kind="hang"),
    When.ACTED: WireFault(kind="hang", when="after"),
    When.HALFWAY: WireFault(kind="stall"),
}


@dataclass(frozen=True)
class Cell:
    """A place in the matrix."""

    crash: Crash
    cloud: Cloud
    ledger: str
    freezes: bool = False  # it is stopped there for longer than its lease, and resumes when others are done

    def __str__(self) -> str:
        frozen = ", frozen" if self.freezes else ""
        return f"{self.cloud.name}/{self.ledger}: {self.crash.scenario.name}: {self.crash}{frozen}"


@dataclass
class CellResult:
    """The result of a cell. `problems` is empty if all rows arrived and each was paid once."""

    rows: int = 0
    lost: int = 0
    billed: int = 0
    billed_twice: int = 0
    kills: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    arrows: list[str] = field(default_factory=list)  # of the process that finished


@dataclass(frozen=True)
class Servers:
    """Servers that all cells share. `databases` makes an empty PostgreSQL database."""

    s3_url: str | None
    gcs_url: str | None
    databases: Callable[[], str] | None


@contextmanager
def servers(clouds: set[str], ledgers: set[str]) -> Iterator[Servers]:
    """Start the servers that these clouds and ledgers need."""
    with ExitStack() as stack:
        yield Servers(
            stack.enter_context(local_s3(BUCKET)) if "bedrock" in clouds else None,
            stack.enter_context(local_gcs(BUCKET)) if "vertex" in clouds else None,
            stack.enter_context(postgres()) if "postgresql" in ledgers else None,
        )


def run_cell(cell: Cell, around: Servers, folder: Path) -> CellResult:
    """Kill the process, restart it until all is complete, and judge the result."""
    began = time.monotonic()
    result = CellResult(rows=cell.crash.scenario.rows)
    with Emulator(
        answer=cell.crash.scenario.answer,
        pace=dict.fromkeys(RUNNING, 3600.0) if cell.crash.scenario.runs_on else _SECONDS_A_STATE,
        faults=cell.crash.scenario.faults,
        # OpenRouter's results come on pages, even for a small batch of a second round, and each page is a separate
        # call.
        limits=VendorLimits(
            bedrock_min_records=1, enqueued_tokens=cell.crash.scenario.enqueued_tokens, inline_results=0
        ),
        s3_url=around.s3_url,
        gcs_url=around.gcs_url,
    ) as emulator:
        emulator.flex.script = FlexScript(turned_away=cell.crash.scenario.flex_refusals)
        if cell.ledger == "sqlite":
            url = f"sqlite:///{folder}/ledger.sqlite"
        else:
            assert around.databases is not None
            url = around.databases()
        place = Place.of(emulator, folder, around.s3_url, around.gcs_url)
        job = Job(cell.cloud, cell.crash.scenario, place, url, None)
        with ExitStack() as frozen:
            for point in cell.crash.points:
                if cell.freezes and point.holds_a_transaction and around.databases is not None:
                    end_idle_transactions(url)
                stops = frozen.enter_context(_frozen_at(point, job)) if cell.freezes else _kill_at(point, job, emulator)
                if not stops:
                    result.problems.append(f"no process came to {point}: {_log(folder)}")
                    break
                result.kills += 1
                if cell.freezes and point.holds_a_transaction and cell.ledger == "sqlite":
                    result.problems += _not_locked(folder / "ledger.sqlite")
                    # The frozen process keeps the file's lock. The others get the lock once it has resumed.
                    frozen.close()
            settled = not result.problems and _finish(job, result)
        # The frozen processes have resumed and done their work by now.
        if settled:
            _judge(cell, job, emulator, folder, result)
    result.seconds = time.monotonic() - began
    return result


def _start(job: Job) -> tuple[multiprocessing.process.BaseProcess, multiprocessing.connection.Connection]:
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=work, args=(job, theirs))
    process.start()
    theirs.close()
    return process, ours


def _kill_at(point: Point, job: Job, emulator: Emulator) -> bool:
    """Run a process until it kills itself there, or hangs there and is killed. Return whether it reached the point."""
    process, pipe = _start(replace(job, point=point))
    try:
        told = pipe.recv() if pipe.poll(SECONDS_A_RUN) else None
        if not isinstance(told, Reached):
            return False
        if told.is_held:
            emulator.inject(_HOLDS[point.when])  # it strikes the next call, which is this process's
            pipe.send("go")
            _wait_until(lambda: emulator.hanging > 0)
            process.kill()
        process.join()
    except EOFError:
        return False
    else:
        return True
    finally:
        process.kill()
        process.join()
        pipe.close()


@contextmanager
def _frozen_at(point: Point, job: Job) -> Iterator[bool]:
    """Run a process until it stops itself there, and yield whether it did. It resumes and ends after the block."""
    process, pipe = _start(replace(job, point=point, ends_by=signal.SIGSTOP))
    try:
        came = pipe.poll(SECONDS_A_RUN) and isinstance(pipe.recv(), Reached)
        if came:
            _wait_until(lambda: state_of(process.pid or 0) == "T")
            job.clock.to(job.clock.now() + _LONGER_THAN_A_LEASE)
        yield came
        if came:
            os.kill(process.pid or 0, signal.SIGCONT)
            process.join(SECONDS_A_RUN)
    except EOFError:
        yield False
    finally:
        process.kill()
        process.join()
        pipe.close()


def _not_locked(file: Path) -> list[str]:
    with closing(sqlite3.connect(file, timeout=0)) as ledger:
        try:
            ledger.execute("begin immediate")
        except sqlite3.OperationalError as error:
            return [] if "locked" in str(error) else [f"the ledger's file: {error}"]
    return ["a process that is frozen in a transaction does not hold the file's lock"]


def _wait_until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + SECONDS_A_RUN
    while not holds():
        if time.monotonic() > give_up_at:
            raise TimeoutError("the call that was to be held did not come")
        time.sleep(0.002)


def _finish(job: Job, result: CellResult) -> bool:
    """Run processes without kills until one ends well."""
    for _ in range(_MOST_RESTARTS):
        process, pipe = _start(job)
        try:
            if pipe.poll(SECONDS_A_RUN):
                result.arrows = pipe.recv()
                process.join()
                return True
        except EOFError:
            process.join()
        finally:
            process.kill()
            process.join()
            pipe.close()
    result.lost = result.rows
    result.problems.append(f"never settled: {_log(Path(job.place.folder))}")
    return False


def _log(folder: Path) -> str:
    return (folder / "worker.log").read_text(errors="replace")[-2000:]


def _judge(cell: Cell, job: Job, emulator: Emulator, folder: Path, result: CellResult) -> None:
    scenario = cell.crash.scenario
    keys = {f"t{n}" for n in range(scenario.rows)}
    times = Counter(pq.read_table(job.table)["ticket_id"].to_pylist())
    outcomes = set(pq.read_table(job.table)["llm_outcome"].to_pylist())
    result.lost = sum(times[key] != 1 for key in keys)

    ledger = job.open_ledger()
    try:
        submissions = ledger.submissions.list_all(NAMESPACE)
        shards = [shard for one in submissions for shard in ledger.shards.of_submission(one.submission_id)]
        free = all(_is_free(ledger, one.submission_id) for one in submissions)
        result.problems += broken_records(ledger)
        kept = ledger.documents.count_stored(NAMESPACE)
        (least, most), waves = scenario.billed or (scenario.rows, scenario.rows), scenario.waves
        if scenario.changes_model:
            # The numbers of a scenario with older labels are known.
            pass
        elif scenario.cascade is not None and scenario.near is not None:
            payloads, labels = PayloadStore(f"{folder}/payloads"), pq.read_table(job.table)
            both = judge_cascade_copies(scenario.near, ledger, payloads, submissions[0], labels)
            result.problems += both.problems
            waves = both.waves
            least = most = both.requests
        elif scenario.cascade is not None:
            payloads = PayloadStore(f"{folder}/payloads")
            asked = judge_oracle(ledger, payloads, submissions, scenario.guarantee)
            result.problems += asked.problems
            waves = asked.waves
            # A row that only the model refuses costs nothing there; the oracle answers it.
            least = most = scenario.rows - len(scenario.faults) + asked.requests
        elif scenario.near is not None:
            texts = [body for piece in scenario.tickets(0) for body in piece["body"].to_pylist()]
            payloads, labels = PayloadStore(f"{folder}/payloads"), pq.read_table(job.table)
            result.problems += judge_copies(scenario.near, texts, ledger, payloads, submissions[0], labels)
    finally:
        ledger.close()
    by_wave: dict[int, set[str]] = defaultdict(set)
    for shard in shards:
        by_wave[shard.wave].update({shard.batch.batch_id} if shard.batch.batch_id else ())
    batches, answered = read_billing(cell.cloud, emulator, folder)
    # A round of a cascade sends some rows to both models, and some providers' requests do not name the model.
    places = {shard.nonce: shard.wave + 1000 * (shard.model == cell.cloud.other_model) for shard in shards}
    money = money_of(answered, places, max(one.waves for one in submissions))
    result.billed, result.billed_twice = money.billed, money.twice
    unknown = batches - set().union(*by_wave.values())
    documents = [file.filename for file in emulator.books.files if file.filename.endswith(".pdf")]
    left = cell.cloud.provider(job.place, ()).find_documents(set(documents)) if documents else {}
    checks = {
        f"documents uploaded: {len(documents)}": len(documents) == scenario.documents,
        f"documents left at the provider: {left}": not left,
        f"documents left in the ledger: {kept}": not kept,
        f"rows that are not there once: {result.lost}": result.lost == 0 and set(times) == keys,
        f"outcomes: {outcomes}": outcomes <= scenario.outcomes,
        f"submissions: {len(submissions)}": len(submissions) == scenario.partitions * (1 + scenario.changes_model),
        "not all delivered": all(one.delivered_at is not None for one in submissions),
        f"shards: {Counter(shard.state.value for shard in shards)}": {shard.state for shard in shards}
        == {ShardState.COLLECTED},
        f"batches by wave: {dict(by_wave)}": tuple(len(ids) for _, ids in sorted(by_wave.items()) if ids) == waves,
        f"batches that no shard has: {unknown}": len(unknown) == scenario.spare_batches
        and not {one.batch_id for one in answered if one.is_billed} & unknown,
        f"shards in more than one batch: {money.in_two_batches}": not money.in_two_batches,
        f"requests billed: {money.billed}": least <= money.billed <= most,
        f"requests billed twice: {money.twice}": money.twice == 0,
        "a lease is held": free,
        f"arrows without a crash point: {set(result.arrows) - ARROWS}": set(result.arrows) <= ARROWS,
    }
    result.problems += [what for what, is_right in checks.items() if not is_right]


def _is_free(ledger: Ledger, submission_id: str) -> bool:
    try:
        with ledger.leases.hold(f"submission:{submission_id}"):
            return True
    except LeaseError:
        return False


def cells(clouds: list[str], ledgers: list[str], crashes: list[Crash]) -> list[Cell]:
    """Return all cells of this part of the matrix, crash by crash."""
    return [
        Cell(crash, CLOUDS[cloud], ledger)
        for crash in crashes
        for cloud in clouds
        for ledger in ledgers
        if crash.can_happen_at(CLOUDS[cloud])
    ]
