"""Settles submissions: collects their ended batches under one lease. Each submission is then complete or goes on.

    ledger ─▶ poll ─▶ raw lines ─▶ results ─▶ synced ─▶ collected ─▶ next wave, or settled

Each step is done for all submissions before the next step. So there is one query, one write and one wait for the disk
for many of them. The work of a killed process is repeated at no cost: files are stored before they are recorded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.errors import LeaseError, TransientError
from dagster_llm_batch.loop.collect import Collector
from dagster_llm_batch.loop.deployment import Deployment, SentDefinition
from dagster_llm_batch.loop.holds import hold, reason_to_hold
from dagster_llm_batch.loop.label import LabelAssembler
from dagster_llm_batch.loop.poll import Poller
from dagster_llm_batch.loop.retry import NextWave
from dagster_llm_batch.loop.seams import Escalate
from dagster_llm_batch.loop.status import Advice, Status
from dagster_llm_batch.loop.waits import Unread
from dagster_llm_batch.states import ENDED, ShardState
from dagster_llm_batch.storage.ledger.leases import Lease
from dagster_llm_batch.storage.ledger.records import Settlement, Shard, ShardFields, Submission, SubmissionState
from dagster_llm_batch.storage.payloads import LateStore

__all__ = ["Settler", "make_assembler"]

# Limits on results that are read but not recorded yet: a process that dies has to read them again.
_REQUESTS_AT_ONCE = 10_000
_RECORDS_AT_ONCE = 100

Erase = Callable[[Submission, Collection[str], int], object]
"""Erases pending rows of a submission. The leases of those ids are held, and its asset has so many tombstones."""


@dataclass
class _Course:
    """One submission to settle, and the errors on the way."""

    submission: Submission
    shards: list[Shard]
    # Set when its ended shards are collected.
    sent: SentDefinition | None = None
    collector: Collector | None = None
    poll_errors: list[Exception] = field(default_factory=list)
    fetch_errors: list[Exception] = field(default_factory=list)
    read_errors: list[Exception] = field(default_factory=list)
    error: Exception | None = None

    @property
    def status(self) -> Status:
        return Status(self.submission, self.shards)

    def refuse_errors(self) -> None:
        """Raise one of its errors, temporary ones first, because a run that ends with such an error is retried."""
        transient = [error for error in self.fetch_errors if isinstance(error, TransientError)]
        if errors := [*transient, *self.read_errors, *self.fetch_errors, *self.poll_errors]:
            raise errors[0]


class Settler:
    """Settle submissions of one labeling while `lease` holds all of them.

    With `keeps_pauses`, unreadable results are left until their next try is due.
    """

    def __init__(
        self,
        labeling: Labeling,
        deployment: Deployment,
        poller: Poller,
        lease: Lease,
        erase: Erase,
        escalate: Escalate,
        *,
        keeps_pauses: bool = False,
    ) -> None:
        self._labeling = labeling
        self._deployment = deployment
        self._ledger = deployment.ledger
        self._poller = poller
        self._lease = lease
        self._erase = erase
        self._escalate = escalate
        self._late = LateStore(deployment.payloads)
        self._unread = Unread(deployment)
        self._keeps_pauses = keeps_pauses
        # Read but unrecorded results by shard_id, and settlements by submission_id.
        self._results: dict[str, tuple[_Course, ShardFields]] = {}
        self._requests = 0
        self._settlements: dict[str, tuple[_Course, Settlement]] = {}

    def settle(self, submission_ids: Sequence[str]) -> dict[str, Status | Exception]:
        """Return the status or the error of each of them. Raises LeaseError if the lease is lost."""
        courses = {
            key: _Course(*known) for key, known in self._ledger.submissions.get_all_with_shards(submission_ids).items()
        }
        try:
            self._poll(courses)
            ended = [key for key, course in courses.items() if any(shard.state in ENDED for shard in course.shards)]
            newer = self._ledger.submissions.find_newer(ended)
            self._each(courses, lambda course: self._collect(course, newer))
            self._record_results()
            tombstones = len(self._ledger.tombstones.list_all(self._deployment.namespace, self._labeling.asset))
            self._each(courses, lambda course: self._erase(course.submission, courses.keys(), tombstones))
            self._each(courses, _Course.refuse_errors)
            self._reread(courses)
            self._each(courses, self._go_on)
            self._record_settlements()
        finally:
            # Unrecorded files, too: by the next time, the provider may have deleted the results.
            self._late.sync()
        return {key: course.error or course.status for key, course in courses.items()}

    def _each(self, courses: dict[str, _Course], step: Callable[[_Course], object]) -> None:
        """Take the step with each submission that has no error yet. An error in one does not stop the others."""
        for course in courses.values():
            if course.error is None:
                try:
                    step(course)
                except Exception as error:  # noqa: BLE001 - it is the outcome of this one
                    # The refused lease may be another one.
                    if isinstance(error, LeaseError):
                        self._lease.check()
                    course.error = error

    def _reread(self, courses: dict[str, _Course]) -> None:
        """Read the submissions without errors from the ledger again."""
        going = [key for key, course in courses.items() if course.error is None]
        for key, (submission, shards) in self._ledger.submissions.get_all_with_shards(going).items():
            courses[key].submission, courses[key].shards = submission, shards

    def _poll(self, courses: dict[str, _Course]) -> None:
        """Stop late batches and poll running ones, each batch once for all submissions that share it."""

        def add_error(shards: Sequence[Shard], error: Exception) -> None:
            own = {shard.submission_id for shard in shards} & courses.keys()
            for key in own or courses:
                courses[key].poll_errors.append(error)

        running: dict[tuple[str | None, ...], Shard] = {}
        for course in courses.values():
            self._poller.stop_late(course.submission, course.shards, add_error)
            for shard in course.shards:
                if shard.state is ShardState.SUBMITTED:
                    running.setdefault((shard.provider, shard.account, shard.batch.batch_id), shard)
        if not running:
            return
        sharing = [other for shard in running.values() for other in self._ledger.shards.of_batch(shard)]
        reports = self._poller.poll(sharing, add_error)
        for course in courses.values():
            # If some batches were reported, a failed poll of another one only costs time.
            if any(shard.shard_id in reports for shard in course.shards):
                course.poll_errors = [e for e in course.poll_errors if not isinstance(e, TransientError)]
        self._reread(courses)

    def _collect(self, course: _Course, newer: Mapping[str, Collection[str]]) -> None:
        """Archive and read the ended shards of a submission."""
        course.sent = sent = self._deployment.sent_definition(self._labeling, course.submission)
        # Workers write on other machines.
        late = None if sent.labeling.workers else self._late
        course.collector = collector = Collector(sent.labeling, self._deployment, late, newer)
        ended = [shard for shard in course.shards if shard.state in ENDED]
        later = self._unread.read_later(ended) if self._keeps_pauses else set()
        ended = [shard for shard in ended if shard.shard_id not in later]
        with closing(collector.archive_all(ended, self._lease.check)) as archived:
            # All are archived, even after errors: by the next time, providers may have deleted the results.
            for batch, error in archived:
                going = batch
                if error is not None:
                    going, left = self._unread.note(batch, error)
                    if left is not None:
                        course.fetch_errors.append(left)
                if going and not course.read_errors:
                    try:
                        sent.refuse_unknown()
                        for shard, fields in collector.read_all(going):
                            self._results[shard.shard_id] = (course, fields)
                            self._requests += shard.requests
                            if self._requests >= _REQUESTS_AT_ONCE or len(self._results) >= _RECORDS_AT_ONCE:
                                self._record_results()
                    except LeaseError:
                        raise
                    except Exception as read_error:  # noqa: BLE001 - it is raised when all results are stored
                        course.read_errors.append(read_error)

    def _record_results(self) -> None:
        """Record the shards that were read as collected."""
        results, self._results, self._requests = self._results, {}, 0
        fields_of: dict[str, dict[str, ShardFields]] = defaultdict(dict)
        for shard_id, (course, fields) in results.items():
            fields_of[course.submission.submission_id][shard_id] = fields

        def record(keys: Collection[str]) -> None:
            self._ledger.shards.collect({k: v for key in keys for k, v in fields_of[key].items()})

        errors = self._record(fields_of, record)
        for course in {id(course): course for course, _ in results.values()}.values():
            if (error := errors.get(course.submission.submission_id)) is not None:
                course.read_errors.append(error)

    def _record(self, keys: Collection[str], record: Callable[[Collection[str]], None]) -> Mapping[str, Exception]:
        """Record these submissions once their files are on disk; return the errors by submission.

        The ledger records all or nothing. After an error, each submission is recorded separately.
        """
        if not keys:
            return {}
        errors: dict[str, Exception] = {}
        for going in ([keys], [[key] for key in keys]):
            errors = {}
            for some in going:
                try:
                    self._late.sync()
                    self._lease.check()
                    record(some)
                except LeaseError:
                    raise
                except Exception as error:  # noqa: BLE001 - it is the outcome of these
                    errors |= dict.fromkeys(some, error)
            if not errors or len(keys) == 1:
                break
        return errors

    def _go_on(self, course: _Course) -> None:
        """Plan the next wave of a collected submission, or settle it if the wave is empty."""
        assert course.sent is not None
        assert course.collector is not None
        status = course.status
        if status.submission.is_settled or any(shard.state is not ShardState.COLLECTED for shard in status.shards):
            return
        # The answers of these submissions decide on the next wave, so it waits for them.
        if self._ledger.submissions.find_unsettled(status.submission.reused_from):
            return
        labeling = course.sent.labeling
        make_assembler(self._deployment, labeling, status, course.collector).restore()
        if self._plan_next_wave(course.sent, status):
            course.submission, course.shards = self._ledger.submissions.get_with_shards(status.submission.submission_id)
            return
        # This is a new assembler, because the threshold of a cascade may be set now.
        settlement = make_assembler(self._deployment, labeling, status, course.collector).settlement()
        self._settlements[status.submission.submission_id] = (course, settlement)
        if len(self._settlements) >= _RECORDS_AT_ONCE:
            self._record_settlements()

    def _plan_next_wave(self, sent: SentDefinition, status: Status) -> bool:
        """Return whether there is a next wave.

        A person decides on it if the definition has changed, or if the rest may not be sent unchanged.
        """
        submission = status.submission
        if submission.state is not SubmissionState.OPEN:
            return False
        labeling = sent.labeling if sent.changes else self._labeling
        wave = NextWave(labeling, self._deployment, submission, status.shards, self._escalate)
        if not wave.requests:
            return False
        reason = reason_to_hold(self._deployment, labeling, sent, wave.models, status.shards)
        if reason is None:
            return wave.plan()
        problem = f"{wave.requests:,} requests are not sent again: {reason.problem}"
        hold(self._deployment, submission, Advice(problem, reason.then))
        return False

    def _record_settlements(self) -> None:
        """Record the settled submissions."""
        settlements, self._settlements = self._settlements, {}

        def record(keys: Collection[str]) -> None:
            waves = {key: settlements[key][0].submission.waves for key in keys}
            settled = self._ledger.submissions.settle_all({key: settlements[key][1] for key in keys}, waves)
            for key, submission in settled.items():
                settlements[key][0].submission = submission

        # Lost results may have been made again.
        for key, error in self._record(settlements, record).items():
            settlements[key][0].error = error


def make_assembler(deployment: Deployment, labeling: Labeling, status: Status, collector: Collector) -> LabelAssembler:
    """Return the assembler of a submission's labels."""
    shares = None if labeling.audited is None else deployment.shares(labeling, status.submission)
    if shares is None and labeling.relabel is not None and not deployment.has_audit(labeling, status.submission):
        from dagster_llm_batch.core.relabels import no_older_labels  # noqa: PLC0415 - few labelings need it

        shares = no_older_labels()
    return LabelAssembler(
        labeling=labeling,
        submission=status.submission,
        shards=status.shards,
        ledger=deployment.ledger,
        payloads=deployment.payloads,
        collector=collector,
        part_rows=deployment.part_rows,
        levels=deployment.levels(labeling, status.submission),
        shares=shares,
    )
