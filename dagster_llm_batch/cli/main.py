"""The console script `dagster-llm-batch`."""

from __future__ import annotations

import errno
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import click

from dagster_llm_batch._version import __version__

__all__ = ["main"]

# The groups of `--help`. Each command has its module, with a function `<name>_command`, and its line in `--help`.
# Modules are imported when a command is called, because Dagster, SQLAlchemy and pyarrow take seconds to load.
_GROUPS = {
    "First steps": {
        "init": ("init", "Write a project that labels a CSV or Parquet file."),
        "emulate": ("emulate", "Run emulated providers on this machine: no key, no bill."),
        "plan": ("plan", "Preview requests and cost without sending."),
        "smoke": ("smoke", "Send three rows to a real account and check each step."),
        "doctor": ("doctor", "Check credentials, storage, sensor, limits and prices."),
    },
    "Look": {
        "list": ("submissions", "List submissions with their state, batches and cost."),
        "show": ("submissions", "Show one submission: its batches and events."),
        "watch": ("watch", "Show the progress of batches until they end."),
        "cost": ("cost", "Show money spent and saved, and the month's forecast."),
        "export": ("export", "Write labels, rejects, mistakes or examples to a file."),
        "review": ("review", "Open a local page to read and judge rows and replies."),
    },
    "Decide": {
        "advise": ("advise", "Recommend a model for a quality, deadline and budget."),
        "cancel": ("decisions", "Stop a submission and keep the answers so far."),
        "retry": ("decisions", "Show the price, then send rows without a label again."),
        "export-tasks": ("tasks", "Write rows for people to judge in other tools."),
        "import-judgments": ("tasks", "Import judgments from Label Studio, Argilla or a CSV."),
    },
    "Repair": {
        "resolve": ("decisions", "Decide on a batch that may not exist, or never ends."),
        "recover": ("decisions", "Recover batches that a restored ledger lacks."),
        "adopt": ("adopt", "Import the answers of a batch that another tool sent."),
        "rename": ("decisions", "Move submissions to the new name of an asset."),
    },
    "Administer": {
        "prices": ("prices", "Show the price book and its age, or fetch a newer one."),
        "prune": ("prune", "Delete stored files that are no longer needed."),
        "erase": ("erase", "Erase rows and exclude them from future submissions."),
        "answer": ("answer", "Answer a batch file with a trained student model."),
    },
}
_COMMANDS = {name: entry for commands in _GROUPS.values() for name, entry in commands.items()}


# `ExitCode.INTERRUPTED`, without what `commands` imports: Ctrl-C may come while a command is imported.
_INTERRUPTED = 130

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

# Click keeps the lines after a backspace unchanged. A raw docstring cannot hold one.
_HELP = """Label tables with LLM batches, as Dagster assets.

Dagster sends batches and materializes labels. These commands write a project, show cost and progress, and
carry out the decisions that a person has to make. A submission is all requests of one partition of a labeled asset.

Most commands read Dagster definitions: -f FILE, -m MODULE, or what pyproject.toml in this folder points to. Commands
that read the ledger alone also take its address: --ledger.

\b
  dagster-llm-batch init comments.csv --key id --text text --labels spam,other
  dagster-llm-batch plan                   preview requests and cost
  dagster-llm-batch watch                  show progress
  dagster-llm-batch COMMAND --help         list options and examples
"""


class _Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of `--help`."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or return None for an unknown name."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"dagster_llm_batch.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command by its name. For an unknown name, suggest a similar one."""
        name = args[0]
        # The shell asks for completion after any word, where an error would land in the typed line.
        if name not in _COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            from dagster_llm_batch.arguments import nearest_name  # noqa: PLC0415 - `--help` needs it not

            near = nearest_name(name, _COMMANDS)
            ctx.fail(f"There is no command {name!r}" + ("." if near is None else f"; did you mean {near!r}?"))
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line. Output to a closed stream (`>&-`) is dropped."""
        for name in ("stdout", "stderr"):
            if getattr(sys, name) is None:
                # It also takes the free descriptor, which a file of ours would get else, and libraries might write to.
                _drop(name)
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            # A person needs no trace of a disk that is full or read-only; click handles a pipe that closes.
            if error.errno not in _DISK:
                raise
            place = "" if error.filename is None else f" {error.filename}"
            click.echo(f"Could not write{place}: {error.strerror}. What is recorded stays.", err=True)
            # At exit, Python would write the rest again, and print two lines about the failure.
            _drop("stdout")
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Ctrl-C ends it with one line and an exit code of its own."""
        try:
            try:
                return super().invoke(ctx)
            finally:
                # A write fails at the flush. At Python's exit it would end with code 120 and a message of Python's.
                sys.stdout.flush()
        except _interrupts() as error:
            # At a question, click gives both Ctrl-C and the answer no as an Abort.
            if isinstance(error, click.Abort) and not isinstance(error.__context__, KeyboardInterrupt):
                raise
            click.echo("\nInterrupted. What is recorded stays, and the same command goes on from there.", err=True)
            ctx.exit(_INTERRUPTED)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a line for each command without importing it."""
        del ctx
        for title, commands in _GROUPS.items():
            with formatter.section(title):
                # All groups have one column of names.
                width = max(map(len, _COMMANDS))
                formatter.write_dl([(name.ljust(width), line) for name, (_, line) in commands.items()])


def _drop(name: str) -> None:
    """Make sys.stdout or sys.stderr, as named, take all that is written and keep nothing of it."""
    setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115 - open until Python exits


def _interrupts() -> tuple[type[BaseException], ...]:
    """Return what Ctrl-C raises: at a question click's, and where Dagster makes resources, one of Dagster's."""
    # `--help` does not import it; where it was not imported, or not to its end, none of it is raised.
    own = getattr(sys.modules.get("dagster"), "DagsterExecutionInterruptedError", None)
    return (KeyboardInterrupt, click.Abort) if own is None else (KeyboardInterrupt, click.Abort, own)


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 needs a person, 4 try again later, 130 Ctrl-C.",
    help=_HELP,
)
@click.version_option(__version__, prog_name="dagster-llm-batch")
def main() -> None:
    """Run the command that was typed."""
