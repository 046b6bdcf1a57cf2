"""A set that takes less memory equals a plain set."""

from __future__ import annotations

import hashlib
import tempfile
import tracemalloc
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core.dedupe import Seen
from dagster_llm_batch.core.digest_runs import Runs


def digests(values: Sequence[int]) -> bytes:
    return b"".join(hashlib.blake2b(str(value).encode(), digest_size=16).digest() for value in values)


def colliding(values: Sequence[int]) -> bytes:
    """Return digests with few heads, and tails that end in zeros, which must stay distinct."""
    return b"".join((value % 3).to_bytes(8, "big") + value.to_bytes(4, "big") + bytes(4) for value in values)


@pytest.mark.parametrize("filter_bits", [8, 1 << 10])  # the filter passes all digests, or some
@pytest.mark.parametrize("make", [digests, colliding])
@pytest.mark.parametrize(("recent", "piece", "block"), [(0, 1, 2), (0, 1_000, 1), (1, 3, 3), (5, 2, 32), (1_000, 1, 1)])
@given(batches=st.lists(st.lists(st.integers(0, 60), max_size=12), max_size=30))
def test_what_is_new_is_what_a_set_does_not_hold(make, filter_bits, recent, piece, block, batches) -> None:
    new_runs = partial(Runs, piece=piece, block=block, filter_bits=filter_bits)
    seen, plain = Seen(make, few=2 * recent, recent=recent, new_runs=new_runs), set()
    for batch in batches:
        wanted = [not (value in plain or plain.add(value)) for value in batch]
        assert seen.new(batch) == wanted
    assert seen.count == len(plain)


def test_two_digests_are_no_third_one_that_their_file_spells() -> None:
    first, second, across = b"a" * 8 + b"b" * 8, b"c" * 16, b"b" * 8 + b"c" * 8
    seen = Seen(b"".join, few=1, new_runs=partial(Runs, filter_bits=8))  # so small a filter passes all digests
    assert all(seen.new([first, second]))
    assert seen.new([across, second, first]) == [True, False, False]


@pytest.mark.slow
def test_many_values_take_the_memory_of_few_also_while_runs_are_joined() -> None:
    few = 1_000
    new_runs = partial(Runs, piece=few, filter_bits=1 << 20)

    def peak(count: int) -> int:
        with ExitStack() as files:
            seen = Seen(
                digests, lambda: files.enter_context(tempfile.TemporaryFile()), few=few, recent=few, new_runs=new_runs
            )
            tracemalloc.start()
            try:
                for start in range(0, count, few):
                    assert all(seen.new(range(start, start + few)))
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    assert peak(200_000) - peak(20_000) < 180_000  # a byte each


def test_few_values_need_no_file() -> None:
    seen = Seen(digests, lambda: pytest.fail("a file was made"))
    assert all(seen.new(range(1_000)))
