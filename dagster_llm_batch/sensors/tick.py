"""One tick: poll what is due, find what a run can bring further, and say what there is to wait for.

Bounded in time, and in queries: those on the ledger are as many for ten thousand batches as for ten.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING

import dagster as dg

from dagster_llm_batch.engine.pace import Pace, pace
from dagster_llm_batch.errors import CannotTellError, LeaseError, LLMBatchError
from dagster_llm_batch.metadata import status_metadata
from dagster_llm_batch.progress import has_moved, pace_of, pace_text, together, usual_of
from dagster_llm_batch.sensors.landed import deliver_landed
from dagster_llm_batch.sensors.landing_runs import RANGE_TAGS, Group, Partitions, Ready, joined
from dagster_llm_batch.states import IN_FLIGHT, ShardState
from dagster_llm_batch.storage.records import Progress, Shard, Submission
from dagster_llm_batch.types import BatchStatus

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine
    from dagster_llm_batch.engine.outlook import Outlook

__all__ = ["Tick"]

_POLL_SECONDS = 25.0  # then what is known is acted on; the rest is polled at the next tick
_TICK_SECONDS = 35.0  # Dagster ends one that takes 60
_POLLED_AT_ONCE = 1_000
_OBSERVED_AT_MOST = 50  # an observation takes Dagster some 25 ms
_NOTES_AT_MOST = 20
_LONGEST_SPACING = timedelta(minutes=10)
_RUNS_SEEN = 500
_ASKED_TO_STOP = (BatchStatus.CANCELING, BatchStatus.NOT_FOUND)
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class Tick:
    """One look at everything of this code location."""

    def __init__(self, context: dg.SensorEvaluationContext, engine: Engine, labels: Mapping[str, Partitions]) -> None:
        self._context = context
        self._engine = engine
        self._ledger = engine.ledger
        self._labels = labels
        self._now = engine.now()
        self._began = monotonic()
        self._notes: dict[str, None] = {}
        self._before = {one.submission.submission_id: one for one in self._progress()}
        self._after: list[Progress] = []
        self._recovered = False
        self._runs = context.instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED), limit=_RUNS_SEEN)

    def _progress(self) -> list[Progress]:
        """Undelivered submissions; those of other code locations on the same ledger are theirs to look after."""
        return [p for p in self._ledger.progress(self._engine.namespace) if p.submission.asset in self._labels]

    def _has_time(self, seconds: float = _TICK_SECONDS) -> bool:
        return monotonic() - self._began < seconds

    def poll(self) -> None:
        """Ask the providers about batches in flight whose turn it is."""
        flying = [one for one in self._ledger.in_flight(self._engine.namespace) if one.submission_id in self._before]
        self._stop_late(flying)
        due: dict[str, list[Shard]] = defaultdict(list)
        for shard in flying:
            if self._is_due(shard) and self._can_ask(shard):
                due[shard.provider].append(shard)
        longest = 0.0
        for shards in due.values():
            for start in range(0, len(shards), _POLLED_AT_ONCE):
                began = monotonic()
                if not self._has_time(_POLL_SECONDS - longest):
                    self.note(f"{len(shards) - start} batches wait for the next tick")
                    break
                try:
                    self._engine.poll(shards[start : start + _POLLED_AT_ONCE])
                except LLMBatchError as error:
                    self._context.log.warning(f"Polling failed, to be tried again: {error}")
                    self.note(f"polling failed: {error}")
                    break
                longest = max(longest, monotonic() - began)

    def _stop_late(self, flying: Iterable[Shard]) -> None:
        """Batches that run past their deadline are asked to stop."""
        running = (s for s in flying if s.state is ShardState.SUBMITTED and s.status not in _ASKED_TO_STOP)
        for submission_id in dict.fromkeys(shard.submission_id for shard in running):
            submission = self._before[submission_id].submission
            if submission.deadline_at is not None and submission.deadline_at <= self._now:
                if not self._has_time(_POLL_SECONDS / 2):
                    self.note("late batches wait for the next tick to be stopped")
                    return
                try:
                    self._engine.stop_late(submission_id)
                except LLMBatchError as error:
                    self.note(f"{submission.asset} {submission.partition}: {error}")

    def _is_due(self, shard: Shard) -> bool:
        if shard.polled_at is None or shard.submitted_at is None or shard.status is BatchStatus.CANCELING:
            return True
        return self._now - shard.polled_at >= self._spacing(shard.submitted_at)

    def _spacing(self, since: datetime) -> timedelta:
        return min((self._now - since) / 10, _LONGEST_SPACING)

    def _can_ask(self, shard: Shard) -> bool:
        """Another account does not know the batch, and would have it reported as lost."""
        try:
            account = self._engine.provider(shard.provider).account
        except LLMBatchError as error:
            self.note(str(error))
            return False
        if account != shard.account:
            self.note(f"batches of {shard.provider} account {shard.account} wait; {account} is configured")
        return account == shard.account

    def note(self, text: str) -> None:
        """What people are told at the end of the tick."""
        self._notes[text] = None

    def ready(self) -> list[Ready]:
        """Partitions that a run can bring further."""
        self._engine.keep_places(list(self._labels))
        self._after = self._progress()
        found: dict[tuple[str, str], Ready] = {}
        going = self._going()
        outlook = self._engine.outlook()
        going = [one for one in going if self._is_free(one, outlook)]
        if turns := [one.submission_id for one in going if outlook.waited(one.submission_id)]:
            self._engine.note_turns(turns)
            outlook = self._engine.outlook()
        for submission in going:
            if not outlook.is_open(submission.submission_id):
                continue
            attempt = outlook.attempt(submission.submission_id)
            if (one := self._placed(submission, f"{submission.submission_id}:{attempt}")) is None:
                continue
            place = (submission.asset, submission.partition)
            if place in found:  # an earlier submission of the partition is there to be taken home too
                one = replace(one, run_key=joined([found[place].run_key, one.run_key]))
            found[place] = one
        return list(found.values())

    def _going(self) -> list[Submission]:
        """Those of which a run has something to do; those of which it has done all leave for good."""
        moving: list[Submission] = []
        for progress in self._after:
            submission = progress.submission
            try:
                if self._can_go(progress):
                    moving.append(submission)
            except CannotTellError as error:
                self._context.log.exception("A batch needs a person.")
                self.note(f"{submission.asset} {submission.partition} needs a person: {error}")
            except LeaseError:
                continue
            except LLMBatchError as error:
                self._context.log.warning(f"{submission.asset} {submission.partition}: {error}")
                self.note(f"{submission.asset} {submission.partition}: {error}")
        settled = [one for one in moving if one.is_settled]
        try:
            home, unknown = deliver_landed(self._context.instance, self._engine, settled, self._has_time)
        except LLMBatchError as error:  # the others need not wait for it
            self.note(str(error))
            home, unknown = set(), {one.submission_id for one in settled}
        if unknown:
            self.note(f"{len(unknown)} settled submissions wait for the next tick")
        after = self._progress() if self._recovered else self._after
        self._after = [one for one in after if one.submission.submission_id not in home]
        return [one for one in moving if one.submission_id not in home | unknown]

    def _can_go(self, progress: Progress) -> bool:
        if not self._engine.needs_recovery(progress):
            return self._engine.can_advance(progress)
        if self._has_time():
            self._recovered = True
            self._engine.recover(progress.submission.submission_id)
        return False  # its batches are being looked for

    def _is_free(self, submission: Submission, outlook: Outlook) -> bool:
        """Whether no run is at it, and its provider may be asked again."""
        if not outlook.is_open(submission.submission_id) or outlook.is_busy(submission.submission_id):
            return False
        if (run := self._run_at(submission)) is not None:
            self.note(f"{submission.asset}: run {run.run_id} is at it")
            return False
        since = outlook.unavailable_since(submission.submission_id)
        return since is None or self._now - since >= self._spacing(submission.created_at)

    def _run_at(self, submission: Submission) -> dg.DagsterRun | None:
        """The unfinished run, whoever asked for it, that lands this partition."""
        asset = dg.AssetKey.from_user_string(submission.asset)
        places = self._labels[submission.asset].places
        for run in self._runs:
            if asset not in (run.asset_selection or ()):
                continue
            first, last = (run.tags.get(name, run.tags.get("dagster/partition", "")) for name in RANGE_TAGS)
            if first == last == submission.partition:
                return run
            span = [places.get(key) for key in (first, submission.partition, last)]
            if None not in span and span == sorted(span, key=lambda place: place or 0):
                return run
        return None

    def _placed(self, submission: Submission, run_key: str) -> Ready | None:
        if not self._exists(submission):
            return None
        place = self._labels[submission.asset].places.get(submission.partition)
        return Ready(dg.AssetKey.from_user_string(submission.asset), submission.partition or None, place, run_key)

    def _exists(self, submission: Submission) -> bool:
        """Whether its asset has the partition that it is of."""
        partitions = self._labels[submission.asset]
        if submission.partition in partitions.places or not (submission.partition or partitions.are_there):
            return True
        what = f"partition {submission.partition}" if submission.partition else "its unpartitioned form"
        self.note(f"{submission.asset}: {what} no longer exists")
        return False

    def is_new(self, group: Group) -> bool:
        """Whether this was not asked for yet. Dagster would drop the request without a word."""
        asked = dg.RunsFilter(tags={"dagster/run_key": group.run_key, "dagster/sensor_name": self._context.sensor_name})
        for run in self._context.instance.get_runs(asked, limit=1):
            if run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
                self.note(f"{group}: run {run.run_id} did not land it, and nothing has changed since; re-execute it")
            else:
                self.note(f"{group}: run {run.run_id} lands it")
            return False
        return True

    def observe(self) -> None:
        """Show in the UI what has moved notably in this tick: some of it where that is much."""
        shown = 0
        for one in self._after:
            submission = one.submission
            before = self._before.get(submission.submission_id)
            provider = self._engine.providers.get(submission.provider)
            if before is None or provider is None or not has_moved(before, one) or not self._exists(submission):
                continue
            if shown == _OBSERVED_AT_MOST or not self._has_time():
                return
            shown += 1
            status = self._engine.status(submission.submission_id)
            observation = dg.AssetObservation(
                dg.AssetKey.from_user_string(submission.asset),
                partition=submission.partition or None,
                metadata=status_metadata(status, provider, pace_of(self._engine, status)),
            )
            self._context.instance.report_runless_asset_event(observation)

    def summary(self) -> str:
        """What there is to wait for."""
        flying = [p for p in self._after if p.oldest_submitted_at is not None]
        if not flying:
            return "; ".join(["no batches in flight", *self._told()])
        batches = sum(count for p in flying for state, count in p.states.items() if state in IN_FLIGHT)
        counted = "1 batch" if batches == 1 else f"{batches:,} batches"
        return "; ".join([f"{counted} in flight", pace_text(together(self._paces(flying))), *self._told()])

    def _told(self) -> list[str]:
        notes = list(self._notes)
        more = len(notes) - _NOTES_AT_MOST
        return notes if more <= 0 else [*notes[:_NOTES_AT_MOST], f"and {more} notes more"]

    def _paces(self, flying: list[Progress]) -> list[Pace]:
        usual: dict[str, timedelta | None] = {}
        found = []
        for one in flying:
            its_pace = pace(one, self._now)
            if its_pace.per_minute is None:
                asset = one.submission.asset
                if asset not in usual:
                    usual[asset] = usual_of(self._ledger, self._engine.namespace, asset)
                its_pace = pace(one, self._now, usual[asset])
            found.append(its_pace)
        return found
