"""Pictures of labels against gold. `drawing` has the style."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.metrics.classification import Evaluation
from dagster_llm_batch.metrics.drawing import (
    AMBER,
    BLUE,
    CANDIDATE_CHARS,
    CLASS_CHARS,
    INK,
    MUTED,
    RULE,
    WIDTH_INCHES,
    Lettering,
    blank,
    headline,
    png,
)
from dagster_llm_batch.metrics.per_class import Confusion, class_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["MAX_DRAWN", "accuracy_png", "confusion_png"]

MAX_DRAWN = 16
"""Classes in a picture; the rarest of more are drawn as one row and column, "N others"."""

# shares of the width: the left edge of a matrix's cells, and their width
_LEFT, _CELLS = 0.21, 0.68


def confusion_png(matrix: Confusion) -> bytes:
    """Draw a confusion matrix. Rows are gold, columns predictions; color is the share of the gold class, numbers are
    rows; recall is at the right.

    Raises ConfigError for a matrix without classes.
    """
    if not matrix.classes:
        raise ConfigError(f"Candidate '{matrix.candidate}' and target '{matrix.target}' have no classes to draw.")
    groups = _groups(matrix)
    names, counts = _names(matrix, groups), _folded(matrix.counts, groups)
    n, longest = len(names), min(max(map(len, names)), CLASS_CHARS)
    slanted = n * longest > 60  # noqa: PLR2004  # side by side they would touch
    # inches around the cells
    top, bottom = 1.12, 0.5 + 0.055 * longest if slanted else 0.66
    cells = min(max(0.42, 0.8 - 0.06 * n) * n, 7.4)
    height = top + cells + bottom
    figure, type_ = blank(height)
    axes = figure.add_axes((_LEFT, bottom / height, _CELLS, cells / height))
    weighted = counts if matrix.effective is None else _folded(matrix.effective, groups)
    shares = [[count / (sum(row) or 1) for count in row] for row in weighted]
    # past 1: the darkest blue swallows its number
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    digits = max(len(_count(count, n)) for row in counts for count in row)
    # 72 points an inch
    size = max(6.5, min(13, _CELLS * WIDTH_INCHES / n * 72 / (0.95 * max(digits, 3))))
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            ink = "white" if shares[i][j] > 0.72 else INK if count else MUTED  # noqa: PLR2004  # where blue turns dark
            given = {"color": ink, "size": size, "weight": "bold" if i == j else "normal"}
            type_.text(axes, j, i, _count(count, n), ha="center", va="center_baseline", **given)
        # the others mixed up among themselves are not recalled
        is_class = i < n - 1 or n == len(matrix.classes)
        recall = f"{shares[i][i]:.0%}" if sum(row) and is_class else "-"
        type_.text(axes, 1.02, i, recall, size=10, va="center_baseline", transform=axes.get_yaxis_transform())
    above = 1 + 0.08 / cells
    type_.text(axes, 1.02, above, "recall", size=10, color=MUTED, transform=axes.transAxes)
    type_.text(axes, -0.012, above, "gold", size=10, color=MUTED, ha="right", transform=axes.transAxes)
    type_.text(figure, _LEFT + _CELLS / 2, 0.12 / height, "labeled as", size=10, color=MUTED, ha="center")

    tilt: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    shown = [type_.clean(name, CLASS_CHARS) for name in names]
    axes.set_xticks(range(n), shown, **type_.style(size=10, color=INK), **tilt)
    axes.set_yticks(range(n), shown, **type_.style(size=10, color=INK))
    axes.set_xticks([x - 0.5 for x in range(1, n)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, n)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)

    total, correct = sum(map(sum, matrix.counts)), sum(row[i] for i, row in enumerate(matrix.counts))
    title = (
        f"{type_.clean(matrix.candidate, CANDIDATE_CHARS)} against gold: {type_.clean(matrix.target, CANDIDATE_CHARS)}"
    )
    done = f"{correct:,} of {total:,} labeled rows are correct" if total else "no row has a label"
    weighing = "" if matrix.effective is None else ", rows weighted as they were drawn"
    headline(figure, type_, title, f"{done}; color: share of the gold class{weighing}", height)
    return png(figure)


def accuracy_png(evaluations: Sequence[Evaluation]) -> bytes:
    """Draw the accuracy of each candidate with its 95 % interval and the majority baseline; one panel a target.

    Numeric targets have no accuracy and are left out. Raises ConfigError if all are left out.
    """
    drawn = [evaluation for evaluation in evaluations if evaluation.kind == "categorical"]
    if not drawn:
        raise ConfigError("No categorical evaluation to draw: accuracy is not defined for numeric targets.")
    targets = list(dict.fromkeys(evaluation.target for evaluation in drawn))
    panels = [[evaluation for evaluation in drawn if evaluation.target == target] for target in targets]
    # inches for a candidate, and around a panel
    row, above, below = 0.52, 0.38, 0.4
    height = 1.08 + sum(above + row * len(panel) + below for panel in panels)
    figure, type_ = blank(height)
    top = height - 0.78
    for target, panel in zip(targets, panels, strict=True):
        top -= above + row * len(panel)
        axes = figure.add_axes((0.3, top / height, 0.64, row * len(panel) / height))
        _accuracy_panel(axes, type_, target, panel, named=len(targets) > 1)
        top -= below
    type_.text(figure, 0.62, 0.12 / height, "accuracy over labeled rows", size=10, color=MUTED, ha="center")
    title = (
        "Accuracy by candidate"
        if len(targets) > 1
        else f"{type_.clean(targets[0], CANDIDATE_CHARS)}: accuracy by candidate"
    )
    headline(figure, type_, title, "dot: accuracy; line: 95 % interval; dashed: always the majority class", height)
    return png(figure)


def _accuracy_panel(axes: Axes, type_: Lettering, target: str, panel: Sequence[Evaluation], *, named: bool) -> None:
    for y, evaluation in enumerate(panel):
        type_.text(
            axes, -0.02, y - 0.13, type_.clean(evaluation.candidate, CANDIDATE_CHARS), size=10, ha="right", va="center"
        )
        labeled = f"labeled {evaluation.n_labeled:,} of {evaluation.n_gold:,}"
        type_.text(axes, -0.02, y + 0.24, labeled, size=8.5, color=MUTED, ha="right", va="center")
        if evaluation.accuracy is None or evaluation.accuracy_low is None or evaluation.accuracy_high is None:
            type_.text(axes, 0.01, y, "no labels", size=10, color=MUTED, va="center")
            continue
        interval = [evaluation.accuracy_low, evaluation.accuracy_high]
        axes.plot(interval, [y, y], color=BLUE, linewidth=3, alpha=0.45, zorder=3, clip_on=False)
        axes.plot([evaluation.accuracy], [y], marker="o", markersize=8, color=BLUE, zorder=4, clip_on=False)
        right = evaluation.accuracy_high < 0.88  # noqa: PLR2004  # room for the number
        x = interval[1] + 0.018 if right else interval[0] - 0.018
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
        number = f"{evaluation.accuracy:.1%}"
        type_.text(axes, x, y, number, size=10.5, ha="left" if right else "right", va="center", bbox=box, zorder=5)
    baseline = panel[0].baseline_accuracy
    if baseline is not None:
        axes.axvline(baseline, color=AMBER, linewidth=1.4, linestyle=(0, (4, 3)), zorder=2)
        always = f"always {type_.clean(panel[0].baseline_class, CLASS_CHARS)}: {baseline:.1%}"
        left = baseline < 0.5  # noqa: PLR2004  # write toward the middle
        type_.text(axes, baseline, -0.56, always, size=9, color=AMBER, ha="left" if left else "right", va="bottom")
    axes.set(xlim=(0, 1), ylim=(len(panel) - 0.5, -0.5), yticks=[])
    percents = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set_xticks(percents, [f"{x:.0%}" for x in percents], **type_.style(size=9.5, color=MUTED))
    axes.grid(axis="x", color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.axhline(len(panel) - 0.5, color=RULE, linewidth=1.2)
    if named:
        type_.text(
            axes, -0.02, -0.56, type_.clean(target, CANDIDATE_CHARS), size=10, weight="bold", ha="right", va="bottom"
        )


def _groups(matrix: Confusion) -> list[list[int]]:
    """Return the classes that share a row and column: the rarest beyond MAX_DRAWN, which come last; else empty."""
    n, counts = len(matrix.classes), matrix.counts
    if n <= MAX_DRAWN:
        return [[i] for i in range(n)]
    size = [sum(counts[i]) + sum(row[i] for row in counts) for i in range(n)]
    kept = sorted(sorted(range(n), key=lambda i: (-size[i], i))[: MAX_DRAWN - 1])
    return [*([i] for i in kept), sorted(set(range(n)) - set(kept))]


def _names(matrix: Confusion, groups: Sequence[Sequence[int]]) -> list[str]:
    return [class_name(matrix.classes[group[0]]) if len(group) == 1 else f"{len(group)} others" for group in groups]


_Number = TypeVar("_Number", int, float)


def _folded(counts: Sequence[Sequence[_Number]], groups: Sequence[Sequence[int]]) -> list[list[_Number]]:
    return [[sum(counts[i][j] for i in rows for j in columns) for columns in groups] for rows in groups]


def _count(count: int, n_classes: int) -> str:
    """Exact in a small matrix; without separators, and in thousands from 10,000 on, where cells are narrow."""
    if count == 0:
        return "·"
    if n_classes <= 8:  # noqa: PLR2004  # cells of 0.68 inches
        return f"{count:,}"
    return str(count) if count < 10_000 else f"{count / 1000:.0f}k"  # noqa: PLR2004
