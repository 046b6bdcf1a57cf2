"""Batches of abandoned namespaces hold a declared queue for a bounded time; a person gets reports until then."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from labelings import LABELS

from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Deployment, Engine
from dagster_llm_batch.loop.activity import find_held_queues
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

ROWS = [{"id": str(n), "text": f"Ticket {n}"} for n in range(3)]
HOUR, WINDOW = timedelta(hours=1), timedelta(days=1)
LIMITS = {"openai": QueueLimit(max_batches=1)}


class Place:
    """A ledger shared by two namespaces; the namespace `former` is abandoned."""

    def __init__(self, ledger_url: str, folder: Path, emulator: Emulator) -> None:
        self.url, self.folder = ledger_url, folder
        self.skipped = timedelta()
        self.provider = OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url, timeout_seconds=5.0)
        former = self.engine("former")
        submission = former.plan(LABELS, ROWS)
        [self.left] = former.submit(LABELS, submission.submission_id).shards
        assert self.left.batch.batch_id

    def now(self) -> datetime:
        return datetime.now(UTC) + self.skipped

    def engine(self, namespace: str = "present", **rules: Any) -> Engine:
        rules = {"queue_limits": LIMITS, **rules}
        ledger, payloads = Ledger(self.url, self.now), PayloadStore(str(self.folder / "payloads"))
        return Engine(
            Deployment({"openai": self.provider}, ledger, payloads, namespace, self.now, sleep=lambda _: None, **rules)
        )

    def try_to_send(self) -> Shard:
        engine = self.engine()
        [shard] = engine.submit(LABELS, engine.plan(LABELS, ROWS).submission_id).shards
        return shard

    def told(self) -> list[str]:
        return [str(held.advice) for held in find_held_queues(self.engine().deployment)]


@pytest.fixture
def place(ledger_url: str, tmp_path: Path) -> Iterator[Place]:
    with Emulator() as emulator:
        yield Place(ledger_url, tmp_path, emulator)


def test_a_batch_that_nobody_asks_about_holds_its_place_for_two_windows_and_no_longer(place: Place) -> None:
    place.skipped += 2 * WINDOW - HOUR
    assert place.try_to_send().batch.batch_id is None
    place.skipped += 2 * HOUR
    assert place.told() == []
    assert place.try_to_send().batch.batch_id is not None


def test_a_batch_that_runs_for_longer_holds_its_place_while_somebody_asks_about_it(place: Place) -> None:
    place.skipped += 3 * WINDOW
    former = place.engine("former")
    former.poll([former.ledger.shards.get(place.left.shard_id)])
    assert place.try_to_send().batch.batch_id is None
    assert place.told() == []


def test_a_person_is_told_which_batches_of_which_namespace_hold_the_queue_and_how_to_release_them(
    place: Place,
) -> None:
    # The batch may still be polled soon, and no other one waits yet.
    assert place.told() == []
    assert place.try_to_send().batch.batch_id is None
    assert place.told() == []
    place.skipped += 2 * HOUR
    [told] = place.told()
    shard_id = place.left.shard_id
    assert "the queue limit of 1 batches of openai is used up, in part by batches that have not been polled" in told
    assert "1 of namespace 'former', the oldest sent 20" in told
    assert f"(shards {shard_id})" in told
    assert f"`dagster-llm-batch resolve {shard_id} --lost`" in told
    assert place.left.batch.sent_at is not None
    assert f"{place.left.batch.sent_at + 2 * WINDOW:%Y-%m-%d %H:%M} UTC" in told
    # The reported command frees the queue.
    place.engine().give_up(shard_id)
    assert place.told() == []
    assert place.try_to_send().batch.batch_id is not None


def test_without_a_limit_of_the_queue_nobody_is_told_of_it(place: Place) -> None:
    engine = place.engine(queue_limits={})
    engine.plan(LABELS, ROWS)
    place.skipped += 2 * HOUR
    assert find_held_queues(engine.deployment) == []


def test_tokens_that_nobody_asks_about_are_not_beside_a_batch_for_ever(place: Place) -> None:
    engine = place.engine()
    shard = place.try_to_send()
    beside = [engine.ledger.queues.tokens_beside([shard], engine.deployment.queue_occupancy(shard))]
    place.skipped += 2 * WINDOW + HOUR
    beside.append(engine.ledger.queues.tokens_beside([shard], engine.deployment.queue_occupancy(shard)))
    assert beside == [place.left.tokens, 0]
