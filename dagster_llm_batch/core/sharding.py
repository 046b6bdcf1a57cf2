"""Fills shards up to a provider's limits.

Counted are the bytes that are written, line ends and custom_ids included, as vendors count the file, not the bodies.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from dagster_llm_batch.errors import InputError
from dagster_llm_batch.types import BatchLimits

__all__ = ["ShardFill", "tightest"]


def tightest(
    limits: BatchLimits,
    max_requests: int | None = None,
    max_bytes: int | None = None,
    max_tokens: int | None = None,
) -> BatchLimits:
    """Return the provider's limits, or the user's where those are smaller."""
    return BatchLimits(
        max_requests=min(limits.max_requests, max_requests or limits.max_requests),
        max_bytes=min(limits.max_bytes, max_bytes or limits.max_bytes),
        max_line_bytes=limits.max_line_bytes,
        max_inputs=limits.max_inputs,
        min_requests=limits.min_requests,
        max_tokens=limits.max_tokens if max_tokens is None else min(max_tokens, limits.max_tokens or max_tokens),
    )


@dataclass
class ShardFill:
    """Load of a shard so far: its requests, bytes and input tokens, by estimate."""

    limits: BatchLimits
    requests: int = 0
    bytes: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        limits = self.limits
        self._longest = min(limits.max_bytes, limits.max_line_bytes or limits.max_bytes)
        self._most = min(limits.max_requests, limits.max_inputs or limits.max_requests)

    def take(self, sizes: Sequence[int], tokens: Sequence[int]) -> int:
        """Take as many lines of these sizes and tokens, from the first on, as there is room for; return how many.

        A line that alone has more tokens than a shard may have is taken by an empty one. See `check`.
        """
        ends = list(accumulate(sizes[: self._most - self.requests], initial=self.bytes))
        taken = bisect_right(ends, self.limits.max_bytes) - 1
        if self.limits.max_tokens is not None:
            sums = list(accumulate(tokens[:taken], initial=self.tokens))
            alone = 0 if self.requests else min(taken, 1)
            taken = max(bisect_right(sums, self.limits.max_tokens) - 1, alone)
            self.tokens = sums[taken]
        self.requests += taken
        self.bytes = ends[taken]
        return taken

    def check(self, sizes: Sequence[int], keys: Sequence[object]) -> None:
        """Raise InputError for a line that is too long for any shard."""
        for size, key in zip(sizes, keys, strict=True):
            if size > self._longest:
                most = f"{self._longest:,}"
                msg = (
                    f"Row {key!r} makes a request of {size:,} bytes; the provider takes at most {most} in one. "
                    "Shorten the row (a filter such as {{ body[:20000] }}) or leave it out; nothing was sent."
                )
                raise InputError(msg)
