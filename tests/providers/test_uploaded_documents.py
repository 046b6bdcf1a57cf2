"""Documents in the vendors' own storage: each verb of StoresDocuments, and requests that name such documents.

The PDFs are made by `pdfs`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google_emulator import gemini
from pdfs import pdf

from dagster_llm_batch import preset
from dagster_llm_batch.core.documents import PDF, TEXT
from dagster_llm_batch.core.uploads import MARK, UploadName, digest_of, names_in, with_file_ids
from dagster_llm_batch.errors import ConfigError, CredentialsError, InputError, TransientError
from dagster_llm_batch.protocols import Provider, StoresDocuments
from dagster_llm_batch.providers.anthropic.provider import AnthropicProvider
from dagster_llm_batch.providers.capabilities import document_store_of, upload_rules
from dagster_llm_batch.providers.openai.provider import OpenAIProvider
from dagster_llm_batch.testing.emulator import DEFAULT_KEY, Emulator
from dagster_llm_batch.testing.emulator.faults import WireFault
from dagster_llm_batch.types import Document, Endpoint, Outcome, Request, RequestSpec

CLAUDE = {"max_tokens": 100}
Make = Callable[[Emulator], Any]


def openai(emulator: Emulator) -> OpenAIProvider:
    return OpenAIProvider(DEFAULT_KEY, emulator.openai_base_url, timeout_seconds=5.0)


def anthropic(emulator: Emulator) -> AnthropicProvider:
    return AnthropicProvider(DEFAULT_KEY, emulator.anthropic_base_url, timeout_seconds=5.0)


VENDORS: dict[str, tuple[Make, RequestSpec]] = {
    "openai chat": (openai, RequestSpec("gpt-4o")),
    "openai responses": (openai, RequestSpec("gpt-5-mini", endpoint=Endpoint.RESPONSES)),
    "anthropic": (anthropic, RequestSpec("claude-haiku-4-5", params=CLAUDE)),
    "gemini": (gemini, RequestSpec("gemini-2.5-flash")),
}
STORES = ["openai chat", "anthropic", "gemini"]


class Time:
    """A clock that a test sets forward."""

    def __init__(self) -> None:
        self.skipped = timedelta()

    def __call__(self) -> float:
        return (datetime.now(UTC) + self.skipped).timestamp()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def emulator(time: Time) -> Iterator[Emulator]:
    with Emulator(clock=time) as running:
        yield running


def uploaded(data: bytes, pages: int | None = None, kind: str = PDF) -> Document:
    return Document(kind, data, None, pages, digest_of(data))


def asking(*documents: Document, text: str = "What is it?") -> Request:
    return Request("r", None, text, (), documents)


@pytest.mark.parametrize("vendor", VENDORS)
def test_an_uploaded_document_is_answered_like_one_in_the_request(emulator: Emulator, vendor: str) -> None:
    make, spec = VENDORS[vendor]
    provider = make(emulator)
    codec = provider.codec(spec)
    document = uploaded(pdf(3), 3)
    name = UploadName.of(document)
    file = document_store_of(provider).upload_document(pdf(3), f"dlb-1.{name.ending}", name.media_type)
    line = codec.encode(asking(document), "n-0")
    assert names_in(line) == {str(name)}
    sent = with_file_ids(line, {str(name): file.file_id})
    assert (len(sent), MARK in sent, file.file_id.encode() in sent) == (len(line), False, True)
    inline = codec.encode(asking(Document(PDF, pdf(3), None, 3)), "n-0")
    results = [codec.decode(provider.respond(each)) for each in (sent, inline)]
    assert [result.outcome for result in results] == [Outcome.SUCCEEDED] * 2
    assert results[0].usage == results[1].usage
    assert len(sent) < len(inline)


@pytest.mark.parametrize("vendor", STORES)
def test_a_document_is_found_by_its_name_until_it_is_deleted(emulator: Emulator, vendor: str) -> None:
    store = document_store_of(VENDORS[vendor][0](emulator))
    first, second = (store.upload_document(pdf(1), "dlb-a.pdf", PDF) for _ in range(2))
    other = store.upload_document(b"A letter.", "dlb-b.txt", TEXT)
    found = store.find_documents({"dlb-a.pdf", "dlb-b.txt", "dlb-c.pdf"})
    assert {name: {file.file_id for file in files} for name, files in found.items()} == {
        "dlb-a.pdf": {first.file_id, second.file_id},
        "dlb-b.txt": {other.file_id},
    }
    assert store.has_document(first.file_id)
    for _ in range(2):
        store.delete_document(first.file_id)
    assert not store.has_document(first.file_id)
    assert [file.file_id for file in store.find_documents({"dlb-a.pdf"})["dlb-a.pdf"]] == [second.file_id]


@pytest.mark.parametrize("vendor", STORES)
def test_a_row_whose_document_is_gone_may_be_asked_again(emulator: Emulator, vendor: str) -> None:
    make, spec = VENDORS[vendor]
    provider = make(emulator)
    codec, document = provider.codec(spec), uploaded(pdf(1), 1)
    file = provider.upload_document(pdf(1), "dlb-a.pdf", PDF)
    provider.delete_document(file.file_id)
    line = with_file_ids(codec.encode(asking(document), "n-0"), {str(UploadName.of(document)): file.file_id})
    result = codec.decode(provider.respond(line))
    assert (result.outcome, result.retryable) == (Outcome.ERRORED, True)


def test_documents_end_when_their_vendor_said(emulator: Emulator, time: Time) -> None:
    stores = {"gemini": gemini(emulator), "anthropic": anthropic(emulator)}
    lives = {"gemini": timedelta(hours=48), "anthropic": timedelta(days=30)}
    for name, store in stores.items():
        file = store.upload_document(pdf(1), "dlb-a.pdf", PDF)
        assert file.expires_at is not None
        now = datetime.fromtimestamp(time(), UTC)
        assert abs(file.expires_at - now - lives[name]) < timedelta(minutes=1)
        assert store.has_document(file.file_id)
        time.skipped += lives[name]
        assert not store.has_document(file.file_id)


@pytest.mark.parametrize("vendor", STORES)
def test_a_call_without_an_answer_is_not_repeated(emulator: Emulator, vendor: str) -> None:
    store = VENDORS[vendor][0](emulator)
    path = "POST /gemini/upload/*" if vendor == "gemini" else "POST *"
    emulator.inject(WireFault(kind="close", when="after", route=path))
    with pytest.raises(TransientError):
        store.upload_document(pdf(1), "dlb-a.pdf", PDF)
    emulator.clear_faults()
    calls = [call for call in emulator.books.calls if call.method == "POST"]
    assert len(calls) == 1


@pytest.mark.parametrize("vendor", STORES)
def test_a_wrong_key_is_an_error_of_the_credentials(vendor: str) -> None:
    with Emulator(keys="another") as emulator:
        store: StoresDocuments = VENDORS[vendor][0](emulator)
        with pytest.raises(CredentialsError):
            store.upload_document(pdf(1), "dlb-a.pdf", PDF)
        with pytest.raises(CredentialsError):
            store.find_documents({"dlb-a.pdf"})


def test_row_data_makes_no_place_for_an_id(emulator: Emulator) -> None:
    document = uploaded(pdf(1), 1)
    for make, spec in VENDORS.values():
        codec = make(emulator).codec(spec)
        [place] = {part for part in json_strings(codec.encode(asking(document), "n-0")) if part.startswith("dlb-doc")}
        for text in (place, f'"file_id":"{place}"', f'","file_id":"{place}","x":"'):
            assert names_in(codec.encode(Request("r", text, text), "n-0")) == set()


def json_strings(line: bytes) -> list[str]:
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, str):
            found.append(value)
        for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(each)

    walk(json.loads(line))
    return found


def test_larger_documents_fit_where_the_vendor_stores_them(emulator: Emulator) -> None:
    data = pdf(1) + b" " * 24_000_000
    codec = anthropic(emulator).codec(VENDORS["anthropic"][1])
    with pytest.raises(InputError, match="takes at most 23,900,000 bytes"):
        codec.encode(asking(Document(PDF, data, None, 1)), "n-0")
    assert len(codec.encode(asking(uploaded(data, 1)), "n-0")) < 1_000
    with pytest.raises(InputError, match="got 101 pages"):
        codec.encode(asking(uploaded(b"", 101)), "n-0")


def others() -> dict[str, Provider]:
    return {
        "mistral": preset("mistral", api_key=DEFAULT_KEY).provider(),
        "groq": preset("groq", api_key=DEFAULT_KEY).provider(),
    }


@pytest.mark.parametrize("name", ["mistral", "groq"])
def test_other_servers_take_no_uploads(name: str) -> None:
    codec = others()[name].codec(RequestSpec("mistral-small-latest"))
    assert upload_rules(codec) is None
    with pytest.raises(ConfigError, match="takes no documents here"):
        codec.encode(asking(uploaded(pdf(1), 1)), "n-0")
