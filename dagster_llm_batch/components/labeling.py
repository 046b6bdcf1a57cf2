"""How an LLM is asked, in YAML: what a labeled dataset and a judge have in common."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

from dagster_llm_batch.checks import Checks
from dagster_llm_batch.components.attributes import BackfillPolicy, ResourceKey
from dagster_llm_batch.components.resolution import about
from dagster_llm_batch.components.settings import CHECKS, LIMITS, REALTIME, RESEND, SPEND
from dagster_llm_batch.engine import Limits, Realtime, Resend, Spend
from dagster_llm_batch.types import Endpoint

__all__ = ["LabelingAttributes", "Llm"]

Llm = Annotated[
    str,
    about(
        "Provider, and its own name for the model.",
        "openai/gpt-5-nano",
        "anthropic/claude-haiku-4-5",
        yaml_name="model",
    ),
]


@dataclass(kw_only=True)
class LabelingAttributes:
    """These arguments of `llm_batch_assets`, by the same names."""

    params: Annotated[Mapping[str, Any] | None, about("Given to the provider as they are.", {"max_tokens": 200})] = None
    endpoint: Annotated[
        Endpoint | str | None, about("Which API of the provider. Default: embeddings for an embedding, else chat.")
    ] = None
    mode: Annotated[
        Literal["deferred", "wait"], about("`deferred`: the sensor lands labels. `wait`: the run waits for them.")
    ] = "deferred"
    poll_seconds: Annotated[float, about("Between two looks in `wait` mode.", 10)] = 10.0
    max_cost_usd: Annotated[
        Decimal | float | str | None,
        about("Refuse a submission whose estimate is higher.", 25, kind=float | str | None),
    ] = None
    limits: Annotated[Limits | None, LIMITS] = None
    realtime: Annotated[Realtime | None, REALTIME] = None
    resend: Annotated[Resend | None, RESEND] = None
    spend: Annotated[Spend | None, SPEND] = None
    checks: Annotated[Checks | None, CHECKS] = None
    workers: Annotated[
        Any,
        about("Spark or Ray, to do the heavy part: a template variable of yours.", "{{ workers }}", kind=str | None),
    ] = None
    resource_key: ResourceKey = "llm_batch"
    backfill_policy: BackfillPolicy = None
