"""`llm_batch_assets`, its resource and its sensor in YAML.

The settings of LLMBatchResource come from the resources, so that a new one is available at once. An environment
variable stays a name until a run needs its value: definitions have no secrets, and the UI shows none.
"""

import os
from collections.abc import Mapping
from functools import wraps
from types import EllipsisType, UnionType
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model

from dagster_llm_batch.assets import llm_batch_assets
from dagster_llm_batch.assets.options import DagsterOptions
from dagster_llm_batch.components.attributes import create_block, number_form
from dagster_llm_batch.components.base import FactoryComponent, component_of
from dagster_llm_batch.components.resolution import Block, made, pointing_at
from dagster_llm_batch.components.scaffolders import BatchScaffolder
from dagster_llm_batch.config import ProviderResource
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.jobs import build_llm_batch_jobs, build_llm_batch_retention
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.providers.openrouter.servers import INLINE_SERVERS
from dagster_llm_batch.providers.registry import PROVIDERS, class_at
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.sensors import build_llm_batch_sensor

__all__ = ["LLMBatchComponent"]


# The presets of a provider's kind, which are alternative names for it.
_PRESETS = {"openai": tuple(SERVERS), "openrouter": tuple(INLINE_SERVERS)}


class _Settings(Block):
    """The YAML form of a resource, or of a config within one."""

    make: ClassVar[type[dg.Config]]

    def value(self, context: dg.ResolutionContext) -> Any:
        """Return the resource."""
        values: dict[str, Any] = {}
        for name in self.model_fields_set & self.make.model_fields.keys():
            value, here = getattr(self, name), context.at_path(name)
            if isinstance(value, str) and _takes_names(self.make, name):
                here = here.with_scope(env=_Environment())
            values[name] = made(here, value)
        # the word `kind` may name a preset
        kind = getattr(self, "kind", None)
        if any(kind in names for names in _PRESETS.values()) and "server" in self.make.model_fields:
            values.setdefault("server", kind)
        with pointing_at(context):
            return self.make(**values)


def settings_of(config: type[dg.Config], **own: Any) -> type[_Settings]:
    """Return the YAML form of a resource: the same fields, defaults and descriptions; every value can be a template.

    `own` are fields that the YAML alone has: type and pydantic's `Field`.
    """
    fields: dict[str, Any] = dict(own)
    for name, info in config.model_fields.items():
        default = ... if info.is_required() else info.get_default(call_default_factory=True)
        fields[name] = (
            _kind(info.annotation) | str,
            Field(default, description=info.description, examples=info.examples),
        )
    name = "".join(["Named" if own else "", config.__name__, "Settings"])
    settings = create_model(name, __base__=_Settings, __doc__=config.__doc__, **fields)
    settings.make = config
    return settings


def _kind(annotation: Any) -> Any:
    """Return the annotation, with the YAML form of each resource or config in it."""
    if annotation is ProviderResource:
        return _any_provider()
    if isinstance(annotation, type) and issubclass(annotation, dg.Config):
        return settings_of(annotation)
    origin, arguments = get_origin(annotation), [_kind(get_arg) for get_arg in get_args(annotation)]
    if origin in (list, dict):
        return origin[*arguments]
    return Union[*arguments] if origin in (Union, UnionType) else number_form(annotation)


def _any_provider() -> Any:
    """Return the YAML form of a provider of any kind: Python distinguishes kinds by class, YAML by the word `kind`."""
    described = Field(description="Kind of the provider, or a preset; the other fields are its settings.")
    settings = [
        settings_of(class_at(entry.resource), kind=(Literal[_PRESETS.get(kind, (kind,))], described))
        for kind, entry in PROVIDERS.items()
    ]
    return Annotated[Union[*settings], Field(discriminator="kind")]


class _Name(dg.EnvVar):
    """A variable's name, to be the whole of a setting."""

    def __str__(self) -> str:
        raise ConfigError(
            f"Here the environment variable {self.env_var_name} must be the whole value, so that a secret is never "
            "part of a definition. Put the whole text into the variable."
        )


class _Environment:
    """`env` of Dagster's YAML, giving names in place of values."""

    def __call__(self, name: str, default: str | EllipsisType | None = ...) -> str | None:
        return _Name(name) if name in os.environ or default is ... else default

    def __getattr__(self, name: str) -> str:
        # Jinja asks everything in a scope for these names.
        if name.startswith(("jinja", "_")):
            raise AttributeError(name)
        return _Name(name)


def _takes_names(config: type[dg.Config], name: str) -> bool:
    """Return whether Dagster reads the environment for this field, when a run starts: text of a resource."""
    kind = config.model_fields[name].annotation
    return issubclass(config, dg.ConfigurableResource) and (kind is str or str in get_args(kind))


RESOURCE = dg.Resolver(
    made,
    model_field_type=settings_of(LLMBatchResource) | None,
    description=(
        "The LLMBatchResource under `resource_key`: providers by name, ledger, payloads. One component of a project "
        "gives it; the others use it. Default: it is defined elsewhere."
    ),
    examples=[{"namespace": "prod", "openai": {"api_key": "{{ env.OPENAI_API_KEY }}"}}],
    inject_before_resolve=False,
)


@wraps(build_llm_batch_sensor)
def _sensor_settings(**settings: Any) -> dict[str, Any]:
    # a wrong number is refused here, where the line is known
    build_llm_batch_sensor(**settings)
    return settings


SENSOR = dg.Resolver(
    made,
    # the resource is the component's own
    model_field_type=create_block(_sensor_settings, name="SensorSettings", resource_key=None) | bool | None,
    description="The sensor that materializes labels. Default: there is one where `resource` is given.",
    examples=[{"minimum_interval_seconds": 60}, False],
    inject_before_resolve=False,
)


@wraps(build_llm_batch_retention)
def _retention_settings(**settings: Any) -> dict[str, Any]:
    # as above
    build_llm_batch_retention(**settings)
    return settings


RETENTION = dg.Resolver(
    made,
    model_field_type=create_block(_retention_settings, name="RetentionSettings", resource_key=None) | None,
    description="The schedule that removes stored files by their age. Default: they stay until somebody prunes them.",
    examples=[{"raw_older_than": {"days": 90}}],
    inject_before_resolve=False,
)


@dg.scaffold_with(BatchScaffolder)
@component_of(llm_batch_assets, Labeling, DagsterOptions)
class LLMBatchComponent(FactoryComponent):
    """Rows labeled by an LLM at batch prices: a submission, the labeled table, its rejects and its checks.

    Attributes are the arguments of `llm_batch_assets`, by the same names. `resource`, `sensor`, `jobs` and `retention`
    are for settings that a project needs once. The output of `dg scaffold defs` runs unchanged, without a key; for a
    vendor, add `--provider` (openai, anthropic, gemini, vertex, bedrock, ray or slurm) and, if you like, `--model`.
    """

    # Any: Dagster checks each type that it can read on its own, and refuses a mapping of resources in it
    resource: Annotated[Any, RESOURCE] = None
    sensor: Annotated[Mapping[str, Any] | bool | None, SENSOR] = None
    jobs: Annotated[
        bool | None,
        dg.Resolver(
            made,
            model_field_type=bool | None,
            description="The jobs that cancel a submission and resolve a lost one. Default: where `resource` is given.",
            inject_before_resolve=False,
        ),
    ] = None

    retention: Annotated[Mapping[str, Any] | None, RETENTION] = None

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return assets and checks; resource, sensor, jobs and retention where this component gives them."""
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
                schedules=[]
                if self.retention is None
                else [build_llm_batch_retention(resource_key=resource_key, **self.retention)],
            ),
        )
