"""LLMBatchResource in YAML. Its settings are read off the resources, so that a new one is there at once.

An environment variable stays a name until a run needs its value: secrets are in no definition, and the UI shows none.
"""

from __future__ import annotations

import os
from types import EllipsisType, UnionType
from typing import Any, ClassVar, Union, get_args, get_origin

import dagster as dg
from pydantic import Field, create_model

from dagster_llm_batch.components.resolution import Block, pointing_at, templated
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.resources import LLMBatchResource

__all__ = ["RESOURCE"]


class _Settings(Block):
    """The YAML form of `made`."""

    made: ClassVar[type[dg.Config]]


def settings_of(made: type[dg.Config]) -> type[_Settings]:
    """The YAML form of a resource: the same fields, defaults and descriptions; every value can be a template."""
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
    """The annotation, with the YAML form of each resource or config in it."""
    if isinstance(annotation, type) and issubclass(annotation, dg.Config):
        return settings_of(annotation)
    origin, arguments = get_origin(annotation), [_kind(one) for one in get_args(annotation)]
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
        if name.startswith(("jinja", "_")):  # asked by Jinja of everything in a scope
            raise AttributeError(name)
        return _Name(name)


def _made(context: dg.ResolutionContext, given: Any) -> Any:
    """What the settings, alone or in lists and mappings, are the YAML form of."""
    if isinstance(given, list):
        return [_made(context.at_path(index), one) for index, one in enumerate(given)]
    if isinstance(given, dict):
        return {key: _made(context.at_path(key), one) for key, one in given.items()}
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
    """Whether Dagster reads the environment for this field, when a run starts: text of a resource."""
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
