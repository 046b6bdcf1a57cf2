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

# Name of the command: the module that has it, as `<name>_command`, and its line in `--help`. Loading all of them takes
# seconds (Dagster, SQLAlchemy, pyarrow), so that each is imported when it is called, and `--help` imports none.
_COMMANDS = {
    "init": ("init", "Write a project that labels a CSV or Parquet file."),
    "plan": ("plan", "What would be sent, and cost. Sends nothing."),
    "advise": ("advise", "Which model, cascade and lane reach a quality by a time and for an amount."),
    "list": ("submissions", "Submissions: those under way, or all."),
    "show": ("submissions", "One submission: its batches and what happened."),
    "watch": ("watch", "Live progress: counts, rate, age, expected end."),
    "cost": ("cost", "Money spent, saved and wasted, and the month's forecast."),
    "cancel": ("decisions", "Stop a submission; what is done already is kept."),
    "resolve": ("decisions", "Say what became of a shard that nobody can tell."),
    "recover": ("decisions", "Recover what the ledger has lost, after a backup was restored."),
    "adopt": ("adopt", "Land the answers of a batch that was sent elsewhere. Sends nothing."),
    "rename": ("decisions", "Give an asset's submissions to its new name."),
    "retry": ("decisions", "Ask again for rows that have no label."),
    "review": ("review", "A page on this machine to look at rows, prompts and replies."),
    "export": ("export", "Labels, rejects, mistakes, judgments or fine-tuning examples, as a file."),
    "export-tasks": ("tasks", "Rows for people to judge in Label Studio, Argilla or a spreadsheet."),
    "import-judgments": ("tasks", "What people said in Label Studio, Argilla or a spreadsheet, into the ledger."),
    "answer": ("answer", "A batch file, answered by a student. Asks no LLM."),
    "prices": ("prices", "The price book in use and its age; fetch a newer one."),
    "prune": ("prune", "Remove stored files that nothing needs any more."),
    "erase": ("erase", "Remove what is stored of rows, and ask them no more."),
    "doctor": ("doctor", "Credentials, permissions, limits, storage, ledger, prices."),
    "smoke": ("smoke", "Three rows through a real account, step by step, and their price."),
    "emulate": ("emulate", "Emulated providers on loopback. Answers are simulated."),
}


# `ExitCode.INTERRUPTED`, without what `commands` imports: Ctrl-C may come while a command is imported.
_INTERRUPTED = 130

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

# Click takes the backspace for "these lines stay as they are". A docstring would have its letters, as it is raw.
_HELP = """Look at LLM batches of Dagster assets, and decide about them: what they will cost, how far they are,
what they cost, and what a person has to say. The daily work, sending and landing, is Dagster's.

A command finds the Dagster definitions by -f FILE, -m MODULE, or what pyproject.toml in this folder points to.
Commands that need neither rows nor providers also take a ledger by its address (--ledger).

\b
  dagster-llm-batch plan -f labels.py      what would be sent, and cost
  dagster-llm-batch watch -f labels.py     how far the batches are
  dagster-llm-batch COMMAND --help         options and examples of a command
"""


class _Commands(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of `--help`."""
        del ctx
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command, or return None where there is none of this name."""
        del ctx
        if cmd_name not in _COMMANDS:
            return None
        module = import_module(f"dagster_llm_batch.cli.{_COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that was typed; where there is none of this name, say which is near."""
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            from dagster_llm_batch.arguments import nearest_name  # noqa: PLC0415 - `--help` needs it not

            near = nearest_name(name, _COMMANDS)
            ctx.fail(f"There is no command {name!r}" + ("." if near is None else f"; did you mean {near!r}?"))
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line. What would be written to a closed output (`>&-`) is dropped."""
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
            # Python would try to write the rest again as it exits, and print two lines of its own.
            _drop("stdout")
            sys.exit(1)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command. Ctrl-C ends it in one line, and with a code that no refusal has."""
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
        """Write a line for each command, from what is known without importing it."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


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
    epilog="Exit codes: 0 done; 1 refused or failed; 2 wrong usage; 3 needs a person; 4 try again later; 130 Ctrl-C.",
    help=_HELP,
)
@click.version_option(__version__, prog_name="dagster-llm-batch")
def main() -> None:
    """Run the command that was typed."""
