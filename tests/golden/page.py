"""Values as the text of a golden file: exact, and small if much repeats.

    == <name>                     a section
    {"types": …}                  the types of a table's columns; one without a type has that of an earlier section
    {"all": …}                    columns with one value in all rows of the section, without nulls
    {"rows": …}                   the names of the other columns, or the section with the same names
    […]                           a row
    {"each": [before, …, after]}  the text around the custom_id, and at the end, of each request line
    r0123…-4567… …                a request line: its custom_id, and its text between those

The text is complete: it gives back each line of a file of requests, to the byte.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa

__all__ = ["Page", "as_json"]

_CUSTOM_ID = re.compile(r"r[0-9a-f]{16}-(?:[0-9a-f]{40}|padding-[0-9]{32})")
_Around = tuple[str, str, str]


def as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


class Page:
    """The text of a golden file while it is written."""

    def __init__(self) -> None:
        self.text = ""
        self._types: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._around: dict[_Around, str] = {}

    def write(self, name: str, lines: Sequence[str]) -> None:
        """Write a section of these lines."""
        self.text += "".join(f"{line}\n" for line in (f"== {name}", *lines))

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]], *first: str) -> None:
        """Write a section of rows."""
        rows = [{column: _plain(value) for column, value in row.items()} for row in rows]
        same = {
            column: value
            for column, value in (rows[0] if len(rows) > 1 else {}).items()
            if len({as_json(row[column]) for row in rows}) == 1
        }
        others = [column for column in (rows[0] if rows else ()) if column not in same]
        lines = [as_json([row[column] for column in others]) for row in rows]
        shared = [as_json({"all": {column: value for column, value in same.items() if value is not None}})]
        names = [as_json({"rows": self._once(others, name)})]
        self.write(
            name, [*first, *(shared if same else ()), *(names if rows else ()), *(sorted(lines) if first else lines)]
        )

    def write_table(self, name: str, table: pa.Table) -> None:
        """Write a section of a table's types and rows."""
        types = {field.name: str(field.type) + ("" if field.nullable else " not null") for field in table.schema}
        said = [column if self._types.get(column) == kind else f"{column}: {kind}" for column, kind in types.items()]
        self._types |= types
        self.write_rows(name, table.to_pylist(), as_json({"types": self._once(said, name)}))

    def _once(self, names: list[str], section: str) -> list[str] | str:
        """Return the names, or the section that has the same."""
        known = self._names.setdefault(as_json(names), section)
        return names if known == section else f"as in {known}"

    def write_requests(self, name: str, lines: Sequence[str]) -> None:
        """Write a section of request lines, each with its line end."""
        around = next((one for one in self._around if all(_between(line, one) is not None for line in lines)), None)
        if around is None:
            around = _around(lines)
            self._around[around] = name
            first = as_json({"each": around})
        else:
            first = as_json({"each": f"as in {self._around[around]}"})
        self.write(name, [first, *(_between(line, around) or "" for line in lines)])


def _around(lines: Sequence[str]) -> _Around:
    """Return the common text before the custom_id, after it, and at the end of all lines, up to a quotation mark."""
    [(before, *_), *_] = halves = [_halves(line) for line in lines]
    after = _start([rest for _, _, rest in halves])
    after = after[: after.rfind('"') + 1]
    end = _start([rest[len(after) :][::-1] for _, _, rest in halves])[::-1]
    return before, after, end[end.find('"') :] if '"' in end else "\n"


def _start(texts: Sequence[str]) -> str:
    """Return the common start of all texts."""
    first, last = min(texts), max(texts)
    return next((first[:at] for at, char in enumerate(first) if char != last[at : at + 1]), first)


def _halves(line: str) -> tuple[str, str, str]:
    found = _CUSTOM_ID.search(line)
    assert found is not None, line
    return line[: found.start()], found[0], line[found.end() :]


def _between(line: str, around: _Around) -> str | None:
    """Return the custom_id and the text in the middle, or None if the line does not have these surroundings."""
    (before, custom_id, rest), (wanted, after, end) = _halves(line), around
    fits = before == wanted and rest.startswith(after) and rest.endswith(end) and len(rest) >= len(after) + len(end)
    middle = rest[len(after) : len(rest) - len(end)]
    return f"{custom_id} {middle}" if fits and "\n" not in middle else None


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold, and that differs for different values."""
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if isinstance(value, bytes):
        return f"base64:{base64.b64encode(value).decode()}"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return str(value) if isinstance(value, Decimal) else value
