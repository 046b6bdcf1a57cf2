"""Which values have come before, exactly, in about 24 bytes each: a set of Python objects takes six times as much.

The newest are kept as they are. Older ones are digests of 16 bytes in sorted arrays, each more than twice as long as
the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np

    _Array = np.ndarray[Any, Any]

__all__ = ["Seen"]

_MOST_RECENT = 1 << 15


class _Run(NamedTuple):
    digests: _Array
    heads: _Array  # their first 8 bytes, as numbers


class Seen:
    """`digests` gives 16 bytes for each value, all in one: the same for equal values and for no others."""

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
        if self._runs:
            digests = _array(self._digests(values))
            heads = _heads(digests)
            for run in self._runs:
                places = run.heads.searchsorted(heads)
                alike = run.heads.take(places, mode="clip") == heads
                for at in alike.nonzero()[0].tolist():
                    end = run.heads.searchsorted(heads[at], side="right")
                    if digests[at] in run.digests[places[at] : end]:
                        found.add(at)
        return found

    def _put_away(self) -> None:
        import numpy as np  # noqa: PLC0415  # takes long, and small tables do without

        digests = _array(self._digests(list(self._recent))).copy()
        self._recent = set()
        digests.sort()
        while self._runs and len(self._runs[-1].digests) <= 2 * len(digests):
            digests = np.concatenate([self._runs.pop().digests, digests])
            digests.sort(kind="stable")  # which is quick where two sorted parts follow each other
        self._runs.append(_Run(digests, _heads(digests)))


def _array(digests: bytes) -> _Array:
    import numpy as np  # noqa: PLC0415

    return np.frombuffer(digests, "S16")


def _heads(digests: _Array) -> _Array:
    heads: _Array = digests.view(">u8")[::2].astype("u8")
    return heads
