"""The places of quotes in the text of a row, as parts of the text that a page marks; quotes of documents, by page.

The places are data, like the text: a place that is outside of its text, or no place at all, marks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dagster_llm_batch.core.evidence import Match
from dagster_llm_batch.core.quoted_columns import place_prefix
from dagster_llm_batch.review.tables import StoredRow

__all__ = [
    "DocumentQuote",
    "QuotePlace",
    "TextPart",
    "document_quotes",
    "mark_text",
    "marked_texts",
    "place_columns",
    "quote_places",
]

_START, _END, _SCORE, _MATCH, _PAGE = "_start", "_end", "_score", "_match", "_page"
_MOST_PLACES = 500
"""Of one text: the time grows with their square."""


@dataclass(frozen=True)
class QuotePlace:
    """A quote in a text: its field, and its first and last offset in characters, as Python slices them."""

    field: str
    start: int
    end: int


@dataclass(frozen=True)
class DocumentQuote:
    """A quote of a document: its field, its words, and the page where it begins, from 1.

    `page` is None for a quote that was not found, and for a document without pages.
    """

    field: str
    text: str
    page: int | None
    is_found: bool


@dataclass(frozen=True)
class TextPart:
    """A part of a text. `fields` are the fields that quote it; empty for the text between quotes."""

    text: str
    fields: tuple[str, ...] = ()


def quote_places(row: StoredRow, quotes: Mapping[str, str]) -> dict[str, list[QuotePlace]]:
    """Return the places of all quotes of a row, by the column with their text.

    `quotes` are these columns by the fields that quote them. A text in which the page hides values has no places: they
    count the characters of the stored text.
    """
    found: dict[str, list[QuotePlace]] = {}
    for field, source in quotes.items():
        prefix = place_prefix(field)
        places = list(_pairs(row.get(prefix + _START), row.get(prefix + _END)))
        if places and source in row and source not in row.hidden:
            found.setdefault(source, []).extend(QuotePlace(field, *place) for place in places)
    return found


def document_quotes(row: StoredRow, quotes: Mapping[str, str]) -> dict[str, list[DocumentQuote]]:
    """Return all quotes of documents in a row, by the column with the document. `quotes` are as in `quote_places`."""
    found: dict[str, list[DocumentQuote]] = {}
    for field, source in quotes.items():
        prefix = place_prefix(field)
        # Only quotes of documents have pages.
        if source not in row or prefix + _PAGE not in row:
            continue
        column, *steps = [field] if field in row else field.split(".")
        texts, matches, pages = _values(row.get(column), steps), row.get(prefix + _MATCH), row[prefix + _PAGE]
        found.setdefault(source, []).extend(
            DocumentQuote(field, str(text), page, match != Match.MISSING)
            for text, match, page in zip(_flat(texts), _flat(matches), _flat(pages), strict=False)
            if text is not None and match is not None
        )
    return {source: listed for source, listed in found.items() if listed}


def mark_text(text: str, places: Sequence[QuotePlace]) -> list[TextPart]:
    """Return a text in parts, which begin and end where quotes do. Empty if no quote is in this text."""
    inside = [place for place in places if 0 <= place.start < place.end <= len(text)][:_MOST_PLACES]
    if not inside:
        return []
    ends = sorted({0, len(text), *(end for place in inside for end in (place.start, place.end))})
    return [
        TextPart(
            text[start:end],
            tuple(dict.fromkeys(place.field for place in inside if place.start <= start and end <= place.end)),
        )
        for start, end in pairwise(ends)
    ]


def marked_texts(
    row: Mapping[str, Any], places: Mapping[str, Sequence[QuotePlace]], most: int | None = None
) -> dict[str, list[TextPart]]:
    """Return the texts of a row that have quotes, in parts, by column; of each text at most so many characters."""
    texts = {name: value[:most] for name, value in row.items() if isinstance(value, str)}
    marked = {name: mark_text(text, places.get(name, ())) for name, text in texts.items()}
    return {name: parts for name, parts in marked.items() if parts}


def place_columns(quotes: Mapping[str, str]) -> set[str]:
    """Return the columns with beginnings, ends and scores of quotes, which people see as marks."""
    return {place_prefix(field) + kind for field in quotes for kind in (_START, _END, _SCORE)}


def _pairs(starts: Any, ends: Any) -> Iterator[tuple[int, int]]:
    """Yield the places in two values, which are lists of the same shape for quotes in lists."""
    if isinstance(starts, list) and isinstance(ends, list):
        for start, end in zip(starts, ends, strict=False):
            yield from _pairs(start, end)
    elif isinstance(starts, int) and isinstance(ends, int):
        yield starts, ends


def _values(value: Any, steps: Sequence[str]) -> Any:
    """Return the texts at the end of the steps into a value, in the lists of the value."""
    if isinstance(value, list):
        return [_values(each, steps) for each in value]
    if steps and isinstance(value, Mapping):
        return _values(value.get(steps[0]), steps[1:])
    return None if steps else value


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, list):
        for each in value:
            yield from _flat(each)
    else:
        yield value
