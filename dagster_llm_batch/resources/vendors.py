"""Vendors with their credentials: give them as `dg.EnvVar("…")`, so that they are not shown in the UI either."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, NamedTuple, cast

import dagster as dg
from pydantic import Field

from dagster_llm_batch.arguments import unknown_name
from dagster_llm_batch.config import ProviderResource
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.openai_api.servers import SERVERS, Server, Windows
from dagster_llm_batch.providers.openrouter.servers import INLINE_SERVERS, InlineServer

__all__ = [
    "AnthropicBatchResource",
    "AzureOpenAIBatchResource",
    "BedrockBatchResource",
    "GeminiBatchResource",
    "OpenAIBatchResource",
    "OpenRouterBatchResource",
    "VertexBatchResource",
    "preset",
]

_TIMEOUT_SECONDS = "Seconds of one call; its answer may take longer while 1,000 bytes a second come."
_SETTLE_SECONDS = (
    "Seconds in which the batch of a create call of unknown end may still appear. If the provider does not list it "
    "after that time, it counts as not created, and is sent again."
)
_NO_KEY = "none"
"""The key for a server that takes calls without one: its SDK requires a key."""
_AWS_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


class AnthropicBatchResource(ProviderResource):
    """Anthropic's Message Batches: of its own API, of Claude Platform on AWS, and of Claude on Google Cloud.

    AWS settings have the same names as at Bedrock, and Google Cloud's the same as at Vertex AI.
    """

    platform: str = Field(
        default="anthropic",
        description=(
            "The platform that serves the API: anthropic, aws or google_cloud. Claude on Bedrock and on Vertex AI has "
            "other batches, with separate resources. In Microsoft Foundry it has no batches."
        ),
    )
    api_key: str | None = Field(
        repr=False,
        default=None,
        description="API key, of Anthropic or of Claude Platform on AWS. Give it as an EnvVar.",
    )
    base_url: str | None = Field(default=None, description="Address of another server. Default: the platform's own.")
    workspace_id: str | None = Field(
        default=None,
        description="Workspace. On a cloud there has to be one; else it is for a key that can act on several.",
    )
    account: str | None = Field(
        default=None,
        description=(
            "A name for the account, which identifies finished work. Default: host and workspace. "
            "Keys can be rotated without paying again; give another name when a key is another account's."
        ),
    )
    anthropic_version: str | None = Field(
        default=None,
        description='API version. Default: that of the SDK. "2023-06-01" still takes temperature, top_p and top_k.',
    )
    betas: list[str] = Field(
        default_factory=list,
        description="Beta features to ask for, such as output-300k-2026-03-24 for replies of up to 300,000 tokens.",
    )
    region_name: str | None = Field(default=None, description="AWS: region, as in us-east-1.")
    profile_name: str | None = Field(default=None, description="AWS: profile of the configuration files.")
    aws_access_key_id: str | None = Field(repr=False, default=None, description="AWS: access key. As an EnvVar.")
    aws_secret_access_key: str | None = Field(repr=False, default=None, description="AWS: secret key. As an EnvVar.")
    aws_session_token: str | None = Field(repr=False, default=None, description="AWS: session token. As an EnvVar.")
    project: str | None = Field(default=None, description="Google Cloud: project id.")
    location: str = Field(default="global", description="Google Cloud: location.")
    service_account_json: str | None = Field(
        repr=False,
        default=None,
        description="Google Cloud: key of a service account, as JSON, as an EnvVar. Default: application default.",
    )
    access_token: str | None = Field(
        repr=False, default=None, description="Google Cloud: a ready token, in place of a key. As an EnvVar."
    )
    # Dagster's configuration holds no functions, but passes them on unchanged.
    token_provider: Annotated[Any, "resource_dependency"] = Field(
        default=None,
        repr=False,
        description=(
            "Google Cloud: in place of a key, a function that returns a token for each call; or its import path, "
            "module:function."
        ),
    )
    timeout_seconds: float = Field(default=600.0, description=_TIMEOUT_SECONDS)
    settle_seconds: float = Field(default=300.0, description=_SETTLE_SECONDS)

    def model_post_init(self, context: Any, /) -> None:
        """Refuse an unknown platform, settings of another one, and missing settings."""
        super().model_post_init(context)
        if self.platform not in _PLATFORMS:
            raise ConfigError(f"platform={self.platform!r}: {unknown_name('platform', self.platform, _PLATFORMS)}")
        own = _PLATFORMS[self.platform]
        others = {name for names in _PLATFORMS.values() for name in (*names.needed, *names.taken)}
        defaults = {name: field.default for name, field in type(self).model_fields.items()}
        for name in sorted(others - {*own.needed, *own.taken}):
            if getattr(self, name) not in (None, defaults[name]):
                raise ConfigError(
                    f"{name} is no setting of platform={self.platform!r}. Take it out, or name its platform."
                )
        for name in own.needed:
            if getattr(self, name) is None:
                raise ConfigError(
                    f"{own.title} wants {name}: AnthropicBatchResource(platform={self.platform!r}, {name}=…)."
                )

    def provider(self) -> Provider:
        """Return the provider; makes no call."""
        from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider  # noqa: PLC0415 - its SDK is an extra
        from dagster_llm_batch.providers.anthropic.requests import ANTHROPIC_VERSION  # noqa: PLC0415 - as above

        return AnthropicProvider(
            name=self.name,
            api_key=self.api_key,
            base_url=self.base_url,
            workspace_id=self.workspace_id,
            account=self.account,
            anthropic_version=self.anthropic_version or ANTHROPIC_VERSION,
            betas=self.betas,
            timeout_seconds=self.timeout_seconds,
            settle_seconds=self.settle_seconds,
            platform=self._cloud(),
        )

    def _cloud(self) -> Any:
        from dagster_llm_batch.providers.anthropic.platforms import AwsPlatform, GooglePlatform  # noqa: PLC0415 - as above

        if self.platform == "aws":
            return AwsPlatform(
                self.region_name or "",
                self.workspace_id or "",
                api_key=self.api_key,
                access_key_id=self.aws_access_key_id,
                secret_access_key=self.aws_secret_access_key,
                session_token=self.aws_session_token,
                profile_name=self.profile_name,
            )
        if self.platform == "google_cloud":
            from dagster_llm_batch.providers.google.vertex import credentials_of, secrets_of  # noqa: PLC0415 - an extra

            return GooglePlatform(
                self.project or "",
                self.workspace_id or "",
                self.location,
                credentials=credentials_of(self.service_account_json, self.access_token),
                token_provider=None if self.token_provider is None else _function_of(self.token_provider),
                given=secrets_of(self.service_account_json, self.access_token),
            )
        return None


class _Platform(NamedTuple):
    title: str
    needed: tuple[str, ...]
    taken: tuple[str, ...] = ()


_PLATFORMS = {
    "anthropic": _Platform("Anthropic", ("api_key",), ("workspace_id",)),
    "aws": _Platform(
        "Claude Platform on AWS", ("region_name", "workspace_id"), ("api_key", "profile_name", *_AWS_KEYS)
    ),
    "google_cloud": _Platform(
        "Claude on Google Cloud",
        ("project", "workspace_id"),
        ("location", "service_account_json", "access_token", "token_provider"),
    ),
}


def _choice_of(windows: Windows) -> str:
    first, *_, last = windows.words
    return f"{first} to {last}" if windows.any_between else " or ".join(windows.words)


_CHOICES = ", ".join(
    f"{server.title} takes {_choice_of(server.windows.value)}"
    for server in SERVERS.values()
    if server.windows is not None and len(server.windows.value.words) > 1
)


class OpenAIBatchResource(ProviderResource):
    """OpenAI's Batch API, and any compatible server: by a preset (`server`), or by its address (`base_url`)."""

    api_key: str | None = Field(repr=False, default=None, description="API key. Give it as an EnvVar.")
    # Dagster's configuration holds no functions, but passes them on unchanged.
    token_provider: Annotated[Any, "resource_dependency"] = Field(
        default=None,
        repr=False,
        description=(
            "In place of a key: a function that returns a token for each call, as azure-identity's "
            "get_bearer_token_provider makes one; or its import path, module:function."
        ),
    )
    server: str = Field(
        default="openai",
        description=(
            f"The server: {', '.join(SERVERS)}. It determines limits, windows, prices and the other facts about the "
            "server."
        ),
    )
    base_url: str | None = Field(
        default=None, description="Address of the server. Default: the vendor's own, if all its users share one."
    )
    organization: str | None = Field(default=None, description="OpenAI organization id.")
    project: str | None = Field(default=None, description="OpenAI project id.")
    account: str | None = Field(
        default=None,
        description=(
            "A name for the account, which identifies finished work. Default: host, organization and project. "
            "Keys can be rotated without paying again; give another name when a key is another account's."
        ),
    )
    completion_window: str = Field(
        default="24h",
        description=f"Longest time of a batch. {_CHOICES}.",
    )
    price_book: str | None = Field(
        default=None,
        description="The price book's id of the company that bills: openai, azure, groq, …. Default: the server's.",
    )
    timeout_seconds: float = Field(default=600.0, description=_TIMEOUT_SECONDS)
    settle_seconds: float = Field(default=300.0, description=_SETTLE_SECONDS)

    def model_post_init(self, context: Any, /) -> None:
        """Refuse an unknown server, and settings that it does not take."""
        super().model_post_init(context)
        server = self._server
        if self.api_key is None and self.token_provider is None and server.needs_key:
            raise ConfigError(
                f"{server.title} takes no call without a key. Give api_key=dg.EnvVar(…) or token_provider=…."
            )
        if self.api_key is not None and self.token_provider is not None:
            raise ConfigError("Give either an api_key or a token_provider, not both: only one of them can be sent.")
        if self.base_url is None and server.base_url.value is None:
            raise ConfigError(
                f"{server.title} has no address that is the same for all. Give base_url, as in {server.example_url!r}."
            )
        if not isinstance(self.completion_window, dg.EnvVar):
            _check_window(server, self.completion_window)

    @property
    def _server(self) -> Server:
        if self.server not in SERVERS:
            raise ConfigError(f"server={self.server!r}: {unknown_name('server', self.server, SERVERS)}")
        return SERVERS[self.server]

    def _credentials(self) -> str | Callable[[], str]:
        # an empty key is a variable that is not set, and is refused
        if self.api_key is not None:
            return self.api_key
        return _NO_KEY if self.token_provider is None else _function_of(self.token_provider)

    def provider(self) -> Provider:
        """Return the provider; makes no call."""
        from dagster_llm_batch.providers.openai.provider import OpenAIProvider  # noqa: PLC0415 - its SDK is an extra

        server = self._server
        return OpenAIProvider(
            name=self.name,
            server=server,
            api_key=self._credentials(),
            base_url=self.base_url,
            organization=self.organization,
            project=self.project,
            account=self.account,
            completion_window=self.completion_window,
            price_book=self.price_book or server.price_book.value,
            timeout_seconds=self.timeout_seconds,
            settle_seconds=self.settle_seconds,
        )


class AzureOpenAIBatchResource(OpenAIBatchResource):
    """Azure OpenAI's v1 API: the preset `azure`, with keys or with Entra ID (`token_provider`)."""

    server: str = Field(default="azure", description="The server.")


class OpenRouterBatchResource(ProviderResource):
    """Batches of OpenRouter and of gateways with its API (`server`): requests and results travel inline."""

    api_key: str = Field(repr=False, description="API key. Give it as an EnvVar.")
    server: str = Field(
        default="openrouter",
        description=(
            f"The server: {', '.join(INLINE_SERVERS)}. It determines limits, windows, prices and the other facts about "
            "the server."
        ),
    )
    base_url: str | None = Field(
        default=None,
        description="Address, with the path before /batches. Default: the server's own, as https://openrouter.ai/api/v1.",
    )
    routing: dict[str, Any] = Field(
        default={},
        description=(
            'The allowed vendors: OpenRouter\'s `provider` object, as {"only": ["openai"], "allow_fallbacks": '
            "false}. It is sent with each batch, and with each call in real time."
        ),
    )
    account: str | None = Field(
        default=None,
        description=(
            "A name for the account, which identifies finished work. Default: the host and path. "
            "Keys can be rotated without paying again; give another name when a key is another account's."
        ),
    )
    price_book: str | None = Field(
        default=None, description="The price book's id of the company that bills. Default: the server's."
    )
    timeout_seconds: float = Field(default=600.0, description=_TIMEOUT_SECONDS)
    settle_seconds: float = Field(default=300.0, description=_SETTLE_SECONDS)

    def model_post_init(self, context: Any, /) -> None:
        """Refuse a server that is not known."""
        super().model_post_init(context)
        assert self._server

    @property
    def _server(self) -> InlineServer:
        if self.server not in INLINE_SERVERS:
            raise ConfigError(f"server={self.server!r}: {unknown_name('server', self.server, INLINE_SERVERS)}")
        return INLINE_SERVERS[self.server]

    def provider(self) -> Provider:
        """Return the provider; makes no call."""
        from dagster_llm_batch.providers.openrouter.provider import OpenRouterProvider  # noqa: PLC0415 - its SDK is an extra

        server = self._server
        return OpenRouterProvider(
            name=self.name,
            server=server,
            api_key=self.api_key,
            base_url=self.base_url,
            account=self.account,
            routing=self.routing,
            price_book=self.price_book or server.price_book.value,
            timeout_seconds=self.timeout_seconds,
            settle_seconds=self.settle_seconds,
        )


def preset(name: str, **settings: Any) -> OpenAIBatchResource | OpenRouterBatchResource:
    """Return the settings of a server with the Batch API of OpenAI or of OpenRouter, with the facts about it.

    Args:
        name: The server, as in docs/reference/providers.md: azure, groq, vllm, opper, ….
        settings: Those of its resource that are yours: api_key, base_url, ….
    """
    if name in INLINE_SERVERS:
        return OpenRouterBatchResource(server=name, **settings)
    if name not in SERVERS:
        raise ConfigError(f"preset({name!r}): {unknown_name('preset', name, (*SERVERS, *INLINE_SERVERS))}")
    return OpenAIBatchResource(server=name, **settings)


def _function_of(given: Any) -> Callable[[], str]:
    """Return the function that returns tokens: itself, or the function at an import path."""
    if callable(given):
        return cast("Callable[[], str]", given)
    module, colon, name = str(given).partition(":")
    if not (module and colon and name):
        raise ConfigError(f"token_provider={given!r} is no import path; it looks like 'my_package.azure:token'.")
    try:
        function = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"token_provider={given!r} cannot be imported: {type(error).__name__}: {error}.") from error
    if not callable(function):
        raise ConfigError(f"token_provider={given!r} is a {type(function).__name__}; it must be a function.")
    return cast("Callable[[], str]", function)


def _check_window(server: Server, word: str) -> None:
    """Raise ConfigError for a window that the server does not take."""
    from dagster_llm_batch.providers.openai_api.batches import window_of  # noqa: PLC0415 - as the providers

    if server.windows is None or word in server.windows.value.words:
        return
    words, any_between = server.windows.value
    asked, least, most = (window_of(each) for each in (word, words[0], words[-1]))
    if any_between and asked and least and most and least <= asked <= most:
        return
    allowed = f"anything from {words[0]} to {words[-1]}" if any_between else " or ".join(words)
    raise ConfigError(f"completion_window={word!r} is none that {server.title} takes; it takes {allowed}.")


class VertexBatchResource(ProviderResource):
    """Batches on Vertex AI, of Gemini and of Claude, by way of a Cloud Storage bucket or a BigQuery dataset."""

    project: str = Field(description="Google Cloud project id.")
    location: str = Field(description="Region, as in us-central1, or global (not for Claude).")
    bucket: str | None = Field(
        default=None, description="Cloud Storage bucket for request and result files, without gs://."
    )
    prefix: str = Field(default="dagster-llm-batch", description="Folder in the bucket; each batch has its own in it.")
    bigquery_dataset: str | None = Field(
        default=None,
        description="In place of a bucket: BigQuery dataset for request and result tables, in the location's region.",
    )
    service_account_json: str | None = Field(
        repr=False,
        default=None,
        description="Key of a service account, as JSON, as an EnvVar. Default: application default.",
    )
    base_url: str | None = Field(default=None, description="Address of another server. Default: Google's own.")
    storage_url: str | None = Field(
        default=None, description="Address of another Cloud Storage. Default: Google's own."
    )
    bigquery_url: str | None = Field(default=None, description="Address of another BigQuery. Default: Google's own.")
    access_token: str | None = Field(
        repr=False, default=None, description="A ready token, in place of a key. As an EnvVar."
    )
    account: str | None = Field(default=None, description="A name for the account. Default: project and location.")
    timeout_seconds: float = Field(default=600.0, description=_TIMEOUT_SECONDS)
    settle_seconds: float = Field(default=300.0, description=_SETTLE_SECONDS)

    def provider(self) -> Provider:
        """Return the provider; makes no call."""
        from dagster_llm_batch.providers.google.vertex import (  # noqa: PLC0415 - an extra
            VertexProvider,
            credentials_of,
            secrets_of,
        )

        return VertexProvider(
            name=self.name,
            project=self.project,
            location=self.location,
            bucket=self.bucket,
            prefix=self.prefix,
            credentials=credentials_of(self.service_account_json, self.access_token),
            secrets=secrets_of(self.service_account_json, self.access_token),
            base_url=self.base_url,
            storage_url=self.storage_url,
            bigquery_dataset=self.bigquery_dataset,
            bigquery_url=self.bigquery_url,
            account=self.account,
            timeout_seconds=self.timeout_seconds,
            settle_seconds=self.settle_seconds,
        )


class GeminiBatchResource(ProviderResource):
    """Batches of the Gemini Developer API."""

    api_key: str = Field(repr=False, description="API key. Give it as an EnvVar.")
    base_url: str | None = Field(default=None, description="Address of another server. Default: Google's own.")
    account: str | None = Field(
        default=None,
        description="A name for the account; a key does not show it. Give one if you use several projects.",
    )
    inline_bytes: int = Field(default=1_000_000, description="Batches up to this size travel in the create call.")
    api_version: str = Field(
        default="v1beta",
        description="API version of every call: v1beta, or v1, which has no system part and no response schema.",
    )
    timeout_seconds: float = Field(default=600.0, description=_TIMEOUT_SECONDS)
    settle_seconds: float = Field(default=300.0, description=_SETTLE_SECONDS)

    def provider(self) -> Provider:
        """Return the provider; makes no call."""
        from dagster_llm_batch.providers.google.gemini import GeminiProvider  # noqa: PLC0415 - its SDK is an extra

        return GeminiProvider(
            name=self.name,
            api_key=self.api_key,
            base_url=self.base_url,
            account=self.account,
            inline_bytes=self.inline_bytes,
            api_version=self.api_version,
            timeout_seconds=self.timeout_seconds,
            settle_seconds=self.settle_seconds,
        )


class BedrockBatchResource(ProviderResource):
    """Batch inference on Amazon Bedrock; files go through S3.

    AWS settings have the names and meanings of dagster-aws's `ResourceWithBoto3Configuration`; `like` takes them over
    from a resource that a deployment has already, such as its `S3Resource`.
    """

    role_arn: str = Field(description="Service role that Bedrock takes on to read and write the files.")
    s3_uri: str = Field(description="Folder for request and result files, s3://bucket/folder, in the batch's region.")
    region_name: str | None = Field(default=None, description="Region. Default: from the environment or profile.")
    profile_name: str | None = Field(default=None, description="Profile of the AWS configuration files.")
    max_attempts: int = Field(default=5, description="Tries of a call, the first included. A create call has one.")
    use_ssl: bool = Field(default=True, description="Whether to use TLS.")
    endpoint_url: str | None = Field(default=None, description="Address of another Bedrock. Default: AWS's own.")
    verify: bool | None = Field(default=True, description="Whether to verify TLS certificates.")
    aws_access_key_id: str | None = Field(repr=False, default=None, description="Access key. As an EnvVar.")
    aws_secret_access_key: str | None = Field(repr=False, default=None, description="Secret key. As an EnvVar.")
    aws_session_token: str | None = Field(repr=False, default=None, description="Session token. As an EnvVar.")
    s3_endpoint_url: str | None = Field(default=None, description="Address of another S3. Default: AWS's own.")
    quotas_endpoint_url: str | None = Field(default=None, description="Address of another Service Quotas.")
    read_quotas: bool = Field(default=True, description="Read the models' limits from Service Quotas, where allowed.")
    min_requests: int = Field(default=100, description="A model's minimum of records, for a model without a quota.")
    families: dict[str, str] = Field(
        default={},
        description="Form of requests, if a model's id does not show it: claude, nova, llama, chat, titan or converse.",
    )
    timeout_hours: int = Field(default=24, description="After this many hours, 24 to 168, Bedrock stops the rest.")
    kms_key_id: str | None = Field(default=None, description="KMS key for the files. Default: the bucket's.")
    tags: dict[str, str] = Field(default={}, description="AWS tags of each batch.")
    account: str | None = Field(
        default=None, description="A name for the account. Default: region and the role's account."
    )
    timeout_seconds: float = Field(default=600.0, description=_TIMEOUT_SECONDS)
    settle_seconds: float = Field(default=300.0, description=_SETTLE_SECONDS)

    @classmethod
    def like(cls, aws: Any, **settings: Any) -> BedrockBatchResource:
        """Return one with the AWS settings of `aws`, a ResourceWithBoto3Configuration, but for its endpoint."""
        shared = ("region_name", "profile_name", "max_attempts", "use_ssl", "verify", *_AWS_KEYS)
        taken = {name: vars(aws)[name] for name in shared}
        return cls(**{**taken, **settings})

    def provider(self) -> Provider:
        """Return the provider; makes no call."""
        from dagster_llm_batch.providers.bedrock.provider import BedrockProvider  # noqa: PLC0415 - its SDK is an extra

        session = {name: value for name in ("profile_name", *_AWS_KEYS) if (value := getattr(self, name)) is not None}
        return BedrockProvider(
            self.region_name,
            self.role_arn,
            self.s3_uri,
            session_options=session,
            name=self.name,
            client_options={"use_ssl": self.use_ssl, "verify": self.verify},
            endpoint_url=self.endpoint_url,
            s3_endpoint_url=self.s3_endpoint_url,
            quotas_endpoint_url=self.quotas_endpoint_url,
            max_attempts=self.max_attempts,
            timeout_seconds=self.timeout_seconds,
            timeout_hours=self.timeout_hours,
            kms_key_id=self.kms_key_id,
            tags=self.tags,
            families=self.families,
            min_requests=self.min_requests,
            read_quotas=self.read_quotas,
            account=self.account,
            settle_seconds=self.settle_seconds,
        )
