"""The one builder of evaluation assets: tables computed from other tables, one partition after the other, each with its
own metadata, data version and checks.

    factory: arguments ─▶ EvaluationBuilder ─ spec, check, follow ─▶ asset(specs, prepare, checks)
    run:     prepare(context) ─▶ for each partition: tables ─▶ store: IO manager, metadata, check_results

This module must not have `from __future__ import annotations`: Dagster reads the annotation of `context`.
"""

import base64
import hashlib
import io
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any

import dagster as dg
import pyarrow as pa

from dagster_llm_batch._dagster_private import asset_graph
from dagster_llm_batch.assets.keys import key_beside, prefixed_key
from dagster_llm_batch.assets.options import AssetOptions, DagsterOptions
from dagster_llm_batch.assets.output import Frame, stored_by, write_output
from dagster_llm_batch.assets.partitions import each_partition, materialize_result
from dagster_llm_batch.assets.sink import check_database
from dagster_llm_batch.assets.translator import ROLE_TAG, TABLE_KEY
from dagster_llm_batch.assets.upstream import check_partitions
from dagster_llm_batch.automation import on_labels_ready
from dagster_llm_batch.check_events import all_partitions_evaluations
from dagster_llm_batch.checks import CheckOutcome
from dagster_llm_batch.evaluation.in_flight import judged_later
from dagster_llm_batch.metadata import data_version, row_links, rows_metadata, table_schema

__all__ = [
    "MAX_PICTURES",
    "AssetOptions",
    "Computed",
    "EvaluationBuilder",
    "MainCheck",
    "PartitionOptions",
    "TableOptions",
    "Tables",
    "code_digest",
    "in_partition",
    "picture",
    "reduced",
    "whenever_new",
]

MAX_PICTURES = 6
"""Of one kind, for one materialization."""

_COLORS = 64

_TAGGED = ("evaluation", "annotation")
"""Roles that stand in a tag: sensors, pages and components find assets by them."""


def reduced(png: bytes) -> bytes:
    """Reduce a picture to 64 colors, about a third of the bytes."""
    from PIL import Image  # noqa: PLC0415 - matplotlib, which drew it, brings it

    small = io.BytesIO()
    image = Image.open(io.BytesIO(png)).convert("RGB")
    # an octree keeps the color of a thin line, which a median cut takes for a shade of something larger
    image = image.quantize(_COLORS, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    image.save(small, "PNG", optimize=True)
    return small.getvalue()


def picture(text: str, png: bytes) -> str:
    """Return Markdown with a PNG as a data URI, with `text` in its place where it cannot be shown."""
    alt = text.translate(dict.fromkeys(map(ord, "[]()\\\n"), " "))
    return f"![{alt}](data:image/png;base64,{base64.b64encode(reduced(png)).decode()})"


@dataclass(frozen=True)
class Computed:
    """The table of one partition, with its metadata for Dagster. `docs` describes its columns."""

    table: pa.Table
    metadata: Mapping[str, Any]
    docs: Mapping[str, str | None] = field(default_factory=dict)
    check_results: Sequence[CheckOutcome] = ()
    columns_key: str = "dagster/column_schema"
    """Metadata key of the columns. Dagster lists them above all metadata under its own key, else behind a link."""


Tables = Mapping[str, Callable[[], Computed]]
"""The tables of one partition, in the order in which they are stored, by their suffix; the main table is "". Each is
computed only where it is selected. A feature with a blocking check gives the main table last: the check may end the
run.
"""

MainCheck = Callable[[dg.AssetSpec], dg.AssetCheckSpec]
"""A check of the main table, whose key is known when its spec is made."""


class TableOptions(AssetOptions, total=False):
    """The IO manager of the tables (`io_manager_key`), and the type of table that it gets (`frame`)."""

    frame: Frame
    io_manager_key: str


class PartitionOptions(TableOptions, total=False):
    """Partitions, each computed separately, and how many of them one run of a backfill takes."""

    partitions_def: dg.PartitionsDefinition[Any] | None
    backfill_policy: dg.BackfillPolicy | None


@dataclass(frozen=True, kw_only=True)
class EvaluationBuilder(DagsterOptions):
    """Properties that all assets of one evaluation share. A factory adds its own tables, checks and computation.

    Args:
        name: Name of the main asset; the others are named after it.
        partitions_def: Dagster's partitions, each computed separately. Default: all of them together.
        frame: Type that the IO manager gets: a table of "arrow", "polars" or "pandas", or "batches", a stream of Arrow
            record batches.
        io_manager_key: Key of the IO manager that stores the tables.
        backfill_policy: Number of runs of a backfill. Default: one run for all partitions.
        role: Kind of the main asset. Evaluations and gold have the tag `ROLE_TAG`.
    """

    name: str
    partitions_def: dg.PartitionsDefinition[Any] | None = None
    frame: Frame = "arrow"
    io_manager_key: str = "io_manager"
    backfill_policy: dg.BackfillPolicy | None = None
    role: str = "evaluation"

    @property
    def key(self) -> dg.AssetKey:
        """Of the main table, before a translator changes it."""
        return prefixed_key(self.key_prefix, self.name)

    @property
    def backfill(self) -> dg.BackfillPolicy | None:
        """Policy for the runs of a backfill; None without partitions."""
        return self.backfill_policy or (dg.BackfillPolicy.single_run() if self.partitions_def else None)

    def check_partitions(self, *upstreams: object) -> None:
        """Raise ConfigError if an upstream definition has partitions that Dagster cannot map to the tables' partitions.

        `upstreams` may be definitions, or lists or mappings of them.
        """
        check_partitions(self.key, self.partitions_def, upstreams, self.all_deps([]))

    def follow(
        self, upstreams: Sequence[dg.AssetKey], *, not_awaited: Sequence[dg.AssetKey] = ()
    ) -> dg.AutomationCondition[Any]:
        """Return the condition to give to `spec` as `follow`. Use it for assets that cost nothing: a person starts the
        assets that ask an LLM.

        With partitions, it holds when all upstreams of a partition are materialized and their blocking checks have
        passed. Without, it holds whenever any partition of an upstream is new, once each upstream has one; and once for
        partitions that exist at the first evaluation.

        It ignores `not_awaited`, and these may be missing: rejects, which come with their labels, and external assets
        (`is_external`). It also ignores the user's own `deps`.
        """
        if self.partitions_def is not None:
            ignored = [*not_awaited, *self.more_deps(upstreams)]
            return self.when_ready(not_awaited=ignored, not_followed=ignored)
        awaited = [key for key in upstreams if key not in not_awaited]
        return whenever_new(awaited, *([key] for key in awaited))

    def when_ready(
        self, *, not_awaited: Sequence[dg.AssetKey], not_followed: Sequence[dg.AssetKey]
    ) -> dg.AutomationCondition[Any]:
        """Return `on_labels_ready` that does not wait for the ones, and does nothing when the others are new."""
        condition, assets = dg.AutomationCondition, dg.AssetSelection.assets
        ready = on_labels_ready()
        if not_awaited:
            missing = condition.any_deps_missing().ignore(assets(*not_awaited))
            ready = ready.replace("any_deps_missing", missing)
        if not_followed:
            updated = condition.any_deps_updated().ignore(assets(*not_followed))
            ready = ready.replace("any_deps_updated", updated)
        return ready

    def spec(
        self,
        description: str,
        *,
        suffix: str = "",
        deps: Sequence[dg.AssetKey | dg.AssetDep],
        kinds: AbstractSet[str] = frozenset({"table", "report"}),
        code_version: str | None = None,
        follow: dg.AutomationCondition[Any] | None = None,
        skippable: bool = True,
    ) -> dg.AssetSpec:
        """Return the spec of one table.

        Args:
            description: Description in the UI, unless the user gives one for the main table.
            suffix: The table is named `<name>_<suffix>`; "" for the main one.
            deps: Upstreams of the table, in addition to the user's own `deps`.
            kinds: Kinds in the UI, unless the user gives some.
            code_version: See `code_digest`.
            follow: Automation condition, if the user has left "default".
            skippable: Whether a run may end without it. A run over several partitions yields an event for each finished
                one.
        """
        return self.asset_spec(
            key_beside(self.key, suffix) if suffix else self.key,
            role=suffix or self.role,
            dataset=self.key.to_user_string(),
            description=description if suffix else self.description or description,
            deps=self.all_deps(deps),
            partitions_def=self.partitions_def,
            tags={ROLE_TAG: self.role} if self.role in _TAGGED else {},
            metadata={TABLE_KEY: suffix} if suffix else {},
            kinds=kinds,
            code_version=code_version,
            automation_condition=self.condition(follow),
            skippable=skippable,
        )

    def check(self, name: str, description: str, *, blocking: bool) -> MainCheck:
        """Return a check of the main table, of each partition if there are any."""

        def of(table: dg.AssetSpec) -> dg.AssetCheckSpec:
            with warnings.catch_warnings():
                # Dagster 1.13 warns of each spec that partitioned checks are a preview.
                warnings.simplefilter("ignore", category=dg.PreviewWarning)
                return dg.AssetCheckSpec(
                    name,
                    asset=table.key,
                    description=description,
                    blocking=blocking,
                    partitions_def=self.partitions_def,
                )

        return of

    def multi_asset(
        self,
        *specs: dg.AssetSpec,
        checks: Sequence[dg.AssetCheckSpec] = (),
        resource_keys: AbstractSet[str] = frozenset(),
    ) -> Callable[[Callable[..., Iterator[Any]]], dg.AssetsDefinition]:
        """Return Dagster's decorator, for a function that `asset` does not fit: one with a run config in its signature.
        The first spec names the op.
        """
        return dg.multi_asset(
            name=specs[0].key.to_python_identifier(),
            specs=stored_by(self.io_manager_key, *specs),
            check_specs=checks,
            can_subset=True,
            required_resource_keys={self.io_manager_key, *resource_keys},
            backfill_policy=self.backfill,
            **self.op,
        )

    def asset(
        self,
        specs: Mapping[str, dg.AssetSpec],
        prepare: Callable[[dg.AssetExecutionContext], Callable[[str | None], Tables]],
        checks: Sequence[MainCheck] = (),
        resource_keys: AbstractSet[str] = frozenset(),
    ) -> dg.AssetsDefinition:
        """Return the asset of one or more tables that are computed together.

        Args:
            specs: From `spec`, by suffix. The first names the op.
            prepare: Called once per run; its exceptions end the run unchanged. It returns a function that is called
                with each partition, or with None; an exception of this function fails only that partition.
            checks: From `check`, of the main table.
            resource_keys: Resources other than the IO manager.
        """
        check_specs = [check(specs[""]) for check in checks]

        @self.multi_asset(*specs.values(), checks=check_specs, resource_keys=resource_keys)
        def evaluate(context: dg.AssetExecutionContext) -> Iterator[Any]:
            if (summary := all_partitions_evaluations(context, self.partitions_def)) is not None:
                yield from summary
                return
            selected = [spec for spec in specs.values() if spec.key in context.selected_asset_keys]
            manager = getattr(context.resources, self.io_manager_key)
            check_database(selected, asset_graph(context), manager, self.frame)
            compute = prepare(context)

            def store(partition: str | None) -> Iterator[Any]:
                for suffix, table in compute(partition).items():
                    if specs[suffix].key in context.selected_asset_keys:
                        yield from self.store(context, specs[suffix], partition, table(), check_specs)

            yield from each_partition(context, store)

        return evaluate

    def table_asset(
        self,
        spec: dg.AssetSpec,
        compute: Callable[[dg.AssetExecutionContext, str | None], Computed],
        checks: Sequence[MainCheck] = (),
        resource_keys: AbstractSet[str] = frozenset(),
    ) -> dg.AssetsDefinition:
        """Return the asset of one table. `compute` gets a partition, or None."""

        def prepare(context: dg.AssetExecutionContext) -> Callable[[str | None], Tables]:
            return lambda partition: {"": lambda: compute(context, partition)}

        return self.asset({"": spec}, prepare, checks, resource_keys)

    def store(
        self,
        context: dg.AssetExecutionContext,
        spec: dg.AssetSpec,
        partition: str | None,
        computed: Computed,
        checks: Sequence[dg.AssetCheckSpec] = (),
    ) -> Iterator[Any]:
        """Give one partition to the IO manager, and yield its events."""
        table = in_partition(computed.table, partition)
        logged = write_output(context, spec, self.io_manager_key, partition, table, self.frame)
        described = {
            "dagster/row_count" if partition is None else "dagster/partition_row_count": len(table),
            computed.columns_key: table_schema(table.schema, {"partition": "of the rows", **computed.docs}),
        }
        # Without other named links, the rows behind a figure are the rows of the table.
        behind = rows_metadata(row_links(context).table(spec.key.to_user_string(), partition=partition))
        yield from materialize_result(
            context,
            spec.key,
            partition,
            metadata={**behind, **computed.metadata, **described, **logged},
            version=data_version(table),
            checks=checks,
            check_results=[
                replace(one, metadata={**behind, **one.metadata})
                for one in judged_later(context, spec.key, partition, computed.check_results, checks)
            ],
        )


def whenever_new(assets: Sequence[dg.AssetKey], *present: Sequence[dg.AssetKey]) -> dg.AutomationCondition[Any]:
    """Return a condition that holds when a partition of `assets` is new, or existed at the first evaluation.

    Each group in `present` must also have at least one materialized partition. The condition does not hold while a run
    is in progress.
    """
    condition, selected = dg.AutomationCondition, dg.AssetSelection.assets(*assets)
    first = condition.initial_evaluation() & condition.missing()
    updated = condition.any_deps_updated().allow(selected)
    # Not `since_last_handled`: at its first evaluation it drops partitions that existed already. It also drops labels
    # that were materialized since the last evaluation, though the run then requested may have read its inputs earlier.
    handled = condition.newly_requested() & ~updated
    follows = (
        (first | updated).since(handled) & ~condition.any_deps_in_progress().allow(selected) & ~condition.in_progress()
    )
    for keys in present:
        follows &= condition.any_deps_match(~condition.missing()).allow(dg.AssetSelection.assets(*keys))
    return follows.with_label("on_any_labels")


def in_partition(table: pa.Table, partition: str | None) -> pa.Table:
    """Add the partition as first column, since many stores keep all partitions in one table."""
    if partition is None or "partition" in table.column_names:
        return table
    return table.add_column(0, "partition", pa.repeat(partition, len(table)).cast(pa.string()))


def code_digest(*parts: object) -> str:
    """Digest the parts into a code version, which changes with any of them."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
