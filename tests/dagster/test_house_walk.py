"""docs/design/house.md shows the functions that a row enters, in their order: a row takes this way in a Dagster."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from code_location import labeled
from test_batch_sensor import tick

import dagster_llm_batch
from tests.house_walk import WALK

PACKAGE = Path(dagster_llm_batch.__file__).parent


@contextmanager
def first_entries() -> Iterator[list[str]]:
    """Record the functions of the package in the order in which they are entered first."""
    entered: list[str] = []
    seen: set[Any] = set()

    def record(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in seen:
            return
        seen.add(code)
        path = Path(code.co_filename)
        if path.is_relative_to(PACKAGE):
            module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
            entered.append(f"{module}:{code.co_qualname}")

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        yield entered
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


@pytest.mark.slow
def test_a_row_enters_the_functions_of_its_walk_in_their_order(make, emulator):
    location = make(*labeled())
    with first_entries() as submitted:
        location.submit()
    emulator.settle()
    with first_entries() as ticked:
        [request] = tick(location).run_requests
    with first_entries() as landed:
        assert location.launch(request).success
    for (stage, steps), entered in zip(WALK.items(), (submitted, ticked, landed), strict=True):
        named = [step.function for step in steps]
        assert [name for name in named if name not in entered] == [], stage
        assert sorted(named, key=entered.index) == named, stage
