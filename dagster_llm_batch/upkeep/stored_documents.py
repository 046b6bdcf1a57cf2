"""Removal of documents from vendors' storage once no batch or retry round needs them.

    due ─▶ lease of the account's uploads ─▶ still due? ─▶ delete at the provider ─▶ ledger

1. A document goes when the submissions that name it are complete and none of their batches may still run, after the
   same grace as request files. Without any submission, as after an erasure, it goes at once.
2. A file whose upload had no answer goes after an hour, as it may appear late. It is found by its name.
3. No document is uploaded or used for new batches meanwhile, since both need the same lease.
4. The file is deleted before the ledger forgets it: after a crash in between, it is deleted again, without effect.
5. An error of one provider keeps only this provider's files. A file that the provider refuses to delete keeps no other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from dagster_llm_batch.errors import CredentialsError, LeaseError, ProviderError, RefusedError
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.document_uploads import lease_of
from dagster_llm_batch.providers.capabilities import document_store_of
from dagster_llm_batch.storage.ledger.records import Upload
from dagster_llm_batch.upkeep.uploads import accounts_of

__all__ = ["DocumentRemover", "RemovedDocuments"]

_MOST = 10_000

# After so many refusals in a row, the provider may refuse this caller, and each further call would fail, too.
_MOST_REFUSALS = 10


@dataclass
class RemovedDocuments:
    """The uploads whose files were deleted, and by provider the reason for remaining ones."""

    uploads: list[Upload] = field(default_factory=list)
    troubles: dict[str, str] = field(default_factory=dict)


class DocumentRemover:
    """Remove the documents of one deployment from vendors' storage."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._documents = deployment.ledger.documents

    def due(self, *, besides: Collection[str] = (), limit: int = _MOST) -> list[Upload]:
        """Return the uploads whose files are to go, by provider. Not of the providers `besides`."""
        grace = self._deployment.keep_request_files
        before = None if grace is None else self._deployment.clock() - grace
        accounts = accounts_of(self._deployment, besides)
        return self._documents.due(self._deployment.namespace, accounts, before, limit=limit)

    def remove_files(
        self,
        uploads: Sequence[Upload],
        *,
        most: int = _MOST,
        has_time: Callable[[], bool] = lambda: True,
    ) -> RemovedDocuments:
        """Delete the files of these uploads that are still due, `most` of them, for as long as there is time."""
        removed, left = RemovedDocuments(), most
        for name, own in groupby(uploads, key=attrgetter("provider")):
            keys = {upload.upload_key for upload in own}
            if left <= 0 or not has_time():
                break
            try:
                for upload, refusal in self._remove_from(name, keys, left, has_time):
                    if refusal is None:
                        removed.uploads.append(upload)
                        left -= 1
                    else:
                        removed.troubles[name] = str(refusal)
            # A process uploads there now.
            except LeaseError:
                continue
            except Exception as error:  # noqa: BLE001 - of a provider, which may be the user's own: anything may come
                removed.troubles[name] = str(error) or type(error).__name__
        return removed

    def _remove_from(
        self, name: str, keys: Collection[str], most: int, has_time: Callable[[], bool]
    ) -> Iterator[tuple[Upload, ProviderError | None]]:
        """Yield the uploads whose files were deleted, or not, with the provider's refusal."""
        provider = self._deployment.provider(name)
        store = document_store_of(provider)
        with self._deployment.ledger.leases.hold(lease_of(provider)) as lease:
            # Read again: a process may have used them since.
            uploads = [each for each in self.due() if each.provider == name and each.upload_key in keys][:most]
            unknown = {upload.file_name for upload in uploads if upload.file_id is None}
            found, refusals = store.find_documents(unknown) if unknown else {}, 0
            for upload in uploads:
                if not has_time():
                    return
                ids = [file.file_id for file in found.get(upload.file_name, ())]
                try:
                    for file_id in ids if upload.file_id is None else [upload.file_id]:
                        lease.check()
                        store.delete_document(file_id)
                except (RefusedError, CredentialsError) as error:
                    refusals += 1
                    if refusals == _MOST_REFUSALS:
                        raise
                    yield upload, error
                else:
                    refusals = 0
                    self._documents.forget(upload.upload_key)
                    yield upload, None
