"""Which values have come before, exactly, in about 8 bytes each, and 8 in a file: a set of Python objects takes 144.

The newest are kept as they are. Older ones are in sorted runs, each several times as long as the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dagster_llm_batch.core.runs import Run, SortedDigests

__all__ = ["Seen"]

_MOST_RECENT = 1 << 15
_TIMES = 8


class Seen:
    """`digests` gives 16 bytes or more for each value, all in one: the same for equal values and for no others.

    `new_file` makes one for each run.
    """

    def __init__(self, digests: Callable[[Sequence[Any]], bytes], new_file: Callable[[], IO[bytes]] = BytesIO) -> None:
        self.count = 0
        self._digests = digests
        self._new_file = new_file
        self._recent: set[Any] = set()
        self._runs: list[Run] = []

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
        if self._runs and values:
            digests = self._sorted(values)
            for run in self._runs:
                found.update(run.holds(digests))
        return found

    def _put_away(self) -> None:
        from dagster_llm_batch.core.runs import Run  # noqa: PLC0415  # takes long, and small tables do without

        run = Run(self._sorted(list(self._recent)), self._new_file())
        self._recent = set()
        while self._runs and len(self._runs[-1]) <= _TIMES * len(run):
            newer, run = run, self._runs.pop()
            run.insert(newer)
        self._runs.append(run)

    def _sorted(self, values: Sequence[Any]) -> SortedDigests:
        from dagster_llm_batch.core.runs import sorted_digests  # noqa: PLC0415

        return sorted_digests(self._digests(values), len(values))
