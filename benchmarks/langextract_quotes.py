"""Quotes in texts, located by this package and by langextract: which are found, where, and in what time.

    pip install langextract
    python -m benchmarks.langextract_quotes [--quotes 200]

Texts are parts of the pages in docs/ of some 4,000 characters, and made ones. A quote is a sentence of its text with a
change, as models make them, so its place is known. A cell has three shares: quotes that are found in the right place,
in a part of it or with more around it, and elsewhere. In the right place, both share three quarters of their
characters. The others are missing. langextract aligns the quotes of one text at a time by its defaults, Chinese texts
by its tokenizer for them. With *whole quotes*, it does not accept the beginning of a quote for the quote
(`accept_match_lesser=False`).
"""

from __future__ import annotations

import argparse
import random
import re
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from benchmarks.evidence import change_word, cut_middle, drop_word, mistype, pages, sentences_of
from dagster_llm_batch.core.evidence import SourceText

Span = tuple[int, int]
Locate = Callable[["Case"], list[Span | None]]

_WINDOW, _RIGHT = 4_000, 0.75
_TYPOGRAPHY = str.maketrans({"'": "\u2019", '"': "\u201d", "-": "\u2013", "\u2026": "..."})
_GERMAN = (
    "Die Kündigung muß bis zum {}. März schriftlich erfolgen, sonst verlängert sich der Vertrag.",
    "Das Gerät „Föhn {}“ wurde ohne Netzteil geliefert und läßt sich nicht öffnen.",
    "Für Größe {} gilt: Rückgabe binnen zwei Wochen, Gebühr übernimmt der Käufer.",
)
_CHINESE = (
    "第{}号合同自签署之日起生效，有效期为三年。",  # noqa: RUF001
    "客户于第{}天报告电池无法充电，并要求退款。",  # noqa: RUF001
    "产品编号{}的包装破损，但内部零件完好无缺。",  # noqa: RUF001
)


class Case(NamedTuple):
    """Quotes of a text, and the places of the sentence that each was made of; empty for another text's sentence."""

    text: str
    quotes: list[str]
    places: list[list[Span]]
    is_chinese: bool = False


def locate(case: Case) -> list[Span | None]:
    """Locate quotes by this package."""
    source = SourceText(case.text)
    found = [source.locate(quote) for quote in case.quotes]
    return [None if one is None or one.start is None or one.end is None else (one.start, one.end) for one in found]


def langextract_locate(**settings: Any) -> Locate:
    """Return langextract's way to locate quotes, with these settings."""
    from langextract.core import data, tokenizer  # type: ignore[import-not-found]
    from langextract.resolver import Resolver  # type: ignore[import-not-found]

    resolver, for_chinese = Resolver(), tokenizer.UnicodeTokenizer()

    def align(case: Case) -> list[Span | None]:
        extractions = [data.Extraction("quote", quote) for quote in case.quotes]
        own = {"tokenizer_inst": for_chinese} if case.is_chinese else {}
        aligned = resolver.align(extractions, case.text, token_offset=0, char_offset=0, **own, **settings)
        found = [one.char_interval for one in aligned]
        return [None if one is None else (one.start_pos, one.end_pos) for one in found]

    return align


def windows() -> Iterator[str]:
    """Yield parts of the pages of some thousand characters, each of whole paragraphs."""
    for page in pages():
        held = ""
        for block in re.split(r"(?<=\n\n)", page):
            held += block
            if len(held) >= _WINDOW:
                yield held
                held = ""
        if len(held) >= _WINDOW // 4:
            yield held


def places_of(sentence: str, text: str) -> list[tuple[int, int]]:
    """Return all places of a sentence."""
    return [found.span() for found in re.finditer(re.escape(sentence), text)]


def other_spaces(words: list[str], draw: random.Random) -> list[str]:
    """Put two blanks, a tab or a line break between two words."""
    return [word + draw.choice([" ", "\n", "\t", ""]) for word in words]


def lower(words: list[str], _draw: random.Random) -> list[str]:
    """Write all letters small."""
    return [word.lower() for word in words]


def typography(words: list[str], _draw: random.Random) -> list[str]:
    """Write quotation marks and dashes as typesetters do."""
    return [word.translate(_TYPOGRAPHY) for word in words]


def two_words(words: list[str], draw: random.Random) -> list[str]:
    """Quote two words alone."""
    at = draw.randrange(len(words) - 1)
    return words[at : at + 2]


def cut_half(words: list[str], _draw: random.Random) -> list[str]:
    """Write an ellipsis in the place of half of the words."""
    quarter = len(words) // 4
    return [*words[:quarter], "…", *words[3 * quarter :]]


def mistype_more(words: list[str], draw: random.Random) -> list[str]:
    """Change 10 % of the letters."""
    return ["".join(draw.choice("etaoin") if draw.random() < 0.1 else letter for letter in word) for word in words]


def of_pages(count: int, change: Callable[[list[str], random.Random], list[str]], draw: random.Random) -> list[Case]:
    """Return changed sentences of the pages."""
    cases: list[Case] = []
    texts = list(windows())
    while len(cases) < count:
        text = draw.choice(texts)
        sentence = draw.choice(sentences_of(text))
        words = sentence.split()
        quote = " ".join(change(words, draw))
        places = places_of(quote if change is two_words else sentence, text)
        if places and not (change is typography and quote == " ".join(words)):
            cases.append(Case(text, [quote], [places]))
    return cases


def foreign(count: int, draw: random.Random) -> list[Case]:
    """Return sentences of another page, which are not in the text."""
    texts = list(windows())
    cases: list[Case] = []
    while len(cases) < count:
        text, other = draw.sample(texts, 2)
        quote = " ".join(draw.choice(sentences_of(other)).split())
        if quote not in " ".join(text.split()):
            cases.append(Case(text, [quote], [[]]))
    return cases


def made(
    count: int, forms: tuple[str, ...], change: Callable[[str, random.Random], str], draw: random.Random
) -> list[Case]:
    """Return changed sentences of made texts, each of forty sentences."""
    cases, is_chinese = [], forms is _CHINESE
    for _ in range(count):
        sentences = [draw.choice(forms).format(number) for number in draw.sample(range(100, 999), 40)]
        text = ("" if is_chinese else " ").join(sentences)
        sentence = draw.choice(sentences)
        cases.append(Case(text, [change(sentence, draw)], [places_of(sentence, text)], is_chinese))
    return cases


def repeated(count: int, draw: random.Random) -> list[Case]:
    """Return a sentence that a text has three times, and three quotes of it, each with its place in this order."""
    cases = []
    for _ in range(count):
        sentences = [f"Part {number} of the delivery came." for number in draw.sample(range(100, 999), 20)]
        for at in (5, 10, 15):
            sentences.insert(at, "The lid was broken.")
        text = " ".join(sentences)
        places = places_of("The lid was broken.", text)
        cases.append(Case(text, ["The lid was broken."] * 3, [[place] for place in places]))
    return cases


def change_character(sentence: str, draw: random.Random) -> str:
    """Write another character in the place of one in the second half."""
    at = draw.randrange(len(sentence) // 2, len(sentence))
    return f"{sentence[:at]}的{sentence[at + 1 :]}"


def result_of(span: Span | None, places: list[Span]) -> str:
    """Return whether a span is right, a part of a right place, elsewhere, or missing."""
    if span is None:
        return "missing"
    shares: list[float] = [0.0]
    for start, end in places:
        common = min(end, span[1]) - max(start, span[0])
        shares.append(common / (max(end, span[1]) - min(start, span[0])))
    if max(shares) >= _RIGHT:
        return "right"
    return "part" if max(shares) > 0 else "elsewhere"


def table(count: int) -> Iterator[str]:
    """Yield the rows of the table."""
    draw = random.Random(7)
    decompose = partial(unicodedata.normalize, "NFD")
    cases: dict[str, list[Case]] = {
        name: of_pages(count, change, draw)
        for name, change in {
            "unchanged": lambda words, _: words,
            "two of its words": two_words,
            "other white space": other_spaces,
            "typographic characters": typography,
            "small letters": lower,
            "a word dropped": drop_word,
            "a word changed": change_word,
            "3% other letters": mistype,
            "10% other letters": mistype_more,
            "an ellipsis for a fifth": cut_middle,
            "an ellipsis for half": cut_half,
        }.items()
    }
    cases["German, unchanged"] = made(count, _GERMAN, lambda one, _: one, draw)
    cases["German, letters and accents apart"] = made(count, _GERMAN, lambda one, _: decompose(one), draw)
    cases["Chinese, unchanged"] = made(count, _CHINESE, lambda one, _: one, draw)
    cases["Chinese, a character changed"] = made(count, _CHINESE, change_character, draw)
    cases["the same words three times"] = repeated(count, draw)
    cases["a sentence of another page"] = foreign(count, draw)
    ways = {
        "here": locate,
        "langextract": langextract_locate(),
        "langextract, whole quotes": langextract_locate(accept_match_lesser=False),
    }
    yield f"| Quote | {' | '.join(ways)} |"
    yield "| --- |" + " ---: |" * len(ways)
    seconds = dict.fromkeys(ways, 0.0)
    for name, own in cases.items():
        cells = []
        for way, find in ways.items():
            start = time.process_time()
            found = [find(case) for case in own]
            seconds[way] += time.process_time() - start
            results = Counter(
                result_of(span, places)
                for case, spans in zip(own, found, strict=True)
                for span, places in zip(spans, case.places, strict=True)
            )
            shares = [f"{results[one] / results.total():.1%}" for one in ("right", "part", "elsewhere")]
            cells.append(" / ".join(shares))
        yield f"| {name} | {' | '.join(cells)} |"
    times = [f"{seconds[way] / sum(len(own) for own in cases.values()) * 1e3:.2f} ms" for way in ways]
    yield f"| CPU for the quotes of a text, mean | {' | '.join(times)} |"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.langextract_quotes")
    parser.add_argument("--quotes", type=int, default=200, help="quotes of each kind")
    for row in table(parser.parse_args().quotes):
        print(row, flush=True)


if __name__ == "__main__":
    main()
