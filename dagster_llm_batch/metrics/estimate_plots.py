"""A picture of the estimates for a table from labels alone, gold alone, and both together. `drawing` has the style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.drawing import (
    AMBER,
    BLUE,
    CANDIDATE_CHARS,
    MUTED,
    WIDTH_INCHES,
    Lettering,
    bare,
    blank,
    headline,
    png,
    round_step,
)
from dagster_llm_batch.metrics.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_ESTIMATES", "estimates_png"]

MAX_ESTIMATES = 24
"""Figures in a picture; of more, the first are drawn."""

_LEFT, _WIDTH = 0.27, 0.68


def estimates_png(estimates: Sequence[Estimate]) -> bytes:
    """Draw each figure: a cross for the labels alone, a line for gold alone, and a thick one for both together.

    Raises ConfigError if gold has information on none of the figures.
    """
    drawn = [one for one in estimates if one.gold_only is not None][:MAX_ESTIMATES]
    if not drawn:
        raise ConfigError("No figure has gold: there is nothing to draw.")
    # inches
    row, top, below = 0.5, 1.2, 0.5
    height = top + row * len(drawn) + below
    figure, type_ = blank(height)
    axes = figure.add_axes((_LEFT, below / height, _WIDTH, row * len(drawn) / height))
    for y, one in enumerate(drawn):
        _row(axes, type_, one, y)
    axes.set_ylim(len(drawn) - 0.5, -0.5)
    axes.set_yticks([])
    low, high = axes.get_xlim()
    step = round_step((high - low) / 6)
    ticks = [step * at for at in range(int(low / step) - 1, int(high / step) + 2) if low <= step * at <= high]
    axes.set_xticks(ticks, [f"{tick:.6g}" for tick in ticks], **type_.style(size=9.5, color=MUTED))
    bare(axes, grid="x")
    x = _LEFT
    for mark, name, color in (("✕", "labels alone", MUTED), ("━", "gold alone", AMBER), ("━", "both", BLUE)):
        type_.text(figure, x, 1 - 0.98 / height, mark, size=10, color=color, va="center")
        type_.text(figure, x + 0.03, 1 - 0.98 / height, name, size=9.5, color=MUTED, va="center")
        x += 1.55 / WIDTH_INCHES
    named = f"{type_.clean(drawn[0].target, CANDIDATE_CHARS)}, by {type_.clean(drawn[0].candidate, CANDIDATE_CHARS)}"
    left_out = len([one for one in estimates if one.gold_only is not None]) - len(drawn)
    more = f"; {left_out} more are not drawn" if left_out else ""
    headline(figure, type_, f"{named}: all rows, corrected by gold", f"lines: 95 % intervals{more}", height)
    return png(figure)


def _row(axes: Axes, type_: Lettering, one: Estimate, y: int) -> None:
    what = one.figure if one.label is None else one.label
    name = what if one.group is None else f"{what}, {one.group}"
    size = {"size": 10, "ha": "right", "va": "center", "transform": axes.get_yaxis_transform()}
    type_.text(axes, -0.02, y - 0.12, type_.clean(name, CANDIDATE_CHARS), **size)
    rows = f"gold: {one.n_gold:,} of {one.n_rows:,}"
    type_.text(axes, -0.02, y + 0.24, rows, **{**size, "size": 8.5, "color": MUTED})
    for value, low, high, at, color, wide in (
        (one.gold_only, one.gold_only_low, one.gold_only_high, y + 0.14, AMBER, 1.6),
        (one.powered, one.powered_low, one.powered_high, y - 0.14, BLUE, 3.2),
    ):
        if value is None:
            continue
        if low is not None and high is not None:
            axes.plot([low, high], [at, at], color=color, linewidth=wide, solid_capstyle="butt", zorder=2)
        axes.plot([value], [at], marker="o", markersize=5, color=color, zorder=3)
    if one.naive is not None:
        axes.plot([one.naive], [y], marker="x", markersize=7, color=MUTED, zorder=4)
