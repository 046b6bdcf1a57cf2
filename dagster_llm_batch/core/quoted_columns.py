"""Columns of the labeled table with the places of quotes: `Evidence({"quote": "text"})`. Pure.

    labels: quote, text ─▶ SourceText.locate ─▶ quote_start, quote_end, quote_match, quote_score
    labels: quote, pdf  ─▶ PagedText.locate  ─▶ the same, and quote_page

1. A quote is located in the column of its own row, as the table has it: with a mask, the text that the model saw.
2. The columns are made of labels each time, so a change of Evidence asks nothing again.
3. Quotes in lists have lists of places, in the same order and of the same length.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.documents import PDF, TEXT, UnreadableTextError, document_type, pdf_pages
from dagster_llm_batch.core.evidence import LEAST_SCORE, Match, PagedText, Place, SourceText
from dagster_llm_batch.core.identity import canonical_json
from dagster_llm_batch.core.response import is_json, reply_text
from dagster_llm_batch.errors import ConfigError, InputError, MissingExtraError

__all__ = ["Evidence", "QuotedColumns", "place_prefix"]

# Texts are Python objects while quotes are located in them, so fewer rows are read at once if these are long.
_ROWS_AT_ONCE, _BYTES_AT_ONCE = 1_024, 1 << 23

_LOWEST_MIN_SCORE = 0.5

_MEANINGS = {
    "start": "beginning of the quote in {source}, in characters from 0",
    "end": "end of the quote in {source}",
    "match": "exact, folded (other white space or Unicode), near or missing: comparison of the quote with {source}",
    "score": "likeness of the quote and its place in {source}, up to 1",
    "page": "page of {source} where the quote begins, from 1",
}
_TYPES = {"start": pa.int64(), "end": pa.int64(), "match": pa.string(), "score": pa.float64()}
_PAGE = "page"


@checked
@dataclass(frozen=True)
class Evidence:
    """Fields of the response that quote a column of the rows. Each quote is located there when labels are materialized.

    The labeled table gets four columns for each field: `<field>_start` and `<field>_end` (characters from 0, as Python
    slices them), `<field>_match` (exact, folded, near or missing) and `<field>_score`. They are null without a quote. A
    quoted column of documents has the bytes of PDFs or text files, and its field one more: `<field>_page`, from 1. The
    places are in the text that `Prompt(documents_as="text")` sends. A change of evidence asks no row again: materialize
    the labels again.

    Args:
        quotes: Columns of the rows by the fields that quote them, as in {"quote": "text"}. Each column is also in
            `keep`. A field within an object, or within each object of a list, is named with dots: "claims.quote". Its
            columns begin with `claims_quote`, and quotes in lists have lists of places.
        min_score: Least score of a near match, 0.5 to 1: `rapidfuzz.fuzz.ratio` as a share. It needs the extra
            `evidence`. With None, only quotes with the same words are found.
        reject_missing: True to make a row with a missing quote a reject, with the outcome `ungrounded`. It is paid, and
            is not asked again.
    """

    quotes: Mapping[str, str]
    min_score: float | None = LEAST_SCORE
    reject_missing: bool = False

    def __post_init__(self) -> None:
        if not self.quotes:
            raise ConfigError('Evidence.quotes is empty. Name a field and the column it quotes: {"quote": "text"}.')
        if self.min_score is not None and not _LOWEST_MIN_SCORE <= self.min_score <= 1:
            raise ConfigError(
                f"Evidence.min_score={self.min_score!r} is not allowed; a least score is between {_LOWEST_MIN_SCORE} "
                "and 1, or None for quotes with the same words alone."
            )
        if self.min_score is not None and find_spec("rapidfuzz") is None:
            raise MissingExtraError("evidence", "Evidence with a min_score")

    @property
    def digest(self) -> str:
        """A digest that changes whenever places could, other than by labels or rows."""
        content = [[*map(list, sorted(self.quotes.items()))], self.min_score, *(["reject"] * self.reject_missing)]
        return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:12]

    def fitting(self, key: str, keep: Sequence[str], response: pa.Schema) -> Evidence | None:
        """Return the evidence with the fields and columns of an earlier definition; None if nothing is left.

        Fields are left out, too, if a column of the earlier definition has the name of one that they add.
        """
        taken = {key, *keep, *response.names}
        quotes = {
            path: column
            for path, column in self.quotes.items()
            if column in keep
            and isinstance(_found(path, response), _Field)
            and taken.isdisjoint(_names(path, _MEANINGS))
        }
        return replace(self, quotes=quotes) if quotes else None


def place_prefix(path: str) -> str:
    """Return the beginning of the names of the columns with the places of a field's quotes."""
    return path.replace(".", "_")


class _Field(NamedTuple):
    """A field that holds quotes: its column, the steps into it, and the number of lists around each quote."""

    column: str
    steps: tuple[str, ...]
    lists: int


class QuotedColumns:
    """The columns that evidence adds to labels.

    Args:
        evidence: The fields that quote.
        key, keep: The columns of the rows in the labels.
        response: The columns of the response.
        documents: The columns of the rows with documents, whose quotes have pages.

    Raises:
        ConfigError: A field or column is unknown, a field holds no text, or two columns have one name.
    """

    def __init__(
        self,
        evidence: Evidence,
        key: str,
        keep: Sequence[str],
        response: pa.Schema,
        documents: Sequence[str] = (),
    ) -> None:
        self._evidence, self._documents, self._response = evidence, frozenset(documents), response
        self._last = response.names[-1]
        self._fields: dict[str, _Field] = {}
        for path, column in evidence.quotes.items():
            found = _found(path, response)
            if not isinstance(found, _Field):
                raise ConfigError(f"Evidence.quotes names {path!r}, {found}")
            if column not in keep:
                raise ConfigError(
                    f"Evidence.quotes names the column {column!r} for {path!r}, and keep lacks it: "
                    f"{', '.join(keep) or 'none'}. Quotes are located in the labeled table. Add {column!r} to keep."
                )
            self._fields[path] = found
        counts = Counter([key, *keep, *response.names, *self.schema.names])
        if twice := [name for name in self.schema.names if counts[name] > 1]:
            raise ConfigError(
                f"The labeled table would have {', '.join(dict.fromkeys(twice))} twice: Evidence adds columns such as "
                f"{self.schema.names[0]}. Rename the other one."
            )

    @cached_property
    def schema(self) -> pa.Schema:
        """The added columns, in their order."""
        return pa.schema(
            [
                pa.field(f"{place_prefix(path)}_{name}", _in_lists(kind, field.lists))
                for path, field in self._fields.items()
                for name, kind in self._types(path).items()
            ]
        )

    def _types(self, path: str) -> dict[str, pa.DataType]:
        return {**_TYPES, **({_PAGE: pa.int64()} if self._evidence.quotes[path] in self._documents else {})}

    @property
    def descriptions(self) -> dict[str, str]:
        """The meaning of each added column."""
        return {
            f"{place_prefix(path)}_{name}": _MEANINGS[name].format(source=self._evidence.quotes[path])
            for path in self._fields
            for name in self._types(path)
        }

    @property
    def sources(self) -> dict[str, str]:
        """The column of the rows in which the places of each added column are."""
        return {name: self._evidence.quotes[path] for path in self._fields for name in self._names(path)}

    def _names(self, path: str) -> list[str]:
        return _names(path, self._types(path))

    @property
    def rejects_missing(self) -> bool:
        """True if a row with a missing quote is a reject."""
        return self._evidence.reject_missing

    def check_rows(self, rows: pa.Schema) -> None:
        """Raise InputError if a quoted column of the rows is no text, or one of documents has no bytes."""
        for path, column in self._evidence.quotes.items():
            kind = rows.field(column).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if column in self._documents:
                if not (_is_binary(kind) or pa.types.is_null(kind)):
                    raise InputError(
                        f"Evidence.quotes names the column {column!r} of type {kind} for {path!r}. Quotes are located "
                        "in the bytes of documents, and not in files at a path or an address: load the files into the "
                        "rows, or name a column with their text."
                    )
            elif not (_is_text(kind) or pa.types.is_null(kind)):
                raise InputError(
                    f"Evidence.quotes names the column {column!r} of type {kind} for {path!r}. Quotes are located "
                    "in text: convert the column to text in the rows, or name another one."
                )

    def add_to(self, labels: pa.Table) -> pa.Table:
        """Return the labels with the added columns, behind the columns of the response."""
        columns = sorted({*(field.column for field in self._fields.values()), *self._evidence.quotes.values()})
        read = labels.select(columns)
        chunks: dict[str, list[pa.Array]] = {name: [] for name in self.schema.names}
        fit = _BYTES_AT_ONCE * len(read) // max(read.nbytes, 1)
        for batch in read.to_batches(max_chunksize=max(min(fit, _ROWS_AT_ONCE), 1)):
            for name, array in self._located(batch):
                chunks[name].append(array)
        at = labels.schema.get_field_index(self._last)
        for number, field in enumerate(self.schema, start=1):
            labels = labels.add_column(at + number, field, pa.chunked_array(chunks[field.name], field.type))
        return labels

    def _located(self, rows: pa.RecordBatch) -> Iterator[tuple[str, pa.Array]]:
        values = {name: rows.column(name).to_pylist() for name in rows.schema.names}
        places: dict[str, list[Any]] = {path: [] for path in self._fields}
        for at in range(rows.num_rows):
            # One for each row: a folded text takes several times the memory of the text.
            sources: dict[str, SourceText] = {}
            for path, field in self._fields.items():
                column = self._evidence.quotes[path]
                # Without an answer, a document is not read.
                if (value := values[field.column][at]) is not None and column not in sources:
                    sources[column] = _source_text(values[column][at])
                places[path].append(None if value is None else self._places(value, field.steps, sources[column]))
        for path, field in self._fields.items():
            for number, (name, kind) in enumerate(zip(self._names(path), self._types(path).values(), strict=True)):
                yield name, pa.array([_part(place, number) for place in places[path]], _in_lists(kind, field.lists))

    def _places(self, value: Any, steps: Sequence[str], source: SourceText) -> Any:
        """Return the place of a quote, or the places of all quotes in lists as lists."""
        if value is None:
            return None
        if isinstance(value, list):
            return [self._places(each, steps, source) for each in value]
        if steps:
            return self._places(value[steps[0]], steps[1:], source)
        return source.locate(value, self._evidence.min_score)

    def faults(self, labels: pa.Table) -> pa.Array:
        """Return for each label, with the added columns, a reason with the fields whose quotes are missing, or null."""
        named: list[list[str]] = [[] for _ in range(len(labels))]
        for path, field in self._fields.items():
            matches = labels[f"{place_prefix(path)}_match"].combine_chunks()
            rows = pa.array(np.arange(len(labels)))
            for _ in range(field.lists):
                rows = rows.take(pc.list_parent_indices(matches))
                matches = matches.flatten()
            missing = pc.equal(matches, Match.MISSING.value)
            for row in pc.unique(rows.filter(missing)).to_pylist():
                named[row].append(f"{path} (of {self._evidence.quotes[path]})")
        reasons = ["a quote is not in its text: " + ", ".join(fields) if fields else None for fields in named]
        return pa.array(reasons, pa.string())

    def replies(self, labels: pa.Table) -> pa.Array:
        """Return the answer of each of these labels as JSON."""
        rows = labels.select(self._response.names).to_pylist()
        return pa.array([reply_text(row, self._response) for row in rows], pa.string())

    def count(self, labels: pa.Table) -> Counter[str]:
        """Return the number of quotes of each kind of match."""
        counts: Counter[str] = Counter()
        for path, field in self._fields.items():
            matches = labels[f"{place_prefix(path)}_match"].combine_chunks()
            for _ in range(field.lists):
                matches = matches.flatten()
            for one in pc.value_counts(matches.drop_null()).to_pylist():
                counts[one["values"]] += one["counts"]
        return counts


def _found(path: str, response: pa.Schema) -> _Field | str:
    """Return the field with this path, or the mistake in the path, in words."""
    # The name of a property may have a dot.
    column, *steps = [path] if path in response.names else path.split(".")
    if column not in response.names:
        return f"and the response lacks this field. Its fields: {', '.join(response.names)}."
    if is_json(response.field(column)):
        return (
            "but this field is stored as JSON, since its values have several types. Give it one type in the response."
        )
    kind, lists, so_far = response.field(column).type, 0, column
    for step in [*steps, None]:
        while pa.types.is_list(kind):
            kind, lists = kind.value_type, lists + 1
        if step is None:
            break
        if not pa.types.is_struct(kind):
            return f"but {so_far!r} has the type {kind}, and so no field {step!r}. Name a field of a nested model."
        names = [kind.field(at).name for at in range(kind.num_fields)]
        if step not in names:
            return f"but {so_far!r} has no field {step!r}. Its fields: {', '.join(names)}."
        kind, so_far = kind.field(step).type, f"{so_far}.{step}"
    if not _is_text(kind):
        within = f". Name one of its fields, as in '{path}.{kind.field(0).name}'" if pa.types.is_struct(kind) else ""
        return f"but this field has the type {kind}{within or '. Name a field of text, or a list of texts'}."
    return _Field(column, tuple(steps), lists)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _source_text(value: Any) -> SourceText:
    """Return the text of a value. A document whose text cannot be read has none."""
    if not isinstance(value, bytes):
        return SourceText(str(value or ""))
    kind = document_type(value)
    if kind == PDF:
        try:
            return PagedText(pdf_pages(value))
        except UnreadableTextError:
            return SourceText("")
    return SourceText(value.decode("utf-8-sig") if kind == TEXT else "")


def _names(path: str, kinds: Iterable[str]) -> list[str]:
    return [f"{place_prefix(path)}_{name}" for name in kinds]


def _in_lists(kind: pa.DataType, lists: int) -> pa.DataType:
    for _ in range(lists):
        kind = pa.list_(kind)
    return kind


def _part(place: Any, number: int) -> Any:
    """Return one part of a place, or of all places in lists."""
    if isinstance(place, list):
        return [_part(each, number) for each in place]
    if place is None:
        return None
    assert isinstance(place, Place)
    part = place[number]
    return part.value if isinstance(part, Match) else part
