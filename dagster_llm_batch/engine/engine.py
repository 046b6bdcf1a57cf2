"""Puts the steps in sequence: plan, submit, poll, collect, recover. Each is idempotent and safe to be killed in.

    plan ─▶ submit ─▶ poll ─▶ collect ─┬─▶ settled ─▶ labels
              ▲                        │
              └────── next wave ◀──────┘   only what can succeed when sent again

Knows nothing of Dagster. All memory is in the ledger and the payload store: any process can do the next step.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from dagster_llm_batch.core.label_join import Labeled
from dagster_llm_batch.engine.activity import LOST, STRANDED, TURN, Outlook, count_lost, look_out
from dagster_llm_batch.engine.breaker import Breaker, stop_reason
from dagster_llm_batch.engine.collect import Collector
from dagster_llm_batch.engine.deployment import Deployment
from dagster_llm_batch.engine.label import LabelAssembler, WrittenLabels, write_labels
from dagster_llm_batch.engine.labeling import Labeling
from dagster_llm_batch.engine.plan import Planner, Preview
from dagster_llm_batch.engine.poll import Failed, Poller
from dagster_llm_batch.engine.prune import Pruner, Pruning
from dagster_llm_batch.engine.retry import NextWave
from dagster_llm_batch.engine.status import Status
from dagster_llm_batch.engine.submit import Sender
from dagster_llm_batch.engine.submit_queue import UNAVAILABLE, Dispatcher, can_go, drop, keep_places
from dagster_llm_batch.errors import (
    CannotTellError,
    ConfigError,
    LeaseError,
    LLMBatchError,
    ProviderError,
    TransientError,
)
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.states import ENDED, IN_FLIGHT, Move, ShardState
from dagster_llm_batch.storage.ledger.queries import Unreadable
from dagster_llm_batch.storage.ledger.records import Progress, Shard, Submission, SubmissionState
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import BatchReport

__all__ = ["Engine"]


class Engine:
    """The steps, for one deployment: over its ledger, its payload store and its providers."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.ledger = deployment.ledger
        self.payloads = deployment.payloads
        self.namespace = deployment.namespace
        self._poller = Poller(deployment)

    @property
    def providers(self) -> Mapping[str, Provider]:
        """The configured providers by name."""
        return self.deployment.providers

    def provider(self, name: str) -> Provider:
        """The configured provider of this name, or ConfigError."""
        return self.deployment.provider(name)

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

    def preview(self, labeling: Labeling, rows: Any, *, partition: str = "", again: bool = False) -> Preview:
        """What `plan` would do with these rows, and what it may cost. Nothing is stored or sent.

        Raises ConfigError or InputError as `plan` does; that a budget refuses it stands in the preview.
        """
        return self._planner(labeling).preview(rows, partition=partition, again=again)

    def _planner(self, labeling: Labeling) -> Planner:
        return Planner(labeling, self.deployment)

    # submit and recover ---------------------------------------------------------------------------------------------

    def submit(self, labeling: Labeling, submission_id: str) -> Status:
        """Send every planned shard of the submission; find those of unknown end first.

        A shard that the provider cannot take now stays planned, for the next call. Raises CredentialsError,
        ConfigError, CannotTellError or LeaseError.
        """
        self.submit_together(labeling, [submission_id])
        return self.status(submission_id)

    def submit_together(self, labeling: Labeling, submission_ids: Sequence[str]) -> None:
        """The same for several submissions of one labeling, in as few batches as they fit into."""
        held = self._with_sharing(submission_ids)
        with self.deployment.leased(*held) as lease:
            Sender(self.deployment).recover(submission_ids, held)
            dispatcher = Dispatcher(labeling, self.deployment, lease)
            planned: list[Shard] = []
            for submission_id in submission_ids:
                submission, shards = self.ledger.submission_with_shards(submission_id)
                for shard in shards:
                    if shard.state in IN_FLIGHT:
                        self.deployment.provider_of(shard)
                own = [shard for shard in shards if shard.state is ShardState.PLANNED]
                if submission.state is not SubmissionState.OPEN:
                    drop(self.deployment, own, "its submission is canceled")
                elif own:
                    self._refuse_other_configuration(labeling, submission)
                    if Breaker(labeling, self.deployment).stops_rest(submission, shards):
                        drop(self.deployment, own, "its submission is stopped: what came so far does not fit")
                        continue
                    planned += dispatcher.give_up(own, late=self.deployment.is_late(submission))
            dispatcher.send(planned)

    def recover(self, submission_id: str) -> None:
        """Find batches whose create call left no record. Never sends. Raises LeaseError or CannotTellError."""
        held = self._with_sharing([submission_id])
        with self.deployment.leased(*held):
            Sender(self.deployment).recover([submission_id], held)

    def _with_sharing(self, submission_ids: Sequence[str]) -> set[str]:
        """These, and those that share a create call of unknown end with them: they are leased all at once, so that no
        two processes wait for each other.
        """
        return {*submission_ids, *(shard.submission_id for shard in self.ledger.shards_sent_with(submission_ids))}

    def resolve(self, shard_id: str, batch_id: str | None) -> Shard:
        """A person's word on a shard that cannot be told: its batch, or None where there is none (it is sent again).

        It holds for all shards that were sent with it. Raises LeaseError while a process is sending them.
        """
        shard = self.ledger.shard(shard_id)
        carrier = shard.carrier or shard_id
        sharing = self.ledger.shards_sent_with([shard.submission_id])
        together = [one for one in sharing if carrier in (one.shard_id, one.carrier)] or [shard]
        ids = [one.shard_id for one in together]
        with self.deployment.leased(*(one.submission_id for one in together)):
            if batch_id is None:
                moved = self.ledger.move_shards(ids, Move.NOT_SENT, reason="resolved by a person: no batch exists")
            else:
                told = f"resolved by a person: {batch_id}"
                moved = self.ledger.move_shards(
                    ids, Move.ACCEPTED, detail=told, batch_id=batch_id, submitted_at=self.deployment.clock()
                )
        return next(one for one in moved if one.shard_id == shard_id)

    # poll -----------------------------------------------------------------------------------------------------------

    def poll(self, shards: Sequence[Shard], failed: Failed | None = None) -> dict[str, BatchReport]:
        """Ask the providers how these shards' batches are and record it; reports by shard_id.

        A provider that cannot be asked now is left for the next time. Moves shards, sends nothing. Whatever is wrong
        with one provider or batch, the others are asked and recorded; then the first error is raised or, with
        `failed`, that has been given each. Raises LedgerError where nothing can be recorded.
        """
        return self._poller.poll(shards, failed)

    def stop_late(self, submission_id: str) -> None:
        """Ask batches that run past the submission's deadline to stop. What they have answered is kept."""
        self._stop_late(*self.ledger.submission_with_shards(submission_id))

    def _stop_late(self, submission: Submission, shards: Sequence[Shard]) -> None:
        if self.deployment.is_late(submission):
            self._poller.stop(shards)

    # collect --------------------------------------------------------------------------------------------------------

    def advance(self, labeling: Labeling, submission_id: str) -> Status:
        """Take the submission as far as it goes now: recover, send, poll, collect, then the next wave or settle.

        Returns without waiting. Raises LeaseError where another process is at it, ConfigError where the definition has
        changed since it was sent (raw results are stored before that), CannotTellError after collecting what is known.
        """
        try:
            self.submit(labeling, submission_id)
        except CannotTellError:
            self.collect(labeling, submission_id)
            raise
        self.collect(labeling, submission_id)
        status = self.submit(labeling, submission_id)
        if any(shard.state in ENDED for shard in status.shards):  # answered in real time, or given up
            return self.collect(labeling, submission_id)
        return status

    def collect(self, labeling: Labeling, submission_id: str) -> Status:
        """`advance` without sending: a next wave is planned, and waits for `submit`."""
        with self.deployment.leased(submission_id) as lease:
            submission, shards = self.ledger.submission_with_shards(submission_id)
            self._stop_late(submission, shards)
            running = [shard for shard in shards if shard.state is ShardState.SUBMITTED]
            unseen: list[Exception] = []
            reports = self.poll(  # one look for all that share a batch
                [one for shard in running for one in self.ledger.shards_of_batch(shard)],
                lambda _, error: unseen.append(error),
            )
            if reports:  # a provider that does not answer for the rest costs time only
                unseen = [error for error in unseen if not isinstance(error, TransientError)]
            collector = Collector(labeling, self.deployment)
            ended = [shard for shard in self.ledger.shards(submission_id) if shard.state in ENDED]
            absent: list[ProviderError] = []
            misread: list[Exception] = []
            with closing(collector.archive_all(ended, lease.check)) as archived:
                for batch, error in archived:  # to the last: the others' results may be gone by the next time
                    if error is not None:
                        absent.append(error)
                    elif not misread:
                        try:
                            self._refuse_other_configuration(labeling, submission)
                            collector.collect(batch, lease.check)
                        except LeaseError:
                            raise
                        except Exception as unread:  # noqa: BLE001 - it is raised when all results are stored
                            misread.append(unread)
            coming = [one for one in absent if isinstance(one, TransientError)]
            if first := [*coming, *misread, *absent, *unseen]:
                raise first[0]
            status = self.status(submission_id)
            if status.is_settled or any(shard.state is not ShardState.COLLECTED for shard in status.shards):
                return status
            if not self._has_sources(status.submission):
                return status
            if self._plan_next_wave(labeling, status):
                return self.status(submission_id)
            return replace(status, submission=self._landing(labeling, status, collector).settle())

    def _plan_next_wave(self, labeling: Labeling, status: Status) -> bool:
        if status.submission.state is not SubmissionState.OPEN:
            return False
        return NextWave(labeling, self.deployment, status.submission, status.shards).plan()

    def _has_sources(self, submission: Submission) -> bool:
        """Whether the submissions whose answers this one waits for have theirs."""
        return all(self.ledger.submission(one).is_settled for one in submission.reused_from)

    def _refuse_other_configuration(self, labeling: Labeling, submission: Submission) -> None:
        if submission.config_fingerprint != self._planner(labeling).configuration:
            msg = (
                f"Submission {submission.submission_id} of '{labeling.asset}' was made with another model, parameters, "
                "response schema or account than the present definition has, so its replies are not read with it. What "
                "came is stored as it is. Restore the earlier definition to label with it, or submit again to ask anew."
            )
            raise ConfigError(msg)

    def _landing(self, labeling: Labeling, status: Status, collector: Collector) -> LabelAssembler:
        return LabelAssembler(
            labeling,
            status.submission,
            status.shards,
            self.ledger,
            self.payloads,
            collector,
            self.deployment.part_rows,
        )

    # labels ---------------------------------------------------------------------------------------------------------

    def labels(self, labeling: Labeling, submission_id: str, *, run_id: str = "", reread: bool = False) -> Labeled:
        """The labeled rows and the rejects of a settled submission.

        With `reread`, raw result lines are read again with the present parser: a fix of it costs nothing.
        """
        return self._settled(labeling, submission_id, reread=reread).labels(run_id=run_id, reread=reread)

    def label_batches(
        self, labeling: Labeling, submission_id: str, *, run_id: str = "", reread: bool = False
    ) -> Generator[Labeled, None, None]:
        """The same in parts, for tables larger than memory. Their rows come in no particular order."""
        return self._settled(labeling, submission_id, reread=reread).batches(run_id=run_id, reread=reread)

    def write_labels(
        self,
        labeling: Labeling,
        submission_id: str,
        folder: str,
        rejects_folder: str,
        *,
        run_id: str = "",
        reread: bool = False,
    ) -> WrittenLabels:
        """The same as Parquet files, in the place of those that the folders hold: by the labeling's workers, or here.

        A folder is a path or URL, mostly that of one partition, as in `s3://bucket/ticket_labels/day=2026-01-01`:
        Spark and others read the folder above it as a table with the column `day`. Rows come in no particular order.
        """
        landing = self._settled(labeling, submission_id, reread=reread)
        landing.read_again(reread=reread)
        return write_labels(landing, PayloadStore(folder), PayloadStore(rejects_folder), run_id)

    def _settled(self, labeling: Labeling, submission_id: str, *, reread: bool) -> LabelAssembler:
        status = self.status(submission_id)
        if not status.is_settled:
            msg = f"Submission {submission_id} is not settled; it has no labels yet."
            raise LLMBatchError(msg)
        if reread:
            self._refuse_other_configuration(labeling, status.submission)
        return self._landing(labeling, status, Collector(labeling, self.deployment))

    # what to do next ------------------------------------------------------------------------------------------------

    def needs_recovery(self, progress: Progress) -> bool:
        """Whether a shard's create call left no record."""
        return ShardState.SUBMITTING in progress.states

    def can_advance(self, progress: Progress) -> bool:
        """Whether `advance` would do something: send what may go, collect what has ended, or settle."""
        submission = progress.submission
        if ShardState.PLANNED in progress.states and self._can_send(submission):
            return True
        return not set(progress.states) & {ShardState.PLANNED, *IN_FLIGHT} and self._has_sources(submission)

    def _can_send(self, submission: Submission) -> bool:
        """Whether one of its planned shards may go now. One that had to wait for that gets an event of its own."""
        if submission.state is not SubmissionState.OPEN:
            return True
        planned = [s for s in self.ledger.shards(submission.submission_id) if s.state is ShardState.PLANNED]
        return can_go(self.deployment, planned, late=self.deployment.is_late(submission))

    def at_work(self, run_id: str) -> AbstractContextManager[object]:
        """Show for a block that this run plans and sends: nobody else is to send what it has planned so far."""
        return self.deployment.at_work(run_id)

    def runs_at_work(self) -> set[str]:
        """The runs that plan and send at this moment. Those of dead processes are not among them."""
        return self.deployment.runs_at_work()

    def keep_places(self, assets: Sequence[str]) -> None:
        """Say, now and then, that somebody looks after these assets: what waits of others loses its place in queues."""
        keep_places(self.deployment, assets)

    def outlook(self, unreadable: Unreadable | None = None) -> Outlook:
        """Who works on undelivered submissions, and what happened to each last; `unreadable` as in Ledger.progress."""
        return look_out(self.deployment, unreadable)

    def note_turns(self, submission_ids: Sequence[str]) -> None:
        """Say that what waited may go, so that a run for it is a new one."""
        self.ledger.add_events(submission_ids, TURN)

    def note_unavailable(self, submission_id: str, error: TransientError) -> None:
        """The provider did not answer: worth another try, later."""
        self.ledger.add_event(submission_id, UNAVAILABLE, str(error))

    def lost_runs(self, submission_id: str) -> int:
        """How many runs in a row were to land the labels and ended without having done anything."""
        return count_lost(self.ledger.events(submission_id))

    def note_lost(self, submission_id: str, detail: str) -> None:
        """A run that was to land the labels did nothing, and another one is worth a try."""
        self.ledger.add_event(submission_id, LOST, detail)

    def note_stranded(self, submission_id: str, detail: str) -> None:
        """No further run is worth a try before a person has looked: whatever happens then begins anew."""
        self.ledger.add_event(submission_id, STRANDED, detail)

    def now(self) -> datetime:
        return self.deployment.clock()

    # look and stop --------------------------------------------------------------------------------------------------

    def status(self, submission_id: str) -> Status:
        return Status(*self.ledger.submission_with_shards(submission_id))

    def stop_reason(self, submission_id: str) -> str | None:
        """Why nothing more is sent of a submission: nearly nothing of what came fitted. None: it was not stopped."""
        return stop_reason(self.ledger, submission_id)

    def latest(self, asset: str, partition: str = "") -> Submission | None:
        """The newest submission of a partition."""
        history = self.ledger.history(self.namespace, asset, partition)
        return history[0] if history else None

    def cancel(self, submission_id: str) -> Status:
        """Stop a submission: nothing more is sent, running batches are asked to stop, finished rows are kept."""
        held = self._with_sharing([submission_id])
        with self.deployment.leased(*held):
            self.ledger.set_state(submission_id, SubmissionState.CANCELED)
            unsure: LLMBatchError | None = None
            try:
                Sender(self.deployment).recover([submission_id], held)
            except LLMBatchError as error:  # what is certain is stopped all the same
                unsure = error
            shards = self.ledger.shards(submission_id)
            drop(self.deployment, shards, "its submission is canceled")
            self._poller.stop(shards)
            if unsure is not None:
                raise unsure
            return self.status(submission_id)

    # tidy up --------------------------------------------------------------------------------------------------------

    def prune(self, older_than: timedelta, *, delete: bool = False) -> Pruning:
        """What of the stored files nothing needs any more, by the rule of `prune.py`; deleted only with `delete`.

        Answers of pruned submissions cannot be reused: should their rows and definition come back, they are asked, and
        paid, again.
        """
        clock = self.deployment.clock
        return Pruner(self.ledger, self.payloads, self.namespace, clock).prune(older_than, delete=delete)
