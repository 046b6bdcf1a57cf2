"""Parts that all commands share: `--json`, error messages with a next step, and exit codes for scripts."""

from __future__ import annotations

import io
import json
import shutil
import sqlite3
import sys
import textwrap
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NoReturn, TextIO

import click

from dagster_llm_batch.errors import LeaseError, LedgerError, LLMBatchError, StatusUnknownError, TransientError

__all__ = ["Command", "ExitCode", "confirm", "fitting", "json_option", "leave", "say"]


class ExitCode(IntEnum):
    """Exit codes of the process other than 0."""

    FAILED = 1  # refused or failed; the message has the next step
    USAGE = 2  # wrong command line, or no deployment found
    NEEDS_A_PERSON = 3  # a person must decide (`resolve`), or `doctor` found a problem
    LATER = 4  # the provider or another process is busy, or the ledger is away: the same command may work later
    INTERRUPTED = 130  # by Ctrl-C, as shells have it: 128 and the number of the signal


# Words of PostgreSQL's messages about states that pass.
_PASSING = ("starting up", "shutting down", "in recovery mode", "too many")

# A terminal that is narrower gets lines of this length.
_NARROWEST = 40

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


class Command(click.Command):
    """A command whose help ends with examples, and whose errors become one message and an exit code.

    `examples`: arguments of the command, as a person may type them.
    """

    def __init__(self, name: str | None, *, examples: Sequence[str] = (), **attributes: Any) -> None:
        super().__init__(name, **attributes)
        self.examples = examples

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples, one in each line."""
        if self.examples:
            with formatter.section("Examples" if len(self.examples) > 1 else "Example"):
                for line in self.examples:
                    formatter.write(f"{'':>{formatter.current_indent}}{ctx.command_path} {line}".rstrip() + "\n")
        super().format_epilog(ctx, formatter)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Read the command line. With --json, print an error as JSON."""
        asked = [*args]
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.ClickException as error:
            shown = self._explained(error)
            if "--json" in asked:
                _print_json_error("UsageError", shown.format_message(), shown.exit_code)
            else:
                _print_error(shown)
            raise click.exceptions.Exit(shown.exit_code) from error

    def _explained(self, error: click.ClickException) -> click.ClickException:
        """Return the error; if a part of the command line is missing, with its meaning and an example."""
        if not isinstance(error, click.MissingParameter) or error.ctx is None:
            return error
        message = error.format_message()
        if isinstance(error.param, click.Option) and error.param.help:
            message = f"{message.rstrip('.')}: {error.param.help}"
        if self.examples:
            message += f" For example: {error.ctx.command_path} {self.examples[0]}"
        return click.UsageError(message, ctx=error.ctx)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn an error of ours into a message and an exit code."""
        as_json = ctx.params.get("as_json")
        try:
            return super().invoke(ctx)
        except LLMBatchError as error:
            code = _code_of(error)
            if as_json:
                _print_json_error(type(error).__name__, str(error), code)
            else:
                click.echo(fitting(f"Error: {error}", sys.stderr), err=True)
            ctx.exit(code)
        except click.ClickException as error:
            if as_json:
                name = "UsageError" if isinstance(error, click.UsageError) else "FileError"
                _print_json_error(name, error.format_message(), error.exit_code)
            else:
                _print_error(error)
            ctx.exit(error.exit_code)


def fitting(text: str, stream: TextIO | None, indent: str = "") -> str:
    """Break the lines of a text between words to fit the terminal. Text for a pipe stays as it is."""
    if stream is None or not stream.isatty():
        return text
    width = max(_NARROWEST, shutil.get_terminal_size().columns)
    return "\n".join(
        # Paths and commands stay whole, to be copied.
        textwrap.fill(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        if len(line) > width
        else line
        for line in text.splitlines()
    )


def say(text: str) -> None:
    """Print sentences on standard output, with lines that fit the terminal."""
    click.echo(fitting(text, sys.stdout))


def leave(code: ExitCode) -> NoReturn:
    """End the command with this code."""
    click.get_current_context().exit(code)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before a change that cannot be undone. Without a terminal, only `--yes` confirms it."""
    if not yes:
        click.confirm(question, abort=True, err=True)


def _code_of(error: LLMBatchError) -> ExitCode:
    if isinstance(error, StatusUnknownError):
        return ExitCode.NEEDS_A_PERSON
    is_busy = isinstance(error, TransientError | LeaseError) or _is_away(error)
    return ExitCode.LATER if is_busy else ExitCode.FAILED


def _is_away(error: LLMBatchError) -> bool:
    """Return True if the ledger's database is locked by another process or does not answer."""
    from sqlalchemy.exc import OperationalError  # noqa: PLC0415 - an error of the ledger: it is loaded

    cause = error.__cause__
    if not isinstance(error, LedgerError) or not isinstance(cause, OperationalError):
        return False
    if isinstance(cause.orig, sqlite3.Error):
        code = getattr(cause.orig, "sqlite_errorcode", 0) & 0xFF
        return code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
    # PostgreSQL says FATAL where it answers and refuses the connection, as for a wrong password, which no waiting
    # mends; but it does so while it starts, too.
    said = str(cause.orig)
    return "FATAL" not in said or any(words in said for words in _PASSING)


def _print_error(error: click.ClickException) -> None:
    shown = io.StringIO()
    error.show(shown)
    click.echo(fitting(shown.getvalue().rstrip("\n"), sys.stderr), err=True)


def _print_json_error(name: str, message: str, code: int) -> None:
    click.echo(json.dumps({"error": name, "message": message, "exit_code": int(code)}), err=True)
