"""`llm_batch_assets`, its resource and its sensor in YAML."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from dagster_llm_batch.components.resolving import about
from dagster_llm_batch.components.resource import RESOURCE
from dagster_llm_batch.components.scaffolding import BatchScaffolder
from dagster_llm_batch.components.settings import CHECKS, PRICE, PROMPT, RESPONSE, RETRY, ROWS, SENSOR
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine import RetryPolicy
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.sensors import build_llm_batch_sensor
from dagster_llm_batch.types import Endpoint

__all__ = ["LLMBatchComponent"]


@dg.scaffold_with(BatchScaffolder)
@dataclass(kw_only=True)
class LLMBatchComponent(FactoryComponent):
    """Rows labeled by an LLM at batch prices: a submission, the labeled table, its rejects and its checks.

    Attributes are the arguments of `llm_batch_assets`, by the same names; `resource` and `sensor` are what a project
    needs once. What `dg scaffold defs` writes runs as it is, without a key.
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

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Assets and checks; resource and sensor where this component gives them."""
        has_sensor = self.resource is not None if self.sensor is None else self.sensor is not False
        settings = self.sensor if isinstance(self.sensor, Mapping) else {}
        return dg.Definitions.merge(
            super().build_defs(context),
            dg.Definitions(
                resources={} if self.resource is None else {self.resource_key: self.resource},
                sensors=[build_llm_batch_sensor(resource_key=self.resource_key, **settings)] if has_sensor else [],
            ),
        )
