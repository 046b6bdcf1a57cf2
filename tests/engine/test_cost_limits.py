"""Bills stay within `max_cost_usd` and budgets, whatever the vendor bills up to its documented maximum.

The first tests use limits that once admitted work with a bill of 4 to 10 times the limit.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest
from workspace import Workspace, labeling, tickets
from workspace import billed as paid_bodies

from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.definition.labeling import Fallback
from dagster_llm_batch.definition.rules import Budget, LimitKind
from dagster_llm_batch.engine import Labeling, Limits, Realtime, Resend, Spend, Status
from dagster_llm_batch.errors import BudgetError
from dagster_llm_batch.files.request_files import request_ids
from dagster_llm_batch.loop.submit_queue import Dispatcher
from dagster_llm_batch.storage.ledger.records import SpendLimit
from dagster_llm_batch.testing.emulator import Emulator, FileFault, Reply, RowFault, WireFault

GOOD = '{"topic": "bug", "urgency": 3}'
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (1_024).to_bytes(4, "big") * 2
KINDS: list[LimitKind] = ["hard", "measured"]
# A reply of 50 tokens of gpt-4o in a batch, and one as long as it can be; about 200 tokens are expected of it.
FREE_TEXT: dict[str, Any] = {"params": {}, "response": None}


def reply(tokens: int, given: int = 60, text: str = GOOD) -> Callable[..., Reply]:
    return lambda *_: Reply(text=text, input_tokens=given, output_tokens=tokens)


def spend(kind: LimitKind) -> Spend:
    return Spend(limit=kind, expected_output_tokens=10)


def run(workspace: Workspace, definition: Labeling, rows: Any, most_steps: int = 60, **rules: Any) -> Status:
    """Run to the end; check that commitments never exceed the limit."""
    engine = workspace.engine(**rules)
    submission = engine.plan(definition, rows)
    engine.submit(definition, submission.submission_id)
    for _ in range(most_steps):
        if definition.spend.limit == "hard" and definition.budget_usd is not None:
            limit = SpendLimit(definition.budget_usd, "test", submission_id=submission.submission_id)
            assert engine.ledger.money.committed_usd(limit) <= limit.max_usd
        workspace.emulator.settle()
        workspace.skipped += timedelta(hours=1)
        status = workspace.engine(**rules).advance(definition, submission.submission_id)
        if status.is_settled:
            return status
    raise AssertionError(f"not settled: {status.states}")


def billed(status: Status) -> Decimal:
    """Return the cost of all batches, including padding and all waves."""
    return sum((shard.bill.cost_usd or Decimal(0) for shard in status.shards), Decimal(0))


def given_up_reason(workspace: Workspace, status: Status) -> str:
    return workspace.engine().unsent(status.submission.submission_id).over_budget or ""


ONCE = {
    "gpt-5-nano thinks": ({"model": "openai/gpt-5-nano", "params": {}}, reply(1_300), tickets(400), "0.03", "0.1036"),
    "free text of gpt-4o": (FREE_TEXT, reply(1_500, text="word " * 9), tickets(540), "0.70", "4.04"),
    "images to gpt-4o-mini": (
        {"model": "openai/gpt-4o-mini", "prompt": Prompt(user="{{ subject }}", images=["picture"])},
        reply(30, given=2_833 + 4 * 5_667 + 60),
        tickets(100).with_columns(picture=pl.lit(PICTURE)),
        "0.02",
        "0.193",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ONCE)
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_billed_beyond_its_limit_is_no_more(tmp_path: Any, name: str, kind: LimitKind) -> None:
    changes, answer, rows, limit, bill = ONCE[name]
    definition = labeling(**changes, max_cost_usd=limit, spend=spend(kind))
    with Emulator(answer=answer) as emulator:
        workspace = Workspace(tmp_path, emulator)
        if name.startswith("images"):
            # They are known to cost more.
            with pytest.raises(BudgetError, match="exceeds max_cost_usd"):
                run(workspace, definition, rows)
            assert not emulator.books.batches
            assert round(billed(run(workspace, labeling(**changes), rows)), 3) == Decimal(bill)
            return
        status = run(workspace, definition, rows)
        reason = given_up_reason(workspace, status)
    assert 0 < billed(status) <= Decimal(limit)
    answered = status.submission.outcomes["succeeded"]
    assert billed(status) / answered * rows.height > Decimal(bill) * Decimal("0.98")
    assert f"{rows.height - answered:,} requests are not sent: max_cost_usd={limit} has " in reason
    assert "Raise the limit; then `dagster-llm-batch retry ticket_labels` asks" in reason


@pytest.mark.parametrize("kind", KINDS)
def test_what_costs_less_than_the_limit_at_most_goes_at_once(workspace: Workspace, kind: LimitKind) -> None:
    definition = labeling(max_cost_usd=1, spend=Spend(limit=kind))
    status = run(workspace, definition, tickets(30), most_steps=1)
    assert [shard.requests for shard in status.shards] == [30]
    assert len(workspace.emulator.books.batches) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_any_cost_go_in_steps_that_keep_to_the_limit(tmp_path: Any, kind: LimitKind) -> None:
    lengths = random.Random(1)

    def answer(*_: Any) -> Reply:
        return Reply(text="word", input_tokens=60, output_tokens=min(16_384, int(lengths.paretovariate(1.1) * 100)))

    definition = labeling(**FREE_TEXT, max_cost_usd="1.2", spend=spend(kind))
    with Emulator(answer=answer) as emulator:
        workspace = Workspace(tmp_path, emulator)
        preview = workspace.engine().preview(definition, tickets(100))
        assert (preview.bound_usd or 0) > 8
        assert (preview.steps or 0) > 1
        status = run(workspace, definition, tickets(100))
    assert status.submission.outcomes == {"succeeded": 100}
    assert status.submission.cost_usd == billed(status) <= Decimal("1.2")
    assert len({shard.batch.batch_id for shard in status.shards}) > 1


@pytest.mark.slow
def test_a_sample_lets_the_rest_out_in_fewer_steps(tmp_path: Any) -> None:
    steps = {}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        with Emulator(answer=reply(400, text="word")) as emulator:
            workspace = Workspace(tmp_path / kind, emulator)
            definition = labeling(**FREE_TEXT, max_cost_usd=5, spend=spend(kind))
            status = run(workspace, definition, tickets(600))
            steps[kind] = len(emulator.books.batches)
        assert status.submission.outcomes == {"succeeded": 600}
    # A sample, and two releases.
    assert steps["measured"] <= 3
    assert steps["hard"] > 8


def test_a_sample_of_several_shards_has_the_requests_of_the_lowest_digests(tmp_path: Any) -> None:
    definition = labeling(
        **FREE_TEXT, max_cost_usd="1.2", spend=spend("measured"), limits=Limits(max_requests_per_batch=3)
    )
    with Emulator(answer=reply(400, text="word")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        engine = workspace.engine()
        submission = engine.plan(definition, tickets(60))
        engine.submit(definition, submission.submission_id)
        sent, all_ids = list[str](), list[str]()
        for shard in engine.ledger.shards.of_submission(submission.submission_id):
            ids = request_ids(engine.payloads, shard)
            all_ids += ids
            sent += ids if shard.batch.sent_at else []
    assert 3 < len(sent) < 60
    assert sorted(sent) == sorted(all_ids)[: len(sent)]


@pytest.mark.slow
def test_rows_that_are_sorted_by_their_cost_are_drawn(tmp_path: Any) -> None:
    """Sort rows by rising cost: a sample of the first rows would admit rows that cost too much."""

    def answer(body: Any, _url: str) -> Reply:
        number = int(str(body).rpartition("invoice number ")[2].partition("?")[0])
        return Reply(text="word", input_tokens=60, output_tokens=50 if number < 450 else 16_384)

    definition = labeling(**FREE_TEXT, max_cost_usd="2.5", spend=spend("measured"))
    with Emulator(answer=answer) as emulator:
        workspace = Workspace(tmp_path, emulator)
        status = run(workspace, definition, tickets(600))
        reason = given_up_reason(workspace, status)
    assert 1 < billed(status) <= Decimal("2.5")
    assert "requests are not sent" in reason


def test_a_larger_limit_asks_for_the_rest(tmp_path: Any) -> None:
    with Emulator(answer=reply(16_384, text="word")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        small = labeling(**FREE_TEXT, max_cost_usd="0.5", spend=spend("hard"))
        status = run(workspace, small, tickets(20))
        assert status.submission.outcomes == {"succeeded": 6, "canceled": 14}
        large = labeling(**FREE_TEXT, max_cost_usd=2, spend=spend("hard"))
        again = workspace.run(large, tickets(20), again=True)
    assert again.submission.outcomes == {"succeeded": 20}
    assert [shard.requests for shard in again.shards] == [14]


@pytest.mark.parametrize("kind", KINDS)
def test_real_time_goes_in_steps_too(tmp_path: Any, kind: LimitKind) -> None:
    rows = tickets(40).with_columns(is_urgent=pl.lit(value=True))
    realtime = Realtime(urgent="is_urgent", concurrency=2)
    definition = labeling(**FREE_TEXT, realtime=realtime, max_cost_usd="1.5", spend=spend(kind))
    with Emulator(answer=reply(400, text="word")) as emulator:
        status = run(Workspace(tmp_path, emulator), definition, rows)
    assert status.submission.outcomes == {"succeeded": 40}
    assert billed(status) <= Decimal("1.5")
    assert max(shard.requests for shard in status.shards) <= 9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_restored", [False, True], ids=["", "after a restore of the ledger"])
def test_what_was_answered_in_real_time_is_not_paid_again_after_the_limit_was_lowered(
    tmp_path: Any, kind: LimitKind, *, is_restored: bool
) -> None:
    rows = tickets(20).with_columns(is_urgent=pl.lit(value=True))
    limited = {**FREE_TEXT, "realtime": Realtime(urgent="is_urgent", concurrency=1), "spend": spend(kind)}
    before, after = labeling(**limited, max_cost_usd=5), labeling(**limited, max_cost_usd=1)
    with Emulator(answer=reply(400, text="word")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        engine = workspace.engine()
        submission_id = engine.plan(before, rows).submission_id
        turned_away = WireFault(
            kind="status", route="POST /v1/chat/completions", status=429, skip=7, times=None, retry_after="3600"
        )
        emulator.inject(turned_away)
        engine.submit(before, submission_id)
        assert len(paid_bodies(workspace)) == 7
        emulator.clear_faults()
        engine.ledger.close()
        shutil.copy(tmp_path / "ledger.sqlite", tmp_path / "backup.sqlite")
        workspace.skipped += timedelta(hours=1)
        engine = workspace.engine()
        engine.submit(after, submission_id)
        engine.ledger.close()
        if is_restored:
            shutil.copy(tmp_path / "backup.sqlite", tmp_path / "ledger.sqlite")
            workspace.engine().recovery.recover(after.asset)
        status = workspace.finish(after, submission_id)
        assert len(paid_bodies(workspace)) == len(set(paid_bodies(workspace))) == 20
    assert status.submission.outcomes == {"succeeded": 20}
    assert billed(status) <= 1
    assert not [name for name in workspace.files() if ".sofar." in name]


def test_what_was_answered_is_split_once_however_often_a_process_dies_before_it_is_sent(tmp_path: Any) -> None:
    rows = tickets(20).with_columns(is_urgent=pl.lit(value=True))
    limited = {**FREE_TEXT, "realtime": Realtime(urgent="is_urgent", concurrency=1), "spend": spend("hard")}
    before, after = labeling(**limited, max_cost_usd=5), labeling(**limited, max_cost_usd=1)
    with Emulator(answer=reply(400, text="word")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        engine = workspace.engine()
        submission_id = engine.plan(before, rows).submission_id
        emulator.inject(
            WireFault(
                kind="status", route="POST /v1/chat/completions", status=429, skip=7, times=None, retry_after="3600"
            )
        )
        engine.submit(before, submission_id)
        emulator.clear_faults()
        workspace.skipped += timedelta(hours=1)
        for _ in range(3):
            # Do the work of a process that is killed right before it sends its picked shards.
            engine = workspace.engine()
            with engine.deployment.leased(submission_id) as lease:
                dispatcher = Dispatcher(after, engine.deployment, lease)
                [going] = dispatcher._allowance.pick(
                    engine.ledger.shards.of_submission(submission_id), all_due=True
                ).going
            assert going.requests == 7
            assert [shard.requests for shard in engine.ledger.shards.of_submission(submission_id)] == [7, 13]
        status = workspace.finish(after, submission_id)
        assert len(paid_bodies(workspace)) == len(set(paid_bodies(workspace))) == 20
    assert status.submission.outcomes == {"succeeded": 20}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "limit", "is_enough"), [("hard", "0.9", True), ("measured", "0.25", False)])
def test_retries_and_a_fallback_are_inside_of_the_limit(
    tmp_path: Any, kind: LimitKind, limit: str, *, is_enough: bool
) -> None:
    resend = Resend(max_waves=3, invalid_waves=3, fallback=[Fallback("openai/gpt-4.1", params={"max_tokens": 9_000})])
    definition = labeling(params={"max_tokens": 9_000}, max_cost_usd=limit, spend=spend(kind), resend=resend)

    def answer(body: Any, _url: str) -> Reply:
        return Reply(text="no JSON" if "number 1" in str(body) else GOOD, input_tokens=60, output_tokens=1_000)

    with Emulator(answer=answer) as emulator:
        status = run(Workspace(tmp_path, emulator), definition, tickets(30))
    assert 0 < billed(status) <= Decimal(limit)
    models = {shard.model for shard in status.shards if shard.batch.batch_id}
    assert ("gpt-4.1" in models) == is_enough


def test_what_is_given_up_stays_reserved_at_its_bound(tmp_path: Any) -> None:
    definition = labeling(**FREE_TEXT, max_cost_usd="0.5", spend=spend("hard"))
    with Emulator(answer=reply(10, text="word")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        engine = workspace.engine()
        submission = engine.plan(definition, tickets(20))
        [first, *_] = engine.submit(definition, submission.submission_id).shards
        engine.give_up(first.shard_id)
        status = workspace.finish(definition, submission.submission_id)
        limit = SpendLimit(Decimal("0.5"), "test", submission_id=submission.submission_id)
        assert Decimal("0.41") < engine.ledger.money.committed_usd(limit) <= Decimal("0.5")
    assert status.submission.outcomes == {"missing": 6, "canceled": 14}
    assert "max_cost_usd=0.5 has $0.00" in given_up_reason(workspace, status)


def test_a_row_without_a_known_cost_is_reserved_and_no_other(tmp_path: Any) -> None:
    """Lose one result in each wave: money that the others of its batch did not use stays available."""

    definition = labeling(**FREE_TEXT, max_cost_usd="0.5", spend=spend("hard"))
    with Emulator(answer=reply(10, text="word")) as emulator:
        emulator.inject(FileFault(kind="missing", containing="number 1?", times=None))
        workspace = Workspace(tmp_path, emulator)
        status = run(workspace, definition, tickets(20))
    assert status.submission.outcomes == {"succeeded": 19, "missing": 1}


def test_a_budget_for_ever_that_no_bill_can_free_gives_up_what_waits_and_says_so(tmp_path: Any) -> None:
    rules = {"budgets": [Budget("0.5", "ever")]}
    first, second = (labeling(**FREE_TEXT, asset=name, spend=Spend(expected_output_tokens=10)) for name in "ab")
    with Emulator(answer=reply(10, text="word")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        engine = workspace.engine(**rules)
        [shard] = engine.submit(first, engine.plan(first, tickets(6)).submission_id).shards
        # The expected cost of the batch in flight leaves room.
        assert engine.preview(second, tickets(6, start=6)).steps == 1
        waiting = engine.plan(second, tickets(6, start=6)).submission_id
        engine.submit(second, waiting)
        # The actual bill of the batch in flight may leave room.
        assert engine.unsent(waiting).over_budget is None
        why = engine.activity.outlook().waits_for_money(waiting) or ""
        assert "for money: the budget of $0.50 for all labeled datasets together has $0.00" in why
        engine.give_up(shard.shard_id)
        engine.advance(first, shard.submission_id)
        workspace.skipped += timedelta(hours=1)
        status = engine.advance(second, waiting)
        told = engine.unsent(waiting).over_budget or ""
        assert "6 requests are not sent: the budget of $0.50 for all labeled datasets together has $0.00" in told
        assert "Raise the limit; then `dagster-llm-batch retry b` asks" in told
        assert status.submission.outcomes == {"canceled": 6}
        assert len(emulator.books.batches) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_budget_is_kept_by_all_processes_together(tmp_path: Any, kind: LimitKind) -> None:
    rules = {"budgets": [Budget("0.5", "day", limit=kind)]}
    with Emulator(answer=reply(16_384, text="word")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        for name in ("a", "b", "c"):
            engine = workspace.engine(**rules)
            definition = labeling(**FREE_TEXT, asset=name, spend=Spend(expected_output_tokens=10))
            submission = engine.plan(definition, tickets(4, start=ord(name) * 10))
            engine.submit(definition, submission.submission_id)
        # Each can cost 0.33 at most.
        sent = [shard.requests for shard in workspace.engine().ledger.shards.in_flight("test")]
        assert sum(sent) == 6
        [waiting] = [each for each in engine.ledger.submissions.progress("test") if each.submission.asset == "c"]
        assert not engine.activity.can_advance(waiting)
        [shard] = engine.ledger.shards.of_submission(submission.submission_id)
        assert "it waits for money: the budget of $0.50 for all labeled datasets together per day" in str(shard.reason)
        emulator.settle()
        workspace.skipped += timedelta(days=1)
        assert engine.activity.can_advance(waiting)
        assert run_on(workspace, definition, submission.submission_id, rules).submission.outcomes == {"succeeded": 4}


def run_on(workspace: Workspace, definition: Labeling, submission_id: str, rules: Any) -> Status:
    for _ in range(5):
        status = workspace.engine(**rules).advance(definition, submission_id)
        workspace.emulator.settle()
        workspace.skipped += timedelta(hours=1)
    return status


def test_under_a_hard_budget_a_sample_lets_out_nothing(tmp_path: Any) -> None:
    definition = labeling(**FREE_TEXT, max_cost_usd="2.5", spend=spend("measured"))
    with Emulator(answer=reply(400, text="word")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        engine = workspace.engine(budgets=[Budget(30, "ever", limit="hard")])
        submission = engine.plan(definition, tickets(300))
        for _ in range(3):
            engine.advance(definition, submission.submission_id)
            flying = engine.ledger.shards.in_flight("test")
            assert flying
            assert all(shard.bill.reserved_usd == shard.bill.bound_usd for shard in flying)
            emulator.settle()


def test_a_limit_that_nobody_can_keep_is_refused(workspace: Workspace) -> None:
    searching = {"max_tokens": 50, "tools": [{"type": "web_search"}]}
    with pytest.raises(BudgetError, match="their maximum cost is unknown, so max_cost_usd=5 cannot be"):
        workspace.engine().plan(labeling(params=searching, max_cost_usd=5), tickets(2))
    with pytest.raises(BudgetError, match=r"one of them can cost \$0.082.*, which is more than max_cost_usd=0.08"):
        workspace.engine().plan(labeling(**FREE_TEXT, max_cost_usd="0.08", spend=spend("measured")), tickets(2))
    with pytest.raises(BudgetError, match="their maximum cost is unknown, so the budget of"):
        workspace.engine(budgets=[Budget(5)]).plan(labeling(params=searching), tickets(2))
    assert not workspace.emulator.books.batches


def test_what_has_waited_for_the_next_period_shares_its_budget(tmp_path: Any) -> None:
    rules = {"budgets": [Budget("0.5", "day", limit="hard")]}
    waiting: dict[str, Labeling] = {}
    with Emulator(answer=reply(16_384, text="word")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        for name in ("a", "b", "c", "d"):
            engine = workspace.engine(**rules)
            definition = labeling(**FREE_TEXT, asset=name, spend=Spend(expected_output_tokens=10))
            submission = engine.plan(definition, tickets(6, start=ord(name) * 10))
            engine.submit(definition, submission.submission_id)
            waiting[submission.submission_id] = definition
        assert len(emulator.books.batches) == 1
        for day in range(1, 4):
            emulator.settle()
            workspace.skipped += timedelta(days=1)
            for submission_id, definition in waiting.items():
                workspace.engine(**rules).advance(definition, submission_id)
            # One each day: a second would cost 0.98 together with it.
            assert len(emulator.books.batches) == day + 1


def test_of_submissions_that_are_sent_together_one_goes_where_a_budget_has_room_for_one(tmp_path: Any) -> None:
    rules = {"budgets": [Budget("0.5", "ever", limit="hard")]}
    definition = labeling(**FREE_TEXT, spend=Spend(expected_output_tokens=10))
    with Emulator(answer=reply(10, text="word")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        engine = workspace.engine(**rules)
        ids = [
            engine.plan(definition, tickets(4, start=day * 10), partition=str(day)).submission_id for day in range(3)
        ]
        for _ in ids:
            workspace.engine(**rules).submit_together(definition, ids)
            for submission_id in ids:
                emulator.settle()
                workspace.skipped += timedelta(hours=1)
                workspace.engine(**rules).collect(definition, submission_id)
        assert all(engine.status(submission_id).is_settled for submission_id in ids)


def test_a_model_without_room_stops_no_other_that_has_some(tmp_path: Any) -> None:
    """Ask the same model and a fallback in the second wave; the budget cannot pay one request of the fallback."""
    resend = Resend(max_waves=3, invalid_waves=1, fallback=[Fallback("openai/gpt-4", params={"max_tokens": 8_000})])
    definition = labeling(params={"max_tokens": 500}, max_cost_usd="0.1", spend=spend("hard"), resend=resend)

    def answer(body: Any, _url: str) -> Reply:
        return Reply(text="no JSON" if "number 1?" in str(body) else GOOD, input_tokens=60, output_tokens=10)

    with Emulator(answer=answer) as emulator:
        emulator.inject(RowFault(status_code=500, containing="number 2?", times=1))
        status = run(Workspace(tmp_path, emulator), definition, tickets(4))
    assert status.submission.outcomes == {"succeeded": 3, "invalid": 1}


def test_nothing_is_tried_while_what_goes_first_waits_for_its_time(tmp_path: Any) -> None:
    definition = labeling(**FREE_TEXT, max_cost_usd="0.3", spend=spend("hard"), limits=Limits(max_requests_per_batch=3))
    with Emulator(answer=reply(10, text="word")) as emulator:
        workspace = Workspace(tmp_path, emulator)
        engine = workspace.engine()
        submission = engine.plan(definition, tickets(9))
        [first, *_] = engine.ledger.shards.of_submission(submission.submission_id)
        engine.ledger.shards.delay([first.shard_id], engine.now() + timedelta(minutes=5), "its queue is full")
        engine.submit(definition, submission.submission_id)
        [waiting] = engine.ledger.submissions.progress("test")
        assert not emulator.books.batches
        assert not engine.activity.can_advance(waiting)
        workspace.skipped += timedelta(minutes=5)
        assert engine.activity.can_advance(waiting)
