"""The asset that submits. Its materialization records the requests, their batches and their expected cost."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from dagster_llm_batch._dagster_private import asset_graph, repository_of
from dagster_llm_batch.assets.asset_rows import WHEN_KEY
from dagster_llm_batch.assets.dataset import Dataset, datasets_in
from dagster_llm_batch.assets.partitions import EachPartition, begin_downstream, materialize_result
from dagster_llm_batch.assets.upstream import UpstreamReader
from dagster_llm_batch.check_events import all_partitions_evaluations
from dagster_llm_batch.checks import CheckOutcome, sent_outcome, sent_spec
from dagster_llm_batch.config import CheckedConfig
from dagster_llm_batch.engine import Status
from dagster_llm_batch.engine.condition_facts import of_status
from dagster_llm_batch.engine.conditions import find_conditions
from dagster_llm_batch.errors import LedgerError, LLMBatchError
from dagster_llm_batch.loop.asked_again import find_asked_again
from dagster_llm_batch.loop.preview import output_basis_of, parameter_warnings
from dagster_llm_batch.loop.status import NEW_LEDGER_TAG, advise_on_unknown
from dagster_llm_batch.metadata import (
    SUBMISSION_KEY,
    end_metadata,
    estimate_metadata,
    masked_metadata,
    plan_metadata,
    submission_metadata,
)
from dagster_llm_batch.progress import progress_text
from dagster_llm_batch.states import ShardState
from dagster_llm_batch.storage.ledger.batches import count_refused
from dagster_llm_batch.storage.ledger.records import Submission

if TYPE_CHECKING:
    from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

    from dagster_llm_batch.engine.engine import Engine

__all__ = ["SubmitConfig", "newest_submission", "submission_asset"]

# Begins the name of the folder that `dagster dev` makes without DAGSTER_HOME. Its instance is not `is_ephemeral`.
_TEMPORARY_HOME = ".tmp_dagster_home_"


class SubmitConfig(CheckedConfig):
    """Run configuration of `<name>_batch`."""

    again: bool = Field(
        default=False,
        description="Ask again for rows that have no label. Rows that have one are not asked, or paid, again.",
    )


def submission_asset(dataset: Dataset) -> dg.AssetsDefinition:
    """Return the asset of `<name>_batch`."""
    spec = dataset.batch_spec
    check = sent_spec(dataset.batch_key, dataset.partitions_def)

    @dg.multi_asset(
        name=dataset.batch_key.to_python_identifier(),
        specs=[spec],
        check_specs=[check],
        can_subset=True,
        required_resource_keys={
            dataset.resource_key,
            *dataset.rows_resource_keys,
            # The IO manager may hold the rows in memory. It is also checked for the tables that it can store.
            dataset.io_manager_key,
        },
        backfill_policy=dataset.backfill_policy,
        **dataset.options.op,
    )
    def submit(context: dg.AssetExecutionContext, config: SubmitConfig) -> Iterator[Any]:
        if (summary := all_partitions_evaluations(context, dataset.partitions_def)) is not None:
            yield from summary
            return
        engine = dataset.engine(context)
        # A definition that cannot work is refused before any row is read.
        graph = _code_location(context, dataset)
        engine.check(dataset.labeling)
        _warn_of_parameters(context, engine, dataset)
        _refuse_other_ledger(context, engine, dataset)
        _warn_of_temporary_home(context, dataset)
        provider = engine.provider(dataset.labeling.provider)

        def plan(partition: str | None) -> tuple[Submission, UpstreamReader]:
            dataset.check_sink(getattr(context.resources, dataset.io_manager_key), partition, context.instance, graph)
            upstream = dataset.upstream(context, partition)
            with dataset.read_rows(context, upstream) as rows:
                submission = engine.plan(
                    dataset.with_gold(upstream),
                    rows,
                    partition=partition or "",
                    run_id=context.run.run_id,
                    again=config.again,
                )
            return submission, upstream

        # All partitions are planned before the first is reported, so they share one result.
        learned = cache(lambda: engine.deployment.learned(dataset.labeling))

        def sent(partition: str | None, planned: tuple[Submission, UpstreamReader]) -> Iterator[Any]:
            submission, upstream = planned
            step = engine.status if are_sent else partial(engine.submit, dataset.labeling)
            status = step(submission.submission_id)
            _log(context, partition, status)
            skipped, erased, unreadable = engine.left_out_rows(submission)
            _warn_of_files(context, dataset, partition, unreadable)
            if skipped:
                context.log.warning(
                    f"{_where(partition)}{skipped:,} of {submission.rows:,} rows are empty and not sent; "
                    f"they will be in {dataset.rejects_key.to_user_string()}."
                )
            if erased:
                context.log.warning(
                    f"{_where(partition)}{erased:,} rows more came that were erased, and are left out. "
                    "`dagster-llm-batch erase --undo` lets them be asked again."
                )
            for note in upstream.notes:
                context.log.info(_where(partition) + note)
            check_result = _with_masked(_judge_sent(engine, status), masked := engine.masked_values(submission))
            again = None
            if submission.run_id == context.run.run_id:
                again = find_asked_again(engine.deployment, dataset.labeling, submission)
            if again is not None:
                context.log.warning(f"{_where(partition)}{again}")
                check_result = replace(check_result, description=f"{check_result.description} {again}")
            metadata = {
                **submission_metadata(status, dataset.labeling, provider, skipped, unreadable),
                **masked_metadata(masked),
                **estimate_metadata(submission, learned(), output_basis_of(engine.deployment, dataset.labeling)),
                **end_metadata(submission, engine),
                **plan_metadata(
                    engine.deployment.levels(dataset.labeling, submission),
                    engine.deployment.shares(dataset.labeling, submission),
                ),
                **upstream.metadata,
                **({} if dataset.when is None else {WHEN_KEY: dataset.when.text}),
                **({} if again is None else {"llm_batch/rows_asked_again": again.rows}),
            }
            yield from materialize_result(
                context,
                spec.key,
                partition,
                metadata=metadata,
                version=submission.fingerprint,
                checks=[check],
                check_results=[check_result],
            )

        partitions = EachPartition(context)
        are_sent = False
        # All partitions are planned before any is sent, so that they can share batches. Because of the lease of
        # `at_work`, the sensor leaves the planned requests to this run.
        with engine.activity.at_work(context.run.run_id):
            planned = partitions.map(plan)
            if len(planned) > 1:
                # Each partition reports its own error later.
                with suppress(LLMBatchError):
                    engine.submit_together(
                        dataset.labeling, [submission.submission_id for submission, _ in planned.values()]
                    )
                    # Partitions that wait for room in the queue wait together: one alone may be too small for a batch.
                    are_sent = True
                _log_batches(context, engine, [submission.submission_id for submission, _ in planned.values()])
            yield from begin_downstream(context, dataset.mode, partitions.events(planned, sent))

    return submit


def _code_location(context: dg.AssetExecutionContext, dataset: Dataset) -> "AssetGraph":
    """Return the code location's assets.

    Raises ConfigError if another dataset has a former name of this one, or restored values that this one would send.
    """
    repository, graph = repository_of(context), asset_graph(context)
    if repository is not None:
        graph = repository.asset_graph
        dataset.check_former_names(datasets_in(repository.assets_defs_by_key.values()))
    if dataset.rows_key is not None and graph.has(dataset.rows_key):
        dataset.check_restored_rows(graph.get(dataset.rows_key).to_asset_spec())
    return graph


def _with_masked(check_result: CheckOutcome, masked: Mapping[str, int] | None) -> CheckOutcome:
    """Return the result with the number of masked values of each kind, if the dataset has a mask."""
    if masked is None:
        return check_result
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in masked.items()) or "none"
    text = f"{check_result.description} Masked values: {kinds}."
    return replace(check_result, description=text, metadata={**check_result.metadata, **masked_metadata(masked)})


def _judge_sent(engine: "Engine", status: Status) -> CheckOutcome:
    """Judge whether the batches of a submission were sent."""
    recovered = engine.recovery.newest_hold(status.submission)
    return sent_outcome(status, find_conditions(of_status(engine, status, recovered)))


def _warn_of_files(context: dg.AssetExecutionContext, dataset: Dataset, partition: str | None, rows: int) -> None:
    """Log the number of rows that are not sent since their images or documents cannot be read."""
    if rows:
        have = (
            "1 row has a file that cannot be read or sent, and is"
            if rows == 1
            else f"{rows:,} rows have a file that cannot be read or sent, and are"
        )
        place = dataset.rejects_key.to_user_string()
        context.log.warning(f"{_where(partition)}{have} not sent: see the reason in {place} once it is materialized.")


def _refuse_other_ledger(context: dg.AssetExecutionContext, engine: "Engine", dataset: Dataset) -> None:
    """Raise LedgerError if a submission recorded by Dagster is missing from both the ledger and the payload store.

    Then other processes probably use another ledger. They would not find this run's batches, and would pay again.
    """
    if (newest := newest_submission(context.instance.get_latest_materialization_event(dataset.batch_key))) is None:
        return
    submission_id, partition = newest
    if engine.ledger.submissions.find_known([submission_id]) or engine.recovery.recover(dataset.name, partition):
        return
    if context.run.tags.get(NEW_LEDGER_TAG) != "true":
        batch = dataset.batch_key.to_user_string()
        raise LedgerError(f"{advise_on_unknown(batch, submission_id, engine.ledger)}. Nothing was sent.")


def _warn_of_parameters(context: dg.AssetExecutionContext, engine: "Engine", dataset: Dataset) -> None:
    for labeling in dataset.labeling.models:
        for warning in parameter_warnings(engine.deployment, labeling):
            context.log.warning(f"{labeling.model}: {warning}")


def _warn_of_temporary_home(context: dg.AssetExecutionContext, dataset: Dataset) -> None:
    """Warn if ledger or payloads are in Dagster's temporary folder: without them, all rows would be paid again."""
    resource = dataset.resource(context)
    lost = [
        what
        for what, place in (("the ledger", resource.ledger_url), ("the payload store", resource.payload_root))
        if place is None
    ]
    folder = Path(context.instance.storage_directory())
    is_temporary = context.instance.is_ephemeral or any(part.startswith(_TEMPORARY_HOME) for part in folder.parts)
    if lost and is_temporary:
        context.log.warning(
            f"Dagster runs without a home (DAGSTER_HOME) here: {' and '.join(lost)} will go with its temporary folder, "
            f"{folder}, which it removes when it ends. Labels of batches in flight are then never materialized, and "
            "all rows are asked, and paid for, again. Set DAGSTER_HOME to a folder that stays, or ledger_url and "
            "payload_root of the LLMBatchResource."
        )


def newest_submission(event: dg.EventLogEntry | None) -> tuple[str, str] | None:
    """Return submission and partition from a materialization of `<name>_batch`, if its metadata has them."""
    stored = None if event is None else event.asset_materialization
    value = None if stored is None else stored.metadata.get(SUBMISSION_KEY)
    return None if stored is None or value is None else (str(value.value), stored.partition or "")


def _where(partition: str | None) -> str:
    return "" if partition is None else f"{partition}: "


def _log_batches(context: dg.AssetExecutionContext, engine: "Engine", submission_ids: Sequence[str]) -> None:
    """Log the number of batches that several partitions have in flight. Each partition shows all batches it is in."""
    if batches := engine.ledger.batches.count_in_flight(engine.namespace, submission_ids):
        counted = "1 batch is" if batches == 1 else f"{batches:,} batches are"
        context.log.info(f"{counted} in flight for these {len(submission_ids):,} partitions.")


def _log(context: dg.AssetExecutionContext, partition: str | None, status: Status) -> None:
    where = _where(partition)
    if status.submission.rows == 0:
        context.log.warning(f"{where}no rows, so there is nothing to send; the labeled table will be empty.")
    waiting = status.states[ShardState.PLANNED.value]
    if waiting:
        reasons = sorted({shard.reason for shard in status.shards if shard.reason})
        reason = "; ".join(reasons) or "the batches in flight use up queue_limits, or limits of money"
        shards = "1 shard waits" if waiting == 1 else f"{waiting} shards wait"
        context.log.warning(
            f"{where}{shards}, since nothing more is accepted now: {reason.rstrip('.')}. "
            "The sensor sends waiting shards as soon as it can."
        )
    refused = [s.reason for s in status.shards if s.state is ShardState.FAILED]
    if refused:
        count = count_refused(status.shards)
        batches = "a batch" if count == 1 else f"{count} batches"
        context.log.error(f"{where}the provider refused {batches}: {refused[0]}")
    context.log.info(where + progress_text(status))
