"""The code location that a command works with, found and loaded as Dagster's own commands do it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from importlib.machinery import PathFinder
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any
from urllib.request import url2pathname

import click
import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

from dagster_llm_batch._dagster_private import env_file, load_repository, reason_of_tick
from dagster_llm_batch.assets.dataset import Dataset, datasets_in
from dagster_llm_batch.assets.translator import TABLE_KEY
from dagster_llm_batch.assets.upstream import UpstreamReader
from dagster_llm_batch.cli.output import age
from dagster_llm_batch.cli.partition_order import order_of, time_of
from dagster_llm_batch.cli.pointer import Pointer
from dagster_llm_batch.errors import ConfigError, InputError, LLMBatchError
from dagster_llm_batch.io import URI_KEY
from dagster_llm_batch.loop.status import Advice
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.sensors.target import is_switched_on
from dagster_llm_batch.text import plain_words

if TYPE_CHECKING:
    from dagster_llm_batch.evaluation.spec import EvaluationSpec

__all__ = ["CodeLocation"]

# A daemon that runs is seen every half minute.
_SILENT = timedelta(minutes=5)
_QUEUED_SEEN = 100
_EVENTS_AT_ONCE = 1_000


class CodeLocation:
    """A loaded code location with its Dagster instance: datasets, their resource, and their rows.

    `resource_key`: the resource whose datasets are looked at; None for all of them.
    """

    def __init__(
        self,
        pointer: Pointer,
        repository: dg.RepositoryDefinition,
        instance: dg.DagsterInstance,
        resource_key: str | None = None,
    ) -> None:
        self.pointer = pointer
        self.resource_key = resource_key
        self._repository = repository
        self._instance = instance

    @classmethod
    @contextmanager
    def load(cls, pointer: Pointer, resource_key: str | None = None) -> Iterator[CodeLocation]:
        """Load it. Variables of a `.env` file in the current folder are set meanwhile, as Dagster's commands do."""
        folder = pointer.working_directory or os.getcwd()  # noqa: PTH109 - Dagster wants text
        with ExitStack() as stack:
            stack.enter_context(_environment(env_file(os.getcwd())))  # noqa: PTH109 - as above
            stack.enter_context(_without_notices())
            # User code may print while it is imported. This must not mix with the command's output, which may be JSON.
            with contextlib.redirect_stdout(sys.stderr):
                repository = _load(pointer, folder)
            yield cls(pointer, repository, stack.enter_context(_instance()), resource_key)

    @cached_property
    def all_datasets(self) -> dict[str, Dataset]:
        """The labeled datasets of all resources, by their names in the ledger."""
        return datasets_in(self._repository.assets_defs_by_key.values())

    @cached_property
    def datasets(self) -> dict[str, Dataset]:
        """The labeled datasets that are looked at, by their names in the ledger."""
        return {
            name: dataset
            for name, dataset in self.all_datasets.items()
            if self.resource_key in (None, dataset.resource_key)
        }

    @cached_property
    def elsewhere(self) -> frozenset[str]:
        """Names in the ledger that belong to another resource: its datasets, and assets that send by themselves."""
        if self.resource_key is None:
            return frozenset()
        assets = self._repository.assets_defs_by_key.items()
        asking = {key.to_user_string() for key, made in assets if self.resource_key not in made.required_resource_keys}
        return frozenset(self.all_datasets.keys() | asking) - self.datasets.keys()

    @cached_property
    def evaluations(self) -> list[EvaluationSpec]:
        """The evaluations against gold, by their names."""
        from dagster_llm_batch.evaluation.spec import evaluations_in  # noqa: PLC0415 - few commands need them

        return evaluations_in(self._repository.assets_defs_by_key.values())

    def is_looked_after(self, dataset: Dataset) -> bool:
        """Return whether a sensor of this code location can ask for runs that land a dataset's labels."""
        return bool(self._sensors_of([dataset]))

    def _sensors_of(self, datasets: Iterable[Dataset]) -> list[dg.SensorDefinition]:
        """Return the sensors that can ask for runs that land the labels of any of these."""
        keys = {dataset.key for dataset in datasets}
        return [sensor for sensor in self._repository.sensor_defs if keys & self._asked_for(sensor)]

    def _asked_for(self, sensor: dg.SensorDefinition) -> AbstractSet[dg.AssetKey]:
        """Return the assets that a sensor can ask runs for: of its jobs, or of its selection."""
        # Conditions do not poll: where one asks for a run, it does so before or after the labels can land.
        if isinstance(sensor, dg.AutomationConditionSensorDefinition):
            return set()
        if sensor.asset_selection is not None:
            return sensor.asset_selection.resolve(self._repository.asset_graph)
        jobs = (self._repository.get_job(target.job_name) for target in sensor.targets)
        return {key for job in jobs for key in job.asset_layer.selected_asset_keys}

    def standstill(self) -> Advice | None:
        """Return why no process sends batches or materializes labels; None if one does.

        A dataset in the mode "wait" needs nobody: its run stays until the labels have landed.
        """
        deferred = [dataset for dataset in self.datasets.values() if dataset.mode == "deferred"]
        if not deferred:
            return None
        sensors = self._sensors_of(deferred)
        nobody = "Batches are not sent, and labels are not materialized"
        if not sensors:
            return Advice(
                f"{nobody}: the definitions have no sensor", "Add build_llm_batch_sensor() to the definitions' sensors"
            )
        if self._instance.is_ephemeral:
            return Advice("Cannot check Dagster's daemon: DAGSTER_HOME is not set here", "Set it as Dagster's")
        if (silence := _daemon_silence(self._instance)) is not None:
            return Advice(f"{nobody}: {silence}", "Start it, as by `dagster dev`, with this DAGSTER_HOME")
        troubles = []
        for sensor in sensors:
            if (found := _sensor_trouble(self._instance, sensor)) is None:
                return None
            troubles.append((sensor.name, found))
        name, (trouble, then) = troubles[0]
        return Advice(f"{nobody}: the sensor '{name}' {trouble}", then)

    def queued_runs(self) -> dict[str, list[str]]:
        """Return the ids of queued runs, which wait for Dagster's daemon, by the datasets that they submit or land."""
        queued = self._instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]), limit=_QUEUED_SEEN)
        runs = {
            name: [run.run_id for run in queued if {dataset.batch_key, dataset.key} & self._keys_of(run)]
            for name, dataset in self.datasets.items()
        }
        return {name: ids for name, ids in runs.items() if ids}

    def _keys_of(self, run: dg.DagsterRun) -> AbstractSet[dg.AssetKey]:
        if run.asset_selection or not self._repository.has_job(run.job_name):
            return run.asset_selection or set()
        return self._repository.get_job(run.job_name).asset_layer.selected_asset_keys

    @contextmanager
    def resource(self) -> Iterator[LLMBatchResource]:
        """Give the LLMBatchResource with its environment variables resolved. Raises click.UsageError where there are
        several, and none was named.
        """
        key = self.resource_key
        keys = sorted({dataset.resource_key for dataset in self.datasets.values()}) or ["llm_batch"]
        if key is None and len(keys) > 1:
            raise click.UsageError(
                f"The datasets of {self.pointer} use {len(keys)} resources: {', '.join(keys)}. Say "
                "which one with --resource."
            )
        key = key or keys[0]
        with self._resources({key}) as built:
            resource = getattr(built, key)
            if not isinstance(resource, LLMBatchResource):
                msg = f"The resource '{key}' is a {type(resource).__name__}; it must be an LLMBatchResource."
                raise ConfigError(msg)
            # Without a Dagster home the resource would make a new, empty ledger in this folder.
            if self._instance.is_ephemeral and None in (resource.ledger_url, resource.payload_root):
                raise click.UsageError(
                    f"The resource '{key}' of {self.pointer} keeps its ledger or its payloads below the Dagster home, "
                    "and DAGSTER_HOME is not set. Set it to the folder that Dagster runs with."
                )
            yield resource

    @property
    def instance(self) -> dg.DagsterInstance:
        """Dagster's instance."""
        return self._instance

    def partitions(self, asset: Dataset | dg.AssetSpec) -> list[str]:
        """Return the partition keys that an asset has now."""
        if asset.partitions_def is None:
            return []
        return list(asset.partitions_def.get_partition_keys(dynamic_partitions_store=self._instance))

    def tables_of(self, dataset: Dataset) -> list[dg.AssetKey]:
        """Return the assets that hold rows of a dataset: its labels, its rejects, and all that is made of these."""
        graph = self._repository.asset_graph
        found = {dataset.key: None, dataset.rejects_key: None}
        waiting = list(found)
        while waiting:
            children = graph.get(waiting.pop()).child_keys
            waiting += [child for child in sorted(children) if child not in found]
            found |= dict.fromkeys(sorted(children))
        return list(found)

    @property
    def specs(self) -> list[dg.AssetSpec]:
        """All assets that the definitions make."""
        return [spec for assets in self._repository.assets_defs_by_key.values() for spec in assets.specs]

    def stored_places(self, key: dg.AssetKey) -> dict[str, str | None]:
        """Return the partitions of an asset that were materialized ("" for an unpartitioned one), the newest last, each
        with where its IO manager stored it as Parquet, as far as it told Dagster.
        """
        partitions_def = self._repository.asset_graph.get(key).partitions_def
        if partitions_def is None:
            event = self._instance.get_latest_materialization_event(key)
            materialization = event and event.asset_materialization
            return {} if not materialization else {"": _place_of(materialization)}
        places: dict[str, str | None] = dict.fromkeys(self._instance.get_materialized_partitions(key))
        # The newest come first, and are those that count.
        told: dict[str, str | None] = {}
        cursor: str | None = None
        while len(told) < len(places):
            page = self._instance.fetch_materializations(key, limit=_EVENTS_AT_ONCE, cursor=cursor)
            for record in page.records:
                materialization = record.asset_materialization
                if record.partition_key in places and materialization is not None:
                    told.setdefault(record.partition_key, _place_of(materialization))
            if not page.has_more:
                break
            cursor = page.cursor
        return {each: told.get(each) for each in order_of(partitions_def, places, self._instance)}

    def materialized_at(self, key: dg.AssetKey) -> datetime | None:
        """Return when an asset was materialized last."""
        event = self._instance.get_latest_materialization_event(key)
        return datetime.fromtimestamp(event.timestamp, UTC) if event else None

    def figures_before(self, key: dg.AssetKey, partition: str) -> dict[str, float]:
        """Return the numbers in the metadata of the materialization before the last of a partition ("" for an asset
        without partitions); none where it is the first.
        """
        wanted = dg.AssetRecordsFilter(key, asset_partitions=[partition] if partition else None)
        records = self._instance.fetch_materializations(wanted, limit=2).records
        materialization = records[1].asset_materialization if len(records) > 1 else None
        values = materialization.metadata if materialization else {}
        return {name: float(value.value) for name, value in values.items() if isinstance(value.value, int | float)}

    def partitions_before(self, key: dg.AssetKey, partition: str) -> list[str]:
        """Return the materialized partitions of an asset before one in time, the newest first. They have the same key
        in each dimension that is not time. Empty for partitions without an order in time.
        """
        partitions_def = self._repository.asset_graph.get(key).partitions_def
        if partitions_def is None or (own := time_of(partitions_def, partition)) is None:
            return []
        found = [(each, time_of(partitions_def, each)) for each in self._instance.get_materialized_partitions(key)]
        earlier = [(time[1], each) for each, time in found if time and time[0] == own[0] and time[1] < own[1]]
        return [each for _, each in sorted(earlier, reverse=True)]

    @cached_property
    def tables_of_mistakes(self) -> dict[str, dg.AssetSpec]:
        """The tables with the mistakes that evaluations found, by the name of the evaluation."""
        found: dict[str, dg.AssetSpec] = {}
        for assets in self._repository.assets_defs_by_key.values():
            tables = {spec.metadata.get(TABLE_KEY): spec for spec in assets.specs}
            if "mistakes" in tables and None in tables:
                found[tables[None].key.to_user_string()] = tables["mistakes"]
        return found

    def mistakes(self, evaluation: str) -> dg.AssetSpec:
        """Return the table with the mistakes that an evaluation found. Raises click.UsageError if it is missing."""
        found = self.tables_of_mistakes
        if evaluation not in found:
            names = ", ".join(sorted(found)) or "none"
            raise click.UsageError(
                f"'{evaluation}' is no evaluation of {self.pointer} that has mistakes; those that have: {names}."
            )
        return found[evaluation]

    @contextmanager
    def rows(self, dataset: Dataset, partition: str | None) -> Iterator[tuple[Any, UpstreamReader]]:
        """Give the rows of a partition, as the submission's run would get them, with what read them."""
        upstream = UpstreamReader(
            self._repository.asset_graph,
            self._instance,
            dataset.batch_key,
            partition,
            dataset.upstreams,
            self._load,
            hint="DAGSTER_HOME is not set" if self._instance.is_ephemeral else "",
        )
        with self._resources(set(dataset.rows_resource_keys)) as built:
            values = {name: getattr(built, name) for name in dataset.rows_resource_keys}
            context = dg.build_asset_context(values, partition_key=partition, instance=self._instance)
            with dataset.read_rows(context, upstream) as rows:
                yield rows, upstream

    @contextmanager
    def io_manager(self, key: dg.AssetKey) -> Iterator[tuple[str, Any]]:
        """Give the key of the IO manager that stores an asset, and the IO manager itself."""
        self._check_known(key)
        name = self._repository.asset_graph.get(key).io_manager_key
        with self._resources({name}) as built:
            yield name, getattr(built, name)

    def check_sink(self, dataset: Dataset, partition: str | None) -> None:
        """Raise what Dataset.check_sink does, of the IO manager of its labels. Raises ConfigError if it is missing."""
        with self.io_manager(dataset.key) as (_, manager):
            dataset.check_sink(manager, partition, self._instance, self._repository.asset_graph)

    def load_asset(self, key: dg.AssetKey, partition: str | None) -> Any:
        """Return an asset, or one partition of it, as its IO manager stored it."""
        try:
            return self._load(key, partition)
        except FileNotFoundError as error:
            where = "" if not self._instance.is_ephemeral else " (DAGSTER_HOME is not set)"
            msg = f"The asset {key.to_user_string()} is not materialized{where}: {error}. Materialize it first."
            raise InputError(msg) from error

    def _load(self, key: dg.AssetKey, partition: str | None) -> Any:
        self._check_known(key)
        disabled = logging.root.manager.disable
        # IO managers log each file that they read.
        logging.disable(logging.DEBUG)
        try:
            # Dagster's IO managers of databases look for the dynamic partitions of a dimension without an instance.
            with dg.partition_loading_context(dynamic_partitions_store=self._instance):
                return self._repository.load_asset_value(key, instance=self._instance, partition_key=partition)
        except (FileNotFoundError, LLMBatchError):
            raise
        # An IO manager is the user's own, and raises whatever its store does.
        except Exception as error:
            name = key.to_user_string() + ("" if partition is None else f" ({partition})")
            io_manager = self._repository.asset_graph.get(key).io_manager_key
            raise InputError(
                f"The asset {name} cannot be loaded outside of a run: its IO manager '{io_manager}' raised "
                f"{type(error).__name__}: {plain_words(error)}. Let it load without a run, as "
                "`Definitions.load_asset_value` does; or materialize the submission, whose run loads the rows."
            ) from error
        finally:
            logging.disable(disabled)

    def _check_known(self, key: dg.AssetKey) -> None:
        if key not in self._repository.assets_defs_by_key:
            name = key.to_user_string()
            raise ConfigError(f"The asset {name} is not in {self.pointer}, so it cannot be loaded here.")

    @contextmanager
    def _resources(self, keys: set[str]) -> Iterator[Any]:
        """Set these resources up, and those that they need; take them down after the block."""
        # Definitions without an IO manager get Dagster's default. Its `fs_io_manager` prints a warning about itself.
        default = dg.FilesystemIOManager().get_resource_definition()
        known = {"io_manager": default, **self._repository.get_top_level_resources()}
        wanted: dict[str, dg.ResourceDefinition] = {}
        # Resources may need others, and these further ones.
        queue = sorted(keys)
        while queue:
            key = queue.pop()
            if key not in known:
                names = ", ".join(sorted(known)) or "none"
                raise ConfigError(f"There is no resource '{key}' in {self.pointer}; its resources: {names}.")
            wanted[key] = known[key]
            queue += sorted(known[key].required_resource_keys - wanted.keys())
        try:
            with dg.build_resources(wanted, instance=self._instance) as built:
                yield built
        except dg.DagsterInvalidConfigError as error:
            # The whole message may quote values, which may be secrets, so only the reason of each error is shown.
            reasons = "; ".join(_reason(problem.message) for problem in error.errors)
            raise ConfigError(f"The resources {', '.join(sorted(wanted))} are not configured: {reasons}") from error


def _place_of(materialization: dg.AssetMaterialization) -> str | None:
    """Return the Parquet file or Hive folder that an IO manager reported to Dagster."""
    for name in (URI_KEY, "uri", "path"):
        value = materialization.metadata.get(name)
        text = getattr(value, "value", None)
        if isinstance(text, str) and (text.endswith(".parquet") or (name == URI_KEY and not PurePath(text).suffix)):
            # Addresses of files have percent-encoded signs, such as the "=" of a Hive folder.
            return url2pathname(text.removeprefix("file://")) if text.startswith("file://") else text
    return None


def _reason(message: str) -> str:
    """Return Dagster's message about a setting, without a stack trace."""
    lines = message.partition("\nStack Trace:")[0].strip().splitlines()
    return re.sub(r"^[\w.]+Error: ", "", lines[-1])


def _daemon_silence(instance: dg.DagsterInstance) -> str | None:
    """Return the evidence that no daemon runs sensors; None after a recent heartbeat."""
    heartbeat = instance.get_daemon_heartbeats().get("SENSOR")
    if heartbeat is None:
        return "Dagster's daemon, which runs sensors, has never run here"
    silent = timedelta(seconds=time.time() - heartbeat.timestamp)
    return f"Dagster's daemon was last seen {age(silent)} ago" if silent > _SILENT else None


def _sensor_trouble(instance: dg.DagsterInstance, sensor: dg.SensorDefinition) -> tuple[str, str] | None:
    """Return why the sensor does nothing, and what to do; None where its last look went well."""
    states = [
        state
        for state in instance.all_instigator_state()
        if state.instigator_type.value == "SENSOR" and state.instigator_name == sensor.name
    ]
    if not is_switched_on(sensor, states):
        return "is switched off", "Switch it on: it is on the page Automation of Dagster's web page"
    ticks = [
        tick
        for state in states
        if is_switched_on(sensor, [state])
        for tick in instance.get_ticks(state.instigator_origin_id, state.selector_id, limit=1)
    ]
    if not ticks:
        return "has not looked yet", "It should within a minute; else Dagster's daemon does not run this code location"
    newest = max(ticks, key=lambda tick: tick.timestamp)
    if newest.is_failure:
        reason = plain_words(reason_of_tick(newest))
        return f"failed at its last look: {reason}", "Its ticks are on the page Automation of Dagster's web page"
    return None


def _instance() -> dg.DagsterInstance:
    if not os.environ.get("DAGSTER_HOME"):
        return dg.DagsterInstance.ephemeral()
    try:
        return dg.DagsterInstance.get()
    except dg.DagsterInvariantViolationError as error:
        raise click.UsageError(str(error)) from error
    # Dagster makes folders and databases there when it is opened, also for a look.
    except (OSError, SQLAlchemyError) as error:
        reason = plain_words(getattr(error, "orig", None) or error)
        raise ConfigError(
            f"Dagster's home, {os.environ['DAGSTER_HOME']} (DAGSTER_HOME), cannot be opened: {reason}. Let this user "
            "write there, or look from where Dagster runs."
        ) from error


def _load(pointer: Pointer, folder: str) -> dg.RepositoryDefinition:
    if not Path(folder).is_dir():
        raise click.UsageError(f"There is no folder {folder} to import from (-d).")
    if pointer.python_file and not Path(folder, pointer.python_file).is_file():
        raise click.UsageError(f"There is no file {Path(folder, pointer.python_file)}.")
    if pointer.module_name and not _is_there(pointer.module_name, folder):
        raise click.UsageError(f"There is no module {pointer.module_name}, neither in {folder} nor installed.")
    try:
        repository = load_repository(
            module_name=pointer.module_name,
            python_file=pointer.python_file,
            autoload_module=pointer.autoload_module,
            attribute=pointer.attribute,
            working_directory=folder,
        )
        if repository is not None:
            _validate(repository)
    except Exception as error:
        trace = _own_trace(error)
        raise ConfigError(f"Definitions cannot be loaded from {pointer}, in {folder}:\n{trace}") from error
    if repository is None:
        raise ConfigError(f"There are no Dagster definitions in {pointer}.")
    return repository


def _validate(repository: dg.RepositoryDefinition) -> None:
    """Make all that Dagster makes of definitions when it loads them: jobs, schedules, sensors and their selections."""
    repository.load_all_definitions()
    for sensor in repository.sensor_defs:
        if sensor.asset_selection is not None:
            sensor.asset_selection.resolve(repository.asset_graph)


def _own_trace(error: Exception) -> str:
    """Return the part of an error for a person: the last calls, unless all of them are Dagster's own."""
    here = Path(dg.__file__).parent
    ours = Path(__file__).parents[1]
    calls = traceback.extract_tb(error.__traceback__)
    if any(
        not Path(call.filename).is_relative_to(here) and not Path(call.filename).is_relative_to(ours) for call in calls
    ):
        return "".join(traceback.format_exception(error, limit=-5))
    # Dagster's last error may only name a job. Its cause has the reason.
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    return "\n".join("".join(traceback.format_exception_only(each)).strip() for each in chain)


def _is_there(module: str, folder: str) -> bool:
    """Return whether the package that holds this module can be found; imports nothing."""
    # Importing would run user code, and an ImportError would not tell a missing module from one that fails to import.
    top = module.partition(".")[0]
    return PathFinder.find_spec(top, [folder, *sys.path]) is not None


@contextmanager
def _without_notices() -> Iterator[None]:
    """Hide Dagster's notices about the maturity of its own parameters. Python's other warnings stay."""
    with warnings.catch_warnings():
        for category in (dg.BetaWarning, dg.PreviewWarning, dg.SupersessionWarning):
            warnings.simplefilter("ignore", category=category)
        yield


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
