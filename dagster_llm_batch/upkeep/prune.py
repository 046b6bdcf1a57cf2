"""Removal of stored files that are no longer needed, by these rules:

1. A submission keeps all its files until N days after its delivery. So do the newest submission and the newest complete
   submission of each partition, and every submission whose answers these reuse.
2. Every other submission is pruned. First an event is added to the ledger, so that later plans do not reuse its
   answers. Then its requests, raw results, results and manifest are removed. Its row and its events stay. If the
   process is killed in between, the next call removes the rest.
3. With an age for them, requests and raw results of kept submissions are removed, too. Such a submission was delivered
   before that age, has nothing in flight or waiting for a person, and is not a source of an open submission. The paths
   are removed from the ledger first. The provenance of labels stays: results, lists of rows and of requests, and the
   ledger.
4. Files without a submission in this ledger are removed if a killed plan left them more than a day ago. Killed plans
   leave neither receipts nor results. A folder with them belongs to another ledger, or to this one before a backup was
   restored; then all such files stay.
5. Half-written files, and parts of tables from a lost worker, are removed after a day, also of kept submissions.
6. Merged copies of results (`merged_results.py`) are removed with the first of their sources, and N days after they
   were made. They are made again when they are needed.
7. `ownership.py` decides which files are ours. Other people's files in the same bucket stay.

Refuses to delete if ledger and payload store do not belong together. The module `uploads` removes files at providers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import PurePosixPath

from dagster_llm_batch.errors import ConfigError, LeaseError
from dagster_llm_batch.files.document_files import DOCUMENT
from dagster_llm_batch.files.merged_results import drop_merged
from dagster_llm_batch.files.ownership import Holdings, Ownership, remove
from dagster_llm_batch.files.shard_files import APART, IDS, PART, RAW, REQUESTS, SO_FAR, beside
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger import Ledger
from dagster_llm_batch.storage.ledger.records import Submission
from dagster_llm_batch.storage.payloads import PayloadStore, StoredFile

__all__ = ["Pruner", "Pruning"]

_LEFT_BEHIND_AFTER = timedelta(days=1)
# The beginnings of the names of files that only one step needs.
_PARTS = (".", PART, APART)
_LONG_AGO = timedelta(days=36_500)


@dataclass(frozen=True)
class Pruning:
    """The files that are removed, or would be."""

    replaced: Mapping[str, tuple[StoredFile, ...]]  # files of submissions that newer ones replaced, by submission_id
    aged: Mapping[str, tuple[StoredFile, ...]]  # requests and raw results, likewise, that were kept for long enough
    left_behind: tuple[StoredFile, ...]  # files of plans that were killed
    foreign: tuple[StoredFile, ...]  # files at our places without proof that they are this ledger's; they stay
    kept: int  # submissions that keep their files
    merged: tuple[StoredFile, ...] = ()  # merged copies of results, which are made again when they are needed

    @property
    def files(self) -> tuple[StoredFile, ...]:
        """All files that are removed."""
        of_submissions = (*self.replaced.values(), *self.aged.values())
        return (*(file for files in of_submissions for file in files), *self.left_behind, *self.merged)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


class Pruner:
    """Prune one namespace."""

    def __init__(self, ledger: Ledger, payloads: PayloadStore, namespace: str, clock: Callable[[], datetime]) -> None:
        self._ledger = ledger
        self._payloads = payloads
        self._namespace = namespace
        self._clock = clock
        self._ownership = Ownership(ledger, payloads, namespace)

    def prune(self, older_than: timedelta, raw_older_than: timedelta | None = None, *, delete: bool) -> Pruning:
        """See Engine.prune."""
        for name, age in (("older_than", older_than), ("raw_older_than", raw_older_than)):
            if age is not None and age < _LEFT_BEHIND_AFTER:
                raise ConfigError(f"Files are pruned after a day at the earliest; got {name}={age}.")
        holdings, submissions = self._ownership.survey()
        pruning = self._select(holdings, submissions, older_than)
        if raw_older_than is not None:
            replaced = pruning.replaced.keys()
            aged = self._aged(holdings.of_submissions, submissions, self._clock() - raw_older_than)
            pruning = replace(pruning, aged={key: files for key, files in aged if key not in replaced})
        pruning = replace(pruning, merged=self._merged(pruning, holdings, self._clock() - older_than))
        return self._delete(pruning, holdings) if delete else pruning

    def _merged(self, pruning: Pruning, holdings: Holdings, cutoff: datetime) -> tuple[StoredFile, ...]:
        """Return the merged copies that are old, or in a partition that loses some or all submissions."""
        parents = {key: {_partition_of(file) for file in files} for key, files in holdings.of_submissions.items()}
        going = {each for key in pruning.replaced for each in parents[key]}
        staying = {each for key in parents.keys() - pruning.replaced.keys() for each in parents[key]}

        def goes(file: StoredFile) -> bool:
            partition = _partition_of(file)
            return partition in going or partition not in staying or _is_before(file, cutoff)

        return tuple(file for file in holdings.copies if goes(file))

    def _aged(
        self, folders: Mapping[str, Sequence[StoredFile]], submissions: Sequence[Submission], cutoff: datetime
    ) -> Iterator[tuple[str, tuple[StoredFile, ...]]]:
        """Yield submissions whose labels were materialized before the cutoff, with their requests and raw results."""
        for submission in submissions:
            found = tuple(file for file in folders.get(submission.submission_id, ()) if _is_raw(file))
            if found and self._is_done_with(submission, submissions, cutoff):
                yield submission.submission_id, found

    def _is_done_with(self, submission: Submission, submissions: Sequence[Submission], cutoff: datetime) -> bool:
        """Return whether a submission is complete for good, with labels materialized before the cutoff."""
        if not submission.is_settled or submission.delivered_at is None or submission.delivered_at > cutoff:
            return False
        # An open submission sends its source's unanswered requests from the source's request file.
        if any(submission.submission_id in other.reused_from and not other.is_settled for other in submissions):
            return False
        return all(
            shard.state is ShardState.COLLECTED and not shard.waits_for_person
            for shard in self._ledger.shards.of_submission(submission.submission_id)
        )

    def find_left_behind(self) -> tuple[StoredFile, ...]:
        """Return files that killed processes left more than a day ago. Changes nothing."""
        holdings, submissions = self._ownership.survey()
        return self._select(holdings, submissions, _LONG_AGO).left_behind

    def prune_left_behind(self) -> tuple[StoredFile, ...]:
        """Remove only files that killed processes left more than a day ago; return the younger files."""
        holdings, submissions = self._ownership.survey()
        pruning = replace(self._select(holdings, submissions, _LONG_AGO), replaced={})
        self._delete(pruning, holdings)
        known = (file for files in holdings.of_submissions.values() for file in files if _is_part(file))
        foreign = {file.path for file in pruning.foreign}
        unknown = (file for files in holdings.of_killed_plans.values() for file in files if file.path not in foreign)
        return tuple(file for file in (*known, *unknown) if file not in pruning.left_behind)

    def _select(self, holdings: Holdings, submissions: Sequence[Submission], older_than: timedelta) -> Pruning:
        now = self._clock()
        kept = _kept(submissions, now - older_than)
        needed = self._needed(submission for submission in submissions if submission.submission_id in kept)
        replaced = {
            key: tuple(file for file in files if file.path not in needed)
            for key, files in holdings.of_submissions.items()
            if key not in kept
        }
        leftovers = [
            file
            for key, files in holdings.of_submissions.items()
            if key in kept
            for file in files
            if _is_part(file) and _is_stale([file], now)
        ]
        unknown = [file for files in holdings.of_killed_plans.values() for file in files]
        stale = [file for files in holdings.of_killed_plans.values() if _is_stale(files, now) for file in files]
        # These files are not from a killed plan.
        is_shared = holdings.shows_another_ledger or not submissions
        return Pruning(
            replaced={key: files for key, files in replaced.items() if files},
            aged={},
            left_behind=(*leftovers, *(() if is_shared else stale)),
            foreign=(*holdings.unclaimed, *(unknown if is_shared else ())),
            kept=len(kept),
        )

    def _needed(self, kept: Iterable[Submission]) -> set[str]:
        """Return the paths of all files of kept submissions, which may be in other submissions' folders."""
        by_id = {submission.submission_id: submission for submission in kept}
        named: set[str | None] = {submission.manifest_path for submission in by_id.values()}
        for shards in self._ledger.shards.of_submissions(by_id).values():
            for shard in shards:
                named |= {shard.path, beside(shard, IDS), shard.raw_path, shard.results_path}
        return {path for path in named if path is not None}

    def _delete(self, pruning: Pruning, holdings: Holdings) -> Pruning:
        if pruning.files:
            self._refuse_another_store(holdings)
        replaced = {}
        for submission_id, files in pruning.replaced.items():
            try:
                with self._ledger.leases.hold(f"submission:{submission_id}"):
                    if self._give_up(submission_id, files):
                        remove(self._payloads, files)
                        # After their sources: see merged_results.py.
                        drop_merged(self._payloads, {file.path.rpartition("/")[0] for file in files})
                        replaced[submission_id] = files
            # Another process works on it now.
            except LeaseError:
                continue
        aged = {}
        for submission_id, files in pruning.aged.items():
            try:
                with self._ledger.leases.hold(f"submission:{submission_id}"):
                    # Read again: late answers may have come, or a newer submission may need it.
                    submission, others = self._ledger.submissions.get(submission_id), self._history_of(submission_id)
                    if self._is_done_with(submission, others, self._clock()):
                        self._ledger.shards.forget_raw(submission_id, len(files))
                        remove(self._payloads, files)
                        aged[submission_id] = files
            except LeaseError:
                continue
        remove(self._payloads, (*pruning.left_behind, *pruning.merged))
        return replace(pruning, replaced=replaced, aged=aged)

    def _history_of(self, submission_id: str) -> list[Submission]:
        submission = self._ledger.submissions.get(submission_id)
        return self._ledger.submissions.of_partition(submission.namespace, submission.asset, submission.partition)

    def _give_up(self, submission_id: str, files: Sequence[StoredFile]) -> bool:
        """Record the pruning; return False if a plan took up the answers just now, so that the files must stay."""
        self._ledger.submissions.mark_pruned(submission_id, len(files), sum(file.bytes for file in files))
        return submission_id not in _kept(self._history_of(submission_id), self._clock())

    def _refuse_another_store(self, holdings: Holdings) -> None:
        """Raise ConfigError if the newest submission has no file: each has a manifest, so it is another store."""
        newest = max(self._ledger.submissions.list_all(self._namespace), key=lambda each: each.created_at, default=None)
        if newest is None or newest.manifest_path is None or newest.submission_id in holdings.of_submissions:
            return
        msg = (
            f"The payload store has no file of submission {newest.submission_id} of '{newest.asset}', the newest in "
            f"namespace '{self._namespace}'. Is it the store of this ledger? Nothing was deleted."
        )
        raise ConfigError(msg)


def _is_raw(file: StoredFile) -> bool:
    name = PurePosixPath(file.path).name
    return name.endswith((REQUESTS, RAW, SO_FAR)) or name.startswith(("fallback-", DOCUMENT))


def _is_part(file: StoredFile) -> bool:
    """Return whether only one step needs a file."""
    return PurePosixPath(file.path).name.startswith(_PARTS)


def _partition_of(file: StoredFile) -> PurePosixPath:
    """Return the folder of a file's partition."""
    return PurePosixPath(file.path).parent.parent


def _is_before(file: StoredFile, cutoff: datetime) -> bool:
    return file.modified_at is not None and file.modified_at < cutoff


def _kept(submissions: Sequence[Submission], cutoff: datetime) -> set[str]:
    """Return the ids of submissions that keep their files. `submissions`: all of a namespace or of a partition."""
    by_id = {submission.submission_id: submission for submission in submissions}
    newest: dict[tuple[str, str], Submission] = {}
    newest_settled: dict[tuple[str, str], Submission] = {}
    for submission in sorted(submissions, key=lambda each: (each.created_at, each.submission_id)):
        newest[submission.asset, submission.partition] = submission
        if submission.is_settled:
            newest_settled[submission.asset, submission.partition] = submission
    queue = [
        *newest.values(),
        *newest_settled.values(),
        *(each for each in submissions if each.delivered_at is None or each.delivered_at > cutoff),
    ]
    kept: set[str] = set()
    while queue:
        submission = queue.pop()
        if submission.submission_id not in kept:
            kept.add(submission.submission_id)
            queue += [by_id[source] for source in submission.reused_from if source in by_id]
    return kept


def _is_stale(files: Sequence[StoredFile], now: datetime) -> bool:
    """Return whether all files are older than a day. A file of unknown age counts as new."""
    times = [file.modified_at for file in files]
    return all(time is not None and now - time > _LEFT_BEHIND_AFTER for time in times)
