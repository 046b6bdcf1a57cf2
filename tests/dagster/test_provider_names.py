"""Providers with chosen names in a code location: their settings, and their names in Dagster."""

import dagster as dg
import pytest
from code_location import LABELS, CodeLocation, labeled

from dagster_llm_batch import (
    AnthropicBatchResource,
    GeminiBatchResource,
    LLMBatchResource,
    OpenAIBatchResource,
    QueueLimit,
)
from dagster_llm_batch.config import ProviderResource
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.testing.emulator import DEFAULT_KEY

OPENAI = OpenAIBatchResource(api_key=DEFAULT_KEY)


class OwnBatchResource(ProviderResource):
    """Settings of a kind that is not registered."""


def test_labels_land_by_a_provider_of_the_users_own_name(emulator, instance, monkeypatch):
    monkeypatch.setenv("KEY_OF_EU", DEFAULT_KEY)
    eu = OpenAIBatchResource(api_key=dg.EnvVar("KEY_OF_EU"), base_url=emulator.openai_base_url)
    lost = OpenAIBatchResource(api_key=dg.EnvVar("KEY_OF_NOBODY"))
    providers = {"openai_eu": eu, "lost": lost}
    location = CodeLocation(emulator, instance, *labeled(model="openai_eu/gpt-4o"), providers=providers)
    assert location.submit().success
    emulator.settle()
    [request] = location.tick().run_requests
    assert location.launch(request).success
    shown = location.metadata(LABELS)
    assert shown["llm_batch/model"] == "openai_eu/gpt-4o"
    # Insights expects OpenAI's figures, whatever the account is called here
    assert shown["openai.calls"] == 3
    assert shown["openai.total_tokens"] == shown["openai_eu.gpt-4o.total_tokens"]


def test_a_variable_that_is_not_set_is_the_trouble_of_its_provider_alone(tmp_path):
    providers = {"openai_eu": OpenAIBatchResource(api_key=dg.EnvVar("KEY_OF_NOBODY")), "openai_us": OPENAI}
    made = LLMBatchResource(providers=providers).make_providers(tmp_path)
    assert made["openai_us"].name == "openai_us"
    with pytest.raises(ConfigError, match="openai_eu: api_key comes from the environment variable KEY_OF_NOBODY"):
        _ = made["openai_eu"].name


@pytest.mark.parametrize("by_name", [False, True], ids=["field", "by name"])
def test_a_variable_that_is_not_set_stops_no_dataset_of_another_provider(emulator, instance, monkeypatch, by_name):
    monkeypatch.delenv("KEY_OF_NOBODY", raising=False)
    claude = AnthropicBatchResource(api_key=dg.EnvVar("KEY_OF_NOBODY"), base_url=emulator.anthropic_base_url)
    given = {"providers": {"claude_eu": claude}} if by_name else {"anthropic": claude}
    model = f"{'claude_eu' if by_name else 'anthropic'}/claude-haiku-4-5"
    location = CodeLocation(emulator, instance, *labeled(), *labeled(name="other_labels", model=model), **given)
    refused = location.run("other_labels_batch")
    assert not refused.success
    assert "environment variable KEY_OF_NOBODY, which is not set" in str(refused.all_events)
    assert location.submit().success
    emulator.settle()
    [request] = location.tick().run_requests
    assert location.launch(request).success
    assert location.metadata(LABELS)["dagster/partition_row_count"] > 0


@pytest.mark.parametrize("by_name", [False, True], ids=["field", "by name"])
def test_an_op_reads_the_settings_of_a_provider_from_the_environment_also_beside_an_unset_variable(
    monkeypatch, by_name
):
    monkeypatch.setenv("ADDRESS_OF_SOMEBODY", "http://127.0.0.1:1/v1")
    monkeypatch.delenv("KEY_OF_NOBODY", raising=False)
    openai = OpenAIBatchResource(api_key=dg.EnvVar("KEY_OF_NOBODY"), base_url=dg.EnvVar("ADDRESS_OF_SOMEBODY"))
    given = LLMBatchResource(providers={"eu": openai}) if by_name else LLMBatchResource(openai=openai)
    seen = []

    @dg.op
    def look(llm_batch: LLMBatchResource) -> None:
        seen.append(llm_batch.providers["eu"] if by_name else llm_batch.openai)

    @dg.job
    def looks() -> None:
        look()

    assert looks.execute_in_process(resources={"llm_batch": given}).success
    [read] = seen
    assert read.base_url == "http://127.0.0.1:1/v1"
    with pytest.raises(ConfigError, match="environment variable KEY_OF_NOBODY, which is not set"):
        read.named("eu")


def test_dagster_shows_the_variables_of_providers_in_fields_as_used_by_the_resource():
    resource = LLMBatchResource(anthropic=AnthropicBatchResource(api_key=dg.EnvVar("KEY_OF_NOBODY")))
    repository = dg.Definitions(resources={"llm_batch": resource}).get_repository_def()
    assert repository.get_env_vars_by_top_level_resource()["KEY_OF_NOBODY"] == {"llm_batch"}


def test_a_variable_that_holds_no_number_is_named_without_its_value(tmp_path, monkeypatch):
    monkeypatch.setenv("BYTES_OF_NOBODY", "a-secret-word")
    gemini = GeminiBatchResource(api_key="k", inline_bytes=dg.EnvVar.int("BYTES_OF_NOBODY"))
    made = LLMBatchResource(providers={"own": gemini}).make_providers(tmp_path)
    with pytest.raises(ConfigError, match="variable BYTES_OF_NOBODY, which holds no whole number") as refused:
        _ = made["own"].name
    assert "a-secret-word" not in str(refused.value)


def test_the_short_form_is_the_provider_with_the_name_of_its_kind(tmp_path):
    short = LLMBatchResource(openai=OPENAI).make_providers(tmp_path)["openai"]
    named = LLMBatchResource(providers={"openai": OPENAI}).make_providers(tmp_path)["openai"]
    assert (short.name, short.account) == (named.name, named.account) == ("openai", "api.openai.com/v1")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"providers": {"eu/openai": OPENAI}}, "providers has 'eu/openai', which can be no name of a provider"),
        ({"providers": {"": OPENAI}}, "providers has '', which can be no name"),
        ({"providers": {"_eu": OPENAI}}, "providers has '_eu', which can be no name"),
        (
            {"providers": {"e" * 64: OPENAI}},
            "which can be no name of a provider. It begins with a letter and",
        ),
        ({"providers": {"openai": AnthropicBatchResource(api_key="k")}}, "'openai'] is of the kind 'anthropic'"),
        ({"providers": {"ray": OwnBatchResource()}}, "'ray'] is of the kind 'of your own', and 'ray' is the name of"),
        ({"providers": {"openai": OPENAI}, "openai": OPENAI}, "There are two providers 'openai'"),
        (
            {"providers": {"openai_eu": OPENAI}, "queue_limits": {"openai_ue/gpt-4o": QueueLimit(max_batches=1)}},
            "there is no configured provider 'openai_ue'; did you mean 'openai_eu'?",
        ),
    ],
)
def test_a_name_that_cannot_be_is_refused_when_definitions_load(settings, said):
    with pytest.raises(ConfigError) as refused:
        LLMBatchResource(**settings)
    assert said in str(refused.value)
