"""What importing costs beside Dagster alone, and validating the example beside a project without assets."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.measure import ROOT

_RUNS = 5
_SDKS = ("openai", "anthropic", "boto3", "google.genai")
_IMPORTS = ("dagster", "dagster_llm_batch", "dagster_llm_batch.engine.engine", "dagster_llm_batch.resources")


def table() -> str:
    """As Markdown."""
    lines = ["| What | CPU seconds, median of 5 | SDKs loaded |", "| --- | ---: | --- |"]
    codes = [
        f"import sys, {module}; print(','.join(n for n in {_SDKS} if n in sys.modules) or 'none')"
        for module in _IMPORTS
    ]
    for module, (took, said) in zip(_IMPORTS, _medians([[sys.executable, "-c", code] for code in codes]), strict=True):
        lines.append(f"| `import {module}` | {took:.2f} | {said} |")
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
            lines.append(f"| `dagster definitions validate` of {name} | {took:.2f} | |")
    return "\n".join(lines)


def _medians(commands: Sequence[list[str]], **environment: str) -> list[tuple[float, str]]:
    """What each takes and says. They take turns, so that what slows the machine slows all."""
    took: list[list[float]] = [[] for _ in commands]
    said = [""] * len(commands)
    for _ in range(_RUNS):
        for number, command in enumerate(commands):
            before = _children_cpu_s()
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
            )
            said[number] = done.stdout.strip()
            took[number].append(_children_cpu_s() - before)
    return list(zip(map(median, took), said, strict=True))


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
