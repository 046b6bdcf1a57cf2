# ruff: noqa: INP001 - a script
"""Draws docs/images/older-labels.png and near-copies.png: `PYTHONPATH=. .venv/bin/python docs/audit_pictures.py`.

It computes the probabilities by the hypergeometric distribution, and simulates nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import hypergeom

from dagster_llm_batch.core.reuse import Near, Relabel
from dagster_llm_batch.core.thresholds import choose_sample, count_allowed, look_confidence
from dagster_llm_batch.evaluation.builder import reduced
from dagster_llm_batch.metrics.drawing import AMBER, BLUE, MUTED, bare, blank, headline, png

HEIGHT, SHARE = 4.6, 0.05


@dataclass(frozen=True)
class Picture:
    """One picture: its settings and words.

    With `is_saving`, it shows the mean share of rows that are not asked, otherwise the probability that none is.
    """

    settings: Near | Relabel
    rows: Sequence[int]
    of: str
    limit: str
    x: str
    title: str
    what: str
    is_saving: bool = False


PICTURES = {
    "older-labels": Picture(
        Relabel("topic", share=SHARE),
        (1_000, 10_000, 100_000),
        "rows",
        "the declared share",
        "share of older labels that the new definition would change",
        "How often older labels stay",
        f"probability that the sample allows it, at share={SHARE:g} and a confidence of 95 %",
    ),
    "near-copies": Picture(
        Near("text", "topic", error=SHARE),
        (300, 3_000, 30_000),
        "copies",
        "the allowed error",
        "share of near copies whose own answer differs from their leader's",
        "What near copies save",
        f"mean share of near copies that are not asked, at error={SHARE:g} and a confidence of 95 %",
        is_saving=True,
    ),
}


def draw(picture: Picture) -> bytes:
    settings, shares = picture.settings, np.linspace(0, 0.08, 81)
    confidence = look_confidence(settings.confidence, 1)
    figure, lettering = blank(HEIGHT)
    axes = figure.add_axes((0.1, 0.14, 0.86, 0.64))
    axes.axvline(SHARE, color=AMBER, linewidth=1.6)
    for place, rows in enumerate(picture.rows):
        sample = choose_sample(rows, settings.agreement, confidence)
        allowed = count_allowed(sample, rows, settings.agreement, confidence)
        passes = hypergeom.cdf(allowed, rows, np.round(shares * rows).astype(int), sample)
        line = {"color": BLUE, "linewidth": 1.4 + 0.8 * place, "alpha": 0.4 + 0.3 * place}
        axes.plot(shares, passes * (1 - sample / rows if picture.is_saving else 1), **line)
        y = 0.66 - 0.09 * place
        axes.plot((SHARE + 0.001, SHARE + 0.003), (y, y), **line)
        words = f"{rows:,} {picture.of}, {sample:,} sampled"
        lettering.text(axes, SHARE + 0.0035, y, words, size=9.5, color=BLUE, va="center")
    axes.set_xlim(shares[0], shares[-1])
    axes.set_ylim(0, 1.04)
    ticks = (0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08)
    axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks], **lettering.style(size=9.5, color=MUTED))
    chances = (0.0, 0.25, 0.5, 0.75, 1.0)
    axes.set_yticks(chances, [f"{chance:.0%}" for chance in chances], **lettering.style(size=9.5, color=MUTED))
    bare(axes, grid="y")
    lettering.text(axes, SHARE + 0.001, 0.94, picture.limit, size=9.5, color=AMBER, va="center")
    lettering.text(figure, 0.1, 0.03, picture.x, size=9.5, color=MUTED)
    headline(figure, lettering, picture.title, picture.what, HEIGHT)
    return png(figure)


if __name__ == "__main__":
    for name, picture in PICTURES.items():
        (Path(__file__).parent / "images" / f"{name}.png").write_bytes(reduced(draw(picture)))
