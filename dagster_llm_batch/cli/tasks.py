"""Rows as tasks of other tools (`export-tasks`), and what people said there (`import-judgments`)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import dagster as dg
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.assets.dataset import Dataset
from dagster_llm_batch.cli.commands import Command, json_option
from dagster_llm_batch.cli.completion import complete_assets
from dagster_llm_batch.cli.deployment import DeploymentAccess, code_location_command
from dagster_llm_batch.cli.output import print_json
from dagster_llm_batch.cli.selection import find_dataset, partitions_option
from dagster_llm_batch.core.json_values import as_json
from dagster_llm_batch.core.keys import key_digest
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.errors import ConfigError, InputError, LLMBatchError
from dagster_llm_batch.files.request_files import requests_of
from dagster_llm_batch.review.forms import LabelForm, form_of_labeling
from dagster_llm_batch.review.masked_rows import hidden_row, hidden_text, row_masks
from dagster_llm_batch.review.prompts import asked_last, read_body
from dagster_llm_batch.review.task_answers import read_answers, take_answers
from dagster_llm_batch.review.tasks import TASK_FORMATS, Task, write_tasks
from dagster_llm_batch.storage.ledger.records import Judgment

__all__ = ["export_tasks_command", "import_judgments_command"]

_SAMPLE, _PROVENANCE, _PARTITION = "sample_", "llm_", "partition"
_ENDINGS = {".csv": "csv", ".parquet": "parquet"}


@click.command("export-tasks", cls=Command, examples=["moods -f labels.py -o tasks.csv"])
@click.argument("asset", shell_complete=complete_assets)
@partitions_option("Partition of the table, repeatable. Default: all.")
@code_location_command
@click.option("--of", "table", help="Table with the rows to judge, such as a sample. Default: the asset's labels.")
@click.option("-o", "--output", "path", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File.")
@click.option(
    "--format", "format_name", type=click.Choice(TASK_FORMATS), help="Default: by the file's ending (.csv, .parquet)."
)
@click.option("--predictions", is_flag=True, help="Show people the model's label. People tend to follow it.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@json_option
def export_tasks_command(
    deployment: DeploymentAccess,
    asset: str,
    partitions: tuple[str, ...],
    table: str | None,
    path: Path,
    format_name: str | None,
    *,
    predictions: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Write rows of an asset to a file for people to judge in another tool. A mark in each row identifies it.

    For Label Studio, the labeling configuration is written beside the file. `import-judgments` reads judgments back.
    """
    format_name = format_name or _format_of(path)
    if not path.parent.is_dir():
        raise click.UsageError(f"There is no folder {path.parent}.")
    if path.exists() and not force:
        raise click.UsageError(f"There is a file {path} already. Name another one, or give --force to replace it.")
    dataset = find_dataset(deployment, asset)
    form = _form(dataset)
    tasks = _tasks(deployment, dataset, form, table, partitions, predictions=predictions)
    files = write_tasks(tasks, form, path, format_name)
    if as_json:
        print_json({"files": [str(file.resolve()) for file in files], "format": format_name, "tasks": len(tasks)})
    else:
        click.echo(f"{len(tasks):,} tasks in {' and '.join(map(str, files))}")


@click.command("import-judgments", cls=Command, examples=["moods tasks.csv --annotator ada -f labels.py"])
@click.argument("asset", shell_complete=complete_assets)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@code_location_command
@click.option(
    "--format", "format_name", type=click.Choice(TASK_FORMATS), help="Default: by the file's ending (.csv, .parquet)."
)
@click.option("--annotator", help="Name of the person who judged, if llm_annotator is empty in the file.")
@json_option
def import_judgments_command(
    deployment: DeploymentAccess,
    asset: str,
    file: Path,
    format_name: str | None,
    annotator: str | None,
    *,
    as_json: bool,
) -> None:
    """Import judgments from another tool into the ledger, like judgments on the page of `review`.

    FILE is a completed file of `export-tasks`, or an export of Label Studio (JSON) or Argilla (`records.to_json`). The
    command imports all of it or nothing. Judgments that were imported before are skipped.
    """
    dataset = find_dataset(deployment, asset)
    form = _form(dataset)
    answers = read_answers(file, form, format_name or _format_of(file), annotator)
    judgments = deployment.ledger.judgments
    said = judgments.read(deployment.namespace, dataset.name)
    taken = take_answers(answers, form, deployment.namespace, said, datetime.now(UTC))
    kept = _without_erased(deployment, dataset, taken.judgments)
    judgments.add_all(kept)
    erased = len(taken.judgments) - len(kept)
    figures = {"imported": len(kept), "there_already": taken.known, "older": taken.older, "erased": erased}
    if as_json:
        print_json(figures)
        return
    notes = [
        f"{taken.known:,} were there already" if taken.known else "",
        f"{taken.older:,} are older than what stands" if taken.older else "",
        f"{erased:,} are of rows that were erased, and were left out" if erased else "",
    ]
    click.echo("; ".join(filter(None, [f"{len(kept):,} judgments imported", *notes])) + ".")


def _form(dataset: Dataset) -> LabelForm:
    form = form_of_labeling(dataset.name, dataset.labeling)
    if form is None:
        raise ConfigError(f"The answers of '{dataset.name}' are vectors, which people cannot judge.")
    return form


def _tasks(
    deployment: DeploymentAccess,
    dataset: Dataset,
    form: LabelForm,
    table: str | None,
    partitions: Collection[str],
    *,
    predictions: bool,
) -> list[Task]:
    """Return the rows of a table, or of the dataset's labels, as tasks."""
    key = dataset.key if table is None else dg.AssetKey.from_user_string(table)
    places = {(partition, row_key): row for partition, row_key, row in _rows(deployment, key, partitions, form)}
    if not places:
        raise InputError(f"{key.to_user_string()} has no rows to judge. Materialize it, or name another partition.")
    known = _known(deployment, dataset, form, {row_key for _, row_key in places})
    # A table without partitions may be of rows of a dataset that has some.
    by_key = {row_key: row for (_, row_key), row in known.items()}
    prompts = _prompts(deployment, dataset, {partition for partition, _ in known}, known.values())
    hidden = form.hidden | {_PARTITION, form.key}
    tasks, code = [], deployment.code
    mask = row_masks(code.specs, code.all_datasets.values()).get(dataset.key)
    hide = hidden_row(mask, is_ours=True) if mask else None
    hide_sent = hidden_text(mask, dataset.labeling.mask) if mask else None
    for (partition, row_key), own in places.items():
        labeled = known.get((partition, row_key)) or by_key.get(row_key, {})
        prompt = prompts.get(str(labeled.get("llm_request_id")), "")
        sample: Mapping[str, Any] = {name: as_json(value) for name, value in own.items() if name.startswith(_SAMPLE)}
        if hide is not None:
            labeled, sample = hide(labeled, form.key), hide(sample, form.key)
        if hide_sent is not None:
            prompt = hide_sent(prompt)
        said = {field.path[0]: labeled.get(field.path[0]) for field in form.fields}
        # Without the candidate's label and the reason for the proposal, which people would follow.
        shown = {n: v for n, v in labeled.items() if n not in hidden and not n.startswith(_PROVENANCE)}
        tasks.append(
            Task(
                dataset=dataset.name,
                partition=partition,
                key=row_key,
                shown={name: value for name, value in shown.items() if value is not None},
                prompt=prompt,
                sample=sample or None,
                prediction=said if predictions and labeled.get("llm_outcome") == "succeeded" else None,
                model=labeled.get("llm_model"),
            )
        )
    return tasks


def _format_of(path: Path) -> str:
    if path.suffix not in _ENDINGS:
        raise click.UsageError(f"Name the format by --format: {', '.join(TASK_FORMATS)}.")
    return _ENDINGS[path.suffix]


def _rows(
    deployment: DeploymentAccess, key: dg.AssetKey, partitions: Collection[str], form: LabelForm
) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield partition ("" without), key as text, and the row itself, of each row of a table."""
    names = {spec.key for spec in deployment.code.specs}
    if key not in names:
        raise ConfigError(
            f"There is no table {key.to_user_string()!r} in this code location. Give --of the key of an asset, with "
            "its prefix."
        )
    for partition in sorted(deployment.code.stored_places(key)):
        if partitions and partition not in partitions:
            continue
        for batch in record_batches(deployment.code.load_asset(key, partition or None)):
            if form.key not in batch.schema.names:
                raise InputError(
                    f"{key.to_user_string()} has no column {form.key!r} that names the rows. Give --of a table "
                    "that has it."
                )
            keys = pc.cast(batch.column(form.key), pa.string()).to_pylist()
            for row_key, row in zip(keys, batch.to_pylist(), strict=True):
                if row_key is not None:
                    yield partition, row_key, row


def _known(
    deployment: DeploymentAccess, dataset: Dataset, form: LabelForm, wanted: Collection[str]
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Return these rows of the dataset's labels and rejects, by partition and key."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {}
    for key in (dataset.rejects_key, dataset.key):
        if deployment.code.stored_places(key):
            for partition, row_key, row in _rows(deployment, key, (), form):
                if row_key in wanted:
                    found[partition, row_key] = row
    return found


def _prompts(
    deployment: DeploymentAccess, dataset: Dataset, partitions: Collection[str], rows: Collection[Mapping[str, Any]]
) -> dict[str, str]:
    """Return the last prompt of each request as text. Each request file is read once."""
    wanted = {str(row["llm_request_id"]) for row in rows if row.get("llm_request_id")}
    found: dict[str, str] = {}
    for partition in partitions:
        for submission in deployment.ledger.submissions.of_partition(deployment.namespace, dataset.name, partition):
            for shard in deployment.ledger.shards.of_submission(submission.submission_id):
                if wanted <= found.keys():
                    return found
                try:
                    for request_id, line in requests_of(deployment.payloads, shard.path, shard.nonce):
                        if request_id in wanted:
                            parts = asked_last(read_body(line))
                            found[request_id] = "\n\n".join(
                                part.text or ("[document]" if part.document else "[image]") for part in parts
                            )
                # After prune or erase, only the kept columns are left.
                except (OSError, LLMBatchError):
                    continue
    return found


def _without_erased(deployment: DeploymentAccess, dataset: Dataset, judgments: Sequence[Judgment]) -> list[Judgment]:
    stones = [
        stone
        for stone in deployment.ledger.tombstones.list_all(deployment.namespace, dataset.name)
        if stone.undone_at is None
    ]
    return [
        judgment
        for judgment in judgments
        if not any(
            stone.partition in (None, judgment.partition) and stone.digest == key_digest(stone.salt, judgment.row_key)
            for stone in stones
        )
    ]
