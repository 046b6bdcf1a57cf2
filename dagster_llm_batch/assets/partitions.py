"""Runs over several partitions: each partition is computed separately, and a failed one does not stop the others.

Dagster fails a step as a whole. Here every partition is tried, the successful ones are materialized, and one dg.Failure
at the end names the failed ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import dagster as dg

from dagster_llm_batch._dagster_private import CheckTarget, check_targets, silent_check_outputs, silent_result
from dagster_llm_batch.check_events import CheckOutcomes, unjudged_evaluations
from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.errors import LLMBatchError
from dagster_llm_batch.text import plain_words, short_run

__all__ = [
    "EachPartition",
    "begin_downstream",
    "each_partition",
    "is_of_range",
    "materialize_result",
    "others_at_work",
    "partitions_of",
]

_T = TypeVar("_T")
_Told = Callable[[str | None, str], object]
_PASSWORD = re.compile(r"(://[^\s/@:]*):[^\s/@]+@")


def partitions_of(context: dg.AssetExecutionContext) -> Sequence[str]:
    """Return this run's partitions of this step's asset; an empty sequence for an unpartitioned asset.

    In a job of partitioned and unpartitioned assets, the run has a partition that the unpartitioned ones lack.
    """
    own = context.assets_def.partitions_def
    if own is None:
        return ()
    if isinstance(own, dg.TimeWindowPartitionsDefinition):
        return _times(context, own)
    return context.partition_keys if context.has_partition_key or context.has_partition_key_range else ()


def _times(context: dg.AssetExecutionContext, own: dg.TimeWindowPartitionsDefinition) -> Sequence[str]:
    """Return this run's time partitions.

    Dagster caches the keys of a time window by its local times. When the clock goes back, two windows have the same
    local times. In a process with several runs, Dagster may then return the keys of the wrong window.
    """
    if context.has_partition_key:
        return [context.partition_key]
    if not context.has_partition_key_range:
        return ()
    keys: Sequence[str] = context.partition_keys
    span = context.partition_key_range
    if keys and (keys[0], keys[-1]) == (span.start, span.end):
        return keys
    every = list(own.get_partition_keys())
    if span.start not in every or span.end not in every:
        return keys
    return every[every.index(span.start) : every.index(span.end) + 1]


def is_of_range(context: dg.AssetExecutionContext) -> bool:
    """Return whether this run covers a range, perhaps of one, of the partitions of this step's asset."""
    is_range = context.has_partition_key_range and not context.has_partition_key
    return is_range and context.assets_def.partitions_def is not None


def begin_downstream(context: dg.AssetExecutionContext, mode: str, events: Iterator[Any]) -> Iterator[Any]:
    """Yield the events. Then let the downstream steps of this run begin, for assets with all partitions materialized.

    In a run over a range, each partition has its own materialization, and Dagster skips the downstream steps. In mode
    "deferred" that is right, since the labels come later.
    """
    partitions: Counter[dg.AssetKey] = Counter()
    for event in events:
        if isinstance(event, dg.AssetMaterialization):
            partitions[event.asset_key] += 1
        yield event
    if mode == "wait" and is_of_range(context):
        wanted = len(partitions_of(context))
        done = {asset for asset, count in partitions.items() if count == wanted}
        yield from map(silent_result, done)
        yield from silent_check_outputs(context, done)


class EachPartition:
    """The partitions of this run, in order, without those that fail. An unpartitioned asset has the one key None.

    `failed` is called with each failed partition and the reason.
    """

    def __init__(self, context: dg.AssetExecutionContext, failed: _Told | None = None) -> None:
        self.keys: list[str | None] = list(partitions_of(context)) or [None]
        self._failures = _Failures(context, len(self.keys), failed)
        self._instance = context.instance

    def map(self, step: Callable[[str | None], _T]) -> dict[str | None, _T]:
        """Return the results of `step`, by partition, without the partitions where it fails."""
        done: dict[str | None, _T] = {}
        for partition in self.keys:
            with self._apart(partition):
                done[partition] = step(partition)
        return done

    @contextmanager
    def _apart(self, partition: str | None) -> Iterator[None]:
        """Record an error of the block as this partition's failure, so that the other partitions go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - rows function and IO manager are the user's: anything may come
            self._failures.add(partition, error)

    def events(self, values: Mapping[str | None, _T], land: Callable[[str | None, _T], Iterator[Any]]) -> Iterator[Any]:
        """Yield the events of `land` for each partition that has a value.

        Raises one dg.Failure at the end for all failed partitions, which Dagster marks as failed.
        """
        for partition, value in values.items():
            with self._apart(partition):
                yield from self._tell({partition: land(partition, value)})
        yield from self._end()

    def events_in_turn(
        self, begin: Callable[[str | None], Iterator[Any]], may_begin: Callable[[], bool]
    ) -> Iterator[Any]:
        """Yield the events that `begin` returns for each partition; raises like `events`.

        While `may_begin` is true, further partitions are begun before the events of the earlier ones are yielded.
        """
        begun: dict[str | None, Iterator[Any]] = {}
        for partition in self.keys:
            with self._apart(partition):
                begun[partition] = begin(partition)
            # The last partition has no further ones to begin.
            if not may_begin() or partition == self.keys[-1]:
                yield from self._tell(begun)
                begun.clear()
        yield from self._end()

    def _tell(self, begun: Mapping[str | None, Iterator[Any]]) -> Iterator[Any]:
        """Yield the events of some partitions, and then evaluations for their `CheckOutcomes`.

        An iterator continues after its `CheckOutcomes` once these are stored.
        """
        unjudged: dict[str | None, CheckOutcomes] = {}
        for partition, events in begun.items():
            with self._apart(partition):
                for event in events:
                    if isinstance(event, CheckOutcomes):
                        unjudged[partition] = event
                        break
                    yield event
        targets: dict[str | None, CheckTarget | None] = {}
        for partition, check_results in unjudged.items():
            with self._apart(partition):
                # One query serves all of them. If Dagster's storage does not answer, this partition fails, and the
                # next one tries again.
                if partition not in targets:
                    targets = check_targets(self._instance, check_results.asset, unjudged)
                yield from check_results.evaluations(targets[partition])
                yield from begun[partition]

    def _end(self) -> Iterator[Any]:
        yield from self._failures.check_results()
        self._failures.raise_if_any()


def each_partition(
    context: dg.AssetExecutionContext,
    land: Callable[[str | None], Iterator[Any]],
    failed: _Told | None = None,
    may_begin: Callable[[], bool] = lambda: False,
) -> Iterator[Any]:
    """Yield the events of `land` for each partition of this run; see EachPartition.events_in_turn.

    Raises one dg.Failure at the end for all failed partitions.
    """
    yield from EachPartition(context, failed).events_in_turn(land, may_begin)


def materialize_result(
    context: dg.AssetExecutionContext,
    asset: dg.AssetKey,
    partition: str | None,
    *,
    metadata: Mapping[str, Any],
    version: str,
    tags: Mapping[str, str] | None = None,
    checks: Sequence[dg.AssetCheckSpec] = (),
    check_results: Sequence[CheckOutcome] = (),
) -> Iterator[Any]:
    """Yield the events that record a partition as stored, with its data version and check results.

    Yield them through EachPartition, which turns `CheckOutcomes` into events. Call it at most once a partition with
    `check_results`.
    """
    # In a run over a range, even of one partition, a MaterializeResult would cover the whole range.
    if is_of_range(context):
        versions = {**(tags or {}), "dagster/data_version": version}
        yield dg.AssetMaterialization(asset, partition=partition, metadata=metadata, tags=versions)
        if check_results:
            yield CheckOutcomes(asset, partition, checks, check_results)
        return
    yield dg.MaterializeResult(
        asset_key=asset,
        metadata=metadata,
        data_version=dg.DataVersion(version),
        tags=tags,
        check_results=[
            dg.AssetCheckResult(
                check_name=check_result.name,
                asset_key=asset,
                passed=check_result.passed,
                severity=check_result.severity,
                description=check_result.description,
                metadata=check_result.metadata,
            )
            for check_result in check_results
        ],
    )


def others_at_work(context: dg.AssetExecutionContext, asset: dg.AssetKey) -> bool:
    """Return whether another unfinished run may materialize some partition of this asset."""
    at_work = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    # An in-process run has no selection.
    return any(
        run.run_id != context.run.run_id and (not run.asset_selection or asset in run.asset_selection)
        for run in context.instance.get_runs(dg.RunsFilter(statuses=at_work))
    )


class _Failures:
    """Collects the errors of the partitions of a run; `partitions` is the number of all its partitions."""

    def __init__(self, context: dg.AssetExecutionContext, partitions: int, failed: _Told | None) -> None:
        self._context = context
        self._failed = failed
        self._partitions = partitions
        self._errors: dict[str | None, Exception] = {}

    def add(self, partition: str | None, error: Exception) -> None:
        """Record and log the error of a partition."""
        self._errors[partition] = error
        where = "" if partition is None else f"{partition}: "
        is_ours = isinstance(error, LLMBatchError)
        if self._partitions > 1 or is_ours:
            self._context.log.error(f"{where}{type(error).__name__}: {error}", exc_info=None if is_ours else error)
        if self._failed is not None:
            try:
                self._failed(partition, _text_of(error))
            except LLMBatchError as another:
                self._context.log.warning(f"{where}the failure could not be recorded: {another}")

    def check_results(self) -> Iterator[Any]:
        """Yield evaluations for the planned checks of the failed partitions, which would lack them otherwise."""
        run = short_run(self._context.run.run_id)
        for partition, error in self._errors.items():
            yield from unjudged_evaluations(
                self._context, partition, f"Run {run} failed: {_text_of(error)}", failed=True
            )

    def raise_if_any(self) -> None:
        """Raise one dg.Failure for all errors. Dagster marks the partitions without a materialization as failed.

        With one partition, an error that is not an LLMBatchError is raised unchanged: a dg.Failure would hide the
        traceback of the user's own code.
        """
        if not self._errors:
            return
        first = next(iter(self._errors.values()))
        if self._partitions == 1 and not isinstance(first, LLMBatchError):
            raise first
        failures = [(partition, f"{type(error).__name__}: {error}") for partition, error in self._errors.items()]
        if self._partitions == 1:
            description = failures[0][1]
        else:
            lines = "\n".join(f"- {partition}: {text}" for partition, text in failures)
            description = f"{len(failures)} of {self._partitions} partitions failed; the others are done.\n{lines}"
        # A retry of a run over several partitions would materialize the successful ones again.
        # An LLMBatchError is raised without its cause: its message is enough, and three tracebacks would hide it.
        cause = None if isinstance(first, LLMBatchError) else first
        raise dg.Failure(description, allow_retries=self._partitions == 1) from cause


def _text_of(error: Exception) -> str:
    """Return the error's text for the ledger and checks, without the passwords of addresses."""
    return plain_words(_PASSWORD.sub(r"\1:***@", f"{type(error).__name__}: {error}"))
