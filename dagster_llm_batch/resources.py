"""Where things are: providers and their credentials, the ledger, the payload store. One resource for each provider.

Nothing is opened or imported before it is needed. Credentials stay in the resource: give them as `dg.EnvVar("…")`, so
that they are not shown in the UI either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import Field, PrivateAttr

from dagster_llm_batch.engine import Engine, rules
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.payloads import PayloadStore

__all__ = [
    "AnthropicBatchResource",
    "BedrockBatchResource",
    "Budget",
    "CommandBatchResource",
    "GeminiBatchResource",
    "LLMBatchResource",
    "OpenAIBatchResource",
    "QueueLimit",
    "VertexBatchResource",
]

_SETTLE_SECONDS = (
    "How long after a create call of unknown end the batch may still appear. Only then is a batch that the provider "
    "does not list taken as not created, and sent again."
)
_AWS_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")


class AnthropicBatchResource(dg.ConfigurableResource[Any]):
    """Anthropic's Message Batches."""

    api_key: str = Field(description="API key. Give it as an EnvVar.")
    base_url: str | None = Field(default=None, description="Address of another server. Default: Anthropic's own.")
    workspace_id: str | None = Field(default=None, description="Workspace, for a key that can act on several.")
    account: str | None = Field(
        default=None,
        description=(
            "A name for whose account this is, part of what tells finished work apart. Default: host and workspace. "
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
    timeout_seconds: float = Field(default=600.0, description="For one call.")
    settle_seconds: float = Field(default=300.0, description=_SETTLE_SECONDS)

    def provider(self) -> Provider:
        """The provider; makes no call."""
        from dagster_llm_batch.providers.anthropic import AnthropicProvider  # noqa: PLC0415 - its SDK is an extra
        from dagster_llm_batch.providers.anthropic_lines import ANTHROPIC_VERSION  # noqa: PLC0415 - as above

        return AnthropicProvider(
            api_key=self.api_key,
            base_url=self.base_url,
            workspace_id=self.workspace_id,
            account=self.account,
            anthropic_version=self.anthropic_version or ANTHROPIC_VERSION,
            betas=self.betas,
            timeout_seconds=self.timeout_seconds,
            settle_seconds=self.settle_seconds,
        )


class OpenAIBatchResource(dg.ConfigurableResource[Any]):
    """OpenAI's Batch API, and any server that speaks it: Azure OpenAI v1, Groq, Doubleword (by `base_url`)."""

    api_key: str = Field(description="API key. Give it as an EnvVar.")
    base_url: str | None = Field(default=None, description="Address of a compatible server. Default: OpenAI's own.")
    organization: str | None = Field(default=None, description="OpenAI organization id.")
    project: str | None = Field(default=None, description="OpenAI project id.")
    account: str | None = Field(
        default=None,
        description=(
            "A name for whose account this is, part of what tells finished work apart. Default: host, organization and "
            "project. Keys can be rotated without paying again; give another name when a key is another account's."
        ),
    )
    price_book: str = Field(default="openai", description="The price book's id of who bills: openai, azure, groq, …")
    timeout_seconds: float = Field(default=600.0, description="For one call.")
    settle_seconds: float = Field(default=300.0, description=_SETTLE_SECONDS)

    def provider(self) -> Provider:
        """The provider; makes no call."""
        from dagster_llm_batch.providers.openai import OpenAIProvider  # noqa: PLC0415 - its SDK is an extra

        return OpenAIProvider(
            api_key=self.api_key,
            base_url=self.base_url,
            organization=self.organization,
            project=self.project,
            account=self.account,
            price_book=self.price_book,
            timeout_seconds=self.timeout_seconds,
            settle_seconds=self.settle_seconds,
        )


class CommandBatchResource(dg.ConfigurableResource[Any]):
    """A command that reads an OpenAI-format batch file and writes a results file, as `vllm run-batch` does.

    It runs detached on the machine of the run that submits, and goes on when that run ends.
    """

    command: list[str] = Field(
        description="The command and its arguments; {input}, {output} and {model} are replaced. No shell is involved.",
        examples=[["vllm", "run-batch", "-i", "{input}", "-o", "{output}", "--model", "{model}"]],
    )
    workdir: str | None = Field(
        default=None,
        description="Folder for input, output and log of each batch, on this machine. Default: below the Dagster home.",
    )
    account: str | None = Field(default=None, description="What tells its answers apart. Default: the command.")

    def provider(self, default_workdir: str) -> Provider:
        """The provider; starts nothing."""
        from dagster_llm_batch.providers.command import CommandProvider  # noqa: PLC0415 - as the others

        return CommandProvider(command=self.command, workdir=self.workdir or default_workdir, account=self.account)


class VertexBatchResource(dg.ConfigurableResource[Any]):
    """Batches on Vertex AI, of Gemini and of Claude; files go through a Cloud Storage bucket."""

    project: str = Field(description="Google Cloud project id.")
    location: str = Field(description="Region, as in us-central1, or global (not for Claude).")
    bucket: str = Field(description="Cloud Storage bucket for request and result files, without gs://.")
    prefix: str = Field(default="dagster-llm-batch", description="Folder in the bucket; each batch has its own in it.")
    service_account_json: str | None = Field(
        default=None, description="Key of a service account, as JSON, as an EnvVar. Default: application default."
    )
    base_url: str | None = Field(default=None, description="Address of another server. Default: Google's own.")
    storage_url: str | None = Field(
        default=None, description="Address of another Cloud Storage. Default: Google's own."
    )
    access_token: str | None = Field(default=None, description="A ready token, in place of a key. As an EnvVar.")
    account: str | None = Field(default=None, description="Whose account this is. Default: project and location.")
    timeout_seconds: float = Field(default=600.0, description="For one call.")
    settle_seconds: float = Field(default=300.0, description=_SETTLE_SECONDS)

    def provider(self) -> Provider:
        """The provider; makes no call."""
        from dagster_llm_batch.providers.vertex import VertexProvider, credentials_of  # noqa: PLC0415 - an extra

        return VertexProvider(
            project=self.project,
            location=self.location,
            bucket=self.bucket,
            prefix=self.prefix,
            credentials=credentials_of(self.service_account_json, self.access_token),
            base_url=self.base_url,
            storage_url=self.storage_url,
            account=self.account,
            timeout_seconds=self.timeout_seconds,
            settle_seconds=self.settle_seconds,
        )


class GeminiBatchResource(dg.ConfigurableResource[Any]):
    """Batches of the Gemini Developer API."""

    api_key: str = Field(description="API key. Give it as an EnvVar.")
    base_url: str | None = Field(default=None, description="Address of another server. Default: Google's own.")
    account: str | None = Field(
        default=None, description="Whose account this is; a key does not tell. Give one where you use several projects."
    )
    inline_bytes: int = Field(default=1_000_000, description="Batches up to this size travel in the create call.")
    timeout_seconds: float = Field(default=600.0, description="For one call.")
    settle_seconds: float = Field(default=300.0, description=_SETTLE_SECONDS)

    def provider(self) -> Provider:
        """The provider; makes no call."""
        from dagster_llm_batch.providers.gemini import GeminiProvider  # noqa: PLC0415 - its SDK is an extra

        return GeminiProvider(
            api_key=self.api_key,
            base_url=self.base_url,
            account=self.account,
            inline_bytes=self.inline_bytes,
            timeout_seconds=self.timeout_seconds,
            settle_seconds=self.settle_seconds,
        )


class BedrockBatchResource(dg.ConfigurableResource[Any]):
    """Batch inference on Amazon Bedrock; files go through S3.

    AWS settings have the names and meanings of dagster-aws's `ResourceWithBoto3Configuration`; `like` takes them over
    from a resource that a deployment has already, such as its `S3Resource`.
    """

    role_arn: str = Field(description="Service role that Bedrock takes on to read and write the files.")
    s3_uri: str = Field(description="Folder for request and result files, s3://bucket/folder, in the batch's region.")
    region_name: str | None = Field(default=None, description="Region. Default: that of the environment or profile.")
    profile_name: str | None = Field(default=None, description="Profile of the AWS configuration files.")
    max_attempts: int = Field(default=5, description="Tries of a call, the first included. A create call has one.")
    use_ssl: bool = Field(default=True, description="Whether to use TLS.")
    endpoint_url: str | None = Field(default=None, description="Address of another Bedrock. Default: AWS's own.")
    verify: bool | None = Field(default=True, description="Whether to verify TLS certificates.")
    aws_access_key_id: str | None = Field(default=None, description="Access key. As an EnvVar.")
    aws_secret_access_key: str | None = Field(default=None, description="Secret key. As an EnvVar.")
    aws_session_token: str | None = Field(default=None, description="Session token. As an EnvVar.")
    s3_endpoint_url: str | None = Field(default=None, description="Address of another S3. Default: AWS's own.")
    quotas_endpoint_url: str | None = Field(default=None, description="Address of another Service Quotas.")
    read_quotas: bool = Field(default=True, description="Read the models' limits from Service Quotas, where allowed.")
    min_requests: int = Field(default=100, description="A model's minimum of records, where no quota tells it.")
    families: dict[str, str] = Field(
        default={},
        description="Form of request of a model whose id does not tell: claude, nova, llama, chat, titan or converse.",
    )
    timeout_hours: int = Field(default=24, description="After so many hours, 24 to 168, Bedrock gives up the rest.")
    kms_key_id: str | None = Field(default=None, description="KMS key for the files. Default: the bucket's.")
    tags: dict[str, str] = Field(default={}, description="AWS tags of each batch.")
    account: str | None = Field(
        default=None, description="Whose account this is. Default: region and the role's account."
    )
    timeout_seconds: float = Field(default=600.0, description="For one call.")
    settle_seconds: float = Field(default=300.0, description=_SETTLE_SECONDS)

    @classmethod
    def like(cls, aws: Any, **settings: Any) -> BedrockBatchResource:
        """One with the AWS settings of `aws`, a ResourceWithBoto3Configuration, but for its endpoint."""
        shared = ("region_name", "profile_name", "max_attempts", "use_ssl", "verify", *_AWS_KEYS)
        taken = {name: vars(aws)[name] for name in shared}
        return cls(**{**taken, **settings})

    def provider(self) -> Provider:
        """The provider; makes no call."""
        from dagster_llm_batch.providers.bedrock import BedrockProvider  # noqa: PLC0415 - its SDK is an extra

        session = {name: value for name in ("profile_name", *_AWS_KEYS) if (value := getattr(self, name)) is not None}
        return BedrockProvider(
            self.region_name,
            self.role_arn,
            self.s3_uri,
            session_options=session,
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


class Budget(dg.Config):
    """The most that submissions may commit to in a period: what they cost, or are estimated to cost till then."""

    max_usd: float = Field(description="US dollars.")
    period: Literal["day", "month", "ever"] = Field(default="month", description="Of the calendar, in UTC.")
    asset: str | None = Field(default=None, description="Of one labeled dataset, by its key. Default: of all together.")


class QueueLimit(dg.Config):
    """The most that may be in a provider's queue at once."""

    max_batches: int | None = Field(default=None, description="Batches.")
    max_requests: int | None = Field(default=None, description="Requests in them.")
    max_tokens: int | None = Field(default=None, description="Input tokens, by estimate: OpenAI's enqueued tokens.")


class LLMBatchResource(dg.ConfigurableResource[Any]):
    """What all labeled datasets of a deployment share."""

    namespace: str = Field(
        default="default",
        description="Keeps deployments apart. Give dev, branch and prod their own, so that none collects another's.",
    )
    ledger_url: str | None = Field(
        default=None,
        description="SQLAlchemy URL of the ledger (postgresql://…). Default: an SQLite file below the Dagster home.",
    )
    payload_root: str | None = Field(
        default=None,
        description="Folder for request and result files (s3://…, gs://…, a path). Default: below the Dagster home.",
    )
    anthropic: AnthropicBatchResource | None = Field(default=None, description="For models named anthropic/….")
    bedrock: BedrockBatchResource | None = Field(default=None, description="For models named bedrock/….")
    gemini: GeminiBatchResource | None = Field(default=None, description="For models named gemini/….")
    vertex: VertexBatchResource | None = Field(default=None, description="For models named vertex/….")
    openai: OpenAIBatchResource | None = Field(default=None, description="For models named openai/….")
    command: CommandBatchResource | None = Field(default=None, description="For models named command/….")
    budgets: list[Budget] = Field(
        default=[], description="The most that submissions may commit to in a period; what is over is refused unsent."
    )
    queue_limits: dict[str, QueueLimit] = Field(
        default={},
        description=(
            'By "provider" or "provider/model": the most that may be in its queue at once. What is over waits in the '
            "ledger, and goes oldest first."
        ),
    )

    telemetry: bool = Field(
        default=False,
        description="OpenTelemetry spans of provider calls, and metrics of what lands. Needs the extra otel.",
    )

    _home: Path | None = PrivateAttr(default=None)
    _engine: Engine | None = PrivateAttr(default=None)

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Learn where the Dagster home is."""
        if context.instance is not None and (self.ledger_url is None or self.payload_root is None):
            self._home = Path(context.instance.storage_directory()) / "llm_batch"

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Close the ledger."""
        del context
        if self._engine is not None:
            self._engine.ledger.close()
            self._engine = None
        if self.telemetry:
            from dagster_llm_batch.telemetry import flush  # noqa: PLC0415 - its API is an extra

            flush()

    def places(self) -> tuple[str, str]:
        """URL of the ledger, with its password, and root of the payload store; nothing is opened."""
        ledger_url = self.ledger_url or f"sqlite:///{self._folder / 'ledger.sqlite'}"
        return ledger_url, self.payload_root or str(self._folder / "payloads")

    @property
    def _folder(self) -> Path:
        return self._home or Path.cwd() / ".llm_batch"

    def engine(self) -> Engine:
        """The engine over this ledger, payload store and these providers; opened on first use."""
        if self._engine is None:
            ledger_url, payload_root = self.places()
            self._engine = Engine(
                providers=self.providers(self._folder),
                ledger=Ledger(ledger_url),
                payloads=PayloadStore(payload_root),
                namespace=self.namespace,
                lease_wait_seconds=5.0,
                budgets=[rules.Budget(str(one.max_usd), one.period, one.asset) for one in self.budgets],
                queue_limits={
                    name: rules.QueueLimit(one.max_batches, one.max_requests, one.max_tokens)
                    for name, one in self.queue_limits.items()
                },
            )
        return self._engine

    def providers(self, home: Path) -> dict[str, Provider]:
        """The configured providers by name."""
        found: dict[str, Provider] = {}
        if self.anthropic is not None:
            found["anthropic"] = self.anthropic.provider()
        if self.bedrock is not None:
            found["bedrock"] = self.bedrock.provider()
        if self.gemini is not None:
            found["gemini"] = self.gemini.provider()
        if self.vertex is not None:
            found["vertex"] = self.vertex.provider()
        if self.openai is not None:
            found["openai"] = self.openai.provider()
        if self.command is not None:
            found["command"] = self.command.provider(str(home / "command"))
        if self.telemetry:
            from dagster_llm_batch.telemetry import TracedProvider  # noqa: PLC0415 - its API is an extra

            return {name: TracedProvider(provider) for name, provider in found.items()}
        return found
