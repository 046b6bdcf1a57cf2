"""Split long texts into parts: `Split("text", tokens=2_000)`. Pure, and the same text always has the same parts.

    row (key, text)  ─▶  parts: rows of a dataset of their own (part_key, part, parts, part_start, the part's text)

1. Each character of a text is in at least one part. Without `overlap` the parts, joined, are the text.
2. A part has at most `tokens` by the count of the estimate, unless one character alone has more, or one value that a
   mask finds.
3. A part is a slice of its text, so a place in it is a place in the text, shifted by `part_start`.
4. No part begins or ends within a value that the mask finds: half of a card number would be sent as it is.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import repeat
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.keys import keys_of
from dagster_llm_batch.core.masks import Mask
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.core.token_counts import TextCosts, most_hundredths
from dagster_llm_batch.errors import ConfigError, InputError

__all__ = ["PART", "PARTS", "PART_COLUMNS", "PART_KEY", "PART_START", "Split", "TextPart", "split_rows"]

PART_KEY, PART, PARTS, PART_START = "part_key", "part", "parts", "part_start"
"""Columns of parts: the key of the part, its number from 1, and the number of parts of its row. `part_start` is
the place of its first character in the row's text, from 0.
"""

PART_COLUMNS = pa.schema([(PART_KEY, pa.string()), (PART, pa.int64()), (PARTS, pa.int64()), (PART_START, pa.int64())])
"""These columns with their types."""

# Texts are Python objects while they are split.
_BYTES_AT_ONCE = 1 << 21

_HEADING = re.compile(r"#{1,6}(?:[ \t].*)?$", re.MULTILINE)
_LATER_HEADING = re.compile(rf"\n({_HEADING.pattern})", re.MULTILINE)
_FENCE = re.compile(r"^ {0,3}(```+|~~~+)")
_BLANK_LINES = re.compile(r"\n[ \t]*\n\s*")
_SPACE = re.compile(r"\s+")
_ZERO_WIDTH_JOINER = "\u200d"
_SKIN_TONES = range(0x1F3FB, 0x1F400)
_REGIONAL = range(0x1F1E6, 0x1F200)


class TextPart(NamedTuple):
    """A part of a text, and the place of its first character in the text."""

    start: int
    text: str


@checked
@dataclass(frozen=True)
class Split:
    """The rule that splits long texts into parts.

    Args:
        column: The column of the rows with the text.
        tokens: The most tokens of a part, as the estimate counts them. The rest of the prompt comes on top.
        overlap: The most tokens at the end of a part that the next part repeats, at most half of `tokens`. With
            `by="section"`, only parts of one section overlap.
        by: The places to cut a text. `section`: before each Markdown heading of one to six `#`, outside of fenced code.
            Each section is at least one part, so a change within a section leaves the parts of all others unchanged. A
            section without text joins the next. A section above `tokens` is cut like `paragraph`. `paragraph`: as many
            blocks as fit are a part; blank lines separate blocks. A block above `tokens` is cut like `token`. `token`:
            as many words as fit are a part. A word above `tokens` is cut between characters, and letters keep their
            accents.
        tokenizer: The family of tokenizers that counts: `o200k` (OpenAI since GPT-4o), `claude`, `gemma` (Gemini) or
            `llama` (others).
    """

    column: str
    tokens: int
    overlap: int = 0
    by: Literal["section", "paragraph", "token"] = "section"
    tokenizer: Literal["o200k", "claude", "gemma", "llama"] = "o200k"

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"Split.tokens={self.tokens} is not allowed; a part has at least 1 token.")
        if not 0 <= self.overlap <= self.tokens // 2:
            raise ConfigError(
                f"Split.overlap={self.overlap} is not allowed; it is between 0 and half of tokens={self.tokens}, "
                f"{self.tokens // 2}."
            )

    def parts(self, text: str, mask: Mask | None = None) -> list[TextPart]:
        """Return the parts of a text, in order; of a text without characters, one empty part.

        They have all values that `mask` finds as a whole.
        """
        return [TextPart(start, text[start:end]) for start, end in _spans_of(text, self, mask)]


def _spans_of(text: str, split: Split, mask: Mask | None) -> list[tuple[int, int]]:
    """Return the start and end of each part of a text."""
    values = _Values(mask, text)
    sections = _sections(text, values) if split.by == "section" else [(0, len(text))]
    # Most sections are far shorter than a part, and need no count.
    surely_fit = split.tokens * 100 // most_hundredths(text, split.tokenizer)
    if max(end - start for start, end in sections) <= surely_fit:
        return sections
    cutter = _Cutter(text, split, values)
    return [
        span
        for start, end in sections
        for span in ([(start, end)] if end - start <= surely_fit else cutter.cut(start, end))
    ]


class _Values:
    """The places of the values in a text, which no cut divides."""

    def __init__(self, mask: Mask | None, text: str) -> None:
        spans = [] if mask is None else mask.spans(text)
        self._starts, self._ends = [start for start, _ in spans], [end for _, end in spans]

    def around(self, at: int) -> tuple[int, int] | None:
        """Return the start and end of the value that a cut before `at` would divide; None without one."""
        value = bisect_left(self._starts, at) - 1
        return (self._starts[value], self._ends[value]) if value >= 0 and at < self._ends[value] else None


class _Cutter:
    """Cuts spans of one text."""

    def __init__(self, text: str, split: Split, values: _Values) -> None:
        self._text, self._split, self._values = text, split, values
        self._most = split.tokens
        self._overlap = split.overlap

    @cached_property
    def _costs(self) -> TextCosts:
        return TextCosts(self._text, self._split.tokenizer)

    @cached_property
    def _words(self) -> list[int]:
        return [match.end() for match in _SPACE.finditer(self._text)]

    @cached_property
    def _places(self) -> list[list[int]]:
        """The places to cut. The first kind with a place that fits decides."""
        by_token = self._split.by == "token"
        blocks = [] if by_token else [match.end() for match in _BLANK_LINES.finditer(self._text)]
        return [blocks, self._words]

    def cut(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the start and end of each part of a span."""
        done = start
        while True:
            most = self._costs.end_of(start, self._most)
            if most >= end:
                yield start, end
                return
            at = self._place(done, most)
            if at is None and start < done:
                # The repeated tokens leave no room for the next character.
                start = done
                continue
            at = self._next_place(done) if at is None else at
            yield start, min(at, end)
            if at >= end:
                return
            done, start = at, self._repeated_from(start, at)

    def _place(self, after: int, most: int) -> int | None:
        """Return the last place to cut behind `after`, and not behind `most`; None without one."""
        for places in self._places:
            found = bisect_right(places, most)
            while found and places[found - 1] > after:
                if (value := self._values.around(places[found - 1])) is None:
                    return places[found - 1]
                found = bisect_right(places, value[0], hi=found - 1)
        at = most
        while at > after and ((value := self._values.around(at)) or _is_within_character(self._text, at)):
            at = at - 1 if value is None else value[0]
        return at if at > after else None

    def _next_place(self, at: int) -> int:
        at += 1
        while at < len(self._text) and ((value := self._values.around(at)) or _is_within_character(self._text, at)):
            at = at + 1 if value is None else value[1]
        return at

    def _repeated_from(self, start: int, end: int) -> int:
        """Return the start of the next part: a word within the last tokens of this one, or its end."""
        if not self._overlap:
            return end
        earliest = max(self._costs.start_of(end, self._overlap), start + 1)
        found = bisect_left(self._words, earliest)
        at = self._words[found] if found < len(self._words) else end
        value = self._values.around(at)
        return min(at if value is None else value[1], end)


def _sections(text: str, values: _Values) -> list[tuple[int, int]]:
    """Return the start and end of each section. See Split.by."""
    starts, text_start = [0], 0
    for start, end in _headings(text):
        if _has_text(text[text_start:start]) and values.around(start) is None:
            starts.append(start)
        text_start = end
    if len(starts) > 1 and not _has_text(text[text_start:]):
        # The last heading has no text, and no section after it.
        starts.pop()
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


def _has_text(text: str) -> bool:
    return bool(text) and not text.isspace()


def _headings(text: str) -> list[tuple[int, int]]:
    """Return the start and end of each heading outside of fenced code."""
    if not ("```" in text or "~~~" in text or _has_other_line_ends(text)):
        # Nearly all texts are read by this fast way.
        first = _HEADING.match(text)
        later = [heading.span(1) for heading in _LATER_HEADING.finditer(text)]
        return later if first is None else [first.span(), *later]
    headings, at, fence = [], 0, ""
    for line in text.splitlines(keepends=True):
        marks = _FENCE.match(line)
        if marks is not None and not fence:
            fence = marks[1]
        elif marks is not None and marks[1].startswith(fence):
            fence = ""
        elif not fence and _HEADING.match(line):
            headings.append((at, at + len(line)))
        at += len(line)
    return headings


def _has_other_line_ends(text: str) -> bool:
    r"""Return whether a line of the text ends by anything but "\n" and "\r\n"."""
    lines = text.count("\n") + (not text.endswith("\n"))
    return len(text.splitlines()) != lines


def _is_within_character(text: str, at: int) -> bool:
    """Return whether a cut before this code point would divide one character that a reader sees."""
    if not 0 < at < len(text):
        return False
    before, here = text[at - 1], text[at]
    if here.isascii():
        return here == "\n" and before == "\r"
    if unicodedata.category(here) in ("Mn", "Mc", "Me") or ord(here) in _SKIN_TONES:
        return True
    if _ZERO_WIDTH_JOINER in (before, here):
        return True
    if ord(here) in _REGIONAL and ord(before) in _REGIONAL:
        # A flag is two of them.
        first = at
        while first and ord(text[first - 1]) in _REGIONAL:
            first -= 1
        return (at - first) % 2 == 1
    return False


def split_rows(rows: Any, split: Split, *, key: str, mask: Mask | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the parts of all rows as rows of their own, in order and in constant memory.

    Use it in the function of a dataset's rows. The dataset's key is `part_key`, and `keep` has `key`, `part`, `parts`
    and `part_start`.

    Args:
        rows: A frame, relation, list of dicts or iterator, as for a dataset.
        split: The rule.
        key: The column that identifies a row.
        mask: The mask of the dataset's prompt. No part then begins or ends within a value that it finds.

    Yields:
        The columns of the rows, with the part's text in the place of the text, and `part_key` (text:
        `<key>#<number>`), `part`, `parts` and `part_start`. A row whose text is null or empty has one part.

    Raises InputError for a column that is missing, has the name of an added one, or holds no text, and ConfigError for
    a mask that does not name the text's column.
    """
    if mask is not None and split.column not in mask.columns:
        raise ConfigError(
            f"Mask names {', '.join(mask.columns)}, and not the column {split.column!r} that Split divides. Name this "
            "column in Mask.columns, or leave out mask."
        )
    for batch in record_batches(rows):
        if not batch.num_columns:
            yield batch
            continue
        _check(batch.schema, split.column, key)
        at_once = max(_BYTES_AT_ONCE * batch.num_rows // max(batch.nbytes, 1), 1)
        for start in range(0, max(batch.num_rows, 1), at_once):
            yield from _parts_of(batch.slice(start, at_once), split, key, mask)
        # Or it would be in memory while the next one is read.
        del batch


def _check(schema: pa.Schema, column: str, key: str) -> None:
    if column not in schema.names:
        msg = f"Split names the column {column!r}, which the rows do not have. Columns: {', '.join(schema.names)}."
        raise InputError(msg)
    if taken := sorted(set(PART_COLUMNS.names) & set(schema.names)):
        raise InputError(f"The rows have {', '.join(taken)}, which are columns of parts. Rename them before splitting.")
    kind = schema.field(column).type
    if column == key or not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
        raise InputError(
            f"Split names the column {column!r} of type {kind}; it takes a column of text that is not the key. "
            "Convert it to text before splitting."
        )


@dataclass
class _Parts:
    """Parts of some rows, in columns.

    `rows` has the place of each part's row, `numbers` its number in this row, and `counts` the number of all of them.
    """

    rows: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    size: int = 0

    def add(self, row: int, text: str | None, spans: Sequence[tuple[int, int]], number: int, count: int) -> None:
        """Add parts of a row that has `count` of them. `number` is the first one's."""
        self.rows += repeat(row, len(spans))
        self.numbers += range(number, number + len(spans))
        self.counts += repeat(count, len(spans))
        self.starts += [start for start, _ in spans]
        self.texts += [None] if text is None else [text[start:end] for start, end in spans]
        self.size += spans[-1][1] - spans[0][0]


def _parts_of(batch: pa.RecordBatch, split: Split, key: str, mask: Mask | None) -> Iterator[pa.RecordBatch]:
    """Yield the parts of some rows, a limited number of bytes at a time."""
    keys = pa.array([f"{name}#" for name in keys_of(batch, key)], pa.string())
    held = _Parts()
    for row, text in enumerate(batch.column(split.column).to_pylist()):
        spans = [(0, 0)] if text is None else _spans_of(text, split, mask)
        # Else the parts of one long text would be in memory at once.
        at_once = max(len(spans) * _BYTES_AT_ONCE // max(len(text or ""), _BYTES_AT_ONCE), 1)
        for first in range(0, len(spans), at_once):
            held.add(row, text, spans[first : first + at_once], first + 1, len(spans))
            if held.size > _BYTES_AT_ONCE:
                yield _batch_of(batch, keys, held, split.column)
                held = _Parts()
    if held.rows or not batch.num_rows:
        yield _batch_of(batch, keys, held, split.column)


def _batch_of(batch: pa.RecordBatch, keys: pa.Array, parts: _Parts, column: str) -> pa.RecordBatch:
    """Return parts of some rows. `keys` has the beginning of the key of each row's parts."""
    kind = batch.schema.field(column).type
    kind = pa.string() if pa.types.is_null(kind) else kind
    rows, numbers = pa.array(parts.rows, pa.int64()), pa.array(parts.numbers, pa.int64())
    columns = {
        name: pa.array(parts.texts, kind) if name == column else batch.column(name).take(rows)
        for name in batch.schema.names
    }
    columns[PART_KEY] = pc.binary_join_element_wise(keys.take(rows), numbers.cast(pa.string()), "")
    columns[PART] = numbers
    columns[PARTS], columns[PART_START] = pa.array(parts.counts, pa.int64()), pa.array(parts.starts, pa.int64())
    return pa.record_batch(columns)
