"""Quotes in the text that they were taken from: where each is, and how much it equals the text there. Pure.

    quote ─▶ exact: the same characters ─▶ folded: after `fold` ─▶ near: rapidfuzz, from a least score on ─▶ missing

1. Places are offsets of Python's characters (code points) in the original text, whatever was folded.
2. A folded match begins and ends between whole characters of the text: `fold(text[start:end]) == fold(quote)`.
3. Letters keep their case. A first letter in the other case is a near match, since "US" and "us" differ.
4. The time is linear in the length of the text. A quote that is longer than LONGEST_NEAR has no near match.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from enum import StrEnum
from functools import cached_property, lru_cache
from itertools import chain, pairwise
from math import ceil
from typing import NamedTuple

from dagster_llm_batch.core.documents import BETWEEN_PAGES
from dagster_llm_batch.errors import MissingExtraError

__all__ = ["LEAST_SCORE", "LONGEST_NEAR", "Match", "PagedText", "Place", "SourceText", "fold"]

LEAST_SCORE = 0.85
"""Default of the least score of a near match: `rapidfuzz.fuzz.ratio` as a share.

`python -m benchmarks.evidence` measures it on 1,000 sentences of the documentation. One sentence of another page
reaches it. Of the page's own sentences, 98 % reach it with a dropped word, and 93 % with a changed word. With 0.9, the
other page's sentence is found, too, but only 93 % and 82 % of these.
"""

LONGEST_NEAR = 10_000
"""Characters of the longest quote that is compared with parts of the text: the time grows with their square."""

_MANY_TRIES = 100
# Longer quotes are found by parts of them, since the time of a part grows with its square, too.
_PART = 200
# A part may be less alike than the whole quote.
_PART_LEEWAY = 0.15

# Invisible: soft hyphens, joiners, marks of the direction of writing, and choices between text and emoji.
_DROPPED = "\u00ad\u200b\u200c\u200d\u2060\ufeff\ufe0e\ufe0f"
_DROPPED += "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
# Single and double quotation marks of many languages; hyphens, dashes and the minus sign.
_SINGLE, _DOUBLE = "\u2018\u2019\u201a\u201b\u2032\u02bc\u2039\u203a", "\u201c\u201d\u201e\u201f\u00ab\u00bb"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_PLAIN = str.maketrans(dict.fromkeys(_SINGLE, "'") | dict.fromkeys(_DOUBLE, '"') | dict.fromkeys(_DASHES, "-"))
# Words with one blank between them stay as they are. A run of white space is one character of the folded text.
_TOKEN = re.compile(rf"(?P<same>[!-~]+(?: [!-~]+)*)|(?P<space>[\s{_DROPPED}]+)|(?P<other>.)", re.DOTALL)


class Match(StrEnum):
    """How a quote equals its text."""

    EXACT = "exact"
    FOLDED = "folded"
    NEAR = "near"
    MISSING = "missing"


class Place(NamedTuple):
    """The place of a quote. A missing quote has neither start, end nor score. Only quotes of a PDF have a page."""

    start: int | None
    end: int | None
    match: Match
    score: float | None
    page: int | None = None


_MISSING = Place(None, None, Match.MISSING, None)


class SourceText:
    """A text in which quotes are located. It is folded once, when the first quote needs it."""

    def __init__(self, text: str) -> None:
        self._text = text

    def locate(self, quote: str, least_score: float | None = LEAST_SCORE) -> Place | None:
        """Return the place of a quote; None for a quote of nothing but white space.

        Of several places, the first one that does not begin or end within a word counts, or the first of all.

        Args:
            quote: The quoted words.
            least_score: Least score of a near match, 0.5 to 1. With None, only exact and folded matches count.

        Raises:
            MissingExtraError: A near match is needed, and the extra `evidence` is not installed.
        """
        folded = fold(quote)
        if not folded:
            return None
        if (start := _first_whole(self._text, quote)) >= 0:
            return Place(start, start + len(quote), Match.EXACT, 1.0)
        if (span := self._folded.find(folded)) is not None:
            return Place(*span, Match.FOLDED, 1.0)
        if least_score is None or len(folded) > LONGEST_NEAR:
            return _MISSING
        near = _near(folded, self._folded.text, least_score)
        if near is None:
            return _MISSING
        return Place(*self._folded.span_around(near.start, near.end), Match.NEAR, near.score)

    @cached_property
    def _folded(self) -> _FoldedText:
        return _FoldedText(self._text)


class PagedText(SourceText):
    """The text of pages, one after the other with a blank line between them. A quote has the page where it begins.

    Args:
        pages: The text of each page; "" for a page without text, which has a number, too.
    """

    def __init__(self, pages: Sequence[str]) -> None:
        self._starts: list[int] = []
        self._numbers: list[int] = []
        start = 0
        for number, page in enumerate(pages, 1):
            if page:
                self._starts.append(start)
                self._numbers.append(number)
                start += len(page) + len(BETWEEN_PAGES)
        super().__init__(BETWEEN_PAGES.join(filter(None, pages)))

    def locate(self, quote: str, least_score: float | None = LEAST_SCORE) -> Place | None:
        """See SourceText.locate."""
        place = super().locate(quote, least_score)
        if place is None or place.start is None:
            return place
        return place._replace(page=self._numbers[bisect_right(self._starts, place.start) - 1])


def fold(text: str) -> str:
    """Return a text in which spellings of the same words are the same.

    Compatible characters are one (Unicode's NFKD), quotation marks and dashes are plain, a run of white space is one
    blank, and soft hyphens and other invisible characters are gone. The case stays.
    """
    start, end = 0, len(text)
    while start < end and _is_blank(text[start]):
        start += 1
    while start < end and _is_blank(text[end - 1]):
        end -= 1
    # A folded character may begin with a blank: that of an accent without a letter, such as U+00B4.
    if start < end and _folded_character(text[start])[1]:
        start = 0
    return _FoldedText(text[start:end]).text


def _is_blank(character: str) -> bool:
    return character.isspace() or character in _DROPPED


class _FoldedText:
    """A folded text with the way back.

    It has pieces. Within some, each character is one of the original text; others are whole on both sides, such as a
    letter with its marks, or a run of white space.
    """

    def __init__(self, original: str) -> None:
        # Of each piece: its beginning in the folded and in the original text, and whether its characters correspond.
        self._at: list[int] = []
        self._original_at: list[int] = []
        self._corresponds: list[bool] = []
        # The folded text of each whole piece, and "" for the others, which are as in the original.
        self._wholes: list[str] = []
        length = position = 0
        while position < len(original):
            token = _TOKEN.match(original, position)
            assert token is not None
            piece, start, end = token[0], position, token.end()
            corresponds = token.lastgroup == "same"
            if token.lastgroup == "space":
                piece = " " if piece.strip(_DROPPED) else ""
            elif token.lastgroup == "other":
                piece, is_mark = _folded_character(piece)
                if is_mark:
                    end = _end_of_marks(original, end)
                    marks = original[start:end]
                    base, start, length = self._take_back(original, start, length)
                    piece = _with_marks(base, marks)
                corresponds = piece == original[start:end]
            if not (corresponds and self._corresponds and self._corresponds[-1]):
                self._append(length, start, "" if corresponds else piece, corresponds=corresponds)
            length += len(piece)
            position = end
        self._append(length, len(original), "", corresponds=False)
        pieces = zip(self._corresponds, self._wholes, pairwise(self._original_at), strict=False)
        self.text = "".join(original[slice(*place)] if corresponds else piece for corresponds, piece, place in pieces)

    def _append(self, at: int, original_at: int, whole: str, *, corresponds: bool) -> None:
        self._at.append(at)
        self._original_at.append(original_at)
        self._wholes.append(whole)
        self._corresponds.append(corresponds)

    def _take_back(self, original: str, start: int, length: int) -> tuple[str, int, int]:
        """Take back what the marks at `start` belong to: the last character, or all of a piece that is whole.

        Return it folded, where it begins in the original, and the length of the folded text before it.
        """
        base = ""
        while self._at and not base:
            if self._corresponds[-1] and length - self._at[-1] > 1:
                return original[start - 1], start - 1, length - 1
            length, start, base = self._at.pop(), self._original_at.pop(), self._wholes.pop()
            if self._corresponds.pop():
                base = original[start]
        return base, start, length

    def find(self, folded: str) -> tuple[int, int] | None:
        """Return the place in the original text of the first whole match; None without one."""
        first, at = None, -1
        for _ in range(_MANY_TRIES):
            at = self.text.find(folded, at + 1)
            if at < 0:
                break
            start, end = self._start(at), self._end(at + len(folded))
            if start is None or end is None:
                continue
            if _is_whole(self.text, at, at + len(folded)):
                return start, end
            first = first or (start, end)
        return first

    def span_around(self, start: int, end: int) -> tuple[int, int]:
        """Return the place in the original of a part of the folded text, with all characters that it cuts."""
        before, after = self._start(start), self._end(end)
        if before is None:
            before = self._original_at[bisect_right(self._at, start) - 1]
        if after is None:
            after = self._original_at[bisect_left(self._at, end)]
        return before, after

    def _start(self, at: int) -> int | None:
        """Return where the original of a match begins; None within a piece that is whole."""
        # The last piece that begins there: characters that were dropped before it are not of the match.
        piece = bisect_right(self._at, at) - 1
        return self._within(piece, at)

    def _end(self, at: int) -> int | None:
        piece = bisect_left(self._at, at)
        return self._within(piece if self._at[piece] == at else piece - 1, at)

    def _within(self, piece: int, at: int) -> int | None:
        offset = at - self._at[piece]
        return self._original_at[piece] + offset if not offset or self._corresponds[piece] else None


@lru_cache(maxsize=4_096)
def _folded_character(character: str) -> tuple[str, bool]:
    """Return a character folded, and whether it is a mark of the character before it."""
    folded = _decomposed(character)
    return folded, bool(unicodedata.combining(folded[0])) if folded else False


def _end_of_marks(text: str, at: int) -> int:
    """Return where the marks that go on here end. Dropped characters between marks do not end them."""
    end = at
    while at < len(text) and ((is_mark := _folded_character(text[at])[1]) or text[at] in _DROPPED):
        at += 1
        if is_mark:
            end = at
    return end


def _with_marks(base: str, marks: str) -> str:
    """Return a folded character with its marks in Unicode's order.

    `unicodedata` sorts them in time that grows with the square of their number, and some texts have thousands.
    """
    folded = [*base, *chain.from_iterable(_folded_character(mark)[0] for mark in marks if mark not in _DROPPED)]
    first = next((at for at in reversed(range(len(folded))) if not unicodedata.combining(folded[at])), -1) + 1
    return "".join([*folded[:first], *sorted(folded[first:], key=unicodedata.combining)])


def _decomposed(text: str) -> str:
    # NFKD makes two texts equal where NFKC does, and each character can be decomposed by itself.
    return unicodedata.normalize("NFKD", text).translate(_PLAIN)


def _first_whole(text: str, quote: str) -> int:
    """Return the first place that does not cut a word, or the first of all; -1 without one."""
    first = at = text.find(quote)
    for _ in range(_MANY_TRIES):
        if at < 0 or _is_whole(text, at, at + len(quote)):
            break
        at = text.find(quote, at + 1)
    return first if at < 0 or not _is_whole(text, at, at + len(quote)) else at


def _is_whole(text: str, start: int, end: int) -> bool:
    """Return whether a part of a text does not begin or end within a word."""
    return not _cuts_word(text, start) and not _cuts_word(text, end)


def _cuts_word(text: str, at: int) -> bool:
    return 0 < at < len(text) and text[at - 1].isalnum() and text[at].isalnum()


class _Near(NamedTuple):
    """A part of a text that is like a quote. `before` and `after` count the quote's characters beyond it."""

    start: int
    end: int
    score: float
    before: int = 0
    after: int = 0


def _near(quote: str, text: str, least_score: float) -> _Near | None:
    """Return the part of a text that is most like a quote; None if no score is high enough."""
    try:
        from rapidfuzz import fuzz  # noqa: PLC0415  # optional dependency
    except ImportError as error:
        raise MissingExtraError("evidence", "A near match of quotes") from error
    best: _Near | None = None
    # Of a text with this score, at most so many characters are not of the quote.
    slack = ceil(len(quote) * (2 - 2 * least_score) / least_score) + 1
    tried: set[int] = set()
    for offset, part in _parts(quote):
        cutoff = 100 * (least_score - _PART_LEEWAY)
        found = fuzz.partial_ratio_alignment(part, text, score_cutoff=cutoff)
        # In a text that is shorter than the part, this is the place of the text in the part.
        if found is None or (start := found.dest_start - found.src_start - offset) in tried:
            continue
        tried.add(start)
        near = _narrowed(quote, text, max(start - slack, 0), max(start + len(quote) + slack, 0))
        if near.score >= least_score and (best is None or near.score > best.score):
            best = near
    return None if best is None else _with_whole_words(quote, text, best, least_score)


def _narrowed(quote: str, text: str, low: int, high: int) -> _Near:
    """Return the part between two places that is most like a quote."""
    best = _Near(low, low, 0.0)
    for _ in range(_MANY_TRIES):
        start, end, before, after = _trimmed(quote, text[low:high])
        score = _score(quote, text[low + start : low + end])
        if score <= best.score:
            break
        best = _Near(low + start, low + end, score, before, after)
        # Words that repeat are compared with others far away, so the next window has no more than is needed.
        low, high = max(best.start - before, 0), best.end + after
    return best


def _with_whole_words(quote: str, text: str, near: _Near, least_score: float) -> _Near:
    """Return the part without blanks at its ends, and with all of the words that it cuts, if its score allows it."""
    start, end = near.start, near.end
    while start < end and text[start] == " ":
        start += 1
    while start < end and text[end - 1] == " ":
        end -= 1
    # Languages without blanks have no such words, so no more is added than the quote has.
    low, high = max(start - near.before, 0), min(end + near.after, len(text))
    while start > low and _cuts_word(text, start):
        start -= 1
    while end < high and _cuts_word(text, end):
        end += 1
    score = _score(quote, text[start:end])
    return near._replace(start=start, end=end, score=score) if score >= least_score else near


def _score(quote: str, part: str) -> float:
    from rapidfuzz import fuzz  # noqa: PLC0415  # optional dependency

    return float(fuzz.ratio(quote, part)) / 100


def _parts(quote: str) -> list[tuple[int, str]]:
    """Return parts of a quote with their offsets: the quote, or the beginning, middle and end of a long one."""
    if len(quote) <= 2 * _PART:
        return [(0, quote)]
    return [(at, quote[at : at + _PART]) for at in (0, (len(quote) - _PART) // 2, len(quote) - _PART)]


def _trimmed(quote: str, window: str) -> tuple[int, int, int, int]:
    """Return the part of a window that is most like the quote, and how much of the quote is before and after it."""
    from rapidfuzz.distance import LCSseq  # noqa: PLC0415  # optional dependency

    blocks = [block for block in LCSseq.opcodes(quote, window) if block.tag == "equal"]
    if not blocks:
        return 0, 0, 0, 0
    common = sum(block.src_end - block.src_start for block in blocks)
    first = last = None
    # A few equal characters far from all others add more of the text than they add to what is common.
    best, rest = 0.0, common
    for block in blocks:
        share = rest / (len(quote) + blocks[-1].dest_end - block.dest_start)
        if share > best:
            best, first, left = share, block, rest
        rest -= block.src_end - block.src_start
    assert first is not None
    best, rest = 0.0, left
    for block in reversed(blocks[blocks.index(first) :]):
        share = rest / (len(quote) + block.dest_end - first.dest_start)
        if share > best:
            best, last = share, block
        rest -= block.src_end - block.src_start
    assert last is not None
    begin, end, before, after = first.dest_start, last.dest_end, first.src_start, last.src_end
    # The characters that were left out may be beside the rest, too.
    while begin and before and window[begin - 1] == quote[before - 1]:
        begin, before = begin - 1, before - 1
    while end < len(window) and after < len(quote) and window[end] == quote[after]:
        end, after = end + 1, after + 1
    return begin, end, before, len(quote) - after
