"""One sensor for all labeled datasets of a code location. It looks and asks for runs; it never sends anything.

A sensor body can run twice, so whatever costs money happens in runs. A tick is bounded in time: batches wait their
turn, least recently polled first, each at a spacing that grows with its age. State is in the ledger, not in a cursor.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from time import monotonic
from typing import Any

import dagster as dg

from dagster_llm_batch.assets.dataset import ROLE_TAG
from dagster_llm_batch.engine import Engine
from dagster_llm_batch.errors import CannotTellError, LeaseError, LLMBatchError
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.storage.records import Progress, Shard

__all__ = ["build_llm_batch_sensor"]

_TICK_SECONDS = 40.0
_POLLED_AT_ONCE = 100
_LONGEST_SPACING = timedelta(minutes=10)
_IN_PROCESS: Mapping[str, Any] = {"execution": {"config": {"in_process": {}}}}
_SUBMISSION = "llm_batch/submission_id"


def build_llm_batch_sensor(
    name: str = "llm_batch_sensor",
    *,
    resource_key: str = "llm_batch",
    minimum_interval_seconds: int = 30,
    default_status: dg.DefaultSensorStatus = dg.DefaultSensorStatus.RUNNING,
    max_partitions_per_run: int = 100,
    run_config: Mapping[str, Any] | None = None,
    run_tags: Mapping[str, str] | None = None,
) -> dg.SensorDefinition:
    """A sensor that polls batches and lands labels when they end.

    Args:
        name: Its name.
        resource_key: Where LLMBatchResource is.
        minimum_interval_seconds: Between two ticks.
        default_status: Running, unless you say otherwise.
        max_partitions_per_run: Neighbouring partitions that are ready at once land in one run, up to so many.
        run_config: Of the runs it asks for. Default: in the run's own process where Dagster's default executor is used,
            since starting another would take longer than landing labels does.
        run_tags: Tags of those runs.
    """

    @dg.sensor(
        name=name,
        target=dg.AssetSelection.tag(ROLE_TAG, "labels") | dg.AssetSelection.tag(ROLE_TAG, "rejects"),
        minimum_interval_seconds=minimum_interval_seconds,
        default_status=default_status,
        required_resource_keys={resource_key},
        description="Polls LLM batches; when those of a partition have ended, asks for the run that lands its labels.",
    )
    def llm_batch_sensor(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        resource = getattr(context.resources, resource_key)
        if not isinstance(resource, LLMBatchResource):
            msg = f"The resource '{resource_key}' is a {type(resource).__name__}; it must be an LLMBatchResource."
            raise dg.DagsterInvalidDefinitionError(msg)
        tick = _Tick(context, resource.engine())
        tick.poll()
        ready = tick.ready()
        config = dict(run_config if run_config is not None else _default_run_config(context))
        requests = [
            dg.RunRequest(
                run_key=group.run_key,
                asset_selection=group.selection,
                partition_key=group.partitions[0] if len(group.partitions) == 1 else None,
                run_config=config,
                tags={**(run_tags or {}), **group.range_tags},
            )
            for group in _grouped(ready, max_partitions_per_run)
        ]
        return dg.SensorResult(run_requests=requests) if requests else dg.SensorResult(skip_reason=tick.summary())

    return llm_batch_sensor


@dataclass(frozen=True)
class _Ready:
    """A partition whose labels, or next wave, a run can bring."""

    asset: dg.AssetKey
    partition: str | None
    index: int | None  # its place among the asset's partitions; None: it does not join a range
    run_key: str


@dataclass(frozen=True)
class _Group:
    """Partitions that one run brings."""

    asset: dg.AssetKey
    partitions: list[str | None]
    run_key: str

    @property
    def selection(self) -> list[dg.AssetKey]:
        *prefix, name = self.asset.path
        return [self.asset, dg.AssetKey([*prefix, f"{name}_rejects"])]

    @property
    def range_tags(self) -> dict[str, str]:
        if len(self.partitions) == 1:
            return {}
        return {
            "dagster/asset_partition_range_start": str(self.partitions[0]),
            "dagster/asset_partition_range_end": str(self.partitions[-1]),
        }


def _grouped(ready: Sequence[_Ready], most: int) -> Iterator[_Group]:
    """Neighbouring partitions of an asset as one group, the rest alone."""
    by_asset: dict[dg.AssetKey, list[_Ready]] = defaultdict(list)
    for one in ready:
        by_asset[one.asset].append(one)
    for asset, ones in by_asset.items():
        yield from (_Group(asset, [one.partition], one.run_key) for one in ones if one.index is None)
        placed = sorted((one for one in ones if one.index is not None), key=lambda one: one.index or 0)
        for _, run in groupby(enumerate(placed), key=lambda pair: (pair[1].index or 0) - pair[0]):
            members = [one for _, one in run]
            for start in range(0, len(members), most):
                part = members[start : start + most]
                key = part[0].run_key if len(part) == 1 else f"{part[0].run_key}..{part[-1].run_key}:{len(part)}"
                yield _Group(asset, [one.partition for one in part], key)


class _Tick:
    """One look at everything."""

    def __init__(self, context: dg.SensorEvaluationContext, engine: Engine) -> None:
        self._context = context
        self._engine = engine
        self._ledger = engine.ledger
        self._now = engine.now()
        self._until = monotonic() + _TICK_SECONDS
        self._notes: list[str] = []

    def poll(self) -> None:
        """Ask the providers about batches in flight whose turn it is."""
        due = [shard for shard in self._ledger.in_flight(self._engine.namespace) if self._is_due(shard)]
        for start in range(0, len(due), _POLLED_AT_ONCE):
            if monotonic() > self._until:
                self._notes.append(f"{len(due) - start} batches wait for the next tick")
                return
            try:
                self._engine.poll(due[start : start + _POLLED_AT_ONCE])
            except LLMBatchError as error:
                self._context.log.warning(f"Polling failed, to be tried again: {error}")
                self._notes.append(f"polling failed: {error}")

    def _is_due(self, shard: Shard) -> bool:
        if shard.polled_at is None or shard.submitted_at is None:
            return True
        age = self._now - shard.submitted_at
        return self._now - shard.polled_at >= min(age / 10, _LONGEST_SPACING)

    def ready(self) -> list[_Ready]:
        """Submissions that a run can bring further."""
        found = []
        for progress in self._ledger.progress(self._engine.namespace):
            submission = progress.submission
            try:
                if (why_not := self._not_ready(progress)) is not None:
                    self._context.log.debug(f"{submission.asset} {submission.partition}: {why_not}")
                    continue
            except CannotTellError as error:
                self._context.log.exception("A batch needs a person.")
                self._notes.append(f"{submission.asset} {submission.partition} needs a person: {error}")
                continue
            except LeaseError:
                continue
            if (one := self._placed(progress)) is not None:
                found.append(one)
        return found

    def _not_ready(self, progress: Progress) -> str | None:
        submission = progress.submission
        if self._engine.needs_recovery(progress):
            self._engine.recover(submission.submission_id)
            return "its batches are being looked for"
        if not self._engine.can_advance(progress):
            return "its batches are running"
        if self._is_delivered(progress):
            self._ledger.deliver(submission.submission_id)
            return "its labels have landed"
        if self._engine.is_busy(submission.submission_id):
            return "a run is at it"
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
            value = None if stored is None else stored.metadata.get(_SUBMISSION)
            return value is not None and value.value == submission.submission_id
        return False

    def _placed(self, progress: Progress) -> _Ready | None:
        submission = progress.submission
        asset = dg.AssetKey.from_user_string(submission.asset)
        assert self._context.repository_def is not None
        graph = self._context.repository_def.asset_graph
        if not graph.has(asset):
            return None  # another code location's
        run_key = f"{submission.submission_id}:{self._engine.attempt(submission.submission_id)}"
        partitions_def = graph.get(asset).partitions_def
        if partitions_def is None or not submission.partition:
            same = partitions_def is None and not submission.partition
            return _Ready(asset, None, None, run_key) if same else None
        store = self._context.instance
        keys = partitions_def.get_partition_keys(dynamic_partitions_store=store)
        if submission.partition not in keys:
            self._notes.append(f"{submission.asset}: partition {submission.partition} no longer exists")
            return None
        alone = isinstance(partitions_def, dg.MultiPartitionsDefinition)
        return _Ready(asset, submission.partition, None if alone else keys.index(submission.partition), run_key)

    def summary(self) -> str:
        """What there is to wait for."""
        flying = [p for p in self._ledger.progress(self._engine.namespace) if p.oldest_submitted_at is not None]
        if not flying:
            return "; ".join(["no batches in flight", *self._notes])
        batches = sum(count for p in flying for state, count in p.states.items() if state.value == "submitted")
        done, total = sum(p.done for p in flying), sum(p.total for p in flying)
        oldest = min(p.oldest_submitted_at for p in flying if p.oldest_submitted_at is not None)
        percent = 100 * done // total if total else 0
        return "; ".join(
            [f"{batches} batches in flight, oldest {_age(self._now, oldest)}, {percent} % done", *self._notes]
        )


def _age(now: datetime, then: datetime) -> str:
    minutes = int((now - then).total_seconds()) // 60
    return f"{minutes // 60} h {minutes % 60} m" if minutes >= 60 else f"{minutes} m"  # noqa: PLR2004 - minutes of an hour


def _default_run_config(context: dg.SensorEvaluationContext) -> Mapping[str, Any]:
    repository = context.repository_def
    if repository is None:
        return {}
    executor = repository.get_implicit_global_asset_job_def().executor_def.name
    return _IN_PROCESS if executor == dg.multi_or_in_process_executor.name else {}
