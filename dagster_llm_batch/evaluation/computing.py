"""The asset that evaluates: one partition after the other, each with its own tables, metadata, version and checks."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import dagster as dg

from dagster_llm_batch.assets.output import stored_by
from dagster_llm_batch.assets.partitions import each_partition
from dagster_llm_batch.checks import Verdict
from dagster_llm_batch.evaluation import gold_metadata as showing
from dagster_llm_batch.evaluation.builder import Computed, quiet_check_spec
from dagster_llm_batch.evaluation.design import Design
from dagster_llm_batch.evaluation.gold_rows import Read, Upstreams
from dagster_llm_batch.evaluation.regression import CHECK, Accepted, regression_verdict
from dagster_llm_batch.metrics import (
    EvaluationReport,
    Regression,
    calibrations_to_arrow,
    compare,
    evaluations_to_arrow,
    regressions_to_arrow,
)

__all__ = ["evaluation_asset"]


def evaluation_asset(
    design: Design,
    specs: Mapping[str, dg.AssetSpec],
    accepted_spec: dg.AssetSpec,
    backfill_policy: dg.BackfillPolicy | None,
) -> dg.AssetsDefinition:
    """`specs` by what `Design.beside` calls them; the main table is ""."""
    partitions_def = design.tabling.partitions_def
    checks = design.thresholds.specs(design.key, partitions_def)
    if design.regression:
        checks.append(
            quiet_check_spec(
                CHECK,
                asset=design.key,
                description=f"No candidate is surely worse than what {design.accepted_key.to_user_string()} holds.",
                blocking=design.thresholds.blocking,
                partitions_def=partitions_def,
            )
        )

    @dg.multi_asset(
        name=design.key.to_python_identifier(),
        specs=stored_by(design.tabling.io_manager_key, *specs.values()),
        check_specs=checks,
        can_subset=True,
        required_resource_keys={design.tabling.io_manager_key},
        backfill_policy=backfill_policy or (dg.BackfillPolicy.single_run() if partitions_def else None),
    )
    def measure(context: dg.AssetExecutionContext) -> Iterator[Any]:
        upstreams = Upstreams(
            context,
            gold=design.gold,
            candidates=design.candidates,
            key=design.join_key,
            targets=design.targets,
            partitions_def=partitions_def,
        )
        accepted = Accepted(context, design, accepted_spec) if design.regression else None

        def land(partition: str | None) -> Iterator[Any]:
            read = upstreams.read(partition)
            report = compare(read.gold, read.candidates, key=design.join_key, targets=design.targets)
            regressions = accepted.regressions(read) if accepted else []
            for which in reversed(list(specs)):  # the main table last: its checks may end the run
                if specs[which].key in context.selected_asset_keys:
                    computed = _computed(design, which, read, report, regressions)
                    if accepted and which == "versions":
                        computed = replace(computed, metadata={**computed.metadata, **accepted.metadata})
                    yield from design.tabling.land(context, specs[which], partition, computed, checks)

        yield from each_partition(context, land)

    return measure


def _computed(
    design: Design, which: str, read: Read, report: EvaluationReport, regressions: Sequence[Regression]
) -> Computed:
    """One of the tables, as it is stored and shown. Nothing is stored of a partition that cannot be evaluated."""
    verdicts: list[Verdict] = []
    if which == "per_class":
        table, metadata = report.per_class, showing.per_class_metadata(report)
    elif which == "calibration":
        table, metadata = calibrations_to_arrow(report.calibrations), showing.calibration_metadata(report)
    elif which == "versions":
        table, metadata = regressions_to_arrow(regressions), showing.versions_metadata(regressions)
    else:
        table, metadata = evaluations_to_arrow(report.evaluations), showing.evaluation_metadata(report, read)
        verdicts = design.thresholds.verdicts(report.evaluations)
        if design.regression:
            verdicts.append(regression_verdict(regressions, design.accepted_key, design.thresholds.severity))
    lineage = showing.column_lineage(
        table.schema, gold=design.gold, candidates=design.candidates, key=design.join_key, targets=design.targets
    )
    return Computed(table, {**metadata, "dagster/column_lineage": lineage}, showing.DOCS, verdicts)
