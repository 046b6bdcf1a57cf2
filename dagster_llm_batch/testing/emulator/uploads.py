"""Documents in the vendors' storage, which requests name: each is read as if it were in the request itself.

https://platform.openai.com/docs/guides/pdf-files, https://platform.claude.com/docs/en/build-with-claude/files,
https://ai.google.dev/gemini-api/docs/files
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dagster_llm_batch.testing.emulator.blobs import Blob

__all__ = ["FindDocument", "StoredDocument", "UnknownFileError", "with_documents"]

_OPENAI_KINDS = ("file", "input_file")


class UnknownFileError(Exception):
    """A request names a file that the account does not have, or no longer has. Its text is the id."""


@dataclass(frozen=True)
class StoredDocument:
    """A stored document of an account. `expires_at` is in seconds since the epoch; None: it stays."""

    account: str
    blob: Blob
    name: str
    media_type: str
    created_at: float
    expires_at: float | None = None

    def lives(self, now: float) -> bool:
        """Return whether it has not expired."""
        return self.expires_at is None or now < self.expires_at

    @property
    def base64(self) -> str:
        """The bytes, as requests have them."""
        return base64.b64encode(self.blob.read_at(0, self.blob.bytes)).decode()


FindDocument = Callable[[str], StoredDocument | None]
"""Returns the caller's document with an id; None without one."""

_GEMINI_FILE = re.compile(r"/v1(?:beta)?/files/")
_MESSAGES = ("messages", "input", "contents")


def with_documents(body: dict[str, Any], find: FindDocument) -> dict[str, Any]:
    """Return a request of any vendor with the documents that it names. Raises UnknownFileError."""
    return {**body, **{name: _read(body[name], find) for name in _MESSAGES if name in body}}


def _read(value: Any, find: FindDocument) -> Any:
    if isinstance(value, list):
        return [_read(each, find) for each in value]
    if not isinstance(value, dict):
        return value
    return _inline(value, find) or {name: _read(each, find) for name, each in value.items()}


def _inline(part: dict[str, Any], find: FindDocument) -> dict[str, Any] | None:
    """Return a part that names a file with its document in it; None for another part."""
    kind, data = part.get("type"), part.get("fileData")
    inner = part.get("file") if kind == "file" else part.get("source") if kind in ("document", "image") else part
    if kind in _OPENAI_KINDS and isinstance(inner, dict) and "file_id" in inner:
        found = _found(inner["file_id"], find)
        file = {"filename": found.name, "file_data": f"data:{found.media_type};base64,{found.base64}"}
        return {"type": kind, "file": file} if kind == "file" else {"type": kind, **file}
    if kind in ("document", "image") and isinstance(inner, dict) and inner.get("type") == "file":
        found = _found(inner.get("file_id"), find)
        if found.media_type == "text/plain":
            text = found.blob.read_at(0, found.blob.bytes).decode("utf-8", "replace")
            return {**part, "source": {"type": "text", "media_type": found.media_type, "data": text}}
        return {**part, "source": {"type": "base64", "media_type": found.media_type, "data": found.base64}}
    if isinstance(data, dict) and _GEMINI_FILE.search(str(data.get("fileUri"))):
        found = _found(data["fileUri"], find)
        return {"inlineData": {"mimeType": data.get("mimeType", found.media_type), "data": found.base64}}
    return None


def _found(file_id: object, find: FindDocument) -> StoredDocument:
    found = find(str(file_id))
    if found is None:
        raise UnknownFileError(str(file_id))
    return found
