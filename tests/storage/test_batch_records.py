"""Shards and their batches, as the ledger has them, agree: each rule finds what breaks it, and moves break none."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from ledger_builders import a_shard, a_submission, bring_to

from dagster_llm_batch.states import BATCH_MOVES, BATCH_SEEN, MOVES, SHARD_MOVES, BatchState, Move, OwnState, ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.types import Cause
from tests.batch_records import broken_records

BROKEN = {
    "a sent shard has a batch": "UPDATE shard SET batch_key = NULL WHERE shard_id = 'h1'",
    "that is not void": "UPDATE batch SET state = 'void' WHERE tag = 'h1'",
    "not sent has no batch": "UPDATE shard SET state = 'planned' WHERE shard_id = 'h1'",
    "provider, account, model and lane": "UPDATE batch SET model = 'another' WHERE tag = 'h1'",
    "tag of its first shard": "UPDATE batch SET tag = 'h9' WHERE tag = 'h1'",
    "a running batch has an id": "UPDATE batch SET batch_id = NULL WHERE tag = 'h1'",
    "a collected shard has a batch that is over": "UPDATE shard SET state = 'collected' WHERE shard_id = 'h1'",
    "not void has shards": "UPDATE shard SET batch_key = NULL, state = 'planned' WHERE shard_id = 'h1'",
    "settled submission": "UPDATE submission SET settled_at = created_at",
}


@pytest.fixture
def sent(ledger: Ledger) -> Ledger:
    """A shard in flight."""
    ledger.submissions.open(a_submission(), [a_shard("h1")])
    bring_to(ledger, "h1", ShardState.SUBMITTED)
    return ledger


def test_what_is_sent_breaks_no_rule(sent: Ledger) -> None:
    assert broken_records(sent) == []


@pytest.mark.parametrize(("rule", "change"), BROKEN.items(), ids=BROKEN)
def test_a_rule_finds_what_breaks_it(sent: Ledger, rule: str, change: str) -> None:
    with sent._database.write() as connection:
        connection.execute(sa.text(change))
    assert any(rule in found for found in broken_records(sent))


def test_a_batch_of_several_shards_is_one_row_that_each_move_of_theirs_changes_once(ledger: Ledger) -> None:
    ledger.submissions.open(a_submission(), [a_shard(f"h{n}", number=n, nonce=f"n{n}") for n in (1, 2)])

    def batches() -> list[tuple[str, str]]:
        with ledger._database.read() as connection:
            rows = connection.execute(sa.text("SELECT batch_key, state FROM batch ORDER BY batch_key")).all()
        assert broken_records(ledger) == []
        return [(row[0], row[1]) for row in rows]

    both = ["h2", "h1"]
    ledger.shards.move_all(both, Move.SEND)
    assert batches() == [("h2-1", "sending")]
    ledger.shards.move_all(both, Move.NOT_SENT)
    ledger.shards.move_all(both, Move.SEND)
    ledger.shards.move_all(both, Move.ACCEPTED, batch_id="b")
    assert batches() == [("h2-1", "void"), ("h2-2", "running")]
    ledger.shards.move("h1", Move.GIVEN_UP, cause=Cause.GIVEN_UP)
    assert batches() == [("h2-1", "void"), ("h2-2", "running")]
    ledger.shards.move("h2", Move.ENDED)
    ledger.shards.move_all(both, Move.COLLECTED)
    assert batches() == [("h2-1", "void"), ("h2-2", "ended")]


def test_moves_as_people_see_them_are_those_of_shards_and_of_batches() -> None:
    assert {state for state in BatchState if state not in BATCH_SEEN} == {BatchState.VOID}
    assert set(Move) == BATCH_MOVES.keys() | SHARD_MOVES.keys()
    for move, (sources, to) in MOVES.items():
        assert (to is ShardState.PLANNED) == (SHARD_MOVES.get(move, (None, None))[1] is OwnState.PLANNED), move
        assert sources, move
