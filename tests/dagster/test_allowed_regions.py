"""Datasets that would send rows outside the allowed destinations are refused when definitions load, or in the run."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from code_location import BATCH, LABELS, CodeLocation, TicketLabel, failure, labeled, tickets

from dagster_llm_batch import (
    BedrockBatchResource,
    Cascade,
    LLMBatchResource,
    OpenAIBatchResource,
    Prompt,
    Resend,
    Rubric,
    preset,
    rubric_judge_assets,
)
from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.emulator import DEFAULT_KEY

HAIKU = "anthropic.claude-haiku-4-5-20251001-v1:0"


class SureLabel(TicketLabel):
    confidence: float


def resource(**rules: Any) -> LLMBatchResource:
    """Return a resource with Bedrock and a regional OpenAI in Europe, OpenAI without a region, and a custom server."""
    return LLMBatchResource(
        bedrock=BedrockBatchResource(
            role_arn="arn:aws:iam::123456789012:role/r", s3_uri="s3://bucket/f", region_name="eu-west-1"
        ),
        openai=OpenAIBatchResource(api_key=dg.EnvVar("A_KEY_THAT_IS_NOT_SET")),
        providers={
            "openai_eu": OpenAIBatchResource(api_key="k", base_url="https://eu.api.openai.com/v1"),
            "vllm": preset("vllm", base_url="http://llm.internal:8000/v1"),
        },
        **rules,
    )


def load(*assets: Any, **rules: Any) -> None:
    """Load definitions as a code location does."""
    rows = dg.AssetSpec("tickets")
    dg.Definitions.validate_loadable(dg.Definitions([rows, *assets], resources={"llm_batch": resource(**rules)}))


def judging(model: str) -> list[dg.AssetsDefinition]:
    return rubric_judge_assets(
        name="judged",
        rows="tickets",
        candidates=labeled(model="openai_eu/gpt-4o"),
        key="ticket_id",
        target="topic",
        prompt=Prompt(user="{{ body }} {{ answer }}"),
        rubric=Rubric({"right": "Is it?"}),
        model=model,
        params={"max_tokens": 50},
    )


DATASETS = {
    "model": lambda model: labeled(model=model),
    "fallback": lambda model: labeled(model="openai_eu/gpt-5", resend=Resend(fallback=[model])),
    "oracle": lambda model: labeled(
        model="openai_eu/gpt-4o-mini",
        response=SureLabel,
        cascade=Cascade(oracle=model, target="topic", agreement=0.9, sample=50),
    ),
    "cheap model": lambda model: labeled(
        model=model,
        response=SureLabel,
        cascade=Cascade(oracle="openai_eu/gpt-5", target="topic", agreement=0.9, sample=50),
    ),
    "judge": judging,
}


@pytest.mark.parametrize("place", DATASETS)
@pytest.mark.parametrize(
    ("model", "said"),
    [("openai/gpt-4o", "'global'"), (f"bedrock/us.{HAIKU}", "'us'"), ("vllm/qwen", "whose region is unknown")],
)
def test_a_dataset_with_a_model_elsewhere_does_not_load(place, model, said):
    assets = DATASETS[place](model)
    load(*assets)
    with pytest.raises(ConfigError) as refused:
        load(*assets, allowed_regions=["eu", "eu-*"])
    message = str(refused.value)
    assert f"would send rows to {model}" in message
    assert said in message
    assert "Allowed by allowed_regions: 'eu', 'eu-*'." in message
    assert "Name a model in one of these, or" in message


@pytest.mark.parametrize("place", DATASETS)
@pytest.mark.parametrize("model", [f"bedrock/{HAIKU}", f"bedrock/eu.{HAIKU}", "openai_eu/gpt-4o"])
def test_a_dataset_in_an_allowed_region_loads(place, model):
    load(*DATASETS[place](model), allowed_regions=["eu", "eu-*"])


def test_a_group_of_regions_and_one_region_are_two_names():
    load(*labeled(model=f"bedrock/{HAIKU}"), allowed_regions=["eu-*"])
    load(*labeled(model=f"bedrock/{HAIKU}"), allowed_regions=["eu-west-1"])
    with pytest.raises(ConfigError, match="runs in 'eu'"):
        load(*labeled(model=f"bedrock/eu.{HAIKU}"), allowed_regions=["eu-*"])
    with pytest.raises(ConfigError, match="runs in 'eu-west-1'"):
        load(*labeled(model=f"bedrock/{HAIKU}"), allowed_regions=["eu"])


@pytest.mark.parametrize("place", DATASETS)
def test_a_dataset_with_a_provider_that_is_not_allowed_does_not_load(place):
    load(*DATASETS[place]("openai/gpt-4o"), allowed_providers=["openai", "openai_eu"])
    with pytest.raises(ConfigError, match=r"provider 'openai' is not allowed.*'openai_eu', 'bedrock'.*or add 'openai'"):
        load(*DATASETS[place]("openai/gpt-4o"), allowed_providers=["openai_eu", "bedrock"])


def test_assets_that_somebody_changed_are_checked_too():
    assets = [asset.with_attributes(group_names_by_key={asset.key: "own"}) for asset in labeled()[:1]]
    with pytest.raises(ConfigError, match="runs in 'global'"):
        load(*assets, allowed_regions=["eu"])
    definitions = dg.Definitions(labeled(), resources={"llm_batch": resource(allowed_regions=["eu"])})
    tagged = definitions.map_asset_specs(func=lambda spec: spec.merge_attributes(tags={"team": "a"}))
    with pytest.raises(ConfigError, match="runs in 'global'"):
        dg.Definitions.validate_loadable(tagged)
    with pytest.raises(ConfigError, match="runs in 'global'"):
        dg.Definitions.validate_loadable(dg.Definitions.merge(definitions, dg.Definitions()))


def test_each_resource_has_rules_of_its_own():
    resources = {"llm_batch": resource(allowed_regions=["eu"]), "elsewhere": resource(allowed_regions=["global"])}
    dg.Definitions.validate_loadable(dg.Definitions(labeled(resource_key="elsewhere"), resources=resources))
    with pytest.raises(ConfigError, match="'ticket_labels' would send rows"):
        dg.Definitions.validate_loadable(dg.Definitions(labeled(), resources=resources))


def in_region(emulator, instance, region):
    """Return the usual code location, whose server runs in this region."""
    openai = {"runs_in": region}
    return CodeLocation(emulator, instance, *labeled(), openai=openai, allowed_regions=["eu"])


def test_labels_land_where_the_region_is_allowed(emulator, instance):
    location = in_region(emulator, instance, "eu")
    assert location.land().success
    assert location.metadata(LABELS)["dagster/partition_row_count"] == 3


def test_a_region_from_a_variable_is_checked_where_it_is_set_and_nothing_is_sent(emulator, instance, monkeypatch):
    monkeypatch.delenv("REGION_OF_SERVER", raising=False)
    location = in_region(emulator, instance, dg.EnvVar("REGION_OF_SERVER"))
    # Without the variable, the definitions load and the run is refused.
    assert "REGION_OF_SERVER, which is not set" in failure(location.submit())
    monkeypatch.setenv("REGION_OF_SERVER", "us")
    with pytest.raises(ConfigError, match=r"which runs in 'us'. Allowed by allowed_regions: 'eu'."):
        in_region(emulator, instance, dg.EnvVar("REGION_OF_SERVER"))
    assert not emulator.books.calls
    monkeypatch.setenv("REGION_OF_SERVER", "eu")
    assert location.submit().success


@pytest.fixture
def launched(emulator, instance):
    """Return a function that runs an asset with a rule from the launch's configuration, unchecked at load."""

    def run(name):
        openai = OpenAIBatchResource(api_key=DEFAULT_KEY, base_url=emulator.openai_base_url, runs_in="us")
        partial = LLMBatchResource.configure_at_launch(openai=openai)
        definitions = dg.Definitions(labeled(), resources={"llm_batch": partial})
        config = {"resources": {"llm_batch": {"config": {"allowed_regions": ["eu"]}}}}
        job = definitions.resolve_implicit_global_asset_job_def().get_subset(asset_selection={dg.AssetKey(name)})
        return job.execute_in_process(instance=instance, run_config=config, raise_on_error=False)

    return run


def test_a_resource_that_is_configured_at_the_launch_is_checked_in_the_run(emulator, launched):
    assert "'ticket_labels' would send rows to openai/gpt-4o, which runs in 'us'" in failure(launched(BATCH))
    assert not emulator.books.calls


def test_a_run_that_lands_does_not_send_what_was_planned_under_other_rules(emulator, instance, launched):
    engine = CodeLocation(emulator, instance, *labeled()).engine()
    planned = engine.plan(dataset_of(labeled()).labeling, tickets())
    refused = failure(launched(LABELS))
    assert f"Submission {planned.submission_id} would send rows to openai/gpt-4o, which runs in 'us'" in refused
    assert not emulator.books.calls
    engine.ledger.close()
