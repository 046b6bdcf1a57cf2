"""Change defaults of a new submission if earlier ones had bad results with them.

    tuner = Tuner(deployment, labeling)
    tuner.of_shards["most_requests"]["openai/gpt-5-nano"]
    tuner.choose_lead(5_000)
    tuner.record

`LLMBatchResource(tune=True)` turns it on. Choices always stay within the user's settings, and never affect answers:
neither model, prompt nor parameters change. Each choice is made once, when a submission is planned, and is stored with
it, so that its later waves, and a process that takes over after a crash, do the same. With too little history nothing
changes.

- **Smaller batches**, if batches above some size expired on more days than batches up to it. Days are counted, and not
  batches: batches of one day share their vendor's bad hour. From each day, the first batch above the size counts, and
  the first up to it. The difference must pass Fisher's exact test, at a level of 5 % for all compared sizes together.
- **Fewer batches at once**, if the model's queue refused a batch on most days with more tokens in flight, and hardly
  ever with fewer: the same test, again of days.
- **Fewer waves of retries**, if the waves after some wave were rarely useful: they answered more than 1 % of their
  requests on at most 1 of 5 days, by Clopper and Pearson's exact bound, which takes 14 days without one. Only for
  errors and for replies that did not fit, each separately: requests that an expired or stopped batch left out never
  ran, and are still retried.
- **An earlier turn to real time**, if a deadline is set: by the time in which 9 of 10 earlier submissions of the
  dataset went from their turn to their end.
- **Another sample of a cascade**, if it is expected to cost at least 2 % less (`sample_size.py`).

On every eighth day waves and batches at once stay at their settings, to detect a change.

`docs/design/tuning.md` lists the omissions, with reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from heapq import heappop, heappush
from itertools import groupby
from math import comb
from typing import Any, NamedTuple

from dagster_llm_batch.core.audit import bound_share
from dagster_llm_batch.core.durations import FEWEST, Durations
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.text import age_text
from dagster_llm_batch.types import Outcome

__all__ = [
    "Attempt",
    "BatchSize",
    "Choice",
    "Retry",
    "Tuner",
    "Waves",
    "attempts_of",
    "choose_at_once",
    "choose_batch_size",
    "choose_lead",
    "choose_waves",
]

# Older shards tell little about a vendor's present capacity. So many shards are read at most.
_REMEMBERED = timedelta(days=90)
_READ = 1_000

# The sizes that are compared. Below the first a large table would be very many batches.
_SIZES = tuple(digit * 10**power for power in range(3, 6) for digit in (1, 2, 5))

# So many days with larger batches, and with others, are needed to compare a size.
_FEWEST_LARGER, _FEWEST_OTHERS = 5, 10

# So many days on which a queue refused a batch, and days on which it took one, are needed.
_FEWEST_REFUSED, _FEWEST_TAKEN = 5, 10

_LEVEL = 0.05

# A wave is useful if it answered more than this share of its requests. Useful waves may be on at most this share of
# days.
_OF_USE, _MOST_OF_USE = 0.01, 0.2

# On every eighth day, so that each day of the week has its turn, the original settings are tried again.
_TRIED_EVERY = 8

# Requests that are asked again, by their outcome, in words.
_ASKED_FOR = {Outcome.ERRORED: "a request with an error", Outcome.INVALID: "one whose reply did not fit"}

# A turn to real time that is earlier than at half of the deadline would ask most rows at its price.
_MOST_OF_DEADLINE = 0.5

_TRIED_AGAIN = f"as set today, since on every {_TRIED_EVERY}th day it is tried again"

_SPANS = 2_000
_SIMILAR = 4


class BatchSize(NamedTuple):
    """A batch that was not stopped before its end."""

    sent_at: datetime
    requests: int
    has_expired: bool


class Attempt(NamedTuple):
    """A batch that a queue took or refused; `tokens` were in flight of its model then, with it."""

    at: datetime
    tokens: int
    was_refused: bool


class Retry(NamedTuple):
    """Requests that one wave of a submission asked again, and their answers.

    Attributes:
        submission_id: The submission.
        planned_at: Time of its plan: all events of one day are one piece of evidence.
        requests: Number of the submission's requests.
        wave: 2 or later.
        asked: Number of requests that were asked again in this wave, by their previous outcome; None: unknown.
        answered: Number of these that got a label; None: unknown, or the batch was stopped.
    """

    submission_id: str
    planned_at: datetime
    requests: int
    wave: int
    asked: Mapping[str, int] | None
    answered: int | None


class Waves(NamedTuple):
    """Most waves of a request, None for the setting, if at most `share` of the requests need more."""

    value: int | None
    share: float
    evidence: str


class Choice(NamedTuple):
    """The chosen value, None without a choice, and the evidence in words."""

    value: int | None
    evidence: str


def choose_batch_size(batches: Iterable[BatchSize], least: int = 1) -> Choice:
    """Return the most requests that a batch is to have, if larger ones have expired.

    Args:
        batches: Of one model of one account.
        least: The least that the provider takes.
    """
    tests: list[tuple[float, int, str]] = []
    known = sorted(batches)
    for size in _SIZES:
        if size < 2 * least:
            # The last two batches share the rest, and each must be large enough.
            continue
        days: dict[tuple[bool, date], bool] = {}
        for batch in known:
            # One of many batches expires sooner than one of few: each side counts one a day, whatever it sends.
            days.setdefault((batch.requests > size, batch.sent_at.date()), batch.has_expired)
        above = [expired for (is_larger, _), expired in days.items() if is_larger]
        below = [expired for (is_larger, _), expired in days.items() if not is_larger]
        if len(above) < _FEWEST_LARGER or len(below) < _FEWEST_OTHERS:
            continue
        chance = _chance(sum(above), len(above), sum(below), len(below))
        evidence = (
            f"larger ones expired on {sum(above)} of {len(above)} days, others on {sum(below)} of {len(below)} days "
            f"in the last {_REMEMBERED.days}"
        )
        tests.append((chance, -size, evidence))
    if not tests:
        return Choice(
            None,
            f"batches of the largest allowed size: too few days to compare sizes (it takes {_FEWEST_LARGER} with more "
            f"than {_SIZES[0]:,} requests in a batch, or a larger size, and {_FEWEST_OTHERS} with others)",
        )
    chance, size, evidence = min(tests)
    if chance * len(tests) > _LEVEL:
        return Choice(None, "batches of the largest allowed size: these did not expire more often than smaller ones")
    return Choice(-size, f"batches of at most {-size:,} requests: {evidence}")


def _chance(expired: int, larger: int, expired_others: int, others: int) -> float:
    """Return the probability of at least so many expired ones among the larger ones, if size did not matter."""
    whole, marked = larger + others, expired + expired_others
    ways = sum(comb(marked, k) * comb(whole - marked, larger - k) for k in range(expired, min(marked, larger) + 1))
    return ways / comb(whole, larger)


def attempts_of(
    taken: Iterable[tuple[datetime, datetime | None, int]], refused: Iterable[tuple[datetime, int]]
) -> list[Attempt]:
    """Return the tokens that a queue took and refused, oldest first.

    Args:
        taken: Times when each batch was sent and ended, and its tokens.
        refused: Times, and the tokens in flight then, including the refused batch.
    """
    attempts = [Attempt(at, tokens, was_refused=True) for at, tokens in refused]
    ends: list[tuple[datetime, int]] = []
    inside = 0
    for sent_at, ended_at, tokens in sorted(taken, key=lambda batch: batch[0]):
        while ends and ends[0][0] <= sent_at:
            inside -= heappop(ends)[1]
        inside += tokens
        if ended_at is not None:
            heappush(ends, (ended_at, tokens))
        attempts.append(Attempt(sent_at, inside, was_refused=False))
    return sorted(attempts)


def choose_at_once(attempts: Iterable[Attempt]) -> Choice:
    """Return the most tokens that are to be in flight of a model, if more were refused. Never less than was taken."""
    known = sorted(attempts)
    fewest = f"(needed are {_FEWEST_REFUSED} with a refusal, and {_FEWEST_TAKEN} with a batch that was taken)"
    taken_on: dict[date, int] = {}
    for attempt in known:
        if not attempt.was_refused:
            taken_on[attempt.at.date()] = max(attempt.tokens, taken_on.get(attempt.at.date(), 0))
    refused_on = {attempt.at.date() for attempt in known if attempt.was_refused}
    if len(refused_on) < _FEWEST_REFUSED or len(taken_on) < _FEWEST_TAKEN:
        return Choice(None, f"all batches at once: too few days to measure the room of a queue {fewest}")
    sizes = sorted(set(taken_on.values()))
    tests: list[tuple[float, int, str]] = []
    for size in sizes:
        days: dict[tuple[bool, date], bool] = {}
        last_above = False
        for attempt in known:
            days.setdefault((attempt.tokens > size, attempt.at.date()), attempt.was_refused)
            last_above = attempt.was_refused if attempt.tokens > size else last_above
        above = [refused for (is_more, _), refused in days.items() if is_more]
        below = [refused for (is_more, _), refused in days.items() if not is_more]
        # A size that was taken at its last try fits now.
        if last_above and len(above) >= _FEWEST_REFUSED and len(below) >= _FEWEST_TAKEN:
            evidence = (
                f"more were refused on {sum(above)} of {len(above)} days, fewer on {sum(below)} of {len(below)} days "
                f"in the last {_REMEMBERED.days}"
            )
            tests.append((_chance(sum(above), len(above), sum(below), len(below)), -size, evidence))
    if not tests or min(tests)[0] * len(sizes) > _LEVEL:
        return Choice(None, "all batches at once: the queue refused no more than it took")
    _, size, evidence = min(tests)
    return Choice(-size, f"at most {-size:,} input tokens of the model at once: {evidence}")


def choose_waves(retries: Sequence[Retry], most: int, outcome: Outcome) -> Waves:
    """Return the most waves of a request with this outcome, if more of them were useless.

    All that waves answered counts for each outcome that they were asked for: which of them it was is not known.

    Args:
        retries: Retries of one dataset, with its present configuration.
        most: The most waves by the settings.
        outcome: ERRORED or INVALID.
    """
    asked_for = f"{_ASKED_FOR[outcome]} is asked again as set"
    if most < 2:  # noqa: PLR2004 - it is not asked again
        return Waves(None, 0.0, f"{asked_for}: never")
    submissions = [list(one) for _, one in groupby(sorted(retries, key=_of_submission), key=_of_submission)]
    # The missing results of a stopped batch are unknown.
    known = [one for one in submissions if all(wave.asked is not None and wave.answered is not None for wave in one)]
    seen = 0
    for waves in range(1, most):
        days: dict[date, bool] = {}
        share, asked, answered = 0.0, 0, 0
        for one in known:
            of_wave = sum((each.asked or {}).get(outcome, 0) for each in one if each.wave == waves + 1)
            if of_wave:
                # A request that is not asked then is not asked in a later wave either.
                labels = sum(each.answered or 0 for each in one if each.wave > waves)
                day = one[0].planned_at.date()
                days[day] = days.get(day, False) or labels > _OF_USE * of_wave
                share = max(share, of_wave / max(one[0].requests, 1))
                asked, answered = asked + of_wave, answered + labels
        seen = max(seen, len(days))
        if days and bound_share(sum(days.values()), len(days), 1 - _LEVEL)[1] <= _MOST_OF_USE:
            of_use = f"more than {_OF_USE:.0%} on {sum(days.values())} of them"
            return Waves(
                waves,
                share,
                f"{_ASKED_FOR[outcome]} is asked {waves} of {most} times where at most {share:.2%} of the requests "
                f"have it: after that {answered:,} of {asked:,} got a label on {len(days)} days in the last "
                f"{_REMEMBERED.days} ({of_use})",
            )
    return Waves(None, 0.0, f"{asked_for}: too few of {seen} days with such retries show that they are useless")


def _of_submission(retry: Retry) -> tuple[datetime, str]:
    return retry.planned_at, retry.submission_id


def choose_lead(rescues: Durations, deadline: timedelta) -> Choice:
    """Return the time, in seconds before its deadline, at which a submission turns to real time.

    Args:
        rescues: Times that earlier ones took from their turn to real time to their end.
        deadline: From plan to deadline.
    """
    if not rescues.are_enough:
        return Choice(
            None,
            f"real time from the deadline on: too few days with earlier submissions that turned to it ({rescues.days}, "
            f"{FEWEST} are needed)",
        )
    p90 = rescues.forecast_end().p90
    if p90 is None:
        return Choice(None, "real time from the deadline on: the time of 9 of 10 earlier submissions is unknown")
    took = f"9 of 10 of {rescues.ended} earlier submissions took {age_text(p90)} from there to their end"
    if p90 > deadline * _MOST_OF_DEADLINE:
        return Choice(None, f"real time from the deadline on: {took}, which is more than half of the deadline")
    return Choice(round(p90.total_seconds()), f"real time from {age_text(p90)} before the deadline on: {took}")


class Tuner:
    """Choose settings for one submission, from the ledger's present records."""

    def __init__(self, deployment: Deployment, labeling: Labeling) -> None:
        self._deployment, self._labeling = deployment, labeling
        self._now = deployment.clock()
        self._is_tried_again = self._now.date().toordinal() % _TRIED_EVERY == 0
        self._sizes = {one.model: self._choose_batch_size(one) for one in labeling.models}
        self._at_once = {one.model: self._choose_at_once(one) for one in labeling.models}
        self._waves = self._choose_waves()
        self._lead: Choice | None = None
        self._sample: Choice | None = None

    @property
    def of_shards(self) -> Mapping[str, Mapping[str, int]]:
        """The fields of shards that are chosen, each by the model that they ask."""
        chosen = {"most_requests": self._sizes, "most_at_once": self._at_once}
        return {
            name: {model: choice.value for model, choice in choices.items() if choice.value is not None}
            for name, choices in chosen.items()
        }

    def choose_lead(self, requests: int) -> timedelta:
        """Return how long before its deadline a submission with this number of requests turns to real time."""
        deadline = self._labeling.realtime.deadline
        if not deadline or not requests:
            return timedelta()
        deployment, asset = self._deployment, self._labeling.asset
        spans = deployment.ledger.history.submission_spans(deployment.namespace, asset, _SPANS, from_deadline=True)
        late = [span for span in spans if span.until is None or span.until > span.began]
        similar = [span for span in late if requests / _SIMILAR <= span.requests <= requests * _SIMILAR]
        self._lead = choose_lead(Durations(similar, self._now), deadline)
        return timedelta(seconds=self._lead.value or 0)

    def choose_sample(
        self, stored: Deployment, partition: str, rows: int, size: int, at_least: int, cheap: float
    ) -> int:
        """Return the size of a cascade's sample for a number of rows: `size`, or a size that cost less by other
        partitions.

        Args:
            stored: Has the files of other partitions.
            partition: The planned partition, which is left out of the evidence.
            rows: The number of its rows.
            size: The sample that costs least as a mean over kinds of scores.
            at_least: The least sample that the oracle's provider takes.
            cheap: The model's cost, as a share of the oracle's.
        """
        # Few have a cascade.
        from dagster_llm_batch.cascade.sample_size import choose_sample_size, read_samples  # noqa: PLC0415

        cascade = self._labeling.cascade
        assert cascade is not None
        samples = read_samples(stored, self._labeling, partition)
        value, evidence = choose_sample_size(samples, rows, size, at_least, cascade, cheap)
        self._sample = Choice(value, evidence)
        return size if value is None else value

    @property
    def record(self) -> Mapping[str, Any]:
        """Choices to store with the submission."""
        several = len(self._sizes) > 1
        of_models = [*self._sizes.items(), *self._at_once.items()]
        evidence = [f"{model}: {choice.evidence}" if several else choice.evidence for model, choice in of_models]
        others = [waves.evidence for waves in self._waves.values()]
        others += [one.evidence for one in (self._lead, self._sample) if one is not None]
        return {
            **self.of_shards,
            "waves": {
                str(outcome): {"most": waves.value, "share": waves.share}
                for outcome, waves in self._waves.items()
                if waves.value is not None
            },
            "lead_seconds": 0 if self._lead is None else self._lead.value or 0,
            "sample": None if self._sample is None else self._sample.value,
            "evidence": [*evidence, *others],
        }

    def _choose_waves(self) -> dict[Outcome, Waves]:
        labeling, deployment, resend = self._labeling, self._deployment, self._labeling.resend
        # Another model would no longer answer this one's requests: fallbacks, and oracles, keep their settings.
        if len(labeling.models) > 1 or resend.max_waves == 1:
            return {}
        known = deployment.ledger.history.retries(
            deployment.namespace,
            labeling.asset,
            deployment.configuration(labeling),
            self._now - _REMEMBERED,
            _READ,
        )
        # Of the oldest submission some may not be read.
        retries = [Retry(*retry) for retry in known if len(known) < _READ or retry[0] != known[-1][0]]
        most = {Outcome.ERRORED: resend.max_waves, Outcome.INVALID: min(resend.max_waves, resend.invalid_waves)}
        if labeling.realtime.otherwise == "batch":
            # What the tier "flex" turns away has this outcome, and the next wave sends it in a batch.
            del most[Outcome.ERRORED]
        chosen = {outcome: choose_waves(retries, most[outcome], outcome) for outcome in most}
        if not self._is_tried_again:
            return chosen
        return {
            outcome: waves if waves.value is None else Waves(None, 0.0, f"{_TRIED_AGAIN}: {waves.evidence}")
            for outcome, waves in chosen.items()
        }

    def _choose_at_once(self, labeling: Labeling) -> Choice:
        deployment, owner = self._deployment, self._deployment.owner(labeling)
        queue, _ = deployment.queue_limit(labeling.provider, labeling.spec.model)
        known = deployment.ledger.history.queue_attempts(
            owner.provider, owner.account, owner.model, self._now - _REMEMBERED, _READ
        )
        choice = choose_at_once(attempts_of(*known))
        if choice.value is None:
            return choice
        if queue is not None and queue.max_tokens is not None and queue.max_tokens <= choice.value:
            return Choice(None, f"as many batches at once as {queue} allows: {choice.evidence}")
        return Choice(None, f"{_TRIED_AGAIN}: {choice.evidence}") if self._is_tried_again else choice

    def _choose_batch_size(self, labeling: Labeling) -> Choice:
        limits, deployment = self._deployment.batch_limits(labeling), self._deployment
        queue, _ = deployment.queue_limit(labeling.provider, labeling.spec.model)
        if queue is not None and queue.max_batches is not None:
            return Choice(None, "batches of the largest allowed size: the queue's limit has no space for more batches")
        owner = deployment.owner(labeling)
        known = deployment.ledger.history.batch_sizes(
            owner.provider, owner.account, owner.model, self._now - _REMEMBERED, _READ
        )
        choice = choose_batch_size([BatchSize(*batch) for batch in known], limits.min_requests)
        if choice.value is not None and choice.value >= limits.max_requests:
            return Choice(
                None, f"batches of the largest allowed size, {limits.max_requests:,} requests: {choice.evidence}"
            )
        return choice
