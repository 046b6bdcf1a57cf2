"""Which platforms run: all under DLB_EXPLORE, else the first of the same order, as many as fit the processor time.

Each test takes the next platform that no other process of the run has taken, and writes down what it has used. One more
begins only while it fits by what those before have used at most; so those that run are always the first ones.
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
"""Of processor time. DLB_PLATFORM_SECONDS gives another amount."""
_SECONDS_FIRST = 45.0
"""What the first platform may use; of the next ones those before tell."""
_SECONDS_LEAST = 5
"""Platforms use more, so more of them than this do not fit."""
_ALL = 160
"""More than there are."""


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
    """Return the processor time of this process, and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@dataclass(frozen=True)
class Taken:
    """A platform that is this process's to run, and the processor time that the process had used before."""

    platform: Platform
    began: float

    def used(self) -> float:
        """Return the processor time that it has used so far."""
        return used_seconds() - self.began


class Sample:
    """The platforms of one run of the tests, which its processes share in a file."""

    def __init__(self, file: Path, seconds: float | None = None) -> None:
        """Share `file`; with `seconds`, use so much processor time, and else what the environment gives."""
        self._file = file
        self._seconds = _seconds() if seconds is None else seconds

    @contextmanager
    def _used(self) -> Iterator[list[float | None]]:
        """Yield what each platform has used, None of one that runs; what is changed is kept. One process at a time."""
        with self._file.open("a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            used: list[Any] = json.loads(file.read() or "[]")
            yield used
            file.seek(0)
            file.truncate()
            file.write(json.dumps(used))

    def take(self) -> int | None:
        """Return the number of the next platform; None where it does not fit the time any more."""
        with self._used() as used:
            known = [seconds for seconds in used if seconds is not None]
            each = max(known, default=_SECONDS_FIRST)
            expected = sum(known) + each * (len(used) - len(known) + 1)
            if used and expected > self._seconds and not _is_whole():
                return None
            used.append(None)
            return len(used) - 1

    def note(self, number: int, seconds: float) -> None:
        """Write down what a platform has used."""
        with self._used() as used:
            used[number] = seconds

    @contextmanager
    def next_platform(self) -> Iterator[Taken | None]:
        """Yield the next platform, and write down what the body uses; yield None where none is left or fits."""
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
