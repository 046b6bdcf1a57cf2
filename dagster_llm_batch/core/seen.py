"""Which values have come before, exactly, in about 16 bytes each: a set of Python objects takes nine times as much.

The newest are kept as they are. Older ones are digests of 16 bytes in sorted arrays, each several times as long as the
next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, Any]

__all__ = ["Seen"]

_MOST_RECENT = 1 << 15
_TIMES = 8


class _Run(NamedTuple):
    heads: _Array  # the first 8 bytes of each digest, sorted
    tails: _Array  # the next 8


class Seen:
    """`digests` gives 16 bytes or more for each value, all in one: the same for equal values and for no others."""

    def __init__(self, digests: Callable[[Sequence[Any]], bytes]) -> None:
        self.count = 0
        self._digests = digests
        self._recent: set[Any] = set()
        self._runs: list[_Run] = []

    def new(self, values: Sequence[Any]) -> list[bool]:
        """Remember these; for each, whether it comes for the first time."""
        old, different = self._old(values), set(values)
        if not old and len(different) == len(values) and self._recent.isdisjoint(different):
            found = [True] * len(values)
            self._recent |= different
        else:
            found = []
            for at, value in enumerate(values):
                is_new = at not in old and value not in self._recent
                if is_new:
                    self._recent.add(value)
                found.append(is_new)
        self.count += sum(found)
        if len(self._recent) > _MOST_RECENT:
            self._put_away()
        return found

    def _old(self, values: Sequence[Any]) -> set[int]:
        """The places of those that are in a run."""
        found = set()
        if self._runs and values:
            (heads, tails), order = _sorted(self._digests(values), len(values))
            for run in self._runs:
                places = run.heads.searchsorted(heads)
                alike = run.heads.take(places, mode="clip") == heads
                for at in alike.nonzero()[0].tolist():
                    end = run.heads.searchsorted(heads[at], side="right")
                    if tails[at] in run.tails[places[at] : end]:
                        found.add(int(order[at]))
        return found

    def _put_away(self) -> None:
        import numpy as np  # noqa: PLC0415  # takes long, and small tables do without

        new, _ = _sorted(self._digests(list(self._recent)), len(self._recent))
        self._recent = set()
        while self._runs and len(self._runs[-1].heads) <= _TIMES * len(new.heads):
            heads, tails = self._runs.pop()
            places = heads.searchsorted(new.heads)
            heads = np.insert(heads, places, new.heads)  # one after the other: the older ones are gone in between
            tails = np.insert(tails, places, new.tails)
            new = _Run(heads, tails)
        self._runs.append(new)


def _sorted(digests: bytes, count: int) -> tuple[_Run, _Array]:
    """With the place that each had."""
    import numpy as np  # noqa: PLC0415

    parts = np.frombuffer(digests, "u1").reshape(count, -1)[:, :16].copy().view("u8")
    heads = parts[:, 0].copy()  # side by side they are sorted sooner
    order = heads.argsort()
    return _Run(heads[order], parts[order, 1]), order
