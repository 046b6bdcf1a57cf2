"""Reports of a tick to people: conditions, failures of the tick, progress in the UI, and the skip reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

from dagster_llm_batch.engine import Status
from dagster_llm_batch.engine.condition_facts import read_facts
from dagster_llm_batch.engine.conditions import (
    GOES_ON,
    TOLD_BY_A_CHECK,
    Condition,
    ConditionKind,
    find_conditions,
    find_gone,
    split_by_dataset,
)
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.loop.progress import Pace, pace
from dagster_llm_batch.metadata import progress_observations, status_metadata
from dagster_llm_batch.progress import end_history, end_of, is_further, pace_of, pace_text, together
from dagster_llm_batch.sensors.state import (
    TickState,
    Undelivered,
    apart,
    dataset_names,
    has_passed,
    has_time,
    note,
    note_action,
    note_unreadable,
)
from dagster_llm_batch.states import ShardState

if TYPE_CHECKING:
    from dagster_llm_batch.loop.activity import Outlook
    from dagster_llm_batch.sensors.run_requests import Group
    from dagster_llm_batch.storage.ledger.records import Progress, Shard

__all__ = [
    "fail_for_errors",
    "fail_for_person",
    "is_reported_for_good",
    "is_unreported",
    "report_conditions",
    "report_progress",
    "summarize",
]

_NOTES_AT_MOST = 20

# A wait for a person is reported again after this.
_REPORTED_EVERY = timedelta(hours=6)

# By submission_id: the times of the last reports that have no place in the ledger.
_reported_at: dict[str, datetime] = {}


def is_unreported(state: TickState, submission_id: str) -> bool:
    """Return whether a submission without a place in this ledger was not reported lately."""
    reported_at = _reported_at.get(submission_id)
    return reported_at is None or has_passed(state, _REPORTED_EVERY, reported_at)


def report_conditions(
    state: TickState, undelivered: Undelivered, unplaced: Sequence[Progress], outlook: Outlook, flying: Sequence[Shard]
) -> list[Condition] | None:
    """Note the conditions of submissions, and the next step of a person for those that are due.

    `unplaced` are submissions of datasets whose partitions cannot be read. Returns None if the conditions cannot be
    found.
    """
    conditions: list[Condition] | None = None
    with apart(state, "conditions of submissions"):
        names = {progress.submission.asset for progress in undelivered.own}
        facts = read_facts(
            state.engine,
            {name: state.labels[name].keys for name in names},
            dataset_names(state),
            undelivered=[*undelivered.own, *unplaced, *undelivered.others],
            outlook=outlook,
            flying=_read_flying(state, undelivered, unplaced, flying),
            unreadable=partial(note_unreadable, state),
        )
        conditions = find_conditions(facts)
        first, rest = split_by_dataset(conditions)
        state.notes.first |= {condition.submission.submission_id for condition in first}
        # One condition of each submission is reported: a hold comes before the others.
        for condition in sorted([*first, *rest], key=lambda condition: condition.kind in GOES_ON):
            if condition.submission.asset in state.labels or condition.kind is ConditionKind.NO_DATASET:
                _report_condition(state, condition)
    return conditions


def _read_flying(
    state: TickState, undelivered: Undelivered, unplaced: Sequence[Progress], flying: Sequence[Shard]
) -> Sequence[Shard]:
    """Return the shards in flight. Read all of them again if some may need a person: they may have just ended."""
    in_doubt = any(ShardState.SUBMITTING in progress.states for progress in (*undelivered.own, *unplaced))
    # A submission without a dataset is shown with the last poll of its own shards.
    is_gone = bool(find_gone(undelivered.others, dataset_names(state)))
    if in_doubt or is_gone or any(state.engine.deployment.is_overdue(shard) for shard in flying):
        return state.ledger.shards.in_flight(state.engine.namespace, unreadable=partial(note_unreadable, state))
    return flying


def _report_condition(state: TickState, condition: Condition) -> None:
    submission = condition.submission
    if not condition.is_due(state.now):
        # Another code location may have a dataset without due submissions.
        if condition.kind is not ConditionKind.NO_DATASET:
            note(state, f"{submission.place}: {condition.advice}")
    elif condition.kind is ConditionKind.NO_DATASET:
        # Its submission may be another code location's, whose sensor reports it by a mark in the ledger.
        text = f"{submission.place} needs a person: {str(condition.advice).rstrip('.')}"
        state.notes.unrecorded[submission.submission_id] = text
        note(state, text)
    elif condition.kind in TOLD_BY_A_CHECK:
        note(state, f"{submission.place} waits for a person: {condition.advice}")
    elif not is_reported_for_good(state, condition):
        note_action(state, submission, condition.advice)


def is_reported_for_good(state: TickState, condition: Condition) -> bool:
    """Return whether a condition was reported and is not reported again: nothing more comes of stored answers."""
    submission = condition.submission
    if condition.kind is not ConditionKind.NO_PARTITION or not submission.is_settled:
        return False
    return submission.submission_id in state.engine.activity.reported_since(
        submission.settled_at or submission.created_at
    )


def fail_for_person(state: TickState) -> None:
    """Raise LLMBatchError for waits for a person that were not reported lately. Call it last."""
    actions, first = state.notes.actions, state.notes.first
    reported = state.engine.activity.reported_since(state.now - _REPORTED_EVERY) if actions else set()
    due = {submission_id: text for submission_id, text in actions.items() if submission_id not in reported}
    unrecorded = {each: text for each, text in state.notes.unrecorded.items() if is_unreported(state, each)}
    if not due and not unrecorded:
        return
    if due:
        state.engine.activity.note_reported(list(due))
    _reported_at.update(dict.fromkeys(unrecorded, state.now))
    # The conditions that are shown in any case.
    shown = [*unrecorded.values(), *(text for each, text in due.items() if each in first)]
    texts = [*shown, *(text for each, text in due.items() if each not in first)]
    most = max(_NOTES_AT_MOST, len(shown))
    more = [f"And {len(texts) - most} submissions more"] if len(texts) > most else []
    raise LLMBatchError(". ".join([*texts[:most], *more]) + ".")


def fail_for_errors(state: TickState, undelivered: Sequence[Progress]) -> None:
    """Raise LLMBatchError for lasting errors. Call it when everything else is done."""
    if errors := state.notes.errors:
        first = next(iter(errors.values()))
        count = "1 part" if len(errors) == 1 else f"{len(errors)} parts"
        summary = summarize(state, undelivered)
        raise LLMBatchError(f"{count} of the tick failed, everything else was done; see its log. {summary}") from first


def report_progress(
    state: TickState, before: Mapping[str, Progress], undelivered: Sequence[Progress], asked: Iterable[Group]
) -> None:
    """Show in the UI which submissions have progressed notably in this tick, up to a limit.

    Only a few that the runs of `asked` will materialize are shown: these runs wait for the end of the tick, and show
    them.
    """
    landing = {submission_id for group in asked for ready in group.ready for submission_id in ready.submissions}
    moved = [progress.submission for progress in undelivered if _is_news(state, before, progress)]
    others = [submission for submission in moved if submission.submission_id not in landing]
    few = [submission for submission in moved if submission.submission_id in landing]
    shown = [*others, *few[: state.bounds.observed_landings]][: state.bounds.observations]
    with apart(state, "progress of submissions"):
        known = state.ledger.submissions.get_all_with_shards([submission.submission_id for submission in shown])
        for submission in shown:
            if not has_time(state):
                return
            with apart(state, submission.place):
                _observe(state, Status(*known[submission.submission_id]))


def _is_news(state: TickState, before: Mapping[str, Progress], progress: Progress) -> bool:
    """Return whether a submission has moved notably, and may be shown."""
    submission = progress.submission
    earlier = before.get(submission.submission_id)
    if earlier is None or submission.provider not in state.engine.providers:
        return False
    return is_further(earlier, progress) and state.labels[submission.asset].has(submission.partition)


def _observe(state: TickState, status: Status) -> None:
    submission, instance = status.submission, state.context.instance
    provider = state.engine.provider(submission.provider)
    metadata = status_metadata(status, provider, pace_of(state.engine, status))
    key = state.labels[submission.asset].dataset.key
    for observation in progress_observations(instance, key, submission.partition or None, metadata):
        instance.report_runless_asset_event(observation)


def summarize(state: TickState, undelivered: Sequence[Progress]) -> str:
    """Return the skip reason of the tick, one line: the batches in flight, and the notes."""
    flying = [progress for progress in undelivered if progress.oldest_submitted_at is not None]
    if not flying:
        return "; ".join(["no batches in flight", *_shown_notes(state)])
    ids = [progress.submission.submission_id for progress in flying]
    batches = state.ledger.batches.count_in_flight(state.engine.namespace, ids)
    counted = "1 batch" if batches == 1 else f"{batches:,} batches"
    paces = _paces(state, flying)
    how_far = [pace_text(together(paces))] if paces else []
    return "; ".join([f"{counted} in flight", *how_far, *_shown_notes(state)])


def _shown_notes(state: TickState) -> list[str]:
    texts = list(state.notes.texts)
    more = len(texts) - _NOTES_AT_MOST
    return texts if more <= 0 else [*texts[:_NOTES_AT_MOST], f"and {more} notes more"]


def _paces(state: TickState, flying: Iterable[Progress]) -> list[Pace]:
    history = end_history(state.ledger, state.engine.namespace, state.now)
    paces: list[Pace] = []
    for progress in flying:
        with apart(state, progress.submission.place):
            paces.append(pace(progress, state.now, end_of(history, progress, state.now)))
    return paces
