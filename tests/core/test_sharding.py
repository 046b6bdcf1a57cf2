"""Shards hold each line once, in order, and stay under every limit in the bytes that are written."""

from __future__ import annotations

from itertools import zip_longest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core.sharding import ShardFill, tightest
from dagster_llm_batch.errors import InputError
from dagster_llm_batch.types import BatchLimits

OPTIONAL = st.one_of(st.none(), st.integers(1, 10))


@given(
    st.lists(st.integers(1, 120), max_size=60),
    st.integers(1, 10),
    st.integers(20, 200),
    OPTIONAL,
    st.one_of(st.none(), st.integers(20, 120)),
    st.integers(1, 70),
)
def test_shards_cover_the_lines_once_under_all_limits(
    lines: list[int], max_requests: int, max_bytes: int, max_inputs: int | None, max_line: int | None, at_once: int
) -> None:
    limits = BatchLimits(max_requests, max_bytes, max_line, max_inputs)
    longest = min(max_bytes, max_line or max_bytes)
    too_long = next((number for number, line in enumerate(lines) if line > longest), None)
    if too_long is not None:
        told = rf"Row {too_long} makes a request of {lines[too_long]} bytes; .* at most {longest} "
        with pytest.raises(InputError, match=told):
            ShardFill(limits).check(lines, range(len(lines)))
        return
    fill = ShardFill(limits)
    fill.check(lines, range(len(lines)))
    shards: list[list[int]] = [[]] if lines else []
    start = 0
    while start < len(lines):
        some = lines[start : start + at_once]
        taken = fill.take(some, some)
        shards[-1] += some[:taken]
        start += taken
        assert (fill.requests, fill.bytes) == (len(shards[-1]), sum(shards[-1]))
        if taken < len(some):
            fill = ShardFill(limits)
            shards.append([])
    assert [line for shard in shards for line in shard] == lines
    for shard, after in zip_longest(shards, shards[1:]):
        most = min(max_requests, max_inputs or max_requests)
        assert 0 < len(shard) <= most
        assert sum(shard) <= max_bytes
        if after is not None:  # each shard was closed because the next line did not fit
            assert len(shard) == most or sum(shard) + after[0] > max_bytes


def test_the_users_limits_make_the_providers_smaller_and_never_larger() -> None:
    limits = BatchLimits(100, 1_000, 500, 50, 10)
    assert tightest(limits) == limits
    assert tightest(limits, 10, 100) == BatchLimits(10, 100, 500, 50, 10)
    assert tightest(limits, 1_000, 10_000) == limits
