"""One cell of the matrix: a crash, at a provider, over a kind of ledger; what became of rows and money.

The emulator's books and the final table are the witnesses. The ledger is only asked which batches it knows.
"""

from __future__ import annotations

import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pyarrow.parquet as pq

from dagster_llm_batch.states import ShardState
from dagster_llm_batch.testing.emulator import Emulator, Limits, WireFault, local_gcs, local_s3
from tests.crash.clouds import BUCKET, CLOUDS, Cloud, Place, books_of
from tests.crash.points import ARROWS, Crash
from tests.crash.postgres import postgres
from tests.crash.scenarios import ANSWER
from tests.crash.taps import Point, When
from tests.crash.worker import NAMESPACE, SECONDS_A_RUN, Job, Reached, work

LEDGERS = ("sqlite", "postgresql")
_PROCESSES = multiprocessing.get_context("forkserver")  # each a fresh process, without paying the imports again
_PROCESSES.set_forkserver_preload(["tests.crash.warm"])
_MOST_RESTARTS = 3
_SECONDS_A_STATE = 0.01

_HOLDS = {
    When.ARRIVED: WireFault(kind="hang"),
    When.ACTED: WireFault(kind="hang", when="after"),
    When.HALFWAY: WireFault(kind="stall"),
}


@dataclass(frozen=True)
class Cell:
    """Where in the matrix."""

    crash: Crash
    cloud: Cloud
    ledger: str

    def __str__(self) -> str:
        return f"{self.cloud.name}/{self.ledger}: {self.crash}"


@dataclass
class Verdict:
    """What became of it. `problems` is empty where nothing was lost and nothing paid twice."""

    rows: int = 0
    lost: int = 0
    billed: int = 0
    billed_twice: int = 0
    kills: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    crossed: Counter[tuple[str, When, int]] = field(default_factory=Counter)


@dataclass(frozen=True)
class Servers:
    """What all cells share. `databases` makes an empty PostgreSQL database."""

    s3_url: str | None
    gcs_url: str | None
    databases: Callable[[], str] | None


@contextmanager
def servers(clouds: set[str], ledgers: set[str]) -> Iterator[Servers]:
    """Start what these clouds and ledgers need."""
    with ExitStack() as stack:
        yield Servers(
            stack.enter_context(local_s3(BUCKET)) if "bedrock" in clouds else None,
            stack.enter_context(local_gcs(BUCKET)) if "vertex" in clouds else None,
            stack.enter_context(postgres()) if "postgresql" in ledgers else None,
        )


def run_cell(cell: Cell, around: Servers, folder: Path) -> Verdict:
    """Kill, restart until all is settled, and look at what is there."""
    began = time.monotonic()
    verdict = Verdict(rows=cell.crash.scenario.rows)
    with Emulator(
        answer=lambda *_: ANSWER,
        pace=_SECONDS_A_STATE,
        faults=cell.crash.scenario.faults,
        limits=Limits(bedrock_min_records=1),
        s3_url=around.s3_url,
        gcs_url=around.gcs_url,
    ) as emulator:
        if cell.ledger == "sqlite":
            url = f"sqlite:///{folder}/ledger.sqlite"
        else:
            assert around.databases is not None
            url = around.databases()
        place = Place.of(emulator, folder, around.s3_url, around.gcs_url)
        job = Job(cell.cloud, cell.crash.scenario, place, url, None)
        for point in cell.crash.points:
            if not _kill_at(point, job, emulator):
                verdict.problems.append(f"no process came to {point}: {_log(folder)}")
                break
            verdict.kills += 1
        if not verdict.problems and _finish(job, verdict):
            _judge(cell, job, emulator, folder, verdict)
    verdict.seconds = time.monotonic() - began
    return verdict


def _start(job: Job) -> tuple[multiprocessing.process.BaseProcess, multiprocessing.connection.Connection]:
    ours, theirs = _PROCESSES.Pipe()
    process = _PROCESSES.Process(target=work, args=(job, theirs))
    process.start()
    theirs.close()
    return process, ours


def _kill_at(point: Point, job: Job, emulator: Emulator) -> bool:
    """Run a process until it has killed itself there, or hangs there and is killed; whether it came so far."""
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


def _wait_until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + SECONDS_A_RUN
    while not holds():
        if time.monotonic() > give_up_at:
            raise TimeoutError("the call that was to be held did not come")
        time.sleep(0.002)


def _finish(job: Job, verdict: Verdict) -> bool:
    """Run processes that nobody kills until one ends well."""
    for _ in range(_MOST_RESTARTS):
        process, pipe = _start(job)
        try:
            if pipe.poll(SECONDS_A_RUN):
                verdict.crossed = Counter(pipe.recv())
                process.join()
                return True
        except EOFError:
            process.join()
        finally:
            process.kill()
            process.join()
            pipe.close()
    verdict.lost = verdict.rows
    verdict.problems.append(f"never settled: {_log(Path(job.place.folder))}")
    return False


def _log(folder: Path) -> str:
    return (folder / "worker.log").read_text(errors="replace")[-2000:]


def _judge(cell: Cell, job: Job, emulator: Emulator, folder: Path, verdict: Verdict) -> None:
    scenario = cell.crash.scenario
    outcomes = Counter(map(tuple, zip(*pq.read_table(job.table).to_pydict().values(), strict=True)))
    wanted = {(f"t{n}", "succeeded") for n in range(scenario.rows)}
    right = {row for row, times in outcomes.items() if times == 1}
    verdict.lost = len(wanted - right)
    if right != wanted or len(outcomes) != len(wanted):
        verdict.problems.append(f"the table holds {outcomes}")

    ledger = job.open_ledger()
    try:
        submissions = ledger.submissions(NAMESPACE)
        shards = [shard for one in submissions for shard in ledger.shards(one.submission_id)]
        leases_are_free = all(not _is_held(ledger, one.submission_id) for one in submissions)
    finally:
        ledger.close()
    batches, answered = books_of(cell.cloud, emulator, folder)
    waves = {shard.nonce: shard.wave for shard in shards}
    times: Counter[tuple[int, str]] = Counter()
    batches_of: dict[str, set[str | None]] = {}
    for one in answered:
        nonce = one.custom_id.partition("-")[0]
        batches_of.setdefault(nonce, set()).add(one.batch_id)
        times[waves.get(nonce, 0), one.body] += 1 if one.is_billed else 0
    verdict.billed = times.total()
    verdict.billed_twice = sum(count - 1 for count in times.values() if count > 1)
    verdict.billed_twice += sum(1 for wave, _ in times if wave == 0)
    found = {
        "submissions, one of them delivered": (len(submissions), [one.delivered_at is not None for one in submissions]),
        "batches by wave": tuple(count for _, count in sorted(Counter(shard.wave for shard in shards).items())),
        "all collected": all(shard.state is ShardState.COLLECTED for shard in shards),
        "batches that the provider has and no shard": batches - {shard.batch_id for shard in shards},
        "shards in more than one batch": {nonce for nonce, ids in batches_of.items() if len(ids) > 1},
        "requests billed": verdict.billed,
        "requests billed twice": verdict.billed_twice,
        "leases are free": leases_are_free,
        "arrows without a crash point": {arrow for arrow, _, _ in verdict.crossed} - ARROWS,
    }
    expected = {
        "submissions, one of them delivered": (1, [True]),
        "batches by wave": scenario.waves,
        "all collected": True,
        "batches that the provider has and no shard": set(),
        "shards in more than one batch": set(),
        "requests billed": scenario.rows,
        "requests billed twice": 0,
        "leases are free": True,
        "arrows without a crash point": set(),
    }
    verdict.problems += [
        f"{what}: {found[what]}, not {expected[what]}" for what in expected if found[what] != expected[what]
    ]


def _is_held(ledger, submission_id: str) -> bool:
    from dagster_llm_batch.errors import LeaseError

    try:
        with ledger.leased(f"submission:{submission_id}"):
            return False
    except LeaseError:
        return True


def cells(clouds: list[str], ledgers: list[str], crashes: list[Crash]) -> list[Cell]:
    """All cells of this part of the matrix, crash by crash."""
    return [
        Cell(crash, CLOUDS[cloud], ledger)
        for crash in crashes
        for cloud in clouds
        for ledger in ledgers
        if crash.can_happen_at(CLOUDS[cloud])
    ]
