"""Group texts that are nearly the same: each near copy gets one leader. Pure.

    text ─▶ shingles ─▶ MinHash ─▶ bands: texts with an equal band are candidates ─▶ exact similarity ─▶ leader
    vector ─▶ sides of random planes ─▶ bands

Shingles are runs of 5 characters, or of 3 words, of the text in lower case with single spaces. The similarity of two
texts is Jaccard's: the share of their different shingles that both have. MinHash only proposes candidates. A text joins
a leader only if their exact similarity reaches the threshold. So each member is compared with its leader, and there are
no chains: a copy of a copy, which differs more, has another leader.

Texts take their turn in the order of their ids, which are digests. So the groups are the same for rows in any order.
Leaders of earlier calls come first, and pairs of earlier calls stay as long as both texts are there: more texts change
no earlier group. MinHash overlooks up to a tenth of the pairs at the threshold, and fewer above it. An overlooked copy
only costs a request.

A text may come with a vector of the user's, such as an embedding. Then the similarity is the cosine of the two vectors,
and the bands are the sides on which a vector lies of random planes through the origin, which are always the same.

A million texts of thirty words take 83 s and 1.1 GB on one core (`python -m benchmarks.copies`): the shingles are in a
file, and the bands in 4 bytes each.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from io import BytesIO
from itertools import chain
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from dagster_llm_batch.core.identity import REQUEST_ID_BYTES, packed, unpacked
from dagster_llm_batch.errors import ConfigError

__all__ = ["EarlierGroups", "NearCopies", "NearCopy", "NearVectors", "Shingles", "refuse_missing_library"]

Shingles = Literal["characters", "words"]

_Hashes = npt.NDArray[np.uint32]

_SIZES: Mapping[Shingles, int] = {"characters": 5, "words": 3}
_WORD = re.compile(r"\w+|[^\w\s]")
_SLOTS, _SEED = 128, 1
# MinHash proposes at least this share of the pairs at the threshold.
_FOUND = 0.9
# With more leaders in a bucket, or more candidates for a text, the others are not compared.
_MOST_LEADERS, _MOST_CANDIDATES = 8, 16
_FACTOR = np.uint64(0x9E37_79B9_7F4A_7C15)
_TEXTS_AT_ONCE = 4_096
# Random planes for vectors, and the most of them in a band, whose number has 32 bits.
_PLANES, _WIDEST = 512, 32
# The context of a vector, before its numbers.
_CONTEXT = 2


class NearCopy(NamedTuple):
    """A request whose text is a near copy of its leader's text."""

    request_id: str
    leader: str
    similarity: float


@dataclass(frozen=True)
class EarlierGroups:
    """Groups of earlier calls.

    Attributes:
        leaders: All requests that were not members, also those without members.
        leader_of: The leader and the similarity of each member.
    """

    leaders: frozenset[str] = frozenset()
    leader_of: Mapping[str, tuple[str, float]] = field(default_factory=dict)


def refuse_missing_library() -> None:
    """Raise ConfigError if the library for MinHash is not installed."""
    if find_spec("rensa") is None:
        raise ConfigError(
            "Reuse(near=…) needs the library rensa, which finds similar texts, and it is not installed. Run: "
            "pip install 'dagster-llm-batch[near]'"
        )


class Grouping(ABC):
    """Items to group, by what is compared of them.

    Args:
        similarity: The least similarity of a copy to its leader.
        new_file: Makes a file for what is compared.
    """

    def __init__(self, similarity: float, new_file: Callable[[], IO[bytes]] = BytesIO) -> None:
        self._similarity = similarity
        self._file = new_file()
        self._ids = bytearray()
        self._ends: list[npt.NDArray[np.int64]] = [np.zeros(1, np.int64)]
        self._bands: list[_Hashes] = []

    def __len__(self) -> int:
        return len(self._ids) // REQUEST_ID_BYTES

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()

    @staticmethod
    @abstractmethod
    def compare(one: _Hashes, other: _Hashes) -> float:
        """Return the similarity of two items."""

    def _add(self, request_ids: Sequence[str], compared: _Hashes, ends: npt.NDArray[np.int64], bands: _Hashes) -> None:
        """Add items. `ends` has the end of each item in `compared`; `bands` has a row for each."""
        self._bands.append(bands)
        self._file.write(compared.tobytes())
        self._ends.append(self._ends[-1][-1] + ends)
        self._ids += packed(request_ids)

    def groups(self, earlier: EarlierGroups | None = None) -> list[NearCopy]:
        """Return all near copies, with their leaders, in the order of their ids. Call it once, after all items."""
        earlier = earlier or EarlierGroups()
        ids = list(unpacked(self._ids))
        order = np.frombuffer(bytes(self._ids), f"S{REQUEST_ID_BYTES}").argsort(kind="stable").tolist()
        place_of = {ids[at]: at for at in order} if earlier.leaders else {}
        buckets = _dense(self._bands)
        ends = np.concatenate([self._ends[0], *self._ends[1:]])
        found: list[NearCopy] = []
        turn = _Turn(self._similarity, self.compare, buckets, self._file, ends)
        first = [at for at in order if ids[at] in earlier.leaders]
        for at in first:
            turn.lead(at)
        for at in order:
            request_id = ids[at]
            if request_id in earlier.leaders:
                continue
            if (known := earlier.leader_of.get(request_id)) is not None and known[0] in place_of:
                found.append(NearCopy(request_id, *known))
            elif (joined := turn.join(at)) is not None:
                found.append(NearCopy(request_id, ids[joined[0]], joined[1]))
            else:
                turn.lead(at)
        return found


class NearCopies(Grouping):
    """Texts to group. Raises ConfigError if the library for MinHash is not installed.

    Args:
        similarity: The least similarity of a copy to its leader, 0.5 to 1.
        shingles: The parts of texts that are compared.
        new_file: Makes a file for the shingles.
    """

    def __init__(
        self,
        similarity: float,
        shingles: Shingles = "characters",
        new_file: Callable[[], IO[bytes]] = BytesIO,
    ) -> None:
        refuse_missing_library()
        super().__init__(similarity, new_file)
        self._shingles = shingles
        self._width = _band_width(similarity, _SLOTS, _SLOTS)

    def add(self, request_ids: Sequence[str], texts: Sequence[str], contexts: Sequence[bytes]) -> None:
        """Add texts. Each request comes once. Only texts with an equal context are compared."""
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            some = slice(start, start + _TEXTS_AT_ONCE)
            hashes, ends = _SHINGLERS[self._shingles](texts[some])
            # A shingle of another context is another shingle.
            hashes ^= np.repeat(_digests(contexts[some]).astype(np.uint32), np.diff(ends, prepend=0))
            self._add(request_ids[some], hashes, ends, _bands_of(hashes, ends, self._width))

    @staticmethod
    def compare(one: _Hashes, other: _Hashes) -> float:
        """See Grouping.compare."""
        return _jaccard(one, other)


class NearVectors(Grouping):
    """Vectors to group, by their cosine.

    Args:
        similarity: The least cosine of a copy and its leader, above 0 and at most 1.
        new_file: Makes a file for the vectors.
    """

    def __init__(self, similarity: float, new_file: Callable[[], IO[bytes]] = BytesIO) -> None:
        super().__init__(similarity, new_file)
        same_side = 1 - math.acos(similarity) / math.pi
        self._width = _band_width(same_side, _PLANES, _WIDEST)
        self._planes: dict[int, npt.NDArray[np.float32]] = {}

    def add(
        self,
        request_ids: Sequence[str],
        numbers: npt.NDArray[np.float32],
        lengths: npt.NDArray[np.int64],
        contexts: Sequence[bytes],
    ) -> None:
        """Add vectors: their numbers one after the other, and the length of each. Each request comes once.

        Only vectors of equal length with an equal context are compared. A vector that is empty, zero or not finite is
        no copy, and leads none.
        """
        starts = np.cumsum(lengths) - lengths
        for length in np.unique(lengths).tolist():
            of_length = np.flatnonzero(lengths == length)
            for first in range(0, len(of_length), _TEXTS_AT_ONCE):
                some = of_length[first : first + _TEXTS_AT_ONCE]
                units = _units(numbers[starts[some, None] + np.arange(length)])
                ids = [request_ids[at] for at in some.tolist()]
                self._add_equally_long(ids, units, _digests([contexts[at] for at in some.tolist()]))

    def _add_equally_long(
        self, request_ids: Sequence[str], units: npt.NDArray[np.float32], digests: npt.NDArray[np.uint64]
    ) -> None:
        (count, length), bands = units.shape, _PLANES // self._width
        sides = units @ self._planes_of(length).T > 0
        in_bands = sides[:, : bands * self._width].reshape(count, bands, self._width)
        numbers = np.repeat(digests[:, None], bands, axis=1)
        for part in np.moveaxis(np.packbits(in_bands, axis=2), 2, 0):
            numbers = _mixed(numbers + part)
        contexts = digests.view(np.uint32).reshape(count, _CONTEXT)
        compared = np.concatenate([contexts, units.view(np.uint32)], axis=1)
        ends = np.arange(1, count + 1, dtype=np.int64) * compared.shape[1]
        self._add(request_ids, compared.ravel(), ends, numbers.astype(np.uint32))

    def _planes_of(self, length: int) -> npt.NDArray[np.float32]:
        if length not in self._planes:
            # Its numbers are the same in all versions of numpy, unlike those of newer generators.
            random = np.random.RandomState(_SEED)
            self._planes[length] = random.standard_normal((_PLANES, length)).astype(np.float32)
        return self._planes[length]

    @staticmethod
    def compare(one: _Hashes, other: _Hashes) -> float:
        """See Grouping.compare."""
        if len(one) != len(other) or not np.array_equal(one[:_CONTEXT], other[:_CONTEXT]):
            return 0.0
        cosine = float(np.dot(one[_CONTEXT:].view(np.float32), other[_CONTEXT:].view(np.float32)))
        # Rounding errors: of equal vectors, it is 1.
        return min(round(cosine, 6), 1.0)


class _Turn:
    """The leaders so far, by their buckets. A text joins one of them, or becomes one."""

    def __init__(
        self,
        similarity: float,
        compare: Callable[[_Hashes, _Hashes], float],
        buckets: npt.NDArray[np.int32],
        file: IO[bytes],
        ends: npt.NDArray[np.int64],
    ) -> None:
        self._similarity = similarity
        self._compare = compare
        self._buckets = buckets
        self._are_shared: npt.NDArray[np.bool_] = np.any(buckets >= 0, axis=1)
        self._file = file
        self._ends = ends
        self._leaders: dict[int, list[int]] = {}

    def _buckets_of(self, at: int) -> list[int]:
        """Return the buckets of a text that other texts share."""
        return [bucket for bucket in self._buckets[at].tolist() if bucket >= 0] if self._are_shared[at] else []

    def lead(self, at: int) -> None:
        """Add a leader."""
        for bucket in self._buckets_of(at):
            leaders = self._leaders.setdefault(bucket, [])
            if len(leaders) < _MOST_LEADERS:
                leaders.append(at)

    def join(self, at: int) -> tuple[int, float] | None:
        """Return the most similar leader of a text, and the similarity; None without one that is similar enough."""
        near = (self._leaders.get(bucket, ()) for bucket in self._buckets_of(at))
        counts = Counter(chain.from_iterable(near))
        if not counts:
            return None
        own, best = self._hashes(at), (-1, 0.0)
        for leader, _ in counts.most_common(_MOST_CANDIDATES):
            similarity = self._compare(own, self._hashes(leader))
            if similarity >= self._similarity and similarity > best[1]:
                best = (leader, similarity)
        return None if best[0] < 0 else best

    def _hashes(self, at: int) -> _Hashes:
        start, end = self._ends[at : at + 2].tolist()
        self._file.seek(start * 4)
        return np.frombuffer(self._file.read((end - start) * 4), np.uint32)


def _jaccard(ones: _Hashes, others: _Hashes) -> float:
    """Return the share of the different hashes that both have. Both are sorted, and have each hash once."""
    both = np.concatenate([ones, others])
    both.sort(kind="stable")
    shared = int((both[1:] == both[:-1]).sum())
    return shared / (len(both) - shared)


def _band_width(are_equal: float, slots: int, widest: int) -> int:
    """Return the number of slots in a band: the largest that proposes enough pairs.

    `are_equal` is the probability that a slot is equal in both, at the least similarity.
    """
    widths = range(widest, 1, -1)
    return next((width for width in widths if 1 - (1 - are_equal**width) ** (slots // width) >= _FOUND), 1)


def _digests(contexts: Sequence[bytes]) -> npt.NDArray[np.uint64]:
    return _mixed(np.fromiter(map(xxhash.xxh3_64_intdigest, contexts), np.uint64, len(contexts)))


def _units(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the vectors with the length 1; zeros for those that are zero or not finite."""
    largest = np.abs(vectors).max(axis=1, initial=0, keepdims=True)
    are_usable = np.isfinite(largest) & (largest > 0)
    # Divided by the largest number first: squares of large numbers overflow.
    scaled = np.where(are_usable, vectors, 0) / np.where(are_usable, largest, 1)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.asarray(scaled / np.where(lengths > 0, lengths, 1), np.float32)


def _bands_of(hashes: _Hashes, ends: npt.NDArray[np.int64], width: int) -> _Hashes:
    """Return a number for each band of each text: texts, bands. Equal bands have equal numbers."""
    from rensa import RMinHash  # noqa: PLC0415 - optional dependency

    offsets = np.concatenate([[0], ends]).astype(np.uint64)
    # Rensa expects well-distributed numbers.
    tokens = _mixed(hashes.astype(np.uint64))
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(tokens, offsets, _SLOTS, _SEED)
    slots = np.array(matrix.to_rows(), np.uint64)
    bands = _SLOTS // width
    numbers = np.zeros((len(ends), bands), np.uint64)
    for place in range(width):
        numbers = _mixed(numbers + slots[:, place : bands * width : width])
    return numbers.astype(np.uint32)


def _mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return well-distributed numbers: different ones for different ones."""
    mixed = (numbers + np.uint64(1)) * _FACTOR
    mixed ^= mixed >> np.uint64(32)
    mixed *= _FACTOR
    mixed ^= mixed >> np.uint64(29)
    return mixed


def _dense(bands: Sequence[_Hashes]) -> npt.NDArray[np.int32]:
    """Return the bucket of each text in each band, as a number; -1 for a bucket with only one text."""
    if not bands:
        return np.empty((0, 0), np.int32)
    whole = np.concatenate(bands)
    buckets = np.full(whole.shape, -1, np.int32)
    start = 0
    for band in range(whole.shape[1]):
        _, places, counts = np.unique(whole[:, band], return_inverse=True, return_counts=True)
        are_shared = counts > 1
        numbers = np.where(are_shared, np.cumsum(are_shared) - 1 + start, -1)
        buckets[:, band] = numbers[places]
        start += int(are_shared.sum())
    return buckets


def _normal(text: str) -> str:
    return " ".join(text.lower().split())


def _of_characters(texts: Sequence[str]) -> tuple[_Hashes, npt.NDArray[np.int64]]:
    size = _SIZES["characters"]
    # A shorter text has one shingle.
    whole = [_normal(text).ljust(size, "\0") for text in texts]
    codes = np.frombuffer("".join(whole).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    return _windows(codes, np.fromiter(map(len, whole), np.int64, len(whole)), size)


def _of_words(texts: Sequence[str]) -> tuple[_Hashes, npt.NDArray[np.int64]]:
    size = _SIZES["words"]
    words = [_WORD.findall(_normal(text)) for text in texts]
    words = [[*own, *[""] * (size - len(own))] for own in words]
    digests: Iterable[Any] = map(xxhash.xxh3_64_intdigest, map(_encoded, chain.from_iterable(words)))
    lengths = np.fromiter(map(len, words), np.int64, len(words))
    return _windows(np.fromiter(digests, np.uint64, int(lengths.sum())), lengths, size)


def _encoded(word: str) -> bytes:
    return word.encode("utf-8", "surrogatepass")


_SHINGLERS: Mapping[Shingles, Callable[[Sequence[str]], tuple[_Hashes, npt.NDArray[np.int64]]]] = {
    "characters": _of_characters,
    "words": _of_words,
}


def _windows(
    items: npt.NDArray[np.uint64], lengths: npt.NDArray[np.int64], size: int
) -> tuple[_Hashes, npt.NDArray[np.int64]]:
    """Return the different hashes of the windows of each text, sorted, and the end of each text's hashes."""
    count = max(len(items) - size + 1, 0)
    hashes = np.zeros(count, np.uint64)
    for place in range(size):
        hashes = _mixed(hashes + items[place : place + count])
    texts = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)[:count]
    # Windows that reach into the next text
    ends = np.cumsum(lengths)
    are_whole = np.arange(size - 1, size - 1 + count) < np.repeat(ends, lengths)[:count]
    keyed = (texts[are_whole] << np.uint64(32)) | (hashes[are_whole] >> np.uint64(32))
    # Faster than numpy's `unique`, which builds a hash table.
    keyed.sort()
    keyed = keyed[np.diff(keyed, prepend=np.uint64(2**64 - 1)) != 0]
    own = np.bincount((keyed >> np.uint64(32)).astype(np.int64), minlength=len(lengths))
    return keyed.astype(np.uint32), np.cumsum(own)
