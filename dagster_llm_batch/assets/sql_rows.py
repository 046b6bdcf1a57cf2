"""Rows by a query, streamed: only a few thousand rows are in memory, however large the table is."""

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
"""Named parameters of the drivers: sqlite3 and Oracle, DuckDB, PostgreSQL and Snowflake. `::` is a cast."""
_QUOTED = re.compile(r"""--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|"[^"]*"|`[^`]*`|\$(\w*)\$.*?\$\1\$""", re.DOTALL)
"""Comments, texts and quoted names, whichever begins first. A parameter or a `;` in them does not count."""
_CHANGES = re.compile(
    r"\W*(alter|analyze|attach|begin|checkpoint|commit|copy|create|delete|detach|drop|export|grant|import|insert|install"
    r"|load|lock|merge|optimize|reindex|release|rename|replace|revoke|rollback|savepoint|set|start|truncate|undrop|unset"
    r"|update|upsert|use|vacuum)\b",
    re.IGNORECASE,
)
"""First words of statements that are not queries in any dialect."""
_DUCKDB_QUERIES = frozenset(["SELECT", "MULTI", "CALL"])
"""DuckDB's kinds of read-only statements. It counts `show` and `describe` as SELECT, and `pivot` as MULTI."""
_SERVER_SIDE = {"psycopg": "read_only", "psycopg2": "readonly"}
"""PostgreSQL drivers, which load the whole result unless the cursor has a name, with their read-only attributes."""


@checked
@dataclass(frozen=True, kw_only=True)
class SqlRows:
    """Rows by a query: `rows=SqlRows(sql="select id, body from tickets", resource="warehouse")`.

    The query is a constant of the definition. The partition is always a bound parameter, never part of the text. Write
    it in the form of the driver: `$partition_key` (DuckDB), `:partition_key` (sqlite3, Oracle) or `%(partition_key)s`
    (PostgreSQL, Snowflake). A driver with unnamed parameters gets the key for the one `?`. Name the assets that the
    query reads in `deps=`, for lineage and order.

    Rows are read, never changed. A statement that is not a query is refused before it runs. Changes by a query (through
    a function with side effects) are refused or rolled back, as far as the database can: SQLite and PostgreSQL read in
    read-only mode, and other drivers of the DB-API roll back. Changes that commit on their own there stay.

    Args:
        sql: One query, whose columns are the rows' columns. Its result is read once, in batches: from DuckDB as Arrow,
            from other drivers by `fetchmany` and through a file on the local disk. PostgreSQL uses a cursor on the
            server. A driver that fetches everything at once needs the memory for it.
        resource: Key of the Dagster resource with the connection. The resource is a connection of the DB-API, or its
            `get_connection()` opens one for a `with` block, like the resources of dagster-duckdb and dagster-snowflake.
    """

    sql: str
    resource: str

    def __post_init__(self) -> None:
        """Raise ConfigError unless there is exactly one statement, which does not change anything."""
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
        """A part of the submission's code version: after a change of the query, Dagster shows it as out of date."""
        return hashlib.sha256(self.sql.encode()).hexdigest()[:12]

    def check_partitions(self, *, are_there: bool) -> None:
        """Raise ConfigError if only the query or only the dataset has partitions."""
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
        """Yield the rows of one partition. Raises InputError with the database's message if the query fails."""
        source = getattr(context.resources, self.resource)
        try:
            with _connection(source, self.resource) as connection:
                yield from _batches(connection, self.sql, self._parameters(context.partition_key))
        except LLMBatchError:
            raise
        # Each driver has its own exceptions.
        except Exception as error:
            if _may_quote_rows(error):
                raise InputError(
                    f"rows: values of the query at the resource '{self.resource}' do not fit their types: "
                    f"{type(error).__name__}. The message is not shown, since it may quote rows. Nothing was sent. "
                    "Cast columns with values of several types to text in the query, and run it in the database to see "
                    f"the value. The query: {cell_text(self.sql, limit=500)}"
                ) from None
            said = cell_text(f"{type(error).__name__}: {error}", limit=1_000)
            raise InputError(
                f"rows: the query failed at the resource '{self.resource}': {said}. Nothing was sent. The query: "
                f"{cell_text(self.sql, limit=500)}"
            ) from error

    def _parameters(self, partition: str | None) -> dict[str, str] | list[str] | None:
        if partition is None:
            return None
        return {"partition_key": partition} if _PARTITION_KEY.search(_bare(self.sql)) else [partition]


def _may_quote_rows(error: Exception) -> bool:
    """Return whether the message is about a value, which a mask may hide: of Arrow, or a driver's DataError."""
    # PEP 249 gives the name to "problems with the processed data"; each driver has its own class.
    return isinstance(error, pa.ArrowException) or "DataError" in {kind.__name__ for kind in type(error).__mro__}


def _bare(sql: str) -> str:
    """Return a query without its comments, texts and quoted names."""
    return _QUOTED.sub(" ", sql)


@contextmanager
def _connection(source: Any, resource: str) -> Iterator[Any]:
    """Yield the connection of a resource. If the resource opens it, it is closed at the end."""
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
    """Yield the result. A result without rows is one empty batch, which has the columns."""
    driver = type(connection).__module__.partition(".")[0]
    if driver in ("duckdb", "_duckdb"):
        _refuse_changes(connection, sql)
        relation = connection.sql(sql, params=parameters)
        # DuckDB 2 renamed the method.
        read = getattr(relation, "to_arrow_reader", None) or relation.fetch_record_batch
        reader = read(BATCH_ROWS)
        yield next(reader, pa.RecordBatch.from_pylist([], schema=reader.schema))
        yield from reader
        return
    from dagster_llm_batch.storage.payloads import temporary_folder  # noqa: PLC0415 - a file system takes a while

    # With autocommit, such a cursor only survives its statement with `withhold`.
    named = {"name": "llm_batch_rows", "withhold": connection.autocommit} if driver in _SERVER_SIDE else {}
    with temporary_folder() as folder:
        path = str(folder / "rows")
        # The transaction ends before the rows are used, which may take hours: servers end idle transactions.
        with _read_only(connection, driver):
            cursor = connection.cursor(**named)
            with _undone(cursor.close):
                cursor.execute(sql, parameters) if parameters is not None else cursor.execute(sql)
                schemas = _store(_fetched(cursor), path)
        yield from _in_one_schema(path, schemas)


def _refuse_changes(connection: Any, sql: str) -> None:
    """Raise InputError if DuckDB does not read the statement as one query: it would run it immediately."""
    kinds = [statement.type.name for statement in connection.extract_statements(sql)]
    if len(kinds) != 1 or kinds[0] not in _DUCKDB_QUERIES:
        raise InputError(
            f"rows: give one query that changes nothing; DuckDB reads {' and '.join(kinds) or 'nothing'} here. "
            f"Nothing was run or sent. Got: {cell_text(sql, limit=500)}"
        )


@contextmanager
def _read_only(connection: Any, driver: str) -> Iterator[None]:
    """Undo changes of a statement within the block, and keep its owner's uncommitted changes."""
    if driver == "sqlite3":
        cursor = connection.cursor()
        # The owner's row factory may return dicts.
        cursor.row_factory = None
        [was] = cursor.execute("pragma query_only").fetchone()
        with _executed(connection, "pragma query_only = 1", f"pragma query_only = {was}"):
            yield
    # The owner has an open transaction unless the status is 0, which is idle.
    elif driver in _SERVER_SIDE and connection.info.transaction_status:
        # The setting ends with the savepoint, so that the owner's next statements may write.
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
            # The DB-API allows drivers without transactions, which may refuse or lack a rollback.
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
    """Call `undo` at the end. If the block fails, raise its own error, and not a later one from a lost connection."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            undo()
        raise
    undo()


def _fetched(cursor: Any) -> Iterator[pa.RecordBatch]:
    rows = cursor.fetchmany(BATCH_ROWS)
    # A server-side cursor has its columns once it has fetched.
    names = [column[0] for column in cursor.description]
    while True:
        # Some drivers and settings return dicts, and `zip` would take their keys.
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
    """Yield stored batches with types that fit all of them. The DB-API returns values without types: a column that is
    null at first may be text, a number or a date later. So all batches are stored on the local disk first.
    """
    whole = pa.unify_schemas(schemas, promote_options="permissive")
    with pa.OSFile(path) as file:
        for _ in schemas:
            yield pa.ipc.open_stream(file).read_all().cast(whole)
