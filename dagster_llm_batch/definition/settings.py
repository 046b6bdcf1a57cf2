"""Settings of a labeling: limits of batches, real time, sending again with other models, and prices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.pricing import TokenPrice
from dagster_llm_batch.core.reuse import Reuse
from dagster_llm_batch.core.spend_limit import LimitKind
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.types import Endpoint

__all__ = ["Fallback", "Limits", "Realtime", "Resend", "Spend"]


@checked
@dataclass(frozen=True)
class Limits:
    """Limits for the size of a batch, and the handling of batches that are too small.

    Args:
        max_requests_per_batch: Most requests in one batch, at least 1. Default: the provider's limit.
        max_bytes_per_batch: Largest request file of one batch, in bytes. Default: the provider's limit.
        below_minimum: The handling of fewer requests than the provider's least number for a batch (Bedrock's 100).
            "refuse" rejects them before anything is sent, "pad" fills the batch with copies that are paid for, and
            "realtime" answers them in real time. First they are merged with others of the same run. The estimate
            assumes that each partition is sent alone. If retries are refused, their requests keep their answers.
    """

    max_requests_per_batch: int | None = None
    max_bytes_per_batch: int | None = None
    below_minimum: Literal["refuse", "pad", "realtime"] = "refuse"

    def __post_init__(self) -> None:
        _at_least(self, max_requests_per_batch=1, max_bytes_per_batch=1)


@checked
@dataclass(frozen=True)
class Realtime:
    """Requests to answer in real time, at its price, and how.

    Args:
        deadline: Time limit for batches, from planning. Unanswered requests are then answered in real time: running
            batches are stopped, and their finished rows kept. Default: the provider's own limit.
        urgent: A boolean column of the rows, or one of 1 and 0: rows in which it is true are answered in real time from
            the start. Default: none are urgent.
        concurrency: Number of simultaneous calls.
        patience: Longest total wait of calls in one process for a provider that turns them away (429 with or without
            Retry-After, overload, no connection). Each answer earns a second back. After that, the rest waits in the
            ledger for a later run. It does so at once if the provider asks for a longer wait.
        tier: "standard", or "flex": the vendor's cheaper tier, about half the price, with answers in minutes and less
            often available. OpenAI, the Gemini API, Vertex AI (at its location "global") and Bedrock have it. Each
            answer costs the price of the tier that it names. Limits count all as standard.
        otherwise: The handling of requests that the vendor turns away in the tier "flex". "standard" asks again at
            once, in the standard tier. "batch" sends them in a batch, in the next retry round; it does not go with a
            deadline, which stops batches.
    """

    deadline: timedelta | None = None
    urgent: str | None = None
    concurrency: int = 8
    patience: timedelta = timedelta(minutes=5)
    tier: Literal["standard", "flex"] = "standard"
    otherwise: Literal["standard", "batch"] = "standard"

    def __post_init__(self) -> None:
        _at_least(self, deadline=timedelta(0), concurrency=1, patience=timedelta(0))
        if self.otherwise != "batch":
            return
        if self.tier != "flex":
            raise ConfigError("Realtime(otherwise='batch') is for tier='flex'. Set the tier, or leave otherwise out.")
        if self.deadline is not None:
            raise ConfigError(
                f"Realtime(deadline={self.deadline!r}, otherwise='batch') contradict each other: after the deadline "
                "batches are stopped. Leave one of them out."
            )


@checked
@dataclass(frozen=True)
class Fallback:
    """Another model for requests that the models before it did not answer.

    Args:
        model: The provider, a slash, and the provider's own name for the model.
        params: Parameters for it. Default: the dataset's parameters.
        endpoint: API of that provider. Default: the dataset's endpoint.
        price: Your own price of it. Default: the price book's.
    """

    model: str
    params: Mapping[str, Any] | None = None
    endpoint: Endpoint | str | None = None
    price: TokenPrice | None = None


@checked
@dataclass(frozen=True)
class Resend:
    """Rules for retrying requests, and for fallback models. Only requests that can succeed are retried.

    Dagster's own `retry_policy` is unrelated: it restarts a failed step, and sends nothing twice.

    Args:
        max_waves: Most sendings of a request to one model. 1 disables retries.
        invalid_waves: Most sendings of a request whose replies did not fit. Each such reply was paid for.
        fallback: Models, in this order, for requests that the model before refuses or does not answer well. If its
            provider has been down for `fallback_after`, all unsent requests go to the next model, too. Default: none.
        fallback_after: How long a provider may be down before the next model is asked.
        reuse: Rows that share an answer, besides rows with equal requests: `Reuse(near=Near(…))`. Or older labels that
            stay when the prompt or the model changes: `Reuse(relabel=Relabel(…))`. Default: neither.
        former_names: Assets that this one was before, the latest first. Their submissions are taken over, so that a new
            name does not repeat, and pay for, requests. Each partition comes from the first name that has it. The names
            must be absent from the definitions, and must not be former names of other assets.
    """

    max_waves: int = 3
    invalid_waves: int = 2
    fallback: Sequence[str | Fallback] = ()
    fallback_after: timedelta = timedelta(hours=1)
    former_names: Sequence[str] = ()
    reuse: Reuse | None = None

    def __post_init__(self) -> None:
        _at_least(self, max_waves=1, invalid_waves=1, fallback_after=timedelta(0))


@checked
@dataclass(frozen=True)
class Spend:
    """Prices and tokens for estimates, and the way to keep a spending limit.

    Args:
        price: Your own price, in US dollars per million tokens, for models that the price book lacks or a negotiated
            rate. Default: the price book's.
        expected_output_tokens: Tokens of one reply, for the estimate, until replies have come. Default: the maximum in
            `params`. Without a maximum: the usual length of the response and of the model's thinking.
        limit: Way to keep `max_cost_usd`. With "measured", the bill exceeds it with a probability of at most 0.1 %: a
            sample goes first, and then as much as its cost allows. With "hard", the bill never exceeds it. That can
            take many steps, and each waits for the bill of the one before. If the highest possible cost of all requests
            is below the limit, all are sent at once.
    """

    price: TokenPrice | None = None
    expected_output_tokens: int | None = None
    limit: LimitKind = "measured"

    def __post_init__(self) -> None:
        _at_least(self, expected_output_tokens=0)


def _at_least(settings: Any, **least: int | timedelta) -> None:
    """Raise ConfigError for a field that is set, and is less than this."""
    for name, allowed in least.items():
        given = getattr(settings, name)
        if given is not None and given < allowed:
            field_name = f"{type(settings).__name__}.{name}"
            raise ConfigError(f"{field_name}={given!r} is not allowed; it is at least {allowed}, or left out.")
