"""Ctrl-C, a terminated run or a kill at any arrow of a step: other processes continue; all rows get labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.vendor_workspace import Servers, servers
from tests.machine.dataset_kinds import Place
from tests.machine.guarantees import finish
from tests.machine.mortal import End, How
from tests.machine.world import World

STEPS = ("plan", "send", "advance")
PLACE = Place("rounds", "")


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with servers() as both:
        yield both


def take(world: World, step: str, end: End | None = None) -> str:
    how = {"plan": world.plan, "send": world.send, "advance": world.advance}[step](PLACE, end)
    world.emulator.settle()
    return how


@pytest.mark.sample(2)
@pytest.mark.parametrize("how", [How.DIES, How.INTERRUPTED], ids=["killed", "interrupted"])
@pytest.mark.parametrize("step", STEPS)
def test_a_step_may_end_at_any_of_its_arrows(step: str, how: How, running: Servers, tmp_path: Path) -> None:
    """Take the same way once for each arrow that leaves a process."""
    arrow = 0
    while True:
        arrow += 1 if step == "plan" else 3
        (folder := tmp_path / str(arrow)).mkdir()
        world = World("openai", running, folder, f"sqlite:///{folder}/ledger.sqlite")
        try:
            for before in STEPS[: STEPS.index(step)]:
                assert take(world, before) == "done"
            ended = take(world, step, End(arrow, how))
            finish(world)
            status = world.engine().latest(*PLACE)
            assert status is not None
            assert status.outcomes == {"succeeded": 5}
        finally:
            world.close()
        if ended == "done":
            break
    assert arrow > 10
