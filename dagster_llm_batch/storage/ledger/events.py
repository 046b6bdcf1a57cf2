"""The kinds of events: a frozen dataclass for each, its data as JSON, and its text for people.

`event.data` holds the fields, except `words`. Words come from others, may quote a request, and are stored in
`event.detail`, which an erasure overwrites. `detail` of other kinds is made from the fields. Code reads
events with `read_event` and never looks into `detail`: you can reword a text here without changing a decision.

An event of an unknown kind, and one with other fields than its kind has, is read as `Other`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from dagster_llm_batch.states import Transition
from dagster_llm_batch.storage.ledger.records import Event

__all__ = [
    "Adopted",
    "Ambiguous",
    "BelowMinimum",
    "BilledInTier",
    "Canceled",
    "CauseSet",
    "Delivered",
    "Erased",
    "ErasedThere",
    "EventData",
    "FetchAgain",
    "Held",
    "LandedOver",
    "LandingFailed",
    "LandingLost",
    "Measured",
    "Moved",
    "NotKnown",
    "NotThere",
    "Noted",
    "Opened",
    "Other",
    "OverBudget",
    "PersonTold",
    "Pruned",
    "PutBack",
    "RawPruned",
    "Recovered",
    "Renamed",
    "ResultsRestored",
    "Settled",
    "Split",
    "StatusChanged",
    "Stopped",
    "Stranded",
    "StrayBatch",
    "Superseded",
    "Turn",
    "Unavailable",
    "UnexpectedLines",
    "Unreadable",
    "Unsent",
    "Unsettled",
    "Waits",
    "WaveAdded",
    "event_columns",
    "read_event",
    "with_example",
]


class EventData:
    """The data of an event. `kind` is the word that the ledger stores for it."""

    kind: ClassVar[str]

    @property
    def detail(self) -> str | None:
        """The event in words, for people; None if the kind is enough."""
        return None


class _InWords(EventData):
    """The data of an event whose words come from others or from an error."""

    words: str | None

    @property
    def detail(self) -> str | None:
        return self.words


# transitions of a shard -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moved(_InWords):
    """A shard made a transition. The kind is the transition's value."""

    move: Transition
    words: str | None = None

    @property
    def kind(self) -> str:  # type: ignore[override]  # one class for all transitions
        return self.move.value


@dataclass(frozen=True)
class PutBack(EventData):
    """A shard is planned again: its batch ran nothing."""

    kind = Transition.PUT_BACK.value
    batch_id: str | None

    @property
    def detail(self) -> str | None:
        return self.batch_id


@dataclass(frozen=True)
class Split(EventData):
    """`requests` of a shard's `of` requests now belong to shard `half`."""

    kind = Transition.SPLIT.value
    half: str
    requests: int
    of: int

    @property
    def detail(self) -> str:
        return f"{self.requests} of its {self.of} requests are shard {self.half} now"


# other events of a shard ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StatusChanged(EventData):
    """A shard's batch was reported with another status than before."""

    kind = "status"
    before: str | None
    after: str

    @property
    def detail(self) -> str:
        return f"{self.before or 'unknown'} -> {self.after}"


@dataclass(frozen=True)
class CauseSet(EventData):
    """The cause was recorded for which a shard's batch will end, or has lost its results."""

    kind = "cause"
    cause: str

    @property
    def detail(self) -> str:
        return self.cause


@dataclass(frozen=True)
class Ambiguous(_InWords):
    """A shard's create call is over, and its result is unknown."""

    kind = "ambiguous"
    words: str | None = None


@dataclass(frozen=True)
class StrayBatch(_InWords):
    """A batch was created for a shard that another process had sent meanwhile."""

    kind = "stray_batch"
    batch_id: str
    words: str | None = None


@dataclass(frozen=True)
class NotThere(_InWords):
    """The provider has no results of a shard's batch."""

    kind = "not_there"
    words: str | None = None


@dataclass(frozen=True)
class NotKnown(_InWords):
    """The provider does not know a shard's batch. The time of sending is unknown, or lies in the future."""

    kind = "not_known"
    words: str | None = None


@dataclass(frozen=True)
class FetchAgain(_InWords):
    """A download of a shard's results broke off, and is tried again."""

    kind = "fetch_again"
    words: str | None = None


@dataclass(frozen=True)
class Unreadable(_InWords):
    """A shard's batch has ended, and its results cannot be read; the words are the first error."""

    kind = "unreadable"
    words: str | None = None


@dataclass(frozen=True)
class UnexpectedLines(EventData):
    """A shard's results have unexpected lines: their number by kind."""

    kind = "unexpected_lines"
    counts: Mapping[str, int]

    @property
    def detail(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items())


@dataclass(frozen=True)
class BilledInTier(EventData):
    """Replies of a shard name a tier of the vendor, such as "flex": their part of the shard's bill.

    The numbers have the names of the bill's columns. A shard whose results are read again gets the event again.
    """

    kind = "billed_in_tier"
    tier: str
    requests: int
    unpriced: int
    known_usd: str
    realtime_usd: str
    input_tokens: int
    output_tokens: int
    cache_read_tokens: int

    @property
    def detail(self) -> str:
        return f"{self.requests} in the tier {self.tier}"


@dataclass(frozen=True)
class ResultsRestored(EventData):
    """A shard's lost or damaged results were restored."""

    kind = "results_restored"
    source: str

    @property
    def detail(self) -> str:
        return self.source


@dataclass(frozen=True)
class ErasedThere(_InWords):
    """The provider deleted its data of a shard's batch."""

    kind = "erased_there"
    words: str | None = None


# events of a submission -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened(EventData):
    """A submission was stored with its first round."""

    kind = "opened"


@dataclass(frozen=True)
class WaveAdded(EventData):
    """Another retry round was stored."""

    kind = "wave"
    wave: int
    shards: int
    requests: int

    @property
    def detail(self) -> str:
        return f"round {self.wave}, {self.shards} shard(s), {self.requests} request(s)"


@dataclass(frozen=True)
class Settled(EventData):
    """Every request has its outcome."""

    kind = "settled"


@dataclass(frozen=True)
class Unsettled(EventData):
    """Answers came after the submission was complete."""

    kind = "unsettled"

    @property
    def detail(self) -> str:
        return "late answers came"


@dataclass(frozen=True)
class Delivered(EventData):
    """The labels are materialized or superseded."""

    kind = "delivered"


@dataclass(frozen=True)
class LandedOver(EventData):
    """Older labels may have replaced these: they are materialized again."""

    kind = "landed_over"


@dataclass(frozen=True)
class Canceled(EventData):
    """The submission was canceled: nothing more of it is sent."""

    kind = "canceled"


@dataclass(frozen=True)
class Superseded(EventData):
    """Another submission of the partition replaced this one."""

    kind = "superseded"
    by: str

    @property
    def detail(self) -> str:
        return f"by submission {self.by}"


@dataclass(frozen=True)
class Renamed(EventData):
    """The asset has another name now."""

    kind = "renamed"
    old: str
    new: str

    @property
    def detail(self) -> str:
        return f"{self.old} -> {self.new}"


@dataclass(frozen=True)
class Recovered(EventData):
    """Sendings without a record were recovered from their receipts."""

    kind = "recovered"
    shards: int
    sent_since: str

    @property
    def detail(self) -> str:
        return f"{self.shards} shard(s), sent since {self.sent_since} UTC"


@dataclass(frozen=True)
class Adopted(Recovered):
    """A batch that was sent elsewhere was adopted."""

    kind = "adopted"


@dataclass(frozen=True)
class Measured(EventData):
    """The submission's requests, tokens and cost were reported to OpenTelemetry."""

    kind = "measured"


@dataclass(frozen=True)
class Pruned(EventData):
    """The submission's files are deleted: its answers cannot be reused."""

    kind = "pruned"
    files: int
    bytes: int

    @property
    def detail(self) -> str:
        return f"{self.files} files, {self.bytes} bytes"


@dataclass(frozen=True)
class RawPruned(EventData):
    """The submission's requests and raw results are deleted."""

    kind = "raw_pruned"
    files: int

    @property
    def detail(self) -> str:
        return f"{self.files} files of requests and raw results"


@dataclass(frozen=True)
class Erased(EventData):
    """`erased` of `of` requests of a shard, or rows of a submission, were erased from its files."""

    kind = "erased"
    erased: int
    of: int
    unit: str

    @property
    def detail(self) -> str:
        return f"{self.erased} of {self.of} {self.unit}"


@dataclass(frozen=True)
class Noted(EventData):
    """A person added a note to the definition. A form that was sent twice is recorded once."""

    kind = "note"
    form_id: str
    annotator: str
    group: Mapping[str, str | None]
    text: str

    @property
    def detail(self) -> str:
        return f"{self.annotator}: {self.text}"


# holds of submissions -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Waits(EventData):
    """Shards stay planned. `for_place`: they wait for space in the provider's queue, or for their time.

    `money`: the spending limit that holds up the others; None if money does not hold up any.
    """

    kind = "waits"
    for_place: bool
    money: str | None = None

    @property
    def detail(self) -> str:
        place = "for the provider's queue, or for its time"
        if self.money is None:
            return place
        return f"{place}; the rest for money: {self.money}" if self.for_place else f"for money: {self.money}"


@dataclass(frozen=True)
class Turn(EventData):
    """Waiting shards can be sent now."""

    kind = "turn"


@dataclass(frozen=True)
class Unavailable(_InWords):
    """The provider does not answer now."""

    kind = "unavailable"
    words: str | None = None


@dataclass(frozen=True)
class BelowMinimum(_InWords):
    """A retry round was dropped: its requests are too few for a batch."""

    kind = "below_minimum"
    words: str | None = None


@dataclass(frozen=True)
class Unsent(EventData):
    """Requests are not sent: the reason, and a person's next step, each without a full stop at its end."""

    problem: str
    then: str

    @property
    def detail(self) -> str:
        return f"{self.problem}. {self.then}."


def with_example(problem: str, example: str | None) -> str:
    """Return a problem with its example, if it has one."""
    return problem if example is None else f"{problem}. For example {example}"


@dataclass(frozen=True)
class Stopped(Unsent):
    """Sending has stopped: nearly all replies do not fit. The words are an example, which names a row."""

    kind = "stopped"
    words: str | None = None

    @property
    def detail(self) -> str:
        return f"{with_example(self.problem, self.words)}. {self.then}."


@dataclass(frozen=True)
class OverBudget(Unsent):
    """Requests are abandoned: a spending limit leaves no money for them."""

    kind = "over_budget"


@dataclass(frozen=True)
class Held(Unsent):
    """Sending has stopped: the definition has changed, or the rest may not be sent unchanged."""

    kind = "definition_changed"

    @property
    def detail(self) -> str:
        return f"{self.problem}. {self.then}"


@dataclass(frozen=True)
class Stranded(_InWords):
    """Runs for the labels are not requested until a person has looked, or anything happens."""

    kind = "landing_stranded"
    words: str | None = None


@dataclass(frozen=True)
class LandingLost(_InWords):
    """A run that should have materialized the labels ended before it began to. Another run is requested."""

    kind = "landing_lost"
    words: str | None = None


@dataclass(frozen=True)
class LandingFailed(_InWords):
    """A run failed to materialize the labels. The submission is unchanged, since another run may fail, too."""

    kind = "landing_failed"
    words: str | None = None


@dataclass(frozen=True)
class PersonTold(EventData):
    """A failed tick reported waits for a person. The submission is unchanged."""

    kind = "person_told"


@dataclass(frozen=True)
class Other(_InWords):
    """An event whose kind or fields are unknown to this version."""

    kind: str  # type: ignore[misc]  # each has its own
    words: str | None = None


_OF_MOVES = {kind.kind: kind for kind in (PutBack, Split)}
_KINDS: dict[str, type[EventData]] = {
    kind.kind: kind
    for kind in (
        *(StatusChanged, CauseSet, Ambiguous, StrayBatch, NotThere, NotKnown, FetchAgain, Unreadable),
        *(UnexpectedLines, BilledInTier, ResultsRestored, ErasedThere),
        *(Opened, WaveAdded, Settled, Unsettled, Delivered, LandedOver),
        *(Canceled, Superseded, Renamed, Recovered, Adopted, Measured, Pruned, RawPruned, Erased, Noted, Waits, Turn),
        *(Unavailable, BelowMinimum, Stopped, OverBudget, Held, Stranded, LandingLost, LandingFailed, PersonTold),
    )
}
_TRANSITIONS = {move.value: move for move in Transition}
_NOT_DATA = ("words", "move", "kind")
_FIELDS: dict[type[EventData], tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(kind) if field.name not in _NOT_DATA)
    for kind in (Moved, Other, PutBack, Split, *_KINDS.values())
}
"""The fields of each kind that are stored as data."""


def event_columns(data: EventData) -> dict[str, Any]:
    """Return the columns `kind`, `data` and `detail` of an event."""
    names = _FIELDS[type(data)]
    stored = {name: getattr(data, name) for name in names} if names else None
    return {"kind": data.kind, "data": stored, "detail": data.detail}


def read_event(event: Event) -> EventData:
    """Return the data of an event."""
    # The same word stands for a canceled submission and a canceled shard.
    if event.shard_id is not None and event.kind in _TRANSITIONS and event.kind not in _OF_MOVES:
        return Moved(_TRANSITIONS[event.kind], event.detail)
    kind = _OF_MOVES.get(event.kind) or _KINDS.get(event.kind)
    if kind is None or (event.data or {}).keys() != set(_FIELDS[kind]):
        return Other(event.kind, event.detail)
    words = {"words": event.detail} if issubclass(kind, _InWords) else {}
    return kind(**(event.data or {}), **words)
