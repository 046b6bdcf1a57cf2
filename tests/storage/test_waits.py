"""Each state and each mark of the ledger is in the table of waits, and each exit ends a wait."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.engine.condition_facts import read_facts
from dagster_llm_batch.engine.conditions import ConditionKind, find_conditions
from dagster_llm_batch.loop import activity, status
from dagster_llm_batch.loop.holds import RULES
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.states import ENDED, Reason, ShardState, Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.events import Ambiguous, NotKnown, NotThere
from dagster_llm_batch.storage.ledger.records import Ending, Shard
from dagster_llm_batch.storage.ledger.submission_rows import UNREADABLE
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, WireFault
from dagster_llm_batch.types import BatchStatus, Cause
from tests.holds_table import table
from tests.storage.labelings import LABELS

MARKS = (
    *(status.STOPPED, status.OVER_BUDGET, status.HELD, status.WAITS, status.STRANDED, status.UNAVAILABLE),
    *(activity.LOST, Ambiguous.kind, NotThere.kind, NotKnown.kind, Reason.LACKS_MONEY.value, UNREADABLE),
    *(
        Transition.NOT_SENT.value,
        Transition.PUT_BACK.value,
        Cause.NOT_TAKEN.value,
        Cause.GONE.value,
        Cause.GIVEN_UP.value,
    ),
)


def exits() -> list[tuple[ShardState, str]]:
    """Return each state with each command that ends a wait in it."""
    # An exit of only some states has more words.
    commands = r"`(cancel|resolve --[a-z-]+)`$"
    found = {
        (state, command)
        for rule in RULES.values()
        for state in rule.states
        for one in rule.exits
        for command in re.findall(commands, one)
    }
    return sorted(found)


@pytest.mark.parametrize("state", ShardState)
def test_each_state_has_a_wait(state: ShardState) -> None:
    assert any(state in rule.states for rule in RULES.values())


@pytest.mark.parametrize("mark", MARKS)
def test_each_mark_of_a_wait_is_in_the_table(mark: str) -> None:
    assert f"`{mark}`" in table()


def test_each_state_with_a_person_as_its_exit_has_a_command() -> None:
    assert {state for state, _ in exits()} == set(ShardState) - {ShardState.COLLECTED}


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def engine(ledger_url: str, tmp_path: Path, emulator: Emulator) -> Iterator[Engine]:
    provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
    ledger = Ledger(ledger_url)
    deployment = Deployment({"openai": provider}, ledger, PayloadStore(str(tmp_path)), "test", sleep=lambda _: None)
    yield Engine(deployment)
    ledger.close()


_ENDS = {
    ShardState.ENDED: (Transition.ENDED, BatchStatus.ENDED),
    ShardState.EXPIRED: (Transition.EXPIRED, BatchStatus.EXPIRED),
    ShardState.CANCELED: (Transition.CANCELED, BatchStatus.CANCELED),
    ShardState.FAILED: (Transition.FAILED, BatchStatus.FAILED),
}


def waiting(engine: Engine, emulator: Emulator, state: ShardState) -> Shard:
    """Return a shard that waits in this state; if ended, because its results could not be read."""
    submission = engine.plan(LABELS, pa.table({"id": ["a"], "text": ["Ticket a."]}))
    if state is ShardState.SUBMITTING:
        emulator.inject(WireFault(kind="close", route="POST /v1/batches", when="after"))
        emulator.inject(WireFault(kind="status", route="GET /v1/batches", status=503, retry_after="0.01", times=None))
    if state is not ShardState.PLANNED:
        engine.submit(LABELS, submission.submission_id)
    [shard] = engine.ledger.shards.of_submission(submission.submission_id)
    if state in ENDED:
        move, said = _ENDS[state]
        ending = Ending(
            move=move,
            batch_id=shard.batch.batch_id or "",
            status=said,
            ended_at=engine.now(),
            total=1,
            done=1,
            failed=0,
            reason=None,
            retryable=False,
        )
        engine.ledger.shards.record_endings({shard.shard_id: ending})
        engine.ledger.unread.note([shard.shard_id], "status 403")
        engine.ledger.unread.wait([shard.shard_id], engine.now())
    [shard] = engine.ledger.shards.of_submission(submission.submission_id)
    assert shard.state is state
    return shard


_VERBS: dict[str, Callable[[Engine, Shard], object]] = {
    "cancel": lambda engine, shard: engine.cancel(shard.submission_id),
    "resolve --lost": lambda engine, shard: engine.give_up(shard.shard_id),
    "resolve --batch-id": lambda engine, shard: engine.resolve(shard.shard_id, "batch_of_the_console"),
    "resolve --no-batch": lambda engine, shard: engine.resolve(shard.shard_id, None),
}


@pytest.mark.parametrize(("state", "command"), exits(), ids=lambda value: str(value).replace(" ", ""))
def test_each_exit_of_the_table_is_accepted_in_its_state(
    engine: Engine, emulator: Emulator, state: ShardState, command: str
) -> None:
    shard = waiting(engine, emulator, state)
    before = engine.ledger.events.of_submission(shard.submission_id)
    _VERBS[command](engine, shard)
    assert engine.ledger.events.of_submission(shard.submission_id) != before


def plan_one(engine: Engine, key: str) -> str:
    return engine.plan(LABELS, pa.table({"id": [key], "text": [f"Ticket {key}."]}), partition=key).submission_id


@pytest.mark.parametrize("holder", ["overdue", "in doubt", "of another namespace"])
def test_a_declared_queue_that_stays_full_has_a_condition_that_is_told_again(
    ledger_url: str, tmp_path: Path, emulator: Emulator, holder: str
) -> None:
    """Check that one of the conditions names whatever blocks the waiting batch."""
    skipped = timedelta()

    def engine_of(namespace: str) -> Engine:
        ledger = Ledger(ledger_url, lambda: datetime.now(UTC) + skipped)
        provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)
        limits = {"openai": QueueLimit(max_batches=1)}
        deployment = Deployment(
            {"openai": provider},
            ledger,
            PayloadStore(str(tmp_path)),
            namespace,
            lambda: datetime.now(UTC) + skipped,
            sleep=lambda _: None,
            queue_limits=limits,
        )
        return Engine(deployment)

    first = engine_of("other" if holder == "of another namespace" else "test")
    if holder == "in doubt":
        emulator.inject(WireFault(kind="close", route="POST /v1/batches", when="after"))
        emulator.inject(WireFault(kind="status", route="GET /v1/batches", status=503, retry_after="0.01", times=None))
    first.submit(LABELS, plan_one(first, "a"))
    engine = engine_of("test")
    waiting = plan_one(engine, "b")
    engine.submit(LABELS, waiting)
    [shard] = engine.ledger.shards.of_submission(waiting)
    assert shard.state is ShardState.PLANNED
    assert not [one for one in find_conditions(read_facts(engine, None, ())) if one.is_due(engine.now())]
    skipped = timedelta(days=1.6) if holder == "overdue" else timedelta(hours=2)
    due = [one.kind for one in find_conditions(read_facts(engine, None, ())) if one.is_due(engine.now())]
    expected = {
        "overdue": ConditionKind.OVERDUE,
        "in doubt": ConditionKind.IN_DOUBT,
        "of another namespace": ConditionKind.HELD_QUEUE,
    }
    assert expected[holder] in due
