"""Records of shards and their batches agree: each rule finds its violation, and moves never cause one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import sqlalchemy as sa
from ledger_builders import a_shard, a_submission, bring_to

from dagster_llm_batch.errors import IllegalTransitionError
from dagster_llm_batch.states import (
    BATCH_SEEN,
    BATCH_TRANSITIONS,
    SHARD_TRANSITIONS,
    TRANSITIONS,
    BatchState,
    OwnState,
    ShardState,
    Transition,
)
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.schema import with_columns
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
    """Return a ledger with a shard in flight."""
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
    ledger.shards.move_all(both, Transition.SEND)
    assert batches() == [("h2-1", "sending")]
    ledger.shards.move_all(both, Transition.NOT_SENT)
    ledger.shards.move_all(both, Transition.SEND)
    ledger.shards.move_all(both, Transition.ACCEPTED, batch_id="b")
    assert batches() == [("h2-1", "void"), ("h2-2", "running")]
    ledger.shards.move("h1", Transition.GIVEN_UP, cause=Cause.GIVEN_UP)
    assert batches() == [("h2-1", "void"), ("h2-2", "running")]
    ledger.shards.move("h2", Transition.ENDED)
    ledger.shards.move_all(both, Transition.COLLECTED)
    assert batches() == [("h2-1", "void"), ("h2-2", "ended")]


STALE = {
    Transition.NOT_SENT: {},
    Transition.REFUSED: {},
    Transition.ANSWERED: {},
    Transition.ACCEPTED: {"batch_id": "of-a-1"},
}


@pytest.mark.parametrize(("move", "fields"), STALE.items(), ids=str)
def test_what_is_known_of_a_batch_moves_no_shard_that_was_sent_in_another_since(
    ledger: Ledger, move: Transition, fields: dict[str, str]
) -> None:
    """Freeze a process in its create call for `a`; another process plans `a` again, and sends it with `b`."""
    ledger.submissions.open(a_submission(), [a_shard(name, number=n, nonce=name) for n, name in enumerate("ab", 1)])
    key = ledger.shards.move("a", Transition.SEND).batch.batch_key
    ledger.shards.move("a", Transition.NOT_SENT, batch_key=key)
    both = ledger.shards.move_all(["a", "b"], Transition.SEND)
    with pytest.raises(IllegalTransitionError, match=r"in batch a-2, and cannot take the move '.*' of batch a-1"):
        ledger.shards.move("a", move, batch_key=key, **fields)
    assert ledger.shards.of_submission("s1") == both
    assert not broken_records(ledger)
    moved = ledger.shards.move_all(["a", "b"], move, batch_key="a-2", **fields)
    assert [shard.state for shard in moved] == [TRANSITIONS[move][1]] * 2
    assert not broken_records(ledger)


@pytest.mark.parametrize("move", [Transition.NOT_SENT, Transition.PUT_BACK])
def test_a_batch_becomes_void_for_all_of_its_shards(ledger: Ledger, move: Transition) -> None:
    ledger.submissions.open(a_submission(), [a_shard(name, number=n, nonce=name) for n, name in enumerate("ab", 1)])
    sent = ledger.shards.move_all(["a", "b"], Transition.SEND)
    if move is Transition.PUT_BACK:
        sent = ledger.shards.move_all(["a", "b"], Transition.ACCEPTED, batch_id="x")
    with pytest.raises(
        IllegalTransitionError, match=f"Shard b is sent in the same batch as a, and the move '{move.value}'"
    ):
        ledger.shards.move("a", move)
    assert ledger.shards.of_submission("s1") == sent
    assert not broken_records(ledger)


@pytest.mark.parametrize("state", [ShardState.SUBMITTING, ShardState.SUBMITTED])
def test_what_was_sent_with_a_shard_that_was_split_since_is_planned_again(ledger: Ledger, state: ShardState) -> None:
    """Start from the older state: the batch of both ran no request, and then `a` was split."""
    shards = [a_shard(name, number=n, nonce=name, path=name) for n, name in enumerate("ab", 1)]
    ledger.submissions.open(a_submission(requests=16), shards)
    sent = ledger.shards.move_all(["a", "b"], Transition.SEND)
    if state is ShardState.SUBMITTED:
        ledger.shards.move_all(["a", "b"], Transition.ACCEPTED, batch_id="x")
    rest = replace(shards[0], path="rest", requests=4)
    half = replace(rest, shard_id="h", path="half", number=3, nonce="h")
    recovered = ledger.shards.recover_sends([a_submission(requests=16)], {"a": (rest, 1), "h": (half, 0)})
    assert [shard.shard_id for shard in recovered] == ["a", "h"]
    states = {one.shard_id: one.state for one in ledger.shards.of_submission("s1")}
    assert states == dict.fromkeys("abh", ShardState.PLANNED)
    last = [event for event in ledger.events.of_submission("s1") if event.shard_id == "b"][-1]
    assert (last.kind, last.from_state) == ("put_back" if state is ShardState.SUBMITTED else "not_sent", state)
    assert not broken_records(ledger)
    # The shard was then sent alone, and has a receipt of that.
    again = with_columns(sent[1], {"batch_key": "b-2", "place": 0})
    assert ledger.shards.find_unrecorded_sends({"b": (again, 2)}) == ["b"]
    ledger.shards.recover_sends([a_submission(requests=16)], {"b": (again, 2)})
    assert not broken_records(ledger)


def test_moves_as_people_see_them_are_those_of_shards_and_of_batches() -> None:
    assert {state for state in BatchState if state not in BATCH_SEEN} == {BatchState.VOID}
    assert set(Transition) == BATCH_TRANSITIONS.keys() | SHARD_TRANSITIONS.keys()
    for move, (sources, to) in TRANSITIONS.items():
        assert (to is ShardState.PLANNED) == (SHARD_TRANSITIONS.get(move, (None, None))[1] is OwnState.PLANNED), move
        assert sources, move
