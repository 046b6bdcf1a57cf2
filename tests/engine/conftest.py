"""Fixtures of the engine's tests, built by `workspace.py`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from workspace import Workspace

from dagster_llm_batch.testing.emulator import Emulator


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def workspace(tmp_path: Any, emulator: Emulator) -> Workspace:
    return Workspace(tmp_path, emulator)
