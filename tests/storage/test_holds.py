"""Each reason to wait has a rule; a hold begins and ends with its subject, on both ledgers."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest
from ledger_builders import a_shard, a_submission, bring_to

from dagster_llm_batch.cli.main import main
from dagster_llm_batch.loop.holds import RULES
from dagster_llm_batch.loop.status import Advice, find_unsent
from dagster_llm_batch.states import STORED_HOLDS, HoldReason, ShardState, Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.events import (
    Adopted,
    EventData,
    Held,
    NotThere,
    OverBudget,
    Recovered,
    Stopped,
    Unsent,
    Waits,
)
from dagster_llm_batch.storage.ledger.holds import OF_RESULTS, UNSENT, recovered_of, unsent_of
from dagster_llm_batch.storage.ledger.records import Ending, QueueHolder
from dagster_llm_batch.storage.ledger.unread import UnreadShard
from dagster_llm_batch.types import BatchStatus, Cause

FIRST, SECOND = ("no room", "Raise the limit"), ("no room for the oracle", "Raise the limit")


NOW = datetime(2026, 1, 2, tzinfo=UTC)
SHARD = a_shard(batch_id="b", provider="openai", model="gpt-4o", account="a", cause=Cause.GIVEN_UP)
UNREAD = UnreadShard(a_submission(), SHARD, NOW, "403: no")

# The arguments of each message.
SUBJECTS: dict[HoldReason, tuple[Any, ...]] = {
    **dict.fromkeys(UNSENT.values(), (Unsent(*FIRST),)),
    **dict.fromkeys(OF_RESULTS, (UNREAD,)),
    HoldReason.RECOVERED: (Recovered(2, "2026-01-01 00:00"),),
    HoldReason.PLACE: (2, Waits(for_place=True).detail),
    HoldReason.FULL_QUEUE: (a_submission(), [SHARD], NOW),
    HoldReason.NOT_SENT: (1, NOW, "503: down"),
    HoldReason.TURNED_AWAY: (1, NOW, "429: later"),
    HoldReason.MONEY: (a_submission(), "for money: the bills of requests in flight"),
    HoldReason.IN_DOUBT: (SHARD,),
    HoldReason.UNKNOWN: (SHARD,),
    HoldReason.OVERDUE: (SHARD, NOW),
    HoldReason.CANNOT_ASK: ("openai", "a", None),
    HoldReason.REUSES: (["s0"],),
    HoldReason.STRANDED: (a_submission(), "a run was lost"),
    HoldReason.HELD_QUEUE: ("openai", "1 batch", [QueueHolder("other", 1, ["h1"], NOW, NOW)]),
    HoldReason.NO_PARTITION: (a_submission(),),
    HoldReason.NO_DATASET: ("moods", 1, 1),
    HoldReason.REFUSED: (a_submission(), [SHARD], 2),
    HoldReason.LATE_ANSWERS: (a_submission(), SHARD),
}


@pytest.mark.parametrize("reason", HoldReason)
def test_each_reason_has_a_message_an_exit_and_a_limit_or_a_reason_for_none(reason: HoldReason) -> None:
    rule = RULES[reason]
    advice = rule.message(*SUBJECTS[reason])
    assert isinstance(advice, Advice)
    assert all(advice)
    assert rule.exits
    assert rule.told
    assert rule.told_after is None or rule.told.startswith("failed")
    assert bool(rule.limit) is not bool(rule.endless)
    commands = {found for one in rule.exits for found in re.findall(r"`(\w+)", one)}
    assert commands
    assert commands <= set(main.list_commands(click.Context(main)))


def test_the_reasons_that_have_rows_are_those_that_the_ledger_can_begin() -> None:
    assert set(STORED_HOLDS) == {*UNSENT.values(), *OF_RESULTS, HoldReason.RECOVERED}


def test_each_hold_of_a_submission_keeps_each_problem_once_and_of_a_definition_the_last(
    ledger: Ledger, clock: Any
) -> None:
    ledger.submissions.open(a_submission(), [])
    began = clock.now
    for kind in (Held, Stopped, OverBudget):
        for told in (FIRST, SECOND, FIRST):
            ledger.events.add("s1", kind(*told))
            clock.pass_seconds(60)
    holds = {hold.reason: hold for hold in ledger.holds.of(["s1"])["s1"]}
    assert holds.keys() == set(UNSENT.values())
    assert unsent_of(holds[HoldReason.CHANGED]) == [Unsent(*FIRST)]
    for reason in (HoldReason.UNFIT, HoldReason.OVER_BUDGET):
        assert unsent_of(holds[reason]) == [Unsent(*SECOND), Unsent(*FIRST)]
    assert {hold.times for hold in holds.values()} == {3}
    assert holds[HoldReason.CHANGED].since == began
    found = find_unsent(list(holds.values()))
    assert found.held == "no room. Raise the limit"
    assert found.over_budget == "no room for the oracle. Raise the limit. no room. Raise the limit."


@pytest.mark.parametrize("kind", UNSENT)
def test_only_the_submission_of_which_it_was_told_is_held(ledger: Ledger, kind: type[EventData]) -> None:
    for name in ("s1", "s2"):
        ledger.submissions.open(a_submission(name, fingerprint=name), [])
    ledger.events.add("s1", kind(*FIRST))  # type: ignore[call-arg]  # each kind of UNSENT is an Unsent
    assert list(ledger.holds.of(["s1", "s2"], UNSENT[kind])) == ["s1"]
    assert list(ledger.holds.undelivered("prod", *UNSENT.values())) == ["s1"]
    assert ledger.holds.undelivered("other", *UNSENT.values()) == {}
    ledger.submissions.mark_delivered("s1")
    assert ledger.holds.undelivered("prod", *UNSENT.values()) == {}


def unread(ledger: Ledger, clock: Any) -> None:
    """Add a shard with unreadable results, to be read again later."""
    ledger.submissions.open(a_submission(), [a_shard()])
    bring_to(ledger, "h1", ShardState.SUBMITTED)
    ledger.shards.move("h1", Transition.ENDED, status=BatchStatus.ENDED)
    assert ledger.unread.note(["h1"], "403: no") == {"h1": clock.now}
    ledger.unread.wait(["h1"], clock.now + timedelta(minutes=1))


def test_of_sendings_that_were_recovered_the_last_time_counts_and_an_adopted_batch_is_none(
    ledger: Ledger, clock: Any
) -> None:
    ledger.submissions.open(a_submission(), [])
    for shards in (2, 1):
        clock.pass_seconds(60)
        ledger.events.add("s1", Recovered(shards, "2026-01-01 00:00"))
    ledger.events.add("s1", Adopted(7, "2026-01-01 00:00"))
    [hold] = ledger.holds.of(["s1"])["s1"]
    assert (hold.reason, hold.times, hold.since) == (HoldReason.RECOVERED, 2, clock.now)
    assert recovered_of(hold) == Recovered(1, "2026-01-01 00:00")


def test_results_that_cannot_be_read_are_one_hold_however_often_they_are_tried(ledger: Ledger, clock: Any) -> None:
    began = clock.now
    unread(ledger, clock)
    clock.pass_seconds(60)
    assert ledger.unread.note(["h1"], "500: other") == {"h1": began}
    [hold] = ledger.holds.of(["s1"])["s1"]
    assert (hold.subject, hold.reason, hold.since, hold.words) == ("h1", HoldReason.UNREADABLE, began, "403: no")
    clock.pass_seconds(-3600)
    # By a clock that was wrong it began later than now.
    assert ledger.unread.note(["h1"], "500: other") == {"h1": clock.now}
    [hold] = ledger.holds.of(["s1"])["s1"]
    assert (hold.since, hold.words) == (clock.now, "500: other")


def test_results_that_do_not_exist_are_one_hold_from_the_first_answer_until_they_are_collected(
    ledger: Ledger, clock: Any
) -> None:
    ledger.submissions.open(a_submission(), [a_shard()])
    bring_to(ledger, "h1", ShardState.SUBMITTED)
    ended = ledger.shards.move("h1", Transition.ENDED, status=BatchStatus.ENDED)
    began = clock.now
    assert ledger.unread.note_absence(ended, "404: none") == began
    clock.pass_seconds(60)
    assert ledger.unread.note_absence(ended, "404: still") == began
    [hold] = ledger.holds.of(["s1"])["s1"]
    assert (hold.subject, hold.reason, hold.since, hold.words) == ("h1", HoldReason.NO_RESULTS, began, "404: none")
    events = [event.kind for event in ledger.events.of_submission("s1")]
    assert events.count(NotThere.kind) == 1
    clock.pass_seconds(-3600)
    # By a clock that was wrong it began later than now.
    assert ledger.unread.note_absence(ended, "404: none") == clock.now
    ledger.shards.move("h1", Transition.GONE, cause=Cause.GONE)
    ledger.shards.collect({"h1": {"results_path": "a"}})
    assert ledger.holds.of(["s1"]) == {}


@pytest.mark.parametrize("waits", [True, False])
def test_what_is_collected_has_no_hold(ledger: Ledger, clock: Any, waits: bool) -> None:
    if waits:
        unread(ledger, clock)
    else:
        ledger.submissions.open(a_submission(), [a_shard()])
        bring_to(ledger, "h1", ShardState.SUBMITTED)
        ledger.shards.move("h1", Transition.ENDED, status=BatchStatus.ENDED)
        ledger.unread.note(["h1"], "403: no")
        # The shard was abandoned before, so it does not wait for another read.
        ledger.shards.move("h1", Transition.GIVEN_UP, cause=Cause.GIVEN_UP)
    assert [hold.subject for hold in ledger.holds.of(["s1"])["s1"]] == ["h1"]
    ledger.shards.collect({"h1": {"results_path": "a"}})
    assert ledger.holds.of(["s1"]) == {}


def test_what_was_given_up_and_can_be_read_after_all_has_no_hold(ledger: Ledger, clock: Any) -> None:
    unread(ledger, clock)
    ledger.shards.move("h1", Transition.GIVEN_UP, cause=Cause.GIVEN_UP, status=BatchStatus.ENDED)
    ledger.shards.collect({"h1": {"results_path": "a"}})
    late = Ending(
        move=Transition.LATE, batch_id="batch-h1", status=BatchStatus.ENDED, ended_at=clock.now, total=8, done=8,
        failed=0, reason=None, retryable=False,
    )  # fmt: skip
    ledger.shards.record_late_endings({"h1": late})
    assert ledger.shards.get("h1").state is ShardState.ENDED
    assert ledger.holds.of(["s1"]) == {}
    assert ledger.unread.noted(ledger.shards.of_submission("s1")) == set()
