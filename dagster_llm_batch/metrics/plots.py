"""Pictures to choose by: quality against cost, confidence against truth, agreement of labelers. `drawing` has the
style.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.agreement import LabelerPair
from dagster_llm_batch.metrics.calibration import Calibration
from dagster_llm_batch.metrics.cells import duration_text
from dagster_llm_batch.metrics.classification import Evaluation
from dagster_llm_batch.metrics.drawing import (
    AMBER,
    BLUE,
    CANDIDATE_CHARS,
    CLASS_CHARS,
    INK,
    MUTED,
    RULE,
    Lettering,
    bare,
    blank,
    headline,
    png,
    round_step,
)
from dagster_llm_batch.metrics.pareto import cost_per_1000_usd, quality
from dagster_llm_batch.text import money_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["agreement_png", "pareto_png", "reliability_png"]

MAX_LABELERS = 12
"""Labelers in a picture, those with the most labels in common with others."""

# times the cheapest: from there on a linear axis would press the cheap ones together
_LOG_FROM = 20


def pareto_png(evaluations: Sequence[Evaluation], target: str) -> bytes:
    """Draw each candidate on one target by quality (up is better) and cost of 1,000 rows; the front is blue.

    Candidates without a known cost are listed only. Raises ConfigError if all lack quality or cost.
    """
    listed = [evaluation for evaluation in evaluations if evaluation.target == target]
    drawn = [evaluation for evaluation in listed if evaluation.on_pareto_front is not None]
    if not drawn:
        raise ConfigError(f"Target '{target}' has no candidate with labels and a cost that is known in full.")
    is_numeric = listed[0].kind == "numeric"
    # inches
    plot, row = 3.6, 0.27
    # the axis, the list and a margin
    below = 0.95 + row * (len(listed) + 1)
    height = 0.95 + plot + below
    figure, type_ = blank(height)
    axes = figure.add_axes((0.1, below / height, 0.85, plot / height))
    costs = [float(cost_per_1000_usd(evaluation) or 0) for evaluation in drawn]
    heights = [quality(evaluation) or 0.0 for evaluation in drawn]
    positions = _cost_axis(axes, type_, costs)
    _quality_axis(axes, type_, heights, is_numeric=is_numeric)
    front = sorted(
        (x, y) for x, y, evaluation in zip(positions, heights, drawn, strict=True) if evaluation.on_pareto_front
    )
    axes.step(*zip(*front, strict=True), where="post", color=BLUE, linewidth=1.4, linestyle=(0, (4, 3)), zorder=2)
    marks: dict[tuple[float, float], list[int]] = {}
    for at, (x, y) in enumerate(zip(positions, heights, strict=True)):
        marks.setdefault((round(x, 6), round(y, 6)), []).append(at)
    for (x, y), marked in marks.items():
        on_front = drawn[marked[0]].on_pareto_front
        face, ink = (BLUE, "white") if on_front else ("white", MUTED)
        axes.plot(
            [x], [y], marker="o", markersize=17, color=face, markeredgecolor=BLUE if on_front else MUTED, zorder=3
        )
        numbers = ",".join(str(listed.index(drawn[at]) + 1) for at in marked)
        type_.text(axes, x, y, numbers, size=9.5, color=ink, ha="center", va="center_baseline", zorder=4)
    type_.text(figure, 0.525, (below - 0.5) / height, "USD for 1,000 rows", size=10, color=MUTED, ha="center")
    _candidates_list(figure, type_, listed, (below - 0.75 - row / 2) / height, row / height)
    measure = "mean absolute error" if is_numeric else "accuracy, rows without a label being wrong"
    title = f"{type_.clean(target, CANDIDATE_CHARS)}: quality against cost"
    headline(figure, type_, title, f"up: {measure}; blue: no other is as good for less", height)
    return png(figure)


def _candidates_list(figure: Figure, type_: Lettering, listed: Sequence[Evaluation], top: float, row: float) -> None:
    # shares of the width; numbers are right-aligned here
    columns = (0.05, 0.09, 0.47, 0.66, 0.83, 0.95)
    for x, name, ha in (
        (columns[1], "candidate", "left"),
        (columns[2], "quality", "right"),
        (columns[3], "USD / 1,000", "right"),
        (columns[4], "median wait", "right"),
        (columns[5], "front", "right"),
    ):
        type_.text(figure, x, top, name, size=9, color=MUTED, ha=ha, va="center")
    for at, evaluation in enumerate(listed):
        y, value, cost = top - row * (at + 1), quality(evaluation), cost_per_1000_usd(evaluation)
        reached = "-" if value is None else f"{value:.3f}" if evaluation.kind == "numeric" else f"{value:.1%}"
        cells = [
            (columns[0], str(at + 1), "left"),
            (columns[1], type_.clean(evaluation.candidate, 34), "left"),
            (columns[2], reached, "right"),
            (columns[3], "not known" if cost is None else money_text(cost), "right"),
            (columns[4], duration_text(evaluation.latency_p50_seconds), "right"),
            (
                columns[5],
                "-" if evaluation.on_pareto_front is None else "yes" if evaluation.on_pareto_front else "no",
                "right",
            ),
        ]
        for x, text, ha in cells:
            ink = BLUE if evaluation.on_pareto_front else INK
            type_.text(figure, x, y, text, size=9.5, color=ink, ha=ha, va="center")


def _cost_axis(axes: Axes, type_: Lettering, costs: Sequence[float]) -> list[float]:
    """Return the position of each cost. The axis is logarithmic for distant costs, with a separate place for 0."""
    paid = [cost for cost in costs if cost > 0]
    if not paid or max(paid) < _LOG_FROM * min(paid):
        top = (max(paid) if paid else 1.0) * 1.12
        step = round_step(top / 5)
        ticks = [step * i for i in range(int(top / step) + 1)]
        axes.set(xlim=(-0.04 * top, top))
        labels = [f"{tick:,.10f}".rstrip("0").rstrip(".") for tick in ticks]
        axes.set_xticks(ticks, labels, **type_.style(size=9.5, color=MUTED))
        return list(costs)
    low, high = math.floor(math.log10(min(paid))), math.ceil(math.log10(max(paid)))
    shown = {float(decade): f"{10.0**decade:,.{max(0, -decade)}f}" for decade in range(low, high + 1)}
    free = low - 0.7
    if len(paid) < len(costs):
        shown[free] = "0"
    axes.set(xlim=(min(shown) - 0.25, high + 0.1))
    axes.set_xticks(list(shown), list(shown.values()), **type_.style(size=9.5, color=MUTED))
    return [math.log10(cost) if cost > 0 else free for cost in costs]


def _quality_axis(axes: Axes, type_: Lettering, values: Sequence[float], *, is_numeric: bool) -> None:
    spread = max(max(values) - min(values), 0.1 * max(values) if is_numeric else 0.05)
    low, high = max(0.0, min(values) - 0.2 * spread), max(values) + 0.2 * spread
    if not is_numeric:
        high = min(high, 1.0 + 0.05 * spread)
    step = round_step((high - low) / 5)
    ticks = [step * i for i in range(math.ceil(low / step), int(high / step) + 1)]
    axes.set(ylim=(high, low) if is_numeric else (low, high))
    decimals = max(0, 2 - math.floor(math.log10(step)) - 3) if step < 1 else 0
    shown = [f"{tick:.{max(1, decimals)}f}" if is_numeric else f"{tick:.{max(0, decimals - 2)}%}" for tick in ticks]
    axes.set_yticks(ticks, shown, **type_.style(size=9.5, color=MUTED))
    bare(axes, grid="both")


def reliability_png(calibration: Calibration) -> bytes:
    """Draw the accuracy of the labels by their confidence, with the line of equality; below, the numbers of labels.

    Raises ConfigError if every label lacks a confidence.
    """
    if not calibration.n or calibration.ece is None or calibration.brier is None:
        raise ConfigError(f"Candidate '{calibration.candidate}' has no label with a confidence.")
    height, left, width = 6.4, 0.11, 0.84
    figure, type_ = blank(height)
    axes = figure.add_axes((left, 2.2 / height, width, 3.2 / height))
    counts = figure.add_axes((left, 0.72 / height, width, 1.1 / height))
    for bin_ in calibration.bins:
        middle, wide = (bin_.confidence_from + bin_.confidence_to) / 2, bin_.confidence_to - bin_.confidence_from
        counts.bar([middle], [bin_.n], width=wide * 0.92, color=RULE)
        if bin_.n:
            type_.text(counts, middle, bin_.n, f"{bin_.n:,}", size=8.5, color=MUTED, ha="center", va="bottom")
        if bin_.accuracy is None or bin_.mean_confidence is None:
            continue
        axes.bar([middle], [bin_.accuracy], width=wide * 0.92, color=BLUE, alpha=0.3)
        gap = sorted([bin_.accuracy, bin_.mean_confidence])
        axes.plot([bin_.mean_confidence] * 2, gap, color=AMBER, linewidth=1.6, zorder=3)
        axes.plot(
            [bin_.mean_confidence], [bin_.accuracy], marker="o", markersize=7, color=BLUE, zorder=4, clip_on=False
        )
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.2, linestyle=(0, (4, 3)), zorder=2)
    percents = [0, 0.2, 0.4, 0.6, 0.8, 1]
    shown = [f"{x:.0%}" for x in percents]
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xticks(percents, shown, **type_.style(size=9.5, color=MUTED))
    axes.set_yticks(percents, shown, **type_.style(size=9.5, color=MUTED))
    counts.set(xlim=(0, 1), ylim=(0, max(bin_.n for bin_ in calibration.bins) * 1.25), xticks=[], yticks=[])
    bare(axes, grid="both")
    # dots on the line do not touch the numbers
    axes.tick_params(axis="x", pad=9)
    bare(counts, grid="y")
    type_.text(figure, 0.012, 3.8 / height, "correct", size=10, color=MUTED, rotation=90, va="center")
    type_.text(figure, 0.012, 1.27 / height, "labels", size=10, color=MUTED, rotation=90, va="center")
    type_.text(figure, left + width / 2, 0.28 / height, "stated confidence", size=10, color=MUTED, ha="center")
    title = f"{type_.clean(calibration.candidate, CANDIDATE_CHARS)}, {type_.clean(calibration.target, CANDIDATE_CHARS)}"
    caption = f"expected calibration error {calibration.ece:.3f}, Brier score {calibration.brier:.3f}"
    headline(
        figure, type_, f"{title}: confidence and truth", f"{caption}; {calibration.n:,} labels; amber: the gap", height
    )
    return png(figure)


def agreement_png(pairs: Sequence[LabelerPair]) -> bytes:
    """Draw Cohen's kappa of each two labelers on one target; below it, how many rows both have labeled.

    Raises ConfigError without a pair.
    """
    if not pairs:
        raise ConfigError("There are no two labelers to draw.")
    common = dict.fromkeys(name for pair in pairs for name in (pair.a, pair.b))
    weight = {name: sum(pair.n_both for pair in pairs if name in (pair.a, pair.b)) for name in common}
    kept = set(sorted(common, key=lambda name: -weight[name])[:MAX_LABELERS])
    names = [name for name in common if name in kept]
    n = len(names)
    cells, top, bottom = min(0.75 * n, 6.6), 1.0, 1.3
    height = top + cells + bottom
    figure, type_ = blank(height)
    axes = figure.add_axes((0.24, bottom / height, 0.7, cells / height))
    grid = [[math.nan] * n for _ in names]
    size = max(7.0, min(12, 90 / n))
    for pair in pairs:
        if pair.a not in kept or pair.b not in kept:
            continue
        for i, j in ((names.index(pair.a), names.index(pair.b)), (names.index(pair.b), names.index(pair.a))):
            grid[i][j] = max(0.0, pair.kappa or 0.0)
            ink = "white" if grid[i][j] > 0.72 else INK  # noqa: PLR2004  # where blue turns dark
            text = "-" if pair.kappa is None else f"{pair.kappa:.2f}"
            type_.text(axes, j, i - 0.12, text, size=size, color=ink, ha="center", va="center_baseline")
            type_.text(axes, j, i + 0.26, f"{pair.n_both:,}", size=size * 0.7, color=ink, ha="center", va="center")
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    shown = [type_.clean(name, CLASS_CHARS) for name in names]
    axes.set_xticks(range(n), shown, **type_.style(size=10, color=INK), rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(n), shown, **type_.style(size=10, color=INK))
    axes.set_xticks([x - 0.5 for x in range(1, n)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, n)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    left_out = len(common) - n
    more = f"; {left_out} labelers with fewer labels are not drawn" if left_out else ""
    title = f"{type_.clean(pairs[0].target, CANDIDATE_CHARS)}: who agrees with whom"
    headline(figure, type_, title, f"Cohen's κ, and rows that both have labeled{more}", height)
    return png(figure)
