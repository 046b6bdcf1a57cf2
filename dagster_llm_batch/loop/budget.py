"""The money that limits leave: `max_cost_usd` of a submission, and budgets of a period.

A plan is refused if its expected cost exceeds a limit. Accepted requests are released in steps, so that bills never
exceed a limit. Each limit has to cover the bills so far, the highest cost of all requests in flight, and the highest
cost of the next step (core/spend_limit.py). Mostly one step is enough. Otherwise the rest waits for the bills of the
requests in flight. If these cannot leave enough room, the rest is abandoned, and a report names the missing amount.

The ledger reserves the money for a batch before it is sent, in one transaction. So if two processes ask at the same
moment, the second sees the reservation of the first. The money of lost or abandoned batches, whose cost is unknown,
stays reserved.

Limits release requests in turn, before anything is uploaded. Submissions are served in the order of their arrival.
Within a cascade, the sample that judges the model's labels comes first. The model waits while a part of the sample
waits for money. If too much of the sample is abandoned, the model is not asked, because its labels could not be used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from decimal import Decimal
from functools import cached_property
from itertools import groupby
from math import floor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from dagster_llm_batch.core.identity import REQUEST_ID_BYTES, packed
from dagster_llm_batch.core.pricing import Estimate
from dagster_llm_batch.core.spend_limit import LimitKind, count_releasable, count_steps, find_reserve, is_too_few
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.definition.rules import Budget
from dagster_llm_batch.errors import BudgetError
from dagster_llm_batch.files.request_files import SO_FAR, answers_so_far, beside, packed_ids
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.status import Advice, advise_on_money
from dagster_llm_batch.states import Reason, ShardState
from dagster_llm_batch.storage.ledger.events import OverBudget
from dagster_llm_batch.storage.ledger.records import Shard, SpendLimit
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.text import money_text
from dagster_llm_batch.types import Lane

__all__ = [
    "BUDGET_PAUSE",
    "NO_ROOM_LEFT",
    "Allowance",
    "Pick",
    "budgets_of",
    "committing",
    "committing_estimate",
    "exceeded",
    "find_refusal",
    "forecast_steps",
]

# Time to wait for another process that commits money at this moment.
_WAIT_SECONDS = 60.0

BUDGET_PAUSE = timedelta(minutes=10)
"""The pause of shards whose budget others have used up."""

NO_ROOM_LEFT = "it was not sent: its limit is used up"
"""The words of Reason.OVER_BUDGET."""

_DIGEST_CHARS = 16

# Floating point must not make more of the room than there is.
_ROUNDED = 1 - 1e-9
_Digests = npt.NDArray[np.uint64]

Split = Callable[[Shard, Callable[[str, bytes], bool]], tuple[Shard, Shard]]
"""Splits a planned shard into the requests that satisfy a condition, and the others."""


@contextmanager
def committing(deployment: Deployment, wait_seconds: float) -> Iterator[None]:
    """Keep other processes from committing money during the block. Raises LeaseError if the wait is in vain."""
    if not deployment.budgets:
        yield
        return
    with deployment.ledger.leases.hold(f"budget:{deployment.namespace}", wait_seconds=wait_seconds):
        yield


def committing_estimate(deployment: Deployment, estimate: Estimate) -> AbstractContextManager[None]:
    """Keep other processes from committing money during the block, if the estimate needs any. See `committing`."""
    return committing(deployment, _WAIT_SECONDS) if _takes_money(estimate) else nullcontext()


def find_refusal(
    deployment: Deployment, labeling: Labeling, estimate: Estimate, replaced: Sequence[str] = ()
) -> BudgetError | None:
    """Return why limits of money refuse an estimate; None if they have room for it.

    `replaced` are the ids of shards and submissions that will not be sent then.
    """
    cost = estimate.cost_usd
    counted = (
        f"{estimate.requests:,} requests (about {estimate.expected_input:,} input tokens, "
        f"{round(estimate.expected_output / max(estimate.requests, 1))} output tokens each)"
    )
    most = labeling.budget_usd
    if most is not None and cost is not None and cost > most:
        return BudgetError(
            f"'{labeling.asset}': the estimate of {money_text(cost)} for {counted} exceeds max_cost_usd={most:f}. "
            "Nothing was sent. Raise the limit, lower max_tokens, give Spend(expected_output_tokens=…), or send fewer "
            "rows."
        )
    if not _takes_money(estimate):
        return None
    if cost is not None and (reason := _unkept(deployment, labeling, estimate)) is not None:
        return BudgetError(f"'{labeling.asset}': {counted} are refused: {reason} Nothing was sent.")
    if (over := exceeded(deployment, labeling, cost, replaced)) is not None:
        return BudgetError(f"'{labeling.asset}': {counted} are refused: {over.problem}. Nothing was sent. {over.then}.")
    return None


def _takes_money(estimate: Estimate) -> bool:
    # A cascade with all answers, for another promise, may have no requests and still reserve money for its oracle.
    return bool(estimate.requests or estimate.cost_usd)


def _unkept(deployment: Deployment, labeling: Labeling, estimate: Estimate) -> str | None:
    """Return why a limit is too low for even one batch, in sentences; None if one batch fits."""
    for name, _, limit in limits_of(deployment, labeling):
        if estimate.row_bound_usd is None:
            return (
                f"their maximum cost is unknown, so {name} cannot be enforced. Give params a maximum of "
                "output tokens, leave out tools that run at the vendor, or leave the limit out."
            )
        least = least_requests(deployment, labeling)
        if least * estimate.row_bound_usd > limit.max_usd:
            one = "one of them" if least == 1 else f"a batch, which has at least {least} of them,"
            return (
                f"{one} can cost {money_text(least * estimate.row_bound_usd)}, which is more than {name} allows. Raise "
                "the limit, or give params a maximum of output tokens, or a lower one."
            )
    return None


def exceeded(
    deployment: Deployment, labeling: Labeling, cost_usd: Decimal | None, replaced: Sequence[str] = ()
) -> Advice | None:
    """Return the deployment's budget that the cost would exceed, and the next step for a person, if any."""
    for budget in budgets_of(deployment, labeling):
        if cost_usd is None:
            gap = deployment.price_gap(labeling) or ""
            problem = f"the price of '{labeling.model}' is unknown, so the {budget} cannot be enforced. {gap}"
            return Advice(problem.rstrip(". "), "Correct the model's name, or give Spend(price=TokenPrice(…))")
        since = budget.since(deployment.clock())
        spent = deployment.ledger.money.spent_usd(
            deployment.namespace, asset=budget.asset, since=since, besides=replaced
        )
        left = max(Decimal(budget.max_usd) - spent, Decimal(0))
        if cost_usd > left:
            problem = (
                f"the {budget} has {money_text(left)} left, after the {money_text(spent)} already committed, and they "
                f"are expected to cost {money_text(cost_usd)}"
            )
            return Advice(problem, "Raise it" if since is None else f"Raise it, or wait for the next {budget.period}")
    return None


def forecast_steps(deployment: Deployment, labeling: Labeling, estimate: Estimate) -> int | None:
    """Return the number of steps in which limits release requests of the expected cost.

    None if they do not release all of them, or if the cost is unknown.
    """
    if not (limits := limits_of(deployment, labeling)) or not estimate.requests:
        return 1
    expected, bound, most = estimate.cost_usd, estimate.bound_usd, estimate.row_bound_usd
    if expected is None or bound is None or most is None:
        return None
    steps = []
    for entry in limits:
        # Requests of others in flight are billed meanwhile, at their expected cost.
        limit = entry.limit
        spent = Decimal(0)
        if limit.submission_id is None:
            spent = deployment.ledger.money.spent_usd(limit.namespace, asset=limit.asset, since=limit.since)
        room = max(limit.max_usd - spent, Decimal(0))
        each = float(expected) / estimate.requests
        steps.append(1 if bound <= room else count_steps(entry.kind, estimate.requests, each, float(most), float(room)))
    known = [count for count in steps if count is not None]
    return max(known) if len(known) == len(steps) else None


def limits_of(deployment: Deployment, labeling: Labeling, submission_id: str = "") -> list[_Limit]:
    """Return the limits that apply to a labeling's submission."""
    namespace, now = deployment.namespace, deployment.clock()
    limits: list[_Limit] = []
    if (most := labeling.budget_usd) is not None:
        own = SpendLimit(most, namespace, submission_id=submission_id)
        limits.append(_Limit(f"max_cost_usd={most:f}", labeling.spend.limit, own))
    for budget in budgets_of(deployment, labeling):
        of_period = SpendLimit(Decimal(budget.max_usd), namespace, asset=budget.asset, since=budget.since(now))
        limits.append(_Limit(f"the {budget}", budget.limit, of_period))
    return limits


def budgets_of(deployment: Deployment, labeling: Labeling) -> list[Budget]:
    """Return the budgets that apply to a labeling."""
    return [budget for budget in deployment.budgets if budget.asset in (None, labeling.asset)]


def least_requests(deployment: Deployment, labeling: Labeling) -> int:
    """Return the least number of requests in a step."""
    if labeling.limits.below_minimum == "realtime":
        return 1
    return deployment.codec(labeling).limits.min_requests


class _Limit(NamedTuple):
    """A limit with its name and its kind."""

    name: str
    kind: LimitKind
    limit: SpendLimit


class Pick(NamedTuple):
    """The shards that may go now. For the others: the wait with its reason, or the limit that abandons them."""

    going: Sequence[Shard]
    waits_for: str | None = None
    wait: timedelta | None = None
    over_budget: OverBudget | None = None


class Allowance:
    """Apply the limits of one labeling. The caller holds the leases of the submissions.

    `split` divides planned shards that may go only in part.
    """

    def __init__(self, labeling: Labeling, deployment: Deployment, split: Split) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._ledger = deployment.ledger
        self._split = split
        # By shard_id: an amount below the highest cost, if a sample supports it.
        self._amounts: dict[str, Decimal] = {}
        # The shards whose requests are all answered.
        self._paid: set[str] = set()
        # The shards whose money is reserved, because they are about to be sent.
        self._kept: list[Shard] = []
        self._estimates: dict[tuple[str, Lane], Estimate] = {}

    @cached_property
    def _is_limited(self) -> bool:
        return self._labeling.budget_usd is not None or bool(budgets_of(self._deployment, self._labeling))

    def give_out(self, planned: Sequence[Shard], waiting: Collection[str]) -> Iterator[tuple[list[Shard], Pick]]:
        """Yield one submission's planned shards by model and lane, in turn, each group with the part that may go now.

        The money of that part stays reserved until it is sent or `release` is called, so later groups have the
        remainder. `waiting` are the ids of the shards that wait for their time. The caller drops abandoned shards
        before the next turn.
        """
        if not self._is_limited:
            yield list(planned), Pick([shard for shard in planned if shard.shard_id not in waiting])
            return
        turns = self._turns(planned)
        # A process killed before sending left these reservations. The first turn must not lack that money.
        self._release([shard for turn in turns[1:] for shard in turn])
        sample_waits = False
        for turn in turns:
            ready = [shard for shard in turn if shard.shard_id not in waiting]
            is_judged = self._is_judged(turn[0])
            if is_judged and (reason := self._lacking_sample(turn)) is not None:
                pick = Pick((), over_budget=reason)
            elif is_judged and sample_waits:
                pick = Pick((), waits_for="the sample that judges its labels, which goes first")
            else:
                pick = self._take(ready, all_due=len(ready) == len(turn)) if ready else Pick(())
            if not is_judged and pick.over_budget is None and count_requests(pick.going) < count_requests(turn):
                sample_waits = sample_waits or not self._covers(turns)
            yield turn, pick

    def release(self) -> None:
        """Release the money of reserved shards that stay planned. Others may use it meanwhile."""
        kept, self._kept = self._kept, []
        self._release(kept)

    def reserve(self, shards: Sequence[Shard], *, padding: int = 0, lane: Lane = Lane.BATCH) -> bool:
        """Reserve the money for shards that are about to be sent in one batch; return False if a limit has no room."""
        if not self._is_limited or self._paid.issuperset(shard.shard_id for shard in shards):
            return True
        amounts: dict[str, Decimal] = {}
        for shard in shards:
            if (most := self._bound(shard, lane)) is None:
                return False
            amounts[shard.shard_id] = min(most, self._amounts.get(shard.shard_id, most))
        if padding:
            amounts[shards[0].shard_id] += padding * max(self._row_bound(shard, lane) or Decimal(0) for shard in shards)
        ids = {shard.submission_id for shard in shards}
        limits = {entry.limit for submission_id in sorted(ids) for entry in self._limits(submission_id)}
        return self._ledger.money.reserve(amounts, list(limits))

    def pick(self, planned: Sequence[Shard], *, all_due: bool) -> Pick:
        """Return which planned shards of one submission, model and lane may go now, split if only a part may.

        At least one limit applies to them. `all_due` is False if other shards of these wait for their time.
        """
        first, requests, lane = planned[0], count_requests(planned), self._lane(planned)
        labeling = self._labeling.by(first.asked_of)
        least = 1 if lane is Lane.REALTIME else least_requests(self._deployment, labeling)
        bounds = [self._bound(shard, lane) for shard in planned]
        rows = [self._row_bound(shard, lane) for shard in planned]
        known, known_rows = [b for b in bounds if b is not None], [row for row in rows if row is not None]
        if len(known) < len(planned) or len(known_rows) < len(planned):
            why = f"their maximum cost at {labeling.model} is unknown, so limits cannot be enforced"
            then = "Give params a maximum of output tokens, or leave the limit out"
            return Pick((), over_budget=self._given_up(first.submission_id, requests, Advice(why, then)))
        most = max(known_rows)
        rooms = [(self._room(entry.limit, planned), entry) for entry in self._limits(first.submission_id)]
        room, tightest = min(rooms, key=lambda pair: pair[0])
        if sum(known) + max(0, least - requests) * most <= room:
            return Pick(planned)
        if lane is Lane.REALTIME and (answered := self._answered(planned)):
            return Pick(answered)
        siblings = self._ledger.shards.of_submission(first.submission_id)
        if not all_due or any(s.state not in (ShardState.PLANNED, ShardState.COLLECTED) for s in siblings):
            return Pick((), waits_for="the bills of requests in flight")
        sample: _Sample | None = None
        # A hard limit counts the highest cost of requests in flight, so the full amount is reserved under it.
        if lane is Lane.BATCH and all(entry.kind == "measured" for _, entry in rooms):
            sample = self._sample(planned, siblings, float(most))
            covered = floor(min(room / most, Decimal(requests)))
            count = max(covered, sample.count_more(float(room / most), self._share(labeling, first)))
        else:
            count = _count_covered(planned, known, known_rows, room)
        if is_too_few(count, requests, least):
            return self._without_room(tightest, room, first.submission_id, requests, most)
        # A last step must not be smaller than the least batch.
        count = requests if count >= requests else max(least, min(count, requests - least))
        if sample is None:
            return Pick(self._first(planned, count))
        going = self._drawn(planned, sample, count)
        reserve = Decimal(sample.reserve) * most
        for shard in going:
            self._amounts[shard.shard_id] = reserve * shard.requests / count
        return Pick(going)

    def _turns(self, planned: Sequence[Shard]) -> list[list[Shard]]:
        """Return one submission's planned shards by model and lane, in the order in which limits release them.

        The oracle of a cascade precedes the model, whose labels are useless without the sample that judges them. Other
        models follow in the order in which they are asked. The urgent shards of each model come first.
        """
        places = {labeling.model: place for place, labeling in enumerate(self._labeling.models)}
        towards = 1 if self._labeling.cascade is None else -1

        def place(shard: Shard) -> tuple[int, bool]:
            return towards * places[shard.asked_of], shard.lane is not Lane.REALTIME

        return [list(turn) for _, turn in groupby(sorted(planned, key=place), key=place)]

    def _is_judged(self, shard: Shard) -> bool:
        """Return whether a sample that the oracle answers at the same time judges the labels of this shard."""
        cascade = self._labeling.cascade
        return cascade is not None and shard.asked_of != cascade.oracle and shard.wave == 1

    def _lacking_sample(self, judged: Sequence[Shard]) -> OverBudget | None:
        """Return why the model's labels would be useless, because too much of the sample was abandoned; else None."""
        submission_id = judged[0].submission_id
        abandoned = [
            shard
            for shard in self._ledger.shards.of_submission(submission_id)
            if shard.wave == 1 and not self._is_judged(shard) and shard.reason_kind is Reason.OVER_BUDGET
        ]
        if not abandoned:
            return None
        levels = self._deployment.levels(self._labeling, self._ledger.submissions.get(submission_id))
        if levels is None or levels.sampled is None or levels.is_rolling:
            return None
        # The same shards have audited near copies, which do not judge these labels.
        gone = {one for shard in abandoned for one in _heads(packed_ids(self._deployment.payloads, shard))}
        lost = sum(one in gone for one in _heads(packed(levels.sampled)))
        # A sampled row without an answer counts as wrong. With more wrong rows than this,
        # all labels are rejected.
        if levels.may_accept_without(lost):
            return None
        why = (
            f"{lost:,} requests of the sample that judges the labels of {judged[0].asked_of} were abandoned for lack "
            "of money, so these labels could not be used"
        )
        return self._given_up(submission_id, count_requests(judged), Advice(why, "Raise the limit"))

    def _covers(self, turns: Sequence[Sequence[Shard]]) -> bool:
        """Return whether all limits have room for all of these shards at once, at their highest cost."""
        planned = [shard for turn in turns for shard in turn]
        bounds = [self._bound(shard, self._lane(turn)) for turn in turns for shard in turn]
        known = [bound for bound in bounds if bound is not None]
        limits = self._limits(planned[0].submission_id)
        room = min(self._room(entry.limit, planned) for entry in limits)
        return len(known) == len(bounds) and sum(known) <= room

    def _take(self, ready: Sequence[Shard], *, all_due: bool) -> Pick:
        """Pick the shards that may go now, and reserve their money."""
        pick = self.pick(ready, all_due=all_due)
        if not pick.going:
            return pick
        labeling, lane = self._labeling.by(ready[0].asked_of), self._lane(ready)
        is_padded = lane is Lane.BATCH and labeling.limits.below_minimum == "pad"
        least = self._deployment.codec(labeling).limits.min_requests if is_padded else 0
        if not self.reserve(pick.going, padding=max(0, least - count_requests(pick.going)), lane=lane):
            return Pick((), waits_for="other submissions have just reserved the rest of a limit", wait=BUDGET_PAUSE)
        self._kept += pick.going
        return pick

    def _lane(self, planned: Sequence[Shard]) -> Lane:
        """Return the lane whose price applies to these shards of one model: too few for a batch may go in real time."""
        labeling = self._labeling.by(planned[0].asked_of)
        minimum = self._deployment.codec(labeling).limits.min_requests
        is_small = count_requests(planned) < minimum and labeling.limits.below_minimum == "realtime"
        return Lane.REALTIME if is_small else planned[0].lane

    def _release(self, shards: Sequence[Shard]) -> None:
        # The answers of a shard in real time are billed even if the rest of it stays planned.
        answered = self._deployment.payloads.exists
        if ids := [s.shard_id for s in shards if s.lane is not Lane.REALTIME or not answered(beside(s, SO_FAR))]:
            self._ledger.money.release(ids)

    def _answered(self, planned: Sequence[Shard]) -> list[Shard]:
        """Return the answered parts of real-time shards, split from the rest.

        These cost nothing more, so limits do not apply to them. Once they are collected, their actual cost is known.
        """
        answered = []
        for shard in planned:
            if there := len(answers_so_far(self._deployment.payloads, shard)):
                # A process that died before sending may have split it already. Then the shard has only answered
                # requests.
                is_whole = there == shard.requests
                answered.append(shard if is_whole else self._split(shard, lambda *_: False)[0])
        self._paid.update(shard.shard_id for shard in answered)
        return answered

    def _limits(self, submission_id: str) -> list[_Limit]:
        return limits_of(self._deployment, self._labeling, submission_id)

    def _room(self, limit: SpendLimit, besides: Sequence[Shard]) -> Decimal:
        left = limit.max_usd - self._ledger.money.committed_usd(limit, [shard.shard_id for shard in besides])
        return max(left, Decimal(0))

    def _row_bound(self, shard: Shard, lane: Lane) -> Decimal | None:
        """Return the highest cost of one request of a shard; None if unknown."""
        model = f"{shard.provider}/{shard.model}"
        if (model, lane) not in self._estimates:
            self._estimates[model, lane] = self._deployment.estimate(self._labeling.by(model), lane)
        return self._estimates[model, lane].most_usd(shard.input_bound)

    def _bound(self, shard: Shard, lane: Lane) -> Decimal | None:
        if (row := self._row_bound(shard, lane)) is None:
            return None
        most = row * shard.requests
        return most if lane is not shard.lane or shard.bill.bound_usd is None else min(most, shard.bill.bound_usd)

    def _share(self, labeling: Labeling, shard: Shard) -> float:
        """Return the share of the probability of an excess that this model may use in this wave; all sum up to one."""
        place = self._labeling.models.index(labeling)
        return 0.5 ** (shard.wave + place + 1)

    def _without_room(self, tightest: _Limit, room: Decimal, submission_id: str, requests: int, most: Decimal) -> Pick:
        left = (
            f"{tightest.name} has {money_text(room)} left after bills and the maximum cost of requests in flight, "
            f"and each of the {requests:,} can cost {money_text(most)}"
        )
        if self._may_have_room(tightest, requests, most):
            return Pick((), waits_for=left, wait=BUDGET_PAUSE)
        return Pick((), over_budget=self._given_up(submission_id, requests, Advice(left, "Raise the limit")))

    def _may_have_room(self, limited: _Limit, requests: int, most: Decimal) -> bool:
        """Return whether a limit without room may have some later: in the next period, or after the bills of others.

        A submission's own limit may not, because nothing of it is in flight then.
        """
        limit = limited.limit
        if limit.submission_id is not None or limit.since is not None:
            return limit.submission_id is None
        left = limit.max_usd - self._ledger.money.committed_usd(limit, only_collected=True)
        return not is_too_few(floor(left / most), requests)

    def _given_up(self, submission_id: str, requests: int, reason: Advice) -> OverBudget:
        return OverBudget(*advise_on_money(self._ledger.submissions.get(submission_id), requests, reason))

    def _first(self, planned: Sequence[Shard], count: int) -> list[Shard]:
        """Return the first `count` requests, in their order; split the shard at the end."""
        going: list[Shard] = []
        for shard in planned:
            if count >= shard.requests:
                going.append(shard)
            elif count:
                places = iter(range(shard.requests))
                part, _ = self._split(shard, lambda _, __, most=count, at=places: next(at) < most)  # type: ignore[misc]
                going.append(part)
            count = max(0, count - shard.requests)
        return going

    def _drawn(self, planned: Sequence[Shard], sample: _Sample, count: int) -> list[Shard]:
        """Return the `count` requests with the lowest digests; split each shard that has only some of them."""
        if count == len(sample.unsent):
            return list(planned)
        end, going = int(sample.unsent[count]), []
        for shard in planned:
            below = int((_digests(packed_ids(self._deployment.payloads, shard)) < end).sum())
            if below == shard.requests:
                going.append(shard)
            elif below:
                part, _ = self._split(shard, lambda request_id, _: int(request_id[:_DIGEST_CHARS], 16) < end)
                going.append(part)
        return going

    def _sample(self, planned: Sequence[Shard], siblings: Sequence[Shard], most: float) -> _Sample:
        """Return the costs of requests of the same wave, model and lane, and the digests of the unsent ones."""
        payloads, first = self._deployment.payloads, planned[0]
        unsent = np.sort(np.concatenate([_digests(packed_ids(payloads, shard)) for shard in planned]))
        digests, costs, billed = [np.empty(0, np.uint64)], [np.empty(0)], 0.0
        for shard in siblings:
            is_same = _target(shard) == _target(first)
            # Shards dropped before they were sent belong to no release.
            if not is_same or not shard.results_path or (shard.batch.batch_id is None and shard.batch.sent_at is None):
                continue
            table = payloads.read_table(shard.results_path, ["llm_request_id", "llm_cost_usd"])
            row = float(self._row_bound(shard, shard.lane) or 0)
            own = pc.fill_null(pc.cast(table["llm_cost_usd"], "float64"), row).to_numpy()
            digests.append(_digests(packed(table["llm_request_id"].to_pylist())))
            costs.append(own / most)
            counted = shard.bill.reserved_usd if shard.bill.cost_usd is None else shard.bill.cost_usd
            billed += min(float(own.sum()), float(counted or 0)) / most
        order = np.argsort(np.concatenate(digests), kind="stable")
        billed_digests, billed_costs = np.concatenate(digests)[order], np.concatenate(costs)[order]
        # Only requests before the first unsent one count: if a step's batch was rejected, the others are no random
        # sample.
        seen = int(np.searchsorted(billed_digests, unsent[0]))
        return _Sample(billed_costs[:seen], len(billed_costs), billed, unsent)


class _Sample:
    """The known costs of requests that are sent in the order of their digests.

    `costs` are the costs of the first requests, and `billed` is the bill of all `sent` requests. Both are in units of
    the highest cost of one request. `unsent` has the sorted digests of the others.
    """

    def __init__(self, costs: npt.NDArray[np.float64], sent: int, billed: float, unsent: _Digests) -> None:
        self.unsent = unsent
        self.reserve = 0.0
        self._costs, self._sent, self._billed = costs, sent, billed

    def count_more(self, room: float, share: float) -> int:
        """Return how many more requests may go within this room, and store in `reserve` the money to keep for them."""
        self.reserve = room
        limit, size = room + self._billed, self._sent + len(self.unsent)
        count = count_releasable(self._costs, size, limit, share)
        more = count - self._sent
        if more > room:
            self.reserve = min(room, find_reserve(self._costs, count, limit, share) - self._billed) * _ROUNDED
        return max(more, 0)


def _count_covered(planned: Sequence[Shard], bounds: Sequence[Decimal], rows: Sequence[Decimal], room: Decimal) -> int:
    """Return how many requests, from the first on, the room covers at their highest cost."""
    count = 0
    for shard, bound, row in zip(planned, bounds, rows, strict=True):
        if bound > room:
            return count + floor(room / row)
        count, room = count + shard.requests, room - bound
    return count


def _target(shard: Shard) -> tuple[object, ...]:
    return shard.wave, shard.provider, shard.model, shard.lane


def _heads(ids: bytes) -> Iterator[bytes]:
    """Yield each of these packed ids."""
    return (ids[start : start + REQUEST_ID_BYTES] for start in range(0, len(ids), REQUEST_ID_BYTES))


def _digests(ids: bytes) -> _Digests:
    """Return the first eight bytes of each packed id, as numbers."""
    table = np.frombuffer(ids, np.uint8).reshape(-1, REQUEST_ID_BYTES)[:, : _DIGEST_CHARS // 2]
    return np.ascontiguousarray(table).view(">u8").ravel().astype(np.uint64)
