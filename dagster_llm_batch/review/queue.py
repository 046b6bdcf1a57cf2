"""Choose the row to ask a person next, and keep the standing judgments of all people."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dagster_llm_batch.storage.ledger.records import Judgment

__all__ = ["ANSWERS", "LabelQueue", "RowAddress", "StandingJudgments", "answer_text"]

ANSWERS = ("label", "undecidable")
"""Kinds of judgments that end the question; a skipped row stays open for others."""

RowAddress = tuple[str, str]
"""The partition of a row, "" without partitions, and its key as text."""

_Value = TypeVar("_Value")

_OPEN_SECONDS = 300.0
_LATE_NUMBERS = 64
"""So many numbers before the last are read again: of several who write at once, the lower one may be seen later."""
_SHARE_DIGITS = 8
_MOST_WORDS = 80
"""So many characters are kept of each answer: enough to know it by."""


def answer_text(answer: Mapping[str, Any]) -> str:
    """Return a person's answer as text: of one field as its value alone, of several as JSON."""
    value = next(iter(answer.values())) if len(answer) == 1 else answer
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _Standing:
    """Standing judgments: the last kind by person and row, its answer in words, and the number of answers per row."""

    def __init__(self) -> None:
        self.words: dict[tuple[str, RowAddress], str] = {}
        self.kinds: dict[str, dict[RowAddress, str]] = {}
        self.answers: Counter[RowAddress] = Counter()

    def add(self, judgment: Judgment) -> None:
        address, mine = (judgment.partition, judgment.row_key), self.kinds.setdefault(judgment.annotator, {})
        # A repeated judgment counts at its new place in the order.
        answers = int(judgment.kind in ANSWERS) - int(mine.pop(address, None) in ANSWERS)
        self.words.pop((judgment.annotator, address), None)
        if judgment.kind != "undo":
            mine[address] = judgment.kind
        if judgment.answer:
            self.words[judgment.annotator, address] = answer_text(judgment.answer)[:_MOST_WORDS]
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

    def words(self, address: RowAddress, person: str) -> str:
        """Return a person's answer for a row in words, cut to 80 characters; "" without one."""
        return self._all.words.get((person, address), "")


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
        mine = _by_row(said.of(person, drawn=drawn), rows)
        return [row for row in rows if row not in mine and self._is_asked(row, said, drawn=drawn, second=second)]

    def skipped(
        self,
        rows: Sequence[RowAddress],
        said: StandingJudgments,
        person: str,
        *,
        drawn: bool = False,
        second: bool = False,
    ) -> list[RowAddress]:
        """Return the addresses of the judgments by which a person skipped rows that `left` would return otherwise, in
        the order of the rows.
        """
        mine = said.of(person, drawn=drawn)
        skipped = _by_row({address: address for address, kind in mine.items() if kind == "skip"}, rows)
        return [
            skipped[row] for row in rows if row in skipped and self._is_asked(row, said, drawn=drawn, second=second)
        ]

    def _is_asked(self, row: RowAddress, said: StandingJudgments, *, drawn: bool, second: bool) -> bool:
        """Return whether a person who has not judged this row is asked it."""
        is_answered = said.is_answered(row, drawn=drawn)
        return is_answered if second else not is_answered or self.is_shared(row)

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


def _by_row(mine: Mapping[RowAddress, _Value], rows: Sequence[RowAddress]) -> dict[RowAddress, _Value]:
    """Return a person's judgments by the addresses that a table has for its rows, too.

    A table without partitions names rows by their keys alone, whatever partition the dataset has them in.
    """
    by_key = {} if any(partition for partition, _ in rows) else {("", key): each for (_, key), each in mine.items()}
    return {**mine, **by_key}
