"""Which row a person is asked next, and what people have said so far."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from dagster_llm_batch.storage.ledger.judgments import standing_judgments
from dagster_llm_batch.storage.ledger.records import Judgment

__all__ = ["ANSWERS", "LabelQueue", "Place"]

ANSWERS = ("label", "undecidable")
"""Kinds of judgments that end the question; a skipped row stays open for others."""

Place = tuple[str, str]
"""The partition of a row, "" where there is none, and its key as text."""

_OPEN_SECONDS = 300.0
_SHARE_DIGITS = 8


@dataclass
class LabelQueue:
    """Hands out the rows of one table to several people.

    Each row goes to one person, and `overlap`, a share from 0 to 1, of the rows to everybody, so that agreement can be
    measured. Which these are is decided by a digest of the key. Two who look at the same moment are given different
    rows, as long as there are some.
    """

    overlap: float = 0.0
    _open: dict[Place, tuple[str, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_shared(self, place: Place) -> bool:
        """Return whether everybody is asked this row."""
        digest = hashlib.blake2b("\0".join(place).encode("utf-8", "surrogatepass"), digest_size=_SHARE_DIGITS).digest()
        return bool(int.from_bytes(digest) < self.overlap * 256**_SHARE_DIGITS)

    def left(self, rows: Sequence[Place], judgments: Iterable[Judgment], person: str) -> list[Place]:
        """Return the rows that a person may still be asked, in their order."""
        mine, answered = set(), set()
        for judgment in standing_judgments(judgments):
            place = (judgment.partition, judgment.row_key)
            if judgment.annotator == person:
                mine.add(place)
            elif judgment.kind in ANSWERS:
                answered.add(place)
        return [row for row in rows if row not in mine and (row not in answered or self.is_shared(row))]

    def take(self, left: Sequence[Place], person: str) -> Place | None:
        """Return the row to ask next; None where nothing is left."""
        now = time.monotonic()
        with self._lock:
            elsewhere = {
                place for place, (who, since) in self._open.items() if who != person and now - since < _OPEN_SECONDS
            }
            free = (row for row in left if row not in elsewhere or self.is_shared(row))
            chosen = next(free, left[0] if left else None)
            for place in [place for place, (who, _) in self._open.items() if who == person]:
                del self._open[place]
            if chosen is not None:
                self._open[chosen] = (person, now)
            return chosen
