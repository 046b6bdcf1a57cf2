"""A queue that refused a larger batch gets no more at once than it accepted before."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from workspace import Workspace, billed, labeling, tickets

from dagster_llm_batch.advice.tuner import Attempt, attempts_of, choose_at_once
from dagster_llm_batch.definition.labeling import Limits
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.types import BatchStatus
from tests.statements import statements

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)


def days(count: int, refused: int) -> list[Attempt]:
    """Return attempts within a room of 800 tokens on `count` days, and refused larger ones on some of them."""
    taken = [Attempt(START + day * DAY, 800 - 10 * (day % 3), was_refused=False) for day in range(count)]
    return taken + [Attempt(START + day * DAY + HOUR, 900, was_refused=True) for day in range(refused)]


def test_no_more_is_sent_at_once_than_was_taken_where_more_was_refused_and_it_says_why() -> None:
    chosen = choose_at_once(days(14, refused=6))
    assert chosen.value == 800
    assert chosen.evidence == (
        "at most 800 input tokens of the model at once: more were refused on 6 of 6 days, fewer on 0 of 14 days in the "
        "last 90"
    )


@pytest.mark.parametrize(
    "known",
    [
        [],
        days(14, refused=4),
        days(9, refused=9),
        [Attempt(START + HOUR * number, 900, was_refused=number % 2 == 1) for number in range(20)],
        # Refusals by chance, at any load.
        [Attempt(START + day * DAY, 500 + 37 * day % 400, was_refused=day % 2 == 1) for day in range(40)],
        # The queue has room by now for a batch that it refused.
        [*days(14, refused=6), Attempt(START + 30 * DAY, 1_000, was_refused=False)],
    ],
    ids=["nothing", "few refusals", "few days", "one day", "by chance", "more room"],
)
def test_all_batches_go_at_once_where_there_is_too_little_to_say(known: list[Attempt]) -> None:
    assert choose_at_once(known).value is None


@given(st.lists(st.builds(Attempt, st.integers(0, 40).map(lambda day: START + day * DAY), st.integers(1, 99),
                          st.booleans()), max_size=90), st.randoms())  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_history_gives_an_amount_that_was_taken(known: list[Attempt], random: Any) -> None:
    chosen = choose_at_once(known)
    assert chosen.evidence
    assert chosen.value is None or chosen.value in {one.tokens for one in known if not one.was_refused}
    random.shuffle(known)
    assert choose_at_once(known) == chosen


def test_what_is_in_flight_is_what_was_sent_before_and_has_not_ended() -> None:
    taken = [(START, START + 2 * HOUR, 5), (START + HOUR, None, 7), (START + 3 * HOUR, START + 9 * HOUR, 11)]
    assert attempts_of(taken, [(START + 4 * HOUR, 40)]) == [
        Attempt(START, 5, was_refused=False),
        Attempt(START + HOUR, 12, was_refused=False),
        Attempt(START + 3 * HOUR, 18, was_refused=False),
        Attempt(START + 4 * HOUR, 40, was_refused=True),
    ]


def remember(workspace: Workspace, room: int) -> None:
    """Record twelve days on which the model's queue accepted so many tokens, and refused more."""
    # Not the day on which everything is tried again.
    while workspace.now().toordinal() % 8 in (7, 0):
        workspace.skipped += DAY
    now = [workspace.now() - 20 * DAY]
    ledger = Ledger(workspace.tmp_path / "ledger.sqlite", clock=lambda: now[0])
    account = workspace.providers["openai"].account
    for day in range(12):
        name = f"earlier-{day}"
        ledger.submissions.open(
            Submission(
                submission_id=name, namespace="other", asset="others", fingerprint=name, partition=name,
                config_fingerprint="c", provider="openai", account=account, model="gpt-4o", rows=2, requests=2,
                created_at=now[0],
            ),
            [
                Shard(
                    shard_id=f"{name}-{number}", submission_id=name, wave=1, number=number, nonce=f"h{name}{number}",
                    requests=1, bytes=9, path=f"{name}-{number}.zst", digest="00", tokens=tokens,
                )
                for number, tokens in enumerate([room, 50])
            ],
        )  # fmt: skip
        first, second = f"{name}-0", f"{name}-1"
        ledger.shards.move(first, Transition.SEND)
        ledger.shards.move(first, Transition.ACCEPTED, batch_id=first)
        ledger.shards.move(second, Transition.SEND)
        refused: dict[str, Any] = {"refused_at": now[0], "refused_tokens": room + 50}
        ledger.shards.move(second, Transition.NOT_SENT, no_room_at=now[0], **refused)
        now[0] += HOUR
        ledger.shards.move(first, Transition.ENDED, status=BatchStatus.ENDED)
        ledger.shards.move(second, Transition.SEND)
        ledger.shards.move(second, Transition.ACCEPTED, batch_id=second)
        now[0] += HOUR
        ledger.shards.move(second, Transition.ENDED, status=BatchStatus.ENDED)
        # The record of the refusal is written when the batch is accepted.
        assert ledger.shards.get(second).room.refused_tokens == room + 50
        now[0] += DAY - 2 * HOUR
    ledger.close()


@pytest.mark.slow
def test_batches_go_when_those_before_have_ended_and_each_is_sent_once(workspace: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=2))
    tokens = workspace.engine().preview(definition, tickets(2)).shards[0].tokens
    remember(workspace, room=3 * tokens + 10)
    engine = workspace.engine(tune=True)
    submission = engine.plan(definition, tickets(20))
    assert submission.tuning is not None
    assert submission.tuning["most_at_once"] == {"openai/gpt-4o": 3 * tokens + 10}
    # Another process, without tuning, takes over.
    engine = workspace.engine()
    engine.submit(definition, submission.submission_id)
    assert engine.status(submission.submission_id).states == {"submitted": 3, "planned": 7}
    # A second run at once sends no more.
    workspace.engine().submit(definition, submission.submission_id)
    assert engine.status(submission.submission_id).states == {"submitted": 3, "planned": 7}
    status = workspace.finish(definition, submission.submission_id)
    assert status.submission.outcomes == {"succeeded": 20}
    assert len(billed(workspace)) == len(set(billed(workspace))) == 20


def test_what_is_larger_than_what_was_taken_goes_alone(workspace: Workspace) -> None:
    remember(workspace, room=10)
    definition = labeling(limits=Limits(max_requests_per_batch=2))
    submission = workspace.engine(tune=True).plan(definition, tickets(6))
    engine = workspace.engine()
    engine.submit(definition, submission.submission_id)
    assert engine.status(submission.submission_id).states == {"submitted": 1, "planned": 2}
    assert workspace.finish(definition, submission.submission_id).submission.outcomes == {"succeeded": 6}


def test_a_queue_limit_that_is_set_holds_as_before(workspace: Workspace) -> None:
    remember(workspace, room=1_000)
    definition = labeling()
    queue = {"openai": QueueLimit(max_tokens=900)}
    submission = workspace.engine(tune=True, queue_limits=queue).plan(definition, tickets(3))
    assert (submission.tuning or {})["most_at_once"] == {}
    assert any("as the queue limit of 900 tokens allows" in words for words in (submission.tuning or {})["evidence"])


def test_what_was_chosen_holds_up_nothing_for_ever_as_where_others_fill_the_queue(workspace: Workspace) -> None:
    definition = labeling()
    tokens = workspace.engine().preview(definition, tickets(2)).shards[0].tokens
    remember(workspace, room=2 * tokens)
    tuned = workspace.engine(tune=True).plan(definition, tickets(2))
    assert (tuned.tuning or {})["most_at_once"] == {"openai/gpt-4o": 2 * tokens}
    # The batches of an abandoned namespace, without tuning, still fill the queue.
    others = workspace.engine(namespace="abandoned")
    others.submit(definition, others.plan(definition, tickets(9, start=50)).submission_id)
    engine = workspace.engine()
    for passed in (DAY, 2 * DAY):
        engine.submit(definition, tuned.submission_id)
        assert engine.status(tuned.submission_id).states == {"planned": 1}
        [progress] = engine.ledger.submissions.progress("test")
        assert not engine.activity.can_advance(progress)
        workspace.skipped += passed
    assert engine.activity.can_advance(progress)
    engine.submit(definition, tuned.submission_id)
    assert engine.status(tuned.submission_id).states == {"submitted": 1}


def test_what_was_chosen_is_asked_about_once_for_a_submission_however_many_shards_wait(workspace: Workspace) -> None:
    definition = labeling(limits=Limits(max_requests_per_batch=2))
    tokens = workspace.engine().preview(definition, tickets(2)).shards[0].tokens
    remember(workspace, room=tokens + 1)
    submission = workspace.engine(tune=True).plan(definition, tickets(20))
    engine = workspace.engine()
    engine.submit(definition, submission.submission_id)
    [progress] = engine.ledger.submissions.progress("test")
    assert progress.states == {"submitted": 1, "planned": 9}
    with statements() as asked:
        assert not engine.activity.can_advance(progress)
    assert sum("sum(shards.tokens)" in statement for statement in asked) == 1


@pytest.mark.slow
def test_of_partitions_that_are_sent_together_so_many_go_as_there_is_room_for(workspace: Workspace) -> None:
    definition = labeling()
    tokens = workspace.engine().preview(definition, tickets(2)).shards[0].tokens
    remember(workspace, room=3 * tokens + 10)
    tuned = workspace.engine(tune=True)
    ids = [tuned.plan(definition, tickets(2, 10 * n), partition=f"p{n}").submission_id for n in range(10)]
    engine = workspace.engine()
    engine.submit_together(definition, ids[:1])
    workspace.engine().submit_together(definition, ids[1:])
    sent = [one for one in ids if engine.status(one).states == {"submitted": 1}]
    assert len(sent) == 3
    # The others need no run before one of the three has ended.
    assert not any(engine.activity.can_advance(progress) for progress in engine.ledger.submissions.progress("test"))
    for one in sent:
        workspace.finish(definition, one)
    engine.submit_together(definition, [one for one in ids if one not in sent])
    assert sum(engine.status(one).states == {"submitted": 1} for one in ids) == 3
