"""Digests of 16 bytes in files, and which of others are there. Imported where it is used, for numpy.

    a filter: certainly not there, or perhaps ─▶ each run: which blocks of its file to read ─▶ the digests in these

In memory are the filter, of one size however many digests there are, and 8 bytes of each block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import compress
from typing import IO, Any

import numpy as np

__all__ = ["Runs"]

_Array = np.ndarray[Any, Any]
_BYTES = 16
_BLOCK = 32  # digests
_PIECE = 1 << 13  # digests in memory at once, while runs become one
_TIMES = 4  # more, and runs are joined more often; fewer, and what is there is looked for in more of them
_HEADS = 1 << 64  # so many there can be
_FILTER_BITS = 1 << 25  # a power of 2; says perhaps of 1 % of new digests among two million, of a fifth among ten


class Runs:
    """Sorted runs of digests, each several times as long as the next. `new_file` makes the file of one."""

    def __init__(self, new_file: Callable[[], IO[bytes]]) -> None:
        self._new_file = new_file
        self._filter = _Filter()
        self._runs: list[_Run] = []

    def add(self, digests: bytes, count: int) -> None:
        """Take so many digests, which are of one length, by the first 16 bytes of each. None is here yet."""
        some = _parts(digests, count)
        self._filter.add(some)
        self._runs.append(_Run([_sorted(some)], self._new_file()))
        while len(self._runs) > 1 and self._runs[-2].count <= _TIMES * self._runs[-1].count:
            self._runs[-2:] = [_joined(self._runs[-2:], self._new_file())]

    def held(self, digests: bytes, count: int) -> set[int]:
        """The places of those of these that are here."""
        some = _parts(digests, count)
        places = self._filter.perhaps(some)
        perhaps = some[places]
        return {place for run in self._runs for place in compress(places.tolist(), run.holds(perhaps))}


class _Filter:
    """Two bits of each digest are set. One that has a bit which is not is certainly another."""

    def __init__(self) -> None:
        self._bytes = np.zeros(_FILTER_BITS // 8, "u1")

    def add(self, digests: _Array) -> None:
        bits = _bits_of(digests)
        np.bitwise_or.at(self._bytes, bits >> 3, _MASKS[bits & 7])

    def perhaps(self, digests: _Array) -> _Array:
        """The places of those that may have been added."""
        bits = _bits_of(digests)
        are_set: _Array = (self._bytes[bits >> 3] & _MASKS[bits & 7]).all(axis=1)
        return are_set.nonzero()[0]


_MASKS = np.left_shift(1, np.arange(8)).astype("u1")


def _bits_of(digests: _Array) -> _Array:
    return digests[:, 1:].copy().view("u4") & (_FILTER_BITS - 1)


class _Run:
    """Digests in a file, sorted by their heads: the first 8 bytes as a number."""

    def __init__(self, pieces: Iterable[_Array], file: IO[bytes]) -> None:
        self.count = 0
        self._file = file
        firsts = []
        for piece in pieces:
            firsts.append(piece[-self.count % _BLOCK :: _BLOCK, 0].copy())
            file.write(piece.tobytes())
            self.count += len(piece)
        self._firsts = np.concatenate(firsts)  # the first head of each block

    def holds(self, digests: _Array) -> list[bool]:
        """Whether each is here."""
        starts, ends = self._blocks(digests[:, 0], digests[:, 0])
        sought = zip(digests, starts.tolist(), ends.tolist(), strict=True)
        return [_is_in(self._read(start, end), digest.tobytes()) for digest, start, end in sought]

    def between(self, low: int, high: int) -> _Array:
        """Those whose heads are from the one to the other."""
        start, end = self._blocks(np.uint64(low), np.uint64(high))
        some = np.frombuffer(self._read(int(start), int(end)), "u8").reshape(-1, 2)
        return some[(some[:, 0] >= low) & (some[:, 0] <= high)]

    def close(self) -> None:
        self._file.close()

    def _blocks(self, low: Any, high: Any) -> tuple[Any, Any]:
        """Where those blocks start and end that have heads from the one to the other: equal heads fill several."""
        return np.maximum(self._firsts.searchsorted(low), 1) - 1, self._firsts.searchsorted(high, "right")

    def _read(self, start: int, end: int) -> bytes:
        self._file.seek(_BYTES * _BLOCK * start)
        return self._file.read(_BYTES * _BLOCK * (end - start))


def _is_in(block: bytes, digest: bytes) -> bool:
    at = block.find(digest)
    while at > 0 and at % _BYTES:  # the end of one and the start of the next
        at = block.find(digest, at + 1)
    return at >= 0


def _joined(runs: Sequence[_Run], file: IO[bytes]) -> _Run:
    """One run of all, which end with that. Some heads at a time: never are all in memory."""
    step = -(-_HEADS // -(-sum(run.count for run in runs) // _PIECE))
    some = ([run.between(low, min(low + step, _HEADS) - 1) for run in runs] for low in range(0, _HEADS, step))
    joined = _Run((_sorted(np.concatenate(parts)) for parts in some), file)
    for run in runs:
        run.close()
    return joined


def _parts(digests: bytes, count: int) -> _Array:
    """Head and tail of each."""
    return np.frombuffer(digests, "u1").reshape(count, -1)[:, :_BYTES].copy().view("u8")


def _sorted(digests: _Array) -> _Array:
    return digests[digests[:, 0].argsort(kind="stable")]  # in no time where two sorted ones follow each other
