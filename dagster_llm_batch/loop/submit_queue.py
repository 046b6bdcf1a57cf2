"""The queue of planned shards: which are sent now, and how. Together in one batch where they fit, when the provider's
queue has room, or in real time.

What has waited longest is sent first. What a provider's queue had no room for is sent again when room is expected, the
smallest first and one at a time, since each try uploads its file; what is too large by itself is split before.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import groupby
from typing import Any

from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.errors import ConfigError, IllegalMoveError, LeaseError
from dagster_llm_batch.files.request_files import SENT, SO_FAR, beside, delete_requests, halve, split_requests
from dagster_llm_batch.loop.budget import BUDGET_PAUSE, NO_ROOM_LEFT, Allowance
from dagster_llm_batch.loop.deployment import LONGEST_PAUSE, Deployment, Threads
from dagster_llm_batch.loop.realtime import Answerer
from dagster_llm_batch.loop.receipts import write_receipts
from dagster_llm_batch.loop.status import UNAVAILABLE, WAITS
from dagster_llm_batch.loop.submit import Sender
from dagster_llm_batch.states import Move, Reason, ShardState
from dagster_llm_batch.storage.ledger.events import BelowMinimum, Unavailable, Waits, read_event
from dagster_llm_batch.storage.ledger.leases import Lease
from dagster_llm_batch.storage.ledger.queues import QueueLines
from dagster_llm_batch.storage.ledger.records import Event, Queued, Shard, ShardFields
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.types import BatchLimits, BatchStatus, Lane

__all__ = [
    "Dispatcher",
    "can_go",
    "count_queue_rounds",
    "drop",
    "keep_places",
]

# Well within the time for which a place is kept (`Presence`).
_SAY_EVERY = timedelta(minutes=10)

# A batch that is in flight for so long was taken: a full queue is told of before, some minutes after the create call.
_TAKEN_AFTER = timedelta(minutes=30)

# What was chosen holds a submission up for so long: others, who fill the queue, may have chosen nothing.
_CHOSEN_FOR = timedelta(days=2)

# The result files of a batch's shards are open at the same time when it is collected.
_SHARDS_IN_A_BATCH = 200


class Dispatcher:
    """Send planned shards of one labeling, of one or several submissions. The caller holds the leases of all."""

    def __init__(self, labeling: Labeling, deployment: Deployment, lease: Lease) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._lease = lease
        self._sender = Sender(deployment, lease, self._reserve)
        self._answerers: dict[str, Answerer] = {}  # by model
        # By submission_id: what waits for a place in a queue, and why limits have no room for the rest.
        self._for_place: set[str] = set()
        self._for_money: dict[str, str] = {}
        # The ids of shards for which limits have room.
        self._affordable_ids: set[str] = set()

    @cached_property
    def _allowance(self) -> Allowance:
        return Allowance(self._labeling, self._deployment, self._split)

    def _reserve(self, shards: Sequence[Shard], padding: int) -> bool:
        return self._allowance.reserve(shards, padding=padding)

    def send(self, planned: Sequence[Shard]) -> None:
        """Send the shards that can be sent now. Others stay planned, and an event says that they wait.

        Raises ConfigError, before anything is sent, for a batch below the provider's least number of requests that
        `below_minimum` refuses. Shards of a later wave are given up instead, with an event: the answers of the waves
        before must still land.
        """
        if not planned:
            return
        now = self._deployment.clock()
        turned_away = _turned_away(planned, now)
        waiting = {s.shard_id: s.submission_id for s in planned if _target(s) in turned_away or not due(s, now)}
        try:
            self._send_all(self._affordable(planned, waiting))
        finally:
            self._allowance.release()
            self._tell_of_waiting(set(waiting.values()))

    def _send_all(self, going: Sequence[Shard]) -> None:
        batches: list[tuple[Labeling, list[Shard]]] = []
        for (model, lane), shards in groupby(sorted(going, key=_target), key=_target):
            labeling, own = self._labeling.by(model), list(shards)
            of_lane = [[shard] for shard in own] if lane == Lane.REALTIME else self._batches(labeling, own)
            batches += [(labeling, batch) for batch in of_lane]
        batches = self._within_chosen(batches)
        if batches:
            keep_places(self._deployment, [self._labeling.asset])
        self._send_at_once([item for item in batches if not self._waits_its_turn(*item)])
        for labeling, batch in batches:
            if self._waits_its_turn(labeling, batch):
                self._send(labeling, batch)

    def _within_chosen(self, batches: Sequence[tuple[Labeling, list[Shard]]]) -> list[tuple[Labeling, list[Shard]]]:
        """Return the batches but those of one shard with which more than was chosen would be in flight."""
        going: list[tuple[Labeling, list[Shard]]] = []
        tokens: dict[str, int] = {}
        for labeling, batch in batches:
            most = _most_at_once(self._deployment, batch)
            if most is not None and len(batch) == 1 and not self._is_realtime(labeling, batch):
                inside = tokens.get(labeling.model)
                if inside is None:
                    inside = _tokens_beside(self._deployment, batch)
                if inside and inside + batch[0].tokens > most:
                    self._for_place.add(batch[0].submission_id)
                    continue
                tokens[labeling.model] = inside + batch[0].tokens
            going.append((labeling, batch))
        return going

    def _send_at_once(self, batches: Sequence[tuple[Labeling, list[Shard]]]) -> None:
        """Upload several batches at a time. After an error those that have begun are finished, and no other begins."""
        # One alone is sent in this thread, which can be interrupted.
        if len(batches) < 2:  # noqa: PLR2004
            for labeling, batch in batches:
                self._send(labeling, batch)
            return
        failed = threading.Event()

        def send(labeling: Labeling, batch: list[Shard]) -> None:
            # The pool cancels what has not begun, but only after this thread may have taken its next one.
            if failed.is_set():
                return
            try:
                self._send(labeling, batch)
            except BaseException:
                failed.set()
                raise

        with Threads(self._deployment.transfers_at_once, "dagster-llm-batch upload") as pool:
            sending = [pool.submit(send, labeling, batch) for labeling, batch in batches]
            wait(sending, return_when=FIRST_EXCEPTION)
        for upload in sending:
            if not upload.cancelled():
                upload.result()

    def _waits_its_turn(self, labeling: Labeling, batch: list[Shard]) -> bool:
        """Return whether the batch goes in real time, or into a queue whose room is counted before each batch."""
        has_waited = any(shard.room.no_room_at or (shard.room.most_at_once and len(batch) > 1) for shard in batch)
        return self._is_realtime(labeling, batch) or has_waited or _limit(self._deployment, batch[0])[0] is not None

    def _is_realtime(self, labeling: Labeling, batch: list[Shard]) -> bool:
        small = count_requests(batch) < self._least(labeling)
        return batch[0].lane is Lane.REALTIME or (small and labeling.limits.below_minimum == "realtime")

    def _least(self, labeling: Labeling) -> int:
        return self._deployment.codec(labeling).limits.min_requests

    def _batches(self, labeling: Labeling, shards: Sequence[Shard]) -> Iterator[list[Shard]]:
        limits = self._deployment.batch_limits(labeling)
        going = [part for shard in shards for part in self._parts(shard, limits.min_requests)]
        self._affordable_ids.update(part.shard_id for part in going)
        for batch in _together(sorted(going, key=_size_without_room), limits):
            requests = count_requests(batch)
            if requests >= limits.min_requests or labeling.limits.below_minimum != "refuse":
                yield batch
                continue
            reason = (
                f"a batch of {labeling.model} takes at least {limits.min_requests} requests; these are {requests}. "
                "Set Limits(below_minimum='pad') (copies that are paid for fill it up) or 'realtime' (answered at "
                "once, at the price of real time), or send more rows together."
            )
            if any(shard.wave == 1 for shard in batch):
                raise ConfigError(f"'{labeling.asset}': {reason} Nothing was sent.")
            for submission_id in {shard.submission_id for shard in batch}:
                self._deployment.ledger.events.add(submission_id, BelowMinimum(f"not sent again: {reason}"))
            words = "it was not sent again: too few requests for a batch"
            drop(self._deployment, batch, Reason.BELOW_MINIMUM, words)

    def _affordable(self, planned: Sequence[Shard], waiting: Collection[str]) -> list[Shard]:
        """Return what limits have room for. The rest waits, or is dropped where there is no room left to wait for."""
        going: list[Shard] = []
        # In the order in which they came: what is sent first must not depend on a submission's id, which is random.
        by_submission: dict[str, list[Shard]] = {}
        for shard in planned:
            by_submission.setdefault(shard.submission_id, []).append(shard)
        for submission_id, own in by_submission.items():
            for shards, pick in self._allowance.give_out(own, waiting):
                going += pick.going
                if pick.over_budget is not None:
                    self._deployment.ledger.events.add(submission_id, pick.over_budget)
                    # Not those of another model or lane, which may have room, and be about to be sent.
                    drop(self._deployment, shards, Reason.OVER_BUDGET, NO_ROOM_LEFT)
                    continue
                due_now = [shard for shard in shards if shard.shard_id not in waiting]
                if pick.wait is not None:
                    self._pause_for_money(due_now, pick.wait, pick.waits_for)
                if pick.waits_for is not None or count_requests(pick.going) < count_requests(due_now):
                    self._for_money[submission_id] = pick.waits_for or "what goes before it to be billed"
        self._affordable_ids.update(shard.shard_id for shard in going)
        if again := [shard.shard_id for shard in going if shard.reason_kind is Reason.LACKS_MONEY]:
            self._deployment.ledger.queues.take_places_back(again)
        return going

    def _pause_for_money(self, shards: Sequence[Shard], pause: timedelta, why: str | None) -> None:
        until = self._deployment.clock() + pause
        ids, words = [shard.shard_id for shard in shards], f"it waits for money: {why}"
        self._deployment.ledger.shards.delay(ids, until, words, Reason.MONEY)

    def _parts(self, shard: Shard, least: int) -> Sequence[Shard]:
        """Return the shard, or its halves, planned in its place, where the provider's queue never has room for it."""
        is_too_large = shard.room.most_tokens is not None and shard.tokens > shard.room.most_tokens
        if not is_too_large or shard.requests < 2 * least:
            return [shard]
        return self._split(shard, halve(shard, least))

    def _split(self, shard: Shard, is_first: Callable[[str, bytes], bool]) -> tuple[Shard, Shard]:
        """Split a planned shard; return both, as they are planned in its place."""
        self._lease.check()
        ledger, payloads = self._deployment.ledger, self._deployment.payloads
        wave = [other.number for other in ledger.shards.of_submission(shard.submission_id) if other.wave == shard.wave]
        estimate = self._deployment.estimate(self._labeling.by(f"{shard.provider}/{shard.model}"))
        dearest = estimate.most_usd(shard.input_bound, shard.lane)
        halves = split_requests(payloads, shard, max(wave) + 1, is_first, dearest)
        # Which of them have what was asked again for what, is not told by its counts.
        rest, half = (replace(each, asked_again=None) for each in halves)
        # Before either is sent. A process that is killed before this leaves files that the next one writes over.
        ledger.shards.split(shard, rest, half)
        # An older ledger, put back from a backup, could send neither without these: the file of the whole goes.
        write_receipts(self._deployment, [rest, half])
        delete_requests(payloads, shard)
        payloads.delete(beside(shard, SENT))
        if shard.lane is Lane.REALTIME:
            payloads.delete(beside(shard, SO_FAR))
        return rest, half

    def _send(self, labeling: Labeling, batch: list[Shard]) -> None:
        self._lease.check()
        if self._is_realtime(labeling, batch):
            answerer = self._answerers.setdefault(labeling.model, Answerer(labeling, self._deployment, self._lease))
            for shard in batch:
                if answerer.is_turned_away:
                    self._is_unavailable(shard.submission_id, labeling.model)
                elif not self._allowance.reserve([shard], lane=Lane.REALTIME):
                    self._for_place.add(shard.submission_id)
                else:
                    answerer.answer(shard)
            return
        least, going = self._least(labeling), list[Shard]()
        requests = count_requests(batch)
        is_padded = labeling.limits.below_minimum == "pad"
        with ExitStack() as queue:
            # Where another process fills the queue now, all of the batch waits for the next time. That the lease of the
            # submission is lost, and what was sent beside another process, is an error of this one.
            with suppress(LeaseError):
                queue.enter_context(_queue(self._deployment, batch[0]))
                going = self._that_fit(batch, min(least, requests), fill_up_to=least if is_padded else 0)
            waiting = batch[len(going) :]
            if going:
                self._sender.send(going, labeling.spec, fill_up_to=least if is_padded else 0)
        self._for_place.update(shard.submission_id for shard in waiting)

    def _that_fit(self, batch: list[Shard], at_least: int, fill_up_to: int) -> list[Shard]:
        """Return the first shards that the queue and the limits have room for together, with copies that fill them up.

        None where they have fewer than `at_least` requests, unless they are filled up. Each submission by itself has
        the room, but of those that are sent together the first take it.
        """
        going, lacks_money = list(batch), False
        while going and (fill_up_to or count_requests(going) >= at_least):
            if has_room(self._deployment, going):
                padding = max(0, fill_up_to - count_requests(going))
                if self._reserve(going, padding):
                    return going
                lacks_money = True
            going.pop()
        if lacks_money:
            self._pause_for_money(batch, BUDGET_PAUSE, "the limits have no room for a batch of these")
        return []

    def _tell_of_waiting(self, for_time: Collection[str]) -> None:
        """Record why shards of submissions stay planned, once for each, as its last word of what was done here."""
        for_place, self._for_place = self._for_place, set()
        for_money, self._for_money = self._for_money, {}
        for submission_id in sorted({*for_time, *for_place, *for_money}):
            money = for_money.get(submission_id)
            if money is None:
                self._waits(submission_id, Waits(for_place=True))
                continue
            if submission_id in for_place or self._deployment.queue_limits:
                self._give_up_places(submission_id)
            self._waits(submission_id, Waits(submission_id in for_place, money))

    def _waits(self, submission_id: str, waits: Waits) -> None:
        # The same again is no news.
        if read_event(self._deployment.ledger.events.last_of(submission_id)) != waits:
            self._deployment.ledger.events.add(submission_id, waits)

    def _give_up_places(self, submission_id: str) -> None:
        """Record which shards lack money: they hold no place in a queue before others, and no run is requested for one.

        Without this, what has money would wait behind them, and they for its bill.
        """
        now, ledger = self._deployment.clock(), self._deployment.ledger
        planned = [shard for shard in ledger.shards.of_submission(submission_id) if shard.state is ShardState.PLANNED]
        lacking = [shard for shard in planned if shard.shard_id not in self._affordable_ids and due(shard, now)]
        if ids := [shard.shard_id for shard in lacking if shard.reason_kind is not Reason.LACKS_MONEY]:
            ledger.queues.give_up_places(ids)

    def _is_unavailable(self, submission_id: str, model: str) -> None:
        """Add the event, unless it is the last one already. The sensor waits longer before it requests a run then."""
        ledger = self._deployment.ledger
        if ledger.events.last_of(submission_id).kind not in (UNAVAILABLE, Move.NOT_SENT.value):
            words = f"{model} turns calls in real time away; the rest is asked later"
            ledger.events.add(submission_id, Unavailable(words))

    def give_up(self, planned: Sequence[Shard], *, late: bool) -> list[Shard]:
        """Drop the shards that a batch will not answer in time; return the others.

        These are all after the deadline and, where there is a fallback, those that their provider has not taken for
        `fallback_after`.
        """
        left = []
        for shard in planned:
            if shard.lane is Lane.BATCH and (late or self._is_down(shard)):
                if late:
                    drop(self._deployment, [shard], Reason.LATE, "the deadline has passed")
                else:
                    words = "its provider does not take it; the next model is asked"
                    drop(self._deployment, [shard], Reason.NEXT_MODEL, words)
            else:
                left.append(shard)
        return left

    def of_present_models(self, planned: Sequence[Shard]) -> list[Shard]:
        """Return the shards of the model and of present fallbacks; drop those of a fallback that is none any more."""
        models = {labeling.model for labeling in self._labeling.models}
        gone = [shard for shard in planned if f"{shard.provider}/{shard.model}" not in models]
        drop(self._deployment, gone, Reason.NO_FALLBACK, "its model is no fallback any more")
        return [shard for shard in planned if shard not in gone]

    def _is_down(self, shard: Shard) -> bool:
        is_last = self._labeling.models[-1].model == f"{shard.provider}/{shard.model}"
        # With most_tokens its queue is full of batches from here, or the shard too large: it is not down.
        if is_last or shard.reason_kind is None or shard.room.most_tokens is not None:
            return False
        since: datetime | None = None
        now = self._deployment.clock()
        for event in self._deployment.ledger.events.of_submission(shard.submission_id):
            # A time that lies ahead was written by a clock that was wrong.
            if event.shard_id == shard.shard_id and event.kind == Move.NOT_SENT.value and event.at <= now:
                since = since or event.at
            elif event.shard_id == shard.shard_id and event.kind == Move.ACCEPTED.value:
                since = None
        return since is not None and now - since >= self._labeling.resend.fallback_after


def drop(deployment: Deployment, planned: Sequence[Shard], kind: Reason, words: str) -> None:
    """Cancel planned shards, which are then never sent."""
    for shard in planned:
        if shard.state is ShardState.PLANNED:
            fields: ShardFields = {"status": BatchStatus.CANCELED, "reason": words, "reason_kind": kind}
            fields["ended_at"] = deployment.clock()
            if shard.lane is Lane.REALTIME and deployment.payloads.exists(beside(shard, SO_FAR)):
                # Some of it was asked: with a time of sending, its answers count.
                fields["sent_at"] = deployment.clock()
            # Where another process has just sent it, it is collected later.
            with suppress(IllegalMoveError):
                deployment.ledger.shards.move(shard.shard_id, Move.CANCELED, **fields)


def can_go(deployment: Deployment, planned: Sequence[Shard], lines: QueueLines, *, late: bool) -> bool:
    """Return whether one of a submission's planned shards may be sent now, or is given up since it is too late."""
    now = deployment.clock()
    if planned and not late:
        last = deployment.ledger.events.last_of(planned[0].submission_id)
        if _waits_for_money(deployment, last):
            return False
        if last.kind == WAITS:
            planned = [shard for shard in planned if shard.reason_kind is not Reason.LACKS_MONEY] or planned
    turned_away = _turned_away(planned, now)
    if any(shard.lane is Lane.REALTIME and _target(shard) not in turned_away for shard in planned):
        return True
    batches = [shard for shard in planned if shard.lane is not Lane.REALTIME and (late or due(shard, now))]
    by_model = groupby(sorted(batches, key=_target), key=_target)
    return any(late or _have_room(deployment, list(shards), lines) for _, shards in by_model)


def _have_room(deployment: Deployment, shards: Sequence[Shard], lines: QueueLines) -> bool:
    """Return whether one of these shards of a submission, of one model and lane, may be sent now."""
    # Nothing overtakes in a queue: where the first of them has to wait, so do the others; beside what was chosen, where
    # the smallest has. To ask of each of thousands would take a tick of the sensor longer than Dagster gives it.
    first = deployment.ledger.queues.first_of(shards) if _limit(deployment, shards[0])[0] else shards[0]
    chosen = {shard.room.most_at_once for shard in shards}
    loosest = None if None in chosen else max(filter(None, chosen), default=0)
    smallest = min(shards, key=lambda shard: shard.tokens)
    smallest = replace(smallest, room=replace(smallest.room, most_at_once=loosest))
    if not (_is_within_declared(deployment, [first], lines) and _is_within_chosen(deployment, [smallest])):
        return False
    return any(has_room(deployment, [shard], lines) for shard in shards)


def _waits_for_money(deployment: Deployment, last: Event) -> bool:
    """Return whether the rest of a submission waits for what is in flight of it, or goes before it, to be billed."""
    waits = read_event(last)
    if not isinstance(waits, Waits) or waits.for_place or waits.money is None:
        return False
    now = deployment.clock()
    return any(
        not due(shard, now) if shard.state is ShardState.PLANNED else shard.state is not ShardState.COLLECTED
        for shard in deployment.ledger.shards.of_submission(last.submission_id)
    )


def _turned_away(planned: Sequence[Shard], now: datetime) -> set[tuple[str, str]]:
    """Return models that turn calls in real time away until a later time. One shard of each has that time."""
    return {_target(shard) for shard in planned if shard.lane is Lane.REALTIME and not due(shard, now)}


def due(shard: Shard, now: datetime) -> bool:
    """Return whether the shard need not wait any longer.

    A time that lies further ahead than any pause was set by a clock that was wrong.
    """
    return shard.waits_until is None or not now < shard.waits_until <= now + LONGEST_PAUSE


def _together(shards: Sequence[Shard], limits: BatchLimits) -> Iterator[list[Shard]]:
    """Yield the shards in as few batches as their order and the limits allow."""
    batch: list[Shard] = []
    most = limits.max_requests if limits.max_inputs is None else min(limits.max_requests, limits.max_inputs)
    for shard in shards:
        requests = count_requests(batch) + shard.requests
        size = sum(held.bytes for held in batch) + shard.bytes
        tokens = sum(held.tokens for held in batch) + shard.tokens
        bounds = [limits.max_tokens, *(held.room.most_tokens for held in (*batch, shard))]
        # Where a vendor takes no batch of few requests, what is left over might be one.
        bounds += [held.room.most_at_once for held in (*batch, shard) if limits.min_requests == 1]
        is_over = any(bound is not None and tokens > bound for bound in bounds)
        tuned = min(
            (held.room.most_requests for held in (*batch, shard) if held.room.most_requests is not None), default=most
        )
        if batch and (
            requests > min(most, tuned) or size > limits.max_bytes or is_over or len(batch) == _SHARDS_IN_A_BATCH
        ):
            yield batch
            batch = []
        batch.append(shard)
    if batch:
        yield batch


def _queue(deployment: Deployment, shard: Shard) -> AbstractContextManager[Any]:
    """Hold the lease of the provider's queue, if it has a limit: two processes would take the same room."""
    if _limit(deployment, shard)[0] is None:
        return nullcontext()
    name = f"queue:{shard.provider}:{shard.account}"
    return deployment.ledger.leases.hold(name, wait_seconds=deployment.lease_wait_seconds)


def count_queue_rounds(shards: Sequence[Shard], limit: QueueLimit) -> int:
    """Return in how many steps a limit lets these batches into an empty queue, each when those before have ended."""
    rounds = 0
    inside: list[Shard] = []
    for shard in shards:
        if shard.lane is Lane.BATCH:
            if not inside or not limit.allows(*_queued([*inside, shard], batches=len(inside) + 1)):
                rounds, inside = rounds + 1, []
            inside.append(shard)
    return max(rounds, 1)


def _queued(shards: Sequence[Shard], batches: int) -> Queued:
    return Queued(batches, count_requests(shards), sum(shard.tokens for shard in shards))


def has_room(deployment: Deployment, batch: Sequence[Shard], lines: QueueLines | None = None) -> bool:
    """Return whether the queue has room for this batch, beside what is in it and after what has waited longer: now, or
    when `lines` were read.
    """
    return _is_within_declared(deployment, batch, lines) and all(
        has(deployment, batch) for has in (_is_within_chosen, _is_expected)
    )


def _is_within_chosen(deployment: Deployment, batch: Sequence[Shard]) -> bool:
    """Return whether no more would be in flight of the model than was chosen by what earlier batches met."""
    most = _most_at_once(deployment, batch)
    if most is None:
        return True
    beside = _tokens_beside(deployment, batch)
    # Alone it goes: whether it fits is for the provider to say.
    return not beside or beside + sum(shard.tokens for shard in batch) <= most


def _most_at_once(deployment: Deployment, batch: Sequence[Shard]) -> int | None:
    most = min((shard.room.most_at_once for shard in batch if shard.room.most_at_once is not None), default=None)
    if most is None:
        return None
    planned_at = deployment.ledger.submissions.get(batch[0].submission_id).created_at
    return most if deployment.clock() < planned_at + _CHOSEN_FOR else None


def _is_expected(deployment: Deployment, batch: Sequence[Shard]) -> bool:
    """Return whether the provider may have room now, where its queue had none for one of these shards.

    It may where no more would be in flight than was found to be too much, and where no other batch finds out: none of
    them is in flight whose fate is not known yet, and the pause after the last that was not taken is over.
    """
    if all(shard.room.no_room_at is None for shard in batch):
        return True
    tokens, now = sum(shard.tokens for shard in batch), deployment.clock()
    most = min((shard.room.most_tokens for shard in batch if shard.room.most_tokens is not None), default=None)
    beside = _tokens_beside(deployment, batch)
    if beside and most is not None and beside + tokens > most:
        return False
    own, presence = {shard.shard_id for shard in batch}, deployment.presence(batch[0])
    others = deployment.ledger.queues.without_room(deployment.namespace, batch[0], presence)
    return not any(
        not due(other, now) if other.state is ShardState.PLANNED else not _is_taken(other, now)
        for other in others
        if other.shard_id not in own
    )


def _tokens_beside(deployment: Deployment, batch: Sequence[Shard]) -> int:
    return deployment.ledger.queues.tokens_beside(batch, deployment.presence(batch[0]))


def _is_taken(shard: Shard, now: datetime) -> bool:
    """Return whether the provider has surely taken the batch of a shard in flight."""
    if shard.batch.status not in (None, BatchStatus.PENDING):
        return True
    return shard.batch.submitted_at is not None and now - shard.batch.submitted_at >= _TAKEN_AFTER


def _is_within_declared(deployment: Deployment, batch: Sequence[Shard], lines: QueueLines | None) -> bool:
    limit, model = _limit(deployment, batch[0])
    if limit is None:
        return True
    presence = deployment.presence(batch[0])
    ahead = (lines or deployment.ledger.queues).count_ahead(
        deployment.namespace, batch, presence=presence, longest_pause=LONGEST_PAUSE, model=model
    )
    own = _queued(batch, batches=1)
    # A shard that is over the limit by itself would wait for ever: whether it fits is for the provider to say.
    is_alone = not ahead.batches and len(batch) == 1
    return is_alone or limit.allows(*map(sum, zip(ahead, own, strict=True)))


def keep_places(deployment: Deployment, assets: Sequence[str]) -> None:
    """Record that somebody looks after the waiting shards of these assets, where queues are limited."""
    if deployment.queue_limits:
        now = deployment.clock()
        deployment.ledger.queues.keep_places(deployment.namespace, assets, now=now, unless_since=now - _SAY_EVERY)


def _limit(deployment: Deployment, shard: Shard) -> tuple[QueueLimit | None, str | None]:
    return deployment.queue_limit(shard.provider, shard.model)


def _size_without_room(shard: Shard) -> tuple[bool, int]:
    """Return what orders shards that the queue had no room for, behind the others: the smallest of several requests
    first. A single one may be too large for good, and must not hold up the others.
    """
    return (False, 0) if shard.room.no_room_at is None else (shard.requests == 1, shard.tokens)


def _target(shard: Shard) -> tuple[str, str]:
    return f"{shard.provider}/{shard.model}", shard.lane.value
