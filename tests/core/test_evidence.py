"""A quote is found at its place in any spelling, and a quote from elsewhere is never exact or folded."""

from __future__ import annotations

import sys
import unicodedata
from itertools import pairwise

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from dagster_llm_batch.core.evidence import LEAST_SCORE, LONGEST_NEAR, Match, SourceText, fold
from dagster_llm_batch.errors import MissingExtraError
from tests.tables import table

# Letters that decompose, compose, join or are several characters; white space and dashes of many kinds.
LETTERS = st.sampled_from(
    [*"abcABC123.,;é", "e\u0301", "ﬁ", "½", "Å", "각", "が", "한", "ß", "İ", "中", "😀", "ñ", "\u2018", "“", "—"]
)
WORDS = st.lists(st.lists(LETTERS, min_size=1, max_size=6).map("".join), min_size=1, max_size=8)
TEXTS = WORDS.map(" ".join)
BLANKS = st.sampled_from([" ", "  ", "\n", "\t \r\n", "\u00a0", "\u2003", "\u3000", " \u200b"])
SPELLINGS = {
    '"': "“”„«",
    "'": "\u2018\u2019\u2032",
    "-": "\u2013\u2014\u2010\u2212",
}


@st.composite
def respelled(draw: st.DrawFn, text: str) -> str:
    """Return the text with other white space, and other characters for the same letters."""
    form = draw(st.sampled_from(["NFC", "NFD", "NFKC", "NFKD", None]))
    words = [word if form is None else unicodedata.normalize(form, word) for word in text.split(" ")]
    other = words[0]
    for word in words[1:]:
        other += draw(BLANKS) + word
    letters = []
    for letter, following in pairwise(f"{other} "):
        letters.append(draw(st.sampled_from([letter, *SPELLINGS.get(fold(letter), "")])))
        if letter.isascii() and following.isascii() and letter.isalpha() and draw(st.booleans()):
            letters.append("\u00ad")
    return draw(st.sampled_from(["", " "])) + "".join(letters) + draw(BLANKS)


@given(st.data(), TEXTS, TEXTS, TEXTS)
@settings(max_examples=50, deadline=None)
def test_a_quote_under_other_white_space_and_unicode_is_found_at_its_place(data, before, quote, after):
    source = f"{before} {quote} {after}"
    written = data.draw(respelled(quote))
    place = SourceText(source).locate(written, None)
    assert place is not None
    assert place.match in (Match.EXACT, Match.FOLDED)
    assert fold(source[place.start : place.end]) == fold(written) == fold(quote)
    # It is the planted place, or an earlier one where the same words stand.
    assert place.start is not None
    assert place.start <= len(before) + 1 + len(quote) - len(quote.lstrip())


@given(st.data(), TEXTS, TEXTS, TEXTS)
@settings(max_examples=50, deadline=None)
def test_the_place_is_of_the_original_whatever_was_folded_in_it(data, before, quote, after):
    source = f"{data.draw(respelled(before))}{data.draw(respelled(quote))}{data.draw(respelled(after))}"
    place = SourceText(source).locate(quote, None)
    assert place is not None
    assert place.match in (Match.EXACT, Match.FOLDED)
    assert fold(source[place.start : place.end]) == fold(quote)
    assert place.match is Match.FOLDED or source[place.start : place.end] == quote


@given(TEXTS, TEXTS)
@settings(max_examples=50, deadline=None)
def test_a_quote_that_is_not_there_is_neither_exact_nor_folded(source, quote):
    assume(fold(quote) not in fold(source))
    place = SourceText(source).locate(quote)
    assert place is not None
    assert place.match in (Match.NEAR, Match.MISSING)
    if place.match is Match.NEAR:
        assert place.score is not None
        assert place.score >= LEAST_SCORE
        assert (place.start, place.end) != (None, None)


@given(st.text(max_size=40), st.text(max_size=12))
@example("a\u0301" * 70, "\u0301")
@example("\u0301", "\u0301")
@example("\u200b\u0301 x", "x")
@example("\u1100\u1161", "\u1100")
@settings(max_examples=200, deadline=None)
def test_whatever_characters_there_are_a_place_is_within_the_text_and_as_it_says(source, quote):
    place = SourceText(source).locate(quote)
    if place is None:
        assert not fold(quote)
    elif place.match is Match.MISSING:
        assert (place.start, place.end, place.score) == (None, None, None)
    else:
        assert place.start is not None
        assert place.end is not None
        assert place.score is not None
        assert 0 <= place.start <= place.end <= len(source)
        if place.match is Match.EXACT:
            assert source[place.start : place.end] == quote
        if place.match is Match.FOLDED:
            assert fold(source[place.start : place.end]) == fold(quote)


SOURCE = "Well, the battery died after only three days. The “support” team was kind \u2013 and quick."


@table(
    "quote, match, found",
    [
        ("three days. The", "exact", "three days. The"),
        ('The "support" team was kind - and', "folded", "The “support” team was kind \u2013 and"),
        ("the battery  died after\nonly", "folded", "the battery died after only"),
        ("the batery died after three days", "near", "the battery died after only three days"),
        ("The battery died", "near", "the battery died"),
        ("the screen broke", "missing", None),
        ("The “support” team was kind \u2013 and slow.", "near", "The “support” team was kind \u2013 and"),
        ("x" * (LONGEST_NEAR + 1), "missing", None),
    ],
)
def test_a_quote_has_its_kind(quote, match, found):
    place = SourceText(SOURCE).locate(quote)
    assert place is not None
    shown = None if place.start is None else SOURCE[place.start : place.end]
    assert (place.match.value, shown) == (match, found)


@table("quote", [" \n\t", "", "\u00ad"])
def test_a_quote_of_nothing_has_no_place(quote):
    assert SourceText(SOURCE).locate(quote) is None


@table(
    "source, quote, start",
    [
        ("a party of art", "art", 11),
        ("a party", "art", 3),
        ("a PARTY\u00a0of ART  now", "ART now", 11),
        ("中文没有空格", "没有", 2),
    ],
)
def test_whole_words_come_before_parts_of_words(source, quote, start):
    place = SourceText(source).locate(quote)
    assert place is not None
    assert place.start == start


@table(
    "source, quote, found",
    [
        # An accent without a letter begins with a blank once it is folded.
        ("Er sagte \u00b4Hallo\u00a0du\u00b4 zu", "\u00b4Hallo du\u00b4", "\u00b4Hallo\u00a0du\u00b4"),
        # An invisible character stands between a letter and its mark, as in Bengali.
        (
            "\u098f\u0987 \u09b0\u200d\u09cd\u09af\u09be\u09ac",
            "\u09b0\u09cd\u09af\u09be\u09ac",
            "\u09b0\u200d\u09cd\u09af\u09be\u09ac",
        ),
        ("un caf\u0065\u200b\u0301 noir", "caf\u00e9", "caf\u0065\u200b\u0301"),
        # The choice of an emoji, and the direction of writing.
        ("I \u2764\ufe0f it.", "I \u2764 it", "I \u2764\ufe0f it"),
        ("call \u206612-34\u2069 now", "call 12-34 now", "call \u206612-34\u2069 now"),
    ],
)
def test_marks_and_invisible_characters_are_found_where_the_text_has_them(source, quote, found):
    place = SourceText(source).locate(quote, None)
    assert place is not None
    assert place.match is Match.FOLDED
    assert source[place.start : place.end] == found


@pytest.mark.sample
@table("run", ["中" * 300_000, "a" + "\u0301\u0323" * 100_000, "a" + "\u0301\u200b\u0323" * 100_000])
def test_a_long_run_without_blanks_takes_time_in_proportion_to_it(run):
    """Otherwise one text would hold up a table for minutes or hours."""
    place = SourceText(f"{run} three\u00a0days").locate("three days", None)
    assert place is not None
    assert (place.match, place.start) == (Match.FOLDED, len(run) + 1)


@pytest.mark.parametrize("words", [60, 400])
def test_a_long_quote_is_found_nearly_wherever_it_was_changed(words):
    source = " ".join(f"word{number * 7919 % 10007}" for number in range(3_000))
    quoted = source.split(" ")[1_500 : 1_500 + words]
    start = source.index(" ".join(quoted))
    for at in (0, words // 2, words - 4):
        changed = " ".join([*quoted[:at], "another", "one", *quoted[at + 2 :]])
        place = SourceText(source).locate(changed)
        assert place is not None
        assert place.match is Match.NEAR
        assert place.start is not None
        assert place.end is not None
        assert abs(place.start - start) < 20
        assert abs(place.end - start - len(" ".join(quoted))) < 20
        assert place.score is not None
        assert place.score > 0.9


def test_only_a_higher_score_than_the_least_counts():
    source, quote = SourceText(SOURCE), "the battery died after four days"
    near = source.locate(quote, 0.8)
    assert near is not None
    assert near.score is not None
    assert source.locate(quote, near.score) == near
    for least in (near.score + 0.001, None):
        missing = source.locate(quote, least)
        assert missing is not None
        assert missing.match is Match.MISSING


def test_a_near_match_without_its_extra_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "rapidfuzz", None)
    assert SourceText(SOURCE).locate("three days") is not None
    with pytest.raises(MissingExtraError, match=r"pip install 'dagster-llm-batch\[evidence\]'"):
        SourceText(SOURCE).locate("four days")
