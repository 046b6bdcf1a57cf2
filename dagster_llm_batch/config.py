"""Base classes of this package's resources and run configurations: Dagster's, with an error for unknown fields.

Dagster's `Config` drops such a field in silence: with `base_ulr=` in place of `base_url=`, a key and all rows would go
to the vendor's own address.

A field with an address shows it without its keys and passwords. An address of files must not contain any.

A field with a secret is declared with `repr=False`. Its value is then absent from each repr, error message and snapshot
that Dagster keeps or shows, even if it was given as plain text instead of an `EnvVar`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Self, Union, get_args, get_origin

import dagster as dg
from pydantic import ConfigDict, Field, PrivateAttr, field_validator

from dagster_llm_batch.arguments import refuse_unknown
from dagster_llm_batch.core.address_secrets import hide_secrets, refuse_credentials
from dagster_llm_batch.definition.destinations import check_region
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.registry import PROVIDERS, kind_of, object_at
from dagster_llm_batch.types import Destination

__all__ = ["CheckedConfig", "CheckedIOManager", "CheckedResource", "ProviderResource"]


_VARIABLES = (dg.EnvVar, type(dg.EnvVar.int("_")))
"""Placeholders of an environment value: text, or a whole number."""

_ADDRESS = re.compile(r"\S+://\S*")


class CheckedConfig(dg.Config):
    """A Dagster configuration that refuses unknown fields, also where it is given as a mapping within another."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a refused value may be a key in the wrong place

    def __init__(self, **given: Any) -> None:
        refuse_unknown(type(self).__name__, given, type(self).model_fields)
        _refuse_truths(type(self), given)
        for name, value in given.items():
            if type(self).model_fields[name].repr and isinstance(value, str) and _ADDRESS.fullmatch(value):
                refuse_credentials(value, f"{name} of {type(self).__name__}")
        super().__init__(**given)

    def __repr_args__(self) -> Any:
        """Yield the fields, with addresses without their secrets."""
        for name, value in super().__repr_args__():
            yield name, _shown(value)


class CheckedResource(CheckedConfig, dg.ConfigurableResource[Any]):
    """A Dagster resource that refuses unknown fields, also of one that is configured at the launch."""

    _definition: Any = PrivateAttr(default=None)

    def _plain_secrets(self) -> set[str]:
        """Return names of the fields whose values are secrets in plain text, or have some."""
        values = {name: (info, vars(self)[name]) for name, info in type(self).model_fields.items()}
        return {
            name
            for name, (info, value) in values.items()
            if (_is_plain(value) if not info.repr else _shown(value) is not value)
        }

    def get_resource_definition(self) -> Any:
        """See ConfigurableResource. Without secrets in plain text, which would be defaults of its config schema.

        Dagster keeps these in the snapshots of jobs, and shows them. A run takes them from the resource itself.
        """
        if self._definition is None:
            made = super().get_resource_definition()
            hidden = self._plain_secrets()
            self._definition = _without(made, hidden) if hidden else made
        return self._definition

    @classmethod
    def configure_at_launch(cls, **given: Any) -> Any:
        """See ConfigurableResource; raises ConfigError for an unknown field."""
        refuse_unknown(cls.__name__, given, cls.model_fields)
        return super().configure_at_launch(**given)


class ProviderResource(CheckedResource):
    """The settings of one provider."""

    runs_in: str | None = Field(
        default=None,
        description=(
            "Region where it runs, as you know it, for allowed_regions of the LLMBatchResource. A region that the "
            "other settings, the model or a parameter name counts before it."
        ),
    )

    _name: str = PrivateAttr(default="")

    @field_validator("runs_in", mode="before")
    @classmethod
    def _check_runs_in(cls, given: Any) -> Any:
        # Pydantic makes plain text of an EnvVar: a check that comes after would see the name of the variable.
        if isinstance(given, str) and not isinstance(given, _VARIABLES):
            check_region(f"{cls.__name__}.runs_in", given)
        return given

    @property
    def name(self) -> str:
        """The provider's name in its deployment; the name of its kind outside of one."""
        return self._name or kind_of(type(self)) or type(self).__name__

    def named(self, name: str) -> Self:
        """Return these settings for the provider of this name, with the environment read.

        Dagster does not read it: a variable missing for one provider must not stop the others. Raises ConfigError for a
        variable that is not set.
        """
        values = {field: _read(vars(self)[field], f"{name}: {field}") for field in type(self).model_fields}
        named = type(self)(**values)
        # a copy of Dagster's would lose it, so this comes last
        named._name = name  # noqa: SLF001 - of its own class
        return named

    def with_environment(self) -> Self:
        """Return these settings with the environment read. Settings with an unreadable variable stay unchanged.

        An op that reads a setting gets its value. `named` raises for the others when their provider is used.
        """
        found = {}
        for field in type(self).model_fields:
            try:
                found[field] = _read(vars(self)[field], field)
            except ConfigError:
                continue
        return self.model_copy(update=found)

    def destination(self, model: str, params: Mapping[str, Any]) -> Destination:
        """Return where the requests to this model of the provider run, as far as the settings show it. Makes no call.

        Settings of your own kind override `shown_destination`.
        """
        settings: Any = _Readable(self.with_environment())
        try:
            shown = self.shown_destination(settings, model, params)
            if (shown.region is None or shown.is_assumed) and not shown.is_pending and settings.runs_in is not None:
                return Destination(shown.named or settings.runs_in)
        except _NotSetError as error:
            return Destination(None, str(error), is_pending=True)
        return shown

    def shown_destination(self, settings: Any, model: str, params: Mapping[str, Any]) -> Destination:
        """Return where the requests to this model run, as these settings show it without `runs_in`.

        `settings` has the values of this object, with the environment read.
        """
        entry = PROVIDERS.get(kind_of(type(self)) or "")
        if entry is None or entry.destination is None:
            reason = "" if entry is None else entry.no_destination
            return Destination(None, reason or "its settings do not report it")
        read: Callable[[Any, str, Mapping[str, Any]], Destination] = object_at(entry.destination)
        return read(settings, model, params)

    def model_post_init(self, context: Any, /) -> None:
        """Refuse times in which calls cannot end. (Not by constraints of fields: Dagster's components do not take
        them.)
        """
        super().model_post_init(context)
        for name, is_enough, least in (
            ("timeout_seconds", operator.gt, "more than 0"),
            ("settle_seconds", operator.ge, "at least 0"),
        ):
            value = getattr(self, name, None)
            if isinstance(value, (int, float)) and not is_enough(value, 0):
                raise ConfigError(f"{type(self).__name__}.{name}={value!r} cannot be; it is {least}.")

    def provider(self) -> Provider:
        """Return the provider of these settings; makes no call. Each kind of settings has its own."""
        raise NotImplementedError

    def provider_below(self, folder: Path) -> Provider:
        """Return the provider of a deployment that has this folder for it; most keep no files on this machine."""
        del folder
        return self.provider()


class _NotSetError(Exception):
    """A setting comes from an environment variable that is not set."""


class _Readable:
    """The settings of a provider, to be read by name. Raises _NotSetError for one whose variable is not set."""

    def __init__(self, settings: ProviderResource) -> None:
        self._settings = settings

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._settings, name)
        if isinstance(value, _VARIABLES):
            raise _NotSetError(f"{name} comes from the environment variable {value.env_var_name}, which is not set")
        return value


class CheckedIOManager(CheckedConfig, dg.ConfigurableIOManager):
    """A Dagster IO manager that refuses unknown fields, also of one that is configured at the launch."""

    @classmethod
    def configure_at_launch(cls, **given: Any) -> Any:
        """See ConfigurableIOManager; raises ConfigError for an unknown field."""
        refuse_unknown(cls.__name__, given, cls.model_fields)
        return super().configure_at_launch(**given)


def _refuse_truths(owner: type[CheckedConfig], given: Mapping[str, Any]) -> None:
    """Raise ConfigError for true or false where a number is declared: pydantic takes these for 1 and 0."""
    for name, value in given.items():
        if isinstance(value, bool) and not _takes_truth(owner.model_fields[name].annotation):
            raise ConfigError(
                f"{owner.__name__}.{name}={value} is not allowed; it takes a number. YAML reads yes as true."
            )


def _takes_truth(kind: Any) -> bool:
    """Return whether true or false can be a value of this annotation, or the annotation is not a number."""
    choices = set(get_args(kind)) if get_origin(kind) in (Union, UnionType) else {kind}
    return bool in choices or not choices & {int, float}


def _shown(value: Any) -> Any:
    """Return a setting without the secrets of its addresses; the same object without secrets."""
    if isinstance(value, str):
        if not _ADDRESS.fullmatch(value) or (shown := hide_secrets(value)) == value:
            return value
        return shown
    if type(value) is dict:
        parts = {key: _shown(part) for key, part in value.items()}
        return parts if any(parts[key] is not value[key] for key in parts) else value
    if type(value) is list:
        items = [_shown(part) for part in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def _without(made: Any, hidden: set[str]) -> Any:
    """Return the definition of a resource without these fields in its config schema."""
    schema = made.config_schema
    fields = {name: field for name, field in schema.config_type.fields.items() if name not in hidden}
    given = schema.default_value if schema.default_provided else {}
    return type(made)(
        made.configurable_resource_cls,
        resource_fn=made.resource_fn,
        config_schema=dg.Field(
            dg.Shape(fields),  # type: ignore[no-untyped-call]
            default_value={name: value for name, value in given.items() if name not in hidden},
        ),
        description=made.description,
        nested_resources=made.nested_resources,
        nested_partial_resources=made.nested_partial_resources,
        dagster_maintained=False,
    )


def _read(value: Any, what: str) -> Any:
    """Return a setting with the values of its environment variables."""
    if isinstance(value, dict):
        return {key: _read(part, what) for key, part in value.items()}
    if isinstance(value, list):
        return [_read(part, what) for part in value]
    if not isinstance(value, _VARIABLES):
        return value
    source = f"{what} comes from the environment variable {value.env_var_name}"
    try:
        found = value.get_value()
    except ValueError:
        # Its message has the value.
        raise ConfigError(f"{source}, which holds no whole number. Set it to one where Dagster runs.") from None
    if found is None:
        raise ConfigError(f"{source}, which is not set. Set it where Dagster runs.")
    return found


def _is_plain(value: Any) -> bool:
    """Return whether a value is there, and no part of it is left to the environment."""
    return bool(value) and not _has_variable(value)


def _has_variable(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(_has_variable(part) for part in value)
    return isinstance(value, _VARIABLES)
