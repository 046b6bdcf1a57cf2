"""Full queues: a batch that alone is too large is split, other batches wait, and sets of requests stay bounded.

The vendor's books are the evidence: the requested batches, their requests and the billing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Limits, Resend
from dagster_llm_batch.engine.condition_facts import read_facts
from dagster_llm_batch.engine.conditions import ConditionKind, find_conditions
from dagster_llm_batch.errors import TransientError
from dagster_llm_batch.states import Transition
from dagster_llm_batch.testing.emulator import BatchFault
from dagster_llm_batch.types import Cause
from tests.faults.vendor_workspace import ROWS, Servers, VendorWorkspace, billed_twice, rows
from tests.faults.vendors import VENDORS

HOUR = 3_600.0
BY_NAME = {vendor.name: vendor for vendor in VENDORS}

# Three of the twelve rows fit at once. A row has some tens of tokens, by each vendor's own count.
SMALL_QUEUES: dict[str, tuple[str, dict[str, Any]]] = {
    "openai": ("openai", {"enqueued_tokens": 24}),
    "openai, refused at create, as Azure does": ("openai", {"enqueued_tokens": 24, "fails_fast": True}),
    "anthropic": ("anthropic", {"queued_requests": 3}),
    "gemini": ("gemini", {"enqueued_tokens": 300}),
}


Make = Callable[..., VendorWorkspace]


@pytest.fixture
def make(running: Servers, tmp_path: Path) -> Iterator[Make]:
    made: list[VendorWorkspace] = []

    def workspace(vendor: str, **limits: Any) -> VendorWorkspace:
        made.append(VendorWorkspace(BY_NAME[vendor], running, tmp_path, 10.0, **limits))
        return made[-1]

    yield workspace
    for each in made:
        each.close()


def creates(workspace: VendorWorkspace) -> int:
    """Return the number of create calls."""
    calls = workspace.emulator.books.calls
    return sum(fnmatchcase(f"{call.method} {call.path}", workspace.vendor.create) for call in calls)


def advance(workspace: VendorWorkspace, submission_id: str) -> Any:
    try:
        return workspace.engine().advance(workspace.definition, submission_id)
    except TransientError:
        return workspace.engine().status(submission_id)


def go_on(workspace: VendorWorkspace, submission_id: str, hours: int) -> Any:
    """Run once an hour, while the vendor finishes the batches that it has taken. Return the last status."""
    for _ in range(hours):
        status = advance(workspace, submission_id)
        if status.is_settled:
            break
        workspace.settle()
        workspace.pass_time(HOUR)
    return status


def tried(workspace: VendorWorkspace, submission_id: str, times: int) -> None:
    """Set the number of times that the submission's batch was refused before."""
    [shard] = workspace.engine().ledger.shards.of_submission(submission_id)
    workspace.engine().ledger.shards.move(shard.shard_id, Transition.SEND)
    workspace.engine().ledger.shards.move(shard.shard_id, Transition.NOT_SENT, refusals=times)


def labels(workspace: VendorWorkspace, submission_id: str) -> list[str]:
    labeled = workspace.engine().labels(workspace.definition, submission_id)
    keys = [key for table in (labeled.labels, labeled.rejects) for key in table["id"].to_pylist()]
    assert len(keys) == len(set(keys))
    return sorted(labeled.labels["id"].to_pylist())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("queue", "declared"),
    [*((queue, None) for queue in SMALL_QUEUES), ("openai", QueueLimit(max_tokens=10**6))],
    ids=str,
)
def test_what_is_alone_over_the_vendors_queue_is_split_until_it_flows(
    make: Make, queue: str, declared: QueueLimit | None
) -> None:
    vendor, limits = SMALL_QUEUES[queue]
    workspace = make(vendor, **limits)
    workspace.queue_limits = {} if declared is None else {vendor: declared}
    submission = workspace.engine().plan(workspace.definition, rows())
    assert len(workspace.engine().ledger.shards.of_submission(submission.submission_id)) == 1
    status = go_on(workspace, submission.submission_id, 40)
    assert status.is_settled
    assert (status.submission.outcomes, status.submission.waves) == ({"succeeded": ROWS}, 1)
    assert labels(workspace, submission.submission_id) == sorted(rows()["id"].to_list())
    assert billed_twice(workspace.answered()) == 0
    assert len(list(workspace.answered())) == ROWS
    shards = status.shards
    assert sum(shard.requests for shard in shards) == ROWS
    assert len(shards) <= 8
    # Each batch and each split needs one try, and each batch that met a running one another try. A vendor that does not
    # report the excess needs three tries before the first split.
    assert creates(workspace) <= 3 * len(shards) + 2
    stored = {path.name for path in workspace.folder.rglob("*.requests.*")}
    assert stored == {Path(shard.path).name for shard in shards}


def starved(workspace: VendorWorkspace) -> list[str]:
    """Return the shards for which an alert reports a full queue."""
    engine = workspace.engine()
    found = find_conditions(read_facts(engine, None, ()))
    due = [one for one in found if one.kind is ConditionKind.NO_ROOM and one.is_due(engine.now())]
    return [shard_id for condition in due for shard_id in condition.shard_ids]


@pytest.mark.parametrize("queue", SMALL_QUEUES)
def test_what_has_no_room_beside_others_is_sent_again_when_these_have_ended_and_not_before(
    make: Make, queue: str
) -> None:
    vendor, limits = SMALL_QUEUES[queue]
    workspace = make(vendor, **limits)
    workspace.definition = replace(workspace.definition, limits=Limits(max_requests_per_batch=3))
    runs = {"openai": "in_progress", "anthropic": "in_progress", "gemini": "BATCH_STATE_RUNNING"}[vendor]
    workspace.inject([BatchFault(kind="stuck", batches=[0], during=runs)])
    submission = workspace.engine().plan(workspace.definition, rows().head(6))
    workspace.overdue_after = timedelta(hours=12)
    status = go_on(workspace, submission.submission_id, 10)
    assert (status.states, creates(workspace)) == ({"submitted": 1, "planned": 1}, 2)
    assert starved(workspace) == []
    status = go_on(workspace, submission.submission_id, 3)
    [shard_id] = starved(workspace)  # now there is an alert
    assert (workspace.engine().ledger.shards.get(shard_id).state, creates(workspace)) == ("planned", 2)
    workspace.clear()
    status = go_on(workspace, submission.submission_id, 5)
    assert status.submission.outcomes == {"succeeded": 6}
    assert creates(workspace) == 3
    assert billed_twice(workspace.answered()) == 0
    # Later batches know the rejected number of tokens, even after that number was accepted.
    refused = {shard.room.refused_tokens for shard in status.shards if shard.room.refused_at is not None}
    assert refused == {sum(shard.tokens for shard in status.shards)}


@pytest.mark.slow
def test_a_row_that_is_over_the_vendors_limit_by_itself_ends_with_words_and_the_others_land(make: Make) -> None:
    workspace = make("openai", enqueued_tokens=24)
    long = pl.DataFrame({"id": ["long"], "text": ["Where is it? " * 20]})
    submission = workspace.engine().plan(workspace.definition, pl.concat([rows(), long]))
    status = go_on(workspace, submission.submission_id, 60)
    assert status.submission.outcomes == {"succeeded": ROWS, "errored": 1}
    [reason] = (
        workspace.engine().labels(workspace.definition, submission.submission_id).rejects["llm_reason"].to_pylist()
    )
    assert "queue was full" in reason
    assert "token_limit_exceeded" in reason
    assert "retry" in reason
    [left] = workspace.engine().ledger.submissions.left_shards("faults")
    assert (left[1].cause, left[1].requests) == (Cause.NOT_TAKEN, 1)
    assert len(list(workspace.answered())) == ROWS
    again = workspace.engine().plan(workspace.definition, pl.concat([rows(), long]))
    assert again.submission_id == submission.submission_id  # nothing is sent again without a request


@pytest.mark.sample
@pytest.mark.parametrize("waves", [1, 3])
@pytest.mark.parametrize("vendor", ["bedrock", "vertex", "gemini"])
def test_a_batch_that_fails_for_now_is_sent_as_often_as_may_be(make: Make, vendor: str, waves: int) -> None:
    """`max_waves=1` means never again, even if the vendor itself had the trouble."""
    workspace = make(vendor)
    workspace.definition = replace(workspace.definition, resend=Resend(max_waves=waves))
    workspace.inject([BatchFault(kind="fails", code="13", message="Internal error, try again.")])
    submission = workspace.engine().plan(workspace.definition, rows().head(2))
    status = go_on(workspace, submission.submission_id, 20)
    assert (status.submission.outcomes, status.submission.waves) == ({"errored": 2}, waves)
    assert creates(workspace) == waves
    assert list(workspace.answered()) == []


@pytest.mark.slow
def test_what_the_queue_never_has_room_for_has_one_bound_for_all_its_parts(make: Make) -> None:
    workspace = make("openai")
    workspace.inject([BatchFault(kind="fails")])
    submission = workspace.engine().plan(workspace.definition, rows().head(4))
    tried(workspace, submission.submission_id, 30)
    status = go_on(workspace, submission.submission_id, 60)
    assert (status.submission.outcomes, status.submission.waves) == ({"errored": 4}, 1)
    assert creates(workspace) == 10 + len(status.shards)
    assert {shard.cause for shard in status.shards} == {Cause.NOT_TAKEN}


def test_what_the_vendor_never_takes_goes_to_the_fallback(make: Make) -> None:
    workspace = make("openai")
    workspace.definition = replace(workspace.definition, resend=Resend(fallback=("openai/gpt-4o-mini",)))
    workspace.inject([BatchFault(kind="fails", batches=range(3))])
    submission = workspace.engine().plan(workspace.definition, rows().head(1))
    tried(workspace, submission.submission_id, 38)
    status = go_on(workspace, submission.submission_id, 20)
    assert status.submission.outcomes == {"succeeded": 1}
    assert [(s.model, s.cause) for s in status.shards] == [("gpt-4o", Cause.NOT_TAKEN), ("gpt-4o-mini", None)]
    assert workspace.engine().ledger.submissions.left_shards("faults") == []


def test_partitions_that_are_together_over_the_queue_are_sent_in_fewer_at_once(make: Make) -> None:
    workspace = make("openai", enqueued_tokens=24)
    engine = workspace.engine()
    ids = [
        engine.plan(workspace.definition, rows().slice(start, 2), partition=f"p{start}").submission_id
        for start in range(0, 8, 2)
    ]
    engine.submit_together(workspace.definition, ids)
    assert creates(workspace) == 1
    while not all(engine.status(each).is_settled for each in ids):
        workspace.settle()
        workspace.pass_time(HOUR)
        engine = workspace.engine()
        engine.poll(engine.ledger.shards.in_flight("faults"))
        engine.submit_together(workspace.definition, ids)
        for submission_id in ids:
            engine.collect(workspace.definition, submission_id)
    assert all(engine.status(each).submission.outcomes == {"succeeded": 2} for each in ids)
    assert all(len(engine.status(each).shards) == 1 for each in ids)  # alone, each fits
    assert creates(workspace) < 2 * len(ids) + 2
    assert billed_twice(workspace.answered()) == 0


@pytest.mark.parametrize("limit", [QueueLimit(max_tokens=200), QueueLimit(max_requests=5), QueueLimit(max_batches=1)])
def test_a_plan_keeps_each_batch_within_its_queue_limit_and_tells_in_how_many_rounds_they_go(
    make: Make, limit: QueueLimit
) -> None:
    workspace = make("openai")
    workspace.queue_limits = {"openai": limit}
    workspace.definition = replace(workspace.definition, limits=Limits(max_requests_per_batch=7))
    preview = workspace.engine().preview(workspace.definition, rows())
    submission = workspace.engine().plan(workspace.definition, rows())
    shards = workspace.engine().ledger.shards.of_submission(submission.submission_id)
    assert sum(shard.requests for shard in shards) == preview.to_send == ROWS
    assert all(shard.tokens <= (limit.max_tokens or 10**9) for shard in shards)
    assert all(shard.requests <= (limit.max_requests or 7) for shard in shards)
    rounds = 0
    while not advance(workspace, submission.submission_id).is_settled:
        rounds += 1
        workspace.settle()
    assert rounds == preview.rounds > 1


def test_a_row_that_alone_is_over_a_declared_limit_is_a_batch_of_its_own(make: Make) -> None:
    workspace = make("openai")
    workspace.queue_limits = {"openai": QueueLimit(max_tokens=400)}
    long = pl.DataFrame({"id": ["long"], "text": ["Where is it? " * 200]})
    submission = workspace.engine().plan(workspace.definition, pl.concat([rows().head(4), long, rows().tail(4)]))
    shards = workspace.engine().ledger.shards.of_submission(submission.submission_id)
    assert [shard.requests for shard in shards if shard.tokens > 400] == [1]
    status = go_on(workspace, submission.submission_id, 20)
    assert status.submission.outcomes == {"succeeded": 9}
