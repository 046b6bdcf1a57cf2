"""What importing costs beside Dagster alone, and validating the example beside a project without assets."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from benchmarks.measure import ROOT

_RUNS = 5
_SDKS = ("openai", "anthropic", "boto3", "google.genai")
_IMPORTS = ("dagster", "dagster_llm_batch", "dagster_llm_batch.engine.engine", "dagster_llm_batch.resources")


def table() -> str:
    """As Markdown."""
    lines = ["| What | CPU seconds, median of 5 | SDKs loaded |", "| --- | ---: | --- |"]
    for module in _IMPORTS:
        code = f"import sys, {module}; print(','.join(n for n in {_SDKS} if n in sys.modules) or 'none')"
        took, said = _median([sys.executable, "-c", code])
        lines.append(f"| `import {module}` | {took:.2f} | {said} |")
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text("import dagster as dg\n\ndefs = dg.Definitions()\n", encoding="utf-8")
        validate = [sys.executable, "-m", "dagster", "definitions", "validate"]
        for name, target in (
            ("a project without assets", ["-f", str(empty)]),
            ("the example", ["-m", "example_project.definitions"]),
        ):
            took, _ = _median([*validate, *target], DAGSTER_HOME=folder)
            lines.append(f"| `dagster definitions validate` of {name} | {took:.2f} | |")
    return "\n".join(lines)


def _median(command: list[str], **environment: str) -> tuple[float, str]:
    took, said = [], ""
    for _ in range(_RUNS):
        before = _children_cpu_s()
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **environment}
        )
        said = done.stdout.strip()
        took.append(_children_cpu_s() - before)
    return median(took), said


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
