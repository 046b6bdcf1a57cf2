"""Shards hold each line once, in order, and stay under every limit in the bytes that are written."""

from __future__ import annotations

from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core.sharding import ShardFill, tightest
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.types import Limits

OPTIONAL = st.one_of(st.none(), st.integers(1, 10))


@given(
    st.lists(st.integers(1, 120), max_size=60),
    st.integers(1, 10),
    st.integers(20, 200),
    OPTIONAL,
    st.one_of(st.none(), st.integers(20, 120)),
)
def test_shards_cover_the_lines_once_under_all_limits(
    lines: list[int], max_requests: int, max_bytes: int, max_inputs: int | None, max_line: int | None
) -> None:
    limits = Limits(max_requests, max_bytes, max_line, max_inputs)
    fill = ShardFill(limits)
    shards: list[list[int]] = []
    longest = min(max_bytes, max_line or max_bytes)
    for number, line in enumerate(lines):
        if line > longest:
            told = rf"Row {number} makes a request of {line} bytes; .* at most {longest} "
            with pytest.raises(InputError, match=told):
                fill.starts_new(line, number)
            return
        if fill.starts_new(line, number):
            shards.append([])
        shards[-1].append(line)
        assert (fill.requests, fill.bytes) == (len(shards[-1]), sum(shards[-1]))
    assert [line for shard in shards for line in shard] == lines
    for shard, after in zip_longest(shards, shards[1:]):
        most = min(max_requests, max_inputs or max_requests)
        assert 0 < len(shard) <= most
        assert sum(shard) <= max_bytes
        if after is not None:  # none was closed with room for the next line
            assert len(shard) == most or sum(shard) + after[0] > max_bytes


def test_the_users_limits_make_the_providers_smaller_and_never_larger() -> None:
    limits = Limits(100, 1_000, 500, 50, 10)
    assert tightest(limits) == limits
    assert tightest(limits, 10, 100) == Limits(10, 100, 500, 50, 10)
    assert tightest(limits, 1_000, 10_000) == limits
