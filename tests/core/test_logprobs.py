"""`llm_logprob` is the sum over the tokens of the label, and null if these are unknown."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core.logprobs import label_logprob, read_tokens
from dagster_llm_batch.types import TokenLogprob


def tokens(*texts: str) -> list[TokenLogprob]:
    """Give the n-th token the logprob -2**n: each sum identifies a set of tokens."""
    return [TokenLogprob(text.encode(), -float(2**at)) for at, text in enumerate(texts)]


def places(logprob: float | None) -> list[int]:
    assert logprob is not None
    return [at for at in range(64) if int(-logprob) >> at & 1]


@pytest.mark.parametrize(
    ("texts", "of_values"),
    [
        (["{", '"topic', '":"', "bill", "ing", '"', "}"], [3, 4]),
        # A token with a part of the value and of its frame counts as a whole.
        (['{"topic', '":"bill', 'ing"}'], [1, 2]),
        (['{"a":', "1", ', "b": ', "true", "}"], [1, 3]),
        (["{", '"tags": [', '"x"', ",", ' "y"', "]", "}"], [2, 3, 4]),
        (['{"a": ', "null", "}"], [1]),
        (['{"a": "', '"}'], []),
        (["```json\n", '{"a":"', "x", '"}', "\n```"], [2]),
        (['{ "a" : "', "é", "中", '" }'], [1, 2]),
        # Text that looks like JSON within a value is text.
        (['{"a":"', '{\\"b\\":', "1}", '"', "}"], [1, 2]),
    ],
)
def test_of_json_those_tokens_count_that_hold_a_value(texts, of_values):
    text = "".join(texts)
    assert places(label_logprob(text, tokens(*texts), is_json=True)) == of_values


def test_of_free_text_all_tokens_count():
    assert places(label_logprob("Hello.", tokens("Hel", "lo", "."), is_json=False)) == [0, 1, 2]


def test_tokens_that_are_not_those_of_the_text_give_nothing():
    assert label_logprob("Hello.", tokens("Hel", "lo"), is_json=False) is None
    assert label_logprob('{"a":1}', tokens('{"a":', "2}"), is_json=True) is None
    assert label_logprob("not json", tokens("not json"), is_json=True) is None
    assert label_logprob("", [], is_json=False) is None


def test_a_token_that_is_part_of_a_character_is_read_by_its_bytes():
    entries = [
        {"token": "\\xe4\\xb8", "bytes": [0xE4, 0xB8], "logprob": -1},
        {"token": "\\xad", "bytes": [0xAD], "logprob": -2.0},
    ]
    read = read_tokens(entries)
    assert read is not None
    assert label_logprob("中", read, is_json=False) == -3.0


@pytest.mark.parametrize(
    "bent",
    [
        None,
        "text",
        [],
        [1],
        [{"token": "a"}],
        [{"token": "a", "logprob": True}],
        [{"token": "a", "logprob": float("-inf")}],
        [{"token": "a", "bytes": [999], "logprob": 0}],
    ],
)
def test_what_is_no_list_of_tokens_is_none(bent):
    assert read_tokens(bent) is None


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


@given(
    st.dictionaries(st.text(max_size=4), values, min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from([(",", ":"), (", ", ": "), (" , ", "  :\n")]),
)
def test_whatever_stands_in_keys_and_values_exactly_the_values_count(reply, is_ascii, separators):
    """Make each character a token, and compute the values' tokens by writing each value separately."""

    def written(value: object) -> str:
        return json.dumps(value, ensure_ascii=is_ascii, separators=separators)

    text = written(reply)
    singles = [TokenLogprob(char.encode("utf-8", "surrogatepass"), -1.0) for char in text]
    framed = sum(2 for value in reply.values() if isinstance(value, str | list | dict))
    assert label_logprob(text, singles, is_json=True) == framed - sum(len(written(value)) for value in reply.values())
