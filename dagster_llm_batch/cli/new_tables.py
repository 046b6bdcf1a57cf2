"""The tables that a new project is about: the rows to label and the gold, read and checked before a file is written."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.assets.file_rows import FileRows
from dagster_llm_batch.cli.output import counted
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.text import cell_text

__all__ = ["GoldTable", "RowTable", "read_gold", "read_labels", "read_rows"]

_DELIMITERS = (",", ";", "\t", "|")
_SHOWN = 5


@dataclass(frozen=True)
class RowTable:
    """The rows to label. `first_day` and `last_day` come from the column of days, if one was named."""

    path: Path
    delimiter: str
    keys: pa.ChunkedArray
    rows: int
    empty: int
    first_day: str | None
    last_day: str | None


@dataclass(frozen=True)
class GoldTable:
    """Human labels of some rows, in `column`. `is_text` is False where that column holds numbers or the like."""

    path: Path
    delimiter: str
    column: str
    rows: int
    is_text: bool


def read_labels(text: str) -> list[str]:
    """Return the labels of a comma-separated list. Raises UsageError where they make no sense."""
    labels = [part.strip() for part in text.split(",")]
    if "" in labels:
        raise click.UsageError(f"--labels {text!r} has an empty label. Write them as --labels happy,unhappy,neither.")
    if len(labels) < 2:  # noqa: PLR2004 - a choice needs two
        raise click.UsageError(f"--labels has one label, {labels[0]!r}. Name at least two, as in --labels spam,other.")
    folded = [label.casefold() for label in labels]
    if twice := [label for label, fold in zip(labels, folded, strict=True) if folded.count(fold) > 1]:
        raise click.UsageError(
            f"--labels has {_listed(twice)}, which differ in case at most. A model cannot tell them apart: keep one."
        )
    return labels


def read_rows(path: Path, key: str, texts: Sequence[str], day: str | None) -> RowTable:
    """Read and check the table to label. Raises UsageError for options that do not fit it, InputError for its rows."""
    delimiter = _delimiter_of(path, key)
    table = _columns(path, delimiter, "--key", [key], "--text", texts, "--day", [day] if day else [])
    if key in texts:
        raise click.UsageError(f"--key and --text are both {key!r}. The key names a row, the text is labeled.")
    if not table.num_rows:
        raise InputError(f"{path} has no rows. Give a table with at least one row to label.")
    keys = table.column(key)
    _check_keys(path, key, keys)
    filled = [_filled(path, name, table.column(name)) for name in texts]
    is_empty = pc.invert(filled[0])
    for one in filled[1:]:
        is_empty = pc.and_(is_empty, pc.invert(one))
    empty = pc.sum(is_empty).as_py() or 0
    if empty == table.num_rows:
        raise InputError(
            f"{path}: {_listed(texts)} is empty in all {empty:,} rows. Name the column with the text: --text."
        )
    days = [] if day is None else _days(path, day, table.column(day))
    return RowTable(path, delimiter, keys, table.num_rows, empty, min(days, default=None), max(days, default=None))


def read_gold(path: Path, rows: RowTable, key: str, labels: Sequence[str], column: str | None) -> GoldTable:
    """Read and check the human labels. Raises UsageError for wrong options, InputError for wrong rows."""
    delimiter = _delimiter_of(path, key)
    names = _names(path, delimiter)
    column = column or _label_column(path, names, key)
    table = _columns(path, delimiter, "--key", [key], "--gold-column", [column])
    if not table.num_rows:
        raise InputError(f"{path} has no rows. Label some rows in it, or leave --gold out.")
    keys, values = table.column(key), table.column(column)
    _check_keys(path, key, keys)
    if keys.type != rows.keys.type:
        raise InputError(
            f"The keys of {path} are of type {keys.type}, and those of {rows.path} of type {rows.keys.type}, so they "
            "cannot match. Save both tables in the same format."
        )
    unknown = keys.filter(pc.invert(pc.is_in(keys, value_set=rows.keys.combine_chunks()))).to_pylist()
    if unknown:
        raise InputError(
            f"{path} has {counted(len(unknown), 'key', 'keys')} without a row in {rows.path}: {_listed(unknown)}. "
            f"Correct the column '{key}', or remove these rows."
        )
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    # The project casts in the same way, since a model answers with text.
    texts = pc.fill_null(_text(path, column, "--gold-column", values), "")
    strangers = sorted(set(pc.unique(texts).to_pylist()) - set(labels))
    if strangers:
        raise InputError(
            f"{path}: the column '{column}' has {_listed(strangers)}, which --labels does not have. A model cannot "
            f"give these labels. Add them to --labels, correct {path.name}, or name another column: --gold-column."
        )
    return GoldTable(path, delimiter, column, table.num_rows, is_text)


def _delimiter_of(path: Path, key: str) -> str:
    """Return the delimiter that finds the key in the first line of a CSV, else the one with most columns."""
    if not path.suffix.lower().startswith((".csv", ".tsv", ".txt")):
        return ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            line = file.readline(1_000_000)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}. Save it again as CSV in UTF-8.") from error
    headers = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in _DELIMITERS}
    return max(headers, key=lambda one: (key in headers[one], len(headers[one])))


def _names(path: Path, delimiter: str) -> list[str]:
    rows = FileRows(path=str(path), delimiter=delimiter)
    names: list[str] = next(rows(_everything())).schema.names
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path} has several columns {_listed(twice)}. Give each column another name.")
    return names


def _columns(path: Path, delimiter: str, *wanted: Any) -> pa.Table:
    """Return these columns; `wanted` are options and the names that they gave, in turns."""
    names = _names(path, delimiter)
    options = [(option, name) for option, given in zip(wanted[::2], wanted[1::2], strict=True) for name in given]
    for option, name in options:
        if name not in names:
            raise click.UsageError(f"{path} has no column {name!r} ({option}). Its columns: {', '.join(names)}.")
    chosen = list(dict.fromkeys(name for _, name in options))
    batches = FileRows(path=str(path), delimiter=delimiter)(_everything())
    return pa.Table.from_batches([batch.select(chosen) for batch in batches])


def _everything() -> Any:
    return SimpleNamespace(partition_key=None)


def _check_keys(path: Path, key: str, keys: pa.ChunkedArray) -> None:
    missing = pc.sum(pc.is_null(keys)).as_py() or 0
    if pa.types.is_string(keys.type) or pa.types.is_large_string(keys.type):
        missing += pc.sum(pc.equal(keys, "")).as_py() or 0
    if missing:
        raise InputError(
            f"{path}: the key '{key}' is empty in {counted(missing, 'row', 'rows')}. Fill it, or name another column: "
            "--key."
        )
    counts = pc.value_counts(keys)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values").to_pylist()
    if twice:
        raise InputError(
            f"{path}: each row needs its own key, and '{key}' repeats {counted(len(twice), 'key', 'keys')}: "
            f"{_listed(twice)}. Remove the duplicate rows, or name another column: --key."
        )


def _filled(path: Path, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = _text(path, name, "--text", column)
    return pc.fill_null(pc.not_equal(pc.utf8_trim_whitespace(text), ""), fill_value=False)


def _text(path: Path, name: str, option: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_nested(column.type) or pa.types.is_binary(column.type):
        raise click.UsageError(
            f"{path}: the column {name!r} ({option}) is of type {column.type}. Name a column of text."
        )
    return column.cast(pa.string())


def _days(path: Path, name: str, column: pa.ChunkedArray) -> list[str]:
    days: list[str] = pc.unique(pc.utf8_slice_codeunits(pc.fill_null(column.cast(pa.string()), ""), 0, 10)).to_pylist()
    wrong = [day for day in days if not _is_day(day)]
    if wrong:
        raise InputError(
            f"{path}: the column '{name}' (--day) has {_listed(wrong)}, which is no date. Write dates as 2026-01-31, "
            "or leave --day out."
        )
    return days


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _label_column(path: Path, names: Sequence[str], key: str) -> str:
    others = [name for name in names if name != key]
    if key in names and len(others) != 1:
        found = (
            f"has the columns {', '.join(others)} beside the key" if others else f"has no column but the key {key!r}"
        )
        raise click.UsageError(f"{path} {found}. Name the one with the right labels: --gold-column NAME.")
    return next(iter(others), key)


def _listed(values: Iterable[object]) -> str:
    known = [repr(cell_text(str(value), limit=60)) for value in values]
    more = f" and {len(known) - _SHOWN:,} more" if len(known) > _SHOWN else ""
    return ", ".join(known[:_SHOWN]) + more
