"""One tick: poll what is due, find what a run can bring further, and say what there is to wait for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from time import monotonic

import dagster as dg

from dagster_llm_batch.engine import Engine
from dagster_llm_batch.engine.pace import Pace, pace, usual_duration
from dagster_llm_batch.errors import CannotTellError, LeaseError, LLMBatchError
from dagster_llm_batch.metadata import SUBMISSION_KEY, status_metadata
from dagster_llm_batch.progress import has_moved, pace_of, pace_text, together
from dagster_llm_batch.sensors.landing_runs import RANGE_TAGS, Group, Partitions, Ready, joined
from dagster_llm_batch.states import IN_FLIGHT, ShardState
from dagster_llm_batch.storage.records import Progress, Shard, Submission
from dagster_llm_batch.types import BatchStatus

__all__ = ["Tick"]

_TICK_SECONDS = 40.0
_POLLED_AT_ONCE = 1_000
_OBSERVED_AT_MOST = 50  # an observation takes Dagster some 25 ms
_LONGEST_SPACING = timedelta(minutes=10)
_RUNS_SEEN = 500
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
        self._until = monotonic() + _TICK_SECONDS
        self._notes: list[str] = []
        self._before = {one.submission.submission_id: one for one in self._progress()}
        self._runs = context.instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED), limit=_RUNS_SEEN)

    def _progress(self) -> list[Progress]:
        """Undelivered submissions; those of other code locations on the same ledger are theirs to look after."""
        return [p for p in self._ledger.progress(self._engine.namespace) if p.submission.asset in self._labels]

    def poll(self) -> None:
        """Ask the providers about batches in flight whose turn it is."""
        self._stop_late(list(self._before.values()))
        due: dict[str, list[Shard]] = defaultdict(list)
        for shard in self._ledger.in_flight(self._engine.namespace):
            if shard.submission_id in self._before and self._is_due(shard) and self._can_ask(shard):
                due[shard.provider].append(shard)
        longest = 0.0
        for shards in due.values():
            for start in range(0, len(shards), _POLLED_AT_ONCE):
                began = monotonic()
                if began + longest > self._until:
                    self._note(f"{len(shards) - start} batches wait for the next tick")
                    break
                try:
                    self._engine.poll(shards[start : start + _POLLED_AT_ONCE])
                except LLMBatchError as error:
                    self._context.log.warning(f"Polling failed, to be tried again: {error}")
                    self._note(f"polling failed: {error}")
                    break
                longest = max(longest, monotonic() - began)

    def _stop_late(self, progress: list[Progress]) -> None:
        """Batches that run past their deadline are asked to stop; asking twice does nothing."""
        for one in progress:
            deadline = one.submission.deadline_at
            if deadline is not None and deadline <= self._now and ShardState.SUBMITTED in one.states:
                try:
                    self._engine.stop_late(one.submission.submission_id)
                except LLMBatchError as error:
                    self._note(f"{one.submission.asset} {one.submission.partition}: {error}")

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
            self._note(str(error))
            return False
        if account != shard.account:
            self._note(f"batches of {shard.provider} account {shard.account} wait; {account} is configured")
        return account == shard.account

    def _note(self, text: str) -> None:
        if text not in self._notes:
            self._notes.append(text)

    def ready(self) -> list[Ready]:
        """Partitions that a run can bring further."""
        found: dict[tuple[str, str], Ready] = {}
        self._engine.keep_places(list(self._labels))
        for progress in self._progress():
            submission = progress.submission
            try:
                if (why_not := self._not_ready(progress)) is not None:
                    self._context.log.debug(f"{submission.asset} {submission.partition}: {why_not}")
                    continue
            except CannotTellError as error:
                self._context.log.exception("A batch needs a person.")
                self._note(f"{submission.asset} {submission.partition} needs a person: {error}")
                continue
            except LeaseError:
                continue
            except LLMBatchError as error:
                self._context.log.warning(f"{submission.asset} {submission.partition}: {error}")
                self._note(f"{submission.asset} {submission.partition}: {error}")
                continue
            if (one := self._placed(submission)) is None:
                continue
            place = (submission.asset, submission.partition)
            if place in found:  # an earlier submission of the partition is there to be taken home too
                one = replace(one, run_key=joined([found[place].run_key, one.run_key]))
            found[place] = one
        return list(found.values())

    def _not_ready(self, progress: Progress) -> str | None:
        submission = progress.submission
        if self._engine.needs_recovery(progress):
            self._engine.recover(submission.submission_id)
            return "its batches are being looked for"
        if not self._engine.can_advance(progress):
            return "its batches are running, or wait for their turn"
        if self._is_delivered(progress):
            self._ledger.deliver(submission.submission_id)
            return "its labels have landed"
        if self._engine.is_busy(submission.submission_id):
            return "a run is at it"
        if (run := self._run_at(submission)) is not None:
            self._note(f"{submission.asset}: run {run.run_id} is at it")
            return "a run is at it, or will be"
        since = self._engine.unavailable_since(submission.submission_id)
        if since is not None and self._now - since < self._spacing(submission.created_at):
            return "its provider does not answer, or does not take its batches; it is tried again a while later"
        self._engine.note_turn(submission.submission_id)
        return None

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

    def _is_delivered(self, progress: Progress) -> bool:
        """Whether the newest materialization is of this submission, or a newer one has taken its place."""
        submission = progress.submission
        if not submission.is_settled:
            return False
        latest = self._engine.latest(submission.asset, submission.partition)
        if latest is not None and latest.submission_id != submission.submission_id:
            return True
        records = dg.AssetRecordsFilter(
            dg.AssetKey.from_user_string(submission.asset),
            asset_partitions=[submission.partition] if submission.partition else None,
        )
        for record in self._context.instance.fetch_materializations(records, limit=1).records:
            stored = record.asset_materialization
            value = None if stored is None else stored.metadata.get(SUBMISSION_KEY)
            return value is not None and value.value == submission.submission_id
        return False

    def _placed(self, submission: Submission) -> Ready | None:
        asset = dg.AssetKey.from_user_string(submission.asset)
        partitions = self._labels[submission.asset]
        run_key = f"{submission.submission_id}:{self._engine.attempt(submission.submission_id)}"
        if not submission.partition and not partitions.are_there:
            return Ready(asset, None, None, run_key)
        if submission.partition not in partitions.places:
            what = f"partition {submission.partition}" if submission.partition else "its unpartitioned form"
            self._note(f"{submission.asset}: {what} no longer exists")
            return None
        return Ready(asset, submission.partition, partitions.places[submission.partition], run_key)

    def is_new(self, group: Group) -> bool:
        """Whether this was not asked for yet. Dagster would drop the request without a word."""
        asked = dg.RunsFilter(tags={"dagster/run_key": group.run_key, "dagster/sensor_name": self._context.sensor_name})
        for run in self._context.instance.get_runs(asked, limit=1):
            if run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
                self._note(f"{group}: run {run.run_id} did not land it, and nothing has changed since; re-execute it")
            else:
                self._note(f"{group}: run {run.run_id} lands it")
            return False
        return True

    def observe(self) -> None:
        """Show in the UI what has moved notably in this tick: some of it where that is much."""
        shown = 0
        for one in self._progress():
            submission = one.submission
            before = self._before.get(submission.submission_id)
            provider = self._engine.providers.get(submission.provider)
            if before is None or provider is None or not has_moved(before, one) or self._placed(submission) is None:
                continue
            if shown == _OBSERVED_AT_MOST or monotonic() > self._until:
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
        flying = [p for p in self._progress() if p.oldest_submitted_at is not None]
        if not flying:
            return "; ".join(["no batches in flight", *self._notes])
        batches = sum(count for p in flying for state, count in p.states.items() if state in IN_FLIGHT)
        counted = "1 batch" if batches == 1 else f"{batches:,} batches"
        return "; ".join([f"{counted} in flight", pace_text(together(self._paces(flying))), *self._notes])

    def _paces(self, flying: list[Progress]) -> list[Pace]:
        usual: dict[str, timedelta | None] = {}
        found = []
        for one in flying:
            its_pace = pace(one, self._now)
            if its_pace.per_minute is None:
                asset = one.submission.asset
                if asset not in usual:
                    usual[asset] = usual_duration(self._ledger.submissions(self._engine.namespace, assets=[asset]))
                its_pace = pace(one, self._now, usual[asset])
            found.append(its_pace)
        return found
