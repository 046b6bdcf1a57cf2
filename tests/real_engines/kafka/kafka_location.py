"""A code location over a real broker and the emulated provider, and a daemon that can be stopped between two steps."""

from __future__ import annotations

from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel

from dagster_llm_batch import LLMBatchResource, OpenAIBatchResource, Prompt, llm_batch_assets
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator


class Ticket(BaseModel):
    text: str


class Topic(BaseModel):
    topic: Literal["billing", "bug", "how_to"]


def labeled(topic: Any, **changes: Any) -> list[dg.AssetsDefinition]:
    """Return the labels of a topic's windows."""
    usual: dict[str, Any] = {
        "name": "labels",
        "rows": topic.rows(),
        "key": "message_id",
        "prompt": Prompt(system="You label tickets.", user="{{ text }}"),
        "response": Topic,
        "model": "openai/gpt-4o",
        "params": {"max_tokens": 50},
        "partitions_def": topic.partitions_def,
        "required_resource_keys": {"kafka"},
    }
    return llm_batch_assets(**{**usual, **changes})


class CodeLocation:
    """Runs and ticks by hand, in place of a daemon."""

    def __init__(
        self,
        broker: Any,
        emulator: Emulator,
        instance: dg.DagsterInstance,
        assets: list[dg.AssetsDefinition],
        sensors: list[dg.SensorDefinition],
        **resources: Any,
    ) -> None:
        self.instance, self.emulator = instance, emulator
        provider = OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url, timeout_seconds=10.0)
        self.resources = {"llm_batch": LLMBatchResource(openai=provider), "kafka": broker.resource(), **resources}
        self.defs = dg.Definitions(assets=assets, sensors=sensors, resources=self.resources)
        self.repository = self.defs.get_repository_def()

    def tick(self, name: str, cursor: str | None = None) -> Any:
        """Return the requests of a sensor's tick, without acting on them."""
        with dg.build_sensor_context(
            instance=self.instance,
            instance_ref=self.instance.get_ref() if self.instance.is_persistent else None,
            repository_def=self.repository,
            resources=self.resources,
            sensor_name=name,
            cursor=cursor,
        ) as context:
            return self.repository.get_sensor_def(name).evaluate_tick(context)

    def add(self, ticked: Any) -> list[str]:
        """Add the requested partitions, like a daemon's first step."""
        added = []
        for request in ticked.dynamic_partitions_requests or ():
            self.instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
            added += request.partition_keys
        return added

    def launch(self, ticked: Any) -> list[dg.ExecuteInProcessResult]:
        """Launch the requested runs, each key once, like a daemon's second step."""
        done = []
        for request in ticked.run_requests or ():
            known = self.instance.get_runs(dg.RunsFilter(tags={"dagster/run_key": request.run_key}), limit=1)
            if not known:
                names = [key.to_user_string() for key in request.asset_selection]
                done.append(self.run(*names, partition=request.partition_key, tags=request.tags, key=request.run_key))
        return done

    def run(
        self, *names: str, partition: str | None = None, tags: Any = (), key: str = "", config: Any = None
    ) -> dg.ExecuteInProcessResult:
        keys = {dg.AssetKey.from_user_string(name) for name in names}
        job = self.defs.resolve_implicit_global_asset_job_def().get_subset(asset_selection=keys)
        more = {"dagster/run_key": key, "dagster/sensor_name": "kafka"} if key else {}
        return job.execute_in_process(
            instance=self.instance,
            partition_key=partition,
            tags={**dict(tags), **more},
            raise_on_error=False,
            run_config=config,
        )

    def load(self, name: str, partition: str | None = None) -> Any:
        with self.defs.get_asset_value_loader(self.instance) as loader:
            return loader.load_asset_value(dg.AssetKey.from_user_string(name), partition_key=partition)
