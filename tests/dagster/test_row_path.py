"""A row in a Dagster passes the functions of docs/design/architecture.md, in the same order."""

from __future__ import annotations

import pytest
from code_location import labeled
from test_batch_sensor import tick

from benchmarks.entries import record_entries
from tests.row_path import WALK


@pytest.mark.slow
def test_a_row_enters_the_functions_of_its_walk_in_their_order(make, emulator):
    location = make(*labeled())
    with record_entries() as submitted:
        location.submit()
    emulator.settle()
    with record_entries() as ticked:
        [request] = tick(location).run_requests
    with record_entries() as landed:
        assert location.launch(request).success
    for (stage, steps), entries in zip(WALK.items(), (submitted, ticked, landed), strict=True):
        named = [step.function for step in steps]
        entered = [f"{module}:{function}" for module, function in entries]
        assert [name for name in named if name not in entered] == [], stage
        assert sorted(named, key=entered.index) == named, stage
