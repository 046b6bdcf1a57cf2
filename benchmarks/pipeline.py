"""Rows to labels: the package beside the floor, each in a process of its own, by number of rows and service."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.again import Again
from benchmarks.inputs import rows_file
from benchmarks.measure import Cost, child, mock

FLOORS = ("openai", "anthropic")


@dataclass(frozen=True)
class Row:
    """The medians of some runs; `floor` is None where there is none for the service."""

    service: str
    rows: int
    package: Cost
    floor: Cost | None

    @property
    def ratio(self) -> float | None:
        return None if self.floor is None else self.package.work_cpu_s / self.floor.work_cpu_s


def measure(services: Sequence[str], sizes: Sequence[int], runs: int, inputs: Path) -> Iterator[Row]:
    """Package and floor take turns, so that what slows the machine slows both."""
    for service in services:
        clouds = [service] if service not in FLOORS else []
        for size in sizes:
            rows = rows_file(inputs, size)
            ours, floors = [], []
            for _ in range(runs):
                with mock(*clouds) as addresses, tempfile.TemporaryDirectory() as folder:
                    if service in FLOORS:
                        floors.append(child("benchmarks.floor", service, rows, addresses["url"], folder))
                    ours.append(child("benchmarks.package", service, rows, folder, json.dumps(addresses)))
                for cost in (*floors[-1:], ours[-1]):
                    if cost.said["rows"] != size:
                        raise RuntimeError(f"{service}: {cost.said['rows']} of {size} rows have a label")
            yield Row(service, size, _middle(ours), _middle(floors) if floors else None)


def _middle(costs: list[Cost]) -> Cost:
    """The run with the median CPU time."""
    wanted = median(cost.work_cpu_s for cost in costs)
    return min(costs, key=lambda cost: abs(cost.work_cpu_s - wanted))


def table(rows: Sequence[Row]) -> str:
    """As Markdown."""
    titles = ["Service", "Rows", "Rows/s", "CPU s", "µs a row", "Peak MB"]
    titles += ["Floor rows/s", "Floor CPU s", "Floor MB", "Times the floor"]
    lines = [f"| {' | '.join(titles)} |", "| --- |" + " ---: |" * (len(titles) - 1)]
    for row in rows:
        ours, floor = row.package, row.floor
        each = ours.work_cpu_s / row.rows * 1e6
        figures = [f"{row.rows / ours.wall_s:,.0f}", f"{ours.work_cpu_s:.2f}", f"{each:.0f}", f"{ours.peak_mb:.0f}"]
        if floor is None:
            figures += [""] * 4
        else:
            figures += [f"{row.rows / floor.wall_s:,.0f}", f"{floor.work_cpu_s:.2f}", f"{floor.peak_mb:.0f}"]
            figures.append(f"{row.ratio:.1f}")
        lines.append(f"| {row.service} | {row.rows:,} | {' | '.join(figures)} |")
    return "\n".join(lines)


def plot(rows: Sequence[Row], again: Sequence[Again], to: Path) -> None:
    """CPU seconds over rows, and CPU of a row more; package and floor."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (whole, more) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    colors = {service: f"C{number}" for number, service in enumerate(dict.fromkeys(row.service for row in rows))}
    for service, color in colors.items():
        own = [row for row in rows if row.service == service]
        whole.plot([r.rows for r in own], [r.package.work_cpu_s for r in own], marker="o", color=color, label=service)
        floors = [(r.rows, r.floor.work_cpu_s) for r in own if r.floor is not None]
        if floors:
            whole.plot(*zip(*floors, strict=True), linestyle=":", color=color, label=f"{service}, floor")
    for one in again:
        line = "o-" if one.who == "package" else ":"
        more.plot(list(one.more_s), [each * 1e6 for each in one.more_s.values()], line, color=colors[one.service])
    whole.set(title="All, in a process of its own", xlabel="rows", ylabel="CPU seconds", xscale="log", yscale="log")
    more.set(title="A row more", xlabel="rows", ylabel="CPU microseconds", xscale="log", ylim=(0, None))
    whole.legend(fontsize=8)
    for axes in (whole, more):
        axes.grid(alpha=0.3)
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=110)
    plt.close(figure)
