"""The ledger's history of waves and of full queues, on both databases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ledger_builders import a_shard, a_submission

from dagster_llm_batch.states import Transition
from dagster_llm_batch.types import BatchStatus, Cause, Lane

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
THEN = datetime(2026, 1, 1, tzinfo=UTC)
QUEUE = ("openai", "api.openai.com/org-1", "gpt-5-mini")


def test_each_wave_has_what_it_was_asked_again_for_and_what_it_answered(ledger):
    submission = a_submission(reused=3)
    ledger.submissions.open(submission, [a_shard()])
    ledger.submissions.add_wave("s1", [a_shard("h2", wave=2, asked_again={"errored": 2, "invalid": 1})])
    ledger.submissions.add_wave("s1", [a_shard("h3", wave=3, asked_again={"errored": 2})])
    for shard_id, move, cause in (
        ("h1", Transition.ENDED, None),
        ("h2", Transition.ENDED, None),
        ("h3", Transition.EXPIRED, None),
    ):
        ledger.shards.move(shard_id, Transition.SEND)
        ledger.shards.move(shard_id, Transition.ACCEPTED, batch_id=shard_id)
        status = BatchStatus.EXPIRED if move is Transition.EXPIRED else BatchStatus.ENDED
        ledger.shards.move(shard_id, move, status=status, cause=cause)
        ledger.shards.move(shard_id, Transition.COLLECTED, answered=1)
    place = ("prod", "tickets", "c1", THEN - DAY)
    # Rows of an open submission may still be answered.
    assert ledger.history.retries(*place, 10) == []
    ledger.submissions.settle("s1", outcomes={}, cost_usd=None, realtime_usd=None, price_basis=None)
    second = ("s1", submission.created_at, 5, 2, {"errored": 2, "invalid": 1}, 1)
    # The missing answers of an expired batch are unknown.
    third = ("s1", submission.created_at, 5, 3, {"errored": 2}, None)
    assert ledger.history.retries(*place, 10) == [second, third]
    assert ledger.history.retries(*place, 1) == [second]
    assert ledger.history.retries("prod", "tickets", "c1", THEN + DAY, 10) == []
    assert ledger.history.retries("prod", "tickets", "c2", THEN - DAY, 10) == []
    assert ledger.history.retries("prod", "others", "c1", THEN - DAY, 10) == []


def test_what_a_queue_had_no_room_for_is_remembered_when_it_was_taken(ledger):
    ledger.submissions.open(
        a_submission(),
        [
            a_shard("h1", tokens=70),
            a_shard("h2", number=2, tokens=30),
            a_shard("h3", number=3, tokens=9, lane=Lane.REALTIME),
        ],
    )
    before = THEN
    assert ledger.history.queue_attempts(*QUEUE, before, 10) == ([], [])
    ledger.shards.move_all(["h1", "h2"], Transition.SEND)
    refused_at = THEN + HOUR
    refused = {"refused_at": refused_at, "refused_tokens": 400}
    ledger.shards.move_all(["h1", "h2"], Transition.NOT_SENT, no_room_at=refused_at, **refused)
    assert ledger.history.queue_attempts(*QUEUE, before, 10) == ([], [(refused_at, 400)])
    ledger.shards.move_all(["h1", "h2"], Transition.SEND)
    ledger.shards.move_all(["h1", "h2"], Transition.ACCEPTED, batch_id="b1")
    # Until a batch has begun, it is unknown whether the queue accepted it.
    assert ledger.history.queue_attempts(*QUEUE, before, 10)[0] == []
    ended_at = THEN + 9 * DAY
    ledger.shards.move_all(["h1", "h2"], Transition.ENDED, status=BatchStatus.ENDED, ended_at=ended_at)
    sent_at = ledger.shards.get("h1").batch.sent_at
    assert ledger.history.queue_attempts(*QUEUE, before, 10) == ([(sent_at, ended_at, 100)], [(refused_at, 400)])
    assert ledger.history.queue_attempts("openai", QUEUE[1], "another", before, 10) == ([], [])
    assert ledger.history.queue_attempts(*QUEUE, THEN + 9 * DAY, 10) == ([], [])


def test_what_was_never_taken_counts_as_refused_alone(ledger):
    ledger.submissions.open(a_submission(), [a_shard(tokens=70)])
    ledger.shards.move("h1", Transition.SEND)
    refused = {"refused_at": THEN, "refused_tokens": 70}
    ledger.shards.move("h1", Transition.NOT_SENT, no_room_at=THEN, **refused)
    ledger.shards.move("h1", Transition.SEND)
    ledger.shards.move("h1", Transition.REFUSED, status=BatchStatus.FAILED, cause=Cause.NOT_TAKEN)
    assert ledger.history.queue_attempts(*QUEUE, THEN - DAY, 10) == ([], [(THEN, 70)])
