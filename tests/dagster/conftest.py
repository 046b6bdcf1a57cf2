"""A fresh Dagster instance and a fresh emulated provider for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest
from code_location import CodeLocation

from dagster_llm_batch.testing.emulator import Emulator


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as one:
        yield one


@pytest.fixture
def stored() -> Iterator[dg.DagsterInstance]:
    """Yield an instance on disk. Sensors see dynamic partitions only there."""
    with dg.instance_for_test() as one:
        yield one


@pytest.fixture
def make(emulator: Emulator, instance: dg.DagsterInstance) -> Callable[..., CodeLocation]:
    """Return a function that makes a code location with these assets."""

    def with_assets(*assets: Any, **options: Any) -> CodeLocation:
        return CodeLocation(emulator, instance, *assets, **options)

    return with_assets
