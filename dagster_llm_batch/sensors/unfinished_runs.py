"""Which unfinished run is at which partitions: it lands them, or it is at work on their submission."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from dagster_llm_batch.assets.naming import key_beside
from dagster_llm_batch.sensors.run_requests import Partitions

if TYPE_CHECKING:
    from dagster import RunRecord

__all__ = ["UnfinishedRuns", "is_stale"]

_AT_ONCE = 500
_AT_WORK = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
_WAITING = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED]
_NEVER_STARTS_AFTER = timedelta(hours=1)
_SHOWS_WITHIN = timedelta(minutes=5)  # that it is at work; then who does not is elsewhere in a long run, or dead


class UnfinishedRuns:
    """The runs at one moment. To be made after the ledger is read: whoever planned what was read there is still seen.

    A run that waits in a queue counts where it is to land labels. A submission that waits does not: it would hold back
    labels that are there, perhaps for the length of a backfill, and begins only after it is seen here as started.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        repository: dg.RepositoryDefinition,
        labels: Mapping[str, Partitions],
        at_work: Collection[str],
        now: datetime,
        has_time: Callable[[], bool],
    ) -> None:
        self._instance = instance
        self._repository = repository
        self._labels = labels
        self._landing: dict[str, list[dg.DagsterRun]] = defaultdict(list)
        self._submitting: dict[str, list[dg.DagsterRun]] = defaultdict(list)
        self._places: dict[tuple[str, bool], dict[str, dg.DagsterRun]] = {}
        self._owners: dict[dg.AssetKey, list[tuple[str, bool]]] = defaultdict(list)
        for asset in labels:
            key = dg.AssetKey.from_user_string(asset)
            self._owners[key].append((asset, False))
            self._owners[key_beside(key, "batch")].append((asset, True))
        self.seen_all = True
        for record in self._records(_AT_WORK, lambda: True):  # few: those that work at this moment
            if not is_stale(record, now):
                run = record.dagster_run
                self._add(run, submits=run.run_id in at_work or now - record.update_timestamp < _SHOWS_WITHIN)
        for record in self._records(_WAITING, has_time):
            if not is_stale(record, now):
                self._add(record.dagster_run, submits=False)

    def _records(self, statuses: Sequence[dg.DagsterRunStatus], has_time: Callable[[], bool]) -> Iterator[RunRecord]:
        cursor: str | None = None
        while True:
            if not has_time():
                self.seen_all = False
                return
            page = self._instance.get_run_records(dg.RunsFilter(statuses=statuses), limit=_AT_ONCE, cursor=cursor)
            yield from page
            if len(page) < _AT_ONCE:
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
        """What it materializes."""
        if run.asset_selection:
            return run.asset_selection
        if run.asset_selection is not None and run.asset_check_selection:
            return ()
        if run.asset_selection is None and self._repository.has_job(run.job_name):
            return self._repository.get_job(run.job_name).asset_layer.executable_asset_keys
        if run.execution_plan_snapshot_id is None:
            return ()
        # a run in somebody's own process, as by `dg.materialize`, names steps only; they are called as their assets
        steps = set(self._instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id).step_keys_to_execute)
        return [key for key in self._owners if key.to_python_identifier() in steps]

    def landing(self, asset: str, partition: str) -> dg.DagsterRun | None:
        """The run, whoever asked for it, that lands the labels of this partition."""
        return self._at(asset, partition, is_batch=False)

    def submitting(self, asset: str, partition: str) -> dg.DagsterRun | None:
        """The run that is at work on the submission of this partition."""
        return self._at(asset, partition, is_batch=True)

    def _at(self, asset: str, partition: str, *, is_batch: bool) -> dg.DagsterRun | None:
        found = self._places.get((asset, is_batch))
        if found is None:
            runs = (self._submitting if is_batch else self._landing).get(asset, ())
            found = {place: run for run in runs for place in self._labels[asset].of_run(run)}
            self._places[asset, is_batch] = found
        return found.get(partition)


def is_stale(record: RunRecord, now: datetime) -> bool:
    """Whether it was to start long ago and has not: its worker died before it could say anything.

    A run in the queue may wait for any time.
    """
    starting = (dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING)
    return record.dagster_run.status in starting and now - record.update_timestamp >= _NEVER_STARTS_AFTER
