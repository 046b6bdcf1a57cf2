"""Which test functions the ten-minute run has: those that execute the most lines for their time, up to a time limit.

A line counts 1 for the first function that executes it, 1/2 for the second, 1/4 for the third, and nothing after that:
a second test of a line often asserts something else about it.
"""

from __future__ import annotations

import csv
import heapq
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path

__all__ = ["choose_functions", "lines_of_functions", "seconds_of_functions"]

Lines = Mapping[str, int]
"""The executed lines of each module, by its path: bit n is set for line n."""
_TIMES_A_LINE_COUNTS = 3


class Executed:
    """The lines that the chosen functions execute at least once, twice and three times."""

    def __init__(self) -> None:
        """Begin without a line."""
        self._times: list[dict[str, int]] = [defaultdict(int) for _ in range(_TIMES_A_LINE_COUNTS)]

    def gain(self, lines: Lines) -> float:
        """Return the worth of a further function with these lines."""
        worth = 0.0
        for module, bits in lines.items():
            left = bits
            for times, at_least in enumerate(self._times):
                seen = at_least[module]
                worth += (left & ~seen).bit_count() / 2**times
                left &= seen
        return worth

    def add(self, lines: Lines) -> None:
        """Add a function's lines."""
        for module, bits in lines.items():
            more = bits
            for at_least in self._times:
                seen = at_least[module]
                at_least[module] = seen | more
                more &= seen


def choose_functions(
    lines: Mapping[str, Lines], seconds: Mapping[str, float], always: Collection[str], limit: float
) -> set[str]:
    """Return the functions of a run that takes at most `limit` seconds, or the time of `always` if that is more.

    Args:
        lines: The executed lines of each function.
        seconds: The processor time of each function.
        always: Functions that are in the run whatever they execute.
        limit: Seconds of processor time of all chosen functions.
    """
    executed, chosen = Executed(), set(always)
    used = sum(seconds[name] for name in chosen)
    for name in sorted(chosen):
        executed.add(lines.get(name, {}))
    # Gains only shrink, so the first function whose gain is still the noted one is the best.
    heap = [(-executed.gain(of) / max(seconds[name], 1e-3), name) for name, of in lines.items() if name not in chosen]
    heapq.heapify(heap)
    while heap:
        noted, name = heapq.heappop(heap)
        if used + seconds[name] > limit:
            continue
        now = -executed.gain(lines[name]) / max(seconds[name], 1e-3)
        if now == 0:
            continue
        if now > noted:
            heapq.heappush(heap, (now, name))
            continue
        chosen.add(name)
        executed.add(lines[name])
        used += seconds[name]
    return chosen


def lines_of_functions(folder: Path, cases: Collection[str]) -> Mapping[str, Lines]:
    """Return the lines of the package that the functions of these cases execute, from files of `executed_lines`."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    query = """
        select path, context, numbits from line_bits
        join file on file.id = file_id join context on context.id = context_id
    """
    for file in sorted(folder.glob("lines.*")):
        with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as read:
            for path, test, bits in read.execute(query):
                if test in cases:
                    found[test.partition("[")[0]][path] |= int.from_bytes(bits, "little")
    return found


def seconds_of_functions(times: Path, cases: Collection[str]) -> Mapping[str, float]:
    """Return the processor time of the functions of these cases, from a file of `use_of_time`."""
    with times.open(newline="") as file:
        of_case = {test: float(processor) for test, _, processor in csv.reader(file) if test in cases}
    found: dict[str, float] = defaultdict(float)
    for test, processor in of_case.items():
        found[test.partition("[")[0]] += processor
    return found
