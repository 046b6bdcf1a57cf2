"""Every fault of documents in requests, and of calls in flex, at each vendor with them: each row has one outcome."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.attached_documents import ATTACHED_FAULTS, ATTACHED_VENDORS, make_attached_workspace
from tests.faults.flex import FLEX_FAULTS, FLEX_VENDORS, FlexFault, make_flex_workspace, problems_of_flex
from tests.faults.table import Fault, problems, run_row
from tests.faults.vendor_workspace import Servers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("fault", ATTACHED_FAULTS, ids=lambda fault: fault.name)
def test_every_row_with_a_document_has_its_outcome(fault: Fault, running: Servers, tmp_path: Path) -> None:
    endings = run_row(fault, running, tmp_path, ATTACHED_VENDORS, make_attached_workspace)
    found = {one.name: problems(fault, one, endings[one.name]) for one in ATTACHED_VENDORS}
    assert {name: said for name, said in found.items() if said} == {}


@pytest.mark.parametrize("fault", FLEX_FAULTS, ids=lambda fault: fault.name)
def test_every_row_in_flex_has_its_outcome_and_the_price_of_its_tier(
    fault: FlexFault, running: Servers, tmp_path: Path
) -> None:
    endings = run_row(fault, running, tmp_path, FLEX_VENDORS, make_flex_workspace)
    found = {one.name: problems_of_flex(fault, one, endings[one.name]) for one in FLEX_VENDORS}
    assert {name: said for name, said in found.items() if said} == {}
