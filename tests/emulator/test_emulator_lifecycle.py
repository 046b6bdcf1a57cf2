from __future__ import annotations

import math
import threading

import pytest

from dagster_llm_batch.testing.emulator.lifecycle import Edge, IllegalTransitionError, Life, ManualClock, Mover, Pace
from dagster_llm_batch.testing.emulator.openai.batches import LIFECYCLE as OPENAI
from tests.tables import table


class Batch:
    """A batch that takes the edge "due" from every state, and counts its steps."""

    def __init__(self, at: float = 0.0) -> None:
        self.life = Life(OPENAI, at)
        self.steps = 0
        self.cut_at = math.inf

    def step(self, at: float) -> str:
        self.steps += 1
        if self.life.state == "in_progress" and at >= self.cut_at:
            return "window_over"
        return "due"

    def deadline(self) -> float:
        return self.cut_at if self.life.state == "in_progress" else math.inf


def test_the_table_ends_in_the_four_documented_states_and_reaches_every_state():
    ended = {state for state in OPENAI.states if OPENAI.ended(state)}
    assert ended == {"completed", "failed", "expired", "cancelled"}
    assert {edge.target for edge in OPENAI.edges} | {OPENAI.start} == set(OPENAI.states)
    assert len({(edge.source, edge.event) for edge in OPENAI.edges}) == len(OPENAI.edges)


@table("state", OPENAI.states)
@table("event", ["due", "invalid", "cancel", "window_over", "work", "expire", "nonsense"])
def test_every_move_outside_of_the_table_raises_and_changes_nothing(state, event):
    life = Life(OPENAI, 1.0)
    life.state = state
    edges = [edge for edge in OPENAI.edges if (edge.source, edge.event) == (state, event)]
    if edges:
        assert life.move(event, 2.0)
        assert life.state == edges[0].target
        return
    with pytest.raises(IllegalTransitionError, match=event):
        life.move(event, 2.0)
    assert (life.state, life.entered_at) == (state, 1.0)


def test_a_move_from_a_state_that_was_left_meanwhile_does_nothing():
    life = Life(OPENAI, 0.0)
    life.move("cancel", 1.0)
    assert life.move("due", 2.0, expected="validating") is False
    assert life.state == "cancelling"


def test_only_one_of_many_simultaneous_moves_wins():
    life, wins = Life(OPENAI, 0.0), []
    gate = threading.Barrier(8)

    def contend():
        gate.wait()
        if life.move("due", 1.0, expected="validating"):
            wins.append(1)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert life.state == "in_progress"


def test_a_tick_moves_each_live_batch_one_edge_and_an_ended_one_none():
    mover, batches = Mover(Pace.of("manual"), ManualClock()), [Batch(), Batch()]
    for batch in batches:
        mover.add(batch)
    assert [mover.tick() for _ in range(4)] == [2, 2, 2, 0]
    assert [batch.life.state for batch in batches] == ["completed", "completed"]


def test_the_manual_pace_does_not_move_with_the_clock():
    clock = ManualClock()
    mover, batch = Mover(Pace.of("manual"), clock), Batch(clock())
    mover.add(batch)
    clock.advance(1e9)
    assert mover.advance() == 0
    assert batch.life.state == "validating"


def test_the_clock_takes_every_due_edge_at_the_moment_it_was_due():
    clock = ManualClock(1000.0)
    mover, batch = Mover(Pace.of(10), clock), Batch(clock())
    mover.add(batch)
    clock.advance(9.9)
    assert mover.advance() == 0
    clock.advance(100)
    assert mover.advance() == 3
    assert batch.life.reached_at == {
        "validating": 1000.0,
        "in_progress": 1010.0,
        "finalizing": 1020.0,
        "completed": 1030.0,
    }


def test_a_state_can_have_its_own_pace_and_is_cut_short_by_its_deadline():
    clock = ManualClock(0.0)
    mover, batch = Mover(Pace.of({"validating": 1, "in_progress": 500}), clock), Batch()
    batch.cut_at = 100.0
    mover.add(batch)
    clock.advance(99)
    mover.advance()
    assert batch.life.state == "in_progress"
    clock.advance(2)
    mover.advance()
    assert batch.life.reached_at["finalizing"] == 100.0


def test_the_timer_thread_moves_batches_without_any_call():
    clock = ManualClock(0.0)
    mover, batch = Mover(Pace.of(0.01), clock), Batch()
    mover.add(batch)
    clock.advance(100)
    ended = threading.Event()
    batch.life._moved = lambda _source, _event, target, _at: target == "completed" and ended.set()
    mover.start()
    assert ended.wait(30)
    mover.stop()
    assert batch.life.state == "completed"


def test_an_unknown_pace_is_refused_with_what_is_allowed():
    with pytest.raises(ValueError, match="manual"):
        Pace.of("fast")


def test_the_diagram_shows_every_edge():
    diagram = OPENAI.diagram()
    assert all(f"{edge.source} --> {edge.target}: {edge.event}" in diagram for edge in OPENAI.edges)
    assert Edge("validating", "due", "in_progress") in OPENAI.edges
