"""The assets of labels and rejects. If materialized too early, the run succeeds and records an observation.

The IO manager gets tables, or streams with `frame="batches"`, which need not fit into memory.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import dagster as dg

from dagster_llm_batch.assets.dataset import Dataset
from dagster_llm_batch.assets.labeled_tables import LabeledTables, labeled_streams, labeled_tables
from dagster_llm_batch.assets.landing_wait import advance
from dagster_llm_batch.assets.output import OutputWriter, stored_by
from dagster_llm_batch.assets.partitions import (
    begin_downstream,
    each_partition,
    is_of_range,
    materialize_result,
    others_at_work,
    partitions_of,
)
from dagster_llm_batch.assets.provenance import Provenance
from dagster_llm_batch.assets.restored_values import RestoredValues
from dagster_llm_batch.check_events import SentChecks, all_partitions_evaluations, unjudged_evaluations
from dagster_llm_batch.checks import Check, CheckOutcome, PartitionFacts, check_specs, checks_of
from dagster_llm_batch.engine import Status
from dagster_llm_batch.engine.condition_facts import of_holds
from dagster_llm_batch.engine.conditions import ConditionKind, find_conditions
from dagster_llm_batch.engine.seams import find_audit_history
from dagster_llm_batch.errors import (
    ConfigError,
    DefinitionChangedError,
    LeaseError,
    LLMBatchError,
    ProviderError,
    RefusedError,
)
from dagster_llm_batch.label_stats import LabelStats
from dagster_llm_batch.loop.preview import output_basis_of
from dagster_llm_batch.loop.status import advise_on_change, find_unsent
from dagster_llm_batch.metadata import (
    SUBMISSION_KEY,
    audit_history_metadata,
    cascade_metadata,
    column_lineage,
    estimate_metadata,
    labels_metadata,
    progress_observations,
    rejects_metadata,
    row_links,
    rows_metadata,
    shares_metadata,
    status_metadata,
)
from dagster_llm_batch.progress import pace_of, progress_text, unread_text
from dagster_llm_batch.states import IN_FLIGHT, ShardState
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.text import cell_text, short_run
from dagster_llm_batch.types import Outcome

if TYPE_CHECKING:
    from dagster_llm_batch.core.forecast import Learned
    from dagster_llm_batch.core.shares import AuditedAnswers
    from dagster_llm_batch.engine import Labeling
    from dagster_llm_batch.engine.engine import Engine, KnownSubmission

__all__ = ["labels_asset"]

# If the run dies, a sensor's tick must find the materializations of all of these.
_DELIVERED_AT_ONCE = 25


def labels_asset(dataset: Dataset) -> dg.AssetsDefinition:
    """Return the definition of `<name>` and `<name>_rejects`."""
    labels, rejects = dataset.labels_spec, dataset.rejects_spec
    landing = _Landing(dataset, labels, rejects)

    # Without `can_subset=True`, checks of a skipped output would fail the step.
    @dg.multi_asset(
        name=dataset.key.to_python_identifier(),
        specs=stored_by(dataset.io_manager_key, labels, rejects),
        check_specs=landing.checks,
        can_subset=True,
        required_resource_keys={
            dataset.resource_key,
            dataset.io_manager_key,
            # Restored values are read from the rows.
            *(dataset.rows_resource_keys if dataset.restored else ()),
        },
        backfill_policy=dataset.backfill_policy,
        op_tags=dataset.options.op_tags,
    )
    @dataset.computed_by
    def collect(context: dg.AssetExecutionContext) -> Iterator[Any]:
        if (summary := all_partitions_evaluations(context, dataset.partitions_def)) is not None:
            yield from summary
            return
        engine = dataset.engine(context)
        with OutputWriter(context, dataset.io_manager_key, dataset.frame) as writer:
            run = _Run(writer, SentChecks(dataset.batch_key), Provenance(context, dataset.batch_key))
            if is_of_range(context):
                run.settled, run.refused = landing.send_together(context, engine, list(partitions_of(context)))
                run.unsent = engine.having_unsent([status.submission.submission_id for status in run.settled.values()])
            try:
                landed = each_partition(
                    context,
                    lambda partition: landing.land(context, engine, partition, run),
                    lambda partition, reason: engine.activity.note_failed(
                        dataset.labeling.asset, partition or "", reason
                    ),
                    writer.may_begin,
                )
                yield from begin_downstream(context, dataset.mode, landed)
            finally:
                run.mark_delivered(engine)

    return collect


@dataclass(frozen=True)
class _Settled:
    """A settled submission whose labels are to be materialized.

    Attributes:
        status: Its status, which is settled.
        reread: True: it was settled before this run, so its raw results are read again.
        all_sent: True: the ledger is known to hold back no requests of it.
        tombstones: The number of tombstones of its asset; None: not read from the ledger.
    """

    status: Status
    reread: bool = False
    all_sent: bool = False
    tombstones: int | None = None


@dataclass(frozen=True)
class _NotReady:
    """The reason why a partition cannot be materialized yet, and the metadata of the observation that records it.

    Attributes:
        status: The status after this run advanced the submission; None if it did not try.
    """

    text: str
    metadata: Mapping[str, Any]
    status: Status | None = None


@dataclass
class _Run:
    """The state that all partitions of one run share.

    Attributes:
        sent: The checks of submissions that failed, and that pass when their batches are sent.
        provenance: The tags by which Dagster finds stale partitions.
        settled: By partition, the submissions that this run settled first, in the order of their materializations.
        refused: By partition, the error that stops it. The provider reports it only the first time.
        unsent: The settled submissions with requests that were not sent.
        looked_up: The submissions of the last common query to the ledger.
        replaced: The submissions in `looked_up` whose partition has a newer submission.
        tombstones: The asset's number of tombstones at the time of that query.
        landed: The submissions that are materialized, but not yet marked as delivered in the ledger.
        learned: The ledger's experience with estimates, by definition. It sums up many submissions, so this run
            does not change it.
    """

    writer: OutputWriter
    sent: SentChecks
    provenance: Provenance
    settled: dict[str, Status] = field(default_factory=dict)
    refused: dict[str, LLMBatchError] = field(default_factory=dict)
    unsent: set[str] = field(default_factory=set)
    looked_up: set[str] = field(default_factory=set)
    replaced: Collection[str] = ()
    tombstones: int = 0
    landed: list[str] = field(default_factory=list)
    learned: "dict[tuple[str, ...], Learned | None]" = field(default_factory=dict)

    def take_settled(self, engine: "Engine", asset: str, partition: str) -> _Settled | None:
        """Take out the submission that this run settled for a partition; None without one, or if a newer one exists.

        One query to the ledger covers all partitions that are begun together.
        """
        if partition not in self.settled:
            return None
        if not self.writer.may_begin() or self.settled[partition].submission.submission_id not in self.looked_up:
            next_ones = islice(self.settled.values(), self.writer.partitions_at_once)
            group = {status.submission.submission_id for status in next_ones}
            self.replaced = engine.ledger.submissions.find_newer(group)
            self.tombstones = len(engine.ledger.tombstones.list_all(engine.namespace, asset))
            # This comes last, so that a group whose query failed does not count as looked up.
            self.looked_up = group
        status = self.settled.pop(partition)
        submission_id = status.submission.submission_id
        # Older labels would replace another run's newer labels.
        if submission_id in self.replaced:
            return None
        return _Settled(status, all_sent=submission_id not in self.unsent, tombstones=self.tombstones)

    def learn(self, engine: "Engine", labeling: "Labeling") -> "Learned | None":
        """Return the experience of earlier submissions with estimates; see Deployment.learned."""
        deployment = engine.deployment
        key = (labeling.model, deployment.configuration(labeling), labeling.prompt_version)
        if key not in self.learned:
            self.learned[key] = deployment.learned(labeling)
        return self.learned[key]

    def add_landed(self, engine: "Engine", submission_id: str) -> None:
        """Note that Dagster has stored the materialization. The ledger is updated for many at once: commits are slow.

        If the run dies before, they stay undelivered, and the sensor finds the materializations by their metadata.
        """
        self.landed.append(submission_id)
        if len(self.landed) >= _DELIVERED_AT_ONCE:
            # On an error, the labels are materialized all the same. The next update of the ledger includes them.
            with suppress(LLMBatchError):
                self.mark_delivered(engine)

    def mark_delivered(self, engine: "Engine") -> None:
        """Mark the materialized submissions as delivered, in one transaction; leave superseded ones to the sensor."""
        if self.landed:
            # Another run may have materialized newer labels between this run's query and its own materialization.
            newer = engine.ledger.submissions.find_newer(self.landed)
            if newer:
                engine.ledger.submissions.take_back_delivery({*newer, *set().union(*newer.values())})
            engine.ledger.submissions.mark_delivered(*(each for each in self.landed if each not in newer))
            self.landed.clear()


@dataclass(frozen=True)
class _Begun:
    """Tables of a partition that the writer got. Each function in `waits` returns when its asset's table is stored."""

    stats: LabelStats
    waits: Mapping[dg.AssetKey, Callable[[], Mapping[str, Any]]]
    restored: RestoredValues


def _shards_behind(engine: "Engine", submission: Submission, stats: LabelStats) -> list[Shard]:
    """Return the shards that may have the results of unanswered rows, in their present state in the ledger.

    Earlier submissions count, too, since their answers are reused. The present state is needed because reading the
    results may have set a cause, for shards whose files are lost.
    """
    if not stats.unanswered:
        return []
    shards = engine.ledger.shards.of_submissions([submission.submission_id, *submission.reused_from])
    return [shard for of_one in shards.values() for shard in of_one]


class _Landing:
    """Materializes one partition after the other."""

    def __init__(self, dataset: Dataset, labels: dg.AssetSpec, rejects: dg.AssetSpec) -> None:
        self._dataset = dataset
        self._labels = labels
        self._rejects = rejects
        self.checks = check_specs(labels.key, dataset.checks, dataset.partitions_def, dataset.labeling)

    def land(
        self, context: dg.AssetExecutionContext, engine: "Engine", partition: str | None, run: _Run
    ) -> Iterator[Any]:
        """Return the events of one partition: its tables if it is settled, else an observation of its progress.

        If it was settled before this run, its raw results are read again. The writer may get the tables before the
        first event is requested; the events wait until the tables are stored.
        """
        if (refusal := run.refused.pop(partition or "", None)) is not None:
            raise refusal
        found = run.take_settled(engine, self._dataset.name, partition or "") or self._settle(
            context, engine, partition
        )
        if found.status is not None:
            run.sent.judge(context, engine, partition, found.status)
        if isinstance(found, _NotReady):
            return self._observe(context, partition, found)
        try:
            return self._land(context, engine, partition, found, run)
        except DefinitionChangedError as error:
            # A further run would fail in the same way, so the sensor stops requesting runs.
            engine.activity.note_stranded(found.status.submission.submission_id, str(error))
            raise

    def _settle(
        self, context: dg.AssetExecutionContext, engine: "Engine", partition: str | None
    ) -> _Settled | _NotReady:
        """Advance the newest submission of a partition as far as it goes now."""
        dataset = self._dataset
        history = engine.ledger.submissions.of_partition(engine.namespace, dataset.name, partition or "")
        # "Materialize all" must not fail if it comes too early. With skipped outputs and an observation, it succeeds.
        if not history:
            text = "nothing was submitted yet"
            context.log.warning(f"{partition or 'labels'}: {text}; materialize {dataset.batch_key.to_user_string()}.")
            return _NotReady(text, {"llm_batch/progress": text})
        submission, *older = history
        # A run that plans many partitions sends them together. If one of them were sent here, the batch of the others
        # might be too small.
        if self._is_being_sent(context, engine, submission):
            text = f"run {short_run(submission.run_id)} is at work on its submission"
            context.log.info(f"Not ready: {text}.")
            return _NotReady(text, {"llm_batch/progress": text, SUBMISSION_KEY: submission.submission_id})
        self._finish_superseded(context, engine, older)
        status = advance(context, dataset, engine, submission.submission_id)
        if status.is_settled:
            # Superseded submissions are not materialized once they are settled. A run that finds one unsettled
            # therefore does not need to wait for other runs.
            if not submission.is_settled and engine.ledger.submissions.find_newer([submission.submission_id]):
                return self._settle(context, engine, partition)
            return _Settled(status, reread=submission.is_settled)
        its_pace = pace_of(engine, status)
        text, until = progress_text(status, its_pace), "its batches end"
        if (unread := unread_text(engine, status)) is not None:
            text, until = f"{text}; {unread}", "their results can be read"
        context.log.info(f"Not ready: {text}. The sensor materializes the labels when {until}.")
        metadata = status_metadata(status, engine.provider(submission.provider), its_pace)
        return _NotReady(text, metadata, status)

    def _observe(self, context: dg.AssetExecutionContext, partition: str | None, found: _NotReady) -> Iterator[Any]:
        """Yield the observation and check results of a partition whose labels cannot be materialized yet."""
        yield from progress_observations(context.instance, self._dataset.key, partition, found.metadata)
        yield from unjudged_evaluations(context, partition, f"No labels are materialized yet: {found.text}.")

    def _land(
        self,
        context: dg.AssetExecutionContext,
        engine: "Engine",
        partition: str | None,
        settled: _Settled,
        run: _Run,
    ) -> Iterator[Any]:
        """Pass the tables to the writer and return the events. Streams are passed when the events are requested."""
        known = self._known(engine, settled)
        run_id, reread = context.run.run_id, settled.reread
        shares = engine.deployment.shares(known.sent.labeling, settled.status.submission)
        restored = self._restored(context, partition, known.sent.labeling, shares)

        def begin(tables: LabeledTables) -> Iterator[Any]:
            begun = self._begin(context, partition, replace(tables, labels=restored.fill(tables.labels)), run, restored)
            return self._tell(context, engine, partition, known, begun, run, all_sent=settled.all_sent)

        def land_streams() -> Iterator[Any]:
            with labeled_streams(engine, known, restored.look, run_id=run_id, reread=reread) as streams:
                yield from begin(streams)

        if self._dataset.frame == "batches":
            return land_streams()
        return begin(labeled_tables(engine, known, restored.look, run_id=run_id, reread=reread))

    def _restored(
        self,
        context: dg.AssetExecutionContext,
        partition: str | None,
        sent: "Labeling",
        shares: "AuditedAnswers | None",
    ) -> RestoredValues:
        """Return the values that replace placeholders."""
        columns = self._dataset.restored if self._labels.key in context.selected_asset_keys and sent.mask else []
        # The labels are the reader, since rejects do not read rows, and their key may be the first.
        upstream = replace(self._dataset.upstream(context, partition), reader=self._dataset.key)
        every_row = replace(self._dataset, when=None)
        return RestoredValues(sent, columns, lambda: every_row.read_rows(context, upstream), shares)

    def _known(self, engine: "Engine", settled: _Settled) -> "KnownSubmission":
        """Return the facts from which a submission's labels are made. Raises DefinitionChangedError if they do not fit
        the present definition.
        """
        # Loading a code location must not import the engine.
        from dagster_llm_batch.engine.engine import KnownSubmission  # noqa: PLC0415

        submission = settled.status.submission
        sent = engine.deployment.sent_definition(self._dataset.labeling, submission)
        self._refuse_other_columns(submission, sent.labeling)
        # A result with only rejects would replace existing labels.
        if sent.changes and set(submission.outcomes) == {Outcome.CANCELED.value}:
            raise DefinitionChangedError(f"{advise_on_change(submission, sent.changes)}. Nothing was materialized.")
        return KnownSubmission(settled.status, sent, settled.tombstones)

    def _refuse_other_columns(self, submission: Submission, sent: "Labeling") -> None:
        """Raise DefinitionChangedError for labels with other columns, which would break the table and its readers."""
        gap = self._dataset.labeling.column_gap(sent)
        if gap is None:
            return
        submission_id, batch_key = submission.submission_id, self._dataset.batch_key.to_user_string()
        raise DefinitionChangedError(
            f"The labels of submission {submission_id} have other columns than {self._dataset.key.to_user_string()} "
            f"has by its present definition: {gap}. The labels were not materialized, and nothing is lost. "
            f"`dagster-llm-batch export {self._dataset.name} --submission {submission_id} "
            f"-o {submission_id[:8]}.parquet` writes them to a file. "
            f"Materialize {batch_key}{f' for {submission.partition}' if submission.partition else ''} for labels by "
            "the present definition; or put the earlier one back, and materialize the labels."
        )

    def _begin(
        self,
        context: dg.AssetExecutionContext,
        partition: str | None,
        tables: LabeledTables,
        run: _Run,
        restored: RestoredValues,
    ) -> _Begun:
        """Pass the selected tables to the writer."""
        both = ((self._rejects, tables.rejects), (self._labels, tables.labels))
        wanted = context.selected_asset_keys
        waits = {spec.key: run.writer.begin(spec, partition, table) for spec, table in both if spec.key in wanted}
        return _Begun(tables.stats, waits, restored)

    def _tell(
        self,
        context: dg.AssetExecutionContext,
        engine: "Engine",
        partition: str | None,
        known: "KnownSubmission",
        begun: _Begun,
        run: _Run,
        *,
        all_sent: bool,
    ) -> Iterator[Any]:
        """Wait until each table is stored, and yield its events.

        With `all_sent`, the ledger is not queried for requests that were not sent.
        """
        dataset, stats, status, sent = self._dataset, begun.stats, known.status, known.sent
        labeling, submission_id = sent.labeling, status.submission.submission_id
        links = row_links(context)
        labels, rejects = dataset.key.to_user_string(), self._rejects.key.to_user_string()
        if (wait := begun.waits.get(self._rejects.key)) is not None:
            logged = wait()
            behind = partial(links.table, rejects, partition=partition)
            metadata = {**rejects_metadata(stats, labeling, behind), **logged}
            tags = run.provenance.tags(self._rejects.key, partition, status.submission, sent)
            yield from materialize_result(
                context, self._rejects.key, partition, metadata=metadata, version=submission_id, tags=tags
            )
        if (wait := begun.waits.get(self._labels.key)) is not None:
            logged = {**wait(), **(begun.restored.metadata if dataset.restored else {})}
            if (stays := begun.restored.warning) is not None:
                context.log.warning(f"{partition or 'labels'}: {stays}")
            self._measure(context, engine, submission_id)
            levels = engine.deployment.levels(labeling, status.submission)
            shares = engine.deployment.shares(labeling, status.submission)
            tracked = find_audit_history(engine.deployment, labeling, status.submission, levels)
            metadata = {
                **labels_metadata(stats, status, labeling, engine, links.table(labels, partition=partition)),
                **cascade_metadata(levels, shares, stats, status),
                **shares_metadata(shares),
                **audit_history_metadata(tracked),
                **estimate_metadata(
                    status.submission, run.learn(engine, labeling), output_basis_of(engine.deployment, labeling)
                ),
                **logged,
            }
            holds = [] if all_sent else engine.ledger.holds.of([submission_id]).get(submission_id, [])
            unsent = find_unsent(holds)
            for name, reason in (("stopped", unsent.stopped), ("over_budget", unsent.over_budget)):
                if reason is not None:
                    metadata[f"llm_batch/{name}"] = cell_text(reason, limit=1_000)
                    context.log.error(f"{partition or 'labels'}: {name}: {reason}")
            conditions = find_conditions(of_holds(status.submission, holds, engine.now()))
            if not sent.changes:
                # Requests held back for a changed definition do not matter once that definition is restored.
                conditions = [condition for condition in conditions if condition.kind is not ConditionKind.HELD]
            if sent.changes:
                metadata["llm_batch/changed_since_sent"] = ", ".join(sent.changes)
                context.log.warning(
                    f"{partition or 'labels'}: these labels follow the earlier definition of their submission; "
                    f"changed since: {', '.join(sent.changes)}.{'' if unsent.held is None else f' {unsent.held}.'}"
                )
            facts = PartitionFacts(
                stats=stats,
                rejects=stats.explain_rejects(_shards_behind(engine, status.submission, stats)),
                status=status,
                labeling=labeling,
                wanted=dataset.checks,
                conditions=conditions,
                levels=levels,
                shares=shares,
                tracked=tracked,
            )
            if dataset.rows_key is not None:
                metadata["dagster/column_lineage"] = column_lineage(labeling, dataset.rows_key)
            yield from materialize_result(
                context,
                dataset.key,
                partition,
                metadata=metadata,
                version=begun.restored.version(stats.version),
                tags=run.provenance.tags(dataset.key, partition, status.submission, sent),
                checks=self.checks,
                check_results=[
                    self._judge(check, facts, partial(links.table, partition=partition))
                    for check in checks_of(dataset.checks, dataset.labeling)
                ],
            )
            run.add_landed(engine, submission_id)

    def _judge(self, check: Check, facts: PartitionFacts, link: Callable[..., str | None]) -> CheckOutcome:
        """Return the result of one check, with the link to the rows behind it."""
        outcome, rows = check.judge(check, facts), check.rows
        if rows is None:
            return outcome
        table = self._rejects.key if rows.table == "rejects" else self._dataset.key
        url = link(table.to_user_string(), *rows.filters, order=rows.order)
        return replace(outcome, metadata={**outcome.metadata, **rows_metadata(url)})

    def send_together(
        self, context: dg.AssetExecutionContext, engine: "Engine", partitions: list[str]
    ) -> tuple[dict[str, Status], dict[str, LLMBatchError]]:
        """Advance all partitions as far as possible without sending, then send retryable requests in few batches.

        Returns the submissions that are settled now, and the errors that stop others, both by partition. Such an error
        is raised when its partition is to be materialized. Temporary errors are left out, and tried again then.
        """
        labeling = self._dataset.labeling
        histories = engine.ledger.submissions.of_partitions(engine.namespace, labeling.asset, partitions)
        newest = {history[0].submission_id: history for history in histories.values() if history}
        going = [submission_id for submission_id, history in newest.items() if not history[0].is_settled]
        shards = engine.ledger.shards.of_submissions(going)
        ready = []
        for submission_id in going:
            submission, *older = newest[submission_id]
            if not self._is_being_sent(context, engine, submission, shards[submission_id]):
                with suppress(LLMBatchError):
                    self._finish_superseded(context, engine, older)
                    ready.append(submission_id)
        outcomes = self._collect_together(engine, ready)
        collected = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Status)}
        planned = [key for key, status in collected.items() if status.states[ShardState.PLANNED.value]]
        if len(planned) > 1:
            with suppress(LLMBatchError):
                engine.submit_together(labeling, planned)
        settled = {status.submission.partition: status for status in collected.values() if status.is_settled}
        refused: dict[str, LLMBatchError] = {
            newest[key][0].partition: outcome for key, outcome in outcomes.items() if isinstance(outcome, RefusedError)
        }
        return {partition: settled[partition] for partition in partitions if partition in settled}, refused

    def _collect_together(self, engine: "Engine", submission_ids: list[str]) -> dict[str, Status | Exception]:
        """Collect submissions; return the status of each, or the error that stops it."""
        labeling = self._dataset.labeling
        outcomes: dict[str, Status | Exception] = {}
        try:
            outcomes = engine.collect_together(labeling, submission_ids)
        except LeaseError:
            # Another process works on one of them, but not on the others.
            for submission_id in submission_ids:
                with suppress(LLMBatchError):
                    outcomes[submission_id] = engine.collect(labeling, submission_id)
        except LLMBatchError:
            # For example, the ledger is unavailable.
            pass
        return outcomes

    def _is_being_sent(
        self,
        context: dg.AssetExecutionContext,
        engine: "Engine",
        submission: Submission,
        shards: Sequence[Shard] | None = None,
    ) -> bool:
        """Return whether another run has planned it and will send it together with others that it still plans."""
        if submission.is_settled or submission.run_id in (None, context.run.run_id):
            return False
        shards = engine.ledger.shards.of_submission(submission.submission_id) if shards is None else shards
        unsent = any(shard.wave == 1 and shard.state in (ShardState.PLANNED, ShardState.SUBMITTING) for shard in shards)
        return unsent and submission.run_id in engine.activity.runs_at_work()

    def _measure(self, context: dg.AssetExecutionContext, engine: "Engine", submission_id: str) -> None:
        if self._dataset.resource(context).telemetry:
            from dagster_llm_batch.telemetry import measure  # noqa: PLC0415 - its API is an extra

            measure(engine, self._dataset.labeling, submission_id)

    def _finish_superseded(
        self, context: dg.AssetExecutionContext, engine: "Engine", earlier: Sequence[Submission]
    ) -> None:
        """Collect the billed results of a partition's earlier submissions: their answers can be reused.

        A submission that another run may be materializing is left to the sensor, which sees the end of that run.
        """
        labeling = self._dataset.labeling
        for older in earlier:
            if older.delivered_at is not None or (older.is_settled and others_at_work(context, self._dataset.key)):
                continue
            try:
                status = engine.advance(labeling, older.submission_id)
                done = status.is_settled
            except LeaseError:
                continue
            except ConfigError as error:
                # Older code did not store the submission's definition. Its raw results are archived already.
                context.log.info(str(error))
                done = not any(
                    shard.state in IN_FLIGHT for shard in engine.ledger.shards.of_submission(older.submission_id)
                )
            except ProviderError as error:
                # The error concerns only this submission. The newest waits for it only if it uses its answers.
                context.log.warning(f"Submission {older.submission_id}, which is superseded, waits: {error}")
                continue
            if done:
                self._measure(context, engine, older.submission_id)
                engine.ledger.submissions.mark_delivered(older.submission_id)
