"""The facts behind conditions, which are read from the ledger for all undelivered submissions or for one."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from dagster_llm_batch.engine.conditions import (
    UNDECIDED,
    Condition,
    ConditionKind,
    Facts,
    Starved,
    find_conditions,
    find_gone,
    waits_for_dataset,
)
from dagster_llm_batch.loop.activity import Orphan, Outlook, find_held_queues
from dagster_llm_batch.loop.status import UNAVAILABLE, Advice, Status
from dagster_llm_batch.states import HoldReason, ShardState, Transition
from dagster_llm_batch.storage.ledger.apart import CANNOT_READ, OnUnreadable
from dagster_llm_batch.storage.ledger.holds import UNSENT, unsent_of
from dagster_llm_batch.storage.ledger.records import Hold, Progress, Shard, Submission

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["find_undecided", "of_holds", "of_status", "read_facts"]

_NOT_TAKEN = (Transition.NOT_SENT.value, UNAVAILABLE)

# A sensor repeats a report after some hours.
_TOLD_WITHIN = timedelta(days=1)


def read_facts(
    engine: Engine,
    partitions: Mapping[str, Collection[str]] | None,
    datasets: Collection[str],
    *,
    undelivered: Sequence[Progress] | None = None,
    outlook: Outlook | None = None,
    flying: Sequence[Shard] | None = None,
    unreadable: OnUnreadable | None = None,
) -> Facts:
    """Read the facts of a namespace from its ledger. The number of queries is the same for any number of submissions.

    Give `undelivered`, `outlook` and the shards in flight if they are known already. With `unreadable`, unreadable rows
    go there, and the facts of other rows are unaffected.
    """
    ledger, namespace = engine.ledger, engine.namespace
    undelivered = ledger.submissions.progress(namespace, unreadable=unreadable) if undelivered is None else undelivered
    outlook = engine.activity.outlook(unreadable) if outlook is None else outlook
    flying = ledger.shards.in_flight(namespace, unreadable=unreadable) if flying is None else flying
    known = {one.submission.submission_id: one.submission for one in undelivered}
    waiting = [s for s in ledger.queues.waiting_for_room(namespace, unreadable) if s.submission_id in known]
    starved = _starved(engine, known, waiting)
    in_line = {each.submission.submission_id for each in starved}
    reasons = (*UNSENT.values(), HoldReason.RECOVERED)
    held = ledger.holds.undelivered(namespace, *reasons, unreadable=unreadable)
    holds = [(known[each], hold) for each, of in held.items() if each in known for hold in of]
    gone = find_gone(undelivered, datasets) if partitions is not None else {}
    return Facts(
        now=engine.now(),
        undelivered=undelivered,
        partitions=partitions,
        datasets=datasets,
        seen=_seen(engine, gone, outlook, flying, unreadable),
        stranded={each: outlook.last_but_waiting[each] for each in known if outlook.stranded(each) is not None},
        recovered=[(of, hold) for of, hold in holds if hold.reason is HoldReason.RECOVERED],
        doubtful=[
            Orphan(known[shard.submission_id], shard)
            for shard in sorted(flying, key=lambda shard: (shard.batch.sent_at is None, shard.batch.sent_at))
            # A process that is alive is sending these shards, or looking for their batch.
            if shard.state is ShardState.SUBMITTING
            and shard.submission_id in known
            and not outlook.is_busy(shard.submission_id)
        ],
        overdue=[
            (known[shard.submission_id], shard, at)
            for shard in flying
            if shard.submission_id in known and (at := engine.deployment.overdue_at(shard)) and at <= engine.now()
        ],
        unreadable=[unread for unread in outlook.unreadable if unread.submission.submission_id in known],
        starved=starved,
        held_queues=_held_queues(engine, undelivered, unreadable),
        not_sent=_not_sent(engine, undelivered, outlook, in_line, unreadable),
        refused=_refused(engine, undelivered, unreadable),
        # Of several abandonments for money, only the last is shown.
        unsent=[
            (of, hold, told) for of, hold in holds if hold.reason in UNSENT.values() for told in unsent_of(hold)[-1:]
        ],
        moneyless=[
            (one.submission, outlook.last[one.submission.submission_id])
            for one in undelivered
            if outlook.waits_for_money(one.submission.submission_id) is not None
        ],
    )


def find_undecided(engine: Engine) -> list[tuple[Condition, Shard]]:
    """Return the conditions about which a person may decide by `resolve`, each with its shard.

    Shards in doubt are included at once, other conditions when they are due to be reported.
    """
    found = [
        condition
        for condition in find_conditions(read_facts(engine, None, ()))
        if condition.kind in UNDECIDED and (condition.kind is ConditionKind.IN_DOUBT or condition.is_due(engine.now()))
    ]
    return [(condition, engine.ledger.shards.get(shard_id)) for condition in found for shard_id in condition.shard_ids]


def _starved(engine: Engine, known: Mapping[str, Submission], waiting: Sequence[Shard]) -> list[Starved]:
    """Return the submissions of these shards that found their provider's queue full."""
    of: dict[str, list[Shard]] = {}
    for shard in sorted(waiting, key=lambda shard: (shard.room.no_room_at is None, shard.room.no_room_at)):
        of.setdefault(shard.submission_id, []).append(shard)
    return [Starved(known[key], shards, engine.deployment.patience(shards[0])) for key, shards in of.items()]


def _held_queues(
    engine: Engine, undelivered: Sequence[Progress], unreadable: OnUnreadable | None
) -> list[tuple[Submission, Advice]]:
    """Return one submission for each dataset that waits for a declared queue full of batches that are not polled."""
    found: dict[tuple[str, str], tuple[Submission, Advice]] = {}
    try:
        held = find_held_queues(engine.deployment)
    except CANNOT_READ as error:
        if unreadable is None:
            raise
        unreadable("of a declared queue", error)
        return []
    for waiting, advice in held:
        for one in undelivered:
            submission = one.submission
            is_like = (submission.provider, submission.model) == (waiting.provider, waiting.model)
            if ShardState.PLANNED in one.states and (is_like or submission.submission_id == waiting.submission_id):
                found.setdefault((submission.asset, str(advice)), (submission, advice))
    return list(found.values())


def _seen(
    engine: Engine,
    gone: Mapping[str, Sequence[Progress]],
    outlook: Outlook,
    flying: Sequence[Shard],
    unreadable: OnUnreadable | None,
) -> dict[str, datetime]:
    """Return when a process last handled each of these submissions.

    Batches in flight are polled. For other submissions, the sensor keeps the places in queues, runs add events, and
    waits are reported to a person.
    """
    if not gone:
        return {}
    polled: dict[str, list[datetime]] = {}
    for shard in flying:
        if (look := shard.polled_at or shard.batch.submitted_at or shard.batch.sent_at) is not None:
            polled.setdefault(shard.submission_id, []).append(look)
    at_rest = [
        one.submission.submission_id
        for each in gone.values()
        # For a dataset with batches in flight, their polls are enough.
        if not any(one.submission.submission_id in polled for one in each)
        for one in each
        if waits_for_dataset(one)
    ]
    told = engine.activity.reported_since(engine.now() - _TOLD_WITHIN) if at_rest else set()
    for submission_id, (submission, shards) in engine.ledger.submissions.get_all_with_shards(
        at_rest, unreadable
    ).items():
        last = [outlook.last[submission_id].at] if outlook.is_open(submission_id) else []
        kept = [shard.polled_at for shard in shards if shard.polled_at is not None]
        spoken = [engine.now()] if submission_id in told or outlook.stranded(submission_id) is not None else []
        polled[submission_id] = [submission.created_at, *last, *kept, *spoken]
    return {submission_id: max(looks) for submission_id, looks in polled.items()}


def _not_sent(
    engine: Engine,
    undelivered: Sequence[Progress],
    outlook: Outlook,
    starved: Collection[str],
    unreadable: OnUnreadable | None,
) -> list[tuple[Submission, int, datetime, str]]:
    """Return the submissions with batches that the provider rejected at the last try.

    Submissions that wait for a full queue are left out: batches of others, mostly of the same asset, are in flight.
    """
    waiting = [
        (one, event)
        for one in undelivered
        if ShardState.PLANNED in one.states
        and one.submission.submission_id not in starved
        and (event := outlook.last_but_waiting.get(one.submission.submission_id)) is not None
        and event.kind in _NOT_TAKEN
    ]
    # A failed poll does not count as a failed send.
    unsent = engine.ledger.submissions.first_unsent([one.submission.submission_id for one, _ in waiting], unreadable)
    return [
        (one.submission, one.states[ShardState.PLANNED], unsent[one.submission.submission_id], event.detail or "")
        for one, event in waiting
        if one.submission.submission_id in unsent
    ]


def _refused(
    engine: Engine, undelivered: Sequence[Progress], unreadable: OnUnreadable | None
) -> list[tuple[Submission, list[Shard]]]:
    """Return the newest wave of each submission with batches that the provider refused."""
    ids = [one.submission.submission_id for one in undelivered if ShardState.FAILED in one.states]
    found = engine.ledger.submissions.get_all_with_shards(ids, unreadable).values()
    return [(submission, _newest(submission, shards)) for submission, shards in found]


def _newest(submission: Submission, shards: Sequence[Shard]) -> list[Shard]:
    # A later wave has asked the unsent requests of an earlier one.
    return [shard for shard in shards if shard.wave == submission.waves]


def of_status(engine: Engine, status: Status, recovered: Hold | None = None) -> Facts:
    """Read the facts that show whether the batches of one submission were sent.

    `recovered` is the hold for sendings that were missing from the ledger, if any.
    """
    submission = status.submission
    newest = _newest(submission, status.shards)
    waiting = [shard for shard in newest if shard.state is ShardState.PLANNED and shard.reason_kind]
    untaken = [shard for shard in waiting if shard.room.no_room_at is None]
    since = engine.ledger.submissions.first_unsent([submission.submission_id] if untaken else []).get(
        submission.submission_id
    )
    reasons = "; ".join(sorted({shard.reason for shard in untaken if shard.reason}))
    return Facts(
        now=engine.now(),
        recovered=[] if recovered is None else [(submission, recovered)],
        starved=_starved(
            engine,
            {submission.submission_id: submission},
            [shard for shard in waiting if shard.room.no_room_at is not None],
        ),
        not_sent=[(submission, len(untaken), since or engine.now(), reasons)] if untaken else [],
        refused=[(submission, newest)],
    )


def of_holds(submission: Submission, holds: Sequence[Hold], now: datetime) -> Facts:
    """Return the facts that explain why requests of one submission are not sent, from its holds."""
    unsent = [hold for hold in holds if hold.reason in UNSENT.values()]
    return Facts(now=now, unsent=[(submission, hold, told) for hold in unsent for told in unsent_of(hold)])
