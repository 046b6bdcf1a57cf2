"""OpenAI's files and uploads, by account. https://platform.openai.com/docs/api-reference/files/object"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dagster_llm_batch.testing.emulator.blobs import Blob
from dagster_llm_batch.testing.emulator.books import FileRecord
from dagster_llm_batch.testing.emulator.openai.wire import ApiError, Body
from dagster_llm_batch.testing.emulator.shared_state import SharedState
from dagster_llm_batch.testing.emulator.uploads import StoredDocument

_SHORTEST_SECONDS, _LONGEST_SECONDS = 3600, 2_592_000
_UPLOAD_SECONDS = 3600
_KINDS = {
    "pdf": "application/pdf",
    "txt": "text/plain",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
_EXPIRING = frozenset({"batch", "batch_output"})


def expiry_seconds(given: Any, *, param: str = "expires_after", allowed: tuple[int, int] | None = None) -> int | None:
    """Return the seconds of an `expires_after` value, from JSON or form fields; None without one.

    `allowed`: the shortest and the longest; by default OpenAI's.
    """
    least, most = allowed or (_SHORTEST_SECONDS, _LONGEST_SECONDS)
    if given is None:
        return None
    seconds = given.get("seconds") if isinstance(given, dict) else None
    if isinstance(seconds, str) and seconds.isdigit():
        seconds = int(seconds)
    if (
        not isinstance(given, dict)
        or given.get("anchor") != "created_at"
        or not isinstance(seconds, int)
        or not least <= seconds <= most
    ):
        text = f"Invalid '{param}': anchor 'created_at' and {least} to {most} seconds."
        raise ApiError(400, text, param=param)
    return seconds


@dataclass(frozen=True)
class StoredFile:
    """A file that can be read."""

    id: str
    account: str
    blob: Blob
    filename: str
    purpose: str
    created_at: int
    expires_at: int | None
    was_told: bool  # when to expire; else it is the default of its purpose

    def as_json(self) -> Body:
        """Return the file object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.blob.bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
        }


@dataclass
class Upload:
    """A file on its way, in parts. https://platform.openai.com/docs/api-reference/uploads/object"""

    id: str
    account: str
    bytes: int
    filename: str
    purpose: str
    created_at: int
    expires_after: int | None
    status: str = "pending"
    file: StoredFile | None = None
    parts: dict[str, Blob] = field(default_factory=dict)

    def as_json(self) -> Body:
        """Return the upload object."""
        return {
            "id": self.id,
            "object": "upload",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "expires_at": self.created_at + _UPLOAD_SECONDS,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": self.status,
            "file": self.file.as_json() if self.file is not None else None,
        }


class Files:
    """Every file and upload of the vendor. Files that have expired are not found any more."""

    def __init__(self, shared: SharedState, new_id: Callable[[], str] | None = None) -> None:
        self._shared = shared
        self._new_id = new_id or (lambda: shared.new_id("file-"))
        self._files: dict[str, StoredFile] = {}
        self._uploads: dict[str, Upload] = {}

    def store(
        self, account: str, blob: Blob, filename: str, purpose: str, seconds: int | None, *, lasts: bool = False
    ) -> StoredFile:
        """Keep these bytes as a file, for `seconds`, or for its purpose's default: with `lasts`, for ever."""
        self._shared.keep(blob)
        if purpose == "batch":
            if not filename.endswith(".jsonl"):
                raise ApiError(400, "Invalid file format for Batch API. Must be .jsonl")
            if blob.bytes > self._shared.limits.file_bytes:
                raise ApiError(400, "File is too large.")
        was_told = seconds is not None
        if seconds is None and purpose in _EXPIRING and not lasts:
            seconds = _LONGEST_SECONDS
        now = int(self._shared.clock())
        expires_at = None if seconds is None else now + seconds
        stored = StoredFile(self._new_id(), account, blob, filename, purpose, now, expires_at, was_told)
        self._files[stored.id] = stored
        self._shared.books.write(FileRecord(stored.id, account, purpose, filename, blob.bytes, now))
        return stored

    def get(self, account: str, file_id: str) -> StoredFile | None:
        """Return the account's file, if it is there and has not expired."""
        stored = self._files.get(file_id)
        return stored if stored is not None and stored.account == account and self._lives(stored) else None

    def document(self, account: str, file_id: str) -> StoredDocument | None:
        """Return a file that requests may name: of another purpose than batches."""
        stored = self.get(account, file_id)
        if stored is None or stored.purpose in _EXPIRING:
            return None
        kind = _KINDS.get(stored.filename.rpartition(".")[2], "application/octet-stream")
        return StoredDocument(account, stored.blob, stored.filename, kind, stored.created_at, stored.expires_at)

    def of(self, account: str) -> list[StoredFile]:
        """Return the account's files, oldest first."""
        return [one for one in list(self._files.values()) if one.account == account and self._lives(one)]

    def delete(self, file_id: str) -> None:
        """Forget the file; a batch that has begun to read it still can."""
        self._files.pop(file_id, None)

    def begin(self, account: str, body: Body, seconds: int | None) -> Upload:
        """Start an upload."""
        upload = Upload(
            id=self._shared.new_id("upload_"),
            account=account,
            bytes=body["bytes"],
            filename=body["filename"],
            purpose=body["purpose"],
            created_at=int(self._shared.clock()),
            expires_after=seconds,
        )
        self._uploads[upload.id] = upload
        return upload

    def upload(self, account: str, upload_id: str) -> Upload | None:
        """Return the account's upload."""
        upload = self._uploads.get(upload_id)
        return upload if upload is not None and upload.account == account else None

    def add_part(self, upload: Upload, blob: Blob) -> str:
        """Keep a part; its id."""
        part_id = self._shared.new_id("part_")
        upload.parts[part_id] = self._shared.keep(blob)
        return part_id

    def _lives(self, stored: StoredFile) -> bool:
        return stored.expires_at is None or self._shared.clock() < stored.expires_at
