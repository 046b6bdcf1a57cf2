"""The installed script in another process: it loads quickly, has its exit codes, and shows progress on a terminal."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from dagster_llm_batch.cli.main import main

SCRIPT = Path(sys.executable).parent / "dagster-llm-batch"
SDKS = ["openai", "anthropic", "boto3", "google.genai", "starlette", "uvicorn", "matplotlib", "sklearn", "pandas"]
DAGSTER = ["dagster", "pyarrow"]


def loaded(words, modules):
    """Return the modules of this list that a command has imported when it ends."""
    source = (
        "import atexit, json, sys\n"
        f"atexit.register(lambda: print(json.dumps([m for m in {modules} if m in sys.modules]), file=sys.stderr))\n"
        f"from dagster_llm_batch.cli.main import main\nmain({words})"
    )
    run = [sys.executable, "-W", "ignore", "-c", source]
    return json.loads(subprocess.run(run, capture_output=True, text=True, check=True).stderr.splitlines()[-1])


def test_help_loads_no_dagster_and_no_database():
    assert loaded(["--help"], [*SDKS, *DAGSTER, "sqlalchemy"]) == []


@pytest.mark.slow
def test_looking_into_a_ledger_loads_no_dagster(project):
    project.submit()
    assert loaded(["list", "--ledger", project.ledger], [*SDKS, *DAGSTER]) == []


def test_commands_load_no_sdk_and_nothing_of_the_emulator():
    names = main.list_commands(click.Context(main))
    source = (
        "from dagster_llm_batch.cli.main import main; import json, sys\n"
        f"for name in {names}: main.get_command(None, name)\n"
        f"print(json.dumps([m for m in {SDKS} if m in sys.modules]))"
    )
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", source], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) == []


@pytest.mark.slow
def test_the_script_reads_pyproject_of_its_folder_and_ends_with_the_documented_codes(project):
    project.submit()
    listed = subprocess.run([SCRIPT, "list", "--json"], capture_output=True, text=True, check=True)
    assert [one["asset"] for one in json.loads(listed.stdout)["submissions"]] == ["ticket_labels"]
    (project.folder / "pyproject.toml").unlink()
    lost = subprocess.run([SCRIPT, "list"], capture_output=True, text=True, check=False)
    assert (lost.returncode, lost.stdout) == (2, "")
    assert "Which deployment?" in lost.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", [["list"], ["doctor", "--json"], ["plan", "ticket_labels"]])
def test_ctrl_c_ends_a_command_in_one_line_and_with_a_code_of_its_own(project, words):
    slow = project.folder / "slow.py"
    slow.write_text("import sys, time\nprint('loading', flush=True, file=sys.stderr)\ntime.sleep(60)\n")
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    with subprocess.Popen([SCRIPT, *words, "-f", slow], stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, heard)
        assert process.stderr is not None
        assert process.stderr.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(60) == 130
    assert said.split("\n")[-2].startswith("Interrupted. ")
    assert "Traceback" not in said


@pytest.mark.slow
def test_ctrl_c_while_dagster_makes_the_resources_is_no_other_than_elsewhere(project):
    """Press Ctrl-C where Dagster raises its own exception for it."""
    project.change("import dagster as dg\n", "import dagster as dg\nimport signal\n")
    project.change(
        "here = f",
        "class Pressed(LLMBatchResource):\n"
        "    def setup_for_execution(self, context):\n"
        "        signal.raise_signal(signal.SIGINT)\n\n\n"
        "here = f",
    )
    project.change('"llm_batch": LLMBatchResource(', '"llm_batch": Pressed(')
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    with subprocess.Popen([SCRIPT, "list", "-f", project.file], stderr=subprocess.PIPE, text=True) as process:
        signal.signal(signal.SIGINT, heard)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(60) == 130
    assert said.split("\n")[-2].startswith("Interrupted. ")
    assert "Traceback" not in said


class Keyboard(io.RawIOBase):
    """Input where Ctrl-C is pressed instead of an answer."""

    def readable(self):
        return True

    def readinto(self, buffer):
        if len(buffer):
            raise KeyboardInterrupt
        return 0


@pytest.mark.parametrize(
    ("answer", "code"), [(io.BufferedReader(Keyboard()), 130), ("n\n", 1), ("", 1)], ids=["Ctrl-C", "no", "no terminal"]
)
def test_at_a_question_ctrl_c_has_a_code_that_a_no_has_not(project, answer, code):
    project.submit()
    where = ["--ledger", str(project.ledger), "--payloads", f"{project.batches}/payloads", "--namespace", "test"]
    asked = CliRunner().invoke(main, ["rename", "ticket_labels", "other_labels", *where], input=answer)
    assert (asked.exit_code, "[y/N]:" in asked.stderr) == (code, True)
    assert ("Interrupted. " in asked.stderr) == (code == 130)


FULL = Path("/dev/full")
HAS_FULL_DISK = pytest.mark.skipif(not FULL.exists(), reason="a disk that is full")


def assert_told_in_one_line(command, unbuffered):
    """Run a command whose output goes to a full disk."""
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with FULL.open("w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    assert (ended.returncode, ended.stderr) == (
        1,
        "Could not write: No space left on device. What is recorded stays.\n",
    )


@HAS_FULL_DISK
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["--help"], ["list", "--help"]])
def test_a_full_disk_is_told_in_one_line_by_help(words, unbuffered):
    assert_told_in_one_line([SCRIPT, *words], unbuffered)


@pytest.mark.slow
@HAS_FULL_DISK
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["doctor"]])
def test_a_full_disk_is_told_in_one_line(project, words, unbuffered):
    project.submit()
    place = ["--ledger", project.ledger, "--payloads", f"{project.batches}/payloads", "--namespace", "test"]
    assert_told_in_one_line([SCRIPT, *words, *place], unbuffered)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a shell")
@pytest.mark.parametrize("words", [["list"], ["list", "--json"], ["cost"], ["--help"]])
def test_into_a_closed_output_nothing_is_written_and_the_command_ends_as_it_would(project, words):
    project.submit()
    where = [] if words == ["--help"] else ["--ledger", project.ledger, "--namespace", "test"]
    command = ["sh", "-c", 'exec "$@" >&-', "sh", SCRIPT, *words, *where]
    ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
def test_on_a_terminal_watch_redraws_its_table_and_ctrl_c_only_stops_watching(project):
    project.submit()
    ours, theirs = pty.openpty()
    command = [SCRIPT, "watch", "--poll", "--interval", "0.1", *("-f", project.file)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment) as process:
        signal.signal(signal.SIGINT, heard)
        os.close(theirs)
        shown = read_until(ours, b"0 of 3 (0 %)")
        project.emulator.settle()
        shown += read_until(ours, b"3 of 3 (100 %)")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    os.close(ours)
    assert b"expected end" in shown
    assert re.search(rb"\x1b\[\d*A", shown)  # the cursor went up: drawn in place
    assert project.json("show", "ticket_labels")["submission"]["state"] == "open"


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="a pseudo-terminal")
def test_on_a_terminal_errors_prices_submissions_and_findings_fit_and_dagsters_notices_are_hidden(project):
    """Take more than ten seconds: seven processes, three of which load definitions."""
    project.submit()
    project.change("@dg.asset\n", "@dg.asset(partitions_def=daily, backfill_policy=dg.BackfillPolicy.single_run())\n")
    project.change('end_date="2026-01-04"', 'end_date="2026-02-04"')
    days = ["--partition-range", "2026-01-01...2026-01-25"]
    ledger = ["--ledger", project.ledger, "--namespace", "test"]
    commands = [
        (["plan", "daily_labels", *days], 0, "so there may be fewer. List each partition with --all."),
        (["plan", "an_asset_that_these_definitions_do_not_have"], 2, "is no labeled asset of"),
        (["list", "--state", "a_state_that_no_submission_of_any_ledger_ever_has"], 2, "'open', 'settled'"),
        (["show", "an_asset_that_nobody_has_submitted", *ledger], 1, "Assets that have: ticket_labels"),
        (["show", "ticket_labels", *ledger], 0, "accepted submitted"),
        (["prices"], 0, "This is the bundled book."),
        (["doctor"], 0, "0 problems."),
    ]
    for words, code, wanted in commands:
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
        with subprocess.Popen([SCRIPT, *words], stdout=theirs, stderr=theirs, env=environment) as process:
            os.close(theirs)
            shown = re.sub(r"\x1b\[[\d;]*m", "", read_all(ours).decode())
            assert process.wait(60) == code, shown
        os.close(ours)
        assert wanted in " ".join(shown.split())
        # A path or a name may be longer, and is not broken.
        assert [line for line in shown.splitlines() if len(line) > 80 and len(line.split()) > 1] == []
        assert "Warning" not in shown
        # A class of Python, or a row of cells without a value.
        assert not re.search(r"[A-Za-z]Error\b|^(\s*[-\u2013]\s*){2,}$", shown, re.MULTILINE)


def read_all(terminal):
    shown = b""
    while True:
        try:
            shown += os.read(terminal, 65_536)
        # Linux ends a terminal like this when all processes have closed it.
        except OSError:
            return shown


def read_until(terminal, text):
    shown = b""
    while text not in shown:
        more = os.read(terminal, 65_536)
        assert more, shown
        shown += more
    return shown
