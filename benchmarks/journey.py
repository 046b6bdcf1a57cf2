"""The way of one row: the modules and functions that it enters, for its submission and until its label is stored.

python -m benchmarks.journey [--functions] [--json]

One row goes through the engine with OpenAI's mock, which runs in a separate process. Python's profiler counts the
functions, in this thread and in the threads that transfer files. An earlier row warms the process up, so imports do not
count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path

from benchmarks import package  # isort: skip - before what it keeps Dagster away from
from benchmarks.entries import record_entries
from benchmarks.inputs import read_rows, rows_file
from benchmarks.measure import mock

SERVICE = "openai"

Entered = dict[str, list[str]]
"""Functions by module, both in the order of their first calls."""


def journey() -> dict[str, Entered]:
    """Return the functions that one row enters, for its submission and for its label."""
    with tempfile.TemporaryDirectory() as name, mock() as addresses:
        folder = Path(name)
        rows = str(rows_file(folder, 1))
        engine = package.engine(SERVICE, folder, addresses)
        package.label(engine, package.labeling(SERVICE, asset="before"), rows, folder)
        definition = package.labeling(SERVICE)
        with record_entries() as submission:
            submission_id = engine.plan(definition, read_rows(rows)).submission_id
            engine.submit(definition, submission_id)
        with record_entries() as landing:
            while not engine.advance(definition, submission_id).submission.is_settled:
                pass
            labeled = engine.labels(definition, submission_id, run_id="journey")
        if labeled.labels.num_rows != 1:
            raise RuntimeError(f"{labeled.labels.num_rows} labels landed of one row")
    return {"submission": _by_module(submission), "landing": _by_module(landing)}


def _by_module(entries: Iterable[tuple[str, str]]) -> Entered:
    entered: Entered = {}
    for module, function in entries:
        entered.setdefault(module, []).append(function)
    return entered


def report(ways: dict[str, Entered], *, functions: bool) -> str:
    """Return the ways as text, with a line for each module, in order."""
    lines = []
    for way, entered in ways.items():
        count = sum(len(names) for names in entered.values())
        lines.append(f"{way}: {len(entered)} modules, {count} functions")
        for module, names in entered.items():
            lines.append(f"  {module}" + (f": {', '.join(names)}" if functions else f" ({len(names)})"))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.journey", description="The way of one row.")
    parser.add_argument("--functions", action="store_true", help="name the functions, too")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    ways = journey()
    print(json.dumps(ways) if options.json else report(ways, functions=options.functions))


if __name__ == "__main__":
    main()
