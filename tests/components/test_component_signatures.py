"""The components can say all that the Python API can, and nothing else."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import dagster as dg
import jsonschema
import pytest
from pydantic import BaseModel

from dagster_llm_batch import (
    Checks,
    Embedding,
    Fallback,
    Limits,
    LLMBatchAgreementComponent,
    LLMBatchComponent,
    LLMBatchCostComponent,
    LLMBatchDriftComponent,
    LLMBatchEvaluationComponent,
    LLMBatchGoldSampleComponent,
    LLMBatchPairwiseJudgeComponent,
    LLMBatchRubricJudgeComponent,
    LLMBatchSkewComponent,
    Prompt,
    Realtime,
    Resend,
    Spend,
    TokenPrice,
    agreement_assets,
    build_llm_batch_sensor,
    cost_assets,
    drift_assets,
    evaluation_assets,
    gold_sample_assets,
    llm_batch_assets,
    pairwise_judge_assets,
    resources,
    rubric_judge_assets,
    skew_assets,
)
from dagster_llm_batch.components import settings
from dagster_llm_batch.components.attributes import RetryPolicySettings
from dagster_llm_batch.components.resolution import MadeBlock
from dagster_llm_batch.metrics import Target

COMPONENTS = [
    (LLMBatchComponent, llm_batch_assets, {"translation", "resource", "sensor", "jobs"}),
    (LLMBatchEvaluationComponent, evaluation_assets, {"translation"}),
    (LLMBatchAgreementComponent, agreement_assets, {"translation"}),
    (LLMBatchCostComponent, cost_assets, {"translation"}),
    (LLMBatchDriftComponent, drift_assets, {"translation"}),
    (LLMBatchGoldSampleComponent, gold_sample_assets, {"translation"}),
    (LLMBatchPairwiseJudgeComponent, pairwise_judge_assets, {"translation"}),
    (LLMBatchRubricJudgeComponent, rubric_judge_assets, {"translation"}),
    (LLMBatchSkewComponent, skew_assets, {"translation"}),
]
OF_THE_JUDGE = {"keep", "empty", "required_resource_keys", "response"}
"""Arguments of `llm_batch_assets` that a judge says itself."""
BLOCKS = [
    (RetryPolicySettings, dg.RetryPolicy, set(), set()),
    (settings.LimitsSettings, Limits, set(), set()),
    (settings.RealtimeSettings, Realtime, set(), set()),
    (settings.ResendSettings, Resend, set(), set()),
    (settings.SpendSettings, Spend, set(), set()),
    (settings.ChecksSettings, Checks, set(), set()),
    (settings.PriceSettings, TokenPrice, set(), set()),
    (settings.FallbackSettings, Fallback, set(), set()),
    (settings.TargetSettings, Target, set(), set()),
    (settings.EmbeddingSettings, Embedding, {"type"}, set()),
    (settings.PromptSettings, Prompt, {"user_file", "system_file"}, set()),
    (settings.SensorSettings, build_llm_batch_sensor, set(), {"resource_key"}),  # the component's own
]
MODELS = [component.get_model_cls() for component, _, _ in COMPONENTS]


def parameters(api: Callable[..., Any]) -> dict[str, Any]:
    """Names and defaults; what a judge hands on to `llm_batch_assets` is among them. `translation` is in the place of
    `translator`.
    """
    own = {name: one for name, one in inspect.signature(api).parameters.items() if name != "translator"}
    named = {name: one.default for name, one in own.items() if one.kind is not inspect.Parameter.VAR_KEYWORD}
    if len(named) == len(own):
        return named
    return {name: one for name, one in parameters(llm_batch_assets).items() if name not in OF_THE_JUDGE} | named


@pytest.mark.parametrize(("component", "factory", "more"), COMPONENTS)
def test_a_component_has_an_attribute_for_each_argument_of_its_factory(component, factory, more):
    assert set(component.get_model_cls().model_fields) == set(parameters(factory)) | more


@pytest.mark.parametrize(("component", "factory", "more"), COMPONENTS)
def test_an_attribute_that_is_left_out_is_what_the_factory_would_take(component, factory, more):
    defaults = {
        field.name: inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default
        for field in dataclasses.fields(component)
    }
    renamed = {python: name for name, python in component.renamed.items()}
    given = {renamed.get(name, name): default for name, default in defaults.items()}
    assert {name: given[name] for name in parameters(factory)} == parameters(factory)


@pytest.mark.parametrize(("block", "api", "more", "less"), BLOCKS)
def test_a_block_has_the_settings_of_what_it_becomes(block, api, more, less):
    assert set(block.model_fields) == (set(parameters(api)) - less) | more


@pytest.mark.parametrize(("block", "api", "more", "less"), BLOCKS)
def test_a_setting_that_is_left_out_has_the_default_that_the_docs_show(block, api, more, less):
    for name, default in parameters(api).items():
        if default is not inspect.Parameter.empty and name not in less:
            shown = block.model_fields[name].default
            shown = shown.make(**shown.model_dump(exclude_unset=True)) if isinstance(shown, MadeBlock) else shown
            assert (tuple(shown) if isinstance(shown, list) else shown) == getattr(default, "value", default), name


def test_the_resource_in_yaml_has_every_setting_of_every_provider_budget_and_limit():
    shown = LLMBatchComponent.get_model_cls().model_json_schema()["$defs"]
    for one in (getattr(resources, name) for name in resources.__all__):
        block = shown[f"{one.__name__}Settings"]
        assert set(block["properties"]) == set(one.model_fields)
        assert set(block.get("required", ())) == {
            name for name, field in one.model_fields.items() if field.is_required()
        }


@pytest.mark.parametrize("model", MODELS)
def test_every_attribute_and_every_setting_says_what_it_is(model):
    schema = model.model_json_schema()
    for name, one in [("", schema), *schema["$defs"].items()]:
        if not name.endswith(("PartitionsDefinitionModel", "AssetSpecUpdateKwargsModel")):  # Dagster's own
            for attribute, shown in one.get("properties", {}).items():
                assert attribute == "type" or shown.get("description"), f"{name}.{attribute}"


def _examples(model: type[BaseModel]) -> list[Any]:
    schema = model.model_json_schema()
    return [
        pytest.param({**one, "$defs": schema["$defs"]}, example, id=f"{model.__name__}.{name}-{number}")
        for name, one in schema["properties"].items()
        for number, example in enumerate(one.get("examples", ()))
    ]


@pytest.mark.parametrize(("schema", "example"), [one for model in MODELS for one in _examples(model)])
def test_every_example_that_is_shown_is_valid(schema, example):
    jsonschema.Draft202012Validator(schema).validate(example)
