"""Every trouble of the table, at each vendor, on one of the two ledgers in turn: all rows arrive, and alerts are right.

Azure and the servers with folders share OpenAI's provider, and take turns, too. `python -m tests.faults` runs each
everywhere, on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.crash.postgres import postgres
from tests.faults.table import MATRIX_VENDORS, Never
from tests.faults.troubles import TROUBLES, Trouble, problems, run_trouble
from tests.faults.vendor_workspace import Servers
from tests.faults.vendors import take_turn

pytestmark = pytest.mark.slow  # some forty seconds on two cores


@pytest.fixture(scope="module")
def new_database() -> Iterator[Callable[[], str]]:
    with postgres() as new_database:
        yield new_database


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda trouble: trouble.name)
def test_nothing_is_lost_or_paid_twice_and_a_person_is_told(
    trouble: Trouble, running: Servers, new_database: Callable[[], str], tmp_path: Path
) -> None:
    number = TROUBLES.index(trouble)
    urls = {
        vendor.name: new_database() if (number + place) % 2 else None for place, vendor in enumerate(MATRIX_VENDORS)
    }
    vendors = [vendor for vendor in take_turn(number) if not isinstance(trouble.at(vendor), Never)]
    for vendor in vendors:
        (tmp_path / vendor.name).mkdir()
    with ThreadPoolExecutor(len(vendors)) as pool:
        endings = pool.map(
            lambda vendor: run_trouble(trouble, vendor, running, tmp_path / vendor.name, urls[vendor.name]), vendors
        )
        found = {
            vendor.name: problems(trouble, vendor, ending) for vendor, ending in zip(vendors, endings, strict=True)
        }
    assert {name: said for name, said in found.items() if said} == {}
