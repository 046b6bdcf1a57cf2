r"""Text, images and bytes of request and result files, for every provider. Pure but for `sized`.

Request lines are ASCII JSON, so U+2028 and its kin never appear raw. A half surrogate, which no strict JSON reader
takes, becomes U+FFFD: one such row must not fail the whole file. Result files are split at `\n` alone.
"""

from __future__ import annotations

import io
import json
import re
import shutil
import tempfile
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from json.encoder import encode_basestring_ascii
from typing import Any, BinaryIO, TypeVar

import msgspec

from dagster_llm_batch.core.documents import fault_of_documents
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.text import replace_halves
from dagster_llm_batch.types import Document, DocumentRules, Image, Request, Turn

__all__ = [
    "BOM",
    "MAX_REASON_CHARS",
    "LineStart",
    "check_documents",
    "check_roles",
    "cut_heads",
    "decode_line",
    "decode_usual",
    "dumps",
    "encode_document",
    "encode_image",
    "lacks_document",
    "quote",
    "quoted",
    "repaired",
    "sized",
    "split_lines",
]

BOM = b"\xef\xbb\xbf"
MAX_REASON_CHARS = 1_000
"""Longest kept text of a vendor's message about a row, in characters: it is stored with each row."""

_NO_DOCUMENT = re.compile(
    # OpenAI, Anthropic and Gemini
    r"No such File object|File not found|access the File \S+ or it may not exist"
)
_CHUNK_BYTES = 1 << 16
_TRIED_LINES = 8
_Read = TypeVar("_Read")
_ENCODE = msgspec.json.Encoder().encode


def quote(text: str) -> str:
    """Write the text as an ASCII JSON string, quotes included."""
    return quoted(text).decode("ascii")


def quoted(text: str) -> bytes:
    """Write the text as an ASCII JSON string, quotes included, in bytes."""
    # Nearly all rows are ASCII, which msgspec writes several times as fast. It alone leaves DEL unescaped.
    if text.isascii():
        return _ENCODE(text)
    try:
        # faster than a search for half surrogates if the text encodes to UTF-8, like the text of a planned row
        text.encode()
    except UnicodeEncodeError:
        text = replace_halves(text)
    return encode_basestring_ascii(text).encode("ascii")


def dumps(value: Any) -> str:
    """Write the value as compact ASCII JSON. Raises ConfigError for values that JSON lacks, such as NaN and sets."""
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"A parameter or response schema is not JSON: {error}.") from error


def repaired(line: bytes) -> bytes:
    """Make strict UTF-8 JSON of a line: replace bad bytes and half surrogates, which an LLM cut mid-character gives."""
    text = json.dumps(json.loads(line.decode("utf-8", "replace")), ensure_ascii=False)
    return replace_halves(text).encode()


class LineStart:
    """The part of a request line before its user part, kept for the next line: mostly all have the same system text."""

    def __init__(self, write: Callable[[str | None], bytes]) -> None:
        self._write = write
        self._last: tuple[str | None, bytes] = (None, write(None))

    def of(self, system: str | None) -> bytes:
        """Return the start of a line with this system text."""
        # Read and written as one pair, so that threads never mix two requests.
        known, start = self._last
        if known != system:
            start = self._write(system)
            self._last = (system, start)
        return start


def check_roles(turns: Iterable[Turn]) -> None:
    """Raise ConfigError for a few-shot turn with a role that all vendors lack: a system text is a separate part."""
    for turn in turns:
        if turn.role not in ("user", "assistant"):
            raise ConfigError(f"A few-shot turn has the role {turn.role!r}; it can be 'user' or 'assistant'.")


def encode_image(image: Image) -> tuple[str, str]:
    """Write an image's bytes in base64, after its media type. Raises InputError where it has no bytes or no type."""
    if image.data is None or image.media_type is None:
        raise InputError("An image has neither a URL nor data with a media type, such as 'image/png'.")
    return image.media_type, b64encode(image.data).decode("ascii")


def encode_document(document: Document) -> tuple[str, str]:
    """Write a document's bytes in base64, after its media type. Raises InputError where it has no bytes or no type."""
    if document.data is None or document.media_type is None:
        raise InputError("A document has neither a URL nor data with a media type, such as 'application/pdf'.")
    return document.media_type, b64encode(document.data).decode("ascii")


def check_documents(
    request: Request, rules: DocumentRules | None, model: str, uploads: DocumentRules | None = None
) -> None:
    """Raise ConfigError if the model takes no documents, and InputError if its vendor would refuse these.

    `uploads` are the rules for uploaded documents. A plan has checked the same of each row: this is for requests that
    were made otherwise.
    """
    if not request.documents:
        return
    if any(document.digest is not None for document in request.documents):
        rules = uploads
    if rules is None:
        raise ConfigError(f"The model {model!r} takes no documents here. Leave them out of the prompt.")
    if (fault := fault_of_documents(request.documents, rules, request.images, request.user)) is not None:
        raise InputError(f"The documents cannot be sent: {fault}.")


def lacks_document(message: object) -> bool:
    """Return whether a row failed because its vendor does not store an uploaded document any more, in its own words."""
    return isinstance(message, str) and _NO_DOCUMENT.search(message) is not None


def decode_line(line: bytes, decoder: msgspec.json.Decoder[_Read]) -> tuple[_Read, None] | tuple[None, str]:
    """Decode a result line; where it cannot be read, return None and the reason.

    A byte order mark, and characters that were cut in their middle, are no reason: the row was paid for.
    """
    stripped = line.removeprefix(BOM).strip()
    if not stripped:
        return None, "blank line"
    try:
        # a Raw field is not checked to be UTF-8
        stripped.decode()
        return decoder.decode(stripped), None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        try:
            return decoder.decode(repaired(stripped)), None
        except (ValueError, RecursionError, msgspec.MsgspecError):
            return None, f"unreadable line: {error}"[:MAX_REASON_CHARS]


def split_lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    r"""Split a file that comes in pieces into its lines, each with its `\n`."""
    # At b"\n" alone, in bytes: `str.splitlines` and the line readers of httpx split at U+2028 too, which a reply may
    # hold.
    held: list[bytes] = []
    for chunk in chunks:
        held.append(chunk)
        # A long line is put together once, at its end: with each piece, it would be copied thousands of times.
        if b"\n" in chunk:
            lines = io.BytesIO(b"".join(held)).readlines()
            held = [lines.pop()] if not lines[-1].endswith(b"\n") else []
            yield from lines
    if rest := b"".join(held):
        yield rest + b"\n"


def cut_heads(file: BinaryIO, head: bytes) -> Iterator[bytes]:
    """Yield a request file in blocks of whole lines; `{` replaces `head` at the start of a line.

    `head` is `{` and the fields that a vendor does not take in a line.
    """
    start = b"\n" + head
    while block := file.read(_CHUNK_BYTES):
        # Every line feed ends a line: JSON escapes the ones in its texts. Replacing in many lines at once takes half as
        # long as a check of each line.
        whole = b"".join((b"\n", block, file.readline()))
        yield whole.replace(start, b"\n{")[1:]


def decode_usual(lines: Sequence[bytes], decoder: msgspec.json.Decoder[_Read]) -> tuple[list[_Read], Sequence[int]]:
    """Decode the lines that fit the decoder; return these, and the places of the others.

    If the first few all fail to fit, the rest are not tried: a server that writes one line in its own way writes all
    so.
    """
    decode, read, others = decoder.decode, [], []
    for at, line in enumerate(lines):
        try:
            read.append(decode(line))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            others.append(at)
            if len(others) == _TRIED_LINES and not read:
                return [], range(len(lines))
    return read, others


@contextmanager
def sized(lines: BinaryIO) -> Iterator[tuple[BinaryIO, int]]:
    """Return the number of bytes left in `lines`; if it is unknown, the stream is copied to a temporary file first."""
    if lines.seekable():
        here = lines.tell()
        size = lines.seek(0, 2) - here
        lines.seek(here)
        yield lines, size
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(lines, copy, _CHUNK_BYTES)
        size = copy.tell()
        copy.seek(0)
        yield copy, size
