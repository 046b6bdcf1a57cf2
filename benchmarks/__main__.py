"""See the package's docstring."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import (
    backfill,
    chains,
    copies,
    cores,
    dagster_run,
    latency,
    money,
    page,
    partitions,
    sensor,
    shapes,
    startup,
    writes,
)
from benchmarks import parts as text_parts
from benchmarks.scale import day, shards


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument(
        "parts",
        nargs="*",
        help=f"some of: {', '.join(page.TEXTS)} (default: all)",
    )
    parser.add_argument("--write", action="store_true", help="write these parts into the page, and leave its others")
    parser.add_argument(
        "--keep", type=Path, help="a folder for the sections of the parts, and those from earlier calls"
    )
    parser.add_argument("--floors", type=Path, help="a folder with floor_fast.py and floor_shape.py, to stand beside")
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--big-rows", type=int, default=1_000_000, help="of services with a floor; 0: none")
    parser.add_argument(
        "--only", nargs="+", default=[""], help="of `shapes` the rows whose shape has one of these in it"
    )
    parser.add_argument("--services", nargs="+", default=["openai", "anthropic", "bedrock", "vertex"])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--big-runs", type=int, default=1, help="of more than 200,000 rows")
    parser.add_argument("--run-rows", type=int, nargs="+", default=[100_000, 1_000_000], help="more than 100,000 once")
    parser.add_argument("--caps", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--shard-sizes", type=int, nargs="+", default=[100, 1_000, 10_000, 50_000])
    parser.add_argument("--batches", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--ledgers", nargs="+", default=list(sensor.LEDGERS))
    parser.add_argument("--days", type=int, default=365)
    parser.add_argument("--runs-of-days", type=int, default=60, help="how many days have a Dagster run each")
    parser.add_argument("--growing", type=int, nargs="+", default=[1, 2, 30, 60, 120], help="days of a growing table")
    parser.add_argument("--rows-a-day", type=int, default=50)
    parser.add_argument("--texts", type=int, default=10_000, help="long texts that are split into parts")
    parser.add_argument("--grouped", type=int, nargs="+", default=[100_000, 1_000_000], help="texts to group")
    parser.add_argument("--near-rows", type=int, default=100_000, help="rows, three tenths of them near copies")
    parser.add_argument("--scale-partitions", type=int, default=1_000, help="each of ten batches of ten rows")
    parser.add_argument("--inputs", type=Path, default=Path(tempfile.gettempdir()) / "dagster-llm-batch-benchmarks")
    options = parser.parse_args()

    keep = options.keep or Path(tempfile.mkdtemp())
    keep.mkdir(parents=True, exist_ok=True)
    # Sensor and Dagster runs are only measured with these services, too.
    floors = [one for one in options.services if one in shapes.FLOORS]

    def measured_shapes() -> str:
        cases = shapes.cases(options.services, options.rows, max(options.rows), options.big_rows or None)
        cases = [case for case in cases if any(word in case.shape for word in options.only)]
        rows = list(shapes.measure(cases, options.runs, options.big_runs, options.inputs, options.floors))
        shapes.plot(rows, keep / page.PLOT.name)
        return f"{shapes.table(rows)}\n\n{shapes.facts(rows)}"

    def measured_partitions() -> str:
        by_runs = backfill.table(options.days, options.runs_of_days)
        return f"{partitions.table(options.days)}\n\n{page.BACKFILL}\n\n{by_runs}"

    parts: dict[str, Callable[[], str]] = {
        "shapes": measured_shapes,
        "chains": lambda: chains.table(options.growing, options.rows_a_day, options.runs),
        "parts": lambda: text_parts.table(options.texts, options.runs),
        "copies": lambda: copies.table(options.grouped, options.near_rows),
        "runs": lambda: dagster_run.table(floors, options.run_rows, options.runs, options.inputs),
        "cores": lambda: cores.table(options.run_rows[0], options.caps, options.inputs),
        "ledger": lambda: writes.table(options.rows, options.shard_sizes, options.inputs),
        "sensor": lambda: sensor.table(
            floors, [*((count, count) for count in options.batches), (2, options.days)], options.ledgers
        ),
        "partitions": measured_partitions,
        "scale": lambda: day.shard_tables(shards.run(shards.Size(partitions=options.scale_partitions))),
        "latency": lambda: latency.table([1, options.days]),
        "money": money.table,
        "startup": startup.table,
    }
    if unknown := sorted(set(options.parts) - set(parts)):
        parser.error(f"there is no part {', '.join(unknown)}; the parts are {', '.join(parts)}")
    given: dict[str, Any] = {
        "scale_partitions": options.scale_partitions,
        "runs": options.runs,
        "big_runs": options.big_runs,
        "others": page.OTHERS if options.floors else "",
    }
    for name in options.parts or parts:
        text = page.TEXTS[name].format(**given)
        section = f"{text}\n\n{parts[name]()}\n\n{_when()}\n"
        (keep / f"{name}.md").write_text(section, encoding="utf-8")
        print(section, flush=True)
    if options.write or not options.parts:
        _write(keep)


def _when() -> str:
    now, load = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC", f"load {os.getloadavg()[1]:.0f}"
    return f"{now}; {load}; Python {platform.python_version()}."


def _write(keep: Path) -> None:
    """Write the page, its picture, and the README's quote from it."""
    machine = f"{os.cpu_count()} cores, {platform.system()}"
    sections = {name: path.read_text(encoding="utf-8") for name in page.TEXTS if (path := keep / f"{name}.md").exists()}
    written = page.page_with(page.PAGE.read_text(encoding="utf-8"), sections, machine)
    readme = page.readme_with(page.README.read_text(encoding="utf-8"), written)
    page.PAGE.write_text(written, encoding="utf-8")
    page.README.write_text(readme, encoding="utf-8")
    if (picture := keep / page.PLOT.name).exists():
        shutil.copyfile(picture, page.PLOT)
    print(f"written: {page.PAGE}")


if __name__ == "__main__":
    main()
