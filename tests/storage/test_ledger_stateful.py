"""Any sequence of moves, legal or not, leaves the ledger in the state of a plain dict."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from ledger_builders import a_shard, a_submission

from dagster_llm_batch.errors import IllegalTransitionError, LedgerError
from dagster_llm_batch.states import IN_FLIGHT, TRANSITIONS, ShardState, Transition
from dagster_llm_batch.storage.ledger import Ledger

BATCHES = ["b1", "b2", "b3"]


class Moves(RuleBasedStateMachine):
    shards = Bundle("shards")

    def __init__(self, url):
        super().__init__()
        self.url = url
        self.ledger = Ledger(url)
        self.states: dict[str, ShardState] = {}
        self.batches: dict[str, str] = {}
        self.happened: list[tuple[str, str]] = []

    @initialize()
    def open_submission(self):
        self.ledger.submissions.open(a_submission(), [])

    @rule(target=shards)
    def add_shard(self):
        name = f"h{len(self.states)}"
        self.ledger.submissions.add_wave("s1", [a_shard(name, wave=len(self.states) + 2)])
        self.states[name] = ShardState.PLANNED
        return name

    @rule(shard=shards, batch_id=st.sampled_from(BATCHES), data=st.data())
    def legal_move(self, shard, batch_id, data):
        legal = [move for move, (sources, _) in TRANSITIONS.items() if self.states[shard] in sources]
        if legal:
            self.move(shard, data.draw(st.sampled_from(legal)), batch_id)

    @rule(shard=shards, move=st.sampled_from(Transition), batch_id=st.sampled_from(BATCHES))
    def any_move(self, shard, move, batch_id):
        self.move(shard, move, batch_id)

    def move(self, shard, move, batch_id):
        sources, to = TRANSITIONS[move]
        fields = {"batch_id": batch_id} if move is Transition.ACCEPTED else {}
        if self.states[shard] not in sources:
            with pytest.raises(IllegalTransitionError, match=shard):
                self.ledger.shards.move(shard, move, **fields)
        elif fields and batch_id in self.batches.values():
            with pytest.raises(LedgerError, match="already belongs"):
                self.ledger.shards.move(shard, move, **fields)
        else:
            self.ledger.shards.move(shard, move, **fields)
            # The event of a send is written with its outcome.
            sent = [(shard, Transition.SEND.value)] if self.states[shard] is ShardState.SUBMITTING else []
            self.states[shard] = to
            self.happened += sent + ([] if move is Transition.SEND else [(shard, move.value)])
            if fields:
                self.batches[shard] = batch_id
            elif to is ShardState.PLANNED:
                self.batches.pop(shard, None)  # the batch ran no request, so the shard can be sent again

    @rule()
    def start_again(self):
        self.ledger.close()
        self.ledger = Ledger(self.url)

    @invariant()
    def agrees_with_the_dict(self):
        found = self.ledger.shards.of_submission("s1")
        assert {shard.shard_id: shard.state for shard in found} == self.states
        assert {shard.shard_id: shard.batch.batch_id for shard in found if shard.batch.batch_id} == self.batches
        in_flight = {name for name, state in self.states.items() if state in IN_FLIGHT}
        assert {shard.shard_id for shard in self.ledger.shards.in_flight("prod")} == in_flight
        moved = [(event.shard_id, event.kind) for event in self.ledger.events.of_submission("s1") if event.shard_id]
        assert moved == self.happened

    def teardown(self):
        self.ledger.close()


@pytest.mark.sample(2)
def test_any_sequence_of_moves_leaves_the_ledger_where_a_dict_says_it_is(new_ledger_url):
    few = settings(
        max_examples=10,
        stateful_step_count=25,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    run_state_machine_as_test(lambda: Moves(new_ledger_url()), settings=few)
