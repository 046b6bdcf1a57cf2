"""Every fault of the table, at each vendor where it can happen: all rows arrive, each is billed once, in bounded time.

Azure and the servers with folders share OpenAI's provider, and take turns here; `python -m tests.faults` has every
vendor in every row.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.table import FAULTS, MATRIX_VENDORS, Fault, problems, run_row
from tests.faults.vendor_workspace import Servers
from tests.faults.vendors import take_turn

pytestmark = pytest.mark.slow  # some forty seconds on two cores
BY_NAME = {vendor.name: vendor for vendor in MATRIX_VENDORS}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_row_has_its_outcome_and_nothing_is_billed_for_nothing(
    fault: Fault, running: Servers, tmp_path: Path
) -> None:
    endings = run_row(fault, running, tmp_path, take_turn(FAULTS.index(fault)))
    found = {name: problems(fault, BY_NAME[name], ending) for name, ending in endings.items()}
    assert {name: said for name, said in found.items() if said} == {}
