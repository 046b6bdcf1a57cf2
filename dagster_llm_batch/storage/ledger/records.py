"""The records of the ledger, as frozen values: each is one row of a table. No behavior, no I/O.

    Submission 1 ──▶ n Shard        a labeled dataset's partition, sent in waves of batches
        │               ├──▶ 1 Batch in which it is sent, perhaps with others, or none
        │               └──▶ 1 Bill  what it may cost, and what it did cost
        └──▶ n Event                what happened to either, append-only

Times are aware UTC, money is `Decimal` US dollars, `None` means "not known" or "has not happened", never "zero".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from shlex import quote
from typing import Any, NamedTuple, Required, TypedDict

from dagster_llm_batch.core.json_values import BESIDE
from dagster_llm_batch.states import ENDED, HoldReason, Move, Reason, ShardState
from dagster_llm_batch.types import BatchStatus, Cause, Lane, PriceBasis

__all__ = [
    "NO_BATCH",
    "Batch",
    "Bill",
    "BillFields",
    "Ending",
    "Event",
    "Hold",
    "Judgment",
    "Presence",
    "Progress",
    "QueueHolder",
    "Room",
    "Settlement",
    "Shard",
    "ShardCost",
    "ShardFields",
    "SpendLimit",
    "Submission",
    "SubmissionState",
    "Tombstone",
    "was_taken",
]


class SubmissionState(StrEnum):
    """The state of a submission. The ledger stores the value."""

    OPEN = "open"  # shards are planned, in flight or waiting to be collected
    SETTLED = "settled"  # every request has its outcome
    CANCELED = "canceled"  # nothing more is sent; shards that were sent are still collected


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """One labeling of one partition. Unique by (namespace, asset, partition, fingerprint, attempt)."""

    submission_id: str
    namespace: str
    asset: str
    partition: str = ""  # "" = unpartitioned
    fingerprint: str  # of account, config and rows
    config_fingerprint: str  # of account and config: what answers may be reused for
    attempt: int = 1
    provider: str
    account: str
    model: str
    rows: int
    requests: int  # unique ones, reused included
    reused: int = 0  # requests whose answers were taken from `reused_from`
    waves: int = 1
    state: SubmissionState = SubmissionState.OPEN
    manifest_path: str | None = None  # relative to the payload store
    estimated_usd: Decimal | None = None
    cost_usd: Decimal | None = None
    realtime_usd: Decimal | None = None  # what real time would have cost
    price_basis: PriceBasis | None = None
    outcomes: Mapping[str, int] = field(default_factory=dict)  # Outcome value -> requests
    created_at: datetime
    settled_at: datetime | None = None  # every request has its outcome
    delivered_at: datetime | None = None  # its labels landed, or are superseded; see mark_delivered
    deadline_at: datetime | None = None  # requests without an answer then are asked in real time
    run_id: str | None = None  # Dagster run that opened it
    reused_from: tuple[str, ...] = ()  # submission ids
    p95_usd: Decimal | None = None  # what 19 of 20 such submissions cost less than
    # The most that it can cost, each request sent once to each model. None: nobody knows.
    bound_usd: Decimal | None = None
    p05_usd: Decimal | None = None  # what 19 of 20 such submissions cost more than; None: too few came before
    learned_from: int | None = None  # so many earlier submissions its estimate rests on; None: on calibrated rates
    billed: Mapping[str, Any] | None = None  # what estimates learn from it; see core/forecast.py. None: nothing
    tombstones: int | None = None  # how many tombstones of its asset were applied to its files; None: none
    tags: Mapping[str, str] | None = None  # Dagster's, of its asset when it was opened: whose money it is
    reserved_usd: Decimal | None = None  # what is kept of limits for a wave of it that is not planned yet
    audit: Mapping[str, Any] | None = None  # what an audit of a cascade found; see core/audit.py. None: there is none
    # Of a cascade: requests of its first wave and of the one in which its oracle is asked the rest, one for each model.
    questions: int | None = None
    p50_end_at: datetime | None = None  # when 1 of 2 such submissions have ended, as it was forecast; None: not known
    p90_end_at: datetime | None = None  # when 9 of 10 have
    end_basis: Mapping[str, Any] | None = None  # what these rest on: "submissions" or "batches", and how many
    tuning: Mapping[str, Any] | None = (
        None  # what was chosen by earlier submissions; see advice/tuner.py. None: nothing
    )
    pruned_at: datetime | None = None  # its files were removed: its answers cannot be reused
    landed_over_at: datetime | None = None  # older labels may have taken the place of its own
    measured_at: datetime | None = None  # its tokens and cost were given to OpenTelemetry
    first_delivered_at: datetime | None = None  # the first `delivered_at`, also where that was taken back
    reported_at: datetime | None = None  # a failed tick last reported that it waits for a person

    @property
    def is_settled(self) -> bool:
        return self.settled_at is not None

    @property
    def to_answer(self) -> int:
        """How many requests it asks. One counts once, however often it is asked of a model."""
        return self.requests - self.reused if self.questions is None else self.questions

    @property
    def manifest(self) -> str:
        """The path of its manifest, which every plan writes. Where none is recorded: a path that no file has."""
        return self.manifest_path or ""

    @property
    def folder(self) -> str:
        """The folder of its files in the payload store."""
        return self.manifest.rpartition("/")[0]

    @property
    def place(self) -> str:
        """What it is for, as people are told it: the asset and, where there is one, the partition."""
        return f"{self.asset} {self.partition}" if self.partition else self.asset

    @property
    def submitter(self) -> str:
        """What a person materializes to have it submitted again. Its key is Dagster's, and may have been translated."""
        return f"the asset that submits '{self.asset}'{f' for {self.partition}' if self.partition else ''}"

    @property
    def selector(self) -> str:
        """How the command line is told which it is: the asset and, where there is one, the partition."""
        return f"{self.asset} --partition {quote(self.partition)}" if self.partition else self.asset

    def has_applied(self, tombstones: int) -> bool:
        """Return whether all tombstones of its asset, which are so many, were applied to its files."""
        return (self.tombstones or 0) == tombstones


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """The expected cost of a shard and, from its results on, the cost itself. Each shard has one bill."""

    estimated_usd: Decimal | None = None
    bound_usd: Decimal | None = None  # the highest possible cost; None: unknown
    reserved_usd: Decimal | None = None  # kept of spend limits until the cost is known
    # From the results. All are None before the shard is collected, and where older code collected it.
    cost_usd: Decimal | None = None  # None also where the cost of some requests is unknown
    replies: int | None = None  # replies with token counts, copies sent as padding included
    input_tokens: int | None = None  # of those replies, as the next two
    output_tokens: int | None = None
    cache_read_tokens: int | None = None  # part of input_tokens
    known_usd: Decimal | None = None  # of the requests of known cost: `cost_usd` where all are known
    unpriced: int | None = None  # the requests of unknown cost
    realtime_usd: Decimal | None = None  # the same requests as in `known_usd` at real-time prices, without padding
    unlabeled_usd: Decimal | None = None  # part of `known_usd`: replies that were billed and gave no label
    padding_usd: Decimal | None = None  # part of `known_usd`: copies sent as padding


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The batch of a shard, as that shard sees it: of counts, it has the shard's part.

    A shard that is not sent has NO_BATCH, which has no key. One that was canceled unsent has a status alone.
    """

    batch_key: str | None = None  # None: the shard is not sent
    place: int = 0  # of the shard in it; the first one, 0, gives it its tag
    padding: int = 0  # requests sent only to reach the provider's least number; paid for, their replies unused
    batch_id: str | None = None  # the provider's; of an account, only the shards of one batch have the same
    sent_at: datetime | None = None  # just before the create call; None again after `not_sent`
    submitted_at: datetime | None = None  # the batch id was recorded
    status: BatchStatus | None = None  # as last reported
    total: int | None = None  # requests, as last reported; so are the next two
    done: int | None = None  # finished well or badly
    failed: int | None = None
    retryable: bool = False  # the batch may succeed if it is sent again unchanged
    erased_there_at: datetime | None = None  # the provider was made to delete what it stored of its batch


NO_BATCH = Batch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """What is known of the room that a shard has in its provider's queue, and what was chosen for it there."""

    no_room_at: datetime | None = None  # when its queue last had no room; None: it is not that what it waits for
    most_tokens: int | None = None  # the provider had no room for more, with all that was in flight of the model
    refused_at: datetime | None = None  # when its queue last had no room for it, wherever it is now
    refused_tokens: int | None = None  # how much was in flight of its model then, with its own batch
    most_requests: int | None = None  # its batch is to have no more, as was chosen by earlier ones; None: as limits say
    most_at_once: int | None = None  # with it no more tokens of its model are to be in flight, as was chosen likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Requests of one submission that are sent together. Unique by (submission_id, wave, number).

    A batch has one shard, or several of different submissions. Then its tag is that of the first one.
    """

    shard_id: str
    submission_id: str
    provider: str = ""  # the submission's, unless it falls back on another
    account: str = ""  # likewise
    model: str = ""  # likewise
    lane: Lane = Lane.BATCH
    wave: int  # from 1: a later wave sends again what can succeed
    number: int  # within the wave
    state: ShardState = ShardState.PLANNED
    nonce: str  # starts every custom_id of this shard
    requests: int
    bytes: int  # of the uncompressed request file
    path: str  # of the request file, relative to the payload store
    digest: str  # of the request file; see PayloadStore.checked
    tokens: int = 0  # estimate of the input: what a provider's queue limit counts
    input_bound: int | None = None  # the most input tokens that its longest request can have; None: unknown
    waits_until: datetime | None = None  # not to be sent before; ended: its results are not to be asked for before
    sends: int = 0  # so often it was sent; a batch that was put back counts
    ended_at: datetime | None = None
    collected_at: datetime | None = None
    polled_at: datetime | None = None  # somebody asked for it or, before it was sent, looked after it
    reason: str | None = None  # why it waits, failed or ended badly, in words, for people alone
    reason_kind: Reason | None = None  # the same, to decide by; None exactly where `reason` is
    cause: Cause | None = None  # why requests have no answer; None: it runs, or ended by itself
    refusals: int = 0  # so often in a row batches of its submission were not taken, when this one was the last of them
    raw_path: str | None = None  # raw result lines, relative to the payload store
    results_path: str | None = None  # decoded results, likewise
    erased: int | None = None  # requests that were erased from it, which its batch has or had; None: none
    reported_usd: Decimal | None = None  # what the vendor says that it cost; None: it does not, or not of all replies
    is_escalation: bool | None = None  # it asks a cascade's oracle for the first time what its model leaves to it
    answered: int | None = None  # how many of its requests got a label; None: it is not collected, or by older code
    # How many of its requests are asked again for each outcome that they had, by its value; None: of some it is not
    # known, or none is asked again.
    asked_again: Mapping[str, int] | None = None
    batch: Batch = field(default=NO_BATCH, metadata=BESIDE)
    room: Room = field(default=Room(), metadata=BESIDE)
    bill: Bill = Bill()

    @property
    def asked_of(self) -> str:
        """The model that it asks: the provider, a slash, and the provider's own name for it."""
        return f"{self.provider}/{self.model}"

    @property
    def has_answers(self) -> bool:
        """Whether its results count. A wave that was planned but never sent is ignored."""
        return bool(self.results_path) and (self.wave == 1 or self.batch.sent_at is not None)

    @property
    def waits_for_person(self) -> bool:
        """Whether what has no answer in it is not sent again before a person says so."""
        return self.cause is not None and self.cause.is_final

    @property
    def is_quoted(self) -> bool:
        """True if `reason` may have the provider's own words, which may quote requests."""
        is_its_error = self.reason_kind in (Reason.GIVEN_UP, Reason.GONE)
        return is_its_error or (self.reason_kind is not None and self.cause in (None, Cause.NOT_TAKEN))


class Queued(NamedTuple):
    """What is in a provider's queue."""

    batches: int
    requests: int
    tokens: int


# A batch in flight that nobody asks about has left its provider's queue after so many times the vendor's window: an
# account that was closed, or a namespace that nobody looks after any more, would hold its places for ever.
_WINDOWS = 2

# A shard that waits loses its place after this, unless somebody looks after it, which happens more often: the shards of
# a removed asset would block the queue for ever.
_LOOKS_EVERY = timedelta(hours=1)


class Presence(NamedTuple):
    """What counts as in a provider's queue: what was sent since, or what somebody has looked after between two times.

    That a batch which counts no more is in the queue after all costs an upload that is refused, and nothing else.
    """

    sent_since: datetime
    seen_since: datetime
    now: datetime

    @classmethod
    def at(cls, now: datetime, window: timedelta) -> Presence:
        """Return what counts at a time for a provider whose batches take as long as its window at most."""
        return cls(now - _WINDOWS * window, now - _LOOKS_EVERY, now)

    def leaves_at(self, sent_at: datetime) -> datetime:
        """Return when a batch that was sent at a time counts no more, if nobody asks about it."""
        return sent_at + (self.now - self.sent_since)


class QueuePlace(NamedTuple):
    """What one submission has in a provider's queue, or planned for it, before a shard that waits."""

    submission_id: str
    namespace: str
    asset: str
    partition: str
    is_planned: bool
    requests: int


class QueueHolder(NamedTuple):
    """Batches that are in a provider's queue, and that nobody of their namespace looks after any more.

    `shard_ids` are some of them, the oldest first, which was sent at `sent_at`; from `leaves_at` on none counts.
    """

    namespace: str
    batches: int
    shard_ids: Sequence[str]
    sent_at: datetime
    leaves_at: datetime


class Settlement(TypedDict, total=False):
    """What is recorded of a submission when every request of it has its outcome. All but the last two are needed."""

    outcomes: Required[Mapping[str, int]]
    cost_usd: Required[Decimal | None]
    realtime_usd: Required[Decimal | None]
    price_basis: Required[PriceBasis | None]
    billed: Mapping[str, Any] | None
    audit: Mapping[str, Any] | None


class BillFields(TypedDict, total=False):
    """The columns of the bill that a transition may set."""

    reserved_usd: Decimal | None
    cost_usd: Decimal | None
    replies: int
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int
    known_usd: Decimal
    unpriced: int
    realtime_usd: Decimal
    unlabeled_usd: Decimal
    padding_usd: Decimal


class ShardFields(BillFields, total=False):
    """The columns of a shard and of its bill that a move may set beside the new state."""

    lane: Lane
    padding: int
    waits_until: datetime | None
    refusals: int
    no_room_at: datetime | None
    most_tokens: int | None
    refused_at: datetime | None
    refused_tokens: int | None
    batch_id: str
    sent_at: datetime
    submitted_at: datetime
    ended_at: datetime
    collected_at: datetime
    status: BatchStatus
    total: int | None
    done: int | None
    failed: int | None
    reason: str | None
    reason_kind: Reason | None
    retryable: bool
    cause: Cause | None
    raw_path: str
    results_path: str
    reported_usd: Decimal | None
    answered: int


def was_taken(lane: Lane, batch_id: str | None, sent_at: datetime | None) -> bool:
    """Return whether a shard that is over may have been billed."""
    # Without a batch nothing was. In real time there is none: what was sent may have been answered, and counts.
    return batch_id is not None or (lane is Lane.REALTIME and sent_at is not None)


class ShardCost(NamedTuple):
    """What a table of costs is summed from: one shard, with whose it is. The names are those of the columns."""

    asset: str
    partition: str
    tags: Mapping[str, str] | None
    expected_usd: Decimal | None  # `estimated_usd` of the whole submission, as the next two
    p05_usd: Decimal | None
    p95_usd: Decimal | None
    submission_id: str
    provider: str
    model: str
    lane: Lane
    wave: int
    state: ShardState
    cause: Cause | None
    batch_id: str | None
    sent_at: datetime | None
    planned_at: datetime
    requests: int
    padding: int
    estimated_usd: Decimal | None
    cost_usd: Decimal | None
    reported_usd: Decimal | None
    replies: int | None
    input_tokens: int | None
    output_tokens: int | None
    cache_read_tokens: int | None
    known_usd: Decimal | None
    unpriced: int | None
    realtime_usd: Decimal | None
    unlabeled_usd: Decimal | None
    padding_usd: Decimal | None
    is_escalation: bool | None

    @property
    def is_again(self) -> bool:
        """Whether its requests were asked before, of this model or of one in whose place it is."""
        return self.wave > 1 and not self.is_escalation

    @property
    def day(self) -> date:
        """The day, in UTC, on which it was sent, or else planned: when its money was committed."""
        return (self.sent_at or self.planned_at).date()

    @property
    def was_taken(self) -> bool:
        return was_taken(self.lane, self.batch_id, self.sent_at)

    @property
    def is_open(self) -> bool:
        """Whether it may cost something still that its results will tell."""
        return self.state is not ShardState.COLLECTED and (self.state not in ENDED or self.was_taken)


class SpendLimit(NamedTuple):
    """The most that may be billed, with what can be billed at most of all that is sent.

    It holds for one submission, or for all shards of a namespace, of one asset where that is given, that were sent at
    or after `since` or are about to be.
    """

    max_usd: Decimal
    namespace: str
    submission_id: str | None = None
    asset: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the batch of a shard ended."""

    move: Move
    batch_id: str
    status: BatchStatus
    ended_at: datetime
    total: int | None
    done: int | None
    failed: int | None
    reason: str | None
    retryable: bool
    cause: Cause | None = None
    reported_usd: Decimal | None = None
    reason_kind: Reason | None = None  # None: of a reason, it is in the provider's words

    def values(self) -> ShardFields:
        """Return the columns that the ledger sets for it."""
        return {
            "status": self.status,
            "ended_at": self.ended_at,
            "total": self.total,
            "done": self.done,
            "failed": self.failed,
            "reason": self.reason,
            "reason_kind": None if self.reason is None else self.reason_kind or Reason.PROVIDER,
            "retryable": self.retryable,
            "cause": self.cause,
            "reported_usd": self.reported_usd,
            # From here on it is the time at which results that could not be read are asked for again.
            "waits_until": None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `kind` is a Move's value, or the ledger's or the caller's word for it."""

    event_id: int  # ascending in the order of writing
    submission_id: str
    shard_id: str | None = None
    at: datetime
    kind: str
    from_state: str | None = None
    to_state: str | None = None
    detail: str | None = None  # in words, for people alone
    data: Mapping[str, Any] | None = None  # see events.py, which reads it


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A shard or a submission is held up. Unique by (subject, reason)."""

    subject: str  # the id of the shard, or of the submission
    reason: HoldReason
    submission_id: str
    shard_id: str | None = None  # of a shard
    since: datetime
    times: int = 1
    data: Mapping[str, Any] | None = None
    words: str | None = None  # of the provider


@dataclass(frozen=True, slots=True, kw_only=True)
class Tombstone:
    """A row that a person had erased: it is not asked, landed or stored again. It has a digest in the key's place.

    Whoever has the ledger and guesses the key can see that the guess is right; nothing else tells the key.
    """

    namespace: str
    asset: str
    partition: str | None  # None: of every partition
    salt: str  # in hex
    digest: str  # of the key's text, with the salt; see core/keys.py
    at: datetime
    undone_at: datetime | None = None  # a person took it back: the row is asked again


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """What a person said of a row. A later one of the same person on the same row takes its place; none is changed."""

    form_id: str  # of the page on which it was said: sent twice, it is stored once
    namespace: str
    dataset: str
    partition: str = ""
    row_key: str  # as text
    annotator: str
    kind: str  # label, undecidable, skip, or undo: of the same person's last one on this row
    answer: Mapping[str, Any] | None = None  # of a label: the response's fields
    comment: str | None = None
    seconds: float | None = None  # from the page to its answer
    sample: Mapping[str, Any] | None = None  # how the row was drawn: its columns sample_…
    at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """An undelivered submission at a glance. A request counts once, however often it is asked."""

    submission: Submission
    states: Mapping[ShardState, int]  # shards per state; states without shards are left out
    # Batches that carry these shards, as their providers count them, and shards in no batch; likewise.
    batches: Mapping[ShardState, int] = field(default_factory=dict)
    unbatched: Mapping[ShardState, int] = field(default_factory=dict)
    total: int  # requests, besides those whose answers are reused
    done: int  # as last reported; what a later wave asks again is not done until that is
    failed: int  # likewise, besides those that are asked again
    asked: int  # of them in the newest wave
    oldest_submitted_at: datetime | None  # of the shards in flight
