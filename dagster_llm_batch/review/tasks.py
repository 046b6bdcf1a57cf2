"""Rows as tasks of other tools, for people to judge there: Label Studio, Argilla, a spreadsheet.

Each task has a mark (`llm_row`) with the row's identity, and how it was drawn. It is one word that spreadsheets do not
take for a number or a date, and it holds its own digest. So an imported answer has the same row and weight, or is
refused (`task_answers.py`).

    label-studio  a list of tasks for its import, and the labeling configuration next to it
    argilla       records in the format of `records.to_json`, for `from_json`
    csv, parquet  a row for each task, with empty columns for the answer
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pyarrow as pa

from dagster_llm_batch.core.json_values import as_json
from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.exports.files import whole
from dagster_llm_batch.exports.tables import STREAMED
from dagster_llm_batch.review.forms import Field, LabelForm

__all__ = [
    "ANNOTATOR",
    "COMMENT",
    "MARK",
    "TASK_FORMATS",
    "TEXT",
    "UNDECIDABLE",
    "Task",
    "argilla_name",
    "read_mark",
    "words_of",
    "write_tasks",
]

MARK, TEXT, UNDECIDABLE, COMMENT, ANNOTATOR = "llm_row", "llm_text", "llm_undecidable", "llm_comment", "llm_annotator"

TASK_FORMATS = ("label-studio", "argilla", "csv", "parquet")

_CHANGED = f"{MARK} was changed: it is not as it was exported. Take it from the exported file."
_MARK_BEGIN = "row1"
_DIGEST_CHARS = 12
_CONFIG = ".xml"


@dataclass(frozen=True)
class Task:
    """A row to be judged. `shown` are columns that people read; `prediction` is a model's label, if it is shown."""

    dataset: str
    partition: str
    key: str
    shown: Mapping[str, Any]
    prompt: str = ""
    sample: Mapping[str, Any] | None = None
    prediction: Mapping[str, Any] | None = None
    model: str | None = None

    @property
    def mark(self) -> str:
        """The word that names the row, and how it was drawn."""
        held = json.dumps(
            [self.dataset, self.partition, self.key, as_json(self.sample)], sort_keys=True, ensure_ascii=False
        )
        body = base64.urlsafe_b64encode(held.encode("utf-8", "surrogatepass")).decode().rstrip("=")
        return f"{_MARK_BEGIN}.{body}.{_digest(body)}"

    @property
    def text(self) -> str:
        """Text that people read: the model's prompt, or else the columns."""
        return self.prompt or "\n\n".join(f"{name}: {as_text(value)}" for name, value in self.shown.items()) or self.key


def read_mark(mark: str, dataset: str) -> tuple[str, str, Mapping[str, Any] | None]:
    """Return partition, key and sample of a row. Raises InputError for a mark that does not fit the dataset."""
    begin, _, rest = mark.strip().partition(".")
    body, _, digest = rest.partition(".")
    if not mark.strip():
        raise InputError(f"{MARK} is empty, but it must identify the row. Take it from the exported file.")
    if begin != _MARK_BEGIN or digest != _digest(body):
        raise InputError(_CHANGED)
    try:
        held = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)).decode("utf-8", "surrogatepass"))
        owner, partition, key, sample = held
    except (binascii.Error, TypeError, ValueError) as error:
        raise InputError(_CHANGED) from error
    if owner != dataset:
        raise InputError(f"This is a row of '{owner}', not of '{dataset}'. Take a file of '{dataset}'.")
    return partition, key, sample


def write_tasks(tasks: Sequence[Task], form: LabelForm, path: Path, format_name: str) -> list[Path]:
    """Write tasks as one file, and the tool's configuration next to it; return the written paths.

    Raises ConfigError for an unknown format, and for a format that lacks names for the form's questions.
    """
    if format_name == "label-studio":
        config = path.with_name(path.name + _CONFIG)
        with whole(config) as half:
            half.write_text(_config(form), "utf-8")
        _write_json([_studio_task(task, form) for task in tasks], path)
        return [path, config]
    if format_name == "argilla":
        names = [argilla_name(field) for field in form.fields]
        if len(set(names)) < len(names):
            raise ConfigError(f"Argilla's names of questions are lower case; these are alike then: {', '.join(names)}.")
        _write_json([_record(task, form) for task in tasks], path)
        return [path]
    if format_name not in STREAMED or format_name == "jsonl":
        raise ConfigError(f"There is no format {format_name!r} of tasks; there are {', '.join(TASK_FORMATS)}.")
    with whole(path) as half, half.open("wb") as file:
        STREAMED[format_name](_table(tasks, form), file)
    return [path]


def words_of(field: Field) -> dict[str, str]:
    """Return the choices of a question as people see them, each with its value as JSON. All are different."""
    words = [words for _, words in field.choices]
    is_plain = len(set(words)) == len(words)
    return {shown if is_plain else value: value for value, shown in field.choices}


def argilla_name(field: Field) -> str:
    """Return a question's name by Argilla's rule: lower case letters, digits, - and _."""
    return re.sub(r"[^a-z0-9_-]", "-", field.name.lower())


def as_text(value: Any) -> str:
    """Return a value as people read it."""
    plain = as_json(value)
    return plain if isinstance(plain, str) else json.dumps(plain, ensure_ascii=False, default=str)


def _digest(body: str) -> str:
    return hashlib.blake2b(body.encode(), digest_size=32).hexdigest()[:_DIGEST_CHARS]


def _write_json(value: Any, path: Path) -> None:
    with whole(path) as half, half.open("w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=1, default=str)


def _config(form: LabelForm) -> str:
    """Return Label Studio's labeling configuration: a text, and a control for each question."""
    view = ET.Element("View")
    ET.SubElement(view, "Text", name=TEXT, value=f"${TEXT}")
    for field in form.fields:
        ET.SubElement(view, "Header", value=field.title, size="5")
        if field.description:
            ET.SubElement(view, "Header", value=field.description, size="6")
        if field.kind in ("choice", "choices"):
            many = "single" if field.kind == "choice" else "multiple"
            choices = ET.SubElement(view, "Choices", name=field.name, toName=TEXT, choice=many, showInline="true")
            for number, words in enumerate(words_of(field), 1):
                hotkey: dict[str, str] = {"hotkey": str(number)} if form.is_one_choice and number < 10 else {}  # noqa: PLR2004 - keys
                ET.SubElement(choices, "Choice", hotkey, value=words)
        elif field.kind in ("number", "integer"):
            step = {"step": "1"} if field.kind == "integer" else {}
            ET.SubElement(view, "Number", step, name=field.name, toName=TEXT)
        else:
            most = {} if field.kind == "lines" else {"maxSubmissions": "1"}
            ET.SubElement(view, "TextArea", most, name=field.name, toName=TEXT, editable="true", rows="3")
    undecidable = ET.SubElement(view, "Choices", name=UNDECIDABLE, toName=TEXT, showInline="true")
    ET.SubElement(undecidable, "Choice", value="Not decidable")
    ET.SubElement(view, "TextArea", name=COMMENT, toName=TEXT, placeholder="Comment", maxSubmissions="1")
    return ET.tostring(view, "unicode")


def _studio_task(task: Task, form: LabelForm) -> dict[str, Any]:
    data = {TEXT: task.text, MARK: task.mark, "partition": task.partition or None, form.key: task.key}
    shown = {name: as_text(value) for name, value in task.shown.items()}
    made: dict[str, Any] = {"data": {**shown, **data}}
    if task.prediction is not None:
        result = [
            {"from_name": field.name, "to_name": TEXT, "type": kind, "value": value}
            for field, text in _predicted(task, form)
            for kind, value in [_studio_value(field, text)]
        ]
        made["predictions"] = [{"model_version": task.model or "model", "result": result}]
    return made


def _studio_value(field: Field, text: str) -> tuple[str, dict[str, Any]]:
    if field.kind in ("choice", "choices"):
        return "choices", {"choices": _words(field, text)}
    if field.kind in ("number", "integer"):
        return "number", {"number": json.loads(text)}
    return "textarea", {"text": text.splitlines() if field.kind == "lines" else [text]}


def _record(task: Task, form: LabelForm) -> dict[str, Any]:
    suggestions = {
        argilla_name(field): {"value": _suggested(field, text), "score": None, "agent": task.model}
        for field, text in (_predicted(task, form) if task.prediction is not None else ())
    }
    return {
        "id": task.mark,
        "fields": {TEXT: task.text},
        "metadata": {"partition": task.partition, "key": task.key},
        "suggestions": suggestions,
        "responses": {},
        "vectors": {},
    }


def _suggested(field: Field, text: str) -> Any:
    if field.kind == "choices":
        return _words(field, text)
    return _words(field, text)[0] if field.kind == "choice" else text


def _predicted(task: Task, form: LabelForm) -> list[tuple[Field, str]]:
    """Return the questions that the model answered, each with its answer as forms have it."""
    given = form.given(task.prediction or {})
    return [(field, given[field.name]) for field in form.fields if given.get(field.name)]


def _words(field: Field, text: str) -> list[str]:
    shown = {value: words for words, value in words_of(field).items()}
    return [shown.get(value, value) for value in text.splitlines()]


def _table(tasks: Sequence[Task], form: LabelForm) -> pa.Table:
    """Return the tasks as rows: mark and key, text for people, a model's label, and columns for the answer."""
    asked = [field.name for field in form.fields]
    own = {MARK, TEXT, UNDECIDABLE, COMMENT, ANNOTATOR, "partition", form.key, *asked}
    shown = [name for name in _names(task.shown for task in tasks) if name not in own]
    columns: dict[str, list[Any]] = {
        MARK: [task.mark for task in tasks],
        "partition": [task.partition or None for task in tasks],
        form.key: [task.key for task in tasks],
        **{name: [None if (v := task.shown.get(name)) is None else as_text(v) for task in tasks] for name in shown},
        TEXT: [task.prompt or None for task in tasks],
    }
    if any(task.prediction is not None for task in tasks):
        for field in form.fields:
            said = [{each.name: text for each, text in _predicted(task, form)}.get(field.name) for task in tasks]
            columns[f"model_{field.name}"] = [None if text is None else "\n".join(_words(field, text)) for text in said]
    columns |= {name: [None] * len(tasks) for name in [*asked, UNDECIDABLE, COMMENT, ANNOTATOR]}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def _names(mappings: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for each in mappings for name in each))
