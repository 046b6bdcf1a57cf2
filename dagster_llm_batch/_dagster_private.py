"""All imports of names that Dagster does not export, one function each, with the reason."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluation
from dagster._core.definitions.asset_checks.asset_check_evaluation import (
    AssetCheckEvaluationTargetMaterializationData as CheckTarget,
)
from dagster._core.definitions.data_version import (
    CODE_VERSION_TAG,
    DATA_VERSION_IS_USER_PROVIDED_TAG,
    DEFAULT_DATA_VERSION,
    NULL_EVENT_POINTER,
    get_input_data_version_tag,
    get_input_event_pointer_tag,
)
from dagster._core.definitions.decorators.op_decorator import DecoratedOpFunction
from dagster._core.definitions.partitions.utils import infer_partition_mapping
from dagster._core.definitions.reconstruct import ReconstructableJob, repository_def_from_target_def
from dagster._core.definitions.resource_requirement import (
    OpDefinitionResourceRequirement,
    ResourceKeyRequirement,
    ResourceRequirement,
)
from dagster._core.definitions.source_asset import SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION
from dagster._core.event_api import PartitionKeyFilter
from dagster._core.execution.plan.utils import build_resources_for_manager
from dagster._core.scheduler.instigation import InstigatorTick, TickStatus
from dagster._core.secrets.env_file import get_env_var_dict
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from dagster._core.storage.db_io_manager import DbIOManager
from dagster._grpc.utils import get_loadable_targets

if TYPE_CHECKING:
    from dagster._core.definitions.assets.graph.asset_graph import AssetGraph
    from dagster._core.definitions.partitions.subset.partitions_subset import PartitionsSubset

__all__ = [
    "CheckTarget",
    "Database",
    "asset_graph",
    "check_history",
    "check_target",
    "check_targets",
    "check_when_bound",
    "database_of",
    "env_file",
    "failed_evaluations",
    "failed_ticks",
    "folder_of",
    "has_failed",
    "inferred_mapping",
    "input_versions",
    "io_manager_surroundings",
    "last_evaluation",
    "load_asset",
    "load_repository",
    "load_stored",
    "newest_evaluations",
    "newest_storage_ids",
    "output_context",
    "provenance_tags",
    "reason_of_tick",
    "replace_function",
    "report_evaluation",
    "repository_of",
    "silent_result",
    "stored_partitions",
]

_ANY = dg.DagsterType(lambda _context, _value: True, "Stored", typing_type=Any)
"""Dagster type of loaded values: the IO manager decides the Python type."""

_PAGE = 200

# Errors that Dagster raises around an error of a sensor's function, in the code location and in the daemon.
_WRAPPERS = ("SensorExecutionError", "DagsterUserCodeProcessError", "DagsterResourceFunctionError")
_OWN_CLASS = re.compile(r"\A(?:dagster_llm_batch\.errors\.)?LLMBatchError: ")
_LONGEST_RUN_SECONDS = 7 * 86_400.0


def check_target(instance: dg.DagsterInstance, asset_key: dg.AssetKey, partition: str | None) -> CheckTarget | None:
    """Return the target that links a check evaluation to the newest materialization of a partition.

    In a run over several partitions, Dagster stores an `AssetCheckResult` without its partition, so gates downstream of
    it never open. A hand-made evaluation needs this target, which `dagster` does not export.
    """
    return check_targets(instance, asset_key, [partition])[partition]


def check_targets(
    instance: dg.DagsterInstance, asset_key: dg.AssetKey, partitions: Collection[str | None]
) -> dict[str | None, CheckTarget | None]:
    """Return the targets of `check_target` for many partitions at once; None for one without a materialization."""
    keys = [partition for partition in partitions if partition is not None]
    records = dg.AssetRecordsFilter(asset_key, asset_partitions=keys or None)
    targets: dict[str | None, CheckTarget | None] = {}
    cursor: str | None = None
    while len(targets) < len(partitions):
        # the newest first
        page = instance.fetch_materializations(records, limit=len(partitions), cursor=cursor)
        for record in page.records:
            # An asset without partitions ignores the partition of its materialization.
            partition = record.partition_key if keys else None
            targets.setdefault(
                partition,
                CheckTarget(storage_id=record.storage_id, run_id=record.run_id, timestamp=record.timestamp),
            )
        if not page.has_more:
            break
        cursor = page.cursor
    return {partition: targets.get(partition) for partition in partitions}


def inferred_mapping(
    mapping: dg.PartitionMapping | None,
    downstream: dg.PartitionsDefinition[Any] | None,
    upstream: dg.PartitionsDefinition[Any],
) -> dg.PartitionMapping:
    """Return the mapping that Dagster's graph will have, before there is a graph."""
    return infer_partition_mapping(mapping, downstream, upstream)


def io_manager_surroundings(context: dg.AssetExecutionContext, io_manager_key: str) -> Mapping[str, Any]:
    """Return the configuration and the resources of an IO manager of this step, as arguments to build a context.

    Some (DuckDB, Snowflake, BigQuery) take their connection from there, and a step gives these only to its IO manager.
    """
    step = context.get_step_execution_context()
    return {
        "resource_config": step.resolved_run_config.resources[io_manager_key].config,
        "resources": build_resources_for_manager(io_manager_key, step),
    }


def output_context(
    context: dg.AssetExecutionContext,
    asset: dg.AssetKey,
    partition: str | None,
    dagster_type: dg.DagsterType,
    around: Mapping[str, Any],
) -> dg.OutputContext:
    """Return the output context that Dagster would make for an asset of this step, narrowed to one partition.

    `around` is the return value of `io_manager_surroundings` for its IO manager.

    `dg.build_output_context` is for tests: it lacks run, step, op, job and log, and IO managers may ask for each.
    """
    step = context.get_step_execution_context()
    # The definition as the code location has it: specs may have been changed after the asset was made.
    node = step.job_def.asset_layer.get(asset)
    partitions_def = node.partitions_def
    return dg.OutputContext(
        step_key=step.step.key,
        name=context.assets_def.get_output_name_for_asset_key(asset),
        job_name=step.job_def.name,
        run_id=step.run_id,
        definition_metadata=node.metadata,
        # In a run over a range an output is stored once for each partition. Without a mapping key all of them have the
        # same identifier, and in a store that goes by it the last partition would replace the others.
        mapping_key=partition if _is_of_many(context) else None,
        op_def=step.op_def,
        dagster_type=dagster_type,
        log_manager=step.log,
        step_context=step,
        asset_key=asset,
        partition_key=partition,
        asset_partitions_def=partitions_def,
        asset_partitions_subset=_subset_of(partitions_def, partition),
        asset_spec=node.to_asset_spec(),
        **around,
    )


def _subset_of(partitions_def: dg.PartitionsDefinition[Any] | None, partition: str | None) -> PartitionsSubset | None:
    if partition is None or partitions_def is None:
        return None
    return partitions_def.empty_subset().with_partition_keys([partition])


def stored_partitions(context: dg.OutputContext) -> Sequence[str]:
    """Return the partitions that an output is stored as; empty for an asset without partitions.

    `context.has_partition_key` is about the run: of a job over assets with partitions and without it is true for both.
    A context that was built for a test has a key, and no step whose asset could be asked for its partitions.
    """
    if context.has_asset_partitions:
        # The run's key first: on the night the clock goes back, Dagster may add another hour.
        return [context.partition_key] if context.has_partition_key else context.asset_partition_keys
    is_built = context._step_context is None  # noqa: SLF001 - to ask for the step warns or raises
    return [context.partition_key] if is_built and context.has_partition_key else ()


def _is_of_many(context: dg.AssetExecutionContext) -> bool:
    """Return whether this run is over more than one partition."""
    if not context.has_partition_key_range:
        return False
    span = context.partition_key_range
    return bool(span.start != span.end)


def asset_graph(context: dg.AssetExecutionContext) -> AssetGraph:
    """Return the assets in the job of this run, with their partitions and mappings.

    The repository has them, too, but a run in a user's own process does not have a repository.
    """
    return context.op_execution_context.job_def.asset_layer.asset_graph


def load_asset(context: dg.AssetExecutionContext, asset: dg.AssetKey, partition: str | None) -> Any:
    """Load an upstream asset, or one partition of it, from where the run that materialized it last has put it.

    `context.load_asset_value` creates a new IO manager, so that one which keeps data in memory is empty. It also gives
    it neither the run nor the step of the asset. It is used if this step does not have the IO manager.
    """
    node = context.get_step_execution_context().job_def.asset_layer.get(asset)
    if node.io_manager_key not in context.op_execution_context.op_def.required_resource_keys:
        with dg.partition_loading_context(dynamic_partitions_store=context.instance):
            return context.load_asset_value(asset, partition_key=partition)
    definition = node.assets_def
    # An asset outside of this run's job has no output to be asked for; ours are named like their keys.
    name, op_def = asset.to_python_identifier(), None
    if definition.is_executable:
        name, op_def = definition.get_output_name_for_asset_key(asset), definition.get_op_def_for_asset_key(asset)
    return load_stored(context, node.to_asset_spec(), node.io_manager_key, partition, name=name, op_def=op_def)


def load_stored(
    context: dg.AssetExecutionContext,
    spec: dg.AssetSpec,
    io_manager_key: str,
    partition: str | None,
    *,
    name: str,
    op_def: dg.OpDefinition | None = None,
) -> Any:
    """Load any asset like `load_asset`, also one outside this run's job. `name`: the name of its output."""
    of_partition = dg.AssetRecordsFilter(spec.key, asset_partitions=None if partition is None else [partition])
    newest = next(iter(context.instance.fetch_materializations(of_partition, limit=1).records), None)
    around = io_manager_surroundings(context, io_manager_key)
    # Not `dg.build_input_context`: it makes a Dagster instance, with its databases, for each table that is read.
    stored = dg.OutputContext(
        step_key=None if newest is None else newest.event_log_entry.step_key,
        run_id=None if newest is None else newest.run_id,
        name=name,
        op_def=op_def,
        asset_key=spec.key,
        asset_spec=spec,
        definition_metadata=spec.metadata,
        **around,
    )
    given = dg.InputContext(
        asset_key=spec.key,
        upstream_output=stored,
        dagster_type=_ANY,
        log_manager=context.log,
        partition_key=partition,
        asset_partitions_subset=_subset_of(spec.partitions_def, partition),
        asset_partitions_def=spec.partitions_def,
        instance=context.instance,
        **around,
    )
    # Those of databases look for the dynamic partitions of a dimension without an instance.
    with dg.partition_loading_context(dynamic_partitions_store=context.instance):
        return getattr(context.resources, io_manager_key).load_input(given)


def repository_of(context: dg.AssetExecutionContext) -> dg.RepositoryDefinition | None:
    """Return the code location of this run; None for a run in a user's own process, where Dagster raises an error."""
    job = context.get_step_execution_context().job
    return job.repository.get_definition() if isinstance(job, ReconstructableJob) else None


def failed_evaluations(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, since: float
) -> Iterator[tuple[int, float, AssetCheckEvaluation]]:
    """Yield the evaluations of a check that failed since then, of all partitions, each with a number and its time.

    `dagster` exports only a way to the newest one, which in a run over several partitions belongs to one of them.
    """
    cursor: int | None = None
    while True:
        page = instance.event_log_storage.get_asset_check_execution_history(
            check, limit=_PAGE, cursor=cursor, status={AssetCheckExecutionRecordStatus.FAILED}
        )
        for record in page:
            if record.event is not None and record.event.timestamp > since and record.evaluation is not None:
                yield record.id, record.event.timestamp, record.evaluation
        # They are in the order in which they were planned, when their run began.
        if len(page) < _PAGE or page[-1].create_timestamp < since - _LONGEST_RUN_SECONDS:
            return
        cursor = page[-1].id


def check_history(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, limit: int
) -> Iterator[tuple[str | None, AssetCheckEvaluation]]:
    """Yield the last evaluations of a check, each with its partition; the newest first."""
    records = instance.event_log_storage.get_asset_check_execution_history(
        check,
        limit=limit,
        status={AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED},
    )
    for record in records:
        if record.evaluation is not None:
            yield record.partition, record.evaluation


def failed_ticks(
    instance: dg.DagsterInstance, origin_id: str, selector_id: str, since: float
) -> Sequence[InstigatorTick]:
    """Return all ticks of a sensor that failed since then. `dagster` exports no `TickStatus` to ask for them by."""
    return instance.get_ticks(origin_id, selector_id, after=since, statuses=[TickStatus.FAILURE])


def reason_of_tick(tick: InstigatorTick) -> str:
    """Return the message of the error that a sensor raised, which Dagster stores as the cause of its own error.

    The messages of this package's errors name their own causes, and the next step.
    """
    error = tick.error
    if error is None:
        return "Dagster stored no reason; see the tick's log in the UI."
    while error.cause is not None and error.cls_name in _WRAPPERS:
        error = error.cause
    return _OWN_CLASS.sub("", error.message)


def last_evaluation(
    instance: dg.DagsterInstance, check: dg.AssetCheckKey, partition: str | None, *, run_id: str | None = None
) -> AssetCheckEvaluation | None:
    """Return the newest evaluation of a check on a partition, skipping planned ones without a result.

    With `run_id`, None if the newest one belongs to another run.
    """
    records = instance.event_log_storage.get_asset_check_execution_history(
        check,
        limit=1,
        status={AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED},
        partition_filter=PartitionKeyFilter(key=partition),
    )
    return next((record.evaluation for record in records if run_id in (None, record.run_id)), None)


def newest_evaluations(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> dict[str, AssetCheckEvaluation]:
    """Return the newest evaluation of a check on each partition that has one; planned ones are passed over."""
    newest: dict[str, AssetCheckEvaluation] = {}
    cursor: int | None = None
    while True:
        page = instance.event_log_storage.get_asset_check_execution_history(
            check,
            limit=_PAGE,
            cursor=cursor,
            status={AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED},
        )
        for record in page:
            if record.evaluation is not None and record.evaluation.partition is not None:
                newest.setdefault(record.evaluation.partition, record.evaluation)
        if len(page) < _PAGE:
            return newest
        cursor = page[-1].id


def has_failed(instance: dg.DagsterInstance, check: dg.AssetCheckKey) -> bool:
    """Return whether the check has ever failed, on any partition."""
    failed = {AssetCheckExecutionRecordStatus.FAILED}
    return bool(instance.event_log_storage.get_asset_check_execution_history(check, limit=1, status=failed))


def report_evaluation(context: dg.AssetExecutionContext, evaluation: AssetCheckEvaluation) -> None:
    """Store an evaluation of a check that is not this step's, as an event of this run.

    `report_runless_asset_event` takes one for each check and partition, ever.
    """
    event = dg.DagsterEvent.asset_check_evaluation(context.get_step_execution_context(), evaluation)
    context.instance.report_dagster_event(event, context.run.run_id)


def env_file(folder: str) -> Mapping[str, str]:
    """Return the variables of the `.env` file there, which all of Dagster's commands read."""
    return get_env_var_dict(folder)


def load_repository(
    *,
    module_name: str | None,
    python_file: str | None,
    autoload_module: str | None,
    attribute: str | None,
    working_directory: str,
) -> dg.RepositoryDefinition | None:
    """Return the definitions in a module or file: Dagster's, lazy or not, a repository, or the assets in it.

    None for any other module or file. Dagster exports loading for `dg` projects only.
    """
    [target, *_] = get_loadable_targets(
        python_file=python_file,
        module_name=module_name,
        package_name=None,
        autoload_defs_module_name=autoload_module,
        working_directory=working_directory,
        attribute=attribute,
        resolve_lazy_defs=False,
    )
    return repository_def_from_target_def(target.target_definition)


def newest_storage_ids(
    instance: dg.DagsterInstance, key: dg.AssetKey, partitions: Collection[str]
) -> Mapping[str, int]:
    """Return the storage id of the newest materialization of each of these partitions, as far as there is one."""
    kind = dg.DagsterEventType.ASSET_MATERIALIZATION
    return instance.get_latest_storage_id_by_partition(key, kind, set(partitions))


def input_versions(
    context: dg.AssetExecutionContext, asset: dg.AssetKey, known: dg.AssetKey
) -> Mapping[dg.AssetKey, tuple[str, int | None]]:
    """Return the data version and the storage id of each asset that this one depends on, except `known`.

    Dagster noted them when the step began. The tags of a run of one partition have the same source.
    """
    step = context.get_step_execution_context()
    versions: dict[dg.AssetKey, tuple[str, int | None]] = {}
    for key in step.job_def.asset_layer.get(asset).parent_keys - {known}:
        found = step.maybe_fetch_and_get_input_asset_version_info(key)
        version = DEFAULT_DATA_VERSION if found is None or found.data_version is None else found.data_version
        versions[key] = (version.value, None if found is None else found.storage_id)
    return versions


def provenance_tags(code_version: str, inputs: Mapping[dg.AssetKey, tuple[str, int | None]]) -> dict[str, str]:
    """Return the tags that Dagster reads to decide whether a materialization is stale.

    `inputs`: the data version of each input, and the storage id of its materialization.
    """
    tags = {CODE_VERSION_TAG: code_version, DATA_VERSION_IS_USER_PROVIDED_TAG: "true"}
    for key, (version, pointer) in inputs.items():
        tags[get_input_data_version_tag(key)] = version
        tags[get_input_event_pointer_tag(key)] = NULL_EVENT_POINTER if pointer is None else str(pointer)
    return tags


def replace_function(
    definition: dg.AssetsDefinition, decorate: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Replace the compute function of newly made assets by its decorated version. The assets must not be in use yet.

    Dagster makes an op from a function and gives no way to another one. All else of the op stays as it is.
    """
    op = definition.op
    function = op.compute_fn
    assert isinstance(function, DecoratedOpFunction)
    op._compute_fn = DecoratedOpFunction(decorate(function.decorated_fn))  # noqa: SLF001


class _CheckedRequirement(ResourceKeyRequirement):
    """A required resource that is also looked at when Dagster binds it."""

    def __init__(self, required: ResourceKeyRequirement, check: Callable[[Any], None]) -> None:
        self._required = required
        self._check = check

    @property
    def key(self) -> str:
        return self._required.key

    @property
    def expected_type(self) -> type:
        return self._required.expected_type

    def describe_requirement(self) -> str:
        return self._required.describe_requirement()

    def ensure_satisfied(self, resource_defs: Mapping[str, dg.ResourceDefinition]) -> None:
        super().ensure_satisfied(resource_defs)
        self._check(resource_defs[self.key])


def check_when_bound(definition: dg.AssetsDefinition, key: str, check: Callable[[dg.ResourceDefinition], None]) -> None:
    """Have Dagster call `check` with the resource `key` whenever it binds it to these assets, as when definitions load.

    Dagster itself checks then only that the resource is there. A copy of the assets with other deps loses this check.
    """
    op = definition.op
    declared = op.get_resource_requirements

    def requirements(*args: Any, **kwargs: Any) -> Iterator[ResourceRequirement]:
        for required in declared(*args, **kwargs):
            is_it = isinstance(required, OpDefinitionResourceRequirement) and required.key == key
            yield _CheckedRequirement(required, check) if is_it else required  # type: ignore[arg-type]  # as above

    op.get_resource_requirements = requirements  # type: ignore[method-assign]


def silent_result(asset: dg.AssetKey) -> dg.MaterializeResult[Any]:
    """Return the result of an asset that lets the steps downstream of it begin, and makes no event of the asset.

    In a run over a range a result is of all partitions: Dagster would materialize each of them once more. This mark is
    Dagster's own, for outputs whose events the step has yielded.
    """
    return dg.MaterializeResult(asset_key=asset, metadata={SYSTEM_METADATA_KEY_SOURCE_ASSET_OBSERVATION: True})


def silent_check_outputs(
    context: dg.AssetExecutionContext, assets: Collection[dg.AssetKey]
) -> Iterator[dg.Output[None]]:
    """Yield the outputs of the checks of these assets, without an event of a check.

    Dagster 1.13.0 skips the steps downstream of a blocking check without an output, and 1.13.27 logs a warning. A
    failed blocking check ends the step by its evaluation in both.
    """
    for check in context.selected_asset_check_keys:
        if check.asset_key in assets:
            yield dg.Output(None, context.assets_def.get_output_name_for_asset_check_key(check))


class Database(NamedTuple):
    """Properties of an IO manager of a database.

    Attributes:
        types: The classes that it stores.
        wants_partition_expr: It finds partitions by that metadata of an asset.
        is_duckdb: The database is DuckDB.
    """

    types: tuple[type, ...]
    wants_partition_expr: bool
    is_duckdb: bool


def database_of(manager: object) -> Database | None:
    """Return the properties of one of Dagster's IO managers of databases; None for other IO managers.

    Dagster keeps it to itself, and asks only when it stores: after all is paid for.
    """
    if not isinstance(manager, DbIOManager):
        return None
    slices = type(manager)._get_table_slice is DbIOManager._get_table_slice  # noqa: SLF001
    client = manager._db_client  # noqa: SLF001
    kind = client if isinstance(client, type) else type(client)
    return Database(tuple(manager._handlers_by_type), slices, kind.__module__.startswith("dagster_duckdb"))  # noqa: SLF001


def folder_of(manager: object) -> str | None:
    """Return the folder of an IO manager that stores assets by their paths, like Dagster's own; None for others.

    It is a private attribute of Dagster's class, read here before the user pays for data to store there.
    """
    base = getattr(manager, "_base_path", None)
    return str(base) if isinstance(manager, dg.UPathIOManager) and base is not None else None
