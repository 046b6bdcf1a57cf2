"""Tests get the same facts about processes without /proc, as on macOS."""

import os
import subprocess
import sys

import pytest

from tests import processes


@pytest.mark.parametrize("told", [processes.command_lines, processes._listed_by_ps])
def test_a_process_is_known_by_its_command_and_its_environment(told):
    command = [sys.executable, "-c", "print('begun', flush=True); input()"]
    environment = {**os.environ, "TOLD_BY": "its environment"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout.readline() == b"begun\n"
        line, environment = told()[child.pid]
        child.communicate(b"\n")
    assert "print('begun', flush=True)" in line
    assert "TOLD_BY=its environment" in environment
    assert "TOLD_BY" not in line
