"""Ended batches with unreadable results: each is reported, can be abandoned, and is read once that is possible.

The provider's server is the emulator. Each step is taken by a new engine, like one of another process.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta

import pytest
from workspace import Workspace, billed, labeling, texts, tickets

from dagster_llm_batch.definition.labeling import Limits
from dagster_llm_batch.engine import Engine
from dagster_llm_batch.engine.condition_facts import find_undecided
from dagster_llm_batch.engine.conditions import ConditionKind
from dagster_llm_batch.errors import IllegalTransitionError, LedgerError, LLMBatchError, RefusedError, UnreadableError
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.ledger.submission_rows import UNREADABLE
from dagster_llm_batch.testing.emulator import WireFault
from dagster_llm_batch.types import Cause

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
DOWNLOAD = "GET /v1/files/*/content"
STATUSES = (400, 403, 500, 503)
TWO_EACH = Limits(max_requests_per_batch=2)


def broken(status: int) -> WireFault:
    return WireFault(kind="status", route=DOWNLOAD, status=status, retry_after="0.01", times=None)


def cut() -> WireFault:
    return WireFault(kind="cut", route=DOWNLOAD, after_lines=1, framing="length", times=None)


def ended(workspace: Workspace, *faults: WireFault, rows: int = 2) -> str:
    """Send rows in one batch, which ends; the faults harm its results. Return the submission."""
    workspace.emulator.inject(*faults)
    engine = workspace.engine()
    submission = engine.plan(labeling(), tickets(rows))
    engine.submit(labeling(), submission.submission_id)
    workspace.emulator.settle()
    return submission.submission_id


def one(workspace: Workspace, submission_id: str) -> Shard:
    [shard] = workspace.engine().ledger.shards.of_submission(submission_id)
    return shard


def tries(workspace: Workspace, submission_id: str, *pauses: timedelta) -> None:
    """Try to advance the submission, with these pauses; each try meets the server's fault."""
    for pause in (timedelta(), *pauses):
        workspace.skipped += pause
        with pytest.raises(LLMBatchError):
            workspace.engine().advance(labeling(), submission_id)


def events(engine: Engine, submission_id: str) -> Counter[str]:
    return Counter(event.kind for event in engine.ledger.events.of_submission(submission_id))


@pytest.mark.parametrize("fault", [*map(broken, STATUSES), cut()], ids=[*map(str, STATUSES), "cut"])
def test_results_that_cannot_be_read_are_told_after_an_hour_and_read_as_soon_as_they_can_be(
    workspace: Workspace, fault: WireFault
) -> None:
    submission_id = ended(workspace, fault)
    tries(workspace, submission_id)
    assert find_undecided(workspace.engine()) == []
    tries(workspace, submission_id, HOUR)
    [(condition, shard)] = find_undecided(workspace.engine())
    assert (condition.kind, condition.submission.submission_id) == (ConditionKind.UNREADABLE, submission_id)
    assert shard.shard_id == one(workspace, submission_id).shard_id
    assert workspace.now() - condition.since >= HOUR
    workspace.emulator.clear_faults()
    status = workspace.engine().advance(labeling(), submission_id)
    assert status.submission.outcomes == {"succeeded": 2}
    assert find_undecided(workspace.engine()) == []
    assert len(workspace.emulator.books.batches) == 1


def downloads(workspace: Workspace) -> int:
    return sum(call.path.endswith("/content") for call in workspace.emulator.books.calls)


def test_whoever_keeps_pauses_asks_for_unreadable_results_again_when_the_pause_is_over_and_polls_meanwhile(
    workspace: Workspace,
) -> None:
    submission_id = ended(workspace, broken(503))
    tries(workspace, submission_id, HOUR)
    asked = downloads(workspace)
    for _ in range(3):
        status = workspace.engine().advance(labeling(), submission_id, keeps_pauses=True)
        assert not status.is_settled
    assert downloads(workspace) == asked
    workspace.skipped += HOUR
    workspace.emulator.clear_faults()
    assert workspace.engine().advance(labeling(), submission_id, keeps_pauses=True).is_settled


@pytest.mark.parametrize("status", STATUSES)
def test_further_tries_add_no_event(workspace: Workspace, status: int) -> None:
    submission_id = ended(workspace, broken(status))
    tries(workspace, submission_id, HOUR)
    before = events(workspace.engine(), submission_id)
    tries(workspace, submission_id, *[HOUR] * 5)
    assert events(workspace.engine(), submission_id) == before
    assert before[UNREADABLE] == 1


def test_the_first_refusal_is_the_providers_own_and_later_ones_pass_by_themselves(workspace: Workspace) -> None:
    submission_id = ended(workspace, broken(400))
    with pytest.raises(RefusedError):
        workspace.engine().advance(labeling(), submission_id)
    with pytest.raises(UnreadableError, match=r"resolve .* --lost"):
        workspace.engine().advance(labeling(), submission_id)


def test_the_pauses_between_tries_grow_to_an_hour(workspace: Workspace) -> None:
    submission_id = ended(workspace, broken(503))
    pauses = []
    for skipped in (timedelta(), timedelta(minutes=10), HOUR, DAY):
        tries(workspace, submission_id) if not skipped else tries_after(workspace, submission_id, skipped)
        until = one(workspace, submission_id).waits_until
        assert until is not None
        pauses.append(until - workspace.now())
    assert pauses == sorted(pauses)
    assert timedelta(seconds=50) < pauses[0] < timedelta(minutes=2)
    assert timedelta(minutes=59) < pauses[-1] <= HOUR


@pytest.mark.parametrize("trouble", ["wrong key", "other account", "not configured"])
def test_results_that_wait_for_a_key_are_asked_for_within_a_minute_of_its_mending(
    workspace: Workspace, trouble: str
) -> None:
    submission_id = ended(workspace)
    engine = workspace.engine()
    engine.poll(engine.ledger.shards.in_flight(engine.namespace))
    right = dict(workspace.providers)
    wrong = {"wrong key": {"api_key": "sk-wrong-key-42424242"}, "other account": {"account": "another"}}
    workspace.providers = {"openai": workspace.openai(**wrong[trouble])} if trouble in wrong else {}
    # A person tries it, and a day later once more.
    tries(workspace, submission_id, DAY)
    until = one(workspace, submission_id).waits_until
    assert until is not None
    assert until - workspace.now() < timedelta(minutes=2)
    workspace.providers = right
    assert workspace.engine().advance(labeling(), submission_id).submission.outcomes == {"succeeded": 2}


def tries_after(workspace: Workspace, submission_id: str, pause: timedelta) -> None:
    workspace.skipped += pause
    tries(workspace, submission_id)


@pytest.mark.parametrize("status", STATUSES)
def test_a_person_gives_up_what_cannot_be_read_and_the_rest_lands(workspace: Workspace, status: int) -> None:
    workspace.bounds["transfers_at_once"] = 1
    definition = labeling(limits=TWO_EACH)
    engine = workspace.engine()
    submission = engine.plan(definition, tickets(6))
    engine.submit(definition, submission.submission_id)
    workspace.emulator.settle()
    # The fault lasts for all tries of one download, with the SDK's retries: the other two downloads succeed.
    fault = replace(broken(status), times=9 if status >= 500 else 1)
    workspace.emulator.inject(fault)
    with pytest.raises(LLMBatchError):
        workspace.engine().advance(definition, submission.submission_id)
    [first] = [s for s in engine.ledger.shards.of_submission(submission.submission_id) if s.state is ShardState.ENDED]
    states = workspace.engine().status(submission.submission_id).states
    assert states == {"ended": 1, "collected": 2}
    given_up = workspace.engine().give_up(first.shard_id)
    assert (given_up.state, given_up.cause) == (ShardState.ENDED, Cause.GIVEN_UP)
    status_then = workspace.engine().advance(definition, submission.submission_id)
    assert status_then.submission.outcomes == {"succeeded": 4, "missing": 2}
    labeled = workspace.engine().labels(definition, submission.submission_id)
    assert len(texts(labeled.labels)) == 4
    reasons = set(labeled.rejects["llm_reason"].to_pylist())
    assert all("could not be read" in reason and "retry" in reason for reason in reasons)
    assert workspace.engine().plan(definition, tickets(6)).submission_id == submission.submission_id
    assert workspace.engine().preview(definition, tickets(6), again=True).to_send == 2


def test_what_can_be_read_is_not_given_up(workspace: Workspace) -> None:
    submission_id = ended(workspace)
    engine = workspace.engine()
    engine.poll(engine.ledger.shards.of_submission(submission_id))
    with pytest.raises(IllegalTransitionError, match="the next run collects its results"):
        engine.give_up(one(workspace, submission_id).shard_id)
    assert one(workspace, submission_id).cause is None


@pytest.mark.parametrize("status", STATUSES)
def test_what_cannot_be_read_for_a_month_is_given_up_by_itself(workspace: Workspace, status: int) -> None:
    submission_id = ended(workspace, broken(status))
    tries(workspace, submission_id, 29 * DAY)
    workspace.skipped += DAY
    settled = workspace.engine().advance(labeling(), submission_id)
    assert settled.submission.outcomes == {"missing": 2}
    assert one(workspace, submission_id).cause is Cause.GIVEN_UP
    assert workspace.engine().ledger.unread.given_up("test", workspace.now() - 30 * DAY) == []


def test_an_end_that_is_seen_a_month_later_is_tried_for_a_day(workspace: Workspace) -> None:
    submission_id = ended(workspace, broken(503))
    workspace.skipped += 40 * DAY
    tries(workspace, submission_id, HOUR)
    workspace.emulator.clear_faults()
    assert workspace.engine().advance(labeling(), submission_id).submission.outcomes == {"succeeded": 2}


@pytest.mark.parametrize("status", [404, 410])
def test_results_that_the_provider_has_no_more_are_gone_after_an_hour(workspace: Workspace, status: int) -> None:
    submission_id = ended(workspace, broken(status))
    tries(workspace, submission_id, HOUR / 2)
    workspace.skipped += HOUR
    settled = workspace.engine().advance(labeling(), submission_id)
    assert settled.submission.outcomes == {"missing": 2}
    assert one(workspace, submission_id).cause is Cause.GONE


def given_up(workspace: Workspace) -> str:
    """Abandon unreadable results, and materialize the other labels; return the submission."""
    submission_id = ended(workspace, broken(503))
    tries(workspace, submission_id)
    workspace.engine().give_up(one(workspace, submission_id).shard_id)
    assert workspace.engine().advance(labeling(), submission_id).is_settled
    workspace.engine().ledger.submissions.mark_delivered(submission_id)
    return submission_id


def ask(workspace: Workspace) -> None:
    engine = workspace.engine()
    engine.poll_awaited(["ticket_labels"], engine.now() - HOUR)


def test_what_was_given_up_and_can_be_read_later_lands_and_is_not_paid_again(workspace: Workspace) -> None:
    submission_id = given_up(workspace)
    workspace.skipped += DAY
    ask(workspace)
    assert workspace.engine().status(submission_id).is_settled
    workspace.emulator.clear_faults()
    ask(workspace)
    assert workspace.engine().status(submission_id).is_settled  # it was asked for just now
    workspace.skipped += DAY
    ask(workspace)
    [progress] = workspace.engine().ledger.submissions.progress("test")
    assert workspace.engine().activity.can_advance(progress)
    settled = workspace.engine().advance(labeling(), submission_id)
    assert settled.submission.outcomes == {"succeeded": 2}
    assert one(workspace, submission_id).cause is None
    assert len(workspace.emulator.books.batches) == 1
    assert len(billed(workspace)) == 2


def erase_there(workspace: Workspace, *keys: str, also_unread: bool = False) -> list[str | None]:
    """Erase rows, here and at the provider; return the reason for each copy left there."""
    eraser = workspace.engine().eraser
    eraser.add_tombstones("ticket_labels", keys, None)
    assert eraser.erase("ticket_labels") == []
    return [copy.left for copy in eraser.erase_at_providers("ticket_labels", also_unread=also_unread)]


def test_an_erased_row_leaves_the_paid_answers_of_others_that_may_still_be_read(workspace: Workspace) -> None:
    submission_id = given_up(workspace)
    key = tickets(2)["ticket_id"][0]
    [found] = workspace.engine().eraser.find("ticket_labels", [key], None)
    assert found.given_up == [one(workspace, submission_id).batch.batch_id]
    [left] = erase_there(workspace, key)
    assert "the paid answers to its 1 other requests" in (left or "")
    workspace.emulator.clear_faults()
    workspace.skipped += DAY
    ask(workspace)
    settled = workspace.engine().advance(labeling(), submission_id)
    assert settled.submission.outcomes == {"succeeded": 1}
    # Now they are here, and the provider's copy goes.
    assert erase_there(workspace) == [None]
    assert key not in str(workspace.engine().labels(labeling(), submission_id).labels.to_pylist())


def test_an_erased_row_takes_the_answers_of_others_along_when_a_person_says_so(workspace: Workspace) -> None:
    given_up(workspace)
    assert erase_there(workspace, tickets(2)["ticket_id"][0], also_unread=True) == [None]


def test_a_given_up_batch_of_erased_rows_alone_is_deleted_there(workspace: Workspace) -> None:
    given_up(workspace)
    assert erase_there(workspace, *tickets(2)["ticket_id"]) == [None]


def test_a_given_up_batch_with_an_erased_row_is_deleted_there_a_month_after_its_end(workspace: Workspace) -> None:
    given_up(workspace)
    workspace.skipped += 31 * DAY
    assert erase_there(workspace, tickets(2)["ticket_id"][0]) == [None]


def test_results_that_break_off_again_are_given_up_again_at_once(workspace: Workspace) -> None:
    submission_id = given_up(workspace)
    workspace.emulator.clear_faults()
    workspace.emulator.inject(cut())
    workspace.skipped += DAY
    ask(workspace)
    settled = workspace.engine().advance(labeling(), submission_id)
    assert settled.is_settled
    assert settled.submission.outcomes == {"missing": 2}
    assert one(workspace, submission_id).cause is Cause.GIVEN_UP


def test_a_retry_uses_results_that_can_be_read_by_now(workspace: Workspace) -> None:
    submission_id = given_up(workspace)
    workspace.emulator.clear_faults()
    workspace.skipped += DAY
    again = workspace.engine().plan(labeling(), tickets(2), again=True)
    status = workspace.engine().advance(labeling(), again.submission_id)
    assert len(workspace.emulator.books.batches) == 1
    assert status.is_settled or status.submission.submission_id == submission_id


def test_what_was_given_up_is_asked_for_until_thirty_days_after_its_end(workspace: Workspace) -> None:
    given_up(workspace)
    workspace.skipped += 31 * DAY
    assert workspace.engine().ledger.unread.given_up("test", workspace.now() - 30 * DAY) == []


def test_a_canceled_submission_of_unreadable_results_settles_when_they_are_given_up(workspace: Workspace) -> None:
    submission_id = ended(workspace, broken(500))
    tries(workspace, submission_id)
    workspace.engine().cancel(submission_id)
    workspace.engine().give_up(one(workspace, submission_id).shard_id)
    settled = workspace.engine().advance(labeling(), submission_id)
    assert settled.is_settled
    assert settled.submission.outcomes == {"missing": 2}


def test_a_batch_that_is_overdue_for_a_month_is_given_up_by_itself(workspace: Workspace) -> None:
    engine = workspace.engine()
    submission = engine.plan(labeling(), tickets(2))
    engine.submit(labeling(), submission.submission_id)
    workspace.skipped += timedelta(hours=36) + 29 * DAY
    assert workspace.engine().advance(labeling(), submission.submission_id).states == {"submitted": 1}
    workspace.skipped += 2 * DAY
    assert workspace.engine().advance(labeling(), submission.submission_id).states == {"submitted": 1}
    workspace.skipped += 23 * HOUR
    assert workspace.engine().advance(labeling(), submission.submission_id).states == {"submitted": 1}
    workspace.skipped += HOUR
    workspace.engine().advance(labeling(), submission.submission_id)
    settled = workspace.engine().advance(labeling(), submission.submission_id)
    assert settled.submission.outcomes == {"missing": 2}
    assert one(workspace, submission.submission_id).cause is Cause.GIVEN_UP
    workspace.emulator.settle()  # it ends after all
    workspace.skipped += 2 * HOUR
    ask(workspace)
    assert workspace.engine().advance(labeling(), submission.submission_id).submission.outcomes == {"succeeded": 2}


def test_a_clock_that_is_a_year_ahead_for_a_while_gives_no_batch_up(workspace: Workspace) -> None:
    engine = workspace.engine()
    submission_id = engine.plan(labeling(), tickets(2)).submission_id
    engine.submit(labeling(), submission_id)
    for _ in range(2):
        workspace.skipped += 365 * DAY
        for _ in range(3):
            workspace.skipped += HOUR
            assert workspace.engine().advance(labeling(), submission_id).states == {"submitted": 1}
        workspace.skipped -= 365 * DAY
    workspace.skipped += 40 * DAY  # marks by the wrong clock do not count, in either direction
    assert workspace.engine().advance(labeling(), submission_id).states == {"submitted": 1}
    workspace.skipped += DAY
    workspace.engine().advance(labeling(), submission_id)
    assert one(workspace, submission_id).cause is Cause.GIVEN_UP


def test_advance_alone_settles_a_submission_that_waits_for_a_superseded_batch(workspace: Workspace) -> None:
    engine = workspace.engine()
    older = engine.plan(labeling(), tickets(2)).submission_id
    engine.submit(labeling(), older)
    newer = engine.plan(labeling(), tickets(3)).submission_id
    assert workspace.engine().ledger.submissions.get(newer).reused_from == (older,)
    workspace.engine().advance(labeling(), newer)
    workspace.emulator.settle()
    settled = workspace.engine().advance(labeling(), newer)
    assert settled.submission.outcomes == {"succeeded": 3}
    assert len(billed(workspace)) == 3


def test_each_of_many_superseded_batches_is_asked_about_once_by_who_waits_for_all(workspace: Workspace) -> None:
    for rows in range(2, 8):
        engine = workspace.engine()
        submission_id = engine.plan(labeling(), tickets(rows)).submission_id
        engine.submit(labeling(), submission_id)
    before = len(workspace.emulator.books.calls)
    workspace.engine().advance(labeling(), submission_id)
    asked = Counter(call.path for call in workspace.emulator.books.calls[before:])
    assert asked == {f"/v1/batches/{batch.id}": 1 for batch in workspace.emulator.books.batches}


def test_a_superseded_batch_that_cannot_be_read_is_named_by_who_waits_for_it(workspace: Workspace) -> None:
    older = ended(workspace, broken(503))
    newer = workspace.engine().plan(labeling(), tickets(2, start=1)).submission_id
    with pytest.raises(UnreadableError):
        workspace.engine().advance(labeling(), newer)
    workspace.engine().give_up(one(workspace, older).shard_id)
    workspace.emulator.clear_faults()
    workspace.engine().advance(labeling(), newer)
    workspace.emulator.settle()
    settled = workspace.engine().advance(labeling(), newer)
    assert settled.submission.outcomes == {"succeeded": 1, "missing": 1}


def test_a_batch_whose_id_the_ledger_refuses_is_not_said_to_have_changed_nothing(workspace: Workspace) -> None:
    ended(workspace)
    # An emulator that is started again with the same seed gives the ids of before.
    engine = workspace.engine()
    [batch] = workspace.emulator.books.batches
    submission = engine.plan(labeling(asset="other_labels"), tickets(2))
    body = b'{"id": "%s", "object": "batch", "status": "validating", "created_at": 1}' % batch.id.encode()
    workspace.emulator.inject(WireFault(kind="status", route="POST /v1/batches", status=200, body=body))
    with pytest.raises(LedgerError, match=f"Batch {batch.id} was created for shard") as raised:
        engine.submit(labeling(asset="other_labels"), submission.submission_id)
    assert "Nothing was changed" not in str(raised.value)
