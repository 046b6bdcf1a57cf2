"""Every fault of uploads, at each vendor that stores documents: rows have one outcome each, and no file is left."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.uploads import UPLOAD_FAULTS, UPLOAD_VENDORS, UploadFault, problems_of_uploads, run_upload_fault
from tests.faults.vendor_workspace import Servers

pytestmark = pytest.mark.slow
BY_NAME = {vendor.name: vendor for vendor in UPLOAD_VENDORS}


@pytest.mark.parametrize("fault", UPLOAD_FAULTS, ids=lambda fault: fault.name)
def test_every_row_has_its_outcome_and_no_document_is_left(
    fault: UploadFault, running: Servers, tmp_path: Path
) -> None:
    endings = run_upload_fault(fault, running, tmp_path)
    found = {name: problems_of_uploads(fault, BY_NAME[name], ending) for name, ending in endings.items()}
    assert {name: said for name, said in found.items() if said} == {}
