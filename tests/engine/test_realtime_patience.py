"""A provider that turns calls in real time away holds a run for minutes and not for hours; the rest is asked later."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import polars as pl
import pytest
from workspace import Workspace, assert_total, billed, labeling, tickets

from dagster_llm_batch.engine import Deployment, Engine, Realtime
from dagster_llm_batch.engine.realtime_sample import answer_now
from dagster_llm_batch.errors import PayloadError, TransientError
from dagster_llm_batch.files.request_files import SENT, beside
from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.testing.emulator import WireFault

pytestmark = pytest.mark.slow

CHAT = "POST /v1/chat/completions"


class Run:
    """An engine whose sleep lets time pass; `slept` is the total pause."""

    def __init__(self, workspace: Workspace) -> None:
        self.slept = 0.0
        ledger = Ledger(workspace.tmp_path / "ledger.sqlite")  # its leases go by the time that really passes
        self._workspace = workspace
        self.engine = Engine(
            Deployment(
                workspace.providers, ledger, workspace.engine().payloads, "test", clock=workspace.now, sleep=self._sleep
            )
        )

    def _sleep(self, seconds: float) -> None:
        self.slept += seconds
        self._workspace.skipped += timedelta(seconds=seconds)


def urgent(count: int, start: int = 0) -> pl.DataFrame:
    return tickets(count, start).with_columns(pl.lit(True).alias("now"))


def definition(**realtime: Any) -> Any:
    return labeling(realtime=Realtime(urgent="now", concurrency=1, **realtime))


def calls(workspace: Workspace) -> int:
    return workspace.emulator.books.calls_to("POST", "/v1/chat/completions")


def planned(workspace: Workspace, rows: Any, **realtime: Any) -> str:
    return workspace.engine().plan(definition(**realtime), rows).submission_id


def turn_away(workspace: Workspace, *, skip: int = 0, times: int | None = None, after: Any = "3600") -> None:
    workspace.emulator.inject(
        WireFault(kind="status", route=CHAT, status=429, skip=skip, times=times, retry_after=after)
    )


def test_an_hour_that_the_provider_names_is_not_waited_for_and_the_rest_is_asked_after_it(workspace: Workspace) -> None:
    turn_away(workspace, skip=40)
    one, run = planned(workspace, urgent(100)), Run(workspace)
    status = run.engine.advance(definition(), one)
    assert (run.slept, calls(workspace), len(billed(workspace))) == (0, 41, 40)
    assert status.states == {"collected": 1, "planned": 3}
    [told] = [shard.reason for shard in status.shards if shard.reason]
    assert "openai/gpt-4o is asked for the rest after 2" in told
    later = Run(workspace)
    for _ in range(3):  # earlier runs make no call
        [progress] = later.engine.ledger.submissions.progress("test")
        assert not later.engine.activity.can_advance(progress)
        later.engine.advance(definition(), one)
    assert calls(workspace) == 41
    workspace.skipped += timedelta(hours=1)
    workspace.emulator.clear_faults()
    [progress] = later.engine.ledger.submissions.progress("test")
    assert later.engine.activity.can_advance(progress)
    settled = later.engine.advance(definition(), one)
    assert (settled.submission.outcomes, settled.submission.waves) == ({"succeeded": 100}, 1)
    assert len(billed(workspace)) == len(set(billed(workspace))) == 100
    assert settled.submission.cost_usd is not None
    assert not [name for name in workspace.files() if ".sofar." in name]
    assert_total(workspace, definition(), one, 100)


@pytest.mark.parametrize("after", ["60", None], ids=["a minute each time", "without a time"])
def test_a_provider_that_turns_everything_away_holds_a_run_no_longer_than_its_patience(
    workspace: Workspace, after: str | None
) -> None:
    turn_away(workspace, after=after)
    one, run = planned(workspace, urgent(100)), Run(workspace)
    status = run.engine.advance(definition(), one)
    assert 0 < run.slept <= 300
    assert status.states["planned"] >= 3
    assert billed(workspace) == []
    workspace.emulator.clear_faults()
    workspace.skipped += timedelta(hours=1)
    assert workspace.finish(definition(), one).submission.outcomes == {"succeeded": 100}
    assert len(billed(workspace)) == 100


def test_the_patience_is_for_all_submissions_of_a_run_together(workspace: Workspace) -> None:
    turn_away(workspace)
    run = Run(workspace)
    ids = [run.engine.plan(definition(), urgent(3, 3 * n), partition=f"p{n}").submission_id for n in range(4)]
    for submission_id in ids:
        run.engine.advance(definition(), submission_id)
    assert (run.slept, calls(workspace)) == (0, 1)
    assert all(run.engine.activity.outlook().unavailable_since(submission_id) is not None for submission_id in ids)


def test_answers_earn_patience_back_so_that_a_slow_provider_is_waited_for(workspace: Workspace) -> None:
    rows = 60
    for n in range(rows):  # every other call is turned away for two seconds: more than the patience in all
        turn_away(workspace, skip=n, times=1, after="2")
    one, run = planned(workspace, urgent(rows), patience=timedelta(seconds=70)), Run(workspace)
    settled = run.engine.advance(definition(patience=timedelta(seconds=70)), one)
    assert settled.submission.outcomes == {"succeeded": rows}
    assert run.slept > 70


def test_a_process_that_is_killed_after_it_was_turned_away_leaves_what_was_answered(workspace: Workspace) -> None:
    turn_away(workspace, skip=2)
    one = planned(workspace, urgent(5))
    engine = workspace.engine()
    engine.advance(definition(), one)
    [shard] = engine.ledger.shards.of_submission(one)
    engine.ledger.shards.move(
        shard.shard_id, Transition.SEND, sent_at=workspace.now()
    )  # by a process that dies before its first call
    workspace.emulator.clear_faults()
    settled = workspace.finish(definition(), one)
    assert (settled.submission.outcomes, settled.submission.waves) == ({"succeeded": 5}, 2)
    assert len(billed(workspace)) == len(set(billed(workspace))) == 5


def test_answers_of_a_submission_that_is_canceled_meanwhile_land(workspace: Workspace) -> None:
    turn_away(workspace, skip=2)
    one = planned(workspace, urgent(5))
    workspace.engine().advance(definition(), one)
    workspace.engine().cancel(one)
    settled = workspace.finish(definition(), one)
    assert settled.submission.outcomes == {"succeeded": 2, "canceled": 3}
    assert_total(workspace, definition(), one, 5)


def test_answers_of_a_submission_whose_rows_change_meanwhile_are_not_bought_again(workspace: Workspace) -> None:
    turn_away(workspace, skip=2)
    first = planned(workspace, urgent(5))
    workspace.engine().advance(definition(), first)
    workspace.emulator.clear_faults()
    second = planned(workspace, urgent(7))
    workspace.engine().advance(definition(), first)
    settled = workspace.finish(definition(), second)
    assert settled.submission.outcomes == {"succeeded": 7}
    assert len(billed(workspace)) == len(set(billed(workspace))) == 7
    assert_total(workspace, definition(), second, 7)


def test_no_connection_is_no_lost_answer(workspace: Workspace) -> None:
    there = workspace.providers["openai"]
    one = planned(workspace, urgent(12))
    workspace.providers["openai"] = workspace.openai_at("http://127.0.0.1:1/v1", account=there.account)
    run = Run(workspace)
    status = run.engine.advance(definition(), one)
    assert status.states == {"planned": 1}
    assert run.slept <= 300
    workspace.providers["openai"] = there
    workspace.skipped += timedelta(hours=1)
    settled = workspace.finish(definition(), one)
    assert (settled.submission.outcomes, settled.submission.waves) == ({"succeeded": 12}, 1)


def test_who_asks_now_or_never_is_told_until_when_the_provider_takes_nothing(workspace: Workspace) -> None:
    turn_away(workspace)
    one, run = planned(workspace, urgent(3)), Run(workspace)
    with pytest.raises(TransientError, match=r"not all of it was answered now\. openai/gpt-4o is asked .* after 2"):
        answer_now(run.engine, definition(), one)
    assert (run.slept, calls(workspace)) == (0, 1)


def test_rows_whose_receipt_cannot_be_stored_are_not_asked_and_count_as_not_asked(workspace: Workspace) -> None:
    one, engine = planned(workspace, urgent(3)), Run(workspace).engine
    [shard] = engine.ledger.shards.of_submission(one)
    # A folder with a file in it cannot be overwritten.
    in_the_way = workspace.tmp_path / "payloads" / beside(shard, SENT) / "file"
    in_the_way.mkdir(parents=True)
    with pytest.raises(PayloadError):
        engine.advance(definition(), one)
    assert (calls(workspace), engine.status(one).states) == (0, {"planned": 1})
    in_the_way.rmdir()
    in_the_way.parent.rmdir()
    settled = engine.advance(definition(), one)
    assert (settled.submission.outcomes, settled.submission.waves) == ({"succeeded": 3}, 1)
