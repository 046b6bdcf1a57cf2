"""The conditions of undelivered submissions that a person may have to end: one list for all reports.

Ticks and their alerts, `doctor`, `watch`, waiting runs and asset checks all use `find_conditions`. They only format,
filter and throttle its result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum

from dagster_llm_batch.loop.activity import Orphan
from dagster_llm_batch.loop.holds import RULES
from dagster_llm_batch.loop.status import Advice
from dagster_llm_batch.states import HoldReason, ShardState
from dagster_llm_batch.storage.ledger.events import Unsent
from dagster_llm_batch.storage.ledger.holds import recovered_of
from dagster_llm_batch.storage.ledger.records import Event, Hold, Progress, Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.unread import UnreadShard

__all__ = [
    "GOES_ON",
    "TELLS_OF_UNSENT",
    "TOLD_BY_A_CHECK",
    "UNDECIDED",
    "WAITS_IN_VAIN",
    "Condition",
    "ConditionKind",
    "Facts",
    "Starved",
    "find_conditions",
    "find_gone",
    "split_by_dataset",
    "waits_for_dataset",
]

# A sensor polls each batch at least once in ten minutes.
_LEFT_ALONE = timedelta(hours=1)

# It leaves few traces on submissions that are not in flight.
_UNSENT_LEFT_ALONE = timedelta(days=1)

_AT_ONCE = timedelta(0)


class ConditionKind(StrEnum):
    """A condition that may need a person. The value is the check of `doctor` that shows it."""

    NO_DATASET = "assets"
    NO_PARTITION = "partitions"
    STRANDED = "labels"
    RECOVERED = "recovered submissions"
    IN_DOUBT = "shards in doubt"
    OVERDUE = "overdue batches"
    UNREADABLE = "unreadable results"
    NO_ROOM = "room in queues"
    HELD_QUEUE = "held queues"
    NOT_SENT = "unsent batches"
    REFUSED = "refused batches"
    HELD = "held batches"
    STOPPED = "stopped submissions"
    OVER_BUDGET = "limits of money"
    NO_MONEY = "room for money"


WAITS_IN_VAIN = frozenset(
    {
        ConditionKind.IN_DOUBT,
        ConditionKind.OVERDUE,
        ConditionKind.UNREADABLE,
        ConditionKind.NO_ROOM,
        ConditionKind.NOT_SENT,
    }
)
"""A run that waits for one of these to end may wait for good, once the condition is due to be reported."""

UNDECIDED: Mapping[ConditionKind, str] = {
    ConditionKind.IN_DOUBT: "in doubt",
    ConditionKind.OVERDUE: "overdue",
    ConditionKind.UNREADABLE: "unreadable",
}
"""The conditions whose shards a person may decide by `resolve`, with a word for each."""

TELLS_OF_UNSENT = frozenset({ConditionKind.NO_ROOM, ConditionKind.NOT_SENT, ConditionKind.NO_MONEY})
"""The conditions that explain why batches are not sent yet."""

TOLD_BY_A_CHECK = frozenset({ConditionKind.STRANDED})
"""The conditions that a lasting failed check reports, so that ticks do not fail for them."""

GOES_ON = frozenset({ConditionKind.RECOVERED})
"""The conditions that delay nothing. They are reported so that they do not happen again."""

_KINDS: Mapping[HoldReason, ConditionKind] = {
    HoldReason.NO_DATASET: ConditionKind.NO_DATASET,
    HoldReason.NO_PARTITION: ConditionKind.NO_PARTITION,
    HoldReason.STRANDED: ConditionKind.STRANDED,
    HoldReason.RECOVERED: ConditionKind.RECOVERED,
    HoldReason.IN_DOUBT: ConditionKind.IN_DOUBT,
    HoldReason.OVERDUE: ConditionKind.OVERDUE,
    HoldReason.UNREADABLE: ConditionKind.UNREADABLE,
    HoldReason.FULL_QUEUE: ConditionKind.NO_ROOM,
    HoldReason.HELD_QUEUE: ConditionKind.HELD_QUEUE,
    HoldReason.NOT_SENT: ConditionKind.NOT_SENT,
    HoldReason.REFUSED: ConditionKind.REFUSED,
    HoldReason.CHANGED: ConditionKind.HELD,
    HoldReason.UNFIT: ConditionKind.STOPPED,
    HoldReason.OVER_BUDGET: ConditionKind.OVER_BUDGET,
    HoldReason.MONEY: ConditionKind.NO_MONEY,
}
"""The check of `doctor` that shows each reason. Other reasons need no person, or are shown elsewhere."""


@dataclass(frozen=True)
class Condition:
    """One condition of a submission, or of all submissions of a dataset that was removed.

    Attributes:
        reason: The reason of the wait; `RULES` has its rule.
        submission: Its submission, or the oldest one of a removed dataset.
        advice: The reason, and the next step.
        since: Its begin.
        told_after: The time until it is reported to a person. None: it ends without a person, and a failed check
            reports missing labels.
        shard_ids: Its shards, if it is a condition of shards.
    """

    reason: HoldReason
    submission: Submission
    advice: Advice
    since: datetime
    told_after: timedelta | None
    shard_ids: tuple[str, ...] = ()

    @property
    def kind(self) -> ConditionKind:
        """The check of `doctor` that shows it."""
        return _KINDS[self.reason]

    def is_due(self, now: datetime) -> bool:
        """Return whether the condition is due to be reported."""
        # The condition may have begun after `now` was read.
        return self.told_after is not None and max(now - self.since, _AT_ONCE) >= self.told_after

    @property
    def sentence(self) -> str:
        """Return the advice as separate sentences, for a text that names its place elsewhere."""
        text = str(self.advice)
        return f"{text[:1].upper()}{text[1:].rstrip('.')}."


@dataclass(frozen=True)
class Starved:
    """Planned shards that found their provider's queue full, with the time until their wait is reported.

    The shard that has waited longest comes first.
    """

    submission: Submission
    shards: Sequence[Shard]
    patience: timedelta


@dataclass(frozen=True)
class Facts:
    """The state of the ledger at one moment, and the partitions in the definitions.

    Attributes:
        now: The moment.
        undelivered: The submissions whose labels are not materialized.
        partitions: The partition keys of each dataset, "" for a dataset without partitions; None without definitions. A
            dataset with unreadable partitions is in `datasets`, but not in `partitions`.
        datasets: The names of all datasets of the definitions.
        seen: By submission_id: when a process last handled it.
        stranded: By submission_id: the event that stopped requests for runs.
        recovered: Submissions with the holds for sendings that were missing from the ledger.
        doubtful: The shards in doubt.
        overdue: The shards with overdue batches, and when these became overdue.
        unreadable: The shards whose results cannot be read.
        starved: Submissions with shards that wait for room in their provider's queue.
        held_queues: Submissions that wait for a declared queue, with the batches in it that are not polled.
        not_sent: Submissions with shards that could not be sent: how many, since when, and why.
        refused: The shards of a submission's newest wave, if the provider has refused some of them.
        unsent: The holds of submissions with unsent requests, with the reason and the next step.
        moneyless: The events of submissions with batches that wait for money.
    """

    now: datetime
    undelivered: Sequence[Progress] = ()
    partitions: Mapping[str, Collection[str]] | None = None
    datasets: Collection[str] = ()
    seen: Mapping[str, datetime] = field(default_factory=dict)
    stranded: Mapping[str, Event] = field(default_factory=dict)
    recovered: Sequence[tuple[Submission, Hold]] = ()
    doubtful: Sequence[Orphan] = ()
    overdue: Sequence[tuple[Submission, Shard, datetime]] = ()
    unreadable: Sequence[UnreadShard] = ()
    starved: Sequence[Starved] = ()
    held_queues: Sequence[tuple[Submission, Advice]] = ()
    not_sent: Sequence[tuple[Submission, int, datetime, str]] = ()
    refused: Sequence[tuple[Submission, Sequence[Shard]]] = ()
    unsent: Sequence[tuple[Submission, Hold, Unsent]] = ()
    moneyless: Sequence[tuple[Submission, Event]] = ()


def find_conditions(facts: Facts) -> list[Condition]:
    """Return the conditions, beginning with the conditions of definitions."""
    return [*_without_dataset(facts), *_without_partition(facts), *_of_submissions(facts), *_of_shards(facts)]


def split_by_dataset(conditions: Iterable[Condition]) -> tuple[list[Condition], list[Condition]]:
    """Return the first condition of each kind and dataset, and the others.

    A report with limited space shows all of the first, so that a dataset with many conditions does not hide others.
    """
    by_dataset: dict[tuple[ConditionKind, str], list[Condition]] = {}
    for condition in conditions:
        by_dataset.setdefault((condition.kind, condition.submission.asset), []).append(condition)
    each = by_dataset.values()
    return [first for first, *_ in each], [condition for _, *others in each for condition in others]


def find_gone(undelivered: Iterable[Progress], datasets: Collection[str]) -> dict[str, list[Progress]]:
    """Return the submissions of datasets missing from the definitions: removed, renamed, or of another location."""
    gone: dict[str, list[Progress]] = {}
    for one in undelivered:
        if one.submission.asset not in datasets:
            gone.setdefault(one.submission.asset, []).append(one)
    return gone


def waits_for_dataset(progress: Progress) -> bool:
    """Return whether a submission stops unless a process handles its dataset."""
    return progress.oldest_submitted_at is not None or progress.submission.state is SubmissionState.OPEN


def _without_dataset(facts: Facts) -> Iterator[Condition]:
    """Yield the datasets that are missing from the definitions.

    If another code location on the same ledger has the dataset, its sensor handles the submissions. Without batches in
    flight, only open submissions wait. Canceled ones have ended, and the answers of complete ones are paid and stored.
    """
    if facts.partitions is None:
        return
    for asset, found in sorted(find_gone(facts.undelivered, facts.datasets).items()):
        each = [one for one in found if waits_for_dataset(one)]
        if not each:
            continue
        unsent = sum(one.states.get(ShardState.PLANNED, 0) for one in each)
        flying = [one for one in each if one.oldest_submitted_at is not None]
        looks = [facts.seen.get(one.submission.submission_id, one.submission.created_at) for one in flying or each]
        advice = RULES[HoldReason.NO_DATASET].message(asset, len(each), unsent)
        told_after = _LEFT_ALONE if flying else _UNSENT_LEFT_ALONE
        yield Condition(HoldReason.NO_DATASET, each[0].submission, advice, max(looks), told_after)


def _without_partition(facts: Facts) -> Iterator[Condition]:
    """Yield the submissions of partitions that their dataset no longer has."""
    for one in facts.undelivered:
        submission, known = one.submission, (facts.partitions or {}).get(one.submission.asset)
        if known is None or submission.partition in known:
            continue
        # Answers of a canceled submission are not needed. Nor are labels that were materialized under a former name.
        if submission.state is SubmissionState.CANCELED or submission.first_delivered_at is not None:
            continue
        since = submission.settled_at or submission.created_at
        yield _condition(HoldReason.NO_PARTITION, submission, since, submission)


def _of_submissions(facts: Facts) -> Iterator[Condition]:
    """Yield the conditions of whole submissions."""
    for one in facts.undelivered:
        submission = one.submission
        if (event := facts.stranded.get(submission.submission_id)) is not None:
            yield _condition(HoldReason.STRANDED, submission, event.at, submission, event.detail or "")
    for submission, hold in facts.recovered:
        yield _condition(hold.reason, submission, hold.since, recovered_of(hold))
    for submission, hold, unsent in facts.unsent:
        yield _condition(hold.reason, submission, hold.since, unsent)
    for submission, event in facts.moneyless:
        yield _condition(HoldReason.MONEY, submission, event.at, submission, event.detail or "")


def _of_shards(facts: Facts) -> Iterator[Condition]:
    """Yield the conditions of shards and their batches."""
    now = facts.now
    for submission, shard in facts.doubtful:
        since = shard.batch.sent_at or submission.created_at
        yield _condition(HoldReason.IN_DOUBT, submission, since, shard, of=[shard])
    for submission, shard, since in facts.overdue:
        yield _condition(HoldReason.OVERDUE, submission, since, shard, now, of=[shard])
    for unread in facts.unreadable:
        yield _condition(HoldReason.UNREADABLE, unread.submission, unread.since, unread, of=[unread.shard])
    for submission, shards, patience in ((each.submission, each.shards, each.patience) for each in facts.starved):
        since = shards[0].room.no_room_at or now
        starved = _condition(HoldReason.FULL_QUEUE, submission, since, submission, shards, now, of=shards)
        yield replace(starved, told_after=patience)
    for submission, advice in facts.held_queues:
        told_after = RULES[HoldReason.HELD_QUEUE].told_after
        yield Condition(HoldReason.HELD_QUEUE, submission, advice, submission.created_at, told_after)
    for submission, count, since, reason in facts.not_sent:
        yield _condition(HoldReason.NOT_SENT, submission, since, count, since, reason)
    for submission, newest in facts.refused:
        refused = [shard for shard in newest if shard.state is ShardState.FAILED]
        if refused:
            since = min((shard.ended_at for shard in refused if shard.ended_at), default=now)
            yield _condition(HoldReason.REFUSED, submission, since, submission, refused, len(newest), of=refused)


def _condition(
    reason: HoldReason, submission: Submission, since: datetime, *subject: object, of: Sequence[Shard] = ()
) -> Condition:
    """Return the condition for a reason, with the message of its rule about `subject`."""
    rule = RULES[reason]
    ids = tuple(shard.shard_id for shard in of)
    return Condition(reason, submission, rule.message(*subject), since, rule.told_after, ids)
