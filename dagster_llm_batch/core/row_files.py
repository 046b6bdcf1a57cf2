"""Read the images and documents of rows: bytes, an http(s) address, or a path below a folder.

A row whose file cannot be read, or that a vendor would refuse, gets a reason in place of its file, and other rows go
on. An error of the store itself stops the plan, since the file may be there the next time.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from dagster_llm_batch.core.address_secrets import quote_address
from dagster_llm_batch.core.documents import (
    RULES_OF_TEXT,
    UnreadableTextError,
    describe_office_file,
    document_text,
    document_type,
    fault_of_documents,
    fault_of_size,
    pages_of,
)
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.types import Document, DocumentRules, Image

__all__ = [
    "NO_FILES",
    "FileLoader",
    "FilesOfRows",
    "RowFiles",
    "UnreadableFile",
    "WrongPathError",
    "image_type_of",
]

FileLoader = Callable[[str], bytes]
"""Returns the bytes of the file at a path of a row. See `Prompt.image_root` for which paths are allowed.

Raises WrongPathError for others.
"""


class WrongPathError(ValueError):
    """Raised for a path of a row that is not allowed. Its text goes on after the path: `leads out of file_root`."""


@dataclass(frozen=True)
class UnreadableFile:
    """Stands for the request of a row with a file that cannot be read, or that the vendor would refuse.

    `reason` names the column, the value received and the allowed values.
    """

    reason: str


@dataclass(frozen=True)
class RowFiles:
    """How the files of rows are read.

    Attributes:
        load_image: Reads an image by its path below the prompt's image_root; None without a root.
        load_document: Reads a document by its path below the prompt's file_root; None without a root.
        rules: The limits of each model's vendor for the documents of a request.
    """

    load_image: FileLoader | None = None
    load_document: FileLoader | None = None
    rules: Sequence[DocumentRules] = ()


NO_FILES = RowFiles()

_File = TypeVar("_File", Image, Document)

_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
_REASON_CHARS = 500
# Errors of a path; with others a store may answer another time.
_OF_PATHS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
_ERRNOS_OF_PATHS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ)
_HTTP_REFUSED, _HTTP_FAILED = 400, 500
# Request Timeout, Too Early, Too Many Requests
_PASSING = (408, 425, 429)


@dataclass(frozen=True)
class _Noun(Generic[_File]):
    """One kind of files: the word for it, the argument with the root of its paths, and the reader of its bytes.

    `read` returns the file with these bytes, or their fault.
    """

    word: str
    several: str
    root: str
    at_url: Callable[[str], _File]
    read: Callable[[bytes], _File | str]


class FilesOfRows:
    """Read the files in the columns `images` and `documents` of rows."""

    def __init__(self, images: Collection[str], documents: Collection[str], files: RowFiles) -> None:
        self._images, self._documents, self._files = images, documents, files

    def images(self, row: Mapping[str, Any], key: object) -> tuple[Image, ...] | UnreadableFile:
        """Return the images of a row. Raises InputError if a store does not answer, or for a wrong type."""
        return _read_all(_IMAGE, self._images, row, key, self._files.load_image)

    def documents(
        self, row: Mapping[str, Any], key: object, images: Sequence[Image], text: str
    ) -> tuple[Document, ...] | UnreadableFile:
        """Return the documents of a row, which has these images and this text. Raises as `images`."""
        rules = self._files.rules
        documents = _read_all(_DOCUMENT, self._documents, row, key, self._files.load_document, rules)
        if isinstance(documents, UnreadableFile):
            return documents
        for each in rules:
            if (fault := fault_of_documents(documents, each, images, text)) is not None:
                named = ", ".join(f"'{name}'" for name in self._documents if row[name] is not None)
                one = "the document in column" if len(documents) == 1 else "the documents in columns"
                return UnreadableFile(f"{one} {named} cannot be sent: {fault[:_REASON_CHARS]}")
        return documents

    def with_texts(self, row: Mapping[str, Any], key: object, text: str) -> str | UnreadableFile:
        """Return this text with the texts of a row's documents after it. Raises as `images`."""
        of_text = replace(self._files, rules=(RULES_OF_TEXT,))
        documents = FilesOfRows((), self._documents, of_text).documents(row, key, (), text)
        if isinstance(documents, UnreadableFile):
            return documents
        parts = [text] if text else []
        columns = [name for name in self._documents if row[name] is not None]
        for number, (column, document) in enumerate(zip(columns, documents, strict=True), start=1):
            try:
                found = document_text(document)
            except UnreadableTextError as error:
                return _unreadable(_DOCUMENT, column, str(error))
            parts.append(f"Document {number} of {len(documents)}:\n\n{found}")
        return "\n\n".join(parts)


def _read_all(
    noun: _Noun[_File],
    columns: Collection[str],
    row: Mapping[str, Any],
    key: object,
    load: FileLoader | None,
    rules: Sequence[DocumentRules] = (),
) -> tuple[_File, ...] | UnreadableFile:
    files = []
    for name in columns:
        if row[name] is None:
            continue
        file = _file(noun, row[name], name, key, load, rules)
        if isinstance(file, UnreadableFile):
            return file
        files.append(file)
    return tuple(files)


def _file(
    noun: _Noun[_File],
    value: object,
    column: str,
    key: object,
    load: FileLoader | None,
    rules: Sequence[DocumentRules],
) -> _File | UnreadableFile:
    if isinstance(value, str) and value.startswith(("https://", "http://")):
        return noun.at_url(value)
    if isinstance(value, str):
        if load is None:
            return _unreadable(
                noun,
                column,
                f"got {quote_address(value)}, which is neither bytes nor an http(s) URL; "
                f"to read {noun.several} from paths, set Prompt({noun.root}=...)",
            )
        path = value
        try:
            value = load(path)
        # Each kind of store has errors of its own.
        except Exception as error:
            if (why := _fault_of_path(error, path, noun.root)) is None:
                msg = (
                    f"Row {key!r}: the store of the {noun.word} {quote_address(path)} in column '{column}' does not "
                    f"answer: {type(error).__name__}. Nothing was sent. Plan it again when the store answers."
                )
                raise InputError(msg) from error
            return _unreadable(noun, column, why)
    if not isinstance(value, (bytes, bytearray, memoryview)):
        kind = type(value).__name__
        article = "an" if noun.word == "image" else "a"
        msg = (
            f"Row {key!r}: column '{column}' holds a {kind}; {article} {noun.word} is bytes, a path or an http(s) URL."
        )
        raise InputError(msg)
    data = bytes(value)
    # Parsing a file takes longer and more memory than the vendor allows for.
    if (fault := fault_of_size(len(data), rules)) is not None:
        return UnreadableFile(f"the {noun.word} in column '{column}' cannot be sent: {fault}")
    file = noun.read(data)
    return _unreadable(noun, column, file) if isinstance(file, str) else file


def _unreadable(noun: _Noun[_File], column: str, why: str) -> UnreadableFile:
    return UnreadableFile(f"the {noun.word} in column '{column}' cannot be read: {why[:_REASON_CHARS]}")


def _fault_of_path(error: Exception, path: str, root: str) -> str | None:
    """Return the fault of a file's path; None if its store may give the file another time."""
    link: BaseException | None = error
    while link is not None:
        if _is_outage(link):
            return None
        link = link.__cause__
    named = quote_address(path)
    if isinstance(error, WrongPathError):
        return f"{named} {error}"
    if isinstance(error, PermissionError):
        return f"got {named}, which may not be read; allowed is a file below {root} that this process may read"
    if isinstance(error, IsADirectoryError):
        return f"got {named}, which is a folder below {root}; allowed is a file"
    if isinstance(error, OSError | ValueError) or hasattr(error, "status"):
        return f"got {named}, which is no file below {root}; allowed is the path of one, relative to it"
    return None


def _is_outage(error: BaseException) -> bool:
    # fsspec turns every error of a web server into a FileNotFoundError. The error with the status is its cause.
    if isinstance(status := getattr(error, "status", None), int):
        return status in _PASSING or not _HTTP_REFUSED <= status < _HTTP_FAILED
    if any(kind.__name__ == "ClientConnectionError" for kind in type(error).__mro__):
        return True
    return isinstance(error, OSError) and not (isinstance(error, _OF_PATHS) or error.errno in _ERRNOS_OF_PATHS)


def _image(data: bytes) -> Image | str:
    if (media_type := image_type_of(data)) is None:
        return f"got {_start(data)}; allowed is a PNG, JPEG, GIF or WebP image"
    return Image(media_type=media_type, data=data)


def image_type_of(data: bytes) -> str | None:
    """Return the media type of an image by its first bytes; None for other bytes."""
    for magic, media_type in _MAGIC:
        if data.startswith(magic):
            return media_type
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return None


def _start(data: bytes) -> str:
    return f"bytes that start with {data[:8]!r}" if data else "no bytes"


def _document(data: bytes) -> Document | str:
    if (media_type := document_type(data)) is None:
        office = describe_office_file(data)
        allowed = f"got {office or _start(data)}; allowed is a PDF, a text in UTF-8, a .docx or an .xlsx file"
        return allowed if office is None else f"{allowed}. Save it as PDF"
    pages = pages_of(data, media_type)
    return pages if isinstance(pages, str) else Document(media_type=media_type, data=data, pages=pages)


_IMAGE = _Noun("image", "images", "image_root", lambda url: Image(url=url), _image)
_DOCUMENT = _Noun("document", "documents", "file_root", lambda url: Document(url=url), _document)
