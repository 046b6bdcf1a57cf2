"""Print tables for people and JSON for programs. A text from rows or providers stays one line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import click
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from dagster_llm_batch.core.address_secrets import hide_secrets
from dagster_llm_batch.core.json_values import as_json
from dagster_llm_batch.text import cell_text, money_text

__all__ = [
    "PATH_CHARS",
    "SHORT_ID",
    "Money",
    "age",
    "as_json",
    "cell",
    "console",
    "counted",
    "money",
    "print_json",
    "print_table",
    "sparse_table",
    "table",
    "when",
]

# Of a path, all counts.
PATH_CHARS = 1_000
SHORT_ID = 12
"""Characters of a submission's id that are shown; commands take any beginning that is unique."""

_PIPE_COLUMNS = 240
# Characters between two columns.
_GAP = 2
# So narrow is a column of values at least.
_LEAST = 20


def console() -> Console:
    """Return standard output. A pipe gets plain lines that are wide enough for all tables, or as wide as COLUMNS."""
    # A pipe has no width. rich would take 80 columns, and cut the text that a script reads.
    known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return Console(file=sys.stdout, width=None if known else _PIPE_COLUMNS, highlight=False)


class FittingTable:
    """A table whose numbers are aligned right. If it is too wide, each row becomes lines of `column  value`.

    A name that is broken in the middle (`openai/gpt-5-na` and `no` below it) can neither be read nor copied.
    """

    def __init__(
        self, columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None, *, has_dashes: bool = True
    ) -> None:
        self._columns = columns
        self._rows = [[cell(value if has_dashes or value is not None else "") for value in row] for row in rows]
        self._is_known = [[value is not None for value in row] for row in rows]
        self._title = title
        self._right = [
            bool(rows) and all(isinstance(row[number], int | Decimal | Money | None) for row in rows)
            for number in range(len(columns))
        ]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the table, or the rows one below the other."""
        del console
        if (widths := self._widths(options.max_width)) is not None:
            made = self._empty()
            for name, width, is_right in zip(self._columns, widths, self._right, strict=True):
                made.add_column(name, justify="right" if is_right else "left", overflow="fold", width=width)
            for row in self._rows:
                made.add_row(*row)
            yield made
            return
        for number, row in enumerate(self._rows):
            lines = self._empty(title=self._title if number == 0 else "")
            lines.show_header = False
            lines.add_column(style="bold", no_wrap=True)
            lines.add_column(overflow="fold")
            for name, value, is_known in zip(self._columns, row, self._is_known[number], strict=True):
                if is_known:
                    lines.add_row(name, value)
            yield lines
            yield ""

    def _widths(self, room: int) -> list[int] | None:
        """Return the width of each column, at least that of its longest word; None if they do not fit."""
        columns = [[name, *(row[number].plain for row in self._rows)] for number, name in enumerate(self._columns)]
        widths = [max(cell_len(word) for text in texts for word in text.split() or [""]) for texts in columns]
        if not any(self._columns):
            # Names stay whole; values may be longer than the room.
            widths[:-1] = [max(map(cell_len, texts)) for texts in columns[:-1]]
            widths[-1] = min(widths[-1], max(_LEAST, room - sum(widths[:-1]) - _GAP * (len(widths) - 1)))
        wanted = [max(map(cell_len, texts)) - width for texts, width in zip(columns, widths, strict=True)]
        spare = room - sum(widths) - _GAP * (len(widths) - 1)
        if spare < 0:
            return None
        # Columns that need least extra room get it first.
        for number in sorted(range(len(widths)), key=wanted.__getitem__):
            more = min(wanted[number], spare)
            widths[number] += more
            spare -= more
        return widths

    def _empty(self, title: str | None = None) -> Table:
        title = self._title if title is None else title
        return Table(
            title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="bold"
        )


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> FittingTable:
    """Make a table that fits where it is printed. A list of facts, whose columns have no names, omits unknown ones."""
    if not any(columns):
        rows = [row for row in rows if row[-1] is not None]
    return FittingTable(columns, rows, title)


def sparse_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> FittingTable:
    """Make a table in which a column without a value is left out, and a cell without one is empty."""
    some = [number for number in range(len(columns)) if any(row[number] is not None for row in rows)]
    kept = [[row[number] for number in some] for row in rows]
    return FittingTable([columns[number] for number in some], kept, title, has_dashes=False)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str | None = None) -> None:
    """Print a table on standard output."""
    console().print(table(columns, rows, title=title))


def cell(value: object) -> Text:
    """Return a value as one line of text, without markup or commands of a terminal."""
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, int) and not isinstance(value, bool):
        return Text(f"{value:,}")
    if isinstance(value, datetime):
        return Text(when(value))
    if isinstance(value, timedelta):
        return Text(age(value))
    # Text, and not str: rich reads markup such as [red] in a str.
    return Text(cell_text(value, limit=400))


class Money(str):
    """An amount that was made readable."""

    __slots__ = ()


def money(amount: Decimal | None) -> Money | None:
    """Return `money_text`; None where the amount is not known."""
    return None if amount is None else Money(money_text(amount))


def counted(number: int, singular: str, more: str) -> str:
    """Return a count with its noun: `1 batch`, `2 batches`."""
    return f"{number:,} {singular if number == 1 else more}"


def when(moment: datetime) -> str:
    """Return a moment to the second, in UTC."""
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def age(length: timedelta) -> str:
    """Return a length of time in its two biggest units, as in `3 d 4 h`."""
    minutes, seconds = divmod(max(0, int(length.total_seconds())), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    named = [(days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s")]
    shown = [f"{number} {unit}" for number, unit in named if number][:2]
    return " ".join(shown) or "0 s"


def print_json(value: Any, *, indent: int | None = 2) -> None:
    """Print JSON on standard output, with accounts without the keys of their addresses."""
    click.echo(json.dumps(_with_shown_accounts(as_json(value)), indent=indent, ensure_ascii=False))


def _with_shown_accounts(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_shown_accounts(part) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        name: hide_secrets(part) if name == "account" and isinstance(part, str) else _with_shown_accounts(part)
        for name, part in value.items()
    }
