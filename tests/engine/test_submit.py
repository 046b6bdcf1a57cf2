"""A create call without a reply: no second batch, and every row has its label. Also the ways to stop work."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import openai
import pytest
from workspace import Workspace, assert_total, billed, labeling, tickets

from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Deployment, Engine, Limits
from dagster_llm_batch.errors import (
    CredentialsError,
    IllegalTransitionError,
    LeaseError,
    LedgerError,
    LLMBatchError,
    StatusUnknownError,
    TransientError,
)
from dagster_llm_batch.files.request_files import SENT, beside
from dagster_llm_batch.loop.submit import Sender
from dagster_llm_batch.providers.capabilities import pass_on_capabilities
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openai_api.batches import TAG_KEY
from dagster_llm_batch.states import ShardState, Transition
from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    BatchFault,
    Emulator,
    WireFault,
    lost_create_reply,
    rate_limited,
)
from dagster_llm_batch.types import Absent, BatchReport, FindHints, Found, RequestSpec, StatusUnknown

pytestmark = pytest.mark.slow

CREATE = "POST /v1/batches"


def sent(workspace: Workspace, rows: int = 5, **changes: Any) -> tuple[Any, str]:
    """Plan rows and submit them once; return the definition and the submission's id."""
    definition = labeling(**changes)
    submission = workspace.engine().plan(definition, tickets(rows))
    workspace.engine().submit(definition, submission.submission_id)
    return definition, submission.submission_id


@pytest.mark.parametrize("how", ["500", "close", "hang"])
def test_a_batch_whose_reply_was_lost_is_found_and_not_created_again(workspace: Workspace, how: Any) -> None:
    workspace.providers = {"openai": workspace.openai(timeout_seconds=0.5)}
    workspace.emulator.inject(lost_create_reply(how))
    definition, submission_id = sent(workspace, 6, limits=Limits(max_requests_per_batch=3))
    status = workspace.finish(definition, submission_id)
    labels, _ = assert_total(workspace, definition, submission_id, 6)
    assert len(labels) == 6
    assert len(workspace.emulator.books.batches) == 2
    assert len(billed(workspace)) == 6
    assert set(status.batch_ids) == {batch.id for batch in workspace.emulator.books.batches}


@pytest.mark.parametrize("how", ["status", "close"])
def test_a_create_that_never_was_is_made_once_the_provider_has_settled(workspace: Workspace, how: Any) -> None:
    workspace.emulator.inject(WireFault(kind=how, route=CREATE, status=500))
    definition, submission_id = sent(workspace)
    assert workspace.engine().status(submission_id).states == {"submitting": 1}
    workspace.skipped += timedelta(seconds=290)  # settle_seconds is 300
    assert workspace.engine().advance(definition, submission_id).states == {"submitting": 1}
    assert len(workspace.emulator.books.batches) == 0
    workspace.skipped += timedelta(seconds=20)
    assert workspace.engine().submit(definition, submission_id).states == {"submitted": 1}
    workspace.finish(definition, submission_id)
    assert_total(workspace, definition, submission_id, 5)
    assert len(workspace.emulator.books.batches) == 1


def test_a_create_call_that_arrives_late_is_found_while_the_engine_waits(workspace: Workspace) -> None:
    workspace.emulator.inject(WireFault(kind="close", route=CREATE))
    definition, submission_id = sent(workspace)
    assert workspace.engine().submit(definition, submission_id).states == {"submitting": 1}
    [file] = [file for file in workspace.emulator.books.files if file.purpose == "batch"]
    client = openai.OpenAI(api_key=DEFAULT_KEY, base_url=workspace.emulator.openai_base_url)
    client.batches.create(  # the delayed request arrives
        input_file_id=file.id,
        endpoint="/v1/chat/completions",
        completion_window="24h",
        metadata={TAG_KEY: file.filename.removesuffix(".jsonl")},
    )
    workspace.skipped += timedelta(hours=1)
    assert workspace.engine().submit(definition, submission_id).states == {"submitted": 1}
    workspace.finish(definition, submission_id)
    assert_total(workspace, definition, submission_id, 5)
    assert len(workspace.emulator.books.batches) == 1


def test_a_create_call_of_a_killed_process_is_waited_for_however_long_its_upload_took(workspace: Workspace) -> None:
    plan = workspace.engine().plan(labeling(), tickets(5))
    [shard] = workspace.engine().ledger.shards.of_submission(plan.submission_id)
    workspace.engine().ledger.shards.move(
        shard.shard_id, Transition.SEND, sent_at=workspace.now()
    )  # then hours of upload, then SIGKILL
    workspace.skipped += timedelta(hours=2)
    assert workspace.engine().submit(labeling(), plan.submission_id).states == {"submitting": 1}
    workspace.skipped += timedelta(seconds=290)  # settle_seconds is 300
    assert workspace.engine().submit(labeling(), plan.submission_id).states == {"submitting": 1}
    assert workspace.emulator.books.calls_to("POST", "/v1/batches") == 0
    workspace.skipped += timedelta(seconds=20)
    assert workspace.engine().submit(labeling(), plan.submission_id).states == {"submitted": 1}
    assert len(workspace.emulator.books.batches) == 1


def test_nothing_is_paid_again_while_the_provider_cannot_be_asked(workspace: Workspace) -> None:
    workspace.emulator.inject(
        lost_create_reply(), WireFault(kind="status", route="GET /v1/batches", status=503, times=None)
    )
    definition, submission_id = sent(workspace)
    workspace.skipped += timedelta(days=1)
    assert workspace.engine().advance(definition, submission_id).states == {"submitting": 1}
    workspace.emulator.clear_faults()
    workspace.finish(definition, submission_id)
    assert len(workspace.emulator.books.batches) == 1


@pytest.mark.parametrize("times", [1, 2])
def test_a_create_call_that_is_refused_for_now_is_made_again(workspace: Workspace, times: int) -> None:
    workspace.emulator.inject(rate_limited(CREATE, retry_after=1, times=times))
    _, submission_id = sent(workspace)
    assert workspace.engine().status(submission_id).states == {"submitted": 1}
    assert len(workspace.emulator.books.batches) == 1


def test_a_provider_that_stays_busy_leaves_the_shard_planned_for_later(workspace: Workspace) -> None:
    workspace.emulator.inject(rate_limited(CREATE, times=None))
    definition, submission_id = sent(workspace)
    [shard] = workspace.engine().status(submission_id).shards
    assert shard.state is ShardState.PLANNED
    assert "too many requests" in (shard.reason or "")
    calls = [call for call in workspace.emulator.books.calls if f"{call.method} {call.path}" == CREATE]
    assert len(calls) == 3
    workspace.emulator.clear_faults()
    workspace.finish(definition, submission_id)
    assert_total(workspace, definition, submission_id, 5)


def test_a_provider_that_is_down_loses_nothing(tmp_path: Any) -> None:
    with Emulator() as emulator:
        workspace = Workspace(tmp_path, emulator)
        port = emulator.port
    definition = labeling()
    engine = Engine(
        Deployment(
            {"openai": workspace.openai_at(f"http://127.0.0.1:{port}/v1", account="same")},
            workspace.engine().ledger,
            workspace.engine().payloads,
            "test",
            clock=workspace.now,
            sleep=lambda _: None,
        )
    )
    submission = engine.plan(definition, tickets(3))
    assert engine.submit(definition, submission.submission_id).states == {"planned": 1}
    with Emulator() as emulator:
        workspace.emulator = emulator
        workspace.providers = {"openai": workspace.openai(account="same")}
        workspace.finish(definition, submission.submission_id)
        assert_total(workspace, definition, submission.submission_id, 3)


def test_a_wrong_key_leaves_the_shard_planned_and_the_right_one_sends_it(workspace: Workspace) -> None:
    workspace.providers = {"openai": workspace.openai(api_key="sk-wrong-key-0123456789")}
    definition = labeling()
    submission = workspace.engine().plan(definition, tickets(4))
    with pytest.raises(CredentialsError, match="does not accept the API key") as caught:
        workspace.engine().submit(definition, submission.submission_id)
    assert "sk-wrong-key" not in str(caught.value)
    assert str(caught.value).endswith(
        ". Correct the credentials of the provider's resource, then run `dagster-llm-batch doctor`."
    )
    assert workspace.engine().status(submission.submission_id).states == {"planned": 1}
    workspace.providers = {"openai": workspace.openai()}
    assert workspace.engine().plan(definition, tickets(4)).submission_id == submission.submission_id
    workspace.engine().submit(definition, submission.submission_id)
    workspace.finish(definition, submission.submission_id)
    assert_total(workspace, definition, submission.submission_id, 4)
    assert len(workspace.emulator.books.batches) == 1


@pytest.mark.parametrize(("status", "reason"), [(401, "does not accept the API key"), (403, "the key may not do this")])
def test_a_key_refused_at_create_leaves_the_shard_planned(workspace: Workspace, status: int, reason: str) -> None:
    workspace.emulator.inject(WireFault(kind="status", route=CREATE, status=status))
    definition = labeling()
    submission = workspace.engine().plan(definition, tickets(4))
    with pytest.raises(CredentialsError, match=reason):
        workspace.engine().submit(definition, submission.submission_id)
    assert workspace.engine().status(submission.submission_id).states == {"planned": 1}


def test_a_create_call_refused_for_good_gives_every_row_the_reason(workspace: Workspace) -> None:
    workspace.emulator.inject(WireFault(kind="status", route=CREATE, status=400, message="No such window."))
    definition, submission_id = sent(workspace)
    workspace.finish(definition, submission_id)
    _, rejects = assert_total(workspace, definition, submission_id, 5)
    assert "No such window." in rejects["llm_reason"].to_pylist()[0]
    assert set(rejects["llm_cost_usd"].to_pylist()) == {0}


def test_one_refused_shard_does_not_stop_its_neighbours(workspace: Workspace) -> None:
    workspace.emulator.inject(WireFault(kind="status", route=CREATE, status=400))
    definition, submission_id = sent(workspace, 6, limits=Limits(max_requests_per_batch=2))
    workspace.finish(definition, submission_id)
    labels, rejects = assert_total(workspace, definition, submission_id, 6)
    assert (len(labels), len(rejects)) == (4, 2)


class Gathering(OpenAIProvider):
    """Sends when enough submits run at once, and counts them."""

    def __init__(self, workspace: Workspace, together: int) -> None:
        super().__init__(DEFAULT_KEY, base_url=workspace.emulator.openai_base_url)
        self._gate = threading.Barrier(together)
        self._lock = threading.Lock()
        self._inside = self.most = 0

    def submit(self, lines: Any, spec: RequestSpec, tag: str) -> str:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        self._gate.wait(60)
        try:
            return super().submit(lines, spec, tag)
        finally:
            with self._lock:
                self._inside -= 1


def test_batches_are_sent_some_at_once_and_no_more(workspace: Workspace) -> None:
    gathering = Gathering(workspace, together=3)
    workspace.providers = {"openai": gathering}
    engine = workspace.engine(transfers_at_once=3)
    definition = labeling(limits=Limits(max_requests_per_batch=2))
    submission_id = engine.plan(definition, tickets(12)).submission_id
    assert engine.submit(definition, submission_id).states == {"submitted": 6}
    assert gathering.most == 3
    workspace.finish(definition, submission_id)
    assert_total(workspace, definition, submission_id, 12)
    assert len(workspace.emulator.books.batches) == 6


def test_batches_of_a_limited_queue_are_sent_one_after_the_other(workspace: Workspace) -> None:
    gathering = Gathering(workspace, together=1)
    workspace.providers = {"openai": gathering}
    engine = workspace.engine(queue_limits={"openai": QueueLimit(max_batches=2)})
    definition = labeling(limits=Limits(max_requests_per_batch=2))
    submission_id = engine.plan(definition, tickets(8)).submission_id
    assert engine.submit(definition, submission_id).states == {"submitted": 2, "planned": 2}
    assert gathering.most == 1


def test_a_key_that_is_refused_while_others_are_sent_leaves_each_sent_or_planned(workspace: Workspace) -> None:
    workspace.emulator.inject(WireFault(kind="status", route=CREATE, status=401))
    definition = labeling(limits=Limits(max_requests_per_batch=1))
    submission_id = workspace.engine().plan(definition, tickets(40)).submission_id
    with pytest.raises(CredentialsError):
        workspace.engine().submit(definition, submission_id)
    states = workspace.engine().status(submission_id).states
    assert states.keys() == {"submitted", "planned"}
    assert states["planned"] > 1  # and no further one began
    assert states["submitted"] == len(workspace.emulator.books.batches)
    workspace.finish(definition, submission_id)
    assert_total(workspace, definition, submission_id, 40)
    assert len(workspace.emulator.books.batches) == len(billed(workspace)) == 40


def test_a_request_file_that_was_changed_is_not_sent(workspace: Workspace) -> None:
    definition = labeling()
    submission = workspace.engine().plan(definition, tickets(3))
    [shard] = workspace.engine().status(submission.submission_id).shards
    with workspace.engine().payloads.writer(shard.path) as out:
        out.write(b'{"custom_id":"other"}\n')
    with pytest.raises(LLMBatchError, match=r": .* its digest differs\. Nothing was sent\. Restore it"):
        workspace.engine().submit(definition, submission.submission_id)
    assert workspace.engine().status(submission.submission_id).states == {"planned": 1}
    workspace.engine().payloads.delete(shard.path)
    with pytest.raises(LLMBatchError, match="cannot be read"):
        workspace.engine().submit(definition, submission.submission_id)
    assert workspace.emulator.books.batches == []


def test_a_process_that_was_frozen_before_it_wrote_a_receipt_leaves_that_of_another(workspace: Workspace) -> None:
    engine = workspace.engine()
    submission = engine.plan(labeling(), tickets(3))
    [shard] = engine.ledger.shards.of_submission(submission.submission_id)

    def freeze(_: Any, padding: int) -> bool:
        workspace.skipped += timedelta(days=1)
        # By a process that has sent it meanwhile.
        with engine.payloads.writer(beside(shard, SENT)) as out:
            out.write(b"newer")
        return True

    with engine.ledger.leases.hold(f"submission:{submission.submission_id}") as lease:
        sender = Sender(engine.deployment, lease, freeze)
        with pytest.raises(LeaseError, match="was lost"):
            sender.send([shard], labeling().spec)
    with engine.payloads.reader(beside(shard, SENT)) as receipt:
        assert receipt.read() == b"newer"
    assert workspace.emulator.books.batches == []


def test_two_engines_at_once_send_each_shard_once(workspace: Workspace) -> None:
    definition = labeling()
    submission = workspace.engine().plan(definition, tickets(3))
    with workspace.engine().ledger.leases.hold(f"submission:{submission.submission_id}"):
        with pytest.raises(LeaseError, match="is held by"):
            workspace.engine().submit(definition, submission.submission_id)
        assert workspace.engine().activity.outlook().is_busy(submission.submission_id)
    workspace.engine().submit(definition, submission.submission_id)
    workspace.engine().submit(definition, submission.submission_id)
    assert len(workspace.emulator.books.batches) == 1


def test_polling_while_another_process_polls_is_no_error(workspace: Workspace) -> None:
    _, submission_id = sent(workspace)
    stale = workspace.engine().ledger.shards.of_submission(submission_id)
    workspace.emulator.settle()
    workspace.engine().poll(stale)
    workspace.engine().poll(stale)
    assert workspace.engine().status(submission_id).states == {"ended": 1}


# resolving by hand ----------------------------------------------------------------------------------------------------


class Forgetful:
    """The real provider, except that it cannot find out whether a create call succeeded."""

    def __init__(self, real: Any) -> None:
        self._real = real
        pass_on_capabilities(real, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def find(self, _tag: str, _hints: FindHints) -> Found | Absent | StatusUnknown:
        return StatusUnknown("the list of batches shows no metadata", ("batch_1", "batch_2"))


def doubtful(workspace: Workspace, *faults: Any) -> tuple[Any, str, str]:
    workspace.providers = {"openai": Forgetful(workspace.openai())}  # type: ignore[dict-item]
    workspace.emulator.inject(*faults)
    definition = labeling()
    submission = workspace.engine().plan(definition, tickets(3))
    with pytest.raises(StatusUnknownError, match="It is not sent again") as caught:
        workspace.engine().submit(definition, submission.submission_id)
    [shard] = workspace.engine().status(submission.submission_id).shards
    for told in (shard.shard_id, "batch_1, batch_2", "Engine.resolve"):
        assert told in str(caught.value)
    workspace.skipped += timedelta(days=2)
    with pytest.raises(StatusUnknownError):
        workspace.engine().advance(definition, submission.submission_id)
    return definition, submission.submission_id, shard.shard_id


def test_a_person_who_knows_the_batch_resolves_the_doubt(workspace: Workspace) -> None:
    definition, submission_id, shard_id = doubtful(workspace, lost_create_reply())
    [batch] = workspace.emulator.books.batches
    workspace.engine().resolve(shard_id, batch.id)
    workspace.finish(definition, submission_id)
    assert_total(workspace, definition, submission_id, 3)
    assert len(workspace.emulator.books.batches) == 1


def test_a_person_who_knows_that_there_is_none_resolves_the_doubt(workspace: Workspace) -> None:
    definition, submission_id, shard_id = doubtful(workspace, WireFault(kind="status", route=CREATE, status=500))
    workspace.engine().resolve(shard_id, None)
    with pytest.raises(IllegalTransitionError):
        workspace.engine().resolve(shard_id, "batch_9")
    kinds = [event.kind for event in workspace.engine().ledger.events.of_submission(submission_id)]
    assert kinds[-1] == Transition.NOT_SENT.value  # the refused one left no trace
    workspace.engine().submit(definition, submission_id)
    workspace.finish(definition, submission_id)
    assert len(workspace.emulator.books.batches) == 1


# to stop --------------------------------------------------------------------------------------------------------------


def test_cancel_keeps_the_rows_that_were_finished_and_asks_for_no_more(tmp_path: Any) -> None:
    with Emulator(work_steps=2) as emulator:
        workspace = Workspace(tmp_path, emulator)
        definition, submission_id = sent(workspace, 10)
        emulator.tick(2)  # validated, and half of the rows ran
        workspace.engine().cancel(submission_id)
        workspace.engine().cancel(submission_id)  # again: nothing
        status = workspace.finish(definition, submission_id)
        labels, rejects = assert_total(workspace, definition, submission_id, 10)
        assert (len(labels), len(rejects)) == (5, 5)
        assert set(rejects["llm_outcome"].to_pylist()) == {"canceled"}
        assert status.submission.state.value == "canceled"
        assert status.submission.waves == 1
        resumed = workspace.run(definition, tickets(10))  # asked for again: the rest only
        assert resumed.submission.reused == 5
        assert len(billed(workspace)) == len(set(billed(workspace))) == 10


def test_cancel_before_sending_sends_nothing(workspace: Workspace) -> None:
    definition = labeling()
    submission = workspace.engine().plan(definition, tickets(3))
    workspace.engine().cancel(submission.submission_id)
    status = workspace.finish(definition, submission.submission_id)
    assert status.submission.outcomes == {"canceled": 3}
    assert workspace.emulator.books.batches == []


@pytest.mark.parametrize("exists", [True, False])
def test_cancel_reaches_a_batch_of_unknown_end_too(workspace: Workspace, exists: bool) -> None:
    workspace.emulator.inject(
        lost_create_reply() if exists else WireFault(kind="status", route=CREATE, status=500),
        WireFault(kind="status", route="GET /v1/batches", status=503),
    )
    definition, submission_id = sent(workspace)
    assert workspace.engine().status(submission_id).states == {"submitting": 1}
    workspace.engine().cancel(submission_id)
    workspace.skipped += timedelta(hours=1)
    status = workspace.finish(definition, submission_id)
    assert status.submission.outcomes == {"canceled": 5}
    assert billed(workspace) == []


def test_cancel_also_stops_the_batch_of_the_rows_before_that_these_rows_replaced(workspace: Workspace) -> None:
    definition, first = sent(workspace, 5)
    second = workspace.engine().plan(definition, tickets(7))  # five of them are on their way
    workspace.engine().submit(definition, second.submission_id)
    workspace.engine().cancel(second.submission_id)
    workspace.emulator.settle()
    for submission_id in (first, second.submission_id):
        assert "succeeded" not in workspace.finish(definition, submission_id).submission.outcomes
    assert billed(workspace) == []
    assert workspace.engine().ledger.shards.in_flight("test") == []


def test_cancel_of_what_is_settled_is_refused(workspace: Workspace) -> None:
    status = workspace.run(labeling(), tickets(2))
    with pytest.raises(LedgerError, match="'settled'"):
        workspace.engine().cancel(status.submission.submission_id)


class Interrupted(KeyboardInterrupt):
    pass


@pytest.mark.parametrize("after", range(1, 12))
def test_an_interrupt_anywhere_cancels_nothing_and_the_next_run_goes_on(workspace: Workspace, after: int) -> None:
    left = [after]

    def clock() -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Interrupted
        return workspace.now()

    definition = labeling()
    interrupted = Engine(
        Deployment(
            workspace.providers,
            workspace.engine().ledger,
            workspace.engine().payloads,
            "test",
            clock=clock,
            sleep=lambda _: None,
        )
    )
    try:
        submission = interrupted.plan(definition, tickets(3))
        interrupted.submit(definition, submission.submission_id)
        workspace.emulator.settle()
        interrupted.advance(definition, submission.submission_id)
    except Interrupted:
        pass
    assert not any("cancel" in call.path for call in workspace.emulator.books.calls)
    status = workspace.run(definition, tickets(3))
    assert status.submission.outcomes == {"succeeded": 3}
    assert_total(workspace, definition, status.submission.submission_id, 3)
    assert len(workspace.emulator.books.batches) == 1


def test_the_steps_say_what_is_to_do_next(workspace: Workspace) -> None:
    workspace.emulator.inject(lost_create_reply(), WireFault(kind="status", route="GET /v1/batches", status=503))
    definition, submission_id = sent(workspace)
    engine = workspace.engine()

    def progress() -> Sequence[Any]:
        return engine.ledger.submissions.progress("test")

    assert engine.activity.needs_recovery(progress()[0])
    assert not engine.activity.can_advance(progress()[0])
    engine.recover_batches(submission_id)
    assert not engine.activity.needs_recovery(progress()[0])
    before = engine.activity.outlook().attempt(submission_id)
    workspace.emulator.settle()
    engine.poll(engine.ledger.shards.in_flight("test"))
    assert engine.activity.can_advance(progress()[0])
    assert engine.activity.outlook().attempt(submission_id) > before
    engine.advance(definition, submission_id)
    assert engine.status(submission_id).done == engine.status(submission_id).total == 5


class Odd(OpenAIProvider):
    """Cannot read one of its batches, and reports impossible values for another."""

    broken = ""
    strange = ""

    def poll(self, batch_ids: Sequence[str]) -> Mapping[str, BatchReport]:
        if self.broken in batch_ids:
            raise ZeroDivisionError(self.broken)
        strange: Any = {"status": "no status", "done": "many"}
        return {
            name: replace(report, **strange) if name == self.strange else report
            for name, report in super().poll(batch_ids).items()
        }


def test_of_many_batches_those_that_cannot_be_read_are_told_and_the_others_recorded(workspace: Workspace) -> None:
    odd = Odd(DEFAULT_KEY, workspace.emulator.openai_base_url, timeout_seconds=5.0)
    workspace.providers["openai"] = odd
    definition = labeling()
    for number in range(7):
        submission = workspace.engine().plan(definition, tickets(2, 2 * number), partition=str(number))
        workspace.engine().submit(definition, submission.submission_id)
    workspace.emulator.settle()
    engine = workspace.engine()
    flying = engine.ledger.shards.in_flight("test")
    odd.broken, odd.strange = str(flying[1].batch.batch_id), str(flying[5].batch.batch_id)
    told: dict[str, str] = {}
    engine.poll(flying, lambda shards, error: told.update({s.shard_id: type(error).__name__ for s in shards}))
    assert told.keys() == {flying[1].shard_id, flying[5].shard_id}
    assert told[flying[1].shard_id] == "ZeroDivisionError"
    left = engine.ledger.shards.in_flight("test")
    assert {shard.shard_id for shard in left} == told.keys()
    with pytest.raises(ZeroDivisionError):  # without a callback, after the rest is done
        engine.poll(left)
    odd.broken = odd.strange = ""
    engine.poll(left)
    assert engine.ledger.shards.in_flight("test") == []


def test_what_has_ended_is_stored_though_another_batch_of_the_submission_cannot_be_read(workspace: Workspace) -> None:
    odd = Odd(DEFAULT_KEY, workspace.emulator.openai_base_url, timeout_seconds=5.0)
    workspace.providers["openai"] = odd
    definition = labeling(limits=Limits(max_requests_per_batch=2))
    submission = workspace.engine().plan(definition, tickets(4))
    workspace.engine().submit(definition, submission.submission_id)
    workspace.emulator.settle()
    engine = workspace.engine()
    first, second = engine.ledger.shards.of_submission(submission.submission_id)
    odd.broken = str(second.batch.batch_id)
    with pytest.raises(ZeroDivisionError):
        engine.collect(definition, submission.submission_id)
    assert engine.ledger.shards.get(first.shard_id).raw_path is not None
    odd.broken = ""
    assert workspace.finish(definition, submission.submission_id).submission.outcomes == {"succeeded": 4}


def test_a_poll_of_a_provider_that_is_down_says_so_and_of_two_keeps_what_came(workspace: Workspace) -> None:
    _, submission_id = sent(workspace)
    workspace.emulator.inject(WireFault(kind="status", route="GET /v1/batches*", status=500, times=None))
    with pytest.raises(TransientError):
        workspace.engine().poll(workspace.engine().ledger.shards.in_flight("test"))
    workspace.emulator.inject(BatchFault(kind="stuck"))
    assert workspace.engine().status(submission_id).states == {"submitted": 1}


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "not polled"])
def test_answers_of_a_batch_that_was_given_up_and_ended_are_not_paid_again_by_a_retry(workspace, is_known):
    engine = workspace.engine()
    submission_id = engine.plan(labeling(), tickets(4)).submission_id
    engine.submit(labeling(), submission_id)
    engine.give_up(engine.ledger.shards.of_submission(submission_id)[0].shard_id)
    assert engine.advance(labeling(), submission_id).is_settled
    workspace.emulator.settle()
    if is_known:
        engine.poll_awaited(["ticket_labels"], engine.now())
        assert engine.preview(labeling(), tickets(5), again=True).to_send == 1
    retry = workspace.engine().plan(labeling(), tickets(5), again=True).submission_id
    workspace.engine().submit(labeling(), retry)
    workspace.engine().advance(labeling(), submission_id)
    workspace.finish(labeling(), retry)
    assert_total(workspace, labeling(), retry, 5)
    assert len(billed(workspace)) == 5
