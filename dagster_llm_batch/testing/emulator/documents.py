"""Documents in requests, read a second time: their parts in each vendor's form, and their faults.

Pages are counted by the objects in the file and its object streams: ISO 32000-1, 7.5.7 and 7.7.3.3.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

__all__ = ["PDF", "Document", "document_tokens", "documents_in", "pdf_pages", "pdf_problem", "total_pages"]

PDF = "application/pdf"
_PAGE_TOKENS = 500
_FORMATS = {"pdf": PDF, "txt": "text/plain", "docx": "docx", "xlsx": "xlsx"}
_PAGE = re.compile(rb"/Type\s*/Page(?![A-Za-z])")
_PACKED = re.compile(rb"/Type\s*/ObjStm\b.*?stream\r?\n(.*?)endstream", re.DOTALL)
_DATA_URL = re.compile(r"data:([^;,]+);base64,(.*)", re.DOTALL)


class Document(NamedTuple):
    """A document of a request. `data` is None if it is named by an address, or is no base64."""

    media_type: str | None
    data: bytes | None
    url: str | None = None
    name: str | None = None


def documents_in(value: Any) -> Iterator[Document]:
    """Yield the documents in messages of any vendor."""
    if isinstance(value, list):
        for each in value:
            yield from documents_in(each)
    elif isinstance(value, Mapping):
        yield from _own(value)
        yield from documents_in(value.get("content"))


def _own(part: Mapping[str, Any]) -> Iterator[Document]:
    kind = part.get("type")
    if kind == "file" and isinstance(file := part.get("file"), Mapping):
        yield _at(file.get("file_data"), file.get("filename"))
    elif kind == "input_file":
        yield _at(part.get("file_url", part.get("file_data")), part.get("filename"))
    elif kind == "document_url":
        yield _at(part.get("document_url"), None)
    elif kind == "document" and isinstance(source := part.get("source"), Mapping):
        if source.get("type") == "text":
            yield Document("text/plain", str(source.get("data")).encode())
        else:
            yield Document(source.get("media_type"), _decoded(source.get("data")), source.get("url"))
    elif isinstance(inner := part.get("document"), Mapping):
        data = _decoded(inner.get("source", {}).get("bytes"))
        yield Document(_FORMATS.get(str(inner.get("format"))), data, name=inner.get("name"))


def _at(address: Any, name: str | None) -> Document:
    match = _DATA_URL.fullmatch(address) if isinstance(address, str) else None
    if match is None:
        return Document(None, None, address if isinstance(address, str) else None, name)
    return Document(match[1], _decoded(match[2]), None, name)


def _decoded(text: Any) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True) if isinstance(text, str) else None
    except binascii.Error:
        return None


def pdf_pages(data: bytes) -> int | None:
    """Return the number of pages; None if this is no PDF, or one that cannot be read."""
    if b"%PDF-" not in data[:1_024] or b"%%EOF" not in data:
        return None
    pages = len(_PAGE.findall(data))
    for packed in _PACKED.findall(data):
        try:
            pages += len(_PAGE.findall(zlib.decompressobj().decompress(packed)))
        except zlib.error:
            return None
    return pages or None


def pdf_problem(document: Document) -> str | None:
    """Return why a PDF is refused; None for one that can be read, and for a document of another kind."""
    if document.url is not None or document.media_type != PDF:
        return None
    if document.data is None or pdf_pages(document.data) is None:
        return "The PDF specified was not valid."
    return "The PDF specified is password protected." if b"/Encrypt" in document.data else None


def total_pages(documents: list[Document]) -> int:
    """Return the pages of all PDFs that came as data."""
    return sum(pdf_pages(one.data) or 0 for one in documents if one.data is not None and one.media_type == PDF)


def document_tokens(value: Any) -> int:
    """Return the estimated input tokens of the documents in messages; one by address counts as a page."""
    tokens = 0
    for one in documents_in(value):
        if one.data is None or one.media_type == PDF:
            tokens += _PAGE_TOKENS * (1 if one.data is None else pdf_pages(one.data) or 1)
        else:
            tokens += len(one.data) // 4
    return tokens
