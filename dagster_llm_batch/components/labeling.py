"""How an LLM is asked, in YAML: what a labeled dataset and a judge have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal

from dagster_llm_batch.checks import ChecksPolicy
from dagster_llm_batch.components.attributes import BackfillPolicy, ResourceKey
from dagster_llm_batch.components.resolution import about, duration
from dagster_llm_batch.components.settings import CHECKS, FALLBACK, PRICE, RETRY
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.engine import Fallback, RetryPolicy
from dagster_llm_batch.engine.labeling import BelowMinimum
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
    realtime_concurrency: Annotated[int, about("How many calls in real time run at once.", 8)] = 8
    realtime_patience: Annotated[
        timedelta,
        duration(
            "How long calls in real time may wait in all for a provider that turns them away; then a later run asks."
        ),
    ] = timedelta(minutes=5)
    below_minimum: Annotated[
        BelowMinimum, about("What to do with fewer requests than the provider's least number for a batch.", "pad")
    ] = "refuse"
    expected_output_tokens: Annotated[
        int | None, about("Of one reply, for the estimate. Default: the most that `params` allow.", 50)
    ] = None
    price: Annotated[TokenPrice | None, PRICE] = None
    workers: Annotated[
        Any,
        about("Spark or Ray, to do the heavy part: a template variable of yours.", "{{ workers }}", kind=str | None),
    ] = None
    checks: Annotated[ChecksPolicy | None, CHECKS] = None
    resource_key: ResourceKey = "llm_batch"
    backfill_policy: BackfillPolicy = None
