"""Any sequence of steps, kills, freezes and faults ends with one outcome a row, and with no request paid twice."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.crash.postgres import postgres
from tests.faults.vendor_workspace import Servers, servers
from tests.machine.mortal import End, How
from tests.machine.world import DATASETS, VENDOR_NAMES, World

ENDS = st.one_of(st.none(), st.builds(End, st.integers(1, 60), st.sampled_from(How)))
EXPLORES = os.environ.get("DLB_EXPLORE") == "1"
NAMES = st.sampled_from(DATASETS)


class Machine(RuleBasedStateMachine):
    """Steps of processes, of the vendor, of time and of people."""

    def __init__(self, make: Callable[[str], World], vendors: tuple[str, ...]) -> None:
        super().__init__()
        self._make, self._vendors = make, vendors
        self.world: World | None = None

    @initialize(data=st.data())
    def begin(self, data: st.DataObject) -> None:
        self.world = self._make(data.draw(st.sampled_from(self._vendors)))

    def _has(self, name: str) -> World | None:
        assert self.world is not None
        return self.world if name in self.world.definitions else None

    @rule(name=NAMES, end=ENDS, again=st.sampled_from([False, False, False, True]))
    def plan(self, name: str, end: End | None, again: bool) -> None:
        if world := self._has(name):
            self._note(world.plan(name, end, again=again))

    @rule(name=NAMES, end=ENDS)
    def send(self, name: str, end: End | None) -> None:
        if world := self._has(name):
            self._note(world.send(name, end))

    @rule(name=NAMES, end=ENDS)
    def advance(self, name: str, end: End | None) -> None:
        if world := self._has(name):
            self._note(world.advance(name, end))

    @rule(name=NAMES, end=ENDS)
    def cancel(self, name: str, end: End | None) -> None:
        if world := self._has(name):
            self._note(world.cancel(name, end))

    @rule(name=NAMES, number=st.integers(0, 5), end=ENDS)
    def person_erases(self, name: str, number: int, end: End | None) -> None:
        if world := self._has(name):
            self._note(world.erase(name, number, end))

    @rule(name=NAMES, more=st.booleans())
    def change_rows(self, name: str, more: bool) -> None:
        if world := self._has(name):
            rows = world.rows[name]
            rows.count, rows.edition = rows.count + more, rows.edition + (not more)

    @rule()
    def vendor_works(self) -> None:
        assert self.world is not None
        self.world.emulator.settle()

    @rule(span=st.sampled_from([timedelta(minutes=2), timedelta(hours=1), timedelta(days=2)]))
    def time_passes(self, span: timedelta) -> None:
        assert self.world is not None
        self.world.pass_time(span)

    @rule(call=st.sampled_from(["create", "find", "poll", "download"]), status=st.sampled_from([400, 429, 500, 503]))
    def vendor_fails(self, call: str, status: int) -> None:
        assert self.world is not None
        self.world.inject(call, status)

    @rule(number=st.integers(0, 4))
    def row_fails(self, number: int) -> None:
        assert self.world is not None
        self.world.fail_row(number)

    @rule()
    def person_decides(self) -> None:
        assert self.world is not None
        self.world.decide()

    @rule()
    def processes_thaw(self) -> None:
        assert self.world is not None
        self.world.thaw()

    @rule()
    def ledger_is_backed_up(self) -> None:
        assert self.world is not None
        self.world.back_up()

    @rule()
    def ledger_is_restored(self) -> None:
        assert self.world is not None
        self.world.restore()

    def _note(self, how: str) -> None:
        # A dead or frozen process keeps its lease until it runs out.
        if how in ("died", "froze"):
            assert self.world is not None
            self.world.pass_time(timedelta(minutes=3))

    def teardown(self) -> None:
        if self.world is not None:
            try:
                self.world.finish()
            finally:
                self.world.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with servers() as both:
        yield both


@pytest.fixture(scope="module")
def new_database() -> Iterator[Callable[[], str]]:
    with postgres() as make:
        yield make


@pytest.mark.parametrize("ledger", ["sqlite", "postgresql"])
def test_any_sequence_of_steps_loses_nothing_and_pays_nothing_twice(
    ledger: str, running: Servers, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Each program has 25 steps, and then hours of a sensor until all is settled."""

    def make(vendor: str) -> World:
        folder = tmp_path / uuid.uuid4().hex[:8]
        folder.mkdir()
        url = f"sqlite:///{folder}/ledger.sqlite"
        return World(vendor, running, folder, url if ledger == "sqlite" else request.getfixturevalue("new_database")())

    run_state_machine_as_test(
        lambda: Machine(make, VENDOR_NAMES),
        settings=settings(
            max_examples=200 if EXPLORES else 5,
            derandomize=not EXPLORES,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
