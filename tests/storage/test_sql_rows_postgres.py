"""Rows of a query in a real PostgreSQL: read by a cursor on the server, in either commit mode of the connection."""

from types import SimpleNamespace

import psycopg2
import pytest
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from dagster_llm_batch import SqlRows
from dagster_llm_batch.core.rows import BATCH_ROWS
from dagster_llm_batch.errors import InputError


@pytest.mark.parametrize("autocommit", [False, True])
def test_rows_are_fetched_batch_by_batch_with_the_partition_as_a_parameter(postgres_cluster, autocommit):
    connection = psycopg2.connect(postgres_cluster.new_database().replace("postgresql+psycopg2", "postgresql"))
    connection.autocommit = autocommit
    query = "select 't' || i as id, %(partition_key)s as day from generate_series(1, 10000) i where i %% 100 <> 0"
    rows = SqlRows(sql=query, resource="warehouse")
    context = SimpleNamespace(resources=SimpleNamespace(warehouse=connection), partition_key="2026-01-01")
    batches = rows(context)
    first = next(batches)
    assert (first.num_rows, first.schema.names) == (BATCH_ROWS, ["id", "day"])
    rest = sum(batch.num_rows for batch in batches)
    assert first.num_rows + rest == 9_900
    assert first.column("day")[0].as_py() == "2026-01-01"
    connection.close()


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_function_that_writes_is_refused_and_what_the_owner_has_not_committed_stays(postgres_cluster, autocommit):
    connection = psycopg2.connect(postgres_cluster.new_database().replace("postgresql+psycopg2", "postgresql"))
    connection.autocommit = autocommit
    cursor = connection.cursor()
    cursor.execute("create table seen (id int); insert into seen values (1)")
    cursor.execute("create function see() returns int language sql as 'insert into seen values (2) returning id'")
    for sql in ("select see() as id", "with more as (insert into seen values (3) returning id) select id from more"):
        context = SimpleNamespace(resources=SimpleNamespace(warehouse=connection), partition_key=None)
        with pytest.raises(InputError, match=r"read-only transaction|data-modifying"):
            list(SqlRows(sql=sql, resource="warehouse")(context))
    cursor.execute("insert into seen values (4)")
    connection.commit()
    cursor.execute("select array_agg(id order by id) from seen")
    assert cursor.fetchone() == ([1, 4],)
    connection.close()


@pytest.mark.parametrize("autocommit", [False, True])
def test_no_transaction_is_open_while_the_rows_are_used(postgres_cluster, autocommit):
    """Check this, since planning may take hours, and servers end sessions that are idle in a transaction."""
    connection = psycopg2.connect(postgres_cluster.new_database().replace("postgresql+psycopg2", "postgresql"))
    connection.autocommit = autocommit
    context = SimpleNamespace(resources=SimpleNamespace(warehouse=connection), partition_key=None)
    batches = SqlRows(sql="select i as id from generate_series(1, 10000) i", resource="warehouse")(context)
    next(batches)
    assert connection.info.transaction_status == TRANSACTION_STATUS_IDLE
    connection.cursor().execute("create table free (id int)")
    connection.commit()
    assert sum(batch.num_rows for batch in batches) == 10_000 - BATCH_ROWS
    connection.close()


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_connection_that_is_lost_is_told_as_the_database_said_it(postgres_cluster, autocommit):
    connection = psycopg2.connect(postgres_cluster.new_database().replace("postgresql+psycopg2", "postgresql"))
    connection.autocommit = autocommit
    context = SimpleNamespace(resources=SimpleNamespace(warehouse=connection), partition_key=None)
    with pytest.raises(InputError, match="server closed the connection"):
        list(SqlRows(sql="select pg_terminate_backend(pg_backend_pid()) as id", resource="warehouse")(context))
