"""Uploads the documents that requests name, each once for an account, before the requests are sent.

    lease ─▶ unknown outcomes settled ─▶ row in the ledger ─▶ upload ─▶ its id in the ledger ─▶ ids into the lines

1. One process at a time uploads to an account.
2. A row without an id was left by a process that died, or by a call without an answer. Its file is looked for by its
   name, which no other upload has. If it is not there, another upload is begun, and the former is lost.
   `upkeep.stored_documents` deletes its file, should it appear.
3. Before a stored document is used again, the vendor is asked for it. It is uploaded anew if the vendor, or a person,
   has deleted it, or if it expires before a batch may end.
4. Requests whose document the vendor refuses are not sent. Others go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, wait
from datetime import datetime, timedelta
from functools import partial
from typing import NamedTuple

from dagster_llm_batch.core.uploads import MOST_ID_CHARS, UploadName, names_in
from dagster_llm_batch.errors import CredentialsError, LeaseError, PayloadError, RefusedError, TransientError
from dagster_llm_batch.files.document_files import document_path
from dagster_llm_batch.files.request_files import answers_so_far, requests_of
from dagster_llm_batch.loop.deployment import LONGEST_PAUSE, Deployment, Threads
from dagster_llm_batch.protocols import Provider, StoresDocuments
from dagster_llm_batch.providers.capabilities import document_store_of
from dagster_llm_batch.storage.ledger.leases import Lease
from dagster_llm_batch.storage.ledger.records import Shard, Upload
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import Lane

__all__ = ["DocumentUploader", "StoredDocuments", "divide_refused", "find_missing", "lease_of"]

_PAUSE = timedelta(minutes=2)


class StoredDocuments(NamedTuple):
    """The vendor's ids of documents, by their names, and its reasons against the documents that it refused."""

    ids: Mapping[str, str]
    refused: Mapping[str, str]

    @property
    def by_refusal(self) -> dict[str, set[str]]:
        """The names of the refused documents, by the vendor's reason."""
        found: dict[str, set[str]] = {}
        for name, words in self.refused.items():
            found.setdefault(words, set()).add(name)
        return found


class _Wanted(NamedTuple):
    """The folders that may have a document, and the submissions whose requests name it."""

    folders: list[str]
    submission_ids: set[str]


class DocumentUploader:
    """Upload the documents of planned shards of one provider."""

    def __init__(self, deployment: Deployment, shards: Sequence[Shard]) -> None:
        self._deployment = deployment
        self._shards = shards
        self._provider = deployment.provider_of(shards[0])
        self._documents = deployment.ledger.documents

    def upload_or_delay(self) -> StoredDocuments | None:
        """Return the stored documents; None if the provider, or the uploads of a process, are busy: the shards wait.

        Raises CredentialsError, ConfigError or PayloadError. Then the shards stay planned, too.
        """
        shards = self._deployment.ledger.shards
        ids, now = [shard.shard_id for shard in self._shards], self._deployment.clock()
        try:
            return self._upload_all()
        except TransientError as error:
            pause = _PAUSE if error.retry_after_seconds is None else timedelta(seconds=error.retry_after_seconds)
            shards.record_unsent(ids, now + min(pause, LONGEST_PAUSE), str(error))
        except LeaseError as error:
            shards.delay(ids, now + _PAUSE, str(error))
        return None

    def _upload_all(self) -> StoredDocuments:
        wanted = self._find_wanted()
        if not wanted:
            return StoredDocuments({}, {})
        store, wait_seconds = document_store_of(self._provider), self._deployment.download_wait_seconds
        with self._deployment.ledger.leases.hold(lease_of(self._provider), wait_seconds=wait_seconds) as lease:
            known = self._find(store, wanted)
            with Threads(self._deployment.transfers_at_once, "dagster-llm-batch upload") as pool:
                tasks = {
                    name: pool.submit(self._store, store, name, own, known.get(name, ()), lease)
                    for name, own in wanted.items()
                }
                wait(tasks.values(), return_when=FIRST_EXCEPTION)
            # After an error, started uploads have ended, and the others did not start.
            for task in tasks.values():
                if not task.cancelled():
                    task.result()
            ends = {name: task.result() for name, task in tasks.items()}
            lease.check()
            stored = {name: end for name, end in ends.items() if isinstance(end, Upload)}
            # Under the lease: from here on, no process deletes them.
            self._documents.need({each.upload_key: wanted[name].submission_ids for name, each in stored.items()})
        ids = {name: upload.file_id or "" for name, upload in stored.items()}
        return StoredDocuments(ids, {name: str(end) for name, end in ends.items() if isinstance(end, RefusedError)})

    def _find_wanted(self) -> dict[str, _Wanted]:
        """Return the documents that unanswered requests name, by name."""
        found: dict[str, _Wanted] = {}
        for shard in self._shards:
            if not shard.has_uploads:
                continue
            names: set[str] = set()
            for _, line in _unanswered(self._deployment.payloads, shard):
                names |= names_in(line)
            folders = list(dict.fromkeys([shard.path.rpartition("/")[0], *self._folders_of(shard.submission_id)]))
            for name in sorted(names):
                wanted = found.setdefault(name, _Wanted([], set()))
                wanted.folders.extend(folders)
                # The submissions of one batch may be erased one by one, so each needs its own documents alone.
                wanted.submission_ids.add(shard.submission_id)
        return found

    def _folders_of(self, submission_id: str) -> Iterable[str]:
        """Return the folders of a submission, and of those whose requests it sends again."""
        waiting, seen, folders = [submission_id], set[str](), dict[str, None]()
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                submission = self._deployment.ledger.submissions.get(one)
                waiting += submission.reused_from
                # A dataset may have had another name when an earlier round was planned.
                paths = (shard.path.rpartition("/")[0] for shard in self._deployment.ledger.shards.of_submission(one))
                folders.update(dict.fromkeys(folder for folder in (submission.folder, *paths) if folder))
        return folders

    def _find(self, store: StoresDocuments, names: Collection[str]) -> dict[str, list[Upload]]:
        """Return the uploads with a file that may be used again, by name, the newest first.

        Settles the uploads whose outcome is unknown.
        """
        uploads = self._find_recorded(names)
        unknown = {upload.file_name: upload for upload in uploads if upload.file_id is None}
        if unknown:
            files = store.find_documents(unknown.keys())
            for file_name, upload in unknown.items():
                if own := files.get(file_name):
                    self._documents.complete(upload.upload_key, own[0])
                else:
                    self._documents.lose(upload.upload_key)
            uploads = self._find_recorded(names)
        now, found = self._deployment.clock(), dict[str, list[Upload]]()
        for upload in reversed(uploads):
            if is_usable(upload, now, self._provider.window):
                found.setdefault(upload.name, []).append(upload)
        return found

    def _find_recorded(self, names: Collection[str]) -> list[Upload]:
        provider = self._provider
        return self._documents.find(self._deployment.namespace, provider.name, provider.account, names)

    def _store(
        self, store: StoresDocuments, name: str, wanted: _Wanted, known: Sequence[Upload], lease: Lease
    ) -> Upload | RefusedError:
        """Return the upload of a document that the vendor stores now, or its refusal."""
        for upload in known:
            try:
                is_there = store.has_document(upload.file_id or "")
            except CredentialsError:
                raise
            except RefusedError:
                # The vendor may still have the file. Another one takes its place, and this one goes after its batches.
                self._documents.lose(upload.upload_key)
                continue
            if is_there:
                return self._checked(upload)
            self._documents.forget(upload.upload_key)
        document, now = UploadName.read(name), self._deployment.clock()
        data = self._read(document, wanted.folders)
        upload = Upload(
            upload_key=self._deployment.new_id(),
            namespace=self._deployment.namespace,
            provider=self._provider.name,
            account=self._provider.account,
            name=name,
            bytes=len(data),
            began_at=now,
            needed_at=now,
        )
        lease.check()
        # Committed before the call: after a crash, the file is found by the name of this row.
        self._documents.begin(upload, wanted.submission_ids)
        lease.check()
        try:
            file = store.upload_document(data, upload.file_name, document.media_type)
        except CredentialsError:
            raise
        except RefusedError as error:
            self._documents.lose(upload.upload_key)
            return error
        return self._checked(self._documents.complete(upload.upload_key, file))

    def _checked(self, upload: Upload) -> Upload | RefusedError:
        """Return an upload whose id fits into its place in the lines; a refusal for a longer id."""
        written = len(json.dumps(upload.file_id)) - len('""')
        if written <= MOST_ID_CHARS:
            return upload
        return RefusedError(
            f"The provider '{self._provider.name}' names a stored document by {written} characters, and requests have "
            f"room for {MOST_ID_CHARS}. Plan it again with documents_as='file'."
        )

    def _read(self, name: UploadName, folders: Sequence[str]) -> bytes:
        payloads = self._deployment.payloads
        for folder in dict.fromkeys(folders):
            path = document_path(folder, name)
            if payloads.exists(path):
                with payloads.reader(path) as file:
                    return file.read()
        raise PayloadError(
            f"The document {name} of {folders[0]} is not in the payload store, and requests name it. Nothing was sent. "
            "Restore it in the payload store, or cancel the submission and plan it again."
        )


def find_missing(deployment: Deployment, provider: Provider, names: Collection[str]) -> set[str]:
    """Return the documents among these that the ledger does not have in the vendor's storage. Makes no call."""
    uploads = deployment.ledger.documents.find(deployment.namespace, provider.name, provider.account, names)
    now = deployment.clock()
    return set(names) - {upload.name for upload in uploads if is_usable(upload, now, provider.window)}


def divide_refused(
    payloads: PayloadStore,
    shards: Sequence[Shard],
    stored: StoredDocuments,
    split: Callable[[Shard, Callable[[str, bytes], bool]], tuple[Shard, Shard]],
) -> tuple[list[Shard], list[tuple[Shard, str]]]:
    """Return the shards whose documents are stored, and the others, each with the vendor's reason.

    A shard with both is split: `split` takes it, and a function that has the request_id and the line of a request and
    returns whether the request belongs to the first half.
    """
    ready, refused = list(shards), list[tuple[Shard, str]]()
    for words, names in stored.by_refusal.items():
        whole, ready = ready, []
        for shard in whole:
            lacking = _requests_with(payloads, shard, names)
            if not lacking:
                ready.append(shard)
            elif len(lacking) == shard.requests:
                refused.append((shard, words))
            else:
                kept, rest = split(shard, partial(_is_outside, lacking))
                ready.append(kept)
                refused.append((rest, words))
    return ready, refused


def _requests_with(payloads: PayloadStore, shard: Shard, names: Collection[str]) -> set[str]:
    """Return the request_ids of the unanswered requests of a shard that name one of these documents."""
    lines = _unanswered(payloads, shard) if shard.has_uploads else ()
    return {request_id for request_id, line in lines if not names_in(line).isdisjoint(names)}


def _is_outside(request_ids: Collection[str], request_id: str, _line: bytes) -> bool:
    return request_id not in request_ids


def _unanswered(payloads: PayloadStore, shard: Shard) -> Iterator[tuple[str, bytes]]:
    """Yield the requests of a shard, each with its line, without those that were answered in real time."""
    answers = answers_so_far(payloads, shard) if shard.lane is Lane.REALTIME else {}
    for place, request in enumerate(requests_of(payloads, shard.path, shard.nonce)):
        if place not in answers:
            yield request


def is_usable(upload: Upload, now: datetime, window: timedelta) -> bool:
    """Return whether a file lives as long as a batch may take, or at least for half of its vendor's time."""
    if upload.file_id is None:
        return False
    if upload.expires_at is None:
        return True
    life = upload.expires_at - (upload.uploaded_at or upload.began_at)
    return upload.expires_at - now > min(window, life / 2)


def lease_of(provider: Provider) -> str:
    """Return the name of the lease of the process that uploads documents to a provider's account."""
    return f"documents:{provider.name}:{provider.account}"
