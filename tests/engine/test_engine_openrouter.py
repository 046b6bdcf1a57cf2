"""The engine over OpenRouter's inline batches: lost replies, unpaid charges, and the cost of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from workspace import Workspace, assert_total, billed, labeling, tickets

from dagster_llm_batch import preset
from dagster_llm_batch.engine import Realtime
from dagster_llm_batch.errors import CannotStopError, TransientError
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, BatchFault, Emulator, Reply, lost_create_reply
from dagster_llm_batch.types import BatchStatus

CREATE = "POST /api/v1/batches"


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with Emulator(answer=lambda _body, _endpoint: Reply(text="billing", cost_usd=0.25)) as emulator:
        workspace = Workspace(tmp_path, emulator)
        settings = {"api_key": DEFAULT_KEY, "base_url": emulator.openrouter_base_url, "timeout_seconds": 5.0}
        workspace.providers = {"openrouter": preset("openrouter", **settings).provider()}  # type: ignore[dict-item]
        yield workspace


def of(**changes: Any) -> Any:
    return labeling(**{"model": "openrouter/openai/gpt-4o", "response": None, **changes})


def sent(workspace: Workspace, **changes: Any) -> tuple[Any, str]:
    definition = of(**changes)
    submission = workspace.engine().plan(definition, tickets(5))
    workspace.engine().submit(definition, submission.submission_id)
    return definition, submission.submission_id


def test_what_the_batch_says_that_it_cost_stands_beside_our_price(workspace: Workspace) -> None:
    status = workspace.run(of(), tickets(5))
    assert_total(workspace, of(), status.submission.submission_id, 5)
    theirs, ours = status.reported_usd or (None, None)
    assert theirs == Decimal("1.25")
    assert ours == status.submission.cost_usd
    # reading the raw results again reports the same cost
    workspace.engine().labels(of(), status.submission.submission_id, reread=True)
    assert workspace.engine().status(status.submission.submission_id).reported_usd == status.reported_usd


def test_of_a_batch_that_partitions_share_nobody_knows_which_part_cost_what(workspace: Workspace) -> None:
    definition, ids = several(workspace)
    workspace.engine().submit_together(definition, ids)
    assert len(workspace.emulator.books.batches) == 1
    for submission_id in ids:
        assert workspace.finish(definition, submission_id).reported_usd is None


def several(workspace: Workspace) -> tuple[Any, list[str]]:
    rows = tickets(12)
    plans = [workspace.engine().plan(of(), rows[n : n + 2], partition=str(n)) for n in range(0, 12, 2)]
    return of(), [plan.submission_id for plan in plans]


def test_a_lost_reply_is_waited_out_and_the_batch_is_paid_once(workspace: Workspace) -> None:
    workspace.emulator.inject(lost_create_reply("close", route=CREATE))
    definition, submission_id = sent(workspace)
    workspace.skipped += timedelta(minutes=10)
    workspace.engine().submit(definition, submission_id)
    assert len(workspace.emulator.books.batches) == 1
    workspace.finish(definition, submission_id)
    assert len(billed(workspace)) == 5


def test_withheld_results_are_waited_for_and_never_asked_again(workspace: Workspace) -> None:
    workspace.emulator.inject(BatchFault(kind="unpaid"))
    definition, submission_id = sent(workspace)
    workspace.emulator.settle()
    for _ in range(3):
        workspace.skipped += timedelta(hours=30)
        status = workspace.engine().advance(definition, submission_id)
        assert not status.is_settled
    [shard] = workspace.engine().ledger.shards.of_submission(submission_id)
    assert shard.batch.status is BatchStatus.RUNNING
    workspace.emulator.clear_faults()
    workspace.finish(definition, submission_id)
    assert (len(workspace.emulator.books.batches), len(billed(workspace))) == (1, 5)


def test_many_batches_whose_results_are_withheld_wait_too(workspace: Workspace) -> None:
    """List many batches: the list does not show that their results are withheld, but each batch does."""
    workspace.emulator.inject(BatchFault(kind="unpaid"))
    definition, ids = several(workspace)
    for submission_id in ids:
        workspace.engine().submit(definition, submission_id)
    workspace.emulator.settle()
    engine = workspace.engine()
    engine.poll([shard for submission_id in ids for shard in engine.ledger.shards.of_submission(submission_id)])
    for submission_id in ids:
        with pytest.raises(TransientError, match="topped up"):
            workspace.engine().advance(definition, submission_id)
    workspace.emulator.clear_faults()
    for submission_id in ids:
        workspace.finish(definition, submission_id)
    assert len(workspace.emulator.books.batches) == 6


def test_who_cancels_is_told_that_nothing_stops_it_and_a_deadline_waits(workspace: Workspace) -> None:
    definition, submission_id = sent(workspace, realtime=Realtime(deadline=timedelta(minutes=5)))
    workspace.skipped += timedelta(hours=1)
    for _ in range(2):  # late, and asked to stop: neither is a failure
        assert not workspace.engine().advance(definition, submission_id).is_settled
    with pytest.raises(CannotStopError, match="runs on to its end"):
        workspace.engine().cancel(submission_id)
    status = workspace.finish(definition, submission_id)
    assert status.submission.outcomes == {"succeeded": 5}
    assert len(billed(workspace)) == 5
