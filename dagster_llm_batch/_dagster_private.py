"""The only place that imports what Dagster does not export. One function each, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.definitions.reconstruct import repository_def_from_target_def
from dagster._core.execution.plan.utils import build_resources_for_manager
from dagster._core.secrets.env_file import get_env_var_dict
from dagster._grpc.utils import get_loadable_targets

__all__ = ["check_target", "env_file", "io_manager_surroundings", "load_repository"]


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


def io_manager_surroundings(context: dg.AssetExecutionContext, io_manager_key: str) -> Mapping[str, Any]:
    """What an output context needs of the run, as arguments of `dg.build_output_context`.

    Dagster's own output contexts carry the IO manager's configuration and resources; some (DuckDB, Snowflake,
    BigQuery) take their connection from there. A hand-made one has neither, and a step tells them to nobody else.
    """
    step = context.get_step_execution_context()
    return {
        "resource_config": step.resolved_run_config.resources[io_manager_key].config,
        "resources": build_resources_for_manager(io_manager_key, step),
    }


def env_file(folder: str) -> Mapping[str, str]:
    """The variables of the `.env` file there, which all of Dagster's commands read."""
    return get_env_var_dict(folder)


def load_repository(
    *,
    module_name: str | None,
    python_file: str | None,
    autoload_module: str | None,
    attribute: str | None,
    working_directory: str,
) -> dg.RepositoryDefinition | None:
    """What Dagster makes of a module or file: definitions, lazy or not, a repository, or the assets in it.

    None where it is none of these. Dagster exports loading for `dg` projects only.
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
