"""What environment variables decide, read and checked in one place."""

from __future__ import annotations

import os
from pathlib import Path

from example_project import data

__all__ = ["EXAMPLE_DAYS", "HOME", "MODEL", "OPENAI_BASE_URL", "SettingError", "check", "rows_per_day"]


class SettingError(Exception):
    """An environment variable says something impossible; the message says what it may say."""


MODEL = os.environ.get("EXAMPLE_MODEL") or "command/smollm2"
OPENAI_BASE_URL = os.environ.get("OPENAI_BASE_URL") or None
HOME = Path(os.environ.get("EXAMPLE_HOME") or data.SDIST.parent).absolute()
"""Where the example keeps what it makes: the Dagster home and the tables."""
EXAMPLE_DAYS = tuple(day.isoformat() for day in data.DAYS[:3])
"""The partitions that `python3 -m example_project` labels."""


def rows_per_day() -> int:
    """How many tweets of a day are taken."""
    given = os.environ.get("EXAMPLE_ROWS_PER_DAY") or str(data.ROWS_PER_DAY)
    if not given.isdecimal() or int(given) < 1:
        raise SettingError(f"EXAMPLE_ROWS_PER_DAY={given!r} is no number of rows. Set it to 1 or more, or unset it.")
    return int(given)


def check() -> None:
    """Raise SettingError for what would fail later."""
    rows_per_day()
    provider, slash, name = MODEL.partition("/")
    known = ("command/smollm2", "command/vader")
    if not (slash and name) or provider not in ("openai", "command") or (provider == "command" and MODEL not in known):
        raise SettingError(
            f"EXAMPLE_MODEL={MODEL!r} is not known here. Set it to {' or '.join(known)}, to openai/ and the name of a "
            "model, or unset it."
        )
    if provider == "openai" and not os.environ.get("OPENAI_API_KEY"):
        raise SettingError(
            f"EXAMPLE_MODEL={MODEL} needs OPENAI_API_KEY. To try it without a key, run the emulator "
            "(`.venv/bin/python -m dagster_llm_batch.testing.emulator`) and export what it prints."
        )
