"""`adopt`: take a batch that was sent elsewhere, as by a script, and land its answers."""

from __future__ import annotations

from pathlib import Path

import click

from dagster_llm_batch.cli.commands import Command, confirm, json_option
from dagster_llm_batch.cli.deployment import DeploymentAccess, code_location_command
from dagster_llm_batch.cli.output import counted, print_json
from dagster_llm_batch.cli.selection import find_dataset, partition_option, partitions_of
from dagster_llm_batch.text import cell_text
from dagster_llm_batch.upkeep.adopt import Adopter, Adoption

__all__ = ["adopt_command"]


@click.command("adopt", cls=Command, examples=["moods batch_68f2 requests.jsonl -f labels.py"])
@click.argument("asset")
@click.argument("batch_id", metavar="BATCH")
@click.argument("request_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@partition_option
@code_location_command
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
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
    """Take BATCH, which was sent elsewhere, into the ledger, so that its answers land as labels of ASSET.

    REQUEST_FILE is the file that was uploaded for it, or, for Anthropic, the requests of the create call. An answer is
    taken only where the body of its request is, as JSON, the one that the asset would send for a row: prompt, model,
    parameters and response have to be the same. Nothing is sent or paid. Rows without such an answer land without a
    label, and wait for `retry`, which shows the price first.
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
        click.echo(f"Submission {submission.submission_id} has its answers; Dagster's sensor lands them.")


def _text(adoption: Adoption, batch_id: str) -> str:
    report = adoption.report
    unanswered = adoption.requests - adoption.answered
    requests = counted(adoption.requests, "request", "requests")
    answered = f"{adoption.answered:,} of {requests} of these rows have an answer in it."
    parts = [f"Batch {cell_text(batch_id)} is '{report.status.value}'. {answered}"]
    if unanswered:
        unmatched = adoption.requests - adoption.matched
        parts.append(
            f"{unanswered:,} have none ({unmatched:,} have no line of an equal body in the request file): their rows "
            "land without a label, and wait for `retry`."
        )
    if adoption.unused:
        parts.append(f"{adoption.unused:,} of {adoption.lines:,} lines of the request file are of no row here.")
    return " ".join(parts)
