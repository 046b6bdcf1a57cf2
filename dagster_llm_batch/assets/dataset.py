"""The parts that the assets of one labeled dataset share, with access to their engine and rows."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from weakref import WeakKeyDictionary

import dagster as dg

from dagster_llm_batch._dagster_private import folder_of
from dagster_llm_batch.assets.asset_rows import WHEN_KEY, choose_rows
from dagster_llm_batch.assets.keys import key_beside, upstream_key
from dagster_llm_batch.assets.options import DagsterOptions
from dagster_llm_batch.assets.output import Frame
from dagster_llm_batch.assets.rows_context import RowsContext, RowsFunction
from dagster_llm_batch.assets.sink import check_database
from dagster_llm_batch.assets.sql_rows import SqlRows
from dagster_llm_batch.assets.translator import DATASET_KEY, RESTORED_KEY, ROLE_TAG
from dagster_llm_batch.assets.upstream import UpstreamReader
from dagster_llm_batch.checks import Checks
from dagster_llm_batch.core.row_condition import RowCondition
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.io import HiveParquetIOManager
from dagster_llm_batch.metadata import fenced
from dagster_llm_batch.providers.registry import PROVIDERS
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.storage.names import check_place

if TYPE_CHECKING:
    from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

    from dagster_llm_batch.engine.engine import Engine

__all__ = ["Dataset", "compute_function", "dataset_of", "datasets_in"]


_Function = TypeVar("_Function", bound=Callable[..., Any])
_DECLARED: WeakKeyDictionary[Callable[..., Any], Dataset] = WeakKeyDictionary()


@dataclass(frozen=True)
class Dataset:
    """One labeled dataset in Dagster.

    `when`: the condition of the rows that belong to it, or None for all rows of the asset.
    """

    labeling: Labeling
    rows: dg.AssetKey | RowsFunction
    partitions_def: dg.PartitionsDefinition[Any] | None
    mode: Literal["deferred", "wait"]
    checks: Checks
    frame: Frame
    io_manager_key: str
    resource_key: str
    rows_resource_keys: frozenset[str]
    backfill_policy: dg.BackfillPolicy | None
    options: DagsterOptions
    when: RowCondition | None = None

    @property
    def name(self) -> str:
        """The name in ledger and command line: prefix and name as declared, whatever a translator makes of the key."""
        return self.labeling.asset

    @property
    def key(self) -> dg.AssetKey:
        """The key of the labels."""
        return self.labels_spec.key

    @property
    def batch_key(self) -> dg.AssetKey:
        return self.batch_spec.key

    @property
    def rejects_key(self) -> dg.AssetKey:
        return self.rejects_spec.key

    @cached_property
    def batch_spec(self) -> dg.AssetSpec:
        """The spec of the asset that submits."""
        query = self.rows if isinstance(self.rows, SqlRows) else None
        metadata: dict[str, Any] = {}
        version = [self.labeling.code_version]
        if query is not None:
            metadata["llm_batch/sql"] = dg.MetadataValue.md(fenced(query.sql))
            version.append(query.code_version)
        if self.when is not None:
            metadata[WHEN_KEY] = self.when.text
            version.append(self.when.digest)
        return self._spec(
            "batch",
            code_version="-".join(version),
            metadata=metadata,
            deps=self.upstreams,
            # A submission is not a table, and kinds describe tables.
            kinds=set(),
            automation_condition=self.options.condition(None),
            description=(
                f"Sends the rows of {self.name} to {self.labeling.model} in batches. Rows that are in flight or "
                "answered already are not sent again."
            ),
        )

    @cached_property
    def labels_spec(self) -> dg.AssetSpec:
        """The spec of the labeled table."""
        schema = self.labeling.reader.format.json_schema
        described = {} if schema is None else {"llm_batch/response_schema": dg.MetadataValue.json(dict(schema))}
        restored = {RESTORED_KEY: self.restored} if self.restored else {}
        return self._spec(
            "labels",
            code_version=self._labels_code_version,
            # To restore values, the rows are read again, but not the gold.
            deps=[self.batch_key, *(self._read_for_rows if self.restored else [])],
            kinds=self._kinds("table"),
            description=self.options.description or f"Rows labeled by {self.labeling.model}.",
            metadata={DATASET_KEY: self.name, **described, **restored},
        )

    @cached_property
    def rejects_spec(self) -> dg.AssetSpec:
        """The spec of the table of rows without a label."""
        return self._spec(
            "rejects",
            code_version=self._rejects_code_version,
            deps=[self.batch_key],
            kinds=self._kinds("table"),
            description=f"Rows of {self.name} that have no label, each with the reason and the reply.",
        )

    @property
    def _labels_code_version(self) -> str:
        """The code version of the labels. Restored values and evidence change the table, but not the requests."""
        restored = ["restored", *self.restored] if self.restored else []
        evidence = [] if self.labeling.evidence is None else ["evidence", self.labeling.evidence.digest]
        return "-".join([self.labeling.code_version, *restored, *evidence])

    @property
    def _rejects_code_version(self) -> str:
        """The code version of the rejects. Evidence changes the table if it rejects rows."""
        evidence = self.labeling.evidence
        rejecting = [] if evidence is None or not evidence.reject_missing else ["evidence", evidence.digest]
        return "-".join([self.labeling.code_version, *rejecting])

    @property
    def restored(self) -> list[str]:
        """The label columns in which values replace placeholders."""
        return sorted({*self.labeling.mask.restore}) if self.labeling.mask else []

    @property
    def rows_key(self) -> dg.AssetKey | None:
        """The upstream asset, or None if a function returns the rows."""
        return self.rows if isinstance(self.rows, dg.AssetKey) else None

    @property
    def upstreams(self) -> list[dg.AssetDep]:
        """The assets that the submission reads, as far as they are known."""
        own = (self.rows_key, self.gold_key)
        return self.options.all_deps([key for key in own if key is not None])

    @property
    def _read_for_rows(self) -> list[dg.AssetDep]:
        return self.options.all_deps([] if self.rows_key is None else [self.rows_key])

    @property
    def gold_key(self) -> dg.AssetKey | None:
        """The gold asset of a cascade's guarantee; None without such gold, or if the gold is a table."""
        gold = None if self.labeling.cascade is None else self.labeling.cascade.gold
        if isinstance(gold, str | dg.AssetKey | dg.AssetsDefinition | dg.AssetSpec):
            return upstream_key(gold)
        # Any other list is a table of rows.
        if isinstance(gold, list | tuple) and all(isinstance(part, str) for part in gold):
            return dg.AssetKey(gold)
        return None

    def with_gold(self, upstream: UpstreamReader) -> Labeling:
        """Return the labeling with the cascade's gold for one partition."""
        cascade = self.labeling.cascade
        if self.gold_key is None or cascade is None:
            return self.labeling
        return replace(self.labeling, cascade=replace(cascade, gold=upstream.table(self.gold_key)))

    def computed_by(self, function: _Function) -> _Function:
        """Register `function` as the one that computes the labels, so that `dataset_of` finds this dataset by it."""
        _DECLARED[function] = self
        return function

    def _spec(self, role: str, code_version: str | None = None, **more: Any) -> dg.AssetSpec:
        key = dg.AssetKey.from_user_string(self.name)
        return self.options.asset_spec(
            key if role == "labels" else key_beside(key, role),
            role=role,
            dataset=self.name,
            partitions_def=self.partitions_def,
            tags={ROLE_TAG: role},
            code_version=code_version or self.labeling.code_version,
            skippable=True,
            **more,
        )

    def _kinds(self, *more: str) -> set[str]:
        # The registry lacks providers that users define.
        entry = PROVIDERS.get(self.labeling.provider)
        return {*more, (entry and entry.kind) or self.labeling.provider}

    def resource(self, context: dg.AssetExecutionContext) -> LLMBatchResource:
        """Return the configured LLMBatchResource."""
        resource = getattr(context.resources, self.resource_key)
        if not isinstance(resource, LLMBatchResource):
            msg = f"The resource '{self.resource_key}' is a {type(resource).__name__}; it must be an LLMBatchResource."
            raise ConfigError(msg)
        return resource

    def check_destinations(self, bound: dg.ResourceDefinition) -> None:
        """Raise ConfigError if the resource that Dagster binds to the dataset does not allow its destinations."""
        # A resource that is configured at launch is only known in the run.
        resource = getattr(bound, "llm_batch_resource", None)
        if isinstance(resource, LLMBatchResource):
            resource.check_destinations(self.labeling)

    def check_former_names(self, datasets: Mapping[str, Dataset]) -> None:
        """Raise ConfigError if another dataset has, or had, one of this dataset's former names.

        A dataset that still has the name would be emptied. If two datasets took over the same name, the second would
        pay for all rows again.
        """
        for name in self.labeling.resend.former_names:
            if name in datasets:
                raise ConfigError(
                    f"resend.former_names of '{self.name}' has '{name}', which is in the definitions. Take it out of "
                    "one of the two."
                )
            others = [
                o.name for o in datasets.values() if name in o.labeling.resend.former_names and o.name != self.name
            ]
            if others:
                raise ConfigError(
                    f"'{name}' is among resend.former_names of '{self.name}' and of '{others[0]}'. Only one asset "
                    "can take over its submissions: remove the name from the other asset."
                )

    def check_restored_rows(self, rows: dg.AssetSpec | None) -> None:
        """Raise ConfigError if the asset of the rows has restored values that this dataset would send or store.

        Such a chain would undo the mask of the dataset before it.
        """
        restored = frozenset[str]() if rows is None else frozenset(rows.metadata.get(RESTORED_KEY, ()))
        labeling = self.labeling
        used = labeling.prompt.content(restored, labeling.key) | (restored & {*labeling.keep, labeling.key})
        if read := sorted(used - {*(labeling.mask.columns if labeling.mask else ())}):
            assert rows is not None
            raise ConfigError(
                f"'{self.name}' reads {', '.join(read)} of {rows.key.to_user_string()}, in which Mask.restore puts "
                f"values of rows, so they would be sent and stored. Name these columns in the mask of the prompt of "
                f"'{self.name}', leave them out of its prompt, keep and key, or restore nothing there. Nothing was "
                "sent."
            )

    def engine(self, context: dg.AssetExecutionContext) -> Engine:
        """Return the engine of the configured LLMBatchResource."""
        return self.resource(context).engine()

    def upstream(self, context: dg.AssetExecutionContext, partition: str | None) -> UpstreamReader:
        """Return the reader for the rows of one partition in a run."""
        return UpstreamReader.of_run(context, partition, self.upstreams)

    def check_sink(self, manager: Any, partition: str | None, instance: dg.DagsterInstance, graph: AssetGraph) -> None:
        """Raise InputError if the labels' IO manager is known to be unable to store this partition.

        Raises ConfigError if it cannot store any partition. `graph` holds the assets as the code location has them.
        """
        columns = {self.labeling.key, *self.labeling.keep}
        check_database([self.labels_spec, self.rejects_spec], graph, manager, self.frame, columns)
        if partition is None or self.partitions_def is None:
            return
        if isinstance(manager, HiveParquetIOManager):
            manager.check_partition(self.key, partition, self._earlier(partition, instance))
        elif (folder := folder_of(manager)) is not None:
            what = f"The table of {self.key.to_user_string()}, partition {partition},"
            check_place("/".join([folder, *self.key.path, partition]), what)

    def _earlier(self, partition: str, instance: dg.DagsterInstance) -> Iterator[str]:
        """Yield the keys before a partition's key. Keys of time are skipped: they differ in more than letters."""
        if self.partitions_def is None or isinstance(self.partitions_def, dg.TimeWindowPartitionsDefinition):
            return
        for key in self.partitions_def.get_partition_keys(dynamic_partitions_store=instance):
            if key == partition:
                return
            yield key

    @contextmanager
    def read_rows(self, context: dg.AssetExecutionContext, upstream: UpstreamReader) -> Iterator[Any]:
        """Yield the rows of one partition, from the upstream asset or the function. Read them within the block.

        To find the rows of existing labels, read those of `replace(dataset, when=None)`: they may no longer meet it.
        """
        if isinstance(self.rows, dg.AssetKey):
            read = self.labeling.columns_read
            more = frozenset[str]() if self.when is None else self.when.columns
            with upstream.rows(self.rows, self.labeling.key, read if read is None else {*read, *more}) as rows:
                yield rows if self.when is None else choose_rows(rows, self.when, read, upstream)
        else:
            yield self.rows(RowsContext(upstream.partition, context, upstream))


def compute_function(definition: dg.AssetsDefinition) -> Callable[..., Any] | None:
    """Return the function that computes these assets, or None. Dagster's copies of the definition share it."""
    node = definition.node_def if definition.is_executable else None
    function = getattr(node.compute_fn, "decorated_fn", None) if isinstance(node, dg.OpDefinition) else None
    # A component may wrap the function in its `execute`.
    return None if function is None else inspect.unwrap(function)


def dataset_of(definitions: Iterable[dg.AssetsDefinition]) -> Dataset:
    """Find the Dataset behind these definitions. Raises ConfigError if `llm_batch_assets` did not make them.

    Dagster copies definitions (with other groups, tags or conditions), but the copies keep the function that computes.
    """
    for definition in definitions:
        function = compute_function(definition)
        if function is not None and (declared := _DECLARED.get(function)):
            return declared
    msg = "These are not labels of llm_batch_assets. Give its return value, for example candidates=ticket_labels."
    raise ConfigError(msg)


def datasets_in(definitions: Iterable[dg.AssetsDefinition]) -> dict[str, Dataset]:
    """Return the labeled datasets among the assets, by name. Raises ConfigError if two share a name, since the ledger
    would mix their rows.
    """
    datasets: dict[str, Dataset] = {}
    for definition in definitions:
        if definition.is_executable and "labels" in {spec.tags.get(ROLE_TAG) for spec in definition.specs}:
            dataset = dataset_of([definition])
            other = datasets.setdefault(dataset.name, dataset)
            if other.key != dataset.key:
                # Dagster lists assets in varying order. They are sorted so that the message stays the same.
                first, second = sorted(each.key.to_user_string() for each in (other, dataset))
                raise ConfigError(
                    f"{first} and {second} are both declared as {dataset.name}, their name in the ledger: answers of "
                    "one would be taken for the other's. Give one of them another name= or key_prefix=. A "
                    "translator does not change the name in the ledger."
                )
    return datasets
