"""The next wave: the requests to ask again, with the model and the lane of each.

A request without a good reply is asked of the same model again if that can help (Resend), and then of the next
fallback. After the deadline, all go in real time. Requests of a batch with a final cause (`types.Cause`) are not asked
again, nor after a wave in which almost nothing fits (breaker.py). The wave also has requests that an earlier submission
of the partition had in flight, without a good answer in the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from itertools import groupby
from typing import Any

import pyarrow.compute as pc

from dagster_llm_batch.core.memory import chunks
from dagster_llm_batch.core.pricing import Estimate
from dagster_llm_batch.core.token_counts import InputCounts
from dagster_llm_batch.core.uploads import MARK
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.files.request_files import WrittenLines, delete_requests, requests_of
from dagster_llm_batch.files.request_source import Spare
from dagster_llm_batch.loop.breaker import Breaker
from dagster_llm_batch.loop.budget import committing, exceeded
from dagster_llm_batch.loop.collect import Collector
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.seams import Escalate
from dagster_llm_batch.loop.status import Advice, advise_on_money
from dagster_llm_batch.loop.submission_writer import SubmissionWriter
from dagster_llm_batch.states import HoldReason
from dagster_llm_batch.storage.ledger.events import OverBudget
from dagster_llm_batch.storage.ledger.records import Shard, SpendLimit, Submission
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.text import money_text
from dagster_llm_batch.types import BatchStatus, Cause, Lane, Outcome

__all__ = ["NextWave"]

_RETRIED = frozenset({Outcome.ERRORED, Outcome.EXPIRED, Outcome.CANCELED, Outcome.MISSING, Outcome.INVALID})
_RESULT_COLUMNS = ["llm_request_id", "llm_outcome", "llm_retryable"]
_ResultRow = tuple[str, str, bool]
# Requests in memory at the same time: their lines may contain images and documents.
_AT_ONCE = 16


@dataclass(frozen=True)
class _Ask:
    """Requests of one shard to ask again. `model` is the place in `labeling.models`.

    `outcomes` has each request's outcome of the same model in the wave before. It is None for another model, for
    requests of another submission, and for requests that were not asked before. `is_escalation` is True for the
    oracle's requests of a cascade, and for requests that an audit held.
    """

    model: int
    lane: Lane
    shard: Shard
    request_ids: Collection[str]
    outcomes: Mapping[str, str] | None = None
    is_escalation: bool = False

    @property
    def target(self) -> tuple[int, str]:
        return self.model, self.lane.value


class NextWave:
    """Decide on and write the next wave of an open submission whose shards are all collected."""

    def __init__(
        self,
        labeling: Labeling,
        deployment: Deployment,
        submission: Submission,
        shards: Sequence[Shard],
        escalate: Escalate,
    ) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._submission = submission
        self._shards = shards
        self._escalate = escalate
        self._collector = Collector(labeling, deployment)
        deadline = submission.deadline_at
        self._late = deadline is not None and deployment.clock() >= deadline

    @cached_property
    def _writer(self) -> SubmissionWriter:
        # Most submissions have no next wave.
        return SubmissionWriter(self._labeling, self._deployment, self._submission.tuning or {})

    @cached_property
    def _asks_now(self) -> list[_Ask]:
        if self._labeling.cascade is None:
            asks = [*self._again(), *self._inherited()]
            # The held requests wait while the audited ones, and leaders of near copies, may still be answered.
            return asks if asks or self._labeling.audited is None else self._escalated()
        # Only the oracle is asked again. Escalation waits while it may still answer for sampled rows.
        return [*self._again(besides=0)] or self._escalated()

    def _escalated(self) -> list[_Ask]:
        """Return the oracle's requests in a cascade, without the sample, or held requests that share no answer."""
        found = self._escalate(self._labeling, self._deployment, self._submission, self._shards, self._collector)
        model = 0 if self._labeling.cascade is None else 1
        return [
            _Ask(model, Lane.REALTIME if self._late else shard.lane, shard, request_ids, is_escalation=True)
            for shard, request_ids in found
            if self._has_spare(model)
        ]

    @property
    def requests(self) -> int:
        """The number of requests to ask again, unless they are stopped."""
        return sum(len(ask.request_ids) for ask in self._asks_now)

    @property
    def models(self) -> set[str]:
        """The models of these requests."""
        return {self._labeling.models[ask.model].model for ask in self._asks_now}

    def plan(self) -> bool:
        """Plan the next wave; return False if it is empty. Raises LeaseError while others commit money."""
        asks = self._asks_now
        if not asks or self._is_over_budget or self._is_broken(asks):
            return False
        with committing(self._deployment, self._deployment.lease_wait_seconds):
            shards = [replace(shard, is_escalation=self._is_escalation or None) for shard in self._write(asks)]
            if shards and self._affordable(shards):
                kept = self._kept_reserve if self._is_escalation else self._submission.reserved_usd
                self._deployment.ledger.submissions.add_wave(self._submission.submission_id, shards, reserved_usd=kept)
                return True
        for shard in shards:
            delete_requests(self._deployment.payloads, shard)
        return False

    @property
    def _is_over_budget(self) -> bool:
        """True if some requests were abandoned for money. Then the others also wait for a person."""
        return bool(self._deployment.ledger.holds.of([self._submission.submission_id], HoldReason.OVER_BUDGET))

    def _is_broken(self, asks: Sequence[_Ask]) -> bool:
        """Return whether one of the waves of these requests is broken; see Breaker.stops."""
        waves: list[tuple[list[Shard], Sequence[Shard]]] = []
        for submission_id, number in dict.fromkeys((ask.shard.submission_id, ask.shard.wave) for ask in asks):
            is_own = submission_id == self._submission.submission_id
            siblings = self._shards if is_own else self._deployment.ledger.shards.of_submission(submission_id)
            waves.append(([shard for shard in siblings if shard.wave == number], siblings))
        return Breaker(self._labeling, self._deployment).stops(self._submission, waves)

    def _write(self, asks: Sequence[_Ask]) -> list[Shard]:
        submission = self._submission
        wave = self._writer.wave(submission.submission_id, submission.partition, submission.waves + 1)
        shards: list[Shard] = []
        for (model, lane), group in groupby(sorted(asks, key=_target), key=_target):
            files = self._writer.files(wave, self._labeling.models[model], Lane(lane))
            outcomes: list[str | None] = []
            has_uploads = False
            for ask in group:
                # Token counts per request are not stored, so the average is used.
                tokens, bounds = ask.shard.tokens // max(ask.shard.requests, 1), self._bounds(ask)
                cost = self._estimate(ask).add
                for lines in self._lines(ask):
                    ids = lines.request_ids
                    # The definition may have changed since these lines were written.
                    has_uploads = has_uploads or any(MARK in line for line in lines.lines)
                    files.add(lines, ids, InputCounts([tokens] * len(ids), bounds(lines.lines)), cost)
                    outcomes += map((ask.outcomes or {}).get, ids)
            written = [replace(shard, has_uploads=has_uploads or None) for shard in files.close()]
            shards += _count_outcomes(written, outcomes)
        return shards

    def _again(self, besides: int | None = None) -> Iterator[_Ask]:
        """Yield the requests of the last wave to ask again, except those to one model, given by its place."""
        for shard in self._shards:
            # Failures of an earlier wave were asked again in the wave after it. A removed fallback is not asked any
            # more.
            model = self._places.get(shard.asked_of)
            if shard.wave == self._submission.waves and model is not None and model != besides:
                yield from self._asks(model, shard, self._result_rows([shard], good=False), self._shards)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {labeling.model: place for place, labeling in enumerate(self._labeling.models)}

    def _asks(self, model: int, shard: Shard, rows: Iterable[_ResultRow], siblings: Sequence[Shard]) -> Iterator[_Ask]:
        """Yield the requests of this shard to ask again. `siblings` are the shards of its submission."""
        # A final cause waits for a person, for the same model, for fallbacks and in real time. Requests that the
        # provider rejected cost nothing. They may go to a fallback, but not to this model again.
        if shard.waits_for_person and shard.cause is not Cause.NOT_TAKEN:
            return
        lane = Lane.REALTIME if self._late else shard.lane
        same, rest = self._split(shard, rows, siblings)
        # The stored requests for a fallback have its parameters at the time of the plan.
        if same and (not model or self._has_spare(model)):
            own = shard.submission_id == self._submission.submission_id
            for its_lane, asked in self._by_lane(lane, same):
                yield _Ask(model, its_lane, shard, asked.keys(), asked if own else None)
        if rest and model + 1 < len(self._labeling.models) and self._has_spare(model + 1):
            yield _Ask(model + 1, lane, shard, frozenset(rest))

    def _by_lane(self, lane: Lane, asked: Mapping[str, str]) -> Iterator[tuple[Lane, Mapping[str, str]]]:
        """Yield requests of a shard with the lane of their next wave: a batch for those that flex turned away."""
        # A deadline that the submission was planned with stops batches; see realtime.py.
        stops_batches = self._submission.deadline_at is not None
        if lane is not Lane.REALTIME or stops_batches or self._labeling.realtime.otherwise != "batch":
            yield lane, asked
            return
        for its_lane, is_away in ((Lane.BATCH, True), (lane, False)):
            if part := {each: word for each, word in asked.items() if (word == Outcome.ERRORED) is is_away}:
                yield its_lane, part

    def _has_spare(self, model: int) -> bool:
        """Return whether a file has the requests for this fallback. It may have been declared after the plan."""
        return self._deployment.payloads.exists(self._spare(model).path)

    def _spare(self, model: int) -> Spare:
        submission = self._submission
        return self._writer.spare(submission.submission_id, submission.partition, self._labeling.models[model])

    def _split(
        self, shard: Shard, rows: Iterable[_ResultRow], siblings: Sequence[Shard]
    ) -> tuple[dict[str, str], list[str]]:
        """Return the request_ids without a good answer: for the same model, with outcomes, and for the next one."""
        resend, cuts = self._labeling.resend, self._cuts
        first = self._first_wave(shard)
        own_waves = {
            other.wave for other in siblings if other.asked_of == shard.asked_of and other.batch.sent_at is not None
        }
        tries = sum(wave >= first for wave in own_waves)
        # After the deadline, each request may be tried once in real time.
        rescued = self._late and shard.lane is Lane.BATCH
        own = shard.submission_id == self._submission.submission_id
        # The shard was dropped before it was sent, because its provider takes no batches. Then a fallback is asked.
        given_up = own and shard.batch.status is BatchStatus.CANCELED and shard.batch.sent_at is None and not self._late
        same: dict[str, str] = {}
        rest: list[str] = []
        for request_id, outcome, retryable in rows:
            if outcome == Outcome.SUCCEEDED:
                continue
            most = cuts.get(outcome, resend.max_waves)
            if outcome == Outcome.INVALID:
                may = tries < min(most, resend.max_waves, resend.invalid_waves)
            else:
                may = tries < min(most, resend.max_waves) or rescued
            if retryable and outcome in _RETRIED and not given_up and may:
                same[request_id] = outcome
            else:
                rest.append(request_id)
        return same, rest

    @cached_property
    def _cuts(self) -> Mapping[str, int]:
        """By outcome: the largest number of tries that was useful in earlier submissions; see tuner.py.

        An outcome that is more frequent now than it was then is left out, because it has another cause.
        """
        waves = (self._submission.tuning or {}).get("waves") or {}
        if not waves:
            return {}
        last = [shard for shard in self._shards if shard.wave == self._submission.waves]
        counts = Counter(outcome for _, outcome, retryable in self._result_rows(last, good=False) if retryable)
        asked = max(self._submission.requests - self._submission.reused, 1)
        return {name: cut["most"] for name, cut in waves.items() if counts[name] <= cut["share"] * asked}

    @cached_property
    def _is_escalation(self) -> bool:
        """True if the next wave is the one that asks a cascade's oracle, or asks what an audit held."""
        if self._labeling.audited is not None:
            return any(ask.is_escalation for ask in self._asks_now)
        levels = self._deployment.levels(self._labeling, self._submission)
        return levels is not None and levels.wave == self._submission.waves + 1

    @cached_property
    def _kept_reserve(self) -> Decimal | None:
        """The part of the reserved money that stays for near copies when a cascade asks its oracle before them."""
        reserved, cascade = self._submission.reserved_usd, self._labeling.cascade
        if reserved is None or cascade is None:
            return None
        shares = self._deployment.shares(self._labeling, self._submission)
        if shares is None or shares.asks_all or shares.wrong is not None:
            return None
        each = self._writer.estimate(self._labeling.models[1]).expected_usd(shares.tokens or 0)
        return None if each is None else min(each * len(shares.held), reserved)

    def _first_wave(self, shard: Shard) -> int:
        """Return the wave in which this shard's model was first asked for its requests, or an earlier wave."""
        if shard.submission_id != self._submission.submission_id:
            return 1
        # The model has answered the first round before it was asked the held requests. With a cascade, the oracle has
        # answered two rounds before.
        if self._labeling.audited is not None:
            rounds = [other.wave for other in self._shards if other.is_escalation and other.wave <= shard.wave]
            asked_in = max(rounds, default=None)
        elif self._labeling.cascade is not None:
            # The oracle of a cascade has answered the sample before.
            levels = self._deployment.levels(self._labeling, self._submission)
            asked_in = None if levels is None else levels.wave
        else:
            return 1
        return 1 if asked_in is None or shard.wave < asked_in else asked_in

    def _inherited(self) -> Iterator[_Ask]:
        """Yield requests that were in flight in earlier submissions at the time of the plan, and got no good answer."""
        if not self._submission.reused_from:
            return
        sources = self._deployment.ledger.shards.of_submissions(self._submission.reused_from)
        planned_at = self._submission.created_at
        in_flight = [
            shard
            for source in self._submission.reused_from
            for shard in sources[source]
            if shard.collected_at and shard.collected_at >= planned_at
        ]
        if not in_flight:
            return
        manifest = self._deployment.payloads.read_table(self._submission.manifest, [_RESULT_COLUMNS[0]])
        open_ids = set(manifest[_RESULT_COLUMNS[0]].to_pylist())
        open_ids.difference_update(request_id for request_id, *_ in self._result_rows(self._shards))
        results = [(shard, list(self._result_rows([shard]))) for shard in in_flight]
        for _, rows in results:
            open_ids.difference_update(request_id for request_id, outcome, _ in rows if outcome == Outcome.SUCCEEDED)
        for shard, rows in results:
            if (model := self._places.get(shard.asked_of)) is not None:
                mine = [row for row in rows if row[0] in open_ids]
                open_ids.difference_update(row[0] for row in mine)
                yield from self._asks(model, shard, mine, sources[shard.submission_id])

    def _result_rows(self, shards: Sequence[Shard], *, good: bool = True) -> Iterator[_ResultRow]:
        """Yield the results of these shards, with or without good answers."""
        for results in self._collector.results(list(shards), _RESULT_COLUMNS):
            table = results if good else results.filter(pc.not_equal(results["llm_outcome"], Outcome.SUCCEEDED.value))
            yield from zip(*(column.to_pylist() for column in table.columns), strict=True)

    def _affordable(self, shards: Sequence[Shard]) -> bool:
        """Return whether max_cost_usd and the budgets allow these shards; if not, add an event with the reason."""
        submission_id = self._submission.submission_id
        limit = SpendLimit(Decimal(0), self._deployment.namespace, submission_id=submission_id)
        spent = self._deployment.ledger.money.committed_usd(limit)
        estimates = [shard.bill.estimated_usd for shard in shards]
        unknown = next((self._labeling.by(s.asked_of) for s in shards if s.bill.estimated_usd is None), None)
        more = sum((usd for usd in estimates if usd is not None), Decimal(0))
        requests = count_requests(shards)
        if self._is_escalation:
            # This money is reserved since the plan.
            more -= (self._submission.reserved_usd or Decimal(0)) - (self._kept_reserve or Decimal(0))
        most = self._labeling.budget_usd
        if most is not None and spent + more > most:
            problem = (
                f"max_cost_usd={most:f} has {money_text(max(most - spent, Decimal(0)))} left after bills and the "
                f"maximum cost of requests in flight, and the retry is expected to cost {money_text(more)}"
            )
            reason: Advice | None = Advice(problem, "Raise the limit")
        else:
            reason = exceeded(self._deployment, unknown or self._labeling, more if unknown is None else None)
        if reason is not None:
            given_up = OverBudget(*advise_on_money(self._submission, requests, reason))
            self._deployment.ledger.events.add(submission_id, given_up)
        return reason is None

    def _estimate(self, ask: _Ask) -> Estimate:
        """Return an estimate at the price of the present model and lane."""
        return self._writer.estimate(self._labeling.models[ask.model], ask.lane)

    def _bounds(self, ask: _Ask) -> Callable[[Sequence[bytes]], Sequence[int | None]]:
        """Return a function for the largest number of input tokens of each request line."""
        labeling = self._labeling.models[ask.model]
        if ask.shard.asked_of != labeling.model:
            # Another model counts tokens differently.
            counter = self._deployment.counter(labeling)
            return lambda lines: [counter.bound_of_line(line, has_files=labeling.prompt.sends_files) for line in lines]
        return lambda lines: [ask.shard.input_bound] * len(lines)

    def _lines(self, ask: _Ask) -> Iterator[WrittenLines]:
        """Yield the requests' lines, several at once, encoded for this model's provider."""
        payloads = self._deployment.payloads
        path, nonce = ask.shard.path, ask.shard.nonce
        if ask.shard.asked_of != self._labeling.models[ask.model].model:
            spare = self._spare(ask.model)
            path, nonce = spare.path, spare.nonce
        wanted = (request for request in requests_of(payloads, path, nonce) if request[0] in ask.request_ids)
        for chunk in chunks(wanted, _AT_ONCE):
            request_ids, lines = zip(*chunk, strict=True)
            yield WrittenLines(request_ids, lines, nonce)


def _count_outcomes(shards: Sequence[Shard], outcomes: Sequence[str | None]) -> Iterator[Shard]:
    """Yield the shards with the counts of their requests' outcomes before; `outcomes` has all of these, in order."""
    start = 0
    for shard in shards:
        counts = Counter(outcomes[start : (start := start + shard.requests)])
        yield replace(shard, asked_again=None if None in counts else {str(name): n for name, n in counts.items()})


def _target(ask: _Ask) -> Any:
    return ask.target
