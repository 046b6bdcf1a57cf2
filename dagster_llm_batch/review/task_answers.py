"""Read back people's answers from other tools: row, person, time. A file is taken whole, or refused with a message."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dagster_llm_batch.errors import ConfigError, InputError
from dagster_llm_batch.review.forms import Field, LabelForm
from dagster_llm_batch.review.tasks import (
    ANNOTATOR,
    COMMENT,
    MARK,
    UNDECIDABLE,
    argilla_name,
    read_mark,
    words_of,
)
from dagster_llm_batch.storage.ledger.judgments import standing_judgments
from dagster_llm_batch.storage.ledger.records import Judgment

__all__ = ["GivenAnswer", "Taken", "read_answers", "take_answers"]

_MOST_SHOWN = 10
_MOST_NAME = 200
_MOST_COMMENT = 5_000
_LONGEST_FIELD = 10_000_000
_IMPORTED = "import-"
_YES = {"x", "yes", "true", "1", "wahr", "ja", "oui", "not decidable"}
_TRUTHS = {"true": "true", "yes": "true", "wahr": "true", "false": "false", "no": "false", "falsch": "false"}
_FORMULA_SIGNS = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")


@dataclass(frozen=True)
class GivenAnswer:
    """One person's answer to one row. `where` is its place in the file; `at` is None if the file has no time."""

    where: str
    mark: str
    annotator: str
    kind: str
    given: Mapping[str, str]
    comment: str = ""
    at: datetime | None = None
    seconds: float | None = None
    shown_key: str | None = None


@dataclass(frozen=True)
class Taken:
    """Result of a file: `judgments` are new; `known` existed already; `older` are older than the standing ones."""

    judgments: tuple[Judgment, ...]
    known: int = 0
    older: int = 0


def read_answers(path: Path, form: LabelForm, format_name: str, annotator: str | None = None) -> list[GivenAnswer]:
    """Return the answers in a file of this format. Rows without an answer are left out.

    `annotator` is the person who judged if the file names nobody. Raises InputError for a file of another format.
    """
    if format_name in ("label-studio", "argilla"):
        read = _from_studio if format_name == "label-studio" else _from_argilla
        records = _json_list(path)
        try:
            return list(read(records, form))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path.name} is not as {format_name} exports it: {error}.") from error
    if format_name not in ("csv", "parquet"):
        raise ConfigError(f"There is no format {format_name!r}; there are label-studio, argilla, csv and parquet.")
    rows = _csv_rows(path) if format_name == "csv" else _parquet_rows(path)
    return list(_from_rows(rows, form, annotator))


def take_answers(
    answers: Sequence[GivenAnswer],
    form: LabelForm,
    namespace: str,
    standing: Sequence[Judgment],
    now: datetime,
) -> Taken:
    """Return these answers as judgments, without standing ones: importing a file twice adds nothing.

    Args:
        answers: From `read_answers`.
        form: The questions of the dataset.
        namespace: Of the deployment.
        standing: All judgments of the dataset's rows so far, in their order.
        now: Time of an answer without a time of its own.

    Raises:
        InputError: Some answers are invalid: the message lists each, and all are refused.
    """
    stands = {(one.annotator, one.partition, one.row_key): one for one in standing_judgments(standing)}
    there = {one.form_id for one in standing}
    imported: dict[tuple[str, str, str], list[Judgment]] = {}
    for one in standing:
        if one.form_id.startswith(_IMPORTED):
            imported.setdefault((one.annotator, one.partition, one.row_key), []).append(one)
    wrong: list[str] = []
    seen: dict[tuple[str, str, str], GivenAnswer] = {}
    made: list[Judgment] = []
    known = older = 0
    for answer in answers:
        try:
            partition, key, sample = read_mark(answer.mark, form.dataset)
            _refuse_other_key(answer, key, form.key)
            place = (answer.annotator, partition, key)
            if (twice := seen.get(place)) is not None:
                if (twice.kind, twice.given, twice.comment) != (answer.kind, answer.given, answer.comment):
                    raise InputError(f"{answer.annotator} gave another answer for this row in {twice.where}. Keep one.")
                continue
            seen[place] = answer
            said = form.answer(answer.given) if answer.kind == "label" else None
        except InputError as error:
            wrong.append(f"{answer.where}: {error}")
            continue
        comment = answer.comment.strip()[:_MOST_COMMENT] or None
        before, told = stands.get(place), (answer.kind, said, comment)
        form_id = _form_id(place, answer.kind, said, comment, before)
        # One that was undone on the page stays undone.
        if form_id in there or (before is not None and _told(before) == told):
            known += 1
        elif before is not None and answer.at is not None and answer.at <= before.at:
            older += 1
        elif (
            before is not None
            and answer.at is None
            and not before.form_id.startswith(_IMPORTED)
            and any(_told(one) == told for one in imported.get(place, ()))
        ):
            # It was imported before, and the person has changed the answer on the page since.
            older += 1
        else:
            made.append(
                Judgment(
                    form_id=form_id,
                    namespace=namespace,
                    dataset=form.dataset,
                    partition=partition,
                    row_key=key,
                    annotator=answer.annotator,
                    kind=answer.kind,
                    answer=said,
                    comment=comment,
                    seconds=answer.seconds,
                    sample=sample,
                    at=answer.at or now,
                )
            )
    if wrong:
        more = f"\n… and {len(wrong) - _MOST_SHOWN:,} more" if len(wrong) > _MOST_SHOWN else ""
        listed = "\n".join(wrong[:_MOST_SHOWN])
        raise InputError(
            f"{len(wrong):,} of {len(answers):,} answers cannot be taken, so the file was refused.\n{listed}{more}"
        )
    return Taken(tuple(made), known, older)


def _told(judgment: Judgment) -> tuple[str, Any, str | None]:
    return judgment.kind, judgment.answer, judgment.comment


def _form_id(place: tuple[str, str, str], kind: str, said: Any, comment: str | None, before: Judgment | None) -> str:
    """Return the same id whenever the same answer takes the place of the same one: so two imports at once add one."""
    held = json.dumps([place, kind, said, comment, before and before.form_id], sort_keys=True)
    return f"{_IMPORTED}{hashlib.blake2b(held.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"


def _refuse_other_key(answer: GivenAnswer, key: str, column: str) -> None:
    shown = answer.shown_key
    if shown is None or shown == key or _without_sign(shown) == key:
        return
    # A reformatted key (00123 as 123, 2026-01-02 as a local date) passes: the mark has the key. A sorted column does
    # not.
    if _looks_reformatted(shown, key):
        return
    raise InputError(
        f"{MARK} belongs to row '{key}', but {column} is '{shown}': the id was edited, or columns were sorted apart "
        "from each other. Take both from the exported file."
    )


def _looks_reformatted(shown: str, key: str) -> bool:
    """Return whether a spreadsheet makes the one of the other: both are dates, or the same number."""
    try:
        return float(shown.replace(",", ".")) == float(key)
    except ValueError:
        pass
    try:
        day = datetime.fromisoformat(key)
    except ValueError:
        return False
    # 02.01.2026, 1/2/26 or 2-Jan-26 is the same day; 2026-01-03 is another.
    found = [int(number) for number in re.findall(r"[0-9]+", shown)[:3]]
    parts = [day.day, day.month, day.year, day.year % 100]
    return len(found) > 1 and day.day in found and all(number in parts for number in found)


def _json_list(path: Path) -> list[Any]:
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8. Export it as JSON once more.") from error
    except (RecursionError, ValueError) as error:
        raise InputError(f"{path.name} is no JSON: {error}. Export it as JSON (not JSON-MIN, not CSV).") from error
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise InputError(f"{path.name} is no list of tasks or records. Export it as JSON (not JSON-MIN).")
    return value


def _from_studio(tasks: Iterable[Mapping[str, Any]], form: LabelForm) -> Iterator[GivenAnswer]:
    for number, task in enumerate(tasks, 1):
        data, annotations = task.get("data"), task.get("annotations")
        if not isinstance(data, Mapping) or not isinstance(annotations, list):
            raise InputError(f"Task {number} has no data and annotations. Export it as JSON (not JSON-MIN).")
        newest: dict[str, Mapping[str, Any]] = {}
        for annotation in annotations:
            who = _studio_person(annotation.get("completed_by"))
            last = newest.get(who)
            # Somebody may annotate a task again: the last one counts.
            if last is None or _studio_time(annotation) >= _studio_time(last):
                newest[who] = annotation
        for who, annotation in newest.items():
            where = f"task {task.get('id', number)}, annotation {annotation.get('id', '')}".rstrip(" ,")
            kind, given, comment = _studio_said(annotation, form, where)
            if kind is not None:
                lead = annotation.get("lead_time")
                seconds = float(lead) if isinstance(lead, (int, float)) and lead >= 0 else None
                at, mark = _studio_time(annotation), str(data.get(MARK) or "")
                shown = None if data.get(form.key) is None else str(data[form.key])
                yield GivenAnswer(where, mark, who, kind, given, comment, at, seconds, shown)


def _studio_said(annotation: Mapping[str, Any], form: LabelForm, where: str) -> tuple[str | None, dict[str, str], str]:
    fields = {field.name: field for field in form.fields}
    given: dict[str, str] = {}
    comment, undecidable = "", False
    for result in annotation.get("result") or []:
        name, value = result.get("from_name"), result.get("value") or {}
        texts = [str(text) for text in value.get("choices") or value.get("text") or []]
        if name == COMMENT:
            comment = "\n".join(texts)
        elif name == UNDECIDABLE:
            undecidable = bool(texts)
        elif name in fields:
            field = fields[name]
            number = value.get("number")
            words = [_number_text(number)] if number is not None else texts
            given[field.name] = _form_text(field, words)
        else:
            known = ", ".join([*fields, UNDECIDABLE, COMMENT])
            raise InputError(
                f"{where}: there is no question {name!r}; there are {known}. Use the labeling configuration that was "
                "exported with the tasks."
            )
    if annotation.get("was_cancelled"):
        return "skip", {}, comment
    if undecidable:
        return "undecidable", {}, comment
    return ("label" if given or comment else None), given, comment


def _studio_person(completed_by: Any) -> str:
    if isinstance(completed_by, Mapping):
        completed_by = completed_by.get("email") or completed_by.get("id")
    text = str(completed_by or "unknown")[:_MOST_NAME]
    return text if "@" in text else f"label-studio:{text}"


def _studio_time(annotation: Mapping[str, Any]) -> datetime:
    for name in ("updated_at", "created_at"):
        try:
            at = datetime.fromisoformat(str(annotation.get(name)))
        except ValueError:
            continue
        return at if at.tzinfo else at.replace(tzinfo=UTC)
    return datetime.fromtimestamp(0, UTC)


def _from_argilla(records: Iterable[Mapping[str, Any]], form: LabelForm) -> Iterator[GivenAnswer]:
    fields = {argilla_name(field): field for field in form.fields}
    for number, record in enumerate(records, 1):
        responses = record.get("responses")
        if not isinstance(responses, Mapping):
            raise InputError(f"Record {number} has no responses. Export with dataset.records(…).to_json(…).")
        by_person: dict[str, dict[str, Any]] = {}
        for question, given in responses.items():
            for one in given or []:
                by_person.setdefault(str(one.get("user_id")), {})[question] = one.get("value")
        for who, said in by_person.items():
            where = f"record {number}, user {who}"
            if unknown := sorted(set(said) - {*fields, UNDECIDABLE, COMMENT}):
                raise InputError(f"{where}: there is no question {unknown[0]!r}; there are {', '.join(fields)}.")
            given_texts = {
                fields[name].name: _form_text(
                    fields[name], [str(v) for v in (value if isinstance(value, list) else [value])]
                )
                for name, value in said.items()
                if name in fields and value not in (None, "", [])
            }
            undecidable = str(said.get(UNDECIDABLE) or "").strip().lower() in _YES
            kind = "undecidable" if undecidable else "label"
            if undecidable or given_texts:
                mark, comment = str(record.get("id") or ""), str(said.get(COMMENT) or "")
                yield GivenAnswer(where, mark, f"argilla:{who}"[:_MOST_NAME], kind, given_texts, comment)


def _from_rows(
    rows: Iterable[tuple[int, Mapping[str, str]]], form: LabelForm, annotator: str | None
) -> Iterator[GivenAnswer]:
    for number, row in rows:
        where = f"row {number}"
        given = {
            field.name: _form_text(field, _lines(field, text))
            for field in form.fields
            if (text := _without_sign(row.get(field.name, ""))).strip()
        }
        undecidable = row.get(UNDECIDABLE, "").strip().lower() in _YES
        if not given and not undecidable:
            continue
        who = (row.get(ANNOTATOR, "").strip() or annotator or "")[:_MOST_NAME]
        if not who:
            raise InputError(f"{where}: the annotator is missing. Fill {ANNOTATOR}, or give --annotator.")
        kind = "undecidable" if undecidable else "label"
        comment = _without_sign(row.get(COMMENT, ""))
        shown = row.get(form.key)
        yield GivenAnswer(where, row.get(MARK, ""), who, kind, {} if undecidable else given, comment, shown_key=shown)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    raw = path.read_bytes()
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{path.name} is UTF-16 (Excel's Unicode text). Save it as 'CSV UTF-8'.")
    try:
        # Excel puts a byte order mark before UTF-8.
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path.name} is not UTF-8. In Excel, save it as 'CSV UTF-8'.") from error
    head = text.partition("\n")[0]
    # With a decimal comma, Excel separates by semicolons.
    delimiter = max(",;\t", key=head.count)
    csv.field_size_limit(_LONGEST_FIELD)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
    _check_columns(path, reader.fieldnames or [])
    try:
        for number, row in enumerate(reader, 2):
            if None in row:
                raise InputError(f"row {number} of {path.name} has more cells than the table has columns.")
            yield number, row
    except csv.Error as error:
        raise InputError(f"{path.name} is no CSV: {error}.") from error


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path.name} is no Parquet: {str(error)[:200]}.") from error
    _check_columns(path, table.column_names)
    for number, row in enumerate(table.to_pylist(), 1):
        yield number, {name: "" if value is None else _cell(value) for name, value in row.items()}


def _check_columns(path: Path, names: Sequence[str]) -> None:
    if MARK not in names:
        raise InputError(
            f"{path.name} has no column {MARK}, which identifies each line; it has {', '.join(names)[:300]}. "
            "Fill in the file that `export-tasks` wrote."
        )
    if twice := sorted({name for name in names if list(names).count(name) > 1}):
        raise InputError(f"{path.name} has two columns {twice[0]!r}. Keep one.")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return _number_text(value)
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _number_text(number: float) -> str:
    """Return 3 for 3.0: spreadsheets and JavaScript have one kind of number."""
    return str(int(number)) if isinstance(number, float) and number.is_integer() else str(number)


def _without_sign(text: str) -> str:
    """Return a text without the apostrophe that keeps a spreadsheet from taking it for a formula."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULA_SIGNS) else text


def _texts(value: Any) -> list[str]:
    return [str(each) for each in value] if isinstance(value, list) else [str(value)]


def _lines(field: Field, text: str) -> list[str]:
    return text.splitlines() if field.kind in ("choices", "lines") else [text]


def _form_text(field: Field, words: Sequence[str]) -> str:
    """Return the form's text for these words; words that are not a choice stay unchanged, to be refused by name."""
    if field.kind not in ("choice", "choices"):
        text = "\n".join(words)
        return _number_text(float(text)) if field.kind == "integer" and _is_whole(text) else text
    values = words_of(field)
    found = []
    for each in words:
        word = each.strip()
        value = values.get(word, values.get(each))
        if value is None and (truth := _TRUTHS.get(word.lower())) in values.values():
            value = truth
        found.append(json.dumps(word) if value is None else value)
    return "\n".join(found)


def _is_whole(text: str) -> bool:
    try:
        return float(text).is_integer()
    except ValueError:
        return False
