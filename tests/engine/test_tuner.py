"""The settings that new submissions derive from earlier ones, within the user's limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from workspace import Workspace, labeling, tickets

from dagster_llm_batch.advice.tuner import BatchSize, Choice, choose_batch_size, choose_lead
from dagster_llm_batch.core.durations import Durations
from dagster_llm_batch.definition.labeling import Limits, Realtime
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.testing.emulator import BatchFault
from dagster_llm_batch.types import BatchStatus, Span

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
SIZES = [1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000]


def batches(larger: int, expired: int, others: int) -> list[BatchSize]:
    """Return days with a batch of 40,000 requests, some of them expired, and days with one of 800 requests."""
    return [BatchSize(START + day * DAY, 40_000, day < expired) for day in range(larger)] + [
        BatchSize(START + day * DAY, 800, False) for day in range(others)
    ]


def test_batches_are_smaller_where_larger_ones_expired_and_say_why() -> None:
    assert choose_batch_size(batches(larger=8, expired=4, others=40)) == Choice(
        20_000,
        "batches of at most 20,000 requests: larger ones expired on 4 of 8 days, others on 0 of 40 days in the last 90",
    )


@pytest.mark.parametrize(
    ("larger", "expired", "others"),
    [(0, 0, 0), (4, 4, 40), (8, 8, 9), (8, 0, 40), (20, 1, 40)],
    ids=["nothing", "few larger", "few others", "none expired", "one expired"],
)
def test_batches_stay_as_they_are_where_there_is_too_little_to_say(larger: int, expired: int, others: int) -> None:
    assert choose_batch_size(batches(larger, expired, others)).value is None


def test_the_batches_of_one_bad_day_are_one_piece_of_evidence() -> None:
    one_day = [BatchSize(START, 40_000, has_expired=True)] * 50
    assert choose_batch_size([*one_day, *batches(larger=8, expired=1, others=40)]).value is None


def test_that_more_larger_batches_are_sent_is_no_evidence_against_them() -> None:
    # Each day has ten larger batches and one smaller; one of the larger expires.
    known = batches(larger=0, expired=0, others=40)
    known += [
        BatchSize(START + day * DAY + number * HOUR, 40_000, has_expired=number == 7)
        for day in range(40)
        for number in range(10)
    ]
    assert choose_batch_size(known).value is None


@pytest.mark.slow
@given(st.integers(5, 12), st.integers(0, 12), st.integers(10, 40), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_a_size_is_chosen_where_fishers_exact_test_says_so(larger: int, bad: int, others: int, bad_others: int) -> None:
    bad, bad_others = min(bad, larger), min(bad_others, others)
    known = [BatchSize(START + day * DAY, 1_500, day < bad) for day in range(larger)]
    known += [BatchSize(START + day * DAY, 900, day < bad_others) for day in range(others)]
    # All sizes but one have all batches on one side.
    chance = scipy.stats.fisher_exact(
        [[bad, larger - bad], [bad_others, others - bad_others]], alternative="greater"
    ).pvalue
    if abs(chance - 0.05) > 1e-9:
        assert (choose_batch_size(known).value == 1_000) == (chance <= 0.05)


DRAWN = st.lists(
    st.builds(
        BatchSize,
        st.integers(0, 40).map(lambda day: START + day * DAY),
        st.sampled_from([1, 100, 999, 1_000, 1_001, 7_000, 50_000, 400_000]),
        st.booleans(),
    ),
    max_size=120,
)


@given(DRAWN, st.integers(1, 5_000), st.randoms())
@settings(max_examples=60, deadline=None)
def test_any_history_gives_a_size_that_was_passed_and_two_of_which_a_provider_takes(
    known: list[BatchSize], least: int, random: Any
) -> None:
    choice = choose_batch_size(known, least)
    if choice.value is not None:
        assert choice.value in SIZES
        assert 2 * least <= choice.value < max(batch.requests for batch in known)
    random.shuffle(known)
    assert choose_batch_size(known, least) == choice


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 40), st.booleans()), max_size=60), st.integers(1, 48))
@settings(max_examples=60, deadline=None)
def test_any_history_leaves_half_of_the_deadline_to_batches(known: list[tuple[int, int, bool]], deadline: int) -> None:
    spans = [
        Span(START + day * DAY, START + day * DAY + hours * HOUR if ended else None, ended, 8)
        for day, hours, ended in known
    ]
    choice = choose_lead(Durations(spans, START + 100 * DAY), deadline * HOUR)
    assert choice.value is None or 0 <= choice.value <= deadline * 3_600 / 2
    assert choice.evidence
    if sum(ended for _, _, ended in known) < 10:
        assert choice.value is None


class History:
    """Earlier batches of the workspace's model, which the vendor has long ended."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace, self.count = workspace, 0
        self.now = workspace.now() - 60 * DAY
        self.ledger = Ledger(workspace.tmp_path / "ledger.sqlite", clock=lambda: self.now)
        self.account = workspace.providers["openai"].account

    def add(self, requests: int, *, took: timedelta = HOUR, **fields: Any) -> None:
        """Add a day with one batch."""
        self.count += 1
        name = f"earlier-{self.count}"
        began = self.now
        usual = {
            "submission_id": name, "namespace": "other", "asset": "others", "partition": name, "fingerprint": name,
            "config_fingerprint": "c", "provider": "openai", "account": self.account, "model": "gpt-4o",
            "rows": requests, "requests": requests, "created_at": self.now,
        }  # fmt: skip
        submission = Submission(**{**usual, **fields})
        shard = Shard(
            shard_id=name, submission_id=name, wave=1, number=0, nonce=f"h{name}", requests=requests, bytes=9,
            path=f"{name}.zst", digest="00",
        )  # fmt: skip
        has_expired = took >= DAY
        self.ledger.submissions.open(submission, [shard])
        self.ledger.shards.move(name, Transition.SEND)
        self.ledger.shards.move(name, Transition.ACCEPTED, batch_id=name)
        self.now += took
        status = BatchStatus.EXPIRED if has_expired else BatchStatus.ENDED
        self.ledger.shards.move(name, Transition.EXPIRED if has_expired else Transition.ENDED, status=status)
        self.ledger.shards.move(name, Transition.COLLECTED)
        self.ledger.submissions.settle(name, outcomes={}, cost_usd=None, realtime_usd=None, price_basis=None)
        self.now = began + DAY

    def add_expiries(self) -> None:
        """Add days as evidence for batches of at most 1,000 requests."""
        for day in range(24):
            self.add(2_000 if day % 3 == 0 else 600, took=DAY if day % 3 == 0 else HOUR)


@pytest.fixture
def history(workspace: Workspace) -> Any:
    history = History(workspace)
    yield history
    history.ledger.close()


def sizes(
    workspace: Workspace, definition: Labeling, rows: int = 2_100, *, tune: bool = True, **more: Any
) -> list[int]:
    engine = workspace.engine(tune=tune, **more)
    submission = engine.plan(definition, tickets(rows))
    assert (submission.tuning is not None) == tune
    return [shard.requests for shard in engine.ledger.shards.of_submission(submission.submission_id)]


def test_with_too_little_history_nothing_changes_and_it_says_so(workspace: Workspace) -> None:
    definition = labeling(realtime=Realtime(deadline=8 * HOUR))
    engine = workspace.engine(tune=True)
    submission = engine.plan(definition, tickets(3))
    assert submission.deadline_at == submission.created_at + 8 * HOUR
    [shard] = engine.ledger.shards.of_submission(submission.submission_id)
    assert shard.room.most_requests is None
    assert submission.tuning is not None
    assert (submission.tuning["most_requests"], submission.tuning["lead_seconds"]) == ({}, 0)
    assert ["too few" in words for words in submission.tuning["evidence"]] == [True] * 5


def test_smaller_batches_are_sent_as_they_were_planned_whoever_sends_them(
    workspace: Workspace, history: History
) -> None:
    history.add_expiries()
    definition = labeling()
    engine = workspace.engine(tune=True)
    preview = engine.preview(definition, tickets(2_100))
    submission = engine.plan(definition, tickets(2_100))
    assert submission.tuning == preview.tuning
    expired = "larger ones expired on 8 of 8 days, others on 0 of 16 days in the last 90"
    evidence = submission.tuning["evidence"]
    assert evidence[0] == f"batches of at most 1,000 requests: {expired}"
    assert {**submission.tuning, "evidence": evidence[1:]} == {
        "most_requests": {"openai/gpt-4o": 1_000},
        "most_at_once": {},
        "waves": {},
        "lead_seconds": 0,
        "sample": None,
        "evidence": [words for words in evidence[1:] if "too few" in words],
    }
    # Another process, without tuning, takes over: it does not merge the shards again.
    workspace.engine().submit(definition, submission.submission_id)
    shards = engine.ledger.shards.of_submission(submission.submission_id)
    assert [shard.requests for shard in shards] == [shard.requests for shard in preview.shards] == [1_000, 1_000, 100]
    assert len({shard.batch.batch_id for shard in shards}) == 3
    # The same rows are the same submission, even if the history has grown.
    assert engine.plan(definition, tickets(2_100)).submission_id == submission.submission_id


def test_a_later_wave_has_the_size_that_was_chosen_for_the_first(workspace: Workspace, history: History) -> None:
    history.add_expiries()
    definition = labeling()
    submission = workspace.engine(tune=True).plan(definition, tickets(1_100))
    workspace.emulator.inject(BatchFault(kind="expires", batches=[0, 1], fraction=0.0))
    engine = workspace.engine()
    engine.submit(definition, submission.submission_id)
    workspace.emulator.settle()
    engine.advance(definition, submission.submission_id)
    again = [shard for shard in engine.ledger.shards.of_submission(submission.submission_id) if shard.wave == 2]
    assert [shard.requests for shard in again] == [1_000, 100]
    assert len({shard.batch.batch_id for shard in again}) == 2


def test_nothing_is_chosen_beyond_what_the_user_has_set(workspace: Workspace, history: History) -> None:
    history.add_expiries()
    assert sizes(workspace, labeling(asset="off"), tune=False) == [2_100]
    assert sizes(workspace, labeling(asset="on")) == [1_000, 1_000, 100]
    assert sizes(workspace, labeling(asset="less", limits=Limits(max_requests_per_batch=900)), 1_000) == [900, 100]
    more = labeling(asset="more", limits=Limits(max_requests_per_batch=1_050))
    assert sizes(workspace, more) == [1_000, 1_000, 100]
    few = {"openai": QueueLimit(max_batches=2)}
    assert sizes(workspace, labeling(asset="queue"), queue_limits=few) == [2_100]
    # The history does not cover another model.
    assert sizes(workspace, labeling(asset="other", model="openai/gpt-4o-mini")) == [2_100]


def test_a_submission_turns_to_real_time_by_so_much_earlier_as_that_took_before(
    workspace: Workspace, history: History
) -> None:
    definition = labeling(realtime=Realtime(deadline=8 * HOUR))
    # The durations are in mixed order: a steady slowdown would be forecast from further back.
    for hours in (1 + day * 7 % 19 for day in range(19)):
        late = {"asset": definition.asset, "namespace": "test", "deadline_at": history.now + HOUR}
        history.add(8, took=HOUR + hours * timedelta(minutes=5), **late)
        # Submissions that ended by their deadline did not turn to real time.
        history.add(8, took=HOUR, **{**late, "deadline_at": history.now + 2 * HOUR})
    engine = workspace.engine(tune=True)
    submission = engine.plan(definition, tickets(4))
    assert submission.tuning is not None
    lead = submission.tuning["lead_seconds"]
    assert 80 * 60 <= lead <= 95 * 60
    assert submission.deadline_at == submission.created_at + 8 * HOUR - timedelta(seconds=lead)
    assert "of 19 earlier submissions took 1 h" in submission.tuning["evidence"][-1]
    # Batches keep at least half of their time, and submissions unlike the earlier ones keep all of it.
    short = engine.plan(labeling(realtime=Realtime(deadline=2 * HOUR)), tickets(5), partition="short")
    assert short.deadline_at == short.created_at + 2 * HOUR
    assert "more than half of the deadline" in (short.tuning or {})["evidence"][-1]
    far = engine.plan(definition, tickets(100), partition="far larger")
    assert far.deadline_at == far.created_at + 8 * HOUR
    assert engine.plan(labeling(), tickets(6), partition="none").deadline_at is None
