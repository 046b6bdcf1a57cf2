"""The cost of a start: imports, the command line, ten rows in a fresh process, and the validation of a project."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.inputs import rows_file
from benchmarks.measure import ROOT, child, mock, usual_environment
from dagster_llm_batch.storage.ledger import Ledger

_RUNS = 5
_SDKS = ("openai", "anthropic", "boto3", "google.genai")
_IMPORTS = ("dagster", "dagster_llm_batch", "dagster_llm_batch.engine.engine", "dagster_llm_batch.resources")
_COMMAND = "from dagster_llm_batch.cli.main import main; main()"
_FEW_ROWS = 10
_IN_DAGSTER = ("openai",)
# The modules whose import is the vendor's own share of the cost of ten rows.
_SDK_OF = {"openai": "openai", "anthropic": "anthropic", "vertex": "google.genai, google.cloud.storage"}


def table() -> str:
    """Return the table as Markdown."""
    lines = [f"| What | CPU seconds, median of {_RUNS} | Beyond | SDKs loaded |", "| --- | ---: | ---: | --- |"]
    codes = [
        f"import sys, {module}; print(','.join(n for n in {_SDKS} if n in sys.modules) or 'none')"
        for module in _IMPORTS
    ]
    for module, (took, said) in zip(_IMPORTS, _medians([[sys.executable, "-c", code] for code in codes]), strict=True):
        lines.append(f"| `import {module}` | {took:.2f} | | {said} |")
    lines += [*_command_lines(), *_few_rows_lines()]
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text("import dagster as dg\n\ndefs = dg.Definitions()\n", encoding="utf-8")
        projects = {
            "a project without assets": ["-f", str(empty)],
            "the example": ["-m", "example_project.definitions"],
        }
        commands = [
            [sys.executable, "-m", "dagster", "definitions", "validate", *target] for target in projects.values()
        ]
        for name, (took, _) in zip(projects, _medians(commands, DAGSTER_HOME=folder), strict=True):
            lines.append(f"| `dagster definitions validate` of {name} | {took:.2f} | | |")
    return "\n".join(lines)


def _command_lines() -> list[str]:
    """Return lines with the cost of commands that do not load a code location."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = str(Path(folder) / "ledger.sqlite")
        opened = Ledger(ledger)
        opened.submissions.list_all("default")
        opened.close()
        words = {"--help": ["--help"], "list --ledger …": ["list", "--ledger", ledger]}
        costs = _medians([[sys.executable, "-c", _COMMAND, *more] for more in words.values()])
    return [f"| `dagster-llm-batch {name}` | {took:.2f} | | |" for name, (took, _) in zip(words, costs, strict=True)]


def _few_rows_lines() -> list[str]:
    """Return lines with the cost of ten rows, from a file to their labels in a fresh process.

    The import of the vendor's SDK alone is the comparison and, in a Dagster run, also a run of empty assets.
    """
    lines, alone = [], {}
    with tempfile.TemporaryDirectory() as folder:
        rows = rows_file(Path(folder), _FEW_ROWS)
        for service, modules in _SDK_OF.items():
            [(alone[service], _)] = _medians([[sys.executable, "-c", f"import {modules}"]])
            with mock(service) as addresses:
                whole = _median_of("benchmarks.few_rows", (service, rows), folder, json.dumps(addresses))
            lines.append(
                f"| {_FEW_ROWS} rows of {service} in a fresh process; `import {modules}` alone takes "
                f"{alone[service]:.2f} | {whole:.2f} | {whole - alone[service]:.2f} | {service} |"
            )
        empty = _median_of("benchmarks.empty_run", (), folder)
        lines.append(f"| a Dagster run of assets that do nothing | {empty:.2f} | | none |")
        for service in _IN_DAGSTER:
            with mock(service) as addresses:
                whole = _median_of("benchmarks.dagster_run", (service, rows), folder, json.dumps(addresses))
            beyond = whole - empty - alone[service]
            lines.append(f"| {_FEW_ROWS} rows of {service} in a Dagster run | {whole:.2f} | {beyond:.2f} | {service} |")
    return lines


def _median_of(module: str, given: Sequence[object], folder: str, *addresses: str) -> float:
    """Return the median CPU seconds of whole processes of a benchmark, each with a new folder; skip the first."""
    places = (tempfile.mkdtemp(dir=folder) for _ in range(1 + _RUNS))
    return median([child(module, *given, place, *addresses).cpu_s for place in places][1:])


def _medians(commands: Sequence[list[str]], **environment: str) -> list[tuple[float, str]]:
    """Return the median CPU seconds and the output of each. They take turns, so that other load slows all of them."""
    took: list[list[float]] = [[] for _ in commands]
    said = [""] * len(commands)
    # The first turn compiles missing bytecode, and is not counted.
    for turn in range(1 + _RUNS):
        for number, command in enumerate(commands):
            before = _children_cpu_s()
            done = subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                cwd=ROOT,
                env={**usual_environment(), **environment},
            )
            said[number] = done.stdout.strip()
            if turn > 0:
                took[number].append(_children_cpu_s() - before)
    return list(zip(map(median, took), said, strict=True))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
