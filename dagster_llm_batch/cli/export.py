"""`export`: write labels, rejects, mistakes, or examples for fine-tuning to a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import click
import dagster as dg
import pyarrow as pa

from dagster_llm_batch.assets.dataset import Dataset
from dagster_llm_batch.cli.commands import Command, json_option
from dagster_llm_batch.cli.completion import complete_assets
from dagster_llm_batch.cli.deployment import DeploymentAccess, code_location_command
from dagster_llm_batch.cli.output import counted, print_json
from dagster_llm_batch.cli.selection import find_dataset, find_submission, partitions_of, partitions_options
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.exports.files import whole
from dagster_llm_batch.exports.fine_tuning import (
    EXAMPLE_FORMS,
    Example,
    check_examples,
    fine_tuning,
    provenance_path,
    write_example_lines,
)
from dagster_llm_batch.exports.tables import FORMATS, STREAMED, count_formulas, form_of, judgment_table, write_table
from dagster_llm_batch.storage.ledger.judgments import standing_judgments
from dagster_llm_batch.storage.ledger.records import Submission

__all__ = ["export_command"]


@click.command(
    "export",
    cls=Command,
    examples=["moods -f labels.py -o moods.csv", "quality --what mistakes -f labels.py -o mistakes.csv"],
)
@click.argument("asset", shell_complete=complete_assets)
@partitions_options
@code_location_command
@click.option(
    "--what",
    type=click.Choice(["labels", "rejects", "mistakes", "fine-tuning", "judgments", "notes"]),
    default="labels",
    show_default=True,
    help=(
        "mistakes: rows that a candidate got wrong, where ASSET is an evaluation. fine-tuning: a line of messages for "
        "each label, and a file with their origin. judgments, notes: entries of people on the page of `review`."
    ),
)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="File; - for standard output.")
@click.option(
    "--format",
    "form",
    type=click.Choice([*FORMATS, *EXAMPLE_FORMS]),
    help=(
        "Default: by the file's ending; jsonl for standard output. huggingface writes a folder for load_from_disk, hub "
        "one for load_dataset. For fine-tuning: openai (the default) or anthropic, for Claude on Bedrock."
    ),
)
@click.option(
    "--submission",
    "submission_id",
    help=(
        "Another submission of the asset than the newest, by its id or a beginning of it. Its labels have the columns "
        "of its own definition."
    ),
)
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def export_command(
    deployment: DeploymentAccess,
    asset: str,
    partitions: tuple[str, ...],
    partition_range: str | None,
    submission_id: str | None,
    what: str,
    output: str,
    form: str | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Write the result of the newest submission of an asset to a file; with several partitions, one after the other.

    No provider is asked: results come from the payload store, and mistakes from the evaluation's IO manager. For
    fine-tuning, rows are loaded and rendered as for a submission. Each request that has a label is written once.

    A spreadsheet would run a text in a CSV that starts with = + - @ as a formula. Such a text gets an apostrophe in
    front, and a line on standard error shows how many there are.
    """
    form = form or _form(output)
    if what == "fine-tuning" and form == "jsonl":
        form = "openai"
    _refuse_output(output, form, what, as_json=as_json)
    if not force:
        _refuse_replacing([Path(output), *([provenance_path(Path(output))] if what == "fine-tuning" else [])])
    if submission_id is not None and (what == "mistakes" or partitions or partition_range):
        raise click.UsageError("--submission names one submission of a labeled asset, and with it one partition.")
    if what in ("judgments", "notes"):
        said = _said(deployment, _find_labels(deployment, asset, what), what, partitions, partition_range)
        count = _write_table(said, output, form)
    elif what == "mistakes":
        mistakes = deployment.code.mistakes(asset)
        wanted = partitions_of(deployment, mistakes, partitions, partition_range)
        parts = [_stored_table(deployment, mistakes.key, partition) for partition in wanted]
        count = _write_table(pa.concat_tables(parts, promote_options="permissive"), output, form)
    else:
        dataset = _find_labels(deployment, asset, what)
        if submission_id is None:
            wanted = partitions_of(deployment, dataset, partitions, partition_range)
            submissions = [_newest(deployment, dataset, partition) for partition in wanted]
        else:
            submissions = [_submission(deployment, dataset, submission_id)]
        if what == "fine-tuning":
            check_examples(dataset.labeling, form)
            examples = (example for each in submissions for example in _examples(deployment, dataset, each, form))
            count = _write_examples(_refuse_none(examples, asset), output)
        else:
            tables = [_table(deployment, dataset, submission, what) for submission in submissions]
            count = _write_table(_joined(tables), output, form)
    if as_json:
        print_json({"output": str(Path(output).resolve()), "format": form, "what": what, "rows": count})
    elif output != "-":
        noun = "examples" if what == "fine-tuning" else what
        click.echo(f"{counted(count, noun.removesuffix('s'), noun)} in {output}")


def _find_labels(deployment: DeploymentAccess, asset: str, what: str) -> Dataset:
    if asset in deployment.code.tables_of_mistakes:
        raise click.UsageError(
            f"'{asset}' is an evaluation, which has no {what}. To write the rows that a candidate got wrong, add "
            "--what mistakes."
        )
    return find_dataset(deployment, asset)


def _form(output: str) -> str:
    try:
        return "jsonl" if output == "-" else form_of(Path(output))
    except ConfigError as error:
        raise click.UsageError(str(error)) from error


def _refuse_output(output: str, form: str, content: str, *, as_json: bool) -> None:
    if output == "-" and as_json:
        raise click.UsageError("--json and -o - would both write to standard output.")
    if output == "-" and form in ("parquet", "huggingface", "hub", "tfrecord"):
        raise click.UsageError(f"{form.capitalize()} is not for standard output; name a file.")
    if content == "fine-tuning" and form not in EXAMPLE_FORMS:
        raise click.UsageError(f"Examples for fine-tuning are written as openai or anthropic (JSON lines), not {form}.")
    if content != "fine-tuning" and form in EXAMPLE_FORMS:
        raise click.UsageError(f"{form} is for --what fine-tuning; {content} are written as {', '.join(FORMATS)}.")
    if output != "-" and not Path(output).parent.is_dir():
        raise click.UsageError(f"There is no folder {Path(output).parent}.")


def _refuse_replacing(files: Sequence[Path]) -> None:
    # A folder is refused where it is written: --force would not make it a file.
    for file in files:
        if file.is_file() and file.name != "-":
            raise click.UsageError(f"There is a file {file} already. Name another one, or give --force to replace it.")


def _said(
    deployment: DeploymentAccess,
    dataset: Dataset,
    what: str,
    partitions: tuple[str, ...],
    partition_range: str | None,
) -> pa.Table:
    if what == "notes":
        return _notes(deployment, dataset)
    return _judgments(deployment, dataset, partitions, partition_range)


def _judgments(
    deployment: DeploymentAccess, dataset: Dataset, partitions: tuple[str, ...], partition_range: str | None
) -> pa.Table:
    """Return people's judgments of the rows of these partitions, or of all."""
    said = standing_judgments(deployment.ledger.judgments.read(deployment.namespace, dataset.name))
    if partitions or partition_range:
        wanted = partitions_of(deployment, dataset, partitions, partition_range)
        said = [judgment for judgment in said if judgment.partition in wanted]
    if not said:
        raise InputError(
            f"There are no judgments of rows of '{dataset.name}' yet: `dagster-llm-batch review` asks for it."
        )
    return judgment_table(said, dataset.labeling.key, dataset.labeling.reader.fields)


def _notes(deployment: DeploymentAccess, dataset: Dataset) -> pa.Table:
    """Return what people noted of a dataset's prompt, each with the submission that was sent by its definition."""
    notes = deployment.ledger.notes.read(deployment.namespace, dataset.name)
    if not notes:
        raise InputError(f"There are no notes on '{dataset.name}' yet: `dagster-llm-batch review` asks for it.")
    return pa.Table.from_pylist(
        [
            {"at": one.at, "annotator": one.annotator, "text": one.text, **one.group, "submission": one.submission_id}
            for one in notes
        ]
    )


def _newest(deployment: DeploymentAccess, dataset: Dataset, partition: str | None) -> Submission:
    submission = deployment.engine.latest(dataset.name, partition or "")
    if submission is None:
        raise ConfigError(f"Nothing was submitted for {' '.join(filter(None, [dataset.name, partition]))}.")
    return submission


def _submission(deployment: DeploymentAccess, dataset: Dataset, submission_id: str) -> Submission:
    submission = find_submission(deployment, submission_id, None)
    if submission.asset != dataset.name:
        raise click.UsageError(f"{submission_id} is a submission of '{submission.asset}', not of '{dataset.name}'.")
    return submission


def _table(deployment: DeploymentAccess, dataset: Dataset, submission: Submission, content: str) -> pa.Table:
    try:
        labeled = deployment.engine.labels(dataset.labeling, submission.submission_id)
    except FileNotFoundError as error:
        msg = f"A file of submission {submission.submission_id} is not in the payload store: {error}. Restore it there."
        raise ConfigError(msg) from error
    return labeled.labels if content == "labels" else labeled.rejects


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ConfigError(
            f"The partitions have columns of different types, since the definition was changed between them: {error}. "
            "Export the examples of each definition separately."
        ) from error


def _stored_table(deployment: DeploymentAccess, key: dg.AssetKey, partition: str | None) -> pa.Table:
    return pa.Table.from_batches(list(record_batches(deployment.code.load_asset(key, partition))))


def _examples(deployment: DeploymentAccess, dataset: Dataset, submission: Submission, form: str) -> Iterator[Example]:
    labels = _table(deployment, dataset, submission, "labels")
    # An example has the prompt as it was sent.
    sent = deployment.engine.deployment.sent_definition(dataset.labeling, submission).labeling
    with deployment.code.rows(replace(dataset, labeling=sent), submission.partition or None) as (rows, _):
        yield from fine_tuning(sent, rows, labels, form)


def _refuse_none(examples: Iterator[Example], asset: str) -> Iterator[Example]:
    """Yield the examples. Raises InputError if there are none, before a file is written."""
    first = next(examples, None)
    if first is None:
        raise InputError(
            f"There is no example: no row of '{asset}', as it is now, makes a request that has a label. Either nothing "
            "was labeled, or rows or prompt have changed since: put them back, or materialize the labels again."
        )
    yield first
    yield from examples


def _write_examples(examples: Iterator[Example], output: str) -> int:
    origin = nullcontext(None) if output == "-" else _written(str(provenance_path(Path(output))))
    with origin as origins, _written(output) as file:
        return write_example_lines(examples, file, origins)


def _write_table(table: pa.Table, output: str, form: str) -> int:
    if form == "csv" and (changed := count_formulas(table)):
        click.echo(
            f"{counted(changed, 'text', 'texts')} got an apostrophe in front, since a spreadsheet would run "
            f"{'it' if changed == 1 else 'them'} as a formula. For unchanged texts export to Parquet or JSON lines.",
            err=True,
        )
    if output == "-":
        STREAMED[form](table, sys.stdout.buffer)
        return len(table)
    try:
        return write_table(table, output, form)
    except OSError as error:
        raise click.FileError(output, error.strerror) from error


@contextmanager
def _written(output: str) -> Iterator[BinaryIO]:
    """Give the file to write to; it takes its name when it is complete."""
    if output == "-":
        yield sys.stdout.buffer
        return
    try:
        with whole(Path(output)) as half, half.open("wb") as file:
            yield file
    except OSError as error:
        raise click.FileError(output, error.strerror) from error
