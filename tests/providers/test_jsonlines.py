"""Texts in request lines: ASCII JSON on one line, whatever they hold."""

from __future__ import annotations

import io
import json

from hypothesis import example, given
from hypothesis import strategies as st

from dagster_llm_batch.providers.jsonlines import cut_heads, quote, split_lines
from dagster_llm_batch.text import replace_halves


@given(st.text(st.characters(exclude_categories=())))
@example("".join(map(chr, range(256))))
@example("\u2028\u2029\x85")
@example("half \ud800 pair")
@example("whole pair \U0001f600, half \ud83d of one, and \\ud83d as one writes it")
def test_a_quoted_text_is_one_line_of_ascii_json_that_reads_as_the_text(text):
    quoted = quote(text)
    assert quoted.isascii()
    assert "\n" not in quoted
    assert "\r" not in quoted
    assert json.loads(quoted) == replace_halves(text)


@given(st.lists(st.sampled_from([b"", b"a", b"\n", b"b\nc", b"\n\n", b"d\n", "\u2028".encode(), b"\r\n"])))
def test_lines_are_what_stands_between_line_feeds_wherever_a_file_is_cut(pieces):
    whole = b"".join(pieces)
    wanted = [line + b"\n" for line in whole.split(b"\n")]
    if not whole or whole.endswith(b"\n"):
        wanted.pop()
    assert list(split_lines(iter(pieces))) == wanted


HEAD = b'{"model":"m",'


@given(st.lists(st.tuples(st.booleans(), st.lists(st.text(), max_size=3))))
def test_the_head_is_cut_off_each_line_that_starts_with_it_and_nowhere_else(lines):
    file = wanted = b""
    for has_head, texts in lines:
        text = json.dumps([*texts, "\n", "\n" + HEAD.decode(), "x" * 30_000]).encode()
        rest = b'"t":' + text + b"}\n"
        file += (HEAD if has_head else b"{ ") + rest
        wanted += (b"{" if has_head else b"{ ") + rest
    blocks = list(cut_heads(io.BytesIO(file), HEAD))
    assert b"".join(blocks) == wanted
    assert all(block.endswith(b"\n") for block in blocks)


class Piece(bytes):
    """A piece of a file that counts the bytes that are copied in front of it."""

    copied = 0

    def __radd__(self, before):
        Piece.copied += len(before)
        return before + bytes(self)


def test_a_long_line_is_not_copied_with_each_of_its_pieces():
    pieces = 500
    Piece.copied = 0
    [line] = split_lines(iter([*[Piece(bytes(100))] * pieces, Piece(b"\n")]))
    assert len(line) == 100 * pieces + 1
    assert Piece.copied <= 100 * pieces
