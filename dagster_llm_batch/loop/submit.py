"""Submits shards as batches, each at most once. The intent is committed before the effect:

    planned ── commit `submitting` ──▶ create call ──▶ commit `submitted`
                                   └─ no trustworthy reply ─▶ stays `submitting` until `recover_batches` finds it or is
                                                              certain that there is none

A batch is created only for `planned` shards. The shards of one batch, also of several submissions, change their state
together, in one order. The batch has the tag of the first shard. The caller holds the leases of all submissions.

A create call that left no record may have made a batch that is paid for. `Engine.recover_batches` finds most of these;
the others wait for a person (`Engine.resolve`). Losses of the ledger itself are recovered from receipts
(`receipts.py`).

The request files of a batch are sent as one stream, which unpacks them while it is read; lines are not copied:

    shard, shard, …, padding ─▶ digests compared ─▶ a stream with a known size that can seek
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from itertools import groupby
from typing import Any, BinaryIO, cast

from dagster_llm_batch.core.identity import custom_id, padding_id
from dagster_llm_batch.core.uploads import with_file_ids
from dagster_llm_batch.errors import (
    AmbiguousError,
    ConfigError,
    CredentialsError,
    IllegalTransitionError,
    LeaseError,
    LedgerError,
    LLMBatchError,
    PayloadError,
    QueueFullError,
    RefusedError,
    StatusUnknownError,
    TransientError,
)
from dagster_llm_batch.files.request_files import RAW, SENT, beside, renamed, requests_of
from dagster_llm_batch.loop.deployment import LONGEST_PAUSE, Deployment
from dagster_llm_batch.loop.receipts import write_receipts
from dagster_llm_batch.providers.capabilities import cancel_batch
from dagster_llm_batch.states import Reason, ShardState, Transition
from dagster_llm_batch.storage.ledger.events import Ambiguous, PutBack, StrayBatch, read_event
from dagster_llm_batch.storage.ledger.leases import Lease
from dagster_llm_batch.storage.ledger.records import Shard, ShardFields
from dagster_llm_batch.storage.ledger.shard_rows import count_requests
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.text import money_text
from dagster_llm_batch.types import Absent, BatchStatus, Cause, FindHints, Found, Lane, RequestSpec, Undecided

__all__ = ["REFUSALS_MOST", "Sender", "outgoing", "plan_next_try"]

# The SDKs read this much at once. A buffer of the same size reaches them without another copy.
_BUFFER_BYTES = 1 << 16


@contextmanager
def outgoing(
    payloads: PayloadStore, shards: Sequence[Shard], padding: int, file_ids: Mapping[str, str] | None = None
) -> Iterator[BinaryIO]:
    """Open the lines of the shards, and `padding` copies of a request with custom_ids that belong to no row.

    `file_ids` are the vendor's ids of the documents that the lines name; None: they name none.

    Raises LLMBatchError before anything can be read if a request file differs from the planned one.
    """
    with ExitStack() as stack:
        files = [_planned(stack, payloads, shard) for shard in shards]
        copies = _copies(payloads, shards[0], padding)

        def streams() -> Iterator[BinaryIO]:
            for file in files:
                with file() as stream:
                    yield stream if file_ids is None else cast("BinaryIO", _WithFileIds(stream, file_ids))
            yield from (io.BytesIO(line if file_ids is None else with_file_ids(line, file_ids)) for line in copies())

        size = sum(shard.bytes for shard in shards) + sum(map(len, copies()))
        yield stack.enter_context(io.BufferedReader(_Joined(streams, size), _BUFFER_BYTES))


def _planned(stack: ExitStack, payloads: PayloadStore, shard: Shard) -> Callable[[], BinaryIO]:
    try:
        return stack.enter_context(payloads.checked(shard.path, shard.digest))
    except OSError as error:
        msg = (
            f"The request file {shard.path} cannot be read as it was planned: {error} Nothing was sent. "
            "Restore it in the payload store, or cancel the submission and plan it again."
        )
        raise LLMBatchError(msg) from error


def _copies(payloads: PayloadStore, shard: Shard, padding: int) -> Callable[[], Iterator[bytes]]:
    """Return a function that yields copies of the shard's shortest request, which are the cheapest."""
    if not padding:
        return lambda: iter(())
    request_id, line = min(requests_of(payloads, shard.path, shard.nonce), key=lambda request: len(request[1]))
    own = custom_id(shard.nonce, request_id)
    return lambda: (renamed(line, own, padding_id(number), shard.nonce) for number in range(padding))


class _WithFileIds(io.RawIOBase):
    """Lines with the vendor's ids of the documents that they name. They have the same lengths."""

    def __init__(self, lines: BinaryIO, file_ids: Mapping[str, str]) -> None:
        self._lines = io.BufferedReader(cast("io.RawIOBase", lines), _BUFFER_BYTES)
        self._file_ids = file_ids
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._rest = self._rest or with_file_ids(self._lines.readline(), self._file_ids)
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


class _Joined(io.RawIOBase):
    """Several streams joined into one that can seek.

    SDKs seek to learn its size, and the sender seeks to start a second call. `streams` opens all streams again at their
    start; together they have `size` bytes.
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
        """Set the position. The streams follow when more is read."""
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


# The most rejections in a row for a submission, over all its requests: a day and a half of tries, each after a longer
# wait. Another wave, or a split, does not raise the limit.
REFUSALS_MOST = 40

# A provider that does not name the excess must refuse a batch so often before it counts as too large.
_UNSURE_REFUSALS = 3


def plan_next_try(
    deployment: Deployment,
    shards: Sequence[Shard],
    reason: str | None,
    *,
    smaller_helps: bool | None,
) -> ShardFields | None:
    """Return the fields of shards that wait after a full queue; None after too many tries.

    For `smaller_helps`, see QueueFullError.

    If other batches of the model were in flight, there is room when they have ended. So the batch waits until the
    tokens in flight, with its own, are at most the number that the provider has accepted so far. A batch that was
    refused alone would never pass. So its `most_tokens` are set below its tokens, and it is split before it is sent
    again. A single request that is refused alone, while others were accepted, is too large for good.
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
    tokens_since = partial(ledger.queues.tokens_beside, shards, deployment.queue_occupancy(first))
    beside = tokens_since(since=sent_at)
    is_too_large = smaller_helps or (smaller_helps is None and refusals >= _UNSURE_REFUSALS)
    most: int | None = None
    if beside:
        most = max(beside, tokens)
    elif len(shards) > 1 and is_too_large:
        # The shards were too many only together: each of them may go separately.
        most = max(tokens // 2, *(shard.tokens for shard in shards))
    elif first.requests > 1 and is_too_large:
        most = tokens - 1
    elif smaller_helps and first.room.no_room_at is not None and tokens_since(since=first.room.no_room_at):
        return None
    return {**fields, "no_room_at": now, "most_tokens": most, "refused_at": now, "refused_tokens": beside + tokens}


def _refusals(shards: Sequence[Shard]) -> int:
    """Return how many batches of a submission in a row were not accepted. A batch that has ended starts a new count.

    Batches that fail temporarily after they were accepted do not count.
    """
    ends = [shard.ended_at for shard in shards if shard.batch.status in _ENDED_WELL and shard.ended_at is not None]
    last = max(ends, default=None)
    counted = (s for s in shards if s.room.no_room_at is None or last is None or s.room.no_room_at > last)
    return max((shard.refusals for shard in counted), default=0)


# The last events of the sending before this one. Older code has written one for the present sending, too.
_BEFORE = (Transition.SEND.value, Transition.NOT_SENT.value, Transition.PUT_BACK.value)
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

    def send(
        self,
        shards: Sequence[Shard],
        spec: RequestSpec,
        fill_up_to: int = 0,
        file_ids: Mapping[str, str] | None = None,
    ) -> None:
        """Send planned shards of one owner as one batch, filled up to `fill_up_to` requests with copies of one.

        Afterwards, their state is one of these:

        - `submitted`
        - `planned`: the provider is busy, its queue is full, or a limit has no room (see `reserve`)
        - `submitting`: the result is still unknown
        - `failed`: the provider refused them for good, or too often

        Raises CredentialsError or ConfigError with the shards `planned` again. `file_ids`: see `outgoing`.
        """
        ids = [shard.shard_id for shard in shards]
        provider = self._deployment.provider_of(shards[0])
        # Settings may have changed since these shards were planned.
        model = f"{shards[0].provider}/{spec.model}"
        self._deployment.destinations.check(f"Submission {shards[0].submission_id}", model, spec.params)
        padding = max(0, fill_up_to - count_requests(shards))
        with outgoing(self._deployment.payloads, shards, padding, file_ids) as lines:
            for last in [False] * (_TRIES - 1) + [True]:
                lines.seek(0)
                if not self._reserve(shards, padding=padding):
                    return
                now = self._deployment.clock()
                # Committed before the call. If the process dies after this, the shards stay in `submitting`, and their
                # batch is looked for at the provider. A commit after the call could leave an unknown batch.
                sent = self._ledger.shards.move_all(ids, Transition.SEND, sent_at=now, padding=padding)
                try:
                    # The lease also protects the receipt of another process's sending.
                    self._lease.check()
                    write_receipts(self._deployment, [*sent, *self._untold_halves(sent)])
                    # A process that was frozen for longer than its lease may wake anywhere up to here, and another
                    # process may have sent these shards since. This is the last possible check before the call.
                    self._lease.check()
                    batch_id = provider.submit(lines, spec, self._deployment.tag(shards[0]))
                # Any error but AmbiguousError means that no batch exists (see Provider.submit).
                except TransientError as error:
                    # Each try uploads the file. So a full queue is not tried again before it may have room.
                    if isinstance(error, QueueFullError) and (last or error.retry_after_seconds is None):
                        self._had_no_room(sent, error)
                        return
                    self._ledger.shards.move_all(
                        ids, Transition.NOT_SENT, batch_key=sent[0].batch.batch_key, reason=str(error)
                    )
                    if last:
                        return
                    self._deployment.sleep(min(error.retry_after_seconds or 1.0, _LONGEST_PAUSE_SECONDS))
                except (CredentialsError, ConfigError, PayloadError) as error:
                    self._ledger.shards.move_all(
                        ids, Transition.NOT_SENT, batch_key=sent[0].batch.batch_key, reason=str(error)
                    )
                    raise
                except RefusedError as error:
                    self._refused(sent, str(error), spec, fill_up_to, file_ids)
                    return
                except AmbiguousError as error:
                    self._ledger.events.add(shards[0].submission_id, Ambiguous(str(error)), ids[0])
                    self._recover_batch(sent)
                    return
                else:
                    self._record(sent, batch_id)
                    return

    def _untold_halves(self, sent: Sequence[Shard]) -> list[Shard]:
        """Return planned halves of the same shards that lack a receipt because their process was killed."""
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
        """Record a new batch, or cancel it if another process has sent the shards meanwhile.

        Raises LeaseError in the second case: this process was frozen in its create call for longer than its lease.
        """
        try:
            self._accepted(shards, batch_id)
        except IllegalTransitionError as error:
            known = self._ledger.shards.get(shards[0].shard_id).batch.batch_id
            if known == batch_id:
                # The other process has found the batch at the provider.
                return
            told = self._stop_stray(shards, batch_id, known)
            self._ledger.events.add(shards[0].submission_id, StrayBatch(batch_id, told), shards[0].shard_id)
            raise LeaseError(f"Shard {shards[0].shard_id} was sent by another process meanwhile. {told}") from error
        except LedgerError as error:
            created = f"Batch {batch_id} was created for shard {shards[0].shard_id}, which is in doubt"
            raise LedgerError(f"{created}, since the ledger could not record that: {error}") from error

    def _stop_stray(self, shards: Sequence[Shard], batch_id: str, known: str | None) -> str:
        """Cancel a batch without shards; return the outcome and the highest cost."""
        try:
            cancel_batch(self._deployment.provider_of(shards[0]), batch_id)
            done = "was canceled"
        except LLMBatchError as error:
            done = f"could not be canceled ({error}): cancel it at the provider's console"
        estimates = [shard.bill.estimated_usd for shard in shards]
        most = None if None in estimates else sum((cost for cost in estimates if cost is not None), Decimal(0))
        cost = "at an unknown cost" if most is None else f"and costs at most {money_text(most)}"
        other = known or "one that is being sent"
        return f"Batch {batch_id}, in addition to {other}, {done}, {cost}; its answers are not used."

    def _had_no_room(self, shards: Sequence[Shard], error: QueueFullError) -> None:
        """Plan shards again after a full queue; end them after too many tries."""
        ids, key, reason = [shard.shard_id for shard in shards], shards[0].batch.batch_key, str(error)
        fields = plan_next_try(self._deployment, shards, reason, smaller_helps=error.smaller_helps)
        if fields is not None:
            self._ledger.shards.move_all(ids, Transition.NOT_SENT, batch_key=key, **fields)
            return
        now, failed = self._deployment.clock(), BatchStatus.FAILED
        why: ShardFields = {"status": failed, "reason": reason, "ended_at": now, "cause": Cause.NOT_TAKEN}
        self._ledger.shards.move_all(ids, Transition.REFUSED, batch_key=key, **why)

    def _refused(
        self,
        shards: Sequence[Shard],
        reason: str,
        spec: RequestSpec,
        fill_up_to: int,
        file_ids: Mapping[str, str] | None,
    ) -> None:
        """Record that a batch was refused. Several shards are then tried alone, because one may be the reason."""
        ids, key = [shard.shard_id for shard in shards], shards[0].batch.batch_key
        if len(shards) > 1:
            for shard in self._ledger.shards.move_all(ids, Transition.NOT_SENT, batch_key=key, reason=reason):
                self.send([shard], spec, fill_up_to, file_ids)
            return
        now = self._deployment.clock()
        why: ShardFields = {"status": BatchStatus.FAILED, "reason": reason, "ended_at": now}
        self._ledger.shards.move_all(ids, Transition.REFUSED, batch_key=key, **why)

    def recover_batches(self, submission_ids: Sequence[str], held: Collection[str]) -> None:
        """Resolve shards whose create call left no record. The caller holds the leases of `held`.

        Then they are `submitted` (found), `planned` (certainly not sent), `submitting` (too early to decide) or, in the
        real-time lane, `ended`. Raises StatusUnknownError if only a person can decide.
        """
        unsure: list[StatusUnknownError] = []
        doubtful = sorted(self._ledger.shards.sent_with(submission_ids), key=_batch_and_place)
        for _, group in groupby(doubtful, key=lambda shard: shard.batch.batch_key):
            shards = list(group)
            # Shards of other submissions were sent since the leases were taken; they are left to the next time.
            if all(shard.submission_id in held for shard in shards):
                try:
                    self._recover_batch(shards)
                except StatusUnknownError as error:
                    unsure.append(error)
        if unsure:
            raise unsure[0]

    def _recover_batch(self, shards: Sequence[Shard]) -> None:
        """Recover the shards of one create call, in their order."""
        first, ids, key = shards[0], [shard.shard_id for shard in shards], shards[0].batch.batch_key
        assert first.batch.sent_at is not None  # it is recorded with the intent
        # A real-time call cannot be looked up, and may have been billed. So its requests are missing, and go to the
        # next wave if the policy allows it.
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
            # A ledger restored from a backup has no record of these answers.
            self._answered(shards, Reason.UNRECORDED, "the ledger had no record of its batch, whose answers are stored")
        elif isinstance(answer, Absent):
            # A provider may list a new batch only after some seconds.
            if self._deployment.clock() - self._in_doubt_since(first) >= timedelta(seconds=provider.settle_seconds):
                words = "its create call had no answer, and the provider has no batch of it"
                why: ShardFields = {"reason": words, "reason_kind": Reason.NO_BATCH}
                self._ledger.shards.move_all(ids, Transition.NOT_SENT, batch_key=key, **why)
        elif not isinstance(answer, Undecided):
            candidates = ", ".join(answer.candidates) or "none named"
            msg = (
                f"Shard {first.shard_id} was being sent at {first.batch.sent_at.isoformat()}, and it is unknown "
                f"whether its batch exists: {answer.reason}. Candidates: {candidates}. It is not sent again. Look at "
                f"the provider's console, then run `dagster-llm-batch resolve {first.shard_id} --batch-id …` if it "
                "exists, or `--no-batch` if it does not; in Python, Engine.resolve(shard_id, batch_id or None)."
            )
            raise StatusUnknownError(msg)

    def _answered(self, shards: Sequence[Shard], kind: Reason, words: str) -> None:
        """Record that these shards have no answers except the stored ones."""
        ids, key, now = [shard.shard_id for shard in shards], shards[0].batch.batch_key, self._deployment.clock()
        why: ShardFields = {"status": BatchStatus.ENDED, "ended_at": now, "reason": words, "reason_kind": kind}
        self._ledger.shards.move_all(ids, Transition.ANSWERED, batch_key=key, **why)

    def _in_doubt_since(self, first: Shard) -> datetime:
        """Return when the create call was certainly over: when its end was seen, or else now, with its process gone.

        The time of the intent is too early: the upload comes after it, and may take longer than `settle_seconds`.
        """
        now = self._deployment.clock()
        # The order of the events counts, not their times. A later time than now is recorded again, so that a wrong
        # clock does not keep the shard in doubt until then.
        for event in reversed(self._ledger.events.of_submission(first.submission_id)):
            if event.kind in _BEFORE and event.shard_id == first.shard_id:
                break
            if event.kind == Ambiguous.kind and event.shard_id == first.shard_id and event.at <= now:
                return event.at
        gone = Ambiguous("the process that sent it is gone, and no batch of it is known")
        self._ledger.events.add(first.submission_id, gone, first.shard_id)
        return now

    def _known(self, shards: Sequence[Shard]) -> frozenset[str]:
        """Return batches that certainly belong to other shards: of this account, and of these submissions."""
        # The request files of collected batches are gone, but a batch may be recognized by their names.
        since = shards[0].batch.sent_at or self._deployment.clock()
        known: set[str | None] = {*self._ledger.uploads.batches_since(shards[0], since)}
        for submission_id in {shard.submission_id for shard in shards}:
            known |= {other.batch.batch_id for other in self._ledger.shards.of_submission(submission_id)}
            events = self._ledger.events.of_submission(submission_id)
            known |= {data.batch_id for event in events if isinstance(data := read_event(event), PutBack)}
        return frozenset(batch_id for batch_id in known if batch_id is not None)

    def _accepted(self, shards: Sequence[Shard], batch_id: str) -> None:
        ids, key, now = [shard.shard_id for shard in shards], shards[0].batch.batch_key, self._deployment.clock()
        self._ledger.shards.move_all(ids, Transition.ACCEPTED, batch_key=key, batch_id=batch_id, submitted_at=now)


def _batch_and_place(shard: Shard) -> tuple[str, int]:
    return shard.batch.batch_key or "", shard.batch.place
