"""The states of batches and of shards, and all their legal moves, in one table each. Nothing else decides these.

A batch is one create call, and what came of it. A shard has a state of its own. While it is sent, people see the state
of its batch in that place: `ShardState` is what they see, and `MOVES` are the moves of both tables in these words.

    shard   planned ──send──▶ sent ──collected──▶ collected      (`late` brings both back to `sent`)
                              │ nobody waits for its batch any longer: abandoned
    batch   sending ──accepted──▶ running ──ended──▶ ended, expired, canceled or failed
               └─ not_sent ──▶ void ◀── put_back ─┘              (its shards are planned again)

A batch in `sending` is committed before the create call: whoever finds it there must look for it (`Provider.find`)
before sending anything. A batch that ended badly may still hold paid rows, so every way to end leads to `collected`.
A move is one compare-and-set in the ledger; an illegal one raises and changes nothing.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = [
    "BATCH_MOVES",
    "BATCH_SEEN",
    "ENDED",
    "IN_FLIGHT",
    "MOVES",
    "OWN_SEEN",
    "SHARD_MOVES",
    "STORED_HOLDS",
    "BatchState",
    "HoldReason",
    "Move",
    "OwnState",
    "Reason",
    "ShardState",
]


class ShardState(StrEnum):
    """Where a shard is, as people see it: by its own state or, while it is sent, by that of its batch."""

    PLANNED = "planned"  # its request file is in the payload store; nothing was sent
    SUBMITTING = "submitting"  # the create call is about to be made, or was made and its reply is not recorded
    SUBMITTED = "submitted"  # the provider's batch id is recorded
    ENDED = "ended"  # the provider is done with it
    EXPIRED = "expired"  # the provider's window closed; finished rows are kept
    CANCELED = "canceled"  # somebody canceled it; finished rows are kept
    FAILED = "failed"  # refused at create or in validation, or failed as a whole
    COLLECTED = "collected"  # raw results are stored and every request has exactly one outcome


class OwnState(StrEnum):
    """The state of a shard itself. The ledger stores the value."""

    PLANNED = "planned"
    SENT = "sent"  # people see the state of its batch
    DROPPED = "dropped"  # it is never sent
    ABANDONED = "abandoned"  # nobody waits any longer for the end of its batch, or for the results
    COLLECTED = "collected"


class BatchState(StrEnum):
    """The state of a batch. The ledger stores the value."""

    SENDING = "sending"  # the create call is about to be made, or was made and its reply is not recorded
    RUNNING = "running"  # the provider's batch id is recorded
    ENDED = "ended"
    EXPIRED = "expired"
    CANCELED = "canceled"
    FAILED = "failed"
    VOID = "void"  # it was not made, or ran nothing: its shards are planned again


class Move(StrEnum):
    """What happened to a shard. The value is the event's name in the ledger."""

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
    GONE = "gone"  # the provider knows the batch, or its results, no more
    GIVEN_UP = "given_up"  # nobody waits for it, or for its results, any longer
    LATE = "late"  # a batch that was given up has ended, or can be read: its results are collected after all
    COLLECTED = "collected"


class Reason(StrEnum):
    """The reason why a shard waits, was never sent, or has no answers. The value is what the ledger stores.

    `Shard.reason` describes it in words, by which nothing is decided.
    """

    PROVIDER = "provider"  # in the words of the provider, or of an error while it was asked
    # planned: it waits
    MONEY = "money"  # until a limit of money may have room
    LACKS_MONEY = "lacks_money"  # likewise, and holds no place in its queue meanwhile
    NO_BATCH = "no_batch"  # its create call made no batch, as the provider or a person found
    # never sent
    OVER_BUDGET = "over_budget"  # a limit of money has no room left
    LATE = "late"  # the deadline has passed
    NEXT_MODEL = "next_model"  # its provider did not take it, and a fallback is asked
    NO_FALLBACK = "no_fallback"  # its model is not a fallback any more
    BELOW_MINIMUM = "below_minimum"  # its requests are too few for a batch
    CANCELED = "canceled"  # its submission is canceled
    SUPERSEDED = "superseded"  # another submission came in its place
    STOPPED = "stopped"  # nearly nothing fits of what came
    HELD = "held"  # the definition has changed, or the rest may not be sent as it is
    ERASED = "erased"  # all of its rows were erased
    # ended without a batch that could be asked for results
    INTERRUPTED = "interrupted"  # the process that asked in real time died
    UNRECORDED = "unrecorded"  # its answers are stored, and the ledger had no record of its sending
    GIVEN_UP = "given_up"  # by a person, or after a time limit
    GONE = "gone"  # the provider knows the batch, or its results, no more
    LOST = "lost"  # the stored answers are lost or damaged


class HoldReason(StrEnum):
    """The reason why something waits. `loop/holds.py` has its rule: limit, message and exits."""

    # rows of the table `hold`
    CHANGED = "changed"  # the definition has changed, or the rest may not be sent as it is
    UNFIT = "unfit"  # nearly nothing fits of what came
    OVER_BUDGET = "over_budget"  # a limit of money has no room for requests, which are given up
    UNREADABLE = "unreadable"  # a batch has ended, and its results cannot be read
    NO_RESULTS = "no_results"  # the provider answers that an ended batch, or its results, do not exist
    RECOVERED = "recovered"  # the ledger had no record of sendings, which were recovered from their receipts
    # planned shards: the record is their columns, and the last event of their submission
    PLACE = "place"  # a place in a declared queue, or beside what was chosen to be in flight
    FULL_QUEUE = "full_queue"  # the provider's queue had no room
    NOT_SENT = "not_sent"  # the provider took no batch of it
    TURNED_AWAY = "turned_away"  # the provider turns calls in real time away
    MONEY = "money"  # a limit of money has no room now
    # batches: the record is their state and their times
    IN_DOUBT = "in_doubt"  # its create call left no record
    UNKNOWN = "unknown"  # the provider does not know it, for now
    OVERDUE = "overdue"  # it runs for too long
    CANNOT_ASK = "cannot_ask"  # its account is not configured, or its provider cannot be made
    # submissions: the record is the last event, other submissions, or the definitions
    REUSES = "reuses"  # an earlier submission, whose answers it uses, is not complete
    STRANDED = "stranded"  # no run is requested until a person has looked, or anything happens
    HELD_QUEUE = "held_queue"  # a declared queue is full of batches that nobody looks after
    NO_PARTITION = "no_partition"  # its partition is gone
    NO_DATASET = "no_dataset"  # no definition has its dataset
    # these hold up nothing
    REFUSED = "refused"  # the provider has refused batches for good
    LATE_ANSWERS = "late_answers"  # a batch was given up or is gone, and may bring answers yet


STORED_HOLDS = (
    *(HoldReason.CHANGED, HoldReason.UNFIT, HoldReason.OVER_BUDGET),
    *(HoldReason.UNREADABLE, HoldReason.NO_RESULTS, HoldReason.RECOVERED),
)
"""The reasons of rows of the table `hold`. The record of the others are columns, events and definitions."""


_S = ShardState

ENDED: frozenset[ShardState] = frozenset({_S.ENDED, _S.EXPIRED, _S.CANCELED, _S.FAILED})
"""States in which the provider is done and results wait to be collected."""

IN_FLIGHT: frozenset[ShardState] = frozenset({_S.SUBMITTING, _S.SUBMITTED})
"""States in which the provider may be working, and billing."""

_O, _B = OwnState, BatchState
_OVER = frozenset({_B.ENDED, _B.EXPIRED, _B.CANCELED, _B.FAILED})

BATCH_MOVES: dict[Move, tuple[frozenset[BatchState], BatchState]] = {
    Move.SEND: (frozenset(), _B.SENDING),
    Move.ACCEPTED: (frozenset({_B.SENDING}), _B.RUNNING),
    Move.NOT_SENT: (frozenset({_B.SENDING}), _B.VOID),
    Move.REFUSED: (frozenset({_B.SENDING}), _B.FAILED),
    Move.ANSWERED: (frozenset({_B.SENDING}), _B.ENDED),
    Move.PUT_BACK: (frozenset({_B.RUNNING}), _B.VOID),
    Move.ENDED: (frozenset({_B.RUNNING}), _B.ENDED),
    Move.EXPIRED: (frozenset({_B.RUNNING}), _B.EXPIRED),
    Move.CANCELED: (frozenset({_B.RUNNING}), _B.CANCELED),
    Move.FAILED: (frozenset({_B.RUNNING}), _B.FAILED),
    Move.LATE: (frozenset({_B.RUNNING}) | _OVER, _B.ENDED),
}
"""Each move of a batch: the states that it starts from, and the one that it leads to. SEND begins it."""

SHARD_MOVES: dict[Move, tuple[frozenset[OwnState], OwnState]] = {
    Move.SEND: (frozenset({_O.PLANNED}), _O.SENT),
    Move.SPLIT: (frozenset({_O.PLANNED}), _O.PLANNED),
    Move.NOT_SENT: (frozenset({_O.SENT}), _O.PLANNED),
    Move.PUT_BACK: (frozenset({_O.SENT}), _O.PLANNED),
    Move.CANCELED: (frozenset({_O.PLANNED}), _O.DROPPED),
    Move.GONE: (frozenset({_O.SENT, _O.DROPPED, _O.ABANDONED}), _O.ABANDONED),
    Move.GIVEN_UP: (frozenset({_O.SENT, _O.DROPPED, _O.ABANDONED}), _O.ABANDONED),
    Move.LATE: (frozenset({_O.ABANDONED, _O.COLLECTED}), _O.SENT),
    Move.COLLECTED: (frozenset({_O.SENT, _O.DROPPED, _O.ABANDONED}), _O.COLLECTED),
}
"""Each move of a shard itself, likewise. By a move of its batch alone it stays `sent`."""

_WHILE: dict[Move, frozenset[BatchState]] = {
    Move.GONE: frozenset({_B.RUNNING}) | _OVER - {_B.FAILED},
    Move.GIVEN_UP: frozenset({_B.RUNNING}) | _OVER,
    Move.COLLECTED: _OVER,
}
"""The states of its batch in which a sent shard takes a move that its batch does not take."""

OWN_SEEN: dict[OwnState, ShardState] = {
    _O.PLANNED: _S.PLANNED,
    _O.DROPPED: _S.CANCELED,
    _O.ABANDONED: _S.ENDED,
    _O.COLLECTED: _S.COLLECTED,
}
"""How people see a shard that is not sent."""

BATCH_SEEN: dict[BatchState, ShardState] = {
    _B.SENDING: _S.SUBMITTING,
    _B.RUNNING: _S.SUBMITTED,
    **{state: ShardState(state.value) for state in BatchState if state in _OVER},
}
"""How people see a shard that is sent, by the state of its batch."""


def _seen(move: Move) -> tuple[frozenset[ShardState], ShardState]:
    own, own_to = SHARD_MOVES.get(move, (frozenset({_O.SENT}), _O.SENT))
    batch, batch_to = BATCH_MOVES.get(move, (_WHILE.get(move, frozenset()), None))
    sources = {OWN_SEEN[state] for state in own if state is not _O.SENT}
    # By SEND and LATE a shard becomes sent, and is not before.
    if own_to is not _O.SENT or move not in SHARD_MOVES:
        sources |= {BATCH_SEEN[state] for state in batch}
    to = BATCH_SEEN[batch_to] if own_to is _O.SENT and batch_to is not None else OWN_SEEN[own_to]
    return frozenset(sources), to


MOVES: dict[Move, tuple[frozenset[ShardState], ShardState]] = {move: _seen(move) for move in Move}
"""Each move in the words that people see: the states that it starts from, and the one that it leads to."""
