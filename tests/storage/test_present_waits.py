"""Each combination of a shard's columns has one reason to wait, or one reason to go on."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from ledger_builders import a_shard

from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.errors import IllegalTransitionError
from dagster_llm_batch.loop.holds import RULES
from dagster_llm_batch.loop.present_waits import Going, Surroundings, find_reason, find_waits
from dagster_llm_batch.loop.waits import TOLD_AFTER, needs_provider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.sensors.provider_access import ProviderAccess
from dagster_llm_batch.states import ENDED, HoldReason, Reason, ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.events import Held, LandingFailed, Stranded, Waits
from dagster_llm_batch.storage.ledger.holds import OF_RESULTS
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, WireFault
from dagster_llm_batch.types import BatchStatus, Cause, Lane
from tests.storage.labelings import LABELS

NOW = datetime(2026, 1, 2, tzinfo=UTC)
SOON, BEFORE = NOW + timedelta(minutes=5), NOW - timedelta(days=1)
NOT_SENT_YET = (None, Reason.PROVIDER, Reason.MONEY, Reason.LACKS_MONEY, Reason.NO_BATCH)
# These are waits of a submission or of a namespace.
OF_SUBMISSIONS = {
    *(HoldReason.CHANGED, HoldReason.UNFIT, HoldReason.OVER_BUDGET, HoldReason.RECOVERED),
    *(HoldReason.REUSES, HoldReason.STRANDED, HoldReason.NO_PARTITION, HoldReason.NO_DATASET),
    *(HoldReason.HELD_QUEUE, HoldReason.REFUSED),
}


def planned() -> Iterator[tuple[Shard, Surroundings]]:
    """Yield all combinations of the columns of an unsent shard."""
    waits = (None, Waits(for_place=True), Waits(for_place=True, money="x"), Waits(for_place=False, money="x"))
    columns = (NOT_SENT_YET, (None, BEFORE), (None, SOON, BEFORE), Lane, waits, (True, False))
    for kind, no_room_at, until, lane, said, can_ask in product(*columns):
        fields = {"reason_kind": kind, "no_room_at": no_room_at, "waits_until": until, "lane": lane}
        yield a_shard(**fields), Surroundings(said, can_ask=can_ask)


def sent() -> Iterator[tuple[Shard, Surroundings]]:
    """Yield all combinations of the columns of a sent shard."""
    statuses, causes = (None, *BatchStatus), (None, *Cause)
    around = [
        Surroundings(None, is_busy, overdue_at, can_ask, held)
        for is_busy, overdue_at, can_ask, held in product(
            (True, False), (None, BEFORE, SOON), (True, False), ((), *((one,) for one in OF_RESULTS), OF_RESULTS)
        )
    ]
    for state, status, cause, batch_id in product(ShardState, statuses, causes, (None, "b")):
        if state is not ShardState.PLANNED:
            fields = {"status": status, "cause": cause, "batch_id": batch_id, "ended_at": BEFORE, "sent_at": BEFORE}
            shard = a_shard(state=state, **fields)
            yield from ((shard, each) for each in around)


@cache
def every() -> list[tuple[Shard, Surroundings]]:
    return [*planned(), *sent()]


def test_each_combination_of_columns_has_one_reason_whose_rule_has_its_state() -> None:
    for shard, around in every():
        reason = find_reason(shard, NOW, around)
        if isinstance(reason, HoldReason):
            assert shard.state in RULES[reason].states, (reason, shard.state)


def test_each_reason_of_a_shard_is_found_and_each_state_can_go_on() -> None:
    found = {find_reason(shard, NOW, around) for shard, around in every()}
    assert found == {*Going, *HoldReason} - OF_SUBMISSIONS
    going = {shard.state for shard, around in every() if isinstance(find_reason(shard, NOW, around), Going)}
    assert going == set(ShardState)


def test_all_that_is_not_collected_and_that_nobody_moves_waits_with_a_written_step() -> None:
    assert all(len(reason.value.split()) > 3 for reason in Going)
    for shard, around in every():
        is_done = find_reason(shard, NOW, around) is Going.DONE
        assert not is_done or shard.state is ShardState.COLLECTED


@pytest.mark.parametrize("reason", [*NOT_SENT_YET[1:], *OF_RESULTS])
def test_what_its_columns_or_its_row_record_is_never_taken_as_going_on(reason: Reason | HoldReason) -> None:
    for shard, around in every():
        is_kept = shard.reason_kind is reason or (shard.state in ENDED and reason in around.held)
        if is_kept and (shard.state is ShardState.PLANNED or needs_provider(shard)):
            assert isinstance(find_reason(shard, NOW, around), HoldReason)


# of submissions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


class Clock:
    skipped = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.skipped


@pytest.fixture
def clock() -> Clock:
    return Clock()


def engine_of(url: str, folder: Path, emulator: Emulator, clock: Clock, **options: Any) -> Engine:
    provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url, **options)
    deployment = Deployment(
        {"openai": provider}, Ledger(url, clock), PayloadStore(str(folder)), "test", clock, sleep=lambda _: None
    )
    return Engine(deployment)


@pytest.fixture
def engine(ledger_url: str, tmp_path: Path, emulator: Emulator, clock: Clock) -> Iterator[Engine]:
    engine = engine_of(ledger_url, tmp_path, emulator, clock)
    yield engine
    engine.ledger.close()


def submit(engine: Engine) -> str:
    submission = engine.plan(LABELS, pa.table({"id": ["a"], "text": ["Ticket a."]}))
    engine.submit(LABELS, submission.submission_id)
    return submission.submission_id


def waits_of(engine: Engine, submission_id: str) -> list[HoldReason]:
    return [wait.reason for wait in find_waits(engine.deployment, submission_id)]


def test_a_submission_that_runs_waits_for_nothing_until_its_batch_is_overdue(engine: Engine, clock: Clock) -> None:
    submission_id = submit(engine)
    assert waits_of(engine, submission_id) == []
    clock.skipped = timedelta(days=2)
    [wait] = find_waits(engine.deployment, submission_id)
    [shard] = engine.ledger.shards.of_submission(submission_id)
    assert (wait.reason, wait.shards) == (HoldReason.OVERDUE, [shard])
    assert wait.since == engine.deployment.overdue_at(shard)
    assert f"resolve {shard.shard_id} --lost" in wait.advice.then


def test_a_wait_of_the_submission_comes_before_those_of_its_shards(engine: Engine, clock: Clock) -> None:
    submission_id = submit(engine)
    engine.ledger.events.add(submission_id, Held("it has changed", "Materialize it"))
    engine.ledger.events.add(submission_id, Stranded("a run was lost"))
    clock.skipped = timedelta(days=2)
    found = find_waits(engine.deployment, submission_id)
    assert [wait.reason for wait in found] == [HoldReason.CHANGED, HoldReason.STRANDED, HoldReason.OVERDUE]
    assert [bool(wait.shards) for wait in found] == [False, False, True]


@pytest.mark.parametrize(
    ("waits", "reason"),
    [(Waits(for_place=True), HoldReason.PLACE), (Waits(for_place=False, money="x"), HoldReason.MONEY)],
)
def test_what_waits_still_does_after_events_that_change_nothing(
    engine: Engine, waits: Waits, reason: HoldReason
) -> None:
    rows = pa.table({"id": ["a"], "text": ["Ticket a."]})
    submission_id = engine.plan(LABELS, rows).submission_id
    engine.ledger.events.add(submission_id, waits)
    engine.ledger.events.add(submission_id, LandingFailed("a run has failed"))
    engine.ledger.submissions.mark_reported([submission_id])
    assert waits_of(engine, submission_id) == [reason]


def test_a_create_call_without_a_record_is_in_doubt_unless_a_process_works_on_it(
    engine: Engine, emulator: Emulator
) -> None:
    emulator.inject(WireFault(kind="close", route="POST /v1/batches", when="after"))
    emulator.inject(WireFault(kind="status", route="GET /v1/batches", status=503, retry_after="0.01", times=None))
    submission_id = submit(engine)
    assert waits_of(engine, submission_id) == [HoldReason.IN_DOUBT]
    with engine.deployment.leased(submission_id):
        assert waits_of(engine, submission_id) == []


def test_a_batch_that_no_provider_takes_is_not_sent_since_its_first_attempt(engine: Engine, emulator: Emulator) -> None:
    emulator.inject(WireFault(kind="status", route="POST /v1/files", status=429, retry_after="0.01", times=None))
    submission_id = submit(engine)
    [wait] = find_waits(engine.deployment, submission_id)
    assert wait.reason is HoldReason.NOT_SENT
    assert wait.since == engine.ledger.submissions.first_unsent([submission_id])[submission_id]


def test_results_that_cannot_be_read_wait_since_the_first_attempt(engine: Engine, emulator: Emulator) -> None:
    submission_id = submit(engine)
    emulator.settle()
    emulator.inject(
        WireFault(kind="status", route="GET /v1/files/*/content", status=503, retry_after="0.01", times=None)
    )
    engine.poll(engine.ledger.shards.in_flight("test"))
    with pytest.raises(Exception, match="cannot be read"):
        engine.advance(LABELS, submission_id)
    [wait] = find_waits(engine.deployment, submission_id)
    [hold] = engine.ledger.holds.of([submission_id])[submission_id]
    assert (wait.reason, wait.since) == (HoldReason.UNREADABLE, hold.since)


def end(engine: Engine, emulator: Emulator, cause: Cause | None) -> None:
    """Let the batch end normally, or because it was canceled at the provider."""
    running = engine.ledger.shards.in_flight("test")
    if cause is Cause.CANCELED:
        engine.deployment.provider_of(running[0]).cancel(running[0].batch.batch_id)
    emulator.settle()
    engine.poll(running)
    assert {shard.cause for shard in engine.ledger.shards.of_submission(running[0].submission_id)} == {cause}


@pytest.mark.parametrize("cause", [None, Cause.CANCELED])
def test_results_of_an_account_that_is_not_configured_any_more_wait_for_it_and_a_person_can_give_them_up(
    engine: Engine, ledger_url: str, tmp_path: Path, emulator: Emulator, clock: Clock, cause: Cause | None
) -> None:
    """Without a run, no attempt to read them fails."""
    submission_id = submit(engine)
    end(engine, emulator, cause)
    [shard] = engine.ledger.shards.of_submission(submission_id)
    other = engine_of(ledger_url, tmp_path, emulator, clock, account="another")
    [wait] = find_waits(other.deployment, submission_id)
    assert wait.reason is HoldReason.CANNOT_ASK
    assert "another is configured" in wait.advice.problem
    # They have just ended, and a run may be collecting them with the former account.
    with pytest.raises(IllegalTransitionError, match="next run collects"):
        other.give_up(shard.shard_id)
    clock.skipped = TOLD_AFTER + timedelta(minutes=1)
    with pytest.raises(IllegalTransitionError, match="next run collects"):
        engine.give_up(shard.shard_id)
    assert other.give_up(shard.shard_id).cause is Cause.GIVEN_UP
    # The sensor requests a run for them again, even after one was lost: they need no provider.
    access = ProviderAccess(other, lambda _what, _error: None)
    given_up = other.ledger.shards.of_submission(submission_id)
    assert access.reason_not_to_run(["openai"], given_up, is_in_trouble=True) == (None, False)
    assert other.collect(LABELS, submission_id).submission.outcomes == {"missing": 1}
    assert waits_of(other, submission_id) == [HoldReason.LATE_ANSWERS]
    clock.skipped = timedelta(days=31)
    assert waits_of(other, submission_id) == []
    other.ledger.close()


@pytest.mark.parametrize("cause", [None, Cause.CANCELED])
def test_results_of_an_account_that_is_not_configured_any_more_are_given_up_when_no_vendor_has_them(
    engine: Engine, ledger_url: str, tmp_path: Path, emulator: Emulator, clock: Clock, cause: Cause | None
) -> None:
    """Check that they are read later: some storages keep results longer, and the account may be configured again."""
    submission_id = submit(engine)
    end(engine, emulator, cause)
    other = engine_of(ledger_url, tmp_path, emulator, clock, account="another")

    def shards() -> list[Shard]:
        """Do the part of a tick that abandons results; return the shards."""
        of_former = other.ledger.shards.of_submission(submission_id)
        other.give_up_forgotten(of_former)
        return other.ledger.shards.of_submission(submission_id)

    for days in (1, 29, 31):
        clock.skipped = timedelta(days=days)
        assert [shard.cause for shard in shards()] == [cause]
    engine.give_up_forgotten(engine.ledger.shards.of_submission(submission_id))
    # With the former account a run collects them.
    clock.skipped = timedelta(days=33)
    engine.give_up_forgotten(engine.ledger.shards.of_submission(submission_id))
    assert waits_of(other, submission_id) == [HoldReason.CANNOT_ASK]
    clock.skipped = timedelta(days=31, hours=25)
    assert [shard.cause for shard in shards()] == [Cause.GIVEN_UP]
    assert waits_of(other, submission_id) == []
    assert other.collect(LABELS, submission_id).submission.outcomes == {"missing": 1}
    assert waits_of(other, submission_id) == [HoldReason.LATE_ANSWERS]
    other.ledger.close()
    clock.skipped = timedelta(days=40)
    engine.poll_awaited([LABELS.asset], clock())
    # The provider has no line of a batch that was canceled before it answered.
    outcome = "succeeded" if cause is None else "missing"
    assert engine.collect(LABELS, submission_id).submission.outcomes == {outcome: 1}
