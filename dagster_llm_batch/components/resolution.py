"""From YAML to values: templates only where there are some, import paths, and errors that name their line."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Self

import dagster as dg
from dagster.components.resolved.errors import ResolutionException
from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_core import InitErrorDetails

from dagster_llm_batch.arguments import unknown_name
from dagster_llm_batch.errors import ConfigError, LLMBatchError

__all__ = [
    "Block",
    "Duration",
    "folder_of",
    "import_object",
    "made",
    "path_about",
    "pointing_at",
    "templated",
]

_TEMPLATE = re.compile(r"\{\{|\{%")


def templated(context: dg.ResolutionContext, value: Any) -> Any:
    """Return the value with its templates rendered. Text without a template is unchanged: `"123"` stays text."""
    if isinstance(value, str):
        return context.resolve_value(value) if _TEMPLATE.search(value) else value
    if isinstance(value, Mapping):
        return {key: templated(context.at_path(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [templated(context.at_path(index), item) for index, item in enumerate(value)]
    return value


class Block(dg.Model):
    """Settings in YAML. An unknown name is refused at its line, with the nearest right one.

    - `make`: makes the value from the settings.
    - `resolvers`: by setting, convert the written value to the argument of `make`; by default `made`.
    """

    make: ClassVar[Callable[..., Any]]
    resolvers: ClassVar[Mapping[str, Callable[[dg.ResolutionContext, Any], Any]]] = {}

    def value(self, context: dg.ResolutionContext) -> Any:
        """Return the value made of the given settings; `type` only names the block."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}
        given.pop("type", None)
        values = {name: self.resolvers.get(name, made)(context.at_path(name), item) for name, item in given.items()}
        with pointing_at(context, path_about(type(self).model_fields)):
            return type(self).make(**values)

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_nearest(cls, given: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(given)
        except ValidationError as error:
            names = [info.alias or name for name, info in cls.model_fields.items()]
            details = [_name_known(detail, names) for detail in error.errors()]
            raise ValidationError.from_exception_data(cls.__name__, details) from None


def _name_known(error: Any, names: Collection[str]) -> InitErrorDetails:
    """Return the error unchanged, or with the known attributes if it is about an unknown one of this block.

    Its type stays one of pydantic's own, since Dagster makes errors again by their types, to add the line.
    """
    kind, ctx = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden" and len(error["loc"]) == 1:
        kind, ctx = "value_error", {"error": unknown_name("attribute", str(error["loc"][0]), names)}
    return InitErrorDetails(type=kind, loc=error["loc"], input=error["input"], ctx=ctx)


class Duration(Block):
    """A length of time: the sum of these."""

    make = timedelta

    days: float = Field(default=0, description="Days.")
    hours: float = Field(default=0, description="Hours.")
    minutes: float = Field(default=0, description="Minutes.")


def made(context: dg.ResolutionContext, given: Any) -> Any:
    """Return the value of the written text, with the blocks within it made and templates rendered.

    A template may have given the value itself.
    """
    if isinstance(given, list):
        return [made(context.at_path(index), item) for index, item in enumerate(given)]
    if isinstance(given, dict):
        return {key: made(context.at_path(key), item) for key, item in given.items()}
    return given.value(context) if isinstance(given, Block) else templated(context, given)


def folder_of(context: dg.ResolutionContext) -> Path:
    """Return the folder of the YAML file."""
    path = dg.ComponentLoadContext.from_resolution_context(context).path
    return path.parent if path.is_file() else path


def import_object(context: dg.ResolutionContext, path: str) -> Any:
    """Return the object at an import path; a path that starts with a dot is in a module next to the YAML file."""
    load = dg.ComponentLoadContext.from_resolution_context(context)
    module, dot, name = path.rpartition(".")
    if not (dot and name and module.strip(".")):
        raise ConfigError(
            f"{path!r} is no import path. Write it as 'package.module.name', or as '.module.name' for a Python file "
            "beside this one."
        )
    if module.startswith("."):
        module = load.defs_relative_module_name(folder_of(context)) + module
    try:
        imported = importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{path!r} cannot be imported: {type(error).__name__}: {error}.") from error
    if not hasattr(imported, name):
        raise ConfigError(f"{path!r}: the module {module} has no {name!r}.")
    return getattr(imported, name)


@contextmanager
def pointing_at(context: dg.ResolutionContext, path_of: Callable[[str], str | None] = lambda _: None) -> Iterator[None]:
    """Raise errors in the definition with file, line and snippet; `path_of` finds the attribute from the message."""
    try:
        yield
    except ValidationError as error:
        raise _located(context, _without_input(error)) from None
    except (LLMBatchError, dg.DagsterError) as error:
        attribute = path_of(str(error))
        raise _located(context if attribute is None else context.at_path(attribute), str(error)) from None


def path_about(attributes: Collection[str]) -> Callable[[str], str | None]:
    """Return a function that finds the attribute that a message is about: ours start with its name, as in
    `max_cost_usd=-1 is …` or `Limits.max_requests_per_batch=0 is …`.
    """

    def find(message: str) -> str | None:
        start = re.match(r"(\w+)(?:\.(\w+))?", message)
        return next((name for name in start.groups() if name in attributes), None) if start is not None else None

    return find


def _located(context: dg.ResolutionContext, message: str) -> ResolutionException:
    tree = context.source_position_tree
    # The attributes came from Python: there is no line to point at.
    if tree is None:
        return ResolutionException(f"{'.'.join(map(str, context.path))}: {message}")
    where = tree.source_error(yaml_path=context.path, inline_error_message=message, value_error=True)
    return ResolutionException(
        f"{where.file_name}:{where.start_line_no} - {where.location}\n{where.snippet}\n{message}"
    )


def _without_input(error: ValidationError) -> str:
    """Return the errors without the values, which may be secrets."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors(include_input=False)
    )
