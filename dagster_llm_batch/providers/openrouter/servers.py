"""Servers with inline batches, as data: the differences of each, with their source, and who has seen them.

Like in `openai_api.servers`, a value of None is unknown, and values are never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dagster_llm_batch.core.documents import PDF
from dagster_llm_batch.providers.openai_api.servers import Fact, Server, Windows
from dagster_llm_batch.types import DocumentRules, Endpoint

__all__ = ["INLINE_SERVERS", "OPENROUTER", "InlineServer"]


@dataclass(frozen=True, kw_only=True)
class InlineServer(Server):
    """One server with inline batches.

    Args:
        takes_metadata: Whether a create call may carry metadata. If not, a batch is identified by its results alone.
        has_result_pages: Whether results can be read in pages too, and not only in the batch itself.
        longest_hours: The longest time of a batch, if it is longer than its window.
        deletes: Whether the server can delete a batch.
        only_image_urls: Whether images are sent by their web address only.
    """

    takes_metadata: Fact[bool] | None = None
    has_result_pages: Fact[bool] | None = None
    longest_hours: Fact[int] | None = None
    deletes: Fact[bool] | None = None
    only_image_urls: Fact[bool] | None = None


_DOCS = "openrouter.ai/docs, Batch guide and API reference, 2026-11"
_SDK = "openrouter 1.3.84 (Python SDK), 2026-11"
_CLIENT = "a client that was run against OpenRouter, 2026-08-29"
_LISTED = "OpenRouterTeam/docs, batch-research/mistral, 2026-09-02"
_OPPER = "docs.opper.ai, Batches, 2026-11"
_MERGE = "docs.merge.dev, Gateway, Batches, 2026-11"

_DOCUMENTS = DocumentRules("OpenRouter", (PDF,), takes_data=False, takes_urls=True)

OPENROUTER = InlineServer(
    title="OpenRouter",
    base_url=Fact("https://openrouter.ai/api/v1", _DOCS),
    price_book=Fact("openrouter", _DOCS),
    price_rule=Fact("typically half; see the model's page", _DOCS),
    endpoints=Fact((Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.EMBEDDINGS), _SDK),
    max_requests=Fact(5_000, _DOCS),
    max_bytes=Fact(200_000_000, _DOCS),
    windows=Fact(Windows(("24h",)), _DOCS),
    has_pages=Fact(value=True, source=_SDK),
    takes_metadata=Fact(value=False, source=_SDK),
    has_result_pages=Fact(value=True, source=_DOCS),
    longest_hours=Fact(96, _SDK),
    deletes=Fact(value=True, source=_SDK),
    only_image_urls=Fact(value=True, source=_DOCS),
    documents=Fact(dict.fromkeys((Endpoint.CHAT, Endpoint.RESPONSES), _DOCUMENTS), _DOCS),
    errors=Fact('{"error": {"code": a status, "message": …}}; of a row, with `error_type`', _SDK),
    quirks=(
        Fact("a reply has the batch's status before its requests, and is read as a stream", _CLIENT, seen_live=True),
        Fact("a 402 to a poll withholds results until the account is topped up", _SDK),
        Fact("a model that is not listed as `…:batch`, too, has no batches: 400", _LISTED, seen_live=True),
        Fact("batches cannot be canceled", _SDK),
        Fact("no metadata: a batch whose create call was lost is known by its results", _SDK),
        Fact("a batch has its cost; each row of embeddings has its own", _SDK),
        Fact("Google Vertex behind it may take 96 hours", _SDK),
        Fact("requests and results are kept for 30 days, and not with zero data retention", _DOCS),
    ),
)

INLINE_SERVERS: Mapping[str, InlineServer] = MappingProxyType(
    {
        "openrouter": OPENROUTER,
        "opper": InlineServer(
            title="Opper",
            base_url=Fact("https://api.opper.ai/v3", _OPPER),
            price_book=Fact("opper", _OPPER),
            endpoints=Fact((Endpoint.CHAT,), _OPPER),
            max_requests=Fact(50_000, _OPPER),
            takes_metadata=Fact(value=True, source=_OPPER),
            has_result_pages=Fact(value=False, source=_OPPER),
            quirks=(
                Fact("one bad request refuses the create call", _OPPER),
                Fact("batches cannot be canceled", _OPPER),
                Fact("models of OpenAI and Anthropic, in the US", _OPPER),
            ),
        ),
        "merge": InlineServer(
            title="Merge Gateway",
            base_url=Fact("https://api-gateway.merge.dev/v1", _MERGE),
            price_book=Fact("merge", _MERGE),
            endpoints=Fact((Endpoint.CHAT,), _MERGE),
            max_requests=Fact(10_000, _MERGE),
            takes_metadata=Fact(value=True, source=_MERGE),
            has_result_pages=Fact(value=True, source=_MERGE),
            quirks=(Fact("requests that failed, expired or were canceled are not billed", _MERGE),),
        ),
    }
)
