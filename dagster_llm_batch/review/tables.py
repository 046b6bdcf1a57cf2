"""Stored tables as pages of rows: filtered, counted and sorted in place.

DuckDB reads Parquet in place, so that a million rows need neither memory nor patience. Tables of another IO manager are
loaded by it, one partition at a time, and kept while they are viewed.

Queries are built of DuckDB's expressions over columns with names of our own (`stored_rows.py`): no text of a row or a
web address is ever read as SQL.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property, reduce
from operator import or_
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
from duckdb import ConstantExpression as Constant
from duckdb import FunctionExpression as Function
from upath import UPath

from dagster_llm_batch.addresses import FILTERS, Filter
from dagster_llm_batch.core.address_secrets import refuse_credentials
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import InputError, LLMBatchError
from dagster_llm_batch.review.stored_rows import (
    PARTITION,
    OpenTable,
    StoredRow,
    StoredTableError,
    open_arrow,
    open_files,
    sentence_of,
)

__all__ = ["PARTITION", "Facet", "Page", "StoredAsset", "StoredRow", "TableBrowser", "View", "status_of"]

_Answer = TypeVar("_Answer")

_WHERE = re.compile(rf"(.+?):({'|'.join(FILTERS)}):(.*)", re.DOTALL)
_PAGE_ROWS = 50
_MOST_VALUES = 30
_MOST_FACETS = 12
_LONGEST_VALUE = 200

# Told of every row; the rest is on its own page.
_FACETS_FIRST = (PARTITION, "llm_outcome", "label", "target", "gold")
_NO_FACETS = ("llm_request_id", "llm_batch_id", "llm_run_id", "llm_submitted_at", "llm_completed_at", "llm_reply")
_TABLES_KEPT = 4
_ANSWERS_KEPT, _LISTS_KEPT = 1_000, 8
"""Lists of rows may have millions of rows, unlike other answers that are kept."""
_NUMBER = re.compile(r"U?\w*INT|DOUBLE|FLOAT|DECIMAL\(\d+,\s*\d+\)")


@dataclass(frozen=True)
class StoredAsset:
    """A table of the deployment: where its partitions are, or how they are loaded.

    `files` has a file or folder of Parquet by partition ("" without partitions). `load` loads the partitions in
    `others`. `order` has the partitions in their order, the newest last; others come before them, by name.
    `hide` replaces personal data in a row, by its columns and the key column; None shows rows as stored.
    `hide_sent` replaces it in a request or a reply. `quotes` are the quoted columns by the fields of the answer that
    quote them. `keys` are the keys of datasets that the table is connected with. `gathers` is the dataset of parts
    whose labels the table gathers. `may_grow` is whether a sample draws more rows if its gold is not precise enough
    yet. `at` is the time of the last materialization. `before` returns the numbers in the metadata of a partition's
    materialization before the last, and `earlier` the materialized partitions before one in time, the newest first.
    """

    key: str
    dataset: str | None = None
    role: str = ""
    row_key: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    load: Callable[[str], Any] | None = None
    order: tuple[str, ...] = ()
    hide: Callable[[Mapping[str, Any], str], Mapping[str, Any]] | None = None
    hide_sent: Callable[[Any], Any] | None = None
    keys: tuple[str, ...] = ()
    quotes: Mapping[str, str] = field(default_factory=dict)
    gathers: str | None = None
    may_grow: bool = False
    at: datetime | None = None
    before: Callable[[str], Mapping[str, float]] = lambda _partition: {}
    earlier: Callable[[str], Sequence[str]] = lambda _partition: ()

    @property
    def asked(self) -> str | None:
        """The dataset whose prompt the rows, or their parts, were asked."""
        return self.gathers or self.dataset

    @cached_property
    def partitions(self) -> list[str]:
        """All partitions that there are rows of, the newest first."""
        places = {each: place for place, each in enumerate(self.order)}
        return sorted({*self.files, *self.others}, key=lambda each: (places.get(each, -1), each), reverse=True)


@dataclass(frozen=True)
class View:
    """A query on a table. `order` is a column, with a minus before it for the greatest first."""

    search: str = ""
    filters: tuple[Filter, ...] = ()
    order: str = ""
    page: int = 1

    @classmethod
    def of(cls, asked: Sequence[tuple[str, str]]) -> View:
        """Return the view from the query of an address."""
        given = dict(asked)
        found = [_WHERE.fullmatch(value) for name, value in asked if name == "where"]
        # A value that is not a filter asks for a column that does not exist, and is refused by that name.
        filters = [Filter(*match.groups()) if match else Filter("", "is") for match in found]
        if given.get("column"):
            filters.append(Filter(given["column"], given.get("kind", "is"), given.get("value", "")))
        number = given.get("page", "1")
        is_number = number.isascii() and number.isdecimal() and len(number) < 9  # noqa: PLR2004 - no table has more
        return cls(given.get("q", "").strip(), tuple(filters), given.get("order", ""), int(number) if is_number else 1)

    @property
    def is_narrow(self) -> bool:
        """Return whether rows may be left out."""
        return bool(self.search or self.filters)


@dataclass(frozen=True)
class Facet:
    """The values of a column as text, each with the number of rows that have it under the present filters."""

    column: str
    values: tuple[tuple[str | None, int], ...]


@dataclass(frozen=True)
class Page:
    """Some rows of a table. `total` counts those that pass the filters, `rows_at_all` all of them.

    `key` is the column that names a row, "" without such a column.
    """

    columns: tuple[str, ...]
    key: str
    rows: tuple[StoredRow, ...]
    total: int
    rows_at_all: int
    number: int
    facets: tuple[Facet, ...] = ()
    told: str | None = None

    @property
    def pages(self) -> int:
        return max(-(-self.total // _PAGE_ROWS), 1)


class TableBrowser:
    """Answers questions about stored tables. May be asked by several threads."""

    def __init__(self) -> None:
        # The database keeps nothing: it is in memory, and only reads.
        self._database = duckdb.connect(":memory:")
        self._lock = threading.Lock()
        self._systems: set[str] = set()
        self._loaded: dict[tuple[str, str], pa.Table] = {}
        self._answers: dict[Hashable, tuple[bytes, Any]] = {}
        self._lists: dict[Hashable, tuple[bytes, Any]] = {}
        self._times_forgotten = 0

    def read(self, asset: StoredAsset, view: View, partition: str | None = None, keys: Sequence[str] = ()) -> Page:
        """Return a page of the rows that pass, with facets. None is all partitions that lie in Parquet. A row is named
        by its table's key, or by the first of `keys` that is a column of the table.

        Raises InputError if a filter names no column of the table, and StoredTableError if it cannot be read.
        """

        def read_page(table: OpenTable) -> Page:
            passing = _passing(table, view)
            total = _count(passing)
            number = min(max(view.page, 1), max(-(-total // _PAGE_ROWS), 1))
            key = next((each for each in (asset.row_key, *keys) if each in table.columns), "")
            shown = table.sorted(passing, view.order).limit(_PAGE_ROWS, offset=(number - 1) * _PAGE_ROWS)
            return Page(
                table.columns,
                key,
                tuple(_shown(asset, table.read(shown, key), key)),
                total,
                _count(table.rows) if view.is_narrow else total,
                number,
                tuple(_shown_facets(asset, _facets(table, passing, key), key)),
                table.told,
            )

        return self._ask(asset, partition, read_page)

    def find(
        self, asset: StoredAsset, column: str, key: str, partition: str | None = None, most: int = 5
    ) -> list[StoredRow]:
        """Return the rows whose column holds this key, as text; empty if the table lacks the column."""

        def find_rows(table: OpenTable) -> list[StoredRow]:
            if column not in table.columns:
                return []
            found = table.read(table.rows.filter(table.text(column) == Constant(key)).limit(most), column)
            return _shown(asset, found, column)

        return self._ask(asset, partition, find_rows)

    def columns(self, asset: StoredAsset) -> set[str]:
        """Return the names of a table's columns, of its newest partition. Raises as `read`."""
        newest = asset.partitions[0] if asset.partitions else None
        return self._remember("columns", asset, newest, lambda table: set(table.columns))

    def rows_with(self, asset: StoredAsset, column: str, value: str, partition: str | None) -> Sequence[StoredRow]:
        """Return the rows whose column holds a value, as text, of a table that has few of them. Raises as `read`."""

        def find_rows(table: OpenTable) -> Sequence[StoredRow]:
            found = table.rows.filter(table.text(column) == Constant(value)).limit(_PAGE_ROWS)
            return _shown(asset, table.read(table.sorted(found)), "")

        return self._remember(("rows", column, value), asset, partition, find_rows)

    def counts(self, asset: StoredAsset) -> dict[str, int]:
        """Return the number of rows by partition, "" without partitions. Raises the errors of `read`."""
        return self._remember("counts", asset, None, OpenTable.counts)

    def find_all(
        self, asset: StoredAsset, column: str, keys: Sequence[str], partition: str | None = None
    ) -> list[StoredRow]:
        """Return the rows whose column holds one of these keys, as text; at most a page's rows for each key."""

        def find_rows(table: OpenTable) -> list[StoredRow]:
            if column not in table.columns or not keys:
                return []
            wanted = table.rows.filter(table.text(column).isin(*(Constant(key) for key in keys)))
            return _shown(asset, table.read(wanted.limit(_PAGE_ROWS * len(keys)), column), column)

        return self._ask(asset, partition, find_rows)

    def count_differing(self, asset: StoredAsset, column: str, other: str, partition: str | None) -> int:
        """Return in how many rows a column is empty or differs from another one, as text. Raises as `read`."""

        def count_rows(table: OpenTable) -> int:
            one = table.text(column)
            return _count(table.rows.filter(one.isnull() | (one != table.text(other))))

        return self._remember(("differing", column, other), asset, partition, count_rows)

    def count_values(self, asset: StoredAsset, column: str) -> Mapping[str, int]:
        """Return how often each value comes in a text column, or in its lists, of all partitions. Raises as `read`."""

        def count_each(table: OpenTable) -> Mapping[str, int]:
            if column not in table.columns:
                return {}
            values = table.column(column)
            lists = table.types[column].count("[]")
            for _ in range(lists - 1):
                values = Function("flatten", values)
            rows = table.rows.select((Function("unnest", values) if lists else values).alias("value"))
            found = rows.aggregate([duckdb.ColumnExpression("value"), Function("count").alias("n")], "value").fetchall()
            return {str(value): int(count) for value, count in found if value is not None}

        return self._remember(("values", column), asset, None, count_each)

    def _remember(
        self,
        what: Hashable,
        asset: StoredAsset,
        partition: str | None,
        question: Callable[[OpenTable], _Answer],
        kept: dict[Hashable, tuple[bytes, Any]] | None = None,
    ) -> _Answer:
        """Return the answer to a question, which is asked again only if the files have changed since."""
        answers, most = (self._answers, _ANSWERS_KEPT) if kept is None else (kept, _LISTS_KEPT)
        place = (what, asset.key, partition)
        # The state is read first: files that change meanwhile have another one the next time.
        state = self._state(asset, partition)
        with self._lock:
            known = answers.get(place)
        if known is not None and known[0] == state:
            found: _Answer = known[1]
            return found
        answer = self._ask(asset, partition, question)
        with self._lock:
            answers.pop(place, None)
            while len(answers) >= most:
                answers.pop(next(iter(answers)))
            answers[place] = (state, answer)
        return answer

    def _state(self, asset: StoredAsset, partition: str | None) -> bytes:
        """Return a digest that changes with the files of a table: with each file's size and time of the last change.

        In an object store, it changes with the next materialization: to ask for each file takes seconds. If no
        materialization is known, or an IO manager loads the table, it changes when the tables are listed again.
        """
        listed = asset.at or self._times_forgotten
        state = hashlib.blake2b(digest_size=16)
        state.update(repr(self._times_forgotten if asset.others else 0).encode())
        for each, place in _places(asset, partition).items():
            if not _is_local(UPath(place)):
                state.update(repr((each, place, listed)).encode())
                continue
            # An error is for the question, and a file may be replaced while it is looked at.
            with suppress(OSError):
                for file in self._parquet_files(place, each):
                    told = Path(file).stat()
                    state.update(repr((each, file, told.st_size, told.st_mtime_ns)).encode())
        return state.digest()

    def list_addresses(
        self, asset: StoredAsset, column: str, view: View | None = None, partition: str | None = None
    ) -> Sequence[tuple[str, str]]:
        """Return the partition ("" without) and key, as text, of each row that passes, in the order of the table. Keys
        with NUL are left out: databases cannot keep a judgment of them.

        Raises InputError if the table lacks this column, or a filter's column.
        """

        def list_rows(table: OpenTable) -> list[tuple[str, str]]:
            if column not in table.columns:
                raise InputError(f"{asset.key} has no column {column!r} that names its rows.")
            asked = view or View()
            found = table.addresses(table.sorted(_passing(table, asked), asked.order), column)
            return [each for each in dict.fromkeys(found) if "\0" not in each[1]]

        return self._remember((column, view), asset, partition, list_rows, self._lists)

    def _ask(self, asset: StoredAsset, partition: str | None, question: Callable[[OpenTable], _Answer]) -> _Answer:
        cursor = self._database.cursor()
        try:
            try:
                return question(self._open(cursor, asset, partition))
            # A column has types in two files that no third one holds.
            except duckdb.ConversionException:
                return question(self._open(cursor, asset, partition, apart=True))
        except LLMBatchError:
            raise
        # DuckDB, file systems and IO managers raise errors of any type.
        except Exception as error:
            words = f"{asset.key} cannot be read: {sentence_of(error)}"
            raise StoredTableError(f"{words} If a file is damaged, materialize its partition again.") from error
        finally:
            cursor.close()

    def _open(
        self, cursor: duckdb.DuckDBPyConnection, asset: StoredAsset, partition: str | None, *, apart: bool = False
    ) -> OpenTable:
        files = _places(asset, partition)
        if files:
            partition_of: dict[str, str] = {}
            for each, place in files.items():
                partition_of |= dict.fromkeys(self._parquet_files(place, each), each)
            if not partition_of:
                raise StoredTableError(f"The files of this table are gone: {', '.join(sorted(files.values())[:3])}.")
            return open_files(cursor, partition_of, apart=apart)
        wanted = partition if partition is not None else next(iter(asset.partitions), None)
        if wanted is None or wanted not in asset.others or asset.load is None:
            raise InputError(f"{asset.key} has nothing stored{f' of {partition}' if partition else ''}.")
        told = ""
        if len(asset.partitions) > 1:
            told = f"Its IO manager does not store Parquet: one partition is loaded at a time, here {wanted}."
        return open_arrow(cursor, self._load(asset, wanted), wanted, told)

    def _parquet_files(self, place: str, partition: str) -> list[str]:
        """Return the Parquet files of a partition, by their names.

        Many IO managers keep all partitions of a table in one folder, a file for each.
        """
        refuse_credentials(place, "path of the table")
        path = UPath(place)
        is_local = _is_local(path)
        if not is_local:
            with self._lock:
                if path.protocol not in self._systems:
                    self._database.register_filesystem(path.fs)
                    self._systems.add(path.protocol)
        if not path.is_dir():
            files = [path] if path.exists() else []
        elif partition and (own := path / f"{partition}.parquet").exists():
            files = [own]
        else:
            files = sorted(path.rglob("*.parquet"), key=str)
        return [file.path if is_local else str(file) for file in files]

    def _load(self, asset: StoredAsset, partition: str) -> pa.Table:
        place = (asset.key, partition)
        with self._lock:
            if (known := self._loaded.get(place)) is not None:
                return known
        assert asset.load is not None
        table = pa.Table.from_batches(list(record_batches(asset.load(partition))))
        with self._lock:
            while len(self._loaded) >= _TABLES_KEPT:
                self._loaded.pop(next(iter(self._loaded)))
            self._loaded[place] = table
        return table

    def forget(self) -> None:
        """Load and read stored tables again at the next request, except for Parquet files that are the same."""
        with self._lock:
            self._loaded.clear()
            self._times_forgotten += 1


def status_of(error: LLMBatchError) -> int:
    """Return the status of a page with this error: 400 for a wrong address, 502 for damaged stored data."""
    return 502 if isinstance(error, StoredTableError) else 400


def _places(asset: StoredAsset, partition: str | None) -> Mapping[str, str]:
    """Return the files or folders of a partition, or of all of them."""
    return asset.files if partition is None else {p: f for p, f in asset.files.items() if p == partition}


def _is_local(path: UPath) -> bool:
    return path.protocol in ("", "file")


def _passing(table: OpenTable, view: View) -> duckdb.DuckDBPyRelation:
    """Return the rows that pass search and filters."""
    rows = table.rows
    if view.search:
        texts = [name for name, kind in table.types.items() if kind == "VARCHAR" or kind.endswith(("]", ")"))]
        nothing = Constant(value=False)
        rows = rows.filter(reduce(or_, [_contains(table, name, view.search) for name in texts], nothing))
    for wanted in view.filters:
        if wanted.column not in table.columns:
            raise InputError(f"There is no column {wanted.column!r}; there are {', '.join(table.columns)}.")
        rows = rows.filter(_condition(table, wanted))
    return rows


def _facets(table: OpenTable, rows: duckdb.DuckDBPyRelation, key: str) -> Iterator[Facet]:
    """Yield the columns that have few values in all rows, some of them several times, with how often each comes in
    these. The key has one value for each row.
    """
    left_out = {*_NO_FACETS, key}
    plain = [
        name
        for name, kind in table.types.items()
        if name not in left_out and (kind in ("VARCHAR", "BOOLEAN") or "ENUM" in kind or name == "llm_attempt")
    ]
    if not plain:
        return
    counts = [Function("approx_count_distinct", table.column(name)) for name in plain]
    lengths = [Function("max", Function("length", table.text(name))) for name in plain]
    filled = [Function("count", table.column(name)) for name in plain]
    (found,) = table.rows.aggregate([*counts, *lengths, *filled]).fetchall()
    few = [
        name
        for at, name in enumerate(plain)
        if 1 < found[at] <= _MOST_VALUES
        and found[at + len(plain)] <= _LONGEST_VALUE
        and (name == PARTITION or _repeats(table, name, found[at + 2 * len(plain)]))
    ]
    few.sort(key=lambda name: (name not in _FACETS_FIRST, name.startswith("llm_")))
    for name in few[:_MOST_FACETS]:
        values = rows.aggregate([table.text(name).alias("value"), Function("count").alias("rows")])
        ranked = values.sort(duckdb.ColumnExpression("rows").desc(), duckdb.ColumnExpression("value"))
        yield Facet(name, tuple((value, count) for value, count in ranked.limit(_MOST_VALUES).fetchall()))


def _repeats(table: OpenTable, name: str, filled: int) -> bool:
    """Return whether a column of few values has one of them twice, with a value in so many rows."""
    # The number of few values is estimated, but not that wrong.
    if filled > 2 * _MOST_VALUES:
        return True
    values = table.rows.aggregate([table.text(name).alias("value"), Function("count", table.column(name)).alias("n")])
    return bool(values.filter(duckdb.ColumnExpression("n") > Constant(1)).limit(1).fetchall())


def _shown(asset: StoredAsset, rows: Sequence[StoredRow], key: str) -> list[StoredRow]:
    """Return the rows without values that the page hides."""
    if asset.hide is None:
        return list(rows)
    shown = []
    for row in rows:
        columns = asset.hide(row.columns, key)
        changed = frozenset(name for name, value in columns.items() if value != row.columns.get(name))
        shown.append(replace(row, columns=columns, hidden=changed))
    return shown


def _shown_facets(asset: StoredAsset, facets: Iterator[Facet], key: str) -> Iterator[Facet]:
    """Yield the facets without values that the page hides."""
    for facet in facets:
        if asset.hide is None:
            yield facet
            continue
        values = [each for each in facet.values if asset.hide({facet.column: each[0]}, key)[facet.column] == each[0]]
        if values:
            yield replace(facet, values=tuple(values))


def _count(rows: duckdb.DuckDBPyRelation) -> int:
    return int(rows.aggregate([Function("count")]).fetchall()[0][0])


def _condition(table: OpenTable, wanted: Filter) -> duckdb.Expression:
    column, text = table.column(wanted.column), table.text(wanted.column)
    match wanted.kind:
        case "null":
            return column.isnull()
        case "some":
            return column.isnotnull()
        case "is":
            return text == Constant(wanted.value)
        case "not":
            return column.isnull() | (text != Constant(wanted.value))
        case "has":
            return _contains(table, wanted.column, wanted.value)
        case "ge" | "le":
            if _NUMBER.fullmatch(table.types[wanted.column]):
                value, limit = column.cast(duckdb.type("DOUBLE")), Constant(_number(wanted))
            else:
                value, limit = text, Constant(wanted.value)
            return value >= limit if wanted.kind == "ge" else value <= limit
    raise InputError(f"There is no filter {wanted.kind!r}; there are {', '.join(FILTERS)}.")


def _number(wanted: Filter) -> float:
    try:
        return float(wanted.value)
    except ValueError:
        raise InputError(f"{wanted.column} is compared with a number; got {wanted.value!r}.") from None


def _contains(table: OpenTable, name: str, wanted: str) -> duckdb.Expression:
    return Function("contains", Function("lower", table.text(name)), Constant(wanted.lower()))
