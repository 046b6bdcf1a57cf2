"""A connection to the ledger's database: SQLite (a file) or PostgreSQL (a URL), with the same guarantees on both.

1. A transaction commits as a whole or leaves nothing. On SQLite a writer first takes the write lock (BEGIN IMMEDIATE),
   so its reads stay true until it commits. On PostgreSQL it locks the rows that it decides about.
2. A committed transaction survives a crash (SQLite: WAL with `synchronous=FULL`).
3. Errors are raised as LedgerError. Messages and reprs contain neither the password nor the query of the URL.
4. A process that is frozen within a transaction blocks the others for a minute on PostgreSQL. Then the database ends
   its session and rolls the transaction back, and the process gets an error when it wakes. SQLite cannot take its lock
   away: other processes wait for half a minute, then raise an error.
5. On PostgreSQL, a machine with a wrong clock is refused: it would take leases that others hold, and pay twice.

Refuses SQLite in memory: a ledger that dies with its process cannot keep its guarantees.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError, StatementError

from dagster_llm_batch.errors import LedgerError, MissingExtraError
from dagster_llm_batch.storage.ledger.migrations import LATEST, VERSION, is_current, migrate, refuse_other_version
from dagster_llm_batch.text import plain_words

__all__ = ["Database", "insert_or_nothing", "utc_now"]

_BUSY_SECONDS = 30
_FROZEN_SECONDS = 60  # as long as a lease: a process that sleeps longer within a transaction has lost its lease
_CLOCKS_APART = timedelta(seconds=30)  # at most: half of the time for which a lease is renewed
# SQLAlchemy decodes it from 2.1 on; a URL must name the same ledger before and after an upgrade
_DECODES_DATABASE = sa.make_url("sqlite:///%20").database == " "


def utc_now() -> datetime:
    """Return the present time, aware, in UTC."""
    return datetime.now(UTC)


class Database:
    """Cheap to build: the first transaction connects, creates the file or the tables, and migrates.

    Args:
            url: A path of SQLite, or a URL.
            clock: Returns the current time, aware. Compared with PostgreSQL's clock.
            version: The schema version to migrate to. A ledger with a newer one is refused.
    """

    def __init__(
        self,
        url: str | PathLike[str],
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        *,
        version: int = LATEST,
    ) -> None:
        self._url = _parse(url)
        self._clock = clock
        self._version = version
        self._engine: sa.Engine | None = None
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Database({self.shown_url!r})"

    @property
    def shown_url(self) -> str:
        """The URL to show: without password and query, which may contain secrets."""
        return self._url.set(query={}).render_as_string(hide_password=True)

    @property
    def is_file(self) -> bool:
        """Whether the database is an SQLite file, which is safe between the processes of one machine."""
        return self._url.get_backend_name() == "sqlite"

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Open a transaction that only reads."""
        with self._translated(), _transaction(self._ready()) as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Open a transaction that writes. An exception inside rolls it back.

        Raises LedgerError if another version of this package has migrated the ledger since this process opened it.
        """
        with self._translated(), _transaction(self._ready(), writes=True) as connection:
            # Plain text for the driver: each write runs it, and SQLAlchemy's layer would double the time of a write.
            if connection.exec_driver_sql(VERSION).scalar_one() != self._version:
                refuse_other_version(connection, self._version)
            yield connection

    def close(self) -> None:
        """Close the connections. A later transaction opens new ones."""
        with self._lock:
            if self._engine is not None:
                self._engine.dispose()
            self._engine = None

    def _ready(self) -> sa.Engine:
        with self._lock:
            if self._engine is None:
                engine = _engine(self._url, self._clock)
                try:
                    with _transaction(engine) as connection:
                        current = is_current(connection, self._version)
                    if not current:
                        with _transaction(engine, writes=True) as connection:
                            migrate(connection, self._version)
                except BaseException:
                    engine.dispose()
                    raise
                self._engine = engine
            return self._engine

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except SQLAlchemyError as error:
            if isinstance(error, StatementError) and not isinstance(error, DBAPIError) and error.orig is not None:
                # A column of `schema.py` refused a value before the database was asked.
                raise error.orig from None
            # Only the driver's own words: SQLAlchemy's text repeats the whole statement.
            # A driver may use several lines, and end with a question: "Is the server running?"
            reason = plain_words(getattr(error, "orig", None) or type(error).__name__).rstrip(".?")
            raise LedgerError(
                f"The ledger at {self.shown_url} could not do this: {reason}. Nothing was changed. "
                "Check that it can be reached and written, then try again."
            ) from error


def insert_or_nothing(connection: sa.Connection, table: sa.Table, row: Mapping[str, Any], *once: str) -> bool:
    """Insert a row unless another one has the same values in `once`, a unique key; return whether it was inserted."""
    return connection.execute(_insert_or_nothing(table, once), row).rowcount > 0


# Plain text, which both databases accept. SQLAlchemy has one construct for ON CONFLICT per database, and compiles it
# each time.
@cache
def _insert_or_nothing(table: sa.Table, once: tuple[str, ...]) -> sa.TextClause:
    # The database numbers these columns.
    columns = [column for column in table.c if column.autoincrement is not True]
    names = [column.name for column in columns]
    fields, values, key = (", ".join(words) for words in (names, [f":{name}" for name in names], once))
    text = f"INSERT INTO {table.name} ({fields}) VALUES ({values}) ON CONFLICT ({key}) DO NOTHING"  # noqa: S608  # ours
    return sa.text(text).bindparams(*(sa.bindparam(column.name, type_=column.type) for column in columns))


@contextmanager
def _transaction(engine: sa.Engine, *, writes: bool = False) -> Iterator[sa.Connection]:
    with engine.connect() as connection, connection.begin():
        if connection.dialect.name == "sqlite":  # its driver begins no transaction; see _on_connect
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
        yield connection


def _parse(url: str | PathLike[str]) -> sa.URL:
    text = os.fspath(url)
    if "://" not in text:
        if text == ":memory:":
            return _refuse_memory()
        return sa.URL.create("sqlite", database=str(Path(text).expanduser().absolute()))
    scheme = text.partition("://")[0]
    try:
        parsed = sa.make_url(text)
    except Exception:  # noqa: BLE001  # the parser's messages may hold parts of the URL
        raise LedgerError(
            f"The ledger URL (of scheme '{scheme}') cannot be read. A ledger is a path, sqlite:///path "
            "or postgresql://user:password@host/database, special characters percent-encoded."
        ) from None
    backend = parsed.drivername.partition("+")[0]
    if backend not in {"sqlite", "postgresql"} or "@" in (parsed.host or ""):
        raise LedgerError(
            f"The ledger URL (of scheme '{scheme}') is not one that works. A ledger is a path, sqlite:///path "
            "or postgresql://user:password@host/database, special characters percent-encoded."
        )
    if parsed.database and not _DECODES_DATABASE:
        parsed = parsed.set(database=unquote(parsed.database))
    if backend == "sqlite" and (parsed.database in {None, "", ":memory:"} or "mode=memory" in text):
        return _refuse_memory()
    return parsed


def _refuse_memory() -> sa.URL:
    raise LedgerError(
        "A ledger in memory would lose the records of paid batches. Give it a path, sqlite:///path, or postgresql://…"
    )


def _engine(url: sa.URL, clock: Callable[[], datetime]) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url)
    if url.drivername == "postgresql":  # the extra's driver; SQLAlchemy's own choice is psycopg 3 from 2.1 on
        url = url.set(drivername="postgresql+psycopg2")
    try:
        batched = {"executemany_mode": "values_plus_batch"} if url.get_driver_name() == "psycopg2" else {}
        engine = sa.create_engine(url, hide_parameters=True, pool_pre_ping=True, **batched)
    except ImportError:
        raise MissingExtraError("postgres", "A ledger in PostgreSQL") from None
    event.listen(engine, "connect", _set_up_session)
    event.listen(engine, "connect", lambda connection, _: _refuse_wrong_clock(connection, clock))
    return engine


def _set_up_session(connection: Any, _record: Any) -> None:
    """Make a commit return only once it is on disk, and make the server end a session that sleeps in a transaction."""
    with connection.cursor() as cursor:
        # If a crash of the database lost an intent to send, the requests would be sent, and paid for, twice.
        cursor.execute(
            "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
        )
        # All others wait for the rows that a frozen process has locked. A shorter time of the database is kept.
        cursor.execute(
            "SELECT set_config(name, %s, false) FROM pg_settings WHERE name = 'idle_in_transaction_session_timeout' "
            "AND setting::bigint NOT BETWEEN 1 AND %s",
            (f"{_FROZEN_SECONDS}s", _FROZEN_SECONDS * 1000),
        )
    connection.commit()


def _refuse_wrong_clock(connection: Any, clock: Callable[[], datetime]) -> None:
    """Raise LedgerError if this machine's clock and the database's are more than half a minute apart."""
    with connection.cursor() as cursor:
        before = clock()
        cursor.execute("SELECT clock_timestamp()")
        ours, theirs = clock(), cursor.fetchone()[0]
    connection.commit()
    if not before - _CLOCKS_APART <= theirs <= ours + _CLOCKS_APART:
        raise LedgerError(
            f"This machine's clock shows {ours:%Y-%m-%d %H:%M:%S} UTC, but the clock of the ledger's database shows "
            f"{theirs.astimezone(UTC):%H:%M:%S}. Processes that disagree about the time would work on the same "
            "batches at once. Nothing was done. Set the clocks (NTP), then run again."
        )


def _sqlite_engine(url: sa.URL) -> sa.Engine:
    assert url.database is not None  # _parse refuses it
    _create_private(Path(url.database))
    engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": _BUSY_SECONDS})
    event.listen(engine, "connect", _on_connect)
    return engine


def _create_private(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))  # SQLite's side files take its permissions
    except OSError as error:
        raise LedgerError(
            f"The ledger file {path} cannot be opened, or created, for writing: {error.strerror}. Give a path that can."
        ) from error


def _on_connect(connection: sqlite3.Connection, _record: Any) -> None:
    connection.isolation_level = None  # the driver begins no transaction: `_transaction` does
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = FULL")
    if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
        _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))


def _patiently(change: Callable[[], object]) -> None:
    """Repeat the change until other processes let it through: SQLite does not wait for the journal mode."""
    give_up_at = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            change()
        except sqlite3.OperationalError:
            if time.monotonic() > give_up_at:
                raise
            time.sleep(0.02)
        else:
            return
