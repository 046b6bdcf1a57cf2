r"""Documents that are uploaded once, and their places in request lines. Pure.

A plan writes lines before anything is uploaded. So a line names such a document by its digest, in a place that has room
for the vendor's id. When the line is sent, the id takes the place, filled up with spaces to the same length:

    "file_id":"dlb-document-<sha256>.pdf___…"   ─▶   "file_id":"file-abc"            …

Row data cannot make such a place: in a line its quotation marks are escaped, and it is never the value of these fields.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import NamedTuple

from dagster_llm_batch.core.documents import ENDINGS
from dagster_llm_batch.types import Document

__all__ = ["MARK", "MOST_ID_CHARS", "UploadName", "digest_of", "file_place", "names_in", "with_file_ids"]

MARK = b'"dlb-document-'
"""The start of each place in a line."""

MOST_ID_CHARS = 200
"""The longest id or address of a vendor's file that a place has room for."""

_PLACE = re.compile(rb'("(?:file_id|fileUri)":)"dlb-document-([0-9a-f]{64}\.[a-z]{3,4})_*"')
_KINDS = {ending: kind for kind, ending in ENDINGS.items()}


class UploadName(NamedTuple):
    """The name of a document: the SHA-256 of its bytes in hex, and the ending of its kind."""

    digest: str
    ending: str

    @classmethod
    def of(cls, document: Document) -> UploadName:
        """Return the name of a document that is uploaded."""
        assert document.digest is not None
        return cls(document.digest, ENDINGS[document.media_type or ""])

    @classmethod
    def read(cls, text: str) -> UploadName:
        """Return the name from its text."""
        return cls(*text.split("."))

    @property
    def media_type(self) -> str:
        """The media type of the document."""
        return _KINDS[self.ending]

    def __str__(self) -> str:
        return f"{self.digest}.{self.ending}"


def digest_of(data: bytes) -> str:
    """Return the digest that identifies a document's bytes. Rows of other people must not share it, so it is strong."""
    return hashlib.sha256(data).hexdigest()


def file_place(document: Document) -> str:
    """Return the text that stands for the vendor's id of a document in a line."""
    return f"dlb-document-{UploadName.of(document)}".ljust(MOST_ID_CHARS, "_")


def names_in(line: bytes) -> set[str]:
    """Return the names of the uploaded documents in a line or several."""
    return {found[2].decode() for found in _PLACE.finditer(line)} if MARK in line else set()


def with_file_ids(line: bytes, ids: Mapping[str, str]) -> bytes:
    """Return a line of the same length with these ids, by name. Raises KeyError for a document without an id."""

    def file_id(found: re.Match[bytes]) -> bytes:
        text = json.dumps(ids[found[2].decode()]).encode("ascii")
        return found[1] + text.ljust(len(found[0]) - len(found[1]))

    return _PLACE.sub(file_id, line) if MARK in line else line
