"""Migration makes the described tables; an old ledger continues its work, and a newer one is refused.

Schema version 1 of the package wrote `version_1.sql` and `version_1.tar.gz` (payloads, and a command's files).
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import threading
from collections import Counter
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
import sqlalchemy as sa
from ledger_builders import OLD_SHARD, a_shard, a_submission, old_shard_row

from dagster_llm_batch import Limits
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.errors import LedgerError
from dagster_llm_batch.providers.command.provider import CommandProvider
from dagster_llm_batch.states import TRANSITIONS, ShardState, Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.database import Database
from dagster_llm_batch.storage.ledger.migrations import LATEST, MIGRATIONS
from dagster_llm_batch.storage.ledger.old_batches import OF_OLD_SHARDS
from dagster_llm_batch.storage.ledger.records import Bill, SubmissionState
from dagster_llm_batch.storage.ledger.schema import METADATA, SUBMISSION, to_row
from dagster_llm_batch.storage.payloads import PayloadStore
from tests.archives import unpack_archive

HERE = Path(__file__).parent
PUBLISHED = {1: "256cb0b7c7eb4dfe"}


def test_the_migrations_make_exactly_the_tables_that_the_code_uses(ledger):
    ledger.submissions.list_all("prod")
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


def described_shards(database):
    """Columns, keys and indexes of the table `shard`."""
    with database.read() as connection:
        inspector = sa.inspect(connection)
        columns = {each["name"]: (each["nullable"], each["default"]) for each in inspector.get_columns("shard")}
        keys = [inspector.get_pk_constraint("shard")["constrained_columns"], inspector.get_unique_constraints("shard")]
        foreign = [(key["constrained_columns"], key["referred_table"]) for key in inspector.get_foreign_keys("shard")]
        is_file = connection.dialect.name == "sqlite"
        indexes = "SELECT sql FROM sqlite_master WHERE tbl_name = 'shard' AND type = 'index'"
        found = connection.exec_driver_sql(
            indexes if is_file else "SELECT indexdef FROM pg_indexes WHERE tablename = 'shard'"
        )
        return columns, keys, foreign, set(found.scalars())


def test_bills_leave_the_table_of_shards_whose_keys_and_indexes_stay(ledger_url):
    older = Database(ledger_url, version=9)
    bills = [
        {"estimated_usd": "1.10", "bound_usd": "2", "reserved_usd": "0", "cost_usd": None, "replies": None},
        {"estimated_usd": None, "bound_usd": None, "reserved_usd": None, "cost_usd": "0.070000000001", "replies": 7},
    ]
    with older.write() as connection:
        submission = {key: value for key, value in to_row(a_submission()).items() if value is not None}
        connection.execute(sa.insert(SUBMISSION).values(submission))
        row = old_shard_row(a_shard())
        for number, bill in enumerate(bills):
            connection.execute(sa.insert(OLD_SHARD).values({**row, "shard_id": f"h{number}", "number": number}))
            of_bill = ", ".join(f"{name} = :{name}" for name in bill)
            connection.execute(sa.text(f"UPDATE shard SET {of_bill} WHERE shard_id = 'h{number}'"), bill)
    columns, *others = described_shards(older)
    older.close()
    ledger = Ledger(ledger_url)
    assert ledger.shards.of_submission("s1") == [
        a_shard("h0", number=0, estimated_usd=Decimal("1.10"), bound_usd=Decimal(2), reserved_usd=Decimal(0)),
        a_shard("h1", number=1, cost_usd=Decimal("0.070000000001"), replies=7),
    ]
    left, *same = described_shards(ledger._database)
    assert same[:2] == others[:2]
    # Those with columns of batches are others.
    assert {index for index in others[2] if index and "shard_caused" in index} <= same[2]
    assert columns.keys() - left.keys() == {field.name for field in dataclasses.fields(Bill)} | set(OF_OLD_SHARDS)
    of_batch = {"batch_key", "place", "sends", "sent_requests", "looked_at"}
    assert left.keys() - columns.keys() == {"reason_kind", "has_uploads", *of_batch}
    ledger.close()


def set_version(ledger, statement):
    with ledger._database.write() as connection:
        connection.execute(sa.text(statement))


def test_a_ledger_that_is_newer_than_the_package_is_refused_and_left_alone(ledger, ledger_url):
    ledger.submissions.open(a_submission(), [])
    set_version(ledger, f"INSERT INTO schema_version (version) VALUES ({LATEST + 1})")
    other = Ledger(ledger_url)
    for act in (
        lambda: other.submissions.list_all("prod"),
        lambda: other.submissions.open(a_submission("s2", attempt=2), []),
    ):
        with pytest.raises(
            LedgerError, match=f"schema version {LATEST + 1}; this package knows versions up to {LATEST}"
        ):
            act()
    assert [submission.submission_id for submission in ledger.submissions.list_all("prod")] == ["s1"]


def test_a_process_that_was_open_when_a_newer_package_migrated_writes_nothing_more(ledger):
    ledger.submissions.open(a_submission(), [a_shard()])
    with ledger.leases.hold("mine") as lease:
        set_version(ledger, f"INSERT INTO schema_version (version) VALUES ({LATEST + 1})")
        for act in (
            lambda: ledger.shards.move(a_shard().shard_id, Transition.SEND),
            lambda: ledger.leases.hold("other").__enter__(),
            lease.renew,
        ):
            with pytest.raises(LedgerError, match=f"schema version {LATEST + 1}; this package knows"):
                act()
    assert ledger.shards.get(a_shard().shard_id).state is ShardState.PLANNED


def test_a_migration_waits_for_those_who_write_by_the_version_before(new_ledger_url):
    url, order = new_ledger_url(), []
    older, newer = Database(url, version=LATEST - 1), Database(url)

    def migrate():
        with newer.read():
            order.append("migrated")

    thread = threading.Thread(target=migrate)
    with older.write() as connection:
        thread.start()
        thread.join(1)  # as long as it would take to pass the one that writes
        connection.execute(sa.text("INSERT INTO lease VALUES ('mine', 'me', '2026-01-01 00:00:00')"))
        order.append("written")
    thread.join()
    assert order == ["written", "migrated"]
    with pytest.raises(LedgerError, match=f"schema version {LATEST}; this package knows"), older.write():
        pass
    for database in (older, newer):
        database.close()


def test_a_process_under_which_an_older_backup_was_restored_writes_nothing_more(ledger):
    ledger.submissions.open(a_submission(), [a_shard()])
    set_version(ledger, f"DELETE FROM schema_version WHERE version = {LATEST}")
    with pytest.raises(LedgerError, match="restored from an older backup meanwhile"):
        ledger.shards.move(a_shard().shard_id, Transition.SEND)


def test_a_database_that_is_not_a_ledger_is_a_clear_error(tmp_path):
    (tmp_path / "ledger.db").write_bytes(b"not a database" * 1000)
    with pytest.raises(LedgerError, match="could not do this: file is not a database"):
        Ledger(tmp_path / "ledger.db").submissions.list_all("prod")


def test_a_migration_that_fails_leaves_no_trace(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path}/taken.db")
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE event (mine TEXT)"))
    with pytest.raises(LedgerError, match="event"):
        Ledger(f"{tmp_path}/taken.db").submissions.list_all("prod")
    assert sa.inspect(engine).get_table_names() == ["event"]
    engine.dispose()


# a ledger of version 1 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", PUBLISHED)
def test_a_published_migration_is_never_changed(number):
    digest = hashlib.blake2b("\n".join(MIGRATIONS[number - 1]).encode(), digest_size=8).hexdigest()
    assert digest == PUBLISHED[number]


@pytest.fixture
def version_1(ledger_url):
    """Return the URL of a ledger written by the package of version 1."""
    database = Database(ledger_url, version=1)
    with database.write() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL TIME ZONE 'UTC'")
        for statement in (HERE / "version_1.sql").read_text(encoding="utf-8").split(";\n")[:-1]:
            connection.exec_driver_sql(statement)
    with database.read() as connection:
        assert connection.execute(sa.text("SELECT max(version) FROM schema_version")).scalar_one() == 1
    database.close()
    return ledger_url


def test_what_version_1_wrote_is_all_there_after_migrating(version_1):
    ledger = Ledger(version_1)
    submissions = ledger.submissions.list_all("prod")
    assert Counter(submission.state for submission in submissions) == {
        SubmissionState.OPEN: 10, SubmissionState.SETTLED: 5, SubmissionState.CANCELED: 1,
    }  # fmt: skip
    shards = [shard for submission in submissions for shard in ledger.shards.of_submission(submission.submission_id)]
    states = {"canceled": 1, "collected": 7, "ended": 2, "expired": 1, "failed": 2, "planned": 2, "submitted": 3}
    assert Counter(shard.state.value for shard in shards) == {**states, "submitting": 1}
    assert {shard.model for shard in shards} == {"shouter", "gpt-4o"}
    [two_waves] = ledger.submissions.of_partition("prod", "two_waves")
    assert two_waves.cost_usd == Decimal("0.000225")
    assert two_waves.outcomes == {"succeeded": 4}
    assert two_waves.created_at.isoformat().endswith("+00:00")
    assert [event.kind for event in ledger.events.of_submission(two_waves.submission_id)].count("wave") == 1
    assert len(ledger.submissions.progress("prod")) == 15  # one was delivered
    assert len(ledger.shards.in_flight("prod")) == 4
    assert ledger.money.spent_usd("prod") > two_waves.cost_usd
    ledger.close()


def test_every_shard_of_version_1_takes_its_next_move(version_1):
    ledger = Ledger(version_1)
    for shard in [
        shard
        for submission in ledger.submissions.list_all("prod")
        for shard in ledger.shards.of_submission(submission.submission_id)
    ]:
        if shard.state is ShardState.COLLECTED:
            continue
        move = next(move for move, (sources, _) in TRANSITIONS.items() if shard.state in sources)
        fields = {"batch_id": f"batch-{shard.shard_id}"} if move.value == "accepted" else {}
        assert ledger.shards.move(shard.shard_id, move, **fields).state is TRANSITIONS[move][1]
    ledger.close()


def test_work_of_version_1_goes_on_and_nothing_of_it_is_run_again(version_1, tmp_path):
    home, ran = tmp_path / "home", tmp_path / "ran"
    unpack_archive(HERE / "version_1.tar.gz", home)
    labeler = HERE.parent / "providers" / "labeler.py"
    words = [sys.executable, "-S", str(labeler), "-i", "{input}", "-o", "{output}", "--model", "{model}"]
    command = CommandProvider([*words, "--runs", str(ran)], str(home / "command"), account="the labeler")
    engine = Engine(Deployment({"command": command}, Ledger(version_1), PayloadStore(str(home / "payloads")), "prod"))

    def land(day, count=3, **changes):
        rows = pa.table(
            {"id": [f"{day}-{i}" for i in range(count)], "body": [f"ticket {i} of {day}" for i in range(count)]}
        )
        usual = {"asset": "tickets", "model": "command/shouter", "key": "id", "prompt": Prompt(user="{{ body }}")}
        definition = Labeling(**usual, response=None, keep=["body"], **changes)
        submission = engine.plan(definition, rows, partition=day)
        while not engine.advance(definition, submission.submission_id).is_settled:
            pass
        labels = engine.labels(definition, submission.submission_id).labels
        assert labels["text"].to_pylist() == [text.upper() for text in rows["body"].to_pylist()]
        return submission.run_id

    settled, landed, submitted, ended = (f"2026-01-0{number}" for number in range(1, 5))
    assert land(settled) == "run-1"
    assert land(landed) == "run-2"
    assert land(submitted, limits=Limits(max_requests_per_batch=2)) == "run-3"
    assert land(ended) == "run-4"
    assert not ran.exists()
    assert land("2026-01-05") == "run-5"  # it was planned and not sent
    assert len(ran.read_text().splitlines()) == 1
    engine.ledger.close()
