"""Components are made from the factories, and have the same signature and docstring."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from datetime import timedelta
from decimal import Decimal
from typing import Any, Literal, get_type_hints

import dagster as dg
import jsonschema
import pytest
from pydantic import BaseModel
from yaml_project import loaded

import dagster_llm_batch
from dagster_llm_batch import (
    Limits,
    LLMBatchComponent,
    LLMBatchTranslator,
    LLMBatchTranslatorData,
    components,
    resources,
)
from dagster_llm_batch.arguments import checked
from dagster_llm_batch.components.attributes import attributes_of
from dagster_llm_batch.components.base import FactoryComponent
from dagster_llm_batch.definition import rules
from tests.tables import table

COMPONENTS = [getattr(components, name) for name in components.__all__ if name.endswith("Component")]
OWN = {LLMBatchComponent: {"translation", "resource", "sensor", "jobs", "retention"}}
"""Attributes that are not arguments of the factory. Other components only have `translation`."""
MODELS = [component.get_model_cls() for component in COMPONENTS]
DAGSTERS = ("PartitionsDefinitionModel", "AssetSpecUpdateKwargsModel")
"""Blocks that Dagster declares."""


def test_every_factory_of_assets_has_a_component():
    factories = {
        getattr(dagster_llm_batch, name) for name in dagster_llm_batch.__all__ if name.endswith(("_assets", "_labels"))
    }
    assert {component.factory for component in COMPONENTS} == factories


@table("component", COMPONENTS)
def test_attributes_types_and_defaults_are_those_of_the_signature(component):
    arguments = dict(inspect.signature(component.factory).parameters)
    # `translation`, and `get_asset_spec` of a subclass, replace it
    del arguments["translator"]
    assert set(component.get_model_cls().model_fields) == {*arguments, *OWN.get(component, {"translation"})}
    kinds, wanted = get_type_hints(component), get_type_hints(component.factory)
    defaults = {field.name: field.default for field in fields(component)}
    for name, argument in arguments.items():
        python_name = "llm" if name == "model" else name
        default = MISSING if argument.default is inspect.Parameter.empty else argument.default
        assert (kinds[python_name], defaults[python_name]) == (wanted[name], default)


@checked
@dataclass(frozen=True)
class Patience:
    """How long to wait.

    Args:
        longest: The longest wait.
        fast: Seconds of a fast one.
    """

    longest: timedelta = timedelta(minutes=90)
    fast: Decimal | None = None


def shipped_assets(
    *,
    name: str,
    columns: Sequence[str] = ("a", "b"),
    patience: Patience | None = None,
    severity: dg.AssetCheckSeverity = dg.AssetCheckSeverity.WARN,
    how: Literal["slow", "fast"] = "slow",
    least: float | Mapping[str, float] | None = None,
    translator: LLMBatchTranslator,
) -> list[dg.AssetsDefinition]:
    """Declare what a test declares.

    Args:
        name: Name of the asset.
        columns: Columns that are
            shipped.
        patience, severity: See `others`.
        how: How it is shipped.
        least: Least weight.
    """
    spec = dg.AssetSpec(name, metadata={"least": repr(least)})
    data = LLMBatchTranslatorData(spec=spec, role="evaluation", dataset=name)
    return [dg.AssetsDefinition(specs=[translator.get_asset_spec(data)])]


def others(patience, severity):
    """Describe.

    Args:
        patience: What it waits for.
        severity: How bad it is.
    """


SHIPPED = """
from dataclasses import dataclass
from dagster_llm_batch.components.base import FactoryComponent, component_of
from test_component_signatures import others, shipped_assets

@component_of(shipped_assets, others)
class Shipped(FactoryComponent):
    "Something new."

@dataclass(kw_only=True)
class More(Shipped):
    port: int = 80
"""


@pytest.mark.parametrize("kind", [".shipped.Shipped", ".shipped.More"])
def test_an_argument_that_a_factory_gains_is_an_attribute_at_once(kind):
    given = {"name": "x", "patience": {"longest": {"hours": 2}, "fast": "0.5"}, "severity": "ERROR", "least": {"a": 1}}
    given |= {"port": 8080} if kind.endswith("More") else {}
    with loaded(given, kind, files={"shipped.py": SHIPPED}) as project:
        component: Any = project.component
        assert component.patience == Patience(timedelta(hours=2), "0.5")
        assert component.severity is dg.AssetCheckSeverity.ERROR
        assert component.columns == ("a", "b")
        assert project.spec("x").metadata["least"] == "{'a': 1.0}"
        assert getattr(component, "port", 8080) == 8080
        schema = type(component).get_model_cls().model_json_schema()
    jsonschema.Draft202012Validator(schema).validate(given)
    shown = {
        name: (one.get("default"), one.get("description"))
        for name, one in schema["properties"].items()
        if name in given
    }
    assert shown == {
        "name": (None, "Name of the asset."),
        "patience": (None, "What it waits for."),
        "severity": ("WARN", "How bad it is."),
        "least": (None, "Least weight."),
    } | ({"port": shown["port"]} if "port" in given else {})
    assert schema["required"] == ["name"]
    assert schema["properties"]["columns"]["default"] == ["a", "b"]
    assert schema["properties"]["columns"]["description"] == "Columns that are shipped."
    block = schema["$defs"]["PatienceSettings"]
    assert block["description"] == "How long to wait."
    assert block["properties"]["longest"]["default"] == {"minutes": 90}
    assert block["properties"]["fast"]["description"] == "Seconds of a fast one."


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (str | Mapping[str, BaseModel], "BaseModel.* has no form in YAML. Add one to FORMS"),
        (dg.AssetSpec | None, "mail_assets: to cannot be written in YAML"),
    ],
)
def test_an_argument_that_yaml_cannot_say_is_refused_when_the_component_is_declared(kind, message):
    def mail_assets(*, to: Any) -> None:
        """Declare nothing."""

    mail_assets.__annotations__["to"] = kind
    with pytest.raises(TypeError, match=message):
        attributes_of(mail_assets)


def test_the_resource_in_yaml_has_every_setting_of_every_provider_budget_and_limit():
    shown = LLMBatchComponent.get_model_cls().model_json_schema()["$defs"]
    for rule in (rules.Budget, rules.QueueLimit):  # a deployment can set every rule that the engine has
        assert list(getattr(resources, rule.__name__).model_fields) == [field.name for field in fields(rule)]
    in_python_alone = {"preset", "AzureOpenAIBatchResource"}  # YAML has `kind: azure` instead
    for one in (getattr(resources, name) for name in resources.__all__ if name not in in_python_alone):
        block = shown[f"{one.__name__}Settings"]
        assert set(block["properties"]) == set(one.model_fields)
        assert set(block.get("required", ())) == {
            name for name, field in one.model_fields.items() if field.is_required()
        }


@table("model", MODELS)
def test_every_attribute_and_every_setting_says_what_it_is_and_its_default(model):
    schema = model.model_json_schema()
    for block, one in [("", schema), *schema["$defs"].items()]:
        if block.endswith(DAGSTERS):
            continue
        for name, shown in one.get("properties", {}).items():
            description = shown.get("description", "")
            assert name == "type" or description.endswith((".", "…")), f"{block}.{name}: {description}"
            assert not description.startswith(("See ", "As for ")), f"{block}.{name} is described elsewhere"
            assert name in one.get("required", ()) or "DAGSTER" not in str(shown["default"]), f"{block}.{name}"


def test_a_block_has_the_settings_of_what_it_becomes():
    blocks = LLMBatchComponent.get_model_cls().model_json_schema()["$defs"]
    assert set(blocks["LimitsSettings"]["properties"]) == set(inspect.signature(Limits).parameters)
    assert blocks["LimitsSettings"]["properties"]["below_minimum"]["default"] == "refuse"
    assert "resource_key" not in blocks["SensorSettings"]["properties"]
    assert blocks["SensorSettings"]["properties"]["default_status"]["default"] == "RUNNING"


def test_every_example_that_is_shown_is_valid():
    wrong = {}
    for model in MODELS:
        schema = model.model_json_schema()
        for name, one in schema["properties"].items():
            validator = jsonschema.Draft202012Validator({**one, "$defs": schema["$defs"]})
            for number, example in enumerate(one.get("examples", ())):
                if errors := [error.message for error in validator.iter_errors(example)]:
                    wrong[f"{model.__name__}.{name}-{number}"] = errors
    assert wrong == {}


def test_a_component_can_be_made_in_python_too():
    component = LLMBatchComponent(
        name="labels", rows="rows", key="id", prompt=dagster_llm_batch.Prompt("{{ a }}"), llm="a/b"
    )
    assert isinstance(component, FactoryComponent)
    assert {spec.key.to_user_string() for made in component.assets for spec in made.specs} == {
        "labels",
        "labels_batch",
        "labels_rejects",
    }
