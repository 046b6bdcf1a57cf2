"""The page docs/reference/cli.md is true: its files are a project, its commands run in it in their order."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from click.testing import CliRunner

from dagster_llm_batch.cli.main import main
from tests.page import CLI, ROOT, blocks, run_cli_page


def test_the_page_names_every_command_and_option_of_its_own():
    text = CLI.read_text(encoding="utf-8")
    context = click.Context(main)
    names = main.list_commands(context)
    for name in names:
        command = main.get_command(context, name)
        assert command.name == name
        assert f"dagster-llm-batch {name}" in text
        assert f"| [`{name}`](#" in text
        assert "as_json" in {parameter.name for parameter in command.params}
    assert set(re.findall(r"dagster-llm-batch ([a-z][a-z-]*)", text)) == set(names)


def test_the_page_lists_the_commands_in_the_groups_and_with_the_words_of_the_help():
    told = CliRunner().invoke(main, ["--help"], prog_name="dagster-llm-batch", terminal_width=80).stdout
    assert max(map(len, told.splitlines())) <= 80
    _, *sections = re.split(r"^(\w[\w ]*):$", told.partition("Show this message and exit.")[2], flags=re.MULTILINE)
    helped = [
        (title, name, line)
        for title, section in zip(sections[::2], sections[1::2], strict=True)
        for name, line in re.findall(r"^  ([a-z-]+) {2,}(.*)$", section, re.MULTILINE)
    ]
    shown, title = [], ""
    for first, second in re.findall(r"^\| ([^|]+) \| ([^|]*) \|", CLI.read_text(encoding="utf-8"), re.MULTILINE):
        title = first.strip("*") if first.startswith("**") else title
        if name := re.match(r"\[`([a-z-]+)`\]", first):
            shown.append((title, name[1], second))
    assert helped == shown
    assert len(helped) == len(main.list_commands(click.Context(main)))


def test_the_help_of_every_command_has_examples_that_its_options_take(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for file in ("requests.jsonl", "tasks.csv", "comments.csv", "gold.csv"):
        tmp_path.joinpath(file).touch()
    for name in main.list_commands(click.Context(main)):
        command = main.get_command(click.Context(main), name)
        told = CliRunner().invoke(main, [name, "--help"], prog_name="dagster-llm-batch", terminal_width=80).stdout
        assert command.examples, name
        for example in command.examples:
            assert "\n  " + f"dagster-llm-batch {name} {example}".rstrip() + "\n" in told
            command.make_context(name, shlex.split(example))


def test_the_commands_about_rows_have_the_options_of_their_page(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    tmp_path.joinpath("exported.json").touch()
    page = ROOT / "docs" / "how-to" / "look-at-rows.md"
    lines = [line for block in blocks(page, "sh") for line in block.content.splitlines()]
    typed = [shlex.split(line) for line in lines if line.startswith("dagster-llm-batch ")]
    assert len(typed) >= 7
    for _, name, *arguments in typed:
        main.get_command(click.Context(main), name).make_context(name, arguments)


def test_a_command_that_is_not_there_names_the_one_that_is_near():
    typed = CliRunner().invoke(main, ["plann"])
    assert (typed.exit_code, "There is no command 'plann'; did you mean 'plan'?" in typed.output) == (2, True)
    assert "There is no command 'xyxyxy'." in CliRunner().invoke(main, ["xyxyxy"]).output


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("home")
def test_every_command_of_the_page_runs_in_its_order(monkeypatch, tmp_path):
    """Run each command of the command line, since the page has them all."""
    monkeypatch.chdir(tmp_path)
    run_cli_page(tmp_path)
