"""Rows by a query, streamed: whatever the table holds, a few thousand rows of it are in memory."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.rows import BATCH_ROWS
from dagster_llm_batch.errors import ConfigError, InputError, LLMBatchError
from dagster_llm_batch.text import cell_text

if TYPE_CHECKING:
    from dagster_llm_batch.assets.rows_context import RowsContext

__all__ = ["SqlRows"]

_PARTITION_KEY = re.compile(r"(?<!:):partition_key\b|\$partition_key\b|%\(partition_key\)s")
"""How drivers write a named parameter: sqlite3 and Oracle, DuckDB, PostgreSQL and Snowflake. `::` is a cast."""
_QUOTED = re.compile(r"""--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"[^"]*"|`[^`]*`|\$(\w*)\$.*?\$\1\$""", re.DOTALL)
"""Comments, texts and names in quotes, whichever begins first: no parameter is bound and no statement ends in them."""
_CHANGES = re.compile(
    r"\W*(alter|analyze|attach|begin|checkpoint|commit|copy|create|delete|detach|drop|export|grant|import|insert|install"
    r"|load|lock|merge|optimize|reindex|release|rename|replace|revoke|rollback|savepoint|set|start|truncate|undrop|unset"
    r"|update|upsert|use|vacuum)\b",
    re.IGNORECASE,
)
"""First words of statements that are no query in any dialect."""
_DUCKDB_QUERIES = frozenset(["SELECT", "MULTI", "CALL"])
"""DuckDB's kinds of statements that only read. `show` and `describe` are a SELECT to it, and `pivot` is a MULTI."""
_SERVER_SIDE = {"psycopg": "read_only", "psycopg2": "readonly"}
"""Drivers of PostgreSQL, which hold the whole result unless the cursor has a name; and what sets them to read alone."""


@checked
@dataclass(frozen=True, kw_only=True)
class SqlRows:
    """Rows by a query: `rows=SqlRows(sql="select id, body from tickets", resource="warehouse")`.

    The query is a constant of the definition. Partitions reach it as a bound parameter alone, never as text: it names
    `partition_key` as its driver writes parameters, `$partition_key` (DuckDB), `:partition_key` (sqlite3, Oracle) or
    `%(partition_key)s` (PostgreSQL, Snowflake); a driver that knows only `?` is given the key for the one `?`. What the
    query reads is named in `deps=`, for lineage and order.

    Rows are read, never changed: a statement that is no query is refused before it runs, and what a query changes all
    the same (a function with side effects) is refused or rolled back, as far as its database can: SQLite and PostgreSQL
    read in read-only mode, other drivers of the DB-API roll back, and what commits by itself there stays.

    Args:
        sql: One query, whose columns are the rows' columns. Its result is read once, in batches: DuckDB's as Arrow,
            that of other drivers by `fetchmany`, through a file on the local disk. PostgreSQL gives it from a cursor
            on the server; a driver that fetches everything at once needs the memory for it.
        resource: Key of the Dagster resource with the connection: one whose `get_connection()` gives it for a `with`
            block, as those of dagster-duckdb and dagster-snowflake do, or a connection of the DB-API itself.
    """

    sql: str
    resource: str

    def __post_init__(self) -> None:
        """Raise ConfigError where there is no query, or more than one, or a statement that changes something."""
        if not self.sql.strip() or not self.resource:
            raise ConfigError(f"SqlRows(sql={self.sql!r}, resource={self.resource!r}): give a query and a resource.")
        statements = [part for part in _bare(self.sql).split(";") if part.strip()]
        changes = _CHANGES.match(statements[0]) if statements else None
        if changes or len(statements) != 1:
            got = f"a statement that begins with '{changes[1]}'" if changes else f"{len(statements)} statements"
            raise ConfigError(
                f"SqlRows(sql=…): got {got}; rows come from one query, which changes nothing. Prepare "
                f"tables in an asset upstream, and name it in deps=. The query: {cell_text(self.sql, limit=500)}"
            )

    @property
    def code_version(self) -> str:
        """A part of the code version of the submission: with another query, Dagster shows it as out of date."""
        return hashlib.sha256(self.sql.encode()).hexdigest()[:12]

    def check_partitions(self, *, are_there: bool) -> None:
        """Raise ConfigError where the query and the dataset do not agree on whether there are partitions."""
        sql = _bare(self.sql)
        named = _PARTITION_KEY.search(sql) is not None
        if named and not are_there:
            raise ConfigError(
                "rows: the query names partition_key, and the dataset has no partitions. Give partitions_def=, or take "
                "it out."
            )
        if are_there and not named and "?" not in sql:
            raise ConfigError(
                "rows: the query is the same for every partition, so that each would ask, and pay, for all rows. Name "
                "the partition in it, as in `where day = $partition_key` (DuckDB), `:partition_key` (sqlite3, Oracle), "
                "`%(partition_key)s` (PostgreSQL, Snowflake) or `?`, outside of comments and quotes."
            )

    def __call__(self, context: RowsContext) -> Iterator[pa.RecordBatch | pa.Table]:
        """Yield the rows of one partition. Raises InputError where the query fails, with what the database said."""
        source = getattr(context.resources, self.resource)
        try:
            with _connection(source, self.resource) as connection:
                yield from _batches(connection, self.sql, self._parameters(context.partition_key))
        except LLMBatchError:
            raise
        # a database raises whatever its driver has
        except Exception as error:
            said = cell_text(f"{type(error).__name__}: {error}", limit=1_000)
            raise InputError(
                f"rows: the query failed at the resource '{self.resource}': {said}. Nothing was sent. The query: "
                f"{cell_text(self.sql, limit=500)}"
            ) from error

    def _parameters(self, partition: str | None) -> dict[str, str] | list[str] | None:
        if partition is None:
            return None
        return {"partition_key": partition} if _PARTITION_KEY.search(_bare(self.sql)) else [partition]


def _bare(sql: str) -> str:
    """Return a query without its comments, texts and quoted names."""
    return _QUOTED.sub(" ", sql)


@contextmanager
def _connection(source: Any, resource: str) -> Iterator[Any]:
    """Give the connection of a resource; one that it opens is closed again."""
    if hasattr(source, "get_connection"):
        with source.get_connection() as connection:
            yield connection
    elif hasattr(source, "cursor"):
        yield source
    else:
        raise ConfigError(
            f"The resource '{resource}' is a {type(source).__name__}; rows by a query need one with get_connection(), "
            "such as DuckDBResource, or a connection of the DB-API."
        )


def _batches(connection: Any, sql: str, parameters: Any) -> Iterator[pa.RecordBatch | pa.Table]:
    """Yield the result. One without rows is one empty batch: it has columns."""
    driver = type(connection).__module__.partition(".")[0]
    if driver in ("duckdb", "_duckdb"):
        _refuse_changes(connection, sql)
        relation = connection.sql(sql, params=parameters)
        # DuckDB 2 has renamed it
        read = getattr(relation, "to_arrow_reader", None) or relation.fetch_record_batch
        reader = read(BATCH_ROWS)
        yield next(reader, pa.RecordBatch.from_pylist([], schema=reader.schema))
        yield from reader
        return
    from dagster_llm_batch.storage.payloads import temporary_folder  # noqa: PLC0415 - a file system takes a while

    # where each statement commits, such a cursor needs to be told to stay
    named = {"name": "llm_batch_rows", "withhold": connection.autocommit} if driver in _SERVER_SIDE else {}
    with temporary_folder() as folder:
        path = str(folder / "rows")
        # No transaction is open while rows are used, which may take hours: servers end those in which nothing happens.
        with _read_only(connection, driver):
            cursor = connection.cursor(**named)
            with _undone(cursor.close):
                cursor.execute(sql, parameters) if parameters is not None else cursor.execute(sql)
                schemas = _store(_fetched(cursor), path)
        yield from _in_one_schema(path, schemas)


def _refuse_changes(connection: Any, sql: str) -> None:
    """Raise InputError where DuckDB takes a statement for something else than a query: it would run it at once."""
    kinds = [statement.type.name for statement in connection.extract_statements(sql)]
    if len(kinds) != 1 or kinds[0] not in _DUCKDB_QUERIES:
        raise InputError(
            f"rows: one query is taken, which changes nothing; DuckDB reads {' and '.join(kinds) or 'nothing'} here. "
            f"Nothing was run, and nothing was sent. Got: {cell_text(sql, limit=500)}"
        )


@contextmanager
def _read_only(connection: Any, driver: str) -> Iterator[None]:
    """Keep nothing that a statement changes within the block, and leave what its owner has not committed as it is."""
    if driver == "sqlite3":
        cursor = connection.cursor()
        # the owner's may give dicts
        cursor.row_factory = None
        [was] = cursor.execute("pragma query_only").fetchone()
        with _executed(connection, "pragma query_only = 1", f"pragma query_only = {was}"):
            yield
    # a transaction of the owner's own is open unless the status is 0, which is idle
    elif driver in _SERVER_SIDE and connection.info.transaction_status:
        # The setting is undone with the savepoint: what the owner does next may write again.
        before = "savepoint llm_batch_rows; set local transaction_read_only = on"
        with _executed(connection, before, "rollback to savepoint llm_batch_rows"):
            yield
    elif driver in _SERVER_SIDE and connection.autocommit:
        with _executed(connection, "begin read only", "rollback"):
            yield
    elif driver in _SERVER_SIDE:
        was = getattr(connection, _SERVER_SIDE[driver])
        setattr(connection, _SERVER_SIDE[driver], True)
        with _undone(lambda: setattr(connection, _SERVER_SIDE[driver], was)), _undone(connection.rollback):
            yield
    else:
        try:
            yield
        finally:
            # The DB-API lets a driver have no transactions, and refuse this or lack it.
            with suppress(Exception):
                connection.rollback()


@contextmanager
def _executed(connection: Any, before: str, after: str) -> Iterator[None]:
    with closing(connection.cursor()) as cursor:
        cursor.execute(before)
        with _undone(lambda: cursor.execute(after)):
            yield


@contextmanager
def _undone(undo: Callable[[], object]) -> Iterator[None]:
    """Call `undo` at the end. Where the block has failed, its own error is told, not that of a connection now gone."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            undo()
        raise
    undo()


def _fetched(cursor: Any) -> Iterator[pa.RecordBatch]:
    rows = cursor.fetchmany(BATCH_ROWS)
    # of a server-side cursor, the columns are known once it has fetched
    names = [column[0] for column in cursor.description]
    while True:
        # some drivers and settings give dicts, which are their keys to zip
        values = [row.values() for row in rows] if rows and isinstance(rows[0], Mapping) else rows
        columns = list(zip(*values, strict=True)) or [()] * len(names)
        yield pa.RecordBatch.from_arrays([pa.array(column, from_pandas=True) for column in columns], names=names)
        if not (rows := cursor.fetchmany(BATCH_ROWS)):
            return


def _store(batches: Iterator[pa.RecordBatch], path: str) -> list[pa.Schema]:
    """Write the batches to a file, one stream each; return their schemas."""
    schemas = []
    with pa.OSFile(path, "wb") as file:
        for batch in batches:
            schemas.append(batch.schema)
            with pa.ipc.new_stream(file, batch.schema) as stream:
                stream.write_batch(batch)
    return schemas


def _in_one_schema(path: str, schemas: Sequence[pa.Schema]) -> Iterator[pa.Table]:
    """Yield stored batches with the types that hold for all of them. The DB-API gives values without types: a column
    that is null at first is text, a number or a date later on. So all of them pass through the local disk.
    """
    whole = pa.unify_schemas(schemas, promote_options="permissive")
    with pa.OSFile(path) as file:
        for _ in schemas:
            yield pa.ipc.open_stream(file).read_all().cast(whole)
