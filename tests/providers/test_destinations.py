"""The destinations of requests of each kind of provider, by its settings."""

from __future__ import annotations

import dagster as dg
import pytest
from google.auth.credentials import AnonymousCredentials

from dagster_llm_batch import (
    AnthropicBatchResource,
    AzureOpenAIBatchResource,
    BedrockBatchResource,
    CommandBatchResource,
    GeminiBatchResource,
    LLMBatchResource,
    OpenAIBatchResource,
    OpenRouterBatchResource,
    RayBatchResource,
    SlurmBatchResource,
    VertexBatchResource,
    preset,
)
from dagster_llm_batch.config import ProviderResource
from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.providers.registry import PROVIDERS, class_at
from dagster_llm_batch.testing.contracts import DestinationContract
from dagster_llm_batch.types import Destination

HAIKU = "anthropic.claude-haiku-4-5-20251001-v1:0"
ARN = "arn:aws:bedrock:eu-central-1:123456789012"
PUBLISHERS = (
    *("ai21", "amazon", "anthropic", "cohere", "deepseek", "google", "luma", "meta", "minimax", "mistral", "moonshot"),
    *("moonshotai", "nvidia", "openai", "qwen", "stability", "twelvelabs", "writer", "zai"),
)
ELSEWHERE = "http://127.0.0.1:1/v1"


def bedrock(**settings):
    usual = {"role_arn": "arn:aws:iam::123456789012:role/r", "s3_uri": "s3://bucket/f", "region_name": "eu-central-1"}
    return BedrockBatchResource(**{**usual, **settings})


def vertex(**settings):
    return VertexBatchResource(**{"project": "p", "location": "europe-west4", "bucket": "b", **settings})


SETTINGS = {
    "command": CommandBatchResource(command=["true"]),
    "openai": OpenAIBatchResource(api_key="k"),
    "anthropic": AnthropicBatchResource(api_key="k"),
    "gemini": GeminiBatchResource(api_key="k"),
    "vertex": vertex(),
    "bedrock": bedrock(),
    "openrouter": OpenRouterBatchResource(api_key="k"),
    "ray": RayBatchResource(address="http://r:1", storage="/s", call="m:f"),
    "slurm": SlurmBatchResource(command=["true"], workdir="/w"),
}


class TestEachKind(DestinationContract):
    @pytest.fixture(params=PROVIDERS)
    def settings(self, request):
        return SETTINGS[request.param]


class TestEachPreset(DestinationContract):
    @pytest.fixture(params=["azure", "mistral", "groq", "vllm", "opper"])
    def settings(self, request):
        url = {"base_url": ELSEWHERE} if request.param in ("azure", "vllm") else {}
        return preset(request.param, api_key="k", **url)


@pytest.mark.parametrize("kind", PROVIDERS)
def test_each_registered_kind_reads_a_destination_or_says_why_it_has_none(kind):
    entry = PROVIDERS[kind]
    assert bool(entry.destination) != bool(entry.no_destination)
    assert isinstance(SETTINGS[kind], class_at(entry.resource))
    found = SETTINGS[kind].destination(HAIKU, {})
    assert (found.region is None) == bool(entry.no_destination)
    assert entry.no_destination in found.reason


@pytest.mark.parametrize(
    ("settings", "region"),
    [
        (OpenAIBatchResource(api_key="k", base_url="https://eu.api.openai.com/v1"), "eu"),
        (OpenAIBatchResource(api_key="k"), "global"),
        (OpenRouterBatchResource(api_key="k", base_url="https://eu.openrouter.ai/api/v1"), "eu"),
        (OpenRouterBatchResource(api_key="k"), "global"),
        (AnthropicBatchResource(api_key="k"), "global"),
        (AnthropicBatchResource(platform="aws", region_name="eu-west-1", workspace_id="w"), "global"),
        (GeminiBatchResource(api_key="k"), "global"),
        (vertex(), "europe-west4"),
        (vertex(location="global"), "global"),
    ],
)
def test_the_settings_show_the_region(settings, region):
    assert settings.destination("a-model", {}).region == region


def test_claude_runs_in_the_geography_that_the_parameter_names():
    claude = AnthropicBatchResource(api_key="k", runs_in="eu")
    assert claude.destination("claude-opus-5", {"inference_geo": "us"}) == Destination("us")


@pytest.mark.parametrize(
    ("model", "region"),
    [
        (HAIKU, "eu-central-1"),
        (f"eu.{HAIKU}", "eu"),
        (f"us.{HAIKU}", "us"),
        (f"us-gov.{HAIKU}", "us-gov"),
        (f"global.{HAIKU}", "global"),
        # A geography that is newer than this package.
        (f"mx.{HAIKU}", "mx"),
        *((f"mx.{publisher}.a-model-v1:0", "mx") for publisher in PUBLISHERS),
        *((f"{publisher}.a-model-v1:0", "eu-central-1") for publisher in PUBLISHERS),
        ("mx.zai.glm-4.6", "mx"),
        ("deepseek.v3.2", "eu-central-1"),
        (f"{ARN}:inference-profile/us.{HAIKU}", "us"),
        (f"arn:aws:bedrock:eu-central-1::foundation-model/{HAIKU}", "eu-central-1"),
        (f"{ARN}:custom-model/anthropic.claude/abc", "eu-central-1"),
        # These stand for models of any region.
        (f"{ARN}:application-inference-profile/abc", None),
        (f"{ARN}:default-prompt-router/anthropic.claude:1", None),
        ("abcdefghijkl", None),
        ("arn:aws:bedrock:us-east-1:123456789012:custom-model/anthropic.claude/abc", None),
        (f"arn:aws:bedrock:::foundation-model/{HAIKU}", None),
    ],
)
def test_bedrock_runs_in_the_geography_of_the_inference_profile_or_in_the_region(model, region):
    assert bedrock().destination(model, {}).region == region


def test_bedrock_without_a_region_is_unknown_but_for_inference_profiles():
    settings = bedrock(region_name=None)
    assert settings.destination(f"eu.{HAIKU}", {}).region == "eu"
    assert "region_name is not given" in settings.destination(HAIKU, {}).reason


@pytest.mark.parametrize(
    ("url", "region"),
    [
        ("https://vpce-1.bedrock.eu-central-1.vpce.amazonaws.com", "eu-central-1"),
        ("https://vpce-1-eu-central-1a.bedrock-runtime.eu-central-1.vpce.amazonaws.com:443/", "eu-central-1"),
        ("https://bedrock-fips.eu-central-1.amazonaws.com", "eu-central-1"),
        ("https://bedrock.eu-central-1.api.aws", "eu-central-1"),
        ("https://bedrock.us-east-1.amazonaws.com", None),
        # A server of anybody, on a host of AWS.
        ("https://abc.execute-api.eu-central-1.amazonaws.com", None),
        ("https://proxy-1.eu-central-1.elb.amazonaws.com", None),
        ("https://eu-central-1.s3.us-east-1.amazonaws.com", None),
        ("https://bedrock.eu-central-1.s3.us-east-1.amazonaws.com", None),
        (ELSEWHERE, None),
        ("https://eu-central-1.amazonaws.com.example.org", None),
    ],
)
def test_bedrock_at_another_address_counts_only_where_it_is_aws_in_that_region(url, region):
    assert bedrock(endpoint_url=url).destination(HAIKU, {}).region == region


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        (vertex(), "GOOGLE_VERTEX_BASE_URL"),
        (bedrock(), "AWS_ENDPOINT_URL"),
        (bedrock(), "AWS_ENDPOINT_URL_BEDROCK"),
        (bedrock(), "AWS_ENDPOINT_URL_BEDROCK_RUNTIME"),
    ],
)
def test_an_address_that_the_sdk_takes_from_the_environment_is_another_server(settings, variable, monkeypatch):
    sdk, address = settings.provider(), "http://127.0.0.1:1"
    monkeypatch.setenv(variable, address)
    found = settings.destination(HAIKU, {})
    assert found.region is None
    assert found.reason == f"{variable} is another server, '{address}'"
    # The SDK reads it, too.
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    if variable.startswith("AWS"):
        service = "bedrock" if variable == "AWS_ENDPOINT_URL_BEDROCK" else "bedrock-runtime"
        assert sdk._client(service, 1).meta.endpoint_url == address
    else:
        sdk._credentials = AnonymousCredentials()
        assert sdk._client()._api_client._http_options.base_url == address


def test_an_address_in_the_settings_goes_before_that_of_the_environment_and_may_be_of_aws(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", ELSEWHERE)
    own = "https://vpce-1.bedrock.eu-central-1.vpce.amazonaws.com"
    assert bedrock(endpoint_url=own).destination(HAIKU, {}) == Destination("eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK", own)
    assert "AWS_ENDPOINT_URL is another server" in bedrock().destination(HAIKU, {}).reason
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", own)
    assert bedrock().destination(HAIKU, {}) == Destination("eu-central-1")


@pytest.mark.parametrize(
    "settings",
    [
        OpenAIBatchResource(api_key="k", base_url=ELSEWHERE),
        OpenAIBatchResource(api_key="k", base_url="https://eu.api.openai.com.example.org/v1"),
        AzureOpenAIBatchResource(api_key="k", base_url="https://r.openai.azure.com/openai/v1"),
        OpenRouterBatchResource(api_key="k", base_url=ELSEWHERE),
        AnthropicBatchResource(api_key="k", base_url=ELSEWHERE),
        GeminiBatchResource(api_key="k", base_url=ELSEWHERE),
        vertex(base_url=ELSEWHERE),
        preset("groq", api_key="k"),
    ],
)
def test_what_the_settings_do_not_show_is_unknown_with_the_reason_until_runs_in_names_it(settings):
    found = settings.destination("a-model", {})
    assert found.region is None
    assert found.reason
    assert not found.is_pending
    named = settings.model_copy(update={"runs_in": "on-premises"})
    assert named.destination("a-model", {}).region == "on-premises"


def test_a_model_of_another_location_than_that_of_vertex_is_unknown():
    assert vertex().destination("projects/p/locations/us-central1/models/1", {}).region is None
    assert vertex().destination("projects/p/locations/europe-west4/models/1", {}).region == "europe-west4"


def test_runs_in_goes_before_an_assumed_region_and_not_before_one_that_is_shown():
    assert OpenAIBatchResource(api_key="k", runs_in="us").destination("m", {}).region == "us"
    assert bedrock(runs_in="eu-central-1").destination(f"us.{HAIKU}", {}).region == "us"
    assert vertex(runs_in="eu", location="global").destination("gemini-2.5-flash", {}).region == "global"


@pytest.mark.parametrize(
    ("settings", "model", "params", "region"),
    [
        (bedrock(region_name=None), f"{ARN}:inference-profile/global.{HAIKU}", {}, "global"),
        (bedrock(region_name=None), f"arn:aws:bedrock:us-east-1::foundation-model/{HAIKU}", {}, "us-east-1"),
        (bedrock(endpoint_url=ELSEWHERE), f"global.{HAIKU}", {}, "global"),
        (bedrock(endpoint_url=ELSEWHERE), f"us.{HAIKU}", {}, "us"),
        (bedrock(), f"arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.{HAIKU}", {}, "us"),
        (bedrock(), "arn:aws:bedrock:us-east-1:123456789012:custom-model/anthropic.claude/abc", {}, "us-east-1"),
        (AnthropicBatchResource(api_key="k", base_url=ELSEWHERE), "claude-opus-5", {"inference_geo": "us"}, "us"),
        (vertex(), "projects/p/locations/us-central1/endpoints/1", {}, "us-central1"),
        (vertex(base_url=ELSEWHERE), "projects/p/locations/us-central1/endpoints/1", {}, "us-central1"),
        (vertex(location="global", base_url=ELSEWHERE), "gemini-2.5-flash", {}, "global"),
    ],
)
def test_runs_in_does_not_go_before_a_region_that_the_model_or_a_parameter_names(settings, model, params, region):
    named = settings.model_copy(update={"runs_in": "eu-central-1"})
    assert named.destination(model, params) == Destination(region)
    # Without it, such a region does not make another server known.
    assert settings.destination(model, params).region in (None, region)


@pytest.mark.parametrize(
    ("settings", "model", "params"),
    [
        (bedrock(endpoint_url=ELSEWHERE, region_name=None), HAIKU, {}),
        (bedrock(region_name=None), f"{ARN}:application-inference-profile/abc", {}),
        (bedrock(), "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc", {}),
        (AnthropicBatchResource(api_key="k"), "claude-opus-5", {"inference_geo": None}),
        (vertex(base_url=ELSEWHERE), "gemini-2.5-flash", {}),
    ],
)
def test_runs_in_counts_where_only_it_names_a_region(settings, model, params):
    named = settings.model_copy(update={"runs_in": "eu-central-1"})
    assert named.destination(model, params) == Destination("eu-central-1")


@pytest.mark.parametrize(
    "settings",
    [
        bedrock(endpoint_url=ELSEWHERE),
        bedrock(endpoint_url="https://bedrock.us-east-1.amazonaws.com"),
        AnthropicBatchResource(api_key="k", base_url=ELSEWHERE),
    ],
)
def test_another_server_is_unknown_also_where_the_model_or_a_parameter_names_a_region(settings):
    assert settings.destination(f"us.{HAIKU}", {"inference_geo": "us"}).region is None


def test_a_region_from_a_variable_that_is_not_set_is_pending_and_other_variables_do_not_matter(monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    found = vertex(location=dg.EnvVar("NOT_SET")).destination("gemini-2.5-flash", {})
    assert found.is_pending
    assert "location comes from the environment variable NOT_SET" in found.reason
    assert vertex(project=dg.EnvVar("NOT_SET")).destination("m", {}).region == "europe-west4"
    assert OpenAIBatchResource(api_key=dg.EnvVar("NOT_SET")).destination("m", {}).region == "global"
    monkeypatch.setenv("NOT_SET", "us-central1")
    assert vertex(location=dg.EnvVar("NOT_SET")).destination("m", {}) == Destination("us-central1")


def test_settings_of_your_own_kind_are_unknown_until_they_report_a_destination():
    class Own(ProviderResource):
        place: str = "eu-north-1"

    class Reporting(Own):
        def shown_destination(self, settings, model, params):
            return Destination(settings.place)

    assert "do not report it" in Own().destination("m", {}).reason
    assert Reporting().destination("m", {}) == Destination("eu-north-1")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"allowed_regions": []}, "allowed_regions is empty"),
        ({"allowed_providers": []}, "allowed_providers is empty"),
        ({"allowed_regions": ["West Europe"]}, "'West Europe', which cannot be the name of a region"),
        ({"allowed_regions": ["*"]}, "cannot be the name of a region"),
        ({"allowed_regions": ["eu*"]}, "cannot be the name of a region"),
        ({"allowed_regions": [dg.EnvVar("REGION")]}, "no EnvVar"),
        ({"allowed_providers": [dg.EnvVar("PROVIDER")]}, "no EnvVar"),
    ],
)
def test_rules_that_cannot_hold_are_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        LLMBatchResource(**given)


def test_runs_in_is_the_name_of_one_region():
    for name in ("eu-*", "EU", ""):
        with pytest.raises(ConfigError, match="runs_in has"):
            OpenAIBatchResource(api_key="k", runs_in=name)
