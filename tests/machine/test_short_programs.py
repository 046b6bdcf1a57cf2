"""Short programs, one for each guarantee: each fails for a defect that was put into the package by hand.

The drawn programs of `test_engine_machine.py` meet such a defect by chance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.faults.vendor_workspace import Servers, servers
from tests.machine.mortal import End, How
from tests.machine.test_engine_machine import Machine
from tests.machine.world import HOUR, World

WAITS_A_MINUTE = "a lease that a wrong clock took ends"
Program = tuple[str, str, str, Callable[[Machine], object]]
# The vendor, the kind of dataset, the steps that are done, and the program: arrow 11 follows the first create call, and
# arrow 31 comes before the first call in real time.
PROGRAMS: dict[str, Program] = {
    "a person resolves what a dead process sent": (
        *("openai", "rounds", "plan"),
        lambda m: (m.send(0, End(11, How.DIES)), m.person_resolves(None), m.send(0, None), m.vendor_works()),
    ),
    "what nobody can tell yet is not sent again": (
        *("anthropic", "rounds", "plan"),
        lambda m: (m.reply_is_lost("create"), m.send(0, None), m.time_passes(HOUR), m.send(0, None), m.vendor_works()),
    ),
    "a restored ledger learns what was sent": (
        *("openai", "rounds", "plan"),
        lambda m: (m.ledger_is_backed_up(), m.send(0, None), m.vendor_works(), m.ledger_is_restored()),
    ),
    "a frozen process that wakes asks nothing": (
        *("openai", "urgent", "plan"),
        lambda m: (m.send(0, End(31, How.FREEZES)), *[m.advance(0, None) for _ in range(3)], m.processes_thaw()),
    ),
    "results that nobody can read are given up, and used in the end": (
        *("openai", "plain", "send"),
        lambda m: (m.results_are_hidden(403), m.vendor_works(), m.advance(0, None)),
    ),
    "a batch that never ends is told, with the command that gives it up": (
        *("openai", "plain", "plan"),
        lambda m: (m.batch_is_spoiled("stuck"), m.send(0, None)),
    ),
    "a batch that a person abandons is used when it ends": (
        *("openai", "plain", "send"),
        lambda m: (m.person_abandons(0, None), m.vendor_works(), m.collect(0, None)),
    ),
    "rows of two rounds add up": (
        *("openai", "rounds", "plan"),
        lambda m: (m.row_is_spoiled(1, "status"), m.send(0, None), m.vendor_works(), m.advance(0, None)),
    ),
    WAITS_A_MINUTE: (
        *("openai", "plain", "plan"),
        lambda m: (
            m.clock_is_set(timedelta(days=100)),
            m.send(0, End(12, How.DIES)),
            m.clock_is_set(timedelta()),
        ),
    ),
    "a hard limit of money holds": ("openai", "limited", "send", lambda m: m.poll(None)),
    "what is erased is in no file, and files of others stay": (
        *("openai", "plain", "send"),
        lambda m: (m.vendor_works(), m.advance(0, None), m.person_erases(0, 0, None)),
    ),
}


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with servers() as both:
        yield both


@pytest.mark.sample
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == WAITS_A_MINUTE else []) for name in PROGRAMS]
)
def test_a_short_program_keeps_what_is_promised(name: str, running: Servers, tmp_path: Path) -> None:
    """Wait a minute by the real clock, without a renewal, before a lease that lies ahead is taken."""
    vendor, kind, steps, act = PROGRAMS[name]
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    machine = Machine(lambda chosen, datasets: World(chosen, running, tmp_path, url, datasets))
    machine.begin(vendor=vendor, datasets=[kind], steps=steps)
    try:
        act(machine)
        machine.each_request_is_billed_once()
        machine.others_are_left_alone()
        machine.finish()
    finally:
        machine.close()
