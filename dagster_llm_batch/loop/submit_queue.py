"""The queue of planned shards: which are sent now, in which batches, and which wait or go in real time.

Shards share a batch if they fit. The longest wait goes first. Shards that found a queue full are sent again when room
is expected, the smallest first and one at a time, because each try uploads its file. A shard that is too large alone is
split first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import groupby
from typing import Any

from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.definition.rules import QueueLimit
from dagster_llm_batch.errors import ConfigError, IllegalTransitionError, LeaseError
from dagster_llm_batch.files.request_files import SENT, SO_FAR, beside, delete_requests, halve, split_requests
from dagster_llm_batch.loop.budget import BUDGET_PAUSE, NO_ROOM_LEFT, Allowance
from dagster_llm_batch.loop.deployment import LONGEST_PAUSE, Deployment, Threads
from dagster_llm_batch.loop.realtime import Answerer
from dagster_llm_batch.loop.receipts import write_receipts
from dagster_llm_batch.loop.status import UNAVAILABLE, WAITS
from dagster_llm_batch.loop.submit import Sender
from dagster_llm_batch.states import Reason, ShardState, Transition
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

# Well within the time for which a place is kept (`QueueOccupancy`).
_SAY_EVERY = timedelta(minutes=10)

# A batch in flight for so long was accepted: a full queue is reported earlier, some minutes after the create call.
_TAKEN_AFTER = timedelta(minutes=30)

# The tuner's choices delay a submission for at most this long, because other senders who fill the queue may ignore
# them.
_CHOSEN_FOR = timedelta(days=2)

# The result files of all shards in a batch are open at the same time when it is collected.
_SHARDS_IN_A_BATCH = 200


class Dispatcher:
    """Send planned shards of one or several submissions of one labeling. The caller holds the leases of all."""

    def __init__(self, labeling: Labeling, deployment: Deployment, lease: Lease) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._lease = lease
        self._sender = Sender(deployment, lease, self._reserve)
        self._answerers: dict[str, Answerer] = {}  # by model
        # Submissions with shards waiting for a place in a queue; and by submission_id, why limits have no room for the
        # rest.
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
        """Send the shards that can be sent now. Others stay planned, and an event records their wait.

        Raises ConfigError before anything is sent if `below_minimum` refuses a batch below the provider's least number
        of requests. Shards of a later wave are abandoned instead, with an event, so that earlier answers are still
        materialized.
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
        """Return the batches without single shards that would exceed the tuner's choice for tokens in flight."""
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
        """Upload several batches at a time. After an error, started uploads finish, and others do not start."""
        # A single batch is sent in this thread, which can be interrupted.
        if len(batches) < 2:  # noqa: PLR2004
            for labeling, batch in batches:
                self._send(labeling, batch)
            return
        failed = threading.Event()

        def send(labeling: Labeling, batch: list[Shard]) -> None:
            # The pool cancels waiting uploads, but only after this thread may have taken its next one.
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
        """Return the shards for which limits have room. The rest waits, or is dropped if room cannot be expected."""
        going: list[Shard] = []
        # In order of arrival: the random ids of submissions must not decide the order of sending.
        by_submission: dict[str, list[Shard]] = {}
        for shard in planned:
            by_submission.setdefault(shard.submission_id, []).append(shard)
        for submission_id, own in by_submission.items():
            for shards, pick in self._allowance.give_out(own, waiting):
                going += pick.going
                if pick.over_budget is not None:
                    self._deployment.ledger.events.add(submission_id, pick.over_budget)
                    # Shards of another model or lane are kept: they may have room, and be about to be sent.
                    drop(self._deployment, shards, Reason.OVER_BUDGET, NO_ROOM_LEFT)
                    continue
                due_now = [shard for shard in shards if shard.shard_id not in waiting]
                if pick.wait is not None:
                    self._pause_for_money(due_now, pick.wait, pick.waits_for)
                if pick.waits_for is not None or count_requests(pick.going) < count_requests(due_now):
                    self._for_money[submission_id] = pick.waits_for or "the bills of requests that go first"
        self._affordable_ids.update(shard.shard_id for shard in going)
        if again := [shard.shard_id for shard in going if shard.reason_kind is Reason.LACKS_MONEY]:
            self._deployment.ledger.queues.take_places_back(again)
        return going

    def _pause_for_money(self, shards: Sequence[Shard], pause: timedelta, why: str | None) -> None:
        until = self._deployment.clock() + pause
        ids, words = [shard.shard_id for shard in shards], f"it waits for money: {why}"
        self._deployment.ledger.shards.delay(ids, until, words, Reason.MONEY)

    def _parts(self, shard: Shard, least: int) -> Sequence[Shard]:
        """Return the shard, or its halves in its place if the provider's queue can never have room for it."""
        is_too_large = shard.room.most_tokens is not None and shard.tokens > shard.room.most_tokens
        if not is_too_large or shard.requests < 2 * least:
            return [shard]
        return self._split(shard, halve(shard, least))

    def _split(self, shard: Shard, is_first: Callable[[str, bytes], bool]) -> tuple[Shard, Shard]:
        """Split a planned shard; return both halves as planned in its place."""
        self._lease.check()
        ledger, payloads = self._deployment.ledger, self._deployment.payloads
        wave = [other.number for other in ledger.shards.of_submission(shard.submission_id) if other.wave == shard.wave]
        estimate = self._deployment.estimate(self._labeling.by(f"{shard.provider}/{shard.model}"))
        dearest = estimate.most_usd(shard.input_bound, shard.lane)
        halves = split_requests(payloads, shard, max(wave) + 1, is_first, dearest)
        # The counts cannot be divided between the halves.
        rest, half = (replace(each, asked_again=None) for each in halves)
        # The split is recorded before either is sent. If the process is killed before this, the next one overwrites the
        # files.
        ledger.shards.split(shard, rest, half)
        # Without these receipts, an older ledger from a backup could send neither half: the file of the whole is
        # deleted.
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
                    going, file_ids = self._with_documents(labeling, [shard]) if shard.has_uploads else ([shard], None)
                    for each in going:
                        answerer.answer(each, file_ids)
            return
        least, going = self._least(labeling), list[Shard]()
        requests = count_requests(batch)
        is_padded = labeling.limits.below_minimum == "pad"
        with ExitStack() as queue:
            # If another process fills the queue now, the whole batch waits for the next time. A lost lease of the
            # submission is an error of this process, like shards sent by another process.
            with suppress(LeaseError):
                queue.enter_context(_queue(self._deployment, batch[0]))
                going = self._that_fit(batch, min(least, requests), fill_up_to=least if is_padded else 0)
            waiting = batch[len(going) :]
            if going:
                has_uploads = any(shard.has_uploads for shard in going)
                ready, file_ids = self._with_documents(labeling, going) if has_uploads else (going, None)
                if ready:
                    self._sender.send(ready, labeling.spec, least if is_padded else 0, file_ids)
        self._for_place.update(shard.submission_id for shard in waiting)

    def _with_documents(self, labeling: Labeling, shards: list[Shard]) -> tuple[list[Shard], Mapping[str, str] | None]:
        """Upload the documents of these shards; return the shards that can be sent, and the ids of the documents.

        All shards wait if the provider is busy. Requests whose document it refuses are dropped.
        """
        # Few datasets upload documents.
        from dagster_llm_batch.loop.document_uploads import DocumentUploader, divide_refused  # noqa: PLC0415

        # Documents are rows, too: settings may have changed since the shards were planned.
        model = f"{shards[0].provider}/{labeling.spec.model}"
        self._deployment.destinations.check(f"Submission {shards[0].submission_id}", model, labeling.spec.params)
        stored = DocumentUploader(self._deployment, shards).upload_or_delay()
        if stored is None:
            return [], None
        ready, refused = divide_refused(self._deployment.payloads, shards, stored, self._split)
        for shard, words in refused:
            drop(self._deployment, [shard], Reason.DOCUMENT, f"a document was not uploaded: {words}")
        return ready, stored.ids

    def _that_fit(self, batch: list[Shard], at_least: int, fill_up_to: int) -> list[Shard]:
        """Return the first shards for which the queue and the limits have room together, with padding.

        Empty if they have fewer than `at_least` requests, unless they are padded. There is room for each submission
        alone, but the first ones of a shared batch take it.
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
            self._pause_for_money(batch, BUDGET_PAUSE, "the limits leave too little money for a batch of these")
        return []

    def _tell_of_waiting(self, for_time: Collection[str]) -> None:
        """Record once for each submission why shards stay planned, as its last event here."""
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
        # A repeated event is no news.
        if read_event(self._deployment.ledger.events.last_of(submission_id)) != waits:
            self._deployment.ledger.events.add(submission_id, waits)

    def _give_up_places(self, submission_id: str) -> None:
        """Record the shards that lack money. They hold no place in a queue, and runs are not requested for them.

        Otherwise shards with money would wait behind them, while they wait for a bill.
        """
        now, ledger = self._deployment.clock(), self._deployment.ledger
        planned = [shard for shard in ledger.shards.of_submission(submission_id) if shard.state is ShardState.PLANNED]
        lacking = [shard for shard in planned if shard.shard_id not in self._affordable_ids and due(shard, now)]
        if ids := [shard.shard_id for shard in lacking if shard.reason_kind is not Reason.LACKS_MONEY]:
            ledger.queues.give_up_places(ids)

    def _is_unavailable(self, submission_id: str, model: str) -> None:
        """Add the event, unless it is the last one already. The sensor then waits longer before it requests a run."""
        ledger = self._deployment.ledger
        if ledger.events.last_of(submission_id).kind not in (UNAVAILABLE, Transition.NOT_SENT.value):
            words = f"{model} turns calls in real time away; the rest is asked later"
            ledger.events.add(submission_id, Unavailable(words))

    def give_up(self, planned: Sequence[Shard], *, late: bool) -> list[Shard]:
        """Drop the shards that a batch cannot answer in time; return the others.

        After the deadline, all are dropped. With a fallback, shards that their provider has not accepted for
        `fallback_after` are dropped.
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
        """Return the shards of the model and of present fallbacks; drop the shards of removed fallbacks."""
        models = {labeling.model for labeling in self._labeling.models}
        gone = [shard for shard in planned if f"{shard.provider}/{shard.model}" not in models]
        drop(self._deployment, gone, Reason.NO_FALLBACK, "its model is no fallback any more")
        return [shard for shard in planned if shard not in gone]

    def _is_down(self, shard: Shard) -> bool:
        is_last = self._labeling.models[-1].model == f"{shard.provider}/{shard.model}"
        # With most_tokens, its queue is full of our batches, or the shard is too large: the provider is not down.
        if is_last or shard.reason_kind is None or shard.room.most_tokens is not None:
            return False
        since: datetime | None = None
        now = self._deployment.clock()
        for event in self._deployment.ledger.events.of_submission(shard.submission_id):
            # A later time than now was written by a wrong clock.
            if event.shard_id == shard.shard_id and event.kind == Transition.NOT_SENT.value and event.at <= now:
                since = since or event.at
            elif event.shard_id == shard.shard_id and event.kind == Transition.ACCEPTED.value:
                since = None
        return since is not None and now - since >= self._labeling.resend.fallback_after


def drop(deployment: Deployment, planned: Sequence[Shard], kind: Reason, words: str) -> None:
    """Cancel planned shards, so that they are never sent."""
    for shard in planned:
        if shard.state is ShardState.PLANNED:
            fields: ShardFields = {"status": BatchStatus.CANCELED, "reason": words, "reason_kind": kind}
            fields["ended_at"] = deployment.clock()
            if shard.lane is Lane.REALTIME and deployment.payloads.exists(beside(shard, SO_FAR)):
                # A part of it was asked: with a time of sending, its answers count.
                fields["sent_at"] = deployment.clock()
            # If another process has just sent it, it is collected later.
            with suppress(IllegalTransitionError):
                deployment.ledger.shards.move(shard.shard_id, Transition.CANCELED, **fields)


def can_go(deployment: Deployment, planned: Sequence[Shard], lines: QueueLines, *, late: bool) -> bool:
    """Return whether one of a submission's planned shards may be sent now, or is dropped because it is too late."""
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
    # A queue keeps its order: if the first shard has to wait, the others wait, too. Within the tuner's choice, the
    # smallest shard is decisive. Checking thousands of shards would exceed Dagster's time limit for a tick.
    first = deployment.ledger.queues.first_of(shards) if _limit(deployment, shards[0])[0] else shards[0]
    chosen = {shard.room.most_at_once for shard in shards}
    loosest = None if None in chosen else max(filter(None, chosen), default=0)
    smallest = min(shards, key=lambda shard: shard.tokens)
    smallest = replace(smallest, room=replace(smallest.room, most_at_once=loosest))
    if not (_is_within_declared(deployment, [first], lines) and _is_within_chosen(deployment, [smallest])):
        return False
    return any(has_room(deployment, [shard], lines) for shard in shards)


def _waits_for_money(deployment: Deployment, last: Event) -> bool:
    """Return whether the rest of a submission waits for the bills of its earlier shards."""
    waits = read_event(last)
    if not isinstance(waits, Waits) or waits.for_place or waits.money is None:
        return False
    now = deployment.clock()
    return any(
        not due(shard, now) if shard.state is ShardState.PLANNED else shard.state is not ShardState.COLLECTED
        for shard in deployment.ledger.shards.of_submission(last.submission_id)
    )


def _turned_away(planned: Sequence[Shard], now: datetime) -> set[tuple[str, str]]:
    """Return the models that turn away real-time calls until a later time. One shard of each model has that time."""
    return {_target(shard) for shard in planned if shard.lane is Lane.REALTIME and not due(shard, now)}


def due(shard: Shard, now: datetime) -> bool:
    """Return whether the shard may be sent as far as its own pause is concerned.

    A time further ahead than any pause was set by a wrong clock.
    """
    return shard.waits_until is None or not now < shard.waits_until <= now + LONGEST_PAUSE


def _together(shards: Sequence[Shard], limits: BatchLimits) -> Iterator[list[Shard]]:
    """Yield the shards in the fewest batches that their order and the limits allow."""
    batch: list[Shard] = []
    most = limits.max_requests if limits.max_inputs is None else min(limits.max_requests, limits.max_inputs)
    for shard in shards:
        requests = count_requests(batch) + shard.requests
        size = sum(held.bytes for held in batch) + shard.bytes
        tokens = sum(held.tokens for held in batch) + shard.tokens
        bounds = [limits.max_tokens, *(held.room.most_tokens for held in (*batch, shard))]
        # If a vendor requires a number of requests, the remainder might be a batch of too few.
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
    """Hold the lease of the provider's queue, if it has a limit. Otherwise two processes could take the same room."""
    if _limit(deployment, shard)[0] is None:
        return nullcontext()
    name = f"queue:{shard.provider}:{shard.account}"
    return deployment.ledger.leases.hold(name, wait_seconds=deployment.lease_wait_seconds)


def count_queue_rounds(shards: Sequence[Shard], limit: QueueLimit) -> int:
    """Return in how many steps a limit lets these batches into an empty queue, each after the end of the last."""
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
    """Return whether the queue has room for this batch after longer waits, now or when `lines` were read."""
    return _is_within_declared(deployment, batch, lines) and all(
        has(deployment, batch) for has in (_is_within_chosen, _is_expected)
    )


def _is_within_chosen(deployment: Deployment, batch: Sequence[Shard]) -> bool:
    """Return whether the model's tokens in flight would stay within the tuner's choice from earlier batches."""
    most = _most_at_once(deployment, batch)
    if most is None:
        return True
    beside = _tokens_beside(deployment, batch)
    # A batch goes if it is alone: only the provider can decide whether it fits.
    return not beside or beside + sum(shard.tokens for shard in batch) <= most


def _most_at_once(deployment: Deployment, batch: Sequence[Shard]) -> int | None:
    most = min((shard.room.most_at_once for shard in batch if shard.room.most_at_once is not None), default=None)
    if most is None:
        return None
    planned_at = deployment.ledger.submissions.get(batch[0].submission_id).created_at
    return most if deployment.clock() < planned_at + _CHOSEN_FOR else None


def _is_expected(deployment: Deployment, batch: Sequence[Shard]) -> bool:
    """Return whether the provider may have room again after its queue was full for one of these shards.

    Two conditions must hold. The tokens in flight would be fewer than the number that was found to be too many. And
    other batches are not testing the room: their results are known, and the pause after the last rejection is over.
    """
    if all(shard.room.no_room_at is None for shard in batch):
        return True
    tokens, now = sum(shard.tokens for shard in batch), deployment.clock()
    most = min((shard.room.most_tokens for shard in batch if shard.room.most_tokens is not None), default=None)
    beside = _tokens_beside(deployment, batch)
    if beside and most is not None and beside + tokens > most:
        return False
    own, occupancy = {shard.shard_id for shard in batch}, deployment.queue_occupancy(batch[0])
    others = deployment.ledger.queues.without_room(deployment.namespace, batch[0], occupancy)
    return not any(
        not due(other, now) if other.state is ShardState.PLANNED else not _is_taken(other, now)
        for other in others
        if other.shard_id not in own
    )


def _tokens_beside(deployment: Deployment, batch: Sequence[Shard]) -> int:
    return deployment.ledger.queues.tokens_beside(batch, deployment.queue_occupancy(batch[0]))


def _is_taken(shard: Shard, now: datetime) -> bool:
    """Return whether the provider has certainly accepted the batch of a shard in flight."""
    if shard.batch.status not in (None, BatchStatus.PENDING):
        return True
    return shard.batch.submitted_at is not None and now - shard.batch.submitted_at >= _TAKEN_AFTER


def _is_within_declared(deployment: Deployment, batch: Sequence[Shard], lines: QueueLines | None) -> bool:
    limit, model = _limit(deployment, batch[0])
    if limit is None:
        return True
    occupancy = deployment.queue_occupancy(batch[0])
    ahead = (lines or deployment.ledger.queues).count_ahead(
        deployment.namespace, batch, occupancy=occupancy, longest_pause=LONGEST_PAUSE, model=model
    )
    own = _queued(batch, batches=1)
    # A shard that exceeds the limit alone would wait for ever: only the provider can decide whether it fits.
    is_alone = not ahead.batches and len(batch) == 1
    return is_alone or limit.allows(*map(sum, zip(ahead, own, strict=True)))


def keep_places(deployment: Deployment, assets: Sequence[str]) -> None:
    """Record that a process handles the waiting shards of these assets, if queues are limited."""
    if deployment.queue_limits:
        now = deployment.clock()
        deployment.ledger.queues.keep_places(deployment.namespace, assets, now=now, unless_since=now - _SAY_EVERY)


def _limit(deployment: Deployment, shard: Shard) -> tuple[QueueLimit | None, str | None]:
    return deployment.queue_limit(shard.provider, shard.model)


def _size_without_room(shard: Shard) -> tuple[bool, int]:
    """Return a sort key that puts shards after a full queue last.

    The smallest of several requests comes first. A single request may be too large for good, and must not hold up the
    others.
    """
    return (False, 0) if shard.room.no_room_at is None else (shard.requests == 1, shard.tokens)


def _target(shard: Shard) -> tuple[str, str]:
    return f"{shard.provider}/{shard.model}", shard.lane.value
