"""The Dagster runs that concern the sensor: at work now, with materialized labels, or requested without effect.

A run for labels that ended without a change is requested again a few times. Then a failed check names the next step.
The same applies to a run whose batches the provider rejected, for example because of a wrong key.

A run that dies while it starts, or finds no database, leaves no event in the ledger. The next request would then have
the same key, and Dagster would drop it. So each loss is recorded as an event of its submissions, which changes the next
key and counts the losses. A run that makes a change starts the count again.

A run that a person canceled is not requested again, because there was a reason. Dagster's own retries are left to
Dagster. They carry their first run's key, and the last one counts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from dagster_llm_batch._dagster_private import check_targets, last_evaluation
from dagster_llm_batch.check_events import NOT_JUDGED
from dagster_llm_batch.checks import COVERAGE, final_check
from dagster_llm_batch.loop.activity import LOST
from dagster_llm_batch.loop.status import advise_on_stranded
from dagster_llm_batch.metadata import SUBMISSION_KEY
from dagster_llm_batch.sensors.run_requests import Partitions
from dagster_llm_batch.text import plain_words, short_run

if TYPE_CHECKING:
    from dagster import RunRecord

    from dagster_llm_batch.assets.dataset import Dataset
    from dagster_llm_batch.engine.engine import Engine
    from dagster_llm_batch.loop.activity import Outlook
    from dagster_llm_batch.sensors.run_requests import Group, Ready
    from dagster_llm_batch.storage.ledger.records import Submission

__all__ = ["ASKED_AGAIN_TAG", "LostRuns", "TickBounds", "UnfinishedRuns", "confirm_materialized"]

ASKED_AGAIN_TAG = "llm_batch/asked_again"
"""Tag of a run that was requested again, as in `2 of 3`."""

_RETRIED_WITHIN = timedelta(hours=1)
_AT_ONCE = 200
_CLOCKS_APART = timedelta(minutes=1)

_AT_WORK = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]
_NEVER_STARTS_AFTER = timedelta(hours=1)
# A submission run holds a lease in the ledger while it plans and sends. Without a lease, it may have just begun. After
# this time, it does other work in a long run, or is dead.
_LEASE_WITHIN = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class TickBounds:
    """The limits of one tick. The rest waits for the next tick, which begins where this one ended.

    - `poll_seconds`: Time to poll providers; the results so far are used.
    - `tick_seconds`: Time for everything. Dagster ends a tick that takes 60 seconds.
    - `polled_batches`: Batches in one call of the engine.
    - `requested_runs`: Dagster takes half a second to launch one, and other sensors wait meanwhile.
    - `observations`: Most observations that are reported; each takes Dagster some 25 ms.
    - `observed_landings`: Most of these for partitions with a requested run, which waits for the end of the tick.
    - `run_records`: Records in one query of Dagster's storage.
    - `pauses`: Times between a lost run and the next request for it, one for each further request.
    """

    poll_seconds: float = 25.0
    tick_seconds: float = 35.0
    polled_batches: int = 1_000
    requested_runs: int = 20
    observations: int = 50
    observed_landings: int = 5
    run_records: int = 500
    pauses: tuple[timedelta, ...] = (timedelta(minutes=1), timedelta(minutes=5), timedelta(minutes=30))

    def asked_again(self, lost: int) -> str:
        """Name the request after so many lost runs, as in `2 of 3`."""
        return f"{lost} of {len(self.pauses)}"


class UnfinishedRuns:
    """The runs at one moment. Make it after reading the ledger, so that runs that planned its submissions are still
    seen.

    A run in a queue counts if it will materialize labels. A waiting run for a submission does not count. It would delay
    labels that are ready, perhaps for the length of a backfill, and this object sees it as started before it sends.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        repository: dg.RepositoryDefinition,
        labels: Mapping[str, Partitions],
        at_work: Collection[str],
        now: datetime,
        has_time: Callable[[], bool],
        bounds: TickBounds,
    ) -> None:
        self.instance = instance
        self._page_size = bounds.run_records
        self._repository = repository
        self._labels = labels
        self._landing: dict[str, list[dg.DagsterRun]] = defaultdict(list)
        self._submitting: dict[str, list[dg.DagsterRun]] = defaultdict(list)
        self._places: dict[tuple[str, bool], dict[str, dg.DagsterRun]] = {}
        self._owners: dict[dg.AssetKey, list[tuple[str, bool]]] = defaultdict(list)
        for asset, partitions in labels.items():
            self._owners[partitions.dataset.key].append((asset, False))
            self._owners[partitions.dataset.batch_key].append((asset, True))
        self.seen_all = True
        # Runs at work are few, so all are checked at any cost of time. The queue may be long.
        for record in self._records(dg.RunsFilter(statuses=_AT_WORK), lambda: True):
            if not _is_stale(record, now):
                run = record.dagster_run
                self._add(run, submits=run.run_id in at_work or now - record.update_timestamp < _LEASE_WITHIN)
        for record in self._records(dg.RunsFilter(statuses=_WAITING), has_time):
            if not _is_stale(record, now):
                self._add(record.dagster_run, submits=False)

    def _records(self, chosen: dg.RunsFilter, has_time: Callable[[], bool]) -> Iterator[RunRecord]:
        cursor: str | None = None
        while True:
            if not has_time():
                self.seen_all = False
                return
            page = self.instance.get_run_records(chosen, limit=self._page_size, cursor=cursor)
            yield from page
            if len(page) < self._page_size:
                return
            cursor = page[-1].dagster_run.run_id

    def _add(self, run: dg.DagsterRun, *, submits: bool) -> None:
        for key in self._assets(run):
            for asset, is_batch in self._owners.get(key, ()):
                if not is_batch:
                    self._landing[asset].append(run)
                elif submits:
                    self._submitting[asset].append(run)

    def _assets(self, run: dg.DagsterRun) -> Iterable[dg.AssetKey]:
        """Return the keys of the assets that a run materializes."""
        if run.asset_selection:
            return run.asset_selection
        if run.asset_selection is not None and run.asset_check_selection:
            return ()
        if run.asset_selection is None and self._repository.has_job(run.job_name):
            return self._repository.get_job(run.job_name).asset_layer.executable_asset_keys
        if run.execution_plan_snapshot_id is None:
            return ()
        # A run in a user's own process, for example by `dg.materialize`, names only steps, which are called like their
        # assets.
        steps = set(self.instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id).step_keys_to_execute)
        return [key for key in self._owners if key.to_python_identifier() in steps]

    def landing(self, asset: str, partition: str) -> dg.DagsterRun | None:
        """Return the run that materializes the labels of this partition, whatever requested it."""
        return self._at(asset, partition, is_batch=False)

    def submitting(self, asset: str, partition: str) -> dg.DagsterRun | None:
        """Return the run that is at work on the submission of this partition."""
        return self._at(asset, partition, is_batch=True)

    def landing_at(self, asset: str, moments: Mapping[str, datetime]) -> dict[str, set[str]]:
        """Return the ids of ended runs that were at work on the labels of a partition at its moment."""
        found: dict[str, set[str]] = {partition: set() for partition in moments}
        key = self._labels[asset].dataset.key
        first, last = min(moments.values()) - _CLOCKS_APART, max(moments.values()) + _CLOCKS_APART
        for record in self._records(dg.RunsFilter(updated_after=first, created_before=last), lambda: True):
            run, begun, ended = record.dagster_run, record.create_timestamp, _ended_at(record)
            if key not in self._assets(run):
                continue
            for partition in self._labels[asset].of_run(run):
                at = moments.get(partition)
                if at is not None and begun - _CLOCKS_APART < at < ended + _CLOCKS_APART:
                    found[partition].add(run.run_id)
        return found

    def _at(self, asset: str, partition: str, *, is_batch: bool) -> dg.DagsterRun | None:
        places = self._places.get((asset, is_batch))
        if places is None:
            runs = (self._submitting if is_batch else self._landing).get(asset, ())
            places = {place: run for run in runs for place in self._labels[asset].of_run(run)}
            self._places[asset, is_batch] = places
        return places.get(partition)


class LostRuns:
    """The runs that the sensor requested before, and that ended without a change."""

    def __init__(self, instance: dg.DagsterInstance, engine: Engine, now: datetime, bounds: TickBounds) -> None:
        self._bounds = bounds
        self._instance = instance
        self._engine = engine
        self._now = now

    def count(self, submission_id: str, outlook: Outlook) -> int:
        """Return how many runs were lost in a row until now."""
        if outlook.last_but_waiting[submission_id].kind != LOST and outlook.refused(submission_id) is None:
            return 0
        return self._engine.activity.lost_runs(submission_id)

    def reason_not_to_ask(self, group: Group) -> str | None:
        """Return the state of the last run requested for this group, as a reason to wait; None without such a run.

        A lost run is recorded, so that the group is requested again at the next tick, or waits for a person.
        """
        if (reason := self._reason_to_wait(group)) is not None:
            return reason
        # The run may be from another sensor that handled the dataset before. A key contains its submissions.
        asked = dg.RunsFilter(tags={"dagster/run_key": group.run_key})
        # The newest comes first.
        records = self._instance.get_run_records(asked, limit=1)
        if not records:
            return None
        [record] = records
        run, run_id = record.dagster_run, record.dagster_run.run_id
        if run.status is dg.DagsterRunStatus.CANCELED:
            return self._strand(group, f"run {short_run(run_id)}, which should materialize them, was canceled")
        if not run.is_finished and not _is_stale(record, self._now):
            return f"run {short_run(run_id)} materializes it"
        ended_at = _ended_at(record)
        if run.is_complete_and_waiting_to_retry and self._now - ended_at < _RETRIED_WITHIN:
            return f"run {short_run(run_id)} did not materialize it; Dagster retries it"
        ending = f"run {short_run(run_id)} ended as {run.status.value} and changed nothing"
        if group.lost >= len(self._bounds.pauses):
            return self._strand(group, f"{ending}, asked for again {self._bounds.asked_again(group.lost)} times")
        if (left := ended_at + self._bounds.pauses[group.lost] - self._now) > timedelta():
            return f"run {short_run(run_id)} did not materialize it; asked for again in {left.total_seconds():.0f} s"
        reason = f"{ending}; asked for again {self._bounds.asked_again(group.lost + 1)}"
        for ready in group.ready:
            for submission_id in ready.submissions:
                self._engine.activity.note_lost(submission_id, reason)
        return f"{reason}, at the next tick"

    def _reason_to_wait(self, group: Group) -> str | None:
        """Return why a run must not be requested yet, or no longer, if the provider rejected the last one; else None.

        Such a run leaves events, so the next run has another key, but the submission made no progress.
        """
        if (refused := group.refused) is None:
            return None
        ending = f"the last run could send nothing: {plain_words(refused.detail).rstrip('.')}"
        if group.lost > len(self._bounds.pauses):
            return self._strand(group, f"{ending}; asked for again {self._bounds.asked_again(group.lost - 1)} times")
        if (left := refused.at + self._bounds.pauses[group.lost - 1] - self._now) > timedelta():
            return f"{ending}; asked for again in {left.total_seconds():.0f} s"
        return None

    def _strand(self, group: Group, reason: str) -> str:
        """Record that a person has to act, and show it as a failed check."""
        for ready in group.ready:
            for submission_id in ready.submissions:
                self._engine.activity.note_stranded(submission_id, reason)
        failures = []
        for ready in group.ready:
            try:
                self._fail_check(ready, reason)
            except Exception as error:  # noqa: BLE001 - of Dagster's storage; the others' are shown all the same
                failures.append(error)
        # A check that cannot be shown must not hide the problem: the tick fails, which is visible, too.
        if failures:
            raise failures[0]
        return f"waits for a person: {reason}"

    def _fail_check(self, ready: Ready, reason: str) -> None:
        """Report a failed check on the labels of one partition.

        Raises if Dagster has a check result without a run for this partition already: it stores one of a kind.
        """
        text = str(advise_on_stranded(self._engine.ledger.submissions.get(ready.submissions[-1]), reason))
        description = f"{text[0].upper()}{text[1:]}."
        self._instance.report_runless_asset_event(
            dg.AssetCheckEvaluation(
                asset_key=ready.asset,
                check_name=COVERAGE,
                passed=False,
                severity=dg.AssetCheckSeverity.ERROR,
                description=description,
                partition=ready.partition,
            )
        )


def _ended_at(record: RunRecord) -> datetime:
    if record.end_time is not None:
        return datetime.fromtimestamp(record.end_time, UTC)
    return record.update_timestamp


def _is_stale(record: RunRecord, now: datetime) -> bool:
    """Return whether a run should have started long ago: its worker died before its first report.

    A run in the queue may wait for any time.
    """
    starting = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING)
    return record.dagster_run.status in starting and now - record.update_timestamp >= _NEVER_STARTS_AFTER


def confirm_materialized(
    runs: UnfinishedRuns,
    engine: Engine,
    dataset: Dataset,
    settled: Sequence[Submission],
    has_time: Callable[[], bool],
) -> tuple[set[str], set[str]]:
    """Mark submissions of one dataset as delivered if their labels are materialized, or if they are superseded.

    A superseded submission waits for the end of the run at work on its partition. That run may store older labels over
    newer ones, and die before it reports them. So newer labels that were materialized during such a run are
    materialized again.

    Returns the ids of these, and the ids of those that wait for the next tick: they are materialized again, or time ran
    out.
    """
    home: set[str] = set()
    unknown: set[str] = set()
    asset = settled[0].asset
    newest = engine.ledger.submissions.newest_ids(engine.namespace, asset)
    for start in range(0, len(settled), _AT_ONCE):
        page = settled[start : start + _AT_ONCE]
        if not has_time():
            unknown.update(submission.submission_id for submission in page)
            continue
        current = [submission for submission in page if newest[submission.partition] == submission.submission_id]
        # The newest materialization of their partition names them, but older labels may have replaced their labels
        # since.
        over = engine.ledger.submissions.find_landed_over([submission.submission_id for submission in current])
        rest = [submission for submission in current if submission.submission_id not in over]
        if landed := set(_materialized(runs.instance, dataset, rest)):
            engine.ledger.submissions.mark_delivered(*landed)
        superseded = {
            submission.submission_id: newest[submission.partition]
            for submission in page
            if newest[submission.partition] != submission.submission_id
            and runs.landing(asset, submission.partition) is None
        }
        if superseded:
            again = _may_be_replaced(runs, engine, dataset, sorted(set(superseded.values())))
            # This order leaves the older ones to the next tick if this one dies in between.
            engine.ledger.submissions.take_back_delivery(again)
            engine.ledger.submissions.mark_delivered(*superseded)
            unknown |= again
        home |= landed | superseded.keys()
    return home - unknown, unknown


def _may_be_replaced(runs: UnfinishedRuns, engine: Engine, dataset: Dataset, newest: Sequence[str]) -> set[str]:
    """Return the delivered submissions among these whose labels an ended run may have replaced by older ones.

    That run was at work on the partition when they were delivered, at the same time as the run of their labels.
    """
    known = [submission for submission, _ in engine.ledger.submissions.get_all_with_shards(newest).values()]
    delivered = {submission.partition: submission for submission in known if submission.delivered_at is not None}
    if not delivered:
        return set()
    moments = {
        partition: submission.delivered_at for partition, submission in delivered.items() if submission.delivered_at
    }
    beside = runs.landing_at(next(iter(delivered.values())).asset, moments)
    told_last = check_targets(runs.instance, dataset.key, [partition or None for partition in delivered])
    return {
        submission.submission_id
        for partition, submission in delivered.items()
        if (last := told_last[partition or None]) is None or beside[partition] - {last.run_id}
    }


def _materialized(instance: dg.DagsterInstance, dataset: Dataset, submissions: Sequence[Submission]) -> Iterator[str]:
    """Yield the ids of the submissions named by the newest materialization of their partition.

    A materialization from before the submission was settled does not count, because late answers have come since. Nor
    does one that its run has not judged, because the run failed or died. Otherwise work that waits for the checks would
    wait for ever.
    """
    if not submissions:
        return
    check = final_check(dataset.key)
    wanted = {submission.partition: submission for submission in submissions}
    records = dg.AssetRecordsFilter(
        dataset.key,
        asset_partitions=[partition for partition in wanted if partition] or None,
        after_timestamp=(min(submission.created_at for submission in submissions) - _CLOCKS_APART).timestamp(),
    )
    cursor: str | None = None
    while wanted:
        page = instance.fetch_materializations(records, limit=_AT_ONCE, cursor=cursor)
        # The newest comes first.
        for record in page.records:
            submission = wanted.pop(record.partition_key or "", None)
            stored = record.asset_materialization
            value = None if stored is None else stored.metadata.get(SUBMISSION_KEY)
            if submission is None or value is None or value.value != submission.submission_id:
                continue
            settled_at = submission.settled_at or submission.created_at
            if record.timestamp < (settled_at - _CLOCKS_APART).timestamp():
                continue
            check_result = last_evaluation(instance, check, record.partition_key, run_id=record.run_id)
            if check_result is not None and NOT_JUDGED not in check_result.metadata:
                yield submission.submission_id
        if not page.has_more:
            return
        cursor = page.cursor
