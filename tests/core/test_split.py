"""Parts of a text cover it in order, fit their limit, and change only where the text did."""

from __future__ import annotations

from itertools import accumulate

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core.masks import Mask
from dagster_llm_batch.core.split import Split, split_rows
from dagster_llm_batch.core.token_counts import expected_text_tokens
from dagster_llm_batch.errors import ConfigError, InputError

FAMILY, FLAG, ACCENT = "👨\u200d👩\u200d👧", "🇨🇭", "e\u0301"
PIECES = st.sampled_from(
    [
        *["word ", "another", ".", " ", "\n", "\n\n", "\r\n", "# Heading\n", "```\n", "## ", "3f2504e0", "中文", "각"],
        *[FAMILY, FLAG, ACCENT, "👍🏽"],
    ]
)
TEXTS = st.lists(PIECES, max_size=80).map("".join)
SPLITS = st.builds(
    lambda tokens, share, by, tokenizer: Split("text", tokens, tokens * share // 4, by, tokenizer),
    st.integers(1, 40),
    st.integers(0, 2),
    st.sampled_from(["section", "paragraph", "token"]),
    st.sampled_from(["o200k", "claude", "gemma", "llama"]),
)


def texts_of(split: Split, text: str) -> list[str]:
    return [part.text for part in split.parts(text)]


@given(TEXTS, SPLITS)
def test_the_parts_cover_the_text_in_order_and_each_is_a_slice_at_its_place(text, split):
    parts = split.parts(text)
    end = 0
    for part in parts:
        assert text[part.start : part.start + len(part.text)] == part.text
        assert part.start <= end
        # Each part adds something, so their number has a bound.
        assert part.start + len(part.text) > end or not text
        end = part.start + len(part.text)
    assert end == len(text)
    assert parts == split.parts(text)
    if not split.overlap:
        assert "".join(part.text for part in parts) == text


@given(TEXTS, SPLITS)
def test_no_part_has_more_tokens_than_the_limit_unless_it_is_one_character(text, split):
    for part in split.parts(text):
        [tokens] = expected_text_tokens([part.text], split.tokenizer)
        assert tokens <= split.tokens or len(Split("text", 1, by="token").parts(part.text)) == 1


@given(TEXTS, SPLITS)
def test_a_part_repeats_at_most_the_overlap_of_the_one_before(text, split):
    end = 0
    for part in split.parts(text):
        [repeated] = expected_text_tokens([text[part.start : end]], split.tokenizer)
        assert repeated <= split.overlap
        end = part.start + len(part.text)


@given(st.lists(st.sampled_from([FAMILY, FLAG, ACCENT, "👍🏽", "\r\n", "가"]), min_size=1, max_size=20))
def test_a_character_of_several_code_points_is_never_divided(characters):
    ends = set(accumulate(map(len, characters)))
    parts = Split("text", 1, by="token").parts("".join(characters))
    assert {part.start + len(part.text) for part in parts} <= ends


@given(st.lists(st.integers(0, 60), min_size=2, max_size=6), st.data())
def test_a_change_within_a_section_leaves_the_parts_of_all_other_sections(sizes, data):
    sections = [f"# Section {number}\n{'some words ' * size}.\n\n" for number, size in enumerate(sizes)]
    at = data.draw(st.integers(0, len(sections) - 1))
    split = Split("text", 20, 5)
    changed = [*sections]
    changed[at] = changed[at].replace(".", "and others.")
    others = [part for number, one in enumerate(sections) if number != at for part in texts_of(split, one)]
    after = texts_of(split, "".join(changed))
    assert [part for part in after if part not in texts_of(split, changed[at])] == [
        part for part in others if part not in texts_of(split, changed[at])
    ]
    assert after == [part for one in changed for part in texts_of(split, one)]


@given(TEXTS)
def test_sections_are_the_same_if_code_follows_them_or_lines_end_otherwise(text):
    def starts(of: str) -> list[int]:
        return [part.start for part in Split("text", 100_000).parts(of)]

    text = text.replace("```", "``").replace("\r\n", "\n")
    before = starts(f"{text}\nend")
    assert starts(f"{text}\nend\n```\n") == before
    assert starts(f"{text}\nend".replace("\n", "\r")) == before


def test_sections_begin_at_headings_outside_of_code_and_headings_alone_join_the_next():
    text = "before\n# Title\n## One\ntext\n```\n# no heading\n```\n## Two\nmore\n#hashtag\n## Empty\n"
    assert texts_of(Split("text", 500), text) == [
        "before\n",
        "# Title\n## One\ntext\n```\n# no heading\n```\n",
        "## Two\nmore\n#hashtag\n## Empty\n",
    ]


def test_paragraphs_fill_a_part_and_a_long_one_is_cut_between_words():
    text = "one two\n\nthree four\n\n" + "long " * 30
    parts = texts_of(Split("text", 12, by="paragraph"), text)
    assert parts[0] == "one two\n\nthree four\n\n"
    assert all(part.endswith(" ") for part in parts[1:])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": 0}, "tokens=0 is not allowed"),
        ({"tokens": 10, "overlap": 6}, "between 0 and half of tokens=10, 5"),
        ({"tokens": 10, "overlap": -1}, "between 0 and half"),
        ({"tokens": 10, "by": "page"}, "page"),
    ],
)
def test_values_out_of_range_are_refused(changes, said):
    with pytest.raises(ConfigError, match=said):
        Split("text", **changes)


def test_rows_become_rows_of_their_parts_with_all_their_columns():
    rows = [{"doc": 7, "text": "# A\nx\n# B\ny\n", "lang": "en"}, {"doc": 8, "text": None, "lang": "de"}]
    table = pa.Table.from_batches(split_rows(rows, Split("text", 50), key="doc"))
    assert table.to_pylist() == [
        {"doc": 7, "text": "# A\nx\n", "lang": "en", "part_key": "7#1", "part": 1, "parts": 2, "part_start": 0},
        {"doc": 7, "text": "# B\ny\n", "lang": "en", "part_key": "7#2", "part": 2, "parts": 2, "part_start": 6},
        {"doc": 8, "text": None, "lang": "de", "part_key": "8#1", "part": 1, "parts": 1, "part_start": 0},
    ]


CARD, PHONE = "4111 1111 1111 1111", "+49 30 1234567"
MASK = Mask(columns=["text"])
WITH_VALUES = st.lists(
    st.sampled_from(["word ", "\n\n", "# Heading\n", "ann@x.org ", f"{CARD} ", f"{PHONE}.", "1::2 ", "10.0.0.1,"]),
    max_size=40,
).map("".join)


@given(WITH_VALUES, SPLITS)
def test_no_cut_divides_a_value_that_the_mask_finds(text, split):
    rows = [{"doc": 1, "text": text}]
    parts = pa.Table.from_batches(split_rows(rows, split, key="doc", mask=MASK)).to_pylist()
    end = 0
    for part in parts:
        start, own = part["part_start"], part["text"]
        assert text[start : start + len(own)] == own
        assert start <= end
        end = start + len(own)
        for first, last in MASK.spans(text):
            assert (start <= first and last <= end) or last <= start or end <= first
        # Alone, too, a part has these values.
        masked = MASK.spans(own)
        within = [(first - start, last - start) for first, last in MASK.spans(text) if start <= first and last <= end]
        assert all(any(first <= one and two <= last for first, last in masked) for one, two in within)
    assert end == len(text)
    if not split.overlap:
        assert "".join(part["text"] for part in parts) == text


def test_a_part_has_more_tokens_where_a_value_has_and_the_tokens_that_repeat_begin_at_a_whole_one():
    def parts(split, mask):
        rows = [{"doc": 1, "text": f"one {CARD} two {PHONE} three"}]
        return pa.Table.from_batches(split_rows(rows, split, key="doc", mask=mask))["text"].to_pylist()

    split, overlapping = Split("text", 4, by="token"), Split("text", 12, 6, by="token")
    assert "1111 " in parts(split, None)
    assert parts(split, MASK) == ["one ", CARD, " two ", PHONE, " three"]
    assert parts(overlapping, None)[1] == "1111 1111 two +49 30 "
    assert parts(overlapping, MASK) == [f"one {CARD} ", f" two {PHONE} three"]


def test_a_mask_that_does_not_name_the_column_is_refused():
    with pytest.raises(ConfigError, match=r"Mask names note, and not the column 'text' that Split"):
        list(split_rows([{"doc": 1, "text": "x"}], Split("text", 10), key="doc", mask=Mask(columns=["note"])))


def test_rows_are_read_and_split_some_at_a_time():
    read = 0

    def batches():
        nonlocal read
        for number in range(50):
            read += 1
            yield pa.record_batch({"doc": [number], "text": ["word " * 200_000]})

    parts = split_rows(batches(), Split("text", 10_000), key="doc")
    first = next(parts)
    assert read <= 2
    assert first.nbytes < 8 << 20


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"doc": 1, "body": "x"}], "'text', which the rows do not have. Columns: doc, body"),
        ([{"doc": 1, "text": 3}], "'text' of type int64"),
        ([{"doc": 1, "text": "x", "part": 1}], "The rows have part, which are columns of parts"),
        ([{"doc": 1, "text": "x"}, {"doc": 1, "text": "y"}], "duplicate values: 1"),
    ],
)
def test_rows_that_cannot_be_split_are_refused(rows, said):
    with pytest.raises(InputError, match=said):
        list(split_rows(rows, Split("text", 10), key="doc"))


def test_no_rows_have_no_parts_but_their_columns():
    rows = pa.table({"doc": pa.array([], pa.string()), "text": pa.array([], pa.string())})
    table = pa.Table.from_batches(split_rows(rows, Split("text", 10), key="doc"))
    assert (len(table), table.column_names) == (0, ["doc", "text", "part_key", "part", "parts", "part_start"])
