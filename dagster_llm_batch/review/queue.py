"""Choose the row to ask a person next, and keep the standing judgments of all people."""

from __future__ import annotations

import hashlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dagster_llm_batch.storage.ledger.records import Judgment

__all__ = ["ANSWERS", "LabelQueue", "RowAddress", "StandingJudgments"]

ANSWERS = ("label", "undecidable")
"""Kinds of judgments that end the question; a skipped row stays open for others."""

RowAddress = tuple[str, str]
"""The partition of a row, "" without partitions, and its key as text."""

_OPEN_SECONDS = 300.0
_LATE_NUMBERS = 64
"""So many numbers before the last are read again: of several who write at once, the lower one may be seen later."""
_SHARE_DIGITS = 8


class _Standing:
    """Standing judgments: the last kind by person and row, and the number of answers per row."""

    def __init__(self) -> None:
        self.kinds: dict[str, dict[RowAddress, str]] = {}
        self.answers: Counter[RowAddress] = Counter()

    def add(self, judgment: Judgment) -> None:
        address, mine = (judgment.partition, judgment.row_key), self.kinds.setdefault(judgment.annotator, {})
        # A repeated judgment counts at its new place in the order.
        answers = int(judgment.kind in ANSWERS) - int(mine.pop(address, None) in ANSWERS)
        if judgment.kind != "undo":
            mine[address] = judgment.kind
        # Tables without partitions ask for a row by its key alone.
        for each in {address, ("", judgment.row_key)}:
            self.answers[each] += answers


class StandingJudgments:
    """People's standing judgments of a dataset's rows, kept up with the ledger: only new ones are read."""

    def __init__(self, read_after: Callable[[int], Sequence[tuple[int, Judgment]]]) -> None:
        self._read_after = read_after
        self._last = 0
        self._recent: set[int] = set()
        self._all, self._drawn = _Standing(), _Standing()
        self._lock = threading.Lock()

    def look(self) -> None:
        """Read judgments since the last look, from all pages."""
        with self._lock:
            # Of several who write at once, the one with the lower number may end later.
            for number, judgment in self._read_after(max(0, self._last - _LATE_NUMBERS)):
                if number not in self._recent:
                    self._recent.add(number)
                    self._last = max(self._last, number)
                    self._all.add(judgment)
                    if judgment.sample or judgment.kind == "undo":
                        self._drawn.add(judgment)
            self._recent = {number for number in self._recent if number > self._last - _LATE_NUMBERS}

    def of(self, person: str, *, drawn: bool = False) -> dict[RowAddress, str]:
        """Return a person's judgment of each row, by kind, in the order of the judgments.

        `drawn`: only rows as drawn by a sample. Judgments of rows that somebody picked do not count in figures, so they
        do not complete a sample's round.
        """
        with self._lock:
            return dict((self._drawn if drawn else self._all).kinds.get(person, {}))

    def is_answered(self, address: RowAddress, *, drawn: bool = False) -> bool:
        """Return whether somebody has answered this row; `drawn` as in `of`."""
        return (self._drawn if drawn else self._all).answers[address] > 0

    def has_several(self, address: RowAddress) -> bool:
        """Return whether more than one person has answered this row."""
        return self._all.answers[address] > 1


@dataclass
class LabelQueue:
    """Hands out the rows of one table to several people.

    Each row goes to one person, and `overlap`, a share from 0 to 1, of the rows to everybody, to measure agreement. A
    digest of the key decides which. Two people who look at the same moment get different rows, as long as there are
    some.
    """

    overlap: float = 0.0
    _open: dict[RowAddress, tuple[str, float]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def is_shared(self, address: RowAddress) -> bool:
        """Return whether everybody is asked this row."""
        digest = hashlib.blake2b(
            "\0".join(address).encode("utf-8", "surrogatepass"), digest_size=_SHARE_DIGITS
        ).digest()
        return bool(int.from_bytes(digest) < self.overlap * 256**_SHARE_DIGITS)

    def left(
        self,
        rows: Sequence[RowAddress],
        said: StandingJudgments,
        person: str,
        *,
        drawn: bool = False,
        second: bool = False,
    ) -> list[RowAddress]:
        """Return the rows that a person may still be asked, in their order. `drawn`: they are a sample's. `second`:
        those that somebody else has answered.
        """
        mine = said.of(person, drawn=drawn)
        if not any(partition for partition, _ in rows):
            # A table without partitions names rows by their keys alone, whatever partition the dataset has them in.
            mine |= {("", key): kind for (_, key), kind in mine.items()}
        if second:
            return [row for row in rows if row not in mine and said.is_answered(row, drawn=drawn)]
        return [
            row for row in rows if row not in mine and (not said.is_answered(row, drawn=drawn) or self.is_shared(row))
        ]

    def take(self, left: Sequence[RowAddress], person: str) -> RowAddress | None:
        """Return the row to ask next; None if all rows are done."""
        now = time.monotonic()
        with self._lock:
            elsewhere = {
                address for address, (who, since) in self._open.items() if who != person and now - since < _OPEN_SECONDS
            }
            free = (row for row in left if row not in elsewhere or self.is_shared(row))
            chosen = next(free, left[0] if left else None)
            for address in [address for address, (who, _) in self._open.items() if who == person]:
                del self._open[address]
            if chosen is not None:
                self._open[chosen] = (person, now)
            return chosen
