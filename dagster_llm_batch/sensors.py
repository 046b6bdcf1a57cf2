"""One sensor for all labeled datasets of a code location. It looks and asks for runs; it never sends anything.

A sensor body can run twice, so whatever costs money happens in runs. A tick is bounded in time: batches wait their
turn, least recently polled first, each at a spacing that grows with its age. State is in the ledger, not in a cursor.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import groupby
from time import monotonic
from typing import Any

import dagster as dg

from dagster_llm_batch.assets.dataset import ROLE_TAG
from dagster_llm_batch.engine import Engine
from dagster_llm_batch.errors import CannotTellError, LeaseError, LLMBatchError
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.states import IN_FLIGHT
from dagster_llm_batch.storage.records import Progress, Shard, Submission

__all__ = ["build_llm_batch_sensor"]

_TICK_SECONDS = 40.0
_POLLED_AT_ONCE = 100
_LONGEST_SPACING = timedelta(minutes=10)
_IN_PROCESS: Mapping[str, Any] = {"execution": {"config": {"in_process": {}}}}
_SUBMISSION = "llm_batch/submission_id"
_RANGE_TAGS = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")
_RUNS_SEEN = 500
_UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


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
        tick = _Tick(context, resource.engine(), _labels_in(context, resource_key))
        tick.poll()
        groups = [group for group in _grouped(tick.ready(), max_partitions_per_run) if tick.is_new(group)]
        if not groups:
            return dg.SensorResult(skip_reason=tick.summary())
        config = dict(run_config if run_config is not None else _default_run_config(context))
        requests = [
            dg.RunRequest(
                run_key=group.run_key,
                asset_selection=group.selection,
                partition_key=group.partitions[0] if len(group.partitions) == 1 else None,
                run_config=config,
                tags={**(run_tags or {}), **group.range_tags},
            )
            for group in groups
        ]
        return dg.SensorResult(run_requests=requests)

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
        return dict(zip(_RANGE_TAGS, (str(self.partitions[0]), str(self.partitions[-1])), strict=True))

    def __str__(self) -> str:
        ends = dict.fromkeys(str(one) for one in (self.partitions[0], self.partitions[-1]) if one is not None)
        return " ".join([self.asset.to_user_string(), " to ".join(ends)]).rstrip()


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
                yield _Group(asset, [one.partition for one in part], _joined([one.run_key for one in part]))


def _joined(run_keys: Sequence[str]) -> str:
    """One key for several; another one whenever any of them is."""
    if len(run_keys) == 1:
        return run_keys[0]
    return f"{len(run_keys)}:{hashlib.blake2b(' '.join(run_keys).encode(), digest_size=16).hexdigest()}"


class _Partitions:
    """The partition keys that an asset has now, each with its place in a range (None: it joins none)."""

    def __init__(self, partitions_def: dg.PartitionsDefinition[Any] | None, instance: dg.DagsterInstance) -> None:
        self._partitions_def = partitions_def
        self._instance = instance

    @property
    def are_there(self) -> bool:
        return self._partitions_def is not None

    @cached_property
    def places(self) -> Mapping[str, int | None]:
        if self._partitions_def is None:
            return {}
        keys = self._partitions_def.get_partition_keys(dynamic_partitions_store=self._instance)
        alone = isinstance(self._partitions_def, dg.MultiPartitionsDefinition)
        return {key: None if alone else index for index, key in enumerate(keys)}


class _Tick:
    """One look at everything of this code location."""

    def __init__(self, context: dg.SensorEvaluationContext, engine: Engine, labels: Mapping[str, _Partitions]) -> None:
        self._context = context
        self._engine = engine
        self._ledger = engine.ledger
        self._labels = labels
        self._now = engine.now()
        self._until = monotonic() + _TICK_SECONDS
        self._notes: list[str] = []
        self._runs = context.instance.get_runs(dg.RunsFilter(statuses=_UNFINISHED), limit=_RUNS_SEEN)

    def _progress(self) -> list[Progress]:
        """Undelivered submissions; those of other code locations on the same ledger are theirs to look after."""
        return [p for p in self._ledger.progress(self._engine.namespace) if p.submission.asset in self._labels]

    def poll(self) -> None:
        """Ask the providers about batches in flight whose turn it is."""
        own = {progress.submission.submission_id for progress in self._progress()}
        due: dict[str, list[Shard]] = defaultdict(list)
        for shard in self._ledger.in_flight(self._engine.namespace):
            if shard.submission_id in own and self._is_due(shard) and self._can_ask(shard):
                due[shard.provider].append(shard)
        for shards in due.values():
            for start in range(0, len(shards), _POLLED_AT_ONCE):
                if monotonic() > self._until:
                    self._note(f"{len(shards) - start} batches wait for the next tick")
                    break
                try:
                    self._engine.poll(shards[start : start + _POLLED_AT_ONCE])
                except LLMBatchError as error:
                    self._context.log.warning(f"Polling failed, to be tried again: {error}")
                    self._note(f"polling failed: {error}")
                    break

    def _is_due(self, shard: Shard) -> bool:
        if shard.polled_at is None or shard.submitted_at is None:
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

    def ready(self) -> list[_Ready]:
        """Partitions that a run can bring further."""
        found: dict[tuple[str, str], _Ready] = {}
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
                one = replace(one, run_key=_joined([found[place].run_key, one.run_key]))
            found[place] = one
        return list(found.values())

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
        if (run := self._run_at(submission)) is not None:
            self._note(f"{submission.asset}: run {run.run_id} is at it")
            return "a run is at it, or will be"
        since = self._engine.unavailable_since(submission.submission_id)
        if since is not None and self._now - since < self._spacing(submission.created_at):
            return "its provider does not answer, or does not take its batches; it is tried again a while later"
        return None

    def _run_at(self, submission: Submission) -> dg.DagsterRun | None:
        """The unfinished run, whoever asked for it, that lands this partition."""
        asset = dg.AssetKey.from_user_string(submission.asset)
        places = self._labels[submission.asset].places
        for run in self._runs:
            if asset not in (run.asset_selection or ()):
                continue
            first, last = (run.tags.get(name, run.tags.get("dagster/partition", "")) for name in _RANGE_TAGS)
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
            value = None if stored is None else stored.metadata.get(_SUBMISSION)
            return value is not None and value.value == submission.submission_id
        return False

    def _placed(self, submission: Submission) -> _Ready | None:
        asset = dg.AssetKey.from_user_string(submission.asset)
        partitions = self._labels[submission.asset]
        run_key = f"{submission.submission_id}:{self._engine.attempt(submission.submission_id)}"
        if not submission.partition and not partitions.are_there:
            return _Ready(asset, None, None, run_key)
        if submission.partition not in partitions.places:
            what = f"partition {submission.partition}" if submission.partition else "its unpartitioned form"
            self._note(f"{submission.asset}: {what} no longer exists")
            return None
        return _Ready(asset, submission.partition, partitions.places[submission.partition], run_key)

    def is_new(self, group: _Group) -> bool:
        """Whether this was not asked for yet. Dagster would drop the request without a word."""
        asked = dg.RunsFilter(tags={"dagster/run_key": group.run_key, "dagster/sensor_name": self._context.sensor_name})
        for run in self._context.instance.get_runs(asked, limit=1):
            if run.status in (dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED):
                self._note(f"{group}: run {run.run_id} did not land it, and nothing has changed since; re-execute it")
            else:
                self._note(f"{group}: run {run.run_id} lands it")
            return False
        return True

    def summary(self) -> str:
        """What there is to wait for."""
        flying = [p for p in self._progress() if p.oldest_submitted_at is not None]
        if not flying:
            return "; ".join(["no batches in flight", *self._notes])
        batches = sum(count for p in flying for state, count in p.states.items() if state in IN_FLIGHT)
        done, total = sum(p.done for p in flying), sum(p.total for p in flying)
        oldest = min(p.oldest_submitted_at for p in flying if p.oldest_submitted_at is not None)
        percent = 100 * done // total if total else 0
        counted = "1 batch" if batches == 1 else f"{batches} batches"
        return "; ".join([f"{counted} in flight, oldest {_age(self._now, oldest)}, {percent} % done", *self._notes])


def _labels_in(context: dg.SensorEvaluationContext, resource_key: str) -> dict[str, _Partitions]:
    """The labeled assets of this code location whose LLMBatchResource this is."""
    assert context.repository_def is not None
    return {
        key.to_user_string(): _Partitions(assets.partitions_def, context.instance)
        for key, assets in context.repository_def.assets_defs_by_key.items()
        if assets.is_executable
        and assets.tags_by_key.get(key, {}).get(ROLE_TAG) == "labels"
        and resource_key in assets.required_resource_keys
    }


def _age(now: datetime, then: datetime) -> str:
    minutes = max(0, int((now - then).total_seconds())) // 60  # it may have been sent while this tick ran
    return f"{minutes // 60} h {minutes % 60} m" if minutes >= 60 else f"{minutes} m"  # noqa: PLR2004 - minutes of an hour


def _default_run_config(context: dg.SensorEvaluationContext) -> Mapping[str, Any]:
    assert context.repository_def is not None
    executor = context.repository_def.get_implicit_global_asset_job_def().executor_def.name
    return _IN_PROCESS if executor == dg.multi_or_in_process_executor.name else {}
