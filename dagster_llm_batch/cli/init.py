"""`init`: a project that labels a table, from the table and the names of its columns."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dagster_llm_batch.cli.commands import Command, json_option
from dagster_llm_batch.cli.output import counted, print_json
from dagster_llm_batch.errors import ConfigError

if TYPE_CHECKING:
    from dagster_llm_batch.cli.new_tables import RowTable

__all__ = ["init_command"]

_QUESTION = "Which of these labels fits the text best: {labels}?"
_TABLE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    "init",
    cls=Command,
    examples=[
        "comments.csv --key id --text text --labels happy,unhappy,neither",
        "comments.csv --key id --text text --labels spam,other --gold gold.csv --yaml",
    ],
)
@click.argument("table", type=_TABLE)
@click.option("--key", required=True, help="Column with the key of a row; each row has another value.")
@click.option("--text", "texts", required=True, multiple=True, help="Column with the text to label, repeatable.")
@click.option("--labels", required=True, help="The labels to choose from, with commas between them.")
@click.option("--gold", type=_TABLE, help="Table with human labels of some rows, to measure the model by.")
@click.option("--gold-column", help="Column of the labels in that table.  [default: the only other column]")
@click.option("--day", help="Column with dates such as 2026-01-31: makes one partition a day.")
@click.option("--question", help="Question in the prompt, before each text.  [default: which label fits best]")
@click.option("--name", help="Name of the labeled table.  [default: the file's name and _labels]")
@click.option(
    "--model",
    default="openai/gpt-5-nano",
    show_default=True,
    help="The real model, as VENDOR/MODEL. The project is ready for it; one line switches it on.",
)
@click.option("--yaml", "is_yaml", is_flag=True, help="Write YAML for Dagster's command `dg`.  [default: Python]")
@click.option(
    "--into", type=click.Path(file_okay=False, path_type=Path), default=".", help="Folder.  [default: this one]"
)
@json_option
def init_command(
    table: Path,
    key: str,
    texts: tuple[str, ...],
    labels: str,
    gold: Path | None,
    gold_column: str | None,
    day: str | None,
    question: str | None,
    name: str | None,
    model: str,
    into: Path,
    *,
    is_yaml: bool,
    as_json: bool,
) -> None:
    """Write a Dagster project that labels the rows of TABLE, a CSV or Parquet file.

    The project runs without a key: until one line names a real model, the labels are simulated, and mean nothing.
    """
    # These modules take a second to load.
    from dagster_llm_batch.cli.new_project import NewProject, check_name, default_name  # noqa: PLC0415
    from dagster_llm_batch.cli.new_tables import read_gold, read_labels, read_rows  # noqa: PLC0415

    if gold_column is not None and gold is None:
        raise click.UsageError("--gold-column names a column of the table with human labels: give --gold, too.")
    known = read_labels(labels)
    _check_model(model)
    rows = read_rows(table, key, texts, day)
    project = NewProject(
        name=check_name(name or default_name(table)),
        rows=rows,
        key=key,
        texts=texts,
        labels=known,
        question=question or _QUESTION.format(labels=", ".join(known)),
        model=model,
        day=day,
        gold=None if gold is None else read_gold(gold, rows, key, known, gold_column),
    )
    home = into / "home" / "dagster.yaml"
    files = {
        path: text
        for path, text in project.files(into, is_yaml=is_yaml).items()
        # A Dagster home that is there stays as it is.
        if path != home or not home.exists()
    }
    _check_free(files)
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    gold_rows = None if project.gold is None else project.gold.rows
    commands = _next_commands(project.name, into, rows, is_yaml=is_yaml, has_gold=gold is not None)
    if as_json:
        written = [str(path) for path in files]
        counts = {"rows": rows.rows, "empty_rows": rows.empty, "gold_rows": gold_rows}
        print_json({"name": project.name, "written": written, **counts, "next": [line for line, _ in commands]})
        return
    shown = [os.path.relpath(path) for path in files if not path.name.startswith("__init__")]
    click.echo(f"Wrote {', '.join(shown)}.")
    click.echo(_counts_text(rows, gold_rows))
    if rows.last_day is not None and rows.last_day > _yesterday():
        click.echo("Rows of today and later wait until their day is over (UTC): its partition exists only then.")
    place = f"labeling/defs/{project.name}/defs.yaml" if is_yaml else "labels.py"
    click.echo(f"The labels are simulated until you name a real model, such as {model}, in {place}.")
    click.echo("\nNext, in this order:")
    for command, effect in commands:
        click.echo(f"  # {effect}\n  {command}")


def _check_model(model: str) -> None:
    from dagster_llm_batch.cli.new_project import PROVIDER_NAMES  # noqa: PLC0415 - as above

    provider, slash, name = model.partition("/")
    if not slash or not name or not model.isprintable():
        raise click.UsageError(
            f"--model {model!r} is not written as VENDOR/MODEL, as in openai/gpt-5-nano. Name one of these vendors: "
            f"{', '.join(PROVIDER_NAMES)}."
        )
    if provider not in PROVIDER_NAMES:
        raise click.UsageError(
            f"--model {model!r} names the vendor {provider!r}, and `init` can write projects for: "
            f"{', '.join(PROVIDER_NAMES)}. For another vendor, leave --model out, and change model and resource in the "
            "project."
        )


def _check_free(files: Iterable[Path]) -> None:
    """Raise ConfigError if a file exists already, before anything is written."""
    if taken := [os.path.relpath(path) for path in files if path.exists()]:
        raise ConfigError(
            f"{', '.join(taken)} {'is' if len(taken) == 1 else 'are'} there already, and nothing was written. Name an "
            "empty folder with --into. To add labels to a project of Dagster's `dg`, run `dg scaffold defs "
            "dagster_llm_batch.LLMBatchComponent`."
        )


def _counts_text(rows: RowTable, gold: int | None) -> str:
    text = counted(rows.rows, "row", "rows")
    if rows.empty:
        text += f", {rows.empty:,} without text (these are not sent)"
    if rows.first_day is not None:
        text += f", from {rows.first_day} to {rows.last_day}"
    return f"{text}." if gold is None else f"{text}; {gold:,} with a human label."


def _yesterday() -> str:
    """Return the last day with a partition: Dagster adds a day when it is over, in UTC."""
    return (datetime.now(UTC).date() - timedelta(days=1)).isoformat()


def _next_commands(name: str, into: Path, rows: RowTable, *, is_yaml: bool, has_gold: bool) -> list[tuple[str, str]]:
    """Return what to type, in this order, each with its effect."""
    first, last = rows.first_day, rows.last_day and min(rows.last_day, _yesterday())
    # Without a day that is over, there is no partition to name.
    has_rows = first is None or last is None or first <= last
    span = "" if first is None else f" --partition-range {first}...{last}"
    needed = {"dagster_webserver": "dagster-webserver"}
    needed |= {"dagster_dg_cli": "dagster-dg-cli"} if is_yaml else {}
    needed |= {"sklearn": "'dagster-llm-batch[evaluation]'"} if has_gold else {}
    missing = [package for module, package in needed.items() if find_spec(module) is None]
    commands = [(f"cd {shlex.quote(str(into))}", "Go to the project.")] if into != Path() else []
    if missing:
        commands.append((f"pip install {' '.join(missing)}", "Install the packages that are missing here."))
    commands.append(('export DAGSTER_HOME="$PWD/home"', "Keep Dagster's history and the ledger in the project."))
    if has_rows:
        plan = f"dagster-llm-batch plan{span and f' {name}{span}'}"
        commands.append((plan, "Preview requests and cost. Nothing is sent."))
    commands.append(
        (
            "dg dev" if is_yaml else "dagster dev",
            "Open http://127.0.0.1:3000/asset-groups and press Materialize all. Ctrl-C ends it.",
        )
    )
    if has_rows:
        commands.append((f"dagster-llm-batch export {name}{span} -o labels.csv", "Get the labels as a file."))
    if has_gold:
        commands.append(("dagster-llm-batch export quality --what mistakes -o mistakes.csv", "Get the wrong rows."))
    return commands
