"""One measurement: a module in a process of its own, the CPU seconds and memory that it took. Linux and macOS."""

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
    """What a process took, and what it did from the end of its imports on; `said` is what it printed last."""

    cpu_s: float  # all of it: also to start, to import, and to take down again what was imported
    work_cpu_s: float
    wall_s: float
    peak_mb: float
    said: dict[str, Any]


def usual_environment() -> dict[str, str]:
    """That of this process, but Python keeps the bytecode that it compiles, as an installed package has it."""
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
    """In the child: made when the imports are done and work begins, or, with `imports_later`, before most of them."""

    def __init__(self, *, imports_later: bool = False) -> None:
        if not imports_later:
            import pyarrow as pa

            pa.array([0])  # with its first array it imports pandas
            gc.collect()  # else the first full collection, of what was imported, falls into the work or not by chance
        self._imports = _cpu()
        self._start = time.perf_counter()

    def cpu_s(self) -> float:
        """CPU seconds until now."""
        return _cpu() - self._imports

    def report(self, **more: Any) -> None:
        """The last thing that the child does."""
        cpu, wall = self.cpu_s(), time.perf_counter() - self._start
        print(json.dumps({"work_cpu_s": cpu, "wall_s": wall, "peak_mb": _peak_mb(), **more}), flush=True)


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _peak_mb() -> float:
    """Of this process alone: what rusage says includes the parent that it was forked from."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20)


@contextmanager
def mock(*services: str) -> Iterator[dict[str, str]]:
    """The mock in a process of its own; its addresses."""
    command = [sys.executable, "-m", "benchmarks.mock", *services]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())
        finally:
            process.stdin.close()
