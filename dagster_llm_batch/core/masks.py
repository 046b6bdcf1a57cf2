"""Masks: personal data in rows become placeholders such as [EMAIL_1] before anything is rendered, stored or sent. Pure.

    rows ─ Mask.apply ─▶ the same rows with placeholders ─▶ requests, manifest, archive, provider

1. The values leave no trace: placeholders are numbered in each row, and are no digest, which could be guessed.
2. One value has one placeholder within its row, in all masked columns; other rows do not share it.
3. Rows are masked in the same way each time, so that a row that did not change makes the same request.

A Masker finds the values; `core.personal_data` is the built-in one. It finds no names: give Mask(by=[…]) a masker of
your own for these.
"""

from __future__ import annotations

import json
import operator
import re
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePath
from typing import Any, Literal, NamedTuple, Protocol, get_args, runtime_checkable

import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.personal_data import PersonalData, find_personal_data
from dagster_llm_batch.errors import ConfigError, InputError, LLMBatchError

__all__ = ["Found", "Mask", "Masker", "change_json", "change_texts", "mask_as_of"]

_KIND = re.compile(r"[a-z][a-z0-9_]*")
# In metadata, `masked_values` is the number of all of them.
_TAKEN = "values"


class Found(NamedTuple):
    """A value in a text: its place, and its kind in small letters, such as "email" or "person"."""

    start: int
    end: int
    kind: str


@runtime_checkable
class Masker(Protocol):
    """Finds values to mask.

    1. `name` identifies the masker and its version. Change it when the masker finds other values: it is part of what
       makes a request the same.
    2. `find` returns the places of all values in a text, in any order, as Found or as tuples of start, end and kind.
       The same text has the same places each time. "values" is no kind: metadata has their total by this name.
    3. A masker is picklable where the dataset has workers.
    """

    @property
    def name(self) -> str: ...

    def find(self, text: str) -> Iterable[Found]:
        """Return the values to mask in this text."""
        ...


@checked
@dataclass(frozen=True)
class Mask:
    """Which values of the rows are replaced by placeholders before a request is made of them.

    Args:
        columns: Columns of text, each one that the prompt reads and that may hold personal data. Other columns are
            sent as they are. The key cannot be masked. Columns of `keep` hold placeholders in the labeled table, too.
        what: Kinds that the built-in masker finds: "email", "phone" (international, or with a leading zero), "iban" and
            "card" (both by their check digits), "ip".
        by: More maskers, such as one for names.
        restore: Columns of the response in which the labeled table has the values of its row in the place of
            placeholders. The run that lands the labels reads the rows again for it. Everything else that is stored
            keeps the placeholders. A change of `restore` asks no row again.
        review: What `review` and `export-tasks` show. "masked": placeholders, in all tables that are connected with the
            dataset. "original": the tables as they are stored.
    """

    columns: Sequence[str]
    what: Sequence[PersonalData] = ("email", "phone", "iban", "card", "ip")
    by: Sequence[Masker] = ()
    restore: Sequence[str] = ()
    review: Literal["masked", "original"] = "masked"

    def __post_init__(self) -> None:
        if isinstance(self.columns, str) or not self.columns:
            raise ConfigError(f'Mask.columns={self.columns!r} names no columns. Give a list, as in ["text"].')
        if unknown := [kind for kind in self.what if kind not in get_args(PersonalData)]:
            known = ", ".join(get_args(PersonalData))
            raise ConfigError(f"Mask.what has {', '.join(unknown)}; the kinds are {known}. Use `by` for others.")
        if not self.what and not self.by:
            raise ConfigError("Mask has neither kinds in `what` nor maskers in `by`, so it masks nothing. Give one.")

    def settings(self) -> Mapping[str, Any]:
        """Return the settings that requests depend on, as JSON. The order of columns and kinds changes nothing."""
        return {"columns": self._columns, "what": self._what, "by": [masker.name for masker in self.by]}

    @property
    def _columns(self) -> list[str]:
        """The columns in the order in which placeholders are numbered."""
        return sorted({*self.columns})

    @property
    def _what(self) -> list[PersonalData]:
        """The kinds in the order of PersonalData: of two kinds of one value, the first names it."""
        return [kind for kind in get_args(PersonalData) if kind in self.what]

    def check(self, key: str, images: Sequence[str], response: pa.Schema, documents: Sequence[str] = ()) -> None:
        """Raise ConfigError if it names the key, an image or a document, or restores a column without text."""
        if key in self.columns:
            raise ConfigError(
                f"mask names the key {key!r}, which is stored and logged to find a row again. Use another key, such as "
                "a number of the row, and name only columns that the prompt reads."
            )
        for argument, files in (("images", images), ("documents", documents)):
            if named := sorted(set(files) & set(self.columns)):
                raise ConfigError(
                    f"mask names {', '.join(named)} of Prompt.{argument}. Only text is masked: leave it out."
                )
        texts = [field.name for field in response if _holds_text(field.type)]
        if strangers := [name for name in self.restore if name not in texts]:
            raise ConfigError(
                f"Mask.restore names {', '.join(strangers)}, which is no column of the response that holds text. Those "
                f"that do: {', '.join(texts) or 'none'}."
            )

    @property
    def placeholders(self) -> str:
        """The pattern of its placeholders, for Python and for Arrow."""
        kinds = "[A-Z][A-Z0-9_]*" if self.by else "|".join(kind.upper() for kind in self._what)
        return rf"\[(?:{kinds})_[1-9][0-9]*\]"

    @property
    def is_stored(self) -> bool:
        """Return whether one of its maskers was removed, so that it finds nothing."""
        return any(isinstance(masker, _StoredMasker) for masker in self.by)

    def values_of(self, row: Mapping[str, str | None]) -> dict[str, str]:
        """Return the value behind each placeholder of one row, given as its columns."""
        return {placeholder: value for (_, value), placeholder in self._placeholders_of(row).of_values.items()}

    def _placeholders_of(self, row: Mapping[str, str | None]) -> _Placeholders:
        texts = [text for name in self._columns if (text := row[name]) is not None]
        placeholders = self._placeholders_beside(texts)
        for text in texts:
            self._masked(text, placeholders, Counter())
        return placeholders

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Return the start and end of each value in a text, in order. They do not overlap."""
        return [(found.start, found.end) for found in self._found(text)]

    def masked_again(self, value: Any, row: Mapping[str, str | None]) -> Any:
        """Return a value with the placeholders of its row in the place of values, as before they were restored.

        Texts are changed at any depth. Give a value before it is written as JSON, which escapes line breaks and quotes.
        """
        placeholders = self._placeholders_of(row)
        # A masker may find a value by the text beside it, which an answer does not repeat.
        known = {text: name for (_, text), name in reversed(placeholders.of_values.items())}
        longest = "|".join(re.escape(text) for text in sorted(known, key=len, reverse=True))
        whole = re.compile(rf"(?<!\w)(?:{longest})(?!\w)") if known else None

        def mask_text(text: str) -> str:
            named = text if whole is None else whole.sub(lambda found: known[found[0]], text)
            return self._masked(named, placeholders, Counter())

        return change_texts(value, mask_text)

    def apply(self, rows: pa.RecordBatch, encoded: Sequence[str] = ()) -> tuple[pa.RecordBatch, Counter[str]]:
        """Return the rows with placeholders, and the number of values that these replace, by kind.

        Columns in `encoded` have answers to masked requests. They may be JSON, and are then masked within their
        values, too. Their placeholders mean values of the other columns, so they take no numbers from these.
        Raises InputError where a column is missing, or is no text.
        """
        texts = {name: self._texts(rows, name) for name in self._columns}
        counts: Counter[str] = Counter()
        masked: dict[str, list[str | None]] = {name: [] for name in texts}
        for row in zip(*texts.values(), strict=True):
            of_row = zip(texts, row, strict=True)
            placeholders = self._placeholders_beside(text for name, text in of_row if text and name not in encoded)
            mask_text = partial(self._masked, placeholders=placeholders, counts=counts)
            for name, text in zip(texts, row, strict=True):
                within = _with_json(text, mask_text) if text is not None and name in encoded else text
                masked[name].append(within if within is None else mask_text(within))
        for name, values in masked.items():
            place, field = rows.schema.get_field_index(name), rows.schema.field(name)
            rows = rows.set_column(place, field, pa.array(values, field.type))
        return rows, counts

    def stream(
        self, batches: Iterable[pa.RecordBatch], counts: Counter[str], encoded: Sequence[str] = ()
    ) -> Iterator[pa.RecordBatch]:
        """Yield the batches with placeholders, and add the number of values to `counts`; see apply."""
        for batch in batches:
            if not batch.num_columns:
                yield batch
                continue
            masked, found = self.apply(batch, encoded)
            counts.update(found)
            yield masked
            # The loop's variable would keep these rows in memory while the next ones are read.
            del batch, masked

    def hide(self, row: Mapping[str, Any], keep: Callable[[str], bool]) -> dict[str, Any]:
        """Return a stored row with placeholders in its texts, at any depth; columns that `keep` names stay.

        Placeholders of the mask's own columns have the numbers that they have in requests. In other columns, a value
        that the own columns do not have is shown without a number, such as [EMAIL]: its number is unknown.
        """
        placeholders = self._placeholders_beside([str(row[name]) for name in self._columns if name in row])
        names = sorted(row, key=lambda name: (name not in self.columns, name))

        def hide_text(text: str, *, is_own: bool) -> str:
            hide = partial(hide_text, is_own=is_own)
            return self._masked(_with_json(text, hide), placeholders, Counter(), is_numbered=is_own)

        hidden = {
            name: row[name] if keep(name) else change_texts(row[name], partial(hide_text, is_own=name in self.columns))
            for name in names
        }
        return {name: hidden[name] for name in row}

    def _texts(self, rows: pa.RecordBatch, name: str) -> list[str | None]:
        if name not in rows.schema.names:
            columns = ", ".join(rows.schema.names)
            raise InputError(f"Mask.columns names {name!r}, which the rows lack. Columns of the rows: {columns}.")
        column = rows.column(name)
        is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
        if not is_text and not pa.types.is_null(column.type):
            raise InputError(
                f"Mask.columns names {name!r} of type {column.type}. Only text can be masked: convert the column to "
                "text in the rows, or leave it out of the prompt."
            )
        try:
            texts: list[str | None] = column.to_pylist()
        except UnicodeDecodeError:
            # The message of the error has the text, which must stay hidden.
            raise InputError(
                f"Mask.columns names {name!r}, and one of its texts is not UTF-8. Decode the column before labeling, "
                "as by bytes.decode('utf-8', 'replace')."
            ) from None
        return texts

    def _placeholders_beside(self, texts: Iterable[str]) -> _Placeholders:
        """Return an empty set of placeholders for a row with these texts."""
        return _Placeholders(frozenset(name for text in texts for name in re.findall(self.placeholders, text)))

    def _masked(self, text: str, placeholders: _Placeholders, counts: Counter[str], *, is_numbered: bool = True) -> str:
        parts, end = [], 0
        for found in self._found(text):
            value = (found.kind, text[found.start : found.end])
            if is_numbered:
                placeholders.add(*value)
            counts[found.kind] += 1
            parts += [text[end : found.start], placeholders.of_values.get(value, f"[{found.kind.upper()}]")]
            end = found.end
        return "".join([*parts, text[end:]]) if parts else text

    def _found(self, text: str) -> list[Found]:
        """Return the values in the order of the text. Of values that overlap, all of their text is one value."""
        found = [Found(start, end, kind) for kind in self._what for start, end in find_personal_data(text, kind)]
        for masker in self.by:
            for one in _find(masker, text):
                own = _as_found(masker.name, one)
                if not (0 <= own.start < own.end <= len(text) and _KIND.fullmatch(own.kind)) or own.kind == _TAKEN:
                    # The kind is not quoted: a masker with a mistake gives the value in its place.
                    raise ConfigError(
                        f"The masker {masker.name} found a value from {own.start} to {own.end} in a text of "
                        f"{len(text)} characters, with a kind of {len(own.kind)} characters. A place lies within its "
                        f"text, and a kind such as 'person' has small letters and is not {_TAKEN!r}: metadata has the "
                        "total under this name."
                    )
                found.append(own)
        joined: list[Found] = []
        for one in sorted(found, key=lambda one: (one.start, -one.end)):
            if joined and one.start < joined[-1].end:
                last = joined[-1]
                joined[-1] = last._replace(end=max(last.end, one.end))
            else:
                joined.append(one)
        return joined


@dataclass
class _Placeholders:
    """The placeholders of one row, by kind and value. Those that its texts have already stand for no value of it.

    A text may come from a dataset with a mask, or an attacker may have written it.
    """

    taken: frozenset[str]
    of_values: dict[tuple[str, str], str] = field(default_factory=dict)
    numbers: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, value: str) -> None:
        """Give a new value the next number of its kind that is not taken."""
        if (kind, value) in self.of_values:
            return
        name = ""
        while not name or name in self.taken:
            self.numbers[kind] += 1
            name = f"[{kind.upper()}_{self.numbers[kind]}]"
        self.of_values[kind, value] = name


def _find(masker: Masker, text: str) -> list[Any]:
    """Return what a masker finds. Raises InputError without the masker's message, which may quote the text."""
    try:
        return [*masker.find(text)]
    except LLMBatchError:
        raise
    # A masker is the user's own code, or a model.
    except Exception as error:  # noqa: BLE001 - anything may come
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise InputError(
            f"The masker {masker.name} failed with an error of the type {type(error).__name__} in a text of "
            f"{len(text)} characters, at line {last.lineno} of {PurePath(last.filename).name}. Its message is not "
            "shown, since it may quote the text. Call its find with texts of your rows, and correct it."
        ) from None


def _as_found(masker: str, found: Any) -> Found:
    """Return a masker's place as Found. Raises ConfigError for anything but Found and such tuples."""
    try:
        start, end, kind = found
        own: Found | None = Found(operator.index(start), operator.index(end), kind)
    except (TypeError, ValueError):
        own = None
    if own is None or not isinstance(own.kind, str):
        raise ConfigError(
            f"The masker {masker} gave a {type(found).__name__} that is no place of a value. Give Found(start, end, "
            "kind), or a tuple of two whole numbers and a text."
        )
    return own


def change_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a value with each of its texts changed, at any depth, and names in mappings, too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        changed: dict[Any, Any] = {}
        for name, each in value.items():
            own = change(name) if isinstance(name, str) else name
            # Two names may become one, and both values are needed.
            while own in changed:
                own = f"{own}'"
            changed[own] = change_texts(each, change)
        return changed
    if isinstance(value, list | tuple):
        return type(value)(change_texts(each, change) for each in value)
    return value


def _with_json(text: str, change: Callable[[str], str]) -> str:
    """Return a text that is a JSON object or list with each of its texts changed, and any other text as it is.

    JSON writes a line break as a letter, which touches the next value, so that a masker does not find it.
    """
    changed = change_json(text, change)
    return text if changed is None else changed


def change_json(text: str, change: Callable[[str], str]) -> str | None:
    """Return a text that is a JSON object or list with each of its texts changed; None for any other text."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(text)
        changed = change_texts(value, change)
    except (ValueError, RecursionError):
        return None
    return text if changed == value else json.dumps(changed, ensure_ascii=False)


def _holds_text(kind: pa.DataType) -> bool:
    """Return whether values of this type are texts, or hold some."""
    if pa.types.is_nested(kind):
        return any(_holds_text(kind.field(at).type) for at in range(kind.num_fields))
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def mask_as_of(settings: Mapping[str, Any] | None, present: Mask | None) -> Mask | None:
    """Return the mask of a stored definition: the present one where it has the same settings. It restores nothing."""
    if settings is None:
        return None
    if present is not None and present.settings() == settings:
        return replace(present, restore=())
    return Mask(settings["columns"], settings["what"], [_StoredMasker(name) for name in settings["by"]])


@dataclass(frozen=True)
class _StoredMasker:
    name: str

    def find(self, text: str) -> Iterable[Found]:  # noqa: ARG002 - it finds in none
        raise ConfigError(
            f"The masker {self.name} of an earlier definition is not there any more, so no row can be masked by it. "
            "Materialize the submission again, which masks by the present definition."
        )
