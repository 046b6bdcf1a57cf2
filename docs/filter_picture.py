# ruff: noqa: INP001 - a script
"""Draws docs/images/filters.png: `PYTHONPATH=. .venv/bin/python docs/filter_picture.py`.

From the simulation of docs/truth.md, with fewer tables of each kind.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.truth.filter_tables import Cell, Kind, measure_cell
from dagster_llm_batch.core.thresholds import choose_sample
from dagster_llm_batch.evaluation.builder import reduced
from dagster_llm_batch.metrics.drawing import AMBER, BLUE, MUTED, bare, blank, headline, png

ROWS, TABLES, SHARE, HEIGHT = 20_000, 60, 0.9, 4.6
YES = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5)
TIMES = (1, 4)
COLORS: dict[Kind, str] = {"recall": BLUE, "precision": AMBER}


def draw() -> bytes:
    figure, lettering = blank(HEIGHT)
    axes = figure.add_axes((0.1, 0.14, 0.6, 0.64))
    for kind, color in COLORS.items():
        for times in TIMES:
            sample = choose_sample(ROWS, SHARE, 0.95, times=times)
            asked = []
            for yes in YES:
                _, _, spared, _ = measure_cell(Cell(kind, SHARE, ROWS, int(yes * ROWS), sample, "informative"), TABLES)
                asked.append(1 - spared)
            line = {"color": color, "linewidth": 2.4, "linestyle": "solid" if times == 1 else (0, (3, 2))}
            axes.plot(YES, asked, **line)
            y = 0.95 - 0.1 * (list(COLORS).index(kind) * 2 + TIMES.index(times))
            axes.plot((1.03, 1.09), (y, y), transform=axes.transAxes, clip_on=False, **line)
            words = f"{kind}, {sample:,} sampled"
            lettering.text(axes, 1.11, y, words, size=9.5, color=color, va="center", transform=axes.transAxes)
    axes.set_xscale("log")
    axes.set_xlim(YES[0], YES[-1])
    axes.set_ylim(0, 1.04)
    ticks = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
    axes.set_xticks(ticks, [f"{100 * tick:g} %" for tick in ticks], **lettering.style(size=9.5, color=MUTED))
    axes.minorticks_off()
    shares = (0.0, 0.25, 0.5, 0.75, 1.0)
    axes.set_yticks(shares, [f"{share:.0%}" for share in shares], **lettering.style(size=9.5, color=MUTED))
    bare(axes, grid="y")
    lettering.text(figure, 0.1, 0.03, "share of rows that are yes", size=9.5, color=MUTED)
    what = f"share that the oracle answers of {ROWS:,} rows with informative scores, at {SHARE:.0%}"
    headline(figure, lettering, "What a filter asks the oracle", what, HEIGHT)
    return png(figure)


if __name__ == "__main__":
    (Path(__file__).parent / "images" / "filters.png").write_bytes(reduced(draw()))
