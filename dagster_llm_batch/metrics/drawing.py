"""The style of pictures: PNG bytes, 896 pixels wide, since the dialog of Dagster's UI cuts off wider ones.

Drawn through matplotlib's objects, never pyplot: no global state, no display, any thread. Texts come from rows, so they
are never read as mathtext, and long ones are shortened. The same input gives the same picture.
"""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, Literal

from dagster_llm_batch.metrics.schemas import evaluation_extra
from dagster_llm_batch.text import plain_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "AMBER",
    "BLUE",
    "CANDIDATE_CHARS",
    "CLASS_CHARS",
    "INK",
    "MUTED",
    "PALETTE",
    "RULE",
    "WIDTH_INCHES",
    "Lettering",
    "bare",
    "blank",
    "headline",
    "png",
    "round_step",
]

WIDTH_INCHES, _DPI = 8.0, 112
INK, MUTED, RULE = "#1f2933", "#616e7c", "#d3d9e0"
BLUE, AMBER = "#2563a6", "#b45309"
PALETTE = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a7f00")
"""Colors of series that color-blind people can tell apart too (after Okabe and Ito); merged series are MUTED."""
CANDIDATE_CHARS, CLASS_CHARS = 24, 16
"""Characters of a name that are drawn."""
_FONTS = ("DejaVu Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Arial Unicode MS", "Hiragino Sans", "Microsoft YaHei")


class Lettering:
    """The setting of text: never as math, in installed fonts, with a box for a character that all of them lack."""

    def __init__(self) -> None:
        from matplotlib import font_manager  # noqa: PLC0415  # optional dependency, checked by `blank`

        installed = {font.name: font.fname for font in font_manager.fontManager.ttflist}
        self._families = [family for family in _FONTS if family in installed]
        self._fonts = [font_manager.get_font(installed[family]) for family in self._families]

    def style(self, **given: Any) -> dict[str, Any]:
        return {"parse_math": False, "usetex": False, "fontfamily": self._families, **given}

    def text(self, on: Axes | Figure, x: float, y: float, content: str, **given: Any) -> None:
        on.text(x, y, content, **self.style(**{"color": INK, "clip_on": False, **given}))

    def clean(self, value: object, limit: int) -> str:
        """Shortened in the middle: names of candidates often differ at their ends only."""
        text = plain_text(value, limit=1000) or "(empty)"
        if len(text) > limit:
            text = f"{text[: limit // 2]}…{text[-(limit - limit // 2 - 1) :]}"
        return "".join(c if any(font.get_char_index(ord(c)) for font in self._fonts) else "□" for c in text)


def blank(height: float) -> tuple[Figure, Lettering]:
    """Return an empty picture of `height` inches, and how to write on it."""
    with evaluation_extra("Drawing an evaluation"):
        from matplotlib.figure import Figure  # noqa: PLC0415  # optional dependency
    return Figure(figsize=(WIDTH_INCHES, height), dpi=_DPI, facecolor="white"), Lettering()


def headline(figure: Figure, lettering: Lettering, title: str, subtitle: str, height: float) -> None:
    """Title and subtitle at the top, which take 0.78 inches."""
    lettering.text(figure, 0.03, 1 - 0.36 / height, title, size=13, weight="bold")
    lettering.text(figure, 0.03, 1 - 0.64 / height, subtitle, size=10, color=MUTED)


def bare(axes: Axes, *, grid: Literal["x", "y", "both"]) -> None:
    """Remove frame and ticks, and draw a light grid behind the data."""
    axes.grid(axis=grid, color=RULE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def png(figure: Figure) -> bytes:
    """Return the picture's bytes for storage, without time and version."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  # as above

    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})  # type: ignore[no-untyped-call]  # theirs is
    return buffer.getvalue()


def round_step(rough: float) -> float:
    """Return the distance of ticks: 1, 2 or 5 times a power of ten, at least `rough`."""
    power = 10.0 ** math.floor(math.log10(rough or 1.0))
    return next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
