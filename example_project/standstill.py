"""The end of a wait without progress, with a report of its obstacles.

Every wait of the example passes its view of the progress to a `Patience`. If it has not changed for two minutes, a
message describes the wait, with the state in Dagster and the ledger. After ten minutes, the command stops with the same
message. The batches run on, and the next run of the command finds them again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from dagster_llm_batch.engine.condition_facts import read_facts
from dagster_llm_batch.engine.conditions import find_conditions
from dagster_llm_batch.progress import states_text
from example_project.dagster_dev import DagsterError, end_of

if TYPE_CHECKING:
    from dagster_llm_batch.engine import Engine

__all__ = ["Patience", "StandstillError", "describe_dagster", "describe_submissions"]

TELL_SECONDS, STOP_SECONDS = 120.0, 600.0
"""Seconds without progress until a message, and until the wait ends."""
_RUNS, _TICKS, _LONGEST = 20, 3, 400
_SILENT_SECONDS = 60.0
_ENDED_BADLY = (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)


class StandstillError(DagsterError):
    """A wait without progress has ended; the message contains the aim of the wait and its obstacles."""


class Patience:
    """The time limit of one wait: its latest view of the progress, and the time of the last change.

    Args:
        obstacles: Returns the obstacles, in lines. It is called when there is no progress, and must not raise.
        say: Shows a message to the user.
        tell_seconds: Seconds without progress until a message, and between further ones.
        stop_seconds: Seconds without progress until the wait ends.
        clock: Returns seconds that only grow.
    """

    def __init__(
        self,
        obstacles: Callable[[], str],
        say: Callable[[str], None],
        *,
        tell_seconds: float = TELL_SECONDS,
        stop_seconds: float = STOP_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._obstacles, self._say, self._clock = obstacles, say, clock
        self._tell_seconds, self._stop_seconds = tell_seconds, stop_seconds
        self._seen: object = None
        self._since = self._told_at = clock()

    def look(self, seen: object, waits_for: str, *, stop_seconds: float | None = None) -> None:
        """Note the present view of the progress, any comparable value. Raises StandstillError if it stays the same.

        `stop_seconds` is for waits that normally take longer, such as a batch at a vendor.
        """
        now = self._clock()
        if seen != self._seen:
            self._seen, self._since, self._told_at = seen, now, now
            return
        still = now - self._since
        if still >= (self._stop_seconds if stop_seconds is None else stop_seconds):
            raise StandstillError(
                f"Nothing has moved for {still:.0f} s while this waited for {waits_for}.\n{self._obstacles()}\n"
                "Nothing is lost: batches that were sent run on, and the next run of this command finds them again."
            )
        if now - self._told_at >= self._tell_seconds:
            self._told_at = now
            self._say(f"Nothing has moved for {still:.0f} s. Waiting for {waits_for}.\n{self._obstacles()}")


def describe_dagster(instance: dg.DagsterInstance, since: datetime, log: Path) -> str:
    """Return Dagster's activity since `since`: runs, backfills, sensors, daemons, and the end of its log."""
    return "\n".join(
        [
            *_told("runs", _runs(instance, since)),
            *_told("backfills", _backfills(instance, since)),
            *_told("sensors", _ticks(instance)),
            *_told("daemons", _silent_daemons(instance)),
            end_of(log),
        ]
    )


def describe_submissions(engine: Engine) -> str:
    """Return the progress and last event of each submission without materialized labels."""
    return "\n".join(_told("submissions", _submissions(engine)))


def _told(what: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines, or the error that stops them: partial evidence is better than a second error."""
    none = True
    try:
        for line in lines:
            none = False
            yield f"  {line}"
    except Exception as error:  # noqa: BLE001 - of Dagster's or the ledger's storage, which may be what is in the way
        yield f"  {what} cannot be read: {type(error).__name__}: {error}"
        return
    if none:
        yield f"  {what}: nothing to tell"


def _runs(instance: dg.DagsterInstance, since: datetime) -> Iterator[str]:
    """Yield all unfinished runs, and the failed and canceled runs since `since`."""
    records = instance.get_run_records(limit=_RUNS)
    for record in records:
        run = record.dagster_run
        if not run.is_finished or (run.status in _ENDED_BADLY and record.create_timestamp >= since):
            names = ", ".join(sorted(key.to_user_string() for key in run.asset_selection or ())) or run.job_name
            changed = f"{record.update_timestamp:%H:%M:%S} UTC"
            yield f"run {run.run_id[:8]} is {run.status.value} since {changed}: {names}"[:_LONGEST]
    ended = sum(record.dagster_run.is_success for record in records)
    yield f"{ended} of the last {len(records)} runs ended well"


def _backfills(instance: dg.DagsterInstance, since: datetime) -> Iterator[str]:
    for backfill in instance.get_backfills(limit=_RUNS):
        if backfill.backfill_timestamp >= since.timestamp():
            error = f": {_short(backfill.error.message)}" if backfill.error is not None else ""
            yield f"backfill {backfill.backfill_id} is {backfill.status.value}{error}"


def _ticks(instance: dg.DagsterInstance) -> Iterator[str]:
    for state in instance.all_instigator_state():
        ticks = instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=_TICKS)
        if not ticks:
            yield f"sensor {state.instigator_name} is {state.status.value} and has never ticked"
        for tick in ticks:
            said = tick.error.message if tick.error is not None else tick.skip_reason or ", ".join(tick.run_ids)
            at = datetime.fromtimestamp(tick.timestamp, UTC)
            yield f"sensor {state.instigator_name} at {at:%H:%M:%S} UTC: {tick.status.value}. {_short(said)}".rstrip()


def _silent_daemons(instance: dg.DagsterInstance) -> Iterator[str]:
    for name, heartbeat in sorted(instance.get_daemon_heartbeats().items()):
        silent = time.time() - heartbeat.timestamp
        if silent > _SILENT_SECONDS:
            yield f"Dagster's daemon {name} was last seen {silent:.0f} s ago"
        for error in heartbeat.errors or ():
            yield f"Dagster's daemon {name} says: {_short(error.message)}"


def _submissions(engine: Engine) -> Iterator[str]:
    outlook = engine.activity.outlook()
    for progress in engine.ledger.submissions.progress(engine.namespace):
        submission = progress.submission
        last = outlook.last.get(submission.submission_id)
        event = "" if last is None else f"; last: {last.kind} at {last.at:%H:%M:%S} UTC {_short(last.detail or '')}"
        yield f"{submission.place}: {states_text(progress)}{event}".rstrip()
    for condition in find_conditions(read_facts(engine, None, ())):
        yield f"{condition.submission.place}: {_short(str(condition.advice))}"


def _short(text: str) -> str:
    return " ".join(text.split())[:_LONGEST]
