"""Vertex AI's importer of request files: each JSON key of the whole file is one BigQuery column of one type.

A value that it cannot load fails the whole job before any row runs, with code 3 and "Failed to import data". It also
rewrites ids: if every row's id looks like a number, the ids come back in the form of numbers ("000000" as "0").

https://cloud.google.com/bigquery/docs/loading-data-cloud-storage-json
"""

from __future__ import annotations

import json
import re
from typing import Any

_DEEPEST = 15
_COLUMN = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_DIGITS = re.compile(r"\d+")


class ImportFailedError(Exception):
    """The file cannot be imported."""

    def __init__(self, what: str) -> None:
        super().__init__(f"Failed to import data from the input file: {what}")


def import_rows(data: bytes) -> list[dict[str, Any]]:
    """Return the rows as they come out of the import."""
    rows: list[dict[str, Any]] = []
    columns: dict[str, str] = {}
    for number, raw in enumerate(data.split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise ImportFailedError(f"Error while reading data, line {number} is no JSON object.")
        if not isinstance(row.get("request"), dict):
            raise ImportFailedError(f"line {number} has no 'request'.")
        _load(row, "", 0, columns)
        rows.append(row)
    if not rows:
        raise ImportFailedError("the file is empty.")
    ids = [row.get("custom_id") for row in rows]
    if all(isinstance(one, str) and _DIGITS.fullmatch(one) for one in ids):
        rows = [{**row, "custom_id": str(int(row["custom_id"]))} for row in rows]
    return rows


def _load(value: Any, column: str, depth: int, columns: dict[str, str]) -> None:
    kind = _kind(value)
    if kind == "NULL":
        raise ImportFailedError(f"Only optional fields can be set to NULL. Field: {column}")
    if columns.setdefault(column, kind) != kind:
        if "REPEATED" in (kind, columns[column]):
            raise ImportFailedError(f"Repeated field must be imported as a JSON array. Field: {column}")
        raise ImportFailedError(f"Could not convert value to {columns[column].lower()}. Field: {column}")
    if isinstance(value, list):
        for part in value:
            _load(part, f"{column}[]", depth, columns)
    elif isinstance(value, dict):
        if not value:
            raise ImportFailedError(f"Unsupported empty struct type for field '{column}'")
        if depth > _DEEPEST:
            raise ImportFailedError(f"Too many nested records ({depth}), the limit is {_DEEPEST}. Field: {column}")
        for name, part in value.items():
            if not _COLUMN.fullmatch(name):
                raise ImportFailedError(f'Invalid field name "{name}". Fields must contain letters and underscores.')
            _load(part, f"{column}.{name}".lstrip("."), depth + 1, columns)


def _kind(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return "REPEATED"
    if isinstance(value, dict):
        return "RECORD"
    if isinstance(value, bool):
        return "BOOLEAN"
    return "STRING" if isinstance(value, str) else "NUMERIC"
