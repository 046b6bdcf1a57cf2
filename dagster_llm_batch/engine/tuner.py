"""What a new submission does otherwise than its settings say by default, since earlier ones did badly with that.

    tuner = Tuner(deployment, labeling)
    tuner.most_requests("openai/gpt-5-nano")
    tuner.choose_lead(5_000)
    tuner.record

`LLMBatchResource(tune=True)` asks for it. What is chosen is always within what the user has set, and never what an
answer depends on: no model, prompt or parameter. Each choice is made once, when a submission is planned, and is stored
with it, so that its later waves, and a process that takes over from one that died, do the same. With too little history
nothing changes.

- **Smaller batches**, where those above some size expired on more days than those up to it. Days are counted, and not
  batches: those of one day share their vendor's bad hour. Of each day the first batch above the size counts, and the
  first up to it. The difference is held to Fisher's exact test, at a level of
  5 % for all sizes that are compared together.
- **An earlier turn to real time**, where a deadline is set: by so much as 9 of 10 earlier submissions of the dataset
  took from their turn to their end.

`docs/design/tuning.md` says what is left out, and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date, datetime, timedelta
from math import comb
from typing import Any, NamedTuple

from dagster_llm_batch.core.durations import FEWEST, Durations
from dagster_llm_batch.engine.deployment import Deployment
from dagster_llm_batch.engine.labeling import Labeling
from dagster_llm_batch.text import age_text

__all__ = ["BatchSize", "Choice", "Tuner", "choose_lead", "choose_size"]

# What is older says little of a vendor's present capacity. So many shards are read at most.
_REMEMBERED = timedelta(days=90)
_READ = 1_000

# The sizes that are compared. Below the first a large table would be very many batches.
_SIZES = tuple(digit * 10**power for power in range(3, 6) for digit in (1, 2, 5))

# So many days with larger batches, and with others, are needed to compare a size.
_FEWEST_LARGER, _FEWEST_OTHERS = 5, 10

_LEVEL = 0.05

# A turn to real time that is earlier than at half of the deadline would ask most rows at its price.
_MOST_OF_DEADLINE = 0.5

_SPANS = 300
_SIMILAR = 4


class BatchSize(NamedTuple):
    """A batch that has ended by itself."""

    sent_at: datetime
    requests: int
    has_expired: bool


class Choice(NamedTuple):
    """What was chosen, None where nothing is, and the evidence in words."""

    value: int | None
    evidence: str


def choose_size(batches: Iterable[BatchSize], least: int = 1) -> Choice:
    """Return the most requests that a batch is to have, if larger ones have expired.

    Args:
        batches: Of one model of one account.
        least: The least that the provider takes.
    """
    tests: list[tuple[float, int, str]] = []
    known = sorted(batches)
    for size in _SIZES:
        if size < 2 * least:
            # The last two batches share what is left, and neither may be too small.
            continue
        days: dict[tuple[bool, date], bool] = {}
        for batch in known:
            # Of many batches one expires sooner than of few: each side has one a day, whatever it sends.
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
            f"batches as large as limits allow: too few days to compare sizes by (needed are {_FEWEST_LARGER} with "
            f"batches of more than {_SIZES[0]:,} requests, or a larger size, and {_FEWEST_OTHERS} with others)",
        )
    chance, size, evidence = min(tests)
    if chance * len(tests) > _LEVEL:
        return Choice(None, "batches as large as limits allow: no larger ones expired more often than smaller ones")
    return Choice(-size, f"batches of at most {-size:,} requests: {evidence}")


def _chance(expired: int, larger: int, expired_others: int, others: int) -> float:
    """Return how probable so many expired ones or more are among the larger ones, if size were of no matter."""
    whole, marked = larger + others, expired + expired_others
    ways = sum(comb(marked, k) * comb(whole - marked, larger - k) for k in range(expired, min(marked, larger) + 1))
    return ways / comb(whole, larger)


def choose_lead(rescues: Durations, deadline: timedelta) -> Choice:
    """Return how many seconds before its deadline a submission is to turn to real time.

    Args:
        rescues: How long earlier ones took from their turn to real time to their end.
        deadline: From plan to deadline.
    """
    if not rescues.are_enough:
        return Choice(
            None,
            f"real time from the deadline on: too few earlier submissions turned to it ({rescues.ended}, {FEWEST} are "
            "needed)",
        )
    p90 = rescues.forecast_end().p90
    if p90 is None:
        return Choice(None, "real time from the deadline on: what 9 of 10 earlier submissions took then is not known")
    took = f"9 of 10 of {rescues.ended} earlier submissions took {age_text(p90)} from there to their end"
    if p90 > deadline * _MOST_OF_DEADLINE:
        return Choice(None, f"real time from the deadline on: {took}, which is more than half of the deadline")
    return Choice(round(p90.total_seconds()), f"real time from {age_text(p90)} before the deadline on: {took}")


class Tuner:
    """Choose for one submission, by what the ledger has now."""

    def __init__(self, deployment: Deployment, labeling: Labeling) -> None:
        self._deployment, self._labeling = deployment, labeling
        self._now = deployment.clock()
        self._sizes = {one.model: self._choose_size(one) for one in labeling.models}
        self._lead: Choice | None = None

    def most_requests(self, model: str) -> int | None:
        """Return the most requests of a batch of one of the labeling's models; None: as many as limits allow."""
        return self._sizes[model].value

    def choose_lead(self, requests: int) -> timedelta:
        """Return how long before its deadline a submission of so many requests turns to real time."""
        deadline = self._labeling.realtime.deadline
        if not deadline or not requests:
            return timedelta()
        deployment, asset = self._deployment, self._labeling.asset
        spans = deployment.ledger.submission_spans(deployment.namespace, asset, _SPANS, from_deadline=True)
        late = [span for span in spans if span.until is None or span.until > span.began]
        similar = [span for span in late if requests / _SIMILAR <= span.requests <= requests * _SIMILAR]
        self._lead = choose_lead(Durations(similar, self._now), deadline)
        return timedelta(seconds=self._lead.value or 0)

    @property
    def record(self) -> Mapping[str, Any]:
        """What is stored with the submission."""
        several = len(self._sizes) > 1
        evidence = [f"{model}: {size.evidence}" if several else size.evidence for model, size in self._sizes.items()]
        return {
            "most_requests": {model: size.value for model, size in self._sizes.items() if size.value is not None},
            "lead_seconds": 0 if self._lead is None else self._lead.value or 0,
            "evidence": evidence if self._lead is None else [*evidence, self._lead.evidence],
        }

    def _choose_size(self, labeling: Labeling) -> Choice:
        limits, deployment = self._deployment.batch_limits(labeling), self._deployment
        queue, _ = deployment.queue_limit(labeling.provider, labeling.spec.model)
        if queue is not None and queue.max_batches is not None:
            return Choice(None, "batches as large as limits allow: more of them would not fit into the queue's limit")
        owner = deployment.owner(labeling)
        known = deployment.ledger.batch_sizes(
            owner.provider, owner.account, owner.model, self._now - _REMEMBERED, _READ
        )
        choice = choose_size([BatchSize(*batch) for batch in known], limits.min_requests)
        if choice.value is not None and choice.value >= limits.max_requests:
            return Choice(
                None, f"batches as large as limits allow, {limits.max_requests:,} requests: {choice.evidence}"
            )
        return choice
