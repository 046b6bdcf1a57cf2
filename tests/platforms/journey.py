"""Run a platform: load it, plan and send, let batches end, tick the sensors, materialize, measure, and send again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import duckdb
import pyarrow as pa
from click.testing import CliRunner

from dagster_llm_batch._dagster_private import load_repository
from dagster_llm_batch.checks import PROMISE
from dagster_llm_batch.cli.main import main
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.testing.emulator import (
    DEFAULT_KEY,
    Emulator,
    Reply,
    VendorLimits,
    simulated_answer,
)
from tests.platforms.build import SENSORS, forget, write_project
from tests.platforms.dataset_kinds import key_prefix, ledger_name, name_of, resource_key
from tests.platforms.evaluations import NAME, partitions_of
from tests.platforms.platform_value import Platform
from tests.platforms.tickets import CUSTOMERS, partition_keys
from tests.platforms.vendors import Places, environment

__all__ = ["Command", "Journey", "Servers", "Tick"]

_ROUNDS = 14
_QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Servers:
    """Servers that platforms share: an S3 server, and a place for ledgers in PostgreSQL if it runs."""

    s3_url: str
    new_database: Any = None


@dataclass(frozen=True)
class Command:
    """The result of a command of the command line."""

    code: int
    output: str
    document: Any = None


@dataclass(frozen=True)
class Tick:
    """One tick of a sensor: the runs it requested, or its error."""

    sensor: str
    requests: tuple[Any, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Failure:
    """The reason why a step of a run failed, or a check of an asset. `step` names the step or check."""

    step: str
    why: str


@dataclass
class Journey:
    """One platform on its way, and all that was observed."""

    platform: Platform
    folder: Path
    emulator: Emulator
    instance: dg.DagsterInstance
    file: Path
    repository: Any = None
    ticks: list[Tick] = field(default_factory=list)
    failures: dict[str, list[str]] = field(default_factory=dict)
    landing_runs: dict[tuple[str, str | None], int] = field(default_factory=dict)
    _run_keys: set[tuple[str, str]] = field(default_factory=set)
    _tables: dict[tuple[str, str | None], list[dict[str, Any]]] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def begin(cls, platform: Platform, folder: Path, servers: Servers, setenv: Any) -> Iterator[Journey]:
        """Start the emulator and the instance, and write the project. `setenv` sets a variable, or removes it."""
        home = folder / "home"
        home.mkdir(parents=True)
        (home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        setenv("DAGSTER_HOME", str(home))
        keys = {platform[f"{slot}.vendor"]: platform[f"{slot}.key"] for slot in platform.slots}
        keys.setdefault("openai", "right")
        for vendor in keys:
            setenv(f"PLATFORM_{vendor.upper()}_KEY", None)
        for name, value in environment(keys).items():
            setenv(name, value)
        url = f"sqlite:///{folder}/ledger.sqlite"
        if platform["ledger"] == "postgresql" and servers.new_database is not None:
            url = servers.new_database()
        with ExitStack() as stack:
            emulator = stack.enter_context(
                Emulator(
                    answer=_answer,
                    keys={DEFAULT_KEY},
                    s3_url=servers.s3_url,
                    limits=VendorLimits(bedrock_min_records=1),
                )
            )
            instance = stack.enter_context(dg.DagsterInstance.get())
            instance.add_dynamic_partitions(CUSTOMERS, ["c1", "c2"])
            places = Places.of(emulator, folder, url, servers.s3_url)
            file = write_project(platform, places, lambda kind: partition_keys(kind, instance))
            stack.callback(forget, folder)
            yield cls(platform, folder, emulator, instance, file)

    def load(self) -> None:
        """Load the definitions as Dagster does."""
        forget(self.folder)
        self.repository = load_repository(
            module_name=None,
            python_file=str(self.file),
            autoload_module=None,
            attribute=None,
            working_directory=str(self.folder),
        )
        # Dagster makes a job on first use, and errors in it would come only then.
        for job in self.repository.get_all_jobs():
            assert job.name

    def command(self, *arguments: str, as_json: bool = True) -> Command:
        """Run a command of the command line in this process. Raises the command's own exceptions."""
        forget(self.folder)
        given = [*arguments, "-f", str(self.file), *(["--json"] if as_json else [])]
        result = CliRunner().invoke(main, given, prog_name="dagster-llm-batch")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        document = None
        if as_json and result.stdout.strip().startswith(("{", "[")):
            document = json.loads(result.stdout)
        return Command(result.exit_code, result.output, document)

    def on_resource(self, slot: str) -> tuple[str, ...]:
        """Return the option that names the resource of a dataset, or nothing if all datasets share one resource."""
        if self.platform["sensors"] != "each" or len(self.platform.slots) == 1:
            return ()
        return ("--resource", resource_key(self.platform, slot))

    def plan(self, slot: str) -> Command:
        """Run `plan` for all partitions of a dataset."""
        chosen = [part for key in self.keys(slot) if key is not None for part in ("--partition", key)]
        return self.command("plan", ledger_name(self.platform, slot), *chosen, *self.on_resource(slot))

    def keys(self, slot: str) -> list[str | None]:
        """Return the partitions of a dataset."""
        return partition_keys(self.platform[f"{slot}.partitions"], self.instance)

    def key(self, name: str) -> dg.AssetKey:
        """Return the key of an asset by its name."""
        return dg.AssetKey([*key_prefix(self.platform), name])

    def run(
        self, names: list[str], partition: str | None = None, tags: dict[str, str] | None = None, config: Any = None
    ) -> str | None:
        """Run these assets in this process, and return why the run failed."""
        return _joined(self._run({self.key(name) for name in names}, partition, tags or {}, config))

    def _run(self, keys: set[dg.AssetKey], partition: str | None, tags: dict[str, str], config: Any) -> list[Failure]:
        job = self.repository.get_implicit_global_asset_job_def().get_subset(asset_selection=keys)
        # In production, Dagster runs each run in a separate process. In a single process, its cache would return the
        # keys of another time window with the same local times, which exists when the clock goes back.
        dg.TimeWindowPartitionsDefinition.get_partition_keys_in_time_window.cache_clear()
        own = {name: value for name, value in (config or {}).items() if name != "execution"}
        with self._moving():
            result = job.execute_in_process(
                instance=self.instance,
                partition_key=partition,
                tags=tags,
                raise_on_error=False,
                run_config={**_QUIET, **own},
                resources=self.repository.get_top_level_resources(),
            )
        if result.success:
            return []
        failures = {event.step_key: event.step_failure_data for event in result.all_events if event.is_step_failure}
        failed = [one for one in result.get_asset_check_evaluations() if not one.passed]
        by_checks = all("DagsterAssetCheckFailedError" in str(one.error_display_string) for one in failures.values())
        # Such a check only reports rows; its asset is materialized.
        errors = [one for one in failed if one.severity is dg.AssetCheckSeverity.ERROR]
        if failures and by_checks and errors and all(self._may_fail(one) for one in errors):
            return []
        told = [
            Failure(str(step), f"{one.error_display_string} {one.user_failure_data}") for step, one in failures.items()
        ]
        for one in failed:
            name = one.asset_key.path[-1]
            told.append(Failure(name, f"{name}: {one.check_name}: {one.description}"))
        return told or [Failure("", "failed")]

    def _may_fail(self, check: Any) -> bool:
        """Return whether a check is a cascade's guarantee, which partial labels cannot keep.

        Datasets here ask for no coverage and no parse rate.
        """
        slots = [slot for slot in self.platform.slots if name_of(slot) == check.asset_key.path[-1]]
        rejecting = {"refused", "all_refused", "garbled"}
        return check.check_name == PROMISE and any(
            self.platform[f"{slot}.rule"] == "cascade" and self.platform[f"{slot}.content"] in rejecting
            for slot in slots
        )

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Let batches move while a run waits for them."""
        if not any(self.platform[f"{slot}.mode"] == "wait" for slot in self.platform.slots):
            yield
            return
        over = threading.Event()

        def move() -> None:
            while not over.wait(0.02):
                self.emulator.tick()

        thread = threading.Thread(target=move, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _partitions(self) -> AbstractContextManager[Any]:
        """Give dynamic partitions to Dagster's IO managers of databases, which look for them without an instance."""
        return dg.partition_loading_context(dynamic_partitions_store=self.instance)

    def materialize_upstreams(self) -> None:
        """Materialize the assets that datasets and evaluations read."""
        for slot in self.platform.slots:
            if self.platform[f"{slot}.rows"] == "upstream":
                for key in self.keys(slot):
                    with self._partitions():
                        why = self.run([f"tickets_{slot}"], key)
                    assert why is None, why
        if self.platform["evaluation"] != "none":
            assert (why := self.run(["gold", "all_tickets"])) is None, why

    def send(self) -> None:
        """Submit all partitions of all datasets; in "wait", labels are materialized too.

        A run has all partitions of a dataset, or one, or one of several datasets together.
        """
        # Sensors do not tick here while a run waits: it would wait until other datasets lose their places in a full
        # queue.
        by_mode = {"wait": 0, "deferred": 1 if self.platform["queue"] != "none" else 0}
        slots = sorted(self.platform.slots, key=lambda slot: by_mode[self.platform[f"{slot}.mode"]])
        if self.platform["runs"] == "together":
            for group in self._groups(slots):
                for key in self.keys(group[0]):
                    self._send(group, key)
            return
        for slot in slots:
            keys = self.keys(slot)
            if self.platform["runs"] == "range" and len(keys) > 1:
                span = {
                    "dagster/asset_partition_range_start": str(keys[0]),
                    "dagster/asset_partition_range_end": str(keys[-1]),
                }
                self._send([slot], None, span)
                continue
            for key in keys:
                self._send([slot], key)

    def _groups(self, slots: list[str]) -> list[list[str]]:
        """Return the datasets of each run: those of the same partitions, together with all unpartitioned ones."""
        kinds = {slot: self.platform[f"{slot}.partitions"] for slot in slots}
        without = [slot for slot in slots if kinds[slot] == "none"]
        groups = [
            [slot for slot in slots if kinds[slot] == kind] for kind in dict.fromkeys(kinds.values()) if kind != "none"
        ]
        return [[*group, *without] for group in groups] or [without]

    def _send(self, slots: list[str], partition: str | None, tags: dict[str, str] | None = None) -> None:
        keys = set()
        for slot in slots:
            keys.add(self.key(f"{name_of(slot)}_batch"))
            if self.platform[f"{slot}.mode"] == "wait":
                keys |= {self.key(name_of(slot)), self.key(f"{name_of(slot)}_rejects")}
        failures = self._run(keys, partition, tags or {}, None)
        for slot in slots:
            mine = [one for one in failures if len(slots) == 1 or not one.step or name_of(slot) in one.step]
            if (why := _joined(mine)) is not None:
                self.failures.setdefault(slot, []).append(why)

    def tick(self) -> list[Tick]:
        """Let each sensor tick once, and launch the runs it requests, like Dagster's daemon."""
        looks = [self._look(sensor) for sensor in self.repository.sensor_defs if sensor.name in SENSORS]
        self.ticks += looks
        for look in looks:
            for request in look.requests:
                # Dagster launches each run key of a sensor only once.
                if (look.sensor, str(request.run_key)) not in self._run_keys:
                    self._run_keys.add((look.sensor, str(request.run_key)))
                    self._launch(look.sensor, request)
        return looks

    def _look(self, sensor: Any) -> Tick:
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref(),
            repository_def=self.repository,
            resources=self.repository.get_top_level_resources(),
            sensor_name=sensor.name,
        ) as context:
            try:
                found = sensor.evaluate_tick(context)
            except Exception as error:  # noqa: BLE001 - a tick's error is a result here
                return Tick(sensor.name, error=with_causes(error))
        return Tick(sensor.name, tuple(found.run_requests or ()))

    def _launch(self, sensor: str, request: Any) -> None:
        keys = set(request.asset_selection or ())
        tags = {**request.tags, "dagster/run_key": request.run_key, "dagster/sensor_name": sensor}
        why = _joined(self._run(keys, request.partition_key, tags, request.run_config))
        for key in keys:
            self.landing_runs[key.path[-1], request.partition_key] = (
                self.landing_runs.get((key.path[-1], request.partition_key), 0) + 1
            )
        if why is not None:
            self.failures.setdefault("landing", []).append(f"{sorted(k.to_user_string() for k in keys)}: {why}")

    def materialized(self, name: str) -> set[str | None]:
        """Return the partitions of an asset that Dagster has; None for an unpartitioned one."""
        key = self.key(name)
        if self.repository.asset_graph.get(key).partitions_def is None:
            return {None} if self.instance.get_latest_materialization_event(key) is not None else set()
        return set(self.instance.get_materialized_partitions(key))

    def has_landed(self, slot: str) -> bool:
        """Return whether labels of all partitions are materialized."""
        return set(self.keys(slot)) <= self.materialized(name_of(slot))

    def land(self) -> int:
        """Let batches end and sensors tick until each dataset is materialized or stopped. Return the count of ticks."""
        for number in range(_ROUNDS):
            if all(self.has_landed(slot) for slot in self.platform.landing):
                return number
            self.emulator.settle()
            self.tick()
        return _ROUNDS

    def load_rows(self, name: str, partition: str | None) -> list[dict[str, Any]]:
        """Return the rows of a table through its IO manager. Call this only when tables no longer change."""
        place = name, partition
        if place not in self._tables:
            self._tables[place] = self._load_rows(name, partition)
        return self._tables[place]

    def _load_rows(self, name: str, partition: str | None) -> list[dict[str, Any]]:
        key = self.key(name)
        try:
            with self._partitions():
                loaded = self.repository.load_asset_value(key, instance=self.instance, partition_key=partition)
        except duckdb.CatalogException:
            # Dagster's DuckDB IO manager makes no table of a frame without rows. A later check finds lost rows.
            return []
        return [row for batch in record_batches(loaded) for row in pa.Table.from_batches([batch]).to_pylist()]

    def measure(self) -> dict[str | None, str]:
        """Materialize the evaluation, and return its failures by partition. Sensors advance a judge's partitions."""
        word = self.platform["evaluation"]
        if word == "none":
            return {}
        names = self.evaluation_names()
        if word not in {"pairwise", "rubric"}:
            return self._run_each(names, partition_keys(partitions_of(self.platform), self.instance))
        first = [f"{NAME}_cases", f"{NAME}_verdicts_batch"]
        keys = partition_keys(partitions_of(self.platform), self.instance)
        failures = self._run_each(first, keys)
        judged = [key for key in keys if key not in failures]
        for _ in range(_ROUNDS):
            if set(judged) <= self.materialized(f"{NAME}_verdicts"):
                break
            self.emulator.settle()
            self.tick()
        return failures | self._run_each(
            [name for name in names if name not in first and "verdicts" not in name], judged
        )

    def _run_each(self, names: list[str], keys: list[str | None]) -> dict[str | None, str]:
        return {key: why for key in keys if (why := self.run(names, key)) is not None}

    def evaluation_names(self) -> list[str]:
        """Return the names of the evaluation's assets that a run makes."""
        keys = self.repository.asset_graph.get_all_asset_keys()
        names = sorted(key.path[-1] for key in keys if key.path[-1].startswith(NAME))
        return [name for name in names if not name.endswith("_accepted")]


def _answer(body: dict[str, Any], endpoint: str) -> Any:
    """Answer like the plain emulator, in batches and in real time, but refuse or garble a marked text."""
    asked = json.dumps(body)
    if "REFUSED" in asked:
        return Reply(status_code=400, message="This text is refused.")
    if "GARBLED" in asked:
        return Reply(text="This is no JSON.")
    return simulated_answer(body, endpoint)


def _joined(failures: list[Failure]) -> str | None:
    return "\n".join(one.why for one in failures) or None


def with_causes(error: BaseException) -> str:
    """Return an error's message, and the messages of all its causes."""
    said, cause = [], error
    while cause is not None:
        said.append(f"{type(cause).__name__}: {cause}")
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]
    return "\n".join(said)
