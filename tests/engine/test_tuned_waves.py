"""Waves of retries without any use in the past are skipped, and all other requests stay."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import numpy as np
import polars as pl
import pytest
from workspace import Workspace, assert_total, labeling, tickets

from dagster_llm_batch.advice.tuner import Retry, choose_waves
from dagster_llm_batch.core.audit import bound_share
from dagster_llm_batch.engine import Realtime, Resend
from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.testing.emulator import BatchFault, FlexScript, RowFault
from dagster_llm_batch.types import BatchStatus, Lane, Outcome

pytestmark = pytest.mark.slow

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
ERRORED, INVALID = Outcome.ERRORED, Outcome.INVALID


def retry(day: int, wave: int = 2, asked: dict[str, int] | None = None, answered: int | None = 0, **more: Any) -> Retry:
    known = {"errored": 300} if asked is None else asked
    return Retry(**{
        "submission_id": f"s{day}", "planned_at": START + day * DAY, "requests": 10_000, "wave": wave, "asked": known,
        "answered": answered, **more,
    })  # fmt: skip


def test_a_wave_that_answered_next_to_nothing_is_asked_no_more_and_the_evidence_is_told() -> None:
    known = [retry(day, answered=int(day < 2)) for day in range(14)]
    chosen = choose_waves(known, 3, ERRORED)
    assert (chosen.value, chosen.share) == (1, 0.03)
    assert chosen.evidence == (
        "a request with an error is asked 1 of 3 times where at most 3.00% of the requests have it: after that 2 of "
        "4,200 got a label on 14 days in the last 90 (more than 1% on 0 of them)"
    )


@pytest.mark.parametrize(
    "known",
    [
        [],
        [retry(day) for day in range(13)],
        [retry(0, submission_id=f"s{number}") for number in range(50)],
        [retry(day, answered=4 if day == 5 else 0) for day in range(20)],
        # It is unknown which ones were answered: perhaps those with the error.
        [retry(day, asked={"errored": 2, "invalid": 300}, answered=2) for day in range(20)],
        [retry(day, answered=None) for day in range(20)],
        [retry(day, asked={"expired": 300}) for day in range(20)],
        # The third wave answered the rest of the second.
        [one for day in range(20) for one in (retry(day), retry(day, wave=3, answered=250))],
    ],
    ids=["nothing", "few", "one day", "once", "others", "expired itself", "never looked at", "later"],
)
def test_waves_stay_as_they_are_where_they_may_be_of_use(known: list[Retry]) -> None:
    assert choose_waves(known, 3, ERRORED).value is None


def test_a_later_wave_alone_may_be_of_no_use() -> None:
    known = [one for day in range(14) for one in (retry(day, answered=200), retry(day, 3, {"errored": 100}))]
    assert choose_waves(known, 3, ERRORED).value == 2
    assert choose_waves(known, 2, ERRORED).value is None
    assert choose_waves(known, 1, ERRORED).value is None
    assert choose_waves(known, 3, INVALID).value is None


def test_what_is_of_use_on_more_than_one_of_five_days_is_hardly_ever_cut() -> None:
    # The history is checked on each of the first 60 days; it has the days on which the wave was sent.
    random = np.random.default_rng(20_260_101)
    most = cache(lambda useful, days: bound_share(useful, days, 0.95)[1])
    cut = 0
    for _ in range(2_000):
        useful = np.cumsum(random.random(60) < 0.2)
        cut += any(most(int(useful[day - 1]), day) <= 0.2 for day in range(14, 61))
    # One look is wrong in at most 5 of 100 cases; of many, some more are.
    assert cut / 2_000 <= 0.16
    first = sum(random.binomial(14, 0.2) == 0 for _ in range(2_000))
    assert first / 2_000 <= 0.06


class Waves:
    """Earlier submissions of a definition, each with two waves."""

    def __init__(self, workspace: Workspace, **changes: Any) -> None:
        self.workspace = workspace
        self.definition = labeling(**changes)
        workspace.skipped = timedelta()
        # Not the day on which everything is tried again.
        while workspace.now().toordinal() % 8 in (7, 0):
            workspace.skipped += DAY
        self.now = workspace.now() - 40 * DAY
        self.ledger = Ledger(workspace.tmp_path / "ledger.sqlite", clock=lambda: self.now)
        [account] = {workspace.providers["openai"].account}
        known = workspace.engine().plan(self.definition, tickets(1, 10**6), partition="first")
        self.like = replace(known, account=account, rows=100, requests=100)
        workspace.engine().cancel(known.submission_id)

    def add(self, outcome: str, asked: int = 10, answered: int = 0) -> None:
        """Add a day."""
        self.now += DAY
        name = f"earlier-{self.now:%m-%d}"
        submission = replace(
            self.like, submission_id=name, partition=name, fingerprint=name, created_at=self.now, tuning=None
        )
        self.ledger.submissions.open(submission, [shard(submission, 1, 100)])
        self.end(submission, 1, 90)
        self.ledger.submissions.add_wave(name, [replace(shard(submission, 2, asked), asked_again={outcome: asked})])
        self.end(submission, 2, answered)
        self.ledger.submissions.settle(name, outcomes={}, cost_usd=None, realtime_usd=None, price_basis=None)

    def end(self, submission: Submission, wave: int, answered: int) -> None:
        name = f"{submission.submission_id}-{wave}"
        self.ledger.shards.move(name, Transition.SEND)
        self.ledger.shards.move(name, Transition.ACCEPTED, batch_id=name)
        self.ledger.shards.move(name, Transition.ENDED, status=BatchStatus.ENDED)
        self.ledger.shards.move(name, Transition.COLLECTED, answered=answered)

    def run(self, rows: int, faults: list[Any], **more: Any) -> Any:
        """Label so many rows by a tuned plan; return the submission and its shards."""
        engine = self.workspace.engine(tune=True)
        submission = engine.plan(replace(self.definition, **more), tickets(rows))
        self.workspace.emulator.inject(*faults)
        engine.submit(self.definition, submission.submission_id)
        return self.workspace.finish(self.definition, submission.submission_id)


def shard(submission: Submission, wave: int, requests: int) -> Shard:
    name = f"{submission.submission_id}-{wave}"
    return Shard(
        shard_id=name, submission_id=submission.submission_id, wave=wave, number=0, nonce=f"h{name}",
        requests=requests, bytes=9, path=f"{name}.zst", digest="00",
    )  # fmt: skip


@pytest.fixture
def waves(workspace: Workspace) -> Iterator[Waves]:
    waves = Waves(workspace)
    for _ in range(14):
        waves.add("errored")
    yield waves
    waves.ledger.close()


def failing(numbers: range, **how: Any) -> list[RowFault]:
    return [RowFault(containing=f"invoice number {number}?", status_code=503, **how) for number in numbers]


def test_what_is_not_asked_again_ends_as_failed_with_its_reason(waves: Waves) -> None:
    status = waves.run(30, failing(range(3)))
    assert (status.submission.waves, status.submission.outcomes) == (1, {"succeeded": 27, "errored": 3})
    assert status.submission.tuning["waves"] == {"errored": {"most": 1, "share": 0.1}}
    _, rejects = assert_total(waves.workspace, waves.definition, status.submission.submission_id, 30)
    assert all(rejects["llm_reason"].to_pylist())
    [first] = status.shards
    assert (first.answered, first.asked_again) == (27, None)


def test_what_more_requests_need_than_before_is_asked_again(waves: Waves) -> None:
    # One in ten had an error at most: now it is one in two, and another trouble than that.
    status = waves.run(30, failing(range(15), times=1))
    assert (status.submission.waves, status.submission.outcomes) == (2, {"succeeded": 30})
    again = status.shards[1]
    assert (again.wave, again.asked_again, again.answered) == (2, {"errored": 15}, 15)


def test_what_a_batch_left_out_is_asked_again_whatever_is_known_of_errors(waves: Waves) -> None:
    status = waves.run(30, [BatchFault(kind="expires", batches=[0], fraction=0.9)])
    assert (status.submission.waves, status.submission.outcomes) == (2, {"succeeded": 30})
    assert status.shards[1].asked_again == {"expired": status.shards[1].requests}


def test_each_outcome_is_judged_by_itself(waves: Waves) -> None:
    status = waves.run(30, [RowFault(kind="truncated", containing="invoice number 1?", times=1)])
    assert (status.submission.waves, status.submission.outcomes) == (2, {"succeeded": 30})
    assert status.shards[1].asked_again == {"invalid": 1}


def test_every_eighth_day_it_is_tried_again(waves: Waves) -> None:
    while waves.workspace.now().toordinal() % 8:
        waves.workspace.skipped += DAY
    status = waves.run(30, failing(range(3), times=1))
    assert (status.submission.waves, status.submission.outcomes) == (2, {"succeeded": 30})
    assert any("on every 8th day it is tried again" in words for words in status.submission.tuning["evidence"])


def test_nothing_is_cut_where_another_model_would_answer_instead(waves: Waves) -> None:
    falling_back = replace(waves.definition, resend=Resend(fallback=("openai/gpt-4o-mini",)))
    submission = waves.workspace.engine(tune=True).plan(falling_back, tickets(3))
    assert (submission.tuning or {})["waves"] == {}


def test_what_flex_turns_away_goes_into_a_batch_whatever_is_known_of_errors(workspace: Workspace) -> None:
    waves = Waves(workspace, model="openai/gpt-5-nano", params={"max_completion_tokens": 50})
    for _ in range(20):
        waves.add("errored")
    how = Realtime(urgent="now", tier="flex", otherwise="batch")
    definition, engine = replace(waves.definition, realtime=how), workspace.engine(tune=True)
    workspace.emulator.flex.script = FlexScript(turned_away=4)
    planned = engine.plan(definition, tickets(50).with_columns(pl.lit(value=True).alias("now")))
    status = workspace.finish(definition, planned.submission_id)
    waves.ledger.close()
    assert status.submission.outcomes == {"succeeded": 50}
    assert [shard.lane for shard in status.shards if shard.wave == 2] == [Lane.BATCH]
