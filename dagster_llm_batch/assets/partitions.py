"""Runs over several partitions: each is computed by itself, and one that fails does not take its neighbours along.

Dagster fails a step as a whole. Here every partition is tried, those that succeed are materialized, and one dg.Failure
at the end names those that failed.
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
    """Return the partitions of this step's asset that this run is over; none of an asset that has no partitions.

    A job over assets with partitions and without has runs of a partition, which the ones without do not have.
    """
    own = context.assets_def.partitions_def
    if own is None:
        return ()
    if isinstance(own, dg.TimeWindowPartitionsDefinition):
        return _times(context, own)
    return context.partition_keys if context.has_partition_key or context.has_partition_key_range else ()


def _times(context: dg.AssetExecutionContext, own: dg.TimeWindowPartitionsDefinition) -> Sequence[str]:
    """Return the partitions of time that this run is over.

    Dagster keeps the keys of a time window by its local times. Where the clock goes back two windows have the same
    ones, and where one process has several runs Dagster may give the keys of the other.
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
    """Return whether this run is over a range, perhaps of one, of the partitions of this step's asset."""
    is_range = context.has_partition_key_range and not context.has_partition_key
    return is_range and context.assets_def.partitions_def is not None


def begin_downstream(context: dg.AssetExecutionContext, mode: str, events: Iterator[Any]) -> Iterator[Any]:
    """Yield the events. Then let the downstream steps of this run begin, for assets whose partitions are all
    materialized by these events.

    In a run over a range each partition is materialized by itself, and Dagster skips the downstream steps. With mode
    "deferred" that is right: the labels come later.
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
    """The partitions of this run, in order, or None of an asset without partitions; those that fail are left out.

    `failed` is called with each of these, and why.
    """

    def __init__(self, context: dg.AssetExecutionContext, failed: _Told | None = None) -> None:
        self.keys: list[str | None] = list(partitions_of(context)) or [None]
        self._failures = _Failures(context, len(self.keys), failed)
        self._instance = context.instance

    def map(self, step: Callable[[str | None], _T]) -> dict[str | None, _T]:
        """Return what `step` gives, by partition; a partition for which it fails has no value."""
        done: dict[str | None, _T] = {}
        for partition in self.keys:
            with self._apart(partition):
                done[partition] = step(partition)
        return done

    @contextmanager
    def _apart(self, partition: str | None) -> Iterator[None]:
        """Keep what is raised inside to the partition: its neighbours go on."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - rows function and IO manager are the user's: anything may come
            self._failures.add(partition, error)

    def events(self, values: Mapping[str | None, _T], land: Callable[[str | None, _T], Iterator[Any]]) -> Iterator[Any]:
        """Yield the events of `land` for each partition that has a value.

        Raises one dg.Failure at the end for all that failed; Dagster marks partitions that did not land as failed.
        """
        for partition, value in values.items():
            with self._apart(partition):
                yield from self._tell({partition: land(partition, value)})
        yield from self._end()

    def events_in_turn(
        self, begin: Callable[[str | None], Iterator[Any]], may_begin: Callable[[], bool]
    ) -> Iterator[Any]:
        """Yield the events that `begin` returns for each partition; raises as `events` does.

        While `may_begin` is true, further partitions are begun before the events of the earlier ones are yielded.
        """
        begun: dict[str | None, Iterator[Any]] = {}
        for partition in self.keys:
            with self._apart(partition):
                begun[partition] = begin(partition)
            # Of the last one there are no further ones.
            if not may_begin() or partition == self.keys[-1]:
                yield from self._tell(begun)
                begun.clear()
        yield from self._end()

    def _tell(self, begun: Mapping[str | None, Iterator[Any]]) -> Iterator[Any]:
        """Yield the events of some partitions, and then evaluations for their `CheckOutcomes`.

        An iterator goes on after its `CheckOutcomes` when these are stored.
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
        for partition, verdicts in unjudged.items():
            with self._apart(partition):
                # Once for all of them; where Dagster's storage does not answer, one fails and the next asks again.
                if partition not in targets:
                    targets = check_targets(self._instance, verdicts.asset, unjudged)
                yield from verdicts.evaluations(targets[partition])
                yield from begun[partition]

    def _end(self) -> Iterator[Any]:
        yield from self._failures.verdicts()
        self._failures.raise_if_any()


def each_partition(
    context: dg.AssetExecutionContext,
    land: Callable[[str | None], Iterator[Any]],
    failed: _Told | None = None,
    may_begin: Callable[[], bool] = lambda: False,
) -> Iterator[Any]:
    """Yield the events of `land` for each partition of this run; see EachPartition.events_in_turn.

    Raises one dg.Failure at the end for all that fail.
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
    verdicts: Sequence[CheckOutcome] = (),
) -> Iterator[Any]:
    """Yield the events that say that a partition is stored, with its data version and the verdicts on it.

    To be yielded through EachPartition, which makes events of `CheckOutcomes`; at most once a partition with verdicts.
    """
    # in a run over a range, even of one partition, a MaterializeResult would speak of all of the range
    if is_of_range(context):
        versions = {**(tags or {}), "dagster/data_version": version}
        yield dg.AssetMaterialization(asset, partition=partition, metadata=metadata, tags=versions)
        if verdicts:
            yield CheckOutcomes(asset, partition, checks, verdicts)
        return
    yield dg.MaterializeResult(
        asset_key=asset,
        metadata=metadata,
        data_version=dg.DataVersion(version),
        tags=tags,
        check_results=[
            dg.AssetCheckResult(
                check_name=verdict.name,
                asset_key=asset,
                passed=verdict.passed,
                severity=verdict.severity,
                description=verdict.description,
                metadata=verdict.metadata,
            )
            for verdict in verdicts
        ],
    )


def others_at_work(context: dg.AssetExecutionContext, asset: dg.AssetKey) -> bool:
    """Return whether another run that has begun, and has not ended, may materialize some partition of this asset."""
    at_work = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    # A run in somebody's own process has no selection.
    return any(
        run.run_id != context.run.run_id and (not run.asset_selection or asset in run.asset_selection)
        for run in context.instance.get_runs(dg.RunsFilter(statuses=at_work))
    )


class _Failures:
    """Collects what went wrong in each partition of a run over `partitions` of them."""

    def __init__(self, context: dg.AssetExecutionContext, partitions: int, failed: _Told | None) -> None:
        self._context = context
        self._failed = failed
        self._partitions = partitions
        self._errors: dict[str | None, Exception] = {}

    def add(self, partition: str | None, error: Exception) -> None:
        """Remember and log one."""
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

    def verdicts(self) -> Iterator[Any]:
        """Yield verdicts for the checks that Dagster has planned on them, and that would have none."""
        run = short_run(self._context.run.run_id)
        for partition, error in self._errors.items():
            yield from unjudged_evaluations(
                self._context, partition, f"Run {run} failed: {_text_of(error)}", failed=True
            )

    def raise_if_any(self) -> None:
        """Raise one dg.Failure for all of them. Dagster marks the partitions that did not land as failed.

        Where nothing else is in the run, an error that is not ours goes on as it is: the traceback of the user's own
        code is what a person needs, and a dg.Failure would hide it.
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
        # A retry of a run over several partitions would make those that have landed again.
        # Ours say what to do, and their causes only how it was found out: that would be three traces for one message.
        cause = None if isinstance(first, LLMBatchError) else first
        raise dg.Failure(description, allow_retries=self._partitions == 1) from cause


def _text_of(error: Exception) -> str:
    """Return what goes to the ledger, to a check, and from there to people, without the password of an address."""
    return plain_words(_PASSWORD.sub(r"\1:***@", f"{type(error).__name__}: {error}"))
