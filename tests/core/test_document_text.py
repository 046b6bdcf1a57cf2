"""The text of documents, in the place of their files: what is read, and what is refused."""

from __future__ import annotations

import logging

import pytest
from pdfs import DOCX_PART, office, pdf, written_pdf
from tables import table

from dagster_llm_batch.core.documents import PDF, TEXT, UnreadableTextError, document_text
from dagster_llm_batch.core.identity import make_request
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.row_files import RowFiles
from dagster_llm_batch.core.token_counts import InputCounter
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.types import Document, Image, RequestSpec


def as_text(user: str = "x", **changes: object) -> Prompt:
    return Prompt(user, documents=["a", "b"], documents_as="text", **changes)  # type: ignore[arg-type]


def test_texts_of_documents_follow_the_prompt_with_their_places() -> None:
    files = RowFiles(load_document={"f/a.pdf": written_pdf("Total: 5 \u20ac", "", "{{ x }}")}.__getitem__)
    renderer = as_text("{{ x }}", images=["picture"]).renderer(["x", "picture", "a", "b"], files)
    row = {"x": "Ask", "picture": "https://host/a.png", "a": "f/a.pdf", "b": b"\xef\xbb\xbf{% raw"}
    request = renderer.render(row, 1)
    text = "Ask\n\nDocument 1 of 2:\n\nTotal: 5 \u20ac\n\n{{ x }}\n\nDocument 2 of 2:\n\n{% raw"
    assert request == make_request(None, text, (Image(url="https://host/a.png"),))
    assert renderer.render({**row, "a": None}, 1).user == "Ask\n\nDocument 1 of 1:\n\n{% raw"
    assert renderer.render({**row, "a": None, "b": None}, 1).user == "Ask"


def test_tokens_are_counted_by_the_text() -> None:
    renderer, text = as_text().renderer(["a", "b"]), "word " * 2_000
    request = renderer.render({"a": text.encode(), "b": None}, 1)
    [plain] = Prompt("{{ t }}").renderer(["t"]).requests({"t": [request.user]}, [1])
    counts = InputCounter("anthropic", RequestSpec("claude-haiku-4-5"), 200_000).count([request, plain])
    assert request.documents == ()
    assert counts.expected[0] == counts.expected[1] > 1_000
    assert counts.bounds[0] == counts.bounds[1]
    assert (counts.bounds[0] or 200_000) < 200_000
    prompt = as_text()
    assert (prompt.sends_files, Prompt("x", documents=["a"]).sends_files) == (False, True)
    assert as_text(images=["picture"]).sends_files


UNREADABLE = {
    "scan": (written_pdf("", ""), "cannot be read: got a document without text, such as a scan"),
    "empty pages": (pdf(3), "cannot be read: got a document without text"),
    "password": (pdf(2, password="secret"), "cannot be read: got a PDF that is protected by a password"),
    "damaged": (pdf(2)[:200], "cannot be read: got a damaged PDF"),
    "word": (office(DOCX_PART), r"cannot be sent: got a \.docx file; Prompt\(documents_as='text'\) takes PDF or text"),
    "address": ("https://host/a.pdf", r"got the address 'https://host/a\.pdf', which .* does not load; allowed are"),
    "pages": (pdf(1_001), "got a PDF of 1,001 pages; .* takes at most 1,000 in one"),
    "bytes": (b"x" * 50_000_001, "got a document of 50,000,001 bytes; .* takes at most 50,000,000"),
    "characters": (b"x" * 4_000_001, "cannot be read: got a text of more than 4,000,000 characters"),
}


@table("case", UNREADABLE)
def test_a_document_without_a_text_is_refused_with_its_reason(case: str) -> None:
    value, reason = UNREADABLE[case]
    with pytest.raises(InputError, match=f"Row 7: the document in column 'a' .*{reason.removeprefix('cannot be ')}"):
        as_text().renderer(["a", "b"]).render({"a": value, "b": None}, 7)


def test_a_pdf_is_read_up_to_its_limits() -> None:
    document = Document(PDF, written_pdf("one", "two"))
    assert document_text(document, most_chars=8) == "one\n\ntwo"
    with pytest.raises(UnreadableTextError, match="more than 7 characters"):
        document_text(document, most_chars=7)
    assert document_text(Document(TEXT, b"12345"), most_chars=5) == "12345"
    with pytest.raises(UnreadableTextError, match="more than 4 characters"):
        document_text(Document(TEXT, b"12345"), most_chars=4)


def test_instructions_count_each_time_that_a_page_or_a_form_shows_them() -> None:
    show = b"BT /F 12 Tf (far) Tj ET "
    form = b"<</Type/XObject/Subtype/Form/BBox[0 0 9 9]/Resources<</Font<</F 3 0 R>>>>/Length %d>>stream\n%b\nendstream"
    document = Document(PDF, written_pdf("", contents=b"/X Do " * 3, form=form % (len(show), show)))
    size = 3 * len(b"/X Do ") + 3 * len(show)
    assert document_text(document, most_decoded_bytes=size).split() == ["far"] * 3
    with pytest.raises(UnreadableTextError, match=rf"more than {size - 1} bytes of instructions"):
        document_text(document, most_decoded_bytes=size - 1)


def test_a_pdf_that_would_lose_words_is_refused_and_warnings_go_on(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pypdf")
    before = (logger.level, logger.propagate, list(logger.handlers))
    form = (
        b"<</Type/XObject/Subtype/Form/Resources<</Font<</F 3 0 R>>>>/Filter/Unknown/Length 3>>stream\nabc\nendstream"
    )
    document = Document(PDF, written_pdf("", contents=b"BT /F 12 Tf (seen) Tj ET /X Do", form=form))
    with pytest.raises(UnreadableTextError, match="its text would lack words"):
        document_text(document)
    assert not caplog.records
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_texts_of_documents_without_documents_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"has no documents\. Name their columns, as in documents="):
        Prompt("x", documents_as="text")
