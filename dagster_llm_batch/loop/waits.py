"""Batches that have ended with unreadable results: how long they are tried, and how the wait ends.

    ended ──▶ not read ──▶ tried again, each pause half as long as the time so far, an hour at most
                 │         (a minute if the provider refuses its credentials for all calls)
                 │  after an hour a person is informed
                 ├─ read ──────────────────────────────▶ collected
                 ├─ unknown to the provider for an hour ▶ gone       (collect.py)
                 ├─ a person abandons it ──────────────▶ given up ──▶ polled daily, and read after all: late
                 └─ 30 days after its end ─────────────▶ given up    vendors keep nothing for longer

Abandoned requests get the outcome `missing`, so that the rest of the submission goes on and is materialized.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from datetime import datetime, timedelta

from dagster_llm_batch.errors import (
    ConfigError,
    CredentialsError,
    IllegalTransitionError,
    LLMBatchError,
    TransientError,
    UnreadableError,
)
from dagster_llm_batch.loop.deployment import LONGEST_PAUSE, Deployment
from dagster_llm_batch.loop.provider_facts import account_of, ask_provider, is_of_account
from dagster_llm_batch.states import ENDED, Reason, Transition
from dagster_llm_batch.storage.ledger.records import Ending, Shard
from dagster_llm_batch.storage.ledger.unread import UnreadShard
from dagster_llm_batch.types import BatchStatus, Cause

__all__ = [
    "KEPT_FOR",
    "TOLD_AFTER",
    "Unread",
    "can_ask",
    "is_out_of_reach",
    "needs_provider",
    "next_tries",
    "read_late",
    "refuse_readable",
]

KEPT_FOR = timedelta(days=30)
"""Vendors keep results for 29 or 30 days. Results not read by then are abandoned, or not asked for any more."""

TOLD_AFTER = timedelta(hours=1)
"""The age at which a problem is reported: most problems of a provider are over by then."""

_SHORTEST_PAUSE = timedelta(minutes=1)
_TRIED_FOR = timedelta(days=1)
_GIVEN_UP_AGAIN = timedelta(days=1)


class Unread:
    """Record unreadable results, abandon them in the end, and check whether they can be read after all."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._ledger = deployment.ledger

    def note(self, shards: Sequence[Shard], error: LLMBatchError) -> tuple[list[Shard], Exception | None]:
        """Record that the results of ended shards of one batch cannot be read. The caller has their submission's lease.

        Returns the shards that are abandoned now, and may be collected without results. Also returns the error to
        report if some are left. The first error is the provider's own, which may name a fix. Later errors count as
        temporary.
        """
        ended = [shard for shard in shards if shard.state in ENDED]
        if not ended:
            return [], error
        before = self._ledger.unread.noted(ended)
        since_of = self._ledger.unread.note([shard.shard_id for shard in ended], str(error))
        now = self._deployment.clock()
        since = min(since_of.values(), default=now)
        # The end may have been noticed long after, so one temporary problem must not end the wait.
        is_over = now - since >= _TRIED_FOR and any(s.ended_at and now - s.ended_at >= KEPT_FOR for s in ended)
        if is_over or self._ledger.unread.given_up_before(ended):
            why = "its results could not be read for as long as vendors keep them" if is_over else "as it was before"
            return self._give_up(ended, why, error), None
        longest = _SHORTEST_PAUSE if self._waits_for_credentials(ended[0], error) else LONGEST_PAUSE
        until = now + min(max((now - since) / 2, _SHORTEST_PAUSE), longest)
        self._ledger.unread.wait([shard.shard_id for shard in ended], until)
        if not before and not isinstance(error, TransientError):
            return [], error
        return [], self._cannot_read(ended[0], since, until, error)

    def read_later(self, ended: Sequence[Shard]) -> set[str]:
        """Return the ids of the shards with unreadable results whose next try is not due."""
        now = self._deployment.clock()
        # A time further ahead than any pause was set by a wrong clock.
        later = [s for s in ended if s.waits_until is not None and now < s.waits_until <= now + LONGEST_PAUSE]
        return self._ledger.unread.noted(later) if later else set()

    def _waits_for_credentials(self, shard: Shard, error: LLMBatchError) -> bool:
        """Return whether the provider refuses its credentials for all calls, or cannot be made.

        The sensor polls such a provider before it requests a run. After a fix, the results are due.
        """
        if not isinstance(error, CredentialsError | ConfigError):
            return False
        try:
            ask_provider(self._deployment.provider_of(shard), self._deployment.clock())
        except (CredentialsError, ConfigError):
            return True
        except Exception:  # noqa: BLE001 - of a provider, which may be the user's own: anything may come
            return False
        return False

    def _cannot_read(self, shard: Shard, since: datetime, until: datetime, error: LLMBatchError) -> UnreadableError:
        batch = f"batch {shard.batch.batch_id}" if shard.batch.batch_id else f"shard {shard.shard_id}"
        unread = UnreadableError(
            f"The results of {batch} of {shard.provider}, which has ended, cannot be read since "
            f"{since:%Y-%m-%d %H:%M} UTC: {str(error).rstrip('.')}. Reading is tried again from "
            f"{until:%Y-%m-%d %H:%M} UTC on; the requests are not sent again. `dagster-llm-batch resolve "
            f"{shard.shard_id} --lost` abandons the results."
        )
        unread.__cause__ = error
        return unread

    def _give_up(self, shards: Sequence[Shard], why: str, error: LLMBatchError) -> list[Shard]:
        """Abandon the results of ended shards of one batch; return their new records."""
        return self._ledger.shards.move_all(
            [shard.shard_id for shard in shards],
            Transition.GIVEN_UP,
            of_batch=shards[0].batch.batch_id,
            cause=Cause.GIVEN_UP,
            reason=f"abandoned automatically: {why}: {error}",
            reason_kind=Reason.GIVEN_UP,
            ended_at=shards[0].ended_at or self._deployment.clock(),
        )

    def given_up_due(self) -> list[Shard]:
        """Return the shards abandoned unread whose results are due to be asked for: daily, while vendors keep them."""
        now = self._deployment.clock()
        given_up = self._ledger.unread.given_up(self._deployment.namespace, now - KEPT_FOR)
        # A time further ahead was set by a wrong clock.
        return [s for s in given_up if s.waits_until is None or not now < s.waits_until <= now + _GIVEN_UP_AGAIN]

    def ask_given_up(self, shards: Sequence[Shard]) -> None:
        """Check whether results of shards that were abandoned unread can be read after all, and record those that can.

        A shard whose provider does not answer is left to the next day.
        """
        batches: dict[tuple[str, ...], list[Shard]] = {}
        for shard in shards:
            batches.setdefault((shard.provider, shard.account, shard.batch.batch_id or ""), []).append(shard)
        for own in batches.values():
            if self._can_read(own[0]):
                self._ledger.shards.record_late_endings({shard.shard_id: read_late(shard) for shard in own})
            else:
                until = self._deployment.clock() + _GIVEN_UP_AGAIN
                self._ledger.unread.wait([shard.shard_id for shard in own], until)

    def _can_read(self, shard: Shard) -> bool:
        """Return whether the provider gives the first line of a batch's results."""
        try:
            lines = iter(self._deployment.provider_of(shard).fetch(shard.batch.batch_id or ""))
            try:
                return next(lines, None) is not None
            finally:
                # Otherwise the open generator's connection would be closed at an arbitrary time.
                if isinstance(lines, Generator):
                    lines.close()
        except Exception:  # noqa: BLE001 - of a provider, which may be the user's own: anything may come
            return False


def read_late(shard: Shard) -> Ending:
    """Return the end of an abandoned shard's batch, which had ended before."""
    status = shard.batch.status or BatchStatus.ENDED
    return Ending(
        move=Transition.LATE,
        batch_id=shard.batch.batch_id or "",
        status=status,
        ended_at=shard.ended_at or shard.collected_at or shard.batch.sent_at,  # type: ignore[arg-type]  # it was sent
        # These counts are for the whole batch, and a shard has only its part.
        total=None,
        done=None,
        failed=None,
        reason=None,
        retryable=shard.batch.retryable,
        cause=Cause.CANCELED if status is BatchStatus.CANCELED else None,
        reported_usd=shard.reported_usd,
    )


def next_tries(unreadable: Sequence[UnreadShard]) -> dict[str, tuple[int, datetime]]:
    """Return by submission_id how many of these shards it has, and when the first of them is tried next."""
    found: dict[str, tuple[int, datetime]] = {}
    for submission, shard, since, _ in unreadable:
        at = shard.waits_until or since
        count, first = found.get(submission.submission_id, (0, at))
        found[submission.submission_id] = (count + 1, min(first, at))
    return found


def refuse_readable(deployment: Deployment, shard: Shard) -> None:
    """Raise IllegalTransitionError for an ended shard whose results may be readable: it must not be abandoned."""
    if shard.state not in ENDED or deployment.ledger.unread.noted([shard]) or is_out_of_reach(deployment, shard):
        return
    raise IllegalTransitionError(
        f"Shard {shard.shard_id} is '{shard.state.value}': its batch has ended, and the next run collects its results. "
        "Only a batch in flight, or one whose results could not be read, can be abandoned. Nothing was changed. "
        "Materialize the labels."
    )


def can_ask(deployment: Deployment, shard: Shard) -> bool:
    """Return whether the account of a shard is the configured one, as far as that is known."""
    # A command without definitions has no providers.
    return not deployment.providers or is_of_account(shard, account_of(deployment.providers.get(shard.provider)))


def needs_provider(shard: Shard) -> bool:
    """Return whether the next run asks the provider for the results of an ended shard.

    Abandoned and adopted shards are collected without the provider.
    """
    is_asked = shard.state in ENDED and shard.batch.batch_id is not None
    return is_asked and shard.cause not in (Cause.GIVEN_UP, Cause.ADOPTED)


def is_out_of_reach(deployment: Deployment, shard: Shard) -> bool:
    """Return whether a batch ended an hour ago and its account is not configured. The sensor then requests no run."""
    if shard.ended_at is None or not needs_provider(shard):
        return False
    return deployment.clock() - shard.ended_at >= TOLD_AFTER and not can_ask(deployment, shard)
