"""The lanes of requests: shared batches, real time, fallbacks, deadlines, queues and budgets."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
import sqlalchemy as sa
from workspace import Workspace, assert_total, billed, labeling, tickets

from dagster_llm_batch.definition.rules import Budget, QueueLimit
from dagster_llm_batch.engine import Deployment, Engine, Fallback, Limits, Realtime, Resend
from dagster_llm_batch.errors import BudgetError, ConfigError, CredentialsError
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.events import Other
from dagster_llm_batch.storage.ledger.schema import SHARD_ROW
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import BatchFault, Emulator, FileFault, RowFault, VendorLimits, WireFault
from tests.statements import statements

pytestmark = pytest.mark.slow

CHAT = "POST /v1/chat/completions"


def engine_with(workspace: Workspace, **rules: Any) -> Engine:
    return Engine(
        Deployment(
            workspace.providers,
            Ledger(workspace.tmp_path / "ledger.sqlite"),
            PayloadStore(str(workspace.tmp_path / "payloads")),
            "test",
            clock=workspace.now,
            sleep=lambda _: None,
            **rules,
        )
    )


def lanes(labels: pl.DataFrame | Any) -> Counter[str]:
    return Counter(labels["llm_lane"].to_pylist())


def calls(workspace: Workspace) -> int:
    return workspace.emulator.books.calls_to("POST", "/v1/chat/completions")


# shared batches -----------------------------------------------------------------------------------------------------


def plans(workspace: Workspace, definition: Any, partitions: int) -> list[str]:
    """Plan partitions of three rows each; return their submissions."""
    engine = workspace.engine()
    return [
        engine.plan(definition, tickets(3, start=3 * n), partition=f"p{n}").submission_id for n in range(partitions)
    ]


def test_partitions_that_are_sent_together_share_a_batch_and_each_gets_its_own_labels(workspace: Workspace) -> None:
    definition = labeling()
    ids = plans(workspace, definition, 10)
    workspace.engine().submit_together(definition, ids)
    assert len(workspace.emulator.books.batches) == 1
    for submission_id in ids:
        status = workspace.finish(definition, submission_id)
        assert status.submission.outcomes == {"succeeded": 3}
        assert_total(workspace, definition, submission_id, 3)
    assert len(billed(workspace)) == 30
    assert workspace.emulator.books.billed_twice() == {}
    assert workspace.emulator.books.calls_to("GET", "/v1/files/") <= 2  # the results are downloaded once


def test_shared_batches_keep_to_the_limit_that_the_user_gave(workspace: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=7))
    ids = plans(workspace, definition, 10)
    workspace.engine().submit_together(definition, ids)
    assert len(workspace.emulator.books.batches) == 5
    for submission_id in ids:
        assert_total(workspace, definition, workspace.finish(definition, submission_id).submission.submission_id, 3)


@pytest.mark.parametrize("how", ["500", "close"])
def test_a_lost_reply_to_a_shared_create_is_found_for_all_that_share_it(workspace: Workspace, how: str) -> None:
    from dagster_llm_batch.testing.emulator import lost_create_reply

    definition = labeling()
    ids = plans(workspace, definition, 4)
    workspace.emulator.inject(lost_create_reply(how))
    workspace.engine().submit_together(definition, ids)
    workspace.skipped += timedelta(hours=1)
    for submission_id in ids:
        assert_total(workspace, definition, workspace.finish(definition, submission_id).submission.submission_id, 3)
    assert len(workspace.emulator.books.batches) == 1
    assert len(billed(workspace)) == 12


def test_faults_in_a_shared_batch_are_healed_in_the_partitions_that_they_hit(workspace: Workspace) -> None:
    definition = labeling()
    ids = plans(workspace, definition, 6)
    workspace.emulator.inject(
        FileFault(kind="missing", fraction=0.2, times=1),
        FileFault(kind="malformed", fraction=0.1, times=1),
        FileFault(kind="foreign", fraction=0.5, times=None),
        FileFault(kind="duplicate", fraction=0.5, times=None),
        FileFault(kind="shuffle", times=None),
    )
    workspace.engine().submit_together(definition, ids)
    for submission_id in ids:
        assert workspace.finish(definition, submission_id).submission.outcomes == {"succeeded": 3}
        assert_total(workspace, definition, submission_id, 3)


def test_canceling_one_of_several_that_share_a_batch_leaves_the_others_their_answers(workspace: Workspace) -> None:
    definition = labeling()
    first, second = plans(workspace, definition, 2)
    workspace.engine().submit_together(definition, [first, second])
    workspace.engine().cancel(first)
    assert workspace.finish(definition, second).submission.outcomes == {"succeeded": 3}
    assert workspace.engine().advance(definition, first).submission.outcomes == {"succeeded": 3}  # it was paid for


def test_a_shared_batch_stops_when_all_that_share_it_are_canceled(workspace: Workspace) -> None:
    definition = labeling()
    ids = plans(workspace, definition, 2)
    workspace.engine().submit_together(definition, ids)
    for submission_id in ids:
        workspace.engine().cancel(submission_id)
    workspace.emulator.settle()
    for submission_id in ids:
        assert workspace.engine().advance(definition, submission_id).submission.outcomes == {"canceled": 3}
    assert billed(workspace) == []


# real time ----------------------------------------------------------------------------------------------------------


def test_urgent_rows_are_answered_at_once_and_the_others_in_a_batch(workspace: Workspace) -> None:
    definition = labeling(realtime=Realtime(urgent="now"))
    rows = tickets(40).with_columns(pl.Series("now", [n % 10 == 0 or None for n in range(40)]))
    submission = workspace.engine().plan(definition, rows)
    status = workspace.engine().submit(definition, submission.submission_id)
    assert calls(workspace) == 4
    assert [shard.state.value for shard in status.shards if shard.lane == "realtime"] == ["ended"]
    assert (status.batches, status.unbatched) == ({ShardState.SUBMITTED: 1}, {ShardState.ENDED: 1})
    [progress] = workspace.engine().ledger.submissions.progress("test")
    assert (progress.batches, progress.unbatched) == (status.batches, status.unbatched)
    assert workspace.finish(definition, submission.submission_id).submission.outcomes == {"succeeded": 40}
    labels, _ = assert_total(workspace, definition, submission.submission_id, 40)
    assert lanes(labels) == {"batch": 36, "realtime": 4}
    for row in labels.to_pylist():
        double = 2 if row["llm_lane"] == "batch" else 1
        assert row["llm_realtime_usd"] == double * row["llm_cost_usd"]
        assert row["llm_price_basis"] == ("batch" if double == 2 else "realtime")


def test_both_lanes_send_the_same_request(workspace: Workspace) -> None:
    workspace.run(labeling(), tickets(3))
    workspace.run(
        labeling(asset="other", realtime=Realtime(urgent="now")), tickets(3).with_columns(pl.lit(True).alias("now"))
    )
    executions = workspace.emulator.books.executions
    assert [execution.batch_id is None for execution in executions].count(True) == 3
    assert len({execution.body_digest for execution in executions}) == 3


def test_a_turned_away_call_in_real_time_is_made_again_and_a_refused_one_is_not(workspace: Workspace) -> None:
    rows = tickets(3).with_columns(pl.lit(True).alias("now"))
    workspace.emulator.inject(WireFault(kind="status", route=CHAT, status=429, times=2))
    status = workspace.run(labeling(realtime=Realtime(urgent="now", concurrency=1)), rows)
    assert status.submission.outcomes == {"succeeded": 3}
    assert len(billed(workspace)) == 3
    assert status.submission.waves == 1


def test_no_call_in_real_time_is_made_before_the_time_that_the_provider_named(workspace: Workspace) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        workspace.skipped += timedelta(seconds=seconds)

    workspace.emulator.inject(WireFault(kind="status", route=CHAT, status=429, retry_after="70"))
    engine = engine_with(workspace)
    waiting = Engine(
        Deployment(workspace.providers, engine.ledger, engine.payloads, "test", clock=workspace.now, sleep=sleep)
    )
    definition = labeling(realtime=Realtime(urgent="now", concurrency=1))
    submission = waiting.plan(definition, tickets(40).with_columns(pl.lit(True).alias("now")))
    assert waiting.advance(definition, submission.submission_id).submission.outcomes == {"succeeded": 40}
    assert slept == [pytest.approx(70, abs=5)]


def test_answers_that_came_before_the_credentials_failed_are_kept(workspace: Workspace) -> None:
    rows = tickets(6).with_columns(pl.lit(True).alias("now"))
    definition = labeling(realtime=Realtime(urgent="now", concurrency=1))
    workspace.emulator.inject(WireFault(kind="status", route=CHAT, status=401, skip=3, times=None))
    submission = workspace.engine().plan(definition, rows)
    with pytest.raises(CredentialsError):
        workspace.engine().submit(definition, submission.submission_id)
    assert len(billed(workspace)) == 3
    workspace.emulator.clear_faults()
    assert workspace.finish(definition, submission.submission_id).submission.outcomes == {"succeeded": 6}
    assert len(billed(workspace)) == 6


def test_a_batch_past_its_deadline_is_stopped_and_the_rest_answered_in_real_time(workspace: Workspace) -> None:
    definition = labeling(realtime=Realtime(deadline=timedelta(hours=6)))
    submission = workspace.engine().plan(definition, tickets(10))
    workspace.engine().submit(definition, submission.submission_id)
    assert workspace.engine().advance(definition, submission.submission_id).states == {"submitted": 1}
    workspace.skipped += timedelta(hours=6)
    workspace.engine().advance(definition, submission.submission_id)  # asks it to stop
    workspace.emulator.settle()
    status = workspace.engine().advance(definition, submission.submission_id)
    status = status if status.is_settled else workspace.engine().advance(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 10}
    labels, _ = assert_total(workspace, definition, submission.submission_id, 10)
    assert lanes(labels)["realtime"] == 10
    assert len(billed(workspace)) == 10
    assert next(shard.batch.status for shard in status.shards) == "canceled"


def test_a_batch_that_is_canceled_at_the_vendor_is_not_answered_in_real_time_at_the_deadline(
    workspace: Workspace,
) -> None:
    definition = labeling(realtime=Realtime(deadline=timedelta(hours=6)))
    submission = workspace.engine().plan(definition, tickets(10))
    [batch_id] = workspace.engine().submit(definition, submission.submission_id).batch_ids
    workspace.providers["openai"].cancel(batch_id)  # as at its console
    workspace.emulator.settle()
    workspace.skipped += timedelta(hours=7)  # no poll since then
    status = workspace.finish(definition, submission.submission_id)
    assert status.submission.outcomes == {"canceled": 10}
    assert calls(workspace) == 0


def test_what_was_not_sent_by_the_deadline_is_answered_in_real_time(workspace: Workspace) -> None:
    definition = labeling(realtime=Realtime(deadline=timedelta(hours=1)))
    submission = workspace.engine().plan(definition, tickets(5))
    workspace.skipped += timedelta(hours=2)
    status = workspace.engine().advance(definition, submission.submission_id)
    status = status if status.is_settled else workspace.engine().advance(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 5}
    assert workspace.emulator.books.batches == []


# fallback -----------------------------------------------------------------------------------------------------------


def test_requests_that_a_model_refuses_go_to_the_next_and_no_others(workspace: Workspace) -> None:
    definition = labeling(resend=Resend(fallback=["openai/gpt-4o-mini"]))
    workspace.emulator.inject(RowFault(containing="number 3?", status_code=400, times=1))
    status = workspace.run(definition, tickets(5))
    assert status.submission.outcomes == {"succeeded": 5}
    labels, _ = assert_total(workspace, definition, status.submission.submission_id, 5)
    assert Counter(model[:11] for model in labels["llm_model"].to_pylist()) == {"gpt-4o": 4, "gpt-4o-mini": 1}
    assert [shard.model for shard in status.shards] == ["gpt-4o", "gpt-4o-mini"]


def test_a_reply_that_never_fits_is_asked_of_the_next_model_after_its_retries(workspace: Workspace) -> None:
    definition = labeling(resend=Resend(invalid_waves=2, fallback=["openai/gpt-4o-mini"]))
    workspace.emulator.inject(RowFault(kind="truncated", containing="number 3?", times=2))
    status = workspace.run(definition, tickets(5))
    assert status.submission.outcomes == {"succeeded": 5}
    assert [(shard.model, shard.requests) for shard in status.shards] == [
        ("gpt-4o", 5),
        ("gpt-4o", 1),
        ("gpt-4o-mini", 1),
    ]


def test_a_provider_that_stays_down_is_replaced_by_the_next_after_a_while(workspace: Workspace) -> None:
    workspace.providers["command"] = workspace.openai(
        name="command", account="other"
    )  # another provider's seat, same wire
    definition = labeling(resend=Resend(fallback=[Fallback("command/gpt-4o")], fallback_after=timedelta(minutes=30)))
    submission = workspace.engine().plan(definition, tickets(4))
    workspace.emulator.inject(WireFault(kind="status", route="POST /v1/batches", status=429, times=6))
    workspace.engine().submit(definition, submission.submission_id)
    assert workspace.emulator.books.batches == []
    workspace.skipped += timedelta(minutes=31)
    status = workspace.finish(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 4}
    assert [(shard.provider, shard.batch.status.value) for shard in status.shards if shard.batch.status] == [
        ("openai", "canceled"),
        ("command", "ended"),
    ]
    labels, _ = assert_total(workspace, definition, submission.submission_id, 4)
    assert set(labels["llm_provider"].to_pylist()) == {"command"}


@pytest.mark.parametrize("fallback", [["openai/gpt-4o"], ["openai/a", "openai/a"], "openai/a", ["nobody"]])
def test_a_fallback_that_cannot_be_is_refused(fallback: Any) -> None:
    with pytest.raises(ConfigError, match=r"fallback|provider/model"):
        labeling(resend=Resend(fallback=fallback))


# queues -------------------------------------------------------------------------------------------------------------


def test_a_shard_that_the_queue_had_no_room_for_is_put_back_and_not_a_try(tmp_path: Any) -> None:
    with Emulator(limits=VendorLimits(enqueued_tokens=130)) as emulator:
        workspace = Workspace(tmp_path, emulator)
        definition = labeling(limits=Limits(max_requests_per_batch=4), resend=Resend(max_waves=1))
        status = workspace.run(definition, tickets(24))
        assert status.submission.outcomes == {"succeeded": 24}
        assert status.submission.waves == 1
        events = workspace.engine().ledger.events.of_submission(status.submission.submission_id)
        assert "put_back" in [event.kind for event in events]
        assert len(billed(workspace)) == 24


@pytest.mark.parametrize("limit", [QueueLimit(max_batches=2), QueueLimit(max_requests=9), QueueLimit(max_tokens=1000)])
def test_what_is_over_a_queue_limit_waits_and_goes_oldest_first(workspace: Workspace, limit: QueueLimit) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=4))
    engine = engine_with(workspace, queue_limits={"openai/gpt-4o": limit})
    first = engine.plan(definition, tickets(12), partition="1")
    second = engine.plan(definition, tickets(8, start=12), partition="2")
    for one in (second, first):  # the older goes first, in either order of calls
        engine.submit(definition, one.submission_id)
    assert engine.status(second.submission_id).states == {"planned": 2}
    assert engine.status(first.submission_id).states == {"submitted": 2, "planned": 1}
    most = 0
    for _ in range(12):
        shards = [s for one in (first, second) for s in engine.ledger.shards.of_submission(one.submission_id)]
        most = max(most, sum(shard.state == "submitted" for shard in shards))
        workspace.emulator.settle()
        for one in (first, second):
            engine.advance(definition, one.submission_id)
    assert most == 2
    for one in (first, second):
        assert engine.status(one.submission_id).is_settled
    assert len(billed(workspace)) == 20


def test_what_waits_for_its_turn_is_not_worth_a_run_until_there_is_room(workspace: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=4))
    engine = engine_with(workspace, queue_limits={"openai": QueueLimit(max_batches=1)})
    submission = engine.plan(definition, tickets(8))
    engine.submit(definition, submission.submission_id)
    [progress] = engine.ledger.submissions.progress("test")
    assert not engine.activity.can_advance(progress)
    before = engine.activity.outlook().attempt(submission.submission_id)
    workspace.emulator.settle()
    engine.poll(engine.ledger.shards.of_submission(submission.submission_id))
    [progress] = engine.ledger.submissions.progress("test")
    assert engine.activity.can_advance(progress)
    assert engine.activity.outlook().attempt(submission.submission_id) > before


def test_a_full_queue_is_asked_about_once_for_a_submission_however_many_shards_wait(
    workspace: Workspace,
) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=4))
    engine = engine_with(workspace, queue_limits={"openai": QueueLimit(max_batches=1)})
    submission = engine.plan(definition, tickets(32))
    engine.submit(definition, submission.submission_id)
    [progress] = engine.ledger.submissions.progress("test")
    assert progress.states == {"submitted": 1, "planned": 7}
    with statements() as asked:
        assert not engine.activity.can_advance(progress)
    assert sum("waits_until" in statement.partition("WHERE")[2] for statement in asked) == 1


def test_a_full_queue_is_read_once_for_a_look_at_all_that_waits_for_it(workspace: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=4))
    engine = engine_with(workspace, queue_limits={"openai": QueueLimit(max_batches=1)})
    for at in range(10):
        submission = engine.plan(definition, tickets(4, start=4 * at), partition=str(at))
        engine.submit(definition, submission.submission_id)
    waiting = [one for one in engine.ledger.submissions.progress("test") if "planned" in one.states]
    assert len(waiting) == 9
    lines = engine.activity.queue_lines()
    with statements() as asked:
        assert not any(engine.activity.can_advance(progress, lines) for progress in waiting)
    assert sum("sum(shards.requests)" in statement for statement in asked) == 1
    workspace.emulator.settle()
    engine.poll(
        [
            shard
            for one in engine.ledger.submissions.progress("test")
            for shard in engine.ledger.shards.of_submission(one.submission.submission_id)
        ]
    )
    lines = engine.activity.queue_lines()
    # A queue keeps its order: only its first submission has room.
    assert [engine.activity.can_advance(progress, lines) for progress in waiting] == [True, *[False] * 8]


def test_the_first_of_a_submission_in_a_queue_goes_whatever_its_id_is(workspace: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=4))
    engine = engine_with(workspace, queue_limits={"openai": QueueLimit(max_batches=1)})
    submission = engine.plan(definition, tickets(8))
    later, first = sorted(shard.shard_id for shard in engine.ledger.shards.of_submission(submission.submission_id))
    # Make the other one later in the queue, as after a recovery by its receipt.
    database = sa.create_engine(f"sqlite:///{workspace.tmp_path / 'ledger.sqlite'}")
    with database.begin() as connection:
        earlier = workspace.now() - timedelta(minutes=5)
        connection.execute(sa.update(SHARD_ROW).where(SHARD_ROW.c.shard_id == first).values(planned_at=earlier))
    database.dispose()
    [progress] = engine.ledger.submissions.progress("test")
    assert engine.activity.can_advance(progress)
    engine.submit(definition, submission.submission_id)
    states = {
        shard.shard_id: shard.state.value for shard in engine.ledger.shards.of_submission(submission.submission_id)
    }
    assert states == {later: "planned", first: "submitted"}


def test_what_nobody_looks_after_holds_no_place_in_a_queue_for_long(workspace: Workspace) -> None:
    removed, present = labeling(asset="removed"), labeling(limits=Limits(max_requests_per_batch=4))
    engine = engine_with(workspace, queue_limits={"openai": QueueLimit(max_batches=1)})
    engine.plan(removed, tickets(4, start=8))
    submission = engine.plan(present, tickets(4))
    assert engine.submit(present, submission.submission_id).states == {"planned": 1}
    workspace.skipped += timedelta(minutes=59)
    engine.activity.keep_places(["removed"])
    workspace.skipped += timedelta(minutes=59)
    assert engine.submit(present, submission.submission_id).states == {"planned": 1}
    workspace.skipped += timedelta(minutes=2)
    [_, progress] = engine.ledger.submissions.progress("test")
    assert engine.activity.can_advance(progress)
    assert engine.submit(present, submission.submission_id).states == {"submitted": 1}


# budgets ------------------------------------------------------------------------------------------------------------


def test_a_budget_of_a_period_holds_over_submissions_and_ends_with_the_period(workspace: Workspace) -> None:
    definition = labeling()
    estimate = workspace.engine().plan(definition, tickets(1, start=100), partition="x").estimated_usd
    assert estimate is not None
    engine = engine_with(workspace, budgets=[Budget(estimate * 60, "day")])
    engine.plan(definition, tickets(40), partition="1")
    with pytest.raises(
        BudgetError,
        match=r"the budget of .* per day has .* left, after .* Nothing was sent. Raise it, or wait for the next day",
    ):
        engine.plan(definition, tickets(40, start=40), partition="2")
    assert len(engine.ledger.submissions.list_all("test")) == 2
    workspace.skipped += timedelta(days=1)
    engine.plan(definition, tickets(40, start=40), partition="2")


def test_a_budget_of_one_asset_leaves_the_others_alone(workspace: Workspace) -> None:
    engine = engine_with(workspace, budgets=[Budget("0.000001", "ever", asset="ticket_labels")])
    engine.plan(labeling(asset="other_labels"), tickets(3))
    with pytest.raises(BudgetError, match="'ticket_labels'"):
        engine.plan(labeling(), tickets(3))


def test_a_retry_that_would_exceed_a_budget_is_left_out_and_told(workspace: Workspace) -> None:
    definition = labeling()
    estimate = workspace.engine().plan(labeling(asset="x"), tickets(5)).estimated_usd
    assert estimate is not None
    engine = engine_with(workspace, budgets=[Budget(estimate * 20, "ever")])
    workspace.emulator.inject(RowFault(status_code=503, times=None))
    submission = engine.plan(definition, tickets(5))
    engine.ledger.events.add(submission.submission_id, Other("test"))
    engine.submit(definition, submission.submission_id)
    engine = engine_with(workspace, budgets=[Budget(Decimal("0.000001"), "ever")])
    workspace.emulator.settle()
    status = engine.advance(definition, submission.submission_id)
    assert status.submission.outcomes == {"errored": 5}
    told = engine.unsent(submission.submission_id).over_budget or ""
    left = "has $0.00 left, after the $0.00"
    assert f"5 requests are not sent: the budget of $0.000001 for all labeled datasets together {left}" in told
    assert "Raise it; then `dagster-llm-batch retry ticket_labels` asks for the rows without a label" in told


# rows that change while a batch runs --------------------------------------------------------------------------------


def test_requests_in_flight_are_not_asked_again_when_rows_are_added(workspace: Workspace) -> None:
    definition = labeling()
    first = workspace.engine().plan(definition, tickets(5))
    workspace.engine().submit(definition, first.submission_id)
    second = workspace.engine().plan(definition, tickets(8))
    assert second.reused == 5
    workspace.engine().submit(definition, second.submission_id)
    workspace.emulator.settle()
    # It also advances the first one, whose answers are due.
    assert workspace.engine().advance(definition, second.submission_id).is_settled
    status = workspace.finish(definition, second.submission_id)
    assert status.submission.outcomes == {"succeeded": 8}
    assert_total(workspace, definition, second.submission_id, 8)
    assert len(billed(workspace)) == 8


def test_inherited_requests_that_failed_are_asked_again_by_who_inherits_them(workspace: Workspace) -> None:
    definition = labeling()
    workspace.emulator.inject(BatchFault(kind="expires", batches=[0], fraction=0.4))
    first = workspace.engine().plan(definition, tickets(5))
    workspace.engine().submit(definition, first.submission_id)
    second = workspace.engine().plan(definition, tickets(7))
    workspace.engine().submit(definition, second.submission_id)
    workspace.emulator.settle()
    workspace.engine().advance(definition, first.submission_id)
    status = workspace.finish(definition, second.submission_id)
    assert status.submission.outcomes == {"succeeded": 7}
    assert_total(workspace, definition, second.submission_id, 7)
    assert len(billed(workspace)) == 7
