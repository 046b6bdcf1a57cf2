"""Which values have come before, exactly, in 4 MB however many there are, and 16 bytes each in files.

A set of Python objects takes 144 bytes each. The newest alone are in one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster_llm_batch.core.digest_runs import Runs

__all__ = ["Seen"]

_FEW = 1 << 15  # numpy takes long to load, and small tables do without; nor do they need a file
_MOST_RECENT = 1 << 13


class Seen:
    """`digests` gives 16 bytes or more for each value, all in one: the same for equal values and for no others.

    `new_file` makes the files where digests are, once there are many.
    """

    def __init__(self, digests: Callable[[Sequence[Any]], bytes], new_file: Callable[[], IO[bytes]] = BytesIO) -> None:
        self.count = 0
        self._digests = digests
        self._new_file = new_file
        self._recent: set[Any] = set()
        self._older: Runs | None = None

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
        if len(self._recent) > (_FEW if self._older is None else _MOST_RECENT):
            self._put_away()
        return found

    def _old(self, values: Sequence[Any]) -> set[int]:
        """The places of those that were put away."""
        if self._older is None or not values:
            return set()
        return self._older.held(self._digests(values), len(values))

    def _put_away(self) -> None:
        from dagster_llm_batch.core.digest_runs import Runs  # noqa: PLC0415  # see _FEW

        self._older = self._older or Runs(self._new_file)
        self._older.add(self._digests(list(self._recent)), len(self._recent))
        self._recent = set()
