"""The seven commands of `python3 -m example_project`, with their handling of Ctrl-C and errors."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from typing import NoReturn

from example_project import settings
from example_project.arguments import read_command
from example_project.dagster_dev import DagsterError, RunningDagster, dagster

__all__ = ["main"]

_LOOK_SECONDS = 1.0
_INTERRUPTED = 130
"""A shell's exit code for a command that Ctrl-C ended."""


def main() -> None:
    """Run the command line."""
    command = read_command()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # even if a shell ignores them
        signal.signal(number, _interrupt)
    os.environ["DAGSTER_HOME"] = str(settings.HOME / "dagster_home")
    what_of_dagster = "Dagster is stopped."
    try:
        settings.check(command)
        if command == "providers":
            _tour()
            return
        if command == "stream":
            _stream()
            return
        if command == "review":
            _review()
            return
        settings.begin(command)
        with dagster(settings.HOME) as running:
            if running.found:
                what_of_dagster = "Dagster runs on, as it did before."
            if command == "ui":
                _stay(running)
            else:
                _travel(running, command)
    except (settings.SettingError, DagsterError) as error:
        sys.exit(f"\nStopped: {error}")
    except KeyboardInterrupt:
        if command == "review":
            said = "The page is gone; what it showed is still there."
        elif command in ("providers", "stream"):
            said = "All that was started is stopped, and nothing is kept; the next run begins anew."
        else:
            said = (
                f"{what_of_dagster} Batches that were started run on by themselves, as batches do; the next run finds "
                "them again and pays for nothing twice."
            )
        print(f"\nInterrupted. {said}", file=sys.stderr)
        sys.exit(_INTERRUPTED)


def _travel(running: RunningDagster, command: str) -> None:
    _accept_beta()
    from example_project import cascade, documents, journey  # noqa: PLC0415 - Dagster takes seconds to import

    if running.found and command in settings.LATER:
        running.reload()
    travels = {"cascade": cascade.travel, "documents": documents.travel}
    travels.get(command, journey.travel)(running)


def _review() -> None:
    _accept_beta()
    from dagster_llm_batch.cli.main import main as package_command  # noqa: PLC0415 - Dagster takes seconds to import

    package_command(["review", "-m", "example_project.definitions"], standalone_mode=False)
    raise KeyboardInterrupt


def _tour() -> None:
    _accept_beta()
    from example_project.providers_tour import go  # noqa: PLC0415 - needs all SDKs, which `run` does not

    _in_process(go)


def _stream() -> None:
    _accept_beta()
    from example_project.stream import go  # noqa: PLC0415 - needs a broker's client, which `run` does not

    _in_process(go)


def _in_process(go: Callable[[], None]) -> None:
    """Run `go`. In-process runs of Dagster raise their own exception for Ctrl-C, which becomes KeyboardInterrupt."""
    import dagster as dg  # noqa: PLC0415 - as above

    try:
        go()
    except dg.DagsterExecutionInterruptedError as error:
        raise KeyboardInterrupt from error


def _accept_beta() -> None:
    warnings.filterwarnings("ignore", message=".*currently in beta")  # backfill policies, in wide use


def _stay(running: RunningDagster) -> None:
    how = "it was started elsewhere, and stops there" if running.found else "Ctrl-C stops it"
    print(f"Dagster's UI: {running.url}  ({how})", flush=True)
    # The sensor creates the ledger, but only a run creates the first table. Without a table, there are no rows to show.
    if not any((settings.HOME / "tables").glob("*")):
        print("Nothing is labeled yet. Run `python3 -m example_project` in another terminal.", flush=True)
    else:
        print("Every row and reply, on a page of its own:", flush=True)
        threading.Thread(target=_end_with, args=(running,), daemon=True).start()
        try:
            _review()
        finally:
            running.check()
    while True:
        running.check()
        time.sleep(_LOOK_SECONDS)


def _end_with(running: RunningDagster) -> None:
    """End the page when Dagster ends: it would otherwise show an unchanging state forever."""
    while not running.has_ended():
        time.sleep(_LOOK_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def _interrupt(*_: object) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # stopping Dagster takes seconds; let it finish
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
