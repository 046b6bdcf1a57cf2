"""Flink tables. Runs in Flink's own environment."""

import sys

from pyflink.table import EnvironmentSettings, Table, TableEnvironment


def environment(settings: EnvironmentSettings) -> TableEnvironment:
    env = TableEnvironment.create(settings)
    env.get_config().set("parallelism.default", "1")
    for name in ("python.executable", "python.client.executable"):  # otherwise Flink uses the python of PATH
        env.get_config().set(name, sys.executable)
    env.get_config().set_local_timezone("UTC")
    env.get_config().set("python.fn-execution.arrow.batch.size", "1000")
    return env


def tickets(partition: str) -> Table:
    """Return the rows of a partition."""
    env = environment(EnvironmentSettings.in_batch_mode())
    rows = [(f"{partition}-{n}", f"Where is invoice {n}?", n % 2 == 0) for n in range(2_500)]
    return env.from_elements(rows, ["ticket_id", "body", "is_even"])


def times(partition: str) -> Table:
    """Return a row with each kind of value besides text that a request may contain."""
    env = environment(EnvironmentSettings.in_batch_mode())
    return env.sql_query(
        "SELECT 'a' AS ticket_id, TIMESTAMP '2026-01-01 10:00:00.500' AS wall, DATE '2026-01-02' AS day_of, "
        "CAST(1.25 AS DECIMAL(5, 2)) AS amount, CAST(NULL AS STRING) AS nothing, ARRAY['x', 'y'] AS tags"
    )


def immense(partition: str) -> Table:
    """Return a table with more rows than this machine holds."""
    env = environment(EnvironmentSettings.in_batch_mode())
    env.execute_sql(
        "CREATE TEMPORARY TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '2000000000')"
    )
    return env.sql_query("SELECT CAST(n AS STRING) AS ticket_id, 'Where is my invoice?' AS body FROM numbers")


def nothing(partition: str) -> Table:
    return tickets(partition).limit(0)


def broken(partition: str) -> Table:
    raise ValueError("the source is gone")


def windows() -> Table:
    """Return a stream of messages in windows of a minute, each with its window, in order."""
    env = environment(EnvironmentSettings.in_streaming_mode())
    env.execute_sql(
        "CREATE TEMPORARY VIEW messages AS SELECT * FROM (VALUES "
        "('t1', 'Charged twice', TIMESTAMP '2026-01-01 10:00:01'), ('t2', 'Stuck', TIMESTAMP '2026-01-01 10:00:59'), "
        "('t3', 'How do I log in?', TIMESTAMP '2026-01-01 10:01:01'), ('t4', 'Late', TIMESTAMP '2026-01-01 10:03:00')"
        ") AS t (ticket_id, body, sent_at)"
    )
    return env.sql_query(
        "SELECT ticket_id, body, DATE_FORMAT(FLOOR(sent_at TO MINUTE), 'yyyy-MM-dd-HHmm') AS minute_of FROM messages"
    )
