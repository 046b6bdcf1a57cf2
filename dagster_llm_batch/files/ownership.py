"""Decides which files are ours: the one rule for everything that deletes, in the payload store and at providers.

A stored file is ours only if one of these holds:

1. The ledger names it: as a submission's manifest, or as a file of one of its shards.
2. It is in a folder that the ledger names, and its bytes have the custom_ids of a shard of that submission. Examples
   are requests of a shard that was split, of a wave whose process was killed before its record, and for a fallback.
3. Its name is one that `own_name` made for its folder: a half-written file, a part of a lost worker, a merged copy, a
   document that is uploaded.
4. It is in a place where a plan writes, in the folder of a submission that the ledger lacks, and the custom_ids of the
   requests there contain the folder's name: a plan was killed before its record. The manifest and the other files with
   our digest next to such requests are ours, too.

All other files stay, whatever their names are. Files that look like ours are listed (`Holdings.unclaimed`).

A batch is ours unless it was adopted: then other code sent it. The Parquet files directly in the folder of a table of
labels are the table, which is replaced as a whole: `label_files.py` and `io.py` do that, and ignore all folders below
it.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import pyarrow as pa

from dagster_llm_batch.core.identity import shard_nonce
from dagster_llm_batch.files.document_files import is_document_of, name_in
from dagster_llm_batch.files.shard_files import (
    APART,
    CALIBRATION,
    ERASING,
    IDS,
    OLDER,
    PART,
    RAW,
    RELABELS,
    RESULTS,
    SENT,
    SHARES,
    SO_FAR,
    beside,
    ids_in,
)
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.storage.payloads import PayloadStore, StoredFile, namespace_folder, payload_path
from dagster_llm_batch.storage.stored_files import is_own_name, is_staged_name, own_name
from dagster_llm_batch.types import Cause

__all__ = ["MERGED", "Holdings", "Ownership", "copy_path", "is_receipt", "owned_copies", "owns_batch", "remove"]

MERGED = "merged"
"""The folder name of a partition's merged copies, next to the folders of its submissions."""

_MANIFEST = "manifest.parquet"
# Files of a submission that have our digest, and no custom_ids.
_DECISIONS = (CALIBRATION, SHARES, RELABELS, OLDER)
_DEPTH = len(PurePosixPath(payload_path("namespace", "asset", "partition", "submission", "name")).parents)
_OF_SHARD = re.compile(r"wave-(\d+)-(\d{4,})(?:\.\d+)?(\.[a-z].*)")
_SPARE = re.compile(r"fallback-([0-9a-f]{1,32})\.jsonl\.zst")
_OF_WORKER = re.compile(rf"(?:{PART}|{APART})([0-9a-f]{{32}})\.parquet")
_STAGED = re.compile(r"\.[0-9a-f]{32}\.tmp")
_COPY = re.compile(r"([0-9a-f]{32})\.parquet")
_READ_BYTES = 1 << 20


@dataclass
class Holdings:
    """The stored files of a namespace that are ours, and files that look like ours.

    Attributes:
        of_submissions: Files of the submissions in the ledger, by submission_id.
        of_killed_plans: Files of plans that were killed before their record, by folder.
        copies: Merged copies, half-written ones included.
        unclaimed: Files at our places without proof that they are ours.
        shows_another_ledger: Whether results or receipts are among them: another ledger may write here.
    """

    of_submissions: dict[str, list[StoredFile]] = field(default_factory=lambda: defaultdict(list))
    of_killed_plans: dict[str, list[StoredFile]] = field(default_factory=dict)
    copies: list[StoredFile] = field(default_factory=list)
    unclaimed: list[StoredFile] = field(default_factory=list)
    shows_another_ledger: bool = False


class Ownership:
    """Decide which files in the payload store belong to one namespace of a ledger."""

    def __init__(self, ledger: Ledger, payloads: PayloadStore, namespace: str) -> None:
        self._ledger = ledger
        self._payloads = payloads
        self._namespace = namespace

    def files_of(self, submission: Submission) -> list[StoredFile]:
        """Return the files of one submission."""
        shards = self._ledger.shards.of_submission(submission.submission_id)
        named, folders = _named(submission, shards), _folders(submission, shards)
        return [
            file
            for folder in sorted(folders)
            for file in self._payloads.files(folder)
            if file.path.rpartition("/")[0] == folder and self._is_of(submission.submission_id, named, file)
        ]

    def survey(self) -> tuple[Holdings, list[Submission]]:
        """Return the files of the namespace, and its submissions."""
        stored = [*self._payloads.files(namespace_folder(self._namespace))]
        # Read after the files: files of a submission that is planned in between are young, and stay.
        submissions = self._ledger.submissions.list_all(self._namespace)
        shards = self._ledger.shards.of_submissions([submission.submission_id for submission in submissions])
        named: dict[str, set[str]] = {}
        places: dict[str, str] = {}
        for submission in submissions:
            own = shards[submission.submission_id]
            named[submission.submission_id] = _named(submission, own)
            places |= dict.fromkeys(_folders(submission, own), submission.submission_id)
        partitions = {folder.rpartition("/")[0] for folder in places}
        holdings, others = Holdings(), defaultdict(list)
        for file in stored:
            folder = file.path.rpartition("/")[0]
            if (submission_id := places.get(folder)) is not None:
                is_ours = self._is_of(submission_id, named[submission_id], file)
                (holdings.of_submissions[submission_id] if is_ours else holdings.unclaimed).append(file)
            elif len(PurePosixPath(file.path).parents) == _DEPTH:
                others[folder].append(file)
        for folder, files in others.items():
            parent, _, name = folder.rpartition("/")
            if name == MERGED:
                parts = [file for file in files if self._is_bound("", file)]
                # A partition without a submission in the ledger has no copies.
                copies = [file for file in files if parent in partitions and _is_copy(self._payloads, file)]
                holdings.copies += copies
                if parts:
                    holdings.of_killed_plans[folder] = parts
                ours = {*parts, *copies}
                looks = (file for file in files if _looks_like_ours(file) or _COPY.fullmatch(_name(file)))
                holdings.unclaimed += [file for file in looks if file not in ours]
            else:
                self._add_unknown(holdings, folder, files, is_known=name in named)
        return holdings, submissions

    def _add_unknown(self, holdings: Holdings, folder: str, files: Sequence[StoredFile], *, is_known: bool) -> None:
        """Add the files in a folder that the ledger does not name."""
        looks = [file for file in files if _looks_like_ours(file)]
        # A folder of a known submission at another place is a copy that somebody made.
        bound = [] if is_known else [file for file in looks if self._is_bound(folder.rpartition("/")[2], file)]
        if bound:
            beside_them = (file for file in looks if file not in bound and _name(file) in (_MANIFEST, *_DECISIONS))
            ours = [*bound, *(file for file in beside_them if self._payloads.carries_digest(file.path))]
            holdings.of_killed_plans[folder] = ours
            looks = [file for file in looks if file not in ours]
        holdings.unclaimed += looks
        # A killed plan has neither.
        shown = [*looks, *bound]
        holdings.shows_another_ledger |= any(_ending(file) in (RAW, RESULTS, SENT) for file in shown)

    def _is_of(self, submission_id: str, named: Collection[str], file: StoredFile) -> bool:
        """Return whether a file in a folder of this submission is its own."""
        if file.path in named or self._is_bound(submission_id, file):
            return True
        return _name(file) in (ERASING, *_DECISIONS) and self._payloads.carries_digest(file.path)

    def _is_bound(self, submission_id: str, file: StoredFile) -> bool:
        """Return whether its name or its bytes show that a file is of this submission."""
        folder, _, name = file.path.rpartition("/")
        if is_staged_name(name, folder) or is_document_of(folder, name):
            return True
        if found := _OF_WORKER.fullmatch(name):
            return is_own_name(found[1], folder)
        if found := _SPARE.fullmatch(name):
            return self._holds(file, shard_nonce(submission_id, 0, int(found[1], 16)))
        if (found := _OF_SHARD.fullmatch(name)) is None or found[3] == RESULTS:
            return False
        nonce = shard_nonce(submission_id, int(found[1]), int(found[2]))
        if found[3] == IDS:
            return ids_in(self._payloads, file.path, nonce) is not None
        return self._holds(file, nonce)

    def _holds(self, file: StoredFile, nonce: str) -> bool:
        """Return whether a stream has this nonce in it, or our digest and nothing else, since all rows were erased."""
        sought, before, is_empty = nonce.encode(), b"", True
        try:
            with self._payloads.reader(file.path) as stream:
                while data := stream.read(_READ_BYTES):
                    if sought in before + data:
                        return True
                    before, is_empty = data[-len(sought) :], False
        # Not a stream of ours, or damaged: nothing proves its owner.
        except (OSError, pa.ArrowException):
            return False
        return is_empty and self._payloads.carries_digest(file.path)


def remove(payloads: PayloadStore, files: Iterable[StoredFile]) -> None:
    """Remove files that this module has found to be ours."""
    for file in files:
        payloads.remove(file)


def owns_batch(shards: Iterable[Shard]) -> bool:
    """Return whether the batch of these shards was sent from here, so that its copy at the provider may go."""
    return all(shard.cause is not Cause.ADOPTED for shard in shards)


def is_receipt(file: StoredFile) -> bool:
    """Return whether a file has the place and the name of a shard's receipt."""
    return len(PurePosixPath(file.path).parents) == _DEPTH and _ending(file) == SENT


def copy_path(partition: str, start: str) -> str:
    """Return the path of a merged copy in the folder of a partition; `start` are 16 hex digits."""
    folder = f"{partition}/{MERGED}"
    return f"{folder}/{own_name(folder, start)}.parquet"


def owned_copies(payloads: PayloadStore, folders: Iterable[str]) -> Iterator[StoredFile]:
    """Yield the merged copies in the partitions of submissions with these folders, half-written ones included."""
    # After a rename the older submissions' folders are in the folder of the former name.
    partitions = {folder.rpartition("/")[0] for folder in folders if folder}
    for partition in sorted(partitions):
        for file in payloads.files(f"{partition}/{MERGED}"):
            folder, _, name = file.path.rpartition("/")
            # The parts of results that a worker processes are there, too, and stay.
            if folder == f"{partition}/{MERGED}" and (is_staged_name(name, folder) or _is_copy(payloads, file)):
                yield file


def _is_copy(payloads: PayloadStore, file: StoredFile) -> bool:
    folder, _, name = file.path.rpartition("/")
    found = _COPY.fullmatch(name)
    # Older versions gave copies names without a digest of their folder.
    return found is not None and (is_own_name(found[1], folder) or payloads.carries_digest(file.path))


def _named(submission: Submission, shards: Iterable[Shard]) -> set[str]:
    """Return the paths that the ledger names for a submission and its shards."""
    named = {submission.manifest_path}
    for shard in shards:
        named |= {shard.path, shard.raw_path, shard.results_path}
        named |= {beside(shard, ending) for ending in (IDS, RAW, RESULTS, SENT, SO_FAR)}
    return {path for path in named if path}


def _folders(submission: Submission, shards: Iterable[Shard]) -> set[str]:
    """Return the folders of a submission's files. A wave that was planned after a rename is in another one."""
    folders = {submission.folder, *(shard.path.rpartition("/")[0] for shard in shards)}
    return {folder for folder in folders if folder}


def _name(file: StoredFile) -> str:
    return file.path.rpartition("/")[2]


def _ending(file: StoredFile) -> str | None:
    """Return the text after a shard's number in the name of its file; None for another file."""
    found = _OF_SHARD.fullmatch(_name(file))
    return None if found is None else found[3]


def _looks_like_ours(file: StoredFile) -> bool:
    name = _name(file)
    patterns = (_OF_SHARD, _SPARE, _OF_WORKER, _STAGED)
    is_plain = name in (_MANIFEST, ERASING, *_DECISIONS) or name_in(name) is not None
    return is_plain or any(pattern.fullmatch(name) for pattern in patterns)
