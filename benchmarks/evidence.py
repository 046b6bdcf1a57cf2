"""Measure quotes in texts: which scores right and wrong quotes have, and how long it takes to locate them.

    python -m benchmarks.evidence [--sentences 1000]

Texts are the pages in docs/. A wrong quote is a sentence of another page. A right one is a sentence of the page itself
with a change, as models make them.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dagster_llm_batch.core.evidence import Match, SourceText

DOCS = Path(__file__).resolve().parents[1] / "docs"
LEVELS = (0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
_LEAST, _LENGTHS = 0.5, (1_000, 10_000, 100_000, 1_000_000)


def drop_word(words: list[str], draw: random.Random) -> list[str]:
    """Leave a word out."""
    at = draw.randrange(len(words))
    return [*words[:at], *words[at + 1 :]]


def change_word(words: list[str], draw: random.Random) -> list[str]:
    """Say another word in the place of one."""
    at = draw.randrange(len(words))
    return [*words[:at], draw.choice(words), *words[at + 1 :]]


def mistype(words: list[str], draw: random.Random) -> list[str]:
    """Change 3 % of the letters."""
    return ["".join(draw.choice("etaoin") if draw.random() < 0.03 else letter for letter in word) for word in words]


def cut_middle(words: list[str], _draw: random.Random) -> list[str]:
    """Write an ellipsis in the place of a fifth of the words."""
    fifth = len(words) // 5
    return [*words[: 2 * fifth], "…", *words[3 * fifth :]]


CHANGES: dict[str, Callable[[list[str], random.Random], list[str]]] = {
    "a word dropped": drop_word,
    "a word changed": change_word,
    "3 % of letters changed": mistype,
    "a fifth is an ellipsis": cut_middle,
}


def pages() -> list[str]:
    """Return the prose of the pages."""
    texts = [path.read_text(encoding="utf-8") for path in sorted(DOCS.rglob("*.md"))]
    return [re.sub(r"```.*?```", "", text, flags=re.DOTALL) for text in texts]


def sentences_of(text: str) -> list[str]:
    """Return its sentences of 20 characters or more. Cells of tables are among them."""
    found = (sentence.strip() for sentence in re.split(r"(?<=[.:!?|])\s", text))
    return [sentence for sentence in found if len(sentence) >= 20 and len(sentence.split()) >= 4]


def score_of(quote: str, text: str) -> float:
    """Return the score of a quote; 0 below the least score that is measured."""
    place = SourceText(text).locate(quote, _LEAST)
    return place.score or 0.0 if place is not None else 0.0


def write_shares(name: str, scores: Sequence[float]) -> None:
    """Print the shares of quotes that are found from each least score on."""
    shares = "".join(f" {sum(score >= level for score in scores) / len(scores):8.2%}" for level in LEVELS)
    print(f"{name:<26}{len(scores):>7,}{shares}")


def measure_scores(count: int) -> None:
    """Print the shares of wrong and right quotes that are found."""
    draw, texts = random.Random(7), pages()
    by_page = [sentences_of(text) for text in texts]
    drawn_pages = draw.choices(range(len(texts)), [len(own) for own in by_page], k=count)
    drawn = [(page, draw.choice(by_page[page])) for page in drawn_pages]
    print(f"{'found from a score of':<33}" + "".join(f" {level:8}" for level in LEVELS))
    wrong = []
    for page, sentence in drawn:
        other = draw.choice([number for number in range(len(texts)) if number != page])
        place = SourceText(texts[other]).locate(sentence, None)
        # Some sentences are on several pages.
        if place is not None and place.match is Match.MISSING:
            wrong.append(score_of(sentence, texts[other]))
    write_shares("of another page", wrong)
    for name, change in CHANGES.items():
        write_shares(name, [score_of(" ".join(change(quote.split(), draw)), texts[page]) for page, quote in drawn])


def measure_times() -> None:
    """Print the time for one quote of each kind, by the length of the text and of the quote."""
    whole = " ".join(pages())
    letters = random.Random(7)
    print(f"\n{'characters':>10}{'of the quote':>14}" + "".join(f"{match.value + ', ms':>14}" for match in Match))
    for length in _LENGTHS:
        text = (whole * (length // len(whole) + 1))[:length]
        for size in (30, 300, 3_000):
            if size > length // 2:
                continue
            # The last words, so that all of the text is searched.
            quote = text[-size:].strip()
            words = quote.split(" ")
            nothing = "".join(letters.choices("abcdefghijklmnopqrstuvwxyz ", k=size))
            quotes = [quote, "  ".join(words), " ".join([*words[:-1], "zz"]), nothing]
            times = []
            for each in quotes:
                runs = []
                for _ in range(3):
                    source, start = SourceText(text), time.perf_counter()
                    source.locate(each)
                    runs.append(time.perf_counter() - start)
                times.append(min(runs))
            print(f"{length:>10,}{size:>14,}" + "".join(f"{each * 1e3:>14.2f}" for each in times))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence")
    parser.add_argument("--sentences", type=int, default=1_000)
    measure_scores(parser.parse_args().sentences)
    measure_times()


if __name__ == "__main__":
    main()
