"""The state of one tick: facts that stay the same, and notes that grow."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING

import dagster as dg

from dagster_llm_batch.assets.dataset import datasets_in
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.sensors.provider_access import ProviderAccess
from dagster_llm_batch.sensors.runs import LostRuns

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from dagster_llm_batch.engine.engine import Engine
    from dagster_llm_batch.sensors.run_requests import Partitions
    from dagster_llm_batch.sensors.runs import TickBounds
    from dagster_llm_batch.storage.ledger import Ledger
    from dagster_llm_batch.storage.ledger.records import Progress, Submission

__all__ = [
    "Notes",
    "TickState",
    "Undelivered",
    "apart",
    "begin_tick",
    "dataset_names",
    "has_passed",
    "has_time",
    "is_within",
    "note",
    "note_action",
    "note_error",
    "note_unreadable",
    "read_undelivered",
    "repository",
]


@dataclass
class Notes:
    """The texts and errors that a tick collects for people.

    Attributes:
        texts: The notes of the skip reason, each once, in their order.
        errors: The errors that are not temporary, by their subject.
        actions: The submissions that wait for a person, by submission_id, each with the next step.
        first: Of `actions`, the first submission of each dataset and kind of condition.
        unrecorded: The same texts for submissions without a place in this ledger for the time of a report. They are
            missing from the ledger, or their datasets are missing from these definitions.
    """

    texts: dict[str, None] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)
    actions: dict[str, str] = field(default_factory=dict)
    first: set[str] = field(default_factory=set)
    unrecorded: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TickState:
    """The facts of one tick.

    Attributes:
        context: Of Dagster.
        engine: Of the resource.
        labels: The partitions of each dataset that this sensor handles, by name.
        bounds: The limits of one tick.
        now: The engine's time when the tick began.
        began: The monotonic seconds when it began.
        notes: The one part that grows.
        access: The providers that can be asked.
        lost: The runs that changed nothing.
    """

    context: dg.SensorEvaluationContext
    engine: Engine
    labels: Mapping[str, Partitions]
    bounds: TickBounds
    now: datetime
    began: float
    notes: Notes
    access: ProviderAccess
    lost: LostRuns

    @property
    def ledger(self) -> Ledger:
        """The ledger of the engine."""
        return self.engine.ledger


@dataclass(frozen=True)
class Undelivered:
    """The submissions without materialized labels, as the ledger has them at one moment.

    Attributes:
        own: Of datasets that this sensor handles.
        others: Of all other datasets. Another sensor, or another code location on the same ledger, handles them.
    """

    own: Sequence[Progress]
    others: Sequence[Progress]

    @property
    def by_id(self) -> dict[str, Progress]:
        """The own submissions by submission_id."""
        return {progress.submission.submission_id: progress for progress in self.own}


def begin_tick(
    context: dg.SensorEvaluationContext, engine: Engine, labels: Mapping[str, Partitions], bounds: TickBounds
) -> TickState:
    """Return the state at the begin of a tick."""
    now, began, notes = engine.now(), monotonic(), Notes()
    access = ProviderAccess(engine, lambda subject, error: _note_error(context, notes, subject, error))
    lost = LostRuns(context.instance, engine, now, bounds)
    return TickState(context, engine, labels, bounds, now, began, notes, access, lost)


def note(state: TickState, text: str) -> None:
    """Add a text to the skip reason of the tick."""
    state.notes.texts[text] = None


def note_error(state: TickState, subject: str, error: Exception) -> None:
    """Note and log an error of a part of the tick, once. An error that is not ours fails the tick at its end."""
    _note_error(state.context, state.notes, subject, error)


def _note_error(context: dg.SensorEvaluationContext, notes: Notes, subject: str, error: Exception) -> None:
    is_ours = isinstance(error, LLMBatchError)
    text = f"{subject}: {error}" if is_ours else f"{subject}: {type(error).__name__}: {error}"
    if text in notes.texts:
        return
    notes.texts[text] = None
    context.log.error(text, exc_info=error)
    if not is_ours:
        notes.errors[subject] = error


def note_unreadable(state: TickState, row_id: str, error: Exception) -> None:
    """Note a row of the ledger that cannot be read."""
    note_error(state, f"the ledger's row {row_id}", error)


def note_action(state: TickState, submission: Submission, reason: object) -> None:
    """Note the next step of a person for a submission: one step for each submission."""
    text = f"{submission.place} needs a person: {str(reason).rstrip('.')}"
    if state.notes.actions.setdefault(submission.submission_id, text) == text:
        note(state, text)


@contextmanager
def apart(state: TickState, subject: str) -> Iterator[None]:
    """Keep any error inside to `subject`: it is noted, and the tick goes on."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - of SDKs, Dagster and the user's code: anything may come
        note_error(state, subject, error)


def is_within(state: TickState, seconds: float) -> bool:
    """Return whether the tick has run for less than so many seconds."""
    return monotonic() - state.began < seconds


def has_time(state: TickState) -> bool:
    """Return whether the tick has time left."""
    return is_within(state, state.bounds.tick_seconds)


def has_passed(state: TickState, pause: timedelta, since: datetime) -> bool:
    """Return whether a pause is over. A time in the future was set by a wrong clock: then it is over, too."""
    age = state.now - since
    return age >= pause or age.total_seconds() < 0


def read_undelivered(state: TickState) -> Undelivered:
    """Read the submissions without materialized labels. A row that cannot be read is noted, and left out."""
    found = state.ledger.submissions.progress(state.engine.namespace, unreadable=partial(note_unreadable, state))
    own = [progress for progress in found if progress.submission.asset in state.labels]
    return Undelivered(own, [progress for progress in found if progress.submission.asset not in state.labels])


def repository(state: TickState) -> dg.RepositoryDefinition:
    """Return the definitions of this code location."""
    assert state.context.repository_def is not None
    return state.context.repository_def


def dataset_names(state: TickState) -> Collection[str]:
    """Return the names of all datasets of this code location."""
    return datasets_in(repository(state).assets_defs_by_key.values())
