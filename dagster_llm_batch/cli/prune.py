"""`prune`: remove stored files that nothing needs any more."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

import click

from dagster_llm_batch.cli.commands import Command, confirm, json_option
from dagster_llm_batch.cli.deployment import DeploymentAccess, ledger_command
from dagster_llm_batch.cli.output import PATH_CHARS, SHORT_ID, counted, print_json, print_table
from dagster_llm_batch.text import cell_text
from dagster_llm_batch.upkeep.prune import Pruning
from dagster_llm_batch.upkeep.uploads import UploadRemover

__all__ = ["prune_command"]


@click.command("prune", cls=Command, examples=["-f labels.py", "--older-than 90 --delete -f labels.py"])
@ledger_command
@click.option("--older-than", "days", type=click.FloatRange(min=1), default=30, show_default=True, help="Days.")
@click.option(
    "--raw-older-than",
    "raw_days",
    type=click.FloatRange(min=1),
    help="Days after which requests and raw results go, of labels that landed.  [default: never]",
)
@click.option(
    "--provider-results",
    is_flag=True,
    help="Also delete, at the providers, results that were stored here --older-than days ago.",
)
@click.option("--delete", is_flag=True, help="Delete. Without it, only show what would go.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
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
    """Remove requests and results of submissions that newer ones of the same partition have replaced, and what killed
    plans and workers left behind. Shows the paths of what would go, unless --delete is given. Files stay that the
    ledger does not name, and that nothing shows to be of this package.

    It looks at the whole namespace: also at what datasets of another resource have there.

    Kept, always: everything under way; the newest and the newest settled submission of each partition, with its raw
    results unless --raw-older-than is given; and those whose answers they reuse. If the rows, prompt or model of a
    partition go back to what a pruned submission asked, it is asked, and paid, again.

    With the definitions (-m or -f), request files go, too, that were uploaded to providers for batches whose results
    are stored and whole, after the time that keep_request_files_hours says. Dagster's sensor does that by itself.
    Results stay at the providers, unless --provider-results is given: then none can be fetched once more.
    """
    ages = (timedelta(days=days), None if raw_days is None else timedelta(days=raw_days))
    if provider_results and not deployment.has_code:
        raise click.UsageError("--provider-results asks providers: give the definitions (-m or -f).")
    pruning = deployment.engine.prune(*ages)
    uploads = UploadRemover(deployment.engine.deployment)
    batches = {"request_files": len(uploads.due()) if deployment.has_code else 0}
    if provider_results:
        batches["provider_results"] = len(uploads.with_results(ages[0]))
    if not as_json:
        _print(deployment, pruning)
        _print_batches(batches)
    troubles: dict[str, str] = {}
    if delete and (pruning.files or any(batches.values())):
        question = f"Delete {len(pruning.files):,} files ({pruning.bytes:,} bytes)"
        at_providers = (
            f", and at providers what {sum(batches.values()):,} batches left" if any(batches.values()) else ""
        )
        confirm(f"{question}{at_providers}?", yes=yes)
        pruning = deployment.engine.prune(*ages, delete=True)
        if not as_json:
            click.echo(f"Deleted {len(pruning.files):,} files ({pruning.bytes:,} bytes).")
        if deployment.has_code:
            removals = {"request_files": uploads.remove_files()}
            if provider_results:
                removals["provider_results"] = uploads.remove_results(ages[0])
            batches = {name: len(removal.batches) for name, removal in removals.items()}
            troubles = {key: why for each in removals.values() for key, why in (each.troubles | each.kept).items()}
            if not as_json:
                _print_batches(batches, done=True)
                for name, why in troubles.items():
                    click.echo(f"{name}: {cell_text(why)}", err=True)
    elif not as_json:
        click.echo(
            "Nothing was deleted." + (" Give --delete to delete." if pruning.files or any(batches.values()) else "")
        )
    if as_json:
        counts = {"files": len(pruning.files), "bytes": pruning.bytes, "submissions_kept": pruning.kept}
        print_json({"deleted": delete, **counts, **batches, "troubles": troubles, **vars(pruning)})


def _print_batches(batches: Mapping[str, int], *, done: bool = False) -> None:
    words = {"request_files": "request files", "provider_results": "results"}
    for name, count in batches.items():
        if count:
            verb = "were deleted" if done else "are to go"
            click.echo(f"At providers the {words[name]} of {counted(count, 'batch', 'batches')} {verb}.")


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
        rows.append([None, None, None, None, len(pruning.merged), size, "copies of results, made anew where needed"])
    columns = ["submission", "asset", "partition", "created (UTC)", "files", "bytes", "why"]
    if rows:
        print_table(columns, rows)
    click.echo(counted(pruning.kept, "submission keeps its files", "submissions keep their files") + ".")
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
