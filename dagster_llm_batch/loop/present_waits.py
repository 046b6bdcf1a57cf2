"""Find the present waits of a submission: rows of the table `hold`, and waits that typed columns record.

Each shard has one reason to wait, or one reason to go on. `RULES` in holds.py has the rule of each reason to wait.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from dagster_llm_batch.loop.activity import CHANGES_NOTHING, TURN
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.holds import RULES
from dagster_llm_batch.loop.provider_facts import account_of
from dagster_llm_batch.loop.status import STRANDED, WAITS, Advice
from dagster_llm_batch.loop.submit_queue import due
from dagster_llm_batch.loop.waits import KEPT_FOR, can_ask, needs_provider
from dagster_llm_batch.states import ENDED, HoldReason, Reason, ShardState
from dagster_llm_batch.storage.ledger.events import Waits, read_event
from dagster_llm_batch.storage.ledger.holds import OF_RESULTS, UNSENT, recovered_of, unsent_of
from dagster_llm_batch.storage.ledger.records import Event, Hold, Shard, Submission
from dagster_llm_batch.storage.ledger.shard_rows import is_awaited, is_unread
from dagster_llm_batch.storage.ledger.unread import UnreadShard
from dagster_llm_batch.types import BatchStatus, Lane

__all__ = ["Going", "Surroundings", "Wait", "find_reason", "find_waits"]


class Going(StrEnum):
    """Reasons of shards that do not wait: their next step is automatic. The value describes that step."""

    TO_SEND = "the next run sends it; the sensor requests one"
    SENDING = "a process sends it, or looks for its batch"
    RUNNING = "its batch runs, and is not overdue"
    TO_COLLECT = "the next run collects it; the sensor requests one"
    DONE = "its results are stored"


class Surroundings(NamedTuple):
    """The facts about a shard that its own columns do not have.

    Attributes:
        waits: The last event of its submission, if that is that shards wait.
        is_busy: A process works on its submission.
        overdue_at: When its batch is, or was, overdue; None: it does not run.
        can_ask: Its account is the configured one, as far as that is known.
        held: The reasons of its rows in the table `hold`.
    """

    waits: Waits | None = None
    is_busy: bool = False
    overdue_at: datetime | None = None
    can_ask: bool = True
    held: Collection[HoldReason] = ()


class Wait(NamedTuple):
    """One wait of a submission: since when, and for people the problem and the next step.

    `shards` is empty if the submission itself waits. `since` is None if the begin is unknown.
    """

    reason: HoldReason
    submission: Submission
    shards: Sequence[Shard]
    since: datetime | None
    advice: Advice


def find_reason(shard: Shard, now: datetime, around: Surroundings) -> HoldReason | Going:
    """Return the reason to wait of a shard, or its reason to go on."""
    if shard.state is ShardState.PLANNED:
        return _of_planned(shard, now, around)
    if shard.state is ShardState.SUBMITTING:
        return Going.SENDING if around.is_busy else HoldReason.IN_DOUBT
    if shard.state is ShardState.SUBMITTED:
        return _of_running(shard, now, around)
    if shard.state in ENDED:
        return _of_ended(shard, around)
    may_come = is_awaited(shard) or is_unread(shard)
    is_kept = shard.ended_at is not None and now - shard.ended_at < KEPT_FOR
    return HoldReason.LATE_ANSWERS if may_come and is_kept else Going.DONE


def _of_planned(shard: Shard, now: datetime, around: Surroundings) -> HoldReason | Going:
    if not around.can_ask:
        return HoldReason.CANNOT_ASK
    if shard.room.no_room_at is not None:
        return HoldReason.FULL_QUEUE
    if shard.reason_kind in (Reason.MONEY, Reason.LACKS_MONEY):
        return HoldReason.MONEY
    if shard.lane is Lane.REALTIME and not due(shard, now):
        return HoldReason.TURNED_AWAY
    if shard.reason_kind is not None:
        return HoldReason.NOT_SENT
    if around.waits is None:
        return Going.TO_SEND
    return HoldReason.PLACE if around.waits.for_place else HoldReason.MONEY


def _of_running(shard: Shard, now: datetime, around: Surroundings) -> HoldReason | Going:
    if around.overdue_at is not None and around.overdue_at <= now:
        return HoldReason.OVERDUE
    if not around.can_ask:
        return HoldReason.CANNOT_ASK
    return HoldReason.UNKNOWN if shard.batch.status is BatchStatus.NOT_FOUND else Going.RUNNING


def _of_ended(shard: Shard, around: Surroundings) -> HoldReason | Going:
    if not needs_provider(shard):
        return Going.TO_COLLECT
    for reason in OF_RESULTS:
        if reason in around.held:
            return reason
    return Going.TO_COLLECT if around.can_ask else HoldReason.CANNOT_ASK


def find_waits(deployment: Deployment, submission_id: str) -> list[Wait]:
    """Return the present waits of a submission, and then of its shards. Only reads the ledger."""
    ledger, now = deployment.ledger, deployment.clock()
    submission, shards = ledger.submissions.get_with_shards(submission_id)
    holds = ledger.holds.of([submission_id]).get(submission_id, [])
    events = ledger.events.of_submission(submission_id)
    changing = [event for event in events if event.kind not in CHANGES_NOTHING]
    last = read_event(changing[-1]) if changing else None
    waits = last if isinstance(last, Waits) else None
    is_busy = submission_id in deployment.leases()
    by_shard: dict[str, dict[HoldReason, Hold]] = {}
    for hold in holds:
        by_shard.setdefault(hold.subject, {})[hold.reason] = hold
    found: dict[HoldReason, list[Shard]] = {}
    for shard in shards:
        held = by_shard.get(shard.shard_id, {})
        overdue_at = deployment.overdue_at(shard)
        around = Surroundings(waits, is_busy, overdue_at, can_ask(deployment, shard), held)
        reason = find_reason(shard, now, around)
        if isinstance(reason, HoldReason):
            found.setdefault(reason, []).append(shard)
    of_submission = list(_of_submission(deployment, submission, holds, events))
    return [
        *of_submission,
        *(wait for reason in found for wait in _told(deployment, submission, reason, found[reason], waits, by_shard)),
    ]


def _of_submission(
    deployment: Deployment, submission: Submission, holds: Sequence[Hold], events: Sequence[Event]
) -> Iterator[Wait]:
    """Yield the waits of the submission as a whole."""
    for hold in holds:
        if hold.reason in UNSENT.values():
            for unsent in unsent_of(hold):
                yield Wait(hold.reason, submission, (), hold.since, RULES[hold.reason].message(unsent))
        elif hold.reason is HoldReason.RECOVERED:
            yield Wait(hold.reason, submission, (), hold.since, RULES[hold.reason].message(recovered_of(hold)))
    telling = [event for event in events if event.kind not in (WAITS, TURN, *CHANGES_NOTHING)]
    if telling and telling[-1].kind == STRANDED and submission.delivered_at is None:
        advice = RULES[HoldReason.STRANDED].message(submission, telling[-1].detail or "")
        yield Wait(HoldReason.STRANDED, submission, (), telling[-1].at, advice)
    sources = () if submission.is_settled else deployment.ledger.submissions.find_unsettled(submission.reused_from)
    if sources:
        yield Wait(HoldReason.REUSES, submission, (), None, RULES[HoldReason.REUSES].message(sources))


def _told(
    deployment: Deployment,
    submission: Submission,
    reason: HoldReason,
    shards: Sequence[Shard],
    waits: Waits | None,
    holds: Mapping[str, Mapping[HoldReason, Hold]],
) -> Iterator[Wait]:
    """Yield the waits of these shards for one reason: one of all, or one of each batch."""
    rule, now = RULES[reason], deployment.clock()
    if reason is HoldReason.PLACE:
        yield Wait(reason, submission, shards, None, rule.message(len(shards), waits and waits.detail))
    elif reason is HoldReason.MONEY:
        why = waits.detail if waits is not None and waits.money is not None else "for money"
        yield Wait(reason, submission, shards, None, rule.message(submission, why))
    elif reason is HoldReason.FULL_QUEUE:
        ordered = sorted(shards, key=lambda shard: shard.room.no_room_at or now)
        yield Wait(reason, submission, ordered, ordered[0].room.no_room_at, rule.message(submission, ordered, now))
    elif reason in (HoldReason.NOT_SENT, HoldReason.TURNED_AWAY):
        key = submission.submission_id
        since = deployment.ledger.submissions.first_unsent([key]).get(key)
        why = "; ".join(sorted({shard.reason for shard in shards if shard.reason}))
        yield Wait(reason, submission, shards, since, rule.message(len(shards), since or now, why))
    else:
        of_batch: dict[str, list[Shard]] = {}
        for shard in shards:
            of_batch.setdefault(shard.batch.batch_id or shard.shard_id, []).append(shard)
        for own in of_batch.values():
            yield _of_batch(deployment, submission, reason, own, holds)


def _of_batch(
    deployment: Deployment,
    submission: Submission,
    reason: HoldReason,
    shards: Sequence[Shard],
    holds: Mapping[str, Mapping[HoldReason, Hold]],
) -> Wait:
    message, shard, now = RULES[reason].message, shards[0], deployment.clock()
    if reason is HoldReason.IN_DOUBT:
        return Wait(reason, submission, shards, shard.batch.sent_at, message(shard))
    if reason is HoldReason.OVERDUE:
        return Wait(reason, submission, shards, deployment.overdue_at(shard), message(shard, now))
    if reason is HoldReason.UNKNOWN:
        return Wait(reason, submission, shards, None, message(shard))
    if reason is HoldReason.CANNOT_ASK:
        configured = account_of(deployment.providers.get(shard.provider))
        return Wait(reason, submission, shards, None, message(shard.provider, shard.account, configured))
    if reason is HoldReason.LATE_ANSWERS:
        return Wait(reason, submission, shards, shard.ended_at, message(submission, shard))
    # The two other reasons have a row.
    hold = holds[shard.shard_id][reason]
    return Wait(
        reason, submission, shards, hold.since, message(UnreadShard(submission, shard, hold.since, hold.words or ""))
    )
