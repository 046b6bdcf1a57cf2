"""One measurement: the CPU seconds and memory of a module in a separate process. Linux and macOS."""

from __future__ import annotations

import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Cost:
    """The cost of a process. `work_cpu_s` and `wall_s` begin after its imports; `said` is its last printed line."""

    cpu_s: float  # the whole process, including start, imports and end
    work_cpu_s: float
    wall_s: float
    peak_mb: float
    said: dict[str, Any]


def usual_environment() -> dict[str, str]:
    """Return this process's environment, but let Python store bytecode, since an installed package has it."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "DAGSTER_DISABLE_TELEMETRY": "1"}


def child(module: str, *arguments: object) -> Cost:
    """Run `python -m module arguments`; it ends with `report(...)`."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=usual_environment())
    assert process.stdout is not None
    said = process.stdout.read().decode().strip().splitlines()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not said:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    last = json.loads(said[-1])
    cpu = used.ru_utime + used.ru_stime
    return Cost(cpu, last.pop("work_cpu_s"), last.pop("wall_s"), last.pop("peak_mb"), last)


class Work:
    """The measurement in the child. Create it after the imports or, with `imports_later`, before most of them."""

    def __init__(self, *, imports_later: bool = False) -> None:
        if not imports_later:
            import pyarrow as pa

            pa.array([0])  # the first array imports pandas
            gc.collect()  # else the first full collection of the imports falls into the work only by chance
        self._imports = _cpu()
        self._start = time.perf_counter()

    def cpu_s(self) -> float:
        """Return the CPU seconds until now."""
        return _cpu() - self._imports

    def report(self, **more: Any) -> None:
        """Print the cost, as the child's last line."""
        cpu, wall = self.cpu_s(), time.perf_counter() - self._start
        print(json.dumps({"work_cpu_s": cpu, "wall_s": wall, "peak_mb": _peak_mb(), **more}), flush=True)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_mb() -> float:
    """Return the peak of this process alone. The value in rusage includes the parent that it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


@contextmanager
def mock(*services: str) -> Iterator[dict[str, str]]:
    """Run the mock in a separate process, and yield its addresses."""
    command = [sys.executable, "-m", "benchmarks.mock", *services]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
