"""Every fault of the table, at every vendor where it can happen: no row lost, none billed twice, in a bounded time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.bench import Servers, servers
from tests.faults.table import FAULTS, VENDORS, Fault, problems, run_cell, run_row

pytestmark = pytest.mark.slow  # some forty seconds on two cores
BY_NAME = {vendor.name: vendor for vendor in VENDORS}


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with servers() as both:
        yield both


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_row_has_its_outcome_and_nothing_is_billed_for_nothing(
    fault: Fault, running: Servers, tmp_path: Path
) -> None:
    endings = run_row(fault, running, tmp_path)
    found = {name: problems(fault, BY_NAME[name], ending) for name, ending in endings.items() if name not in fault.open}
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        pytest.param(fault, name, id=f"{fault.name}-{name}", marks=pytest.mark.xfail(reason=why, strict=True))
        for fault in FAULTS
        for name, why in fault.open.items()
    ],
)
def test_what_does_not_hold_yet(fault: Fault, name: str, running: Servers, tmp_path: Path) -> None:
    ending = run_cell(fault, BY_NAME[name], running, tmp_path)
    assert problems(fault, BY_NAME[name], ending) == []
