"""A set that takes less room is a set."""

from __future__ import annotations

import hashlib
import tempfile
import tracemalloc
from collections.abc import Sequence
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core import runs, seen
from dagster_llm_batch.core.seen import Seen


def digests(values: Sequence[int]) -> bytes:
    return b"".join(hashlib.blake2b(str(value).encode(), digest_size=16).digest() for value in values)


def colliding(values: Sequence[int]) -> bytes:
    """Few heads, and tails that end in zeros: what must not be taken for each other."""
    return b"".join((value % 3).to_bytes(8, "big") + value.to_bytes(4, "big") + bytes(4) for value in values)


@pytest.mark.parametrize("make", [digests, colliding])
@pytest.mark.parametrize(("recent", "piece"), [(0, 1), (0, 1_000), (1, 3), (5, 2), (1_000, 1)])
@given(batches=st.lists(st.lists(st.integers(0, 60), max_size=12), max_size=30))
def test_what_is_new_is_what_a_set_does_not_hold(make, recent, piece, batches) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen, "_MOST_RECENT", recent)
        patch.setattr(runs, "_PIECE", piece)
        found, plain = Seen(make), set()
        for batch in batches:
            wanted = [not (value in plain or plain.add(value)) for value in batch]
            assert found.new(batch) == wanted
        assert found.count == len(plain)


def test_of_many_values_eight_bytes_each_are_in_memory_also_while_runs_grow_together(monkeypatch) -> None:
    count, some = 200_000, 1_000
    monkeypatch.setattr(seen, "_MOST_RECENT", some)
    monkeypatch.setattr(runs, "_PIECE", some)
    with ExitStack() as files:
        found = Seen(digests, lambda: files.enter_context(tempfile.TemporaryFile()))
        tracemalloc.start()
        try:
            for start in range(0, count, some):
                assert all(found.new(range(start, start + some)))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert not any(found.new(range(count - 5 * some, count)))
    assert peak < 12 * count  # the smaller of two runs is there twice while they become one


def test_few_values_need_no_file() -> None:
    found = Seen(digests, lambda: pytest.fail("a file was made"))
    assert all(found.new(range(1_000)))
