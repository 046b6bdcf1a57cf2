"""A wave with almost only invalid replies is the last paid one; its unknown cost is not counted as zero."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from workspace import Workspace, assert_total, billed, labeling, tickets

from dagster_llm_batch.definition.rules import Budget, QueueLimit
from dagster_llm_batch.engine import Limits, Resend
from dagster_llm_batch.testing.emulator import FileFault, RowFault

ALTERED = FileFault(kind="renamed", times=None)
FAULTS: dict[str, tuple[Any, str, str]] = {
    "all ids altered": (ALTERED, "missing", "results name custom_ids that were not asked, such as 'r"),
    "all results missing": (FileFault(kind="missing", times=None), "missing", "no result names this request"),
    "all lines malformed": (FileFault(kind="malformed", times=None), "missing", "a result line cannot be read: '{"),
    "all replies invalid": (RowFault(kind="truncated"), "invalid", "the reply was cut at its token limit"),
}


def stops(workspace: Workspace, submission_id: str) -> list[str]:
    events = workspace.engine().ledger.events.of_submission(submission_id)
    return [str(event.detail) for event in events if event.kind == "stopped"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_second_wave_is_not_paid_and_the_reason_has_an_example(workspace: Workspace, fault: str) -> None:
    scripted, outcome, example = FAULTS[fault]
    workspace.emulator.inject(scripted)
    definition = labeling(resend=Resend(fallback=["openai/gpt-4o-mini"]))  # the fallback is not asked either
    status = workspace.run(definition, tickets(20), partition="p")
    submission = status.submission
    assert (submission.outcomes, submission.waves, len(billed(workspace))) == ({outcome: 20}, 1, 20)
    [why] = stops(workspace, submission.submission_id)
    assert why == workspace.engine().unsent(submission.submission_id).stopped
    assert why.startswith(f"20 of 20 requests of round 1 got no reply that fits (20 {outcome})")
    assert "row 't" in why
    assert example in why
    assert "`dagster-llm-batch retry ticket_labels --partition p`" in why
    _, rejects = assert_total(workspace, definition, submission.submission_id, 20)
    known = {cost is not None for cost in rejects["llm_cost_usd"].to_pylist()}
    assert known == {outcome == "invalid"}
    assert (submission.cost_usd is None, submission.realtime_usd is None) == (outcome == "missing",) * 2
    assert submission.cost_usd is None or submission.cost_usd > 0


def test_it_is_sent_again_when_a_person_says_so_and_not_because_it_is_materialized_again(workspace: Workspace) -> None:
    workspace.emulator.inject(ALTERED)
    first = workspace.run(labeling(), tickets(20)).submission
    workspace.emulator.clear_faults()
    assert workspace.engine().plan(labeling(), tickets(20)).submission_id == first.submission_id
    second = workspace.run(labeling(), tickets(20), again=True).submission
    assert second.outcomes == {"succeeded": 20}
    assert len(billed(workspace)) == 40


def test_budgets_keep_the_estimate_of_what_nobody_knows_the_cost_of(workspace: Workspace) -> None:
    workspace.emulator.inject(ALTERED)
    submission = workspace.run(labeling(), tickets(20)).submission
    engine = workspace.engine(budgets=[Budget(Decimal(100), "ever")])
    assert submission.estimated_usd is not None
    assert engine.ledger.money.spent_usd("test") == submission.estimated_usd > 0


@pytest.mark.parametrize(
    ("rows", "misfits", "waves"),
    [(9, 9, 2), (12, 11, 2), (12, 12, 1), (60, 56, 2), (60, 57, 1)],
    ids=["too few to tell", "one of twelve fits", "none of twelve", "four of sixty fit", "three of sixty fit"],
)
def test_a_few_misfits_are_asked_again_as_ever(workspace: Workspace, rows: int, misfits: int, waves: int) -> None:
    workspace.emulator.inject(FileFault(kind="missing", times=misfits))
    status = workspace.run(labeling(), tickets(rows))
    assert status.submission.waves == waves
    assert bool(stops(workspace, status.submission.submission_id)) == (waves == 1)
    assert status.submission.outcomes == (
        {"succeeded": rows}
        if waves == 2
        else {"missing": misfits, "succeeded": rows - misfits}
        if rows > misfits
        else {"missing": rows}
    )


def test_rows_that_no_reply_ever_fits_go_to_the_next_model_however_many_they_are(workspace: Workspace) -> None:
    """Send these rows alone in the second wave, with invalid replies only."""
    hard = [RowFault(kind="truncated", containing=f"number {n}?", times=2) for n in range(12)]
    workspace.emulator.inject(*hard)
    definition = labeling(resend=Resend(invalid_waves=2, fallback=["openai/gpt-4o-mini"]))
    status = workspace.run(definition, tickets(40))
    assert status.submission.outcomes == {"succeeded": 40}
    assert [shard.requests for shard in status.shards] == [40, 12, 12]


@pytest.mark.parametrize("status_code", [503, 429])
def test_what_the_vendor_has_no_room_for_is_no_misfit(workspace: Workspace, status_code: int) -> None:
    workspace.emulator.inject(RowFault(status_code=status_code, times=20))
    status = workspace.run(labeling(), tickets(20))
    assert (status.submission.outcomes, status.submission.waves) == ({"succeeded": 20}, 2)


def test_a_second_wave_that_is_as_large_and_comes_back_altered_is_the_last(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(status_code=503, times=20), FileFault(kind="renamed", batches=[1], times=None))
    status = workspace.run(labeling(), tickets(20))
    assert (status.submission.outcomes, status.submission.waves) == ({"missing": 20}, 2)
    assert "of round 2" in stops(workspace, status.submission.submission_id)[0]


def test_the_rest_of_a_wave_that_waits_for_its_turn_is_not_sent_either(workspace: Workspace) -> None:
    workspace.emulator.inject(ALTERED)
    definition = labeling(limits=Limits(max_requests_per_batch=12))
    engine = workspace.engine(queue_limits={"openai": QueueLimit(max_batches=1)})
    submission = engine.plan(definition, tickets(36))
    engine.submit(definition, submission.submission_id)
    workspace.emulator.settle()
    for _ in range(3):
        status = engine.advance(definition, submission.submission_id)
    assert status.submission.outcomes == {"missing": 12, "canceled": 24}
    assert (len(workspace.emulator.books.batches), len(billed(workspace))) == (1, 12)
    [why] = stops(workspace, submission.submission_id)
    assert "12 of 12 requests of round 1" in why
    assert_total(workspace, definition, submission.submission_id, 36)


def test_rows_that_change_do_not_buy_again_what_is_on_its_way_and_comes_back_altered(workspace: Workspace) -> None:
    workspace.emulator.inject(FileFault(kind="renamed", batches=[0], times=None))
    first = workspace.engine().plan(labeling(), tickets(20))
    workspace.engine().submit(labeling(), first.submission_id)
    second = workspace.engine().plan(labeling(), tickets(25))
    workspace.engine().submit(labeling(), second.submission_id)
    workspace.emulator.settle()
    workspace.engine().advance(labeling(), first.submission_id)
    status = workspace.finish(labeling(), second.submission_id)
    assert status.submission.outcomes == {"missing": 20, "succeeded": 5}
    assert len(billed(workspace)) == 25
    assert len(stops(workspace, second.submission_id)) == 1
