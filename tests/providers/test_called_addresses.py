"""The SDKs call the addresses that `allowed_regions` was checked with, whatever the environment contains.

A proxy on loopback notes the hosts that the vendors' own SDKs connect to, and refuses the connections.
"""

from __future__ import annotations

import socketserver
from collections.abc import Iterator
from contextlib import suppress
from threading import Thread
from typing import Any

import pytest

from dagster_llm_batch import (
    AnthropicBatchResource,
    BedrockBatchResource,
    GeminiBatchResource,
    OpenAIBatchResource,
    OpenRouterBatchResource,
    preset,
)
from dagster_llm_batch.errors import ProviderError
from dagster_llm_batch.providers.capabilities import real_time_of
from dagster_llm_batch.types import Destination, Request, RequestSpec

HAIKU = "anthropic.claude-haiku-4-5-20251001-v1:0"
ELSEWHERE = "https://elsewhere.example.org/v1"
AMBIENT = {
    **dict.fromkeys(
        (
            *("OPENAI_BASE_URL", "OPENAI_API_BASE", "AZURE_OPENAI_ENDPOINT", "OPENROUTER_BASE_URL", "GROQ_BASE_URL"),
            *("MISTRAL_BASE_URL", "ANTHROPIC_BASE_URL", "ANTHROPIC_AWS_BASE_URL", "GOOGLE_GEMINI_BASE_URL"),
        ),
        ELSEWHERE,
    ),
    **dict.fromkeys(("AWS_REGION", "AWS_DEFAULT_REGION", "GOOGLE_CLOUD_LOCATION", "GOOGLE_CLOUD_REGION"), "us-east-1"),
    **dict.fromkeys(("GOOGLE_GENAI_USE_VERTEXAI", "GOOGLE_GENAI_USE_ENTERPRISE"), "true"),
    **dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY"), "of-another"),
    "GOOGLE_CLOUD_PROJECT": "of-another",
    "GOOGLE_CLOUD_UNIVERSE_DOMAIN": "elsewhere.example.org",
}
"""Variables that the SDKs read, or that similar programs do."""


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Give the hosts that were connected to through the proxy of the environment."""
    hosts: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            method, address, _ = self.rfile.readline().decode().split(" ")
            hosts.append(address.partition(":")[0] if method == "CONNECT" else address)
            self.wfile.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for name in ("HTTPS_PROXY", "HTTP_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.server_address[1]}")
        yield hosts
        server.shutdown()


def bedrock(**settings: Any) -> BedrockBatchResource:
    usual = {"role_arn": "arn:aws:iam::123456789012:role/r", "s3_uri": "s3://bucket/f", "region_name": "eu-central-1"}
    keys = {"aws_access_key_id": "k", "aws_secret_access_key": "s"}
    return BedrockBatchResource(max_attempts=1, **{**usual, **keys, **settings})


@pytest.mark.parametrize(
    ("settings", "batch_id", "host", "region"),
    [
        (OpenAIBatchResource(api_key="k"), "batch_1", "api.openai.com", "global"),
        (
            OpenAIBatchResource(api_key="k", base_url="https://eu.api.openai.com/v1"),
            "batch_1",
            "eu.api.openai.com",
            "eu",
        ),
        (preset("groq", api_key="k"), "batch_1", "api.groq.com", None),
        (preset("mistral", api_key="k"), "batch_1", "api.mistral.ai", None),
        (OpenRouterBatchResource(api_key="k"), "batch_1", "openrouter.ai", "global"),
        (AnthropicBatchResource(api_key="k"), "msgbatch_1", "api.anthropic.com", "global"),
        (
            AnthropicBatchResource(platform="aws", region_name="eu-west-1", workspace_id="w", api_key="k"),
            "msgbatch_1",
            "aws-external-anthropic.eu-west-1.api.aws",
            "global",
        ),
        (GeminiBatchResource(api_key="k"), "batches/1", "generativelanguage.googleapis.com", "global"),
        (
            bedrock(),
            "arn:aws:bedrock:eu-central-1:123456789012:model-invocation-job/abcdefghijkl",
            "bedrock.eu-central-1.amazonaws.com",
            "eu-central-1",
        ),
    ],
)
def test_only_the_address_of_the_settings_is_called(
    settings: Any, batch_id: str, host: str, region: str | None, connected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if hasattr(settings, "max_retries"):
        settings = settings.model_copy(update={"max_retries": 0})
    for name, value in AMBIENT.items():
        monkeypatch.setenv(name, value)
    provider = settings.provider()
    with suppress(ProviderError):
        provider.poll([batch_id])
    assert set(connected) == {host}
    # A call in real time goes there, too. Bedrock has another host of the region for it.
    connected.clear()
    spec = RequestSpec(model=HAIKU, params={} if isinstance(settings, GeminiBatchResource) else {"max_tokens": 5})
    line = provider.codec(spec).encode(Request("id", None, "a text"), "id")
    with suppress(ProviderError):
        real_time_of(provider).respond(line)
    assert set(connected) == {host.replace("bedrock.", "bedrock-runtime.")}
    assert settings.destination(HAIKU, {}).region == region


def test_an_address_in_the_profile_of_aws_is_another_server_and_is_the_one_called(
    connected: list[str], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
[default]
region = eu-central-1
endpoint_url = https://of-default.example.org
[profile own]
services = mine
[profile plain]
region = eu-central-1
[services mine]
bedrock =
  endpoint_url = https://of-services.example.org
"""
    (tmp_path / "config").write_text(text)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "k")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    aws = "bedrock.eu-central-1.amazonaws.com"
    for profile, host in ((None, "of-default.example.org"), ("own", "of-services.example.org"), ("plain", aws)):
        settings = bedrock(profile_name=profile)
        connected.clear()
        with suppress(ProviderError):
            settings.provider().poll(["arn:aws:bedrock:eu-central-1:123456789012:model-invocation-job/abcdefghijkl"])
        assert set(connected) == {host}
        found = settings.destination(HAIKU, {})
        if host == aws:
            assert found == Destination("eu-central-1")
        else:
            assert found == Destination(None, f"endpoint_url of the AWS profile is another server, 'https://{host}'")
    # The environment goes before it, and the settings go before both.
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{aws}")
    assert bedrock().destination(HAIKU, {}) == Destination("eu-central-1")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    assert bedrock(endpoint_url=f"https://{aws}").destination(HAIKU, {}) == Destination("eu-central-1")


def test_a_profile_that_is_not_there_changes_no_destination() -> None:
    assert bedrock(profile_name="absent").destination(HAIKU, {}) == Destination("eu-central-1")
