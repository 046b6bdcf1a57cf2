"""The rows of one stored table as DuckDB reads them, whatever its files and columns are named.

While a table is asked, its columns are called `c0`, `c1` and so on. So they cannot clash with the added columns: the
number of a row's file, its line there, and its partition. Files are a list of names, never a pattern.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import duckdb
import pyarrow as pa
from duckdb import ColumnExpression as Column
from duckdb import ConstantExpression as Constant
from duckdb import FunctionExpression as Function

from dagster_llm_batch.errors import InputError

__all__ = ["PARTITION", "OpenTable", "StoredRow", "StoredTableError", "open_arrow", "open_files", "sentence_of"]

PARTITION = "partition"
"""The column that shows a row's partition, in a table that has no column of this name itself."""

_FILE, _LINE, _INSIDE = "file", "line", "inside"
_PLACES = (_INSIDE, _FILE, _LINE)
_Schema = tuple[tuple[str, str], ...]
_QUERY = (
    "SELECT file_index AS place, file_row_number AS line, * FROM "
    "read_parquet($files%d, union_by_name = true, hive_partitioning = false) AS t(%s)"
)
_SCHEMA = _QUERY.partition(" AS t(")[0] % 0
_MOST_NAMED = 3
_LONGEST_REASON = 300


class StoredTableError(InputError):
    """The stored files of a table are damaged or cannot be loaded."""


@dataclass(frozen=True)
class StoredRow(Mapping[str, Any]):
    """A row by the names of its columns; its partition ("" without partitions), and its key as text.

    `hidden` are the columns in which the page hides values.
    """

    columns: Mapping[str, Any]
    partition: str = ""
    key: str = ""
    hidden: frozenset[str] = frozenset()

    def __getitem__(self, name: str) -> Any:
        return self.columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)


class OpenTable:
    """A table while it is asked. `types` has DuckDB's type of each column; `told` is a note for its reader."""

    def __init__(self, rows: duckdb.DuckDBPyRelation, names: Sequence[str], told: str = "", *, inside: bool) -> None:
        self.rows, self.told = rows, told or None
        kinds = dict(zip(rows.columns, map(str, rows.types), strict=True))
        self._aliases = {PARTITION: _INSIDE} if inside and PARTITION not in names else {}
        self._aliases |= {name: f"c{number}" for number, name in enumerate(names)}
        self.types = {name: kinds[alias] for name, alias in self._aliases.items()}
        self.columns = tuple(self._aliases)

    def column(self, name: str) -> duckdb.Expression:
        """Return a column as an expression."""
        return Column(self._aliases[name])

    def text(self, name: str) -> duckdb.Expression:
        """Return a column's values as text."""
        return _as_text(self.column(name))

    def sorted(self, rows: duckdb.DuckDBPyRelation, order: str = "") -> duckdb.DuckDBPyRelation:
        """Return the rows sorted by a column, and then by their place in the files."""
        # Without a full order, two pages of a table could have the same row, and skip another row.
        places = [Column(name).asc() for name in _PLACES]
        name = order.removeprefix("-")
        if name in self._aliases:
            column = self.column(name)
            places.insert(0, (column.desc() if order.startswith("-") else column.asc()).nulls_last())
        return rows.sort(*places)

    def read(self, rows: duckdb.DuckDBPyRelation, key: str = "") -> list[StoredRow]:
        """Return rows, each named by the column `key`."""
        named = self.text(key) if key else Constant("")
        chosen = rows.select(Column(_INSIDE), named.alias("key"), *(self.column(name) for name in self.columns))
        return [
            StoredRow(dict(zip(self.columns, values, strict=True)), inside or "", text or "")
            for inside, text, *values in chosen.fetchall()
        ]

    def counts(self) -> dict[str, int]:
        """Return the number of rows by partition; the key is "" for a table without partitions."""
        found = self.rows.aggregate([Column(_INSIDE), Function("count").alias("n")], _INSIDE).fetchall()
        return {inside or "": int(count) for inside, count in found}

    def addresses(self, rows: duckdb.DuckDBPyRelation, key: str) -> list[tuple[str, str]]:
        """Return the partition and key, as text, of each row that has one."""
        found = rows.select(Column(_INSIDE), self.text(key).alias("key")).fetchall()
        return [(inside or "", text) for inside, text in found if text is not None]


def open_files(cursor: duckdb.DuckDBPyConnection, partition_of: Mapping[str, str], *, apart: bool) -> OpenTable:
    """Return the rows of Parquet files, with the partition of each; unreadable files are left out and named.

    `apart` reads files of different columns one after the other, and a column of several types as text.
    Raises StoredTableError if all files are unreadable.
    """
    groups: dict[_Schema, list[str]] = {}
    lost: list[str] = []
    why = ""
    try:
        if not apart:
            groups[_schema(cursor, list(partition_of))] = list(partition_of)
    except duckdb.Error:
        pass
    for file in () if groups else partition_of:
        try:
            groups.setdefault(_schema(cursor, [file]), []).append(file)
        except duckdb.Error as error:
            lost.append(file)
            why = sentence_of(error)
    if not groups:
        raise StoredTableError(f"The files of this table cannot be read: {why}")
    kinds: dict[str, set[str]] = {}
    for name, kind in (pair for each in groups for pair in each):
        kinds.setdefault(name, set()).add(kind)
    # A column of several types is read as text.
    columns = {name: next(iter(found)) if len(found) == 1 else "VARCHAR" for name, found in kinds.items()}
    places = {file: (number, partition_of[file]) for number, file in enumerate(partition_of)}
    parts = [
        _rows_of(cursor, number, {file: places[file] for file in group}, dict(own), columns)
        for number, (own, group) in enumerate(groups.items())
    ]
    rows = reduce(lambda one, other: one.union(other), parts)
    told = _told_of_lost(lost, len(partition_of)) if lost else ""
    return OpenTable(rows, list(columns), told, inside=set(partition_of.values()) != {""})


def open_arrow(cursor: duckdb.DuckDBPyConnection, table: pa.Table, partition: str, told: str) -> OpenTable:
    """Return the rows of a table that an IO manager loaded."""
    names = table.column_names
    renamed = table.rename_columns([f"c{number}" for number in range(len(names))])
    rows = cursor.from_arrow(renamed.append_column(_LINE, pa.array(range(len(table)), pa.int64())))
    placed = rows.select(Constant(partition).alias(_INSIDE), Constant(0).alias(_FILE), duckdb.StarExpression())
    return OpenTable(placed, names, told, inside=bool(partition))


def sentence_of(error: Exception) -> str:
    """Return the first line of an error as a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"{lines[0].rstrip('.: ')[:_LONGEST_REASON]}."


def _rows_of(
    cursor: duckdb.DuckDBPyConnection,
    part: int,
    places: Mapping[str, tuple[int, str]],
    own: Mapping[str, str],
    columns: Mapping[str, str],
) -> duckdb.DuckDBPyRelation:
    """Return the rows of one part of the files, each with the number and partition of its file, and its line.

    `own` are the columns of these files with their types; `columns` are the whole table's columns.
    """
    # The only text that is put in are numbers.
    query = _QUERY % (part, ", ".join(f"own{number}" for number in range(len(own))))
    rows = cursor.sql(query, params={f"files{part}": [_as_pattern(file) for file in places]})
    numbers, partitions = zip(*places.values(), strict=True)
    known = {"number": pa.array(range(len(places)), pa.uint64()), _FILE: list(numbers), _INSIDE: list(partitions)}
    joined = cursor.from_arrow(pa.table(known)).join(rows, Column("number") == Column("place"))
    shown = []
    for number, (name, kind) in enumerate(columns.items()):
        column = Column(f"own{list(own).index(name)}") if name in own else Constant(None)
        shown.append((column if own.get(name) == kind else column.cast(duckdb.type(kind))).alias(f"c{number}"))
    return joined.select(Column(_INSIDE), Column(_FILE), Column(_LINE), *shown)


def _schema(cursor: duckdb.DuckDBPyConnection, files: Sequence[str]) -> _Schema:
    """Return the names and types of the columns of files."""
    found = cursor.sql(_SCHEMA, params={"files0": [_as_pattern(file) for file in files]})
    return tuple(zip(found.columns[2:], map(str, found.types[2:]), strict=True))


def _told_of_lost(lost: Sequence[str], count: int) -> str:
    which = "its partition" if len(lost) == 1 else "their partitions"
    more = f" and {len(lost) - _MOST_NAMED:,} more" if len(lost) > _MOST_NAMED else ""
    return (
        f"{len(lost):,} of {count:,} files cannot be read, and {'is' if len(lost) == 1 else 'are'} left out: "
        f"{', '.join(lost[:_MOST_NAMED])}{more}. Materialize {which} again."
    )


def _as_pattern(file: str) -> str:
    """Return the pattern that this file alone has: DuckDB takes every name for one."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in file)


def _as_text(column: duckdb.Expression) -> duckdb.Expression:
    return column.cast(duckdb.type("VARCHAR"))
