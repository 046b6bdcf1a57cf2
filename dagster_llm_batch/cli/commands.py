"""What all commands share: `--json`, errors that say what to do next, and the exit code that tells scripts."""

from __future__ import annotations

import json
from enum import IntEnum
from typing import Any, NoReturn

import click

from dagster_llm_batch.errors import CannotTellError, LeaseError, LLMBatchError, TransientError

__all__ = ["Command", "ExitCode", "confirm", "json_option", "leave"]


class ExitCode(IntEnum):
    """What the process ends with, when it is not 0."""

    FAILED = 1  # refused, or failed; the message says what to do
    USAGE = 2  # the command line is wrong, or does not say where the deployment is
    NEEDS_A_PERSON = 3  # nobody can tell but a person: `resolve`; or `doctor` found a problem
    LATER = 4  # the provider, or another process, is busy: the same command may work later


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class Command(click.Command):
    """A command whose errors become one message and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; turn an error of ours into a message and an exit code."""
        try:
            return super().invoke(ctx)
        except LLMBatchError as error:
            _fail(ctx, error, _code_of(error))


def leave(code: ExitCode) -> NoReturn:
    """End the command with this code."""
    click.get_current_context().exit(code)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone; without a terminal only `--yes` says so."""
    if not yes:
        click.confirm(question, abort=True, err=True)


def _code_of(error: LLMBatchError) -> ExitCode:
    if isinstance(error, CannotTellError):
        return ExitCode.NEEDS_A_PERSON
    return ExitCode.LATER if isinstance(error, TransientError | LeaseError) else ExitCode.FAILED


def _fail(ctx: click.Context, error: LLMBatchError, code: ExitCode) -> NoReturn:
    if ctx.params.get("as_json"):
        click.echo(json.dumps({"error": type(error).__name__, "message": str(error), "exit_code": int(code)}), err=True)
    else:
        click.echo(f"{type(error).__name__}: {error}", err=True)
    ctx.exit(code)
