"""Fixtures of the engine's tests; `house.py` has what they build."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from house import House

from dagster_llm_batch.testing.emulator import Emulator


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def house(tmp_path: Any, emulator: Emulator) -> House:
    return House(tmp_path, emulator)
