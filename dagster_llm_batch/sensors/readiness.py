"""Submissions that a run can advance: they can go on, have no run at work, and their providers answer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from dagster_llm_batch.engine.conditions import ConditionKind
from dagster_llm_batch.errors import ConfigError, LeaseError, RefusedError, StatusUnknownError
from dagster_llm_batch.loop.poll import find_spacing
from dagster_llm_batch.sensors.reporting import is_reported_for_good
from dagster_llm_batch.sensors.run_requests import Group, Ready, joined
from dagster_llm_batch.sensors.runs import UnfinishedRuns, confirm_materialized
from dagster_llm_batch.sensors.state import (
    TickState,
    Undelivered,
    apart,
    has_passed,
    has_time,
    is_within,
    note,
    note_action,
    note_unreadable,
    read_undelivered,
    repository,
)
from dagster_llm_batch.text import short_run

if TYPE_CHECKING:
    from dagster_llm_batch.engine.conditions import Condition
    from dagster_llm_batch.loop.activity import Outlook
    from dagster_llm_batch.storage.ledger.records import Progress, Submission

__all__ = ["Candidates", "find_candidates", "find_ready", "is_new", "read_runs"]


@dataclass(frozen=True)
class Candidates:
    """The submissions that a run may advance, and all undelivered ones.

    Attributes:
        submissions: The candidates.
        undelivered: The undelivered submissions; of this sensor's own datasets, only those with readable partitions.
        unplaced: The own submissions of the other datasets.
    """

    submissions: Sequence[Submission]
    undelivered: Undelivered
    unplaced: Sequence[Progress]


def read_runs(state: TickState) -> UnfinishedRuns:
    """Read the unfinished runs.

    Call it after reading the ledger, so that a run that planned the submissions there is still seen. Read materialized
    labels after it, so that a run that has ended by now has reported them.
    """
    runs = UnfinishedRuns(
        state.context.instance,
        repository(state),
        state.labels,
        state.engine.activity.runs_at_work(),
        state.now,
        partial(is_within, state, state.bounds.poll_seconds),
        state.bounds,
    )
    if not runs.seen_all:
        note(state, "not all runs in the queue were looked at")
    return runs


def find_candidates(state: TickState, undelivered: Undelivered, runs: UnfinishedRuns) -> Candidates:
    """Find the submissions that a run may advance. Mark submissions with materialized labels as delivered."""
    readable = _find_readable(state, undelivered.own)
    unplaced = [progress for progress in undelivered.own if progress.submission.asset not in readable]
    placed = [progress for progress in undelivered.own if progress.submission.asset in readable]
    moving, was_recovered = _find_moving(state, placed, runs)
    delivered, later = _deliver(state, moving, runs)
    # The recovery has changed states.
    after = read_undelivered(state) if was_recovered else Undelivered(placed, undelivered.others)
    own = [
        progress
        for progress in after.own
        if progress.submission.submission_id not in delivered and progress.submission.asset in readable
    ]
    submissions = [submission for submission in moving if submission.submission_id not in delivered | later]
    return Candidates(submissions, Undelivered(own, after.others), unplaced)


def _find_readable(state: TickState, undelivered: Iterable[Progress]) -> set[str]:
    """Return the datasets with readable partition keys: a definition of the user may raise."""
    readable = set()
    for asset in dict.fromkeys(progress.submission.asset for progress in undelivered):
        with apart(state, f"partitions of {asset}"):
            _ = state.labels[asset].places
            readable.add(asset)
    return readable


def _find_moving(
    state: TickState, undelivered: Iterable[Progress], runs: UnfinishedRuns
) -> tuple[list[Submission], bool]:
    """Return the submissions that can go on, and whether batches of others were looked for."""
    moving: list[Submission] = []
    was_recovered = False
    lines = state.engine.activity.queue_lines()
    for progress in undelivered:
        submission = progress.submission
        with apart(state, submission.place):
            try:
                if (run := runs.submitting(submission.asset, submission.partition)) is not None:
                    # A part of its requests is planned, and the sent ones have no record yet. Only that run handles
                    # them.
                    note(state, f"{submission.asset}: run {short_run(run.run_id)} is at work on its submission")
                elif not state.engine.activity.needs_recovery(progress):
                    if state.engine.activity.can_advance(progress, lines):
                        moving.append(submission)
                elif has_time(state):
                    # It can go on at a later tick, when its batches are found, or known to be absent.
                    was_recovered = True
                    state.engine.recover_batches(submission.submission_id)
            except (StatusUnknownError, RefusedError, ConfigError) as error:
                state.context.log.exception("A submission needs a person.")
                note_action(state, submission, error)
            except LeaseError:
                continue
    return moving, was_recovered


def _deliver(state: TickState, moving: Iterable[Submission], runs: UnfinishedRuns) -> tuple[set[str], set[str]]:
    """Mark complete submissions with materialized labels as delivered.

    Returns the ids of these, and the ids of submissions that wait for the next tick.
    """
    delivered: set[str] = set()
    later: set[str] = set()
    settled: dict[str, list[Submission]] = defaultdict(list)
    for submission in moving:
        if submission.is_settled:
            settled[submission.asset].append(submission)
    for asset, submissions in settled.items():
        left = {submission.submission_id for submission in submissions}
        with apart(state, asset):
            dataset = state.labels[asset].dataset
            landed, left = confirm_materialized(runs, state.engine, dataset, submissions, partial(has_time, state))
            delivered |= landed
        later |= left
    if later:
        note(state, f"{len(later)} complete submissions wait for the next tick")
    return delivered, later


def find_ready(
    state: TickState,
    candidates: Candidates,
    runs: UnfinishedRuns,
    outlook: Outlook,
    conditions: Sequence[Condition] | None,
) -> list[Ready]:
    """Return the partitions that a run can advance, beginning with the oldest submissions.

    `conditions` are None if they could not be found.
    """
    later = outlook.reading_later(candidates.undelivered.own, state.now)
    going = [
        submission
        for submission in candidates.submissions
        if submission.submission_id not in later and _is_free(state, submission, runs, outlook)
    ]
    if turns := [submission.submission_id for submission in going if outlook.waited(submission.submission_id)]:
        state.engine.activity.note_turns(turns)
        outlook = state.engine.activity.outlook(partial(note_unreadable, state))
    by_place: dict[tuple[str, str], Ready] = {}
    for submission in going:
        with apart(state, submission.place):
            if (ready := _ready(state, submission, outlook, conditions)) is None:
                continue
            place = (submission.asset, submission.partition)
            # An earlier submission of the partition is collected, too.
            if (other := by_place.get(place)) is not None:
                submissions = (*other.submissions, *ready.submissions)
                ready = replace(ready, run_key=joined([other.run_key, ready.run_key]), submissions=submissions)
            by_place[place] = ready
    return list(by_place.values())


def _is_free(state: TickState, submission: Submission, runs: UnfinishedRuns, outlook: Outlook) -> bool:
    """Return whether a submission has no run at work, and its provider may be asked again."""
    if not outlook.is_open(submission.submission_id) or outlook.is_busy(submission.submission_id):
        return False
    if (run := runs.landing(submission.asset, submission.partition)) is not None:
        note(state, f"{submission.asset}: run {short_run(run.run_id)} is materializing its labels")
        return False
    since = outlook.unavailable_since(submission.submission_id)
    if since is not None and not has_passed(state, find_spacing(submission.created_at, state.now), since):
        return False
    return _is_served(state, submission, outlook)


def _is_served(state: TickState, submission: Submission, outlook: Outlook) -> bool:
    """Return whether the providers that a run needs can be used. Otherwise it would fail repeatedly."""
    is_in_trouble = outlook.is_in_trouble(submission.submission_id)
    labeling = state.labels[submission.asset].dataset.labeling
    names = {submission.provider, *(one.provider for one in labeling.models)}
    if not is_in_trouble and all(state.access.reason_not_to_use(name) is None for name in names):
        return True
    needed = [submission.provider, *([labeling.models[1].provider] if labeling.cascade is not None else [])]
    shards = state.ledger.shards.of_submission(submission.submission_id)
    reason, passes = state.access.reason_not_to_run(needed, shards, is_in_trouble=is_in_trouble)
    if reason is not None and passes:
        note(state, f"{submission.place} waits: {reason}")
    elif reason is not None:
        note_action(state, submission, reason)
        # Runs, which would do this, are not requested now.
        state.engine.give_up_forgotten(shards)
    return reason is None


def _ready(
    state: TickState, submission: Submission, outlook: Outlook, conditions: Sequence[Condition] | None
) -> Ready | None:
    submission_id = submission.submission_id
    if not outlook.is_open(submission_id):
        return None
    labels = state.labels[submission.asset]
    if not labels.has(submission.partition):
        _end_without_partition(state, submission, conditions)
        return None
    if outlook.stranded(submission_id) is not None:
        return None
    lost = state.lost.count(submission_id, outlook)
    # A partition that made a run fail, or may have killed two, gets a run without neighbours.
    is_alone = lost > 1 or submission_id in outlook.failed
    return Ready(
        labels.dataset.key,
        labels.dataset.rejects_key,
        submission.partition or None,
        None if is_alone else labels.places.get(submission.partition),
        outlook.run_key(submission_id),
        (submission_id,),
        lost,
        outlook.refused(submission_id),
    )


def _end_without_partition(state: TickState, submission: Submission, conditions: Sequence[Condition] | None) -> None:
    """Mark a submission delivered if its partition was removed, unless this is still to be reported."""
    if conditions is None:
        return
    kind, submission_id = ConditionKind.NO_PARTITION, submission.submission_id
    own = (one for one in conditions if one.kind is kind and one.submission.submission_id == submission_id)
    if all(is_reported_for_good(state, condition) for condition in own):
        state.ledger.submissions.mark_delivered(submission_id)


def is_new(state: TickState, group: Group) -> bool:
    """Return whether a run for this group is still to be requested. Dagster would silently drop a repeated request."""
    if not has_time(state):
        note(state, "further runs are asked for at the next ticks")
        return False
    is_new = False
    with apart(state, str(group)):
        reason = state.lost.reason_not_to_ask(group)
        is_new = reason is None
        if reason is not None:
            note(state, f"{group}: {reason}")
    return is_new
