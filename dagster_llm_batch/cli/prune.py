"""`prune`: delete stored files that are no longer needed."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import click

from dagster_llm_batch.cli.commands import Command, confirm, json_option, say
from dagster_llm_batch.cli.deployment import DeploymentAccess, ledger_command
from dagster_llm_batch.cli.output import PATH_CHARS, SHORT_ID, counted, print_json, print_table
from dagster_llm_batch.text import cell_text
from dagster_llm_batch.upkeep.prune import Pruning
from dagster_llm_batch.upkeep.stored_documents import DocumentRemover
from dagster_llm_batch.upkeep.uploads import UploadRemover

__all__ = ["prune_command"]


@click.command("prune", cls=Command, examples=["-f labels.py", "--older-than 90 --delete -f labels.py"])
@ledger_command
@click.option("--older-than", "days", type=click.FloatRange(min=1), default=30, show_default=True, help="Age in days.")
@click.option(
    "--raw-older-than",
    "raw_days",
    type=click.FloatRange(min=1),
    help="Days after which requests and raw results of materialized labels are deleted.  [default: never]",
)
@click.option(
    "--provider-results",
    is_flag=True,
    help="Also delete results at the providers that were stored here --older-than days ago.",
)
@click.option("--delete", is_flag=True, help="Delete. Without it, only list the files.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def prune_command(
    deployment: DeploymentAccess,
    days: float,
    raw_days: float | None,
    *,
    provider_results: bool,
    delete: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete stored files that are no longer needed, of replaced submissions, stopped plans and lost workers.

    Without --delete, the command only lists the paths. It keeps files that are neither in the ledger nor marked as this
    package's files. It covers the whole namespace, also datasets of another resource.

    Everything under way is always kept. So are the newest and the newest complete submission of each partition, with
    its raw results unless --raw-older-than is given, and submissions whose answers they reuse. If a partition gets the
    rows, prompt and model of a pruned submission again, its rows are sent and paid again.

    With definitions (-m or -f), request files at providers are deleted too, after keep_request_files_hours, if the
    results of their batch are stored and whole. So are uploaded documents, once no submission needs them. Dagster's
    sensor does the same. Results stay at the providers unless
    --provider-results is given; they cannot be fetched again then.
    """
    ages = (timedelta(days=days), None if raw_days is None else timedelta(days=raw_days))
    if provider_results and not deployment.has_code:
        raise click.UsageError("--provider-results asks providers: give the definitions (-m or -f).")
    pruning = deployment.engine.prune(*ages)
    uploads = UploadRemover(deployment.engine.deployment)
    documents = DocumentRemover(deployment.engine.deployment)
    batches = {"request_files": len(uploads.due()) if deployment.has_code else 0}
    stored = documents.due() if deployment.has_code else []
    document_count = len(stored)
    if provider_results:
        batches["provider_results"] = len(uploads.with_results(ages[0]))
    if not as_json:
        _print(deployment, pruning)
        _print_batches(batches, document_count)
    troubles: dict[str, str] = {}
    is_any = bool(pruning.files or stored or any(batches.values()))
    if delete and is_any:
        question = f"Delete {len(pruning.files):,} files ({pruning.bytes:,} bytes)"
        at_providers = [f"what {sum(batches.values()):,} batches left"] if any(batches.values()) else []
        at_providers += [counted(len(stored), "document", "documents")] if stored else []
        confirm(f"{question}{', and at providers ' if at_providers else ''}{' and '.join(at_providers)}?", yes=yes)
        pruning = deployment.engine.prune(*ages, delete=True)
        if not as_json:
            say(f"Deleted {len(pruning.files):,} files ({pruning.bytes:,} bytes).")
        if deployment.has_code:
            removals = {"request_files": uploads.remove_files()}
            if provider_results:
                removals["provider_results"] = uploads.remove_results(ages[0])
            batches = {name: len(removal.batches) for name, removal in removals.items()}
            troubles = {key: why for each in removals.values() for key, why in (each.troubles | each.kept).items()}
            removed = documents.remove_files(stored)
            document_count = len(removed.uploads)
            troubles |= {f"documents of {name}": why for name, why in removed.troubles.items()}
            if not as_json:
                _print_batches(batches, document_count, done=True)
                for name, why in troubles.items():
                    click.echo(f"{name}: {cell_text(why)}", err=True)
    elif not as_json:
        say("Nothing was deleted." + (" Give --delete to delete." if is_any else ""))
    if as_json:
        counts = {"files": len(pruning.files), "bytes": pruning.bytes, "submissions_kept": pruning.kept}
        print_json(
            {"deleted": delete, **counts, **batches, "documents": document_count, "troubles": troubles, **vars(pruning)}
        )


def _print_batches(batches: Mapping[str, int], documents: int, *, done: bool = False) -> None:
    words = {"request_files": "request files", "provider_results": "results"}
    verb = "were deleted" if done else "are to go"
    if documents:
        say(f"At providers {counted(documents, 'document', 'documents')} {verb}.")
    for name, count in batches.items():
        if count:
            say(f"At providers the {words[name]} of {counted(count, 'batch', 'batches')} {verb}.")


def _print(deployment: DeploymentAccess, pruning: Pruning) -> None:
    rows: list[list[object]] = []
    of_submissions = [(one, "replaced") for one in pruning.replaced.items()]
    of_submissions += [(one, "old requests and raw results") for one in pruning.aged.items()]
    for (submission_id, files), why in of_submissions:
        submission = deployment.ledger.submissions.get(submission_id)
        size = sum(file.bytes for file in files)
        rows.append(
            [
                submission_id[:SHORT_ID],
                submission.asset,
                submission.partition or None,
                submission.created_at,
                len(files),
                size,
                why,
            ]
        )
    if pruning.left_behind:
        size = sum(file.bytes for file in pruning.left_behind)
        rows.append([None, None, None, None, len(pruning.left_behind), size, "left behind by a killed plan or worker"])
    if pruning.merged:
        size = sum(file.bytes for file in pruning.merged)
        rows.append([None, None, None, None, len(pruning.merged), size, "copies of results, rebuilt when needed"])
    columns = ["submission", "asset", "partition", "created (UTC)", "files", "bytes", "why"]
    if rows:
        print_table(columns, rows)
    say(counted(pruning.kept, "submission keeps its files", "submissions keep their files") + ".")
    for file in sorted(pruning.files):
        click.echo(f"- {cell_text(file.path, PATH_CHARS)}")
    if pruning.foreign:
        click.echo(
            f"{counted(len(pruning.foreign), 'file stays', 'files stay')}: the ledger has no record of them, and "
            "nothing in them shows that they are its own. Does another ledger use this payload store and namespace? "
            "Remove them by hand if they are not needed.",
            err=True,
        )
        for file in sorted(pruning.foreign):
            click.echo(f"- {cell_text(file.path, PATH_CHARS)}", err=True)
