"""The conditions of undelivered submissions that a person may have to end: one list for all who show them.

Ticks, and the alerts on them, `doctor`, `watch`, runs that wait and the checks of assets find none by themselves: they
format, filter and throttle what `find_conditions` returns.
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

# A sensor asks about a batch each ten minutes at least.
_LEFT_ALONE = timedelta(hours=1)

# It leaves few marks on what is not in flight.
_UNSENT_LEFT_ALONE = timedelta(days=1)

_AT_ONCE = timedelta(0)


class ConditionKind(StrEnum):
    """What may need a person. The value is the check of `doctor` that shows it."""

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
"""A run that waits for the end of one of these, when a person is told of it, may wait for good."""

UNDECIDED: Mapping[ConditionKind, str] = {
    ConditionKind.IN_DOUBT: "in doubt",
    ConditionKind.OVERDUE: "overdue",
    ConditionKind.UNREADABLE: "unreadable",
}
"""About the shards of these a person may decide by `resolve`, with the word for each."""

TELLS_OF_UNSENT = frozenset({ConditionKind.NO_ROOM, ConditionKind.NOT_SENT, ConditionKind.NO_MONEY})
"""These tell why batches are not sent yet."""

TOLD_BY_A_CHECK = frozenset({ConditionKind.STRANDED})
"""A failed check tells a person of these, and stays: no tick fails for them."""

GOES_ON = frozenset({ConditionKind.RECOVERED})
"""These hold up nothing: a person is told so that it does not happen again."""

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
"""The check of `doctor` that shows each reason. The others need no person, or are shown in another place."""


@dataclass(frozen=True)
class Condition:
    """One condition of a submission, or of all submissions of a dataset that is gone.

    Attributes:
        reason: The reason of the wait; `RULES` has its rule.
        submission: Its submission; of a dataset that is gone the oldest.
        advice: The reason, and the next step.
        since: Its begin.
        told_after: The time after which a person is told; None: it ends by itself, and what is left then
            lands with a failed check, which tells a person.
        shard_ids: Its shards, where it is one of shards.
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
        """Return whether a person is to be told by now."""
        # It may have begun since `now` was read.
        return self.told_after is not None and max(now - self.since, _AT_ONCE) >= self.told_after

    @property
    def sentence(self) -> str:
        """Return the advice as sentences of their own, for a text that names its place elsewhere."""
        text = str(self.advice)
        return f"{text[:1].upper()}{text[1:].rstrip('.')}."


@dataclass(frozen=True)
class Starved:
    """Planned shards that their provider's queue had no room for, and how long they may wait before a person is told.

    The one that has waited longest comes first.
    """

    submission: Submission
    shards: Sequence[Shard]
    patience: timedelta


@dataclass(frozen=True)
class Facts:
    """What the ledger has at one moment, and which partitions the definitions have.

    Attributes:
        now: The moment.
        undelivered: The submissions whose labels have not landed.
        partitions: The partition keys of each dataset, "" for one without partitions; None where no definitions are
            known. A dataset whose partitions cannot be read has no entry in `partitions`, and one in `datasets`.
        datasets: The names of all datasets of the definitions.
        seen: When a process has looked after a submission for the last time, by submission_id.
        stranded: The event since which no run is requested any more, by submission_id.
        recovered: Submissions with the holds of what the ledger had no record of.
        doubtful: The shards in doubt.
        overdue: The shards whose batches are overdue, and since when.
        unreadable: The shards whose results cannot be read.
        starved: Submissions with shards that wait for room in their provider's queue.
        held_queues: Submissions that wait for a declared queue, and who fills it and is not looked after.
        not_sent: Submissions with shards that could not be sent: how many, since when, and why.
        refused: The shards of the newest wave of a submission, of which the provider has refused some.
        unsent: The holds of submissions of which requests are not sent, with the reason and the next step.
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
    """Return the conditions, those of definitions first."""
    return [*_without_dataset(facts), *_without_partition(facts), *_of_submissions(facts), *_of_shards(facts)]


def split_by_dataset(conditions: Iterable[Condition]) -> tuple[list[Condition], list[Condition]]:
    """Return the first condition of each kind and dataset, and the others.

    Who shows a part of the conditions shows all of the first: a dataset with many must hide no other.
    """
    by_dataset: dict[tuple[ConditionKind, str], list[Condition]] = {}
    for condition in conditions:
        by_dataset.setdefault((condition.kind, condition.submission.asset), []).append(condition)
    each = by_dataset.values()
    return [first for first, *_ in each], [condition for _, *others in each for condition in others]


def find_gone(undelivered: Iterable[Progress], datasets: Collection[str]) -> dict[str, list[Progress]]:
    """Return the submissions of datasets that the definitions do not have: removed, renamed, or another location's."""
    gone: dict[str, list[Progress]] = {}
    for one in undelivered:
        if one.submission.asset not in datasets:
            gone.setdefault(one.submission.asset, []).append(one)
    return gone


def waits_for_dataset(progress: Progress) -> bool:
    """Return whether a submission goes no further where nobody looks after its dataset."""
    return progress.oldest_submitted_at is not None or progress.submission.state is SubmissionState.OPEN


def _without_dataset(facts: Facts) -> Iterator[Condition]:
    """Yield the datasets that the definitions do not have.

    Another code location on the same ledger may have one: then its sensor looks after the submissions. Of what is not
    in flight, only an open one waits for somebody: a canceled one has ended, and of a settled one all is paid and kept.
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
        # Nobody waits for answers of a canceled submission, or for labels that landed as a former name of the dataset.
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
