"""The platforms that run: all under DLB_EXPLORE, else as many of the same order as fit the processor time.

Each test takes the next platform that is free in this run, and records the time that it used. Another platform begins
only while the longest time so far still fits. So the ones that run are always the first of the order.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from tests.platforms.pairs import all_pairs, pairs_of, platforms
from tests.platforms.platform_value import Platform

__all__ = ["SEED", "Sample", "Taken", "count_of_sample", "summary"]

SEED = 1
_SECONDS = 60
"""Seconds of processor time. DLB_PLATFORM_SECONDS sets another limit."""
_SECONDS_FIRST = 45.0
"""Estimated seconds of the first platform. Later estimates come from the platforms before."""
_SECONDS_LEAST = 5
"""Least seconds of a platform: it bounds the number of platforms."""
_ALL = 160
"""More than the number of platforms."""


def _is_whole() -> bool:
    return bool(os.environ.get("DLB_EXPLORE"))


def _seconds() -> float:
    return float(os.environ.get("DLB_PLATFORM_SECONDS") or _SECONDS)


def count_of_sample() -> int:
    """Return how many platforms run at most."""
    return _ALL if _is_whole() else max(1, int(_seconds() // _SECONDS_LEAST))


@cache
def _nth_platform(number: int) -> Platform | None:
    return next(islice(platforms(SEED), number, None), None)


def used_seconds() -> float:
    """Return the processor time of this process and its finished child processes."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@dataclass(frozen=True)
class Taken:
    """A platform that this process runs, and the processor time that the process had used before."""

    platform: Platform
    began: float

    def used(self) -> float:
        """Return the processor time that it has used so far."""
        return used_seconds() - self.began


class Sample:
    """The platforms of one run of the tests, which its processes share in a file."""

    def __init__(self, file: Path, seconds: float | None = None) -> None:
        """Share `file`, and use this many `seconds` of processor time, or by default the environment's limit."""
        self._file = file
        self._seconds = _seconds() if seconds is None else seconds

    @contextmanager
    def _used(self) -> Iterator[list[float | None]]:
        """Yield the seconds of each platform, with None for one that runs, and store changes. One process at a time."""
        with self._file.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            used: list[Any] = json.loads(file.read() or "[]")
            yield used
            file.seek(0)
            file.truncate()
            file.write(json.dumps(used))

    def take(self) -> int | None:
        """Return the number of the next platform, or None if it does not fit into the rest of the time."""
        with self._used() as used:
            known = [seconds for seconds in used if seconds is not None]
            each = max(known, default=_SECONDS_FIRST)
            expected = sum(known) + each * (len(used) - len(known) + 1)
            if used and expected > self._seconds and not _is_whole():
                return None
            used.append(None)
            return len(used) - 1

    def note(self, number: int, seconds: float) -> None:
        """Record the processor time of a platform."""
        with self._used() as used:
            used[number] = seconds

    @contextmanager
    def next_platform(self) -> Iterator[Taken | None]:
        """Yield the next platform, and record the time of the body. Yield None if none fits."""
        began = used_seconds()
        number = self.take()
        platform = None if number is None else _nth_platform(number)
        if number is None or platform is None:
            yield None
            return
        taken = Taken(platform, began)
        try:
            yield taken
        finally:
            self.note(number, taken.used())


def summary(ran: Iterable[tuple[str, float]]) -> str:
    """Return how many platforms ran, how many pairs of values they have covered, and the processor time they took."""
    each = [(Platform.parse(text), seconds) for text, seconds in ran]
    every = all_pairs()
    covered = set[tuple[str, str, str]]().union(*(pairs_of(platform) for platform, _ in each)) & every
    of_time = f"{sum(seconds for _, seconds in each):.0f} s of processor time"
    allowed = "" if _is_whole() else f" of {_seconds():.0f} s"
    return f"platforms: {len(each)} run, {len(covered):,} of {len(every):,} pairs, {of_time}{allowed}"
