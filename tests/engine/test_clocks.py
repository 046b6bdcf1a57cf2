"""A clock was ahead once, and is right again: shards do not wait until the wrong time."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from workspace import Workspace, assert_total, billed, labeling, tickets

from dagster_llm_batch.providers.http import listed_since
from dagster_llm_batch.states import Transition
from dagster_llm_batch.testing.emulator import BatchFault, WireFault

AHEAD = timedelta(days=365)
QUEUE_IS_FULL = BatchFault(kind="fails", batches={0})


@pytest.fixture
def ahead(workspace: Workspace) -> Iterator[Workspace]:
    """Return a workspace whose clock is a year ahead until the test corrects it."""
    workspace.skipped = AHEAD
    return workspace


def sent(workspace: Workspace, **changes: Any) -> tuple[Any, str]:
    definition = labeling(**changes)
    submission = workspace.engine().plan(definition, tickets(3))
    workspace.engine().submit(definition, submission.submission_id)
    return definition, submission.submission_id


def test_what_waits_for_a_time_further_ahead_than_any_pause_is_sent(ahead: Workspace) -> None:
    ahead.emulator.inject(QUEUE_IS_FULL)
    definition, submission_id = sent(ahead)
    ahead.emulator.settle()
    assert ahead.engine().advance(definition, submission_id).states == {"planned": 1}
    ahead.skipped = timedelta()
    ahead.finish(definition, submission_id)
    assert_total(ahead, definition, submission_id, 3)
    assert len(billed(ahead)) == 3


def test_a_create_that_never_was_is_made_once_the_provider_has_settled(ahead: Workspace) -> None:
    ahead.emulator.inject(WireFault(kind="close", route="POST /v1/batches"))
    definition, submission_id = sent(ahead)
    ahead.skipped = timedelta()
    assert ahead.engine().submit(definition, submission_id).states == {"submitting": 1}
    ahead.skipped = timedelta(seconds=290)  # settle_seconds is 300
    assert ahead.engine().submit(definition, submission_id).states == {"submitting": 1}
    ahead.skipped = timedelta(seconds=310)
    assert ahead.engine().submit(definition, submission_id).states == {"submitted": 1}
    ahead.finish(definition, submission_id)
    assert_total(ahead, definition, submission_id, 3)
    assert len(billed(ahead)) == 3


def test_a_batch_has_not_ended_later_than_it_was_seen_to_have(workspace: Workspace) -> None:
    """Set the vendor's clock ahead: a batch that ended an hour ago must not wait for a year."""
    workspace.skipped = -AHEAD
    definition, submission_id = sent(workspace)
    workspace.finish(definition, submission_id)
    [shard] = workspace.engine().ledger.shards.of_submission(submission_id)
    assert shard.batch.sent_at is not None
    assert shard.ended_at is not None
    assert shard.batch.sent_at <= shard.ended_at <= workspace.now()
    [span] = workspace.engine().ledger.history.submission_spans("test", definition.asset, 1)
    assert span.until == shard.ended_at


def test_a_time_that_lies_ahead_bounds_no_list() -> None:
    now = datetime.now(UTC)
    assert listed_since(now + AHEAD, {}).year == 1970
    assert now - timedelta(minutes=11) < listed_since(now, {}) < now


def test_what_is_planned_by_the_right_clock_is_newer_than_what_a_clock_ahead_planned(ahead: Workspace) -> None:
    definition, first = sent(ahead)
    ahead.skipped = timedelta()
    second = ahead.engine().plan(definition, tickets(4)).submission_id
    ledger = ahead.engine().ledger
    assert [each.submission_id for each in ledger.submissions.of_partition("test", definition.asset)] == [second, first]
    assert ledger.submissions.newest_ids("test", definition.asset) == {"": second}
    assert Transition.SEND.value in [event.kind for event in ledger.events.of_submission(first)]
