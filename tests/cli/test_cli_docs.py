"""The page docs/reference/cli.md is true: its files are a project, its commands run in it in their order."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from markdown_it import MarkdownIt

from dagster_llm_batch.cli.main import main
from dagster_llm_batch.testing.emulator import WireFault

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "cli.md"
SCRIPTS = Path(sys.executable).parent


def blocks(language):
    tokens = MarkdownIt().parse(PAGE.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def lines():
    return [line for block in blocks("sh") for line in block.splitlines() if line]


def test_the_page_names_every_command_and_option_of_its_own():
    text = PAGE.read_text(encoding="utf-8")
    context = click.Context(main)
    names = main.list_commands(context)
    for name in names:
        command = main.get_command(context, name)
        assert command.name == name
        assert f"dagster-llm-batch {name}" in text
        assert f"| [`{name}`](#" in text
        assert "as_json" in {parameter.name for parameter in command.params}
    assert set(re.findall(r"dagster-llm-batch ([a-z][a-z-]*)", text)) == set(names)


def test_the_help_of_every_command_has_examples_that_its_options_take(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for file in ("requests.jsonl", "tasks.csv"):
        tmp_path.joinpath(file).touch()
    for name in main.list_commands(click.Context(main)):
        command = main.get_command(click.Context(main), name)
        told = CliRunner().invoke(main, [name, "--help"], prog_name="dagster-llm-batch", terminal_width=80).stdout
        assert command.examples, name
        for example in command.examples:
            assert f"\n  dagster-llm-batch {name} {example}\n" in told
            command.make_context(name, shlex.split(example))


def test_a_command_that_is_not_there_names_the_one_that_is_near():
    typed = CliRunner().invoke(main, ["plann"])
    assert (typed.exit_code, "There is no command 'plann'; did you mean 'plan'?" in typed.output) == (2, True)
    assert "There is no command 'xyxyxy'." in CliRunner().invoke(main, ["xyxyxy"]).output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_command_of_the_page_runs_in_its_order(project, home):
    """The page has each command of the command line."""
    project.folder.joinpath("pyproject.toml").write_text(blocks("toml")[0])
    project.folder.joinpath("support.py").write_text(blocks("python")[0])
    for line in lines():
        program, *arguments = shlex.split(line)
        if "SHARD" in arguments:
            shard = leave_a_shard_in_doubt(project)
            arguments[arguments.index("SHARD")] = shard
        if "labels,ticket_labels_rejects" in line:
            project.emulator.settle()
        if program == "dg":
            materialize(line)
        elif arguments[0] == "emulate":
            exports = run_until_interrupted(arguments)
            assert exports["OPENAI_BASE_URL"].startswith("http://127.0.0.1:")
        elif arguments[0] == "smoke":
            with settled_all_the_time(project.emulator):
                project.cli(*arguments)
        elif arguments[0] == "review":
            assert "/table/ticket_labels?token=" in run_until_interrupted(arguments)["url"]
        else:
            result = CliRunner().invoke(main, arguments, prog_name=program)
            assert result.exit_code == 0, (line, result.output, result.exception)
            for text in result.stdout.splitlines() if "watch" in arguments else [result.stdout]:
                assert "--json" not in arguments or json.loads(text), line
    assert project.folder.joinpath("labels.parquet").is_file()


def materialize(launch):
    """Do what `dg launch` does with these options, in this process: starting another takes longer than the run."""
    arguments = launch.replace("dg launch", "dagster asset materialize").replace("--assets", "--select").split()
    [script] = entry_points(name="dagster", group="console_scripts")
    run = script.load()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as ended:
            run()
    assert not ended.value.code, arguments


@contextmanager
def settled_all_the_time(emulator):
    """Batches end by themselves meanwhile: the command waits for one."""
    is_over = threading.Event()

    def settle():
        while not is_over.wait(0.05):
            emulator.settle()

    thread = threading.Thread(target=settle)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def run_until_interrupted(arguments):
    with subprocess.Popen([SCRIPTS / "dagster-llm-batch", *arguments], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        return said


def leave_a_shard_in_doubt(project):
    """Another row, whose create call is not answered, and whose batch cannot be looked for."""
    source = project.folder / "support.py"
    source.write_text(source.read_text().replace('"The page stays white."', '"The page stays black."'))
    project.forget()
    project.emulator.inject(WireFault(kind="close", route="POST /v1/batches"))
    project.emulator.inject(WireFault(kind="status", status=503, route="GET /v1/batches", times=None))
    materialize("dg launch -m support --assets tickets,ticket_labels_batch")
    project.emulator.clear_faults()
    found = json.loads(CliRunner().invoke(main, ["resolve", "--json"]).stdout)["orphans"]
    return found[0]["shard"]["shard_id"]
