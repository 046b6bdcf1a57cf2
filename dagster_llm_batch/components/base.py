"""What all components share: attributes are a factory's arguments, specs can be translated, errors name their line."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

import dagster as dg
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from pydantic import BaseModel

from dagster_llm_batch.arguments import annotation_text
from dagster_llm_batch.assets import ROLE_TAG
from dagster_llm_batch.automation import on_labels_ready
from dagster_llm_batch.components.attributes import Description, GroupName, KeyPrefix, Owners, Tags
from dagster_llm_batch.components.choices import pointed
from dagster_llm_batch.components.resolution import path_about, pointing_at
from dagster_llm_batch.errors import ConfigError

__all__ = ["FactoryComponent"]

Translation = Annotated[
    Annotated[TranslationFn[str], TranslationFnResolver[str](lambda role: {"role": role})] | None,
    dg.Resolver.default(
        description=(
            "Changes the specs of the assets, one by one: `spec` is the spec so far, `role` one of batch, labels, "
            "rejects, evaluation. A key is that of the labels or the evaluation; the assets beside it follow."
        ),
        examples=[{"kinds": ["snowflake"]}, {"key_prefix": "staging"}],
    ),
]


@dataclass(kw_only=True)
class FactoryComponent(dg.Component, dg.Resolvable):
    """A component whose attributes are the arguments of `factory`, by the same names but for `renamed`.

    `keywords` are those that the factory takes as its `**` arguments.
    """

    factory: ClassVar[Callable[..., list[dg.AssetsDefinition]]]
    renamed: ClassVar[Mapping[str, str]] = {}
    keywords: ClassVar[Sequence[str]] = ()

    key_prefix: KeyPrefix = ()
    group_name: GroupName = None
    description: Description = None
    owners: Owners = ()
    tags: Tags = None
    translation: Translation = None

    @classmethod
    def get_additional_scope(cls) -> Mapping[str, Any]:
        """What templates can use: `on_labels_ready`, and a subclass's own."""
        return {"on_labels_ready": on_labels_ready, **super().get_additional_scope()}

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """The attributes in YAML."""
        return pointed(cls.model())

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """From YAML. What cannot work is refused here, where the lines are known."""
        component: Self = super().resolve_from_model(context, model)
        component._refuse_text(context)
        with pointing_at(context, path_about(type(model).model_fields)):
            _ = component.assets
        return component

    def _refuse_text(self, context: dg.ResolutionContext) -> None:
        """Dagster takes text for every attribute, since it may be a template: what it stayed is looked at here."""
        yaml_names = {python: name for name, python in self.renamed.items()}
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name, None)
            if isinstance(value, str) and not _may_be_text(kind):
                with pointing_at(context.at_path(yaml_names.get(name, name))):
                    kinds = annotation_text(kind)
                    raise ConfigError(f"{name}={value!r} is text; it takes {kinds}, or a template that gives one.")

    @cached_property
    def assets(self) -> list[dg.AssetsDefinition]:
        """What the factory gives, with translated specs.

        Key and partitions are what runs work with, so they go in when the assets are made; the rest is put on after.
        """
        names = (*_parameters(self.factory), *self.keywords)
        arguments = {name: getattr(self, self.renamed.get(name, name)) for name in names}
        made = self.factory(**arguments)
        spec = next(spec for one in made for spec in one.specs if spec.key.path[-1] == arguments["name"])
        wanted = self.get_asset_spec(spec)
        if (wanted.key, wanted.partitions_def) != (spec.key, spec.partitions_def):
            *prefix, name = wanted.key.path
            arguments |= {"name": name, "key_prefix": prefix}
            if wanted.partitions_def != spec.partitions_def:
                if "partitions_def" not in arguments:
                    raise ConfigError("translation changes partitions_def, which follows from what the asset reads.")
                arguments["partitions_def"] = wanted.partitions_def
            made = self.factory(**arguments)
        return [one.map_asset_specs(self._translated) for one in made]

    def get_asset_spec(self, spec: dg.AssetSpec) -> dg.AssetSpec:
        """The spec of one of the assets. Override it for what `translation` cannot say."""
        return spec if self.translation is None else self.translation(spec, spec.tags[ROLE_TAG])

    def _translated(self, spec: dg.AssetSpec) -> dg.AssetSpec:
        return self.get_asset_spec(spec).replace_attributes(key=spec.key, partitions_def=spec.partitions_def)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """The assets and their checks."""
        del context
        return dg.Definitions(assets=self.assets)


def _may_be_text(kind: Any) -> bool:
    choices = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return any(one in (Any, str) or get_origin(one) in (Literal, ClassVar) for one in choices)


def _parameters(factory: Callable[..., Any]) -> list[str]:
    every = inspect.signature(factory).parameters.values()
    return [one.name for one in every if one.kind is not inspect.Parameter.VAR_KEYWORD]
