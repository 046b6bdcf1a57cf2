"""`llm_batch_assets`, its resource and its sensor in YAML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import dagster as dg

from dagster_llm_batch.assets import llm_batch_assets
from dagster_llm_batch.components.attributes import Tabled
from dagster_llm_batch.components.base import FactoryComponent
from dagster_llm_batch.components.labeling import Asking, Llm
from dagster_llm_batch.components.partitions import PARTITIONS
from dagster_llm_batch.components.resolution import about
from dagster_llm_batch.components.resource import RESOURCE
from dagster_llm_batch.components.scaffolders import BatchScaffolder
from dagster_llm_batch.components.settings import PROMPT, RESPONSE, ROWS, SENSOR
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.jobs import build_llm_batch_jobs
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.sensors import build_llm_batch_sensor

__all__ = ["LLMBatchComponent"]


@dg.scaffold_with(BatchScaffolder)
@dataclass(kw_only=True)
class LLMBatchComponent(Asking, Tabled, FactoryComponent):
    """Rows labeled by an LLM at batch prices: a submission, the labeled table, its rejects and its checks.

    Attributes are the arguments of `llm_batch_assets`, by the same names; `resource`, `sensor` and `jobs` are what a
    project needs once. What `dg scaffold defs` writes runs as it is, without a key; for a vendor, add `--provider`
    (openai, anthropic, gemini, vertex, bedrock, ray or slurm) and, if you like, `--model`.
    """

    factory = staticmethod(llm_batch_assets)
    renamed = {"model": "llm"}  # noqa: RUF012 - `model` is a method of Resolvable

    name: Annotated[str, about("Name of the labeled asset.", "ticket_labels")]
    rows: Annotated[Any, ROWS]
    key: Annotated[str, about("Column that identifies a row.", "ticket_id")]
    prompt: Annotated[Prompt, PROMPT]
    llm: Llm
    response: Annotated[Any, RESPONSE] = None
    keep: Annotated[Sequence[str], about("More columns of the rows to carry into the labeled table.", ["day"])] = ()
    deps: Annotated[Sequence[Any], about("Assets that a function of rows reads.", ["crm/raw"], kind=list[str])] = ()
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None
    urgent: Annotated[
        str | None, about("Boolean column of the rows: where it is true, a row is answered in real time.", "is_vip")
    ] = None
    required_resource_keys: Annotated[
        set[str] | None, about("Resources for a function that gives rows.", ["warehouse"], kind=list[str] | None)
    ] = None
    resource: Annotated[LLMBatchResource | None, RESOURCE] = None
    sensor: Annotated[Mapping[str, Any] | bool | None, SENSOR] = None
    jobs: Annotated[
        bool | None,
        about("The jobs that cancel a submission and resolve a lost one. Default: where `resource` is given."),
    ] = None

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Assets and checks; resource, sensor and jobs where this component gives them."""
        resource_key, is_shared_here = self.resource_key, self.resource is not None
        sensor = is_shared_here if self.sensor is None else self.sensor
        settings = sensor if isinstance(sensor, Mapping) else {}
        jobs = is_shared_here if self.jobs is None else self.jobs
        return dg.Definitions.merge(
            super().build_defs(context),
            dg.Definitions(
                resources={resource_key: self.resource} if is_shared_here else {},
                sensors=[] if sensor is False else [build_llm_batch_sensor(resource_key=resource_key, **settings)],
                jobs=build_llm_batch_jobs(resource_key=resource_key) if jobs else [],
            ),
        )
