"""A vendor ends, or does not know, a batch of two submissions: its status holds for both."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from workspace import Workspace, billed, labeling, tickets

from dagster_llm_batch.engine import Realtime
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.ledger.schema import EVENT
from dagster_llm_batch.storage.ledger.submission_rows import STATUS
from dagster_llm_batch.testing.emulator import WireFault
from dagster_llm_batch.types import Cause

pytestmark = pytest.mark.slow


def send_together(workspace: Workspace, definition: Any) -> tuple[list[str], str]:
    """Send two submissions in one batch; return their ids, and the id of the batch."""
    engine = workspace.engine()
    ids = [
        engine.plan(definition, tickets(5, start=10 * number), partition=f"p{number}").submission_id
        for number in (1, 2)
    ]
    engine.submit_together(definition, ids)
    [batch_id] = {shard.batch.batch_id for one in ids for shard in engine.ledger.shards.of_submission(one)}
    assert batch_id is not None
    return ids, batch_id


@pytest.mark.parametrize("learns", ["deadline", "cancel", "poll"])
def test_what_somebody_canceled_at_the_vendor_is_sent_again_by_neither(workspace: Workspace, learns: str) -> None:
    definition = labeling(**({"realtime": Realtime(deadline=timedelta(hours=6))} if learns == "deadline" else {}))
    ids, batch_id = send_together(workspace, definition)
    workspace.providers["openai"].cancel(batch_id)
    workspace.emulator.settle()
    paid = len(billed(workspace))
    engine = workspace.engine()
    if learns == "deadline":
        workspace.skipped += timedelta(hours=7)
        workspace.finish(definition, ids[0])
    elif learns == "cancel":
        engine.cancel(ids[0])
    else:
        engine.poll(engine.ledger.shards.of_submission(ids[0]))
    status = workspace.finish(definition, ids[1])
    assert status.submission.outcomes == {"canceled": 5}
    assert len(billed(workspace)) == paid


@pytest.mark.parametrize("has_event", [True, False], ids=["noted when polled", "noted nowhere"])
def test_a_batch_is_gone_for_both_when_the_vendor_has_not_known_it_for_long(
    workspace: Workspace, has_event: bool
) -> None:
    ids, _ = send_together(workspace, labeling())
    engine = workspace.engine()

    def shards() -> list[Shard]:
        return [shard for one in ids for shard in engine.ledger.shards.of_submission(one)]

    engine.poll(shards())
    workspace.skipped += timedelta(hours=3)
    workspace.emulator.inject(WireFault(kind="status", route="GET /v1/batches/*", status=404, times=None))
    engine.poll(shards()[:1])
    if not has_event:
        with engine.ledger._database.write() as connection:
            connection.execute(sa.delete(EVENT).where(EVENT.c.kind == STATUS))
    for _ in range(2):
        workspace.skipped += timedelta(minutes=1)
        engine.poll(shards()[1:])
        assert [(shard.state, shard.cause) for shard in shards()] == [(ShardState.SUBMITTED, None)] * 2
    workspace.skipped += timedelta(hours=2)
    engine.poll(shards()[1:])
    assert [shard.cause for shard in shards()] == [Cause.GONE] * 2
