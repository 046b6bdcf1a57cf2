"""Servers that have OpenAI's Batch API, as data: the differences of each, with their source, and who has seen them.

A value of None is unknown: then OpenAI's own applies. A server's address never decides a value. This module holds data
alone: `provider` and the settings of a resource use the values.

A server with its own paths has a folder, and its line in `registry.SERVER_FOLDERS`.

Together, Fireworks and xAI are not here, since their batch APIs differ (see docs/reference/providers.md). Servers with
inline batches, like OpenRouter, are in `openrouter.servers`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Generic, NamedTuple, Protocol, TypeVar, runtime_checkable

from dagster_llm_batch.core.documents import DOCX, PDF, TEXT, XLSX
from dagster_llm_batch.providers.parameters import Form
from dagster_llm_batch.providers.registry import SERVER_FOLDERS, object_at
from dagster_llm_batch.types import DocumentRules, Endpoint

__all__ = [
    "OPENAI",
    "SERVERS",
    "Expiry",
    "Fact",
    "FileLimits",
    "HasServer",
    "Server",
    "Windows",
    "unseen_facts",
]

_T = TypeVar("_T")
_HOUR, _DAY = 3_600, 86_400


@dataclass(frozen=True)
class Fact(Generic[_T]):
    """A value of a server, with its source. `seen_live`: somebody saw the vendor's server do so, and wrote it down."""

    value: _T
    source: str
    seen_live: bool = False


class Expiry(NamedTuple):
    """The range of seconds after which an uploaded file may be set to expire, and the value that we send."""

    least_seconds: int
    most_seconds: int
    seconds: int


class FileLimits(NamedTuple):
    """The most request files that an account may store. None: a limit is not known."""

    without_expiry: int | None = None
    files: int | None = None
    bytes: int | None = None


class Windows(NamedTuple):
    """The allowed values of `completion_window`: one of the words, or with `any_between` any from first to last."""

    words: tuple[str, ...]
    any_between: bool = False


@dataclass(frozen=True, kw_only=True)
class Server:
    """One server, or one program that people run as their own server.

    Args:
        title: The name that people use for it.
        base_url: Its address. None: it is the user's own, and the user must give it.
        example_url: An example of an address of the user's own.
        needs_key: Whether every call needs a key.
        price_book: The price book's id of the company that bills; None in it: calls are free. Prices that the book
            lacks are unknown.
        price_rule: The price of a batch, in words.
        endpoints: The APIs that answer batches.
        dimensions: The name of the parameter for the length of a vector in a request of embeddings, if it is not
            `dimensions`.
        create_endpoints: The value for an API in the create call, if it is not the path in the lines.
        max_requests: Most requests of a batch.
        max_bytes: Most bytes of its file.
        windows: The allowed windows of a batch.
        expiry: Whether a request file can be set to expire, and when.
        file_limits: How many request files an account may store.
        has_pages: Whether the list of batches has pages; else it is one page, and a reply that reports more is wrong.
        keeps_metadata: Whether a batch shows the metadata from its create call. Missing metadata alone never proves
            that a batch was not created, unless a tag of ours was seen: else the search uses the name of its request
            file.
        keeps_file_names: Whether a file keeps its name from the upload.
        calls: The class of its calls about batches, if their paths are not OpenAI's; see `calls`.
        names_url: Whether a request line has method and URL. Else only the create call names the API.
        forms: The parameters of its requests, if they are not OpenAI's.
        has_more_parameters: Whether it may take parameters outside of its forms.
        documents: What a request of each API may have of documents; an API that is not in it takes none.
        names_document_url: Whether a document is a part with `document_url`, as at Mistral, and not OpenAI's `file`.
        stores_documents: Whether requests can name documents that were uploaded with the purpose `user_data`.
        strict_schemas: Whether response schemas follow OpenAI's strict mode; else they go out unchanged.
        counts: When `request_counts` have which meaning, in words.
        errors: The form of errors, in words.
        output_tokens: The most tokens of a reply without a maximum.
        quirks: Other differences, in words.
    """

    title: str
    base_url: Fact[str | None]
    example_url: str = "https://llm.internal/v1"
    needs_key: bool = True
    price_book: Fact[str | None]
    price_rule: Fact[str] | None = None
    endpoints: Fact[tuple[Endpoint, ...]] | None = None
    dimensions: Fact[str] | None = None
    create_endpoints: Fact[Mapping[Endpoint, str]] | None = None
    max_requests: Fact[int] | None = None
    max_bytes: Fact[int] | None = None
    windows: Fact[Windows] | None = None
    expiry: Fact[Expiry] | None = None
    file_limits: Fact[FileLimits] | None = None
    has_pages: Fact[bool] | None = None
    keeps_metadata: Fact[bool] | None = None
    keeps_file_names: Fact[bool] | None = None
    calls: Fact[str] | None = None
    names_url: bool = True
    forms: Mapping[Endpoint, Form] | None = None
    has_more_parameters: bool = True
    documents: Fact[Mapping[Endpoint, DocumentRules]] | None = None
    names_document_url: bool = False
    stores_documents: Fact[bool] | None = None
    strict_schemas: bool = True
    counts: Fact[str] | None = None
    errors: Fact[str] | None = None
    output_tokens: Fact[int] | None = None
    quirks: tuple[Fact[str], ...] = ()


@runtime_checkable
class HasServer(Protocol):
    """A provider whose API several servers have, and that is set up for one of them."""

    @property
    def server(self) -> Server:
        """The facts about the server, as data."""
        ...


def unseen_facts(server: Server) -> tuple[list[str], int]:
    """Return the facts of a server that come from documents alone, in words, and the number of facts seen live."""
    named = {field.name.replace("_", " "): getattr(server, field.name) for field in fields(server)}
    facts = {name: fact for name, fact in named.items() if isinstance(fact, Fact)}
    seen = sum(fact.seen_live for fact in (*facts.values(), *server.quirks))
    return [name for name, fact in facts.items() if not fact.seen_live] + [
        fact.value for fact in server.quirks if not fact.seen_live
    ], seen


_OPENAI = "developers.openai.com, Batch guide and API reference, 2026-11"
_AZURE = "MicrosoftDocs/azure-ai-docs, articles/foundry/openai, batch how-to, 2026-03"
_GROQ = "groq 1.7.0 (Python SDK), 2026-11"
_DEEPINFRA = "OpenRouterTeam/docs, batch-research/deepinfra, 2026-09-21"
_PARASAIL = "OpenRouterTeam/docs, batch-research/parasail, 2026-09"
_DOUBLEWORD = "docs.doubleword.ai and its published skill file, 2026-11"
_DASHSCOPE = "help.aliyun.com, Model Studio, OpenAI-compatible batches, 2026-11"
_LLM_D = "llm-d.ai/docs/dev/guides/batch-gateway, 2026-11"
_AIBRIX = "aibrix.readthedocs.io/latest/features/batch-api.html, 2026-11"
_AIBRIX_RUN = "aibrix 0.8.0, its server run with --dry-run, 2026-11-28"
_OWN = "your own machines: not billed"

_CHAT, _RESPONSES, _EMBEDDINGS = Endpoint.CHAT, Endpoint.RESPONSES, Endpoint.EMBEDDINGS
_MODERATIONS = Endpoint.MODERATIONS

_TOTAL_BYTES = 50_000_000

_DOCUMENTS: Mapping[Endpoint, DocumentRules] = MappingProxyType(
    {
        _CHAT: DocumentRules("OpenAI's chat completions", (PDF,), most_total_bytes=_TOTAL_BYTES),
        _RESPONSES: DocumentRules(
            "OpenAI's responses", (PDF, TEXT, DOCX, XLSX), takes_urls=True, most_total_bytes=_TOTAL_BYTES
        ),
    }
)

OPENAI = Server(
    title="OpenAI",
    base_url=Fact("https://api.openai.com/v1", _OPENAI, seen_live=True),
    price_book=Fact("openai", _OPENAI),
    price_rule=Fact("half", _OPENAI, seen_live=True),
    endpoints=Fact((_CHAT, _RESPONSES, _EMBEDDINGS, _MODERATIONS), _OPENAI, seen_live=True),
    max_requests=Fact(50_000, _OPENAI),
    max_bytes=Fact(200_000_000, _OPENAI),
    expiry=Fact(Expiry(_HOUR, 30 * _DAY, 14 * _DAY), _OPENAI),
    has_pages=Fact(value=True, source=_OPENAI, seen_live=True),
    keeps_metadata=Fact(value=True, source=_OPENAI, seen_live=True),
    documents=Fact(_DOCUMENTS, "developers.openai.com, guide to file inputs, 2026-11"),
    stores_documents=Fact(value=True, source="developers.openai.com, guide to file inputs, 2026-11"),
    counts=Fact("0 until the file is validated", _OPENAI, seen_live=True),
    quirks=(Fact("moderations have no usage and cost nothing", "openai 3.57.0 (Python SDK), 2026-11"),),
)


class _Servers(Mapping[str, Server]):
    """Servers by name: these, and the ones with their own folders, which are imported on demand."""

    def __init__(self, servers: Mapping[str, Server]) -> None:
        self._servers = servers

    def __getitem__(self, name: str) -> Server:
        if name in self._servers:
            return self._servers[name]
        found: Server = object_at(SERVER_FOLDERS[name])
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._servers or name in SERVER_FOLDERS

    def __iter__(self) -> Iterator[str]:
        yield from self._servers
        yield from SERVER_FOLDERS

    def __len__(self) -> int:
        return len(self._servers) + len(SERVER_FOLDERS)


SERVERS: Mapping[str, Server] = _Servers(
    {
        "openai": OPENAI,
        "azure": Server(
            title="Azure OpenAI (v1 API)",
            has_more_parameters=False,
            base_url=Fact(None, _AZURE),
            example_url="https://RESOURCE.openai.azure.com/openai/v1",
            price_book=Fact("azure", _AZURE),
            price_rule=Fact("half of Global Standard; DataZone is dearer", _AZURE),
            endpoints=Fact((_CHAT, _RESPONSES), _AZURE),
            create_endpoints=Fact(MappingProxyType({_CHAT: "/chat/completions"}), _AZURE),
            max_requests=Fact(100_000, _AZURE),
            max_bytes=Fact(200_000_000, _AZURE),
            windows=Fact(Windows(("24h",)), _AZURE),
            expiry=Fact(Expiry(14 * _DAY, 30 * _DAY, 14 * _DAY), _AZURE),
            # Files of results do not count.
            file_limits=Fact(FileLimits(without_expiry=500, files=10_000), _AZURE),
            has_pages=Fact(value=True, source=_AZURE),
            # It is a documented field, and null in every documented answer.
            keeps_metadata=None,
            keeps_file_names=Fact(value=True, source=_AZURE),
            counts=Fact("null in a failed batch", _AZURE),
            errors=Fact("OpenAI's; in ten regions a full queue is a 400 of the create call", _AZURE),
            quirks=(
                Fact("`model` is the name of a Global-Batch or DataZone-Batch deployment; one in a file", _AZURE),
                Fact("a batch that was just created has file ids that are empty texts", _AZURE),
                Fact("a batch that went well names an error file of 0 bytes", _AZURE),
                Fact("a failed batch may name both files", _AZURE),
                Fact("batches do not expire, despite `expires_at`", _AZURE),
                Fact("resources made by the Azure CLI have other host names, and no batches", _AZURE),
            ),
        ),
        "groq": Server(
            title="Groq",
            base_url=Fact("https://api.groq.com/openai/v1", _GROQ),
            price_book=Fact("groq", _GROQ),
            price_rule=Fact("half", "console.groq.com/docs/batch, 2026-11"),
            endpoints=Fact((_CHAT,), _GROQ),
            max_bytes=Fact(100_000_000, _GROQ),
            windows=Fact(Windows(("24h", "7d"), any_between=True), _GROQ),
            has_pages=Fact(value=False, source=_GROQ),
            keeps_metadata=Fact(value=True, source=_GROQ),
        ),
        "deepinfra": Server(
            title="DeepInfra",
            base_url=Fact("https://api.deepinfra.com/v1", _DEEPINFRA, seen_live=True),
            price_book=Fact("deepinfra", _DEEPINFRA),
            price_rule=Fact("20 % off", _DEEPINFRA, seen_live=True),
            endpoints=Fact((_CHAT, _EMBEDDINGS), _DEEPINFRA, seen_live=True),
            max_requests=Fact(50_000, _DEEPINFRA),
            max_bytes=Fact(200_000_000, _DEEPINFRA),
            windows=Fact(Windows(("24h",)), _DEEPINFRA, seen_live=True),
            file_limits=Fact(FileLimits(bytes=2_000_000_000), _DEEPINFRA),
            has_pages=Fact(value=True, source=_DEEPINFRA, seen_live=True),
            keeps_metadata=Fact(value=True, source="DeepInfra's documentation: 16 pairs, 2026-09"),
            counts=Fact("null until the file is validated, and in a failed batch", _DEEPINFRA, seen_live=True),
            errors=Fact('{"detail": a text, an object or a list}', _DEEPINFRA, seen_live=True),
            quirks=(
                Fact("never /v1/openai/v1, which its older pages name", _DEEPINFRA, seen_live=True),
                Fact("an error file is named where no row failed", _DEEPINFRA, seen_live=True),
                Fact("a batch that was canceled may end as completed", _DEEPINFRA, seen_live=True),
                Fact("100 batches at once", _DEEPINFRA),
            ),
        ),
        "doubleword": Server(
            title="Doubleword",
            base_url=Fact("https://api.doubleword.ai/v1", _DOUBLEWORD),
            price_book=Fact("doubleword", _DOUBLEWORD),
            price_rule=Fact("a price list of its own; 1h is dearer", _DOUBLEWORD),
            endpoints=Fact((_CHAT, _EMBEDDINGS), _DOUBLEWORD),
            windows=Fact(Windows(("24h", "1h")), _DOUBLEWORD),
            has_pages=Fact(value=True, source=_DOUBLEWORD),
        ),
        "parasail": Server(
            title="Parasail",
            base_url=Fact("https://api.parasail.io/v1", "Parasail's OpenAPI file at apis.io, 2026-11"),
            price_book=Fact("parasail", _PARASAIL),
            price_rule=Fact("half; less for cached tokens", _PARASAIL),
            endpoints=Fact((_CHAT, _EMBEDDINGS), _PARASAIL, seen_live=True),
            max_requests=Fact(50_000, _PARASAIL),
            max_bytes=Fact(1_000_000_000, _PARASAIL, seen_live=True),
            windows=Fact(Windows(("24h",)), _PARASAIL, seen_live=True),
            has_pages=Fact(value=True, source=_PARASAIL, seen_live=True),
            errors=Fact("OpenAI's, without codes in validation; a 401 is plain text", _PARASAIL, seen_live=True),
            output_tokens=Fact(8_192, _PARASAIL),
            quirks=(
                Fact(
                    "a file's content is a redirect to a host that gets no credentials",
                    _PARASAIL,
                    seen_live=True,
                ),
                Fact("deleting a file that never was answers that it is deleted", _PARASAIL, seen_live=True),
                Fact("`max_completion_tokens` up to 16,384", _PARASAIL),
            ),
        ),
        "dashscope": Server(
            title="Alibaba Cloud Model Studio (DashScope)",
            base_url=Fact("https://dashscope-intl.aliyuncs.com/compatible-mode/v1", _DASHSCOPE),
            price_book=Fact("dashscope", _DASHSCOPE),
            price_rule=Fact("half", _DASHSCOPE),
            endpoints=Fact((_CHAT, _EMBEDDINGS), _DASHSCOPE),
            max_requests=Fact(50_000, _DASHSCOPE),
            max_bytes=Fact(500_000_000, _DASHSCOPE),
            file_limits=Fact(FileLimits(files=10_000, bytes=100_000_000_000), _DASHSCOPE),
            has_pages=Fact(value=True, source=_DASHSCOPE),
            keeps_metadata=Fact(value=True, source=_DASHSCOPE),
            quirks=(
                Fact("windows up to 336h were seen in somebody's code", _DASHSCOPE),
                Fact(
                    "the region decides which models there are",
                    _DASHSCOPE,
                ),
                Fact("set `enable_thinking` explicitly: newer models think by default", _DASHSCOPE),
            ),
        ),
        "vllm": Server(
            title="vLLM behind llm-d's batch gateway",
            base_url=Fact(None, _LLM_D),
            needs_key=False,
            price_book=Fact(None, _OWN),
            price_rule=Fact("free", _OWN),
            max_requests=Fact(50_000, _LLM_D),
            strict_schemas=False,
            quirks=(Fact("`vllm serve` itself has no /v1/batches: a gateway does", "vLLM 0.32, its routes"),),
        ),
        "aibrix": Server(
            title="AIBrix",
            base_url=Fact(None, _AIBRIX),
            needs_key=False,
            price_book=Fact(None, _OWN),
            price_rule=Fact("free", _OWN),
            endpoints=Fact((_CHAT, _EMBEDDINGS), _AIBRIX_RUN),
            has_pages=Fact(value=True, source=_AIBRIX_RUN, seen_live=True),
            keeps_metadata=Fact(value=True, source=_AIBRIX_RUN, seen_live=True),
            keeps_file_names=Fact(value=True, source=_AIBRIX_RUN, seen_live=True),
            counts=Fact("none until the batch runs", _AIBRIX_RUN, seen_live=True),
            strict_schemas=False,
            quirks=(
                Fact("a batch that waits for machines is `scheduling`", _AIBRIX_RUN, seen_live=True),
                Fact("any window of d, h and min is taken, as 24h, and shown in days: 1d", _AIBRIX_RUN, seen_live=True),
                Fact("a create call that names no file is taken", _AIBRIX_RUN, seen_live=True),
            ),
        ),
        "ogx": Server(
            title="OGX",
            base_url=Fact(None, "ogx-ai/ogx, 2026-11"),
            needs_key=False,
            price_book=Fact(None, _OWN),
            price_rule=Fact("free", _OWN),
            strict_schemas=False,
        ),
    }
)
