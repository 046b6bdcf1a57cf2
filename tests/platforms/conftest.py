"""Servers that the platforms of a process share: an S3 server, and PostgreSQL if a platform needs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dagster_llm_batch.testing.emulator import local_s3
from tests.crash.postgres import postgres
from tests.platforms.journey import Servers
from tests.platforms.sample import Sample
from tests.platforms.vendors import BUCKET


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    with local_s3(BUCKET) as url:
        yield url


@pytest.fixture(scope="session")
def new_database() -> Iterator[Callable[[], str]]:
    with postgres() as made:
        yield made


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Give the sample of platforms that the processes of this run share."""
    folder = tmp_path_factory.getbasetemp()
    # Each pytest-xdist worker has its own folder in the common one.
    return Sample((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "platforms.json")


@pytest.fixture
def servers(request: pytest.FixtureRequest, s3_url: str) -> Callable[[str], Servers]:
    """Give the servers for a platform with this ledger."""

    def servers_for(ledger: str) -> Servers:
        wanted = ledger == "postgresql" and os.environ.get("DLB_TEST_POSTGRES") != "0"
        database: Any = request.getfixturevalue("new_database") if wanted else None
        return Servers(s3_url, database)

    return servers_for


@pytest.fixture
def set_variable(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str | None], None]:
    """Set a variable for this test, or remove it."""

    def set_one(name: str, value: str | None) -> None:
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)

    return set_one
