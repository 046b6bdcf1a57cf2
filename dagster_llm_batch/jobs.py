"""Jobs for a person's decisions, to cancel a submission and to resolve a shard; and the schedule that prunes files.

The jobs are started from the launchpad, or like any Dagster job. Sensors do not start them: canceling loses rows, and a
wrongly resolved shard is paid for twice.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import dagster as dg
from pydantic import Field

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.config import CheckedConfig
from dagster_llm_batch.engine.condition_facts import find_undecided
from dagster_llm_batch.engine.conditions import UNDECIDED, Condition, ConditionKind
from dagster_llm_batch.errors import ConfigError, LLMBatchError
from dagster_llm_batch.metadata import markdown_table
from dagster_llm_batch.progress import progress_text
from dagster_llm_batch.resources import LLMBatchResource
from dagster_llm_batch.storage.ledger.batches import count_batches
from dagster_llm_batch.storage.ledger.records import Shard, Submission
from dagster_llm_batch.text import cell_text

if TYPE_CHECKING:
    from dagster_llm_batch.engine.engine import Engine
    from dagster_llm_batch.upkeep.prune import Pruning

__all__ = ["CancelConfig", "ResolveConfig", "build_llm_batch_jobs", "build_llm_batch_retention"]


class CancelConfig(CheckedConfig):
    """The submission to cancel: by its id, or the newest of an asset's partition."""

    submission_id: str = Field(default="", description="Id of a submission. Or give the asset.")
    asset: str = Field(default="", description="Labeled asset, as in ticket_labels or reviews/ticket_labels.")
    partition: str = Field(default="", description="Its partition. Empty for an unpartitioned asset.")


class ResolveConfig(CheckedConfig):
    """Resolution of a shard with an unconfirmed create call. Empty: list such shards, and do nothing."""

    shard_id: str = Field(default="", description="The shard. Empty: list those that wait for a decision.")
    batch_id: str = Field(default="", description="Its batch, where the provider's console shows one.")
    no_batch: bool = Field(default=False, description="True if it has no batch: the shard is sent (again).")
    lost: bool = Field(default=False, description="True if its batch never ends: it is abandoned.")


@checked
def build_llm_batch_jobs(
    *, resource_key: str = "llm_batch", tags: dict[str, str] | None = None
) -> Sequence[dg.JobDefinition]:
    """Return the jobs `llm_batch_cancel` and `llm_batch_resolve`; of another resource, `<resource_key>_cancel` and
    `<resource_key>_resolve`.

    Args:
        resource_key: Key of the LLMBatchResource. Each resource can have its jobs.
        tags: Tags of both jobs, for example for run coordinators.
    """

    # Names of ops, too, are unique in a code location; within each job they are the same.
    @dg.op(name=f"{resource_key}_cancel_submission", required_resource_keys={resource_key}, out=dg.Out(dg.Nothing))
    def cancel_submission(context: dg.OpExecutionContext, config: CancelConfig) -> None:
        """Send nothing more, ask running batches to stop, and keep the results so far."""
        engine = _engine_of(context, resource_key)
        submission = _submission(engine, config)
        status = engine.cancel(submission.submission_id)
        context.log.info(f"Canceled {submission.asset} {submission.partition}: {progress_text(status)}")
        context.add_output_metadata(
            {
                "llm_batch/submission_id": submission.submission_id,
                "llm_batch/asset": submission.asset,
                "llm_batch/partition": submission.partition,
                "llm_batch/progress": progress_text(status),
                "llm_batch/batch_ids": status.batch_ids,
            }
        )

    @dg.op(name=f"{resource_key}_resolve_shard", required_resource_keys={resource_key}, out=dg.Out(dg.Nothing))
    def resolve_shard(context: dg.OpExecutionContext, config: ResolveConfig) -> None:
        """Let the shard continue with the named batch, send it again without one, or abandon it."""
        engine = _engine_of(context, resource_key)
        if config.shard_id:
            _resolve(context, engine, config)
        elif config.batch_id or config.no_batch or config.lost:
            msg = f"Which shard? {_waiting(engine)}"
            raise dg.Failure(msg, metadata=_undecided_metadata(engine), allow_retries=False)
        else:
            context.log.info(_waiting(engine))
        context.add_output_metadata(_undecided_metadata(engine))

    @dg.job(name=f"{resource_key}_cancel", tags=tags, description="Cancel a submission of LLM batches.")
    def cancel() -> None:
        cancel_submission.alias("cancel_submission")()

    @dg.job(
        name=f"{resource_key}_resolve",
        tags=tags,
        description=(
            "Resolve a shard with an unconfirmed create call, or whose batch never ends. Without a shard: list them."
        ),
    )
    def resolve() -> None:
        resolve_shard.alias("resolve_shard")()

    return [cancel, resolve]


@checked
def build_llm_batch_retention(
    name: str = "llm_batch_retention",
    *,
    raw_older_than: timedelta | None = None,
    older_than: timedelta = timedelta(days=30),
    cron_schedule: str = "0 4 * * *",
    execution_timezone: str | None = None,
    default_status: dg.DefaultScheduleStatus = dg.DefaultScheduleStatus.RUNNING,
    resource_key: str = "llm_batch",
    tags: Mapping[str, str] | None = None,
) -> dg.ScheduleDefinition:
    """Return a schedule, with its job, that removes stored files by age, as `dagster-llm-batch prune` does.

    Request files at providers are removed, too, like at each tick of the sensor.

    Labels, results, and the records of a label's origin stay. Files in flight, not materialized yet or waiting for a
    person are never touched. The job's launchpad takes other ages, and `delete: false` to preview the removal.

    Args:
        name: Name of the schedule, and of its job.
        raw_older_than: How long to keep a submission's requests and raw results, which hold the texts of rows, after
            its labels were materialized. Default: forever.
        older_than: How long to keep the files of submissions that newer ones replaced. If the rows, prompt or model
            of a partition go back to such a submission's, it is asked, and paid for, again.
        cron_schedule: When it runs.
        execution_timezone: Time zone of that schedule. Default: UTC.
        default_status: Whether it runs until somebody starts or stops it in the UI.
        resource_key: Key of the LLMBatchResource.
        tags: Tags of the job, for example for run coordinators.
    """
    for argument, age in (("raw_older_than", raw_older_than), ("older_than", older_than)):
        if age is not None and age < timedelta(days=1):
            raise ConfigError(f"Files are pruned after a day at the earliest; got {argument}={age}.")

    def in_days(age: timedelta) -> float:
        return age / timedelta(days=1)

    # An age that a run's configuration leaves out is the schedule's, not a shorter one.
    class RetentionConfig(CheckedConfig):
        """Ages of stored files to remove: see `dagster-llm-batch prune`."""

        older_than_days: float = Field(
            default=in_days(older_than),
            ge=1,
            description="Days to keep the files of submissions that newer ones replaced.",
        )
        raw_older_than_days: float | None = Field(
            default=None if raw_older_than is None else in_days(raw_older_than),
            ge=1,
            description="Days to keep requests and raw results after labels are materialized. None: forever.",
        )
        delete: bool = Field(default=True, description="False: only preview the removal.")

    # Like the jobs above: each resource can have its own schedule.
    @dg.op(name=f"{name}_prune_payloads", required_resource_keys={resource_key}, out=dg.Out(dg.Nothing))
    def prune_payloads(context: dg.OpExecutionContext, config: RetentionConfig) -> None:
        """Remove files that are not needed any more from the payload store, and request files at providers."""
        engine = _engine_of(context, resource_key)
        raw = None if config.raw_older_than_days is None else timedelta(days=config.raw_older_than_days)
        pruning = engine.prune(timedelta(days=config.older_than_days), raw, delete=config.delete)
        did = "Deleted" if config.delete else "Would delete"
        paths = "" if config.delete else "".join(f"\n{file.path}" for file in sorted(pruning.files))
        context.log.info(f"{did} {len(pruning.files):,} files ({pruning.bytes:,} bytes).{paths}")
        from dagster_llm_batch.upkeep.stored_documents import DocumentRemover, RemovedDocuments  # noqa: PLC0415 - likewise
        from dagster_llm_batch.upkeep.uploads import Removal, UploadRemover  # noqa: PLC0415 - it loads all that a run needs

        uploads = UploadRemover(engine.deployment)
        found = len(uploads.due())
        removal = uploads.remove_files() if config.delete else Removal()
        for place, why in (removal.troubles | removal.kept).items():
            context.log.warning(f"Request files at providers stay, of {place}: {why}")
        documents = DocumentRemover(engine.deployment)
        due = documents.due()
        removed = documents.remove_files(due) if config.delete else RemovedDocuments()
        for place, why in removed.troubles.items():
            context.log.warning(f"Documents at the provider {place} stay: {why}")
        figures = {"llm_batch/request_files_found": found, "llm_batch/request_files_deleted": len(removal.batches)}
        figures |= {"llm_batch/documents_found": len(due), "llm_batch/documents_deleted": len(removed.uploads)}
        context.add_output_metadata({**_pruning_metadata(pruning, deleted=config.delete), **figures})

    @dg.job(
        name=name,
        tags=tags,
        config=dg.RunConfig(ops={"prune_payloads": RetentionConfig()}),
        description="Remove requests and results of LLM batches that are not needed any more, by their age.",
    )
    def retention() -> None:
        prune_payloads.alias("prune_payloads")()

    return dg.ScheduleDefinition(
        name=name,
        job=retention,
        cron_schedule=cron_schedule,
        execution_timezone=execution_timezone,
        default_status=default_status,
    )


def _engine_of(context: dg.OpExecutionContext, resource_key: str) -> "Engine":
    resource = getattr(context.resources, resource_key)
    if not isinstance(resource, LLMBatchResource):
        msg = f"The resource '{resource_key}' is a {type(resource).__name__}; it must be an LLMBatchResource."
        raise ConfigError(msg)
    return resource.engine()


def _pruning_metadata(pruning: "Pruning", *, deleted: bool) -> dict[str, Any]:
    return {
        "llm_batch/files_deleted": len(pruning.files) if deleted else 0,
        "llm_batch/files_found": len(pruning.files),
        "llm_batch/bytes_found": pruning.bytes,
        "llm_batch/submissions_replaced": len(pruning.replaced),
        "llm_batch/submissions_aged": len(pruning.aged),
        "llm_batch/submissions_kept": pruning.kept,
        "llm_batch/files_of_unknown_submissions": len(pruning.foreign),
    }


def _submission(engine: "Engine", config: CancelConfig) -> Submission:
    if bool(config.submission_id) == bool(config.asset):
        msg = "Give either submission_id, or asset (and its partition, where it has partitions)."
        raise dg.Failure(msg, allow_retries=False)
    if config.submission_id:
        return engine.ledger.submissions.get(config.submission_id)
    latest = engine.latest(config.asset, config.partition)
    if latest is None:
        known = engine.ledger.submissions.list_all(engine.namespace, assets=[config.asset])
        partitions = ", ".join(sorted({s.partition or "(none)" for s in known})) or "none at all"
        place = f"partition '{config.partition}'" if config.partition else "its unpartitioned form"
        msg = f"Nothing was submitted for {place} of '{config.asset}'. Submitted partitions: {partitions}."
        raise dg.Failure(msg, allow_retries=False)
    return latest


def _resolve(context: dg.OpExecutionContext, engine: "Engine", config: ResolveConfig) -> None:
    if [bool(config.batch_id), config.no_batch, config.lost].count(True) != 1:
        msg = (
            "Give one of batch_id (the provider has this batch), no_batch: true (the provider lacks the batch) and "
            "lost: true (the batch never ends)."
        )
        raise dg.Failure(msg, metadata=_undecided_metadata(engine), allow_retries=False)
    try:
        if config.lost:
            shard = engine.give_up(config.shard_id)
        else:
            shard = engine.resolve(config.shard_id, config.batch_id or None)
    except LLMBatchError as error:
        raise dg.Failure(str(error), metadata=_undecided_metadata(engine), allow_retries=False) from error
    context.log.info(f"Shard {shard.shard_id} is '{shard.state.value}' now; the sensor goes on with it.")


def _waiting(engine: "Engine") -> str:
    waiting = [shard.shard_id for _, shard in find_undecided(engine)]
    return f"Shards that wait for a decision: {', '.join(waiting)}." if waiting else "No shard waits for a decision."


def _count_batches(found: Sequence[tuple[Condition, Shard]], kind: ConditionKind) -> int:
    """Return how many batches have a condition. Each submission in a shared batch has its own condition."""
    return count_batches(shard for condition, shard in found if condition.kind is kind)


def _undecided_metadata(engine: "Engine") -> dict[str, Any]:
    """Return the shards in doubt, and those whose batches are overdue or cannot be read, for the run's page."""
    found = find_undecided(engine)
    rows: list[list[object]] = [
        [
            shard.shard_id,
            cell_text(condition.submission.asset),
            cell_text(condition.submission.partition),
            shard.provider,
            shard.requests,
            UNDECIDED[condition.kind],
            None if shard.batch.sent_at is None else shard.batch.sent_at.isoformat(timespec="seconds"),
        ]
        for condition, shard in found
    ]
    header = ["shard", "asset", "partition", "provider", "requests", "why", "sent"]
    counts = Counter(condition.kind for condition, _ in found)
    return {
        "llm_batch/orphans": counts[ConditionKind.IN_DOUBT],
        "llm_batch/batches_overdue": _count_batches(found, ConditionKind.OVERDUE),
        "llm_batch/batches_unreadable": _count_batches(found, ConditionKind.UNREADABLE),
        "llm_batch/orphan_shards": dg.MetadataValue.md(markdown_table(header, rows) if rows else "None."),
    }
