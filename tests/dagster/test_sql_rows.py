"""Rows by a query, over DuckDB and drivers of the DB-API, in real runs; errors are reported before anything is sent."""

import resource
import signal
import sqlite3
import tracemalloc
from types import SimpleNamespace
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa
import pytest
from code_location import BATCH, DAILY, DAYS, LABELS, failure, labeled
from dagster_duckdb import DuckDBResource

from dagster_llm_batch import Mask, Prompt, SqlRows
from dagster_llm_batch.errors import ConfigError, InputError, PayloadError

TABLE = "create table tickets (ticket_id text, subject text, body text, day text)"
FILL = "insert into tickets select 't' || i, 'Subject ' || i, 'Body ' || i, '2026-01-0' || (1 + i % 2) from {range}"
WHOLE = "select ticket_id, subject, body from tickets"


@pytest.fixture
def warehouse(tmp_path):
    """Make a DuckDB with six tickets, three a day."""
    path = str(tmp_path / "warehouse.duckdb")
    with duckdb.connect(path) as connection:
        connection.execute(TABLE)
        connection.execute(FILL.format(range="range(6) r(i)"))
    return DuckDBResource(database=path)


def lite(rows: int = 6) -> sqlite3.Connection:
    """Return the same table in SQLite, through the DB-API; subjects are null at first, and mixed later."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute(TABLE)
    numbers = ((f"t{i}", f"Subject {i}" if i > 5_000 else None, f"Body {i}", DAYS[i % 2]) for i in range(rows))
    connection.executemany("insert into tickets values (?, ?, ?, ?)", numbers)
    return connection


def context(resource: Any, partition: str | None = None) -> Any:
    return SimpleNamespace(resources=SimpleNamespace(warehouse=resource), partition_key=partition)


def read(resource: Any, sql: str = WHOLE, partition: str | None = None) -> list[Any]:
    return list(SqlRows(sql=sql, resource="warehouse")(context(resource, partition)))


def test_labels_of_a_query_land_by_partition_with_the_partition_as_a_bound_parameter(make, emulator, warehouse):
    rows = SqlRows(sql=f"{WHOLE} where day = $partition_key", resource="warehouse")
    location = make(*labeled(rows=rows, partitions_def=DAILY, deps=["raw/tickets"]), resources={"warehouse": warehouse})
    for day in DAYS[:2]:
        assert location.land(partition=day).success
        records = location.metadata(LABELS, day)["llm_batch/preview"].records
        assert {record.data["ticket_id"] for record in records} == {f"t{i}" for i in range(6) if DAYS[i % 2] == day}
    node = location.defs.resolve_asset_graph().get(dg.AssetKey(BATCH))
    assert node.metadata["llm_batch/sql"].md_str == f"```\n{rows.sql}\n```"
    assert dg.AssetKey(["raw", "tickets"]) in node.parent_keys
    other = labeled(rows=SqlRows(sql=f"{rows.sql} limit 9", resource="warehouse"), partitions_def=DAILY)
    assert other[0].specs_by_key[dg.AssetKey(BATCH)].code_version != node.code_version


def test_the_connection_is_closed_when_the_rows_are_read(make, warehouse):
    location = make(*labeled(rows=SqlRows(sql=WHOLE, resource="warehouse")), resources={"warehouse": warehouse})
    assert location.submit().success
    # while one connection is open, DuckDB refuses other writers
    with duckdb.connect(warehouse.database, config={"threads": 1}) as connection:
        connection.execute("drop table tickets")


@pytest.mark.slow
def test_labels_of_a_connection_of_the_db_api_land_with_columns_that_are_null_at_first(make, emulator):
    """Read more rows than one fetch, without a subject in the first fetch."""
    rows = SqlRows(sql=WHOLE, resource="warehouse")
    resources = {"warehouse": dg.ResourceDefinition(lambda _: lite(6_000))}
    prompt = Prompt(user="{{ body }}")
    location = make(*labeled(rows=rows, keep=["subject"], prompt=prompt), resources=resources)
    assert location.land().success
    labels = location.defs.load_asset_value(LABELS, instance=location.instance)
    assert (len(labels), labels["subject"].drop_nulls().sort()[0]) == (6_000, "Subject 5001")


@pytest.mark.parametrize("named", [":partition_key", "?"])
def test_a_driver_is_given_the_partition_in_its_own_way(named):
    [batch] = read(lite(), f"{WHOLE} where day = {named}", DAYS[1])
    assert batch.column("ticket_id").to_pylist() == ["t1", "t3", "t5"]
    # text that looks like a query is a value
    [none] = read(lite(), f"{WHOLE} where day = {named}", "x' or '1' = '1")
    assert (none.num_rows, none.schema.names) == (0, ["ticket_id", "subject", "body"])


def test_a_result_without_rows_has_columns(warehouse):
    [batch] = read(warehouse, f"{WHOLE} where day = 'never'")
    assert (batch.num_rows, batch.schema.names) == (0, ["ticket_id", "subject", "body"])


def test_a_full_temporary_folder_is_not_said_to_be_a_query_that_failed():
    limit, heard = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limit[1]))
    try:
        with pytest.raises(PayloadError, match=r"temporary folder \S+ has no room: File too large"):
            read(lite(1_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, heard)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["duckdb", "sqlite"])
def test_a_large_result_is_never_whole_in_memory(warehouse, kind):
    """Read 200,000 rows of a kilobyte in a few megabytes of Python's and Arrow's memory."""
    many = "select 't' || i as ticket_id, repeat('x', 1000) as body from range(200000) r(i)"
    if kind == "sqlite":
        numbers = "with recursive n(i) as (select 0 union all select i + 1 from n where i < 199999)"
        many = f"{numbers} select 't' || i as ticket_id, printf('%1000d', i) as body from n"
    source = warehouse if kind == "duckdb" else lite()
    tracemalloc.start()
    before, most, count = pa.total_allocated_bytes(), 0, 0
    for batch in SqlRows(sql=many, resource="warehouse")(context(source)):
        count += batch.num_rows
        most = max(most, pa.total_allocated_bytes() - before)
        del batch
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 200_000
    assert max(most, peak) < 50_000_000


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("select * from nothing", "Table with name nothing does not exist"),
        ("selec 1", "syntax error"),
        ("select body from tickets", "ticket_id"),
        ("select ticket_id, cast(body as int) as subject, body from tickets", "ConversionException"),
    ],
)
def test_a_query_that_fails_or_lacks_a_column_is_told_and_nothing_is_sent(make, emulator, warehouse, sql, message):
    location = make(*labeled(rows=SqlRows(sql=sql, resource="warehouse")), resources={"warehouse": warehouse})
    result = location.submit()
    assert not result.success
    assert message in failure(result)
    assert "InputError" in failure(result)
    assert emulator.books.creates_seen == 0


def test_a_resource_that_is_not_there_is_refused_when_definitions_load(make):
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="resource with key 'warehouse' required by op"):
        make(*labeled(rows=SqlRows(sql=WHOLE, resource="warehouse"))).defs.resolve_implicit_global_asset_job_def()


def test_a_resource_that_is_no_connection_is_refused_with_what_is_taken():
    with pytest.raises(ConfigError, match="The resource 'warehouse' is a str; rows by a query need one with get_conn"):
        read("postgres://")


@pytest.mark.parametrize(
    ("sql", "partitions_def", "message"),
    [
        (f"{WHOLE} where day = $partition_key", None, "the dataset has no partitions"),
        (f"{WHOLE} where day::partition_key is null", DAILY, "the same for every partition"),
        (f"{WHOLE} -- where day = :partition_key", DAILY, "outside of comments and quotes"),
        (f"{WHOLE} /* for\n? */ where body <> 'it''s ?'", DAILY, "the same for every partition"),
        (f"{WHOLE} where day = '%(partition_key)s'", DAILY, "the same for every partition"),
        (WHOLE, DAILY, "the same for every partition, so that each would ask, and pay, for all rows"),
        (" ", None, "give a query and a resource"),
        ("update tickets set body = ''", None, "got a statement that begins with 'update'; rows come from one query"),
        ("-- daily\n(INSERT into tickets select 1)", None, "begins with 'INSERT'"),
        (f"{WHOLE}; drop table tickets", None, "got 2 statements; rows come from one query"),
        ("-- nothing", None, "got 0 statements"),
    ],
)
def test_what_cannot_be_meant_is_refused_when_definitions_load(sql, partitions_def, message):
    with pytest.raises(ConfigError, match=message):
        labeled(rows=SqlRows(sql=sql, resource="warehouse"), partitions_def=partitions_def)


@pytest.mark.parametrize("end", [";", ' where "a;b" = 1', " where body <> 'x;y'", " where body <> $a$;$a$ -- ;"])
def test_a_semicolon_that_ends_no_statement_is_no_second_one(end):
    assert SqlRows(sql=f"{WHOLE}{end}", resource="warehouse")


@pytest.mark.parametrize("column", ['"body -- as sent"', '"customer\'s"', '"a /* b"', "`it's`", "$$it's$$"])
def test_a_parameter_beside_a_name_in_quotes_is_seen(column):
    """Ignore the beginning of a comment or a text within a name."""
    sql = f"select {column} from tickets where day = :partition_key and subject = 'x' /* ' */"
    SqlRows(sql=sql, resource="warehouse").check_partitions(are_there=True)
    with pytest.raises(ConfigError, match="the dataset has no partitions"):
        SqlRows(sql=sql, resource="warehouse").check_partitions(are_there=False)


# Statements that change something, though their first word does not show it.
CHANGED = "with late as (select 't1' as id) update tickets set body = '' where ticket_id in (select id from late)"


def test_duckdb_is_not_given_what_is_no_query(warehouse):
    with warehouse.get_connection() as connection:
        for sql in (CHANGED, f"{CHANGED} returning ticket_id", "explain analyze delete from tickets"):
            with pytest.raises(InputError, match=r"DuckDB reads (UPDATE|EXPLAIN) here. Nothing was run"):
                read(SimpleNamespace(get_connection=warehouse.get_connection, cursor=None), sql)
        assert connection.execute("select count(*) from tickets where body <> ''").fetchone() == (6,)
    assert sum(batch.num_rows for batch in read(warehouse, "pivot tickets on day using count(*)"))


@pytest.mark.parametrize("returning", ["", " returning ticket_id, body"])
def test_sqlite_keeps_nothing_of_a_statement_that_is_no_query_and_all_that_its_owner_wrote(returning):
    """Leave the owner's transaction open: the owner has not committed yet, and writes on afterwards."""
    connection = lite()
    with pytest.raises(InputError, match="attempt to write a readonly database"):
        read(connection, CHANGED + returning)
    assert connection.execute("select count(*) from tickets where body <> ''").fetchone() == (6,)
    connection.execute("delete from tickets")
    connection.commit()


def test_a_driver_of_the_db_api_that_has_no_read_only_mode_rolls_back():
    """Stand for drivers such as MySQL's: the statement runs, and is not kept."""

    class Connection:
        def __init__(self) -> None:
            self._lite = lite()
            self._lite.commit()
            # such drivers begin a transaction before any statement, Python's SQLite before some of them
            self._lite.execute("begin")
            self.cursor, self.rollback = self._lite.cursor, self._lite.rollback

    connection = Connection()
    read(connection, f"{CHANGED} returning ticket_id")
    assert connection.cursor().execute("select count(*) from tickets where body <> ''").fetchone() == (6,)


def test_a_driver_without_transactions_may_refuse_to_roll_back():
    """Ignore refusals of drivers such as Trino's, Athena's, Databricks' and Hive's, which the DB-API allows."""

    class Connection:
        def __init__(self) -> None:
            self.cursor = lite().cursor

        def rollback(self) -> None:
            raise sqlite3.NotSupportedError("no transactions")

    assert sum(batch.num_rows for batch in read(Connection())) == 6
    with pytest.raises(InputError, match="no such table: no_table"):
        read(Connection(), "select * from no_table")


def test_rows_that_a_connection_gives_as_dicts_have_their_values():
    """Accept rows of DictCursor in PyMySQL, dict_row in psycopg, or this recipe of Python's own documentation."""
    connection = lite()
    connection.row_factory = lambda cursor, row: {
        column[0]: value for column, value in zip(cursor.description, row, strict=True)
    }
    connection.execute("pragma query_only = 1")
    [batch] = read(connection, f"{WHOLE} where day = ?", DAYS[1])
    assert batch.column("body").to_pylist() == ["Body 1", "Body 3", "Body 5"]
    assert connection.execute("pragma query_only").fetchone() == {"query_only": 1}


@pytest.mark.parametrize("driver", ["sqlite", "duckdb"])
def test_an_error_about_a_value_does_not_quote_it(make, emulator, warehouse, driver):
    """A mask could hide the value, and the run's log and its events have the message."""
    sql = f"select ticket_id, subject, {'cast(body as integer)' if driver == 'duckdb' else 'body'} as body from tickets"
    resource = warehouse
    if driver == "sqlite":
        resource = dg.ResourceDefinition(lambda _: mixed())
    prompt = Prompt(user="{{ body }}", mask=Mask(columns=["body"]))
    rows = SqlRows(sql=sql, resource="warehouse")
    location = make(*labeled(rows=rows, prompt=prompt), resources={"warehouse": resource})
    result = location.submit()
    error = failure(result)
    assert "may quote rows" in error
    assert sql[:20] in error
    events = "".join(str(entry) for entry in location.instance.all_logs(result.run_id))
    assert "Body 0" not in events
    assert "ann@example.com" not in events


def mixed() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.execute("create table tickets (ticket_id text, subject text, body)")
    connection.executemany("insert into tickets values (?, '-', ?)", [("t1", 5), ("t2", "ann@example.com")])
    return connection
