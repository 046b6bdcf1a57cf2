"""The asset that evaluates: one partition after the other, each with its own tables, metadata, version and checks."""

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.assets.naming import key_beside
from dagster_llm_batch.assets.output import Frame, write_output
from dagster_llm_batch.assets.partitions import each_partition, landed
from dagster_llm_batch.automation import on_labels_ready
from dagster_llm_batch.checks import Verdict
from dagster_llm_batch.evaluation import Target, compare, evaluations_to_arrow
from dagster_llm_batch.evaluation_assets import showing
from dagster_llm_batch.evaluation_assets.reading import Upstreams
from dagster_llm_batch.evaluation_assets.thresholds import Thresholds
from dagster_llm_batch.evaluation_assets.upstreams import Candidate
from dagster_llm_batch.metadata import data_version

__all__ = ["Design", "evaluation_asset"]

_FORMAT = "1"
"""Part of the code version: raise it when the same labels would be measured differently."""


@dataclass(frozen=True)
class Design:
    """One evaluation, in Dagster's words."""

    key: dg.AssetKey
    gold: dg.AssetKey
    candidates: tuple[Candidate, ...]
    join_key: str
    targets: tuple[Target, ...]
    partitions_def: dg.PartitionsDefinition[Any] | None
    thresholds: Thresholds
    frame: Frame
    io_manager_key: str

    @property
    def per_class_key(self) -> dg.AssetKey:
        return key_beside(self.key, "per_class")

    @property
    def rejects(self) -> list[dg.AssetKey]:
        return [one.rejects for one in self.candidates if one.rejects is not None]

    @property
    def upstreams(self) -> list[dg.AssetKey]:
        return list(dict.fromkeys([self.gold, *(one.key for one in self.candidates), *self.rejects]))

    @property
    def code_version(self) -> str:
        said = repr((_FORMAT, self.gold, self.candidates, self.join_key, self.targets))
        return hashlib.sha256(said.encode()).hexdigest()[:12]

    def follow(self, *, gold_is_there: bool) -> dg.AutomationCondition[Any]:
        """Labels and gold are followed, rejects come with the labels."""
        condition, assets = dg.AutomationCondition, dg.AssetSelection.assets
        if self.partitions_def is not None:
            not_awaited = [*self.rejects, *([self.gold] if gold_is_there else [])]
            if not not_awaited:
                return on_labels_ready()
            missing = condition.any_deps_missing().ignore(assets(*not_awaited))
            return on_labels_ready().replace("any_deps_missing", missing)
        there = condition.any_deps_match(~condition.missing())
        watched = [self.gold, *(one.key for one in self.candidates)]
        follows = (
            condition.any_deps_updated().allow(assets(*watched)).since_last_handled()
            & ~condition.any_deps_in_progress().allow(assets(*watched))
            & ~condition.in_progress()
            & there.allow(assets(*(one.key for one in self.candidates)))
        )
        return (follows if gold_is_there else follows & there.allow(assets(self.gold))).with_label("on_any_labels")


def evaluation_asset(
    design: Design, table: dg.AssetSpec, classes: dg.AssetSpec | None, backfill_policy: dg.BackfillPolicy | None
) -> dg.AssetsDefinition:
    computing = _Computing(design, table, classes)

    @dg.multi_asset(
        name=design.key.to_python_identifier(),
        specs=[table, classes] if classes else [table],
        check_specs=computing.checks,
        can_subset=True,
        required_resource_keys={design.io_manager_key},
        backfill_policy=backfill_policy or (dg.BackfillPolicy.single_run() if design.partitions_def else None),
    )
    def measure(context: dg.AssetExecutionContext) -> Iterator[Any]:
        upstreams = Upstreams(
            context,
            gold=design.gold,
            candidates=design.candidates,
            key=design.join_key,
            targets=design.targets,
            partitions_def=design.partitions_def,
        )
        yield from each_partition(context, lambda partition: computing.compute(context, upstreams, partition))

    return measure


class _Computing:
    """Evaluates one partition after the other."""

    def __init__(self, design: Design, table: dg.AssetSpec, classes: dg.AssetSpec | None) -> None:
        self._design = design
        self._table = table
        self._classes = classes
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=dg.PreviewWarning)  # partitioned checks are new in 1.13
            self.checks = design.thresholds.specs(design.key, design.partitions_def)

    def compute(self, context: dg.AssetExecutionContext, upstreams: Upstreams, partition: str | None) -> Iterator[Any]:
        """The events of one partition. Nothing is stored of one that cannot be evaluated."""
        design, partitioned = self._design, partition is not None
        read = upstreams.read(partition)
        report = compare(read.gold, read.candidates, key=design.join_key, targets=design.targets)
        wanted = context.selected_asset_keys
        if self._classes is not None and self._classes.key in wanted:
            table = _in_partition(report.per_class, partition)
            metadata = showing.per_class_metadata(table, partitioned=partitioned)
            yield from self._land(context, self._classes, partition, table, metadata)
        if self._table.key in wanted:
            table = _in_partition(evaluations_to_arrow(report.evaluations), partition)
            metadata = showing.evaluation_metadata(report, read, table, partitioned=partitioned)
            judged = design.thresholds.verdicts(report.evaluations)
            yield from self._land(context, self._table, partition, table, metadata, judged)

    def _land(
        self,
        context: dg.AssetExecutionContext,
        spec: dg.AssetSpec,
        partition: str | None,
        table: pa.Table,
        metadata: dict[str, Any],
        judged: Sequence[Verdict] = (),
    ) -> Iterator[Any]:
        design = self._design
        logged = write_output(context, spec, design.io_manager_key, partition, table, design.frame)
        lineage = showing.column_lineage(
            table.schema, gold=design.gold, candidates=design.candidates, key=design.join_key, targets=design.targets
        )
        yield from landed(
            context,
            spec.key,
            partition,
            metadata={**metadata, "dagster/column_lineage": lineage, **logged},
            version=data_version(table),
            checks=self.checks,
            verdicts=judged,
        )


def _in_partition(table: pa.Table, partition: str | None) -> pa.Table:
    """With the partition as first column, since many stores keep the partitions in one table."""
    if partition is None:
        return table
    return table.add_column(0, "partition", pa.repeat(partition, len(table)).cast(pa.string()))
