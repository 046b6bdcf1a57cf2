"""What a labeled dataset declares, free of Dagster: how rows become requests, and how far to go for an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cached_property
from typing import Any

from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.labeling import check_columns
from dagster_llm_batch.core.pricing import TokenPrice, dollars
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.response import Reader
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.types import Endpoint, RequestSpec, ResponseKind

__all__ = ["Labeling", "RetryPolicy"]


@dataclass(frozen=True)
class RetryPolicy:
    """Which requests are sent again, and how often. Only those that can succeed ever are.

    Args:
        max_waves: How often a request may be sent in all. 1 means never again.
        invalid_waves: How often one whose reply did not fit may be sent in all (each such reply was paid for).
    """

    max_waves: int = 3
    invalid_waves: int = 2

    def __post_init__(self) -> None:
        if self.max_waves < 1 or self.invalid_waves < 1:
            msg = f"RetryPolicy counts start at 1 (send once, never again); got {self}."
            raise ConfigError(msg)


@dataclass(frozen=True)
class Labeling:
    """One labeled dataset.

    Args:
        asset: Name of the dataset; with a partition it names what a submission is for.
        model: `provider/model`, as in "openai/gpt-5-nano" or "command/smollm2". What follows the first slash is the
            provider's own name for the LLM.
        key: Column that identifies a row.
        prompt: What is asked about each row.
        response: A pydantic model class, a JSON Schema dict, `Embedding()`, or None for free text.
        params: Given to the provider as they are (temperature, max_tokens, …).
        endpoint: Which API of the provider. Default: embeddings for `Embedding()`, else chat.
        keep: More columns of the rows to carry into the labeled table.
        max_cost_usd: Refuse a submission whose estimate, retries included, exceeds this.
        max_requests_per_batch, max_bytes_per_batch: Smaller limits than the provider's.
        retry: What is sent again.
        expected_output_tokens: For the estimate. Default: the most that `params` allow.
        price: Your own price, for LLMs the price book lacks or a negotiated rate.
    """

    asset: str
    model: str
    key: str
    prompt: Prompt
    response: Any = None
    params: Mapping[str, Any] = field(default_factory=dict)
    endpoint: Endpoint | str | None = None
    keep: Sequence[str] = ()
    max_cost_usd: Decimal | float | str | None = None
    max_requests_per_batch: int | None = None
    max_bytes_per_batch: int | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    expected_output_tokens: int | None = None
    price: TokenPrice | None = None

    def __post_init__(self) -> None:
        provider, slash, model = self.model.partition("/")
        if not (provider and slash and model):
            msg = f"model={self.model!r} names no provider. Write it as provider/model, as in 'openai/gpt-5-nano'."
            raise ConfigError(msg)
        if isinstance(self.keep, str):
            msg = f"keep takes a list of column names, got the string {self.keep!r}. Write keep=[{self.keep!r}]."
            raise ConfigError(msg)
        for name, least in (("max_requests_per_batch", 1), ("max_bytes_per_batch", 1), ("expected_output_tokens", 0)):
            if (given := getattr(self, name)) is not None and given < least:
                msg = f"{name}={given!r} cannot be; it is at least {least}, or left out."
                raise ConfigError(msg)
        check_columns(self.key, self.keep, self.reader.schema.names)
        _ = self.spec, self.budget_usd  # refuse now what can be known now

    @property
    def provider(self) -> str:
        return self.model.partition("/")[0]

    @cached_property
    def reader(self) -> Reader:
        return Reader(self.response)

    @cached_property
    def spec(self) -> RequestSpec:
        """What all requests share."""
        embeds = self.reader.format.kind is ResponseKind.EMBEDDING
        default = Endpoint.EMBEDDINGS if embeds else Endpoint.CHAT
        try:
            endpoint = default if self.endpoint is None else Endpoint(self.endpoint)
        except ValueError as error:
            msg = f"endpoint={self.endpoint!r} is none of {', '.join(repr(e.value) for e in Endpoint)}."
            raise ConfigError(msg) from error
        if embeds != (endpoint is Endpoint.EMBEDDINGS):
            msg = f"endpoint={endpoint.value!r} does not go with a response of kind {self.reader.format.kind.value!r}."
            raise ConfigError(msg)
        return RequestSpec(
            model=self.model.partition("/")[2],
            response=self.reader.format,
            endpoint=endpoint,
            params=dict(self.params),
            turns=self.prompt.turns,
            cache_prefix=self.prompt.cache_prefix,
        )

    @cached_property
    def budget_usd(self) -> Decimal | None:
        if self.max_cost_usd is None:
            return None
        return dollars("max_cost_usd", self.max_cost_usd)

    @cached_property
    def prompt_version(self) -> str:
        """The prompt's name, or a digest of its wording."""
        prompt = self.prompt
        return prompt.version or _digest(
            [prompt.system, prompt.user, list(prompt.images), [list(e) for e in prompt.examples]]
        )

    @cached_property
    def code_version(self) -> str:
        """Changes whenever labels could: with prompt, model, parameters or response schema."""
        spec = self.spec
        prompt = [
            self.prompt.system,
            self.prompt.user,
            list(self.prompt.images),
            [[t.role, t.text] for t in spec.turns],
        ]
        schema = [spec.response.kind.value, spec.response.json_schema, spec.response.dimensions]
        return _digest([self.model, spec.endpoint.value, dict(spec.params), prompt, schema])


def _digest(content: Any) -> str:
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]
