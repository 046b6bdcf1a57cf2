"""A picture of judged pairs: the winners, and the effect of the order of the answers. `drawing` has the style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.drawing import (
    AMBER,
    BLUE,
    CANDIDATE_CHARS,
    INK,
    MUTED,
    PALETTE,
    RULE,
    Lettering,
    blank,
    headline,
    png,
)
from dagster_llm_batch.metrics.pairwise import Pairwise

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_PAIRS", "pairwise_png"]

MAX_PAIRS = 20
"""Pairs in a picture; of more, the first are drawn."""

# of the bar: a number would not fit
_NARROW = 0.045


def pairwise_png(figures: Sequence[Pairwise]) -> bytes:
    """Draw one bar for each pair that was compared: rows that a wins, ties, inconsistent rows, rows that b wins.

    Raises ConfigError without a compared pair.
    """
    drawn = [pair for pair in figures if pair.n_judged + pair.n_identical][:MAX_PAIRS]
    if not drawn:
        raise ConfigError("No pair of candidates has rows that were judged: there is nothing to draw.")
    # inches
    row, top, below = 0.98, 1.2, 0.1
    height = top + row * len(drawn) + below
    figure, type_ = blank(height)
    axes = figure.add_axes((0.05, below / height, 0.9, row * len(drawn) / height))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(drawn), 0)
    for at, pair in enumerate(drawn):
        _bar(axes, type_, pair, at)
    x = 0.05
    for name, color, width in (
        ("left wins", BLUE, 0.15),
        ("tie or identical", RULE, 0.21),
        ("changes with the order", AMBER, 0.28),
        ("right wins", PALETTE[2], 0.15),
    ):
        type_.text(figure, x, 1 - 0.98 / height, "■", size=11, color=color, va="center")
        type_.text(figure, x + 0.025, 1 - 0.98 / height, name, size=9.5, color=MUTED, va="center")
        x += width
    headline(figure, type_, "Pairs of answers, judged in both orders", "rows; a win is a win in both orders", height)
    return png(figure)


def _bar(axes: Axes, type_: Lettering, pair: Pairwise, at: int) -> None:
    total, left, y = pair.n_judged + pair.n_identical, 0.0, at + 0.5
    for n, color, ink in (
        (pair.n_a_wins, BLUE, "white"),
        (pair.n_ties + pair.n_identical, RULE, INK),
        (pair.n_inconsistent, AMBER, "white"),
        (pair.n_b_wins, PALETTE[2], "white"),
    ):
        width = n / total
        axes.barh(y, width, left=left, height=0.32, color=color)
        if width >= _NARROW:
            type_.text(axes, left + width / 2, y, f"{n:,}", size=9.5, color=ink, ha="center", va="center_baseline")
        left += width
    type_.text(axes, 0, y - 0.27, type_.clean(pair.a, CANDIDATE_CHARS), size=10, va="center")
    type_.text(axes, 1, y - 0.27, type_.clean(pair.b, CANDIDATE_CHARS), size=10, ha="right", va="center")
    # as there are rows
    assert pair.win_rate_a is not None
    notes = [f"win rate, ties as half: {pair.win_rate_a:.0%} to {1 - pair.win_rate_a:.0%}"]
    notes += [f"verdicts for the answer shown first: {pair.first_rate:.0%}"] if pair.first_rate is not None else []
    notes += [f"not judged: {pair.n_unjudged:,}"] if pair.n_unjudged else []
    type_.text(axes, 0, y + 0.29, "; ".join(notes), size=8.5, color=MUTED, va="center")
