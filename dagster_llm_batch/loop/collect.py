"""Collects ended shards: stores raw lines, then results, then the state in the ledger. Each step can be repeated.

ended ──fetch──▶ raw file ──Reconciler──▶ results file ──▶ collected
                                             └─ retryable requests ─▶ the next wave's request files

Raw lines are stored before anything reads them. Providers delete results after some weeks, and a fixed parser can read
the stored lines again at no cost.
"""

from __future__ import annotations

import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from decimal import Decimal
from functools import partial
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.core.identity import NONCE, custom_id_pattern, packed
from dagster_llm_batch.core.logprobs import LOGPROB
from dagster_llm_batch.core.memory import chunks, release_all_memory
from dagster_llm_batch.core.pricing import Tariff
from dagster_llm_batch.core.results import REPEATING, RESULT_SCHEMA, Reconciler, ShardFacts, ShardTotals
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import (
    ConfigError,
    CredentialsError,
    LeaseError,
    LLMBatchError,
    PayloadError,
    ProviderError,
    RefusedError,
    TransientError,
    UnreadableError,
)
from dagster_llm_batch.files.request_files import (
    RAW,
    RESULTS,
    answers_so_far,
    beside,
    names_any,
    packed_ids,
    request_ids,
)
from dagster_llm_batch.loop.deployment import GONE_AFTER, Deployment, Threads
from dagster_llm_batch.protocols import Codec
from dagster_llm_batch.providers.answers import UnknownIdError
from dagster_llm_batch.states import ENDED, IN_FLIGHT, Reason, ShardState, Transition
from dagster_llm_batch.storage.ledger.events import BilledInTier, FetchAgain, ResultsRestored, UnexpectedLines
from dagster_llm_batch.storage.ledger.records import Shard, ShardFields
from dagster_llm_batch.storage.payloads import PayloadStore, unnamed_file
from dagster_llm_batch.storage.stored_files import LostError
from dagster_llm_batch.types import NOT_AWAITED, BatchStatus, Cause, Lane, Outcome

__all__ = ["Collector"]

_FETCHES = 3

# Lines of a download in memory at once.
_LINES_AT_ONCE = 64

# A batch's result files may be incomplete for a while after its status is `ended`.
_PATIENCE = timedelta(hours=1)
_LONGEST_PAUSE_SECONDS = 30.0

# The start of the name of the lease for downloading a batch that several submissions share.
_DOWNLOAD = "download:"

_LOST = "the stored file of the answers is lost or damaged"
_ANY_NONCE = re.compile(NONCE.encode() + rb"-[0-9a-z-]{40}")


class Collector:
    """Collect shards of one labeling."""

    def __init__(
        self,
        labeling: Labeling,
        deployment: Deployment,
        payloads: PayloadStore | None = None,
        newer: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        """Make a collector for shards of this labeling.

        `payloads` replaces the deployment's store, for the same files written in another way. `newer` is the result of
        `Ledger.submissions.find_newer` for all shards to collect, if the caller has it.
        """
        self._labeling = labeling
        self._deployment = deployment
        self._ledger = deployment.ledger
        self._payloads = payloads or deployment.payloads
        self._newer = newer
        self.schema = pa.schema([*RESULT_SCHEMA, *labeling.result_schema])

    def tariff(self, lane: Lane, place: int = 0) -> Tariff:
        """Return the prices in this lane of one of the labeling's models, by its place; by default its first."""
        return self._deployment.tariff(self._labeling.models[place]).of(lane)

    def archive(self, shard: Shard) -> Shard:
        """Store the raw result lines of an ended shard and its batch; return the shard's present record. Idempotent.

        A broken download starts over. A download that ended early without an error has fewer lines than the provider
        counts, and raises TransientError. One hour after the batch ended, fewer lines are accepted, since a count can
        be wrong.

        Results that the provider no longer has (a 404) raise TransientError for one hour. Then they count as gone. This
        is recorded as the cause, without any lines.
        """
        if shard.cause is Cause.GIVEN_UP or self._is_archived(shard):
            return shard
        is_whole = (
            shard.lane is Lane.REALTIME and shard.state is ShardState.ENDED and not (shard.reason_kind or shard.cause)
        )
        if is_whole or shard.cause is Cause.ADOPTED:
            # The stored answers were the only copy. Calls in real time cannot be asked for again. The provider has the
            # answers of an adopted batch under the sender's ids, and the batch stays the sender's: see `ownership.py`.
            self._payloads.delete(beside(shard, RAW))
            ended_at = shard.ended_at or self._deployment.clock()
            gone, cause = [shard.shard_id], shard.cause or Cause.GONE
            lost: ShardFields = {"cause": cause, "reason": _LOST, "reason_kind": Reason.LOST, "ended_at": ended_at}
            return self._ledger.shards.move_all(gone, Transition.GONE, **lost)[0]
        with self._downloading_alone(shard) as shards:
            present = next(sharing for sharing in shards if sharing.shard_id == shard.shard_id)
            # Another process that collects another submission of the batch may have stored these lines.
            return present if self._is_archived(present) else self._download(present, shards)

    @contextmanager
    def _downloading_alone(self, shard: Shard, *, holds_submission: bool = True) -> Iterator[list[Shard]]:
        """Wait for another process that downloads the same batch; yield the batch's shards after the wait.

        With the submission's lease (`holds_submission`), a batch of only that submission does not need another lease. A
        reader of labels that finds lost results has no such lease, and takes the one for downloads.
        """
        shards = self._ledger.shards.of_batch(shard)
        with ExitStack() as held:
            if not holds_submission or len({sharing.submission_id for sharing in shards}) > 1:
                name = f"{_DOWNLOAD}{shards[0].shard_id}"
                # A process that takes so long may be stuck. A second download of a batch costs only time.
                with suppress(LeaseError):
                    wait_seconds = self._deployment.download_wait_seconds
                    held.enter_context(self._ledger.leases.hold(name, wait_seconds=wait_seconds))
                # The other process may have collected its own shards, or found that the results are gone.
                shards = self._ledger.shards.of_batch(shard)
            yield shards

    def _download(self, shard: Shard, shards: Sequence[Shard]) -> Shard:
        """Store the lines of all shards of a batch; return the present record of the requested shard."""
        # A broken connection without an error looks like the end of a shorter file.
        counted = 0 if shard.cause is Cause.GONE else sum(sharing.batch.done or 0 for sharing in shards)
        is_old = shard.ended_at is not None and self._deployment.clock() - shard.ended_at >= _PATIENCE
        for last in [False] * (_FETCHES - 1) + [True]:
            try:
                self._fetch(shards, at_least=0 if last and is_old else counted)
            except UnknownIdError as error:
                return self._gone(shard, shards, error)
            except TransientError as error:
                if last:
                    raise
                # Once the results are recorded as unreadable, further tries are no news.
                if not self._ledger.unread.noted([shard]):
                    self._ledger.events.add(shard.submission_id, FetchAgain(str(error)), shard.shard_id)
                self._deployment.sleep(min(error.retry_after_seconds or 1.0, _LONGEST_PAUSE_SECONDS))
            else:
                break
        return shard

    def _is_archived(self, shard: Shard) -> bool:
        """Return whether the shard's lines are stored. False for an abandoned batch that has ended after all."""
        is_late = shard.results_path is not None and shard.state is not ShardState.COLLECTED
        # A damaged file does not count while the provider has the lines.
        return not is_late and self._payloads.is_whole(beside(shard, RAW))

    def _gone(self, shard: Shard, shards: Sequence[Shard], error: UnknownIdError) -> Shard:
        """Record that a batch's results are gone, after GONE_AFTER of such replies. Raises TransientError before."""
        now = self._deployment.clock()
        since = self._ledger.unread.note_absence(shard, str(error))
        if now - since < GONE_AFTER:
            msg = f"{error} They are asked for until {since + GONE_AFTER:%Y-%m-%d %H:%M} UTC; then they count as gone."
            raise TransientError(msg) from error
        gone = [each.shard_id for each in shards if each.state in ENDED and not self._is_archived(each)]
        why: ShardFields = {
            "cause": Cause.GONE,
            "reason": f"{error} So it was since {since:%Y-%m-%d %H:%M} UTC.",
            "reason_kind": Reason.GONE,
            "ended_at": shard.ended_at or now,
        }
        moved = self._ledger.shards.move_all(gone, Transition.GONE, **why)
        return next(each for each in moved if each.shard_id == shard.shard_id)

    def archive_all(
        self, shards: Sequence[Shard], check: Callable[[], None]
    ) -> Generator[tuple[list[Shard], LLMBatchError | None], None, None]:
        """Archive several shards; yield the shards of each batch, in order, with its error if it failed.

        Further batches are downloaded while the caller reads these. `check` is called before each shard, and may raise.
        With workers, which read many shards at once, all archived shards are yielded together.
        """
        by_batch: dict[tuple[str, ...], list[Shard]] = defaultdict(list)
        for shard in shards:
            by_batch[shard.provider, shard.account, shard.batch.batch_id or shard.shard_id].append(shard)

        def archive_batch(batch: list[Shard]) -> LLMBatchError | None:
            try:
                for place, shard in enumerate(batch):
                    check()
                    batch[place] = self.archive(shard)
            # An error of the provider, or its removed configuration.
            except (ProviderError, ConfigError) as error:
                return error
            finally:
                # Otherwise the thread's arena in C's allocator would keep freed memory while the caller reads these
                # lines.
                release_all_memory()
            return None

        for_workers: list[Shard] = []
        with Threads(self._deployment.transfers_at_once, "dagster-llm-batch download") as pool:
            # A single batch is downloaded in this thread, which can be interrupted.
            spread = pool.map if len(by_batch) > 1 else map
            for batch, error in zip(by_batch.values(), spread(archive_batch, by_batch.values()), strict=True):
                if error is not None or self._labeling.workers is None:
                    yield batch, error
                else:
                    for_workers += batch
            if for_workers:
                yield for_workers, None

    def _fetch(self, shards: Sequence[Shard], at_least: int) -> None:
        """Download a batch's result lines into the raw files of its shards. Existing files stay."""
        with ExitStack() as files:
            if len(shards) == 1:
                raw = files.enter_context(self._payloads.writer(beside(shards[0], RAW)))
                is_kept = self._kept(shards[0])
                lines = 0
                for chunk in chunks(self._lines(shards[0]), _LINES_AT_ONCE):
                    raw.write(b"".join(chunk if is_kept is None else [line for line in chunk if is_kept(line)]))
                    lines += len(chunk)
                _refuse_fewer(lines, at_least, shards[0])
                return
            parts = {shard.nonce.encode(): files.enter_context(unnamed_file()) for shard in shards}
            kept = {shard.nonce.encode(): self._kept(shard) for shard in shards}
            lines = 0
            for line in self._lines(shards[0]):
                named = {nonce for nonce in _ANY_NONCE.findall(line) if nonce in parts}
                # Rows and replies may contain anything, even custom_ids of other shards. Only the line's own custom_id
                # counts.
                if len(named) > 1:
                    named &= {self._nonce_of(line, shards[0])}
                # Lines without a known shard are kept with the lines of the first shard, which counts them as foreign.
                nonce = min(named, default=shards[0].nonce.encode())
                if (is_kept := kept[nonce]) is None or is_kept(line):
                    parts[nonce].write(line)
                lines += 1
            _refuse_fewer(lines, at_least, shards[0])
            for shard in shards:
                if self._is_archived(shard):
                    continue
                part = parts[shard.nonce.encode()]
                part.seek(0)
                with self._payloads.writer(beside(shard, RAW)) as raw:
                    shutil.copyfileobj(part, raw, 1 << 20)

    def _kept(self, shard: Shard) -> Callable[[bytes], bool] | None:
        """Return the filter for lines of a shard's present requests; None without erased requests."""
        if not shard.erased:
            return None
        return partial(names_any, nonce=shard.nonce, wanted=frozenset(request_ids(self._payloads, shard)))

    def _nonce_of(self, line: bytes, shard: Shard) -> bytes:
        codec = self._deployment.provider_of(shard).codec(replace(self._labeling.spec, model=shard.model))
        return (codec.decode(line).custom_id or "").partition("-")[0].encode()

    def _lines(self, shard: Shard) -> Iterator[bytes]:
        """Yield the lines as the provider returns them. A failed or gone batch may have been deleted, without lines."""
        if shard.batch.batch_id is None:
            # Yield the lines as the provider returns them, or nothing for a failed or gone batch that it has deleted.
            if shard.lane is Lane.REALTIME:
                yield from answers_so_far(self._payloads, shard).values()
            return
        try:
            yield from self._deployment.provider_of(shard).fetch(shard.batch.batch_id)
        except ConfigError:
            # A gone batch has no results, so its former account is not needed.
            if shard.cause is not Cause.GONE:
                raise
        except CredentialsError:
            raise
        except RefusedError:
            if shard.batch.status is not BatchStatus.FAILED and shard.cause is not Cause.GONE:
                raise
        except LLMBatchError:
            raise
        except Exception as error:
            # A provider may be the user's own, and a file may hold anything.
            raise UnreadableError(f"the provider's results are broken: {type(error).__name__}: {error}") from error

    def read_all(self, shards: Sequence[Shard]) -> Iterator[tuple[Shard, ShardFields]]:
        """Read archived shards into their results files; yield each with the fields that COLLECTED records."""
        workers = self._labeling.workers
        read = map(self.read, shards) if workers is None else workers.map(self._reader(shards), shards)
        for shard, (results_path, totals) in zip(shards, read, strict=True):
            # Unexpected lines are counted and shown, and never fatal: the other results are unaffected.
            if totals.unexpected:
                unexpected = UnexpectedLines(dict(totals.unexpected))
                self._ledger.events.add(shard.submission_id, unexpected, shard.shard_id)
            if totals.tiers:
                self._record_tiers(shard, totals)
            fields: ShardFields = {"results_path": results_path, **self._bill(shard, results_path, totals)}
            if has_lines(self._payloads, shard):
                fields["raw_path"] = beside(shard, RAW)
            if totals.cost_usd is None:
                fields["reserved_usd"] = self._most_usd(shard, totals)
            fields["collected_at"] = self._deployment.clock()
            yield shard, fields

    def _most_usd(self, shard: Shard, totals: ShardTotals) -> Decimal | None:
        """Return the highest cost of a shard with requests of unknown cost; None if unknown."""
        estimate = self._deployment.estimate(self._labeling.by(f"{shard.provider}/{shard.model}"), shard.lane)
        row = estimate.most_usd(shard.input_bound)
        return None if row is None else totals.known_usd + totals.unpriced * row

    def restore(self, shards: Iterable[Shard]) -> int:
        """Make lost or damaged results again; return the number of shards that lost answers for good.

        The source is the raw lines, or the provider, which is asked once more. If the provider no longer has them, they
        are gone: the requests count as unanswered, and wait for a person. If the list of a shard's requests is lost,
        too, the results have only the requests in the lines. Each restored shard gets an event. Raises TransientError
        while the provider cannot be asked, because answers that it may still have must not be abandoned.
        """
        lost = 0
        for shard in shards:
            if not shard.results_path or self._payloads.is_whole(shard.results_path):
                continue
            source, is_lost = "from the stored lines", False
            if self._lacks_lines(shard):
                source = "from the provider, once more"
                if not self._fetch_again(shard):
                    source, is_lost = f"as lost: {shard.requests} requests count as not answered", True
            if not self._has_list(shard):
                source, is_lost = f"{source}, without the list of its {shard.requests} requests", True
            if is_lost:
                if shard.cause is not Cause.ADOPTED:
                    self._ledger.shards.set_cause([shard.shard_id], Cause.GONE, ShardState.COLLECTED)
                lost += 1
            self._reader([shard])(shard)
            self._ledger.events.add(shard.submission_id, ResultsRestored(source), shard.shard_id)
        return lost

    def _has_list(self, shard: Shard) -> bool:
        try:
            packed_ids(self._payloads, shard)
        except LostError:
            return False
        return True

    def read_again(self, shard: Shard, *, needed: bool) -> None:
        """Read the raw lines again into results. If they are lost and not `needed`, the results stay unchanged.

        Raises PayloadError if they are needed and were deleted, because the results would be lost, too.
        """
        if needed and shard.raw_path is None and self._lacks_lines(shard) and not self._fetch_again(shard):
            raise PayloadError(
                f"The results of shard {shard.shard_id} of '{self._labeling.asset}' have other columns than its "
                "response now, and its raw results are kept no longer (`prune --raw-older-than`): they cannot be read "
                "again. Nothing was changed. Restore the earlier response, or submit the rows again."
            )
        if not self._lacks_lines(shard) or self._fetch_again(shard) or needed:
            results_path, totals = self.read(shard)
            self._record_tiers(shard, totals)
            self._ledger.money.record_bill(shard.shard_id, self._bill(shard, results_path, totals))

    def _record_tiers(self, shard: Shard, totals: ShardTotals) -> None:
        """Record the parts of a shard's bill for other tiers, which `Money.tier_bills` returns."""
        for tier, part in sorted(totals.tiers.items()):
            amounts = {name: str(getattr(part, name)) for name in ("known_usd", "realtime_usd")}
            billed = BilledInTier(tier=tier, **{**asdict(part), **amounts})
            self._ledger.events.add(shard.submission_id, billed, shard.shard_id)

    def _bill(self, shard: Shard, results_path: str, totals: ShardTotals) -> ShardFields:
        """Return the ledger's fields for the cost of a shard's results."""
        bill = bill_of(totals)
        if totals.reported_usd is None:
            # The replies do not contain their cost, but the batch may.
            bill["reported_usd"] = shard.reported_usd
        asked_again = self._asked_again(shard) if totals.replies else set()
        if asked_again:
            columns = ["llm_request_id", "llm_outcome", "llm_cost_usd"]
            results = self._payloads.read_table(results_path, columns).to_pylist()
            twice = (
                row["llm_cost_usd"] or Decimal(0)
                for row in results
                if row["llm_outcome"] == Outcome.SUCCEEDED and row["llm_request_id"] in asked_again
            )
            bill["unlabeled_usd"] = totals.unlabeled_usd + sum(twice, Decimal(0))
        return bill

    def _asked_again(self, shard: Shard) -> set[str]:
        """Return the requests that newer submissions have sent, too, and may have labels for.

        A person has sent them again after their batch was abandoned or gone, and now its answers arrived.
        """
        own = shard.submission_id
        known = self._ledger.submissions.find_newer([own]) if self._newer is None else self._newer
        requests: set[str] = set()
        for other in chain.from_iterable(self._ledger.shards.of_submissions(known.get(own, ())).values()):
            if other.results_path and self._payloads.exists(other.results_path):
                results = self._payloads.read_table(other.results_path, ["llm_request_id", "llm_outcome"])
                is_label = pc.equal(results["llm_outcome"].cast(pa.string()), Outcome.SUCCEEDED.value)
                requests.update(results["llm_request_id"].filter(is_label).to_pylist())
            elif other.state in IN_FLIGHT:
                requests.update(request_ids(self._payloads, other))
        return requests

    def _lacks_lines(self, shard: Shard) -> bool:
        """Return whether raw lines were stored, and are gone or damaged."""
        return has_lines(self._payloads, shard) and not self._payloads.is_whole(shard.raw_path or beside(shard, RAW))

    def _fetch_again(self, shard: Shard) -> bool:
        """Store the raw lines of a collected shard again; return whether the provider still has them."""
        # Results deleted by an erasure do not come back, even if a fetch succeeds: own machines then have an empty
        # file. The provider has the lines of an adopted batch under the sender's custom_ids.
        if shard.batch.batch_id is None or shard.batch.erased_there_at is not None or shard.cause is Cause.ADOPTED:
            return False
        with self._downloading_alone(shard, holds_submission=False) as shards:
            # Another process may have stored them meanwhile.
            if not self._lacks_lines(shard):
                return True
            try:
                self._fetch(shards, at_least=sum(sharing.batch.done or 0 for sharing in shards))
            except CredentialsError:
                raise
            # Without the list of requests, lines of erased requests cannot be recognized.
            except (RefusedError, LostError):
                return False
            return True

    def read(self, shard: Shard) -> tuple[str, ShardTotals]:
        """Read the raw lines into the shard's results file, even if that exists; return its path and its totals."""
        return self._reader([shard])(shard)

    def _reader(self, shards: Sequence[Shard]) -> ResultsReader:
        models = {(shard.provider, shard.model): f"{shard.provider}/{shard.model}" for shard in shards}
        labelings = {model: self._labeling.by(name) for model, name in models.items()}
        return ResultsReader(
            self._payloads,
            self.schema,
            {
                model: (labeling, self._deployment.codec(labeling), self._deployment.terms(labeling))
                for model, labeling in labelings.items()
            },
            frozenset(shard.shard_id for shard in shards if self._counts_own(shard)),
            frozenset(shard.shard_id for shard in shards if shard.results_path and self._lacks_lines(shard)),
        )

    def _counts_own(self, shard: Shard) -> bool:
        """Return whether the batch's count of finished requests is for this shard alone. Only for batches cut short."""
        is_cut = shard.batch.status in (BatchStatus.CANCELED, BatchStatus.EXPIRED) and bool(shard.batch.done)
        return is_cut and len(self._ledger.shards.of_batch(shard)) == 1

    def count_outcomes(self, shard: Shard) -> Counter[str]:
        """Count a shard's outcomes, from its raw lines if its results are not read yet; empty before it is archived.

        Only reads: another process may be collecting the shard.
        """
        if shard.results_path:
            outcomes = [self._payloads.read_table(shard.results_path, ["llm_outcome"])["llm_outcome"]]
        elif self._payloads.is_whole(beside(shard, RAW)):
            tables = self._reader([shard]).reconciler(shard).tables(self.raw_lines(shard))
            outcomes = [table["llm_outcome"] for table in tables]
        else:
            outcomes = []
        counts: Counter[str] = Counter()
        for column in outcomes:
            counts.update({count["values"]: count["counts"] for count in pc.value_counts(column).to_pylist()})
        return counts

    def raw_lines(self, shard: Shard) -> Iterator[bytes]:
        """Yield the stored result lines of a shard, if it is archived."""
        path = shard.raw_path or beside(shard, RAW)
        return self._payloads.lines(path) if self._payloads.exists(path) else iter(())

    def results(self, shards: list[Shard], columns: list[str] | None = None) -> list[pa.Table]:
        """Return the results of collected shards, oldest wave first."""
        ordered = sorted(shards, key=lambda shard: (shard.wave, shard.number))
        return [self._payloads.read_table(s.results_path, columns) for s in ordered if s.results_path]


@dataclass(frozen=True)
class ResultsReader:
    """Read raw lines of shards into results files. Picklable for workers: it has no provider and no ledger.

    `by` has the parts that each (provider, model) needs. `counted` are the ids of shards that are alone in their
    batch's count, `lost` the ids of shards whose raw lines are lost.
    """

    payloads: PayloadStore
    schema: pa.Schema
    by: Mapping[tuple[str, str], tuple[Labeling, Codec, Callable[[], Tariff]]]
    counted: frozenset[str]
    lost: frozenset[str]

    def __call__(self, shard: Shard) -> tuple[str, ShardTotals]:
        reconciler = self.reconciler(shard)
        path = beside(shard, RESULTS)
        with self.payloads.table_writer(path, self.schema, repeating=REPEATING) as out:
            is_lost = shard.shard_id in self.lost
            has_raw = not is_lost and has_lines(self.payloads, shard)
            lines = self.payloads.lines(shard.raw_path or beside(shard, RAW)) if has_raw else ()
            for table in reconciler.tables(lines):
                out.write_table(table)
        return path, reconciler.totals

    def reconciler(self, shard: Shard) -> Reconciler:
        """Return the reconciler from the shard's raw lines to its results."""
        labeling, codec, terms = self.by[shard.provider, shard.model]
        is_lost = shard.shard_id in self.lost
        facts = ShardFacts(
            nonce=shard.nonce,
            status=shard.batch.status or (BatchStatus.RUNNING if shard.cause is Cause.GIVEN_UP else BatchStatus.ENDED),
            provider=shard.provider,
            batch_id=shard.batch.batch_id,
            attempt=shard.wave,
            lane=shard.lane,
            ended_at=shard.ended_at,
            submitted_at=shard.batch.submitted_at or shard.batch.sent_at,
            reason=_LOST if is_lost else shard.reason,
            retryable=shard.batch.retryable,
            padding=shard.batch.padding,
            done=(shard.batch.done or 0) - (shard.erased or 0) if shard.shard_id in self.counted else None,
            cause=Cause.GONE if is_lost else shard.cause,
        )
        expected = self._expected(shard, codec)
        has_logprob = LOGPROB.name in self.schema.names
        return Reconciler(codec, labeling.reader, terms().of(shard.lane), facts, expected, has_logprob=has_logprob)

    def _expected(self, shard: Shard, codec: Codec) -> bytes:
        """Return the packed request_ids of a shard. If their list is lost: the ids in the stored lines."""
        try:
            return packed_ids(self.payloads, shard)
        except LostError:
            pass
        # Each billed request has a line. The others are not asked again by this submission, and end as missing.
        path, pattern = shard.raw_path or beside(shard, RAW), custom_id_pattern(shard.nonce)
        if shard.shard_id in self.lost or not self.payloads.exists(path):
            return b""
        names = (codec.decode(line).custom_id or "" for line in self.payloads.lines(path))
        found = filter(None, (pattern.fullmatch(name.encode()) for name in names))
        return packed(dict.fromkeys(match[1].decode() for match in found))


def bill_of(totals: ShardTotals) -> ShardFields:
    """Return the ledger's fields for the cost of a shard's results."""
    return {
        "cost_usd": totals.cost_usd,
        "reported_usd": totals.reported_usd,
        "replies": totals.replies,
        "input_tokens": totals.input_tokens,
        "output_tokens": totals.output_tokens,
        "cache_read_tokens": totals.cache_read_tokens,
        "known_usd": totals.known_usd,
        "unpriced": totals.unpriced,
        "realtime_usd": totals.realtime_usd,
        "unlabeled_usd": totals.unlabeled_usd,
        "padding_usd": totals.padding_usd,
        "answered": totals.answered,
    }


def has_lines(payloads: PayloadStore, shard: Shard) -> bool:
    """Return whether an archived shard has a file of raw lines. Abandoned, gone or lost results have no file."""
    may_lack = shard.cause in NOT_AWAITED or shard.reason_kind is Reason.LOST
    return not may_lack or payloads.exists(shard.raw_path or beside(shard, RAW))


def _refuse_fewer(lines: int, at_least: int, shard: Shard) -> None:
    if lines < at_least:
        raise TransientError(
            f"{lines} result lines came of {at_least} that batch {shard.batch.batch_id} reports; the rest is waited for"
        )
