"""Completion in a real shell, as click's scripts ask for it."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import click
import pytest

from dagster_llm_batch.cli.completion import complete_assets, complete_partitions
from dagster_llm_batch.cli.main import main

BIN = Path(sys.executable).parent
SCRIPT = """
umask 022
eval "$(_DAGSTER_LLM_BATCH_COMPLETE=bash_source dagster-llm-batch)"
complete_words() {
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    _dagster_llm_batch_completion dagster-llm-batch
    printf '%s\\n' "${COMPREPLY[*]}"
}
"""


def completed(folder, *lines):
    """Return bash's completions of the last word of each line, and their standard error."""
    script = SCRIPT + "\n".join(f"complete_words dagster-llm-batch {line}" for line in lines)
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": f"{folder}/cache",
    }
    shell = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return [line.split() for line in shell.stdout.splitlines()], shell.stderr


@pytest.mark.slow
def test_bash_completes_commands_assets_and_partitions_of_the_definitions(project):
    """Take more than ten seconds: each line is a process, and the first that needs names loads definitions."""
    days = ["2026-01-01", "2026-01-02", "2026-01-03"]
    lines = ["sho", "plan da", "plan daily_labels ''", "show daily_labels -p 2026", "show ticket_labels -p ''"]
    found, printed = completed(project.folder, *lines)
    assert found == [["show"], ["daily_labels"], ["asset_labels", "ticket_labels"], days, []]
    assert printed == ""
    # Partitions can be names of customers, so the cache is private.
    folder = project.folder / "cache" / "dagster-llm-batch"
    [kept] = folder.iterdir()
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, kept)] == [0o700, 0o600]


@pytest.mark.slow
def test_a_ledger_completes_what_was_submitted_and_what_is_missing_completes_nothing(project, tmp_path):
    """Take more than ten seconds: each line is a process, and the submission is a run of Dagster."""
    project.submit()
    ledger = f"--ledger {project.ledger} --namespace test"
    empty = tmp_path / "empty"
    empty.mkdir()
    found, printed = completed(empty, f"show {ledger} ''", f"show {ledger} other", "show ''", "nonsense x")
    assert found == [["ticket_labels"], [], [], []]
    assert printed == ""


def test_definitions_that_exit_complete_nothing_and_print_nothing(tmp_path):
    (tmp_path / "exits.py").write_text("import sys\n\nsys.exit('Set PROJECT.')\n")
    assert completed(tmp_path, "show -f exits.py ''") == ([[]], "")


def answered(shell: str, folder: Path, before: str, word: str) -> list[str]:
    """Ask as click's script for this shell does: zsh sends the line and a number, fish the line and the word."""
    typed = f"dagster-llm-batch {before}"
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": f"{folder}/cache",
        "_DAGSTER_LLM_BATCH_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": f"{typed} {word}" if shell == "zsh" else typed,
        "COMP_CWORD": str(len(typed.split())) if shell == "zsh" else word,
    }
    made = subprocess.run(
        [BIN / "dagster-llm-batch"], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    assert made.stderr == ""
    # zsh gets lines of type, value and help, and fish one line of type and value.
    lines = made.stdout.splitlines()
    return lines[1::3] if shell == "zsh" else [line.partition(",")[2] for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_zsh_and_fish_complete_assets_and_partitions_too(project, shell):
    """Take more than ten seconds: each line is a process, and the first that needs names loads definitions."""
    assert answered(shell, project.folder, "plan", "da") == ["daily_labels"]
    days = ["2026-01-01", "2026-01-02", "2026-01-03"]
    assert answered(shell, project.folder, "show daily_labels -p", "2026") == days


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("fish") is None, reason="needs fish on this machine")
def test_fish_itself_completes_assets_and_partitions(project):
    """Take more than ten seconds: a fish that starts the command twice, and the first loads definitions."""
    asked = [f"complete -C 'dagster-llm-batch {line}'" for line in ("plan da", "show daily_labels -p 2026")]
    script = "\n".join(["_DAGSTER_LLM_BATCH_COMPLETE=fish_source dagster-llm-batch | source", *asked])
    places = {"HOME": str(project.folder), "XDG_CACHE_HOME": f"{project.folder}/cache"}
    environment = {**os.environ, **places, "PATH": f"{BIN}:{os.environ['PATH']}"}
    made = subprocess.run(
        ["fish", "-c", script], cwd=project.folder, env=environment, capture_output=True, text=True, check=True
    )
    assert made.stdout.split() == ["daily_labels", "2026-01-01", "2026-01-02", "2026-01-03"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script(shell):
    environment = {**os.environ, "_DAGSTER_LLM_BATCH_COMPLETE": f"{shell}_source"}
    made = subprocess.run([BIN / "dagster-llm-batch"], env=environment, capture_output=True, text=True, check=True)
    assert "_DAGSTER_LLM_BATCH_COMPLETE" in made.stdout


def test_each_parameter_that_names_an_asset_or_a_partition_is_completed():
    context = click.Context(main)
    lacking = [
        (name, parameter.name)
        for name in main.list_commands(context)
        for parameter in main.get_command(context, name).params
        for wanted in [
            complete_assets
            if parameter.human_readable_name in ("ASSET", "ASSETS", "DATASET", "SUBMISSION|ASSET", "[SUBMISSION|ASSET]")
            else complete_partitions
            if parameter.name in ("partition", "partitions")
            else None
        ]
        if wanted is not None and parameter._custom_shell_complete is not wanted
    ]
    assert lacking == []
