"""A code location over the emulated provider: run it, tick its sensor, and read Dagster's records."""

import inspect
from typing import Annotated, Any, Literal

import dagster as dg
import polars as pl
from pydantic import BaseModel, Field

from dagster_llm_batch import LLMBatchResource, OpenAIBatchResource, Prompt, build_llm_batch_sensor, llm_batch_assets
from dagster_llm_batch.engine import Engine
from dagster_llm_batch.sensors.factory import bounded_sensor
from dagster_llm_batch.sensors.runs import TickBounds
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator

LABELS, REJECTS, BATCH = "ticket_labels", "ticket_labels_rejects", "ticket_labels_batch"
LANDING = (LABELS, REJECTS)
DAYS = [f"2026-01-{day:02d}" for day in range(1, 31)]
DAILY = dg.DailyPartitionsDefinition("2026-01-01", end_date="2026-01-31")


class TicketLabel(BaseModel):
    topic: Literal["billing", "bug", "how_to"]
    urgency: Annotated[int, Field(ge=1, le=5, description="1 can wait, 5 is now.")]


def tickets(count: int = 3, prefix: str = "t") -> pl.DataFrame:
    """Return rows whose keys and texts are unique by prefix."""
    return pl.DataFrame(
        {
            "ticket_id": [f"{prefix}-{n}" for n in range(count)],
            "subject": [f"Subject {prefix} {n}" for n in range(count)],
            "body": [f"Where is my invoice {prefix}-{n}?" for n in range(count)],
        }
    )


def by_partition(context: Any) -> pl.DataFrame:
    """Return three different rows for every partition, as a rows function does."""
    return tickets(3, context.partition_key or "t")


def labeled(**changes: Any) -> list[dg.AssetsDefinition]:
    """Return the usual dataset, with changes."""
    usual: dict[str, Any] = {
        "name": LABELS,
        "rows": by_partition,
        "key": "ticket_id",
        "prompt": Prompt(system="You label tickets.", user="{{ subject }}\n{{ body }}"),
        "response": TicketLabel,
        "model": "openai/gpt-4o",
        "params": {"max_tokens": 50},
        "frame": "polars",
    }
    return llm_batch_assets(**{**usual, **changes})


def sensor_within(bounds: TickBounds) -> dg.SensorDefinition:
    """Return the usual sensor, whose ticks do another amount of work."""
    declared = inspect.signature(build_llm_batch_sensor).parameters.values()
    return bounded_sensor(bounds, **{parameter.name: parameter.default for parameter in declared})


class CodeLocation:
    """One code location. Several may share an instance and an emulator, as processes of one deployment do."""

    def __init__(
        self,
        emulator: Emulator,
        instance: dg.DagsterInstance,
        *assets: Any,
        resources: dict[str, Any] | None = None,
        openai: dict[str, Any] | None = None,
        bounds: TickBounds | None = None,
        **llm: Any,
    ) -> None:
        self.emulator = emulator
        self.instance = instance
        usual = {"api_key": DEFAULT_KEY, "base_url": emulator.openai_base_url, "timeout_seconds": 10.0}
        provider = OpenAIBatchResource(**{**usual, **(openai or {})})
        self.resource = LLMBatchResource(**{"openai": provider, **llm})
        self.resources = {"llm_batch": self.resource, **(resources or {})}
        sensor = build_llm_batch_sensor() if bounds is None else sensor_within(bounds)
        self.defs = dg.Definitions(assets=list(assets), sensors=[sensor], resources=self.resources)
        self.repository = self.defs.get_repository_def()

    def run(
        self, *names: str, partition: str | None = None, span: tuple[str, str] | None = None, **more: Any
    ) -> dg.ExecuteInProcessResult:
        """Run these assets; `span` makes it a range run. Failures do not raise."""
        tags = dict(more.pop("tags", {}))
        if span is not None:
            tags |= {"dagster/asset_partition_range_start": span[0], "dagster/asset_partition_range_end": span[1]}
        keys = {dg.AssetKey.from_user_string(name) for name in names}
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=keys)
        return job.execute_in_process(
            instance=self.instance, partition_key=partition, tags=tags, raise_on_error=False, **more
        )

    def submit(self, **where: Any) -> dg.ExecuteInProcessResult:
        return self.run(BATCH, **where)

    def collect(self, **where: Any) -> dg.ExecuteInProcessResult:
        return self.run(*LANDING, **where)

    def land(self, **where: Any) -> dg.ExecuteInProcessResult:
        """Submit rows, and materialize their labels."""
        assert self.submit(**where).success
        self.emulator.settle()
        return self.collect(**where)

    def tick(self) -> Any:
        """Evaluate the sensor once, as the daemon does; its run requests are not launched."""
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref() if self.instance.is_persistent else None,
            repository_def=self.repository,
            resources=self.resources,
            sensor_name="llm_batch_sensor",
        ) as context:
            return self.repository.get_sensor_def("llm_batch_sensor").evaluate_tick(context)

    def launch(self, request: Any) -> dg.ExecuteInProcessResult:
        """Launch a run request, as the daemon does."""
        names = [key.to_user_string() for key in request.asset_selection]
        tags = {**request.tags, "dagster/run_key": request.run_key}
        return self.run(*names, partition=request.partition_key, tags=tags, run_config=request.run_config or None)

    def engine(self) -> Engine:
        """Return the engine that runs use, to read the ledger and to make time pass. Close its ledger."""
        with dg.build_init_resource_context(instance=self.instance) as context:
            self.resource.setup_for_execution(context)
        return self.resource.engine()

    def landed(self, name: str = LABELS) -> set[str]:
        return self.instance.get_materialized_partitions(dg.AssetKey.from_user_string(name))

    def materializations(self, name: str = LABELS) -> dict[str | None, Any]:
        """Return the newest materialization of each partition."""
        records = self.instance.fetch_materializations(dg.AssetKey.from_user_string(name), limit=1000).records
        return {record.partition_key: record.asset_materialization for record in reversed(records)}

    def metadata(self, name: str = LABELS, partition: str | None = None) -> dict[str, Any]:
        return {key: value.value for key, value in self.materializations(name)[partition].metadata.items()}

    def failed(self, partitions: list[str], partitions_def: Any, name: str = LABELS) -> set[str]:
        """Return the partitions that Dagster shows as failed."""
        status = self.instance.get_status_by_partition(dg.AssetKey(name), partitions, partitions_def) or {}
        return {key for key, value in status.items() if value is not None and value.name == "FAILED"}

    def checks(self, result: dg.ExecuteInProcessResult) -> dict[tuple[str | None, str], bool]:
        """Return the check results of one run, by partition and check."""
        found = [
            e.asset_check_evaluation_data for e in result.all_events if e.event_type_value == "ASSET_CHECK_EVALUATION"
        ]
        return {(one.partition, one.check_name): one.passed for one in found}


def observations(result: dg.ExecuteInProcessResult) -> list[Any]:
    return [
        event.asset_observation_data.asset_observation
        for event in result.all_events
        if event.event_type_value == "ASSET_OBSERVATION"
    ]


def failure(result: dg.ExecuteInProcessResult) -> str:
    """Return the errors of a run's failed steps, as text."""
    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failures, "no step failed"
    return "\n".join(f"{one.error_display_string} {one.user_failure_data}" for one in failures)


def tag(materialization: Any, name: str = "dagster/data_version") -> str | None:
    return (materialization.tags or {}).get(name)
