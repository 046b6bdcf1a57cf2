"""The shared parts of a deployment's labeled datasets: ledger, payload store, providers, budgets, queues."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field, PrivateAttr, field_validator

from dagster_llm_batch.addresses import check_review_url
from dagster_llm_batch.config import CheckedConfig, CheckedResource, ProviderResource
from dagster_llm_batch.core.spend_limit import LimitKind
from dagster_llm_batch.definition import rules
from dagster_llm_batch.definition.destinations import AllowedDestinations
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.providers.registry import PROVIDERS, check_name, kind_of
from dagster_llm_batch.resources.own import CommandBatchResource, RayBatchResource, SlurmBatchResource
from dagster_llm_batch.resources.vendors import (
    AnthropicBatchResource,
    BedrockBatchResource,
    GeminiBatchResource,
    OpenAIBatchResource,
    OpenRouterBatchResource,
    VertexBatchResource,
)

if TYPE_CHECKING:
    from dagster_llm_batch.definition.labeling import Labeling
    from dagster_llm_batch.engine.engine import Engine

__all__ = ["Budget", "LLMBatchResource", "QueueLimit"]


class Budget(CheckedConfig):
    """The most that submissions may be billed in a period; one with a higher estimate is refused, unsent."""

    max_usd: float = Field(description="The most US dollars in a period.")
    period: Literal["day", "month", "ever"] = Field(
        default="month", description="A day or a month of the calendar, in UTC; or ever."
    )
    asset: str | None = Field(
        default=None, description="Name of the one labeled dataset that it is for. Default: all together."
    )
    limit: LimitKind = Field(
        default="measured",
        description='The kind of limit. "measured": more is billed with a probability of 0.1 % at most; "hard": never.',
    )

    def model_post_init(self, context: Any, /) -> None:
        """Raise ConfigError for wrong numbers where they are written, and not in a run."""
        super().model_post_init(context)
        self.rule()

    def rule(self) -> rules.Budget:
        """Return the rule that the engine works with."""
        return rules.Budget(str(self.max_usd), self.period, self.asset, self.limit)


class QueueLimit(CheckedConfig):
    """The most that may be in a provider's queue at once."""

    max_batches: int | None = Field(default=None, description="Most batches.")
    max_requests: int | None = Field(default=None, description="Most requests in them.")
    max_tokens: int | None = Field(
        default=None, description="Most input tokens, by estimate: OpenAI's enqueued tokens."
    )

    def model_post_init(self, context: Any, /) -> None:
        """Raise ConfigError for wrong numbers where they are written, and not in a run."""
        super().model_post_init(context)
        self.rule()

    def rule(self) -> rules.QueueLimit:
        """Return the rule that the engine works with."""
        return rules.QueueLimit(self.max_batches, self.max_requests, self.max_tokens)


class LLMBatchResource(CheckedResource):
    """The settings that all labeled datasets of a deployment share."""

    namespace: str = Field(
        default="default",
        description="Separates deployments. Give dev, branch and prod one each: then they do not collect each other's.",
    )
    ledger_url: str | None = Field(
        repr=False,
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
    openrouter: OpenRouterBatchResource | None = Field(default=None, description="For models named openrouter/….")
    command: CommandBatchResource | None = Field(default=None, description="For models named command/….")
    ray: RayBatchResource | None = Field(default=None, description="For models named ray/….")
    slurm: SlurmBatchResource | None = Field(default=None, description="For models named slurm/….")
    # Dagster has no type for a mapping of resources. So it passes this on unchanged and shows none of it, and `named`
    # reads each one from the environment.
    providers: Annotated[dict[str, ProviderResource], "resource_dependency"] = Field(
        default={},
        description=(
            "Further providers, by names of your own: two accounts, two regions, several servers. The models of "
            '"openai_eu" are named openai_eu/…; rows, batches, queue limits and costs are kept apart by that name.'
        ),
    )
    budgets: list[Budget] = Field(
        default=[],
        description="The most that submissions may be billed in a period; one with a higher estimate is refused.",
    )
    queue_limits: dict[str, QueueLimit] = Field(
        default={},
        description=(
            'By "provider" or "provider/model": the most that may be in its queue at once. Further batches wait in the '
            "ledger, and the oldest goes first."
        ),
    )

    allowed_regions: list[str] | None = Field(
        default=None,
        description=(
            'The regions in which rows may be processed, as in ["eu", "eu-*"]. A dataset with a model elsewhere, or in '
            "an unknown region, is refused. Default: all."
        ),
    )
    allowed_providers: list[str] | None = Field(
        default=None,
        description=(
            "The providers to which rows may be sent, by their names in this resource. A dataset with a model of "
            "another one is refused. Default: all."
        ),
    )
    overdue_after_hours: float | None = Field(
        default=None,
        description=(
            "A batch that runs for longer than this is overdue: the sensor's tick fails, with the next step in its "
            "message. Default: one and a half times the provider's window (24 hours for most)."
        ),
    )
    keep_request_files_hours: float | None = Field(
        default=24.0,
        description=(
            "Hours from storing a batch's results until the sensor deletes its request file at the provider. Results "
            "stay. None: the files stay until the vendor's expiry."
        ),
    )
    poll_seconds: float = Field(
        default=10.0,
        gt=0,
        description='Seconds between two looks at batches that a run in `mode="wait"` waits for.',
    )
    transfers_at_once: int = Field(
        default=4,
        description=(
            "Batches of one submission that are uploaded at once, or whose results are downloaded at once while others "
            "are read."
        ),
    )
    tune: bool = Field(
        default=False,
        description=(
            "Plan new submissions by the history of earlier ones, within your limits. It chooses smaller batches after "
            "larger ones expired, fewer at once after a queue was full, and fewer retry rounds after rounds without an "
            "answer. With a deadline it turns to real time earlier, and it changes the sample of a cascade if that "
            "costs less. Each choice is logged with its evidence. "
            "It never changes the model, prompt or parameters."
        ),
    )
    fetched_prices: bool = Field(
        default=False,
        description=(
            "Take prices from the book that `dagster-llm-batch prices --fetch` stored in the payload root, if it did. "
            "Default: the bundled book, whose age `dagster-llm-batch doctor` shows."
        ),
    )
    review_url: str | None = Field(
        default=None,
        description=(
            "Address of the page of `dagster-llm-batch review`, such as http://127.0.0.1:8800: metadata and checks in "
            "Dagster's UI then link to the rows behind them. Without path or token. Default: no links."
        ),
    )
    telemetry: bool = Field(
        default=False,
        description="OpenTelemetry spans of provider calls, and metrics of labels. Needs the extra otel.",
    )

    _home: Path | None = PrivateAttr(default=None)
    _engine: Engine | None = PrivateAttr(default=None)

    @field_validator("review_url", mode="before")
    @classmethod
    def _check_review_url(cls, given: Any) -> Any:
        # Pydantic makes plain text of an EnvVar: a check that comes after would see the name of the variable.
        if isinstance(given, str) and not isinstance(given, dg.EnvVar):
            check_review_url(given)
        return given

    @field_validator("allowed_regions", "allowed_providers", mode="before")
    @classmethod
    def _refuse_variables(cls, given: Any) -> Any:
        # A rule that is not known when definitions load cannot be checked then.
        if isinstance(given, dg.EnvVar) or (isinstance(given, list) and any(isinstance(x, dg.EnvVar) for x in given)):
            raise ConfigError(
                "allowed_regions and allowed_providers take names, and no EnvVar: they are checked when definitions "
                "load. Write the names."
            )
        return given

    def model_post_init(self, context: Any, /) -> None:
        """Refuse names that a provider cannot have, and queue limits without effect."""
        super().model_post_init(context)
        for name, resource in self.providers.items():
            check_name(name, kind_of(type(resource)))
            server = getattr(resource, "server", None)
            # A model's name then shows, where it is declared, the features of its server.
            if name in SERVERS and name not in PROVIDERS and server != name:
                raise ConfigError(
                    f"providers[{name!r}] is of the server {server!r}, and {name!r} is the name of a preset. Take "
                    f"preset({name!r}, …), or give it another name."
                )
            if getattr(self, name, None) is not None and name in PROVIDERS:
                raise ConfigError(
                    f"There are two providers {name!r}: LLMBatchResource({name}=…) and providers[{name!r}]. Take one "
                    "out, or give the latter another name."
                )
        rules.check_queue_limits(self.queue_limits, list(self._configured()))
        # Raises for names that no region has.
        self.destinations()

    def __repr_args__(self) -> Any:
        """Yield the fields, with the ledger's place and without its password."""
        yield from super().__repr_args__()
        if self.ledger_url is not None and not isinstance(self.ledger_url, dg.EnvVar):
            is_secret = "ledger_url" in self._plain_secrets()
            yield "ledger_url", _place_of(self.ledger_url) if is_secret else self.ledger_url

    def _plain_secrets(self) -> set[str]:
        """See CheckedResource. A ledger's URL is one where it has a password, or a query, which may hold one."""
        parts = urlsplit(self.ledger_url or "")
        has_secret = bool(parts.query) or "@" in parts.netloc
        return super()._plain_secrets() - (set() if has_secret else {"ledger_url"})

    @contextmanager
    def _resolve_and_update_nested_resources(self, context: dg.InitResourceContext) -> Iterator[Any]:
        """See ConfigurableResource. Reads the environment of each provider apart.

        Dagster reads it for all of them together: a variable of one that is not set would stop the datasets of all.
        """
        read = {
            name: dg.ResourceDefinition.hardcoded_resource(resource.with_environment())
            for name, resource in self.nested_resources.items()
            if isinstance(resource, ProviderResource)
        }
        by_name = {name: resource.with_environment() for name, resource in self.providers.items()}
        # Dagster resolves the values in the fields, and a copy of these is not validated.
        copied = self.model_copy(update={**read, "providers": by_name})
        with super(LLMBatchResource, copied)._resolve_and_update_nested_resources(context) as resolved:
            yield resolved

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Learn where the Dagster home is."""
        # The instance is open for this call only: where its home is, is kept.
        if context.instance is not None and (self.ledger_url is None or self.payload_root is None):
            self._home = _home_of(context.instance)

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
        """Return the URL of the ledger, with its password, and the root of the payload store. Nothing is opened."""
        ledger_url = self.ledger_url or f"sqlite:///{self._folder / 'ledger.sqlite'}"
        return ledger_url, self.payload_root or str(self._folder / "payloads")

    @property
    def _folder(self) -> Path:
        # Outside of a run, as on the command line, Dagster has called no `setup_for_execution`.
        if self._home is None and os.environ.get("DAGSTER_HOME"):
            with dg.DagsterInstance.get() as instance:
                self._home = _home_of(instance)
        return self._home or Path.cwd() / ".llm_batch"

    def engine(self) -> Engine:
        """Return the engine over this ledger, payload store and these providers; opened on first use."""
        if self._engine is None:
            from dagster_llm_batch.engine.engine import Engine  # noqa: PLC0415 - it loads all that a run needs
            from dagster_llm_batch.loop.deployment import Deployment  # noqa: PLC0415 - as below
            from dagster_llm_batch.storage.ledger import Ledger  # noqa: PLC0415 - as above
            from dagster_llm_batch.storage.payloads import PayloadStore  # noqa: PLC0415 - as above

            ledger_url, payload_root = self.places()
            self._engine = Engine(
                Deployment(
                    providers=self.make_providers(self._folder),
                    ledger=Ledger(ledger_url),
                    payloads=PayloadStore(payload_root),
                    namespace=self.namespace,
                    kinds=self._kinds(),
                    lease_wait_seconds=5.0,
                    budgets=[budget.rule() for budget in self.budgets],
                    queue_limits={name: queue_limit.rule() for name, queue_limit in self.queue_limits.items()},
                    overdue_after=None if (hours := self.overdue_after_hours) is None else timedelta(hours=hours),
                    fetched_prices=self.fetched_prices,
                    keep_request_files=None
                    if (kept := self.keep_request_files_hours) is None
                    else timedelta(hours=kept),
                    transfers_at_once=self.transfers_at_once,
                    tune=self.tune,
                    destinations=self.destinations(),
                )
            )
        return self._engine

    def get_resource_definition(self) -> Any:
        """See CheckedResource. The assets that are bound to it find this object in it (`assets.submission`)."""
        made = super().get_resource_definition()
        made.llm_batch_resource = self
        return made

    def destinations(self) -> AllowedDestinations:
        """Return the allowed destinations, with functions that return where each configured provider runs."""
        reporters = {
            name: resource.destination
            for name, resource in self._configured().items()
            # One that is configured at the launch is known in the run.
            if isinstance(resource, ProviderResource)
        }
        return AllowedDestinations(self.allowed_regions, self.allowed_providers, reporters)

    def check_destinations(self, labeling: Labeling) -> None:
        """Raise ConfigError where a model of this dataset is outside the allowed destinations.

        This is for definitions that load: a region is checked in the run where its environment variable is not set
        here.
        """
        destinations = self.destinations()
        for one in labeling.models:
            destinations.check(f"'{labeling.asset}'", one.model, one.params, may_be_pending=True)

    def make_providers(self, home: Path) -> dict[str, Provider]:
        """Return the configured providers by name. Those that keep files here have a folder each below `home`."""
        return {name: self._made(name, resource, home) for name, resource in self._configured().items()}

    def _configured(self) -> dict[str, ProviderResource]:
        """Return the settings of those providers that have any. A kind of the registry has the field of its name."""
        settings = {name: getattr(self, name, None) for name in PROVIDERS}
        return {**{name: resource for name, resource in settings.items() if resource is not None}, **self.providers}

    def _kinds(self) -> dict[str, str]:
        kinds = {name: kind_of(type(resource)) for name, resource in self._configured().items()}
        return {name: kind for name, kind in kinds.items() if kind is not None}

    def _made(self, name: str, resource: ProviderResource, home: Path) -> Provider:
        """Return the provider or, if it cannot be made, one that raises the reason on first use: the others work."""
        try:
            provider = resource.named(name).provider_below(home / name)
        except Exception as error:  # noqa: BLE001 - of an SDK or the user's own: anything may come
            # A missing key or extra of one provider must not keep the datasets of the others from working.
            return cast("Provider", _Unmade(error))
        if self.telemetry:
            from dagster_llm_batch.telemetry import TracedProvider  # noqa: PLC0415 - its API is an extra

            return TracedProvider(provider, kind_of(type(resource)))
        return provider


class _Unmade:
    """Stands for a provider that could not be made; every use raises why."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        # The same error is raised at each use: with its traceback it would grow.
        raise self._error.with_traceback(None)


def _place_of(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _home_of(instance: dg.DagsterInstance) -> Path:
    return Path(instance.storage_directory()) / "llm_batch"
