"""`llm_batch_assets`, its resource and its sensor in YAML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

import dagster as dg

from dagster_llm_batch.assets import llm_batch_assets
from dagster_llm_batch.checks import ChecksPolicy
from dagster_llm_batch.components.attributes import (
    BackfillPolicy,
    Description,
    FrameKind,
    GroupName,
    IOManagerKey,
    KeyPrefix,
    Owners,
    Tags,
)
from dagster_llm_batch.components.base import FactoryComponent, Translation
from dagster_llm_batch.components.partitions import PARTITIONS
from dagster_llm_batch.components.resolving import about, duration
from dagster_llm_batch.components.resource import RESOURCE
from dagster_llm_batch.components.scaffolding import BatchScaffolder
from dagster_llm_batch.components.settings import CHECKS, FALLBACK, PRICE, PROMPT, RESPONSE, RETRY, ROWS, SENSOR
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import Fallback, RetryPolicy
from dagster_llm_batch.engine.definition import BelowMinimum
from dagster_llm_batch.jobs import build_llm_batch_jobs
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.sensors import build_llm_batch_sensor
from dagster_llm_batch.types import Endpoint

__all__ = ["LLMBatchComponent"]


@dg.scaffold_with(BatchScaffolder)
@dataclass(kw_only=True)
class LLMBatchComponent(FactoryComponent):
    """Rows labeled by an LLM at batch prices: a submission, the labeled table, its rejects and its checks.

    Attributes are the arguments of `llm_batch_assets`, by the same names; `resource`, `sensor` and `jobs` are what a
    project needs once. What `dg scaffold defs` writes runs as it is, without a key; for a vendor, add `--provider`
    (openai, anthropic, gemini, vertex or bedrock) and, if you like, `--model`.
    """

    factory = staticmethod(llm_batch_assets)
    renamed = {"model": "llm"}  # noqa: RUF012 - `model` is a method of Resolvable

    name: Annotated[str, about("Name of the labeled asset.", "ticket_labels")]
    rows: Annotated[Any, ROWS]
    key: Annotated[str, about("Column that identifies a row.", "ticket_id")]
    prompt: Annotated[Prompt, PROMPT]
    llm: Annotated[
        str,
        about(
            "Provider, and its own name for the model.",
            "openai/gpt-5-nano",
            "anthropic/claude-haiku-4-5",
            yaml_name="model",
        ),
    ]
    response: Annotated[Any, RESPONSE] = None
    params: Annotated[Mapping[str, Any] | None, about("Given to the provider as they are.", {"max_tokens": 200})] = None
    endpoint: Annotated[
        Endpoint | str | None, about("Which API of the provider. Default: embeddings for an embedding, else chat.")
    ] = None
    keep: Annotated[Sequence[str], about("More columns of the rows to carry into the labeled table.", ["day"])] = ()
    deps: Annotated[Sequence[Any], about("Assets that a function of rows reads.", ["crm/raw"], kind=list[str])] = ()
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None
    mode: Annotated[
        Literal["deferred", "wait"], about("`deferred`: the sensor lands labels. `wait`: the run waits for them.")
    ] = "deferred"
    poll_seconds: Annotated[float, about("Between two looks in `wait` mode.", 10)] = 10.0
    max_cost_usd: Annotated[
        Decimal | float | str | None,
        about("Refuse a submission whose estimate is higher.", 25, kind=float | str | None),
    ] = None
    max_requests_per_batch: Annotated[int | None, about("A smaller limit than the provider's.", 10_000)] = None
    max_bytes_per_batch: Annotated[int | None, about("A smaller limit than the provider's.", 50_000_000)] = None
    retry: Annotated[RetryPolicy | None, RETRY] = None
    fallback: Annotated[Sequence[str | Fallback], FALLBACK] = ()
    fallback_after: Annotated[
        timedelta, duration("How long a provider may be down before the next model is asked.")
    ] = timedelta(hours=1)
    deadline: Annotated[
        timedelta | None,
        duration("How long batches may take; what none has answered then is answered in real time, at its price."),
    ] = None
    urgent: Annotated[
        str | None, about("Boolean column of the rows: where it is true, a row is answered in real time.", "is_vip")
    ] = None
    realtime_concurrency: Annotated[int, about("How many calls in real time run at once.", 8)] = 8
    below_minimum: Annotated[
        BelowMinimum, about("What to do with fewer requests than the provider's least number for a batch.", "pad")
    ] = "refuse"
    expected_output_tokens: Annotated[
        int | None, about("Of one reply, for the estimate. Default: the most that `params` allow.", 50)
    ] = None
    price: Annotated[TokenPrice | None, PRICE] = None
    checks: Annotated[ChecksPolicy | None, CHECKS] = None
    frame: FrameKind = "arrow"
    io_manager_key: IOManagerKey = "io_manager"
    resource_key: Annotated[str, about("Where the LLMBatchResource is.", "llm_batch")] = "llm_batch"
    required_resource_keys: Annotated[
        set[str] | None, about("Resources for a function that gives rows.", ["warehouse"], kind=list[str] | None)
    ] = None
    key_prefix: KeyPrefix = ()
    group_name: GroupName = None
    description: Description = None
    owners: Owners = ()
    tags: Tags = None
    metadata: Annotated[
        Mapping[str, Any] | None,
        about("Of labels and rejects, as the IO manager may want it.", {"partition_expr": "day"}),
    ] = None
    automation_condition: Annotated[
        dg.AutomationCondition[Any] | None,
        about(
            "When to submit.",
            "{{ dg.AutomationCondition.eager() }}",
            "{{ dg.AutomationCondition.on_cron('0 2 * * *') }}",
            "{{ on_labels_ready() }}",
            kind=str | None,
        ),
    ] = None
    backfill_policy: BackfillPolicy = None
    translation: Translation = None
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
