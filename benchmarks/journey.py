"""The way of one row: which modules and functions it enters to be submitted, and which until its label has landed.

python -m benchmarks.journey [--functions] [--json]

A row of OpenAI goes through the engine before the mock, which runs in a process of its own. What Python enters on the
way is counted by its profiler, in this thread and in those that transfer files. Importing is done before: a first row
warms the process up.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from benchmarks import package  # isort: skip - before what it keeps Dagster away from
import dagster_llm_batch
from benchmarks.inputs import read_rows, rows_file
from benchmarks.measure import mock

PACKAGE = Path(dagster_llm_batch.__file__).parent
SERVICE = "openai"

Entered = dict[str, list[str]]
"""Functions by module, both in the order in which they are entered first."""


def journey() -> dict[str, Entered]:
    """What one row enters, for a submission and for a landing."""
    with tempfile.TemporaryDirectory() as name, mock() as addresses:
        folder = Path(name)
        rows = str(rows_file(folder, 1))
        engine = package.engine(SERVICE, folder, addresses)
        package.label(engine, package.labeling(SERVICE, asset="before"), rows, folder)
        definition = package.labeling(SERVICE)
        ways: dict[str, Entered] = {"submission": {}, "landing": {}}
        with _entered(ways["submission"]):
            submission_id = engine.plan(definition, read_rows(rows)).submission_id
            engine.submit(definition, submission_id)
        with _entered(ways["landing"]):
            while not engine.advance(definition, submission_id).submission.is_settled:
                pass
            labeled = engine.labels(definition, submission_id, run_id="journey")
        if labeled.labels.num_rows != 1:
            raise RuntimeError(f"{labeled.labels.num_rows} labels landed of one row")
    return ways


@contextmanager
def _entered(entered: Entered) -> Iterator[None]:
    """Record each function of the package that is called meanwhile."""
    seen: set[Any] = set()

    def record(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or code in seen:
            return
        seen.add(code)
        path = Path(code.co_filename)
        # Functions without a name of their own (comprehensions, lambdas, class bodies) belong to those around them.
        if path.is_relative_to(PACKAGE) and not code.co_name.startswith("<"):
            module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")
            entered.setdefault(module, []).append(code.co_qualname)

    threading.setprofile(record)
    sys.setprofile(record)
    try:
        yield
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def report(ways: dict[str, Entered], *, functions: bool) -> str:
    """As text: a line a module, in the order of the way."""
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
