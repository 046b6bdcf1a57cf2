"""LLMBatchResource in YAML. Its settings are read off the resources, so that a new one is there at once.

An environment variable stays a name until a run needs its value: secrets are in no definition, and the UI shows none.
"""

from __future__ import annotations

import os
from types import EllipsisType
from typing import Any, get_args

import dagster as dg
from pydantic import BaseModel, Field, create_model

from dagster_llm_batch.components.resolving import pointing_at, templated
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.resources import LLMBatchResource

__all__ = ["RESOURCE"]

Resource = dg.ConfigurableResource[Any]


def settings_of(resource: type[Resource]) -> type[BaseModel]:
    """The YAML form of a resource: the same fields, defaults and descriptions; every value can be a template."""
    fields: dict[str, Any] = {}
    for name, info in resource.model_fields.items():
        nested = _nested(resource, name)
        kind = info.annotation if nested is None else settings_of(nested) | None
        default = ... if info.is_required() else info.get_default(call_default_factory=True)
        fields[name] = (
            kind | str,
            Field(default, description=info.description, examples=info.examples),
        )
    return create_model(f"{resource.__name__}Settings", __base__=dg.Model, __doc__=resource.__doc__, **fields)


def _nested(resource: type[Resource], name: str) -> type[Resource] | None:
    kind = resource.model_fields[name].annotation
    for one in (kind, *get_args(kind)):
        if isinstance(one, type) and issubclass(one, dg.ConfigurableResource):
            return one
    return None


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


def _made(context: dg.ResolutionContext, resource: type[Resource], given: BaseModel) -> Resource:
    values: dict[str, Any] = {}
    for name in given.model_fields_set:
        value, here, nested = getattr(given, name), context.at_path(name), _nested(resource, name)
        kind = resource.model_fields[name].annotation
        if nested is not None and isinstance(value, BaseModel):
            values[name] = _made(here, nested, value)
        elif kind is str or str in get_args(kind):
            values[name] = templated(here.with_scope(env=_Environment()), value)
        else:
            values[name] = templated(here, value)
    with pointing_at(context):
        return resource(**values)


def _resolve(context: dg.ResolutionContext, given: BaseModel | None) -> Resource | None:
    return None if given is None else _made(context, LLMBatchResource, given)


RESOURCE = dg.Resolver(
    _resolve,
    model_field_type=settings_of(LLMBatchResource) | None,
    description=(
        "The LLMBatchResource under `resource_key`: providers by name, ledger, payloads. One component of a project "
        "gives it; the others use it. Default: it is defined elsewhere."
    ),
    examples=[{"namespace": "prod", "openai": {"api_key": "{{ env.OPENAI_API_KEY }}"}}],
)
