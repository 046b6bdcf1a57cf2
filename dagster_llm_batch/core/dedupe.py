"""Recognize values that have come before, exactly, in 4 MB for any number of values, and 16 bytes each in files.

A set of Python objects takes 144 bytes a value, so only the newest values are in one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster_llm_batch.core.digest_runs import Runs

__all__ = ["Seen"]


class Seen:
    """A set that grows in files, not in memory.

    Args:
        digests: Returns the digests of values as one text: 16 bytes or more each, equal only for equal values.
        new_file: Makes a file for digests, once there are many.
        few: So many values need no file, nor numpy, which takes long to load.
        recent: Number of the newest values that are kept as Python objects, once there are more than `few`.
        new_runs: Makes the files' reader; `Runs` by default.
    """

    def __init__(
        self,
        digests: Callable[[Sequence[Any]], bytes],
        new_file: Callable[[], IO[bytes]] = BytesIO,
        *,
        few: int = 1 << 15,
        recent: int = 1 << 13,
        new_runs: Callable[[Callable[[], IO[bytes]]], Runs] | None = None,
    ) -> None:
        self.count = 0
        self._digests = digests
        self._new_file = new_file
        self._few = few
        self._most_recent = min(recent, few)
        self._new_runs = new_runs
        self._recent: set[Any] = set()
        self._older: Runs | None = None

    def new(self, values: Sequence[Any]) -> list[bool]:
        """Add the values; return for each whether it comes for the first time."""
        old, different = self._old(values), set(values)
        # Usually all are new: then single values need no lookup.
        if not old and len(different) == len(values) and self._recent.isdisjoint(different):
            are_new = [True] * len(values)
            self._recent |= different
        else:
            are_new = []
            for at, value in enumerate(values):
                is_new = at not in old and value not in self._recent
                if is_new:
                    self._recent.add(value)
                are_new.append(is_new)
        self.count += sum(are_new)
        if len(self._recent) > (self._few if self._older is None else self._most_recent):
            self._move_to_files()
        return are_new

    def _old(self, values: Sequence[Any]) -> set[int]:
        """Return the places of the values that are in files."""
        if self._older is None or not values:
            return set()
        return self._older.find(self._digests(values), len(values))

    def _move_to_files(self) -> None:
        if self._older is None:
            from dagster_llm_batch.core.digest_runs import Runs  # noqa: PLC0415 - see `few`

            self._older = (self._new_runs or Runs)(self._new_file)
        self._older.add(self._digests(list(self._recent)), len(self._recent))
        self._recent = set()
