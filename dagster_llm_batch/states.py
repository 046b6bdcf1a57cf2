"""The states of batches and of shards, and their legal transitions: the tables here are the only source of both.

A batch is one create call with its result. A shard has its own state. While it is sent, its visible state is its
batch's state. `ShardState` has the visible states, and `TRANSITIONS` the transitions of both tables between these.

    shard   planned ──send──▶ sent ──collected──▶ collected      (`late` brings both back to `sent`)
                              │ its batch is no longer waited for: abandoned
    batch   sending ──accepted──▶ running ──ended──▶ ended, expired, canceled or failed
               └─ not_sent ──▶ void ◀── put_back ─┘              (its shards are planned again)

A batch in `sending` is committed before the create call: a process that finds it there must look for it
(`Provider.find`) before sending anything. A batch that ended badly may still hold paid rows, so every way to end leads
to `collected`. A transition is one compare-and-set in the ledger; an illegal one raises and changes nothing.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "BATCH_SEEN",
    "BATCH_TRANSITIONS",
    "ENDED",
    "IN_FLIGHT",
    "OWN_SEEN",
    "SHARD_TRANSITIONS",
    "STORED_HOLDS",
    "TRANSITIONS",
    "BatchState",
    "HoldReason",
    "OwnState",
    "Reason",
    "ShardState",
    "Transition",
]


class ShardState(StrEnum):
    """The visible state of a shard: its own state or, while it is sent, its batch's."""

    PLANNED = "planned"  # its request file is in the payload store, unsent
    SUBMITTING = "submitting"  # the create call is about to be made, or was made and its reply is not recorded
    SUBMITTED = "submitted"  # the provider's batch id is recorded
    ENDED = "ended"  # the provider has finished it
    EXPIRED = "expired"  # the provider's window closed; finished rows are kept
    CANCELED = "canceled"  # somebody canceled it; finished rows are kept
    FAILED = "failed"  # refused at create or in validation, or failed as a whole
    COLLECTED = "collected"  # raw results are stored and every request has exactly one outcome


class OwnState(StrEnum):
    """The state of a shard itself. The ledger stores the value."""

    PLANNED = "planned"
    SENT = "sent"  # the state of its batch is shown
    DROPPED = "dropped"  # it is never sent
    ABANDONED = "abandoned"  # its batch, or the results, are no longer waited for
    COLLECTED = "collected"


class BatchState(StrEnum):
    """The state of a batch. The ledger stores the value."""

    SENDING = "sending"  # the create call is about to be made, or was made and its reply is not recorded
    RUNNING = "running"  # the provider's batch id is recorded
    ENDED = "ended"
    EXPIRED = "expired"
    CANCELED = "canceled"
    FAILED = "failed"
    VOID = "void"  # it was not created, or ran nothing: its shards are planned again


class Transition(StrEnum):
    """A transition of a shard. The value is the event's name in the ledger."""

    SEND = "send"
    SPLIT = "split"  # half of its requests went to a new shard
    NOT_SENT = "not_sent"
    ACCEPTED = "accepted"
    REFUSED = "refused"
    ANSWERED = "answered"  # in real time: every request was asked once
    PUT_BACK = "put_back"  # the provider's queue was full: its batch ran nothing
    ENDED = "ended"
    EXPIRED = "expired"
    CANCELED = "canceled"
    FAILED = "failed"
    GONE = "gone"  # the provider no longer has the batch or its results
    GIVEN_UP = "given_up"  # its batch, or the results, are no longer waited for
    LATE = "late"  # an abandoned batch has ended, or can be read: its results are collected after all
    COLLECTED = "collected"


class Reason(StrEnum):
    """The reason why a shard waits, was never sent, or has no answers. The ledger stores the value.

    `Shard.reason` describes it in words, which code never parses.
    """

    PROVIDER = "provider"  # in the words of the provider, or of an error while it was asked
    # planned: it waits
    MONEY = "money"  # until a spending limit may allow it
    LACKS_MONEY = "lacks_money"  # likewise, and has no place in its queue meanwhile
    NO_BATCH = "no_batch"  # its create call created no batch, as reported by the provider or a person
    # never sent
    OVER_BUDGET = "over_budget"  # a spending limit does not allow it
    LATE = "late"  # the deadline has passed
    NEXT_MODEL = "next_model"  # its provider rejected it, and a fallback is asked
    NO_FALLBACK = "no_fallback"  # its model is no longer a fallback
    BELOW_MINIMUM = "below_minimum"  # its requests are too few for a batch
    CANCELED = "canceled"  # its submission is canceled
    SUPERSEDED = "superseded"  # another submission replaced it
    STOPPED = "stopped"  # nearly all replies do not fit
    HELD = "held"  # the definition has changed, or the rest may not be sent unchanged
    DOCUMENT = "document"  # its provider refused a document of its requests
    ERASED = "erased"  # all of its rows were erased
    # ended without a batch that could be asked for results
    INTERRUPTED = "interrupted"  # the process that asked in real time died
    UNRECORDED = "unrecorded"  # its answers are stored, and the ledger had no record of its sending
    GIVEN_UP = "given_up"  # by a person, or after a time limit
    GONE = "gone"  # the provider no longer has the batch or its results
    LOST = "lost"  # the stored answers are lost or damaged


class HoldReason(StrEnum):
    """The reason for a wait. `loop/holds.py` has its rule: limit, message and exits."""

    # rows of the table `hold`
    CHANGED = "changed"  # the definition has changed, or the rest may not be sent unchanged
    UNFIT = "unfit"  # nearly all replies do not fit
    OVER_BUDGET = "over_budget"  # a spending limit does not allow requests, which are abandoned
    UNREADABLE = "unreadable"  # a batch has ended, and its results cannot be read
    NO_RESULTS = "no_results"  # the provider reports that an ended batch, or its results, do not exist
    RECOVERED = "recovered"  # the ledger had no record of sendings, which were recovered from their receipts
    # planned shards: the record is their columns, and the last event of their submission
    PLACE = "place"  # a place in a declared queue, or within a chosen limit of tokens in flight
    FULL_QUEUE = "full_queue"  # the provider's queue is full
    NOT_SENT = "not_sent"  # the provider has not accepted its batch
    TURNED_AWAY = "turned_away"  # the provider turns calls in real time away
    MONEY = "money"  # a spending limit does not allow it now
    # batches: the record is their state and their times
    IN_DOUBT = "in_doubt"  # its create call left no record
    UNKNOWN = "unknown"  # the provider does not find it, for now
    OVERDUE = "overdue"  # it runs for too long
    CANNOT_ASK = "cannot_ask"  # its account is not configured, or its provider cannot be created
    # submissions: the record is the last event, other submissions, or the definitions
    REUSES = "reuses"  # an earlier submission, whose answers it uses, is not complete
    STRANDED = "stranded"  # runs are requested only after a person has looked, or anything happens
    HELD_QUEUE = "held_queue"  # a declared queue is full of batches that are not looked after
    NO_PARTITION = "no_partition"  # its partition is gone
    NO_DATASET = "no_dataset"  # its dataset is missing in the definitions
    # these hold up nothing
    REFUSED = "refused"  # the provider has refused batches for good
    LATE_ANSWERS = "late_answers"  # a batch was abandoned or is gone, and may still bring answers


STORED_HOLDS = (
    *(HoldReason.CHANGED, HoldReason.UNFIT, HoldReason.OVER_BUDGET),
    *(HoldReason.UNREADABLE, HoldReason.NO_RESULTS, HoldReason.RECOVERED),
)
"""The reasons of rows of the table `hold`. The others are recorded in columns, events and definitions."""


_S = ShardState

ENDED: frozenset[ShardState] = frozenset({_S.ENDED, _S.EXPIRED, _S.CANCELED, _S.FAILED})
"""States in which the provider is done and results wait to be collected."""

IN_FLIGHT: frozenset[ShardState] = frozenset({_S.SUBMITTING, _S.SUBMITTED})
"""States in which the provider may be working, and billing."""

_O, _B = OwnState, BatchState
_OVER = frozenset({_B.ENDED, _B.EXPIRED, _B.CANCELED, _B.FAILED})

BATCH_TRANSITIONS: dict[Transition, tuple[frozenset[BatchState], BatchState]] = {
    Transition.SEND: (frozenset(), _B.SENDING),
    Transition.ACCEPTED: (frozenset({_B.SENDING}), _B.RUNNING),
    Transition.NOT_SENT: (frozenset({_B.SENDING}), _B.VOID),
    Transition.REFUSED: (frozenset({_B.SENDING}), _B.FAILED),
    Transition.ANSWERED: (frozenset({_B.SENDING}), _B.ENDED),
    Transition.PUT_BACK: (frozenset({_B.RUNNING}), _B.VOID),
    Transition.ENDED: (frozenset({_B.RUNNING}), _B.ENDED),
    Transition.EXPIRED: (frozenset({_B.RUNNING}), _B.EXPIRED),
    Transition.CANCELED: (frozenset({_B.RUNNING}), _B.CANCELED),
    Transition.FAILED: (frozenset({_B.RUNNING}), _B.FAILED),
    Transition.LATE: (frozenset({_B.RUNNING}) | _OVER, _B.ENDED),
}
"""Each transition of a batch: the states that it starts from, and the state that it leads to. SEND begins it."""

SHARD_TRANSITIONS: dict[Transition, tuple[frozenset[OwnState], OwnState]] = {
    Transition.SEND: (frozenset({_O.PLANNED}), _O.SENT),
    Transition.SPLIT: (frozenset({_O.PLANNED}), _O.PLANNED),
    Transition.NOT_SENT: (frozenset({_O.SENT}), _O.PLANNED),
    Transition.PUT_BACK: (frozenset({_O.SENT}), _O.PLANNED),
    Transition.CANCELED: (frozenset({_O.PLANNED}), _O.DROPPED),
    Transition.GONE: (frozenset({_O.SENT, _O.DROPPED, _O.ABANDONED}), _O.ABANDONED),
    Transition.GIVEN_UP: (frozenset({_O.SENT, _O.DROPPED, _O.ABANDONED}), _O.ABANDONED),
    Transition.LATE: (frozenset({_O.ABANDONED, _O.COLLECTED}), _O.SENT),
    Transition.COLLECTED: (frozenset({_O.SENT, _O.DROPPED, _O.ABANDONED}), _O.COLLECTED),
}
"""Each transition of a shard itself, likewise. A transition of its batch alone leaves it `sent`."""

_WHILE: dict[Transition, frozenset[BatchState]] = {
    Transition.GONE: frozenset({_B.RUNNING}) | _OVER - {_B.FAILED},
    Transition.GIVEN_UP: frozenset({_B.RUNNING}) | _OVER,
    Transition.COLLECTED: _OVER,
}
"""The batch's states in which a sent shard can make a transition without its batch."""

OWN_SEEN: dict[OwnState, ShardState] = {
    _O.PLANNED: _S.PLANNED,
    _O.DROPPED: _S.CANCELED,
    _O.ABANDONED: _S.ENDED,
    _O.COLLECTED: _S.COLLECTED,
}
"""The visible states of shards that are not sent."""

BATCH_SEEN: dict[BatchState, ShardState] = {
    _B.SENDING: _S.SUBMITTING,
    _B.RUNNING: _S.SUBMITTED,
    **{state: ShardState(state.value) for state in BatchState if state in _OVER},
}
"""The visible states of sent shards, by the state of the batch."""


def _seen(move: Transition) -> tuple[frozenset[ShardState], ShardState]:
    own, own_to = SHARD_TRANSITIONS.get(move, (frozenset({_O.SENT}), _O.SENT))
    batch, batch_to = BATCH_TRANSITIONS.get(move, (_WHILE.get(move, frozenset()), None))
    sources = {OWN_SEEN[state] for state in own if state is not _O.SENT}
    # SEND and LATE make a shard sent that was not.
    if own_to is not _O.SENT or move not in SHARD_TRANSITIONS:
        sources |= {BATCH_SEEN[state] for state in batch}
    to = BATCH_SEEN[batch_to] if own_to is _O.SENT and batch_to is not None else OWN_SEEN[own_to]
    return frozenset(sources), to


TRANSITIONS: dict[Transition, tuple[frozenset[ShardState], ShardState]] = {move: _seen(move) for move in Transition}
"""Each transition between visible states: the states that it starts from, and the state that it leads to."""
