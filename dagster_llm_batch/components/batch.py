"""`llm_batch_assets`, its resource and its sensor in YAML.

The settings of LLMBatchResource are read off the resources, so that a new one is there at once. An environment variable
stays a name until a run needs its value: secrets are in no definition, and the UI shows none.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import EllipsisType, UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model

from dagster_llm_batch.assets import llm_batch_assets
from dagster_llm_batch.components.attributes import TableAttributes
from dagster_llm_batch.components.base import FactoryComponent
from dagster_llm_batch.components.labeling import LabelingAttributes, Llm
from dagster_llm_batch.components.partitions import PARTITIONS
from dagster_llm_batch.components.resolution import Block, about, pointing_at, templated
from dagster_llm_batch.components.scaffolders import BatchScaffolder
from dagster_llm_batch.components.settings import PROMPT, RESPONSE, ROWS, SENSOR
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.engine.labeling import EmptyRows
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.jobs import build_llm_batch_jobs
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.sensors import build_llm_batch_sensor

__all__ = ["LLMBatchComponent"]


class _Settings(Block):
    """The YAML form of `made`."""

    made: ClassVar[type[dg.Config]]


def settings_of(made: type[dg.Config]) -> type[_Settings]:
    """Return the YAML form of a resource: the same fields, defaults and descriptions; every value can be a template."""
    fields: dict[str, Any] = {}
    for name, info in made.model_fields.items():
        default = ... if info.is_required() else info.get_default(call_default_factory=True)
        fields[name] = (
            _kind(info.annotation) | str,
            Field(default, description=info.description, examples=info.examples),
        )
    settings = create_model(f"{made.__name__}Settings", __base__=_Settings, __doc__=made.__doc__, **fields)
    settings.made = made
    return settings


def _kind(annotation: Any) -> Any:
    """Return the annotation, with the YAML form of each resource or config in it."""
    if isinstance(annotation, type) and issubclass(annotation, dg.Config):
        return settings_of(annotation)
    origin, arguments = get_origin(annotation), [_kind(get_arg) for get_arg in get_args(annotation)]
    if origin in (list, dict):
        return origin[*arguments]
    return Union[*arguments] if origin in (Union, UnionType) else annotation


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


def _made(context: dg.ResolutionContext, given: Any) -> Any:
    """Make the resources and configs that the settings are the YAML form of, in lists and mappings too."""
    if isinstance(given, list):
        return [_made(context.at_path(index), value) for index, value in enumerate(given)]
    if isinstance(given, dict):
        return {key: _made(context.at_path(key), value) for key, value in given.items()}
    if not isinstance(given, _Settings):
        return templated(context, given)
    values: dict[str, Any] = {}
    for name in given.model_fields_set:
        value, here = getattr(given, name), context.at_path(name)
        if isinstance(value, str) and _takes_names(given.made, name):
            here = here.with_scope(env=_Environment())
        values[name] = _made(here, value)
    with pointing_at(context):
        return given.made(**values)


def _takes_names(made: type[dg.Config], name: str) -> bool:
    """Return whether Dagster reads the environment for this field, when a run starts: text of a resource."""
    kind = made.model_fields[name].annotation
    return issubclass(made, dg.ConfigurableResource) and (kind is str or str in get_args(kind))


RESOURCE = dg.Resolver(
    _made,
    model_field_type=settings_of(LLMBatchResource) | None,
    description=(
        "The LLMBatchResource under `resource_key`: providers by name, ledger, payloads. One component of a project "
        "gives it; the others use it. Default: it is defined elsewhere."
    ),
    examples=[{"namespace": "prod", "openai": {"api_key": "{{ env.OPENAI_API_KEY }}"}}],
)


@dg.scaffold_with(BatchScaffolder)
@dataclass(kw_only=True)
class LLMBatchComponent(LabelingAttributes, TableAttributes, FactoryComponent):
    """Rows labeled by an LLM at batch prices: a submission, the labeled table, its rejects and its checks.

    Attributes are the arguments of `llm_batch_assets`, by the same names; `resource`, `sensor` and `jobs` are what a
    project needs once. What `dg scaffold defs` writes runs as it is, without a key; for a vendor, add `--provider`
    (openai, anthropic, gemini, vertex, bedrock, ray or slurm) and, if you like, `--model`.
    """

    factory = staticmethod(llm_batch_assets)
    renamed = {"model": "llm"}  # noqa: RUF012 - `model` is a method of Resolvable

    name: Annotated[str, about("Name of the labeled asset.", "ticket_labels")]
    rows: Annotated[Any, ROWS]
    key: Annotated[str, about("Column that identifies a row.", "ticket_id")]
    prompt: Annotated[Prompt, PROMPT]
    llm: Llm
    response: Annotated[Any, RESPONSE] = None
    keep: Annotated[Sequence[str], about("More columns of the rows to carry into the labeled table.", ["day"])] = ()
    empty: Annotated[
        EmptyRows, about("`skip`: a row whose text is null or blank is not sent. `ask`: it is, like any other.", "ask")
    ] = "skip"
    partitions_def: Annotated[dg.PartitionsDefinition[Any] | None, PARTITIONS] = None
    required_resource_keys: Annotated[
        set[str] | None, about("Resources for a function that gives rows.", ["warehouse"], kind=list[str] | None)
    ] = None
    resource: Annotated[LLMBatchResource | None, RESOURCE] = None
    sensor: Annotated[Mapping[str, Any] | bool | None, SENSOR] = None
    jobs: Annotated[
        bool | None,
        about("The jobs that cancel a submission and resolve a lost one. Default: where `resource` is given."),
    ] = None

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return assets and checks; resource, sensor and jobs where this component gives them."""
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
            ),
        )
