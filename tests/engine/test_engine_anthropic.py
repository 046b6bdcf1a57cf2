"""The engine over Anthropic's SDK and the emulator: the journey, and create calls with a lost reply.

A batch there has no tag, and only its results show whether it is ours. So a shard waits while a candidate runs.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel
from workspace import Workspace, assert_total, billed, in_one_batch, labeling, tickets

from dagster_llm_batch.engine import Limits
from dagster_llm_batch.errors import ConfigError, StatusUnknownError
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, BatchFault, Emulator, RowFault, WireFault, lost_create_reply

CREATE = "POST /v1/messages/batches"


class Label(BaseModel):
    """A label without bounds: Anthropic's schemas cannot hold them, and the simulated LLM ignores descriptions."""

    topic: Literal["billing", "bug", "how_to"]
    urgency: Literal[1, 2, 3]


@pytest.fixture
def workspace(workspace: Workspace) -> Workspace:
    workspace.providers = {"anthropic": provider(workspace.emulator)}  # type: ignore[dict-item]
    return workspace


def provider(emulator: Emulator, **changes: Any) -> AnthropicProvider:
    usual = {"api_key": DEFAULT_KEY, "base_url": emulator.anthropic_base_url, "timeout_seconds": 5.0}
    return AnthropicProvider(**{**usual, **changes})


def of(**changes: Any) -> Any:
    return labeling(**{"model": "anthropic/claude-haiku-4-5", "response": Label, **changes})


def sent(workspace: Workspace, rows: int = 5, **changes: Any) -> tuple[Any, str]:
    definition = of(**changes)
    submission = workspace.engine().plan(definition, tickets(rows))
    workspace.engine().submit(definition, submission.submission_id)
    return definition, submission.submission_id


def foreign_batch(workspace: Workspace, requests: int) -> str:
    """Create a batch of another user in the same workspace, with as many requests."""
    import anthropic

    params = {"model": "claude-x", "max_tokens": 5, "messages": [{"role": "user", "content": "theirs"}]}
    with anthropic.Anthropic(api_key=DEFAULT_KEY, base_url=workspace.emulator.anthropic_base_url) as client:
        rows = [{"custom_id": f"theirs-{i}", "params": params} for i in range(requests)]
        return client.messages.batches.create(requests=rows).id  # type: ignore[arg-type]


def test_a_batch_whose_create_call_was_dated_by_a_clock_ahead_is_found(workspace: Workspace) -> None:
    workspace.skipped = timedelta(days=365)
    workspace.emulator.inject(lost_create_reply("close", route=CREATE))
    definition, submission_id = sent(workspace)
    workspace.skipped = timedelta()
    workspace.emulator.settle()
    for _ in range(2):
        workspace.skipped += timedelta(seconds=310)
        workspace.engine().submit(definition, submission_id)
    workspace.finish(definition, submission_id)
    assert len(workspace.emulator.books.batches) == 1
    assert len(billed(workspace)) == 5


def test_each_row_gets_its_own_label_and_its_price(workspace: Workspace) -> None:
    definition = of(limits=Limits(max_requests_per_batch=7))
    status = workspace.run(definition, tickets(20))
    labels, rejects = assert_total(workspace, definition, status.submission.submission_id, 20)
    assert (len(labels), len(rejects)) == (20, 0)
    assert set(labels["llm_batch_id"].to_pylist()) == set(status.batch_ids)
    assert set(labels["llm_price_basis"].to_pylist()) == {"batch"}
    tokens = [execution for execution in workspace.emulator.books.executions if execution.billed]
    cost = sum(one.input_tokens * Decimal("0.5") + one.output_tokens * Decimal("2.5") for one in tokens) / 1_000_000
    assert status.submission.cost_usd == cost
    assert len(workspace.emulator.books.batches) == 3


def test_rows_that_can_pass_later_are_sent_again_and_the_others_are_not(workspace: Workspace) -> None:
    workspace.emulator.inject(
        RowFault(containing="number 1?", status_code=529, times=1), RowFault(containing="number 2?", status_code=404)
    )
    definition = of()
    status = workspace.run(definition, tickets(4))
    assert status.submission.outcomes == {"succeeded": 3, "errored": 1}
    assert not workspace.emulator.books.billed_twice()


def test_an_expired_batch_keeps_its_finished_rows_and_the_rest_is_sent_again(workspace: Workspace) -> None:
    workspace.emulator.inject(BatchFault(kind="expires", batches={0}))
    definition = of()
    status = workspace.run(definition, tickets(6))
    assert status.submission.outcomes == {"succeeded": 6}
    assert len(billed(workspace)) == len(set(billed(workspace))) == 6


def test_sampling_parameters_are_refused_before_anything_is_planned(workspace: Workspace) -> None:
    with pytest.raises(ConfigError, match="refuses the parameter 'temperature'"):
        workspace.engine().plan(of(params={"max_tokens": 5, "temperature": 0}), tickets(2))
    assert workspace.emulator.books.calls == []


@pytest.mark.parametrize("how", ["500", "close", "hang"])
def test_a_batch_whose_reply_was_lost_is_waited_for_found_and_not_created_again(workspace: Workspace, how: Any) -> None:
    workspace.providers = {"anthropic": provider(workspace.emulator, timeout_seconds=0.5)}  # type: ignore[dict-item]
    workspace.emulator.inject(lost_create_reply(how, route=CREATE))
    definition, submission_id = sent(workspace, 6, limits=Limits(max_requests_per_batch=3))
    assert workspace.engine().status(submission_id).states == {"submitting": 1, "submitted": 1}
    workspace.skipped += timedelta(hours=5)  # far beyond settle_seconds; a candidate runs, which prevents a second send
    assert workspace.engine().advance(definition, submission_id).states == {"submitting": 1, "submitted": 1}
    assert len(workspace.emulator.books.batches) == 2
    workspace.finish(definition, submission_id)
    labels, _ = assert_total(workspace, definition, submission_id, 6)
    assert len(labels) == 6
    assert len(workspace.emulator.books.batches) == 2
    assert len(billed(workspace)) == 6
    assert in_one_batch(workspace)


def test_a_create_that_never_was_waits_for_a_stranger_to_end_and_is_then_made(workspace: Workspace) -> None:
    workspace.emulator.inject(WireFault(kind="status", route=CREATE, status=500))
    definition, submission_id = sent(workspace)
    foreign_batch(workspace, 5)
    workspace.skipped += timedelta(seconds=310)
    assert workspace.engine().advance(definition, submission_id).states == {"submitting": 1}
    workspace.emulator.settle()
    assert workspace.engine().advance(definition, submission_id).states == {"submitted": 1}
    workspace.finish(definition, submission_id)
    labels, _ = assert_total(workspace, definition, submission_id, 5)
    assert len(labels) == 5
    assert len(workspace.emulator.books.batches) == 2


@pytest.mark.parametrize("namespace", ["test", "of another team"])
def test_batches_of_other_shards_are_no_candidates(workspace: Workspace, namespace: str) -> None:
    definition, _ = sent(workspace, 5)
    workspace.emulator.inject(WireFault(kind="status", route=CREATE, status=500))
    other = of(asset="other", params={"max_tokens": 51})
    engine = workspace.engine(namespace)
    submission = engine.plan(other, tickets(5))
    engine.submit(other, submission.submission_id)
    assert engine.status(submission.submission_id).states == {"submitting": 1}
    # The other team's batch was sent later, too.
    again = of(asset="again", params={"max_tokens": 52})
    first = workspace.engine()
    first.submit(again, first.plan(again, tickets(5)).submission_id)
    workspace.skipped += timedelta(seconds=310)
    assert engine.submit(other, submission.submission_id).states == {"submitted": 1}
    assert len(workspace.emulator.books.batches) == 3
    del definition


def test_a_candidate_whose_results_are_gone_stops_and_asks_and_a_person_resolves_it(tmp_path: Any) -> None:
    from dagster_llm_batch.testing.emulator import ManualClock

    clock = ManualClock(1_900_000_000.0)
    with Emulator(clock=clock) as emulator:
        workspace = Workspace(tmp_path, emulator)
        workspace.providers = {"anthropic": provider(emulator)}  # type: ignore[dict-item]
        from datetime import UTC, datetime

        workspace.skipped = datetime.fromtimestamp(clock(), UTC) - datetime.now(UTC)
        emulator.inject(WireFault(kind="status", route=CREATE, status=500))
        definition, submission_id = sent(workspace)
        theirs = foreign_batch(workspace, 5)
        emulator.settle()
        clock.advance(30 * 86_400)
        workspace.skipped += timedelta(days=30)
        with pytest.raises(StatusUnknownError, match=theirs):
            workspace.engine().advance(definition, submission_id)
        assert len(emulator.books.batches) == 1
        (shard,) = workspace.engine().status(submission_id).shards
        workspace.engine().resolve(shard.shard_id, None)
        workspace.engine().submit(definition, submission_id)
        workspace.finish(definition, submission_id)
        assert len(emulator.books.batches) == 2
        assert_total(workspace, definition, submission_id, 5)


_CHILD = """
import sys
import time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from workspace import Workspace, tickets
from test_engine_anthropic import of, provider
class Address:
    anthropic_base_url = sys.argv[3]
    openai_base_url = sys.argv[3] + "/v1"
workspace = Workspace(Path(sys.argv[2]), Address())
workspace.providers = {"anthropic": provider(Address(), timeout_seconds=60.0)}
submission = workspace.engine().plan(of(), tickets(5))
print(submission.submission_id, flush=True)
workspace.engine().submit(of(), submission.submission_id)
"""


@pytest.mark.slow
def test_a_process_killed_between_create_and_record_makes_no_second_batch_and_loses_no_row(
    workspace: Workspace,
) -> None:
    workspace.emulator.inject(lost_create_reply("hang", route=CREATE))
    here = Path(__file__).parent
    words = [sys.executable, "-c", _CHILD, str(here), str(workspace.tmp_path), workspace.emulator.anthropic_base_url]
    env = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=env) as child:
        assert child.stdout is not None
        submission_id = child.stdout.readline().strip()
        while not workspace.emulator.books.batches:  # the batch is there, and the child waits for the reply
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    workspace.skipped += timedelta(seconds=70)  # the dead process's lease
    assert workspace.engine().advance(of(), submission_id).states == {"submitting": 1}
    workspace.finish(of(), submission_id)
    labels, _ = assert_total(workspace, of(), submission_id, 5)
    assert len(labels) == 5
    assert len(workspace.emulator.books.batches) == 1
    assert len(billed(workspace)) == 5


@pytest.mark.parametrize("ahead", [timedelta(hours=3), timedelta(hours=-3)], ids=["ahead", "behind"])
def test_a_batch_is_found_although_this_machines_clock_is_wrong(tmp_path: Path, ahead: timedelta) -> None:
    with Emulator(
        faults=[lost_create_reply(route=CREATE)], clock=lambda: time.time() - ahead.total_seconds()
    ) as emulator:
        workspace = Workspace(tmp_path, emulator)
        workspace.providers = {"anthropic": provider(emulator)}  # type: ignore[dict-item]
        definition, submission_id = sent(workspace)
        emulator.settle()
        workspace.skipped += timedelta(hours=1)
        workspace.engine().recover_batches(submission_id)
        assert workspace.finish(definition, submission_id).submission.outcomes == {"succeeded": 5}
        assert len(emulator.books.batches) == 1
