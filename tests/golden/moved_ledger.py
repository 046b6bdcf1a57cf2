"""A kept ledger in PostgreSQL: every row of the file as the release left it, to be upgraded there."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.golden.package import Database

_NUMBERED = ("event", "judgment", "tombstone")


def move_ledger(file: Path, url: str) -> None:
    """Copy all rows of a SQLite ledger into an empty PostgreSQL database, whose tables get the file's own version."""
    with closing(sqlite3.connect(file)) as here:
        here.row_factory = sqlite3.Row
        [[version]] = here.execute("SELECT max(version) FROM schema_version")
        tables = {
            name: [dict(row) for row in here.execute(f"SELECT * FROM {name}")]
            for (name,) in here.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            )
        }
    made = Database(url, version=version)
    with made.read():
        pass
    made.close()
    there = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg2:", 1))
    schema = sa.MetaData()
    schema.reflect(there)
    assert schema.tables.keys() == tables.keys()
    with there.begin() as connection:
        for table in schema.sorted_tables:
            found = [] if table.name == "schema_version" else tables[table.name]
            assert all(row.keys() == set(table.columns.keys()) for row in found), table.name
            if found:
                rows = [{name: _typed(table.c[name], value) for name, value in row.items()} for row in found]
                connection.execute(table.insert(), rows)
        for name in set(_NUMBERED) & tables.keys():
            sequence = f"pg_get_serial_sequence('{name}', '{name}_id')"
            connection.execute(sa.text(f"SELECT setval({sequence}, coalesce(max({name}_id), 1)) FROM {name}"))
    there.dispose()


def _typed(column: Any, value: Any) -> Any:
    if value is None:
        return None
    if isinstance(column.type, sa.DateTime):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    return bool(value) if isinstance(column.type, sa.Boolean) else value
