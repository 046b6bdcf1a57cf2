"""A project and an emulated provider for each test, with the project's folder as the current one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from project import Project

from dagster_llm_batch.testing.emulator import Emulator


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def project(tmp_path, emulator, monkeypatch) -> Iterator[Project]:
    made = Project(tmp_path, emulator)
    for name in ("DAGSTER_HOME", "DAGSTER_MODULE_NAME", "DAGSTER_PYTHON_FILE", "DAGSTER_LLM_BATCH_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    yield made
    made.forget()


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """Make a Dagster home."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    return folder
