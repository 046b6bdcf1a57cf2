"""The providers, each before the emulator or command of its vendor, and the calls that each makes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from google.oauth2.credentials import Credentials

from dagster_llm_batch.definition.labeling import Spend
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.bedrock.provider import BedrockProvider
from dagster_llm_batch.providers.command.provider import CommandProvider
from dagster_llm_batch.providers.google.gemini import GeminiProvider
from dagster_llm_batch.providers.google.vertex import VertexProvider
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.providers.openrouter.provider import OpenRouterProvider
from dagster_llm_batch.providers.registry import SERVER_FOLDERS
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from tests import folder_servers

BUCKET = "bucket"
_MAX_TOKENS = {"max_tokens": 50}
_MAX_OUTPUT_TOKENS = {"max_output_tokens": 50}


@dataclass(frozen=True, eq=False)
class Vendor:
    """One provider. `calls` are the routes that it uses, by purpose, as globs over "METHOD /path"."""

    name: str
    model: str
    params: Mapping[str, Any]
    provider: Callable[[Emulator, Path, float], Provider]
    calls: Mapping[str, str] = field(default_factory=dict)
    spend: Spend = field(default_factory=Spend)

    @property
    def create(self) -> str:
        return self.calls["create"]

    @property
    def download(self) -> str:
        return self.calls["download"]


def _openai(emulator: Emulator, _folder: Path, timeout_seconds: float) -> Provider:
    return OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url, timeout_seconds=timeout_seconds)


def _azure(emulator: Emulator, _folder: Path, timeout_seconds: float) -> Provider:
    return OpenAIProvider(
        DEFAULT_KEY, emulator.azure_base_url, name="azure", server=SERVERS["azure"], timeout_seconds=timeout_seconds
    )


def _anthropic(emulator: Emulator, _folder: Path, timeout_seconds: float) -> Provider:
    return AnthropicProvider(DEFAULT_KEY, emulator.anthropic_base_url, timeout_seconds=timeout_seconds)


def _bedrock(emulator: Emulator, folder: Path, timeout_seconds: float) -> Provider:
    return BedrockProvider(
        "us-east-1",
        "arn:aws:iam::123456789012:role/batch",
        f"s3://{BUCKET}/{folder.name}",
        session_options={"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": "x"},
        endpoint_url=emulator.bedrock_url,
        s3_endpoint_url=emulator.s3_relay_url,
        read_quotas=False,
        min_requests=1,
        max_attempts=1,
        timeout_seconds=timeout_seconds,
    )


def vertex_at(location: str, emulator: Emulator, folder: Path, timeout_seconds: float) -> Provider:
    return VertexProvider(
        "p",
        location,
        BUCKET,
        prefix=folder.name,
        credentials=Credentials(token=DEFAULT_KEY),
        base_url=emulator.vertex_base_url,
        storage_url=emulator.gcs_relay_url,
        timeout_seconds=timeout_seconds,
    )


def _gemini(emulator: Emulator, _folder: Path, timeout_seconds: float) -> Provider:
    return GeminiProvider(DEFAULT_KEY, emulator.gemini_base_url, inline_bytes=0, timeout_seconds=timeout_seconds)


def _openrouter(emulator: Emulator, _folder: Path, timeout_seconds: float) -> Provider:
    return OpenRouterProvider(DEFAULT_KEY, emulator.openrouter_base_url, timeout_seconds=timeout_seconds)


def _command(_emulator: Emulator, folder: Path, _timeout_seconds: float) -> Provider:
    script = str(Path(__file__).with_name("faulty_command.py"))
    return CommandProvider([sys.executable, "-S", script, "{input}", "{output}", str(folder)], str(folder / "jobs"))


def _folder_server(name: str) -> Vendor:
    """Return the vendor of a line of SERVER_FOLDERS."""

    def provider(emulator: Emulator, _folder: Path, timeout_seconds: float) -> Provider:
        return folder_servers.provider_of(name, emulator.base_url(name), timeout_seconds=timeout_seconds)

    model, _ = folder_servers.models_of(name)
    return Vendor(name, model, _MAX_TOKENS, provider, folder_servers.routes_of(name), Spend(folder_servers.PRICE))


_OPENAI_CALLS = {
    "upload": "POST /v1/files",
    "create": "POST /v1/batches",
    "find": "GET /v1/batches",
    "poll": "GET /v1/batches/*",
    "download": "GET /v1/files/*/content",
}
VENDORS = (
    Vendor("openai", "gpt-4o", _MAX_TOKENS, _openai, _OPENAI_CALLS),
    Vendor(
        "anthropic",
        "claude-haiku-4-5",
        _MAX_TOKENS,
        _anthropic,
        {
            "create": "POST /v1/messages/batches",
            "find": "GET /v1/messages/batches",
            "poll": "GET /v1/messages/batches/msgbatch_*[0-9a-f]",
            "download": "GET /v1/messages/batches/*/results",
        },
    ),
    Vendor(
        "bedrock",
        "anthropic.claude-haiku-4-5-20251001-v1:0",
        _MAX_TOKENS,
        _bedrock,
        {
            "upload": f"PUT /s3/{BUCKET}/*",
            "create": "POST /bedrock/model-invocation-job",
            "find": "GET /bedrock/model-invocation-jobs",
            "poll": "GET /bedrock/model-invocation-job/*",
            "list": f"GET /s3/{BUCKET}",
            "download": f"GET /s3/{BUCKET}/*.jsonl.out",
        },
    ),
    Vendor(
        "vertex",
        "gemini-2.5-flash",
        _MAX_OUTPUT_TOKENS,
        partial(vertex_at, "us-central1"),
        {
            "upload": "POST /gcs/upload/*",
            "create": "POST /vertex/*/batchPredictionJobs",
            "find": "GET /vertex/*/batchPredictionJobs",
            "poll": "GET /vertex/*/batchPredictionJobs/*",
            "list": f"GET /gcs/storage/v1/b/{BUCKET}/o",
            "download": "GET /gcs/download/*",
        },
    ),
    Vendor(
        "gemini",
        "gemini-2.5-flash",
        _MAX_OUTPUT_TOKENS,
        _gemini,
        {
            "upload": "POST /gemini/upload/*",
            "create": "POST /gemini/*:batchGenerateContent",
            "find": "GET /gemini/*/batches",
            "poll": "GET /gemini/*/batches/*",
            "download": "GET /gemini/*:download",
        },
    ),
    Vendor(
        "openrouter",
        "openai/gpt-4o",
        _MAX_TOKENS,
        _openrouter,
        {
            "create": "POST /api/v1/batches",
            "find": "GET /api/v1/batches",
            "poll": "GET /api/v1/batches/batch_*[0-9a-f]",
            "download": "GET /api/v1/batches/*/results",
        },
    ),
    *map(_folder_server, SERVER_FOLDERS),
    Vendor("command", "m", _MAX_TOKENS, _command),
)
# Azure's provider is OpenAI's. Azure's answers differ in the create call and in finding a batch, so only the matrices
# include Azure. The emulator removes the beginning of its paths before faults match them.
MATRIX_VENDORS = (VENDORS[0], Vendor("azure", "gpt-4o", _MAX_TOKENS, _azure, _OPENAI_CALLS), *VENDORS[1:])
_IN_TURN = ("azure", *SERVER_FOLDERS)


def take_turn(number: int) -> list[Vendor]:
    """Return the vendors for a test of this number; of those with OpenAI's provider, OpenAI and one other."""
    kept = _IN_TURN[(number + 1) % len(_IN_TURN)]
    return [vendor for vendor in MATRIX_VENDORS if vendor.name == kept or vendor.name not in _IN_TURN]
