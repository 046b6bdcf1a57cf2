"""Digests of 16 bytes in sorted runs: 8 bytes of each in memory, 8 in a file. Imported where it is used, for numpy."""

from __future__ import annotations

from typing import IO, Any, NamedTuple

import numpy as np

__all__ = ["Run", "SortedDigests", "sorted_digests"]

_Array = np.ndarray[Any, Any]
_PIECE = 1 << 15


class SortedDigests(NamedTuple):
    """Some digests, sorted by their heads."""

    heads: _Array  # the first 8 bytes of each
    tails: _Array  # the next 8
    order: _Array  # the place that each had


def sorted_digests(digests: bytes, count: int) -> SortedDigests:
    """The first 16 bytes of each of so many digests of one length."""
    parts = np.frombuffer(digests, "u1").reshape(count, -1)[:, :16].copy().view("u8")
    heads = parts[:, 0].copy()  # side by side they are sorted sooner
    order = heads.argsort()
    return SortedDigests(heads[order], parts[order, 1], order)


class Run:
    """Sorted digests: heads in memory, tails in `file`, where one is read only if its head is looked for."""

    def __init__(self, digests: SortedDigests, file: IO[bytes]) -> None:
        self._heads = digests.heads
        self._file = file
        self._write(0, digests.tails)

    def __len__(self) -> int:
        return len(self._heads)

    def holds(self, digests: SortedDigests) -> list[int]:
        """The places, before they were sorted, of those that are here too."""
        starts = self._heads.searchsorted(digests.heads)
        alike = (self._heads.take(starts, mode="clip") == digests.heads).nonzero()[0]
        heads, tails, order = (part[alike] for part in digests)
        ends = self._heads.searchsorted(heads, side="right")
        found = zip(*(part.tolist() for part in (order, tails, starts[alike], ends)), strict=True)
        return [at for at, tail, start, end in found if tail in memoryview(self._read(start, end)).cast("Q")]

    def insert(self, newer: Run) -> None:
        """Take those of another run, which ends with that. In pieces, from the end on: never are there two of all."""
        count, more = len(self), len(newer)
        places, tails = self._heads.searchsorted(newer._heads), newer._tails(0, more)
        self._heads.resize(count + more, refcheck=False)
        last = more
        for start in reversed(range(0, count, _PIECE)):
            end, first = min(start + _PIECE, count), int(places.searchsorted(start))
            here, new = places[first:last] - start, slice(first, last)
            self._heads[start + first : end + last] = np.insert(self._heads[start:end], here, newer._heads[new])
            self._write(start + first, np.insert(self._tails(start, end), here, tails[new]))
            last = first
        newer._file.close()

    def _tails(self, start: int, end: int) -> _Array:
        return np.frombuffer(self._read(start, end), "u8")

    def _read(self, start: int, end: int) -> bytes:
        self._file.seek(8 * start)
        return self._file.read(8 * (end - start))

    def _write(self, start: int, tails: _Array) -> None:
        self._file.seek(8 * start)
        self._file.write(tails.data)
