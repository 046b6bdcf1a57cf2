"""Facts about Mistral's API, as data: limits, windows, parameters and prices, with the source of each."""

from __future__ import annotations

from math import inf

from dagster_llm_batch.core.documents import PDF
from dagster_llm_batch.providers.openai_api.servers import Fact, Server, Windows
from dagster_llm_batch.providers.parameters import Form, words
from dagster_llm_batch.types import DocumentRules, Endpoint

__all__ = ["MISTRAL"]

_SEEN = "OpenRouterTeam/docs, batch-research/mistral, 2026-09"
_SDK = "mistralai 3.7.0 (Python SDK), 2026-11"

_CHAT = Form(
    "Mistral's chat completions",
    words(
        "frequency_penalty guardrails logprobs max_tokens messages metadata min_tokens model n "
        "parallel_tool_calls prediction presence_penalty prompt_logprobs prompt_mode random_seed reasoning_effort "
        "repetition_penalty response_format safe_prompt stop stream temperature tool_choice tools top_k "
        "top_logprobs top_p top_prompt_logprobs"
    ),
    "mistralai.client.models.chatcompletionrequest:ChatCompletionRequestTypedDict",
    {"temperature": (0, 1.5), "top_p": (0, 1), "max_tokens": (0, inf)},
    frozenset({"max_tokens", "random_seed", "n"}),
)

_EMBEDDINGS = Form(
    "Mistral's embeddings",
    words("encoding_format input metadata model output_dimension output_dtype"),
    "mistralai.client.models.embeddingrequest:EmbeddingRequestTypedDict",
    {"output_dimension": (1, inf)},
    frozenset({"output_dimension"}),
)

MISTRAL = Server(
    title="Mistral",
    base_url=Fact("https://api.mistral.ai/v1", _SEEN, seen_live=True),
    price_book=Fact("mistral", _SEEN),
    price_rule=Fact("half", "docs.mistral.ai/studio-api/batch-processing, 2026-11"),
    endpoints=Fact((Endpoint.CHAT, Endpoint.EMBEDDINGS), f"{_SEEN}; embeddings: {_SDK}"),
    dimensions=Fact("output_dimension", _SDK),
    max_requests=Fact(1_000_000, _SEEN, seen_live=True),
    max_bytes=Fact(512_000_000, _SEEN, seen_live=True),
    windows=Fact(Windows(("1h", "168h"), any_between=True), _SEEN, seen_live=True),
    has_pages=Fact(value=True, source=_SDK),
    keeps_metadata=Fact(value=True, source=_SEEN, seen_live=True),
    calls=Fact("dagster_llm_batch.providers.mistral.jobs:Jobs", _SEEN, seen_live=True),
    names_url=False,
    forms={Endpoint.CHAT: _CHAT, Endpoint.EMBEDDINGS: _EMBEDDINGS},
    has_more_parameters=False,
    documents=Fact(
        {Endpoint.CHAT: DocumentRules("Mistral", (PDF,), takes_urls=True, most_bytes=50_000_000, most_pages=1_000)},
        "docs.mistral.ai/studio/document-processing, 2026-11",
    ),
    names_document_url=True,
    counts=Fact("`completed_requests` are those that were processed, failed ones too", _SEEN, seen_live=True),
    errors=Fact('{"detail": …}; of a row, a JSON text in its body', _SEEN, seen_live=True),
    quirks=(
        Fact("batches are jobs of its own API, numbered pages list them", _SDK),
        Fact("a file with one bad line is refused when it is uploaded", _SEEN, seen_live=True),
        Fact("a canceled job may have answered every row", _SEEN, seen_live=True),
        Fact("an upload accepts an `expiry` of an unknown unit; it is not sent", _SDK),
        Fact("it also has OCR, classifications and others, which are not asked here", _SDK),
        Fact("of a vector, `index` may be another number than 0", _SDK),
        Fact(
            "its moderations are refused here: no result line of one was ever seen, its reply has nothing like "
            "`flagged`, and no price is known",
            _SDK,
        ),
    ),
)
