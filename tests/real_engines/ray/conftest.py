"""One cluster for all tests of this folder. `python3 -m tests ray` runs them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from cluster import Cluster, alone_on_loopback

alone_on_loopback()  # before anything has a thread or a socket
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    running = Cluster()
    running.start()
    try:
        yield running
    finally:
        running.kill()
