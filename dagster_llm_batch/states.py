"""The states of a shard and all its legal moves, in one table. Nothing else decides what may follow what.

    planned ──send──▶ submitting ──accepted──▶ submitted ──ended─────▶ ended ────┐
     │ ▲ ▲               │  │ │                  ├─────────expired───▶ expired ──┤
     │ │ └──not_sent─────┘  │ └──answered──┐     ├─────────canceled──▶ canceled ─┼──collected──▶ collected
     │ └────put_back────────┼──────────────┼─────┤                               │
     │                      └──refused──┐  │     └─────────failed────▶ failed ───┤
     │                                  └──┼─────────────────────────▶ failed    │
     │                                     └─────────────────────────▶ ended     │
     └──canceled─────────────────────────────────────────────────────▶ canceled ─┘

    planned ──split──▶ planned      (too large for the provider's queue: another shard takes half of its requests)
    submitted, ended, expired, canceled ──gone──▶ ended      (the results cannot be had any more)
    submitted, ended, expired, canceled, failed ──given_up──▶ ended      (nobody waits for the end, or the results)
    collected ──late──▶ ended      (what was given up has ended after all, or can be read after all)

`submitting` is committed before the create call: whoever finds a shard there must look for its batch (`Provider.find`)
before sending anything. A batch that ended badly may still hold paid rows, so every way to end leads to `collected`.
A move is one compare-and-set in the ledger; an illegal one raises and changes nothing.
"""

from __future__ import annotations

from enum import StrEnum

__all__ = ["ENDED", "IN_FLIGHT", "MOVES", "HoldReason", "Move", "Reason", "ShardState"]


class ShardState(StrEnum):
    """Where a shard is. The value is what the ledger stores."""

    PLANNED = "planned"  # its request file is in the payload store; nothing was sent
    SUBMITTING = "submitting"  # the create call is about to be made, or was made and its reply is not recorded
    SUBMITTED = "submitted"  # the provider's batch id is recorded
    ENDED = "ended"  # the provider is done with it
    EXPIRED = "expired"  # the provider's window closed; finished rows are kept
    CANCELED = "canceled"  # somebody canceled it; finished rows are kept
    FAILED = "failed"  # refused at create or in validation, or failed as a whole
    COLLECTED = "collected"  # raw results are stored and every request has exactly one outcome


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
    HELD = "held"  # the definition has changed, or a provider would refuse it
    ERASED = "erased"  # all of its rows were erased
    # ended without a batch that could be asked for results
    INTERRUPTED = "interrupted"  # the process that asked in real time died
    UNRECORDED = "unrecorded"  # its answers are stored, and the ledger had no record of its sending
    GIVEN_UP = "given_up"  # by a person, or after a time limit
    GONE = "gone"  # the provider knows the batch, or its results, no more
    LOST = "lost"  # the stored answers are lost or damaged


class HoldReason(StrEnum):
    """The reason of a hold. `loop/holds.py` has its rule: limit, message and exits."""

    CHANGED = "changed"  # the definition has changed, or a provider would refuse it
    UNFIT = "unfit"  # nearly nothing fits of what came
    OVER_BUDGET = "over_budget"  # a limit of money has no room for requests, which are given up
    UNREADABLE = "unreadable"  # a batch has ended, and its results cannot be read
    NO_RESULTS = "no_results"  # the provider answers that an ended batch, or its results, do not exist
    RECOVERED = "recovered"  # the ledger had no record of sendings, which were recovered from their receipts


_S = ShardState

ENDED: frozenset[ShardState] = frozenset({_S.ENDED, _S.EXPIRED, _S.CANCELED, _S.FAILED})
"""States in which the provider is done and results wait to be collected."""

IN_FLIGHT: frozenset[ShardState] = frozenset({_S.SUBMITTING, _S.SUBMITTED})
"""States in which the provider may be working, and billing."""

MOVES: dict[Move, tuple[frozenset[ShardState], ShardState]] = {
    Move.SEND: (frozenset({_S.PLANNED}), _S.SUBMITTING),
    Move.SPLIT: (frozenset({_S.PLANNED}), _S.PLANNED),
    Move.NOT_SENT: (frozenset({_S.SUBMITTING}), _S.PLANNED),
    Move.ACCEPTED: (frozenset({_S.SUBMITTING}), _S.SUBMITTED),
    Move.REFUSED: (frozenset({_S.SUBMITTING}), _S.FAILED),
    Move.ANSWERED: (frozenset({_S.SUBMITTING}), _S.ENDED),
    Move.PUT_BACK: (frozenset({_S.SUBMITTED}), _S.PLANNED),
    Move.ENDED: (frozenset({_S.SUBMITTED}), _S.ENDED),
    Move.EXPIRED: (frozenset({_S.SUBMITTED}), _S.EXPIRED),
    Move.CANCELED: (frozenset({_S.SUBMITTED, _S.PLANNED}), _S.CANCELED),
    Move.FAILED: (frozenset({_S.SUBMITTED}), _S.FAILED),
    Move.GONE: (frozenset({_S.SUBMITTED, _S.ENDED, _S.EXPIRED, _S.CANCELED}), _S.ENDED),
    Move.GIVEN_UP: (frozenset({_S.SUBMITTED}) | ENDED, _S.ENDED),
    Move.LATE: (frozenset({_S.COLLECTED}), _S.ENDED),
    Move.COLLECTED: (ENDED, _S.COLLECTED),
}
"""Each move: the states that it starts from, and the one that it leads to."""
