"""Dagster's run that materializes labels is killed at each of its effects; then the sensor continues as in a
deployment.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import dagster as dg
import pyarrow.parquet as pq
import pytest
from code_location import BATCH, LABELS, LANDING, CodeLocation, labeled, tickets
from test_landing_runs import AT_ONCE

from dagster_llm_batch import HiveParquetIOManager
from dagster_llm_batch._dagster_private import last_evaluation
from dagster_llm_batch.checks import COVERAGE, PARSE_RATE, SPEND
from dagster_llm_batch.metadata import SUBMISSION_KEY
from dagster_llm_batch.testing.emulator import Emulator
from tests.crash.interceptor import Interceptor, Point, When, install
from tests.crash.postgres import copy_database, postgres
from tests.processes import PROCESSES, state_of

KEYS = [f"p{number:02d}" for number in range(12)]
PARTS = dg.StaticPartitionsDefinition(KEYS)
_EVERYTHING = (KEYS[0], KEYS[-1])
_SECONDS_A_RUN = 240.0
_MOST_TICKS = 6

# Points before the run does anything, or equivalent to neighbouring crash points. The calls only read here.
_HARMLESS = {
    "call: other",
    "event: ASSET_CHECK_EVALUATION_PLANNED",
    "event: ASSET_MATERIALIZATION_PLANNED",
    "event: ENGINE_EVENT",
    "event: LOGS_CAPTURED",
    "event: PIPELINE_START",
    "event: RESOURCE_INIT_STARTED",
    "event: RESOURCE_INIT_SUCCESS",
    "ledger: release",
}


@dataclass(frozen=True)
class Place:
    """A deployment's places: a folder with Dagster's storage, payloads and tables, and a ledger."""

    folder: str
    ledger_url: str
    base_url: str

    @property
    def tables(self) -> HiveParquetIOManager:
        return HiveParquetIOManager(root=f"{self.folder}/tables")

    @contextmanager
    def location(self, prefix: str) -> Iterator[CodeLocation]:
        """Yield the code location, whose partitions have rows with this prefix."""
        emulator: Any = SimpleNamespace(openai_base_url=self.base_url)

        def rows(context: Any) -> Any:
            return tickets(_rows_of(context.partition_key), f"{prefix}-{context.partition_key}")

        with dg.DagsterInstance.local_temp(f"{self.folder}/home") as instance:
            yield CodeLocation(
                emulator,
                instance,
                *labeled(rows=rows, partitions_def=PARTS),
                resources={"io_manager": self.tables},
                bounds=AT_ONCE,
                ledger_url=self.ledger_url,
                payload_root=f"{self.folder}/payloads",
            )

    def copy(self, folder: Path) -> Place:
        """Return a copy of this deployment in its present state."""
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        if self.ledger_url.startswith("sqlite"):
            return Place(str(folder), _sqlite_url(folder), self.base_url)
        return Place(str(folder), copy_database(self.ledger_url), self.base_url)

    def rows(self, name: str, key: str) -> list[list[str]]:
        """Return the rows of each file of a partition that Spark and others would read."""
        files = Path(self.tables.folder(dg.AssetKey(name), key)).glob("[!.]*")
        return [sorted(_read(file)) for file in sorted(files)]


def _sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder}/ledger.sqlite"


def _rows_of(key: str) -> int:
    """Return a number of rows that differs between neighbours."""
    return 1 + KEYS.index(key) % 3


def _expected(prefix: str, key: str, name: str) -> list[str]:
    return [f"{prefix}-{key}-{number}" for number in range(_rows_of(key))] if name == LABELS else []


def _read(file: Path) -> list[str]:
    return pq.read_table(file, columns=["ticket_id"], partitioning=None)["ticket_id"].to_pylist()


@dataclass(frozen=True)
class Ready:
    """A deployment with older labels and newer answers, and the sensor's request for a run."""

    place: Place
    request: dg.RunRequest
    emulator: Emulator
    # Prefix of the rows in the run's code location.
    prefix: str = "new"

    def copy(self, folder: Path) -> Ready:
        """Return a copy of the deployment, at the same provider."""
        return replace(self, place=self.place.copy(folder))


def _make_ready(emulator: Emulator, folder: Path, ledger_url: str) -> Ready:
    (folder / "home").mkdir()
    place = Place(str(folder), ledger_url, emulator.openai_base_url)
    for prefix in ("old", "new"):
        with place.location(prefix) as location:
            assert location.submit(span=_EVERYTHING).success
            emulator.settle()
            [request] = location.tick().run_requests
            if prefix == "old":
                assert location.launch(request).success
    return Ready(place, request, emulator)


@pytest.fixture(scope="module")
def sqlite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    folder = tmp_path_factory.mktemp("sqlite")
    with Emulator() as emulator:
        yield _make_ready(emulator, folder, _sqlite_url(folder))


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ready]:
    if os.environ.get("DLB_TEST_POSTGRES") == "0":
        pytest.skip("DLB_TEST_POSTGRES=0")
    with Emulator() as emulator, postgres() as empty_database:
        yield _make_ready(emulator, tmp_path_factory.mktemp("postgresql"), empty_database())


class FreezingInterceptor(Interceptor):
    """Freezes at one point, and dies at another, which it counts from its wake-up."""

    def __init__(self, frozen_at: Point, killed_at: Point | None) -> None:
        super().__init__(frozen_at, lambda _held: None, signal.SIGSTOP)
        self._frozen_at = frozen_at
        self._awake = Interceptor(killed_at, lambda _held: None, signal.SIGKILL)

    def cross(self, arrow: str, when: When, wave: int | None = None) -> None:
        if self.crossed[self._frozen_at.arrow, self._frozen_at.when, self._frozen_at.wave] >= self._frozen_at.nth:
            self._awake.cross(arrow, when, wave)
        super().cross(arrow, when, wave)


def land(
    place: Place, request: dg.RunRequest, prefix: str, make: Callable[[], Interceptor], parent: Connection
) -> None:
    """Do the run that the sensor requests. At its end, send the crossed points to the parent."""
    interceptor = make()
    install(interceptor, "nothing", "nothing", urlsplit(place.base_url).port or 0)
    with place.location(prefix) as location:
        storage = location.instance.event_log_storage
        store: Callable[[Any], None] = storage.store_event

        def store_between(event: Any) -> None:
            if event.is_dagster_event:
                interceptor.around(f"event: {event.dagster_event_type.value}", lambda: store(event))
            else:
                store(event)

        storage.store_event = store_between  # type: ignore[method-assign]  # Dagster's, in a process of its own
        assert launch(location, request).success
    parent.send(dict(interceptor.crossed))


def launch(location: CodeLocation, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
    """Launch a run as the daemon does, which tags its runs as the sensor's."""
    return location.launch(
        request.with_replaced_attrs(tags={**request.tags, "dagster/sensor_name": "llm_batch_sensor"})
    )


def run_killed_at(ready: Ready, point: Point | None) -> Any:
    """Return the points that a run has crossed, or None if it was killed."""
    ours, theirs = PROCESSES.Pipe()
    make = partial(Interceptor, point, print, signal.SIGKILL)
    process = PROCESSES.Process(target=land, args=(ready.place, ready.request, ready.prefix, make, theirs))
    process.start()
    theirs.close()
    try:
        crossed = ours.recv() if ours.poll(_SECONDS_A_RUN) else None
    except EOFError:
        crossed = None
    finally:
        process.join(_SECONDS_A_RUN)
        ours.close()
    assert crossed or process.exitcode == -signal.SIGKILL
    return crossed


@contextmanager
def run_frozen_at(ready: Ready, point: Point, killed_at: Point | None = None) -> Iterator[None]:
    """Run until the run freezes at this point. After the block, it wakes, and ends or is killed."""
    ours, theirs = PROCESSES.Pipe()
    make = partial(FreezingInterceptor, point, killed_at)
    process = PROCESSES.Process(target=land, args=(ready.place, ready.request, ready.prefix, make, theirs))
    process.start()
    theirs.close()
    try:
        give_up_at = time.monotonic() + _SECONDS_A_RUN
        while state_of(process.pid or 0) != "T":
            assert time.monotonic() < give_up_at
            time.sleep(0.01)
        yield
        os.kill(process.pid or 0, signal.SIGCONT)
        if killed_at is None:
            assert ours.poll(_SECONDS_A_RUN)
            assert ours.recv()
        else:
            process.join(_SECONDS_A_RUN)
            assert process.exitcode == -signal.SIGKILL
    finally:
        process.kill()
        process.join()
        ours.close()


def submissions_told(location: CodeLocation, name: str) -> dict[str | None, str]:
    """Return the submission in Dagster's last record of labels, rejects or batches, by partition."""
    told: dict[str | None, str] = {}
    for partition, found in location.materializations(name).items():
        value = found.metadata.get(SUBMISSION_KEY)
        told[partition] = found.tags["dagster/data_version"] if value is None else value.value
    return told


_B, _H, _U, _A = When.BEFORE, When.HALFWAY, When.UNSEEN, When.AFTER
_TOLD, _JUDGED = "event: ASSET_MATERIALIZATION", "event: ASSET_CHECK_EVALUATION"
_POINTS = [
    Point("event: STEP_START", _A),
    Point("ledger: lease", _U),
    Point("file: raw", _A, nth=2),
    Point("file: results", _U, nth=2),
    Point("ledger: collected", _U),
    Point("ledger: settle_submission", _U),
    Point("ledger: settle_submission", _A),
    Point("file: table", _B),
    Point("file: table", _H, nth=5),
    Point("file: table", _U, nth=9),
    Point("file: table", _A, nth=9),
    # Each partition has an event of its rejects, then an event of its labels.
    Point(_TOLD, _B),
    Point(_TOLD, _A, nth=3),
    Point(_TOLD, _B, nth=4),
    Point(_TOLD, _A, nth=4),
    # Each partition has three checks.
    Point(_JUDGED, _A, nth=4),
    Point(_JUDGED, _A, nth=6),
    Point(_JUDGED, _A, nth=36),
    Point("ledger: mark_delivered", _U),
    Point("ledger: mark_delivered", _A),
    Point("event: STEP_SUCCESS", _A),
    Point("event: PIPELINE_SUCCESS", _A),
]


# On PostgreSQL, a kill ends an open transaction in a different way.
_POSTGRESQL = [
    Point("ledger: settle_submission", _U),
    Point("file: table", _A, nth=9),
    Point(_TOLD, _A, nth=4),
    Point("ledger: mark_delivered", _U),
]


def check_told(ready: Ready, location: CodeLocation, newest: Mapping[str | None, str]) -> None:
    """Check that tables that Dagster has a record of are whole and alone. Other tables are old, or new, or both while
    one replaces the other.
    """
    for name in LANDING:
        told = submissions_told(location, name)
        for key in KEYS:
            old, new = ([_expected(prefix, key, name)] for prefix in ("old", "new"))
            rows = ready.place.rows(name, key)
            if told[key] == newest[key]:
                assert rows == new
            else:
                assert rows in (old, new) or sorted(rows) == sorted(old + new)


def check_landed(ready: Ready, location: CodeLocation, newest: Mapping[str | None, str], prefix: str = "new") -> None:
    """Check that the rows of this prefix are stored once, and that Dagster has a record of them."""
    for name in LANDING:
        assert submissions_told(location, name) == newest
        for key in KEYS:
            assert ready.place.rows(name, key) == [_expected(prefix, key, name)]


def check_judged(location: CodeLocation) -> None:
    """Check that each partition has check results on its newest materialization."""
    for key in KEYS:
        [told] = location.instance.fetch_materializations(
            dg.AssetRecordsFilter(dg.AssetKey(LABELS), asset_partitions=[key]), limit=1
        ).records
        for check in (COVERAGE, PARSE_RATE, SPEND):
            verdict = last_evaluation(location.instance, dg.AssetCheckKey(dg.AssetKey(LABELS), check), key)
            assert verdict is not None
            assert verdict.passed
            assert verdict.target_materialization_data is not None
            assert verdict.target_materialization_data.storage_id == told.storage_id, (key, check)


def see_death(location: CodeLocation) -> None:
    """Report killed runs, as Dagster's run monitoring does. Before that, the sensor requests nothing."""
    for run in location.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])):
        assert location.tick().run_requests == []
        location.instance.report_run_failed(run)


def go_on(location: CodeLocation) -> None:
    """Tick, and launch the requested runs, until nothing is left to do."""
    for _ in range(_MOST_TICKS):
        tick = location.tick()
        if tick.skip_message == "no batches in flight":
            return
        for request in tick.run_requests:
            assert launch(location, request).success
    raise AssertionError(location.tick().skip_message)


_CASES = [*(("sqlite", point) for point in _POINTS), *(("postgresql", point) for point in _POSTGRESQL)]


@pytest.mark.sample(8)
@pytest.mark.parametrize(
    ("ledger", "point"), _CASES, ids=lambda part: part if isinstance(part, str) else f"{part} {part.nth}"
)
def test_all_lands_once_where_a_landing_run_is_killed(
    ledger: str, point: Point, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Start each run in a process that imports Dagster, and another run after the kill."""
    ready: Ready = request.getfixturevalue(ledger).copy(tmp_path)
    books = ready.emulator.books
    batches = len(books.batches)
    assert run_killed_at(ready, point) is None
    with ready.place.location("new") as location:
        submitted = submissions_told(location, BATCH)
        check_told(ready, location, submitted)
        see_death(location)
        go_on(location)
        check_landed(ready, location, submitted)
        check_judged(location)
    assert len(books.batches) == batches
    assert books.billed_twice() == {}


@pytest.mark.slow
def test_each_effect_of_a_landing_run_has_a_crash_point(sqlite: Ready, tmp_path: Path) -> None:
    crossed = run_killed_at(sqlite.copy(tmp_path), None)
    assert {arrow for arrow, _, _ in crossed} - _HARMLESS == {point.arrow for point in _POINTS}


_FROZEN = [
    Point("ledger: settle_submission", _A),
    Point("file: table", _U),
    Point("file: table", _A, nth=9),
    Point(_TOLD, _B, nth=4),
    Point(_TOLD, _A, nth=4),
    Point("ledger: mark_delivered", _B),
    Point("event: STEP_SUCCESS", _A),
]


@pytest.mark.slow
@pytest.mark.parametrize("point", _FROZEN, ids=str)
def test_newer_labels_stay_that_were_landed_while_a_landing_run_was_frozen(
    sqlite: Ready, point: Point, tmp_path: Path
) -> None:
    """Start each run in a process that imports Dagster; a frozen run waits until others have ended."""
    ready = sqlite.copy(tmp_path)
    # The copies share a provider, which must get each row once.
    prefix = f"newest-{_FROZEN.index(point)}"
    with run_frozen_at(ready, point), ready.place.location(prefix) as location:
        assert location.submit(span=_EVERYTHING).success
        ready.emulator.settle()
        assert location.collect(span=_EVERYTHING).success
    with ready.place.location(prefix) as location:
        go_on(location)
        check_landed(ready, location, submissions_told(location, BATCH), prefix)
    assert ready.emulator.books.billed_twice() == {}


# Points after the frozen run wakes, before or after it reports to Dagster or would update the ledger.
_KILLED = [
    Point("file: table", _A),
    Point("file: table", _A, nth=20),
    Point(_TOLD, _A, nth=4),
    Point(_JUDGED, _A, nth=36),
    Point("event: STEP_SUCCESS", _B),
]


@pytest.mark.slow
@pytest.mark.parametrize("killed_at", _KILLED, ids=lambda point: f"{point} {point.nth}")
def test_newer_labels_stay_where_a_frozen_landing_run_is_killed_after_it_woke(
    sqlite: Ready, killed_at: Point, tmp_path: Path
) -> None:
    """Start each run in a process that imports Dagster; a frozen run waits until others have ended."""
    ready = sqlite.copy(tmp_path)
    prefix = f"killed-{_KILLED.index(killed_at)}"
    with run_frozen_at(ready, Point("file: table", _U), killed_at), ready.place.location(prefix) as location:
        assert location.submit(span=_EVERYTHING).success
        ready.emulator.settle()
        assert location.collect(span=_EVERYTHING).success
        assert location.tick().run_requests == []
    with ready.place.location(prefix) as location:
        see_death(location)
        go_on(location)
        check_landed(ready, location, submissions_told(location, BATCH), prefix)
        check_judged(location)
    assert ready.emulator.books.billed_twice() == {}


@pytest.mark.slow
def test_newer_labels_stay_that_an_older_run_lands_over_before_the_ledger_knows(sqlite: Ready, tmp_path: Path) -> None:
    """Start each run in a process that imports Dagster; a frozen run waits until others have ended."""
    ready = sqlite.copy(tmp_path)
    with ExitStack() as newer_run:
        with run_frozen_at(ready, Point("file: table", _U)), ready.place.location("beside") as location:
            assert location.submit(span=_EVERYTHING).success
            ready.emulator.settle()
            newer = replace(ready, prefix="beside")
            newer_run.enter_context(run_frozen_at(newer, Point(_JUDGED, _A, nth=36)))
        assert submissions_told(location, LABELS) != submissions_told(location, BATCH)
    with ready.place.location("beside") as location:
        go_on(location)
        check_landed(ready, location, submissions_told(location, BATCH), "beside")
        check_judged(location)
    assert ready.emulator.books.billed_twice() == {}


@pytest.mark.slow
def test_newer_labels_stay_where_a_frozen_landing_run_wakes_after_dagster_has_given_it_up(
    sqlite: Ready, tmp_path: Path
) -> None:
    """Start each run in a process that imports Dagster; a frozen run waits until others have ended."""
    ready = sqlite.copy(tmp_path)
    with run_frozen_at(ready, Point("file: table", _U)), ready.place.location("given-up") as location:
        assert location.submit(span=_EVERYTHING).success
        ready.emulator.settle()
        assert location.collect(span=_EVERYTHING).success
        see_death(location)
        go_on(location)
    with ready.place.location("given-up") as location:
        assert submissions_told(location, LABELS) != submissions_told(location, BATCH)
        go_on(location)
        check_landed(ready, location, submissions_told(location, BATCH), "given-up")
        check_judged(location)
    assert ready.emulator.books.billed_twice() == {}
