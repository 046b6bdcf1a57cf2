"""Submits shards as batches, each at most once. The intent is committed before the effect:

    planned ── commit `submitting` ──▶ create call ──▶ commit `submitted`
                                   └─ no trustworthy reply ─▶ stays `submitting` until `recover_batches` finds it or is
                                                              certain that there is none

No batch is ever created for a shard that is not `planned`. The shards of one batch, of one or of several submissions,
make each move together, in one order: the batch has the tag of the first. The caller holds the leases of all.

A create call that left no record may have made a batch that is paid for. `Engine.recover_batches` finds most of these;
those that it cannot find wait for a person (`Engine.resolve`). What the ledger itself lost is recovered by receipts
(`receipts.py`).

The request files of a batch are sent as one stream, which unpacks them as it is read; no line is copied:

    shard, shard, …, padding ─▶ digests compared ─▶ a stream that can seek and knows its size
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import groupby
from typing import Any, BinaryIO, cast

from dagster_llm_batch.core.identity import custom_id, padding_id
from dagster_llm_batch.errors import (
    AmbiguousError,
    CannotTellError,
    ConfigError,
    CredentialsError,
    IllegalMoveError,
    LeaseError,
    LedgerError,
    LLMBatchError,
    NoRoomError,
    PayloadError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.files.request_files import RAW, SENT, beside, renamed, requests_of
from dagster_llm_batch.loop.deployment import LONGEST_PAUSE, Deployment
from dagster_llm_batch.loop.receipts import write_receipts
from dagster_llm_batch.providers.capabilities import cancel_batch
from dagster_llm_batch.states import Move, Reason, ShardState
from dagster_llm_batch.storage.ledger.events import Ambiguous, PutBack, StrayBatch, read_event
from dagster_llm_batch.storage.ledger.leases import Lease
from dagster_llm_batch.storage.ledger.records import Shard, ShardFields
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.text import money_text
from dagster_llm_batch.types import Absent, BatchStatus, Cause, FindHints, Found, Lane, RequestSpec, Undecided

__all__ = ["REFUSALS_MOST", "Sender", "outgoing", "plan_next_try"]

# The SDKs read so much at once: a buffer of the same size is handed to them without another copy.
_BUFFER_BYTES = 1 << 16


@contextmanager
def outgoing(payloads: PayloadStore, shards: Sequence[Shard], padding: int) -> Iterator[BinaryIO]:
    """Open the lines of the shards, and of `padding` copies of a request with custom_ids that belong to no row.

    Raises LLMBatchError, before anything can be read, where a request file is not the one that was planned.
    """
    with ExitStack() as stack:
        files = [_planned(stack, payloads, shard) for shard in shards]
        copies = _copies(payloads, shards[0], padding)

        def streams() -> Iterator[BinaryIO]:
            for file in files:
                with file() as stream:
                    yield stream
            yield from map(io.BytesIO, copies())

        size = sum(shard.bytes for shard in shards) + sum(map(len, copies()))
        yield stack.enter_context(io.BufferedReader(_Joined(streams, size), _BUFFER_BYTES))


def _planned(stack: ExitStack, payloads: PayloadStore, shard: Shard) -> Callable[[], BinaryIO]:
    try:
        return stack.enter_context(payloads.checked(shard.path, shard.digest))
    except OSError as error:
        msg = (
            f"The request file {shard.path} cannot be read as it was planned, so nothing was sent: {error} "
            "Restore it in the payload store, or cancel the submission and plan it again."
        )
        raise LLMBatchError(msg) from error


def _copies(payloads: PayloadStore, shard: Shard, padding: int) -> Callable[[], Iterator[bytes]]:
    """Return a function that yields copies of the shard's shortest request, which cost least."""
    if not padding:
        return lambda: iter(())
    request_id, line = min(requests_of(payloads, shard.path, shard.nonce), key=lambda request: len(request[1]))
    own = custom_id(shard.nonce, request_id)
    return lambda: (renamed(line, own, padding_id(number), shard.nonce) for number in range(padding))


class _Joined(io.RawIOBase):
    """Streams one after another, as one that can seek.

    SDKs seek to learn its size, and the sender to start a second call. `streams` opens all streams anew, each at its
    start; they have `size` bytes in all.
    """

    def __init__(self, streams: Callable[[], Iterator[BinaryIO]], size: int) -> None:
        self._make = streams
        self._size = size
        self._at = 0
        self._restart()

    def _restart(self) -> None:
        self._streams = self._make()
        self._stream = next(self._streams, None)
        self._passed = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        """Note the position. The streams are moved when more is read."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        if self._passed > self._at:
            self._restart()
        while self._passed < self._at:
            if not self._fill(bytearray(min(_BUFFER_BYTES, self._at - self._passed))):
                return 0
        count = self._fill(buffer)
        self._at += count
        return count

    def _fill(self, buffer: Any) -> int:
        while self._stream is not None:
            if count := cast("Any", self._stream).readinto(buffer):
                self._passed += count
                return int(count)
            self._stream = next(self._streams, None)
        return 0


# So often in a row a submission's batches are not taken, whichever of its requests are in them: a day and a half of
# tries, each after a longer wait. Neither another wave nor a split makes it more.
REFUSALS_MOST = 40

# So often a provider that does not say what is too much must refuse a batch before it counts as too large.
_UNSURE_REFUSALS = 3


def plan_next_try(
    deployment: Deployment,
    shards: Sequence[Shard],
    reason: str | None,
    *,
    smaller_helps: bool | None,
) -> ShardFields | None:
    """Return what planned shards are to know whose batch the provider did not take; None where that was often enough.

    Its queue was full. `smaller_helps`: see NoRoomError.

    Where other batches of the model were in flight, there is room when these have ended: the batch waits until no more
    is in flight, with it, than the provider has taken so far. One that was refused alone never passes: with fewer
    `most_tokens` than it has, it is split before it is sent again. A single request that is refused alone, while others
    were taken, is too large for good.
    """
    ledger, now = deployment.ledger, deployment.clock()
    refusals = 1 + max(
        _refusals(ledger.shards.of_submission(name)) for name in {shard.submission_id for shard in shards}
    )
    if refusals > REFUSALS_MOST:
        return None
    pause = min(LONGEST_PAUSE, timedelta(minutes=2 ** min(refusals - 1, 10)))
    fields: ShardFields = {"reason": reason, "refusals": refusals, "waits_until": now + pause}
    first, tokens = shards[0], sum(shard.tokens for shard in shards)
    sent_at = min((shard.batch.sent_at for shard in shards if shard.batch.sent_at is not None), default=now)
    tokens_since = partial(ledger.queues.tokens_beside, shards, deployment.presence(first))
    beside = tokens_since(since=sent_at)
    is_too_large = smaller_helps or (smaller_helps is None and refusals >= _UNSURE_REFUSALS)
    most: int | None = None
    if beside:
        most = max(beside, tokens)
    elif len(shards) > 1 and is_too_large:
        # Only together they were too many: each of them may go by itself.
        most = max(tokens // 2, *(shard.tokens for shard in shards))
    elif first.requests > 1 and is_too_large:
        most = tokens - 1
    elif smaller_helps and first.room.no_room_at is not None and tokens_since(since=first.room.no_room_at):
        return None
    return {**fields, "no_room_at": now, "most_tokens": most, "refused_at": now, "refused_tokens": beside + tokens}


def _refusals(shards: Sequence[Shard]) -> int:
    """Return how often in a row batches of a submission were not taken. One that has ended begins a new count.

    Not of those that fail for now: they do so after they were taken.
    """
    ends = [shard.ended_at for shard in shards if shard.batch.status in _ENDED_WELL and shard.ended_at is not None]
    last = max(ends, default=None)
    counted = (s for s in shards if s.room.no_room_at is None or last is None or s.room.no_room_at > last)
    return max((shard.refusals for shard in counted), default=0)


# The last events of a sending before this one. Older code has written that of the present one, too.
_BEFORE = (Move.SEND.value, Move.NOT_SENT.value, Move.PUT_BACK.value)
_ENDED_WELL = (BatchStatus.ENDED, BatchStatus.EXPIRED)
_TRIES = 3
_LONGEST_PAUSE_SECONDS = 30.0


class Sender:
    """Send shards as batches, and find batches whose create call left no record."""

    def __init__(
        self, deployment: Deployment, lease: Lease, reserve: Callable[..., bool] = lambda *_, **__: True
    ) -> None:
        self._deployment = deployment
        self._ledger = deployment.ledger
        self._lease = lease
        self._reserve = reserve

    def send(self, shards: Sequence[Shard], spec: RequestSpec, fill_up_to: int = 0) -> None:
        """Send planned shards of one owner as one batch, filled up to `fill_up_to` requests with copies of one.

        Afterwards they are `submitted`, `planned` (the provider is busy, its queue full, or a limit has no room, as
        `reserve` says), `submitting` (nobody knows yet) or `failed` (the provider refused them for good, or too often).
        Raises CredentialsError or ConfigError with the shards `planned` again.
        """
        ids = [shard.shard_id for shard in shards]
        provider = self._deployment.provider_of(shards[0])
        # Settings may have changed since these shards were planned.
        model = f"{shards[0].provider}/{spec.model}"
        self._deployment.destinations.check(f"Submission {shards[0].submission_id}", model, spec.params)
        padding = max(0, fill_up_to - count_requests(shards))
        with outgoing(self._deployment.payloads, shards, padding) as lines:
            for last in [False] * (_TRIES - 1) + [True]:
                lines.seek(0)
                if not self._reserve(shards, padding=padding):
                    return
                now = self._deployment.clock()
                # Committed before the call: a process that dies after this leaves the shards in `submitting`, whose
                # batch is looked for at the provider. If committed after it, a batch could exist that nobody knows.
                sent = self._ledger.shards.move_all(ids, Move.SEND, sent_at=now, padding=padding)
                try:
                    # Nor is the receipt of another process's sending replaced.
                    self._lease.check()
                    write_receipts(self._deployment, [*sent, *self._untold_halves(sent)])
                    # A process that was frozen for longer than its lease wakes here, or anywhere before: another one
                    # may have sent these shards since. Between this line and the provider nothing can be asked.
                    self._lease.check()
                    batch_id = provider.submit(lines, spec, self._deployment.tag(shards[0]))
                # Any error but AmbiguousError means that no batch exists (see Provider.submit).
                except TransientError as error:
                    # Each try uploads the file: a full queue is not asked again before there may be room.
                    if isinstance(error, NoRoomError) and (last or error.retry_after_seconds is None):
                        self._had_no_room(sent, error)
                        return
                    self._ledger.shards.move_all(
                        ids, Move.NOT_SENT, batch_key=sent[0].batch.batch_key, reason=str(error)
                    )
                    if last:
                        return
                    self._deployment.sleep(min(error.retry_after_seconds or 1.0, _LONGEST_PAUSE_SECONDS))
                except (CredentialsError, ConfigError, PayloadError) as error:
                    self._ledger.shards.move_all(
                        ids, Move.NOT_SENT, batch_key=sent[0].batch.batch_key, reason=str(error)
                    )
                    raise
                except RefusedError as error:
                    self._refused(sent, str(error), spec, fill_up_to)
                    return
                except AmbiguousError as error:
                    self._ledger.events.add(shards[0].submission_id, Ambiguous(str(error)), ids[0])
                    self._recover_batch(sent)
                    return
                else:
                    self._record(sent, batch_id)
                    return

    def _untold_halves(self, sent: Sequence[Shard]) -> list[Shard]:
        """Return planned halves of what these are halves of, too, that have no receipt: their process was killed."""
        submissions = {shard.submission_id for shard in sent if shard.room.most_tokens is not None}
        planned = (
            shard
            for one in submissions
            for shard in self._ledger.shards.of_submission(one)
            if shard.state is ShardState.PLANNED
        )
        refused = (shard for shard in planned if shard.room.most_tokens is not None)
        return [shard for shard in refused if not self._deployment.payloads.exists(beside(shard, SENT))]

    def _record(self, shards: Sequence[Shard], batch_id: str) -> None:
        """Record a batch that was created now; cancel it where another process has sent the shards meanwhile.

        Raises LeaseError then: this process was frozen in its create call for longer than its lease.
        """
        try:
            self._accepted(shards, batch_id)
        except IllegalMoveError as error:
            known = self._ledger.shards.get(shards[0].shard_id).batch.batch_id
            if known == batch_id:
                # The other process has found it at the provider.
                return
            told = self._stop_stray(shards, batch_id, known)
            self._ledger.events.add(shards[0].submission_id, StrayBatch(batch_id, told), shards[0].shard_id)
            raise LeaseError(f"Shard {shards[0].shard_id} was sent by another process meanwhile. {told}") from error
        except LedgerError as error:
            created = f"Batch {batch_id} was created for shard {shards[0].shard_id}, which is in doubt"
            raise LedgerError(f"{created}, since the ledger could not record that: {error}") from error

    def _stop_stray(self, shards: Sequence[Shard], batch_id: str, known: str | None) -> str:
        """Cancel a batch that no shard has; return what was done and what it may cost."""
        try:
            cancel_batch(self._deployment.provider_of(shards[0]), batch_id)
            done = "was canceled"
        except LLMBatchError as error:
            done = f"could not be canceled ({error}): cancel it at the provider's console"
        estimates = [shard.bill.estimated_usd for shard in shards]
        most = None if None in estimates else sum((cost for cost in estimates if cost is not None), Decimal(0))
        cost = "at an unknown cost" if most is None else f"and costs at most {money_text(most)}"
        other = known or "one that is being sent"
        return f"Batch {batch_id}, beside {other}, {done}, {cost}; its answers are not used."

    def _had_no_room(self, shards: Sequence[Shard], error: NoRoomError) -> None:
        """Plan shards again for which the provider's queue had no room; end them where that was often enough."""
        ids, key, reason = [shard.shard_id for shard in shards], shards[0].batch.batch_key, str(error)
        fields = plan_next_try(self._deployment, shards, reason, smaller_helps=error.smaller_helps)
        if fields is not None:
            self._ledger.shards.move_all(ids, Move.NOT_SENT, batch_key=key, **fields)
            return
        now, failed = self._deployment.clock(), BatchStatus.FAILED
        why: ShardFields = {"status": failed, "reason": reason, "ended_at": now, "cause": Cause.NOT_TAKEN}
        self._ledger.shards.move_all(ids, Move.REFUSED, batch_key=key, **why)

    def _refused(self, shards: Sequence[Shard], reason: str, spec: RequestSpec, fill_up_to: int) -> None:
        """Record that a batch was refused. Of several shards each is tried alone: one of them may be the reason."""
        ids, key = [shard.shard_id for shard in shards], shards[0].batch.batch_key
        if len(shards) > 1:
            for shard in self._ledger.shards.move_all(ids, Move.NOT_SENT, batch_key=key, reason=reason):
                self.send([shard], spec, fill_up_to)
            return
        now = self._deployment.clock()
        why: ShardFields = {"status": BatchStatus.FAILED, "reason": reason, "ended_at": now}
        self._ledger.shards.move_all(ids, Move.REFUSED, batch_key=key, **why)

    def recover_batches(self, submission_ids: Sequence[str], held: Collection[str]) -> None:
        """Find out what became of shards whose create call left no record. The caller holds the leases of `held`.

        Afterwards they are `submitted` (found), `planned` (certainly not sent), `submitting` (too early to say) or, in
        the real-time lane, `ended`. Raises CannotTellError where only a person can decide.
        """
        unsure: list[CannotTellError] = []
        doubtful = sorted(self._ledger.shards.sent_with(submission_ids), key=_batch_and_place)
        for _, group in groupby(doubtful, key=lambda shard: shard.batch.batch_key):
            shards = list(group)
            # Others were sent since the leases were taken; they are left to the next time.
            if all(shard.submission_id in held for shard in shards):
                try:
                    self._recover_batch(shards)
                except CannotTellError as error:
                    unsure.append(error)
        if unsure:
            raise unsure[0]

    def _recover_batch(self, shards: Sequence[Shard]) -> None:
        """Recover the shards of one create call, in their order."""
        first, ids, key = shards[0], [shard.shard_id for shard in shards], shards[0].batch.batch_key
        assert first.batch.sent_at is not None  # it is recorded with the intent
        # A real-time call cannot be looked for, and may have been billed: its requests are missing, and go to the next
        # wave where the policy says so.
        if first.lane is Lane.REALTIME:
            kind = Reason.INTERRUPTED
            reason = "the process that asked in real time ended before its answers were stored"
            if self._deployment.payloads.exists(beside(first, RAW)):
                reason = "the ledger had no record of its calls in real time, whose answers are stored"
                kind = Reason.UNRECORDED
            self._answered(shards, kind, reason)
            return
        provider = self._deployment.provider_of(first)
        requests = count_requests(shards) + first.batch.padding
        try:
            hints = FindHints(first.batch.sent_at, requests, first.nonce, self._known(shards))
            answer = provider.find(self._deployment.tag(first), hints)
        except TransientError:
            return
        if isinstance(answer, Found):
            self._accepted(shards, answer.batch_id)
        elif all(self._deployment.payloads.exists(beside(shard, RAW)) for shard in shards):
            # A ledger that was restored from a backup has no record that they were answered.
            self._answered(shards, Reason.UNRECORDED, "the ledger had no record of its batch, whose answers are stored")
        elif isinstance(answer, Absent):
            # For some seconds a provider may not list a batch that it has created.
            if self._deployment.clock() - self._in_doubt_since(first) >= timedelta(seconds=provider.settle_seconds):
                words = "its create call had no answer, and the provider has no batch of it"
                why: ShardFields = {"reason": words, "reason_kind": Reason.NO_BATCH}
                self._ledger.shards.move_all(ids, Move.NOT_SENT, batch_key=key, **why)
        elif not isinstance(answer, Undecided):
            candidates = ", ".join(answer.candidates) or "none named"
            msg = (
                f"Shard {first.shard_id} was being sent at {first.batch.sent_at.isoformat()}, and nobody knows whether "
                f"its batch exists: {answer.reason}. Candidates: {candidates}. Nothing is sent again. Look at the "
                f"provider's console, then run `dagster-llm-batch resolve {first.shard_id} --batch-id …` if it "
                "exists, or `--no-batch` if it does not; in Python, Engine.resolve(shard_id, batch_id or None)."
            )
            raise CannotTellError(msg)

    def _answered(self, shards: Sequence[Shard], kind: Reason, words: str) -> None:
        """Record that nobody can ask for answers to these shards, beside those that are stored."""
        ids, key, now = [shard.shard_id for shard in shards], shards[0].batch.batch_key, self._deployment.clock()
        why: ShardFields = {"status": BatchStatus.ENDED, "ended_at": now, "reason": words, "reason_kind": kind}
        self._ledger.shards.move_all(ids, Move.ANSWERED, batch_key=key, **why)

    def _in_doubt_since(self, first: Shard) -> datetime:
        """Return when the create call was certainly over: when its end was seen, or else now that its process is gone.

        The time of the intent is not that: the upload comes after it, and may take longer than `settle_seconds`.
        """
        now = self._deployment.clock()
        # By the order of the events and not by their times, and of a time that lies ahead anew: a clock that was wrong
        # when it was written must not keep the shard in doubt until then.
        for event in reversed(self._ledger.events.of_submission(first.submission_id)):
            if event.kind in _BEFORE and event.shard_id == first.shard_id:
                break
            if event.kind == Ambiguous.kind and event.shard_id == first.shard_id and event.at <= now:
                return event.at
        gone = Ambiguous("the process that sent it is gone, and no batch of it is known")
        self._ledger.events.add(first.submission_id, gone, first.shard_id)
        return now

    def _known(self, shards: Sequence[Shard]) -> frozenset[str]:
        """Return batches of other shards for certain: all in flight in this namespace, and all of these submissions."""
        others = [*self._ledger.shards.in_flight(self._deployment.namespace)]
        # Request files of what was collected meanwhile are gone, by whose names a batch may be known.
        since = shards[0].batch.sent_at or self._deployment.clock()
        put_back = set(self._ledger.uploads.batches_since(self._deployment.namespace, shards[0], since))
        for submission_id in {shard.submission_id for shard in shards}:
            others += self._ledger.shards.of_submission(submission_id)
            events = self._ledger.events.of_submission(submission_id)
            gone = (data.batch_id for event in events if isinstance(data := read_event(event), PutBack))
            put_back |= {batch_id for batch_id in gone if batch_id is not None}
        return frozenset(other.batch.batch_id for other in others if other.batch.batch_id is not None) | put_back

    def _accepted(self, shards: Sequence[Shard], batch_id: str) -> None:
        ids, key, now = [shard.shard_id for shard in shards], shards[0].batch.batch_key, self._deployment.clock()
        self._ledger.shards.move_all(ids, Move.ACCEPTED, batch_key=key, batch_id=batch_id, submitted_at=now)


def _batch_and_place(shard: Shard) -> tuple[str, int]:
    return shard.batch.batch_key or "", shard.batch.place
