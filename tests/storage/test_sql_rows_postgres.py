"""Rows by a query, of a real PostgreSQL: by a cursor on the server, whichever way the connection commits."""

from types import SimpleNamespace

import psycopg2
import pytest

from dagster_llm_batch import SqlRows
from dagster_llm_batch.core.rows import BATCH_ROWS


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
