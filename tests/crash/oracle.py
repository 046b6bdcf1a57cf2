"""The requests that a cascade owes its oracle, computed from both models' answers, independently of the engine."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import scipy

from dagster_llm_batch.core.cascade import Precision, Recall
from dagster_llm_batch.core.levels import Levels
from dagster_llm_batch.core.thresholds import digest_requests, look_confidence
from dagster_llm_batch.files.request_files import levels_of, request_ids
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.payloads import PayloadStore


class Asked(NamedTuple):
    """Requests owed to the oracle in all, batches of each retry round, and differences from the engine."""

    requests: int
    waves: tuple[int, int]
    problems: list[str]


class _Said(NamedTuple):
    """One model's answer to a request: its label and confidence."""

    label: str
    score: float


def judge_oracle(
    ledger: Ledger,
    payloads: PayloadStore,
    submissions: list[Submission],
    guarantee: Precision | Recall | None = None,
) -> Asked:
    """Compare the oracle's requests of each submission with the expected ones, in the order of partitions.

    Sent at once: the drawn rows. Sent in the second round: {score at or below the threshold} + invalid - drawn. The
    threshold is the surest sampled row on which the two models differ: of a sample of four, all must agree (agreement
    .5, confidence .9). With `Rolling`, the threshold comes from the sample of the previous partition. For a filter, see
    `_filter_of`.
    """
    requests, waves, problems = 0, [0, 0], []
    threshold = (-math.inf, 0)
    for number, submission in enumerate(sorted(submissions, key=lambda one: one.partition)):
        levels = levels_of(payloads, submission)
        assert levels is not None
        shards = ledger.shards.of_submission(submission.submission_id)
        of = {
            (level, wave): [s for s in shards if levels.asks_oracle(s.asked_of) is level and s.wave == wave]
            for level in (False, True)
            for wave in (1, 2)
        }
        cheap = _said(payloads, of[False, 1])
        own = levels.sampled or []
        places = {one: _place(cheap[one], one, levels) for one in _ids(payloads, of[False, 1]) if one in cheap}
        oracles = _said(payloads, of[True, 1])
        if own and guarantee is not None:
            threshold = _threshold_of(guarantee, own, cheap, oracles, places)
        elif own:
            wrong = [places[one] for one in own if one in cheap and cheap[one].label != oracles[one].label]
            threshold = max(wrong, default=(-math.inf, 0))
        drawn, kept = set(levels.drawn), {one for one, place in places.items() if place > threshold}
        if guarantee is not None and threshold != _NOTHING:
            # The guarantee limits errors among the others only.
            kept |= {one for one, said in cheap.items() if not _can_err(guarantee, said)}
        rest = {*_ids(payloads, of[False, 1])} - kept - drawn
        requests += len(drawn) + len(rest)
        # An audit may have drawn zero rows.
        waves = [waves[0] + 1 + bool(drawn), waves[1] + bool(rest)]
        checks = {
            f"rolling: {levels.is_rolling}": levels.is_rolling is (levels.audit is not None and number > 0),
            f"threshold {levels.threshold}, not {threshold}": levels.threshold == threshold,
            "the oracle is not asked at once of what was drawn": _ids(payloads, of[True, 1]) == sorted(drawn),
            "the oracle is not asked in wave 2 of what is left to it": _ids(payloads, of[True, 2]) == sorted(rest),
            "the model is asked again": not of[False, 2],
        }
        problems += [f"'{submission.partition}': {what}" for what, is_right in checks.items() if not is_right]
    return Asked(requests, (waves[0], waves[1]), problems)


_NOTHING = (math.inf, 0)


def _can_err(guarantee: Precision | Recall, said: _Said) -> bool:
    return (said.label == guarantee.yes) is isinstance(guarantee, Precision)


def _threshold_of(
    guarantee: Precision | Recall,
    own: list[str],
    cheap: dict[str, _Said],
    oracles: dict[str, _Said],
    places: dict[str, tuple[float, int]],
) -> tuple[float, int]:
    """Return the place above which a filter accepts labels.

    Above the surest `allowed + 1` errors, for the most errors that are improbable enough among the sampled yes: the
    true ones of the model and these errors with precision, all of the oracle with recall.
    """
    risk, share = 1 - look_confidence(0.9, 1), float(1 - Fraction(str(guarantee.share)))
    answered = [one for one in own if one in cheap]
    is_precision = isinstance(guarantee, Precision)
    yes = sum(
        oracles[one].label == guarantee.yes and (not is_precision or cheap[one].label == guarantee.yes)
        for one in (answered if is_precision else own)
    )
    errors = [one for one in answered if _can_err(guarantee, cheap[one]) and cheap[one].label != oracles[one].label]
    # With so many errors, chance could be smaller in an infinite table than in this one (see thresholds.py).
    allowed = [
        count
        for count in range(len(own) + 1)
        for of in [yes + count if is_precision else yes]
        if yes
        and scipy.stats.binom.cdf(count, of, share) <= risk
        and (count == 0 or (share - count / (of - 1)) * of >= 1 - share)
    ]
    if not allowed:
        return _NOTHING
    surest = sorted((places[one] for one in errors), reverse=True)
    return surest[max(allowed)] if max(allowed) < len(surest) else (-math.inf, 0)


def _ids(payloads: PayloadStore, shards: list[Shard]) -> list[str]:
    return sorted(one for shard in shards for one in request_ids(payloads, shard))


def _said(payloads: PayloadStore, shards: list[Shard]) -> dict[str, _Said]:
    """Return the answer of each request that has a good reply."""
    rows = [row for s in shards for row in payloads.read_table(s.results_path or "").to_pylist()]
    good = [row for row in rows if row["llm_outcome"] == "succeeded"]
    return {row["llm_request_id"]: _Said(row["topic"], row["urgency"]) for row in good}


def _place(said: _Said, request_id: str, levels: Levels) -> tuple[float, int]:
    return said.score, int(digest_requests([request_id], levels.seed)[0])
