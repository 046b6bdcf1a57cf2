"""The places of quotes in the text of a row, as parts of the text that a page marks.

The places are data, like the text: a place that is outside of its text, or no place at all, marks nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dagster_llm_batch.review.tables import StoredRow

__all__ = ["QuotePlace", "TextPart", "mark_text", "marked_texts", "place_columns", "quote_places"]

_START, _END, _SCORE = "_start", "_end", "_score"
_MOST_PLACES = 500
"""Of one text: the time grows with their square."""


@dataclass(frozen=True)
class QuotePlace:
    """A quote in a text: its field, and its first and last offset in characters, as Python slices them."""

    field: str
    start: int
    end: int


@dataclass(frozen=True)
class TextPart:
    """A part of a text. `fields` are the fields that quote it; empty for the text between quotes."""

    text: str
    fields: tuple[str, ...] = ()


def quote_places(row: StoredRow, quotes: Mapping[str, str]) -> dict[str, list[QuotePlace]]:
    """Return the places of all quotes of a row, by the column with their text.

    `quotes` are these columns by the beginning of the names of the columns with places. A text in which the page hides
    values has no places: they count the characters of the stored text.
    """
    found: dict[str, list[QuotePlace]] = {}
    for field, source in quotes.items():
        places = list(_pairs(row.get(field + _START), row.get(field + _END)))
        if places and source in row and source not in row.hidden:
            found.setdefault(source, []).extend(QuotePlace(field, *place) for place in places)
    return found


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
    return {field + kind for field in quotes for kind in (_START, _END, _SCORE)}


def _pairs(starts: Any, ends: Any) -> Iterator[tuple[int, int]]:
    """Yield the places in two values, which are lists of the same shape for quotes in lists."""
    if isinstance(starts, list) and isinstance(ends, list):
        for start, end in zip(starts, ends, strict=False):
            yield from _pairs(start, end)
    elif isinstance(starts, int) and isinstance(ends, int):
        yield starts, ends
