"""The records of the ledger, as frozen values: each is one row of a table. No behavior, no I/O.

    Submission 1 ──▶ n Shard        a labeled dataset's partition, sent in batches and retry rounds
        │               ├──▶ 1 Batch its batch, which may have other shards, or none before it is sent
        │               └──▶ 1 Bill  its expected and its actual cost
        └──▶ n Event                the history of both, append-only

Times are aware UTC, and money is `Decimal` US dollars. `None` means "unknown" or "has not happened", never "zero".
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
from dagster_llm_batch.states import ENDED, HoldReason, Reason, ShardState, Transition
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
    "Progress",
    "QueueHolder",
    "QueueOccupancy",
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
    config_fingerprint: str  # of account and config: answers are reused only for the same one
    attempt: int = 1
    provider: str
    account: str
    model: str
    rows: int
    requests: int  # unique ones, including reused ones
    reused: int = 0  # requests whose answers were taken from `reused_from`
    waves: int = 1
    state: SubmissionState = SubmissionState.OPEN
    manifest_path: str | None = None  # relative to the payload store
    estimated_usd: Decimal | None = None
    cost_usd: Decimal | None = None
    realtime_usd: Decimal | None = None  # cost of the same requests in real time
    price_basis: PriceBasis | None = None
    outcomes: Mapping[str, int] = field(default_factory=dict)  # Outcome value -> requests
    created_at: datetime
    settled_at: datetime | None = None  # every request has its outcome
    delivered_at: datetime | None = None  # its labels are materialized or superseded; see mark_delivered
    deadline_at: datetime | None = None  # requests without an answer then are asked in real time
    run_id: str | None = None  # Dagster run that opened it
    reused_from: tuple[str, ...] = ()  # submission ids
    p95_usd: Decimal | None = None  # 95th percentile of the cost of such submissions
    # The most that it can cost if each request is sent once to each model. None: unknown.
    bound_usd: Decimal | None = None
    p05_usd: Decimal | None = None  # 5th percentile of the cost of such submissions; None: too few came before
    learned_from: int | None = None  # number of earlier submissions behind its estimate; None: calibrated rates
    billed: Mapping[str, Any] | None = None  # its figures for later estimates; see core/forecast.py. None: nothing
    tombstones: int | None = None  # number of its asset's tombstones that were applied to its files; None: 0
    tags: Mapping[str, str] | None = None  # Dagster's, of its asset when it was opened: to attribute the cost
    reserved_usd: Decimal | None = None  # reserved in spending limits for an unplanned retry round
    audit: Mapping[str, Any] | None = None  # result of a cascade's audit; see core/audit.py. None: not audited
    # Of a cascade: requests of its first round, and of the round that asks the oracle the rest. One for each model.
    # With near copies: requests of the first round, and of the round that asks the copies without an answer to share.
    questions: int | None = None
    p50_end_at: datetime | None = None  # forecast: 1 of 2 such submissions have ended by then; None: unknown
    p90_end_at: datetime | None = None  # likewise for 9 of 10
    end_basis: Mapping[str, Any] | None = None  # basis of these: "submissions" or "batches", and how many
    tuning: Mapping[str, Any] | None = None  # chosen from earlier submissions; see advice/tuner.py. None: nothing
    pruned_at: datetime | None = None  # its files were removed: its answers cannot be reused
    landed_over_at: datetime | None = None  # older labels may have replaced its own
    measured_at: datetime | None = None  # its tokens and cost were reported to OpenTelemetry
    first_delivered_at: datetime | None = None  # the first `delivered_at`, even if that was reverted
    reported_at: datetime | None = None  # a failed tick last reported that it waits for a person
    is_cascade: bool | None = None  # the failures of its own model go to its oracle

    @property
    def is_settled(self) -> bool:
        return self.settled_at is not None

    @property
    def to_answer(self) -> int:
        """Number of requests. One counts once, however often a model is asked."""
        return self.requests - self.reused if self.questions is None else self.questions

    @property
    def manifest(self) -> str:
        """The path of its manifest, which every plan writes. If none is recorded, a path without a file."""
        return self.manifest_path or ""

    @property
    def folder(self) -> str:
        """The folder of its files in the payload store."""
        return self.manifest.rpartition("/")[0]

    @property
    def place(self) -> str:
        """Its asset and, if partitioned, its partition, for messages."""
        return f"{self.asset} {self.partition}" if self.partition else self.asset

    @property
    def submitter(self) -> str:
        """The asset to materialize to submit it again. Its key is Dagster's, and may have been translated."""
        return f"the asset that submits '{self.asset}'{f' for {self.partition}' if self.partition else ''}"

    @property
    def selector(self) -> str:
        """The arguments that select it on the command line: its asset and, if partitioned, its partition."""
        return f"{self.asset} --partition {quote(self.partition)}" if self.partition else self.asset

    def has_applied(self, tombstones: int) -> bool:
        """Return whether all of its asset's tombstones, `tombstones` in number, were applied to its files."""
        return (self.tombstones or 0) == tombstones


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """The expected cost of a shard and, once its results are read, the actual cost. Each shard has one bill."""

    estimated_usd: Decimal | None = None
    bound_usd: Decimal | None = None  # the highest possible cost; None: unknown
    reserved_usd: Decimal | None = None  # reserved in spending limits until the cost is known
    # From the results. All are None before the shard is collected, and if older code collected it.
    cost_usd: Decimal | None = None  # None also if the cost of some requests is unknown
    replies: int | None = None  # replies with token counts, including copies sent as padding
    input_tokens: int | None = None  # of those replies; so are the next two
    output_tokens: int | None = None
    cache_read_tokens: int | None = None  # part of input_tokens
    known_usd: Decimal | None = None  # of the requests of known cost: equals `cost_usd` if all are known
    unpriced: int | None = None  # the requests of unknown cost
    realtime_usd: Decimal | None = None  # the same requests as in `known_usd` at real-time prices, without padding
    unlabeled_usd: Decimal | None = None  # part of `known_usd`: billed replies without a label
    padding_usd: Decimal | None = None  # part of `known_usd`: copies sent as padding


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The batch of a shard, from that shard's view: the counts are the shard's part.

    A shard that is not sent has NO_BATCH, which has no key. A shard that was canceled unsent has only a status.
    """

    batch_key: str | None = None  # None: the shard is not sent
    place: int = 0  # of the shard in it; the first one, 0, gives it its tag
    padding: int = 0  # requests sent only to reach the provider's least number; paid for, their replies unused
    batch_id: str | None = None  # the provider's; identifies one batch within an account
    sent_at: datetime | None = None  # just before the create call; None again after `not_sent`
    submitted_at: datetime | None = None  # the batch id was recorded
    status: BatchStatus | None = None  # as last reported
    total: int | None = None  # requests, last reported, like the next two
    done: int | None = None  # finished well or badly
    failed: int | None = None
    retryable: bool = False  # the batch may succeed if it is sent again unchanged
    erased_there_at: datetime | None = None  # the provider deleted its data of the batch, on request


NO_BATCH = Batch()


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A shard's known and chosen limits in its provider's queue."""

    no_room_at: datetime | None = None  # when its queue was last full; None: it does not wait for space
    most_tokens: int | None = None  # the provider refused more, with all tokens in flight of the model
    refused_at: datetime | None = None  # when its queue last refused it, whatever its state is now
    refused_tokens: int | None = None  # tokens of its model in flight at that time, with its own batch
    most_requests: int | None = None  # of its batch, chosen from earlier batches; None: the usual limits
    most_at_once: int | None = None  # tokens of its model in flight, including its own, chosen likewise


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """Requests of one submission that are sent together. Unique by (submission_id, wave, number).

    A batch has one shard, or several of different submissions. Then its tag is the first shard's.
    """

    shard_id: str
    submission_id: str
    provider: str = ""  # the submission's, except for a fallback model
    account: str = ""  # likewise
    model: str = ""  # likewise
    lane: Lane = Lane.BATCH
    wave: int  # 1, or the number of a retry round, which repeats requests that can succeed
    number: int  # within the round
    state: ShardState = ShardState.PLANNED
    nonce: str  # starts every custom_id of this shard
    requests: int
    bytes: int  # of the uncompressed request file
    path: str  # of the request file, relative to the payload store
    digest: str  # of the request file; see PayloadStore.checked
    tokens: int = 0  # estimated input tokens, which a provider's queue limit counts
    input_bound: int | None = None  # the most input tokens that its longest request can have; None: unknown
    waits_until: datetime | None = None  # do not send it before; after its end: do not ask for results before
    sends: int = 0  # number of sendings, including those of batches that were put back
    ended_at: datetime | None = None
    collected_at: datetime | None = None
    polled_at: datetime | None = None  # last polled or, before it was sent, looked after
    reason: str | None = None  # cause of a wait, failure or bad end, in words, only for people
    reason_kind: Reason | None = None  # the same for decisions; None exactly if `reason` is
    cause: Cause | None = None  # why requests have no answer; None: the batch is running or was not stopped
    refusals: int = 0  # number of its submission's batches that were rejected in a row, if it was the last of them
    raw_path: str | None = None  # raw result lines, relative to the payload store
    results_path: str | None = None  # decoded results, likewise
    erased: int | None = None  # requests that were erased from it, and were or are in its batch; None: 0
    reported_usd: Decimal | None = None  # cost reported by the vendor; None: unreported, or not for all replies
    is_escalation: bool | None = None  # it asks a cascade's oracle for the first time, after the model
    answered: int | None = None  # how many of its requests got a label; None: uncollected, or collected by older code
    has_uploads: bool | None = None  # its lines name documents that are uploaded before they are sent
    # Number of its requests that are retried, by the value of their outcome. None: some are unknown, or all are final.
    asked_again: Mapping[str, int] | None = None
    batch: Batch = field(default=NO_BATCH, metadata=BESIDE)
    room: Room = field(default=Room(), metadata=BESIDE)
    bill: Bill = Bill()

    @property
    def asked_of(self) -> str:
        """The model that it asks: the provider, a slash, and the provider's own name for the model."""
        return f"{self.provider}/{self.model}"

    @property
    def has_answers(self) -> bool:
        """Whether its results count. A retry round that was planned but never sent is ignored."""
        return bool(self.results_path) and (self.wave == 1 or self.batch.sent_at is not None)

    @property
    def waits_for_person(self) -> bool:
        """True if its unanswered requests are sent again only after a person decides so."""
        return self.cause is not None and self.cause.is_final

    @property
    def is_quoted(self) -> bool:
        """True if `reason` may contain the provider's own words, which may quote requests."""
        is_its_error = self.reason_kind in (Reason.GIVEN_UP, Reason.GONE)
        return is_its_error or (self.reason_kind is not None and self.cause in (None, Cause.NOT_TAKEN))


class Queued(NamedTuple):
    """The contents of a provider's queue."""

    batches: int
    requests: int
    tokens: int


# After this many of the vendor's windows, an unpolled batch in flight counts as gone from its provider's queue.
# Otherwise a closed account, or an abandoned namespace, would keep its places for ever.
_WINDOWS = 2

# A waiting shard loses its place after this time unless it is looked after, which happens more often. Otherwise the
# shards of a removed asset would block the queue for ever.
_LOOKS_EVERY = timedelta(hours=1)


class QueueOccupancy(NamedTuple):
    """The batches that count as being in a provider's queue: sent since a time, or looked after between two times.

    If a batch no longer counts but is still queued, the only cost is an upload that the provider refuses.
    """

    sent_since: datetime
    seen_since: datetime
    now: datetime

    @classmethod
    def at(cls, now: datetime, window: timedelta) -> QueueOccupancy:
        """Return the occupancy at a time, for a provider whose batches take at most its window."""
        return cls(now - _WINDOWS * window, now - _LOOKS_EVERY, now)

    def leaves_at(self, sent_at: datetime) -> datetime:
        """Return when a batch that was sent at `sent_at` stops counting if it is not polled."""
        return sent_at + (self.now - self.sent_since)


class QueuePlace(NamedTuple):
    """One submission's requests before a waiting shard, in a provider's queue or planned for it."""

    submission_id: str
    namespace: str
    asset: str
    partition: str
    is_planned: bool
    requests: int


class QueueHolder(NamedTuple):
    """Neglected batches in a provider's queue: processes of their namespace no longer look after them.

    `shard_ids` are some of their shards, the oldest first, which was sent at `sent_at`. All stop counting at
    `leaves_at`.
    """

    namespace: str
    batches: int
    shard_ids: Sequence[str]
    sent_at: datetime
    leaves_at: datetime


class Settlement(TypedDict, total=False):
    """The values to record when every request of a submission has its outcome. All but the last two are required."""

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
    """The columns of a shard and of its bill that a transition may set in addition to the new state."""

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
    # Only a batch is billed, except in real time: sent requests may have been answered, and count.
    return batch_id is not None or (lane is Lane.REALTIME and sent_at is not None)


class ShardCost(NamedTuple):
    """One shard for a table of costs, with its owner. The names are the names of the columns."""

    asset: str
    partition: str
    tags: Mapping[str, str] | None
    expected_usd: Decimal | None  # `estimated_usd` of the whole submission, like the next two
    p05_usd: Decimal | None
    p95_usd: Decimal | None
    submission_id: str
    shard_id: str
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
        """True if its requests were asked before, of this model or of one that it replaces."""
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
        """True if it may still incur a cost that its results will show."""
        return self.state is not ShardState.COLLECTED and (self.state not in ENDED or self.was_taken)


class SpendLimit(NamedTuple):
    """A limit on billed costs plus the highest possible costs of everything that is sent.

    It holds for one submission, or for all shards of a namespace (of one asset, if given) that were sent at or after
    `since` or are about to be sent.
    """

    max_usd: Decimal
    namespace: str
    submission_id: str | None = None
    asset: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """The end of a shard's batch."""

    move: Transition
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
    reason_kind: Reason | None = None  # None: a reason, if any, is in the provider's words

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
            # From now on it is the time to ask again for results that could not be read.
            "waits_until": None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. `kind` is a value of Transition, or a word of the ledger or the caller."""

    event_id: int  # ascending in the order of writing
    submission_id: str
    shard_id: str | None = None
    at: datetime
    kind: str
    from_state: str | None = None
    to_state: str | None = None
    detail: str | None = None  # in words, only for people
    data: Mapping[str, Any] | None = None  # see events.py, which reads it


@dataclass(frozen=True, slots=True, kw_only=True)
class Hold:
    """A reason that holds up a shard or a submission. Unique by (subject, reason)."""

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
    """A row that a person had erased: it is not asked, materialized or stored again. A digest replaces the key.

    With the ledger, a guess of the key can be verified; the key cannot be read from it.
    """

    namespace: str
    asset: str
    partition: str | None  # None: of every partition
    salt: str  # in hex
    digest: str  # of the key's text, with the salt; see core/keys.py
    at: datetime
    undone_at: datetime | None = None  # a person reverted the erasure: the row is asked again


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A document that was, or is being, uploaded to a provider. Its file there has the name `dlb-<upload_key>.<kind>`.

    `name` is the SHA-256 of the document, a point, and the ending of its kind.
    """

    upload_key: str
    namespace: str
    provider: str
    account: str
    name: str
    bytes: int
    began_at: datetime  # before the call
    needed_at: datetime  # when requests that name it were last sent
    file_id: str | None = None  # the provider's; None: the call has no answer yet, or never got one
    uploaded_at: datetime | None = None
    expires_at: datetime | None = None  # None: unknown, or it stays until it is deleted
    lost_at: datetime | None = None  # another upload has taken its place, and its file is to go

    @property
    def file_name(self) -> str:
        """The name of its file at the provider, which shows nothing of the document."""
        return f"dlb-{self.upload_key}.{self.name.rpartition('.')[2]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgment:
    """A person's judgment of a row. It never changes; the same person's next judgment of the row replaces it."""

    form_id: str  # of the page with the judgment: sent twice, it is stored once
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
    # Batches that carry these shards, as their providers count them, and shards without a batch; likewise.
    batches: Mapping[ShardState, int] = field(default_factory=dict)
    unbatched: Mapping[ShardState, int] = field(default_factory=dict)
    total: int  # requests, without those whose answers are reused
    done: int  # last reported; a request that is being retried is not done
    failed: int  # likewise, without those that are being retried
    asked: int  # of them in the newest round
    oldest_submitted_at: datetime | None  # of the shards in flight
