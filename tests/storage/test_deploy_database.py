"""docs/deploy/database.sql on a real server: its roles can do the ledger's work, and nothing more."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import psycopg2
import pyarrow as pa
import pytest
import sqlalchemy as sa
from pg_cluster import Cluster, server_binaries
from sqlalchemy import event

from dagster_llm_batch.cli.main import main
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import LedgerError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

SCRIPT = Path(__file__).resolve().parents[2] / "docs" / "deploy" / "database.sql"
PASSWORDS = {"DAGSTER_PG_PASSWORD": "d1", "LEDGER_OWNER_PASSWORD": "o1", "LEDGER_PASSWORD": "l1"}
ROLES = ("dagster", "llm_batch", "llm_batch_owner")
RIGHTS = {"SELECT", "INSERT", "UPDATE", "DELETE"}
LABELS = Labeling(asset="labels", model="openai/gpt-4o", key="id", prompt=Prompt(user="{{ text }}"), response=None)
ROWS = pa.table({"id": ["t0", "t1", "t2"], "text": ["One.", "Two.", "Three."]})


@pytest.fixture
def cluster(postgres_cluster: Cluster) -> Iterator[Cluster]:
    """Run the script as the administrator runs it; yield its cluster."""
    binaries = server_binaries()
    assert binaries is not None
    # A link on the path leads to the folder of all programs.
    psql = (binaries / "initdb").resolve().with_name("psql")
    address = ("-h", str(postgres_cluster.home), "-U", "dlb", "-d", "postgres")
    command = [str(psql), "--quiet", *address, "-f", str(SCRIPT)]
    try:
        subprocess.run(command, check=True, env={**os.environ, **PASSWORDS})
        yield postgres_cluster
    finally:
        for database in ("dagster", "llm_batch"):
            postgres_cluster.execute(f"DROP DATABASE IF EXISTS {database} WITH (FORCE)")
        for role in ROLES:
            postgres_cluster.execute(f"DROP ROLE IF EXISTS {role}")


def url(cluster: Cluster, role: str, database: str = "llm_batch") -> str:
    return f"postgresql://{role}@/{database}?host={cluster.home}"


def work(ledger: Ledger, payloads: Path, emulator: Emulator) -> None:
    """Do what daemon, runs and command line do: submit, collect, deliver, erase and prune."""
    provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
    engine = Engine(Deployment({"openai": provider}, ledger, PayloadStore(payloads), "test", sleep=lambda _: None))
    submission = engine.plan(LABELS, ROWS)
    engine.submit(LABELS, submission.submission_id)
    emulator.settle()
    assert engine.advance(LABELS, submission.submission_id).is_settled
    assert engine.labels(LABELS, submission.submission_id).labels.num_rows == 3
    ledger.submissions.mark_delivered(submission.submission_id)
    engine.eraser.add_tombstones("labels", ["t0"], None)
    assert engine.eraser.erase("labels") == []
    engine.prune(timedelta(days=1), timedelta(days=1), delete=True)


def test_the_owner_makes_the_tables_by_the_command_of_the_page_and_the_role_of_runs_works_with_them(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    early = Ledger(url(cluster, "llm_batch"))
    # Before the owner creates the tables, the role of runs cannot change any, and its error names the missing right.
    with pytest.raises(LedgerError, match=r"permission denied for schema public.*Nothing was changed"):
        early.submissions.list_all("test")
    early.close()
    monkeypatch.setenv("DAGSTER_LLM_BATCH_LEDGER", url(cluster, "llm_batch_owner"))
    monkeypatch.setattr("sys.argv", ["dagster-llm-batch", "list"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in {0, None}, capsys.readouterr().out

    used: set[str] = set()

    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        used.add(statement.split(maxsplit=1)[0].upper())

    event.listen(sa.engine.Engine, "before_cursor_execute", note)
    try:
        ledger = Ledger(url(cluster, "llm_batch"))
        with Emulator() as emulator:
            work(ledger, tmp_path / "payloads", emulator)
        ledger.close()
    finally:
        event.remove(sa.engine.Engine, "before_cursor_execute", note)
    # Each right that is granted is used.
    assert used == RIGHTS


def test_the_role_of_runs_has_no_other_right_than_to_read_and_write_rows(cluster: Cluster) -> None:
    owner = Ledger(url(cluster, "llm_batch_owner"))
    owner.submissions.list_all("test")
    owner.close()
    with psycopg2.connect(host=str(cluster.home), user="dlb", dbname="llm_batch") as connection:
        cursor = connection.cursor()
        cursor.execute(
            "SELECT table_name, privilege_type FROM information_schema.table_privileges WHERE grantee = 'llm_batch'"
        )
        granted: dict[str, set[str]] = {}
        for table, right in cursor.fetchall():
            granted.setdefault(table, set()).add(right)
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        tables = {table for (table,) in cursor.fetchall()}
        assert {"submission", "shard", "lease", "schema_version"} <= tables
        assert granted == dict.fromkeys(tables, RIGHTS)
        powerful = "SELECT rolname FROM pg_roles WHERE rolname = ANY(%s) AND (rolsuper OR rolcreatedb OR rolcreaterole)"
        cursor.execute(powerful, (list(ROLES),))
        assert cursor.fetchall() == []
    connection.close()


@pytest.mark.parametrize(
    ("role", "database", "statement"),
    [
        ("llm_batch", "llm_batch", "CREATE TABLE other (id int)"),
        ("llm_batch", "llm_batch", "CREATE TEMPORARY TABLE other (id int)"),
        ("llm_batch", "dagster", "SELECT 1"),
        ("llm_batch_owner", "dagster", "SELECT 1"),
        ("dagster", "llm_batch", "SELECT 1"),
    ],
)
def test_no_role_reaches_what_is_another_ones(cluster: Cluster, role: str, database: str, statement: str) -> None:
    with pytest.raises(psycopg2.Error, match="permission denied"):
        psycopg2.connect(url(cluster, role, database)).cursor().execute(statement)


def test_dagsters_role_may_make_tables_in_its_own_database(cluster: Cluster) -> None:
    connection = psycopg2.connect(url(cluster, "dagster", "dagster"))
    connection.cursor().execute("CREATE TABLE runs (id int)")
    connection.close()
