"""The order of a batch's rows: any order, a part at each step, and no further than a fault lets them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator

from dagster_llm_batch.testing.emulator.lifecycle import Life
from dagster_llm_batch.testing.emulator.shared_state import SharedState


class RowQueue:
    """The numbers of a batch's rows, in the order in which they run, which the batch's `ordinal` decides."""

    def __init__(self, shared: SharedState, ordinal: int, count: int) -> None:
        self._shared = shared
        self._ordinal = ordinal
        self._order = list(range(count))
        # Results come in any order, and a batch cut short has run any part of its rows.
        random.Random(f"{shared.seed}:{ordinal}").shuffle(self._order)  # noqa: S311
        self._done = 0

    def __len__(self) -> int:
        """Return how many rows there are."""
        return len(self._order)

    def run(self, run_row: Callable[[int], None], life: Life) -> str:
        """Run the next part while the batch stays in its present state; return the event that this leads to.

        "work": more rows are left. "due": all have run. "window_over" and "cancel": a fault ends it here.
        """
        total, state = len(self._order), life.state
        end = min(total, self._done + math.ceil(total / self._shared.work_steps))
        faults = self._shared.faults
        short = faults.batch("expires", self._ordinal) or faults.batch("cancels", self._ordinal)
        stop = total if short is None else min(total, int(total * short.fraction))
        while self._done < min(end, stop) and life.state == state:
            run_row(self._order[self._done])
            self._done += 1
        if short is not None and self._done >= stop:
            return "window_over" if short.kind == "expires" else "cancel"
        return "due" if self._done == total else "work"

    def give_up_rest(self) -> Iterator[int]:
        """Yield the rows that have not run, and never will."""
        while self._done < len(self._order):
            yield self._order[self._done]
            self._done += 1
