"""The documents of a submission that are uploaded before its requests are sent: each once, by its digest.

The vendor may delete them before a retry round, so the payload store keeps them with the requests, which name them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from dagster_llm_batch.core.uploads import UploadName
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.stored_files import is_own_name, own_name
from dagster_llm_batch.types import Document

__all__ = ["DOCUMENT", "DocumentFiles", "document_path", "is_document_of", "name_in"]

DOCUMENT = "document-"
"""The start of the names of these files."""

_NAME = re.compile(rf"{DOCUMENT}([0-9a-f]{{64}})-([0-9a-f]{{32}})\.([a-z]{{3,4}})\.zst")
_OWN_CHARS = 16


def document_path(folder: str, name: UploadName) -> str:
    """Return the path of a document in the folder of a submission."""
    return f"{folder}/{DOCUMENT}{name.digest}-{own_name(folder, name.digest[:_OWN_CHARS])}.{name.ending}.zst"


def is_document_of(folder: str, file_name: str) -> bool:
    """Return whether this package made a file name for a document in this folder."""
    found = _NAME.fullmatch(file_name)
    return found is not None and is_own_name(found[2], folder)


def name_in(file_name: str) -> str | None:
    """Return the name of the document in a file; None for another file."""
    found = _NAME.fullmatch(file_name)
    return None if found is None else f"{found[1]}.{found[3]}"


@dataclass(frozen=True)
class DocumentFiles:
    """Store the documents of requests in the folder of their submission. `sizes` has the bytes of each, by its name."""

    payloads: PayloadStore
    folder: str
    sizes: dict[str, int] = field(default_factory=dict)

    def keep(self, documents: Iterable[Document]) -> None:
        """Store these documents, as far as they are uploaded and not stored yet."""
        for document in documents:
            if document.digest is None or document.data is None:
                continue
            name = UploadName.of(document)
            if str(name) not in self.sizes:
                with self.payloads.writer(document_path(self.folder, name)) as out:
                    out.write(document.data)
                self.sizes[str(name)] = len(document.data)

    def discard(self) -> None:
        """Remove the documents; workers may have stored some of them."""
        for file in [*self.payloads.files(self.folder)]:
            if is_document_of(self.folder, file.path.rpartition("/")[2]):
                self.payloads.delete(file.path)
