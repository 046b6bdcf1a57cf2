"""Forecasts of the end, on both ledgers: the history, the reported text, and the score."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from ledger_builders import a_shard, a_submission

from dagster_llm_batch.advice.end_forecast import EndHistory, EndQuestion, EndScore, Owner, end_text, told_text
from dagster_llm_batch.core.durations import EndForecast
from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import SubmissionState
from dagster_llm_batch.types import BatchStatus, Cause, Lane

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
OWNER = Owner("openai", "api.openai.com/org-1", "gpt-5-mini")
ASKED = EndQuestion(OWNER, requests=8, batches=1)


class Site:
    """A ledger whose submissions take a given time, by its own clock."""

    def __init__(self, url: str, clock: Any) -> None:
        self.ledger, self.clock, self.count = Ledger(url, clock=clock), clock, 0

    @property
    def history(self) -> EndHistory:
        return EndHistory(self.ledger, "prod", self.clock.now)

    def begin(self, requests: int = 8, batches: int = 1, asset: str = "tickets", **more: Any) -> str:
        self.count += 1
        name = f"s{self.count}"
        submission = a_submission(
            name, asset=asset, fingerprint=name, requests=requests * batches, created_at=self.clock.now, **more
        )
        shards = [
            a_shard(f"{name}-{number}", name, number=number, nonce=f"n{self.count}-{number}", requests=requests)
            for number in range(batches)
        ]
        self.ledger.submissions.open(submission, shards)
        for shard in shards:
            self.ledger.shards.move(shard.shard_id, Transition.SEND)
            self.ledger.shards.move(shard.shard_id, Transition.ACCEPTED, batch_id=f"batch-{shard.shard_id}")
        return name

    def end(self, name: str, **fields: Any) -> None:
        shards = self.ledger.shards.of_submission(name)
        self.ledger.shards.move_all([shard.shard_id for shard in shards], Transition.ENDED, **fields)

    def settle(self, name: str) -> None:
        for shard in self.ledger.shards.of_submission(name):
            self.ledger.shards.move(shard.shard_id, Transition.COLLECTED)
        self.ledger.submissions.settle(name, outcomes={}, cost_usd=None, realtime_usd=None, price_basis=None)

    def run(self, took: timedelta, **more: Any) -> str:
        """Take a submission from plan to settled, an hour after its batches have ended; the next day begins then."""
        name = self.begin(**more)
        began = self.clock.now
        self.clock.now += took
        self.end(name)
        self.clock.now += HOUR
        self.settle(name)
        self.clock.now = began + DAY
        return name


@pytest.fixture
def site(ledger_url: str, clock: Any) -> Any:
    site = Site(ledger_url, clock)
    yield site
    site.ledger.close()


def test_submissions_of_similar_size_say_when_the_next_one_ends(site: Site) -> None:
    for number in range(9):
        site.run((1 + number) * HOUR)
    assert site.history.forecast_end("tickets", ASKED).basis == "none"
    assert end_text(site.history.forecast_end("tickets", ASKED), DAY) == (
        "no forecast, which needs 10 days with batches that ended, 9 so far; each batch ends, or expires, within "
        "24 h 0 m, the vendor's window"
    )
    site.run(10 * HOUR)
    said = site.history.forecast_end("tickets", ASKED)
    assert (said.basis, said.ended, said.running) == ("submissions", 10, 0)
    assert said.p50 == 6 * HOUR  # to the end of the batches, not to when they were collected
    assert said.p90 == 10 * HOUR
    assert end_text(said, DAY) == (
        "1 of 2 within 6 h 0 m, 9 of 10 within 10 h 0 m (by 10 earlier submissions of similar size)"
    )
    # The history has one size and one asset; other questions use single batches of the model, of similar or any size.
    assert site.history.forecast_end("tickets", ASKED._replace(requests=8_000)).basis == "batches"
    assert site.history.forecast_end("other", ASKED).basis == "batches"
    assert site.history.forecast_end("other", ASKED._replace(is_simple=False)).basis == "none"
    other = Owner("openai", "api.openai.com/org-2", "gpt-5-mini")
    assert site.history.forecast_end("other", ASKED._replace(owner=other)).basis == "none"
    assert site.history.forecast_end("other", ASKED._replace(owner=Owner(*OWNER_KEY, Lane.REALTIME))).basis == "none"


def stored(said: EndForecast, now: Any) -> dict[str, Any]:
    """Return the columns that a plan stores of a forecast."""
    p50, p90 = (None if took is None else now + took for took in (said.p50, said.p90))
    basis = {"basis": said.basis, "ended": said.ended, "running": said.running}
    return {"p50_end_at": p50, "p90_end_at": p90, "end_basis": basis}


OWNER_KEY = (OWNER.provider, OWNER.account, OWNER.model)


def test_what_runs_or_was_stopped_is_known_to_have_taken_longer(site: Site) -> None:
    for number in range(10):
        site.run((1 + number % 2) * HOUR)
    running = site.begin()
    canceled = site.begin()
    site.clock.now += 5 * HOUR
    site.ledger.submissions.set_state(canceled, SubmissionState.CANCELED)
    site.end(canceled, cause=Cause.STOPPED, status=BatchStatus.CANCELED)
    site.clock.now += 100 * HOUR
    spans = {span.began: span for span in site.ledger.history.submission_spans("prod", "tickets", 2)}
    assert len(spans) == 1  # both began at the same time
    found = sorted(site.ledger.history.submission_spans("prod", "tickets", 2), key=lambda span: span.until is None)
    assert [(span.has_ended, span.until and span.until - span.began) for span in found] == [
        (False, 5 * HOUR),
        (False, None),
    ]
    batches = site.ledger.history.batch_spans(*OWNER_KEY, Lane.BATCH, 2)
    assert sorted((span.has_ended, span.until is None) for span in batches) == [(False, False), (False, True)]
    said = site.history.forecast_end("tickets", ASKED)
    assert (said.ended, said.running) == (10, 2)
    assert said.p90 is None  # two of twelve took longer than all others, by an unknown time
    assert "the time of 9 of 10 is unknown, each batch ends, or expires, within 24 h 0 m" in end_text(said, DAY)
    assert running != canceled


def test_what_asks_for_nothing_takes_no_time_that_counts(site: Site) -> None:
    site.ledger.submissions.open(a_submission("s9", requests=3, reused=3), [])
    site.ledger.submissions.settle("s9", outcomes={}, cost_usd=None, realtime_usd=None, price_basis=None)
    assert site.ledger.history.submission_spans("prod", "tickets", 5) == []


def test_a_shared_batch_an_adopted_and_a_refused_one_tell_nothing_of_the_vendor(site: Site) -> None:
    for cause in (Cause.ADOPTED, Cause.NOT_TAKEN):
        site.end(site.begin(), cause=cause)
    assert site.ledger.history.batch_spans(*OWNER_KEY, Lane.BATCH, 9) == []
    site.end(site.begin(), status=BatchStatus.FAILED)
    assert [span.has_ended for span in site.ledger.history.batch_spans(*OWNER_KEY, Lane.BATCH, 9)] == [False]


def test_a_submission_of_several_batches_ends_with_the_last(site: Site) -> None:
    name = site.begin(batches=2)
    first, last = site.ledger.shards.of_submission(name)
    site.clock.now += HOUR
    site.ledger.shards.move(first.shard_id, Transition.ENDED)
    site.clock.now += 7 * HOUR
    site.ledger.shards.move(last.shard_id, Transition.ENDED)
    assert site.ledger.history.submission_spans("prod", "tickets", 1)[0].until is None
    site.settle(name)
    [span] = site.ledger.history.submission_spans("prod", "tickets", 1)
    assert span.has_ended
    assert span.until is not None
    assert span.until - span.began == 8 * HOUR
    assert span.requests == 16


def test_a_forecast_is_stored_and_scored_when_its_time_has_come(site: Site) -> None:
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(30):
        said = site.history.forecast_end("tickets", ASKED)
        took = float(np.exp(rng.normal(0.5, 0.6))) * HOUR
        name = site.run(took, **stored(said, site.clock.now))
        held += said.p90 is not None and took <= said.p90
    score = site.history.score("tickets")
    assert score.judged_p90 == 20
    assert score.held_p90 == held
    assert 15 <= held <= 20
    assert site.history.score() == score
    assert site.history.score("other") == EndScore()
    assert str(score).startswith(f"{held} of 20 ended by their p90, ")
    kept = site.ledger.submissions.get(name)
    assert kept.end_basis == {"basis": "submissions", "ended": 29, "running": 0}
    assert "by 29 earlier submissions of similar size" in told_text(kept, DAY)
    # A late submission is judged before it ends; one that ended before its time is judged only at that time.
    late = site.begin(**stored(site.history.forecast_end("tickets", ASKED), site.clock.now))
    assert site.history.score("tickets") == score
    site.clock.now += 20 * HOUR
    assert (site.history.score("tickets").judged_p90, site.history.score("tickets").held_p90) == (21, held)
    assert site.ledger.submissions.get(late).settled_at is None


def test_the_sizes_of_batches_that_ended_by_themselves_are_read_with_all_that_they_carried(site: Site) -> None:
    began = site.clock.now
    site.end(site.begin(requests=5), status=BatchStatus.ENDED)
    site.clock.now += DAY
    expired = site.begin(requests=7)
    for shard in site.ledger.shards.of_submission(expired):
        site.ledger.shards.move(shard.shard_id, Transition.EXPIRED, status=BatchStatus.EXPIRED)
    stopped = site.begin()
    site.end(stopped, status=BatchStatus.ENDED, cause=Cause.STOPPED)
    site.begin(requests=9)
    site.ledger.submissions.open(
        a_submission("pair", fingerprint="pair"),
        pair := [
            a_shard(f"pair-{number}", "pair", number=number, nonce=f"p{number}", requests=3) for number in range(2)
        ],
    )
    both = [shard.shard_id for shard in pair]
    site.ledger.shards.move_all(both, Transition.SEND)
    site.ledger.shards.move_all(both, Transition.ACCEPTED, batch_id="pair")
    site.end("pair", status=BatchStatus.ENDED)
    model = (OWNER.provider, OWNER.account, OWNER.model)
    known = site.ledger.history.batch_sizes(*model, began, 100)
    assert sorted(known) == [(began, 5, False), (began + DAY, 6, False), (began + DAY, 7, True)]
    assert sorted(site.ledger.history.batch_sizes(*model, began + HOUR, 100)) == sorted(known)[1:]
    assert site.ledger.history.batch_sizes("openai", "another", OWNER.model, began, 100) == []


def test_what_had_a_deadline_is_read_from_then_on(site: Site) -> None:
    began = site.clock.now
    site.run(2 * HOUR, deadline_at=began + HOUR)
    site.run(HOUR)
    open_one = site.begin(deadline_at=site.clock.now + HOUR)
    spans = site.ledger.history.submission_spans("prod", "tickets", 10, from_deadline=True)
    due = site.ledger.submissions.get(open_one).deadline_at
    assert [span[:3] for span in spans] == [(due, None, False), (began + HOUR, began + 2 * HOUR, True)]
