"""Split long texts into parts: `Split("text", tokens=2_000)`. Pure, and the same text always has the same parts.

    row (key, text)  ─▶  parts: rows of a dataset of their own (part_key, part, parts, part_start, the part's text)

1. Each character of a text is in at least one part. Without `overlap` the parts, joined, are the text.
2. A part has at most `tokens` by the count of the estimate, unless one character alone has more.
3. A part is a slice of its text, so a place in it is a place in the text, shifted by `part_start`.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from dagster_llm_batch.arguments import checked
from dagster_llm_batch.core.keys import keys_of
from dagster_llm_batch.core.rows import record_batches
from dagster_llm_batch.core.token_counts import TextCosts
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

_HEADING = re.compile(r"^#{1,6}(?:[ \t]|$)")
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

    def parts(self, text: str) -> list[TextPart]:
        """Return the parts of a text, in order; of a text without characters, one empty part."""
        if not text:
            return [TextPart(0, "")]
        cutter = _Cutter(text, self)
        sections = _sections(text) if self.by == "section" else [(0, len(text))]
        return [TextPart(start, text[start:end]) for section in sections for start, end in cutter.cut(*section)]


class _Cutter:
    """Cuts spans of one text."""

    def __init__(self, text: str, split: Split) -> None:
        self._text = text
        self._costs = TextCosts(text, split.tokenizer)
        self._most = split.tokens
        self._overlap = split.overlap
        self._words = [match.end() for match in _SPACE.finditer(text)]
        blocks = [] if split.by == "token" else [match.end() for match in _BLANK_LINES.finditer(text)]
        # The first kind with a place that fits decides.
        self._places = [blocks, self._words]

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
            at = self._next_character(done) if at is None else at
            yield start, min(at, end)
            if at >= end:
                return
            done, start = at, self._repeated_from(start, at)

    def _place(self, after: int, most: int) -> int | None:
        """Return the last place to cut behind `after`, and not behind `most`; None without one."""
        for places in self._places:
            found = bisect_right(places, most)
            if found and places[found - 1] > after:
                return places[found - 1]
        return next((at for at in range(most, after, -1) if not _is_within_character(self._text, at)), None)

    def _next_character(self, at: int) -> int:
        at += 1
        while at < len(self._text) and _is_within_character(self._text, at):
            at += 1
        return at

    def _repeated_from(self, start: int, end: int) -> int:
        """Return the start of the next part: a word within the last tokens of this one, or its end."""
        if not self._overlap:
            return end
        earliest = max(self._costs.start_of(end, self._overlap), start + 1)
        found = bisect_left(self._words, earliest)
        return min(self._words[found], end) if found < len(self._words) else end


def _sections(text: str) -> list[tuple[int, int]]:
    """Return the start and end of each section. See Split.by."""
    starts, at, fence = [0], 0, ""
    has_text = False
    for line in text.splitlines(keepends=True):
        marks = _FENCE.match(line)
        if marks is not None and not fence:
            fence = marks[1]
        elif marks is not None and marks[1].startswith(fence):
            fence = ""
        elif not fence and _HEADING.match(line):
            if has_text:
                starts.append(at)
            has_text = False
            at += len(line)
            continue
        has_text = has_text or not line.isspace()
        at += len(line)
    if len(starts) > 1 and not has_text:
        # The last heading has no text, and no section after it.
        starts.pop()
    return list(zip(starts, [*starts[1:], len(text)], strict=True))


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


def split_rows(rows: Any, split: Split, *, key: str) -> Iterator[pa.RecordBatch]:
    """Yield the parts of all rows as rows of their own, in order and in constant memory.

    Use it in the function of a dataset's rows. The dataset's key is `part_key`, and `keep` has `key`, `part`, `parts`
    and `part_start`.

    Args:
        rows: A frame, relation, list of dicts or iterator, as for a dataset.
        split: The rule.
        key: The column that identifies a row.

    Yields:
        The columns of the rows, with the part's text in the place of the text, and `part_key` (text:
        `<key>#<number>`), `part`, `parts` and `part_start`. A row whose text is null or empty has one part.

    Raises InputError for a column that is missing, has the name of an added one, or holds no text.
    """
    for batch in record_batches(rows):
        if not batch.num_columns:
            yield batch
            continue
        _check(batch.schema, split.column, key)
        at_once = max(_BYTES_AT_ONCE * batch.num_rows // max(batch.nbytes, 1), 1)
        for start in range(0, max(batch.num_rows, 1), at_once):
            yield from _parts_of(batch.slice(start, at_once), split, key)
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


def _parts_of(batch: pa.RecordBatch, split: Split, key: str) -> Iterator[pa.RecordBatch]:
    """Yield the parts of some rows, a limited number of bytes at a time."""
    keys, texts = keys_of(batch, key), batch.column(split.column).to_pylist()
    held: list[tuple[int, str, int, int, int, str | None]] = []
    held_bytes = 0
    for row, (name, text) in enumerate(zip(keys, texts, strict=True)):
        parts: Sequence[tuple[int, str | None]] = [(0, None)] if text is None else split.parts(text)
        for number, (start, part) in enumerate(parts, start=1):
            held.append((row, f"{name}#{number}", number, len(parts), start, part))
            held_bytes += len(part or "")
            if held_bytes > _BYTES_AT_ONCE:
                yield _batch_of(batch, held, split.column)
                held, held_bytes = [], 0
    if held or not batch.num_rows:
        yield _batch_of(batch, held, split.column)


def _batch_of(
    batch: pa.RecordBatch, held: Sequence[tuple[int, str, int, int, int, str | None]], column: str
) -> pa.RecordBatch:
    by_column: Sequence[Sequence[Any]] = [*zip(*held, strict=True)] if held else [()] * 6
    rows, *added, texts = by_column
    kind = batch.schema.field(column).type
    kind = pa.string() if pa.types.is_null(kind) else kind
    columns = {
        name: pa.array(texts, kind) if name == column else batch.column(name).take(pa.array(rows, pa.int64()))
        for name in batch.schema.names
    }
    columns |= {field.name: pa.array(values, field.type) for field, values in zip(PART_COLUMNS, added, strict=True)}
    return pa.record_batch(columns)
