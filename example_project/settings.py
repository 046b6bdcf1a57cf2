"""The settings from environment variables, read and checked in one place."""

from __future__ import annotations

import os
from pathlib import Path

from example_project import data

__all__ = [
    "EXAMPLE_DAYS",
    "HOME",
    "LATER",
    "LEXICON",
    "MODEL",
    "OPENAI_BASE_URL",
    "ORACLE",
    "PEOPLE",
    "SettingError",
    "begin",
    "cascade_rows",
    "check",
    "has_begun",
    "oracle_name",
    "rows_per_day",
]


class SettingError(Exception):
    """An environment variable has an invalid value; the message contains the allowed ones."""


MODEL = os.environ.get("EXAMPLE_MODEL") or "command/smollm2"
LEXICON = "command/vader"
PEOPLE = "command/raters"
ORACLE = os.environ.get("EXAMPLE_MODEL") or PEOPLE
"""The cascade's oracle. No small model that runs here is better than the lexicon; people are."""
OPENAI_BASE_URL = os.environ.get("OPENAI_BASE_URL") or None
HOME = Path(os.environ.get("EXAMPLE_HOME") or data.SDIST.parent).absolute()
"""The folder of the example's files: the Dagster home and the tables."""
LATER = ("cascade", "documents")
"""Commands whose assets the first run of each adds to the definitions."""
EXAMPLE_DAYS = tuple(day.isoformat() for day in data.DAYS[:3])
"""The partitions that `python3 -m example_project` labels."""


def begin(command: str) -> None:
    """Note that a command of LATER was started: the definitions contain its assets from now on. Raises SettingError."""
    if command not in LATER:
        return
    note = _note_of(command)
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()
    except OSError as error:
        raise SettingError(f"{HOME} cannot be written ({error}). Set EXAMPLE_HOME to a folder that can.") from error


def has_begun(command: str) -> bool:
    """Return whether a command was started in this folder before."""
    return _note_of(command).exists()


def _note_of(command: str) -> Path:
    return HOME / "begun" / command


def oracle_name() -> str:
    """Return the name of the cascade's oracle in sentences."""
    return "people" if ORACLE == PEOPLE else ORACLE


def rows_per_day() -> int:
    """Return the number of tweets of each day."""
    return _count("EXAMPLE_ROWS_PER_DAY", data.ROWS_PER_DAY)


def cascade_rows() -> int:
    """Return the number of tweets that the cascade labels."""
    return _count("EXAMPLE_CASCADE_ROWS", data.CASCADE_ROWS)


def _count(name: str, default: int) -> int:
    given = os.environ.get(name) or str(default)
    if not given.isdecimal() or int(given) < 1:
        raise SettingError(f"{name}={given!r} is no number of rows. Set it to 1 or more, or unset it.")
    return int(given)


def check(command: str) -> None:
    """Raise SettingError for a setting that would fail later in this command."""
    rows_per_day()
    cascade_rows()
    provider, slash, name = MODEL.partition("/")
    known = ("command/smollm2", LEXICON)
    if not (slash and name) or provider not in ("openai", "command") or (provider == "command" and MODEL not in known):
        raise SettingError(
            f"EXAMPLE_MODEL={MODEL!r} is not known here. Set it to {' or '.join(known)}, to openai/ and the name of a "
            "model, or unset it."
        )
    if command == "cascade" and ORACLE == LEXICON:
        raise SettingError(f"EXAMPLE_MODEL={MODEL} is the cascade's cheap labeler already. Unset it, or set another.")
    if provider == "openai" and not os.environ.get("OPENAI_API_KEY"):
        raise SettingError(
            f"EXAMPLE_MODEL={MODEL} needs OPENAI_API_KEY. To try it without a key, run the emulator "
            "(`.venv/bin/python -m dagster_llm_batch.testing.emulator`) and export what it prints."
        )
