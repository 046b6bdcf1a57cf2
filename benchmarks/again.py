"""What a row more takes: labeled data sets of several sizes, one after another in one process.

python -m benchmarks.again package|floor openai|anthropic folder '{"url": …}' one-row.parquet rows.parquet …
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import floor, package
from benchmarks.inputs import rows_file
from benchmarks.measure import Work, child, mock

_ENOUGH_ROWS = 20_000  # of one size
_AT_MOST = 5  # times


@dataclass(frozen=True)
class Again:
    """CPU seconds for a process' first row, for a data set of one row later on, and for each row more, by rows."""

    who: str  # package or floor
    service: str
    first_s: float
    one_s: float
    more_s: dict[int, float]


def main(who: str, service: str, folder: str, addresses: str, *files: str) -> None:
    """Label one file after the other."""
    label = _package(service, folder, addresses) if who == "package" else _floor(service, folder, addresses)
    work, each = Work(), []
    for number, rows in enumerate(files):
        before = work.cpu_s()
        count = label(number, rows)
        each.append((count, work.cpu_s() - before))
    work.report(each=each)


def _package(service: str, folder: str, addresses: str) -> Callable[[int, str], int]:
    engine = package.engine(service, Path(folder), json.loads(addresses))

    def label(number: int, rows: str) -> int:
        return package.label(engine, package.labeling(service, asset=f"labels_{number}"), rows, Path(folder))[0]

    return label


def _floor(service: str, folder: str, addresses: str) -> Callable[[int, str], int]:
    url = json.loads(addresses)["url"]
    floor.load(*floor.FLOOR)
    return lambda _, rows: floor.label(service, rows, url, folder)


def measure(services: Sequence[str], sizes: Sequence[int], folder: Path, inputs: Path) -> Iterator[Again]:
    """Package and floor."""
    times = {1: 1 + _AT_MOST, **{size: max(1, min(_AT_MOST, _ENOUGH_ROWS // size)) for size in sizes}}
    files = [rows_file(inputs, size) for size, count in times.items() for _ in range(count)]
    for service in services:
        for who in ("package", "floor"):
            (place := folder / f"{service}-{who}").mkdir()
            with mock() as addresses:
                said = child("benchmarks.again", who, service, place, json.dumps(addresses), *files).said["each"]
            (_, first), *later = said
            took = {size: median(cpu for count, cpu in later if count == size) for size in times}
            one = took.pop(1)
            yield Again(who, service, first, one, {size: (cpu - one) / (size - 1) for size, cpu in took.items()})


def table(rows: Sequence[Again]) -> str:
    """As Markdown."""
    sizes = list(rows[0].more_s)
    titles = ["Service", "", "A process' first row, ms", "A data set of one row, ms"]
    titles += [f"A row more of {size:,}, µs" for size in sizes]
    lines = [f"| {' | '.join(titles)} |", "| --- | --- |" + " ---: |" * (len(titles) - 2)]
    for row in rows:
        more = (f"{row.more_s[size] * 1e6:.1f}" for size in sizes)
        figures = [f"{row.first_s * 1e3:.0f}", f"{row.one_s * 1e3:.0f}", *more]
        lines.append(f"| {row.service} | {row.who} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(*sys.argv[1:])
