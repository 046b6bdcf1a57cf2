"""Documents: their kind by their bytes, their pages, and what a vendor would refuse."""

from __future__ import annotations

import io
import logging
import sys
from typing import Any

import pyarrow as pa
import pytest
from pdfs import DOCX_PART, XLSX_PART, office, packed_pdf, pdf
from pypdf import PdfReader
from tables import table

from dagster_llm_batch.core.documents import DOCX, PDF, TEXT, XLSX, document_type, fault_of_documents, pages_of
from dagster_llm_batch.core.identity import make_request
from dagster_llm_batch.core.masks import Mask
from dagster_llm_batch.core.media_tokens import document_tokens
from dagster_llm_batch.core.prompt import Prompt
from dagster_llm_batch.core.row_files import RowFiles, UnreadableFile
from dagster_llm_batch.core.token_counts import InputCounter
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.testing.emulator.documents import pdf_pages
from dagster_llm_batch.types import Document, DocumentRules, Image, Request, RequestSpec

_NO_COLUMNS = pa.schema([])
KINDS = {
    "pdf": (pdf(), PDF),
    "pdf after other bytes": (b"\n\n" + pdf(), PDF),
    "PDF after a comment": (b"% a comment\n" + pdf(), PDF),
    "text about PDFs": (b"name,head\na,%PDF-1.7\n", TEXT),
    "text": ("Grüße".encode(), TEXT),
    "word": (office(DOCX_PART), DOCX),
    "sheets": (office(XLSX_PART), XLSX),
    "zip": (office("other.xml"), None),
    "cut zip": (office(DOCX_PART)[:40], None),
    "bytes": (b"\xff\xfe\x00", None),
    "NUL": (b"a\0b", None),
    "nothing": (b"", None),
    "blanks": (b" \n", None),
}


@table("kind", KINDS)
def test_a_document_is_of_the_kind_that_its_bytes_show(kind: str) -> None:
    data, media_type = KINDS[kind]
    assert document_type(data) == media_type


@pytest.mark.parametrize("make", [pdf, packed_pdf])
@pytest.mark.parametrize("pages", [1, 7, 120])
def test_the_pages_are_counted_and_the_emulator_counts_the_same(make: Any, pages: int) -> None:
    data = make(pages)
    assert pages_of(data, PDF) == pages
    assert pdf_pages(data) == pages


def test_a_file_without_pages_is_not_counted() -> None:
    assert pages_of(b"a text", TEXT) is None


BROKEN = {
    "cut": (pdf(3)[:200], "got a damaged PDF"),
    "only a header": (b"%PDF-1.7\n", "got a damaged PDF"),
    "password": (pdf(2, password="secret"), "protected by a password"),
    "no pages": (pdf(0), "without pages"),
}


@table("case", BROKEN)
def test_a_damaged_pdf_has_a_reason(case: str) -> None:
    data, reason = BROKEN[case]
    fault = pages_of(data, PDF)
    assert isinstance(fault, str)
    assert reason in fault
    assert "allowed is one" in fault


def _misplaced(pages: int, filling: int) -> bytes:
    """Return a PDF whose table has a wrong offset for each page."""
    data = bytearray(b"%PDF-1.7\n")
    kids = " ".join(f"{number} 0 R" for number in range(3, pages + 3))
    objects = {
        1: "<</Type/Catalog/Pages 2 0 R>>",
        2: f"<</Type/Pages/Count {pages}/Kids[{kids}]>>",
        **dict.fromkeys(range(3, pages + 3), "<</Type/Page>>"),
    }
    table = b"0000000000 65535 f \n"
    for number, text in objects.items():
        if number == 3:
            data += b"% " + b"x" * filling + b"\n"
        table += b"%010d 00000 n \n" % (len(data) + 3 * (number >= 3))
        data += b"%d 0 obj\n%b\nendobj\n" % (number, text.encode())
    start, size = len(data), pages + 3
    data += b"xref\n0 %d\n%btrailer\n<</Size %d/Root 1 0 R>>\nstartxref\n%d\n%%%%EOF\n" % (size, table, size, start)
    return bytes(data)


def test_a_pdf_with_a_wrong_table_is_searched_for_a_while_only() -> None:
    assert pages_of(_misplaced(5, 100_000), PDF) == 5
    fault = pages_of(_misplaced(9, 100_000), PDF, 400_000)
    assert isinstance(fault, str)
    assert "table of objects is wrong" in fault
    assert "save it again" in fault


def test_warnings_of_pypdf_go_on_for_other_code(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("pypdf")
    level = logger.level
    assert pages_of(_misplaced(5, 10), PDF) == 5
    assert not caplog.records
    assert logger.level == level
    len(PdfReader(io.BytesIO(_misplaced(5, 10))).pages)
    assert caplog.records


RULES = DocumentRules(
    "A vendor",
    (PDF, TEXT),
    most_documents=2,
    most_bytes=100,
    most_total_bytes=150,
    most_pages=10,
    most_total_pages=15,
)


def of(pages: int = 1, size: int = 10, kind: str = PDF) -> Document:
    return Document(kind, b"x" * size, None, pages if kind == PDF else None)


FAULTS = {
    "none": ([], None),
    "at all limits": ([of(10, 75), of(5, 75)], None),
    "count": ([of(), of(), of()], "got 3 documents; A vendor takes at most 2 in a request"),
    "bytes": ([of(size=101)], "got a document of 101 bytes; A vendor takes at most 100"),
    "bytes of all": ([of(size=76), of(size=75)], "got 151 bytes; A vendor takes at most 150 bytes"),
    "pages": ([of(11)], "got a PDF of 11 pages; A vendor takes at most 10 in one"),
    "pages of all": ([of(8), of(8)], "got 16 pages; A vendor takes at most 15 in a request"),
    "kind": ([of(kind=DOCX)], "got a .docx file; A vendor takes PDF or text in a request"),
    "address": ([Document(url="https://host/a.pdf")], "got the address 'https://host/a.pdf', which A vendor does not"),
}


@table("case", FAULTS)
def test_a_request_over_a_limit_is_told_what_was_got_and_what_is_allowed(case: str) -> None:
    documents, fault = FAULTS[case]
    found = fault_of_documents(documents, RULES)
    assert found is None if fault is None else found is not None and found.startswith(fault)


TEXTS = {"lines": b"\n" * 90 + b"x", "Chinese": ("中" * 40).encode(), "plain": b"x" * 140}


def test_the_whole_request_counts_where_the_vendor_limits_it() -> None:
    whole = DocumentRules("A vendor", (PDF, TEXT), most_total_bytes=150, counts_all=True)
    plain = DocumentRules("A vendor", (PDF, TEXT), most_total_bytes=150)
    image = Image("image/png", b"x" * 100)
    # In JSON, a line break has two characters and a Chinese character six.
    cases = [
        ([of(size=100)], [image], "", True),
        ([of(size=40)], [image], "", False),
        ([of(size=100)], [], "中" * 20, True),
        *(([Document(TEXT, TEXTS[name])], [], "", name == "Chinese") for name in TEXTS),
        ([Document(TEXT, b"\n" * 120 + b"x")], [], "", True),
    ]
    for documents, images, text, is_over in cases:
        fault = fault_of_documents(documents, whole, images, text)
        assert (fault is not None) == is_over, (documents, images, text)
        assert fault is None or "takes at most 150 bytes of documents, images and texts in a request" in fault
        assert fault_of_documents(documents, plain, images, text) is None


def test_a_row_without_a_text_is_refused_where_documents_need_one() -> None:
    rules = [DocumentRules("A vendor", (PDF,), needs_text=True)]
    renderer = Prompt("{{ x }}", documents=["a"]).renderer(["x", "a"], RowFiles(rules=rules))
    first, second = renderer.requests({"x": [" ", "?"], "a": [pdf(), pdf()]}, [1, 2])
    assert isinstance(first, UnreadableFile)
    assert "cannot be sent: got no text; A vendor takes documents beside a text only" in first.reason
    assert isinstance(second, Request)


def test_bytes_over_every_limit_are_not_parsed() -> None:
    rules = [DocumentRules("A vendor", (PDF,), most_bytes=20, most_total_bytes=30)]
    renderer = Prompt("x", documents=["a"]).renderer(["a"], RowFiles(rules=rules))
    # Parsing it finds that it is damaged.
    with pytest.raises(InputError, match="cannot be sent: got a document of 21 bytes; A vendor takes at most 20"):
        renderer.render({"a": b"%PDF-1.7".ljust(21)}, 7)


def test_a_vendor_that_loads_addresses_may_refuse_data() -> None:
    rules = DocumentRules("A vendor", (PDF,), takes_data=False, takes_urls=True)
    assert fault_of_documents([Document(url="https://host/a.pdf")], rules) is None
    assert "by a public address alone" in (fault_of_documents([of()], rules) or "")


def test_a_prompt_reads_documents_beside_images_and_a_null_is_none() -> None:
    prompt = Prompt("{{ x }}", images=["picture"], documents=["a", "b"], file_root="ignored here")
    files = RowFiles(load_document={"f/a.pdf": pdf(2)}.__getitem__)
    renderer = prompt.renderer(["x", "picture", "a", "b"], files)
    row = {"x": "X", "picture": "https://host/a.png", "a": "f/a.pdf", "b": None}
    request = renderer.render(row, 1)
    assert request.images == (Image(url="https://host/a.png"),)
    assert request.documents == (Document(PDF, pdf(2), None, 2),)
    assert renderer.render({**row, "a": None, "b": "https://host/b.pdf"}, 1).documents == (
        Document(url="https://host/b.pdf"),
    )
    assert prompt.columns() == {"x", "picture", "a", "b"}


def test_a_row_over_a_vendors_limit_is_refused_by_name() -> None:
    renderer = Prompt("x", documents=["a"]).renderer(
        ["a"], RowFiles(rules=[DocumentRules("A vendor", (PDF,), most_pages=10)])
    )
    with pytest.raises(InputError, match=r"Row 7: the document in column 'a' cannot be sent: got a PDF of 11 pages"):
        renderer.render({"a": pdf(11)}, 7)


WRONG = {
    "path without a root": ("a.pdf", r"set Prompt\(file_root=\.\.\.\)"),
    "image": (b"\x89PNG\r\n\x1a\n\0", "allowed is a PDF, a text in UTF-8"),
    "number": (5, "column 'a' holds a int; a document is bytes, a path or an"),
    "nothing": (b"", "cannot be read: got no bytes; allowed is a PDF"),
    "damaged": (b"%PDF-1.7", "the document in column 'a' cannot be read: got a damaged PDF"),
}


@table("case", WRONG)
def test_what_is_no_document_is_refused_naming_row_and_column(case: str) -> None:
    value, message = WRONG[case]
    with pytest.raises(InputError, match=message):
        Prompt("x", documents=["a"]).renderer(["a"]).render({"a": value}, 7)


def test_an_image_and_a_document_of_one_address_are_two_requests() -> None:
    url = "https://host/a"
    ids = {
        make_request(None, "u").request_id,
        make_request(None, "u", (Image(url=url),)).request_id,
        make_request(None, "u", (), (Document(url=url),)).request_id,
        make_request(None, "u", (Image(url=url),), (Document(url=url),)).request_id,
        make_request(None, "u", (), (Document(url=url), Document(url=url))).request_id,
    }
    assert len(ids) == 5


def test_a_masked_column_is_no_document() -> None:
    with pytest.raises(ConfigError, match=r"mask names a of Prompt\.documents\. Only text is masked"):
        Mask(columns=["a"]).check("key", [], _NO_COLUMNS, ["a"])


def test_without_the_extra_a_prompt_with_documents_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    Prompt("x", images=["a"])
    with pytest.raises(ConfigError, match=r"pip install 'dagster-llm-batch\[documents\]'"):
        Prompt("x", documents=["a"])


# A page of OpenAI's has 500 tokens of text, and an image of 1,024 by 1,024 pixels: gpt-4o has a base of 85 tokens and 4
# tiles of 170; gpt-5-mini 32 * 32 patches times 1.62.
TOKENS = {
    "claude": ("anthropic", "claude-haiku-4-5", {}, of(3), 3 * 2_334),
    "gemini 2": ("google", "gemini-2.5-flash", {}, of(3), 3 * 258),
    "gemini 3": ("google", "gemini-3-flash", {}, of(3), 3 * 560),
    "gemini 3 low": ("google", "gemini-3-flash", {"media_resolution": "MEDIA_RESOLUTION_LOW"}, of(3), 3 * 280),
    "tiles": ("openai", "gpt-4o", {}, of(3), 3 * (85 + 4 * 170 + 500)),
    "patches": ("openai", "gpt-5-mini", {}, of(3), 3 * (1_659 + 500)),
    "another vendor": ("mistral", "mistral-small", {}, of(3), 3 * (2_000 + 500)),
    "by address": ("anthropic", "claude-haiku-4-5", {}, Document(url="https://host/a.pdf"), 10 * 2_334),
    "text": ("anthropic", "claude-haiku-4-5", {}, of(size=401, kind=TEXT), 101),
}


@table("case", TOKENS)
def test_tokens_are_those_of_a_page_for_each_page(case: str) -> None:
    book, model, params, document, tokens = TOKENS[case]
    assert document_tokens(book, model, params, document) == (tokens, None)


def test_a_request_counts_its_documents_and_is_bounded_by_the_context() -> None:
    counter = InputCounter("anthropic", RequestSpec("claude-haiku-4-5"), 200_000)
    plain, with_pages = make_request(None, "u"), make_request(None, "u", (), (of(3), of(1)))
    counts = counter.count([plain, with_pages])
    assert counts.expected[1] - counts.expected[0] == 4 * 2_334
    assert counts.bounds[1] == 200_000
    assert counts.bounds[0] is not None
    assert counts.bounds[0] < 200_000
