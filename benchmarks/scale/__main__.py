"""See the package's docstring."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from benchmarks.scale import day, rows
from benchmarks.scale.shards import Size, run


def measured(size: Size) -> dict[str, Any]:
    """Return all figures, with time and number of cores."""
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return {"when": when, "cores": os.cpu_count(), "shards": run(size), "rows": rows.measure()}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale")
    parser.add_argument("--partitions", type=int, default=1_000)
    parser.add_argument("--shards", type=int, default=10, help="of a partition, of ten rows each")
    parser.add_argument("--workers", choices=["processes", "ray"], default="processes")
    parser.add_argument("--write", action="store_true", help="keep the figures, and write the page from them")
    options = parser.parse_args()
    figures = measured(replace(Size(), partitions=options.partitions, shards=options.shards, pool=options.workers))
    if options.write:
        day.FIGURES.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        day.main(["--write"])
    for name, lines in day.tables(figures).items():
        print(f"{name}\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
