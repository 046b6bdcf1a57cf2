"""Requests for gold of datasets with new human judgments of their rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import dagster as dg

from dagster_llm_batch.assets.translator import ANNOTATES_KEY
from dagster_llm_batch.metadata import JUDGMENTS_KEY
from dagster_llm_batch.sensors.run_requests import Partitions
from dagster_llm_batch.storage.ledger.judgments import JudgmentsState, judgments_version

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["new_annotations"]

_QUIET = timedelta(seconds=30)
"""Gold is made after a pause of this length: people judge a row a second."""
_LONGEST = timedelta(minutes=5)
"""Gold is made after this time if people judge without a pause."""
_MOST_PARTITIONS = 50
"""The most partitions checked in one tick, beginning with the last judged ones."""


def new_annotations(
    context: dg.SensorEvaluationContext, engine: Engine, labels: Mapping[str, Partitions]
) -> Iterator[dg.RunRequest]:
    """Yield a run for each gold, or partition of it, that lacks present human judgments.

    The run key contains the state of the judgments, so each state is requested once. A failed run is not repeated
    before there is a new judgment.
    """
    assert context.repository_def is not None
    for definition in set(context.repository_def.assets_defs_by_key.values()):
        for spec in definition.specs:
            of_dataset = labels.get(str(spec.metadata.get(ANNOTATES_KEY, "")))
            if of_dataset is None:
                continue
            states = engine.ledger.judgments.states(engine.namespace, of_dataset.dataset.name)
            for partition, there in _by_partition(spec, of_dataset, states).items():
                record = _newest(context.instance, spec.key, partition)
                if not _is_due(record, there, engine.now()):
                    continue
                # Both states: an erasure of the last judgments restores an earlier state.
                version = f"{_held(record)} to {judgments_version(there.values())}"
                run_key = ":".join([spec.key.to_user_string(), partition or "", version])
                # Dagster drops a repeated key silently, and the tick would seem to have requested something.
                if not _is_asked(context, run_key):
                    yield dg.RunRequest(run_key, asset_selection=sorted(definition.keys), partition_key=partition)


def _by_partition(
    spec: dg.AssetSpec, labels: Partitions, states: Mapping[str, JudgmentsState]
) -> dict[str | None, Mapping[str, JudgmentsState]]:
    """Return the judgments for each partition of gold; None is the key of gold without partitions, which holds all.

    Gold whose partitions differ from the labels' partitions waits for a person: only runs have the mapping that assigns
    a judgment to a partition.
    """
    if spec.partitions_def is None:
        return {None: states}
    if spec.partitions_def != labels.dataset.partitions_def:
        return {}
    newest = sorted(states, key=lambda partition: states[partition].last_at, reverse=True)[:_MOST_PARTITIONS]
    return {
        partition: {partition: states[partition]}
        for partition in newest
        # Dagster refuses all requests of a tick if the partition of one was deleted meanwhile.
        if partition in labels.places
    }


def _is_asked(context: dg.SensorEvaluationContext, run_key: str) -> bool:
    runs = dg.RunsFilter(tags={"dagster/run_key": run_key})
    return bool(context.instance.get_run_records(runs, limit=1))


def _newest(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> dg.EventLogRecord | None:
    wanted = dg.AssetRecordsFilter(key, asset_partitions=None if partition is None else [partition])
    return next(iter(instance.fetch_materializations(wanted, limit=1).records), None)


def _held(record: dg.EventLogRecord | None) -> str:
    """Return the version of the judgments that a materialization holds."""
    stored = None if record is None else record.asset_materialization
    held = None if stored is None else stored.metadata.get(JUDGMENTS_KEY)
    return "nothing" if held is None else str(held.value)


def _is_due(record: dg.EventLogRecord | None, states: Mapping[str, JudgmentsState], now: datetime) -> bool:
    """Return whether there are new judgments, and people have paused or judged for long."""
    if _held(record) == judgments_version(states.values()):
        return False
    if not states:
        # All judgments were erased, and the gold must lose them, too.
        return record is not None
    made_at = min(state.first_at for state in states.values())
    if record is not None:
        made_at = max(made_at, datetime.fromtimestamp(record.timestamp, UTC))
    return now - max(state.last_at for state in states.values()) >= _QUIET or now - made_at >= _LONGEST
