"""The only place that imports what Dagster does not export. One function each, with the reason."""

from __future__ import annotations

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData

__all__ = ["check_target"]


def check_target(
    instance: dg.DagsterInstance, asset_key: dg.AssetKey, partition: str | None
) -> AssetCheckEvaluationTargetMaterializationData | None:
    """What a check evaluation must carry to speak of the newest materialization of a partition.

    In a run over several partitions Dagster stores an `AssetCheckResult` without its partition, and gates downstream of
    it never open; a hand-made evaluation needs this, which `dagster` does not export.
    """
    records = dg.AssetRecordsFilter(asset_key, asset_partitions=None if partition is None else [partition])
    [*found] = instance.fetch_materializations(records, limit=1).records
    if not found:
        return None
    return AssetCheckEvaluationTargetMaterializationData(
        storage_id=found[0].storage_id, run_id=found[0].run_id, timestamp=found[0].timestamp
    )
