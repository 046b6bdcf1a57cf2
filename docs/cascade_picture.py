# ruff: noqa: INP001 - a script
"""Draws docs/images/cascade-cost.png: `PYTHONPATH=. .venv/bin/python docs/cascade_picture.py`.

From the simulation of docs/truth.md, with fewer tables of each kind.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.truth.dollars import POPULATIONS, ROWS, Cell, measure_cell
from dagster_llm_batch.evaluation.builder import reduced
from dagster_llm_batch.metrics.drawing import AMBER, BLUE, MUTED, bare, blank, headline, png

AGREEMENTS = (0.8, 0.85, 0.875, 0.9, 0.925, 0.95, 0.965, 0.98, 0.99)
TABLES, HEIGHT, CHEAP = 60, 4.6, 0.1


def draw() -> bytes:
    found = [
        [measure_cell(Cell(kind, promised), TABLES).cascade_asked for kind in POPULATIONS] for promised in AGREEMENTS
    ]
    costs = CHEAP + np.array(found)
    figure, lettering = blank(HEIGHT)
    axes = figure.add_axes((0.1, 0.14, 0.66, 0.64))
    axes.fill_between(AGREEMENTS, costs.min(axis=1), costs.max(axis=1), color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(AGREEMENTS, costs.mean(axis=1), color=BLUE, linewidth=2.4)
    axes.axhline(1, color=AMBER, linewidth=1.6)
    axes.axhline(CHEAP, color=MUTED, linewidth=1.6, linestyle=(0, (4, 3)))
    axes.set_xlim(AGREEMENTS[0], AGREEMENTS[-1])
    axes.set_ylim(0, 1.2)
    ticks = (0.8, 0.85, 0.9, 0.95, 0.98)
    axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks], **lettering.style(size=9.5, color=MUTED))
    dollars = (0.0, 0.25, 0.5, 0.75, 1.0)
    axes.set_yticks(dollars, [f"${dollar:.2f}" for dollar in dollars], **lettering.style(size=9.5, color=MUTED))
    bare(axes, grid="y")
    names = (
        (1, "the oracle alone", AMBER),
        (float(costs.mean(axis=1)[-1]) - 0.12, "the cascade, mean of", BLUE),
        (float(costs.mean(axis=1)[-1]) - 0.19, "seven kinds of scores", BLUE),
        (CHEAP, "the cheap model alone:", MUTED),
        (CHEAP - 0.07, "nothing is promised", MUTED),
    )
    for y, name, color in names:
        lettering.text(axes, AGREEMENTS[-1] + 0.004, y, name, size=9.5, color=color, va="center")
    lettering.text(
        figure, 0.1, 0.03, "share of labels that are the oracle's, promised with 95 % confidence", size=9.5, color=MUTED
    )
    title = "What a guarantee costs"
    what = f"1,000 labels of a table of {ROWS:,}; the cheap model at a tenth of the price; band: best to worst scores"
    headline(figure, lettering, title, what, HEIGHT)
    return png(figure)


if __name__ == "__main__":
    (Path(__file__).parent / "images" / "cascade-cost.png").write_bytes(reduced(draw()))
