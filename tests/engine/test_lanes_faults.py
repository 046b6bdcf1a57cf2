"""Faults in shared batches, real time, fallbacks, deadlines, queues and budgets: nothing lost or paid twice."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from workspace import Workspace, assert_total, billed, in_one_batch, labeling, tickets

from dagster_llm_batch.definition.rules import Budget, QueueLimit
from dagster_llm_batch.engine import Deployment, Engine, Limits, Realtime, Resend
from dagster_llm_batch.errors import CredentialsError, LeaseError, StatusUnknownError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import SubmissionState
from dagster_llm_batch.storage.ledger.schema import LEASE
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    BatchFault,
    RowFault,
    WireFault,
    lost_create_reply,
    rate_limited,
)
from dagster_llm_batch.types import BatchReport, BatchStatus
from tests.statements import statements

pytestmark = pytest.mark.slow

CHAT, CREATE = "POST /v1/chat/completions", "POST /v1/batches"


def engine_with(workspace: Workspace, **rules: Any) -> Engine:
    return Engine(
        Deployment(
            workspace.providers,
            Ledger(workspace.tmp_path / "ledger.sqlite", clock=workspace.now),
            PayloadStore(str(workspace.tmp_path / "payloads")),
            "test",
            clock=workspace.now,
            sleep=lambda _: None,
            **rules,
        )
    )


def plans(workspace: Workspace, definition: Any, partitions: int, rows: int = 3) -> list[str]:
    engine = workspace.engine()
    return [
        engine.plan(definition, tickets(rows, start=rows * n), partition=f"p{n}").submission_id
        for n in range(partitions)
    ]


def flying(engine: Engine, ids: list[str]) -> list[Any]:
    return [
        s for submission_id in ids for s in engine.ledger.shards.of_submission(submission_id) if s.state == "submitted"
    ]


# shared batches -----------------------------------------------------------------------------------------------------


def test_a_shared_batch_is_put_back_as_a_whole_and_never_taken_for_the_one_it_is_sent_as_next(
    workspace: Workspace,
) -> None:
    definition = labeling()
    ids = plans(workspace, definition, 3)
    workspace.emulator.inject(BatchFault(kind="fails", batches=[0]))
    workspace.engine().submit_together(definition, ids)
    workspace.emulator.settle()
    [carrier] = workspace.engine().ledger.shards.of_submission(ids[0])
    workspace.engine().poll([carrier])  # and then the process is killed
    assert [workspace.engine().status(submission_id).states for submission_id in ids] == [{"planned": 1}] * 3
    workspace.skipped += timedelta(hours=1)
    workspace.emulator.inject(lost_create_reply("500"))  # the batch found for the carrier's tag is not the failed one
    assert workspace.engine().submit(definition, ids[0]).states == {"submitted": 1}
    for submission_id in ids:
        assert workspace.finish(definition, submission_id).submission.outcomes == {"succeeded": 3}
        assert_total(workspace, definition, submission_id, 3)
    assert len(billed(workspace)) == len(set(billed(workspace))) == 9


def test_raw_lines_that_are_stored_are_not_replaced_by_another_download_of_their_batch(workspace: Workspace) -> None:
    definition = labeling()
    first, second = plans(workspace, definition, 2)
    workspace.engine().submit_together(definition, [first, second])
    workspace.finish(definition, first)
    stored = {path: path.stat().st_ino for path in workspace.tmp_path.rglob("*.raw.jsonl.zst")}
    assert len(stored) == 2
    lost = next(path for path in stored if second in str(path))
    lost.unlink()  # as if the process was killed between the two
    assert workspace.finish(definition, second).submission.outcomes == {"succeeded": 3}
    assert lost.exists()
    assert all(path.stat().st_ino == node for path, node in stored.items() if path != lost)


class FailsWhereItExpires(OpenAIProvider):
    """Reports, like some jobs of Google and Bedrock, a temporary failure after some rows of the batch ran."""

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        return {
            batch_id: replace(report, status=BatchStatus.FAILED, reason="out of resources", retryable=True)
            if report.status is BatchStatus.EXPIRED
            else report
            for batch_id, report in super().poll(batch_ids).items()
        }


def test_a_failed_batch_that_ran_some_rows_is_taken_home_and_not_put_back(workspace: Workspace) -> None:
    workspace.providers["openai"] = FailsWhereItExpires(
        DEFAULT_KEY, workspace.emulator.openai_base_url, timeout_seconds=5.0
    )
    definition = labeling()
    ids = plans(workspace, definition, 3)
    workspace.emulator.inject(BatchFault(kind="expires", batches=[0], fraction=0.12))  # one row of nine
    workspace.engine().submit_together(definition, ids)
    for submission_id in ids:
        assert workspace.finish(definition, submission_id).submission.outcomes == {"succeeded": 3}
        assert_total(workspace, definition, submission_id, 3)
    assert len(billed(workspace)) == len(set(billed(workspace))) == 9


def test_a_shared_batch_that_is_gone_is_not_read_once_for_each_of_its_shards(workspace: Workspace) -> None:
    definition = labeling()
    ids = plans(workspace, definition, 4)
    engine = workspace.engine()
    engine.submit_together(definition, ids)
    workspace.emulator.inject(WireFault(kind="status", route="GET /v1/batches/*", status=404, times=None))
    engine.poll(flying(engine, ids))
    workspace.skipped += timedelta(hours=2)
    with statements() as asked:
        engine.poll(flying(engine, ids))
    assert [engine.status(one).states for one in ids] == [{"ended": 1}] * 4
    assert not [one for one in asked if one.startswith("SELECT") and "batch_key = " in one.rpartition("WHERE")[2]]


class Stalls(OpenAIProvider):
    """Stalls a call: its reply is read only after another event."""

    meanwhile: Any = None

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        reports = super().poll(batch_ids)
        self.meanwhile()
        return reports


def test_an_old_report_says_nothing_of_the_batch_that_a_shard_was_sent_as_since(workspace: Workspace) -> None:
    definition = labeling()
    workspace.emulator.inject(BatchFault(kind="fails", batches=[0]))
    submission = workspace.engine().plan(definition, tickets(1))  # of more, half would be sent
    workspace.engine().submit(definition, submission.submission_id)
    workspace.emulator.settle()
    usual = workspace.engine()
    slow = Stalls(DEFAULT_KEY, workspace.emulator.openai_base_url, timeout_seconds=5.0)
    shards = usual.ledger.shards.of_submission(submission.submission_id)

    def put_back_and_sent_again() -> None:
        usual.poll(shards)
        workspace.skipped += timedelta(hours=1)
        assert usual.submit(definition, submission.submission_id).states == {"submitted": 1}

    slow.meanwhile = put_back_and_sent_again
    stalled = Engine(Deployment({"openai": slow}, usual.ledger, usual.payloads, "test", clock=workspace.now))
    stalled.poll(shards)
    [shard] = usual.ledger.shards.of_submission(submission.submission_id)
    assert (shard.state, shard.batch.status) == ("submitted", None)
    assert workspace.finish(definition, submission.submission_id).submission.outcomes == {"succeeded": 1}
    assert len(workspace.emulator.books.batches) == 2
    assert len(billed(workspace)) == 1


class KeysInAnotherOrder(OpenAIProvider):
    """A server of the same protocol that writes an answer before its custom_id."""

    def fetch(self, batch_id: str) -> Iterator[bytes]:
        for line in super().fetch(batch_id):
            yield json.dumps(dict(reversed(json.loads(line).items()))).encode() + b"\n"


def test_a_row_that_looks_like_another_shards_custom_id_stays_its_own(workspace: Workspace) -> None:
    workspace.providers["openai"] = KeysInAnotherOrder(
        DEFAULT_KEY, workspace.emulator.openai_base_url, timeout_seconds=5.0
    )
    definition = labeling(resend=Resend(max_waves=1))
    first, second = plans(workspace, definition, 2)
    [other] = workspace.engine().ledger.shards.of_submission(first)
    planted = [f"{other.nonce}-{'0' * 40}", f"r{'0' * 16}-{'0' * 40}"]
    for number, text in enumerate(planted):
        workspace.emulator.inject(RowFault(containing=f"number {number + 3}?", message=f"no such thing as {text}"))
    workspace.engine().submit_together(definition, [first, second])
    assert workspace.finish(definition, first).submission.outcomes == {"succeeded": 3}
    assert workspace.finish(definition, second).submission.outcomes == {"succeeded": 1, "errored": 2}
    _, rejects = assert_total(workspace, definition, second, 3)
    assert all("no such thing" in reason for reason in rejects["llm_reason"].to_pylist())


def test_a_batch_that_carries_several_shards_of_a_submission_is_asked_to_stop_once(workspace: Workspace) -> None:
    submission = workspace.engine().plan(labeling(limits=Limits(max_requests_per_batch=3)), tickets(5))
    workspace.engine().submit(labeling(), submission.submission_id)  # with a larger limit now: one batch
    assert len(workspace.emulator.books.batches) == 1
    workspace.engine().cancel(submission.submission_id)
    workspace.engine().cancel(submission.submission_id)
    assert sum(call.path.endswith("/cancel") for call in workspace.emulator.books.calls) == 1


def test_a_persons_word_waits_for_the_process_that_is_sending(workspace: Workspace) -> None:
    definition = labeling()
    first, second = plans(workspace, definition, 2)
    ledger = workspace.engine().ledger
    shards = [ledger.shards.of_submission(one)[0] for one in (first, second)]
    ledger.shards.move_all([shard.shard_id for shard in shards], Transition.SEND, sent_at=workspace.now())
    with ledger.leases.hold(f"submission:{second}"), pytest.raises(LeaseError):
        workspace.engine().resolve(shards[0].shard_id, None)
    assert workspace.engine().resolve(shards[0].shard_id, None).state == "planned"
    assert workspace.engine().status(second).states == {"planned": 1}


def test_what_is_certain_is_brought_home_while_a_person_is_asked_about_the_rest(workspace: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=3))
    engine = workspace.engine()
    submission = engine.plan(definition, tickets(6))
    certain, unsure = engine.ledger.shards.of_submission(submission.submission_id)
    engine.ledger.shards.move(unsure.shard_id, Transition.SEND, sent_at=workspace.now())
    with engine.payloads.reader(unsure.path) as lines:
        content = lines.read()
    for _ in range(2):  # with two batches of its tag, the right one is unknown
        workspace.providers["openai"].submit(io.BytesIO(content), definition.spec, engine.deployment.tag(unsure))
    with engine.payloads.reader(certain.path) as lines:
        batch_id = workspace.providers["openai"].submit(
            io.BytesIO(lines.read()),
            definition.spec,
            engine.deployment.tag(certain),
        )
    engine.ledger.shards.move(certain.shard_id, Transition.SEND, sent_at=workspace.now())
    engine.ledger.shards.move(certain.shard_id, Transition.ACCEPTED, batch_id=batch_id)
    workspace.emulator.settle()
    with pytest.raises(StatusUnknownError, match=rf"dagster-llm-batch resolve {unsure.shard_id} --batch-id"):
        engine.advance(definition, submission.submission_id)
    assert engine.status(submission.submission_id).states == {"collected": 1, "submitting": 1}


# real time ----------------------------------------------------------------------------------------------------------


def test_a_call_of_unknown_end_is_not_made_again_in_its_wave_when_credentials_fail_after_it(
    workspace: Workspace,
) -> None:
    definition = labeling(realtime=Realtime(urgent="now", concurrency=1))
    workspace.emulator.inject(
        WireFault(kind="close", route=CHAT, when="after"),
        WireFault(kind="status", route=CHAT, status=401, times=None),
    )
    submission = workspace.engine().plan(definition, tickets(4).with_columns(now=True))
    with pytest.raises(CredentialsError):
        workspace.engine().submit(definition, submission.submission_id)
    workspace.emulator.clear_faults()
    status = workspace.finish(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 4}
    assert status.submission.waves == 2


# deadline -----------------------------------------------------------------------------------------------------------


def test_a_reply_that_never_fits_is_not_bought_again_because_it_is_late(workspace: Workspace) -> None:
    definition = labeling(realtime=Realtime(deadline=timedelta(hours=1)), resend=Resend(invalid_waves=1))
    workspace.emulator.inject(RowFault(kind="truncated", containing="number 3?"))
    submission = workspace.engine().plan(definition, tickets(5))
    workspace.engine().submit(definition, submission.submission_id)
    workspace.emulator.settle()
    workspace.skipped += timedelta(hours=2)
    status = workspace.finish(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 4, "invalid": 1}
    assert len(billed(workspace)) == 5


# fallback -----------------------------------------------------------------------------------------------------------


def test_fallbacks_declared_in_another_order_are_asked_in_their_own_name(workspace: Workspace) -> None:
    workspace.emulator.inject(RowFault(containing="number 3?", times=1))
    submission = workspace.engine().plan(
        labeling(resend=Resend(fallback=["openai/gpt-4o-mini", "openai/gpt-4.1-mini"])), tickets(5)
    )
    workspace.engine().submit(labeling(), submission.submission_id)
    definition = labeling(resend=Resend(fallback=["openai/gpt-4.1-mini", "openai/gpt-4o-mini"]))
    status = workspace.finish(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 5}
    assert [shard.model for shard in status.shards] == ["gpt-4o", "gpt-4.1-mini"]
    labels, _ = assert_total(workspace, definition, submission.submission_id, 5)
    assert sum(model.startswith("gpt-4.1-mini") for model in labels["llm_model"].to_pylist()) == 1


@pytest.mark.parametrize("kind", ["status", "truncated"])
def test_inherited_requests_have_the_fallback_too(workspace: Workspace, kind: Any) -> None:
    definition = labeling(resend=Resend(fallback=["openai/gpt-4o-mini"]))
    workspace.emulator.inject(RowFault(kind=kind, containing="number 3?", times=1 if kind == "status" else 2))
    first = workspace.engine().plan(definition, tickets(5))
    workspace.engine().submit(definition, first.submission_id)
    second = workspace.engine().plan(definition, tickets(7))
    assert second.reused == 5
    workspace.engine().submit(definition, second.submission_id)
    workspace.emulator.settle()
    workspace.engine().advance(definition, first.submission_id)
    status = workspace.finish(definition, second.submission_id)
    assert status.submission.outcomes == {"succeeded": 7}
    labels, _ = assert_total(workspace, definition, second.submission_id, 7)
    assert Counter(model[:11] for model in labels["llm_model"].to_pylist()) == {"gpt-4o": 6, "gpt-4o-mini": 1}


def test_a_provider_is_down_since_it_last_took_the_shard(workspace: Workspace) -> None:
    definition = labeling(resend=Resend(fallback=["openai/gpt-4o-mini"], fallback_after=timedelta(minutes=30)))
    engine = engine_with(workspace)
    workspace.emulator.inject(rate_limited(CREATE, times=3), BatchFault(kind="fails", batches=[0]))
    submission = engine.plan(definition, tickets(1))  # of more, half would be sent
    engine.submit(definition, submission.submission_id)
    assert engine.submit(definition, submission.submission_id).states == {"submitted": 1}
    workspace.emulator.settle()
    workspace.skipped += timedelta(hours=1)
    workspace.emulator.inject(rate_limited(CREATE, times=3))
    engine.advance(definition, submission.submission_id)
    workspace.skipped += timedelta(minutes=5)
    engine.advance(definition, submission.submission_id)
    workspace.emulator.settle()
    status = engine.advance(definition, submission.submission_id)
    assert [shard.model for shard in status.shards] == ["gpt-4o"]
    assert status.submission.outcomes == {"succeeded": 1}


# queues -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [QueueLimit(max_requests=7), QueueLimit(max_tokens=600)])
def test_partitions_that_are_sent_together_keep_to_the_queue_limit(workspace: Workspace, limit: QueueLimit) -> None:
    definition = labeling()
    engine = engine_with(workspace, queue_limits={"openai": limit})
    ids = plans(workspace, definition, 5)
    engine.submit_together(definition, ids)
    assert len(flying(engine, ids)) == 2
    runs = 0
    while not all(engine.status(submission_id).is_settled for submission_id in ids):
        waiting = [
            progress for progress in engine.ledger.submissions.progress("test") if not progress.submission.is_settled
        ]
        ready = [one.submission.submission_id for one in waiting if engine.activity.can_advance(one)]
        runs += len(ready)
        assert runs < 40  # runs are requested only if they have work
        for one in ready:
            before = engine.activity.outlook().attempt(one)
            engine.activity.note_turns([one])
            engine.advance(definition, one)
            assert engine.activity.outlook().attempt(one) > before
        assert len(flying(engine, ids)) <= 2
        if not ready:
            workspace.emulator.settle()
            engine.poll(flying(engine, ids))
    assert len(billed(workspace)) == len(set(billed(workspace))) == 15


def test_a_shared_batch_takes_one_place_in_the_queue(workspace: Workspace) -> None:
    definition = labeling()
    engine = engine_with(workspace, queue_limits={"openai": QueueLimit(max_batches=2)})
    first, second, third = plans(workspace, definition, 3)
    engine.submit_together(definition, [first, second])
    assert engine.submit(definition, third).states == {"submitted": 1}


def test_what_waits_for_its_own_time_lets_others_go_first(workspace: Workspace) -> None:
    definition = labeling()
    engine = engine_with(workspace, queue_limits={"openai": QueueLimit(max_batches=1)})
    first, second = plans(workspace, definition, 2)
    workspace.emulator.inject(BatchFault(kind="fails", batches=[0]))
    engine.submit(definition, first)
    workspace.emulator.settle()
    engine.poll(engine.ledger.shards.of_submission(first))
    assert engine.submit(definition, second).states == {"submitted": 1}


def test_a_provider_that_takes_nothing_is_asked_less_often_also_when_others_wait_behind(workspace: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=3))
    engine = engine_with(workspace, queue_limits={"openai": QueueLimit(max_batches=1)})
    submission = engine.plan(definition, tickets(6))
    workspace.emulator.inject(rate_limited(CREATE, times=3))
    engine.submit(definition, submission.submission_id)
    assert engine.activity.outlook().unavailable_since(submission.submission_id) is not None


def test_a_queue_that_another_process_fills_at_this_moment_costs_time_only(workspace: Workspace) -> None:
    definition = labeling()
    engine = engine_with(workspace, queue_limits={"openai": QueueLimit(max_batches=9)})
    [one] = plans(workspace, definition, 1)
    account = workspace.providers["openai"].account
    with workspace.engine().ledger.leases.hold(f"queue:openai:{account}"):
        assert engine.submit(definition, one).states == {"planned": 1}
    assert engine.submit(definition, one).states == {"submitted": 1}


# budgets ------------------------------------------------------------------------------------------------------------


def test_a_fallback_without_a_known_price_is_not_asked_under_a_budget(workspace: Workspace) -> None:
    definition = labeling(resend=Resend(fallback=["openai/of-unknown-price"]))
    engine = engine_with(workspace, budgets=[Budget(100, "ever")])
    workspace.emulator.inject(RowFault(containing="number 1?", times=1))
    submission = engine.plan(definition, tickets(3))
    engine.submit(definition, submission.submission_id)
    workspace.emulator.settle()
    status = engine.advance(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 2, "errored": 1}
    told = [
        event.detail
        for event in engine.ledger.events.of_submission(submission.submission_id)
        if event.kind == "over_budget"
    ]
    assert ["the price of 'openai/of-unknown-price' is unknown" in str(one) for one in told] == [True]


def test_a_next_wave_waits_for_another_process_that_commits_money(workspace: Workspace) -> None:
    definition = labeling()
    engine = engine_with(workspace, budgets=[Budget(100, "ever")], lease_wait_seconds=0.0)
    workspace.emulator.inject(RowFault(status_code=503, times=3))
    submission = engine.plan(definition, tickets(3))
    engine.submit(definition, submission.submission_id)
    workspace.emulator.settle()
    with engine.ledger.leases.hold("budget:test"), pytest.raises(LeaseError):
        engine.advance(definition, submission.submission_id)
    assert workspace.finish(definition, submission.submission_id).submission.outcomes == {"succeeded": 3}


def test_what_new_rows_replace_before_it_was_sent_is_not_counted_beside_them(workspace: Workspace) -> None:
    definition = labeling()
    estimate = workspace.engine().plan(definition, tickets(5, start=100), partition="x").estimated_usd
    assert estimate is not None
    engine = engine_with(workspace, budgets=[Budget(estimate * Decimal("2.5"), "ever")])
    engine.plan(definition, tickets(5))
    engine.plan(definition, tickets(6))
    assert engine.ledger.money.spent_usd("test") < estimate * Decimal("2.5")


# rows that change while batches run ---------------------------------------------------------------------------------


def batches_of(table: Any, between: Any) -> Iterator[pa.RecordBatch]:
    [batch] = table.to_arrow().combine_chunks().to_batches()
    yield batch.slice(0, 1)
    between()
    yield batch.slice(1)


def test_inherited_requests_whose_batch_comes_home_during_the_plan_are_asked_again(workspace: Workspace) -> None:
    definition = labeling()
    workspace.emulator.inject(BatchFault(kind="expires", batches=[0], fraction=0.4))
    first = workspace.engine().plan(definition, tickets(5))
    workspace.engine().submit(definition, first.submission_id)
    second = workspace.engine().plan(definition, tickets(6))  # the first is superseded, and runs
    workspace.engine().submit(definition, second.submission_id)

    def come_home() -> None:
        workspace.emulator.settle()
        workspace.engine().advance(definition, first.submission_id)

    third = workspace.engine().plan(definition, batches_of(tickets(8), come_home))
    workspace.engine().submit(definition, third.submission_id)
    workspace.emulator.settle()
    workspace.engine().advance(definition, second.submission_id)
    status = workspace.finish(definition, third.submission_id)
    assert status.submission.outcomes == {"succeeded": 8}
    assert_total(workspace, definition, third.submission_id, 8)
    assert len(billed(workspace)) == len(set(billed(workspace))) == 8


def test_rows_added_twice_and_removed_while_batches_run_are_asked_once(workspace: Workspace) -> None:
    definition = labeling()
    workspace.emulator.inject(BatchFault(kind="expires", batches=[0, 1], fraction=0.4))
    ids = []
    for count in (4, 6, 9, 5):
        submission = workspace.engine().plan(definition, tickets(count))
        workspace.engine().submit(definition, submission.submission_id)
        ids.append(submission.submission_id)
    workspace.emulator.settle()
    for one in ids[:-1]:
        workspace.engine().advance(definition, one)
    for one in ids[:-1]:
        workspace.engine().advance(definition, one)
    status = workspace.finish(definition, ids[-1])
    assert status.submission.outcomes == {"succeeded": 5}
    assert_total(workspace, definition, ids[-1], 5)
    assert len(billed(workspace)) == len(set(billed(workspace)))
    assert in_one_batch(workspace)


def test_a_source_that_is_canceled_after_it_was_reused_leaves_its_rest_to_who_reuses_it(workspace: Workspace) -> None:
    definition = labeling()
    first = workspace.engine().plan(definition, tickets(5))
    workspace.engine().submit(definition, first.submission_id)
    second = workspace.engine().plan(definition, tickets(7))
    workspace.engine().submit(definition, second.submission_id)
    workspace.engine().cancel(first.submission_id)
    workspace.emulator.settle()
    workspace.engine().advance(definition, first.submission_id)
    status = workspace.finish(definition, second.submission_id)
    assert status.submission.outcomes == {"succeeded": 7}
    assert len(billed(workspace)) == 7


def test_a_plan_that_was_frozen_while_another_process_planned_other_rows_sends_nothing(workspace: Workspace) -> None:
    definition = labeling()
    other: list[str] = []

    def meanwhile() -> None:
        # The lease of a process that is frozen for longer passes to another.
        with sa.create_engine(f"sqlite:///{workspace.tmp_path / 'ledger.sqlite'}").begin() as connection:
            connection.execute(sa.delete(LEASE).where(LEASE.c.name.startswith("plan:")))
        other.append(workspace.engine().plan(definition, tickets(4)).submission_id)

    with pytest.raises(LeaseError, match=r"another process planned other rows meanwhile"):
        workspace.engine().plan(definition, batches_of(tickets(5), meanwhile))
    assert [one.submission_id for one in workspace.engine().ledger.submissions.list_all("test")] == other
    workspace.run(definition, tickets(5))
    assert len(billed(workspace)) == 5


def test_a_plan_killed_after_it_replaced_the_one_before_is_made_again_without_a_second_bill(
    workspace: Workspace,
) -> None:
    definition = labeling()
    first = workspace.engine().plan(definition, tickets(5))
    workspace.engine().submit(definition, first.submission_id)
    workspace.engine().ledger.submissions.set_state(
        first.submission_id, SubmissionState.CANCELED
    )  # and killed before `open`
    for rows in (tickets(5), tickets(6)):
        again = workspace.engine().plan(definition, rows)
        assert again.reused == 5
        workspace.engine().submit(definition, again.submission_id)
    workspace.emulator.settle()
    for submission in workspace.engine().ledger.submissions.list_all("test"):
        workspace.engine().advance(definition, submission.submission_id)
    assert workspace.finish(definition, again.submission_id).submission.outcomes == {"succeeded": 6}
    assert len(billed(workspace)) == 6
