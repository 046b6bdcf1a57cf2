"""The kinds of providers, as data: the one list that resources, components, telemetry and docs read.

A deployment may have several providers of a kind, each by its own name: two accounts, two regions. A provider without a
name is called by its kind, so every kind's name is reserved for this kind.

Importing it costs nothing: a provider's module is imported only when asked for, and its SDK later still. The order here
is the order in which people are shown the providers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple

from dagster_llm_batch.errors import ConfigError

__all__ = [
    "PROVIDERS",
    "SERVER_FOLDERS",
    "ProviderEntry",
    "Starter",
    "check_name",
    "class_at",
    "kind_of",
    "logprob_params",
    "needs_max_tokens",
    "object_at",
    "provider_class",
]

# A name is a part of models, folders, leases and tags of Dagster, and each of them takes these letters.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")


class Starter(NamedTuple):
    """Additions of `dg scaffold defs` for a provider, to the parts that it writes for all."""

    model: str = "a-model"
    """The provider's name for a small model."""
    environment: Mapping[str, str] = MappingProxyType({})
    """Settings of the resource, each with the environment variable that it comes from."""
    settings: tuple[str, ...] = ()
    """Further lines of YAML in the resource; `$folder` is the folder of the definition."""
    attributes: tuple[str, ...] = ()
    """Further lines of YAML in the labeled dataset."""
    files: tuple[str, ...] = ()
    """Further files of the templates."""
    without_key: bool = False
    """Whether the scaffold runs unchanged, for users who name no provider: it needs neither a key nor an account."""


class ProviderEntry(NamedTuple):
    """One kind of provider: the place of its code, and the facts that other modules need."""

    provider: str
    """Its class, as `package.module:Class`."""
    resource: str
    """The class of its settings, in the same form. `LLMBatchResource` has a field of the provider's name for it."""
    extra: str | None = None
    """The optional dependency of this package that it needs."""
    price_book: str | None = None
    """The price book's id of the company that bills, unless the provider has another; None if calls are free."""
    sold_as: tuple[str, str] | None = None
    """The company on the bill, and its service; None without a bill."""
    kind: str | None = None
    """Dagster's icon for its assets. Default: the name."""
    telemetry: str | None = None
    """`gen_ai.provider.name` in OpenTelemetry's conventions. Default: the name."""
    starter: Starter = Starter()
    insights: Mapping[str, str] = MappingProxyType({})
    """Names of these figures of a materialization in Dagster's integration of the vendor, such as dagster-openai:
    Insights then shows batches next to calls.
    """
    needs_max_tokens: str | None = None
    """Regular expression of the models that take no request without the parameter `max_tokens`: Claude's, anywhere."""
    logprobs: Mapping[str, Any] = MappingProxyType({"logprobs": True})
    """Parameters of a chat request that ask for the log-probabilities of the reply's tokens."""
    no_logprobs: str | None = None
    """Regular expression of the models that never report logprobs: Claude's, anywhere."""
    short_reply: Mapping[str, int] = MappingProxyType({"max_tokens": 64})
    """Parameters that are enough for one word, and limit its cost: `smoke` sends them."""
    destination: str | None = None
    """Its function that reads from settings where a model's requests run, as `package.module:function`."""
    no_destination: str = ""
    """Without this function, the reason: why no settings of this kind can show it."""
    can_record: bool = False
    """Whether its SDK uses httpx or httpx2, whose calls `smoke --record` keeps."""


_PACKAGE = "dagster_llm_batch.providers"
_OWN_MACHINES = "these are your own machines"
_VENDORS, _OWN = "dagster_llm_batch.resources.vendors", "dagster_llm_batch.resources.own"

PROVIDERS: dict[str, ProviderEntry] = {
    "command": ProviderEntry(
        provider=f"{_PACKAGE}.command.provider:CommandProvider",
        resource=f"{_OWN}:CommandBatchResource",
        no_destination=_OWN_MACHINES,
        starter=Starter(
            model="keywords",
            settings=(
                "# It goes by keywords. A model of your own runs by a command of this form, such as `vllm run-batch`.",
                'command: [python3, "{{ context.project_root }}/$folder/labeler.py", "{input}", "{output}"]',
            ),
            attributes=("mode: wait  # the run waits for the labels; without this, a sensor materializes them",),
            files=("labeler.py",),
            without_key=True,
        ),
    ),
    "openai": ProviderEntry(
        provider=f"{_PACKAGE}.openai.provider:OpenAIProvider",
        resource=f"{_VENDORS}:OpenAIBatchResource",
        destination=f"{_PACKAGE}.openai.destinations:destination_of",
        extra="openai",
        price_book="openai",
        sold_as=("OpenAI", "OpenAI API"),
        starter=Starter("gpt-5-nano", {"api_key": "OPENAI_API_KEY"}),
        insights={
            "calls": "openai.calls",
            "total_tokens": "openai.total_tokens",
            "input_tokens": "openai.prompt_tokens",
            "output_tokens": "openai.completion_tokens",
        },
        # For a model that thinks before, too.
        short_reply={"max_completion_tokens": 2_000},
        can_record=True,
    ),
    "anthropic": ProviderEntry(
        provider=f"{_PACKAGE}.anthropic.provider:AnthropicProvider",
        resource=f"{_VENDORS}:AnthropicBatchResource",
        destination=f"{_PACKAGE}.anthropic.destinations:destination_of",
        extra="anthropic",
        price_book="anthropic",
        sold_as=("Anthropic", "Claude API"),
        kind="claude",
        starter=Starter("claude-haiku-4-5", {"api_key": "ANTHROPIC_API_KEY"}),
        insights={
            "calls": "anthropic.calls",
            "input_tokens": "anthropic.input_tokens",
            "output_tokens": "anthropic.output_tokens",
            "cache_read_tokens": "anthropic.cache_read_input_tokens",
        },
        needs_max_tokens="",
        no_logprobs="",
        can_record=True,
    ),
    "gemini": ProviderEntry(
        provider=f"{_PACKAGE}.google.gemini:GeminiProvider",
        resource=f"{_VENDORS}:GeminiBatchResource",
        destination=f"{_PACKAGE}.google.destinations:gemini_destination",
        extra="google",
        price_book="google",
        sold_as=("Google", "Gemini API"),
        telemetry="gcp.gemini",
        starter=Starter("gemini-2.5-flash-lite", {"api_key": "GEMINI_API_KEY"}),
        insights={
            "calls": "gemini.calls",
            "total_tokens": "gemini.total_token_count",
            "input_tokens": "gemini.prompt_token_count",
            "output_tokens": "gemini.candidates_token_count",
            "cache_read_tokens": "gemini.cached_content_token_count",
        },
        logprobs={"responseLogprobs": True},
        short_reply={"max_output_tokens": 64},
        can_record=True,
    ),
    "vertex": ProviderEntry(
        provider=f"{_PACKAGE}.google.vertex:VertexProvider",
        resource=f"{_VENDORS}:VertexBatchResource",
        destination=f"{_PACKAGE}.google.destinations:vertex_destination",
        extra="google",
        price_book="google",
        sold_as=("Google Cloud", "Vertex AI"),
        kind="gemini",
        telemetry="gcp.vertex_ai",
        starter=Starter(
            "gemini-2.5-flash-lite",
            {"project": "GOOGLE_CLOUD_PROJECT", "location": "GOOGLE_CLOUD_LOCATION", "bucket": "LLM_BATCH_BUCKET"},
        ),
        needs_max_tokens="claude|publishers/anthropic/",
        logprobs={"responseLogprobs": True},
        no_logprobs="claude|publishers/anthropic/",
        short_reply={"max_output_tokens": 64},
    ),
    "bedrock": ProviderEntry(
        provider=f"{_PACKAGE}.bedrock.provider:BedrockProvider",
        resource=f"{_VENDORS}:BedrockBatchResource",
        destination=f"{_PACKAGE}.bedrock.destinations:destination_of",
        extra="bedrock",
        price_book="aws",
        sold_as=("AWS", "Amazon Bedrock"),
        kind="aws",
        telemetry="aws.bedrock",
        starter=Starter(
            "us.anthropic.claude-haiku-4-5-20251001-v1:0",
            {"role_arn": "LLM_BATCH_ROLE_ARN", "s3_uri": "LLM_BATCH_S3_URI"},
            attributes=("limits: {below_minimum: realtime}  # three tickets are too few for a batch",),
        ),
        needs_max_tokens=r"anthropic\.",
        no_logprobs="",
    ),
    "openrouter": ProviderEntry(
        provider=f"{_PACKAGE}.openrouter.provider:OpenRouterProvider",
        resource=f"{_VENDORS}:OpenRouterBatchResource",
        destination=f"{_PACKAGE}.openrouter.destinations:destination_of",
        extra="openai",
        price_book="openrouter",
        sold_as=("OpenRouter", "OpenRouter API"),
        can_record=True,
        starter=Starter("openai/gpt-5-nano", {"api_key": "OPENROUTER_API_KEY"}),
        short_reply={"max_tokens": 2_000},
    ),
    "ray": ProviderEntry(
        provider=f"{_PACKAGE}.ray.provider:RayProvider",
        resource=f"{_OWN}:RayBatchResource",
        no_destination=_OWN_MACHINES,
        extra="ray",
        starter=Starter(
            "Qwen/Qwen2.5-7B-Instruct",
            {"address": "RAY_API_SERVER_ADDRESS", "storage": "LLM_BATCH_STORAGE", "base_url": "LLM_SERVER_URL"},
        ),
    ),
    "slurm": ProviderEntry(
        provider=f"{_PACKAGE}.slurm.provider:SlurmProvider",
        resource=f"{_OWN}:SlurmBatchResource",
        no_destination=_OWN_MACHINES,
        starter=Starter(
            "Qwen/Qwen2.5-7B-Instruct",
            {"workdir": "LLM_BATCH_WORKDIR"},
            settings=('command: [vllm, run-batch, -i, "{input}", -o, "{output}", --model, "{model}"]',),
        ),
    ),
}


SERVER_FOLDERS: dict[str, str] = {
    "mistral": f"{_PACKAGE}.mistral.server:MISTRAL",
}
"""Servers with OpenAI's request lines and other paths, each with a folder: the place of its `Server`.

Each is a preset. The resource, `doctor`, the docs and the check of parameters read it by `openai_api.servers.SERVERS`.
"""


def check_name(name: str, kind: str | None) -> None:
    """Check the name of a provider of this kind. Raises ConfigError, which lists the allowed names."""
    if _NAME.fullmatch(name) is None:
        raise ConfigError(
            f"providers has {name!r}, which can be no name of a provider. It begins with a letter and has up to 63 of "
            "A-Z, a-z, 0-9, '_', '.' and '-': a model is name/model."
        )
    if name in PROVIDERS and name != kind:
        raise ConfigError(
            f"providers[{name!r}] is of the kind {kind or 'of your own'!r}, and {name!r} is the name of another kind. "
            "Give it another name."
        )


def kind_of(settings: type[Any]) -> str | None:
    """Return the kind of provider whose settings this class holds, or one of its bases; None for the user's own."""
    paths = {f"{cls.__module__}:{cls.__qualname__}" for cls in settings.__mro__}
    return next((kind for kind, entry in PROVIDERS.items() if entry.resource in paths), None)


def needs_max_tokens(provider: str, model: str) -> bool:
    """Return whether the vendor takes no request to this model without the parameter `max_tokens`."""
    # a provider of the user's own is not registered
    entry = PROVIDERS.get(provider)
    return entry is not None and entry.needs_max_tokens is not None and bool(re.search(entry.needs_max_tokens, model))


def logprob_params(model: str) -> Mapping[str, Any] | None:
    """Return the chat parameters that ask this provider/model for logprobs; None if it cannot report them.

    A provider of the user's own gets OpenAI's parameters, which most servers take.
    """
    provider, _, name = model.partition("/")
    entry = PROVIDERS.get(provider, PROVIDERS["openai"])
    is_silent = entry.no_logprobs is not None and re.search(entry.no_logprobs, name)
    return None if is_silent else entry.logprobs


def provider_class(name: str) -> type[Any]:
    """Import the class of the provider `name`. Raises ConfigError for a name that is not registered."""
    try:
        entry = PROVIDERS[name]
    except KeyError:
        known = ", ".join(sorted(PROVIDERS))
        raise ConfigError(f"There is no provider '{name}'. The providers are: {known}.") from None
    return class_at(entry.provider)


def class_at(path: str) -> type[Any]:
    """Import a class by its path, `package.module:Class`."""
    imported: type[Any] = object_at(path)
    return imported


def object_at(path: str) -> Any:
    """Import an object of a module by its path, `package.module:NAME`."""
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)
