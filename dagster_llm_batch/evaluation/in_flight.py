"""Turn failed checks into warnings while labels of a candidate are still in flight: the figures lack them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import dagster as dg

from dagster_llm_batch._dagster_private import asset_graph
from dagster_llm_batch.assets.keys import key_beside
from dagster_llm_batch.assets.translator import ROLE_TAG
from dagster_llm_batch.assets.upstream import mapped_partitions
from dagster_llm_batch.check_events import NOT_JUDGED, NotJudged
from dagster_llm_batch.checks import CheckOutcome

__all__ = ["judged_later"]

_SHOWN = 5


def judged_later(
    context: dg.AssetExecutionContext,
    asset: dg.AssetKey,
    partition: str | None,
    check_results: Sequence[CheckOutcome],
    checks: Sequence[dg.AssetCheckSpec],
) -> list[CheckOutcome]:
    """Return the check results of an evaluation; a failed one is no alarm while labels that it reads are in flight.

    It warns then, without an alert. The evaluation is materialized again when these labels arrive. A blocking check
    still holds back downstream assets.
    """
    if all(check_result.passed for check_result in check_results):
        return list(check_results)
    flying = _find_in_flight(context, asset, partition)
    if not flying:
        return list(check_results)
    waits = "; ".join(flying)
    blocking = {spec.name for spec in checks if spec.blocking}
    return [
        check_result
        if check_result.passed
        else replace(
            check_result,
            severity=check_result.severity if check_result.name in blocking else dg.AssetCheckSeverity.WARN,
            description=f"Not judged yet: labels are still in flight, of {waits}. So far: {check_result.description}",
            metadata={**check_result.metadata, NOT_JUDGED: NotJudged.IN_FLIGHT.value},
        )
        for check_result in check_results
    ]


def _find_in_flight(context: dg.AssetExecutionContext, asset: dg.AssetKey, partition: str | None) -> list[str]:
    """Return the labels that `asset` reads and that were submitted but are not materialized yet."""
    graph, instance, found = asset_graph(context), context.instance, list[str]()
    for labels in sorted(graph.get(asset).parent_keys):
        node = graph.get(labels)
        # Labels depend on their submission, and on their rows if a mask restores values. A job that does not run the
        # submission has nothing of it but its key.
        parents = node.parent_keys
        batches = parents if len(parents) == 1 else {key_beside(labels, "batch")} & {*parents}
        if node.tags.get(ROLE_TAG) != "labels" or not batches:
            continue
        [batch] = batches
        name = labels.to_user_string()
        if node.partitions_def is None:
            submitted, landed = (instance.get_latest_materialization_event(key) for key in (batch, labels))
            if submitted is not None and landed is None:
                found.append(name)
            continue
        flying = instance.get_materialized_partitions(batch) - instance.get_materialized_partitions(labels)
        if partition is not None:
            flying &= {one for one in mapped_partitions(graph, instance, asset, labels, partition) if one is not None}
        elif flying:
            # If a partition was removed while in flight, its labels never arrive.
            flying &= set(node.partitions_def.get_partition_keys(dynamic_partitions_store=instance))
        if flying:
            more = ", …" if len(flying) > _SHOWN else ""
            found.append(f"{name} ({', '.join(sorted(flying)[:_SHOWN])}{more})")
    return found
