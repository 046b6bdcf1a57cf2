"""One tick: poll the batches that are due, find the partitions for runs, and report the waits.

Bounded in time, and in queries: the ledger gets as many queries for ten thousand batches as for ten.

Each provider, batch and dataset is handled separately. An error of one of them, of any kind, is logged with its
traceback and noted, and the others go on. A tick fails as a whole if the ledger cannot be read, since nothing is known
then. If it requests no run, it also fails after an error of another kind than ours. Such an error is not temporary, and
skipped ticks are easily missed.

For the same reason, it fails if a submission waits for a person. Examples are an overdue batch, a full queue at the
provider, and refused credentials. Others are another configured account, an unknown create call, and a sending that is
missing from the ledger. The error has the next step, and is repeated every six hours until that is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from dagster_llm_batch.engine.conditions import find_gone
from dagster_llm_batch.sensors.annotations import new_annotations
from dagster_llm_batch.sensors.polling import poll_batches, recover_sends
from dagster_llm_batch.sensors.readiness import find_candidates, find_ready, is_new, read_runs
from dagster_llm_batch.sensors.reporting import (
    fail_for_errors,
    fail_for_person,
    report_conditions,
    report_progress,
    summarize,
)
from dagster_llm_batch.sensors.run_requests import grouped
from dagster_llm_batch.sensors.state import (
    TickState,
    apart,
    dataset_names,
    note,
    note_unreadable,
    read_undelivered,
)

if TYPE_CHECKING:
    from dagster import RunRequest

    from dagster_llm_batch.sensors.run_requests import Group, Ready
    from dagster_llm_batch.storage.ledger.records import Progress, Shard

__all__ = ["Requested", "run_tick"]


@dataclass(frozen=True)
class Requested:
    """The requests of a tick.

    Attributes:
        groups: The partitions of each run that brings labels further.
        gold: The runs that make gold of human labels.
        skipped: The reason for asking for nothing.
    """

    groups: Sequence[Group] = ()
    gold: Sequence[RunRequest] = ()
    skipped: str = ""


def run_tick(state: TickState, most_partitions: int, remarks: Iterable[str] = ()) -> Requested:
    """Do one tick. It polls and requests runs, and never submits: Dagster may run a sensor's body twice for one tick.

    Args:
        state: From `begin_tick`.
        most_partitions: The most neighbouring partitions in one run.
        remarks: The first notes of the tick.

    Raises LLMBatchError for a tick without requests if a submission waits for a person, or after a lasting error.
    """
    undelivered = read_undelivered(state)
    for remark in remarks:
        note(state, remark)
    undelivered = recover_sends(state, undelivered)
    flying = poll_batches(state, undelivered)
    ready, after = _find_ready(state, flying)
    new = (group for group in grouped(ready, most_partitions) if is_new(state, group))
    groups = list(islice(new, state.bounds.requested_runs))
    if len(groups) == state.bounds.requested_runs:
        note(state, "further runs are asked for at the next ticks")
    report_progress(state, undelivered.by_id, after, groups)
    gold: list[RunRequest] = []
    with apart(state, "human labels"):
        gold += new_annotations(state.context, state.engine, state.labels)
    if groups or gold:
        return Requested(groups, gold)
    fail_for_person(state)
    fail_for_errors(state, after)
    return Requested(skipped=summarize(state, after))


def _find_ready(state: TickState, flying: Sequence[Shard]) -> tuple[list[Ready], Sequence[Progress]]:
    """Find the partitions for runs, and report conditions. Return the undelivered submissions, too."""
    with apart(state, "places in queues"):
        state.engine.activity.keep_places(list(state.labels))
    read_outlook = partial(state.engine.activity.outlook, partial(note_unreadable, state))
    # Polling has moved shards since the tick began.
    undelivered = read_undelivered(state)
    if not undelivered.own:
        if find_gone(undelivered.others, dataset_names(state)):
            report_conditions(state, undelivered, (), read_outlook(), flying)
        return [], ()
    runs = read_runs(state)
    candidates = find_candidates(state, undelivered, runs)
    outlook = read_outlook()
    conditions = report_conditions(state, candidates.undelivered, candidates.unplaced, outlook, flying)
    return find_ready(state, candidates, runs, outlook, conditions), candidates.undelivered.own
