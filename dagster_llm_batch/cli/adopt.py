"""`adopt`: take a batch that was sent elsewhere, as by a script, and make its answers labels."""

from __future__ import annotations

from pathlib import Path

import click

from dagster_llm_batch.cli.commands import Command, confirm, json_option
from dagster_llm_batch.cli.completion import complete_assets
from dagster_llm_batch.cli.deployment import DeploymentAccess, code_location_command
from dagster_llm_batch.cli.output import counted, print_json
from dagster_llm_batch.cli.selection import find_dataset, partition_option, partitions_of
from dagster_llm_batch.text import cell_text
from dagster_llm_batch.upkeep.adopt import Adopter, Adoption

__all__ = ["adopt_command"]


@click.command("adopt", cls=Command, examples=["moods batch_68f2 requests.jsonl -f labels.py"])
@click.argument("asset", shell_complete=complete_assets)
@click.argument("batch_id", metavar="BATCH")
@click.argument("request_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@partition_option
@code_location_command
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
@json_option
def adopt_command(
    deployment: DeploymentAccess,
    asset: str,
    batch_id: str,
    request_file: Path,
    partition: str | None,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Import the answers of BATCH, a batch that another tool sent, as labels of ASSET. Nothing is sent or paid.

    REQUEST_FILE is the file that was uploaded for the batch. For Anthropic, it holds the requests of the create call.
    An answer is imported if its request has the body, as JSON, that the asset would send for a row. Prompt, model,
    parameters and response must be the same. Other rows are materialized without a label. `retry` can
    send them, and shows the price first.
    """
    dataset = find_dataset(deployment, asset)
    [key] = partitions_of(deployment, dataset, () if partition is None else (partition,), None)
    engine = deployment.new_engine
    adopter = Adopter(dataset.labeling, engine.deployment)
    with (
        deployment.code.rows(dataset, key) as (rows, _),
        adopter.look(rows, partition=key or "", batch_id=batch_id, request_file=request_file) as adoption,
    ):
        if not as_json:
            click.echo(_text(adoption, batch_id))
        confirm(f"Adopt it for {cell_text(adoption.submission.place)}?", yes=yes)
        submission = adopter.store(adoption)
    status = engine.collect(dataset.labeling, submission.submission_id)
    if as_json:
        counts = {name: getattr(adoption, name) for name in ("requests", "matched", "answered", "lines", "unused")}
        print_json({"submission": status.submission, "shards": status.shards, **counts})
    else:
        click.echo(f"Submission {submission.submission_id} has its answers; Dagster's sensor materializes its labels.")


def _text(adoption: Adoption, batch_id: str) -> str:
    report = adoption.report
    unanswered = adoption.requests - adoption.answered
    requests = counted(adoption.requests, "request", "requests")
    answered = f"{adoption.answered:,} of {requests} of these rows have an answer in it."
    parts = [f"Batch {cell_text(batch_id)} is '{report.status.value}'. {answered}"]
    if unanswered:
        unmatched = adoption.requests - adoption.matched
        parts.append(
            f"{counted(unanswered, 'request has', 'requests have')} no answer ({unmatched:,} have no equal body in the "
            "request file). Their rows are materialized without a label; `retry` can send them."
        )
    if adoption.unused:
        parts.append(f"{adoption.unused:,} of {adoption.lines:,} lines of the request file match no row of the asset.")
    return " ".join(parts)
