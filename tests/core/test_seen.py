"""A set that takes less room is a set."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagster_llm_batch.core import seen
from dagster_llm_batch.core.seen import Seen


def digests(values: Sequence[int]) -> bytes:
    return b"".join(hashlib.blake2b(str(value).encode(), digest_size=16).digest() for value in values)


def colliding(values: Sequence[int]) -> bytes:
    """Few heads, and tails that end in zeros: what must not be taken for each other."""
    return b"".join((value % 3).to_bytes(8, "big") + value.to_bytes(4, "big") + bytes(4) for value in values)


@pytest.mark.parametrize("make", [digests, colliding])
@pytest.mark.parametrize("recent", [0, 1, 5, 1_000])
@given(batches=st.lists(st.lists(st.integers(0, 60), max_size=12), max_size=30))
def test_what_is_new_is_what_a_set_does_not_hold(make, recent, batches) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen, "_MOST_RECENT", recent)
        found, plain = Seen(make), set()
        for batch in batches:
            wanted = [not (value in plain or plain.add(value)) for value in batch]
            assert found.new(batch) == wanted
        assert found.count == len(plain)
