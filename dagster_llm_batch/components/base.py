"""What all components share: attributes are a factory's arguments, specs can be translated, errors name their line.

`dg check yaml` validates attributes by a JSON Schema. A validator says of `anyOf` no more than that nothing fits, so
that an error would point at a whole block. `pointed` changes the schema: it says first which choice is meant, by the
type of the value or by its attribute `type`, and then judges by that one alone. What is valid stays the same.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin, get_type_hints

import dagster as dg
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from pydantic import BaseModel, create_model

from dagster_llm_batch.arguments import annotation_text
from dagster_llm_batch.assets import LLMBatchTranslator, LLMBatchTranslatorData
from dagster_llm_batch.automation import on_labels_ready
from dagster_llm_batch.components.attributes import (
    AssetKinds,
    CodeVersion,
    Condition,
    Deps,
    Description,
    Freshness,
    GroupName,
    KeyPrefix,
    Metadata,
    OpRetry,
    OpTags,
    Owners,
    Pool,
    Tags,
)
from dagster_llm_batch.components.resolution import Block, path_about, pointing_at
from dagster_llm_batch.errors import ConfigError

__all__ = ["FactoryComponent"]

Translation = Annotated[
    Annotated[
        TranslationFn[LLMBatchTranslatorData],
        TranslationFnResolver[LLMBatchTranslatorData](lambda data: {"role": data.role, "dataset": data.dataset}),
    ]
    | None,
    dg.Resolver.default(
        description=(
            "Changes the specs of the assets, one by one: `spec` is the spec so far, `role` what the asset is (batch, "
            "labels, rejects, evaluation, mistakes, …), `dataset` what it belongs to."
        ),
        examples=[{"kinds": ["snowflake"]}, {"key_prefix": "staging"}],
    ),
]


_MAPPINGS = {name: getattr(dg, name) for name in dir(dg) if name.endswith("PartitionMapping")}
"""By their names: Dagster's `dg` of templates has none of them."""


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
    kinds: AssetKinds = None
    metadata: Metadata = None
    code_version: CodeVersion = None
    freshness_policy: Freshness = None
    deps: Deps = ()
    automation_condition: Condition = "default"
    pool: Pool = None
    op_tags: OpTags = None
    retry_policy: OpRetry = None
    translation: Translation = None

    @classmethod
    def get_additional_scope(cls) -> Mapping[str, Any]:
        """Return what templates can use: `on_labels_ready`, Dagster's partition mappings, and a subclass's own."""
        return {"on_labels_ready": on_labels_ready, **_MAPPINGS, **super().get_additional_scope()}

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Return the attributes in YAML."""
        return pointed(cls.model())

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """Make the component of YAML. What cannot work is refused here, where the lines are known."""
        component: Self = super().resolve_from_model(context, model)
        component._refuse_text(context)
        with pointing_at(context, path_about(type(model).model_fields)):
            _ = component.assets
        return component

    def _refuse_text(self, context: dg.ResolutionContext) -> None:
        """Raise ConfigError for text in an attribute that takes none.

        Dagster's model takes text for every attribute, since it may be a template. Here all templates are rendered.
        """
        yaml_names = {python: name for name, python in self.renamed.items()}
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name, None)
            if isinstance(value, str) and not _may_be_text(kind):
                with pointing_at(context.at_path(yaml_names.get(name, name))):
                    kinds = annotation_text(kind)
                    raise ConfigError(f"{name}={value!r} is text; it takes {kinds}, or a template that gives one.")

    @cached_property
    def assets(self) -> list[dg.AssetsDefinition]:
        """The assets of the factory, with translated specs."""
        names = (*_parameters(self.factory), *self.keywords)
        arguments = {name: getattr(self, self.renamed.get(name, name)) for name in names if name != "translator"}
        translator = _Translator(self, arguments["name"])
        made = self.factory(**arguments, translator=translator)
        # A factory makes checks, conditions and runs for the partitions it is given: for others it is called again.
        main = translator.main
        if (wanted := self.get_asset_spec(main).partitions_def) != main.spec.partitions_def:
            if "partitions_def" not in arguments:
                raise ConfigError("translation changes partitions_def, which follows from what the asset reads.")
            made = self.factory(**{**arguments, "partitions_def": wanted}, translator=translator)
        return made

    def get_asset_spec(self, data: LLMBatchTranslatorData) -> dg.AssetSpec:
        """Return the spec of one of the assets. Override it for what `translation` cannot say."""
        return data.spec if self.translation is None else self.translation(data.spec, data)

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the assets and their checks."""
        del context
        return dg.Definitions(assets=self.assets)


class _Translator(LLMBatchTranslator):
    """What a component makes of the specs of its factory."""

    main: LLMBatchTranslatorData
    """Of the labels or the figures that the component is named for."""

    def __init__(self, component: FactoryComponent, name: str) -> None:
        self._component = component
        self._name = name

    def get_asset_spec(self, data: LLMBatchTranslatorData) -> dg.AssetSpec:
        """Return what the component makes of it, but for partitions, which are the factory's to change."""
        if data.spec.key.path[-1] == self._name:
            self.main = data
        return self._component.get_asset_spec(data).replace_attributes(partitions_def=data.spec.partitions_def)


def _may_be_text(kind: Any) -> bool:
    choices = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return any(choice in (Any, str) or get_origin(choice) in (Literal, ClassVar) for choice in choices)


def _parameters(factory: Callable[..., Any]) -> list[str]:
    every = inspect.signature(factory).parameters.values()
    return [parameter.name for parameter in every if parameter.kind is not inspect.Parameter.VAR_KEYWORD]


Schema = dict[str, Any]


class _Pointed(Block):
    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> Schema:
        schema = super().model_json_schema(*args, **kwargs)
        # What is required comes first, for whoever reads the schema.
        required = schema.get("required", ())
        schema["properties"] = dict(
            sorted(schema["properties"].items(), key=lambda attribute: attribute[0] not in required)
        )
        decided: Schema = _decided(schema, schema.get("$defs", {}))
        return decided


def pointed(model: type[BaseModel]) -> type[BaseModel]:
    """Return the model with such a JSON Schema."""
    return create_model(model.__name__, __base__=(_Pointed, model))


def _decided(node: Any, named: Schema) -> Any:
    """Return the schema, and all within it, with choices that are made first."""
    if isinstance(node, list):
        return [_decided(item, named) for item in node]
    if not isinstance(node, dict):
        return node
    choices = _choices(node)
    rest = {key: value for key, value in node.items() if key not in ("anyOf", "oneOf", "discriminator")}
    if _can_be_told_apart(choices, named):
        node = rest | _chain(sorted(choices, key=lambda choice: _tag(choice, named) is None), named)
    return {key: value if key in ("default", "examples") else _decided(value, named) for key, value in node.items()}


def _choices(node: Schema) -> list[Schema]:
    """Return the choices of a union, and of the unions in it."""
    choices: list[Schema] = []
    for choice in (*node.get("anyOf", ()), *node.get("oneOf", ())):
        choices += _choices(choice) or [choice]
    return choices


def _can_be_told_apart(choices: list[Schema], named: Schema) -> bool:
    """By their types, which must not overlap, or by their tags. Choices of plain values need not be."""
    types = [kind for choice in choices if _tag(choice, named) is None for kind in _types(choice, named) or {"any"}]
    tagged = any(_tag(choice, named) for choice in choices)
    return (tagged or bool({"object", "array"} & set(types))) and "any" not in types and len(types) == len(set(types))


def _chain(choices: list[Schema], named: Schema) -> Schema:
    """If the first choice is meant, the value must fit it; else, if the second is, that; else its type is wrong."""
    tags = [tag for choice in choices if (tag := _tag(choice, named)) is not None]
    untagged = set[str]().union(*(_types(choice, named) for choice in choices if _tag(choice, named) is None))
    chain: Schema = {"type": sorted(untagged | ({"object"} if tags else set()))}
    if tags and "object" not in untagged:
        chain |= {"properties": {"type": {"enum": tags}}, "required": ["type"]}
    for choice in reversed(choices):
        tag = _tag(choice, named)
        meant: Schema = {"type": sorted(_types(choice, named))}
        if tag is not None:
            meant |= {"properties": {"type": {"const": tag}}, "required": ["type"]}
        chain = {"if": meant, "then": choice, "else": chain}
    return chain


def _target(choice: Schema, named: Schema) -> Schema:
    target: Schema = named[choice["$ref"].removeprefix("#/$defs/")] if "$ref" in choice else choice
    return target


def _types(choice: Schema, named: Schema) -> set[str]:
    """Return the JSON types of a choice; empty where it may be anything."""
    kind = _target(choice, named).get("type", [])
    return {kind} if isinstance(kind, str) else set(kind)


def _tag(choice: Schema, named: Schema) -> str | None:
    """Return what the attribute `type` of this choice must be."""
    target = _target(choice, named)
    kind: str | None = target.get("properties", {}).get("type", {}).get("const")
    return kind if "type" in target.get("required", ()) else None
