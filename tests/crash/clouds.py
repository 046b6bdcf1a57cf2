"""The providers, each before its emulator, with their calls and the settings that the matrix needs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from google.oauth2.credentials import Credentials

from dagster_llm_batch.definition.labeling import Spend
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
from dagster_llm_batch.types import Absent, FindHints
from tests import folder_servers

BUCKET = "bucket"
SETTLE_SECONDS = 0.3  # time until a lost create call can no longer arrive; here it never does
_TIMEOUT_SECONDS = 60.0
_BATCH_CALLS = frozenset({"create", "find", "poll", "fetch", "cancel", "respond", "respond_flex"}) | {
    *("upload_document", "find_documents", "has_document", "delete_document")
}
_LABELER = Path(__file__).with_name("labeler.py")
_MAX_TOKENS = {"max_tokens": 50}
_MAX_OUTPUT_TOKENS = {"max_output_tokens": 50}


@dataclass(frozen=True)
class Place:
    """Addresses of one deployment's servers, and its folder."""

    folder: str
    port: int = 0
    urls: dict[str, str] = field(default_factory=dict)
    s3_url: str | None = None
    gcs_url: str | None = None

    @staticmethod
    def of(emulator: Emulator, folder: Path, s3_url: str | None, gcs_url: str | None) -> Place:
        urls = {
            "openai": emulator.openai_base_url,
            "azure": emulator.azure_base_url,
            "anthropic": emulator.anthropic_base_url,
            "bedrock": emulator.bedrock_url,
            "vertex": emulator.vertex_base_url,
            "gemini": emulator.gemini_base_url,
            "openrouter": emulator.openrouter_base_url,
            **{name: emulator.base_url(name) for name in SERVER_FOLDERS},
        }
        return Place(str(folder), emulator.port, urls, s3_url, gcs_url)


@dataclass(frozen=True, eq=False)
class Cloud:
    """One provider. `create` and `download` are patterns of "METHOD path" (`interceptor.install`).

    `held`: the calls that go to the emulator, which can hold them. The others go to a store of files, or stay in this
    process.
    """

    name: str
    model: str
    other_model: str
    params: dict[str, Any]
    provider: Callable[[Place, tuple[str, ...]], Any]
    create: str = "^$"
    download: str = "^$"
    held: frozenset[str] = _BATCH_CALLS | {"upload", "download"}
    lacks: frozenset[str] = frozenset()  # calls that it does not make
    spend: Spend = field(default_factory=Spend)
    # The model and its parameters in the tier "flex", where the usual ones lack it.
    in_flex: tuple[str, dict[str, Any]] | None = None


def _openai(place: Place, _options: tuple[str, ...]) -> OpenAIProvider:
    return OpenAIProvider(
        DEFAULT_KEY, place.urls["openai"], timeout_seconds=_TIMEOUT_SECONDS, settle_seconds=SETTLE_SECONDS
    )


def _azure(place: Place, _options: tuple[str, ...]) -> OpenAIProvider:
    """Return Azure's provider. Azure's batches show no metadata, so the provider finds them by their request files."""
    return OpenAIProvider(
        DEFAULT_KEY,
        place.urls["azure"],
        name="azure",
        server=SERVERS["azure"],
        timeout_seconds=_TIMEOUT_SECONDS,
        settle_seconds=SETTLE_SECONDS,
    )


def _own_server(place: Place, _options: tuple[str, ...]) -> OpenAIProvider:
    """Return the provider of a gateway before vLLM: the wire is OpenAI's, and it may not keep metadata."""
    return OpenAIProvider(
        DEFAULT_KEY,
        place.urls["openai"],
        name="own",
        price_book=SERVERS["vllm"].price_book.value,
        # The emulator takes the same schemas as OpenAI.
        server=replace(SERVERS["vllm"], strict_schemas=True),
        timeout_seconds=_TIMEOUT_SECONDS,
        settle_seconds=SETTLE_SECONDS,
    )


class Forgetful(OpenAIProvider):
    """A provider that reports every batch as absent, and thus pays it twice: the matrix must notice."""

    def find(self, tag: str, hints: FindHints) -> Absent:
        del tag, hints
        return Absent()


def _forgetful(place: Place, _options: tuple[str, ...]) -> Forgetful:
    return Forgetful(DEFAULT_KEY, place.urls["openai"], settle_seconds=0.0)


def _anthropic(place: Place, _options: tuple[str, ...]) -> AnthropicProvider:
    return AnthropicProvider(
        DEFAULT_KEY, place.urls["anthropic"], timeout_seconds=_TIMEOUT_SECONDS, settle_seconds=SETTLE_SECONDS
    )


def _bedrock(place: Place, _options: tuple[str, ...]) -> BedrockProvider:
    return BedrockProvider(
        "us-east-1",
        "arn:aws:iam::123456789012:role/batch",
        f"s3://{BUCKET}/llm",
        session_options={"aws_access_key_id": DEFAULT_KEY, "aws_secret_access_key": "x"},
        endpoint_url=place.urls["bedrock"],
        s3_endpoint_url=place.s3_url,
        read_quotas=False,
        min_requests=1,
        timeout_seconds=_TIMEOUT_SECONDS,
        settle_seconds=SETTLE_SECONDS,
    )


def _vertex(place: Place, _options: tuple[str, ...]) -> VertexProvider:
    return VertexProvider(
        "p",
        # The only location with the tier "flex".
        "global",
        BUCKET,
        credentials=Credentials(token=DEFAULT_KEY),
        base_url=place.urls["vertex"],
        storage_url=place.gcs_url,
        timeout_seconds=_TIMEOUT_SECONDS,
        settle_seconds=SETTLE_SECONDS,
    )


def _gemini(place: Place, _options: tuple[str, ...]) -> GeminiProvider:
    return GeminiProvider(
        DEFAULT_KEY,
        place.urls["gemini"],
        inline_bytes=0,
        timeout_seconds=_TIMEOUT_SECONDS,
        settle_seconds=SETTLE_SECONDS,
    )


def _openrouter(place: Place, _options: tuple[str, ...]) -> OpenRouterProvider:
    """Return OpenRouter's provider. Its batches carry no metadata and cannot be stopped."""
    return OpenRouterProvider(
        DEFAULT_KEY, place.urls["openrouter"], timeout_seconds=_TIMEOUT_SECONDS, settle_seconds=SETTLE_SECONDS
    )


def _folder_provider(name: str, place: Place, _options: tuple[str, ...]) -> OpenAIProvider:
    """Return the provider of a server with a folder. At Mistral, a row that never ran is in no file."""
    return folder_servers.provider_of(
        name, place.urls[name], timeout_seconds=_TIMEOUT_SECONDS, settle_seconds=SETTLE_SECONDS
    )


def _folder_server(name: str) -> Cloud:
    """Return the cloud of a line of SERVER_FOLDERS."""
    routes = folder_servers.routes_of(name)
    download = routes["download"].replace("*", "[^/]+")
    return Cloud(
        name,
        *folder_servers.models_of(name),
        _MAX_TOKENS,
        partial(_folder_provider, name),
        f"^{routes['create']}$",
        f"^{download}$",
        spend=Spend(folder_servers.PRICE),
    )


def _command(place: Place, options: tuple[str, ...]) -> CommandProvider:
    words = [sys.executable, "-S", str(_LABELER), "{input}", "{output}", f"{place.folder}/answers.jsonl", *options]
    return CommandProvider(words, f"{place.folder}/jobs")


CLOUDS = {
    cloud.name: cloud
    for cloud in (
        Cloud(
            "openai",
            "gpt-4o",
            "gpt-4o-mini",
            _MAX_TOKENS,
            _openai,
            r"^POST /v1/batches$",
            r"^GET /v1/files/[^/]+/content$",
            in_flex=("gpt-5-nano", {"max_completion_tokens": 50}),
        ),
        Cloud(
            "azure",
            "gpt-4o",
            "gpt-4o-mini",
            _MAX_TOKENS,
            _azure,
            r"^POST /openai/v1/batches$",
            r"^GET /openai/v1/files/[^/]+/content$",
        ),
        Cloud(
            "anthropic",
            "claude-haiku-4-5",
            "claude-sonnet-4-5",
            _MAX_TOKENS,
            _anthropic,
            r"^POST /v1/messages/batches$",
            r"^GET .*/results$",
            lacks=frozenset({"upload"}),
        ),
        Cloud(
            "bedrock",
            "anthropic.claude-haiku-4-5-20251001-v1:0",
            "anthropic.claude-sonnet-4-5-20250929-v1:0",
            _MAX_TOKENS,
            _bedrock,
            r"^POST .*/model-invocation-job$",
            r"^GET /bucket/llm/",
            held=_BATCH_CALLS,
        ),
        Cloud(
            "vertex",
            "gemini-2.5-flash",
            "gemini-2.5-pro",
            _MAX_OUTPUT_TOKENS,
            _vertex,
            r"^POST .*/batchPredictionJobs$",
            r"^GET (/download)?/storage/v1/b/bucket/o/.",
            held=_BATCH_CALLS,
        ),
        Cloud(
            "gemini",
            "gemini-2.5-flash",
            "gemini-2.5-pro",
            _MAX_OUTPUT_TOKENS,
            _gemini,
            r"^POST .*:batchGenerateContent$",
            r"^GET .*:download$",
        ),
        Cloud(
            "openrouter",
            "openai/gpt-4o",
            "openai/gpt-4o-mini",
            _MAX_TOKENS,
            _openrouter,
            r"^POST /api/v1/batches$",
            r"^GET /api/v1/batches/[^/]+/results$",
            lacks=frozenset({"upload", "cancel"}),
        ),
        *map(_folder_server, SERVER_FOLDERS),
        Cloud("command", "m", "m2", _MAX_TOKENS, _command, held=frozenset(), lacks=frozenset({"download"})),
    )
}
# Servers on OpenAI's wire differ only in how a batch is found, so these represent the others.
OWN_SERVER = Cloud("own", "m", "m2", _MAX_TOKENS, _own_server, CLOUDS["openai"].create)
FORGETFUL = Cloud("openai", "gpt-4o", "gpt-4o-mini", _MAX_TOKENS, _forgetful, CLOUDS["openai"].create)
