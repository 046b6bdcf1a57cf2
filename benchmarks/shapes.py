"""Rows to labels, for all services and shapes of rows and answers: the package beside the floor, in turns.

Each run is a process of its own. `measure` yields a row of the table for each case; `table`, `facts` and `plot` show
them.
"""

from __future__ import annotations

import json
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import other_floor
from benchmarks.inputs import rows_file
from benchmarks.labels import EMBEDDING
from benchmarks.measure import Cost, child, mock

FLOORS = ("openai", "anthropic")
"""Services that the floor knows. Others are beside the floor of OpenAI."""

_NAMES = {"package": "package", "floor": "floor", "other": "floor_fast"}
"""How the page calls those who label the rows."""

# Up to so many rows a case is run often.
_OFTEN = 200_000

# Labeling is long, planning short: each labeled folder is planned so often.
_TIMES_AGAIN = 2


@dataclass(frozen=True)
class Case:
    """One row of the table. `kind`: of rows (`benchmarks.inputs`); `form`: of answers (`benchmarks.labels`).

    `is_again`: what is measured is that rows which are answered are planned again; the floor then only reads them.
    """

    service: str
    shape: str
    rows: int
    kind: str = "plain"
    form: str = "label"
    is_again: bool = False


@dataclass(frozen=True)
class Measured:
    """What a case took, by who did it: `package`, `floor`, and `other` where there is another floor; one Cost a run."""

    case: Case
    costs: dict[str, list[Cost]] = field(default_factory=lambda: defaultdict(list))

    def middle(self, who: str, what: str) -> float:
        """Return the median of an attribute of Cost over the runs."""
        return float(median(getattr(cost, what) for cost in self.costs[who]))

    def each_us(self, who: str) -> float:
        """Return the CPU of a row without imports, in microseconds."""
        return self.middle(who, "work_cpu_s") / self.case.rows * 1e6

    def ratio(self, what: str, floor: str = "floor") -> float:
        """Return the package's median as a multiple of a floor's."""
        return self.middle("package", what) / self.middle(floor, what)


_SHAPES = (
    ("long texts, 20 KB", "long", "label", 0.1),
    ("text beyond ASCII", "foreign", "label", 1),
    ("wide, 20 columns", "wide", "label", 1),
    ("nested replies", "plain", "nested", 1),
    ("a choice of 50", "plain", "choice", 1),
    ("embeddings, 1,536", "plain", EMBEDDING, 0.1),
    ("80 % duplicates", "repeated", "label", 1),
)
"""Title, kind of rows, form of answers, and how many of the usual rows."""

PLAIN, AGAIN = "1 KB", "planned again, unchanged"


def cases(services: Sequence[str], sizes: Sequence[int], rows: int, big: int | None) -> list[Case]:
    """Return all cases. `sizes`: of plain rows of services with a floor; `rows`: of all else; `big`: of few."""
    found = []
    for service in services:
        mine = sorted({*sizes, *([] if big is None else [big])}) if service in FLOORS else [rows]
        found += [Case(service, PLAIN, size) for size in mine]
    if "openai" in services:
        for title, kind, form, share in _SHAPES:
            found.append(Case("openai", title, max(1, int(rows * share)), kind, form))
        found += [Case("openai", AGAIN, size, is_again=True) for size in (rows, big) if size is not None]
    return found


def measure(some: Iterable[Case], runs: int, big_runs: int, inputs: Path, others: Path | None) -> Iterator[Measured]:
    """Have package and floor take turns, so that what slows the machine slows both."""
    for case in some:
        path = rows_file(inputs, case.rows, case.kind)
        measured = Measured(case)
        with tempfile.TemporaryDirectory() as name, mock(case.service, case.form) as addresses:
            folder = Path(name)
            theirs = None
            if others is not None and not case.is_again:
                theirs = other_floor.command(others, folder / "other", path, case.rows, case.kind, case.form)
            for _ in range(big_runs if case.rows > _OFTEN else runs):
                turn = _turn_again if case.is_again else _turn
                for who, cost in turn(case, path, addresses, theirs):
                    measured.costs[who].append(cost)
        yield measured


def _turn(
    case: Case, path: Path, addresses: dict[str, str], theirs: Sequence[str] | None
) -> Iterator[tuple[str, Cost]]:
    with tempfile.TemporaryDirectory() as folder:
        service = case.service if case.service in FLOORS else "openai"
        yield "floor", _whole(case, child("benchmarks.floor", service, path, addresses["url"], folder, case.form))
    if theirs is not None:
        with tempfile.TemporaryDirectory() as folder:
            asked = ("--base", addresses["url"], "--out", folder)
            yield "other", child("benchmarks.other_floor", *theirs, *asked)
    with tempfile.TemporaryDirectory() as folder:
        where = (path, folder, json.dumps(addresses), "{}", case.form)
        yield "package", _whole(case, child("benchmarks.package", case.service, *where))


def _turn_again(case: Case, path: Path, addresses: dict[str, str], _: Any) -> Iterator[tuple[str, Cost]]:
    with tempfile.TemporaryDirectory() as folder:
        where = (folder, json.dumps(addresses))
        child("benchmarks.package", case.service, path, *where)
        for _ in range(_TIMES_AGAIN):
            yield "floor", _whole(case, child("benchmarks.replan", path))
            yield "package", _whole(case, child("benchmarks.replan", path, *where))


def _whole(case: Case, cost: Cost) -> Cost:
    """Return the cost of all rows; raise RuntimeError where one has no label."""
    if cost.said["rows"] != case.rows:
        raise RuntimeError(f"{case}: {cost.said['rows']} of {case.rows} rows have a label")
    return cost


# how it is shown ------------------------------------------------------------------------------------------------------

_TITLES = ("CPU s", "µs a row", "Process, CPU s", "Peak MB")


def _figures(row: Measured, who: str) -> list[str]:
    """Return the cells of _TITLES."""
    return [
        f"{row.middle(who, 'work_cpu_s'):.2f}",
        f"{row.each_us(who):.1f}",
        f"{row.middle(who, 'cpu_s'):.2f}",
        f"{row.middle(who, 'peak_mb'):.0f}",
    ]


def table(rows: Sequence[Measured]) -> str:
    """As Markdown. Ratios are those of the medians."""
    floors = [who for who in ("floor", "other") if any(who in row.costs for row in rows)]
    titles = ["Service", "Shape", "Rows", *_TITLES]
    for name in (_NAMES[who] for who in floors):
        titles += [f"{name}: {title}" for title in _TITLES]
        titles += [f"Times {name}", f"Process, times {name}"]
    lines = [f"| {' | '.join(titles)} |", "| --- | --- |" + " ---: |" * (len(titles) - 2)]
    for row in rows:
        cells = [row.case.service, row.case.shape, f"{row.case.rows:,}", *_figures(row, "package")]
        for who in floors:
            if who in row.costs:
                ratios = (f"{row.ratio(what, who):.2f}" for what in ("work_cpu_s", "cpu_s"))
                cells += [*_figures(row, who), *ratios]
            else:
                cells += [""] * (len(_TITLES) + 2)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def facts(rows: Sequence[Measured]) -> str:
    """Return what the table says, in sentences: of a row more, of the clock, of memory."""
    told = []
    for service in FLOORS:
        plain = [row for row in rows if row.case.service == service and row.case.shape == PLAIN]
        if len(plain) > 1:
            told.append(_more_rows(*plain[-2:]))
    high = max(rows, key=lambda row: row.middle("package", "peak_mb"))
    told.append(
        f"The most memory in this table is {high.middle('package', 'peak_mb'):.0f} MB "
        f"({high.case.service}, {high.case.shape}, {high.case.rows:,} rows)."
    )
    return "\n\n".join(textwrap.fill(one, 120) for one in told)


def _more_rows(less: Measured, most: Measured) -> str:
    """Say what a row more takes, and how fast most rows went by the clock."""
    more_rows = most.case.rows - less.case.rows
    more = {
        who: (most.middle(who, "work_cpu_s") - less.middle(who, "work_cpu_s")) / more_rows * 1e6
        for who in most.costs.keys() & less.costs.keys()
    }
    ratios = [
        f"{more['package'] / more[who]:.2f} times the {more[who]:.1f} µs of {name}"
        for who, name in (("floor", "the floor"), ("other", "floor_fast"))
        if more.get(who, 0) > 0
    ]
    clock = most.case.rows / most.middle("package", "wall_s")
    return (
        f"From {less.case.rows:,} to {most.case.rows:,} rows of {most.case.service}, a row more takes "
        f"{more['package']:.1f} µs of CPU: {' and '.join(ratios)}. By the clock {most.case.rows:,} rows go at "
        f"{clock:,.0f} a second, on cores that the mock shares."
    )


def plot(rows: Sequence[Measured], to: Path) -> None:
    """Draw CPU a row, of package and floor, and beside it how many times the floor that is; a line a case."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    names = [f"{row.case.service}, {row.case.shape}, {row.case.rows:,}" for row in rows]
    places = list(range(len(rows)))
    height = 1.2 + 0.26 * len(rows)
    figure, (each, times) = plt.subplots(1, 2, figsize=(10, height), layout="constrained", sharey=True)
    for place, row in zip(places, rows, strict=True):
        ends = [row.each_us(who) for who in ("floor", "package")]
        each.plot(ends, [place, place], color="0.8", zorder=1)
    for who, color in (("package", "C0"), ("floor", "C1"), ("other", "C2")):
        mine = [(place, row) for place, row in zip(places, rows, strict=True) if who in row.costs]
        if not mine:
            continue
        figures = [row.each_us(who) for _, row in mine]
        each.scatter(figures, [place for place, _ in mine], color=color, label=_NAMES[who], s=28, zorder=2)
    for what, title, color, shift in (("work_cpu_s", "work", "C0", -0.2), ("cpu_s", "whole process", "C4", 0.2)):
        times.barh([p + shift for p in places], [row.ratio(what) for row in rows], 0.38, color=color, label=title)
    times.axvline(1, color="0.4", linewidth=1)
    each.set(xscale="log", xlabel="CPU, µs a row, without imports", yticks=places, yticklabels=names)
    each.invert_yaxis()
    times.set(xlabel="times the floor")
    for axes in (each, times):
        axes.grid(alpha=0.3, axis="x")
        axes.legend(fontsize=8)
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=110)
    plt.close(figure)
