"""Runs of digests in files: sets of 16 bytes each that are too large for memory.

    filter: certainly not there, or perhaps ─▶ each run: which blocks of its file to read ─▶ the digests in the blocks

In memory are the filter, of one size however many digests there are, and 8 bytes of each block. Imported on first use,
since numpy takes long to load.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import compress
from typing import IO, Any

import numpy as np

__all__ = ["Runs"]

_Array = np.ndarray[Any, Any]
_BYTES = 16

# A run is joined with the one before it that is at most so many times as long. A larger number joins more often; with a
# smaller one there are more runs to search.
_TIMES = 4

_HEADS = 1 << 64  # the number of possible heads


class Runs:
    """Sorted runs of digests, each several times as long as the next.

    Args:
        new_file: Makes the file of a run.
        block: Number of digests that are read from a file at once.
        piece: Number of digests in memory at once while runs are joined.
        filter_bits: The size of the filter, a power of 2. With the default it sends 1 % of new digests to the files
            if there are two million, and a fifth if there are ten.
    """

    def __init__(
        self, new_file: Callable[[], IO[bytes]], *, block: int = 32, piece: int = 1 << 13, filter_bits: int = 1 << 25
    ) -> None:
        self._new_file = new_file
        self._block = block
        self._piece = piece
        self._filter = _Filter(filter_bits)
        self._runs: list[_Run] = []

    def add(self, digests: bytes, count: int) -> None:
        """Add so many digests, all of one length, by the first 16 bytes of each. None may have been added before."""
        parts = _parts(digests, count)
        self._filter.add(parts)
        self._runs.append(_Run([_sorted(parts)], self._new_file(), self._block))
        while len(self._runs) > 1 and self._runs[-2].count <= _TIMES * self._runs[-1].count:
            joined = _Run(_merged(self._runs[-2:], self._piece), self._new_file(), self._block)
            for run in self._runs[-2:]:
                run.close()
            self._runs[-2:] = [joined]

    def find(self, digests: bytes, count: int) -> set[int]:
        """Return the places of those digests that have been added."""
        parts = _parts(digests, count)
        places = self._filter.perhaps(parts)
        perhaps = parts[places]
        return {place for run in self._runs for place in compress(places.tolist(), run.holds(perhaps))}


class _Filter:
    """A Bloom filter: two bits are set for each digest, so one with an unset bit was certainly not added."""

    def __init__(self, bits: int) -> None:
        self._last_bit = bits - 1
        self._bytes = np.zeros(bits // 8, "u1")

    def add(self, digests: _Array) -> None:
        bits = self._bits_of(digests)
        np.bitwise_or.at(self._bytes, bits >> 3, _MASKS[bits & 7])

    def perhaps(self, digests: _Array) -> _Array:
        """Return the places of the digests that may have been added."""
        bits = self._bits_of(digests)
        are_set: _Array = (self._bytes[bits >> 3] & _MASKS[bits & 7]).all(axis=1)
        return are_set.nonzero()[0]

    def _bits_of(self, digests: _Array) -> _Array:
        return digests[:, 1:].copy().view("u4") & self._last_bit


_MASKS = np.left_shift(1, np.arange(8)).astype("u1")


class _Run:
    """Digests in a file, sorted by their heads: the first 8 bytes as a number."""

    def __init__(self, pieces: Iterable[_Array], file: IO[bytes], block: int) -> None:
        self.count = 0
        self._file = file
        self._block_bytes = _BYTES * block
        firsts = []
        for piece in pieces:
            firsts.append(piece[-self.count % block :: block, 0].copy())
            file.write(piece.tobytes())
            self.count += len(piece)
        file.flush()
        self._read_at = _reader(file)
        self._firsts = np.concatenate(firsts)  # the first head of each block

    def holds(self, digests: _Array) -> list[bool]:
        """Return for each digest whether the run has it."""
        starts, ends = self._blocks(digests[:, 0], digests[:, 0])
        sizes = (ends - starts) * self._block_bytes
        places = zip(sizes.tolist(), (starts * self._block_bytes).tolist(), strict=True)
        read, sought = self._read_at, digests.tobytes()
        return [
            _is_in(read(size, place), sought[at * _BYTES : (at + 1) * _BYTES])
            for at, (size, place) in enumerate(places)
        ]

    def between(self, low: int, high: int) -> _Array:
        """Return the digests whose heads are from `low` to `high`."""
        start, end = self._blocks(np.uint64(low), np.uint64(high))
        size, place = int(end - start) * self._block_bytes, int(start) * self._block_bytes
        digests = np.frombuffer(self._read_at(size, place), "u8").reshape(-1, 2)
        return digests[(digests[:, 0] >= low) & (digests[:, 0] <= high)]

    def close(self) -> None:
        self._file.close()

    def _blocks(self, low: Any, high: Any) -> tuple[Any, Any]:
        """Return where the blocks start and end that have heads from `low` to `high`: equal heads can fill several."""
        return np.maximum(self._firsts.searchsorted(low), 1) - 1, self._firsts.searchsorted(high, "right")


def _reader(file: IO[bytes]) -> Callable[[int, int], bytes]:
    """Return a function that reads a number of bytes from a place of the file: in a third of the time of `seek`."""

    def read(size: int, place: int) -> bytes:
        file.seek(place)
        return file.read(size)

    try:
        number = file.fileno()
    # It is in memory.
    except OSError:
        return read
    # Windows has no such call.
    return partial(os.pread, number) if hasattr(os, "pread") else read


def _is_in(block: bytes, digest: bytes) -> bool:
    at = block.find(digest)
    # A match may be the end of one digest and the start of the next.
    while at > 0 and at % _BYTES:
        at = block.find(digest, at + 1)
    return at >= 0


def _merged(runs: Sequence[_Run], piece: int) -> Iterator[_Array]:
    """Yield the digests of all runs in their order, about `piece` of them at a time."""
    # Digests are spread evenly, so an equal share of the possible heads has an equal share of them.
    step = -(-_HEADS // -(-sum(run.count for run in runs) // piece))
    for low in range(0, _HEADS, step):
        yield _sorted(np.concatenate([run.between(low, min(low + step, _HEADS) - 1) for run in runs]))


def _parts(digests: bytes, count: int) -> _Array:
    """Return the head and the tail of each digest."""
    return np.frombuffer(digests, "u1").reshape(count, -1)[:, :_BYTES].copy().view("u8")


def _sorted(digests: _Array) -> _Array:
    # A stable sort takes next to no time where two sorted sequences follow each other, as when runs are joined.
    return digests[digests[:, 0].argsort(kind="stable")]
