"""Puts the steps in sequence: plan, submit, poll, collect, recover. Each is idempotent and safe to be killed in.

    plan ─▶ submit ─▶ poll ─▶ collect ─┬─▶ settled ─▶ labels
              ▲                        │
              └────── next wave ◀──────┘   only what can succeed when sent again

Knows nothing of Dagster. All memory is in the ledger and the payload store: any process can do the next step.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from dagster_llm_batch.core.labeling import Labeled
from dagster_llm_batch.core.pricing import FREE, Tariff, tariff
from dagster_llm_batch.engine.collecting import Again, Collector
from dagster_llm_batch.engine.definition import Labeling
from dagster_llm_batch.engine.landing import Landing
from dagster_llm_batch.engine.planner import Planner
from dagster_llm_batch.engine.sending import Sender
from dagster_llm_batch.errors import ConfigError, IllegalMoveError, LeaseError, LLMBatchError, TransientError
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.states import ENDED, IN_FLIGHT, Move, ShardState
from dagster_llm_batch.storage.leases import Lease
from dagster_llm_batch.storage.ledger import Ledger, utc_now
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.storage.records import Progress, Shard, Submission, SubmissionState
from dagster_llm_batch.types import BatchReport, BatchStatus

__all__ = ["Engine", "Status"]

_LEASE_SECONDS = 60.0
_UNAVAILABLE = "unavailable"

_ENDINGS = {
    BatchStatus.ENDED: Move.ENDED,
    BatchStatus.EXPIRED: Move.EXPIRED,
    BatchStatus.CANCELED: Move.CANCELED,
    BatchStatus.FAILED: Move.FAILED,
}


@dataclass(frozen=True)
class Status:
    """A submission and its shards at one moment."""

    submission: Submission
    shards: list[Shard]

    @property
    def is_settled(self) -> bool:
        return self.submission.is_settled

    @property
    def states(self) -> Counter[str]:
        return Counter(shard.state.value for shard in self.shards)

    @property
    def batch_ids(self) -> list[str]:
        return [shard.batch_id for shard in self.shards if shard.batch_id]

    @property
    def done(self) -> int:
        """Requests that providers report as finished."""
        whole = (ShardState.COLLECTED, *ENDED)
        return sum(shard.requests if shard.state in whole else shard.done or 0 for shard in self.shards)

    @property
    def total(self) -> int:
        return sum(shard.requests for shard in self.shards)


class Engine:
    """The steps, over one ledger, one payload store and the providers of one deployment."""

    def __init__(
        self,
        providers: Mapping[str, Provider],
        ledger: Ledger,
        payloads: PayloadStore,
        namespace: str,
        clock: Callable[[], datetime] = utc_now,
        sleep: Callable[[float], None] = time.sleep,
        lease_wait_seconds: float = 0.0,
    ) -> None:
        self.ledger = ledger
        self.payloads = payloads
        self.namespace = namespace
        self._providers = providers
        self._clock = clock
        self._sleep = sleep
        self._lease_wait_seconds = lease_wait_seconds

    def provider(self, name: str) -> Provider:
        """The configured provider of this name, or ConfigError."""
        if name not in self._providers:
            known = ", ".join(sorted(self._providers)) or "none"
            msg = f"No provider '{name}' is configured; configured: {known}. Add it to LLMBatchResource({name}=...)."
            raise ConfigError(msg)
        return self._providers[name]

    # plan -----------------------------------------------------------------------------------------------------------

    def check(self, labeling: Labeling) -> None:
        """Refuse what this provider cannot take, before any row is read: response schema, parameters, prices."""
        self._planner(labeling).check()

    def plan(
        self, labeling: Labeling, rows: Any, *, partition: str = "", run_id: str | None = None, again: bool = False
    ) -> Submission:
        """The submission for these rows: the one that is known already, or a new one with its shards planned.

        Sends nothing. With `again`, a settled submission is followed by a new attempt that asks only for what the
        earlier ones did not answer. Raises ConfigError, InputError or BudgetError, and leaves nothing behind then.
        """
        return self._planner(labeling).plan(rows, partition=partition, run_id=run_id, again=again)

    def _planner(self, labeling: Labeling) -> Planner:
        provider = self.provider(labeling.provider)
        return Planner(
            labeling, provider, self._tariff(labeling), self.ledger, self.payloads, self.namespace, self._clock
        )

    def _tariff(self, labeling: Labeling) -> Tariff:
        book = self.provider(labeling.provider).price_book
        if book is None and labeling.price is None:
            return FREE
        return tariff(book or "", labeling.spec.model, self._clock(), labeling.price)

    # submit and recover ---------------------------------------------------------------------------------------------

    def submit(self, labeling: Labeling, submission_id: str) -> Status:
        """Send every planned shard of the submission; find those of unknown end first.

        A shard that the provider cannot take now stays planned, for the next call. Raises CredentialsError,
        CannotTellError or LeaseError.
        """
        with self._leased(submission_id) as lease:
            submission = self.ledger.submission(submission_id)
            sender = self._sender(submission)
            found = [sender.recover(shard) for shard in self.ledger.shards(submission_id)]
            planned = [shard for shard in found if shard.state is ShardState.PLANNED]
            if submission.state is not SubmissionState.OPEN:
                self._drop(planned)
            elif planned:
                self._refuse_other_configuration(labeling, submission)
                for shard in planned:
                    lease.check()
                    sender.send(shard, labeling.spec)
            return self.status(submission_id)

    def recover(self, submission_id: str) -> None:
        """Find batches whose create call left no record. Never sends. Raises LeaseError or CannotTellError."""
        with self._leased(submission_id):
            sender = self._sender(self.ledger.submission(submission_id))
            for shard in self.ledger.shards(submission_id):
                sender.recover(shard)

    def resolve(self, shard_id: str, batch_id: str | None) -> Shard:
        """A person's word on a shard that cannot be told: its batch, or None where there is none (it is sent again)."""
        if batch_id is None:
            return self.ledger.move(shard_id, Move.NOT_SENT, reason="resolved by a person: no batch exists")
        told = f"resolved by a person: {batch_id}"
        return self.ledger.move(shard_id, Move.ACCEPTED, detail=told, batch_id=batch_id, submitted_at=self._clock())

    def _sender(self, submission: Submission) -> Sender:
        """Raises ConfigError where another account is configured: it would call the batches lost."""
        provider = self.provider(submission.provider)
        if provider.account != submission.account:
            msg = (
                f"Submission {submission.submission_id} of '{submission.asset}' was made with the "
                f"{submission.provider} account '{submission.account}'; configured is '{provider.account}', which "
                "cannot see its batches. Configure the former again until it is settled, or submit again to ask anew."
            )
            raise ConfigError(msg)
        return Sender(provider, self.ledger, self.payloads, self.namespace, self._clock, self._sleep)

    # poll -----------------------------------------------------------------------------------------------------------

    def poll(self, shards: Sequence[Shard]) -> dict[str, BatchReport]:
        """Ask the providers how these shards' batches are and record it; reports by shard_id.

        A provider that cannot be asked now is left for the next time. Moves shards, sends nothing.
        """
        reports: dict[str, BatchReport] = {}
        errors: list[TransientError] = []
        by_provider: dict[str, dict[str, Shard]] = {}
        for shard in shards:
            if shard.state is ShardState.SUBMITTED and shard.batch_id is not None:
                by_provider.setdefault(shard.provider, {})[shard.batch_id] = shard
        for name, batches in by_provider.items():
            try:
                answers = self.provider(name).poll(list(batches))
            except TransientError as error:
                errors.append(error)
                continue
            reports.update({batches[batch_id].shard_id: report for batch_id, report in answers.items()})
        self.ledger.observe(reports)
        for shard_id, report in reports.items():
            if report.status in _ENDINGS:
                self._end(shard_id, report)
        if errors and not reports:
            raise errors[0]
        return reports

    def _end(self, shard_id: str, report: BatchReport) -> None:
        with suppress(IllegalMoveError):  # another process asked at the same time and recorded it
            self.ledger.move(
                shard_id,
                _ENDINGS[report.status],
                status=report.status,
                ended_at=report.ended_at or self._clock(),
                total=report.total,
                done=report.done,
                failed=report.failed,
                reason=report.reason,
                retryable=report.retryable,
            )

    # collect --------------------------------------------------------------------------------------------------------

    def advance(self, labeling: Labeling, submission_id: str) -> Status:
        """Take the submission as far as it goes now: recover, send, poll, collect, then the next wave or settle.

        Returns without waiting. Raises LeaseError where another process is at it, ConfigError where the definition has
        changed since it was sent (raw results are stored before that).
        """
        self.submit(labeling, submission_id)
        with self._leased(submission_id) as lease:
            self.poll(self.ledger.shards(submission_id))
            collector = self._collector(labeling)
            ended = [shard for shard in self.ledger.shards(submission_id) if shard.state in ENDED]
            for shard in ended:
                lease.check()
                collector.archive(shard)
            if ended:
                self._refuse_other_configuration(labeling, self.ledger.submission(submission_id))
            for shard in ended:
                lease.check()
                collector.collect(shard)
            status = self.status(submission_id)
            if status.is_settled or any(shard.state is not ShardState.COLLECTED for shard in status.shards):
                return status
            if not self._next_wave(labeling, status, collector):
                self._landing(labeling, status.submission, collector).settle()
        return self.submit(labeling, submission_id)

    def _refuse_other_configuration(self, labeling: Labeling, submission: Submission) -> None:
        if submission.config_fingerprint != self._planner(labeling).configuration:
            msg = (
                f"Submission {submission.submission_id} of '{labeling.asset}' was made with another model, parameters, "
                "response schema or account than the present definition has, so its replies are not read with it. What "
                "came is stored as it is. Restore the earlier definition to label with it, or submit again to ask anew."
            )
            raise ConfigError(msg)

    def _collector(self, labeling: Labeling) -> Collector:
        provider = self.provider(labeling.provider)
        return Collector(
            labeling,
            provider,
            provider.codec(labeling.spec),
            self._tariff(labeling),
            self.ledger,
            self.payloads,
            self._clock,
            self._sleep,
        )

    def _next_wave(self, labeling: Labeling, status: Status, collector: Collector) -> bool:
        submission = status.submission
        if submission.state is not SubmissionState.OPEN:
            return False
        latest = [shard for shard in status.shards if shard.wave == submission.waves]
        again = collector.again(latest)
        if not again or not self._affordable(labeling, status, again):
            return False
        planner = self._planner(labeling)
        files = planner.files(submission.submission_id, submission.partition, submission.waves + 1)
        self.ledger.add_wave(submission.submission_id, collector.next_wave(again, files))
        return True

    def _affordable(self, labeling: Labeling, status: Status, again: list[Again]) -> bool:
        budget = labeling.budget_usd
        costs = [shard.estimated_usd if shard.cost_usd is None else shard.cost_usd for shard in status.shards]
        spent = sum((cost for cost in costs if cost is not None), Decimal(0))
        shares = [(s.estimated_usd or Decimal(0)) * len(ids) / max(s.requests, 1) for s, ids in again]
        if budget is None or spent + sum(shares) <= budget:
            return True
        requests = sum(len(one.request_ids) for one in again)
        detail = f"{requests} requests are not sent again: {spent} USD are spent of max_cost_usd={budget}"
        self.ledger.note(status.submission.submission_id, "over_budget", detail)
        return False

    def _landing(self, labeling: Labeling, submission: Submission, collector: Collector) -> Landing:
        return Landing(labeling, submission, self.ledger, self.payloads, collector)

    # labels ---------------------------------------------------------------------------------------------------------

    def labels(self, labeling: Labeling, submission_id: str, *, run_id: str = "", reread: bool = False) -> Labeled:
        """The labeled rows and the rejects of a settled submission.

        With `reread`, raw result lines are read again with the present parser: a fix of it costs nothing.
        """
        submission = self.ledger.submission(submission_id)
        if not submission.is_settled:
            msg = f"Submission {submission_id} is not settled; it has no labels yet."
            raise LLMBatchError(msg)
        if reread:
            self._refuse_other_configuration(labeling, submission)
        landing = self._landing(labeling, submission, self._collector(labeling))
        return landing.labels(run_id=run_id, reread=reread)

    # what to do next ------------------------------------------------------------------------------------------------

    def needs_recovery(self, progress: Progress) -> bool:
        """Whether a shard's create call left no record."""
        return ShardState.SUBMITTING in progress.states

    def can_advance(self, progress: Progress) -> bool:
        """Whether `advance` would do something: send what waits, collect what has ended, or settle."""
        return not set(progress.states) & IN_FLIGHT or ShardState.PLANNED in progress.states

    def is_busy(self, submission_id: str) -> bool:
        """Whether another process works on it now."""
        try:
            with self._leased(submission_id, wait_seconds=0.0):
                return False
        except LeaseError:
            return True

    def attempt(self, submission_id: str) -> int:
        """A number that changes whenever something happened to the submission: a run for it is worth another try."""
        return self.ledger.events(submission_id)[-1].event_id

    def note_unavailable(self, submission_id: str, error: TransientError) -> None:
        """The provider did not answer: worth another try, later."""
        self.ledger.note(submission_id, _UNAVAILABLE, str(error))

    def unavailable_since(self, submission_id: str) -> datetime | None:
        """When the provider did not answer, or not take a batch, if that is the last that happened."""
        last = self.ledger.events(submission_id)[-1]
        return last.at if last.kind in (_UNAVAILABLE, Move.NOT_SENT.value) else None

    def now(self) -> datetime:
        return self._clock()

    # look and stop --------------------------------------------------------------------------------------------------

    def _leased(self, submission_id: str, *, wait_seconds: float | None = None) -> AbstractContextManager[Lease]:
        patience = self._lease_wait_seconds if wait_seconds is None else wait_seconds
        return self.ledger.leased(f"submission:{submission_id}", seconds=_LEASE_SECONDS, wait_seconds=patience)

    def status(self, submission_id: str) -> Status:
        return Status(self.ledger.submission(submission_id), self.ledger.shards(submission_id))

    def latest(self, asset: str, partition: str = "") -> Submission | None:
        """The newest submission of a partition."""
        history = self.ledger.history(self.namespace, asset, partition)
        return history[0] if history else None

    def cancel(self, submission_id: str) -> Status:
        """Stop a submission: nothing more is sent, running batches are asked to stop, finished rows are kept."""
        with self._leased(submission_id):
            sender = self._sender(self.ledger.submission(submission_id))
            self.ledger.set_state(submission_id, SubmissionState.CANCELED)
            shards = self.ledger.shards(submission_id)
            for shard in sorted(shards, key=lambda one: one.state is ShardState.SUBMITTING):  # the doubtful ones last
                found = sender.recover(shard)
                if found.state is ShardState.PLANNED:
                    self._drop([found])
                elif found.state is ShardState.SUBMITTED and found.batch_id is not None:
                    self.provider(found.provider).cancel(found.batch_id)
            return self.status(submission_id)

    def _drop(self, planned: Sequence[Shard]) -> None:
        """What a canceled submission has not sent, it never sends."""
        for shard in planned:
            self.ledger.move(shard.shard_id, Move.CANCELED, status=BatchStatus.CANCELED, ended_at=self._clock())
