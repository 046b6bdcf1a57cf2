"""Fixtures of the tests of faults: the object stores, and a workspace of each vendor."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.vendor_workspace import Servers, VendorWorkspace, servers
from tests.faults.vendors import VENDORS, Vendor


@pytest.fixture(scope="module")
def running() -> Iterator[Servers]:
    with servers() as both:
        yield both


@pytest.fixture(params=VENDORS, ids=lambda vendor: vendor.name)
def workspace(request: pytest.FixtureRequest, running: Servers, tmp_path: Path) -> Iterator[VendorWorkspace]:
    vendor: Vendor = request.param
    with closing(VendorWorkspace(vendor, running, tmp_path, 10.0)) as workspace:
        yield workspace
