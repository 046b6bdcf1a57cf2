"""The current code continues with each release's store (`kept_stores.py`), and never repeats an answered request."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.batch_records import broken_records
from tests.crash.postgres import postgres
from tests.golden.kept_stores import JUDGMENTS, MODELS, ROWS, definition, end, names, open_workspace, rows, unpack
from tests.golden.moved_ledger import move_ledger

ASKED = {
    "planned": 3,
    "second wave planned": 1,
    "doubtful, and lost": 3,
    "superseded": 1,
    "cascade submitted": 1,  # the rows on which the cheap model is not sure enough
    "cascade, second wave planned": 4,
    "rolling 2 submitted": 1,
}
"""Number of unsent requests by state; the other states have sent all. Two of the rows share a request."""

_DAY_SECONDS, _STEP_SECONDS, _MOST_STEPS = 86_400.0, 3_600.0, 6


@pytest.fixture(scope="module")
def new_database():
    if os.environ.get("DLB_TEST_POSTGRES") == "0":
        pytest.skip("DLB_TEST_POSTGRES=0")
    with postgres() as empty_database:
        yield empty_database


@pytest.fixture(
    # The migrations' own tests run on both databases. So one store goes through PostgreSQL.
    params=[*((name, "sqlite") for name in names()), (names()[-1], "postgresql")],
    ids=" in ".join,
)
def left(request, tmp_path):
    """Open the workspace a day later, with its cases; the ledger stays in SQLite, or moves to PostgreSQL."""
    name, database = request.param
    kept = unpack(name, tmp_path)
    url = f"sqlite:///{tmp_path}/ledger.sqlite"
    if database == "postgresql":
        url = request.getfixturevalue("new_database")()
        move_ledger(tmp_path / "ledger.sqlite", url)
    workspace = open_workspace(tmp_path, url, start=kept.at + _DAY_SECONDS, ids="new")
    yield workspace, kept.cases
    workspace.close()


def test_work_that_a_release_left_lands_in_every_state_and_no_answered_row_is_asked_again(left):
    workspace, cases = left
    engine = workspace.engine()
    assert broken_records(engine.ledger) == []
    for case in cases:
        vendor, state = case
        labeling, filed = definition(vendor, state), workspace.providers[vendor]
        partition = rows(state, changed=state == "superseded")
        already = len(filed.asked_ever())
        submission = engine.plan(labeling, partition, partition=state)
        by = {"superseded": "run changed", "adopted": None}.get(state, f"run {state}")
        assert submission.run_id == by, case
        assert not submission.submission_id.startswith("new"), case
        assert (submission.p90_end_at is not None) is (state == "forecast"), case
        for _ in range(_MOST_STEPS):
            if engine.advance(labeling, submission.submission_id).is_settled:
                break
            end(filed, vendor)
            workspace.clock.advance(_STEP_SECONDS)
            if state == "superseded":  # it waits for this one
                engine.advance(labeling, submission.reused_from[0])
        labeled = engine.labels(labeling, submission.submission_id)
        assert labeled.labels["ticket_id"].to_pylist() == partition["ticket_id"].to_pylist(), case
        assert labeled.labels["more"].to_pylist() == partition["more"].to_pylist(), case
        assert len(labeled.rejects) == 0, case
        engine.ledger.submissions.mark_delivered(submission.submission_id, *submission.reused_from)
        known = engine.plan(labeling, partition, partition=state)
        assert known.submission_id == submission.submission_id, case
        asked = filed.asked_ever()[already:]
        assert len(asked) == ASKED.get(state, 0), case
        if state == "rolling 2 submitted":  # its threshold comes from the rows of the first, so it takes no sample
            assert "sampled" not in labeled.labels["llm_why"].to_pylist()
            assert engine.ledger.history.audits("golden", labeling.asset).keys() == {"rolling 1 landed", state}
    assert engine.ledger.submissions.progress("golden") == []
    if ("openai", "forecast") in cases:  # like in every store since 0.1.0
        assert engine.ledger.judgments.read("golden", "labels_openai") == JUDGMENTS
        engine.ledger.judgments.add(replace(JUDGMENTS[0], form_id="new"))
        assert len(engine.ledger.judgments.read("golden", "labels_openai")) == len(JUDGMENTS) + 1


def test_of_a_row_that_changed_since_that_row_alone_is_asked(left):
    workspace, _ = left
    for vendor in MODELS:
        labeling, filed, engine = definition(vendor), workspace.providers[vendor], workspace.engine()
        already = len(filed.asked_ever())
        submission = engine.plan(labeling, rows("landed", changed=True), partition="landed")
        assert (submission.rows, submission.requests, submission.reused) == (ROWS, ROWS, ROWS - 1)
        engine.submit(labeling, submission.submission_id)
        end(filed, vendor)
        assert engine.advance(labeling, submission.submission_id).is_settled
        assert len(engine.labels(labeling, submission.submission_id).labels) == ROWS
        assert len(filed.asked_ever()) == already + 1
