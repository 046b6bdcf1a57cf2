"""Shards leave the house, each at most once. Intent before effect:

    planned ── commit `submitting` ──▶ create call ──▶ commit `submitted`
                                   └─ no trustworthy reply ─▶ stays `submitting` until `recover` finds the batch or is
                                                              certain that there is none

Nothing here ever creates a batch for a shard that is not `planned`. The shards of one batch, of one or of several
submissions, make each move together, the carrier first: the batch has its tag. Who calls holds the leases of them all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from itertools import groupby

from dagster_llm_batch.engine.deployment import Deployment
from dagster_llm_batch.engine.request_stream import outgoing
from dagster_llm_batch.errors import (
    AmbiguousError,
    CannotTellError,
    ConfigError,
    CredentialsError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.states import Move
from dagster_llm_batch.storage.ledger.records import Shard
from dagster_llm_batch.types import Absent, BatchStatus, FindHints, Found, Lane, RequestSpec, Undecided

__all__ = ["Sender"]

_AMBIGUOUS = "ambiguous"
_TRIES = 3
_LONGEST_PAUSE_SECONDS = 30.0


class Sender:
    """Sends shards as batches, and finds again what was sent without a record."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._ledger = deployment.ledger

    def send(self, shards: Sequence[Shard], spec: RequestSpec, fill_up_to: int = 0) -> None:
        """Send planned shards of one owner as one batch, filled up with copies of a request to so many.

        They may be `planned` afterwards (the provider is busy: later), `submitting` (nobody knows yet) or `failed` (the
        provider refused them for good). Raises CredentialsError or ConfigError with the shards `planned` again.
        """
        ids = [shard.shard_id for shard in shards]
        provider = self._deployment.provider_of(shards[0])
        padding = max(0, fill_up_to - sum(shard.requests for shard in shards))
        with outgoing(self._deployment.payloads, shards, padding) as lines:
            for last in [False] * (_TRIES - 1) + [True]:
                lines.seek(0)
                now = self._deployment.clock()
                sent = self._ledger.move_together(ids, Move.SEND, sent_at=now, padding=padding)
                try:
                    batch_id = provider.submit(lines, spec, self._deployment.tag(shards[0]))
                except TransientError as error:
                    self._ledger.move_together(ids, Move.NOT_SENT, reason=str(error))
                    if last:
                        return
                    self._deployment.sleep(min(error.retry_after_seconds or 1.0, _LONGEST_PAUSE_SECONDS))
                except (CredentialsError, ConfigError) as error:
                    self._ledger.move_together(ids, Move.NOT_SENT, reason=str(error))
                    raise
                except RefusedError as error:
                    self._refused(sent, str(error), spec, fill_up_to)
                    return
                except AmbiguousError as error:
                    self._ledger.note(shards[0].submission_id, _AMBIGUOUS, f"{ids[0]}: {error}")
                    self._recover(sent)
                    return
                else:
                    self._accepted(sent, batch_id)
                    return

    def _refused(self, shards: Sequence[Shard], reason: str, spec: RequestSpec, fill_up_to: int) -> None:
        """The one of several that cannot be taken must not take the others along: each is tried by itself."""
        ids = [shard.shard_id for shard in shards]
        if len(shards) > 1:
            for shard in self._ledger.move_together(ids, Move.NOT_SENT, reason=reason):
                self.send([shard], spec, fill_up_to)
            return
        now = self._deployment.clock()
        self._ledger.move_together(ids, Move.REFUSED, status=BatchStatus.FAILED, reason=reason, ended_at=now)

    def recover(self, submission_ids: Sequence[str], held: Collection[str]) -> None:
        """Find out what became of shards whose create call left no record. The caller holds the leases of `held`.

        They are `submitted` then (found), `planned` (certainly not sent), `submitting` (too early to say) or, where
        they were answered in real time, `ended`. Raises CannotTellError where only a person can decide.
        """
        unsure: list[CannotTellError] = []
        doubtful = sorted(self._ledger.sharing(submission_ids), key=_carrier)
        for _, group in groupby(doubtful, key=_carrier):
            shards = sorted(group, key=lambda shard: shard.carrier is not None)
            if all(shard.submission_id in held for shard in shards):  # else they were sent since: the next time
                try:
                    self._recover(shards)
                except CannotTellError as error:
                    unsure.append(error)
        if unsure:
            raise unsure[0]

    def _recover(self, shards: Sequence[Shard]) -> None:
        """The shards of one create call, the carrier first."""
        carrier, ids = shards[0], [shard.shard_id for shard in shards]
        assert carrier.sent_at is not None  # it is recorded with the intent
        if carrier.lane is Lane.REALTIME:
            self._ledger.move_together(
                ids,
                Move.ANSWERED,
                status=BatchStatus.ENDED,
                ended_at=self._deployment.clock(),
                reason="the process that asked in real time ended before its answers were stored",
            )
            return
        provider = self._deployment.provider_of(carrier)
        requests = sum(shard.requests for shard in shards) + carrier.padding
        try:
            hints = FindHints(carrier.sent_at, requests, carrier.nonce, self._known(shards))
            found = provider.find(self._deployment.tag(carrier), hints)
        except TransientError:
            return
        if isinstance(found, Found):
            self._accepted(shards, found.batch_id)
        elif isinstance(found, Absent):
            waited = self._deployment.clock() - self._in_doubt_since(carrier)
            if waited >= timedelta(seconds=provider.settle_seconds):
                self._ledger.move_together(ids, Move.NOT_SENT, reason="the provider has no such batch")
        elif not isinstance(found, Undecided):
            candidates = ", ".join(found.candidates) or "none named"
            msg = (
                f"Shard {carrier.shard_id} was being sent at {carrier.sent_at.isoformat()}, and nobody knows whether "
                f"its batch exists: {found.reason}. Candidates: {candidates}. Nothing is sent again. Look at the "
                f"provider's console, then run `dagster-llm-batch resolve {carrier.shard_id} --batch-id …` if it "
                "exists, or `--no-batch` if it does not; in Python, Engine.resolve(shard_id, batch_id or None)."
            )
            raise CannotTellError(msg)

    def _in_doubt_since(self, carrier: Shard) -> datetime:
        """When the create call was over: when its end was seen, else now, when its process is seen to be gone.

        The time of the intent says nothing of that: the upload comes after it, and may take longer than settling does.
        """
        for event in reversed(self._ledger.events(carrier.submission_id)):
            is_its = event.kind == _AMBIGUOUS and (event.detail or "").startswith(carrier.shard_id)
            if is_its and carrier.sent_at is not None and event.at >= carrier.sent_at:
                return event.at
        gone = f"{carrier.shard_id}: the process that sent it is gone, and no batch of it is known"
        self._ledger.note(carrier.submission_id, _AMBIGUOUS, gone)
        return self._deployment.clock()

    def _known(self, shards: Sequence[Shard]) -> frozenset[str]:
        """Batches that are others for certain: those in flight anywhere here, and all of the same submissions."""
        others = [*self._ledger.in_flight(self._deployment.namespace)]
        put_back: set[str] = set()
        for submission_id in {shard.submission_id for shard in shards}:
            others += self._ledger.shards(submission_id)
            events = self._ledger.events(submission_id)
            put_back |= {event.detail for event in events if event.kind == Move.PUT_BACK.value and event.detail}
        return frozenset(other.batch_id for other in others if other.batch_id is not None) | put_back

    def _accepted(self, shards: Sequence[Shard], batch_id: str) -> None:
        ids = [shard.shard_id for shard in shards]
        now = self._deployment.clock()
        self._ledger.move_together(ids, Move.ACCEPTED, batch_id=batch_id, submitted_at=now)


def _carrier(shard: Shard) -> str:
    return shard.carrier or shard.shard_id
