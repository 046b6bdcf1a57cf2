"""One real broker for all tests; each test makes separate topics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import dagster as dg
import pytest
from broker import Broker

from dagster_llm_batch.testing.emulator import Emulator

_NUMBERS = count()


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    one = Broker(tmp_path_factory.mktemp("broker")).start()
    one.topic("written")
    yield one
    one.stop()


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """Start a broker that the test may kill."""
    one = Broker(tmp_path / "broker").start()
    one.topic("written")
    yield one
    one.stop()


@pytest.fixture
def topic(broker: Broker) -> Callable[..., str]:
    """Make a topic that is unique to the test."""

    def make(name: str = "topic", partitions: int = 1, **config: str) -> str:
        return broker.topic(f"{name}-{next(_NUMBERS)}", partitions, **config)

    return make


@pytest.fixture
def stored() -> Iterator[dg.DagsterInstance]:
    """Return an instance on disk. Sensors see dynamic partitions only there."""
    with dg.instance_for_test() as one:
        yield one


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running
