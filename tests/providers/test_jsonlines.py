"""Texts in request lines: ASCII JSON on one line, whatever they hold."""

from __future__ import annotations

import json

from hypothesis import example, given
from hypothesis import strategies as st

from dagster_llm_batch.providers.jsonlines import quote
from dagster_llm_batch.text import replace_halves


@given(st.text(st.characters(exclude_categories=())))
@example("".join(map(chr, range(256))))
@example("\u2028\u2029\x85")
@example("half \ud800 pair")
def test_a_quoted_text_is_one_line_of_ascii_json_that_reads_as_the_text(text):
    quoted = quote(text)
    assert quoted.isascii()
    assert "\n" not in quoted
    assert "\r" not in quoted
    assert json.loads(quoted) == replace_halves(text)
