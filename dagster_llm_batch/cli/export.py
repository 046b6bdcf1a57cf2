"""`export`: labels, rejects, or examples for fine-tuning, as one file."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import click
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from dagster_llm_batch.assets.dataset import Dataset
from dagster_llm_batch.cli.commands import Command, json_option
from dagster_llm_batch.cli.finding import find_dataset, partitions_of, partitions_options
from dagster_llm_batch.cli.show import as_json, print_json
from dagster_llm_batch.cli.where import Where, code_location_command
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.types import ResponseKind

__all__ = ["export_command"]

_FORMATS = ("parquet", "csv", "jsonl")


@click.command("export", cls=Command, short_help="Labels, rejects or fine-tuning examples, as a file.")
@click.argument("asset")
@partitions_options
@code_location_command
@click.option(
    "--what",
    type=click.Choice(["labels", "rejects", "fine-tuning"]),
    default="labels",
    show_default=True,
    help="fine-tuning: a line of messages (system, user, assistant) for each label, as OpenAI and others take them.",
)
@click.option("-o", "--output", required=True, type=click.Path(dir_okay=False), help="File; - for standard output.")
@click.option("--format", "form", type=click.Choice(_FORMATS), help="Default: by the file's ending, else jsonl.")
@json_option
def export_command(
    where: Where,
    asset: str,
    partitions: tuple[str, ...],
    partition_range: str | None,
    what: str,
    output: str,
    form: str | None,
    *,
    as_json: bool,
) -> None:
    """Export what the newest submission of an asset's partition came to; of several partitions, one after the other.

    Nothing is asked of a provider: results are read from the payload store. For fine-tuning, rows are loaded and
    rendered as for a submission, and only those whose request has a label are written, each request once.
    """
    ending = Path(output).suffix.removeprefix(".")
    form = form or (ending if ending in _FORMATS else "jsonl")
    _refuse_output(output, form, what, as_json=as_json)
    dataset = find_dataset(where, asset)
    wanted = partitions_of(where, dataset, partitions, partition_range)
    if what == "fine-tuning":
        _refuse_no_messages(dataset.labeling)
        lines = (line for one in wanted for line in _examples(where, dataset, one))
        with _written(output) as file:
            count = _write_lines(lines, file)
    else:
        table = pa.concat_tables([_table(where, dataset, one, what) for one in wanted], promote_options="default")
        with _written(output) as file:
            _WRITERS[form](table, file)
        count = len(table)
    if as_json:
        print_json({"output": str(Path(output).resolve()), "format": form, "what": what, "rows": count})
    elif output != "-":
        click.echo(f"{count:,} {'examples' if what == 'fine-tuning' else what} in {output}")


def _refuse_output(output: str, form: str, what: str, *, as_json: bool) -> None:
    if output == "-" and as_json:
        raise click.UsageError("--json and -o - would both write to standard output.")
    if output == "-" and form == "parquet":
        raise click.UsageError("Parquet is not for standard output; name a file.")
    if what == "fine-tuning" and form != "jsonl":
        raise click.UsageError(f"Examples for fine-tuning are written as jsonl, not {form}.")
    if output != "-" and not Path(output).parent.is_dir():
        raise click.UsageError(f"There is no folder {Path(output).parent}.")


def _table(where: Where, dataset: Dataset, partition: str | None, what: str) -> pa.Table:
    engine, name = where.engine, dataset.key.to_user_string()
    submission = engine.latest(name, partition or "")
    if submission is None:
        raise ConfigError(f"Nothing was submitted for {' '.join(filter(None, [name, partition]))}.")
    try:
        labeled = engine.labels(dataset.labeling, submission.submission_id)
    except FileNotFoundError as error:
        msg = f"A file of submission {submission.submission_id} is not in the payload store: {error}. Restore it there."
        raise ConfigError(msg) from error
    return labeled.labels if what == "labels" else labeled.rejects


def _refuse_no_messages(labeling: Labeling) -> None:
    if labeling.reader.format.kind is ResponseKind.EMBEDDING:
        raise ConfigError(f"'{labeling.asset}' gives embeddings; there are no replies to learn from.")
    if labeling.prompt.images:
        raise ConfigError(f"The prompt of '{labeling.asset}' has images, which are not exported for fine-tuning.")


def _examples(where: Where, dataset: Dataset, partition: str | None) -> Iterator[bytes]:
    """One line for each different request of the rows that has a label."""
    labeling = dataset.labeling
    labels = _table(where, dataset, partition, "labels")
    place = {request_id: number for number, request_id in enumerate(labels["llm_request_id"].to_pylist())}
    turns = [{"role": turn.role, "content": turn.text} for turn in labeling.prompt.turns]
    with where.code.rows(dataset, partition) as rows:
        for batch in record_batches(rows):
            if labeling.key not in batch.schema.names:
                raise InputError(f"The rows have no key column '{labeling.key}'.")
            renderer = labeling.prompt.renderer(batch.schema.names)
            for row in batch.to_pylist():
                request = renderer.render(row, row[labeling.key])
                number = place.pop(request.request_id, None)
                if number is None:
                    continue
                system = [] if request.system is None else [{"role": "system", "content": request.system}]
                reply = {"role": "assistant", "content": _reply(labeling, labels.slice(number, 1))}
                messages = [*system, *turns, {"role": "user", "content": request.user}, reply]
                yield _line({"messages": messages})


def _reply(labeling: Labeling, label: pa.Table) -> str:
    """What the labeled columns say, in the form that was asked for."""
    [values] = label.select(labeling.reader.schema.names).to_pylist()
    if labeling.reader.format.kind is ResponseKind.TEXT:
        return str(values["text"])
    for field in labeling.reader.fields:
        if field.metadata and b"as_json" in field.metadata and values[field.name] is not None:
            values[field.name] = json.loads(values[field.name])
    return json.dumps(as_json(values), ensure_ascii=False, separators=(",", ":"))


def _line(value: object) -> bytes:
    return json.dumps(as_json(value), ensure_ascii=False, default=str).encode() + b"\n"


def _write_lines(lines: Iterator[bytes], file: BinaryIO) -> int:
    count = 0
    for line in lines:
        file.write(line)
        count += 1
    return count


def _write_jsonl(table: pa.Table, file: BinaryIO) -> None:
    _write_lines((_line(row) for batch in table.to_batches() for row in batch.to_pylist()), file)


def _write_csv(table: pa.Table, file: BinaryIO) -> None:
    for number, field in enumerate(table.schema):
        if pa.types.is_nested(field.type):
            texts = [
                None if v is None else json.dumps(as_json(v), ensure_ascii=False) for v in table[number].to_pylist()
            ]
            table = table.set_column(number, field.name, pa.array(texts, pa.string()))
    pyarrow.csv.write_csv(table, file)


def _write_parquet(table: pa.Table, file: BinaryIO) -> None:
    pyarrow.parquet.write_table(table, file, compression="zstd")


_WRITERS: dict[str, Callable[[pa.Table, BinaryIO], None]] = {
    "parquet": _write_parquet,
    "csv": _write_csv,
    "jsonl": _write_jsonl,
}


@contextmanager
def _written(output: str) -> Iterator[BinaryIO]:
    """The file; it takes its name when it is complete."""
    if output == "-":
        yield sys.stdout.buffer
        return
    path = Path(output)
    half = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        file = half.open("wb")
    except OSError as error:
        raise click.FileError(output, error.strerror) from error
    try:
        with file:
            yield file
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)
