"""A submission is sent with the values tuned for it, by any process, wherever its rows are rendered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from comparison import Pickled
from test_tuned_queues import remember
from workspace import Workspace, billed, labeling, tickets

from dagster_llm_batch.definition.labeling import Limits
from dagster_llm_batch.engine import Deployment, Engine, Labeling
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY
from tests.processes import PROCESSES

ROWS = 20


def definition(**changes: Any) -> Labeling:
    return labeling(limits=Limits(max_requests_per_batch=2), **changes)


def plan_and_wait(folder: Path, base_url: str, skipped: timedelta, planned: Any) -> None:
    """Plan with tuning from the ledger, report the id, and then only wait."""
    engine = Engine(
        Deployment(
            {"openai": OpenAIProvider(DEFAULT_KEY, base_url, timeout_seconds=30)},
            Ledger(folder / "ledger.sqlite"),
            PayloadStore(str(folder / "payloads")),
            "test",
            clock=lambda: datetime.now(UTC) + skipped,
            tune=True,
        )
    )
    planned.put(engine.plan(definition(), tickets(ROWS)).submission_id)
    PROCESSES.Event().wait()


def room_for_three(workspace: Workspace) -> int:
    """Record a queue that accepted three batches; return their number of tokens."""
    room = 3 * workspace.engine().preview(definition(), tickets(2)).shards[0].tokens + 10
    remember(workspace, room)
    return room


@pytest.mark.slow
def test_a_process_that_is_killed_between_plan_and_send_leaves_what_it_chose_to_the_next_one(
    workspace: Workspace,
) -> None:
    room = room_for_three(workspace)
    planned = PROCESSES.Queue()
    arguments = (workspace.tmp_path, workspace.emulator.openai_base_url, workspace.skipped, planned)
    process = PROCESSES.Process(target=plan_and_wait, args=arguments, daemon=True)
    process.start()
    submission_id = planned.get(timeout=120)
    process.kill()
    process.join()
    # The stored tuning holds for a process that does not tune.
    engine = workspace.engine()
    again = engine.plan(definition(), tickets(ROWS))
    assert again.submission_id == submission_id
    assert (again.tuning or {})["most_at_once"] == {"openai/gpt-4o": room}
    engine.submit(definition(), submission_id)
    assert engine.status(submission_id).states == {"submitted": 3, "planned": 7}
    assert workspace.finish(definition(), submission_id).submission.outcomes == {"succeeded": ROWS}
    assert len(billed(workspace)) == len(set(billed(workspace))) == ROWS


@pytest.mark.parametrize("at_once", [1, 4])
def test_rows_that_workers_render_are_sent_in_the_same_batches(workspace: Workspace, at_once: int) -> None:
    room = room_for_three(workspace)
    here = workspace.engine(tune=True).plan(definition(asset="here"), tickets(ROWS))
    engine = workspace.engine(tune=True, transfers_at_once=at_once)
    there = engine.plan(definition(asset="there", workers=Pickled()), tickets(ROWS))
    assert here.tuning == there.tuning
    planned = [
        [
            (shard.requests, shard.tokens, shard.room.most_requests, shard.room.most_at_once)
            for shard in engine.ledger.shards.of_submission(name)
        ]
        for name in (here.submission_id, there.submission_id)
    ]
    assert planned[0] == planned[1]
    assert {most for *_, most in planned[0]} == {room}
    engine.submit(definition(asset="there", workers=Pickled()), there.submission_id)
    assert engine.status(there.submission_id).states == {"submitted": 3, "planned": 7}
