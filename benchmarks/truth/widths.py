"""Bounds on the mean width of each row of the page: 1.5 times the measured width.

They are in widths.csv. A change that doubles a width exceeds them. After an intended change, set them again with
`python -m benchmarks.truth SECTION --set-widths`, and again with `--quick`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["FILE", "Width", "check_widths", "of_oracle", "read_bounds", "set_bounds"]

FILE = Path(__file__).parent / "widths.csv"

_FEWEST = 30
"""The minimum number of intervals for a mean width."""

_ROOM = 1.5
"""The bound, as a multiple of the measured width. It allows for chance in some hundred draws, not for a doubling."""

_HEAD = ("section", "row", "of", "measured", "most")


@dataclass(frozen=True)
class Width:
    """The mean width of a row's intervals, alone and as a multiple of an oracle's width.

    None if there are too few intervals; the multiple is also None if the statistic does not vary.
    """

    mean: float | None
    of_oracle: float | None

    @property
    def figure(self) -> tuple[str, float] | None:
        """The bounded value: the multiple, or else the width."""
        if self.of_oracle is not None:
            return "oracle's", self.of_oracle
        return None if self.mean is None else ("1", self.mean)


def of_oracle(width: float, given: int, values: Sequence[float]) -> Width:
    """Return a mean width, also as a multiple of an oracle's, which uses the deviation of `values` over all samples."""
    if given < _FEWEST:
        return Width(None, None)
    oracle = 2 * 1.96 * float(np.std(values))
    return Width(width, width / oracle if oracle > 1e-9 * max(1.0, abs(width)) else None)


@cache
def read_bounds() -> Mapping[tuple[str, str], tuple[str, float, float]]:
    """Return the bounds by section and row: the kind of value, the measured value, and the bound."""
    if not FILE.exists():
        return {}
    with FILE.open(encoding="utf-8", newline="") as file:
        return {
            (row["section"], row["row"]): (row["of"], float(row["measured"]), float(row["most"]))
            for row in csv.DictReader(file)
        }


def check_widths(section: str, widths: Mapping[str, Width]) -> list[str]:
    """Return a sentence for each row whose width exceeds its bound, or lacks one."""
    broken = []
    for row, width in widths.items():
        if width.figure is None:
            continue
        of, got = width.figure
        bound = read_bounds().get((section, row))
        if bound is None or bound[0] != of:
            broken.append(f"{row}: its width has no bound in {FILE.name}.")
        elif got > bound[2]:
            broken.append(f"{row}: a width of {got:.3g} times {of}; {bound[2]:.3g} is its bound.")
    return broken


def set_bounds(section: str, widths: Mapping[str, Width], *, keep: bool) -> None:
    """Write the bounds of these rows. With `keep`, existing bounds of the section stay."""
    mine = {
        (section, row): (width.figure[0], width.figure[1], _ROOM * width.figure[1])
        for row, width in widths.items()
        if width.figure is not None
    }
    old = {at: bound for at, bound in read_bounds().items() if keep or at[0] != section}
    both = mine | old if keep else old | mine
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_HEAD)
        for at, (of, measured, most) in sorted(both.items()):
            writer.writerow((*at, of, f"{measured:.4g}", f"{most:.4g}"))
    read_bounds.cache_clear()
