"""Polls the batches whose turn it is, and recovers sendings that are missing from the ledger."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

from dagster_llm_batch.assets.submission import newest_submission
from dagster_llm_batch.errors import ConfigError, LLMBatchError, RefusedError
from dagster_llm_batch.loop.poll import is_due
from dagster_llm_batch.loop.status import advise_on_unknown
from dagster_llm_batch.sensors.reporting import is_unreported
from dagster_llm_batch.sensors.request_files import remove_request_files
from dagster_llm_batch.sensors.state import (
    TickState,
    Undelivered,
    apart,
    is_within,
    note,
    note_action,
    note_error,
    note_unreadable,
    read_undelivered,
)
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.apart import CANNOT_READ
from dagster_llm_batch.storage.ledger.batches import count_batches
from dagster_llm_batch.types import BatchStatus, Cause

if TYPE_CHECKING:
    from dagster_llm_batch.storage.ledger.records import Progress, Shard

__all__ = ["poll_batches", "recover_sends"]

# The pause between polls of abandoned batches: most of them never end.
_AWAITED_EVERY = timedelta(hours=1)
_ASKED_TO_STOP = (BatchStatus.CANCELING, BatchStatus.NOT_FOUND)

_Before = Mapping[str, "Progress"]


def recover_sends(state: TickState, before: Undelivered) -> Undelivered:
    """Recover the submissions that are in Dagster's records but not in the ledger; note those that are lost in both.

    A ledger that was restored from a backup gets them from the payload store. If they are missing there, too, another
    ledger was used, and the labels would never be materialized.

    Returns the undelivered submissions, which are read again after a recovery.
    """
    with apart(state, "submissions in Dagster's records"):
        keys = [labels.dataset.batch_key for labels in state.labels.values()]
        records = state.context.instance.get_asset_records(keys) if keys else []
        entries = [record.asset_entry for record in records]
        newest = [(entry.asset_key, newest_submission(entry.last_materialization)) for entry in entries]
        batches = {found[0]: key.to_user_string() for key, found in newest if found is not None}
        unknown = batches.keys() - state.ledger.submissions.find_known(batches)
        is_news = any(is_unreported(state, submission_id) for submission_id in unknown)
        # A recovery lists the whole payload store.
        if is_news and state.engine.recovery.recover_all():
            before = read_undelivered(state)
            unknown -= state.ledger.submissions.find_known(unknown)
        for submission_id in unknown:
            advice = advise_on_unknown(batches[submission_id], submission_id, state.ledger)
            state.notes.unrecorded[submission_id] = str(advice)
            note(state, str(advice))
    return before


def poll_batches(state: TickState, undelivered: Undelivered) -> list[Shard]:
    """Poll the batches in flight whose turn it is.

    Returns the shards that were in flight before: all of them, or one for each batch and those whose own time is due.
    """
    before = undelivered.by_id
    every = _read_flying(state, undelivered)
    flying = [shard for shard in every if shard.submission_id in before]
    # Late batches come first: their rows are answered in real time, and are urgent.
    _stop_late(state, before, flying)
    seconds_left = _poll_due(state, before, flying)
    if is_within(state, seconds_left):
        with apart(state, "abandoned batches"):
            state.engine.poll_awaited(list(state.labels), state.now - _AWAITED_EVERY)
    with apart(state, "request files at providers"):
        in_time = partial(is_within, state, state.bounds.poll_seconds)
        remove_request_files(state.context, state.engine, state.now, in_time)
    # Batches that cannot be polled are included: their account may be closed.
    state.engine.give_up_forgotten(flying)
    return every


def _read_flying(state: TickState, undelivered: Undelivered) -> list[Shard]:
    """Return the shards in flight: one for each batch is enough unless a person must know the others, too."""
    namespace = state.engine.namespace
    with suppress(*CANNOT_READ):
        shards = state.ledger.shards.of_batches_in_flight(namespace, state.now)
        own = undelivered.by_id
        known = own.keys() | {progress.submission.submission_id for progress in undelivered.others}
        if all(
            # Another shard of the batch may have a submission that can be read.
            shard.submission_id in known
            and not state.engine.deployment.is_overdue(shard)
            and (shard.submission_id not in own or state.access.reason_not_to_ask(shard) is None)
            for shard in shards
        ):
            return shards
    return state.ledger.shards.in_flight(namespace, unreadable=partial(note_unreadable, state))


def _poll_due(state: TickState, before: _Before, flying: Iterable[Shard]) -> float:
    """Poll the due batches, one provider after the other, while there is time.

    Returns the seconds after the begin of the tick until which another poll may start.
    """
    due: dict[str, dict[str, Shard]] = defaultdict(dict)
    for shard in flying:
        if is_due(shard, state.now) and _can_ask(state, before, shard):
            due[shard.provider].setdefault(shard.batch.batch_key or shard.shard_id, shard)
    failed = partial(_note_unpolled, state, before)
    longest, at_once = 0.0, state.bounds.polled_batches
    for batches in due.values():
        # The ledger records a report on a batch, and its end, for all of its shards. So one of them is enough.
        shards = list(batches.values())
        for start in range(0, len(shards), at_once):
            began = monotonic()
            if not is_within(state, state.bounds.poll_seconds - longest):
                left = count_batches(shards[start:])
                note(state, f"{left:,} {'batch waits' if left == 1 else 'batches wait'} for the next tick")
                break
            if not state.engine.poll(shards[start : start + at_once], failed):
                break
            longest = max(longest, monotonic() - began)
    return state.bounds.poll_seconds - longest


def _can_ask(state: TickState, before: _Before, shard: Shard) -> bool:
    """Return whether a shard's provider can be asked about its batch; note the reason if not."""
    if (reason := state.access.reason_not_to_ask(shard)) is not None:
        note_action(state, before[shard.submission_id].submission, reason)
    return reason is None


def _note_unpolled(state: TickState, before: _Before, shards: Sequence[Shard], error: Exception) -> None:
    if isinstance(error, RefusedError | ConfigError):
        sharing = state.ledger.shards.sent_beside([shard.shard_id for shard in shards])
        for submission_id in sorted({shard.submission_id for shard in (*shards, *sharing)} & before.keys()):
            note_action(state, before[submission_id].submission, error)
    if isinstance(error, LLMBatchError):
        note_error(state, "polling failed", error)
        return
    place = before[shards[0].submission_id].submission.place
    others = count_batches(shards) - 1
    more = f" and {others:,} {'batch' if others == 1 else 'batches'} more" if others > 0 else ""
    note_error(state, f"polling failed for {place}{more}", error)


def _stop_late(state: TickState, before: _Before, flying: Iterable[Shard]) -> None:
    """Stop batches that run past their deadline, or for which the request to stop failed before."""
    running = [s for s in flying if s.state is ShardState.SUBMITTED and s.batch.status not in _ASKED_TO_STOP]
    unasked = {shard.submission_id for shard in running if shard.cause is Cause.STOPPED}
    for submission_id in dict.fromkeys(shard.submission_id for shard in running):
        submission = before[submission_id].submission
        is_late = submission.deadline_at is not None and submission.deadline_at <= state.now
        if is_late or submission_id in unasked:
            if not is_within(state, state.bounds.poll_seconds / 2):
                note(state, "late batches wait for the next tick to be stopped")
                return
            with apart(state, submission.place):
                state.engine.stop_late(submission_id, partial(_note_unstopped, state))


def _note_unstopped(state: TickState, shards: Sequence[Shard], error: Exception) -> None:
    note_error(state, f"batch {shards[0].batch.batch_id} could not be stopped, and is asked again", error)
