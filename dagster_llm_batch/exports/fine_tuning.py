"""Examples for fine-tuning: each different request that has a label, with its answer.

    openai     {"messages": [{"role": "system", …}, {"role": "user", …}, {"role": "assistant", …}]}
    anthropic  {"system": "…", "messages": [{"role": "user", …}, {"role": "assistant", …}]}, for Claude on Bedrock

Neither form has a place for the provenance of an example, so a second file has it, line by line. Few-shot turns of the
prompt are part of every example; images and embeddings have no form here.

Formats: https://platform.openai.com/docs/guides/supervised-fine-tuning,
https://docs.aws.amazon.com/bedrock/latest/userguide/model-customization-prepare.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import dagster as dg
import pyarrow as pa

from dagster_llm_batch.assets.dataset import dataset_of
from dagster_llm_batch.core.label_join import PROVENANCE
from dagster_llm_batch.core.response import reply_text
from dagster_llm_batch.core.rows import record_batches, values_of
from dagster_llm_batch.engine import Labeling
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.exports.files import whole
from dagster_llm_batch.exports.tables import json_line
from dagster_llm_batch.types import Request, ResponseKind

__all__ = [
    "EXAMPLE_FORMS",
    "Example",
    "check_examples",
    "fine_tuning",
    "provenance_path",
    "write_example_lines",
    "write_examples",
]


class Example(NamedTuple):
    """One line of a fine-tuning file, and where it comes from: the key of a row and its `llm_…` columns."""

    line: Mapping[str, Any]
    provenance: Mapping[str, Any]


def fine_tuning(
    definition: Labeling | Iterable[dg.AssetsDefinition], rows: Any, labels: Any, form: str = "openai"
) -> Iterator[Example]:
    """Return one example for each different request of the rows that has a label, in the order of the rows.

    Args:
        definition: The assets from llm_batch_assets, or a Labeling. Its prompt makes the requests again.
        rows: The rows that were labeled, as a frame or a stream of record batches.
        labels: Their labeled table, unchanged.
        form: "openai" or "anthropic".

    Raises:
        ConfigError: The form or the definition is unknown, or does not support these requests (images, embeddings).
        InputError: The rows lack the key, or the labels their own columns.
    """
    labeling = definition if isinstance(definition, Labeling) else dataset_of(definition).labeling
    check_examples(labeling, form)
    return _examples(labeling, rows, pa.Table.from_batches(list(record_batches(labels))), EXAMPLE_FORMS[form])


def check_examples(labeling: Labeling, form: str) -> None:
    """Refuse a definition that has no examples in this form, with ConfigError; see fine_tuning."""
    if form not in EXAMPLE_FORMS:
        raise ConfigError(f"There is no form {form!r} of examples; the forms are {', '.join(EXAMPLE_FORMS)}.")
    if (kind := labeling.reader.format.kind) in (ResponseKind.EMBEDDING, ResponseKind.MODERATION):
        raise ConfigError(f"'{labeling.asset}' gives {kind.value}s; there are no replies to learn from.")
    for what, columns in (("images", labeling.prompt.images), ("documents", labeling.prompt.documents)):
        if columns:
            raise ConfigError(f"The prompt of '{labeling.asset}' has {what}, which are not exported for fine-tuning.")


def _examples(
    labeling: Labeling, rows: Any, labels: pa.Table, line_of: Callable[[Labeling, Request, str], dict[str, Any]]
) -> Iterator[Example]:
    lacking = {"llm_request_id", labeling.key, *labeling.reader.schema.names} - {*labels.schema.names}
    if lacking:
        raise InputError(f"The labels of '{labeling.asset}' lack the columns {', '.join(sorted(lacking))}.")
    place: dict[str, int] = {}
    for number, request_id in enumerate(labels["llm_request_id"].to_pylist()):
        # of rows that share a request, the first
        place.setdefault(request_id, number)
    origin = labels.select([labeling.key, *(name for name in PROVENANCE if name in labels.schema.names)])
    mask = labeling.mask
    keys = labels[labeling.key].to_pylist() if mask and mask.restore else []
    for original in record_batches(rows, labeling.columns_read):
        batch = original if mask is None or not original.num_columns else mask.apply(original)[0]
        if labeling.key not in batch.schema.names:
            raise InputError(f"The rows have no key column '{labeling.key}'.")
        renderer = labeling.prompt.renderer(batch.schema.names)
        columns = values_of(batch)
        for number, values in enumerate(zip(*columns.values(), strict=True)):
            row = dict(zip(columns, values, strict=True))
            request = renderer.render(row, row[labeling.key])
            at = place.get(request.request_id)
            # Another row may make the same request of other values.
            if at is not None and not (mask and mask.restore and keys[at] != row[labeling.key]):
                del place[request.request_id]
                again = None
                if mask is not None and mask.restore:
                    [values_of_row] = original.select(mask.columns).slice(number, 1).to_pylist()
                    again = partial(mask.masked_again, row=values_of_row)
                reply = _reply(labeling, labels.slice(at, 1), again)
                [provenance] = origin.slice(at, 1).to_pylist()
                yield Example(line_of(labeling, request, reply), provenance)


def _turns(labeling: Labeling, request: Request, reply: str) -> list[dict[str, str]]:
    turns = [{"role": turn.role, "content": turn.text} for turn in labeling.prompt.turns]
    return [*turns, {"role": "user", "content": request.user}, {"role": "assistant", "content": reply}]


def _openai(labeling: Labeling, request: Request, reply: str) -> dict[str, Any]:
    system = [] if request.system is None else [{"role": "system", "content": request.system}]
    return {"messages": [*system, *_turns(labeling, request, reply)]}


def _anthropic(labeling: Labeling, request: Request, reply: str) -> dict[str, Any]:
    system = {} if request.system is None else {"system": request.system}
    return {**system, "messages": _turns(labeling, request, reply)}


EXAMPLE_FORMS = {"openai": _openai, "anthropic": _anthropic}
"""Forms of examples by name."""


def write_examples(examples: Iterable[Example], path: str | Path) -> int:
    """Write examples as JSON lines, and a second file with the provenance of each; return their number.

    The line of `train.jsonl` and the line of the same number in `train.provenance.jsonl` belong together.
    """
    path = Path(path)
    origins = whole(provenance_path(path))
    with origins as beside, whole(path) as half, beside.open("wb") as origin, half.open("wb") as file:
        return write_example_lines(examples, file, origin)


def write_example_lines(examples: Iterable[Example], file: BinaryIO, origin: BinaryIO | None) -> int:
    """Write examples, and where they come from, into open files."""
    count = 0
    for example in examples:
        file.write(json_line(example.line))
        if origin is not None:
            origin.write(json_line(example.provenance))
        count += 1
    return count


def provenance_path(path: Path) -> Path:
    """Return where the origins of a file's examples are."""
    return path.with_name(f"{path.stem}.provenance.jsonl")


def _reply(labeling: Labeling, label: pa.Table, again: Callable[[Any], Any] | None = None) -> str:
    """Return the labeled columns as the text of a reply, in the response's format.

    `again` puts placeholders into a value where it was restored.
    """
    [values] = label.select(labeling.reader.schema.names).to_pylist()
    if labeling.reader.format.kind is ResponseKind.TEXT:
        return str(values["text"] if again is None else again(values["text"]))
    return reply_text(values, labeling.reader.schema, again)
