"""Any text of a user becomes a segment that is safe, unique and readable."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dagster_llm_batch.storage.payloads import check_path, payload_path

TEXTS = st.text(st.characters(), max_size=300)


def path_of(partition):
    return payload_path("prod", "tickets", partition, "s1", "wave-1.jsonl.zst")


@given(TEXTS, TEXTS, TEXTS)
@example("..", "/etc", "a/../b|c")
@example("\ud800", "\0", "C:\\x")
def test_every_text_gives_five_plain_segments(namespace, asset, partition):
    path = payload_path(namespace, asset, partition, "s1", "x.zst")
    assert check_path(path) == path
    segments = path.split("/")
    assert len(segments) == 5
    assert all(re.fullmatch(r"[a-z0-9_][a-z0-9._-]{0,63}", segment) for segment in segments)


@given(st.lists(TEXTS | st.sampled_from(["a", "A", "a ", "Ä", "a/b", "a-b", "a|b", "", "_"]), unique=True, max_size=20))
def test_different_texts_give_different_paths_where_case_is_ignored_too(texts):
    assert len({path_of(text).lower() for text in texts}) == len(texts)


@given(TEXTS)
def test_what_a_text_becomes_cannot_be_written_as_a_text(text):
    segment = path_of(text).split("/")[2]
    assert segment == text or path_of(segment) != path_of(text)


@pytest.mark.parametrize("text", ["2026-01-01", "2026-01-01-13.00", "eu-west.1", "a_b", "x"])
def test_plain_texts_stay_as_they_are(text):
    assert path_of(text).split("/")[2] == text


@pytest.mark.parametrize(
    ("text", "slug"),
    [("2026-01-01|EU", "2026-01-01-eu--"), ("Köln/Süd", "koln-sud--"), ("../../etc", "etc--"), ("日本", "_--"),
     ("nul", "nul--"),      ("a" * 300, "a" * 40 + "--"), ("NUL.txt", "nul-txt--")],
)  # fmt: skip
def test_other_texts_stay_readable(text, slug):
    assert re.fullmatch(re.escape(slug) + "[0-9a-f]{16}", path_of(text).split("/")[2])


def test_no_partition_is_not_the_partition_named_so():
    assert path_of("").split("/")[2] == "_"
    assert path_of("_") != path_of("")
