"""Claude Platform on AWS and Claude on Google Cloud: Anthropic's batches, by the SDK's own clients of each cloud."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from google.oauth2.credentials import Credentials
from sample_batches import batch_file

from dagster_llm_batch import AnthropicBatchResource
from dagster_llm_batch.errors import ConfigError, CredentialsError
from dagster_llm_batch.providers.anthropic.platforms import AwsPlatform, GooglePlatform
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.testing.contracts import ProviderContract, ProviderUnderTest
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.types import BatchStatus, RequestSpec

SPEC = RequestSpec("claude-haiku-4-5", params={"max_tokens": 50})
SECRET, SESSION = "secret/of/aws+42424242", "session//of//aws=="
ENVIRONMENT = {
    "ANTHROPIC_API_KEY": "sk-ant-of-the-environment",
    "ANTHROPIC_AWS_API_KEY": "key-of-the-environment",
    "ANTHROPIC_AWS_BASE_URL": "http://127.0.0.1:9",
    "ANTHROPIC_AWS_WORKSPACE_ID": "wrkspc_of_the_environment",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
    "ANTHROPIC_GOOGLE_CLOUD_WORKSPACE_ID": "wrkspc_of_the_environment",
}


def aws(**more: Any) -> AwsPlatform:
    keys = {"access_key_id": DEFAULT_KEY, "secret_access_key": SECRET, "session_token": SESSION}
    return AwsPlatform("us-east-1", "wrkspc_1", **(more or keys))


def google(**more: Any) -> GooglePlatform:
    return GooglePlatform("my-project", "wrkspc_1", **(more or {"credentials": Credentials(token=DEFAULT_KEY)}))


def of(platform: Any, base_url: str | None = None, **more: Any) -> AnthropicProvider:
    return AnthropicProvider(None, base_url, "wrkspc_1", platform=platform, timeout_seconds=10.0, **more)


class TestClaudeOnAWS(ProviderContract):
    @pytest.fixture
    def subject(self) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = of(aws(), emulator.anthropic_base_url)
            yield ProviderUnderTest.at_emulator(
                emulator, provider, SPEC, [DEFAULT_KEY, SECRET, SESSION], without=["reject_batch"]
            )


class TestClaudeOnGoogleCloud(ProviderContract):
    @pytest.fixture
    def subject(self) -> Iterator[ProviderUnderTest]:
        with Emulator() as emulator:
            provider = of(google(), emulator.anthropic_base_url)
            yield ProviderUnderTest.at_emulator(emulator, provider, SPEC, [DEFAULT_KEY], without=["reject_batch"])


class Cloud:
    """A cloud's server: it answers each call with an ended batch, and notes the call."""

    def __init__(self, results_url: str | None = None) -> None:
        self.asked: list[httpx2.Request] = []
        self._results_url = results_url

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.asked.append(request)
        if request.url.path.endswith("/results"):
            return httpx2.Response(200, content=b'{"custom_id":"n-0","result":{"type":"expired"}}\n')
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled"), 0) | {"expired": 1}
        batch = {"id": "msgbatch_1", "type": "message_batch", "processing_status": "ended", "request_counts": counts}
        return httpx2.Response(200, json={**batch, "archived_at": None, "results_url": self._results_url})

    def client(self) -> httpx2.Client:
        return httpx2.Client(transport=httpx2.MockTransport(self))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set environment variables that the SDK would read: another account, at another address."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


def test_calls_to_aws_are_signed_for_its_service_and_region_and_name_the_workspace() -> None:
    cloud = Cloud()
    provider = of(aws(), http_client=cloud.client())
    assert provider.submit(batch_file(provider.codec(SPEC)), SPEC, "tag") == "msgbatch_1"
    [asked] = cloud.asked
    assert str(asked.url) == "https://aws-external-anthropic.us-east-1.api.aws/v1/messages/batches"
    signed = asked.headers["authorization"]
    assert signed.startswith("AWS4-HMAC-SHA256 ")
    assert f"Credential={DEFAULT_KEY}/" in signed
    assert "/us-east-1/aws-external-anthropic/aws4_request" in signed
    assert asked.headers["x-amz-security-token"] == SESSION
    assert asked.headers["anthropic-workspace-id"] == "wrkspc_1"
    assert len(json.loads(asked.content)["requests"]) == 3
    assert provider.account == "aws-external-anthropic.us-east-1.api.aws?workspace=wrkspc_1"


def test_an_api_key_of_aws_is_sent_and_nothing_is_signed() -> None:
    cloud = Cloud()
    of(aws(api_key="key-of-claude-on-aws"), http_client=cloud.client()).poll(["msgbatch_1"])
    [asked] = cloud.asked
    assert asked.headers["authorization"] == "Bearer key-of-claude-on-aws"


def test_what_awss_own_chain_finds_signs_and_no_api_key_of_the_environment_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOFTHECHAIN424242")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    cloud = Cloud()
    of(AwsPlatform("us-east-1", "wrkspc_1"), http_client=cloud.client()).poll(["msgbatch_1"])
    [asked] = cloud.asked
    assert "Credential=AKIAOFTHECHAIN424242/" in asked.headers["authorization"]
    assert "key-of-the-environment" not in str(dict(asked.headers))


def test_calls_to_google_cloud_go_to_the_workspace_with_a_token_of_each_call() -> None:
    cloud, tokens = Cloud(), iter(["first-token-of-google", "second-token-of-google"])
    provider = of(google(token_provider=lambda: next(tokens)), http_client=cloud.client())
    report = provider.poll(["msgbatch_1"])["msgbatch_1"]
    assert report.status is BatchStatus.EXPIRED
    provider.poll(["msgbatch_1"])
    root = "https://claude.googleapis.com/v1/projects/my-project/locations/global/workspaces/wrkspc_1/invoke"
    assert [str(asked.url) for asked in cloud.asked] == [f"{root}/v1/messages/batches/msgbatch_1"] * 2
    sent = [asked.headers["authorization"] for asked in cloud.asked]
    assert sent == ["Bearer first-token-of-google", "Bearer second-token-of-google"]
    assert not [asked for asked in cloud.asked if "anthropic-workspace-id" in asked.headers]
    assert provider.account == "claude.googleapis.com/projects/my-project/locations/global/workspaces/wrkspc_1"


@pytest.mark.parametrize(
    "platform",
    [aws(), aws(api_key="key-of-claude-on-aws"), google(), google(token_provider=lambda: "token-of-google-42")],
    ids=["signed", "key", "credentials", "token provider"],
)
def test_results_at_anthropics_own_address_are_asked_of_the_cloud_and_no_credential_goes_there(platform: Any) -> None:
    cloud = Cloud("https://api.anthropic.com/v1/messages/batches/msgbatch_1/results")
    provider = of(platform, http_client=cloud.client())
    assert len(list(provider.fetch("msgbatch_1"))) == 1
    assert "api.anthropic.com" not in {asked.url.host for asked in cloud.asked}
    assert cloud.asked[-1].url.path.endswith("/v1/messages/batches/msgbatch_1/results")
    assert "of-the-environment" not in str([dict(asked.headers) for asked in cloud.asked])


@pytest.mark.parametrize(
    "platform",
    [
        aws(profile_name="a-profile-that-is-not-there"),
        google(token_provider=lambda: 1 / 0),
    ],
    ids=["aws", "google"],
)
def test_without_credentials_nothing_is_sent_and_no_batch_is_in_doubt(platform: Any) -> None:
    cloud = Cloud()
    provider = of(platform, http_client=cloud.client())
    with pytest.raises(CredentialsError):
        provider.submit(batch_file(provider.codec(SPEC)), SPEC, "tag")
    assert cloud.asked == []


def test_an_address_of_google_cloud_in_the_environment_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_GOOGLE_CLOUD_BASE_URL", "http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="is set, and would send the calls of provider 'anthropic' elsewhere"):
        of(google()).poll(["msgbatch_1"])


@pytest.mark.parametrize(
    ("base_url", "instead"),
    [
        ("https://bedrock-runtime.us-east-1.amazonaws.com", "use BedrockBatchResource"),
        ("https://us-east5-aiplatform.googleapis.com/v1", "use VertexBatchResource"),
        ("https://aiplatform.googleapis.com/v1", "use VertexBatchResource"),
        ("https://my-resource.services.ai.azure.com/anthropic", "has no batches"),
        ("https://aws-external-anthropic.us-east-1.api.aws", 'platform="aws"'),
        ("https://claude.googleapis.com/v1/projects/p/locations/global/workspaces/w/invoke", 'platform="google_cloud"'),
    ],
)
def test_an_address_of_a_cloud_without_message_batches_is_refused_with_what_to_do(base_url: str, instead: str) -> None:
    with pytest.raises(ConfigError, match=instead):
        AnthropicBatchResource(api_key="sk-x", base_url=base_url).provider()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "Anthropic wants api_key"),
        ({"platform": "azure", "api_key": "k"}, "there is no platform 'azure'"),
        ({"platform": "aws", "workspace_id": "w"}, "Claude Platform on AWS wants region_name"),
        ({"platform": "aws", "region_name": "us-east-1"}, "Claude Platform on AWS wants workspace_id"),
        ({"platform": "google_cloud", "workspace_id": "w"}, "Claude on Google Cloud wants project"),
        ({"api_key": "k", "project": "p"}, "project is no setting of platform='anthropic'"),
        (
            {"platform": "aws", "region_name": "r", "workspace_id": "w", "access_token": "t"},
            "access_token is no setting",
        ),
    ],
)
def test_what_is_missing_or_of_another_platform_is_refused_when_definitions_load(settings: Any, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        AnthropicBatchResource(**settings)
    assert said in str(refused.value)


def test_half_a_pair_of_keys_is_refused() -> None:
    with pytest.raises(ConfigError, match="go together"):
        aws(access_key_id="AKIA")


def test_the_resource_makes_a_provider_of_each_platform() -> None:
    common = {"workspace_id": "wrkspc_1"}
    signed = AnthropicBatchResource(platform="aws", region_name="eu-west-1", **common).provider()
    assert signed.account == "aws-external-anthropic.eu-west-1.api.aws?workspace=wrkspc_1"
    ready = AnthropicBatchResource(platform="google_cloud", project="p", access_token="token-of-google-42", **common)
    assert ready.provider().account == "claude.googleapis.com/projects/p/locations/global/workspaces/wrkspc_1"
    assert "token-of-google-42" not in f"{ready!r} {ready.provider()!r}"
