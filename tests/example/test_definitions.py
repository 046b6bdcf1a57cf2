"""The example's definitions load, whoever is asked to answer, and wrong settings are refused in plain words."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ("EXAMPLE_MODEL", "EXAMPLE_HOME", "EXAMPLE_ROWS_PER_DAY", "OPENAI_API_KEY", "OPENAI_BASE_URL")


def python(folder, *arguments, **settings):
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    environment = {**kept, "EXAMPLE_HOME": str(folder), "DAGSTER_HOME": str(folder), **settings}
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("settings", [{}, {"EXAMPLE_MODEL": "openai/gpt-5-nano", "OPENAI_API_KEY": "sk-emulator"}])
def test_dagster_validates_the_definitions(tmp_path, settings):
    validated = python(
        tmp_path, "-m", "dagster", "definitions", "validate", "-m", "example_project.definitions", **settings
    )
    assert validated.returncode == 0, validated.stdout + validated.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"EXAMPLE_MODEL": "gpt-5-nano"}, "EXAMPLE_MODEL='gpt-5-nano'"),
        ({"EXAMPLE_MODEL": "command/other"}, "command/smollm2 or command/vader"),
        ({"EXAMPLE_MODEL": "openai/gpt-5-nano"}, "needs OPENAI_API_KEY"),
        ({"EXAMPLE_ROWS_PER_DAY": "many"}, "EXAMPLE_ROWS_PER_DAY='many'"),
        ({"EXAMPLE_ROWS_PER_DAY": "0"}, "EXAMPLE_ROWS_PER_DAY='0'"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_before_anything_starts(tmp_path, settings, said):
    refused = python(tmp_path, "-m", "example_project.cli", **settings)
    assert refused.returncode == 1
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "dagster.log").exists()


def test_one_command_answers_for_every_labeler_and_refuses_others(tmp_path):
    refused = python(tmp_path, "-m", "example_project.labelers", "--model", "other", "-i", "in", "-o", "out")
    assert refused.returncode == 2
    assert "smollm2" in refused.stderr
