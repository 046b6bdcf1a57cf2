"""Rows to labels, for all services and shapes of rows and answers: package and floor take turns.

Each run is a separate process. `measure` yields a row of the table for each case; `table`, `facts` and `plot` show
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
"""The services with a floor. Others are compared with OpenAI's floor."""

_NAMES = {"package": "package", "floor": "floor", "other": "floor_fast"}
"""The clients' names on the page."""

# A case with at most this number of rows runs several times.
_OFTEN = 200_000

# Labeling takes longer than planning, so each labeled folder is planned this number of times.
_TIMES_AGAIN = 2


@dataclass(frozen=True)
class Case:
    """One row of the table, with the kind of rows (`benchmarks.inputs`) and the form of answers (`benchmarks.labels`).

    With `is_again`, answered rows are planned again, and the floor only reads them.
    """

    service: str
    shape: str
    rows: int
    kind: str = "plain"
    form: str = "label"
    is_again: bool = False


@dataclass(frozen=True)
class Measured:
    """The costs of a case, one Cost for each run, by client: `package`, `floor`, and `other` for another floor."""

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
"""Title, kind of rows, form of answers, and share of the usual rows."""

PLAIN, AGAIN = "1 KB", "planned again, unchanged"


def cases(services: Sequence[str], sizes: Sequence[int], rows: int, big: int | None) -> list[Case]:
    """Return all cases.

    Args:
        services: The services.
        sizes: The numbers of plain rows for services with a floor.
        rows: The number of rows for all other cases.
        big: A large number of rows for a few cases.
    """
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
    """Measure package and floor in turns, so that other load on the machine slows both."""
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
    """Return the cost of all rows; raise RuntimeError if a row has no label."""
    if cost.said["rows"] != case.rows:
        raise RuntimeError(f"{case}: {cost.said['rows']} of {case.rows} rows have a label")
    return cost


# output ---------------------------------------------------------------------------------------------------------------

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
    """Return the table as Markdown. Ratios are ratios of medians."""
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
    """Return sentences about the table: the cost of a further row, the speed by the clock, and the memory."""
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
    """Return a sentence about the cost of a further row, and the speed of the larger case by the clock."""
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
    """Draw a line for each case: the CPU for a row by package and floor, and their ratio."""
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
