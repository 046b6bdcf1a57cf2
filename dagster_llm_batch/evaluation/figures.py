"""Pictures of an evaluation, as PNG bytes: readable at 800 pixels, drawn at 1200.

Drawn through matplotlib's objects, never pyplot: no global state, no display, any thread. Texts come from rows, so
none is read as mathtext, and long ones are shortened. The same input gives the same picture.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dagster_llm_batch.errors import ConfigError
from dagster_llm_batch.evaluation._extra import evaluation_extra
from dagster_llm_batch.evaluation.confusion import Confusion, class_name
from dagster_llm_batch.evaluation.metrics import Evaluation
from dagster_llm_batch.evaluation.text import plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["MAX_DRAWN", "accuracy_png", "confusion_png"]

MAX_DRAWN = 16
"""Classes in a picture; the rarest of more are drawn as one row and column, "N others"."""

_WIDTH_INCHES, _DPI = 8.0, 150
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Arial Unicode MS", "Hiragino Sans", "Microsoft YaHei")
_INK, _MUTED, _RULE = "#1f2933", "#616e7c", "#d3d9e0"
_BLUE, _AMBER = "#2563a6", "#b45309"
_CANDIDATE, _CLASS, _TITLE = 26, 16, 44  # characters of a text that are drawn


def confusion_png(matrix: Confusion) -> bytes:
    """Rows are gold, columns predictions; color is the share of the gold class, numbers are rows; recall stands at
    the right.

    Raises ConfigError for a matrix without classes.
    """
    if not matrix.classes:
        raise ConfigError(f"Candidate '{matrix.candidate}' and target '{matrix.target}' have no classes to draw.")
    names, counts = _fold(matrix)
    n = len(names)
    height = min(1.9 + max(0.42, 0.8 - 0.06 * n) * n, 9.5)
    figure, type_ = _figure(height)
    axes = figure.add_axes((0.21, 1.15 / height, 0.68, 1 - 2.1 / height))
    shares = [[count / (sum(row) or 1) for count in row] for row in counts]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15, aspect="auto")  # past 1: the darkest blue swallows its number
    size = max(7.5, min(13, 15 - 0.45 * n))
    for i, row in enumerate(counts):
        for j, count in enumerate(row):
            ink = "white" if shares[i][j] > 0.6 else _INK if count else _MUTED  # noqa: PLR2004  # where blue turns dark
            weight = "bold" if i == j else "normal"
            type_.text(
                axes,
                j,
                i,
                f"{count:,}" if count else "·",
                color=ink,
                size=size,
                ha="center",
                va="center",
                weight=weight,
            )
        recall = f"{shares[i][i]:.0%}" if sum(row) else "-"
        type_.text(axes, n - 0.35, i, recall, size=size, va="center", color=_INK)
    type_.text(axes, n - 0.35, -0.62, "recall", size=10, va="bottom", color=_MUTED)

    slanted = (n > 4 and max(map(len, names)) > 5) or n * max(map(len, names)) > 70  # noqa: PLR2004  # they would touch
    tilt: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if slanted else {}
    axes.set_xticks(range(n), [type_.clean(name, _CLASS) for name in names], **type_.style(size=10, color=_INK), **tilt)
    axes.set_yticks(range(n), [type_.clean(name, _CLASS) for name in names], **type_.style(size=10, color=_INK))
    axes.set_xticks([x - 0.5 for x in range(1, n)], minor=True)
    axes.set_yticks([y - 0.5 for y in range(1, n)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    type_.text(figure, 0.55, 0.12 / height, "labeled as", size=10.5, color=_MUTED, ha="center")
    axes.set_ylabel("gold", **type_.style(size=10.5, color=_MUTED), labelpad=8)

    total, correct = sum(map(sum, counts)), sum(matrix.counts[i][i] for i in range(len(matrix.classes)))
    title = f"{type_.clean(matrix.target, _TITLE)}: gold and what {type_.clean(matrix.candidate, _CANDIDATE)} said"
    done = f"{correct:,} of {total:,} labeled rows are correct" if total else "no row has a label"
    _headline(figure, type_, title, f"{done}; color: share of the gold class", height)
    return _png(figure)


def accuracy_png(evaluations: Sequence[Evaluation]) -> bytes:
    """Accuracy of each candidate with its 95 % interval beside the majority baseline; one panel a target.

    Numeric targets have no accuracy and are left out. Raises ConfigError if nothing is left.
    """
    drawn = [evaluation for evaluation in evaluations if evaluation.kind == "categorical"]
    if not drawn:
        raise ConfigError("No categorical evaluation to draw: accuracy is not defined for numeric targets.")
    targets = list(dict.fromkeys(evaluation.target for evaluation in drawn))
    panels = [[evaluation for evaluation in drawn if evaluation.target == target] for target in targets]
    row, gap = 0.52, 1.0  # inches for a candidate, and around a panel
    height = 1.15 + sum(row * len(panel) + gap for panel in panels)
    figure, type_ = _figure(height)
    top = height - 0.95
    for target, panel in zip(targets, panels, strict=True):
        top -= 0.35 + row * len(panel)
        axes = figure.add_axes((0.27, top / height, 0.66, row * len(panel) / height))
        _accuracy_panel(axes, type_, target, panel, named=len(targets) > 1)
        top -= gap - 0.35
    type_.text(figure, 0.60, 0.14 / height, "accuracy over labeled rows", size=10.5, color=_MUTED, ha="center")
    title = "Accuracy by candidate" if len(targets) > 1 else f"{type_.clean(targets[0], _TITLE)}: accuracy by candidate"
    _headline(
        figure, type_, title, "dot: accuracy; line: 95 % interval (Wilson); dashed: always the majority class", height
    )
    return _png(figure)


def _accuracy_panel(axes: Axes, type_: _Type, target: str, panel: Sequence[Evaluation], *, named: bool) -> None:
    for y, evaluation in enumerate(panel):
        type_.text(
            axes, -0.02, y - 0.13, type_.clean(evaluation.candidate, _CANDIDATE), size=11, ha="right", va="center"
        )
        labeled = f"labeled {evaluation.n_labeled:,} of {evaluation.n_gold:,}"
        type_.text(axes, -0.02, y + 0.24, labeled, size=8.5, color=_MUTED, ha="right", va="center")
        if evaluation.accuracy is None or evaluation.accuracy_low is None or evaluation.accuracy_high is None:
            type_.text(axes, 0.01, y, "no labels", size=10, color=_MUTED, va="center")
            continue
        interval = [evaluation.accuracy_low, evaluation.accuracy_high]
        axes.plot(interval, [y, y], color=_BLUE, linewidth=3, alpha=0.45, solid_capstyle="round", zorder=3)
        axes.plot([evaluation.accuracy], [y], marker="o", markersize=8, color=_BLUE, zorder=4)
        right = evaluation.accuracy_high < 0.88  # noqa: PLR2004  # room for the number
        x = interval[1] + 0.018 if right else interval[0] - 0.018
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
        number = f"{evaluation.accuracy:.1%}"
        type_.text(axes, x, y, number, size=10.5, ha="left" if right else "right", va="center", bbox=box, zorder=5)
    baseline = panel[0].baseline_accuracy
    if baseline is not None:
        axes.axvline(baseline, color=_AMBER, linewidth=1.4, linestyle=(0, (4, 3)), zorder=2)
        always = f"always {type_.clean(panel[0].baseline_class, _CLASS)}: {baseline:.1%}"
        left = baseline < 0.5  # noqa: PLR2004  # write toward the middle
        type_.text(axes, baseline, -0.56, always, size=9, color=_AMBER, ha="left" if left else "right", va="bottom")
    axes.set(xlim=(0, 1), ylim=(len(panel) - 0.5, -0.5), yticks=[])
    percents = [0, 0.2, 0.4, 0.6, 0.8, 1]
    axes.set_xticks(percents, [f"{x:.0%}" for x in percents], **type_.style(size=9.5, color=_MUTED))
    axes.grid(axis="x", color=_RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.axhline(len(panel) - 0.5, color=_RULE, linewidth=1.2)
    if named:
        type_.text(axes, -0.02, -0.56, type_.clean(target, _CANDIDATE), size=11, weight="bold", ha="right", va="bottom")


def _fold(matrix: Confusion) -> tuple[list[str], list[list[int]]]:
    """Names and counts of at most MAX_DRAWN classes, the most frequent ones in their order, then the sum of the
    others.
    """
    names, counts = [class_name(value) for value in matrix.classes], [list(row) for row in matrix.counts]
    if len(names) <= MAX_DRAWN:
        return names, counts
    weight = [sum(counts[i]) + sum(row[i] for row in counts) for i in range(len(names))]
    kept = sorted(sorted(range(len(names)), key=lambda i: (-weight[i], i))[: MAX_DRAWN - 1])
    others = sorted(set(range(len(names))) - set(kept))
    groups = [*([i] for i in kept), others]
    folded = [[sum(counts[i][j] for i in rows for j in columns) for columns in groups] for rows in groups]
    return [*(names[i] for i in kept), f"{len(others)} others"], folded


class _Type:
    """How text is set: never as math, in fonts that are installed, a box for a character that none of them has."""

    def __init__(self) -> None:
        from matplotlib import font_manager  # noqa: PLC0415  # optional dependency, checked by _figure

        installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
        self._families = [family for family in _FONTS if family in installed]
        self._fonts = [font_manager.get_font(installed[family]) for family in self._families]

    def style(self, **given: Any) -> dict[str, Any]:
        return {"parse_math": False, "usetex": False, "fontfamily": self._families, **given}

    def text(self, on: Axes | Figure, x: float, y: float, content: str, **given: Any) -> None:
        on.text(x, y, content, **self.style(**{"color": _INK, "clip_on": False, **given}))

    def clean(self, value: object, limit: int) -> str:
        text = plain_text(value, limit) or "(empty)"
        return "".join(c if any(font.get_char_index(ord(c)) for font in self._fonts) else "□" for c in text)


def _figure(height: float) -> tuple[Figure, _Type]:
    with evaluation_extra("Drawing an evaluation"):
        from matplotlib.figure import Figure  # noqa: PLC0415  # optional dependency
    return Figure(figsize=(_WIDTH_INCHES, height), dpi=_DPI, facecolor="white"), _Type()


def _headline(figure: Figure, type_: _Type, title: str, subtitle: str, height: float) -> None:
    type_.text(figure, 0.03, 1 - 0.36 / height, title, size=14, weight="bold")
    type_.text(figure, 0.03, 1 - 0.64 / height, subtitle, size=10, color=_MUTED)


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # as above

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]  # theirs is
    return buffer.getvalue()
