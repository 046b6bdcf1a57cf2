"""The common part of all components: attributes are a factory's arguments, specs can be translated, errors have lines.

`dg check yaml` validates attributes by a JSON Schema. For `anyOf`, a validator reports only that no choice fits, so
that an error would point at a whole block. `pointed` changes the schema: it first selects a choice, by the type of the
value or by its attribute `type`, and then validates only this choice. The valid values stay the same.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property, partial, wraps
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import dagster as dg
from dagster.components.utils.translation import TranslationFn, TranslationFnResolver
from pydantic import BaseModel, create_model

from dagster_llm_batch._dagster_private import replace_function
from dagster_llm_batch.arguments import annotation_text, checked
from dagster_llm_batch.assets import ROLE_TAG, LLMBatchTranslator, LLMBatchTranslatorData
from dagster_llm_batch.automation import on_labels_ready
from dagster_llm_batch.components.attributes import Form, attributes_of, shown
from dagster_llm_batch.components.resolution import Block, path_about, pointing_at
from dagster_llm_batch.errors import ConfigError

__all__ = ["ComponentOp", "FactoryComponent", "component_of"]

Translation = Annotated[
    Annotated[
        TranslationFn[LLMBatchTranslatorData],
        TranslationFnResolver[LLMBatchTranslatorData](lambda data: {"role": data.role, "dataset": data.dataset}),
    ]
    | None,
    dg.Resolver.default(
        description=(
            "Changes the specs of the assets, one by one. `spec` is the current spec, `role` the role of the asset "
            "(batch, labels, rejects, evaluation, mistakes, …), and `dataset` the dataset that it belongs to."
        ),
        examples=[{"kinds": ["snowflake"]}, {"key_prefix": "staging"}],
    ),
]


_MAPPINGS = {name: getattr(dg, name) for name in dir(dg) if name.endswith("PartitionMapping")}
"""By their names: Dagster's `dg` of templates lacks them."""


_Component = TypeVar("_Component", bound="FactoryComponent")

_PYTHON_NAMES = {"model": "llm"}
"""The Python name of an attribute that cannot have its own name: `model` is a method of Resolvable."""
_YAML_NAMES = {python_name: name for name, python_name in _PYTHON_NAMES.items()}

_TRANSLATOR = "translator"
"""An argument that is no attribute: `translation`, and `get_asset_spec` of a subclass, are in its place."""


def component_of(
    factory: Callable[..., list[dg.AssetsDefinition]], *described_in: Any, forms: Mapping[Any, Form] | None = None
) -> Callable[[type[_Component]], type[_Component]]:
    """Decorate a component: the arguments of the factory become attributes, in addition to its own.

    Types and defaults come from the signature. Descriptions come from the docstring, or for arguments that it describes
    by a reference, from `described_in`. See `attributes_of`.
    """

    def decorate(component: type[_Component]) -> type[_Component]:
        annotations = {}
        for name, (annotation, default) in attributes_of(
            factory, *described_in, forms=forms, without=[_TRANSLATOR]
        ).items():
            python_name = _PYTHON_NAMES.get(name, name)
            annotations[python_name] = annotation
            if default is not inspect.Parameter.empty:
                setattr(component, python_name, default)
        component.__annotations__ = annotations | inspect.get_annotations(component)
        component.factory = staticmethod(factory)
        return dataclass(kw_only=True)(component)

    return decorate


@checked
@dataclass(frozen=True)
class ComponentOp:
    """One of the ops of a component.

    Args:
        role: "batch" for the op that submits, "labels" for the op that materializes labels and rejects, "evaluation"
            for any other. It is the `llm_batch/role` of the assets that the op computes.
        compute: Does the op's computation without an override, and yields Dagster's events.
    """

    role: str
    compute: Callable[[dg.AssetExecutionContext], Iterator[Any]]


@dataclass(kw_only=True)
class FactoryComponent(dg.Component, dg.Resolvable):
    """A component whose attributes are the arguments of `factory`; see `component_of`."""

    factory: ClassVar[Callable[..., list[dg.AssetsDefinition]]]

    translation: Translation = None

    if TYPE_CHECKING:
        # Attributes that come from a signature are known when the component is imported, not before.
        def __init__(self, **attributes: Any) -> None: ...
        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def get_additional_scope(cls) -> Mapping[str, Any]:
        """Return the names that templates can use: `on_labels_ready`, `python` (the interpreter that runs this code),
        Dagster's partition mappings, and the names of a subclass.
        """
        own = {"on_labels_ready": on_labels_ready, "python": sys.executable}
        return {**own, **_MAPPINGS, **super().get_additional_scope()}

    @classmethod
    def get_model_cls(cls) -> type[BaseModel]:
        """Return the attributes in YAML."""
        defaults = {own.name: own.default for own in fields(cls) if own.default is not MISSING}
        return pointed(cls.model(), {_YAML_NAMES.get(name, name): default for name, default in defaults.items()})

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """Make the component of YAML. Refuses wrong settings here, since their lines are known."""
        component: Self = super().resolve_from_model(context, model)
        component._refuse_text(context)
        with pointing_at(context, path_about(type(model).model_fields)):
            _ = component.assets
        return component

    def _refuse_text(self, context: dg.ResolutionContext) -> None:
        """Raise ConfigError for text in an attribute that does not take text.

        Dagster's model takes text for every attribute, since it may be a template. Here all templates are rendered.
        """
        for name, kind in get_type_hints(type(self)).items():
            value = getattr(self, name, None)
            if isinstance(value, str) and not _may_be_text(kind):
                with pointing_at(context.at_path(_YAML_NAMES.get(name, name))):
                    kinds = annotation_text(kind)
                    raise ConfigError(f"{name}={value!r} is text; it takes {kinds}, or a template that gives one.")

    @cached_property
    def assets(self) -> list[dg.AssetsDefinition]:
        """The assets of the factory, with translated specs."""
        names = [name for name in inspect.signature(self.factory).parameters if name != _TRANSLATOR]
        arguments = {name: getattr(self, _PYTHON_NAMES.get(name, name)) for name in names}
        translator = _Translator(self, arguments["name"])
        made = self.factory(**arguments, translator=translator)
        # A factory makes checks, conditions and runs for the partitions it is given: for others it is called again.
        main = translator.main
        if (wanted := self.get_asset_spec(main).partitions_def) != main.spec.partitions_def:
            if "partitions_def" not in arguments:
                raise ConfigError(
                    "translation changes partitions_def, which follows from the asset's inputs. Leave it unchanged."
                )
            made = self.factory(**{**arguments, "partitions_def": wanted}, translator=translator)
        if type(self).execute is not FactoryComponent.execute:
            for definition in made:
                replace_function(definition, self._executed(definition))
        return made

    def get_asset_spec(self, data: LLMBatchTranslatorData) -> dg.AssetSpec:
        """Return the spec of one of the assets. Override it for changes beyond `translation`."""
        return data.spec if self.translation is None else self.translation(data.spec, data)

    def execute(self, context: dg.AssetExecutionContext, op: ComponentOp) -> Iterator[Any]:
        """Compute one of the ops of this component, and give Dagster's events. Override it to do more, or other things.

        Args:
            context: The context of the op.
            op: The op; `op.role` is "batch" for the op that submits, "labels" for the op that materializes labels.
        """
        yield from op.compute(context)

    def _executed(self, definition: dg.AssetsDefinition) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Return a decorator of the function of these assets: it is run by `execute`."""
        roles = {spec.tags.get(ROLE_TAG) for spec in definition.specs}
        role = next((role for role in ("batch", "labels") if role in roles), "evaluation")

        def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(function)
            def run(context: dg.AssetExecutionContext, **inputs: Any) -> Iterator[Any]:
                yield from self.execute(context, ComponentOp(role, partial(function, **inputs)))

            return run

        return decorate

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the assets and their checks."""
        del context
        return dg.Definitions(assets=self.assets)


class _Translator(LLMBatchTranslator):
    """A component's changes of the specs of its factory."""

    main: LLMBatchTranslatorData
    """For the labels or the figures that the component is named for."""

    def __init__(self, component: FactoryComponent, name: str) -> None:
        self._component = component
        self._name = name

    def get_asset_spec(self, data: LLMBatchTranslatorData) -> dg.AssetSpec:
        """Return the component's spec, except for partitions, which only the factory may change."""
        if data.spec.key.path[-1] == self._name:
            self.main = data
        return self._component.get_asset_spec(data).replace_attributes(partitions_def=data.spec.partitions_def)


def _may_be_text(kind: Any) -> bool:
    choices = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return any(choice in (Any, str) or get_origin(choice) in (Literal, ClassVar) for choice in choices)


Schema = dict[str, Any]


class _Pointed(Block):
    defaults: ClassVar[Mapping[str, Any]]

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> Schema:
        schema = super().model_json_schema(*args, **kwargs)
        # Dagster shows a mark in the place of a default that is no plain value.
        for name, default in cls.defaults.items():
            schema["properties"][name]["default"] = shown(default)
        # Required attributes come first, for the reader of the schema.
        required = schema.get("required", ())
        schema["properties"] = dict(
            sorted(schema["properties"].items(), key=lambda attribute: attribute[0] not in required)
        )
        decided: Schema = _decided(schema, schema.get("$defs", {}))
        return decided


def pointed(model: type[BaseModel], defaults: Mapping[str, Any]) -> type[BaseModel]:
    """Return the model with such a JSON Schema, which shows these defaults."""
    shown_model: Any = create_model(model.__name__, __base__=(_Pointed, model))
    shown_model.defaults = defaults
    return shown_model  # type: ignore[no-any-return]


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
    """By their types, which must not overlap, by their tags, or, for blocks without tags, by their first required
    attribute. Choices of plain values need no distinction.
    """
    untagged = [choice for choice in choices if _tag(choice, named) is None]
    marks = [mark for choice in untagged if (mark := _mark(choice, named)) is not None]
    of_blocks = ["object"] if len(marks) == len(set(marks)) else marks
    others = [choice for choice in untagged if _mark(choice, named) is None]
    types = [*(of_blocks if marks else []), *(kind for choice in others for kind in _types(choice, named) or {"any"})]
    tagged = any(_tag(choice, named) for choice in choices)
    return (tagged or bool({"object", "array"} & set(types))) and "any" not in types and len(types) == len(set(types))


def _chain(choices: list[Schema], named: Schema) -> Schema:
    """If the first choice is selected, the value must fit it; else, if the second is, that; else its type is wrong."""
    tags = [tag for choice in choices if (tag := _tag(choice, named)) is not None]
    untagged = set[str]().union(*(_types(choice, named) for choice in choices if _tag(choice, named) is None))
    chain: Schema = {"type": sorted(untagged | ({"object"} if tags else set()))}
    if tags and "object" not in untagged:
        chain |= {"properties": {"type": {"enum": tags}}, "required": ["type"]}
    blocks = [choice for choice in choices if _tag(choice, named) is None and _mark(choice, named) is not None]
    for choice in reversed(choices):
        tag = _tag(choice, named)
        meant: Schema = {"type": sorted(_types(choice, named))}
        if tag is not None:
            meant |= {"properties": {"type": {"const": tag}}, "required": ["type"]}
        # a value without the mark of a block counts as the last block
        elif choice in blocks[:-1]:
            meant |= {"required": [_mark(choice, named)]}
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
    """Return the required value of the attribute `type` of this choice."""
    target = _target(choice, named)
    kind: str | None = target.get("properties", {}).get("type", {}).get("const")
    return kind if "type" in target.get("required", ()) else None


def _mark(choice: Schema, named: Schema) -> str | None:
    """Return the first attribute that this choice must have."""
    return next(iter(_target(choice, named).get("required", ())), None)
