"""What the code of before left (`before.py`) goes on with the code of now, on both ledgers, and is not asked again."""

from __future__ import annotations

import os
import sqlite3
from datetime import UTC, datetime
from functools import partial

import pytest
import sqlalchemy as sa

from tests.crash.postgres import postgres
from tests.golden.before import MODELS, ROWS, answers, cases, definition, open_workspace, rows, unpack
from tests.golden.package import Ledger

ASKED = {
    "planned": 3,
    "second wave planned": 1,
    "doubtful, and lost": 3,
    "superseded": 1,
}
"""How many requests are still to be sent in a state; in the others all were. Two of the rows ask the same."""

_DAY_SECONDS, _STEP_SECONDS, _MOST_STEPS = 86_400.0, 3_600.0, 6


@pytest.fixture(scope="module")
def new_database():
    if os.environ.get("DLB_TEST_POSTGRES") == "0":
        pytest.skip("DLB_TEST_POSTGRES=0")
    with postgres() as empty_database:
        yield empty_database


@pytest.fixture(params=["sqlite", "postgresql"])
def left(request, tmp_path):
    """The workspace, a day later, its ledger in SQLite as it was left, or moved to PostgreSQL."""
    at = unpack(tmp_path)
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    if request.param == "postgresql":
        moved = request.getfixturevalue("new_database")()
        _move(url, moved)
        url = moved
    workspace = open_workspace(tmp_path, url, start=at + _DAY_SECONDS, ids="new")
    yield workspace
    workspace.close()


def _move(url: str, to: str) -> None:
    """Copy every row, with the schema of now."""
    for one in (url, to):
        ledger = Ledger(one)
        ledger.submissions("golden")
        ledger.close()
    there = sa.create_engine(to.replace("postgresql:", "postgresql+psycopg2:", 1))
    tables = sa.MetaData()
    tables.reflect(there)
    here = sqlite3.connect(url.removeprefix("sqlite:///"))
    here.row_factory = sqlite3.Row
    with there.begin() as connection:
        for table in tables.sorted_tables:
            found = [] if table.name == "schema_version" else here.execute(f"SELECT * FROM {table.name}").fetchall()
            columns = table.columns.keys()
            if found:
                connection.execute(table.insert(), [{c: _typed(table.c[c], row[c]) for c in columns} for row in found])
        connection.execute(
            sa.text("SELECT setval(pg_get_serial_sequence('event', 'event_id'), max(event_id)) FROM event")
        )
    here.close()
    there.dispose()


def _typed(column, value):
    if value is None:
        return None
    if isinstance(column.type, sa.DateTime):
        return datetime.fromisoformat(value).replace(tzinfo=UTC)
    return bool(value) if isinstance(column.type, sa.Boolean) else value


def test_work_of_before_lands_in_every_state_and_no_answered_row_is_asked_again(left):
    engine = left.engine()
    for case in cases():
        vendor, state = case
        labeling, filed = definition(vendor), left.providers[vendor]
        partition = rows(changed=state == "superseded")
        already = len(filed.asked_ever())
        submission = engine.plan(labeling, partition, partition=state)
        assert submission.submission_id.startswith("s"), case
        assert submission.run_id == ("run changed" if state == "superseded" else f"run {state}"), case
        for _ in range(_MOST_STEPS):
            if engine.advance(labeling, submission.submission_id).is_settled:
                break
            filed.end(partial(answers, vendor))
            left.clock.advance(_STEP_SECONDS)
            if state == "superseded":  # what it waits for
                engine.advance(labeling, submission.reused_from[0])
        labeled = engine.labels(labeling, submission.submission_id)
        assert labeled.labels["ticket_id"].to_pylist() == partition["ticket_id"].to_pylist(), case
        assert labeled.labels["more"].to_pylist() == partition["more"].to_pylist(), case
        assert len(labeled.rejects) == 0, case
        engine.ledger.mark_delivered(submission.submission_id, *submission.reused_from)
        known = engine.plan(labeling, partition, partition=state)
        assert known.submission_id == submission.submission_id, case
        asked = filed.asked_ever()[already:]
        assert len(asked) == ASKED.get(state, 0), case
    assert engine.ledger.progress("golden") == []


def test_of_a_row_that_changed_since_that_row_alone_is_asked(left):
    for vendor in MODELS:
        labeling, filed, engine = definition(vendor), left.providers[vendor], left.engine()
        already = len(filed.asked_ever())
        submission = engine.plan(labeling, rows(changed=True), partition="landed")
        assert (submission.rows, submission.requests, submission.reused) == (ROWS, ROWS, ROWS - 1)
        engine.submit(labeling, submission.submission_id)
        filed.end(partial(answers, vendor))
        assert engine.advance(labeling, submission.submission_id).is_settled
        assert len(engine.labels(labeling, submission.submission_id).labels) == ROWS
        assert len(filed.asked_ever()) == already + 1
