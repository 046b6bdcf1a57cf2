"""Request files due to be deleted at providers, according to the ledger, on both databases."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta

import sqlalchemy as sa
from ledger_builders import a_shard, a_submission, bring_to

from dagster_llm_batch.states import ShardState, Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.types import BatchStatus, Cause

OURS = [("openai", "api.openai.com/org-1")]


def due(ledger, before, accounts=OURS):
    return [shard.shard_id for shard in ledger.uploads.due("prod", accounts, before, limit=10)]


def with_shard(ledger, number, state, **changes):
    shard_id = f"h{number}"
    submission = a_submission(f"s{number}", partition=str(number), fingerprint=f"f{number}")
    ledger.submissions.open(submission, [a_shard(shard_id, f"s{number}", nonce=f"n{number}", **changes)])
    bring_to(ledger, shard_id, state)
    return shard_id


def test_what_is_collected_is_due_after_a_while_once_and_only_of_own_accounts(ledger, clock):
    for number, state in enumerate(state for state in ShardState if state is not ShardState.COLLECTED):
        with_shard(ledger, number, state)
    shard_id = with_shard(ledger, 20, ShardState.PLANNED)
    for move in (Transition.SEND, Transition.ACCEPTED, Transition.ENDED, Transition.COLLECTED):
        ledger.shards.move(shard_id, move, **({"batch_id": "b"} if move is Transition.ACCEPTED else {}))
    collected = clock.now
    soon = collected + timedelta(seconds=1)
    assert due(ledger, collected) == []
    assert due(ledger, soon) == [shard_id]
    assert due(ledger, soon, []) == due(ledger, soon, [("openai", "another")]) == []
    assert ledger.uploads.batches_of([ledger.shards.get(shard_id)]) == ["b"]
    ledger.uploads.record_done([shard_id])
    assert due(ledger, soon) == []
    assert [one.shard_id for one in ledger.uploads.with_results("prod", OURS, soon, limit=10)] == [shard_id]
    ledger.shards.record_erased_at_provider([shard_id], "b")
    assert ledger.uploads.with_results("prod", OURS, soon, limit=10) == []


def test_what_was_given_up_and_may_end_yet_keeps_its_file_for_a_month(ledger, clock):
    shard_id = with_shard(ledger, 1, ShardState.SUBMITTED)
    ledger.shards.move(
        shard_id, Transition.GIVEN_UP, cause=Cause.GIVEN_UP, reason="waited long enough", ended_at=clock.now
    )
    ledger.shards.move(shard_id, Transition.COLLECTED)
    far = clock.now + timedelta(days=400)
    assert due(ledger, far) == []
    clock.now += timedelta(days=32)
    assert due(ledger, far) == [shard_id]


def test_batches_that_were_put_back_are_named_with_the_last(ledger, clock):
    shard_id = with_shard(ledger, 1, ShardState.SUBMITTED)
    ledger.shards.move(shard_id, Transition.PUT_BACK, of_batch="batch-h1", refusals=1)
    sent_before = clock.now
    clock.now += timedelta(hours=1)
    for move in (Transition.SEND, Transition.ACCEPTED):
        ledger.shards.move(shard_id, move, **({"batch_id": "second"} if move is Transition.ACCEPTED else {}))
    ledger.shards.move(shard_id, Transition.ENDED, status=BatchStatus.ENDED)
    ledger.shards.move(shard_id, Transition.COLLECTED)
    shard = ledger.shards.get(shard_id)
    assert ledger.uploads.batches_of([shard]) == ["second", "batch-h1"]
    assert ledger.uploads.batches_since(shard, sent_before) == {"second"}
    assert ledger.uploads.batches_since(shard, clock.now + timedelta(seconds=1)) == set()


def test_a_shard_that_was_put_back_and_canceled_has_left_a_file_too(ledger, clock):
    shard_id = with_shard(ledger, 1, ShardState.SUBMITTED)
    ledger.shards.move(shard_id, Transition.PUT_BACK, of_batch="batch-h1", refusals=1)
    ledger.shards.move(shard_id, Transition.CANCELED)
    ledger.shards.move(shard_id, Transition.COLLECTED)
    assert due(ledger, clock.now + timedelta(seconds=1)) == [shard_id]
    assert ledger.uploads.batches_of([ledger.shards.get(shard_id)]) == ["batch-h1"]


def test_a_tick_looks_only_at_what_has_a_file_yet(sqlite_url, clock):
    with closing(Ledger(sqlite_url, clock)) as ledger:
        asked = []
        sa.event.listen(sa.Engine, "before_cursor_execute", keep := lambda *given: asked.append(given[2:4]))
        try:
            due(ledger, clock.now)
        finally:
            sa.event.remove(sa.Engine, "before_cursor_execute", keep)
        [(statement, given)] = [one for one in asked if "shards.request_file_done_at IS NULL" in one[0]]
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as file:
            plan = [row[3] for row in file.execute(f"EXPLAIN QUERY PLAN {statement}", given)]
    assert plan[0].startswith("SEARCH shard USING INDEX shard_with_file")
