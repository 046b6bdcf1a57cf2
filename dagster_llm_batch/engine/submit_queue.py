"""Which planned shards go now, and how: together where they fit, as the provider's queue has room, or in real time."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from dagster_llm_batch.core.sharding import tightest
from dagster_llm_batch.engine.deployment import Deployment, Threads
from dagster_llm_batch.engine.labeling import Labeling
from dagster_llm_batch.engine.realtime import Answerer
from dagster_llm_batch.engine.request_files import SO_FAR, beside
from dagster_llm_batch.engine.rules import QueueLimit
from dagster_llm_batch.engine.submit import Sender
from dagster_llm_batch.errors import ConfigError, IllegalMoveError, LeaseError
from dagster_llm_batch.states import Move, ShardState
from dagster_llm_batch.storage.ledger.leases import Lease
from dagster_llm_batch.storage.ledger.records import Shard, ShardFields
from dagster_llm_batch.types import BatchStatus, Lane, Limits

__all__ = ["UNAVAILABLE", "WAITS", "Dispatcher", "can_go", "drop", "keep_places"]

WAITS = "waits"
"""The event of a submission that leaves shards planned, since they may not go yet."""

UNAVAILABLE = "unavailable"
"""The event of a submission whose provider does not answer now."""

_PLACE_KEPT = timedelta(hours=1)  # unless somebody looks after it: nobody may ever send what a removed asset planned
_SAY_EVERY = timedelta(minutes=10)

_SHARDS_IN_A_BATCH = 200  # their result files are open at once when the batch comes home


class Dispatcher:
    """Sends planned shards of one labeling, of one or of several submissions, all of whose leases the caller holds."""

    def __init__(self, labeling: Labeling, deployment: Deployment, lease: Lease) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._lease = lease
        self._sender = Sender(deployment)
        self._answerers: dict[str, Answerer] = {}  # by model: each knows how long it is to wait

    def send(self, planned: Sequence[Shard]) -> None:
        """Send what can go now. What cannot stays planned, and an event says that it waits.

        A batch below the provider's least number that shall not be sent raises ConfigError before anything is sent.
        Where all of it was asked before, it is given up instead, and an event says so: what came must still land.
        """
        batches: list[tuple[Labeling, list[Shard]]] = []
        turned_away = _turned_away(planned, self._deployment.clock())
        for (model, lane), shards in groupby(sorted(planned, key=_target), key=_target):
            labeling = self._labeling.by(model)
            if (model, lane) in turned_away:
                for submission_id in {shard.submission_id for shard in shards}:
                    self._waits(submission_id)
            elif lane == Lane.REALTIME:
                batches += [(labeling, [shard]) for shard in shards]
            else:
                batches += [(labeling, batch) for batch in self._batches(labeling, list(shards))]
        if batches:
            keep_places(self._deployment, [self._labeling.asset])
        self._send_at_once([one for one in batches if not self._waits_its_turn(*one)])
        for labeling, batch in batches:
            if self._waits_its_turn(labeling, batch):
                self._send(labeling, batch)

    def _send_at_once(self, batches: Sequence[tuple[Labeling, list[Shard]]]) -> None:
        """Some uploads at a time. After an error those that have begun go on to their end, and no other one begins."""
        if len(batches) < 2:  # noqa: PLR2004  # in this thread: it can be interrupted
            for labeling, batch in batches:
                self._send(labeling, batch)
            return
        failed = threading.Event()

        def send(labeling: Labeling, batch: list[Shard]) -> None:
            if failed.is_set():  # before this thread's next one is cancelled
                return
            try:
                self._send(labeling, batch)
            except BaseException:
                failed.set()
                raise

        with Threads(self._deployment.transfers_at_once, "dagster-llm-batch upload") as pool:
            sending = [pool.submit(send, labeling, batch) for labeling, batch in batches]
            wait(sending, return_when=FIRST_EXCEPTION)
        for one in sending:
            if not one.cancelled():
                one.result()

    def _waits_its_turn(self, labeling: Labeling, batch: list[Shard]) -> bool:
        """Whether it goes in real time, or into a queue whose room is counted before each."""
        return self._is_realtime(labeling, batch) or _limit(self._deployment, batch[0])[0] is not None

    def _is_realtime(self, labeling: Labeling, batch: list[Shard]) -> bool:
        small = sum(shard.requests for shard in batch) < self._least(labeling)
        return batch[0].lane is Lane.REALTIME or (small and labeling.below_minimum == "realtime")

    def _least(self, labeling: Labeling) -> int:
        return self._deployment.codec(labeling).limits.min_requests

    def _batches(self, labeling: Labeling, shards: list[Shard]) -> Iterator[list[Shard]]:
        limits = tightest(
            self._deployment.codec(labeling).limits, labeling.max_requests_per_batch, labeling.max_bytes_per_batch
        )
        now = self._deployment.clock()
        for batch in _together([shard for shard in shards if due(shard, now)], limits):
            requests = sum(shard.requests for shard in batch)
            if requests >= limits.min_requests or labeling.below_minimum != "refuse":
                yield batch
                continue
            why = (
                f"a batch of {labeling.model} takes at least {limits.min_requests} requests; these are {requests}. "
                "Set below_minimum='pad' (copies that are paid for fill it up) or 'realtime' (answered at once, at the "
                "price of real time), or send more rows together."
            )
            if any(shard.wave == 1 for shard in batch):
                raise ConfigError(f"'{labeling.asset}': {why} Nothing was sent.")
            for submission_id in {shard.submission_id for shard in batch}:
                self._deployment.ledger.add_event(submission_id, "below_minimum", f"not sent again: {why}")
            drop(self._deployment, batch, "it was not sent again: too few requests for a batch")
        for submission_id in {shard.submission_id for shard in shards if not due(shard, now)}:
            self._waits(submission_id)

    def _send(self, labeling: Labeling, batch: list[Shard]) -> None:
        self._lease.check()
        if self._is_realtime(labeling, batch):
            answerer = self._answerers.setdefault(labeling.model, Answerer(labeling, self._deployment))
            for shard in batch:
                if answerer.is_turned_away:
                    self._is_unavailable(shard.submission_id, labeling.model)
                else:
                    answerer.answer(shard)
            return
        least, waiting = self._least(labeling), batch
        requests = sum(shard.requests for shard in batch)
        with suppress(LeaseError), _queue(self._deployment, batch[0]):  # another process fills it: the next time
            is_padded = labeling.below_minimum == "pad"
            going = self._that_fit(batch, at_least=1 if is_padded else min(least, requests))
            waiting = batch[len(going) :]
            if going:
                self._sender.send(going, labeling.spec, fill_up_to=least if is_padded else 0)
        for submission_id in {shard.submission_id for shard in waiting}:
            self._waits(submission_id)

    def _that_fit(self, batch: list[Shard], at_least: int) -> list[Shard]:
        """The first of these, as many as may go as one batch now; none where that is too few requests."""
        going = list(batch)
        while going and not has_room(self._deployment, going):
            going.pop()
        return going if sum(shard.requests for shard in going) >= at_least else []

    def _waits(self, submission_id: str) -> None:
        if self._deployment.ledger.last_event(submission_id).kind != WAITS:
            self._deployment.ledger.add_event(submission_id, WAITS, "for the provider's queue, or for its time")

    def _is_unavailable(self, submission_id: str, model: str) -> None:
        """Say so, unless that is the last that is known: the sensor takes its time then before it asks for a run."""
        ledger = self._deployment.ledger
        if ledger.last_event(submission_id).kind not in (UNAVAILABLE, Move.NOT_SENT.value):
            ledger.add_event(
                submission_id, UNAVAILABLE, f"{model} turns calls in real time away; the rest is asked later"
            )

    def give_up(self, planned: Sequence[Shard], *, late: bool) -> list[Shard]:
        """Take back what batches of this model will not answer in time; returns what is left to send.

        That is all after the deadline, and what a fallback is there for once the provider has long not taken it.
        """
        left = []
        for shard in planned:
            if shard.lane is Lane.BATCH and (late or self._is_down(shard)):
                why = "the deadline has passed" if late else "its provider does not take it; the next model is asked"
                drop(self._deployment, [shard], why)
            else:
                left.append(shard)
        return left

    def _is_down(self, shard: Shard) -> bool:
        is_last = self._labeling.models[-1].model == f"{shard.provider}/{shard.model}"
        if is_last or shard.reason is None:
            return False
        since: datetime | None = None
        for event in self._deployment.ledger.events(shard.submission_id):
            if event.shard_id == shard.shard_id and event.kind == Move.NOT_SENT.value:
                since = since or event.at
            elif event.shard_id == shard.shard_id and event.kind == Move.ACCEPTED.value:
                since = None
        return since is not None and self._deployment.clock() - since >= self._labeling.fallback_after


def drop(deployment: Deployment, planned: Sequence[Shard], reason: str) -> None:
    """Never send these."""
    for shard in planned:
        if shard.state is ShardState.PLANNED:
            fields: ShardFields = {"status": BatchStatus.CANCELED, "reason": reason, "ended_at": deployment.clock()}
            if shard.lane is Lane.REALTIME and deployment.payloads.exists(beside(shard, SO_FAR)):
                fields["sent_at"] = deployment.clock()  # some of it was asked: its answers count
            with suppress(IllegalMoveError):  # another process has just sent it; it is collected in time
                deployment.ledger.move_shard(shard.shard_id, Move.CANCELED, **fields)


def can_go(deployment: Deployment, planned: Sequence[Shard], *, late: bool) -> bool:
    """Whether one of a submission's planned shards may go now, or is given up now since it is too late for a batch."""
    now = deployment.clock()
    turned_away = _turned_away(planned, now)
    return any(
        _target(shard) not in turned_away
        if shard.lane is Lane.REALTIME
        else late or (due(shard, now) and has_room(deployment, [shard]))
        for shard in planned
    )


def _turned_away(planned: Sequence[Shard], now: datetime) -> set[tuple[str, str]]:
    """Models that turned calls in real time away, until a time that has not come: one shard has it for all of them."""
    return {_target(shard) for shard in planned if shard.lane is Lane.REALTIME and not due(shard, now)}


def due(shard: Shard, now: datetime) -> bool:
    """Whether its time has come."""
    return shard.waits_until is None or shard.waits_until <= now


def _together(shards: Sequence[Shard], limits: Limits) -> Iterator[list[Shard]]:
    """The shards in as few batches as their order and the limits allow."""
    batch: list[Shard] = []
    most = limits.max_requests if limits.max_inputs is None else min(limits.max_requests, limits.max_inputs)
    for shard in shards:
        requests = sum(one.requests for one in batch) + shard.requests
        size = sum(one.bytes for one in batch) + shard.bytes
        if batch and (requests > most or size > limits.max_bytes or len(batch) == _SHARDS_IN_A_BATCH):
            yield batch
            batch = []
        batch.append(shard)
    if batch:
        yield batch


def _queue(deployment: Deployment, shard: Shard) -> AbstractContextManager[Any]:
    """Hold the queue of this shard's provider, if it has a limit: two processes must not take the same room."""
    if _limit(deployment, shard)[0] is None:
        return nullcontext()
    name = f"queue:{shard.provider}:{shard.account}"
    return deployment.ledger.hold_leases(name, wait_seconds=deployment.lease_wait_seconds)


def has_room(deployment: Deployment, batch: Sequence[Shard]) -> bool:
    """Whether this batch may go: beside what is in the queue, and after what has waited longer."""
    limit, model = _limit(deployment, batch[0])
    if limit is None:
        return True
    own = {shard.shard_id for shard in batch}
    now = deployment.clock()
    before = deployment.ledger.queued_shards(deployment.namespace, batch[0], seen_since=now - _PLACE_KEPT, model=model)
    ahead = [shard for shard in before if shard.shard_id not in own and due(shard, now)]
    everything = [*ahead, *batch]
    taken = {
        "max_batches": len({shard.carrier or shard.shard_id for shard in ahead}) + 1,
        "max_requests": sum(shard.requests for shard in everything),
        "max_tokens": sum(shard.tokens for shard in everything),
    }
    most = {name: getattr(limit, name) for name in taken}
    fits = all(most[name] is None or count <= most[name] for name, count in taken.items())
    return fits or (not ahead and len(batch) == 1)  # what is alone over the limit is for the provider to judge


def keep_places(deployment: Deployment, assets: Sequence[str]) -> None:
    """Say that somebody looks after what waits of these assets, where queues are limited."""
    if deployment.queue_limits:
        now = deployment.clock()
        deployment.ledger.keep_places(deployment.namespace, assets, now=now, unless_since=now - _SAY_EVERY)


def _limit(deployment: Deployment, shard: Shard) -> tuple[QueueLimit | None, str | None]:
    """The limit that holds for the shard, and the model that it counts; None: all of the provider's."""
    limits = deployment.queue_limits
    if (own := limits.get(f"{shard.provider}/{shard.model}")) is not None:
        return own, shard.model
    return limits.get(shard.provider), None


def _target(shard: Shard) -> tuple[str, str]:
    return f"{shard.provider}/{shard.model}", shard.lane.value
