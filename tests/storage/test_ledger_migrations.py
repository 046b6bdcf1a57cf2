"""The migrated database is the one that the tables describe; a newer one is refused."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from ledger_builders import a_submission

from dagster_llm_batch.errors import LedgerError
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.migrations import LATEST
from dagster_llm_batch.storage.tables import METADATA


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(ledger):
    ledger.submissions("prod")
    with ledger._database.read() as connection:
        inspector = sa.inspect(connection)
        assert set(inspector.get_table_names()) == {*METADATA.tables, "schema_version"}
        for name, table in METADATA.tables.items():
            found = {column["name"]: column["nullable"] for column in inspector.get_columns(name)}
            primary = set(table.primary_key.columns.keys())
            assert found.keys() == set(table.columns.keys())
            assert {column: null for column, null in found.items() if column not in primary} == {
                column.name: column.nullable for column in table.columns if column.name not in primary
            }


def test_a_ledger_that_is_newer_than_the_package_is_refused_and_left_alone(ledger, ledger_url):
    ledger.open(a_submission(), [])
    with ledger._database.write() as connection:
        connection.execute(sa.text(f"INSERT INTO schema_version (version) VALUES ({LATEST + 1})"))
    other = Ledger(ledger_url)
    for act in (lambda: other.submissions("prod"), lambda: other.open(a_submission("s2", attempt=2), [])):
        with pytest.raises(
            LedgerError, match=f"schema version {LATEST + 1}; this package knows versions up to {LATEST}"
        ):
            act()
    assert [submission.submission_id for submission in ledger.submissions("prod")] == ["s1"]


def test_a_database_that_is_not_a_ledger_is_a_clear_error(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(LedgerError, match="could not do this: file is not a database"):
        Ledger(tmp_path / "ledger.db").submissions("prod")


def test_a_migration_that_fails_leaves_no_trace(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path}/taken.db")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE event (mine TEXT)"))
    with pytest.raises(LedgerError, match="event"):
        Ledger(f"{tmp_path}/taken.db").submissions("prod")
    assert sa.inspect(engine).get_table_names() == ["event"]
    engine.dispose()
