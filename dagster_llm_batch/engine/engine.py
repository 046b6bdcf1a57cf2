"""The engine: plan, submit, poll, collect, recover, in sequence. Each step can be repeated, and killed at any point.

    plan ─▶ submit ─▶ poll ─▶ collect ─┬─▶ settled ─▶ labels
              ▲                        │
              └────── next wave ◀──────┘   only retryable requests

Independent of Dagster. The whole state is in the ledger and the payload store, so any process can do the next step.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from dagster_llm_batch.advice.steps import find_tuning, forecast_end
from dagster_llm_batch.core.label_join import Labeled
from dagster_llm_batch.definition.labeling import Labeling
from dagster_llm_batch.engine.activity import Activity
from dagster_llm_batch.engine.label_files import WrittenLabels, write_labels
from dagster_llm_batch.engine.recovery import Recovery
from dagster_llm_batch.engine.seams import escalate, sample
from dagster_llm_batch.errors import (
    ConfigError,
    LeaseError,
    LLMBatchError,
    ProviderError,
    StatusUnknownError,
    TransientError,
)
from dagster_llm_batch.files.request_writer import COUNTS, MASKED
from dagster_llm_batch.loop.breaker import Breaker
from dagster_llm_batch.loop.collect import Collector
from dagster_llm_batch.loop.decisions import give_up, resolve
from dagster_llm_batch.loop.deployment import Deployment, SentDefinition
from dagster_llm_batch.loop.holds import hold_unsent, reason_to_hold
from dagster_llm_batch.loop.label import LabelAssembler
from dagster_llm_batch.loop.planner import Planner, check_definition
from dagster_llm_batch.loop.poll import Failed, Poller
from dagster_llm_batch.loop.preview import Preview
from dagster_llm_batch.loop.receipts import (
    recover_partition,
    recover_planned,
)
from dagster_llm_batch.loop.settlement import Settler, make_assembler
from dagster_llm_batch.loop.status import Status, UnsentReasons, find_unsent
from dagster_llm_batch.loop.submit import Sender
from dagster_llm_batch.loop.submit_queue import Dispatcher, drop
from dagster_llm_batch.protocols import Provider
from dagster_llm_batch.states import ENDED, IN_FLIGHT, Reason, ShardState
from dagster_llm_batch.storage.ledger.holds import UNSENT
from dagster_llm_batch.storage.ledger.records import Shard, Submission, SubmissionState
from dagster_llm_batch.storage.payloads import PayloadStore
from dagster_llm_batch.types import BatchReport
from dagster_llm_batch.upkeep.prune import Pruner, Pruning

if TYPE_CHECKING:
    from dagster_llm_batch.upkeep.erase import Eraser

__all__ = ["Engine", "KnownSubmission"]


class KnownSubmission(NamedTuple):
    """A settled submission whose labels a caller needs, with the data that it has read already.

    `tombstones` is the number of its asset; None if the caller has not read it.
    """

    status: Status
    sent: SentDefinition
    tombstones: int | None = None


class Engine:
    """The steps for one deployment, with its ledger, its payload store and its providers."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment
        self.ledger = deployment.ledger
        self.payloads = deployment.payloads
        self.namespace = deployment.namespace
        self.activity = Activity(deployment)
        self.recovery = Recovery(deployment)
        self._poller = Poller(deployment)

    @property
    def providers(self) -> Mapping[str, Provider]:
        """The configured providers by name."""
        return self.deployment.providers

    def provider(self, name: str) -> Provider:
        """Return the configured provider of this name. Raises ConfigError for an unknown name."""
        return self.deployment.provider(name)

    # plan -----------------------------------------------------------------------------------------------------------

    def check(self, labeling: Labeling) -> None:
        """Raise ResponseSchemaError or ConfigError if the provider cannot take the definition. Reads no row."""
        check_definition(self.deployment, labeling)

    def plan(
        self, labeling: Labeling, rows: Any, *, partition: str = "", run_id: str | None = None, again: bool = False
    ) -> Submission:
        """Return the submission for these rows: the known one, or a new one with planned shards.

        Sends nothing. With `again`, a settled submission is followed by a new attempt for the unanswered requests only.
        It first polls whether an abandoned batch has ended after all. Raises ConfigError, InputError or BudgetError,
        and then leaves nothing behind.
        """
        self.take_over(labeling)
        recover_partition(self.deployment, labeling.asset, partition)
        if again:
            # The answers of a batch that ended after it was abandoned are paid already.
            self.poll_awaited([labeling.asset], self.now())
        return self._planner(labeling).plan(rows, partition=partition, run_id=run_id, again=again)

    def preview(self, labeling: Labeling, rows: Any, *, partition: str = "", again: bool = False) -> Preview:
        """Return the result and the cost that `plan` would have for these rows. Stores and sends nothing.

        Raises ConfigError or InputError like `plan`. A refusal by a budget is a part of the preview.
        """
        return self._planner(labeling).preview(rows, partition=partition, again=again)

    def rename(self, old: str, new: str) -> tuple[list[str], list[str]]:
        """Give all submissions of `old` to `new`; return the partitions that were given, and those that stay.

        A partition of `new` with its own submissions stays. Requests are not sent again or lost: the labels of
        open and of delivered submissions are materialized under `new`, and answered requests are not asked again.
        """
        if old == new:
            raise ConfigError(f"'{old}' is given the name that it has. Nothing was changed.")
        return self.ledger.submissions.rename_asset(self.namespace, old, new)

    def take_over(self, labeling: Labeling) -> None:
        """Take over the submissions under the former names of a labeling; see `rename`."""
        for former in labeling.resend.former_names:
            self.rename(former, labeling.asset)

    def _planner(self, labeling: Labeling) -> Planner:
        return Planner(labeling, self.deployment, find_tuning, sample, forecast_end)

    # submit and recover ---------------------------------------------------------------------------------------------

    def submit(self, labeling: Labeling, submission_id: str) -> Status:
        """Send every planned shard of the submission; look first for the batches of shards in doubt.

        A shard that the provider cannot take now stays planned for the next call. Raises CredentialsError, ConfigError,
        StatusUnknownError or LeaseError.
        """
        self.submit_together(labeling, [submission_id])
        return self.status(submission_id)

    def submit_together(self, labeling: Labeling, submission_ids: Sequence[str]) -> None:
        """Submit several submissions of one labeling, in the fewest batches that hold their shards. See `submit`."""
        held = self._with_sharing(submission_ids)
        with self.deployment.leased(*held) as lease:
            # First, because a shard whose create call left no record may have a batch, and must not be sent again.
            Sender(self.deployment, lease).recover_batches(submission_ids, held)
            dispatcher = Dispatcher(labeling, self.deployment, lease)
            planned: list[Shard] = []
            tombstones = len(self.ledger.tombstones.list_all(self.namespace, labeling.asset))
            in_doubt: list[str] = []
            for submission_id in submission_ids:
                submission, shards = self.ledger.submissions.get_with_shards(submission_id)
                if self._erase(submission, held, tombstones):
                    submission, shards = self.ledger.submissions.get_with_shards(submission_id)
                # Another account could not collect the batches in flight, so refuse before sending more.
                for shard in shards:
                    if shard.state in IN_FLIGHT:
                        self.deployment.provider_of(shard)
                own = [shard for shard in shards if shard.state is ShardState.PLANNED]
                if own and (sent := recover_planned(self.deployment, shards)):
                    in_doubt.append(submission_id)
                    own = [shard for shard in own if shard.shard_id not in sent]
                if submission.state is not SubmissionState.OPEN:
                    drop(self.deployment, own, Reason.CANCELED, "its submission is canceled")
                elif own:
                    own_models = {f"{shard.provider}/{shard.model}" for shard in own}
                    sent_by = self.deployment.sent_definition(labeling, submission)
                    if reason := reason_to_hold(self.deployment, labeling, sent_by, own_models, shards):
                        hold_unsent(self.deployment, submission, shards, reason)
                        continue
                    own = dispatcher.of_present_models(own)
                    if Breaker(labeling, self.deployment).stops_rest(submission, shards):
                        words = "its submission is stopped: nearly all answers so far do not fit"
                        drop(self.deployment, own, Reason.STOPPED, words)
                        continue
                    planned += dispatcher.give_up(own, late=self.deployment.is_late(submission))
            dispatcher.send(planned)
        for submission_id in in_doubt:
            self.recover_batches(submission_id)

    def recover_batches(self, submission_id: str) -> None:
        """Find batches whose create call left no record. Never sends. Raises LeaseError or StatusUnknownError."""
        held = self._with_sharing([submission_id])
        with self.deployment.leased(*held) as lease:
            Sender(self.deployment, lease).recover_batches([submission_id], held)

    def _with_sharing(self, submission_ids: Sequence[str]) -> set[str]:
        """Return these submissions and all that share a create call in doubt with them."""
        # All leases are taken at once. Two processes that took them one by one could wait for each other.
        return {*submission_ids, *(shard.submission_id for shard in self.ledger.shards.sent_with(submission_ids))}

    def resolve(self, shard_id: str, batch_id: str | None) -> Shard:
        """Record a person's decision on a shard in doubt: the id of its batch, or None for no batch (it is sent again).

        The decision applies to all shards of the same call. Raises LeaseError while a process sends them.
        """
        return resolve(self.deployment, shard_id, batch_id)

    def give_up(self, shard_id: str) -> Shard:
        """Record a person's decision to abandon the batch of a shard in flight, or its results.

        Its requests get the outcome `missing`, and the rest of its submission goes on and is materialized. They are
        sent again only on request (`plan` with `again`). Their highest cost stays reserved, because the bill is
        unknown. Late answers are used for a month (`poll_awaited`). The decision applies to all shards in the batch.
        Raises IllegalTransitionError unless the batch runs or has unreadable results, and LeaseError while a process
        works on its submission.
        """
        return give_up(self.deployment, shard_id)

    # poll -----------------------------------------------------------------------------------------------------------

    def poll(self, shards: Sequence[Shard], failed: Failed | None = None) -> dict[str, BatchReport]:
        """Poll the providers for these shards' batches and record the reports; return them by shard_id.

        Changes the state of shards whose batches ended; sends nothing. A provider that does not answer is left to the
        next time. An error of one provider or batch does not stop the others. `failed` is called for each error;
        without it, the first error is raised at the end. Raises LedgerError if the ledger fails.
        """
        return self._poller.poll(shards, failed)

    def poll_beside(self, status: Status) -> None:
        """Poll the batches of other submissions that may delay this one's planned shards.

        This is for a wait without other pollers, for example without a sensor. A provider that does not answer is left
        to the next time.
        """
        if any(shard.state is ShardState.PLANNED for shard in status.shards):
            self._poller.poll_beside(status.shards)

    def give_up_forgotten(self, shards: Sequence[Shard]) -> None:
        """Abandon batches that are overdue for a month, or that ended a month ago with a former account.

        `poll` does so for its batches.
        """
        self._poller.give_up_forgotten(shards)

    def poll_awaited(self, assets: Collection[str], asked_before: datetime) -> None:
        """Poll abandoned batches that may still end. Ended ones are collected, and their labels are materialized again.

        Polls batches of these assets whose last poll was before that time, for a month after they were abandoned.
        Later, vendors no longer have the results. A provider that does not answer is left to the next time.
        """
        self._poller.poll_awaited(assets, asked_before)

    def stop_late(self, submission_id: str, failed: Failed) -> None:
        """Stop batches that run past the submission's deadline, and repeat failed requests to stop.

        Answers so far are kept.
        """
        self._poller.stop_late(*self.ledger.submissions.get_with_shards(submission_id), failed)

    # collect --------------------------------------------------------------------------------------------------------

    def advance(self, labeling: Labeling, submission_id: str, *, keeps_pauses: bool = False) -> Status:
        """Advance the submission: recover, send, poll, collect, then plan the next wave or settle.

        Returns without waiting, after all steps that are possible now. Superseded submissions whose answers it needs
        are advanced first. If the definition has changed since the plan, sent requests are read by the earlier
        definition, and sending stops (`unsent`). With `keeps_pauses`, unreadable results are asked for again after
        their pause, else now.

        Raises LeaseError if another process works on it, and StatusUnknownError after the other shards are collected.
        Raises ConfigError, with raw results stored, if older code did not store the definition.
        """
        # Each of the steps below would take a lease. Only a killed erasure may have left something to do.
        if (status := self.status(submission_id)).is_done:
            return self.status(submission_id) if self._erase(status.submission) else status
        in_the_way = self._advance_awaited(labeling, status.submission, keeps_pauses=keeps_pauses)
        status = self._advance(labeling, status, keeps_pauses=keeps_pauses)
        if in_the_way is not None and not status.is_settled:
            raise in_the_way
        return status

    def _advance_awaited(self, labeling: Labeling, submission: Submission, *, keeps_pauses: bool) -> Exception | None:
        """Advance the submissions whose answers this one waits for; return the first error of one of them.

        They are superseded, so other processes may not handle them.
        """
        awaited = [submission]
        for each in awaited:
            known = {one.submission_id for one in awaited}
            awaited += map(
                self.ledger.submissions.get, self.ledger.submissions.find_unsettled(each.reused_from) - known
            )
        in_the_way: Exception | None = None
        # Each once, oldest first, because later ones may wait for it.
        for older in sorted(awaited[1:], key=lambda each: each.created_at):
            try:
                self._advance(labeling, self.status(older.submission_id), keeps_pauses=keeps_pauses)
            except LeaseError:
                # The process that works on it does the same.
                continue
            except (ProviderError, ConfigError, StatusUnknownError) as error:
                in_the_way = in_the_way or error
        return in_the_way

    def _advance(self, labeling: Labeling, status: Status, *, keeps_pauses: bool) -> Status:
        """Advance one submission, without the others. See `advance`."""
        submission_id = status.submission.submission_id
        # Each call that sends takes a lease and looks for batches, so it is skipped without shards to send.
        if status.may_send:
            try:
                self.submit(labeling, submission_id)
            except StatusUnknownError:
                self.collect(labeling, submission_id, keeps_pauses=keeps_pauses)
                raise
        if not (status := self.collect(labeling, submission_id, keeps_pauses=keeps_pauses)).may_send:
            return status
        status = self.submit(labeling, submission_id)
        # Shards that were answered in real time, or dropped, end at once.
        has_ended = any(shard.state in ENDED for shard in status.shards)
        return self.collect(labeling, submission_id, keeps_pauses=keeps_pauses) if has_ended else status

    def collect(self, labeling: Labeling, submission_id: str, *, keeps_pauses: bool = False) -> Status:
        """Advance without sending: a next wave is planned, and waits for `submit`."""
        outcome = self.collect_together(labeling, [submission_id], keeps_pauses=keeps_pauses)[submission_id]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def collect_together(
        self, labeling: Labeling, submission_ids: Sequence[str], *, keeps_pauses: bool = False
    ) -> dict[str, Status | Exception]:
        """Do `collect` for several submissions of one labeling; return the status or the error of each.

        Raises LeaseError, with no effect, if another process works on one of them.
        """
        with self.deployment.leased(*submission_ids) as lease:
            settler = Settler(
                labeling, self.deployment, self._poller, lease, self._erase, escalate, keeps_pauses=keeps_pauses
            )
            return settler.settle(submission_ids)

    # labels ---------------------------------------------------------------------------------------------------------

    def labels(self, labeling: Labeling, submission_id: str, *, run_id: str = "", reread: bool = False) -> Labeled:
        """Return the labeled rows and the rejects of a settled submission.

        With `reread`, raw result lines are read again by the present parser, so that its fixes take effect at no cost.
        """
        return self._assembler(labeling, submission_id, reread=reread).labels(run_id=run_id, reread=reread)

    def label_batches(
        self, labeling: Labeling, submission_id: str, *, run_id: str = "", reread: bool = False
    ) -> Generator[Labeled, None, None]:
        """Yield the labels in parts, for tables larger than memory. The rows are in arbitrary order. See `labels`."""
        return self._assembler(labeling, submission_id, reread=reread).batches(run_id=run_id, reread=reread)

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
        """Write the labels as Parquet files that replace the files in the folders: by the labeling's workers, or here.

        A folder is a path or URL, mostly for one partition, as in `s3://bucket/ticket_labels/day=2026-01-01`. Spark and
        others read the folder above it as a table with the column `day`. The rows are in arbitrary order. See `labels`.
        """
        assembler = self._assembler(labeling, submission_id, reread=reread)
        assembler.read_again(reread=reread)
        return write_labels(assembler, PayloadStore(folder), PayloadStore(rejects_folder), run_id)

    def _assembler(self, labeling: Labeling, submission_id: str, *, reread: bool) -> LabelAssembler:
        status = self.status(submission_id)
        sent = self.deployment.sent_definition(labeling, status.submission)
        return self.assembler(KnownSubmission(status, sent), reread=reread)

    def assembler(self, known: KnownSubmission, *, reread: bool) -> LabelAssembler:
        """Return the assembler of a settled submission's labels, at once or in parts; see `labels`.

        Data in `known` is not read from the ledger again.
        """
        status, labeling = known.status, known.sent.labeling
        submission_id = status.submission.submission_id
        if self._erase(status.submission, tombstones=known.tombstones):
            status = self.status(submission_id)
        if not status.submission.is_settled:
            raise LLMBatchError(
                f"Submission {submission_id} is not complete; it has no labels yet. Wait for its batches."
            )
        if reread:
            known.sent.refuse_unknown()
        assembler = make_assembler(self.deployment, labeling, status, Collector(labeling, self.deployment))
        assembler = replace(assembler, merges=not reread)
        if assembler.restore():
            # Fewer requests have an answer than the settlement has counted.
            self.ledger.submissions.settle(submission_id, **assembler.settlement())
        return assembler

    def now(self) -> datetime:
        return self.deployment.clock()

    # look and stop --------------------------------------------------------------------------------------------------

    def status(self, submission_id: str) -> Status:
        return Status(*self.ledger.submissions.get_with_shards(submission_id))

    def unsent(self, submission_id: str) -> UnsentReasons:
        """Return why requests of a submission are not sent, or not again, each with the next step."""
        return find_unsent(self.ledger.holds.of([submission_id]).get(submission_id, ()))

    def having_unsent(self, submission_ids: Collection[str]) -> set[str]:
        """Return the submissions among these for which `unsent` has a reason."""
        return set(self.ledger.holds.of(submission_ids, *UNSENT.values()))

    def latest(self, asset: str, partition: str = "") -> Submission | None:
        """Return the newest submission of a partition, or None."""
        history = self.ledger.submissions.of_partition(self.namespace, asset, partition)
        return history[0] if history else None

    def left_out_rows(self, submission: Submission) -> tuple[int, int, int]:
        """Return the numbers of empty rows, of other rows that were erased, and of rows with unreadable images."""
        metadata = self.payloads.table_metadata(submission.manifest)
        empty, erased, unreadable = (int(metadata.get(name.encode(), 0)) for name in COUNTS)
        return empty, erased, unreadable

    def masked_values(self, submission: Submission) -> Mapping[str, int] | None:
        """Return the number of values that placeholders replace in the rows, by kind; None without a mask."""
        stored = self.payloads.table_metadata(submission.manifest).get(MASKED.encode())
        return None if stored is None else json.loads(stored)

    def cancel(self, submission_id: str) -> Status:
        """Cancel a submission: stop sending, ask running batches to stop, and keep finished rows.

        Batches of earlier submissions that it replaced are stopped, too, because they are no longer needed. If a
        provider cannot be asked now, later polls ask again. Other errors are raised after all batches were asked.
        """
        held = self._with_sharing([submission_id])
        with self.deployment.leased(*held) as lease:
            self.ledger.submissions.set_state(submission_id, SubmissionState.CANCELED)
            errors: list[Exception] = []
            try:
                Sender(self.deployment, lease).recover_batches([submission_id], held)
            # A shard in doubt must not keep the others running.
            except LLMBatchError as error:
                errors.append(error)
            shards = self.ledger.shards.of_submission(submission_id)
            drop(self.deployment, shards, Reason.CANCELED, "its submission is canceled")
            replaced = [
                shard for older in self._replaced_by(submission_id) for shard in self.ledger.shards.of_submission(older)
            ]
            self._poller.stop([*shards, *replaced], lambda _, error: errors.append(error))
            if lasting := [error for error in errors if not isinstance(error, TransientError)]:
                raise lasting[0]
            return self.status(submission_id)

    def _replaced_by(self, submission_id: str) -> list[str]:
        """Return the ids of older, canceled submissions of the partition, which this one replaced."""
        submission = self.ledger.submissions.get(submission_id)
        history = self.ledger.submissions.of_partition(submission.namespace, submission.asset, submission.partition)
        older = history[[each.submission_id for each in history].index(submission_id) + 1 :]
        return [each.submission_id for each in older if each.state is SubmissionState.CANCELED]

    # erase ----------------------------------------------------------------------------------------------------------

    @property
    def eraser(self) -> Eraser:
        """The eraser of this deployment's rows."""
        from dagster_llm_batch.upkeep.erase import Eraser  # noqa: PLC0415 - few need it

        return Eraser(self.deployment)

    def _erase(self, submission: Submission, held: Collection[str] = (), tombstones: int | None = None) -> bool:
        """Erase pending rows of a submission before it is sent or materialized; return whether any were erased.

        The caller holds the leases of `held`. `tombstones` is the number of tombstones of the asset.
        """
        if tombstones is None:
            tombstones = len(self.ledger.tombstones.list_all(self.namespace, submission.asset))
        if not tombstones or submission.has_applied(tombstones):
            return False
        own = submission.submission_id
        with nullcontext() if own in held else self.deployment.leased(own):
            self.eraser.erase_submission(own, {own, *held})
            self.eraser.erase_at_providers(submission.asset)
        return True

    # tidy up --------------------------------------------------------------------------------------------------------

    def prune(self, older_than: timedelta, raw_older_than: timedelta | None = None, *, delete: bool = False) -> Pruning:
        """Return the stored files that are no longer needed, by the rule of `prune.py`; remove them with `delete`.

        Answers of pruned submissions cannot be reused: if their rows come back, they are sent and paid again. With
        `raw_older_than`, requests and raw results of labels that were materialized longer ago are removed, too. Once
        the provider has deleted these results, they cannot be read again.
        """
        pruner = Pruner(self.ledger, self.payloads, self.namespace, self.deployment.clock)
        return pruner.prune(older_than, raw_older_than, delete=delete)
