"""Which platforms run: all under DLB_EXPLORE, else the first of the same order, as many as fit the processor time.

How many fit follows from a count of seconds for each, and not from a clock: the same platforms run everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import cache
from itertools import islice

from tests.platforms.pairs import all_pairs, pairs_of, platforms
from tests.platforms.platform_value import Platform

__all__ = ["SEED", "count_of_sample", "nth_platform", "summary"]

SEED = 1
_SECONDS = 60
"""Of processor time. DLB_PLATFORM_SECONDS gives another amount."""
_SECONDS_EACH = 30
_SECONDS_OF_CASES = 38
_ALL = 160
"""More than there are: what is beyond them is not there, and does not run."""


def count_of_sample() -> int:
    """Return how many platforms run."""
    if os.environ.get("DLB_EXPLORE"):
        return _ALL
    seconds = int(os.environ.get("DLB_PLATFORM_SECONDS", _SECONDS))
    return max(1, (seconds - _SECONDS_OF_CASES) // _SECONDS_EACH)


@cache
def _first(count: int) -> list[Platform]:
    return list(islice(platforms(SEED), count))


def nth_platform(number: int) -> Platform | None:
    """Return one of the platforms in their order; None beyond the last one."""
    found = _first(count_of_sample())
    return found[number] if number < len(found) else None


def summary(texts: Iterable[str]) -> str:
    """Return how many platforms ran, and how many pairs of values they have covered."""
    ran = [Platform.parse(text) for text in texts]
    every = all_pairs()
    covered = set[tuple[str, str, str]]().union(*(pairs_of(platform) for platform in ran)) & every
    return f"platforms: {len(ran)} run, {len(covered):,} of {len(every):,} pairs"
