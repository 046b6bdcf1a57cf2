"""When enough rows are labeled: tests for the requested half-width once a round, at a valid level. Pure.

An interval of 95 % that is checked again and again, until it is narrow enough, misses more often than in 5 %: labeling
stops when the rows happen to look more alike than they are. So the rounds of labeling share the 5 % (alpha spending):
the first has a sixteenth of it, the second three quarters, the third three parts of 32, and each further one half of
the one before, which is all of it. The interval of a round uses its share. Whenever labeling stops, at most 5 % of all
lives have an interval that misses (union bound). The shares are fixed before any label is seen.

The second round has the most since most lives end with it: the first is a pilot, whose interval determines the size of
the second. Few, growing rounds cost less than many small ones.

docs/truth.md simulates such lives: how often the last interval misses, and how many rows were labeled.
"""

from __future__ import annotations

import math

from dagster_llm_batch.metrics.intervals import CONFIDENCE
from dagster_llm_batch.metrics.schemas import evaluation_extra
from dagster_llm_batch.metrics.sequential_tests import ALPHA

__all__ = ["more_rows", "next_size", "round_level", "unseen_part", "widening"]

_EXTRA = 1.2
"""So many times the forecast: it may be too low as well as too high, and another round costs more than some rows."""
_UNSEEN = 1.3
"""The interval of a count of events is wider by about so many than their variance makes it."""
_MOST_GROWTH = 10
"""A round is at most this many times the rows labeled before: the forecast of a small pilot may be far off."""


def round_level(number: int) -> float:
    """Return how often the interval after a round, from 1, may miss. All rounds together have ALPHA."""
    return ALPHA * {1: 1 / 16, 2: 3 / 4}.get(number, 3 * 2.0 ** -(number + 2))


def widening(number: int) -> float:
    """Return the factor by which the interval of a round is wider than a 95 % interval."""
    with evaluation_extra("A stopping rule"):
        from scipy.special import ndtri  # noqa: PLC0415  # optional dependency
    return float(ndtri(1 - round_level(number) / 2) / ndtri((1 + CONFIDENCE) / 2))


def unseen_part(n_least: float) -> float:
    """Return the part of the square of a half-width that allows for rows unlike all that were seen (`likelihood`).

    It falls with the square of the rows, and is most of the width of a small round. `n_least`: see `SampledRows`.
    """
    return (_UNSEEN / n_least) ** 2


def more_rows(
    n: int,
    n_rows: int,
    half_width: float | None,
    wanted: float,
    next_round: int,
    sample_size: int,
    unseen: float = 0.0,
) -> int:
    """Forecast how many more rows people must label until the interval is as narrow as requested.

    Args:
        n: Rows that are labeled.
        n_rows: Rows in the table.
        half_width: Half-width of the interval of 95 %; None if there is none yet.
        wanted: Requested half-width, after all rounds.
        next_round: Number of the round in which they will be labeled.
        sample_size: Rows of a round before any label is known.
        unseen: From `unseen_part`, if rows are weighted.
    """
    left = n_rows - n
    if half_width is None or n == 0:
        return max(0, min(left, max(n, sample_size)))
    if left <= 0:
        return 0
    square, aim = half_width**2, (wanted / widening(next_round)) ** 2
    unseen = min(unseen, 0.9 * square)
    seen = square - unseen
    # The factor by which 1 / rows must fall: seen * part + unseen * part^2 = aim. The forecast makes no use of a large
    # known part of the table: figures of labels are for rows like these, in any number.
    part = 2 * aim / (seen + math.sqrt(seen**2 + 4 * unseen * aim)) if square else 1.0
    return max(1, min(left, math.ceil((n / part - n) * _EXTRA)))


def next_size(n: int, more: int) -> int:
    """Return how many of the rows that are forecast go into the next round."""
    return min(more, _MOST_GROWTH * n) if n else more
