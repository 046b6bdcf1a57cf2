"""`python -m tests.crash.matrix`: kill a worker process at every crash point, for every provider, on both ledgers.

Prints each cell when it is done, then the matrix. With --write, also writes it into docs/fault-matrix.md, and keeps a
chosen part apart from the whole. Ends with 1 if anything was lost or paid twice.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.crash.cells import LEDGERS, Cell, CellResult, Servers, cells, run_cell, servers
from tests.crash.clouds import CLOUDS
from tests.crash.points import CRASHES
from tests.crash.scenarios import SCENARIOS
from tests.fault_matrix_page import PAGE, write

_INTRO = """\
A worker process labels rows, from plan to a delivered table, and is killed with SIGKILL at the named point. Other
workers continue without faults until the submission is complete. A point is a moment of an arrow, which is a call, file
or transaction that leaves the process:

- *before* and *after* the arrow
- *halfway*: some of its bytes are out
- *unseen*: all is written but not visible yet (before the rename or commit)
- *arrived*: the provider has the call but never acts on it
- *acted*: the provider has acted, and its reply is not read

A row is lost if it is not in the table exactly once. A request is billed twice if it was billed more than once in a
round, or in a batch without a shard. The results are verified by the emulators' books and the final table. Cells show
seconds, on SQLite / on PostgreSQL, on a machine with other work; a cell is empty if the provider makes no such call.
Written by `python -m tests.crash.matrix --write`.

"""

Results = Mapping[Cell, CellResult]


def run(chosen: Sequence[Cell], around: Servers, at_once: int) -> Iterator[tuple[Cell, CellResult]]:
    """Yield the cells with their results, in order. `at_once` cells run at the same time."""

    def one(cell: Cell) -> CellResult:
        with tempfile.TemporaryDirectory(prefix="crash-") as folder:
            return run_cell(cell, around, Path(folder))

    with ThreadPoolExecutor(at_once) as pool:
        yield from zip(chosen, pool.map(one, chosen), strict=True)


def table(results: Results) -> list[str]:
    """Return the matrix in Markdown: by provider and ledger, then by crash point, with seconds in each cell."""
    clouds = [name for name in CLOUDS if any(cell.cloud.name == name for cell in results)]
    lines = [
        "| provider | ledger | crash points | rows | lost | billed | billed twice | seconds |",
        "| --- | --- | --: | --: | --: | --: | --: | --: |",
    ]
    for cloud in clouds:
        for ledger in LEDGERS:
            some = [v for cell, v in results.items() if (cell.cloud.name, cell.ledger) == (cloud, ledger)]
            if some:
                lines.append(f"| {cloud} | {ledger} | {len(some)} | {_sums(some)} |")
    lines.append(f"| all | | {len(results)} | {_sums(results.values())} |")
    for scenario in SCENARIOS:
        crashes: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        totals: dict[str, list[CellResult]] = defaultdict(list)
        for cell, result in results.items():
            if cell.crash.scenario is scenario:
                wrong = " **wrong**" if result.problems else ""
                crashes[str(cell.crash)][cell.cloud.name].append(f"{result.seconds:.1f}{wrong}")
                totals[str(cell.crash)].append(result)
        if not crashes:
            continue
        batches = " + ".join(map(str, scenario.waves)) or "no"
        lines += ["", f"### While {scenario.name} ({batches} {'batch' if batches == '1' else 'batches'})", ""]
        lines.append(f"| crash point | rows | lost | billed twice | {' | '.join(clouds)} |")
        lines.append(f"| --- | --: | --: | --: | {' | '.join('--:' for _ in clouds)} |")
        for crash, by_cloud in crashes.items():
            sums = [sum(getattr(v, name) for v in totals[crash]) for name in ("rows", "lost", "billed_twice")]
            seconds = [" / ".join(by_cloud[cloud]) if cloud in by_cloud else "" for cloud in clouds]
            lines.append(f"| {crash} | {' | '.join(map(str, sums))} | {' | '.join(seconds)} |")
    return lines


def _sums(results: Iterator[CellResult] | Sequence[CellResult]) -> str:
    found = list(results)
    counts = [sum(getattr(v, name) for v in found) for name in ("rows", "lost", "billed", "billed_twice")]
    return f"{' | '.join(map(str, counts))} | {sum(v.seconds for v in found):.0f}"


def _logged(file: Path | None, chosen: Sequence[Cell]) -> dict[Cell, CellResult]:
    if file is None or not file.exists():
        return {}
    known: dict[str, Any] = {}
    for line in file.read_text().splitlines():
        known |= json.loads(line)
    return {cell: CellResult(**known[str(cell)]) for cell in chosen if str(cell) in known}


def _part(providers: Sequence[str], ledgers: Sequence[str], point: str, scenario: str) -> str:
    """Name the chosen part of the matrix; the name of the whole matrix is empty."""
    words = [", ".join(providers), ", ".join(ledgers), point and f"points with '{point}'"]
    words.append(scenario and f"scenarios with '{scenario}'")
    return "; ".join(word for word in words if word)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash.matrix", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--provider", action="append", choices=list(CLOUDS), help="only these; repeatable")
    parser.add_argument("--ledger", action="append", choices=LEDGERS, help="only these; repeatable")
    parser.add_argument("--point", default="", help="only crash points whose name has this text")
    parser.add_argument("--scenario", default="", help="only scenarios whose name has this text")
    parser.add_argument("--at-once", type=int, default=3, help="cells at the same time (default 3)")
    parser.add_argument("--log", type=Path, help="adds results to this file, and runs no cell that is in it already")
    parser.add_argument("--write", action="store_true", help=f"write the matrix into {PAGE.name}")
    options = parser.parse_args(arguments)
    clouds, ledgers = options.provider or list(CLOUDS), options.ledger or list(LEDGERS)
    chosen = cells(
        clouds,
        ledgers,
        [crash for crash in CRASHES if options.point in str(crash) and options.scenario in crash.scenario.name],
    )
    results = _logged(options.log, chosen)
    began = time.monotonic()
    with servers(set(clouds), set(ledgers)) as around:
        for cell, result in run([cell for cell in chosen if cell not in results], around, options.at_once):
            results[cell] = result
            if options.log:
                with options.log.open("a") as log:
                    log.write(json.dumps({str(cell): asdict(result)}) + "\n")
            told = "; ".join(result.problems) or "ok"
            print(f"{len(results)}/{len(chosen)} {cell}: {result.seconds:.1f} s, {told}", flush=True)
    lines = table({cell: results[cell] for cell in chosen})
    print("\n" + "\n".join(lines))
    print(
        f"\n{len(results)} crashes, {sum(v.kills for v in results.values())} kills in {time.monotonic() - began:.0f} s."
    )
    if options.write:
        part = _part(options.provider or (), options.ledger or (), options.point, options.scenario)
        if part:
            write(f"crash {part}", f"Crash points: {part}", ["As above, of a part of the matrix alone.", "", *lines])
        else:
            write("crash", "Crash points", [*_INTRO.splitlines(), *lines])
    return 1 if any(result.problems for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
