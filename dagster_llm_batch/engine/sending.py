"""Shards leave the house, each at most once. Intent before effect:

    planned ── commit `submitting` ──▶ create call ──▶ commit `submitted`
                                   └─ no trustworthy reply ─▶ stays `submitting` until `recover` finds the batch or is
                                                              certain that there is none

Nothing here ever creates a batch for a shard that is not `planned`.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from datetime import datetime
from typing import BinaryIO

from dagster_llm_batch.errors import (
    AmbiguousError,
    CannotTellError,
    ConfigError,
    CredentialsError,
    LLMBatchError,
    RefusedError,
    TransientError,
)
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.states import Move, ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.records import Shard
from dagster_llm_batch.types import Absent, BatchStatus, FindHints, Found, RequestSpec, Undecided

__all__ = ["Sender"]

_TRIES = 3
_LONGEST_PAUSE_SECONDS = 30.0
_SPOOL_BYTES = 16 << 20


class Sender:
    """Sends shards of one provider and finds again what was sent without a record."""

    def __init__(
        self,
        provider: Provider,
        ledger: Ledger,
        payloads: PayloadStore,
        namespace: str,
        clock: Callable[[], datetime],
        sleep: Callable[[float], None],
    ) -> None:
        self._provider = provider
        self._ledger = ledger
        self._payloads = payloads
        self._namespace = namespace
        self._clock = clock
        self._sleep = sleep

    def tag(self, shard: Shard) -> str:
        """What a batch carries so that it can be found: whose it is, and which shard of theirs."""
        owner = hashlib.blake2b(self._namespace.encode(), digest_size=4).hexdigest()
        return f"dlb-{owner}-{shard.nonce}"

    def send(self, shard: Shard, spec: RequestSpec) -> Shard:
        """Send a planned shard; returns it as the ledger has it then.

        It may come back `planned` (the provider is busy: later), `submitting` (nobody knows yet) or `failed` (the
        provider refused it for good). Raises CredentialsError or ConfigError with the shard `planned` again.
        """
        with tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES) as lines:
            self._copy(shard, lines)  # type: ignore[arg-type]  # a SpooledTemporaryFile is a BinaryIO in all but name
            for last in [False] * (_TRIES - 1) + [True]:
                lines.seek(0)
                shard = self._ledger.move(shard.shard_id, Move.SEND, sent_at=self._clock())
                try:
                    batch_id = self._provider.submit(lines, spec, self.tag(shard))  # type: ignore[arg-type]
                except TransientError as error:
                    shard = self._ledger.move(shard.shard_id, Move.NOT_SENT, reason=str(error))
                    if last:
                        return shard
                    self._sleep(min(error.retry_after_seconds or 1.0, _LONGEST_PAUSE_SECONDS))
                except (CredentialsError, ConfigError) as error:
                    self._ledger.move(shard.shard_id, Move.NOT_SENT, reason=str(error))
                    raise
                except RefusedError as error:
                    return self._ledger.move(
                        shard.shard_id,
                        Move.REFUSED,
                        status=BatchStatus.FAILED,
                        reason=str(error),
                        ended_at=self._clock(),
                    )
                except AmbiguousError as error:
                    self._ledger.note(shard.submission_id, "ambiguous", f"{shard.shard_id}: {error}")
                    return self.recover(shard)
                else:
                    return self._accepted(shard, batch_id)
        return shard

    def recover(self, shard: Shard) -> Shard:
        """Find out what became of a shard whose create call left no record.

        Comes back `submitted` (found), `planned` (certainly not sent) or `submitting` (too early to say).
        Raises CannotTellError where only a person can decide.
        """
        if shard.state is not ShardState.SUBMITTING or shard.sent_at is None:
            return shard
        try:
            hints = FindHints(shard.sent_at, shard.requests, shard.nonce, self._known(shard))
            found = self._provider.find(self.tag(shard), hints)
        except TransientError:
            return shard
        if isinstance(found, Undecided):
            return shard
        if isinstance(found, Found):
            return self._accepted(shard, found.batch_id)
        if isinstance(found, Absent):
            waited = (self._clock() - shard.sent_at).total_seconds()
            if waited < self._provider.settle_seconds:
                return shard
            return self._ledger.move(shard.shard_id, Move.NOT_SENT, reason="the provider has no such batch")
        candidates = ", ".join(found.candidates) or "none named"
        msg = (
            f"Shard {shard.shard_id} was being sent at {shard.sent_at.isoformat()}, and nobody knows whether its batch "
            f"exists: {found.reason}. Candidates: {candidates}. Nothing is sent again. Look at the provider's console, "
            f"then call Engine.resolve({shard.shard_id!r}, batch_id=...) if it exists, or batch_id=None if it does not."
        )
        raise CannotTellError(msg)

    def _known(self, shard: Shard) -> frozenset[str]:
        """Batches that belong to other shards: those in flight anywhere here, and all of the same submission."""
        others = [*self._ledger.in_flight(self._namespace), *self._ledger.shards(shard.submission_id)]
        return frozenset(other.batch_id for other in others if other.batch_id is not None)

    def _accepted(self, shard: Shard, batch_id: str) -> Shard:
        return self._ledger.move(shard.shard_id, Move.ACCEPTED, batch_id=batch_id, submitted_at=self._clock())

    def _copy(self, shard: Shard, lines: BinaryIO) -> None:
        digest = hashlib.blake2b(digest_size=16)
        try:
            with self._payloads.reader(shard.path) as stored:
                while chunk := stored.read(1 << 20):
                    digest.update(chunk)
                    lines.write(chunk)
        except OSError as error:
            msg = (
                f"The request file {shard.path} cannot be read, so nothing was sent: {error}. "
                "Restore it in the payload store, or cancel the submission and plan it again."
            )
            raise LLMBatchError(msg) from error
        if digest.hexdigest() != shard.digest:
            msg = (
                f"The request file {shard.path} is not the one that was planned: its digest differs. Nothing was sent. "
                "Restore it in the payload store, or cancel the submission and plan it again."
            )
            raise LLMBatchError(msg)
