"""A text looks the same everywhere: in messages, cells, Markdown, previews and on a terminal."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Callable
from decimal import Decimal

from hypothesis import example, given
from hypothesis import strategies as st

from dagster_llm_batch.cli.output import cell
from dagster_llm_batch.metadata import markdown_cell, preview
from dagster_llm_batch.metrics import plain_text
from dagster_llm_batch.metrics.cells import markdown_text
from dagster_llm_batch.text import cell_text, keep_utf8, last_words, money_text, plain_words, replace_halves
from tests.tables import table

PLACES: dict[str, Callable[[str], str]] = {
    "message": plain_words,
    "log": last_words,
    "cell": cell_text,
    "evaluation": plain_text,
    "Markdown of an evaluation": markdown_text,
    "Markdown of metadata": markdown_cell,
    "preview": lambda text: str(preview([{"a": text}], ["a"]).value.records[0].data["a"]),
    "command line": lambda text: str(cell(text)),
}
SEQUENCES = {
    "CSI of 7 bits": "\x1b[1;31mred\x1b[0m",
    "CSI with every kind of parameter": "\x1b[<1;2:3=>?4 qred\x1b[?25l",
    "CSI of 8 bits": "\x9b1;31mred\x9b0m",
    "OSC to a bell": "\x1b]8;;https://example.com\x07red\x1b]8;;\x07",
    "OSC to a terminator": "\x1b]0;title\x1b\\red",
    "device control": "\x1bPq#0\x1b\\red",
    "character set": "\x1b(0red\x1b(B",
    "one escape after another": "\x1b\x1b[31mred\x1b",
    "bidirectional controls": "\u202ered\u202c\u2066\u2069\u200e",
    "invisible": "r\u200be\ufeffd\u00ad",
    "NUL and other controls": "\x00re\x07d\x7f\x80",
    "half surrogates": "\ud83dred\udc4d",
    "white space": " \t\r\n\x0b\x85\u2028\u2029\u00a0red\x1c ",
}


@table("place", PLACES)
@table("sequence", SEQUENCES)
def test_a_text_is_the_same_in_every_place(sequence: str, place: str) -> None:
    assert PLACES[place](f"so {SEQUENCES[sequence]} end") in ("so red end", "so | red | end")


@given(st.text(st.sampled_from("\x1b[]\\\x07\x9b\x9dPm;0 \n\u202e\ud83da") | st.characters()))
@example("\x1b" * 20_000)
@example("\x1b]" * 10_000)
@example("\x9b1" * 10_000)
@example("x" * 30_000)
def test_what_is_shown_prints_and_is_the_same_when_cleaned_again(text: str) -> None:
    shown = plain_words(text)
    assert shown.isprintable()
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert shown == shown.strip()
    assert "  " not in shown
    assert len(shown) <= 500
    assert plain_words(shown) == shown
    assert cell_text(text)[:119] == shown[:119].rstrip() or len(shown) > 120
    assert (len(shown) == 500 and shown.endswith("…")) or len(shown) < 500 or len(text) >= 500


def test_an_open_sequence_takes_nothing_else_along() -> None:
    assert plain_words("Refused: \x1b]8;;x. Give another name.") == "Refused: 8;;x. Give another name."
    assert plain_words("It says â\x80\x9cno\x9d. Ask â\x80\x9cwhy\x9c.") == "It says âno. Ask âwhy."


@given(st.text() | st.text(st.characters(categories=["Cs"])))
@example("\ud83d\ude00")
def test_halves_alone_are_replaced(text: str) -> None:
    whole = replace_halves(text)
    whole.encode()
    if not any(unicodedata.category(char) == "Cs" for char in text):
        assert whole == text


def test_a_text_that_keeps_its_utf8_has_the_same_bytes() -> None:
    # Made here: constants may have theirs already.
    texts = ["".join(["ü", "\U0001f600", "x" * count]) for count in range(3)]
    sizes = [sys.getsizeof(text) for text in texts]
    keep_utf8([*texts, "a\ud83d", ""])
    assert [sys.getsizeof(text) - size for text, size in zip(texts, sizes, strict=True)] == [7, 8, 9]
    assert [text.encode() for text in texts] == [b"\xc3\xbc\xf0\x9f\x98\x80" + b"x" * count for count in range(3)]
    keep_utf8(["a\ud83d"])


def test_two_halves_are_a_character() -> None:
    assert replace_halves("\ud83d\ude00") == "\U0001f600"
    assert replace_halves("a\ud83d") == "a\ufffd"


@table(
    ("amount", "text"),
    [
        (Decimal("6.37500E-7"), "$0.00000064"),
        (Decimal("0E-12"), "$0.00"),
        (0, "$0.00"),
        (Decimal("1e-12"), "$0.000000000001"),
        (Decimal("0.000169"), "$0.00017"),
        (Decimal("0.0123456"), "$0.0123"),
        (0.5, "$0.50"),
        (Decimal("0.99999"), "$1.00"),
        (Decimal(1), "$1.00"),
        (Decimal("1234567.891"), "$1,234,567.89"),
        (Decimal("-0.25"), "-$0.25"),
        (-3.5, "-$3.50"),
    ],
)
def test_money_is_written_as_money(amount: Decimal | float, text: str) -> None:
    assert money_text(amount) == text


def test_a_decimal_in_a_cell_has_no_exponent() -> None:
    shown = [cell_text(Decimal(text)) for text in ("6.37500E-7", "0E-12", "1.50")]
    assert shown == ["0.000000637500", "0.000000000000", "1.50"]
    assert len(cell_text(Decimal("1E+999999"))) < 20
