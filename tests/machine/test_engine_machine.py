"""Any sequence of steps, kills, freezes, faults and decisions keeps the guarantees about rows, money and waits."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.crash.postgres import postgres
from tests.faults.vendor_workspace import Servers, servers
from tests.machine.dataset_kinds import KINDS, Place
from tests.machine.guarantees import Neighbor, check_money, check_records, finish
from tests.machine.mortal import End, How
from tests.machine.world import VENDOR_NAMES, World

ENDS = st.one_of(st.none(), st.builds(End, st.integers(1, 60), st.sampled_from(How)))
EXPLORES = os.environ.get("DLB_EXPLORE") == "1"
PLACES = st.integers(0, 3)
NUMBERS = st.integers(0, 5)
CALLS = st.sampled_from(["upload", "create", "find", "poll", "list", "download", "respond"])
# A clock is wrong by a few minutes or, after a flat battery, by months.
SPANS = [timedelta(minutes=-20), timedelta(minutes=20), timedelta(hours=3), timedelta(days=100)]


class Machine(RuleBasedStateMachine):
    """Steps of processes, of the vendor, of time and of people, over two kinds of datasets."""

    def __init__(self, make: Callable[[str, Sequence[str]], World]) -> None:
        super().__init__()
        self._make = make
        self.world: World | None = None
        self.neighbor: Neighbor | None = None

    @initialize(
        vendor=st.sampled_from(VENDOR_NAMES),
        datasets=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=2, unique=True),
        steps=st.sampled_from(["", "plan", "send"]),
    )
    def begin(self, vendor: str, datasets: Sequence[str], steps: str) -> None:
        self.world = world = self._make(vendor, datasets)
        self.neighbor = Neighbor(world)
        for place in world.places:
            if steps:
                world.plan(place)
            if steps == "send":
                world.send(place)

    @property
    def _world(self) -> World:
        assert self.world is not None
        return self.world

    def _at(self, number: int) -> Place:
        return self._world.places[number % len(self._world.places)]

    @rule(at=PLACES, end=ENDS, again=st.sampled_from([False, False, False, True]))
    def plan(self, at: int, end: End | None, again: bool) -> None:
        self._note(self._world.plan(self._at(at), end, again=again))

    @rule(at=PLACES, end=ENDS)
    def send(self, at: int, end: End | None) -> None:
        self._note(self._world.send(self._at(at), end))

    @rule(end=ENDS)
    def poll(self, end: End | None) -> None:
        self._note(self._world.poll(end))

    @rule(at=PLACES, end=ENDS)
    def collect(self, at: int, end: End | None) -> None:
        self._note(self._world.collect(self._at(at), end))

    @rule(at=PLACES, end=ENDS)
    def advance(self, at: int, end: End | None) -> None:
        self._note(self._world.advance(self._at(at), end))

    @rule(at=PLACES, end=ENDS)
    def person_cancels(self, at: int, end: End | None) -> None:
        self._note(self._world.cancel(self._at(at), end))

    @rule(at=PLACES, end=ENDS)
    def person_abandons(self, at: int, end: End | None) -> None:
        self._note(self._world.abandon(self._at(at), end))

    @rule(end=ENDS)
    def person_resolves(self, end: End | None) -> None:
        self._note(self._world.resolve(end))

    @rule(end=ENDS)
    def person_gives_up(self, end: End | None) -> None:
        self._note(self._world.give_up(end))

    @rule(at=PLACES, number=NUMBERS, end=ENDS)
    def person_erases(self, at: int, number: int, end: End | None) -> None:
        place = self._at(at)
        self._note(self._world.erase(place, self._world.rows[place].first + number, end))

    @rule(at=PLACES, more=st.booleans())
    def rows_change(self, at: int, more: bool) -> None:
        rows = self._world.rows[self._at(at)]
        rows.count, rows.edition = rows.count + more, rows.edition + (not more)

    @rule()
    def vendor_works(self) -> None:
        self._world.emulator.settle()

    @rule(call=CALLS, status=st.sampled_from([400, 403, 429, 500, 503]))
    def vendor_refuses(self, call: str, status: int) -> None:
        self._world.refuse(call, status)

    @rule(call=st.sampled_from(["create", "create", "upload", "download", "respond"]))
    def reply_is_lost(self, call: str) -> None:
        self._world.lose_reply(call)

    @rule(number=NUMBERS, kind=st.sampled_from(["status", "truncated", "refusal", "missing", "malformed"]))
    def row_is_spoiled(self, number: int, kind: str) -> None:
        self._world.spoil_row(number, kind)

    @rule(kind=st.sampled_from(["fails", "expires", "cancels", "stuck"]))
    def batch_is_spoiled(self, kind: str) -> None:
        self._world.spoil_batch(kind)

    @rule(status=st.sampled_from([403, 410, 500]))
    def results_are_hidden(self, status: int) -> None:
        self._world.hide_results(status)

    @rule(span=st.sampled_from([timedelta(minutes=2), timedelta(hours=1), timedelta(days=2)]))
    def time_passes(self, span: timedelta) -> None:
        self._world.pass_time(span)

    @rule(ahead=st.sampled_from([timedelta(), timedelta(), *SPANS]))
    def clock_is_set(self, ahead: timedelta) -> None:
        self._world.set_clock(ahead)

    @rule()
    def processes_thaw(self) -> None:
        self._world.thaw()

    @rule()
    def ledger_is_backed_up(self) -> None:
        self._world.back_up()

    @rule()
    def ledger_is_restored(self) -> None:
        self._world.restore()

    @invariant()
    def each_request_is_billed_once(self) -> None:
        if self.world is not None:
            check_money(self.world)
            check_records(self.world)

    @invariant()
    def others_are_left_alone(self) -> None:
        if self.neighbor is not None:
            self.neighbor.check()

    def _note(self, how: str) -> None:
        # A dead or frozen process keeps its lease until it runs out.
        if how in ("died", "froze"):
            self._world.pass_time(timedelta(minutes=3))

    def finish(self) -> None:
        finish(self._world, self.neighbor)

    def close(self) -> None:
        self._world.close()

    def teardown(self) -> None:
        if self.world is not None:
            try:
                self.finish()
            finally:
                self.close()


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with servers() as both:
        yield both


@pytest.fixture(scope="module")
def new_database() -> Iterator[Callable[[], str]]:
    with postgres() as make:
        yield make


@pytest.mark.sample(2)
@pytest.mark.parametrize("ledger", ["sqlite", "postgresql"])
def test_any_sequence_of_steps_loses_nothing_and_pays_nothing_twice(
    ledger: str, running: Servers, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Run programs of 25 steps, and then the days of a sensor and a person until all is settled."""

    def make(vendor: str, datasets: Sequence[str]) -> World:
        folder = tmp_path / uuid.uuid4().hex[:8]
        folder.mkdir()
        url = f"sqlite:///{folder}/ledger.sqlite"
        url = url if ledger == "sqlite" else request.getfixturevalue("new_database")()
        return World(vendor, running, folder, url, datasets)

    run_state_machine_as_test(
        lambda: Machine(make),
        settings=settings(
            max_examples=200 if EXPLORES else 5,
            derandomize=not EXPLORES,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
