"""Documents: the kind of a file by its bytes, the pages and the text of a PDF, and the limits of vendors.

Nothing here reads a file by its address. A vendor loads it, so its size and pages are unknown before it is paid.
"""

from __future__ import annotations

import io
import json
import logging
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from threading import Lock
from typing import Any

from dagster_llm_batch.core.address_secrets import quote_address
from dagster_llm_batch.errors import MissingExtraError
from dagster_llm_batch.text import replace_halves
from dagster_llm_batch.types import Document, DocumentRules, Image

__all__ = [
    "BETWEEN_PAGES",
    "DOCX",
    "ENDINGS",
    "PDF",
    "RULES_OF_TEXT",
    "TEXT",
    "XLSX",
    "UnreadableTextError",
    "check_can_count_pages",
    "describe_office_file",
    "document_text",
    "document_type",
    "fault_of_documents",
    "fault_of_size",
    "pages_of",
    "pdf_pages",
]

PDF = "application/pdf"
TEXT = "text/plain"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"

BETWEEN_PAGES = "\n\n"
"""Stands between the texts of two pages."""

ENDINGS = {PDF: "pdf", TEXT: "txt", DOCX: "docx", XLSX: "xlsx"}
"""The endings of the names of files, by media type."""

RULES_OF_TEXT = DocumentRules("Prompt(documents_as='text')", (PDF, TEXT), most_bytes=50_000_000, most_pages=1_000)
"""The documents whose text can be sent instead of them."""

_WORDS = {PDF: "a PDF", TEXT: "a text in UTF-8", DOCX: "a .docx file", XLSX: "an .xlsx file"}
_SHORT = {PDF: "PDF", TEXT: "text", DOCX: "Word (.docx)", XLSX: "sheets (.xlsx)"}
# Readers find the header of a PDF in its first kilobyte: ISO 32000-1, annex H, note 13.
_PDF_HEADER_WITHIN = 1_024
_PDF_HEADER, _PDF_END = b"%PDF-", b"%%EOF"
# For each object that is not at its place, pypdf searches the whole file. This many bytes take it a few seconds.
_MOST_SEARCHED_BYTES = 256_000_000
# pypdf reads some 300,000 bytes of instructions in a second.
_MOST_DECODED_BYTES = 16_000_000
# A million tokens, which is the context of the largest models.
_MOST_CHARS = 4_000_000
_QUIET = Lock()
_OFFICE = {"word/document.xml": DOCX, "xl/workbook.xml": XLSX}
_ZIP = b"PK\x03\x04"
_SLIDES = "ppt/presentation.xml"
# Office's files until 2003, and its later ones with a password: Microsoft's MS-CFB, 2.2.
_COMPOUND_FILE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"


def check_can_count_pages() -> None:
    """Raise MissingExtraError if the package that counts pages is not installed."""
    if find_spec("pypdf") is None:
        raise MissingExtraError("documents", "Prompt(documents=…)")


def document_type(data: bytes) -> str | None:
    """Return the media type of a document by its bytes: PDF, DOCX, XLSX or TEXT; None for others."""
    if data.startswith(_PDF_HEADER):
        return PDF
    if _PDF_HEADER in data[:_PDF_HEADER_WITHIN]:
        # A text may be about PDFs.
        return TEXT if _PDF_END not in data and _is_text(data) else PDF
    if data.startswith(_ZIP):
        names = _names_in_zip(data)
        return next((media_type for name, media_type in _OFFICE.items() if name in names), None)
    return TEXT if _is_text(data) else None


def describe_office_file(data: bytes) -> str | None:
    """Return the kind of an Office file without a `document_type`, in words; None for other files."""
    if data.startswith(_ZIP) and _SLIDES in _names_in_zip(data):
        return "a .pptx file"
    return (
        "an older Office file (.doc, .xls, .ppt), or one with a password" if data.startswith(_COMPOUND_FILE) else None
    )


def _names_in_zip(data: bytes) -> set[str]:
    """Return the names of the parts of a zip file; none of a damaged one."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as parts:
            return set(parts.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return set()


def _is_text(data: bytes) -> bool:
    try:
        # A text has no NUL, and a binary file nearly always has one.
        return b"\0" not in data and bool(data.decode().strip())
    except UnicodeDecodeError:
        return False


def pages_of(data: bytes, media_type: str, most_searched_bytes: int = _MOST_SEARCHED_BYTES) -> int | str | None:
    """Return the number of pages of a PDF, None for another kind, or the fault of a damaged file.

    The file is searched for objects that are not at their places, for this many bytes in all.
    """
    if media_type != PDF:
        return None
    from pypdf import PdfReader  # noqa: PLC0415  # optional dependency, and few prompts have documents

    stream = _Searched(data, most_searched_bytes)
    try:
        with _without_warnings():
            reader = PdfReader(stream)
            if reader.is_encrypted:
                return "got a PDF that is protected by a password or encrypted; allowed is one that is not"
            pages = len(reader.pages)
    # A damaged file may raise anything, and so may one that somebody made to do so.
    except Exception as error:  # noqa: BLE001
        if stream.bytes_left < 0:
            return (
                "got a PDF whose table of objects is wrong, so that counting its pages takes too long; allowed is one "
                "with a right table. Open it in a PDF program and save it again"
            )
        return f"got a damaged PDF ({type(error).__name__}); allowed is one that opens"
    return pages or "got a PDF without pages; allowed is one with pages"


class _Searched(io.BytesIO):
    """A file that pypdf may search for objects until `bytes_left` is used up."""

    def __init__(self, data: bytes, most_bytes: int) -> None:
        super().__init__(data)
        self._size, self.bytes_left = len(data), max(most_bytes, len(data))

    def getbuffer(self) -> memoryview:
        """Return the whole file; pypdf calls this for each search. Raises MemoryError if there were too many."""
        self.bytes_left -= self._size
        if self.bytes_left < 0:
            # pypdf takes other errors for a fault of the object, and goes on to the next one.
            raise MemoryError
        return super().getbuffer()


class UnreadableTextError(ValueError):
    """Raised for a document whose text cannot be read. Its text is the value received and the allowed values."""


def document_text(
    document: Document, most_chars: int = _MOST_CHARS, most_decoded_bytes: int = _MOST_DECODED_BYTES
) -> str:
    """Return the text of a document within RULES_OF_TEXT. Raises UnreadableTextError for one without text.

    `most_decoded_bytes` limits the contents of all pages of a PDF, decompressed.
    """
    data = document.data or b""
    # Some programs begin a text with a mark of its byte order, which is no part of it.
    if document.media_type == PDF:
        text = BETWEEN_PAGES.join(filter(None, pdf_pages(data, most_chars, most_decoded_bytes)))
    else:
        text = data.decode("utf-8-sig")
    if len(text) > most_chars:
        raise UnreadableTextError(f"got a text of more than {most_chars:,} characters, which is the most. Split it")
    if not text.strip():
        raise UnreadableTextError(
            "got a document without text, such as a scan; allowed is one with text. Add its text by OCR, or send the "
            "file to a model that reads it, by documents_as='file'"
        )
    return text


def pdf_pages(data: bytes, most_chars: int = _MOST_CHARS, most_decoded_bytes: int = _MOST_DECODED_BYTES) -> list[str]:
    """Return the text of each page of a PDF, "" of a page without; of a longer PDF pages of more than `most_chars`.

    Raises UnreadableTextError for a damaged one, and for one whose pages take too long to read.
    """
    file, chars = _Searched(data, _MOST_SEARCHED_BYTES), 0
    pages: list[str] = []
    with _without_warnings() as lost:
        try:
            for page in _bounded_reader(file, most_decoded_bytes).pages:
                # A font may name half a character, and NUL for one that it lacks.
                text = replace_halves(page.extract_text()).replace("\0", "").strip()
                pages.append(text)
                chars += len(text)
                if chars > most_chars:
                    break
        except MemoryError as error:
            raise UnreadableTextError(
                f"got a PDF whose pages have more than {most_decoded_bytes:,} bytes of instructions, which take too "
                "long to read. Split it, or send the file by documents_as='file'"
            ) from error
        # A damaged file may raise anything, and so may one that somebody made to do so.
        except Exception as error:
            raise UnreadableTextError(
                f"got a damaged PDF ({type(error).__name__}); allowed is one that opens"
            ) from error
    if lost:
        raise UnreadableTextError(
            "got a PDF with a part that cannot be read, so its text would lack words; allowed is one that is read "
            "whole. Open it in a PDF program and save it again, or send the file by documents_as='file'"
        )
    return pages


def _bounded_reader(file: io.BytesIO, most_decoded_bytes: int) -> Any:
    """Return a reader that raises MemoryError after so many bytes of decompressed contents of pages."""
    from pypdf import PdfReader  # noqa: PLC0415  # optional dependency, and few prompts have documents
    from pypdf.generic import IndirectObject, PdfObject, StreamObject  # noqa: PLC0415

    class BoundedReader(PdfReader):
        bytes_left = most_decoded_bytes

        def get_object(self, indirect_reference: int | IndirectObject) -> PdfObject | None:
            """Return an object. It is read anew for each page or form that shows it, so it counts each time."""
            found = super().get_object(indirect_reference)
            if isinstance(found, StreamObject) and found.get("/Subtype") in (None, "/Form"):
                self.bytes_left -= len(found.get_data())
                if self.bytes_left < 0:
                    # pypdf takes other errors for a fault of the object, and goes on to the next one.
                    raise MemoryError
            return found

    return BoundedReader(file)


class _LostText(logging.Handler):
    """Keep the warnings of pypdf about a part of a page that it leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a warning about a form, which is a part of a page."""
        if "XObject" in str(record.msg) or "XFormObject" in str(record.msg):
            self.warnings.append(str(record.msg))


@contextmanager
def _without_warnings() -> Iterator[list[str]]:
    """Silence pypdf, which warns of each fault that it repairs. Others may read PDFs, and want its warnings.

    Yields a list that gets its warnings about parts of pages without their text.
    """
    logger, lost = logging.getLogger("pypdf"), _LostText()
    with _QUIET:
        level, propagates, handlers = logger.level, logger.propagate, logger.handlers
        logger.setLevel(logging.WARNING)
        logger.propagate, logger.handlers = False, [lost]
        try:
            yield lost.warnings
        finally:
            logger.setLevel(level)
            logger.propagate, logger.handlers = propagates, handlers


def fault_of_size(size: int, rules: Sequence[DocumentRules]) -> str | None:
    """Return why a document of so many bytes would be refused, whatever is in it; None if it may be taken."""
    for one in rules:
        most = min((most for most in (one.most_bytes, one.most_total_bytes) if most is not None), default=None)
        if most is not None and size > most:
            return f"got a document of {size:,} bytes; {one.vendor} takes at most {most:,}. Split it"
    return None


def fault_of_documents(
    documents: Sequence[Document], rules: DocumentRules, images: Sequence[Image] = (), text: str = ""
) -> str | None:
    """Return why the vendor would refuse a request with these files and this text; None if it would take it."""
    if not documents:
        return None
    if rules.most_documents is not None and len(documents) > rules.most_documents:
        return f"got {len(documents)} documents; {rules.vendor} takes at most {rules.most_documents} in a request"
    for document in documents:
        if (fault := _fault_of_one(document, rules)) is not None:
            return fault
    if rules.needs_text and not text.strip():
        return f"got no text; {rules.vendor} takes documents beside a text only. Put a question into the prompt"
    total = _total_bytes(documents, rules, images, text)
    if rules.most_total_bytes is not None and total > rules.most_total_bytes:
        files = "documents, images and texts" if rules.counts_all else "documents"
        return (
            f"got {total:,} bytes; {rules.vendor} takes at most {rules.most_total_bytes:,} bytes of {files} in "
            "a request. Split the document, or make its images smaller"
        )
    pages = sum(document.pages or 0 for document in documents)
    if rules.most_total_pages is not None and pages > rules.most_total_pages:
        return f"got {pages:,} pages; {rules.vendor} takes at most {rules.most_total_pages:,} in a request. Split it"
    return None


def _total_bytes(documents: Sequence[Document], rules: DocumentRules, images: Sequence[Image], text: str) -> int:
    """Return the bytes that count towards most_total_bytes, before base64."""
    files = sum(len(file.data or b"") for file in documents)
    if not rules.counts_all or (rules.most_total_bytes is not None and files > rules.most_total_bytes):
        return files
    files += sum(len(image.data or b"") for image in images)
    as_text = [document.data for document in documents if document.media_type == TEXT and document.data is not None]
    files -= sum(map(len, as_text))
    # A text goes as a JSON string, in ASCII. Base64 has four bytes for three.
    texts = [text, *(data.decode("utf-8", "replace") for data in as_text)]
    return files + sum(len(json.dumps(each)) for each in texts) * 3 // 4


def _fault_of_one(document: Document, rules: DocumentRules) -> str | None:
    allowed = " or ".join(_SHORT.get(kind, kind) for kind in rules.kinds)
    if document.url is not None:
        if rules.takes_urls:
            return None
        return (
            f"got the address {quote_address(document.url)}, which {rules.vendor} does not load; allowed are the bytes "
            f"of a document ({allowed}), or a path below Prompt(file_root=...)"
        )
    if not rules.takes_data:
        return (
            f"got the bytes of a document; {rules.vendor} takes documents by a public address alone, https://…. Give "
            "the address of the document, or ask its vendor directly"
        )
    if document.media_type not in rules.kinds:
        kind = _WORDS.get(document.media_type or "", f"a document of the type {document.media_type!r}")
        return (
            f"got {kind}; {rules.vendor} takes {allowed} in a request. Convert it, or send the file to a vendor that "
            "takes it"
        )
    size = len(document.data or b"")
    if rules.most_bytes is not None and size > rules.most_bytes:
        return f"got a document of {size:,} bytes; {rules.vendor} takes at most {rules.most_bytes:,}. Split it"
    if rules.most_pages is not None and (document.pages or 0) > rules.most_pages:
        return (
            f"got a PDF of {document.pages:,} pages; {rules.vendor} takes at most {rules.most_pages:,} in one. Split it"
        )
    return None
