"""Erasure of rows: their stored data is removed, and they get neither requests nor labels again.

    tombstones in the ledger ─▶ each submission of the asset:
        list of requests ─▶ manifest ─▶ files of each shard, spares ─▶ ledger: numbers, fingerprint, tombstones
    then, at providers: the stored requests and results of ended batches with such requests

1. A tombstone is written first. It has a digest instead of the key. Plans leave such rows out.
2. A submission has the number of tombstones that were applied to its files. A process that sends it, collects it or
   materializes its labels applies missing tombstones first. So work that another process prevented is done in time.
3. Each step can be repeated: after a crash anywhere, the next call continues. Each file is replaced as a whole, with
   its digest.
4. A request that is also the request of another row, which is not erased, stays.
5. A batch in flight stays until it ends. The process that collects it erases first, before labels are materialized or
   requests are sent again. So the costs of batches include erased requests.

Labels in users' tables and Dagster's event log are not changed.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.cascade.sampling import forget_sampled
from dagster_llm_batch.core.dedupe import Seen
from dagster_llm_batch.core.identity import RowsDigest, configuration_with, packed, shard_nonce, unpacked
from dagster_llm_batch.core.keys import ErasedKeys, key_digest
from dagster_llm_batch.core.label_join import UNSENT
from dagster_llm_batch.core.result_schema import REPEATING
from dagster_llm_batch.core.uploads import names_in
from dagster_llm_batch.definition.labeling import promises_in
from dagster_llm_batch.errors import ConfigError, LeaseError, PayloadError, ProviderError
from dagster_llm_batch.files.document_files import name_in
from dagster_llm_batch.files.merged_results import drop_merged
from dagster_llm_batch.files.ownership import Ownership, owns_batch, remove
from dagster_llm_batch.files.request_files import (
    DEFINITION,
    ERASING,
    IDS,
    RAW,
    REQUESTS,
    RESULTS,
    SO_FAR,
    answers_so_far,
    beside,
    definition_in,
    levels_of,
    names_any,
    request_ids,
    requests_of,
    write_answers_so_far,
    write_ids,
)
from dagster_llm_batch.files.request_writer import ERASED_ROWS, SKIPPED, UNREADABLE_ROWS
from dagster_llm_batch.files.shard_files import RELABELS
from dagster_llm_batch.files.share_files import audited_of, forget_shared
from dagster_llm_batch.loop.deployment import Deployment
from dagster_llm_batch.loop.label import Answers
from dagster_llm_batch.loop.pruned import is_pruned
from dagster_llm_batch.loop.receipts import recover_all, recover_planned
from dagster_llm_batch.loop.status import advise_on_lost_manifest
from dagster_llm_batch.loop.waits import KEPT_FOR
from dagster_llm_batch.providers.capabilities import delete_batch
from dagster_llm_batch.states import ENDED, IN_FLIGHT, Reason, ShardState, Transition
from dagster_llm_batch.storage.ledger.records import Shard, Submission, Tombstone
from dagster_llm_batch.storage.ledger.shard_rows import count_requests, is_awaited, is_unread
from dagster_llm_batch.storage.ledger.shards import WORDS_ERASED
from dagster_llm_batch.storage.payloads import StoredFile
from dagster_llm_batch.types import Lane
from dagster_llm_batch.upkeep.prune import Pruner

__all__ = ["Eraser", "FoundRows", "Left", "ProviderCopy"]

_ID, _REASON = "llm_request_id", "llm_reason"
_SPARE = re.compile(r"fallback-([0-9a-f]+)\.jsonl\.zst")
_UNREAD = (
    "it was abandoned, and the provider alone has the paid answers to its {requests:,} other requests. The sensor asks "
    "for them daily until a month after its end. Run this again then, or delete them, too, by --also-unread"
)
_UNKNOWN_PROVIDER = "the providers are unknown here: give the definitions (-m or -f)"
_IN_USE = "a process uploads there now, or the outcome of its upload is unknown: run this again after an hour"
_OTHER_ACCOUNT = "another account is configured now: it stays until it expires, or until you delete it in the console"
_ADOPTED = "it was adopted, so its request file and its results there are their sender's, who alone deletes them"


@dataclass(frozen=True)
class FoundRows:
    """The rows of one submission to erase.

    Attributes:
        submission: The submission of the rows.
        rows: The number of rows.
        shared: The number of these rows whose request is also the request of another row, which stays: so does it.
        in_flight: Shards with such requests in flight.
        manifest_lost: Whether the manifest is lost, so that the rows are unknown.
        ended: The other shards with such requests that were sent: providers store their batches.
        files: Paths of the stored files with such rows.
    """

    submission: Submission
    rows: int = 0
    shared: int = 0
    in_flight: tuple[Shard, ...] = ()
    manifest_lost: bool = False
    ended: tuple[Shard, ...] = ()
    files: tuple[str, ...] = ()

    @property
    def adopted(self) -> list[str]:
        """The ids of batches with such requests that were adopted: their copies at providers stay."""
        return sorted({shard.batch.batch_id or "" for shard in self.ended if not owns_batch([shard])})

    @property
    def given_up(self) -> list[str]:
        """The ids of batches with such requests that were given up unread: they may have answers to other requests."""
        return sorted({shard.batch.batch_id or "" for shard in self.ended if is_unread(shard) or is_awaited(shard)})


@dataclass(frozen=True)
class Left:
    """A submission that is not completely erased, and the reason."""

    submission: Submission
    reason: str


@dataclass(frozen=True)
class ProviderCopy:
    """A batch with erased requests, or an uploaded document of such requests, and the end of its copy at the provider.

    `left` names the data that stay there, or the reason against a deletion; None if all data were deleted. `is_ours` is
    False for an adopted batch: only its sender deletes it. For a document, `batch_id` is the id of its file.
    """

    provider: str
    batch_id: str
    left: str | None
    is_ours: bool = True
    is_document: bool = False


class Eraser:
    """Erase rows of one deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self._ledger = deployment.ledger
        self._payloads = deployment.payloads
        self._namespace = deployment.namespace
        self._ownership = Ownership(deployment.ledger, deployment.payloads, deployment.namespace)

    # tombstones -------------------------------------------------------------------------------------------------------

    def _erased_with(self, asset: str, keys: Sequence[str], partition: str) -> ErasedKeys:
        """Return these keys and all erased keys. Records nothing."""
        known = self._deployment.erased_keys(partition, asset)
        salt = secrets.token_hex(16)
        return replace(known, digests={**known.digests, salt: frozenset(key_digest(salt, key) for key in keys)})

    def add_tombstones(self, asset: str, keys: Sequence[str], partitions: Sequence[str] | None) -> int:
        """Record that rows with these keys are erased; return how many tombstones are new. `partitions` None: all."""
        known = self._ledger.tombstones.list_all(self._namespace, asset)
        salt = known[0].salt if known else secrets.token_hex(16)
        in_force = {(stone.partition, stone.salt, stone.digest) for stone in known if stone.undone_at is None}
        now = self._deployment.clock()
        fresh = [
            Tombstone(namespace=self._namespace, asset=asset, partition=partition, salt=salt, digest=digest, at=now)
            for partition in ([None] if partitions is None else partitions)
            for digest in dict.fromkeys(key_digest(salt, key) for key in keys)
            if (partition, salt, digest) not in in_force
        ]
        self._ledger.tombstones.add(fresh)
        # Human judgments of such rows have their keys.
        for partition in [None] if partitions is None else partitions:
            self._ledger.judgments.erase(self._namespace, asset, partition, keys)
        return len(fresh)

    def take_back_tombstones(self, asset: str, keys: Sequence[str], partitions: Sequence[str] | None) -> int:
        """Let rows with these keys be asked again; return how many tombstones were in force. See `add_tombstones`."""
        salts = {stone.salt for stone in self._ledger.tombstones.list_all(self._namespace, asset)}
        digests = [key_digest(salt, key) for salt in sorted(salts) for key in keys]
        return sum(
            self._ledger.tombstones.take_back(self._namespace, asset, partition, digests)
            for partition in ([None] if partitions is None else partitions)
        )

    # look -------------------------------------------------------------------------------------------------------------

    def find(self, asset: str, keys: Sequence[str], partitions: Sequence[str] | None) -> list[FoundRows]:
        """Return the submissions that have rows with these keys, or with keys that are erased already. Changes nothing.

        Submissions with all tombstones applied are read for the new keys alone.
        """
        found = []
        for submission in self._ledger.submissions.list_all(self._namespace, assets=[asset]):
            if (partitions is None or submission.partition in partitions) and not self._is_gone(submission):
                one = self._find_in(submission, self._erased_with(asset, keys, submission.partition))
                if one.rows or one.manifest_lost:
                    found.append(one)
        return found

    def _is_gone(self, submission: Submission) -> bool:
        """Return whether a submission's files were pruned. They stay if a plan took up its answers at that moment."""
        return is_pruned(self._ledger, submission) and not self._payloads.exists(submission.manifest)

    def _find_in(self, submission: Submission, erased: ErasedKeys) -> FoundRows:
        if not self._payloads.is_whole(submission.manifest):
            return FoundRows(submission, manifest_lost=True)
        rows, candidates = self._matches(submission, erased)
        going = candidates - self._still_needed(submission, erased, candidates)
        stored = [path for path in (submission.manifest, self._beside_manifest(submission, ERASING)) if rows]
        flying, ended, named, needed = [], [], set[str](), set[str]()
        for shard in self._ledger.shards.of_submission(submission.submission_id) if going else ():
            if shard.has_uploads and self._payloads.exists(shard.path):
                for request_id, line in requests_of(self._payloads, shard.path, shard.nonce):
                    (named if request_id in going else needed).update(names_in(line))
            if not self._has_any(shard, going):
                continue
            if shard.state in IN_FLIGHT:
                flying.append(shard)
            else:
                stored += [shard.path, *(beside(shard, ending) for ending in (IDS, RAW, RESULTS, SO_FAR))]
            if shard.state not in IN_FLIGHT and shard.batch.batch_id is not None:
                ended.append(shard)
        if going:
            own = self._ownership.files_of(submission)
            documents = (file.path for file in own if name_in(PurePosixPath(file.path).name) in named - needed)
            stored += [*(file.path for file in own if _is_spare(file)), *documents]
        return FoundRows(
            submission,
            rows,
            len(candidates) - len(going),
            tuple(flying),
            ended=tuple(ended),
            files=tuple(path for path in stored if self._payloads.exists(path)),
        )

    def _has_any(self, shard: Shard, going: set[str]) -> bool:
        try:
            return not going.isdisjoint(request_ids(self._payloads, shard))
        # A shard without files has nothing to erase.
        except FileNotFoundError:
            return False

    def find_files(self, *assets: str) -> list[StoredFile]:
        """Return the files that an erasure of these assets' rows removes as a whole. Changes nothing.

        They are files of pruned submissions and killed processes. Merged copies of such partitions are removed, too.
        """
        gone = []
        for asset in assets:
            for submission in self._ledger.submissions.list_all(self._namespace, assets=[asset]):
                if self._is_gone(submission):
                    gone += self._ownership.files_of(submission)
        return [*gone, *self._pruner.find_left_behind()]

    def _rows(self, submission: Submission) -> Iterator[tuple[list[Any], pa.Array]]:
        """Yield the keys and the request_ids of a manifest, some thousand rows at a time."""
        path = submission.manifest
        key = self._payloads.table_schema(path).names[0]
        for batch in self._payloads.iter_batches(path, columns=[key, _ID]):
            yield batch.column(0).to_pylist(), batch.column(1)

    def _matches(self, submission: Submission, erased: ErasedKeys) -> tuple[int, set[str]]:
        """Return the number of erased rows of a submission, and their request_ids."""
        rows, ids = 0, set[str]()
        for keys, request_ids_ in self._rows(submission):
            places = erased.places(keys)
            rows += len(places)
            ids.update(filter(None, request_ids_.take(pa.array(places, pa.int64())).to_pylist()))
        return rows, ids

    def _still_needed(self, submission: Submission, erased: ErasedKeys, candidates: set[str]) -> set[str]:
        """Return the request_ids that are also the requests of rows of the partition that are not erased."""
        needed: set[str] = set()
        if not candidates:
            return needed
        wanted = pa.array(sorted(candidates), pa.string())
        # Newer submissions may reuse this one's answers.
        for other in self._ledger.submissions.of_partition(
            submission.namespace, submission.asset, submission.partition
        ):
            if not self._payloads.exists(other.manifest):
                continue
            for keys, ids in self._rows(other):
                places = pc.indices_nonzero(pc.is_in(ids, wanted)).to_pylist()
                gone = set(erased.places([keys[at] for at in places]))
                needed.update(ids[at].as_py() for number, at in enumerate(places) if number not in gone)
        return needed

    # erase ------------------------------------------------------------------------------------------------------------

    def erase(self, asset: str) -> list[Left]:
        """Apply the tombstones of an asset; return the submissions that are not finished, each with the reason."""
        left = []
        # A ledger from a backup may lack some stored submissions.
        recover_all(self._deployment)
        tombstones = len(self._ledger.tombstones.list_all(self._namespace, asset))
        for submission in self._ledger.submissions.list_all(self._namespace, assets=[asset]):
            if submission.has_applied(tombstones):
                continue
            reason: str | None = (
                "its batches have not ended: collecting them also erases, and then materializes the rest"
            )
            try:
                with self._deployment.leased(submission.submission_id):
                    if self.erase_submission(submission.submission_id, {submission.submission_id}):
                        reason = None
            except LeaseError as error:
                reason = f"another process works on it, and erases before it sends or materializes: {error}"
            except PayloadError as error:
                reason = str(error)
            if reason is not None:
                left.append(Left(submission, reason))
        return left

    def erase_submission(self, submission_id: str, held: Collection[str]) -> bool:
        """Apply the tombstones to one submission; return whether it is finished. The caller holds the leases of `held`.

        It is not finished while batches are in flight. Raises PayloadError if the manifest is lost, since the rows of
        the files are unknown then.
        """
        submission = self._ledger.submissions.get(submission_id)
        erased = self._deployment.erased_keys(submission.partition, submission.asset)
        if submission.has_applied(erased.tombstones):
            return True
        path, going_path = submission.manifest, self._beside_manifest(submission, ERASING)
        if self._is_gone(submission):
            # A killed prune may have left some files.
            remove(self._payloads, self._ownership.files_of(submission))
            self._ledger.documents.keep_uses(submission_id, ())
            self._drop_merged(submission)
            self._ledger.submissions.record_erased(submission_id, erased.tombstones)
            return True
        if not self._payloads.is_whole(path):
            meanwhile = (
                f"Rows of '{submission.asset}' were erased since, and only the manifest shows which requests were "
                "theirs. Sending and materializing wait for the manifest"
            )
            raise PayloadError(str(advise_on_lost_manifest(submission, meanwhile)))
        # Unrecorded sendings have files of shards that the ledger lacks until now.
        if shards := self._ledger.shards.of_submission(submission_id):
            recover_planned(self._deployment, shards)
        rows, candidates = self._matches(submission, erased)
        candidates |= self._read_erasing(going_path)
        if candidates:
            # Before the manifest loses them: after a crash, the next call continues with this file.
            with self._payloads.writer(going_path) as out:
                out.write(packed(sorted(candidates)))
        if rows:
            self._rewrite_manifest(path, erased)
        going = candidates - self._still_needed(submission, erased, candidates)
        flying, shards = False, self._ledger.shards.of_submission(submission_id)
        for shard in shards:
            if self._is_at_rest(shard):
                self._purge_shard(shard, going, held)
            else:
                flying = True
        self._remove_unnamed(submission)
        if going:
            self._purge_spares(submission, going)
            if any(shard.has_uploads for shard in shards):
                self._purge_documents(submission)
        self._drop_merged(submission)
        if flying:
            return False
        self._payloads.delete(going_path)
        self._ledger.submissions.record_erased(submission_id, erased.tombstones, **self._remaining(submission))
        return True

    def _drop_merged(self, submission: Submission) -> None:
        """Remove the merged copies of the partition's results. They are made again from the remaining results."""
        history = self._ledger.submissions.of_partition(submission.namespace, submission.asset, submission.partition)
        drop_merged(self._payloads, [one.folder for one in history])

    def _is_at_rest(self, shard: Shard) -> bool:
        """Return whether a shard gets no result before its next sending; only then is its cost known."""
        if shard.state in ENDED:
            return self._payloads.exists(beside(shard, RAW))
        return shard.state not in IN_FLIGHT

    def _beside_manifest(self, submission: Submission, name: str) -> str:
        return f"{submission.folder}/{name}"

    def _read_erasing(self, path: str) -> set[str]:
        """Return the request_ids of an erasure that was killed."""
        if not self._payloads.exists(path):
            return set()
        with self._payloads.reader(path) as file:
            return set(unpacked(file.read()))

    def _rewrite_manifest(self, path: str, erased: ErasedKeys) -> None:
        schema, metadata = self._payloads.table_schema(path).remove_metadata(), self._payloads.table_metadata(path)
        key = schema.names[0]
        skipped = unreadable = 0
        with self._payloads.table_writer(path, schema, repeating=()) as out:
            for batch in self._payloads.iter_batches(path):
                kept = erased.without(batch, key)
                if UNSENT in schema.names:
                    unreadable += len(kept) - kept.column(UNSENT).null_count
                skipped += kept.column(_ID).null_count
                out.write_batch(kept)
            erased_rows = int(metadata.get(ERASED_ROWS.encode(), 0))
            counts = {SKIPPED: skipped - unreadable, ERASED_ROWS: erased_rows, UNREADABLE_ROWS: unreadable}
            out.add_key_value_metadata({name: str(count) for name, count in counts.items() if count})
            if (definition := metadata.get(DEFINITION.encode())) is not None:
                out.add_key_value_metadata({DEFINITION: definition.decode()})

    def _purge_shard(self, shard: Shard, going: set[str], held: Collection[str]) -> None:
        """Remove requests from all files of a shard, and from its counts. The list of its requests is last."""
        try:
            ids = request_ids(self._payloads, shard)
        # A shard without files has nothing to erase.
        except FileNotFoundError:
            return
        kept = [request_id for request_id in ids if request_id not in going]
        if len(kept) == len(ids) == shard.requests:
            return
        payloads = self._payloads
        size, digest = shard.bytes, shard.digest
        if payloads.exists(shard.path):
            with payloads.writer(shard.path) as out:
                for request_id, line in requests_of(payloads, shard.path, shard.nonce):
                    if request_id not in going:
                        out.write(line)
            size, digest = out.bytes, out.digest
        self._purge_answers(shard, ids, going)
        # Padding of a batch may be copies of erased requests; their origin is not recorded.
        known = frozenset(kept)
        raw_path = shard.raw_path or beside(shard, RAW)
        if payloads.exists(raw_path):
            with payloads.writer(raw_path) as out:
                for line in payloads.lines(raw_path):
                    if names_any(line, shard.nonce, known):
                        out.write(line)
        self._purge_results(shard, going)
        # If a batch failed as a whole, the rows of all its shards quote the provider.
        for other in self._ledger.shards.told_with(shard):
            is_held = other.submission_id in held
            with nullcontext() if is_held else self._deployment.leased(other.submission_id):
                self._purge_results(other, set())
        write_ids(payloads, shard, packed(kept))
        self._ledger.shards.record_erased(shard.shard_id, requests=len(kept), padding=0, size=size, digest=digest)
        if not kept and shard.state is ShardState.PLANNED:
            words = "all of its rows were erased"
            self._ledger.shards.move(shard.shard_id, Transition.CANCELED, reason=words, reason_kind=Reason.ERASED)

    def _purge_results(self, shard: Shard, going: set[str]) -> None:
        path = shard.results_path or beside(shard, RESULTS)
        if self._payloads.exists(path):
            self._rewrite_results(shard, path, going)
        # Merged copies quote the same words. This may be another partition's shard.
        drop_merged(self._payloads, [path.rpartition("/")[0]])

    def _rewrite_results(self, shard: Shard, path: str, going: set[str]) -> None:
        wanted = pa.array(sorted(going), pa.string())
        schema = self._payloads.table_schema(path).remove_metadata()
        with self._payloads.table_writer(path, schema, repeating=REPEATING) as out:
            for batch in self._payloads.iter_batches(path):
                kept = batch.filter(pc.invert(pc.is_in(batch.column(_ID), wanted)))
                # If a batch failed as a whole, all its requests quote the provider.
                if shard.is_quoted:
                    quotes = pc.fill_null(pc.match_substring(kept.column(_REASON), shard.reason), fill_value=False)
                    reasons = pc.if_else(quotes, WORDS_ERASED, kept.column(_REASON))
                    kept = kept.set_column(schema.get_field_index(_REASON), schema.field(_REASON), reasons)
                out.write_batch(kept)

    def _purge_answers(self, shard: Shard, ids: Sequence[str], going: set[str]) -> None:
        """Remove answers so far, by their places among the requests."""
        if shard.lane is not Lane.REALTIME or not (answers := answers_so_far(self._payloads, shard)):
            return
        places = [at for at, request_id in enumerate(ids) if request_id not in going]
        new_places = {at: new for new, at in enumerate(places)}
        left = {new_places[at]: line for at, line in answers.items() if at in new_places}
        if len(left) == len(answers):
            return
        write_answers_so_far(self._payloads, shard, left)

    def _remove_unnamed(self, submission: Submission) -> None:
        """Remove requests without a shard: a process was killed after it split one, or before it stored a wave."""
        shards = self._ledger.shards.of_submission(submission.submission_id)
        named = {path for shard in shards for path in (shard.path, beside(shard, IDS))}
        own = (file for file in self._ownership.files_of(submission) if not file.path.endswith(ERASING))
        unnamed = [file for file in own if file.path.endswith((REQUESTS, IDS)) and file.path not in named]
        remove(self._payloads, unnamed)

    def _purge_spares(self, submission: Submission, going: set[str]) -> None:
        """Remove requests from the files for fallbacks, for the oracle of a cascade, and of audits."""
        for file in self._ownership.files_of(submission):
            if (match := _SPARE.fullmatch(PurePosixPath(file.path).name)) is not None:
                nonce = shard_nonce(submission.submission_id, 0, int(match[1], 16))
                with self._payloads.writer(file.path) as out:
                    for request_id, line in requests_of(self._payloads, file.path, nonce):
                        if request_id not in going:
                            out.write(line)
        forget_sampled(self._payloads, submission, going)
        forget_shared(self._payloads, submission, going)

    def _purge_documents(self, submission: Submission) -> None:
        """Remove the uploaded documents that no remaining request names, and the submission's need of them."""
        files = self._ownership.files_of(submission)
        lines = (line for file in files if file.path.endswith(REQUESTS) for line in self._payloads.lines(file.path))
        left = {name for line in lines for name in names_in(line)}
        named = ((file, name_in(PurePosixPath(file.path).name)) for file in files)
        remove(self._payloads, [file for file, name in named if name is not None and name not in left])
        self._ledger.documents.keep_uses(submission.submission_id, left)

    def _remaining(self, submission: Submission) -> dict[str, Any]:
        """Return the counts and the fingerprint of a submission by its present files."""
        digest = RowsDigest()
        with ExitStack() as files:
            seen = Seen(packed, lambda: files.enter_context(self._deployment.new_file()))
            for keys, ids in self._rows(submission):
                request_ids_ = ids.to_pylist()
                digest.add(keys, request_ids_)
                seen.new([request_id for request_id in request_ids_ if request_id is not None])
        if digest.rows == submission.rows:
            return {}
        submission_id = submission.submission_id
        shards, levels = self._ledger.shards.of_submission(submission_id), levels_of(self._payloads, submission)
        first = [shard for shard in shards if shard.wave == 1]
        # Both models get the sampled requests of a cascade; the model gets all that are not reused.
        if levels is not None and not levels.asks_oracle_alone:
            first = [shard for shard in first if not levels.asks_oracle(shard.asked_of)]
        shares = audited_of(self._payloads, submission)
        # Requests that are held, or share an answer, were not asked in the first round. The oracle of a cascade was
        # asked the audited ones.
        asked = count_requests(first) + (0 if shares is None else len(shares.held))
        if levels is not None and not levels.asks_oracle_alone and shares is not None:
            asked += len(shares.audited)
        left: dict[str, Any] = {
            "rows": digest.rows,
            "requests": seen.count,
            "reused": max(0, seen.count - asked),
            "fingerprint": digest.fingerprint(self._configuration(submission)),
        }
        if submission.questions is not None:
            left["questions"] = count_requests(s for s in shards if s.wave == 1 or s.is_escalation)
        if submission.is_settled:
            stored = Answers(
                submission=replace(submission, tombstones=1, rows=digest.rows),
                shards=shards,
                ledger=self._ledger,
                payloads=self._payloads,
                part_rows=self._deployment.part_rows,
                levels=levels,
                shares=shares,
            )
            # Lost results are counted again when labels are made.
            with suppress(FileNotFoundError):
                left["outcomes"] = stored.count_outcomes()
        return left

    def _configuration(self, submission: Submission) -> str:
        """Return the configuration of a submission with its promises, as its plan did."""
        definition = definition_in(self._payloads, submission.manifest_path)
        if definition is None:
            # Older code stored no definition.
            return submission.config_fingerprint
        has_older_labels = self._payloads.exists(self._beside_manifest(submission, RELABELS))
        promises = promises_in(definition, has_older_labels=has_older_labels)
        return configuration_with(submission.config_fingerprint, promises)

    def erase_left_behind(self) -> int:
        """Remove files that killed processes left more than a day ago; return the number of younger files.

        Running processes may use the younger files, whose rows are unknown.
        """
        return len(self._pruner.prune_left_behind())

    @property
    def _pruner(self) -> Pruner:
        return Pruner(self._ledger, self._payloads, self._namespace, self._deployment.clock)

    # at providers -----------------------------------------------------------------------------------------------------

    def erase_at_providers(self, *assets: str, also_unread: bool = False) -> list[ProviderCopy]:
        """Have providers delete their copies of ended batches with erased requests; return the end of each.

        A batch that was given up, and whose answers to other requests may still be read, is kept unless `also_unread`:
        these answers are paid, and the provider alone has them.
        """
        batches: dict[tuple[str, str, str], list[Shard]] = {}
        for shard in self._ledger.shards.at_providers(self._namespace, *assets):
            batches.setdefault((shard.provider, shard.account, shard.batch.batch_id or ""), []).append(shard)
        copies = [self._erase_batch(shards, also_unread=also_unread) for shards in batches.values()]
        return [*copies, *self._erase_documents()]

    def _erase_documents(self) -> list[ProviderCopy]:
        """Have providers delete the documents that no submission of the namespace needs any more."""
        if not (unused := self._ledger.documents.unused(self._namespace)):
            return []
        # Few datasets upload documents.
        from dagster_llm_batch.upkeep.stored_documents import DocumentRemover  # noqa: PLC0415
        from dagster_llm_batch.upkeep.uploads import accounts_of  # noqa: PLC0415

        accounts = accounts_of(self._deployment)
        near = [upload for upload in unused if (upload.provider, upload.account) in accounts]
        removed = DocumentRemover(self._deployment).remove_files(near)
        gone = {upload.upload_key for upload in removed.uploads}
        copies = []
        for upload in unused:
            left: str | None = None
            if not self._deployment.providers:
                left = _UNKNOWN_PROVIDER
            elif upload not in near:
                left = _OTHER_ACCOUNT
            elif upload.upload_key not in gone:
                left = removed.troubles.get(upload.provider, _IN_USE)
            copies.append(ProviderCopy(upload.provider, upload.file_id or upload.file_name, left, is_document=True))
        return copies

    def _erase_batch(self, shards: Sequence[Shard], *, also_unread: bool) -> ProviderCopy:
        first = shards[0]
        batch_id = first.batch.batch_id or ""
        others = self._ledger.shards.of_batch(first)
        if not owns_batch(others):
            return ProviderCopy(first.provider, batch_id, _ADOPTED, is_ours=False)
        if any(shard.state is not ShardState.COLLECTED for shard in others):
            return ProviderCopy(first.provider, batch_id, "its results are not collected yet; they go after that")
        if (requests := self._count_unread(others)) and not also_unread:
            return ProviderCopy(first.provider, batch_id, _UNREAD.format(requests=requests))
        if not self._deployment.providers:
            return ProviderCopy(first.provider, batch_id, _UNKNOWN_PROVIDER)
        try:
            left = delete_batch(self._deployment.provider_of(first), batch_id)
        except (ProviderError, ConfigError) as error:
            return ProviderCopy(first.provider, batch_id, str(error))
        if left is None:
            self._ledger.shards.record_erased_at_provider([shard.shard_id for shard in others], batch_id)
        return ProviderCopy(first.provider, batch_id, left)

    def _count_unread(self, shards: Sequence[Shard]) -> int:
        """Count the requests of a batch whose answers may still be read: it was given up less than a month ago."""
        since = self._deployment.clock() - KEPT_FOR
        return sum(
            shard.requests
            for shard in shards
            if (is_unread(shard) or is_awaited(shard)) and since < (shard.ended_at or shard.batch.submitted_at or since)
        )


def _is_spare(file: StoredFile) -> bool:
    return _SPARE.fullmatch(PurePosixPath(file.path).name) is not None
