"""The conditions of undelivered submissions that need a person: one list for ticks, alerts, `doctor` and `watch`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from dagster_llm_batch.engine.activity import Orphan, orphans
from dagster_llm_batch.engine.status import (
    Advice,
    advise_on_doubt,
    advise_on_no_dataset,
    advise_on_no_partition,
    advise_on_no_room,
    advise_on_overdue,
    advise_on_stranded,
    advise_on_unreadable,
)
from dagster_llm_batch.states import IN_FLIGHT, ShardState
from dagster_llm_batch.storage.ledger.records import Progress, Shard, Submission, SubmissionState
from dagster_llm_batch.storage.ledger.unread import UnreadShard

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["Condition", "ConditionKind", "Facts", "find_conditions", "is_left_alone", "read_facts"]

# A sensor asks about a batch each ten minutes at least.
_LEFT_ALONE = timedelta(hours=1)

# Until then the sensor usually finds the batch.
_DOUBT = timedelta(minutes=15)


class ConditionKind(StrEnum):
    """What needs a person. The value is the check of `doctor` that shows it."""

    NO_DATASET = "assets"
    NO_PARTITION = "partitions"
    STRANDED = "labels"
    IN_DOUBT = "shards in doubt"
    OVERDUE = "overdue batches"
    UNREADABLE = "unreadable results"
    NO_ROOM = "room in queues"


@dataclass(frozen=True)
class Condition:
    """One condition of a submission, or of all submissions of a dataset that is gone.

    Attributes:
        kind: See ConditionKind.
        submission: The one that needs a person; of a dataset that is gone the oldest.
        advice: What happened, and the next step.
        is_urgent: Whether it stays until a person acts. Others may pass by themselves.
    """

    kind: ConditionKind
    submission: Submission
    advice: Advice
    is_urgent: bool = True


@dataclass(frozen=True)
class Facts:
    """What the ledger has at one moment, and which partitions the definitions have.

    Attributes:
        now: The moment.
        undelivered: The submissions whose labels have not landed.
        partitions: The partition keys of each dataset, "" for one without partitions; None where no definitions are
            known. A dataset whose partitions cannot be read has no entry in `partitions`, and one in `datasets`.
        datasets: The names of all datasets of the definitions.
        stranded: Why no run is requested any more, by submission_id.
        doubtful: The shards in doubt.
        overdue: The shards whose batches are overdue.
        unreadable: The shards whose results could not be read for an hour.
        starved: The shards that wait too long for room in a queue.
    """

    now: datetime
    undelivered: Sequence[Progress]
    partitions: Mapping[str, Collection[str]] | None = None
    datasets: Collection[str] = ()
    stranded: Mapping[str, str] = field(default_factory=dict)
    doubtful: Sequence[Orphan] = ()
    overdue: Sequence[tuple[Submission, Shard]] = ()
    unreadable: Sequence[UnreadShard] = ()
    starved: Sequence[tuple[Submission, Shard]] = ()


def read_facts(engine: Engine, partitions: Mapping[str, Collection[str]] | None, datasets: Collection[str]) -> Facts:
    """Read the facts of a namespace from its ledger, in as many queries for many submissions as for few."""
    undelivered = engine.ledger.progress(engine.namespace)
    outlook = engine.outlook()
    reasons = {each.submission.submission_id: outlook.stranded(each.submission.submission_id) for each in undelivered}
    return Facts(
        now=engine.now(),
        undelivered=undelivered,
        partitions=partitions,
        datasets=datasets,
        stranded={submission_id: reason for submission_id, reason in reasons.items() if reason is not None},
        doubtful=orphans(engine.ledger, engine.namespace),
        overdue=engine.overdue(),
        unreadable=engine.unreadable(),
        starved=engine.starved(),
    )


def find_conditions(facts: Facts) -> list[Condition]:
    """Return the conditions, those of definitions first."""
    return [
        *_without_dataset(facts),
        *_without_partition(facts),
        *(
            Condition(ConditionKind.STRANDED, one.submission, advise_on_stranded(one.submission, reason))
            for one in facts.undelivered
            if (reason := facts.stranded.get(one.submission.submission_id)) is not None
        ),
        *(
            Condition(ConditionKind.IN_DOUBT, submission, advise_on_doubt(shard), _is_old(shard.sent_at, facts.now))
            for submission, shard in facts.doubtful
        ),
        *(
            Condition(ConditionKind.OVERDUE, submission, advise_on_overdue(shard, facts.now))
            for submission, shard in facts.overdue
        ),
        *(
            Condition(ConditionKind.UNREADABLE, unread.submission, advise_on_unreadable(unread))
            for unread in facts.unreadable
        ),
        *(
            Condition(ConditionKind.NO_ROOM, submission, advise_on_no_room(submission, shard, facts.now))
            for submission, shard in facts.starved
        ),
    ]


def _is_old(sent_at: datetime | None, now: datetime) -> bool:
    return sent_at is not None and now - sent_at > _DOUBT


def _without_dataset(facts: Facts) -> Iterator[Condition]:
    """Yield the datasets that the definitions do not have: removed, renamed, or another code location's."""
    if facts.partitions is None:
        return
    gone: dict[str, list[Progress]] = {}
    for one in facts.undelivered:
        if one.submission.asset not in facts.datasets:
            gone.setdefault(one.submission.asset, []).append(one)
    for asset, each in sorted(gone.items()):
        unsent = sum(one.states.get(ShardState.PLANNED, 0) for one in each)
        advice = advise_on_no_dataset(asset, len(each), unsent)
        yield Condition(ConditionKind.NO_DATASET, each[0].submission, advice, is_urgent=False)


def _without_partition(facts: Facts) -> Iterator[Condition]:
    """Yield the submissions of partitions that their dataset no longer has."""
    for one in facts.undelivered:
        submission, known = one.submission, (facts.partitions or {}).get(one.submission.asset)
        # Answers of a canceled submission that are not there to be landed are missed by nobody.
        if known is None or submission.partition in known or submission.state is SubmissionState.CANCELED:
            continue
        yield Condition(ConditionKind.NO_PARTITION, submission, advise_on_no_partition(submission))


def is_left_alone(each: Sequence[Shard], now: datetime) -> bool:
    """Return whether no process has looked after these shards, all of one dataset, for an hour.

    A code location of another team, whose sensor works, looks after its own.
    """
    looks = [shard.polled_at or shard.submitted_at or shard.sent_at for shard in each if shard.state in IN_FLIGHT]
    return bool(looks) and all(look is not None and now - look > _LEFT_ALONE for look in looks)
