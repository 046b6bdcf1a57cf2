"""Forecast when submissions will have ended, from earlier ones in the ledger, and score past forecasts.

    history = EndHistory(ledger, namespace, now)
    history.forecast_end("ticket_labels", EndQuestion(Owner("openai", account, "gpt-5-nano"), 5_000, 2))
    history.score("ticket_labels")

A submission has ended when the last batch of its last wave has; its labels are materialized when they are collected, at
one of the next ticks. The distribution of the last of several batches does not follow from the distribution of one,
since batches of a submission share their vendor's hours. So first, earlier whole submissions of the dataset with a
similar number of requests are used. They include their retries, their wait for a place in the queue and the second wave
of a cascade. Days count, and not submissions, since submissions of one afternoon share their vendor's hours. If the
ended ones are of too few days, single batches of the same provider, account, model and lane are used, as if the
submission's batches were independent. This excludes cascades and submissions that are sent in several steps: they end
after several batches in sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import log2
from typing import NamedTuple

from dagster_llm_batch.core.durations import FEWEST, Durations, EndForecast
from dagster_llm_batch.files.request_files import Owner
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.text import age_text
from dagster_llm_batch.types import Span

__all__ = ["EndHistory", "EndQuestion", "EndScore", "Owner", "end_text", "told_text"]

# Number of submissions to read, forty days of fifty: from a dataset's submissions the similar ones are taken.
_READ = 2_000

# Number of the newest forecasts whose accuracy is reported.
_SCORED = 300

# Similar submissions have a quarter to four times of the requests.
_SIMILAR = 4


class EndQuestion(NamedTuple):
    """The submission to forecast.

    `is_simple`: all of it is sent at once, and one wave is all that is meant to be asked.
    """

    owner: Owner
    requests: int
    batches: int
    is_simple: bool = True


@dataclass(frozen=True)
class EndScore:
    """Accuracy of past forecasts of the end, once their time has come.

    Attributes:
        judged_p50, judged_p90: How many forecasts named a time that has passed.
        held_p50, held_p90: How many of these submissions had ended by it.
    """

    judged_p50: int = 0
    held_p50: int = 0
    judged_p90: int = 0
    held_p90: int = 0

    def __str__(self) -> str:
        if not self.judged_p90 and not self.judged_p50:
            return "forecasts have not been checked yet"
        if self.judged_p90 < FEWEST:
            return f"too few forecasts ({self.judged_p90}) to measure how often they held"
        return (
            f"{self.held_p90} of {self.judged_p90} ended by their p90, {self.held_p50} of {self.judged_p50} by their "
            "p50"
        )


class EndHistory:
    """Ends in the ledger. Each dataset and model is read once."""

    def __init__(self, ledger: Ledger, namespace: str, now: datetime) -> None:
        self._ledger, self._namespace, self._now = ledger, namespace, now
        self._submissions: dict[str | None, Sequence[Span]] = {}
        self._batches: dict[Owner, Sequence[Span]] = {}
        self._durations: dict[tuple[object, int | None], Durations] = {}

    def forecast_end(self, asset: str, question: EndQuestion, *, age: timedelta = timedelta(0)) -> EndForecast:
        """Return how long a submission takes from plan to end.

        Args:
            asset: The dataset.
            question: The submission that is, or would be, sent.
            age: So long it has run already.
        """
        if question.requests < 1:
            return EndForecast()
        whole = self._similar(asset, self._of_asset(asset), question.requests)
        if whole.are_enough:
            return whole.forecast_end(basis="submissions", age=age)
        if not question.is_simple:
            return EndForecast(ended=whole.ended, running=whole.running, days=whole.days)
        each = max(question.requests // max(question.batches, 1), 1)
        owner = question.owner
        if owner not in self._batches:
            of_model = (owner.provider, owner.account, owner.model, owner.lane)
            self._batches[owner] = self._ledger.history.batch_spans(*of_model, _READ)
        single = self._similar(owner, self._batches[owner], each)
        if not single.are_enough:
            single = self._any_size(owner, self._batches[owner])
        return single.forecast_end(basis="batches", batches=max(question.batches, 1), age=age)

    def score(self, asset: str | None = None) -> EndScore:
        """Return how often the forecasts of a dataset's newest submissions, or of all, were right.

        A forecast is judged when its forecast time has passed. If it were judged at the end of the submission, slow
        ones would be missing for longer than quick ones. Stopped submissions are not judged.
        """
        newest = self._of_asset(asset)[:_SCORED]
        spans = [span for span in newest if span.has_ended or span.until is None]
        p50, p90 = [(span.p50_at, span.until) for span in spans], [(span.p90_at, span.until) for span in spans]
        return EndScore(*self._judged(p50), *self._judged(p90))

    def _judged(self, told: Sequence[tuple[datetime | None, datetime | None]]) -> tuple[int, int]:
        """Return how many of these times have passed, and for how many of them it had ended by then."""
        due = [(at, until) for at, until in told if at is not None and at <= self._now]
        return len(due), sum(until is not None and until <= at for at, until in due)

    def _of_asset(self, asset: str | None) -> Sequence[Span]:
        if asset not in self._submissions:
            self._submissions[asset] = self._ledger.history.submission_spans(self._namespace, asset, _READ)
        return self._submissions[asset]

    def _similar(self, key: object, spans: Sequence[Span], requests: int) -> Durations:
        # In powers of two, so that the durations are computed once for many submissions.
        size = round(log2(requests))
        if (key, size) not in self._durations:
            least, most = 2**size / _SIMILAR, 2**size * _SIMILAR
            similar = [span for span in spans if least <= span.requests <= most]
            self._durations[key, size] = Durations(similar, self._now)
        return self._durations[key, size]

    def _any_size(self, key: object, spans: Sequence[Span]) -> Durations:
        if (key, None) not in self._durations:
            self._durations[key, None] = Durations(spans, self._now)
        return self._durations[key, None]


def end_text(forecast: EndForecast, window: timedelta) -> str:
    """Return a forecast in words; `window` is the vendor's: so long a batch may take."""
    bound = f"each batch ends, or expires, within {age_text(window)}, the vendor's window"
    if forecast.p50 is None:
        if forecast.basis == "none":
            # The ledger keeps the number of ended ones, and not their number of days.
            days = "" if forecast.ended and not forecast.days else f", {forecast.days} so far"
            return f"no forecast, which needs {FEWEST} days with batches that ended{days}; {bound}"
        return f"longer than is known of {_evidence(forecast)}; {bound}"
    half = f"1 of 2 within {age_text(forecast.p50)}"
    if forecast.p90 is None:
        return f"{half}; the time of 9 of 10 is unknown, {bound} ({_evidence(forecast)})"
    return f"{half}, 9 of 10 within {age_text(forecast.p90)} ({_evidence(forecast)})"


def told_text(submission: Submission, window: timedelta) -> str:
    """Return a submission's forecast from the time of its plan, in words."""
    ends = (submission.p50_end_at, submission.p90_end_at)
    p50, p90 = (None if at is None else at - submission.created_at for at in ends)
    return end_text(EndForecast(p50, p90, **(submission.end_basis or {})), window)


def _evidence(forecast: EndForecast) -> str:
    noun = "earlier submissions of similar size" if forecast.basis == "submissions" else "batches of this model"
    # The ledger does not record days.
    days = f" on {forecast.days} days" if forecast.days not in (0, forecast.ended) else ""
    running = f", {forecast.running} more still running" if forecast.running else ""
    return f"by {forecast.ended} {noun}{days}{running}"
