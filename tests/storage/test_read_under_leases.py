"""Values read before a lease are read again under it: two processes with real leases, always in one order.

One process holds a submission's lease. The other one reads, and comes to the lease; the clock of its ledger signals
that to the test. Then the first one changes the values, and gives the lease back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.errors import IllegalTransitionError, LeaseError, LLMBatchError
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.states import ShardState, Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard, Submission, SubmissionState
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator, WireFault
from tests.storage.labelings import LABELS

# Longer than any wait on any machine; with correct code, tests never wait that long.
PATIENCE_SECONDS = 120.0


def rows(*names: str) -> pa.Table:
    return pa.table({"id": list(names), "text": [f"Ticket {name}." for name in names]})


class Place:
    """Two processes of one deployment: `first` holds leases, `second` waits for them."""

    def __init__(self, ledger_url: str, folder: Path, emulator: Emulator) -> None:
        self._folder, self._emulator = folder, emulator
        self._waits = threading.Event()
        self._watched: threading.Thread | None = None
        self.first = self._engine(Ledger(ledger_url))
        self.second = self._engine(Ledger(ledger_url, clock=self._now_of_second))

    def _engine(self, ledger: Ledger) -> Engine:
        provider = OpenAIProvider(DEFAULT_KEY, self._emulator.openai_base_url)
        payloads = PayloadStore(str(self._folder / "payloads"))
        return Engine(Deployment({"openai": provider}, ledger, payloads, "test", lease_wait_seconds=PATIENCE_SECONDS))

    def _now_of_second(self) -> datetime:
        # The ledger asks for the time only when it makes a lease, after its reads.
        if threading.current_thread() is self._watched:
            self._waits.set()
        return datetime.now(UTC)

    @contextmanager
    def while_second(self, act: Callable[[], object], submission_id: str) -> Iterator[Future[object]]:
        """Hold a lease until `act` of the second process waits for it; run the block under it, then release it."""
        with ThreadPoolExecutor(1) as pool, self.first.deployment.leased(submission_id):
            yield self.begin_second(pool, act)

    def begin_second(self, pool: ThreadPoolExecutor, act: Callable[[], object]) -> Future[object]:
        """Begin `act` of the second, and return when it has come to a lease."""

        def watched() -> object:
            self._watched = threading.current_thread()
            return act()

        future = pool.submit(watched)
        assert self._waits.wait(PATIENCE_SECONDS)
        return future

    def close(self) -> None:
        self.first.ledger.close()
        self.second.ledger.close()


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


@pytest.fixture
def place(ledger_url: str, tmp_path: Path, emulator: Emulator) -> Iterator[Place]:
    made = Place(ledger_url, tmp_path, emulator)
    yield made
    made.close()


def settle(place: Place, submission_id: str) -> None:
    """Settle a submission, as the process with the lease would."""
    settlement = {"outcomes": {"succeeded": 2}, "cost_usd": None, "realtime_usd": None, "price_basis": None}
    place.first.ledger.submissions.settle_all({submission_id: settlement})  # type: ignore[dict-item]  # the keys it needs


def test_changed_rows_are_planned_when_another_process_has_settled_the_old_submission_meanwhile(place: Place) -> None:
    old = place.first.plan(LABELS, rows("a", "b")).submission_id
    with place.while_second(lambda: place.second.plan(LABELS, rows("a", "b", "c")), old) as planned:
        settle(place, old)
    submission = planned.result()
    assert place.first.ledger.submissions.get(old).state is SubmissionState.SETTLED
    assert place.first.latest("labels") == submission


def plan_while_second_waits(place: Place, *of_second: str) -> tuple[Submission, Future[object]]:
    """Plan two rows as the first, while the second waits with its own rows; return the plans of both."""
    planned: list[Future[object]] = []
    with ThreadPoolExecutor(1) as pool:

        def rows_of_first() -> Iterator[pa.RecordBatch]:
            yield from rows("a").to_batches()
            planned.append(place.begin_second(pool, lambda: place.second.plan(LABELS, rows(*of_second))))
            yield from rows("b").to_batches()

        return place.first.plan(LABELS, rows_of_first()), planned[0]


def test_a_second_plan_of_the_same_rows_waits_for_the_first_and_finds_it(place: Place) -> None:
    first, second = plan_while_second_waits(place, "a", "b")
    assert second.result() == first


def test_a_second_plan_of_other_rows_waits_for_the_first_and_is_refused(place: Place) -> None:
    first, second = plan_while_second_waits(place, "a", "b", "c")
    with pytest.raises(LeaseError, match="another process planned other rows meanwhile"):
        second.result()
    assert place.first.latest("labels") == first
    assert place.first.ledger.submissions.list_all("test") == [first]
    assert place.second.plan(LABELS, rows("a", "b", "c")).submission_id != first.submission_id


def in_doubt(place: Place, emulator: Emulator) -> Shard:
    """Send rows by a call with a lost reply, at an unreachable provider."""
    emulator.inject(WireFault(kind="close", route="POST /v1/batches", when="after"))
    emulator.inject(WireFault(kind="status", route="GET /v1/batches", status=503, retry_after="0.01", times=None))
    submission_id = place.first.plan(LABELS, rows("a", "b")).submission_id
    place.first.submit(LABELS, submission_id)
    [shard] = place.first.ledger.shards.of_submission(submission_id)
    assert shard.state is ShardState.SUBMITTING
    return shard


def test_a_decision_on_a_create_call_is_not_taken_for_one_on_the_next_call(place: Place, emulator: Emulator) -> None:
    shard = in_doubt(place, emulator)

    def decide() -> Shard:
        return place.second.resolve(shard.shard_id, None)

    with place.while_second(decide, shard.submission_id) as decided:
        place.first.ledger.shards.move_all([shard.shard_id], Transition.NOT_SENT)
        place.first.ledger.shards.move_all([shard.shard_id], Transition.SEND)
    with pytest.raises(IllegalTransitionError, match="another create call"):
        decided.result()
    assert place.first.ledger.shards.get(shard.shard_id).state is ShardState.SUBMITTING


def test_a_batch_that_has_ended_meanwhile_is_not_given_up(place: Place, emulator: Emulator) -> None:
    submission_id = place.first.plan(LABELS, rows("a", "b")).submission_id
    place.first.submit(LABELS, submission_id)
    [shard] = place.first.ledger.shards.of_submission(submission_id)
    emulator.settle()
    with place.while_second(lambda: place.second.give_up(shard.shard_id), submission_id) as given_up:
        place.first.poll([shard])
    with pytest.raises(LLMBatchError, match="the next run collects its results"):
        given_up.result()
    assert place.first.advance(LABELS, submission_id).submission.outcomes == {"succeeded": 2}


def test_what_cannot_be_read_is_noted_once_told_and_given_up_on_both_ledgers(place: Place, emulator: Emulator) -> None:
    emulator.inject(WireFault(kind="status", route="GET /v1/files/*/content", status=403, times=None))
    submission_id = place.first.plan(LABELS, rows("a", "b")).submission_id
    place.first.submit(LABELS, submission_id)
    emulator.settle()
    for _ in range(3):
        with pytest.raises(LLMBatchError):
            place.first.advance(LABELS, submission_id)
    [unread] = place.first.ledger.unread.find("test")
    assert unread.shard.waits_until is not None
    assert [event.kind for event in place.first.ledger.events.of_submission(submission_id)].count("unreadable") == 1
    place.first.give_up(unread.shard.shard_id)
    assert place.first.advance(LABELS, submission_id).submission.outcomes == {"missing": 2}
    [given_up] = place.first.ledger.unread.given_up("test", unread.shard.ended_at or unread.since)
    assert given_up.shard_id == unread.shard.shard_id
