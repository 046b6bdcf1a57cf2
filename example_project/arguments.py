"""The command line of `python3 -m example_project`. It is read before the set-up, with only the standard library."""

from __future__ import annotations

import argparse

__all__ = ["read_command"]

_DESCRIPTION = """Labels human-rated tweets in batches, in a real Dagster instance, and evaluates the labels.
Everything stays on this machine, below .example/. Delete that folder to start again."""
_COMMANDS = {
    "run": "everything; a second run continues from the first",
    "ui": "only Dagster's UI, with the existing data",
    "review": "a page of every tweet: prompt, reply, label, human label",
    "cascade": "label with the lexicon, and ask people where it is unsure, with a guarantee",
    "documents": "extract totals with quotes from PDFs, in a chain of two datasets",
    "providers": "label through eight emulated clouds, in one process",
    "stream": "label a Kafka topic by batch, student and real time, in one definition",
}


def read_command() -> str:
    """Return the command from the command line. Ends the process for an unknown command or for help."""
    told = "\n".join(f"  {name:<11}{what}" for name, what in _COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="python3 -m example_project",
        description=f"{_DESCRIPTION}\n\ncommands:\n{told}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "command", nargs="?", choices=list(_COMMANDS), default="run", metavar="command", help="default: run"
    )
    return str(parser.parse_args().command)
