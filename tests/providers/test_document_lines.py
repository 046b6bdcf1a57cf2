"""Documents in requests: each vendor's form of a PDF, which its emulator answers, and what is refused before sending.

The PDFs are made by `pdfs`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from bedrock_emulator import HAIKU, over
from bedrock_emulator import SPECS as BEDROCK_SPECS
from google_emulator import gemini, vertex_in_tables
from pdfs import DOCX_PART, XLSX_PART, office, packed_pdf, pdf
from tables import table

from dagster_llm_batch import preset
from dagster_llm_batch.core.documents import DOCX, PDF, TEXT, XLSX
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.capabilities import document_rules
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.providers.openai_api.servers import SERVERS
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.types import Document, Endpoint, Outcome, Request, RequestSpec

ADDRESS = "https://example.org/a.pdf"
Make = Callable[[Emulator], Provider]
CLAUDE = {"max_tokens": 100}


def openai(emulator: Emulator) -> Provider:
    return OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url)


def anthropic(emulator: Emulator) -> Provider:
    return AnthropicProvider(DEFAULT_KEY, emulator.anthropic_base_url)


def bedrock(emulator: Emulator) -> Provider:
    return over(emulator, "http://127.0.0.1:1")


CHAT = RequestSpec("gpt-4o")
RESPONSES = RequestSpec("gpt-5-mini", endpoint=Endpoint.RESPONSES)
VENDORS: dict[str, tuple[Make, RequestSpec]] = {
    "openai chat": (openai, CHAT),
    "openai responses": (openai, RESPONSES),
    "anthropic": (anthropic, RequestSpec("claude-haiku-4-5", params=CLAUDE)),
    "bedrock claude": (bedrock, RequestSpec(HAIKU, params=CLAUDE)),
    "bedrock converse": (bedrock, BEDROCK_SPECS["converse"]),
    "gemini": (gemini, RequestSpec("gemini-2.5-flash")),
    "vertex": (vertex_in_tables, RequestSpec("gemini-2.5-flash")),
    "vertex claude": (lambda one: vertex_in_tables(one, location="us-east5"), RequestSpec("claude-x", params=CLAUDE)),
    "mistral": (
        lambda one: preset("mistral", api_key=DEFAULT_KEY, base_url=one.mistral_base_url).provider(),
        RequestSpec("mistral-small-latest"),
    ),
    "openrouter": (
        lambda one: preset("openrouter", api_key=DEFAULT_KEY, base_url=one.openrouter_base_url).provider(),
        RequestSpec("openai/gpt-4o"),
    ),
}


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with Emulator() as running:
        yield running


def made(data: bytes, pages: int | None = None, kind: str = PDF) -> Document:
    return Document(kind, data, None, pages)


def asking(*documents: Document, text: str = "What is it?") -> Request:
    return Request("r", None, text, (), documents)


def answered(emulator: Emulator, vendor: str, request: Request) -> Any:
    """Return the result of one request, in real time, or in a batch where the vendor has no other way."""
    make, spec = VENDORS[vendor]
    provider = make(emulator)
    codec = provider.codec(spec)
    line = codec.encode(request, "n-0")
    if vendor != "mistral":
        return codec.decode(provider.respond(line))
    batch = provider.submit(io.BytesIO(line), spec, "dlb-0a1b2c3d-r0123456789abcdef")
    emulator.settle()
    [answer] = provider.fetch(batch)
    return codec.decode(answer)


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_pdf_is_answered_and_its_pages_are_used(emulator: Emulator, vendor: str) -> None:
    one, many = (
        (Document(url=ADDRESS), Document(url=ADDRESS))
        if vendor == "openrouter"
        else (made(pdf(1), 1), made(packed_pdf(3), 3))
    )
    results = [answered(emulator, vendor, asking(*some)) for some in ([one], [one, many])]
    assert [result.outcome for result in results] == [Outcome.SUCCEEDED] * 2
    used = [result.usage.input_tokens for result in results]
    assert used[1] - used[0] == (500 if vendor == "openrouter" else 3 * 500)


ENCODED = base64.b64encode(pdf(1)).decode()
DATA_URL = f"data:application/pdf;base64,{ENCODED}"
QUESTION = {"type": "text", "text": "What is it?"}
BASE64 = {"type": "document", "source": {"type": "base64", "media_type": PDF, "data": ENCODED}}
FORMS: dict[str, list[Any]] = {
    "openai chat": [QUESTION, {"type": "file", "file": {"filename": "document-1.pdf", "file_data": DATA_URL}}],
    "openai responses": [
        {"type": "input_text", "text": "What is it?"},
        {"type": "input_file", "filename": "document-1.pdf", "file_data": DATA_URL},
    ],
    "anthropic": [BASE64, QUESTION],
    "bedrock claude": [BASE64, QUESTION],
    "bedrock converse": [
        {"document": {"format": "pdf", "name": "document 1", "source": {"bytes": ENCODED}}},
        {"text": "What is it?"},
    ],
    "gemini": [{"text": "What is it?"}, {"inlineData": {"mimeType": PDF, "data": ENCODED}}],
    "vertex": [{"text": "What is it?"}, {"inlineData": {"mimeType": PDF, "data": ENCODED}}],
    "vertex claude": [QUESTION, BASE64],
    "mistral": [QUESTION, {"type": "document_url", "document_url": DATA_URL}],
}


def content_of(line: bytes) -> Any:
    """Return the parts of the last message, wherever its vendor has them."""
    told = json.loads(line)
    body = next(told[name] for name in ("body", "params", "modelInput", "request") if name in told)
    messages = next(body[name] for name in ("messages", "input", "contents") if name in body)
    return messages[-1].get("content", messages[-1].get("parts"))


@pytest.mark.parametrize("vendor", FORMS)
def test_each_vendor_has_its_own_form(emulator: Emulator, vendor: str) -> None:
    make, spec = VENDORS[vendor]
    assert content_of(make(emulator).codec(spec).encode(asking(made(pdf(1), 1)), "n-0")) == FORMS[vendor]


URLS: dict[str, Any] = {
    "openai responses": {"type": "input_file", "file_url": ADDRESS},
    "anthropic": {"type": "document", "source": {"type": "url", "url": ADDRESS}},
    "gemini": {"fileData": {"mimeType": PDF, "fileUri": ADDRESS}},
    "vertex": {"fileData": {"mimeType": PDF, "fileUri": ADDRESS}},
    "mistral": {"type": "document_url", "document_url": ADDRESS},
    "openrouter": {"type": "file", "file": {"filename": "document-1.pdf", "file_data": ADDRESS}},
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_address_goes_to_the_vendors_that_load_it(emulator: Emulator, vendor: str) -> None:
    make, spec = VENDORS[vendor]
    codec = make(emulator).codec(spec)
    request = asking(Document(url=ADDRESS))
    if vendor in URLS:
        assert URLS[vendor] in content_of(codec.encode(request, "n-0"))
        assert answered(emulator, vendor, request).outcome is Outcome.SUCCEEDED
        return
    with pytest.raises(InputError, match=r"got the address 'https://example\.org/a\.pdf'"):
        codec.encode(request, "n-0")


OFFICE = [made(office(DOCX_PART), kind=DOCX), made(office(XLSX_PART), kind=XLSX), made(b"a text", kind=TEXT)]
KINDS = {
    ("openai responses", "bedrock converse"): {DOCX, XLSX, TEXT},
    ("anthropic",): {TEXT},
}


@pytest.mark.parametrize("vendor", VENDORS)
def test_other_kinds_go_only_where_the_vendor_takes_them(emulator: Emulator, vendor: str) -> None:
    make, spec = VENDORS[vendor]
    codec = make(emulator).codec(spec)
    taken = next((kinds for vendors, kinds in KINDS.items() if vendor in vendors), set())
    for document in OFFICE:
        if document.media_type in taken:
            assert answered(emulator, vendor, asking(document)).outcome is Outcome.SUCCEEDED
        else:
            with pytest.raises(InputError, match="The documents cannot be sent: got "):
                codec.encode(asking(document), "n-0")


OVER: dict[str, tuple[str, RequestSpec, list[Document], str]] = {
    "anthropic, pages": (
        "anthropic",
        RequestSpec("claude-haiku-4-5", params=CLAUDE),
        [made(pdf(60), 60), made(pdf(41), 41)],
        "got 101 pages; Anthropic takes at most 100 in a request",
    ),
    "anthropic, pages of a large context": (
        "anthropic",
        RequestSpec("claude-opus-4-6", params=CLAUDE),
        [made(pdf(601), 601)],
        "got 601 pages; Anthropic takes at most 600 in a request",
    ),
    "anthropic, bytes": (
        "anthropic",
        RequestSpec("claude-haiku-4-5", params=CLAUDE),
        [made(bytes(24_000_000), 1)],
        "Anthropic takes at most 23,900,000 bytes of documents, images and texts in a request",
    ),
    "bedrock, pages": (
        "bedrock claude",
        RequestSpec(HAIKU, params=CLAUDE),
        [made(pdf(101), 101)],
        "got 101 pages; Claude on Bedrock takes at most 100",
    ),
    "bedrock, bytes": (
        "bedrock claude",
        RequestSpec(HAIKU, params=CLAUDE),
        [made(bytes(18_800_000), 1)],
        "Claude on Bedrock takes at most 18,600,000 bytes",
    ),
    "converse, count": (
        "bedrock converse",
        BEDROCK_SPECS["converse"],
        [made(pdf(mark=str(number)), 1) for number in range(6)],
        "got 6 documents; Bedrock's Converse takes at most 5",
    ),
    "converse, bytes": (
        "bedrock converse",
        BEDROCK_SPECS["converse"],
        [made(bytes(4_500_001), 1)],
        "Bedrock's Converse takes at most 4,500,000",
    ),
    "gemini, pages": ("gemini", RequestSpec("gemini-2.5-flash"), [made(pdf(1_001), 1_001)], "takes at most 1,000"),
    "vertex claude, pages": (
        "vertex claude",
        RequestSpec("claude-x", params=CLAUDE),
        [made(pdf(101), 101)],
        "Claude on Vertex AI takes at most 100",
    ),
    "openai, bytes": ("openai chat", CHAT, [made(bytes(50_000_001), 1)], "takes at most 50,000,000 bytes"),
}


@pytest.mark.parametrize("case", OVER)
def test_what_is_refused_before_it_is_sent_is_refused_by_the_emulator_too(emulator: Emulator, case: str) -> None:
    vendor, spec, documents, message = OVER[case]
    provider = VENDORS[vendor][0](emulator)
    codec = provider.codec(spec)
    with pytest.raises(InputError, match=message):
        codec.encode(asking(*documents), "n-0")
    if "bytes" in case:
        # The emulator reads such lines for seconds; it counts bytes in one place.
        return
    # As code without our limits would send it: the files take the place of others that are within the limits.
    least = [made(b"%d" % number, 1, PDF) for number in range(len(documents))][:5]
    line = codec.encode(asking(*least), "n-0")
    for short, long in zip(least, documents, strict=False):
        line = line.replace(*(base64.b64encode(one.data or b"") for one in (short, long)), 1)
    if len(documents) > len(least):
        told = json.loads(line)
        told["modelInput"]["messages"][0]["content"] += told["modelInput"]["messages"][0]["content"][:1]
        line = json.dumps(told).encode() + b"\n"
    assert codec.decode(provider.respond(line)).outcome is Outcome.ERRORED


@pytest.mark.parametrize("vendor", [name for name in VENDORS if name not in ("openrouter", "mistral")])
@pytest.mark.parametrize("data", [pdf(2)[:-40], pdf(2, password="secret")], ids=["cut", "password"])
def test_the_emulator_refuses_a_pdf_that_cannot_be_opened(emulator: Emulator, vendor: str, data: bytes) -> None:
    assert answered(emulator, vendor, asking(made(data, 2))).outcome is Outcome.ERRORED


NONE = {
    "embeddings": RequestSpec("embed-x", BEDROCK_SPECS["titan"].response, Endpoint.EMBEDDINGS),
    "azure": CHAT,
    "nova": BEDROCK_SPECS["nova"],
    "a chat model on Bedrock": BEDROCK_SPECS["chat"],
    "titan": BEDROCK_SPECS["titan"],
}


@table("case", NONE)
def test_a_model_that_takes_none_is_refused(case: str) -> None:
    spec = NONE[case]
    provider: Any = OpenAIProvider("k" * 16, "http://127.0.0.1:1/v1")
    if case == "azure":
        provider = OpenAIProvider("k" * 16, "http://127.0.0.1:1/v1", server=SERVERS["azure"])
    elif case != "embeddings":
        provider = _bedrock_alone()
    codec = provider.codec(spec)
    assert document_rules(codec) is None
    with pytest.raises(ConfigError, match="takes no documents here"):
        codec.encode(asking(made(pdf(1), 1)), "n-0")


def _bedrock_alone() -> Provider:
    from dagster_llm_batch.providers.bedrock.provider import BedrockProvider

    return BedrockProvider(
        region_name="us-east-1", role_arn="arn:aws:iam::123456789012:role/batch", s3_uri="s3://bucket/llm"
    )


def test_a_document_alone_needs_a_text_at_converse(emulator: Emulator) -> None:
    make, spec = VENDORS["bedrock converse"]
    with pytest.raises(InputError, match="beside a text only"):
        make(emulator).codec(spec).encode(asking(made(pdf(1), 1), text=" "), "n-0")


@pytest.mark.parametrize("vendor", [name for name in VENDORS if name not in ("openrouter", "bedrock converse")])
def test_a_document_without_a_text_is_answered(emulator: Emulator, vendor: str) -> None:
    assert answered(emulator, vendor, asking(made(pdf(1), 1), text="")).outcome is Outcome.SUCCEEDED


def test_version_1_of_the_gemini_api_loads_no_addresses(emulator: Emulator) -> None:
    codec = gemini(emulator, api_version="v1").codec(RequestSpec("gemini-2.5-flash"))
    with pytest.raises(InputError, match="got the address"):
        codec.encode(asking(Document(url=ADDRESS)), "n-0")
