"""All undelivered submissions at a glance: processes, next steps, doubts and last events. Only reads the ledger."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import NamedTuple

from dagster_llm_batch.loop.deployment import LONGEST_PAUSE, Deployment
from dagster_llm_batch.loop.status import (
    STRANDED,
    UNAVAILABLE,
    WAITS,
    Advice,
    advise_on_holders,
)
from dagster_llm_batch.loop.submit_queue import can_go, has_room
from dagster_llm_batch.loop.waits import next_tries
from dagster_llm_batch.states import ENDED, ShardState, Transition
from dagster_llm_batch.storage.ledger.apart import OnUnreadable
from dagster_llm_batch.storage.ledger.events import LandingFailed, LandingLost, PersonTold, Turn, Waits, read_event
from dagster_llm_batch.storage.ledger.judgments import NOTE
from dagster_llm_batch.storage.ledger.queues import QueueLines
from dagster_llm_batch.storage.ledger.records import Event, Progress, Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.unread import UnreadShard

__all__ = [
    "CHANGES_NOTHING",
    "FAILED",
    "LOST",
    "STRANDED",
    "TOLD",
    "TURN",
    "HeldQueue",
    "Orphan",
    "Outlook",
    "can_send",
    "count_lost",
    "find_held_queues",
    "look_out",
]

TURN = Turn.kind
"""The event of a submission whose waiting shards may be sent now."""

LOST = LandingLost.kind
"""The event of a run that ended before it materialized any labels. Another run is requested."""

TOLD = PersonTold.kind
"""The event of a failed tick that reported a wait for a person. It changes nothing, and nothing else reads it."""

FAILED = LandingFailed.kind
"""The event of a run that failed to materialize the labels. It changes nothing: another run may fail alike."""

CHANGES_NOTHING = (TOLD, FAILED, NOTE)
_SENT_IN_VAIN = (Transition.SEND.value, Transition.NOT_SENT.value)


@dataclass(frozen=True)
class Outlook:
    """The undelivered submissions of a deployment at one moment.

    Attributes:
        busy: The ids of the submissions that a process works on.
        last: The last event of each submission, by submission_id.
        last_but_waiting: The same without the events WAITS and TURN, which are unrelated to the provider.
        failed: The last failed run of a submission, by submission_id.
        unreadable: The shards whose results could not be read.
    """

    busy: Collection[str]
    last: Mapping[str, Event]
    last_but_waiting: Mapping[str, Event]
    failed: Mapping[str, Event]
    unreadable: Sequence[UnreadShard]

    @cached_property
    def unread(self) -> Mapping[str, tuple[int, datetime]]:
        """By submission: the number of shards with unreadable results, and the time of the next try."""
        return next_tries(self.unreadable)

    def is_open(self, submission_id: str) -> bool:
        """Return whether the submission is undelivered. Delivered ones are not loaded here."""
        return submission_id in self.last

    def is_busy(self, submission_id: str) -> bool:
        """Return whether a process works on the submission."""
        return submission_id in self.busy

    def attempt(self, submission_id: str) -> int:
        """Return a number that changes with every event of the submission. A new number justifies a new run."""
        return self.last[submission_id].event_id

    def run_key(self, submission_id: str) -> str:
        """Return the key of the submission's next run, which differs from the key of the previous run.

        It contains `attempt`. It also contains the next try of unreadable results, because a try adds no event.
        """
        key = f"{submission_id}:{self.attempt(submission_id)}"
        _, next_try = self.unread.get(submission_id, (0, None))
        return key if next_try is None else f"{key}:{next_try:%Y%m%d%H%M%S}"

    def reading_later(self, each: Sequence[Progress], now: datetime) -> set[str]:
        """Return the submissions whose runs could only ask again for results that were unreadable a short time ago."""
        later: set[str] = set()
        for progress in each:
            count, next_try = self.unread.get(progress.submission.submission_id, (0, now))
            ended = sum(progress.states.get(state, 0) for state in ENDED)
            # A time further ahead than any pause was set by a wrong clock.
            is_later = now < next_try <= now + LONGEST_PAUSE
            if is_later and count == ended and ShardState.PLANNED not in progress.states:
                later.add(progress.submission.submission_id)
        return later

    def waited(self, submission_id: str) -> bool:
        """Return whether the last event is that the submission's shards have to wait."""
        return self.last[submission_id].kind == WAITS

    def waits_for_money(self, submission_id: str) -> str | None:
        """Return why shards wait for money, in words; None if all limits of money have room for them."""
        last = self.last.get(submission_id)
        waits = None if last is None else read_event(last)
        return waits.detail if isinstance(waits, Waits) and waits.money is not None else None

    def unavailable_since(self, submission_id: str) -> datetime | None:
        """Return the time of the last event if the provider then gave no answer or took no batch; else None."""
        last = self.last_but_waiting[submission_id]
        return last.at if last.kind in (UNAVAILABLE, Transition.NOT_SENT.value) else None

    def refused(self, submission_id: str) -> Event | None:
        """Return the failure of the last run if the provider rejected its batches and nothing followed; else None."""
        last, failed = self.last_but_waiting[submission_id], self.failed.get(submission_id)
        is_refused = failed is not None and last.kind == Transition.NOT_SENT.value and failed.event_id > last.event_id
        return failed if is_refused else None

    def is_in_trouble(self, submission_id: str) -> bool:
        """Return whether the last run could not send, failed, or was lost. Another may end alike."""
        last, failed = self.last_but_waiting[submission_id], self.failed.get(submission_id)
        has_failed = failed is not None and failed.event_id > last.event_id
        return has_failed or last.kind in (LOST, Transition.NOT_SENT.value)

    def stranded(self, submission_id: str) -> str | None:
        """Return why runs are no longer requested; None if they are."""
        last = self.last_but_waiting.get(submission_id)
        return last.detail or "" if last is not None and last.kind == STRANDED else None


def count_lost(events: Sequence[Event]) -> int:
    """Count the runs at the end of these events that made no progress, if nothing else has happened since.

    Such a run was lost, or failed because the provider rejected its batches.
    """
    count, has_failed, is_refused = 0, False, False
    for event in reversed(events):
        if event.kind == FAILED:
            has_failed = True
        elif event.kind == Transition.NOT_SENT.value and has_failed:
            count, has_failed, is_refused = count + 1, False, True
        elif event.kind == LOST:
            # The failure of the same run came before.
            count, has_failed, is_refused = count + 1, False, False
        elif event.kind not in (WAITS, TURN, *CHANGES_NOTHING) and not (is_refused and event.kind in _SENT_IN_VAIN):
            break
    return count


def look_out(deployment: Deployment, unreadable: OnUnreadable | None = None) -> Outlook:
    """See Activity.outlook. Takes five queries, however many submissions there are."""
    ledger, namespace = deployment.ledger, deployment.namespace
    return Outlook(
        busy=deployment.leases(),
        last=ledger.events.last_of_all(namespace, besides=CHANGES_NOTHING, unreadable=unreadable),
        last_but_waiting=ledger.events.last_of_all(
            namespace, besides=(WAITS, TURN, *CHANGES_NOTHING), unreadable=unreadable
        ),
        failed=ledger.events.last_of_all(namespace, kind=FAILED, unreadable=unreadable),
        unreadable=ledger.unread.find(namespace, unreadable),
    )


def can_send(deployment: Deployment, submission: Submission, lines: QueueLines | None = None) -> bool:
    """Return whether one of the submission's planned shards may be sent now. Give `lines` to check many submissions."""
    if submission.state is not SubmissionState.OPEN:
        return True
    shards = deployment.ledger.shards.of_submission(submission.submission_id)
    planned = [shard for shard in shards if shard.state is ShardState.PLANNED]
    return can_go(
        deployment, planned, lines or QueueLines(deployment.ledger.queues), late=deployment.is_late(submission)
    )


class HeldQueue(NamedTuple):
    """A declared queue full of batches that are no longer polled, with one of the shards that wait for it."""

    waiting: Shard
    advice: Advice


def find_held_queues(deployment: Deployment) -> list[HeldQueue]:
    """Return the declared queues for which shards wait, but which are full of batches that are no longer polled."""
    ledger, namespace = deployment.ledger, deployment.namespace
    found: dict[tuple[str, str, str | None], HeldQueue] = {}
    for shard in ledger.queues.waited_for(namespace) if deployment.queue_limits else ():
        limit, model = deployment.queue_limit(shard.provider, shard.model)
        queue = (shard.provider, shard.account, model)
        if limit is None or queue in found or has_room(deployment, [shard]):
            continue
        if holders := ledger.queues.find_holders(namespace, shard, deployment.queue_occupancy(shard), model):
            name = shard.provider if model is None else f"{shard.provider}/{model}"
            found[queue] = HeldQueue(shard, advise_on_holders(name, limit, holders))
    return list(found.values())


class Orphan(NamedTuple):
    """A shard in doubt: its create call left no record, and it is not being sent now."""

    submission: Submission
    shard: Shard
